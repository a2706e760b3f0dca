"""Data of the user's own: the rows of a file, checked, split and standardised."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from resflow_bench.data.arrays import named, read_arrays
from resflow_bench.data.dataset import Dataset, Reading

HELD_OUT = 0.1
"""The default share of the rows that are held out, where a file brings no test rows."""

MIN_ROWS = 2
"""The fewest training and held-out rows: an interval of a mean needs two."""


def read_dataset(path: str | Path, reading: Reading = Reading()) -> Dataset:
    """The rows of a file, or the images of a folder, split into `train` and `test`.

        x = (row - mean)/scale, with mean and standard deviation of each column of training rows

    - ``.npy``: one array.
    - ``.npz``: the arrays ``train`` and ``test``, or ``x``, or the only one.
    - ``.csv``, ``.parquet``: numeric columns; the first line of a csv may be their names.
    - a folder of png or jpg images, all grey or all RGB and of one size, or of two such folders
      ``train`` and ``test``.

    Numbers (n, d) are vectors. Numbers of shape (n, H, W), (n, C, H, W) or (n, H, W, C), C of 1 or
    3, are images: counts of 256 levels if they are uint8; otherwise in [0, 1]. No code is run.

    Args:
        path: as given, the name of the dataset.

    Returns:
        Counts as uint8, others as float32. Its `reading` has no None for `standardise`, nor for
        `held_out` unless the file has test rows.

    Raises:
        ValueError: the file cannot be read, or its numbers are no data for a flow: some are not
            finite, a column is constant, there are too few rows; or the reading does not fit.
    """
    name, arrays = str(path), read_arrays(Path(path))
    parts = [_events(name, x) for x in (arrays.train, arrays.test) if x is not None]
    if len({(x.shape[1:], x.dtype) for x in parts}) > 1:
        found = " and ".join(f"{x.shape} {x.dtype}" for x in parts)
        raise ValueError(f"{name} needs train and test of one kind; got {found}. Convert one.")
    is_image, is_counts = parts[0].ndim == 4, parts[0].dtype == np.uint8
    columns = arrays.columns or tuple(map(str, range(parts[0].shape[1])))
    for x, part in zip(parts, ("training ", "test ") if len(parts) > 1 else ("",), strict=True):
        _check_values(name, x, columns, part)
    if is_image and reading.standardise:
        raise ValueError(f"{name} holds images, which are not standardised. Leave that out.")
    held_out = reading.held_out
    if len(parts) == 1:
        held_out = HELD_OUT if held_out is None else held_out
        parts = _split(parts[0], held_out)
    elif held_out is not None:
        raise ValueError(
            f"{name} has test rows of its own; got a held-out share of {held_out:g}. Leave it out."
        )
    _check_training(name, parts[0], parts[1], () if is_image else columns)
    standardise = not is_image if reading.standardise is None else reading.standardise
    mean, scale = np.zeros(0), np.zeros(0)
    with np.errstate(all="ignore"):  # the next check finds what overflows or vanishes
        if standardise:
            mean, scale = parts[0].mean(0), parts[0].std(0)
            parts = [(x - mean) / scale for x in parts]
        if not is_counts:
            parts = [x.astype(np.float32) for x in parts]
    train, test = map(torch.from_numpy, parts)
    if not is_image:
        is_kept = train.isfinite().all(0) & test.isfinite().all(0) & (train != train[0]).any(0)
        if not is_kept.all():
            raise ValueError(
                f"{name} has columns whose numbers are too large, too small or too close together "
                f"for float32: {named(np.asarray(columns)[~is_kept])}. Shift or scale them."
            )
    return Dataset(
        *(name, train, test, 256 if is_counts else None),
        reading=Reading(held_out, standardise),
        mean=tuple(mean.tolist()),
        scale=tuple(scale.tolist()),
    )


def _events(name: str, x: np.ndarray) -> np.ndarray:
    """Vectors (n, d) in float64, or images (n, C, H, W) in uint8 or float64."""
    if x.dtype.kind not in "iuf":
        raise ValueError(f"{name} holds {x.dtype}, no real numbers. Convert it.")
    if x.ndim not in (2, 3, 4) or 0 in x.shape:
        remedy = "Reshape it to (n, 1)" if x.ndim == 1 and x.size else "Reshape it"
        raise ValueError(
            f"{name} needs shape (n, d), or (n, H, W), (n, C, H, W) or (n, H, W, C) for images, "
            f"without a zero; got {x.shape}. {remedy}."
        )
    if x.ndim == 2:
        return x.astype(np.float64)
    if x.dtype != np.uint8 and x.dtype.kind != "f":
        raise ValueError(f"{name} holds images as {x.dtype}. Convert counts to uint8.")
    if x.ndim == 3:
        x = x[:, None]
    elif x.shape[3] in (1, 3) and x.shape[1] not in (1, 3):
        x = np.moveaxis(x, 3, 1)
    if x.shape[1] not in (1, 3):
        raise ValueError(f"{name} holds images without 1 or 3 channels, {x.shape}. Convert them.")
    return np.ascontiguousarray(x) if x.dtype == np.uint8 else x.astype(np.float64)


def _check_values(name: str, x: np.ndarray, columns: tuple[str, ...], part: str) -> None:
    """Refuse numbers that are not finite, and images outside [0, 1]; `part` names the rows."""
    is_lost = ~np.isfinite(x)
    if is_lost.any():
        rows = np.flatnonzero(is_lost.reshape(len(x), -1).any(1))
        where = f"in {len(rows)} of {len(x)} {part}rows ({named(rows)}, counted from 0)"
        if x.ndim == 2:
            where += f" and columns {named(np.asarray(columns)[is_lost.any(0)])}"
        raise ValueError(
            f"{name} has {is_lost.sum()} numbers that are NaN or infinite, {where}. Drop or fill "
            "them."
        )
    if x.ndim == 4 and x.dtype != np.uint8 and (x.min() < 0 or x.max() > 1):
        raise ValueError(
            f"{name} holds images of floating point, which lie in [0, 1]; got {x.min():g} to "
            f"{x.max():g}. Scale them, or store counts as uint8."
        )


def _split(x: np.ndarray, held_out: float) -> list[np.ndarray]:
    """Training and held-out rows, by a random order with a fixed seed."""
    n = round(held_out * len(x))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).numpy()
    return [x[np.sort(order[n:])], x[np.sort(order[:n])]]


def _check_training(
    name: str, train: np.ndarray, test: np.ndarray, columns: tuple[str, ...]
) -> None:
    """Refuse too few rows; and of vectors, that is with `columns`, those without a density."""
    if min(len(train), len(test)) < MIN_ROWS:
        raise ValueError(
            f"{name} has too few rows: {len(train)} to train on and {len(test)} held out; at least "
            f"{MIN_ROWS} each are needed. Add rows, or change the held-out share."
        )
    if not columns:
        return
    if len(train) <= len(columns):
        raise ValueError(
            f"{name} has {len(columns)} columns and {len(train)} training rows; a density needs "
            "more rows than columns. Add rows, or drop columns."
        )
    constant = [c for c, x in zip(columns, train.T, strict=True) if x.min() == x.max()]
    if constant:
        raise ValueError(
            f"{name} has constant columns, which have no density: {named(constant)}. Drop them."
        )
