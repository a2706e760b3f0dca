"""Datasets for flows: densities in the plane, images from scikit-learn, images from a folder."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from resflow_bench.data.dataset import Dataset
from resflow_bench.data.densities import (
    DENSITIES,
    Checkerboard,
    EightGaussians,
    NoisyCurve,
    Pinwheel,
    PlaneDensity,
    Rings,
    density_dataset,
    density_named,
)
from resflow_bench.data.folders import cifar10, imagenet32, mnist
from resflow_bench.data.images import DIGITS_LEVELS, LOGIT_MARGIN, digits, digits_images, patches


def _without_folder(make: Callable[[], Dataset]) -> Callable[[Path | None], Dataset]:
    return lambda _: make()


DATASETS: dict[str, Callable[[Path | None], Dataset]] = {
    **{name: _without_folder(partial(density_dataset, d)) for name, d in DENSITIES.items()},
    "digits": _without_folder(digits_images),
    "digits-logit": _without_folder(digits),
    "patches": _without_folder(patches),
    "mnist": mnist,
    "cifar10": cifar10,
    "imagenet32": imagenet32,
}
"""Dataset makers by name. Those in `FROM_FOLDER` read the folder, the others ignore it."""

FROM_FOLDER = ("mnist", "cifar10", "imagenet32")


def dataset_named(name: str, folder: Path | None = None) -> Dataset:
    """The dataset that the maker `DATASETS[name]` returns.

    Args:
        folder: of the downloaded files; needed by those in `FROM_FOLDER`.

    Raises:
        ValueError: if `name` is not a key, or the folder lacks the dataset's files.

    >>> dataset_named("digits").n_levels
    17
    """
    if name not in DATASETS:
        raise ValueError(f"A dataset is one of {', '.join(DATASETS)}; got {name!r}. Name one.")
    return DATASETS[name](folder)


__all__ = [
    "DATASETS",
    "DENSITIES",
    "DIGITS_LEVELS",
    "FROM_FOLDER",
    "LOGIT_MARGIN",
    "Checkerboard",
    "Dataset",
    "EightGaussians",
    "NoisyCurve",
    "Pinwheel",
    "PlaneDensity",
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
