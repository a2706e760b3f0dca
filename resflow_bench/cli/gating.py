"""The commands against regressions: `gate` and `doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from resflow_bench.cli.group import (
    asv_option,
    cli,
    echo_all,
    is_given,
    refusals,
    results_option,
)
from resflow_bench.cli.runs import note_uncommitted, opened
from resflow_bench.speed.asv_results import AsvError, AsvResults

if TYPE_CHECKING:
    import pandas as pd

    from resflow_bench.analysis.margins import Margins
    from resflow_bench.lab.store import Run


@cli.command()
@click.argument("base", metavar="BASE")
@click.argument("new", metavar="NEW")
@results_option
@asv_option
@click.option("--again", is_flag=True, help="Of commits: measure flagged benchmarks once more.")
@click.option("--allow-skip", "allowed", multiple=True, metavar="TEXT",
              help="Cells with TEXT in their name, for example cuda, may be skipped.")  # fmt: skip
@click.option("--max-undecided", type=click.FloatRange(0, 1), default=0.5, show_default=True,
              help="The largest share of random metrics that may be undecided.")  # fmt: skip
@click.option("--format", "layout", type=click.Choice(["text", "markdown", "json"]),
              default="text", show_default=True)  # fmt: skip
def gate(
    base: str,
    new: str,
    results: Path,
    config: Path,
    again: bool,
    allowed: tuple[str, ...],
    max_undecided: float,
    layout: str,
) -> int:
    """Is NEW worse than BASE by more than the margins allow? The exit code answers.

    BASE and NEW are runs, folders of runs, or commits that asv has measured. Several runs,
    RUN1,RUN2,..., count as that many processes, by which times are judged.

    \b
    0  nothing is shown to be worse
    1  a regression
    2  the command could not be carried out
    3  a cell failed
    4  nothing, or too little, was measured in NEW
    5  too many metrics are undecided
    """  # noqa: D301 (the b is meant: click keeps the lines)
    from resflow_bench.gate.conclusion import conclude
    from resflow_bench.gate.judge import confirmed, judge

    with refusals(AsvError, ValueError):
        if "" in allowed:
            raise ValueError("--allow-skip needs a TEXT; the empty one is in every name.")
        compared = _of_runs(base, new, results)
        if again and compared:
            raise ValueError("--again builds and measures commits; a run has nothing to build.")
        if compared and is_given("config"):
            raise ValueError("--asv tells where commits were measured; leave it out for runs.")
        before, after, margins = compared or _of_commits(base, new, config)
    table = judge(before, after, margins)
    if again and (flagged := _flagged(table)):
        with refusals(AsvError, ValueError):
            names_places = bool(after["cell"].str.endswith("]").any())
            second = _once_more(config, base, new, flagged, margins, names_places)
        table = confirmed(table, judge(*second, margins))
    conclusion = conclude(table, allowed, max_undecided)
    echo_all(conclusion.words(layout))
    return conclusion.code


def _of_runs(
    base: str, new: str, results: Path
) -> tuple[pd.DataFrame, pd.DataFrame, Margins] | None:
    """The samples of BASE and of NEW, and their margins; None where neither is a run."""
    from resflow_bench.analysis.margins import Margins
    from resflow_bench.cli.suites import suites_of
    from resflow_bench.gate.samples import of_runs

    both = [_runs(names, results) for names in (base, new)]
    if not any(both):
        return None
    if not all(both):
        missing, present = (new, base) if both[0] else (base, new)
        raise ValueError(
            f"`{missing}` is no run in `{results}`, and `{present}` is one; give two runs, or two "
            "commits that asv has measured."
        )
    every = [run for runs in both for run in runs]
    for name in ("preset", "seed"):
        given = dict.fromkeys(str(run.about.get(name)) for run in every)
        if len(given) > 1:
            raise ValueError(
                f"runs of {name} {' and '.join(given)} draw other points and cannot be compared; "
                f"measure both with the same --{name}."
            )
    note_uncommitted(every)
    margins = Margins.of_suites(suites_of(every))
    before, after = (of_runs((run.frames() for run in runs), margins) for runs in both)
    return before, after, margins


def _of_commits(base: str, new: str, config: Path) -> tuple[pd.DataFrame, pd.DataFrame, Margins]:
    """The samples of two commits, and the margins of the suites that asv measured."""
    from resflow_bench.analysis.margins import Margins
    from resflow_bench.gate.samples import of_commits
    from resflow_bench.lab.discovery import load, names
    from resflow_bench.speed.asv_again import results_folder

    history = AsvResults(results_folder(config))
    before, after = (history.rows(_commit(name)) for name in (base, new))
    modules = {row.suite for row in (*before, *after)}
    margins = Margins.of_suites({name: load(name) for name in names() if name in modules})
    return *of_commits(before, after, margins), margins


def _runs(names: str, results: Path) -> list[Run]:
    """The runs of these names, or in these folders; empty if one is neither."""
    from resflow_bench.lab.store import StoreError

    try:
        return opened(names, results)
    except StoreError:
        return []


def _commit(name: str) -> str:
    """The hash of the commit, if git knows the name; else the name."""
    from resflow_bench.lab.provenance import commit_of

    return commit_of(name) or name


def _flagged(table: pd.DataFrame) -> set[str]:
    """The benchmarks with a regression, without parameters and places."""
    from resflow_bench.gate.judge import WORSE

    bad = table[table["verdict"] == WORSE]
    return set(bad["suite"] + "." + bad["cell"].str.extract(r"^([^ (]+)")[0])


def _once_more(
    config: Path, base: str, new: str, flagged: set[str], margins: Margins, names_places: bool
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The samples of a second measurement of the flagged benchmarks."""
    import tempfile

    from resflow_bench.gate.samples import of_commits
    from resflow_bench.speed.asv_again import measure_again

    click.echo(f"measuring {', '.join(sorted(flagged))} again", err=True)
    with tempfile.TemporaryDirectory() as scratch:
        before, after = measure_again(config, _commit(base), _commit(new), flagged, Path(scratch))
    return of_commits(before, after, margins, names_places)


@cli.command()
def doctor() -> None:
    """Check whether this machine is fit to measure on, and print a remedy for each defect."""
    from resflow_bench.speed.doctor import check_machine

    for check in check_machine():
        click.echo(f"{'mend' if check.remedy else 'fine'}  {check.name}: {check.found}")
        if check.remedy:
            click.echo(f"      {check.remedy}")
