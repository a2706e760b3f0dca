"""The cells that two runs have in common, and a name for those that only one of them has."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import pandas as pd

from resflow_bench.analysis.tables import axes, plain

Frames = Mapping[str, pd.DataFrame]
MAX_VALUES = 5  # of an axis that a sentence names


class Matched(NamedTuple):
    """The rows of two runs whose cells have the same ids where they are to be compared.

    differing: axis to its value in BASE and in NEW, of the axes that were left out for it.
    """

    base: dict[str, pd.DataFrame]
    new: dict[str, pd.DataFrame]
    differing: dict[str, tuple[str, str]]


def matched(base: Frames, new: Frames) -> Matched:
    """The rows as they are if a cell is in both; else without the axes that set the runs apart.

    Such an axis has one value throughout each run of a suite, and another one in the other run, as
    the architectures of two trainings. Cells are then the same if all their other axes are.
    """
    common = [suite for suite in base if suite in new]
    if any(base[suite]["cell"].isin(new[suite]["cell"]).any() for suite in common):
        return Matched(dict(base), dict(new), {})
    sides: tuple[dict[str, pd.DataFrame], dict[str, pd.DataFrame]] = ({}, {})
    differing: dict[str, tuple[str, str]] = {}
    for suite in common:
        apart = dict(_apart(base[suite], new[suite]))
        differing |= apart
        for side, frames in zip(sides, (base, new), strict=True):
            side[suite] = _without(frames[suite], apart)
    return Matched(*sides, differing)


def _apart(base: pd.DataFrame, new: pd.DataFrame) -> Iterator[tuple[str, tuple[str, str]]]:
    for axis in dict.fromkeys([*axes(base), *axes(new)]):
        values = [
            frame[axis].map(plain).unique() if axis in frame else [""] for frame in (base, new)
        ]
        if all(len(one) == 1 for one in values) and values[0][0] != values[1][0]:
            yield axis, (values[0][0], values[1][0])


def _without(frame: pd.DataFrame, axes_left_out: Mapping[str, object]) -> pd.DataFrame:
    """The rows without these axes; a cell's id is that of the others."""
    frame = frame.drop(columns=list(axes_left_out), errors="ignore")
    kept = axes(frame)
    first = frame.drop_duplicates("cell")
    ids = {
        row["cell"]: hashlib.sha256(repr([(k, plain(row[k])) for k in kept]).encode()).hexdigest()
        for row in first[["cell", *kept]].to_dict(orient="records")
    }
    return frame.assign(cell=frame["cell"].map(ids).str[:12])


def named(cells: pd.DataFrame, others: pd.DataFrame) -> str:
    """Cells that another run lacks, in words: the values of their axes that it does not have.

    Args:
        cells: rows of the cells to name.
        others: all rows of the other run's suite.
    """
    if not len(others):
        return "the whole suite"
    words = []
    for axis in axes(cells):
        theirs = set(others[axis].map(plain)) if axis in others else set()
        values = [v for v in dict.fromkeys(cells[axis].map(plain)) if v and v not in theirs]
        if values:
            more = f" and {len(values) - MAX_VALUES} more" if len(values) > MAX_VALUES else ""
            words.append(f"{axis} = {', '.join(values[:MAX_VALUES])}{more}")
    return "; ".join(words) or "other combinations of values"
