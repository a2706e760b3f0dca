"""Data of the user's own: what each kind of file becomes, and what is refused in one line."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from resflow_bench.data import DATASETS, Reading, dataset_named, is_path, read_dataset

ROWS = np.random.default_rng(0).normal([1.0, -20.0, 300.0], [0.1, 2.0, 30.0], (50, 3))
COUNTS = np.random.default_rng(1).integers(0, 256, (20, 4, 6, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_npy(path: str, x: np.ndarray) -> None:
    np.save(path, x)


def write_npz(path: str, x: np.ndarray) -> None:
    np.savez(path, whatever=x)


def write_npz_x(path: str, x: np.ndarray) -> None:
    np.savez(path, x=x, y=x[:1])


def write_csv(path: str, x: np.ndarray) -> None:
    pd.DataFrame(x, columns=list("abc")).to_csv(path, index=False)


def write_bare_csv(path: str, x: np.ndarray) -> None:
    pd.DataFrame(x).to_csv(path, index=False, header=False)


def write_parquet(path: str, x: np.ndarray) -> None:
    pd.DataFrame(x, columns=list("abc")).to_parquet(path)


def write_images(folder: str, x: np.ndarray, suffix: str = "png") -> None:
    Path(folder).mkdir(parents=True)
    for i, pixels in enumerate(x):
        Image.fromarray(pixels).save(f"{folder}/{i:03}.{suffix}")


# --- what a file becomes


@pytest.mark.parametrize(
    ("path", "write"),
    [
        ("mine.npy", write_npy),
        ("mine.npz", write_npz),
        ("both.npz", write_npz_x),
        ("mine.csv", write_csv),
        ("bare.csv", write_bare_csv),
        ("mine.parquet", write_parquet),
    ],
)
def test_vectors(path: str, write: Callable[[str, np.ndarray], None]) -> None:
    """Rows come back from their units; mean and scale are of the training rows alone."""
    write(path, ROWS)
    data = read_dataset(path)
    assert (data.name, data.n_levels, data.reading) == (path, None, Reading(0.1, True))
    assert (data.train.shape, data.test.shape) == ((45, 3), (5, 3))
    assert data.train.dtype == data.test.dtype == torch.float32
    x = torch.cat([data.train, data.test]).double()
    back = x * torch.tensor(data.scale) + torch.tensor(data.mean)
    order = back[:, 0].argsort()
    np.testing.assert_allclose(back[order], ROWS[ROWS[:, 0].argsort()], rtol=1e-5)
    np.testing.assert_allclose(data.train.double().mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(data.train.double().std(0, correction=0), 1, atol=1e-6)
    assert data.log_scale == pytest.approx(sum(map(math.log, data.scale)))
    as_they_are = dataset_named(path, reading=Reading(0.5, standardise=False))
    assert (len(as_they_are.train), as_they_are.scale, as_they_are.log_scale) == (25, (), 0)
    kept = torch.cat([as_they_are.train, as_they_are.test])
    assert {tuple(row) for row in kept.tolist()} == {tuple(r) for r in ROWS.astype("f4").tolist()}


def test_log_prob_in_the_units_of_the_file() -> None:
    """ln p(row) = ln p(x) - log_scale, for a normal density with the file's mean and deviation."""
    np.save("mine.npy", ROWS)
    data = read_dataset("mine.npy")
    mean, scale = torch.tensor(data.mean), torch.tensor(data.scale)
    x = data.test.double()
    standard = torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(1)
    own = torch.distributions.Normal(mean, scale).log_prob(x * scale + mean).sum(1)
    torch.testing.assert_close(standard - data.log_scale, own.double())


@pytest.mark.parametrize("suffix", ["png", "PNG", "jpg"])
def test_a_folder_of_images(suffix: str) -> None:
    write_images("photos", COUNTS, suffix)
    Path("photos/notes.txt").write_text("no image")
    data = read_dataset("photos")
    assert (data.event, data.n_levels, data.reading) == ((3, 4, 6), 256, Reading(0.1, False))
    assert (len(data.train), len(data.test), data.train.dtype) == (18, 2, torch.uint8)
    if suffix != "jpg":
        found = {x.numpy().tobytes() for x in torch.cat([data.train, data.test])}
        assert found == {np.moveaxis(x, 2, 0).tobytes() for x in COUNTS}


def test_grey_images_in_a_training_and_a_test_folder() -> None:
    write_images("grey/train", COUNTS[:5, ..., 0])
    write_images("grey/test", COUNTS[5:8, ..., 0])
    data = read_dataset("grey")
    np.testing.assert_array_equal(data.train[:, 0], COUNTS[:5, ..., 0])
    np.testing.assert_array_equal(data.test[:, 0], COUNTS[5:8, ..., 0])


