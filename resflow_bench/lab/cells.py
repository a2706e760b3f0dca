"""What is asked: cells, grids of them, the suites that measure them, and what a measure answers.

A cell is one point of a suite's grid, `bias` at `model=trained, lipschitz=0.9, n_terms=10`. It is
the unit of everything that follows: measured alone, written whole, resumed, compared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from math import isnan, nan
from typing import TYPE_CHECKING, Any, Literal

from resflow_bench.lab.axes import AXES, Value, axis_named
from resflow_bench.lab.claims import Claims

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path


class Skip(Exception):
    """Raised by a measure that does not apply here; the cell's row says `skipped`, and why."""


class Failure(Exception):
    """Raised by a measure for a numerical failure; the cell's row says `failed`, and why."""


@dataclass(frozen=True)
class Cell:
    """One point of a suite's grid. Equal cells have equal `id`s, in every run and on any machine.

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

    Setting an axis replaces its values here, unless there are none: a grid that asks for nothing
    goes on doing so. Setting a pinned axis keeps the grid only if its value is among those asked
    for (`truncation=roulette` drops the grids of fixed truncation).
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
    """How much is asked (`grids`), and what a measure may spend on each cell (`effort`)."""

    grids: tuple[Grid, ...]
    effort: Mapping[str, int | float] = field(default_factory=dict)


def silent(message: str) -> None:
    """Nobody listens."""


@dataclass(frozen=True)
class Context:
    """What a measure knows besides its cell. `say` tells the user how a preparation goes."""

    seed: int
    effort: Mapping[str, int | float]
    results: Path
    say: Callable[[str], None] = silent

    def generator_seed(self, cell: Cell, stream: str = "") -> int:
        """63 bits that depend on the run's seed, the cell and the stream's name, nothing else."""
        digest = hashlib.sha256(f"{self.seed}/{cell.id}/{stream}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1


@dataclass(frozen=True)
class Observation:
    """One metric of one cell: a value with its unit and, where it is random, its 99 % interval.

    Infinite is a value (a variance may be), NaN is the lack of one. `picture` is what a figure of
    the cell needs besides numbers: a few small arrays as the bytes of an .npz file, one picture a
    cell, of a suite that says it `has_pictures`. `replicates` are independent values of the same
    kind, each from a share of the draws in the order in which they were drawn: what a comparison
    with another run of the same seed pairs.

    Raises:
        ValueError: if the value is NaN; a measure that finds none raises `Failure` or leaves the
            metric out, so that nothing diverges in silence.
    """

    metric: str
    value: float
    unit: str
    standard_error: float = nan
    ci_low: float = nan
    ci_high: float = nan
    n: int = 1
    message: str = ""
    picture: bytes | None = None
    replicates: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if isnan(self.value):
            raise ValueError(f"metric `{self.metric}` is NaN; leave it out or raise Failure.")


@dataclass(frozen=True)
class Result:
    """What became of a cell: its observations, or why there are none."""

    cell: Cell
    status: Literal["ok", "failed", "skipped"]
    observations: tuple[Observation, ...] = ()
    message: str = ""


Measure = Callable[[Cell, Context], Iterable[Observation]]


@dataclass(frozen=True)
class Suite:
    """A question: the cells that it asks, and the function that answers one of them.

    `measure` must be a module's function, since workers import it. An `exclusive` suite runs alone,
    in the main process, on all threads (it times). `prepare` does once what many cells share, such
    as training a model and caching its weights; it is an economy: every cell can do without it.
    Only the rows of a suite that `has_pictures` have a column for them. `claims` are what its rows
    are held to, `table` the metrics of its table on the page (none named: all of them), `figures`
    the module whose `PICTURES` the page draws, imported only then.

    Raises:
        ValueError: if an axis does not exist, or a grid uses one that the suite does not name.
    """

    name: str
    question: str
    axes: tuple[str, ...]
    presets: Mapping[str, Preset]
    measure: Measure
    exclusive: bool = False
    prepare: Callable[[list[Cell], Context], None] | None = None
    has_pictures: bool = False
    claims: Claims = field(default_factory=Claims)
    table: tuple[str, ...] = ()
    figures: str = ""

    def __post_init__(self) -> None:
        for axis in self.axes:
            axis_named(axis)
        for grid in (grid for preset in self.presets.values() for grid in preset.grids):
            if unnamed := grid.names - set(self.axes):
                raise ValueError(f"suite `{self.name}` must name every axis; add {unnamed}.")

    def cells(
        self, preset: str, overrides: Mapping[str, tuple[Value, ...]] | None = None
    ) -> list[Cell]:
        """The preset's cells, each once, in the order of its grids."""
        grids = self.presets[preset].grids
        return list(
            dict.fromkeys(cell for grid in grids for cell in grid.cells(self.name, overrides or {}))
        )
