"""A suite: a question, its cells, and the function that measures one of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from resflow_bench.lab.axes import Value, axis_named
from resflow_bench.lab.cells import Cell, Preset
from resflow_bench.lab.claims import Claims
from resflow_bench.lab.observe import Observation


class Skip(Exception):
    """Raised by a measure that does not apply here; the cell's row says `skipped`, and why."""


class Failure(Exception):
    """Raised by a measure for a numerical failure; the cell's row says `failed`, and why."""


def silent(message: str) -> None:
    """Discard the message."""


@dataclass(frozen=True)
class Context:
    """The run that a cell belongs to, for its measure.

    seed: of the run.
    effort: what the preset allows the measure to spend, for example `n_points`.
    results: the results folder, where trained weights are cached.
    say: prints the progress of a preparation.
    """

    seed: int
    effort: Mapping[str, int | float]
    results: Path
    say: Callable[[str], None] = silent

    def generator_seed(self, cell: Cell, stream: str = "") -> int:
        """63 bits that depend only on the run's seed, the cell and the stream's name."""
        digest = hashlib.sha256(f"{self.seed}/{cell.id}/{stream}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1


Measure = Callable[[Cell, Context], Iterable[Observation]]


@dataclass(frozen=True)
class Suite:
    """A question, its cells, and the function that measures one of them.

    measure: a function of a module, since workers import it.
    exclusive: whether cells are measured one at a time in the main process, on all threads, as
        timings have to be.
    prepare: does once what many cells share, such as training a model; every cell can do without.
    prepared_by: the axes by whose values preparations differ; with none, all cells share one.
    has_pictures: whether rows have a column for pictures.
    claims: margins, statements and findings about the rows.
    table: the metrics of the table on the page; all of them if none is named.
    figures: the module whose `PICTURES` the page draws, imported only then.
    title: a few words that head its section on the page, where its name stands beside them.
    reference: the folder of a suite outside this project; `discovery` fills it in.

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
    prepared_by: tuple[str, ...] = ()
    has_pictures: bool = False
    claims: Claims = field(default_factory=Claims)
    table: tuple[str, ...] = ()
    figures: str = ""
    title: str = ""
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
        cells = (cell for grid in grids for cell in grid.cells(self.name, overrides or {}))
        return list(dict.fromkeys(cells))
