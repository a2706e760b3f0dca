"""The commands that read results: `report`, `show`, `compare` and `env`."""

from __future__ import annotations

import json
from math import inf
from typing import TYPE_CHECKING, Any

import click

from resflow_bench.cli.group import cli, folder, refusals, results_option, resumption

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pandas as pd

    from resflow_bench.lab.store import Run


@cli.command()
@click.argument("runs", metavar="[RUN]...", nargs=-1)
@results_option
@click.option("--out", type=folder, default="reports", show_default=True, help="The page's folder.")
def report(runs: tuple[str, ...], results: Path, out: Path) -> None:
    """Write one page from RUNs, or from the newest; a cell in several is taken from the last."""
    from resflow_bench.lab.store import Store

    with refusals():
        store = Store(results)
        chosen = [store.open(name) for name in runs] or store.runs()[-1:]
    echo_page(chosen, out)


def echo_page(runs: Sequence[Run], out: Path) -> None:
    """Write the page, and print its findings and its place."""
    page, sentences = write_page(runs, out)
    for sentence in sentences:
        click.echo(f"- {sentence}")
    click.echo(f"report: {page}, of {', '.join(run.name for run in runs)}")


def write_page(runs: Sequence[Run], out: Path) -> tuple[Path, list[str]]:
    """Write the page of the runs; its file, and its findings.

    Raises:
        click.ClickException: no cell is finished, a run cannot be read, or the folder not written.
    """
    from resflow_bench.analysis.findings import findings
    from resflow_bench.cli.choices import parse
    from resflow_bench.cli.suites import suites_of
    from resflow_bench.lab.axes import AXES
    from resflow_bench.lab.store import merge
    from resflow_bench.report.figures import FiguresError
    from resflow_bench.report.page import write_report

    with refusals(ValueError):
        frames = merge(runs)
        provenance = [run.about for run in runs]
        for law in {law for frame in frames.values() for law in frame.get("roulette", ())}:
            if isinstance(law, str):  # rows of a newer version may have one that no figure knows
                parse(AXES["roulette"], law)
    if not frames:
        raise click.ClickException(
            f"run `{runs[-1].name}` has no finished cell; resume it with "
            f"`{resumption(runs[-1], runs[-1].path.parents[1])}`."
        )
    suites = suites_of(runs)
    try:
        with refusals(FiguresError):
            page = write_report(frames, provenance, out, suites)
    except OSError as error:
        raise click.ClickException(
            f"reports folder `{out}` cannot be written ({error.strerror}); name another with "
            "--out DIR."
        ) from error
    return page, findings(frames, suites)


@cli.command()
@click.argument("name", metavar="RUN")
@click.option("--suite", help="Only rows of this suite.")
@click.option("--format", "layout", type=click.Choice(["table", "csv", "json"]), default="table",
              show_default=True)  # fmt: skip
@results_option
def show(name: str, suite: str | None, layout: str, results: Path) -> None:
    """Print the rows of RUN, in the terminal or for a pipe."""
    import pandas as pd

    from resflow_bench.files import csv_text
    from resflow_bench.lab.store import BESIDE, Store

    with refusals():
        run = Store(results).open(name)
        frames = run.frames() if suite is None else {suite: run.frame(suite)}
    frames = {s: frame.drop(columns=list(BESIDE), errors="ignore") for s, frame in frames.items()}
    if layout == "table":
        for frame in frames.values():
            click.echo(f"{_table(frame.drop(columns=['suite', 'cell']))}\n")
        return
    rows = pd.concat(frames.values(), ignore_index=True) if frames else pd.DataFrame()
    click.echo(csv_text(rows) if layout == "csv" else _json(rows), nl=False)


def _json(rows: pd.DataFrame) -> str:
    """A list of one object per row; a missing value is null, an infinite one a string."""
    import pandas as pd

    def plain(value: Any) -> Any:
        return None if pd.isna(value) else str(value) if value in (inf, -inf) else value

    records = rows.to_dict(orient="records")
    objects = [{str(name): plain(value) for name, value in row.items()} for row in records]
    return json.dumps(objects, indent=1, allow_nan=False) + "\n"


def _table(frame: pd.DataFrame) -> str:
    """Every row, to six digits; messages last, empty columns left out."""
    from resflow_bench.analysis.words import terminal_width

    order = sorted(frame.columns, key=lambda name: name == "message")
    shown = frame[order].astype(object).where(frame.notna(), "")
    filled = [name for name in order if (shown[name] != "").any()]
    width = terminal_width()
    return shown[filled].to_string(index=False, float_format="{:.6g}".format, line_width=width)


@cli.command()
@click.argument("base", metavar="BASE")
@click.argument("new", metavar="NEW")
@results_option
def compare(base: str, new: str, results: Path) -> None:
    """Print NEW - BASE of every metric in both runs, with 99 % intervals, most certain first."""
    from resflow_bench.lab.store import Store

    with refusals():
        store = Store(results)
        before, after = (store.open(name).frames() for name in (base, new))
    from resflow_bench.analysis.changes import changes

    table = changes(before, after) if before and after else None
    if table is None or table.empty:
        raise click.ClickException(
            f"runs `{base}` and `{new}` have no cell in common; measure the same suites, at "
            "the same values of their axes, in both."
        )
    click.echo(_table(table.drop(columns="cell")))


@cli.command()
def env() -> None:
    """Print versions, devices and threads, as a run records them."""
    from resflow_bench.lab.provenance import provenance

    click.echo(json.dumps(provenance(), indent=2))
