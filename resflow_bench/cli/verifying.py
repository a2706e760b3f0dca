"""The command that reads every file of the results: `verify`."""

from __future__ import annotations

import glob
from time import monotonic
from typing import TYPE_CHECKING

import click

from resflow_bench.cli import group

if TYPE_CHECKING:
    from pathlib import Path

    from resflow_bench.lab.store import Run, RunFiles


@group.cli.command()
@click.argument("name", metavar="[RUN]", required=False)
@group.results_option
def verify(name: str | None, results: Path) -> int:
    """Say what of RUN, or of all runs, is whole, and what --resume would measure.

    Exit code 0: all is whole; 1: a file is damaged, or a finished run lacks rows.
    """
    from resflow_bench.lab.progress import Progress, shown
    from resflow_bench.lab.store import Store, inspect, parts_of
    from resflow_bench.training.weights import DAMAGE, check_whole, first_line

    with group.refusals():
        store = Store(results)
        runs = [store.open(name)] if name else store.folders()
    weights = _weights(results / "models", name)
    n_read, n_files = 0, sum(len(parts_of(run)) for run in runs) + len(weights)
    lines, start = [], monotonic()
    with shown("{}/{} files") as listen:

        def read(file: Path) -> None:
            nonlocal n_read
            n_read = min(n_read + 1, n_files)
            left = (monotonic() - start) / n_read * (n_files - n_read)
            listen(Progress(n_read, n_files, left, file.name))

        for run in runs:
            lines += _of_run(run, inspect(run, read))
        for file in weights:
            try:
                check_whole(file)
            except (OSError, *DAMAGE) as error:
                why = first_line(error)
                lines.append(f"damaged  weights `{file}` ({why}); {_remedy(file, runs)}")
            read(file)
    n_damaged = sum(line.startswith("damaged") for line in lines)
    for line in lines:
        click.echo(line)
    if weights:
        click.echo(f"{len(weights)} files of weights and checkpoints were read")
    return group.CELLS_FAILED if n_damaged else 0


def _weights(models: Path, name: str | None) -> list[Path]:
    """The files of weights and checkpoints, or those of a training alone."""
    files = models.glob("*" if name is None else f"{glob.escape(name)}*")
    return sorted(file for file in files if file.suffix in (".pt", ".checkpoint"))


def _remedy(file: Path, runs: list[Run]) -> str:
    name = file.stem.removesuffix("-best")
    if name not in {run.name for run in runs}:
        return "they are trained again when a cell needs them"
    return f"put back a copy, or move it away, then `resflow-bench train --resume {name}`"


def _of_run(run: Run, found: RunFiles) -> list[str]:
    """A line for each damaged file, and one for the cells."""
    from resflow_bench.lab.discovery import load
    from resflow_bench.lab.plan import Plan
    from resflow_bench.lab.store import StoreError
    from resflow_bench.models.own import settler

    lines, n_ok = [f"damaged  {sentence}" for sentence in found.damaged], len(found.ok)
    state, words = "damaged" if lines else "whole", f"{n_ok} cells"
    try:
        if group.command_of(run) == "run":
            plan = Plan.recorded(run.about, load, settler(run.path.parents[1]))
            cells = {cell.id for suite in plan.suites for cell in plan.cells(suite)}
            left = cells - found.ok
            words = f"{len(cells - left)} of {len(cells)} cells"
            if left:
                n_failed = len(left & found.failed)
                words += f"; --resume would measure {len(left)}"
                words += f", {n_failed} of which failed" if n_failed else ""
            if left - found.failed and run.about.get("status") == "finished":
                state, words = "damaged", f"{words}, of a run that was finished: parts are missing"
    except (StoreError, ValueError) as error:
        words += f"; which of them --resume would measure is not known: {error}"
    return [*lines, f"{state:<7}  run {run.name}: {words}"]
