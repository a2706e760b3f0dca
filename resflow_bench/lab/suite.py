"""A suite: a question, its cells, and the function that measures one of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from resflow_bench.lab.axes import Value, axis_named
from resflow_bench.lab.claims import Claims

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
from resflow_bench.lab.cells import Cell, Preset
from resflow_bench.lab.observe import Observation


class Skip(Exception):
    """Raised by a measure that does not apply here; the cell's row says `skipped`, and why."""


class Failure(Exception):
    """Raised by a measure for a numerical failure; the cell's row says `failed`, and why."""


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


Measure = Callable[[Cell, Context], Iterable[Observation]]


@dataclass(frozen=True)
class Suite:
    """A question: the cells that it asks, and the function that answers one of them.

    `measure` must be a module's function, since workers import it. An `exclusive` suite runs alone,
    in the main process, on all threads (it times). `prepare` does once what many cells share, such
    as training a model and caching its weights; it is an economy: every cell can do without it.
    Only the rows of a suite that `has_pictures` have a column for them. `claims` are what its rows
    are held to, `table` the metrics of its table on the page (none named: all of them), `figures`
    the module whose `PICTURES` the page draws, imported only then. `reference` is the folder of a
    suite outside this project, filled in where it is found.

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
    reference: str = ""

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