@pytest.mark.parametrize("x", [COUNTS, np.moveaxis(COUNTS, 3, 1), COUNTS[..., 0], COUNTS / 255])
def test_arrays_of_images(x: np.ndarray) -> None:
    np.save("images.npy", x)
    data = read_dataset("images.npy")
    assert data.event == ((1, 4, 6) if x.ndim == 3 else (3, 4, 6))
    assert data.n_levels == (256 if x.dtype == np.uint8 else None)
    assert data.train.dtype == (torch.uint8 if x.dtype == np.uint8 else torch.float32)


def test_test_rows_of_the_file_are_those_that_are_held_out() -> None:
    np.savez("two.npz", train=ROWS[:40], test=ROWS[40:])
    data = read_dataset("two.npz")
    assert (len(data.train), len(data.test), data.reading) == (40, 10, Reading(None, True))
    again = data.test.double() * torch.tensor(data.scale) + torch.tensor(data.mean)
    np.testing.assert_allclose(again, ROWS[40:], rtol=1e-5)
    np.testing.assert_allclose(data.mean, ROWS[:40].mean(0))


def test_the_digest_knows_split_and_units() -> None:
    """Twice the numbers are the same standardised rows, and other data."""
    np.save("mine.npy", ROWS)
    np.save("twice.npy", 2 * ROWS)
    one, two = read_dataset("mine.npy"), read_dataset("twice.npy")
    assert torch.equal(one.train, two.train)
    readings = (Reading(), Reading(0.1, True), Reading(0.2), Reading(standardise=False))
    digests = [read_dataset("mine.npy", reading).digest for reading in readings]
    assert digests[0] == digests[1]
    assert len({*digests, two.digest}) == 4


# --- refusals


class Rude:
    """A pickle that would leave a file behind."""

    def __reduce__(self):
        return (Path("ran").touch, ())


def with_value(value: float, *places: tuple[int, int]) -> np.ndarray:
    x = ROWS.copy()
    for place in places:
        x[place] = value
    return x


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (with_value(np.nan, (3, 1), (7, 1)), ("2 numbers", "2 of 50 rows (3, 7,", "columns 1.")),
        (with_value(np.inf, *((i, 0) for i in range(9))), ("(0, 1, 2, 3, 4 and 4 more,",)),
        (np.where([True, False, True], 4.0, ROWS), ("constant columns", "0, 2.")),
        (ROWS[:14], ("too few rows", "13 to train on and 1")),
        (ROWS[:3], ("too few rows", "3 to train on and 0 held out")),
        (ROWS.reshape(10, 15), ("too few rows", "1 held out")),
        (ROWS.reshape(25, 6).repeat(4, 1), ("24 columns and 23 training rows", "drop columns")),
        (ROWS[:, 0], ("(50,)", "(n, 1)")),
        (ROWS[:0], ("(0, 3)",)),
        (COUNTS.repeat(2, 3)[..., :4], ("without 1 or 3 channels, (20, 4, 6, 4)",)),
        (ROWS.astype(complex), ("complex128",)),
        (ROWS.astype(str), ("no real numbers",)),
        (ROWS > 0, ("bool",)),
        (COUNTS.astype(int), ("int64", "uint8")),
        (COUNTS.astype(float), ("[0, 1]", "0 to 255")),
    ],
)
def test_an_array_that_is_no_data(content: np.ndarray, words: tuple[str, ...]) -> None:
    np.save("mine.npy", content)
    with pytest.raises(ValueError, match=r"^mine\.npy [^\n]*\.$") as error:
        read_dataset("mine.npy")
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("factor", "shift", "standardise"),
    [
        (1e200, 0, True),  # the deviation overflows
        (1e-200, 0, True),  # and vanishes
        (1e39, 0, False),
        (1e-60, 0, False),
        (1, 1e12, False),  # rounded to one number
    ],
)
def test_a_column_that_float32_cannot_hold(factor: float, shift: float, standardise: bool) -> None:
    """With another shift or scale, the second column is read."""
    x = ROWS.copy()
    x[:, 1] = factor * x[:, 1] + shift
    np.save("mine.npy", x)
    with pytest.raises(ValueError, match=r"^mine\.npy .*for float32: 1\. Shift or scale them\.$"):
        read_dataset("mine.npy", Reading(standardise=standardise))
    if shift or factor == 1e-60:
        assert read_dataset("mine.npy").train.std(0)[1] == pytest.approx(1, rel=0.02)


