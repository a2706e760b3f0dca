"""The commands that read results: `report`, `show`, `compare` and `env`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from resflow_bench.cli.group import (
    cli,
    command_of,
    echo_all,
    folder,
    refusals,
    results_option,
    resumption,
)
from resflow_bench.cli.runs import check_preset, draws_of, note_uncommitted, opened, pooled
from resflow_bench.cli.suites import suites_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from resflow_bench.lab.progress import Listener
    from resflow_bench.lab.store import Run


@cli.command()
@click.argument("runs", metavar="[RUN]...", nargs=-1)
@results_option
@click.option("--out", type=folder, default="reports", show_default=True, help="The page's folder.")
def report(runs: tuple[str, ...], results: Path, out: Path) -> None:
    """Write one page from RUNs, or from the newest; a cell in several is taken from the last.

    RUN1,RUN2,... count as one run: the draws of other seeds make its intervals narrower, and times
    are medians over the runs.
    """
    from resflow_bench.lab.store import Store

    with refusals(ValueError):
        chosen = [opened(names, results) for names in runs] or [Store(results).runs()[-1:]]
    echo_page(chosen, out)


def echo_page(groups: Sequence[Sequence[Run]], out: Path) -> None:
    """Write the page, and print its findings and its place."""
    from resflow_bench.lab.progress import shown

    with shown("{}/{} suites") as listen:
        page, sentences = write_page(groups, out, listen)
    for sentence in sentences:
        click.echo(f"- {sentence}")
    names = (",".join(run.name for run in group) for group in groups)
    click.echo(f"report: {page}, of {', '.join(names)}")


def write_page(
    groups: Sequence[Sequence[Run]], out: Path, listen: Listener | None = None
) -> tuple[Path, list[str]]:
    """Write the page of the runs, those of each group pooled; its file, and its findings.

    Args:
        listen: called before each suite is drawn.

    Raises:
        click.ClickException: no cell is finished, a run cannot be read, or the folder not written.
    """
    from resflow_bench.analysis.findings import findings
    from resflow_bench.cli.choices import parse
    from resflow_bench.lab.axes import AXES
    from resflow_bench.lab.progress import ignore
    from resflow_bench.report.figures import FiguresError
    from resflow_bench.report.page import write_report

    runs = [run for group in groups for run in group]
    suites = suites_of(runs)
    with refusals(ValueError):
        frames = pooled(groups, suites)
        provenance = [run.about for run in runs]
        for law in {law for frame in frames.values() for law in frame.get("roulette", ())}:
            if isinstance(law, str):  # rows of a newer version may have one that no figure knows
                parse(AXES["roulette"], law)
    if not frames:
        raise click.ClickException(
            f"run `{runs[-1].name}` has no finished cell; resume it with "
            f"`{resumption(runs[-1], runs[-1].path.parents[1])}`."
        )
    try:
        with refusals(FiguresError):
            page = write_report(frames, provenance, out, suites, listen or ignore)
    except OSError as error:
        raise unwritable(out, error) from error
    return page, findings(frames, suites)


@cli.command()
@click.argument("name", metavar="RUN")
@click.option("--suite", help="Only rows of this suite.")
@click.option("--format", "layout", type=click.Choice(["table", "csv", "json"]), default="table",
              show_default=True)  # fmt: skip
@results_option
def show(name: str, suite: str | None, layout: str, results: Path) -> None:
    """Print the rows of RUN, in the terminal or for a pipe; RUN1,RUN2,... count as one run."""
    import pandas as pd

    from resflow_bench.analysis.layouts import all_rows, json_text, objects
    from resflow_bench.files import csv_text
    from resflow_bench.lab.store import readable

    with refusals(ValueError):
        runs = opened(name, results)
        if len(runs) > 1:
            frames = pooled([runs], suites_of(runs))
            frames = {name: frames[name] for name in frames if suite in (None, name)}
        else:
            frames = runs[0].frames() if suite is None else {suite: runs[0].frame(suite)}
    frames = {s: readable(frame) for s, frame in frames.items()}
    if layout == "table":
        for frame in frames.values():
            click.echo(f"{all_rows(frame.drop(columns=['suite', 'cell']))}\n")
        return
    rows = pd.concat(frames.values(), ignore_index=True) if frames else pd.DataFrame()
    click.echo(csv_text(rows) if layout == "csv" else json_text(objects(rows)), nl=False)


@cli.command()
@click.argument("base", metavar="BASE")
@click.argument("new", metavar="NEW")
@results_option
@click.option("--format", "layout", type=click.Choice(["text", "markdown", "json", "csv"]),
              default="text", show_default=True)  # fmt: skip
@click.option("--out", type=folder, help="Also write a page to this folder.")
def compare(base: str, new: str, results: Path, layout: str, out: Path | None) -> None:
    """Print what changed from BASE to NEW, most certain first; intervals are at 99 %.

    BASE and NEW are runs or their folders, and RUN1,RUN2,... counts as one run. A metric is worse,
    better or changed if that is shown, beyond the margin of its suite; unchanged if it is shown to
    lie within; else undecided, with the reason.
    """
    from resflow_bench.analysis.margins import Margins
    from resflow_bench.gate.comparison import compare as compared
    from resflow_bench.gate.comparison_text import words

    with refusals(ValueError):
        sides = [opened(names, results) for names in (base, new)]
        for side in sides:
            check_preset(side)
        rows = [[(draws_of(run), run.frames()) for run in side] for side in sides]
    every = [run for side in sides for run in side]
    comparison = compared(rows[0], rows[1], Margins.of_suites(suites_of(every)))
    if comparison.table.empty:
        raise click.ClickException(_nothing_in_common(base, new, every))
    note_uncommitted(every)
    echo_all(words(comparison, layout))
    if out is not None:
        from resflow_bench.report.comparison import write_comparison

        try:
            page = write_comparison(comparison, (base, new), out)
        except OSError as error:
            raise unwritable(out, error) from error
        click.echo(f"page: {page}", err=True)


def unwritable(out: Path, error: OSError) -> click.ClickException:
    """The sentence for a folder of pages that cannot be written."""
    return click.ClickException(
        f"reports folder `{out}` cannot be written ({error.strerror}); name another with --out DIR."
    )


def _nothing_in_common(base: str, new: str, runs: Sequence[Run]) -> str:
    """The sentence for two sides without a metric of the same cell."""
    if all(command_of(run) == "train" for run in runs):
        models = ",".join(f"run:{name}" for name in (base, new))
        return (
            f"trainings `{base}` and `{new}` have logged no step in common; measure both flows "
            f"instead: `resflow-bench run inverse lipschitz --set model={models}`."
        )
    return (
        f"runs `{base}` and `{new}` have no cell in common; measure the same suites, at "
        "the same values of their axes, in both."
    )


@cli.command()
def env() -> None:
    """Print versions, devices and threads, as a run records them."""
    from resflow_bench.lab.provenance import provenance

    click.echo(json.dumps(provenance(), indent=2))
