"""Counts made continuous, images that ship, image sets from a folder, and what is no such file."""

from __future__ import annotations

import gzip
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
import torch
from torch import Tensor

from resflow_bench import data
from resflow_bench.data import DATASETS, DENSITIES, Dataset


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- Dataset -------------------------------------------------------------------------------------

COUNTS = torch.arange(256, dtype=torch.uint8).repeat(400).reshape(-1, 8)


def bins_are_kept(x: Tensor, counts: Tensor) -> bool:
    return bool((x > 0).all() and (x < 1).all() and torch.equal((x * 256).floor(), counts.float()))


def test_dequantised_counts_are_uniform_within_their_bins() -> None:
    """Mean 1/2 and variance 1/12 of u, |z| < 4; noise of 0.98 of the width is rejected.

    The float32 twin, (count + u)/256 with a u of all float32's bits, leaves its bin.
    """
    x = Dataset("toy", COUNTS, COUNTS, 256).prepare(COUNTS, generator())
    assert x.dtype == torch.float32
    assert bins_are_kept(x, COUNTS)
    many = COUNTS.repeat(10, 1)
    twin = (many + torch.rand(many.shape, generator=generator())) / 256
    assert not bins_are_kept(twin, many)

    u = (x.double() * 256 - COUNTS).flatten()
    for noise, rejected in ((u, False), (0.98 * u, True)):
        z_mean = (noise.mean() - 1 / 2) / (1 / 12 / len(u)) ** 0.5
        z_variance = (noise.var() - 1 / 12) / (1 / 180 / len(u)) ** 0.5
        assert (abs(z_mean) > 4) == rejected
        assert (abs(z_variance) > 4) == rejected


def test_seventeen_levels_keep_their_bins_too() -> None:
    counts = COUNTS % 17
    x = Dataset("toy", counts, counts, 17).prepare(counts, generator())
    assert torch.equal((x * 17).floor(), counts.float())
    assert x.max() < 1


def test_bits_per_dim_of_a_model_of_the_counts_is_its_code_length() -> None:
    """A density that is constant on each bin, so that the bound on -log2 q is attained."""
    q = torch.softmax(torch.randn(4, generator=generator(), dtype=torch.float64), 0)
    counts = torch.tensor([[0, 1, 3], [2, 2, 0]], dtype=torch.uint8)
    log_prob = (q[counts.long()] * 4).log().sum(1)  # on the unit cube: q per bin of width 1/4
    expected = -q[counts.long()].log2().sum(1) / 3
    dataset = Dataset("toy", counts, counts, 4)
    torch.testing.assert_close(dataset.bits_per_dim(log_prob), expected)


def test_continuous_data_are_handed_on() -> None:
    x = torch.randn(5, 2, generator=generator())
    dataset = Dataset("toy", x, x)
    assert dataset.event == (2,)
    assert dataset.prepare(x, generator()) is x
    standard_normal = -0.5 * x.double().square().sum(1) - np.log(2 * np.pi)
    expected = -standard_normal / np.log(2) / 2
    torch.testing.assert_close(dataset.bits_per_dim(standard_normal), expected)


@pytest.mark.parametrize(
    ("train", "test", "n_levels", "message"),
    [
        (COUNTS, COUNTS, 257, "n_levels of 2 to 256"),
        (COUNTS, COUNTS, 255, "counts below n_levels=255; got 255"),
        (COUNTS, COUNTS, None, "must be floating; got torch.uint8"),
        (COUNTS.float(), COUNTS, 256, "must be uint8; got torch.float32"),
        (COUNTS, COUNTS[:, :4], 256, r"one event shape; got \(8,\) and \(4,\)"),
        (COUNTS, COUNTS[:0], 256, r"toy.test needs shape \(n, \*event\).*got \(0, 8\)"),
        (torch.zeros(3), torch.zeros(3), None, r"got \(3,\)"),
        (torch.full((1, 1), torch.nan), torch.zeros(1, 1), None, "toy.train must be finite"),
    ],
)
def test_a_dataset_says_what_is_wrong(train, test, n_levels, message) -> None:
    with pytest.raises(ValueError, match=message):
        Dataset("toy", train, test, n_levels)


def test_counts_are_dequantised_once() -> None:
    dataset = Dataset("toy", COUNTS, COUNTS, 256)
    with pytest.raises(ValueError, match="takes the uint8 counts of toy"):
        dataset.prepare(dataset.prepare(COUNTS, generator()), generator())


# --- images that ship ----------------------------------------------------------------------------


