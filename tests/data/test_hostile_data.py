"""Data files made to harm: bombs, headers that lie, pickles, bytes changed in any place."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from resflow_bench import data
from resflow_bench.data.arrays import read_arrays
from resflow_bench.data.formats import read_idx
from resflow_bench.data.own import read_dataset
from resflow_bench.files import MAX_UNPACKED

ROWS = np.random.default_rng(0).normal(size=(50, 3))
HUGE = 40 * 2**30
MOST_MEMORY = 2**26


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    assert not Path("ran").exists()


def npy(shape: object, descr: object = "<f8", body: bytes = b"") -> bytes:
    """An npy file with this header, true or not."""
    header = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + body


def zeros(n_bytes: int, wbits: int) -> bytes:
    """So many zeros, compressed a thousandfold; only the first of each 2**24 are computed."""
    packer = zlib.compressobj(9, wbits=wbits)
    piece = bytes(2**24)
    return b"".join(packer.compress(piece) for _ in range(n_bytes // len(piece))) + packer.flush()


def archive(path: str, names: tuple[str, ...], content: bytes, method: int) -> None:
    with zipfile.ZipFile(path, "w", method) as file:
        for name in names:
            file.writestr(name, content)


def refused(path: str, *words: str) -> None:
    """One sentence that names the file, in little memory."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"\A[^\n]*\.\Z") as error:
            read_dataset(path)
        assert tracemalloc.get_traced_memory()[1] < MOST_MEMORY
    finally:
        tracemalloc.stop()
    assert str(Path(path)) in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_an_npz_that_unpacks_to_far_more_than_its_size() -> None:
    """1.25 GiB of zeros in a few megabytes, with an honest header."""
    n = MAX_UNPACKED * 5 // 4
    packed = zipfile.ZipFile("bomb.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1)
    with packed as file, file.open("x.npy", "w") as member:
        member.write(npy((n // 8, 1)))
        for _ in range(n // 2**24):
            member.write(bytes(2**24))
    assert Path("bomb.npz").stat().st_size < 1e7
    refused("bomb.npz", f"unpack to {n:,}"[:15], "the limit is 1,073,741,824, or 64 times the file")


def test_a_header_that_promises_more_than_follows() -> None:
    for shape in ((HUGE, HUGE), (HUGE,), (-1, -1), (-5, 3), (10**30, 1)):
        Path("lie.npy").write_bytes(npy(shape))
        refused("lie.npy", "header promises")
        archive("lie.npz", ("x.npy",), npy(shape), zipfile.ZIP_DEFLATED)
        refused("lie.npz", "header promises")


def test_a_directory_of_an_archive_that_lies() -> None:
    """It says that 80 bytes follow the header; they unpack to far more, and are not read on."""
    archive("lie.npz", ("x.npy",), npy((10, 1)) + bytes(2**27), zipfile.ZIP_DEFLATED)
    whole = Path("lie.npz").read_bytes()
    true = struct.pack("<I", len(npy((10, 1))) + 2**27)
    assert whole.count(true) == 2
    Path("lie.npz").write_bytes(whole.replace(true, struct.pack("<I", len(npy((10, 1))) + 80)))
    refused("lie.npz")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_compression_that_unpacks_without_bound(method: int) -> None:
    archive("other.npz", ("x.npy",), npy((50, 3), body=ROWS.tobytes()), method)
    refused("other.npz", "compressed as numpy does not do it")


def test_names_of_members_lead_nowhere() -> None:
    """A member is read and never written, whatever its name."""
    content = npy((50, 3), body=ROWS.tobytes())
    for name in ("../../x.npy", "/tmp/x.npy", "C:\\x.npy"):
        archive("paths.npz", (name,), content, zipfile.ZIP_DEFLATED)
        assert read_dataset("paths.npz").train.shape == (45, 3)
    assert [path.name for path in Path().iterdir()] == ["paths.npz"]


class Rude:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("ran",)


def test_pickles_are_not_run() -> None:
    pickled = pickle.dumps(Rude())
    for shape in ((), (1,), (50, 3)):
        Path("rude.npy").write_bytes(npy(shape, "|O", pickled))
        refused("rude.npy", "allow_pickle=False")
    Path("rude.npy").write_bytes(npy((1,), [("a", "|O")], pickled))
    refused("rude.npy", "allow_pickle=False")


def test_an_idx_file_that_unpacks_to_far_more_than_its_size() -> None:
    """The header is held to the limit before the rest is unpacked, and the rest to the header."""
    for n, words in ((2**31, "the limit is"), (100, "at least 101 follow")):
        head = bytes([0, 0, 8, 1]) + struct.pack(">I", n)
        Path("bomb.gz").write_bytes(gzip.compress(head) + zeros(2**27, wbits=31))
        tracemalloc.start()
        with pytest.raises(ValueError, match=rf"\Abomb\.gz cannot be read: [^\n]*{words}[^\n]*\Z"):
            read_idx(Path("bomb.gz"), ndim=1)
        assert tracemalloc.get_traced_memory()[1] < MOST_MEMORY
        tracemalloc.stop()


def test_a_parquet_file_of_a_kilobyte_that_says_a_billion_rows() -> None:
    """Runs of one number take no room; text is refused before it is read."""
    group = pa.table({"x": pa.array(np.zeros(2**20))})
    with pq.ParquetWriter("runs.parquet", group.schema, compression="gzip") as writer:
        for _ in range(160):
            writer.write_table(group)
    assert Path("runs.parquet").stat().st_size < 1e6
    refused("runs.parquet", "unpack to 1,342,177,280; the limit is")
    text = pa.array(["x" * 2**20] * 1000).dictionary_encode()
    pq.write_table(pa.table({"x": ROWS[:, 0].repeat(20), "city": text}), "text.parquet")
    refused("text.parquet", "no numbers: city.")


def test_indexes_of_a_parquet_file_are_no_data() -> None:
    """Also where the names of columns hold dots, or what pandas wrote of them is damaged."""
    frame = pd.DataFrame(ROWS, columns=["a", "a.b", "c"], index=[f"row {i}" for i in range(50)])
    frame.to_parquet("named.parquet")
    assert read_arrays(Path("named.parquet")).columns == ("a", "a.b", "c")
    np.testing.assert_array_equal(read_arrays(Path("named.parquet")).train, ROWS)
    for said in (b"{", b"[]", b"1", b'{"index_columns": 3, "columns": 1}', b"\xff"):
        table = pa.table(dict(zip("abc", ROWS.T, strict=True))).replace_schema_metadata(
            {b"pandas": said}
        )
        pq.write_table(table, "said.parquet")
        try:
            assert read_arrays(Path("said.parquet")).columns == ("a", "b", "c")
        except ValueError as error:
            assert str(error).startswith("said.parquet cannot be read")  # noqa: PT017


def test_a_line_of_millions_of_columns() -> None:
    Path("wide.csv").write_text("1," * 2**22 + "1\n")
    refused("wide.csv", "more than 65,536 columns")


def test_images_that_unpack_to_far_more_than_their_size() -> None:
    Path("photos").mkdir()
    Image.new("L", (6000, 6000)).save("photos/000.png")
    for i in range(1, 40):
        Path(f"photos/{i:03}.png").write_bytes(Path("photos/000.png").read_bytes())
    refused("photos", "the limit is")
    (path := Path("large")).mkdir()
    Image.new("L", (10000, 10000)).save(path / "0.png")
    refused("large", "cannot be read as an image")


def test_what_is_no_file_is_not_waited_for() -> None:
    os.mkfifo("pipe.npy")
    refused("./pipe.npy", "no file of")
    Path("endless.npy").symlink_to("/dev/zero")
    refused("./endless.npy", "no file of")


def test_a_pickled_batch_that_asks_for_memory(tmp_path: Path) -> None:
    """A memo index of 2^31 would take 32 GiB of pointers."""
    for name in ("data_batch_1", *(f"data_batch_{i}" for i in range(2, 6)), "test_batch"):
        (tmp_path / name).write_bytes(b"\x80\x02}r\xff\xff\xff\x7f.")
    with pytest.raises(ValueError, match=r"data_batch_1 cannot be read: [^\n]*memo"):
        data.cifar10(tmp_path)


def saved(suffix: str) -> bytes:
    stream = io.BytesIO()
    match suffix:
        case ".npy":
            np.save(stream, ROWS)
        case ".npz":
            np.savez_compressed(stream, train=ROWS[:25], test=ROWS[25:])
        case ".csv":
            pd.DataFrame(ROWS, columns=list("abc")).to_csv(stream, index=False)
        case ".parquet":
            pd.DataFrame(ROWS, columns=list("abc")).to_parquet(stream)
        case ".png":
            Image.fromarray(np.arange(60, dtype="u1").reshape(6, 10)).save(stream, "png")
        case ".jpg":
            Image.fromarray(np.arange(60, dtype="u1").reshape(6, 10)).save(stream, "jpeg")
    return stream.getvalue()


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".csv", ".parquet", ".png", ".jpg"])
def test_damage_in_any_place_is_one_sentence_or_other_numbers(suffix: str) -> None:
    whole = saved(suffix)
    Path("x").mkdir()
    file = Path("x" if suffix in (".png", ".jpg") else ".", f"mine{suffix}")
    path = "./x" if suffix in (".png", ".jpg") else f"./{file}"
    places = st.tuples(st.integers(0, len(whole)), st.integers(0, 8))
    junk = st.binary(max_size=6) | st.sampled_from([b"\xff" * 8, b"9" * 400, b"\0" * 64, b"\n,\n"])

    @settings(
        max_examples=int(os.environ.get("FUZZ_EXAMPLES", "60")),
        derandomize=True,
        deadline=10_000,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(st.lists(st.tuples(places, junk), min_size=1, max_size=3))
    def check(changes: list[tuple[tuple[int, int], bytes]]) -> None:
        content = whole
        for (start, n), new in changes:
            content = content[:start] + new + content[start + n :]
        file.write_bytes(content)
        try:
            read_dataset(path)
        except ValueError as error:
            assert str(Path(path)) in str(error)  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017

    check()
