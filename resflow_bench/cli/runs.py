"""Runs that a command names: one, or several that count as one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

    import pandas as pd

    from resflow_bench.lab import Suite
    from resflow_bench.lab.store import Run


def opened(names: str, results: Path) -> list[Run]:
    """The runs of RUN or RUN1,RUN2,..., each a name or a folder.

    Raises:
        StoreError: if there is none of that name.
        ValueError: if one is given twice.
    """
    from resflow_bench.lab.store import Run, Store

    store = Store(results)
    runs = [
        Run(Path(name)) if Path(name, "run.json").exists() else store.open(name)
        for name in names.split(",")
    ]
    paths = [run.path.resolve() for run in runs]
    if twice := next((path for path in paths if paths.count(path) > 1), None):
        raise ValueError(f"run `{twice.name}` is given twice; it is one process, not two.")
    return runs


def draws_of(run: Run) -> Hashable:
    """The preset and the seed: runs of the same draw the same random numbers."""
    return tuple((name, run.about.get(name)) for name in ("preset", "seed"))


def pooled(groups: Sequence[Sequence[Run]], suites: Mapping[str, Suite]) -> dict[str, pd.DataFrame]:
    """The rows of all groups, those of each pooled; of a cell in several groups, the last's.

    A note on standard error says what could not be pooled.

    Raises:
        StoreError: if a part is damaged.
        ValueError: if the runs of a group have different presets.
    """
    from resflow_bench.analysis.margins import Margins
    from resflow_bench.analysis.pooling import pool
    from resflow_bench.lab.store import merge_rows

    margins, sides = Margins.of_suites(suites), []
    for group in groups:
        check_preset(group)
        rows, left_out = pool([(draws_of(run), run.frames()) for run in group], margins)
        sides.append(rows)
        for metric, n in left_out["metric"].value_counts().items():
            click.echo(
                f"note: {metric} of {n} cells differs between seeds and is no mean over draws; "
                "it is left out",
                err=True,
            )
    return merge_rows(sides)


def check_preset(runs: Sequence[Run]) -> None:
    """Refuse to take runs of different presets as one."""
    presets = dict.fromkeys(str(run.about.get("preset")) for run in runs)
    if len(presets) > 1:
        raise ValueError(
            f"runs of preset {' and '.join(presets)} measure at other numbers of points and are "
            "not pooled; give those of one preset."
        )


def note_uncommitted(runs: Sequence[Run]) -> None:
    """Name the runs that measured what no commit brings back, on standard error."""
    for run in (run for run in runs if run.about.get("dirty")):
        commit = str(run.about.get("commit"))[:8]
        click.echo(f"note: {run.name} measured {commit} with uncommitted changes", err=True)