def test_digits_in_logit_space_hold_the_counts_of_the_images() -> None:
    vectors, images = data.digits(), data.digits_images()
    assert (vectors.name, images.name) == ("digits-logit", "digits")
    assert images.train.shape == (1437, 1, 8, 8)
    assert images.test.shape == (360, 1, 8, 8)
    counts = sklearn.datasets.load_digits().images
    assert np.array_equal(torch.cat([images.train, images.test])[:, 0].numpy(), counts)
    for x, image in ((vectors.train, images.train), (vectors.test, images.test)):
        unit = (x.double().sigmoid() - 0.05) / 0.9
        assert torch.equal((unit * 17).floor(), image.flatten(1).double())


def test_no_pixel_is_both_in_a_training_and_in_a_test_patch(monkeypatch) -> None:
    """Of photographs whose pixels say where they are: row and column modulo 256, and the rest."""
    row, column = np.indices((427, 640))
    images = [
        np.stack([row % 256, column % 256, column // 256 + 4 * i], axis=2).astype(np.uint8)
        for i in (0, 1)
    ]
    loaded = sklearn.utils.Bunch(images=images)
    monkeypatch.setattr(sklearn.datasets, "load_sample_images", lambda: loaded)

    dataset = data.patches(n_train=5000, n_test=5000)
    for x, first, last in ((dataset.train, 0, 463), (dataset.test, 480, 639)):
        red, green, blue = x.long().unbind(1)
        columns, photographs = green + 256 * (blue % 4), blue // 4
        assert (columns.min(), columns.max()) == (first, last)  # up to the region's borders
        assert (columns.diff(dim=2) == 1).all()
        assert (columns.diff(dim=1) == 0).all()
        assert (red.diff(dim=1) % 256 == 1).all()
        assert (red.diff(dim=2) == 0).all()
        assert (photographs == photographs[:, :1, :1]).all()
        assert photographs.unique().tolist() == [0, 1]
        assert len(x.unique(dim=0)) > 0.9 * len(x)  # rows 256 apart look the same here


def test_patches_of_the_photographs() -> None:
    dataset = data.patches(n_train=2000, n_test=500)
    again = data.patches(n_train=2000, n_test=500)
    other = data.patches(n_train=2000, n_test=500, seed=1)
    assert dataset.n_levels == 256
    assert torch.equal(dataset.train, again.train)
    assert not torch.equal(dataset.train, other.train)
    assert len(dataset.train.unique(dim=0)) > 1990  # the sky repeats itself now and then
    assert 30 < dataset.train.float().std() < 120
    with pytest.raises(ValueError, match="n_test of 1 to 119480, the number of positions; got 0"):
        data.patches(n_train=10, n_test=0)
    with pytest.raises(ValueError, match="n_train of 1 to 369976"):
        data.patches(n_train=10**6)


# --- image sets from a folder --------------------------------------------------------------------

RNG = np.random.default_rng(0)
IMAGES_28 = RNG.integers(0, 256, (5, 28, 28), dtype=np.uint8)
ROWS_32 = RNG.integers(0, 256, (6, 3072), dtype=np.uint8)


def idx(array: np.ndarray) -> bytes:
    return (
        bytes([0, 0, 8, array.ndim])
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.tobytes()
    )


def write_mnist(folder: Path, *, zipped: bool = False) -> None:
    for name, images in (("train", IMAGES_28), ("t10k", IMAGES_28[:2])):
        file = folder / f"{name}-images-idx3-ubyte{'.gz' if zipped else ''}"
        file.write_bytes(gzip.compress(idx(images)) if zipped else idx(images))


def python_2_pickle(rows: np.ndarray) -> bytes:
    """A batch as Python 2 and numpy 1 wrote it: protocol 2, byte strings, numpy.core."""
    n, width = rows.shape
    dtype = (
        b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ" + b"\xff" * 4 + b"J" + b"\xff" * 4
    )
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01" + b"M" + struct.pack("<H", n) + b"M" + struct.pack("<H", width) + b"\x86"
        + dtype + b"K\x00tb\x89T" + struct.pack("<i", rows.size) + rows.tobytes() + b"tb"
    )  # fmt: skip
    labels = b"]q\x01(K\x03K\x07e"
    return (
        b"\x80\x02}q\x00(U\x0bbatch_labelU\x03oneU\x06labels"
        + labels
        + b"U\x04data"
        + array
        + b"u."
    )


def write_cifar10(folder: Path) -> None:
    """Batches as the authors', and as a Python 3 would write them, C and Fortran order."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(1, 5):
        (folder / f"data_batch_{i}").write_bytes(python_2_pickle(ROWS_32))
    by_column = {"data": np.asfortranarray(ROWS_32), "labels": [1, 2]}
    (folder / "data_batch_5").write_bytes(pickle.dumps(by_column, protocol=3))
    (folder / "test_batch").write_bytes(pickle.dumps({b"data": ROWS_32[:2]}, protocol=4))


def write_imagenet32(folder: Path) -> None:
    for i in range(1, 11):
        np.savez(folder / f"train_data_batch_{i}.npz", data=ROWS_32, labels=np.arange(6))
    np.savez_compressed(folder / "val_data.npz", data=ROWS_32[:2])


def test_the_python_2_pickle_is_what_numpy_reads() -> None:
    batch = pickle.loads(python_2_pickle(ROWS_32), encoding="bytes")
    assert batch[b"labels"] == [3, 7]
    assert np.array_equal(batch[b"data"], ROWS_32)


@pytest.mark.parametrize("zipped", [False, True])
def test_mnist_from_a_folder(tmp_path: Path, zipped: bool) -> None:
    write_mnist(tmp_path, zipped=zipped)
    dataset = data.mnist(tmp_path)
    assert (dataset.name, dataset.n_levels, dataset.event) == ("mnist", 256, (1, 28, 28))
    assert np.array_equal(dataset.train[:, 0], IMAGES_28)
    assert np.array_equal(dataset.test[:, 0], IMAGES_28[:2])


@pytest.mark.parametrize("inside", ["", "cifar-10-batches-py"])
def test_cifar10_from_a_folder(tmp_path: Path, inside: str) -> None:
    write_cifar10(tmp_path / inside)
    dataset = data.cifar10(tmp_path)
    assert (dataset.name, dataset.n_levels, dataset.event) == ("cifar10", 256, (3, 32, 32))
    assert np.array_equal(dataset.train.flatten(1), np.tile(ROWS_32, (5, 1)))
    assert np.array_equal(dataset.test.flatten(1), ROWS_32[:2])


def test_imagenet32_from_a_folder(tmp_path: Path) -> None:
    write_imagenet32(tmp_path)
    dataset = data.imagenet32(tmp_path)
    assert (dataset.name, dataset.n_levels, dataset.event) == ("imagenet32", 256, (3, 32, 32))
    assert np.array_equal(dataset.train.flatten(1), np.tile(ROWS_32, (10, 1)))
    assert np.array_equal(dataset.test.flatten(1), ROWS_32[:2])

    np.savez(tmp_path / "imagenet32.npz", train=ROWS_32.reshape(-1, 3, 32, 32), test=ROWS_32[:1])
    plain = data.imagenet32(tmp_path)
    assert np.array_equal(plain.train.flatten(1), ROWS_32)
    assert len(plain.test) == 1


class Evil:
    """A pickle that runs a function when it is loaded."""

    def __init__(self, function, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("place", ["alone", "beside"])
def test_a_pickle_that_would_run_code_runs_none(tmp_path: Path, protocol: int, place: str) -> None:
    """The folder that the pickle makes when pickle loads it is not made when we do."""
    touched = tmp_path / "touched"
    evil = Evil(os.mkdir, str(touched))
    content = evil if place == "alone" else {b"data": ROWS_32, b"labels": [evil]}
    write_cifar10(tmp_path)
    file = tmp_path / "data_batch_3"
    file.write_bytes(pickle.dumps(content, protocol))
    with pytest.raises(ValueError, match="data_batch_3 cannot be read: not a pickle to be read"):
        data.cifar10(tmp_path)
    assert not touched.exists()
    pickle.loads(file.read_bytes())
    assert touched.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cbuiltins\neval\n(V1\ntR.",
        b"\x80\x04\x8c\x05numpy\x8c\x0fndarray.tofile\x93.",  # a method of what is admitted
        b"\x80\x04\x8c\x0bnumpy.core\x8c\x0amultiarray\x93.",
        b"\x80\x02cnumpy\ndtype\n}U\x01ab.",  # state given to a stand-in's class
        python_2_pickle(ROWS_32)[:-100],
        python_2_pickle(ROWS_32).replace(b"u1", b"O8"),
        python_2_pickle(ROWS_32[:, :3000]),
        pickle.dumps({b"data": ROWS_32.tolist()}),
        pickle.dumps([ROWS_32]),
        b"\x80\x02K\x01Q.",  # a persistent id
        b"",
        b"\xff\xd8\xff\xe0 a photograph",
    ],
)
def test_a_bad_cifar10_batch_is_an_error_of_one_line(tmp_path: Path, content: bytes) -> None:
    write_cifar10(tmp_path)
    (tmp_path / "test_batch").write_bytes(content)
    with pytest.raises(ValueError, match=r"^\S*test_batch cannot be read: [^\n]*$"):
        data.cifar10(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train-images-idx3-ubyte", idx(IMAGES_28)[:-1], "promises 3920 entries, .* 3919 follow"),
        ("train-images-idx3-ubyte", idx(IMAGES_28) + b"0", "3921 follow"),
        ("train-images-idx3-ubyte", idx(IMAGES_28[0]), "not an IDX file .* with 3 axes"),
        ("train-images-idx3-ubyte", b"", "not an IDX file"),
        ("t10k-images-idx3-ubyte.gz", idx(IMAGES_28), "not a whole gzip file"),
        ("t10k-images-idx3-ubyte.gz", gzip.compress(idx(IMAGES_28))[:-50], "not a whole gzip file"),
    ],
)
def test_a_damaged_mnist_file_is_named(tmp_path: Path, name: str, content, message: str) -> None:
    write_mnist(tmp_path, zipped=name.endswith(".gz"))
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} cannot be read: .*{message}"):
        data.mnist(tmp_path)


def test_a_damaged_imagenet32_file_is_named(tmp_path: Path) -> None:
    write_imagenet32(tmp_path)
    file = tmp_path / "val_data.npz"
    whole = file.read_bytes()
    objects = np.array([Evil(os.mkdir, str(tmp_path / "touched"))], dtype=object)
    for arrays, message in (
        ({"images": ROWS_32}, "val_data.npz cannot be read: it holds no array 'data'"),
        ({"data": objects}, "val_data.npz cannot be read: not a whole npz file .*allow_pickle"),
        ({"data": ROWS_32.astype(float)}, r"needs uint8 arrays .*; got float64, \(6, 3072\)"),
        ({"data": ROWS_32[:, :100]}, r"needs uint8 arrays .*; got uint8, \(6, 100\)"),
    ):
        np.savez(file, **arrays)
        with pytest.raises(ValueError, match=message):
            data.imagenet32(tmp_path)
    assert not (tmp_path / "touched").exists()
    for content in (
        whole[:-100],
        whole[: len(whole) // 2] + b"?" + whole[len(whole) // 2 + 1 :],
        b"",
    ):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"val_data\.npz cannot be read: not a whole npz file"):
            data.imagenet32(tmp_path)


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("mnist", "train-images-idx3-ubyte and t10k-images-idx3-ubyte"),
        ("cifar10", "data_batch_1 to data_batch_5 and test_batch"),
        ("imagenet32", "train_data_batch_1.npz to train_data_batch_10.npz and val_data.npz"),
    ],
)
def test_what_is_missing_is_said_in_one_line_with_what_to_put_where(
    tmp_path: Path, name: str, files: str
) -> None:
    for folder, message in (
        (None, f"{name} is read from a folder that you name; .*{files}"),
        (tmp_path / "no", f"{name} found no folder {tmp_path}/no. Make it, and put .*{files}"),
        (tmp_path, f"{name} found no file {tmp_path}/.*{files}.* into {tmp_path}"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            DATASETS[name](folder)
        assert "\n" not in str(caught.value)


# --- by name -------------------------------------------------------------------------------------


def test_every_dataset_that_needs_no_folder_is_made_under_its_name() -> None:
    made = [name for name in DATASETS if name not in ("mnist", "cifar10", "imagenet32")]
    assert made == [*DENSITIES, "digits", "digits-logit", "patches"]
    for name in made:
        dataset = data.dataset_named(name)
        assert dataset.name == name
        assert dataset.event == (2,) or name not in DENSITIES
    with pytest.raises(ValueError, match=r"A dataset is one of eight-gaussians, .*; got 'dgits'"):
        data.dataset_named("dgits")


def test_a_density_makes_points_of_its_own_for_training_and_test() -> None:
    density = data.density_named("pinwheel")
    dataset = data.density_dataset(density, n_train=300, n_test=200, seed=3)
    points = [density.sample(n, seeded) for seeded in [generator(3)] for n in (300, 200)]
    assert torch.equal(dataset.train, points[0].float())
    assert torch.equal(dataset.test, points[1].float())
    assert not torch.isin(dataset.test, dataset.train).any()


def test_listing_the_datasets_imports_no_scikit_learn() -> None:
    code = "import sys, resflow_bench.data; sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
