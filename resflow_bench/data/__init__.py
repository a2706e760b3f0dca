"""Datasets for flows: densities in the plane, images from scikit-learn, files of the user's own."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from resflow_bench.data.arrays import READERS, is_path
from resflow_bench.data.dataset import Dataset, Reading
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
from resflow_bench.data.own import read_dataset
from resflow_bench.spelling import suggestion


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


FORMS = f"or a path of {', '.join(READERS)} or of a folder of images"
"""The names of data of the user's own."""


def dataset_named(name: str, folder: Path | None = None, reading: Reading = Reading()) -> Dataset:
    """The dataset that the maker `DATASETS[name]` returns, or `read_dataset(name, reading)`.

    Args:
        folder: of the downloaded files; needed by those in `FROM_FOLDER`.
        reading: of a file of the user's own.

    Raises:
        ValueError: if `name` is neither a key nor a path, the files are missing or no data for a
            flow, or a dataset of `DATASETS` is to be split or standardised.

    >>> dataset_named("digits").n_levels
    17
    """
    if name not in DATASETS:
        if is_path(name):
            return read_dataset(name, reading)
        near = suggestion(name, DATASETS)
        raise ValueError(f"A dataset is one of {', '.join(DATASETS)}, {FORMS}; got {name!r}.{near}")
    if reading != Reading():
        raise ValueError(
            f"{name} has its own split and units; a held-out share and standardising are for files "
            "of your own. Leave them out."
        )
    return DATASETS[name](folder)


__all__ = [
    "DATASETS",
    "DENSITIES",
    "DIGITS_LEVELS",
    "FORMS",
    "FROM_FOLDER",
    "LOGIT_MARGIN",
    "READERS",
    "Checkerboard",
    "Dataset",
    "EightGaussians",
    "NoisyCurve",
    "Pinwheel",
    "PlaneDensity",
    "Reading",
    "Rings",
    "cifar10",
    "dataset_named",
    "density_dataset",
    "density_named",
    "digits",
    "digits_images",
    "imagenet32",
    "is_path",
    "mnist",
    "patches",
    "read_dataset",
]
