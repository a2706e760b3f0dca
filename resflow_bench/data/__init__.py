"""Data for flows: densities in the plane, images that ship in a package, images from a folder."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from resflow_bench.data.dataset import Dataset
from resflow_bench.data.densities import (
    DENSITIES,
    Checkerboard,
    Density,
    EightGaussians,
    NoisyCurve,
    Pinwheel,
    Rings,
    density_dataset,
    density_named,
)
from resflow_bench.data.folders import cifar10, imagenet32, mnist
from resflow_bench.data.images import DIGITS_LEVELS, LOGIT_MARGIN, digits, digits_images, patches


def _drawn(density: Density, _folder: Path | None) -> Dataset:
    return density_dataset(density)


def _shipped(make: Callable[[], Dataset], _folder: Path | None) -> Dataset:
    return make()


DATASETS: dict[str, Callable[[Path | None], Dataset]] = {
    **{name: partial(_drawn, density) for name, density in DENSITIES.items()},
    "digits": partial(_shipped, digits_images),
    "digits-logit": partial(_shipped, digits),
    "patches": partial(_shipped, patches),
    "mnist": mnist,
    "cifar10": cifar10,
    "imagenet32": imagenet32,
}
"""How each dataset is made, by name; the last three read the folder, the others need none."""


def dataset_named(name: str, folder: Path | None = None) -> Dataset:
    """One of `DATASETS`, made.

    Args:
        name: of the dataset.
        folder: where the user has put the files; only MNIST, CIFAR-10 and ImageNet need one.

    Raises:
        ValueError: if `name` is not one of them, or the folder does not hold its files.

    >>> dataset_named("digits").n_levels
    17
    """
    if name not in DATASETS:
        raise ValueError(f"A dataset is one of {', '.join(DATASETS)}; got {name!r}.")
    return DATASETS[name](folder)


__all__ = [
    "DATASETS",
    "DENSITIES",
    "DIGITS_LEVELS",
    "LOGIT_MARGIN",
    "Checkerboard",
    "Dataset",
    "Density",
    "EightGaussians",
    "NoisyCurve",
    "Pinwheel",
    "Rings",
    "cifar10",
    "dataset_named",
    "density_dataset",
    "density_named",
    "digits",
    "digits_images",
    "imagenet32",
    "mnist",
    "patches",
]
