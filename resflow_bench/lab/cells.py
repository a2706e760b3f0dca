"""Cells: the points of a suite's grid, each measured alone, written whole, resumed, compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Any

from resflow_bench.lab.axes import AXES, Value, axis_named


@dataclass(frozen=True)
class Cell:
    """One point of a suite's grid. Equal cells have equal `id`s in every run, on any machine.

    Raises:
        ValueError: if an axis does not exist.
    """

    suite: str
    axes: Mapping[str, Value]

    def __post_init__(self) -> None:
        axes = {name: axis_named(name).coerce(self.axes[name]) for name in sorted(self.axes)}
        object.__setattr__(self, "axes", axes)

    @cached_property
    def id(self) -> str:
        """12 hex digits of the SHA-256 of the suite's name and the axes, as canonical JSON."""
        text = json.dumps([self.suite, self.axes], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def __hash__(self) -> int:
        return hash(self.id)

    def __getitem__(self, axis: str) -> Any:
        return self.axes[axis]

    def get(self, axis: str, default: Any = None) -> Any:
        """The axis' value, `default` where the cell has no such axis."""
        return self.axes.get(axis, default)

    def __str__(self) -> str:
        axes = (f"{name}={self[name]}" for name in AXES if name in self.axes)
        return " ".join([self.suite, *axes])


@dataclass(frozen=True)
class Grid:
    """Every combination of the values in `axes`, each with the values in `pinned`.

    `--set` replaces the values of a free axis, unless the grid has none for it: an empty grid stays
    empty. Where it sets a pinned axis, the grid is kept only if its value is among those asked for
    (`truncation=roulette` drops the grids of fixed truncation).
    """

    axes: Mapping[str, tuple[Value, ...]]
    pinned: Mapping[str, Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if twice := self.axes.keys() & self.pinned.keys():
            raise ValueError(f"a grid's axis is free or pinned, not both; got {sorted(twice)}.")

    @property
    def names(self) -> set[str]:
        """Every axis of its cells."""
        return {*self.axes, *self.pinned}

    def cells(self, suite: str, overrides: Mapping[str, tuple[Value, ...]]) -> Iterator[Cell]:
        """Its cells, the last axis fastest."""
        pinned = {name: axis_named(name).coerce(value) for name, value in self.pinned.items()}
        if any(value not in overrides.get(name, (value,)) for name, value in pinned.items()):
            return
        if not all(self.axes.values()):
            return
        values = [overrides.get(name, listed) for name, listed in self.axes.items()]
        for point in product(*values):
            yield Cell(suite, pinned | dict(zip(self.axes, point, strict=True)))


@dataclass(frozen=True)
class Preset:
    """The grids of cells, and the `effort` that a measure may spend on each cell."""

    grids: tuple[Grid, ...]
    effort: Mapping[str, int | float] = field(default_factory=dict)
