"""Image datasets that the user downloads: MNIST, CIFAR-10 and ImageNet at 32 x 32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from resflow_bench.data.dataset import Dataset
from resflow_bench.data.formats import read_idx, read_npz, read_pickled_bytes

RGB_32 = (3, 32, 32)
RGB_32_BYTES = 3 * 32 * 32

# Of each dataset's files the last is for testing.
MNIST = ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte")
CIFAR10_FOLDER = "cifar-10-batches-py"
CIFAR10 = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
IMAGENET32 = (*(f"train_data_batch_{i}.npz" for i in range(1, 11)), "val_data.npz")
IMAGENET32_PLAIN = "imagenet32.npz"


def mnist(folder: Path | None) -> Dataset:
    """70,000 handwritten digits, (n, 1, 28, 28), 256 levels, the authors' split.

    Args:
        folder: holds ``train-images-idx3-ubyte`` and ``t10k-images-idx3-ubyte``, with or
            without ``.gz``.

    Raises:
        ValueError: if a file is missing or damaged.

    Source: LeCun, Bottou, Bengio and Haffner (1998), "Gradient-based learning applied to document
    recognition".
    """
    wanted = f"{' and '.join(MNIST)}, each as it is or as .gz"
    home = _home("mnist", folder, wanted)
    files = [home / name for name in MNIST]
    files = [f if f.is_file() else _existing("mnist", Path(f"{f}.gz"), wanted) for f in files]
    train, test = (torch.from_numpy(read_idx(file, ndim=3).copy())[:, None] for file in files)
    return Dataset("mnist", train, test, n_levels=256)


def cifar10(folder: Path | None) -> Dataset:
    """60,000 small photographs, (n, 3, 32, 32), 256 levels, the authors' split.

    Args:
        folder: holds ``data_batch_1`` to ``data_batch_5`` and ``test_batch`` of the Python version,
            or the folder ``cifar-10-batches-py`` that contains them. These files are pickles; they
            are read without executing any code in them.

    Raises:
        ValueError: if a file is missing, damaged, or refers to anything but arrays.

    Source: Krizhevsky (2009), "Learning multiple layers of features from tiny images".
    """
    wanted = f"data_batch_1 to data_batch_5 and test_batch, or {CIFAR10_FOLDER} with them"
    home = _home("cifar10", folder, wanted)
    if (home / CIFAR10_FOLDER).is_dir():
        home = home / CIFAR10_FOLDER
    files = (_existing("cifar10", home / name, wanted) for name in CIFAR10)
    return _rgb_32("cifar10", [read_pickled_bytes(file, "data", RGB_32_BYTES) for file in files])


def imagenet32(folder: Path | None) -> Dataset:
    """ImageNet at 32 x 32, (n, 3, 32, 32), 256 levels: the training and the validation images.

    Two downsamplings of ImageNet to this size are in use, by van den Oord et al. (2016) and by
    Chrabaszcz et al. (2017). Bits per dimension on one are not comparable with those on the other.
    The batch files named below are the second. Reading the whole set takes 8 GB of memory; the
    result takes 4 GB.

    Args:
        folder: holds ``train_data_batch_1.npz`` to ``train_data_batch_10.npz`` and
            ``val_data.npz``, each with an array ``data``; or ``imagenet32.npz`` with the arrays
            ``train`` and ``test``. An array is uint8, (n, 3072) or (n, 3, 32, 32), channels
            before pixels.

    Raises:
        ValueError: if a file is missing, damaged, or has other contents.

    Source: Chrabaszcz, Loshchilov and Hutter (2017), "A downsampled variant of ImageNet as an
    alternative to the CIFAR datasets".
    """
    wanted = (
        "train_data_batch_1.npz to train_data_batch_10.npz and val_data.npz, "
        f"or {IMAGENET32_PLAIN} with the arrays train and test"
    )
    home = _home("imagenet32", folder, wanted)
    plain = home / IMAGENET32_PLAIN
    if plain.is_file():
        return _rgb_32("imagenet32", [read_npz(plain, key) for key in ("train", "test")])
    files = (_existing("imagenet32", home / name, wanted) for name in IMAGENET32)
    return _rgb_32("imagenet32", [read_npz(file, "data") for file in files])


def _rgb_32(name: str, arrays: list[np.ndarray]) -> Dataset:
    """The dataset of 32 x 32 images whose last array is for testing."""
    for array in arrays:
        if array.dtype != np.uint8 or array.shape[1:] not in (RGB_32, (RGB_32_BYTES,)):
            raise ValueError(
                f"{name} needs uint8 arrays (n, {RGB_32_BYTES}) or (n, 3, 32, 32); got "
                f"{array.dtype}, {array.shape}. Download the 32 x 32 version."
            )
    images = [array.reshape(-1, *RGB_32) for array in arrays]
    train, test = (torch.from_numpy(np.concatenate(p)) for p in (images[:-1], images[-1:]))
    return Dataset(name, train, test, n_levels=256)


def _home(name: str, folder: Path | None, wanted: str) -> Path:
    if folder is None:
        raise ValueError(
            f"{name} is read from a folder that you name; it must hold {wanted}. None was named."
        )
    if not folder.is_dir():
        raise ValueError(f"{name} found no folder {folder}. Make it, and put {wanted} there.")
    return folder


def _existing(name: str, file: Path, wanted: str) -> Path:
    if not file.is_file():
        raise ValueError(f"{name} found no file {file}. Put {wanted} into {file.parent}.")
    return file