def refuse(path: str, words: str, reading: Reading = Reading()) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]*\.$") as error:
        read_dataset(path, reading)
    assert words in str(error.value)


def test_tables_that_are_no_data() -> None:
    frame = pd.DataFrame(ROWS, columns=list("abc"))
    frame.assign(city="Rome", day="Monday").to_csv("words.csv", index=False)
    refuse("words.csv", "words.csv has columns that are no numbers: city, day. Encode or drop")
    frame.to_csv("index.csv")
    refuse("index.csv", "without a name")
    frame.mask(frame > 350).to_parquet("gaps.parquet")
    refuse("gaps.parquet", "and columns c.")
    Path("empty.csv").write_text("")
    refuse("empty.csv", "cannot be read: No columns")
    Path("names.csv").write_text("a,b\n")
    refuse("names.csv", "names.csv cannot be read: it has no rows")
    Path("long.csv").write_text("a,b\n" + 300_000 * "1,2\n" + "x,3\n")
    refuse("long.csv", "no numbers: a. Encode")  # and pandas does not warn of two types
    frame.assign(a=pd.to_timedelta(frame["a"], "s")).to_parquet("times.parquet")
    refuse("times.parquet", "no numbers: a. Encode")
    Path("ragged.csv").write_text("a,b\n1,2\n3,4,5\n")
    refuse("ragged.csv", "cannot be read")


def test_images_that_are_no_data() -> None:
    write_images("photos", COUNTS)
    Image.fromarray(COUNTS[0, :2]).save("photos/010.png")
    refuse("photos", "photos/010.png is (C, H, W) = (3, 2, 6), and 000.png is (3, 4, 6)")
    Image.fromarray(COUNTS[0]).convert("RGBA").save("photos/010.png")
    refuse("photos", "photos/010.png is an image of mode RGBA")
    Path("photos/010.png").write_text("none")
    refuse("photos", "photos/010.png cannot be read as an image")
    Path("photos/010.png").unlink()
    refuse("photos", "are not standardised", Reading(standardise=True))
    Path("nothing").mkdir()
    refuse("nothing", "holds no image")


def test_files_that_cannot_be_read_and_readings_that_do_not_fit() -> None:
    for name in ("none.npy", "none.npz", "none.csv", "none.parquet", "./none"):
        refuse(name, "cannot be read (no such file or folder)")
    Path("mine.txt").write_text("1 2 3")
    refuse("./mine.txt", "no file of .npy, .npz, .csv, .parquet and no folder of images")
    np.savez("two.npz", train=ROWS, test=ROWS)
    refuse("two.npz", "test rows of its own; got a held-out share of 0.2", Reading(0.2))
    np.savez("many.npz", a=ROWS, b=ROWS)
    refuse("many.npz", "many.npz has the arrays a, b. Name the rows `x`")
    np.savez("empty.npz")
    refuse("empty.npz", "has the arrays (none).")
    np.savez("gaps.npz", train=ROWS, test=with_value(np.nan, (3, 1)))
    refuse("gaps.npz", "in 1 of 50 test rows (3, counted from 0) and columns 1.")
    np.savez("unlike.npz", train=ROWS, test=ROWS[:, :2])
    refuse("unlike.npz", "one kind; got (50, 3) float64 and (50, 2) float64")
    for name, content in (("cut.npy", b"\x93NUMPY"), ("cut.npz", b"PK"), ("cut.parquet", b"PAR1")):
        Path(name).write_bytes(content)
        refuse(name, f"{name} cannot be read: ")
    with pytest.raises(ValueError, match="share is between 0 and 1; got 1"):
        Reading(held_out=1)
    with pytest.raises(ValueError, match="moons has its own split"):
        dataset_named("moons", reading=Reading(held_out=0.2))


def test_no_code_of_a_file_is_run() -> None:
    np.save("rude.npy", np.array([Rude()]), allow_pickle=True)
    np.savez("rude.npz", x=np.array([Rude()]))
    Path("bare.npy").write_bytes(pickle.dumps(Rude()))
    for name in ("rude.npy", "rude.npz", "bare.npy"):
        refuse(name, "cannot be read")
    assert not Path("ran").exists()


def test_a_folder_with_the_name_of_a_dataset_needs_its_slash() -> None:
    write_images("digits", COUNTS)
    assert dataset_named("digits").event == (1, 8, 8)
    assert dataset_named("./digits").event == (3, 4, 6)
    assert not is_path("")
    assert not any("/" in name or "." in name for name in DATASETS)
