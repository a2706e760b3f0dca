"""The commands that keep regressions out: `gate`, `doctor` and `export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from resflow_bench.cli.group import cli, echo_all, folder, refusals, results_option

if TYPE_CHECKING:
    import pandas as pd

    from resflow_bench.lab.store import Run

asv_option = click.option(
    "--asv",
    "config",
    type=click.Path(path_type=Path, dir_okay=False),
    default="asv.conf.json",
    show_default=True,
    help="asv's configuration.",
)


@cli.command()
@click.argument("base", metavar="BASE")
@click.argument("new", metavar="NEW")
@results_option
@asv_option
@click.option("--again", is_flag=True, help="Of commits: measure what is flagged once more.")
@click.option("--allow-skip", "allowed", multiple=True, metavar="TEXT",
              help="Cells whose name holds TEXT may be skipped (cuda, say).")  # fmt: skip
@click.option("--max-undecided", type=click.FloatRange(0, 1), default=0.5, show_default=True,
              help="The share of undecided metrics above which nothing is said.")  # fmt: skip
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
    """Is NEW worse than BASE by more than is allowed? The exit code answers.

    BASE and NEW are runs, folders of runs, or commits that asv has measured; several runs,
    RUN1,RUN2,..., are as many processes, which is what a time is judged by.

    \b
    0  nothing is shown to be worse
    1  a regression
    2  the command could not be carried out
    3  a cell failed
    4  nothing, or too little, was measured in NEW
    5  too many metrics are undecided
    """  # noqa: D301 (the b is meant: click keeps the lines)
    from resflow_bench.gate.judge import judge, only_twice
    from resflow_bench.gate.outcome import conclude
    from resflow_bench.speed.asv_results import AsvError

    with refusals(AsvError, ValueError):
        if "" in allowed:
            raise ValueError("--allow-skip needs a TEXT; the empty one is in every name.")
        sides = _of_runs(base, new, results)
        if again and sides:
            raise ValueError(
                "--again builds and measures commits; of runs there is nothing to build."
            )
        sides = sides or _of_asv(base, new, config)
    table = judge(*sides)
    if again and (flagged := _flagged(table)):
        with refusals(AsvError, ValueError):
            says_where = bool(sides[1]["cell"].str.endswith("]").any())
            second = _once_more(config, base, new, flagged, says_where)
        table = only_twice(table, judge(*second))
    outcome = conclude(table, allowed, max_undecided)
    echo_all(outcome.words(layout))
    return outcome.code


def _of_runs(base: str, new: str, results: Path) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """Both sides, None where neither is a run.

    Raises:
        ValueError: only one is, or they were not measured alike.
    """
    from resflow_bench.gate.samples import side_of_runs

    runs = [_runs(names, results) for names in (base, new)]
    if not any(runs):
        return None
    if not all(runs):
        lacking, found = (new, base) if runs[0] else (base, new)
        raise ValueError(
            f"`{lacking}` is no run in `{results}`, and `{found}` is one; give two runs, or two "
            "commits that asv has measured."
        )
    for side in runs:
        paths = [run.path.resolve() for run in side]
        if twice := next((path for path in paths if paths.count(path) > 1), None):
            raise ValueError(f"run `{twice.name}` is given twice; it is one process, not two.")
    for name in ("preset", "seed"):
        given = dict.fromkeys(str(run.about.get(name)) for side in runs for run in side)
        if len(given) > 1:
            raise ValueError(
                f"runs of {name} {' and '.join(given)} draw other points and cannot be compared; "
                f"measure both with the same --{name}."
            )
    for run in (run for side in runs for run in side if run.about.get("dirty")):
        commit = str(run.about["commit"])[:8]
        click.echo(f"note: {run.name} measured {commit} and changes that no commit holds", err=True)
    before, after = (side_of_runs(run.frames() for run in side) for side in runs)
    return before, after


def _of_asv(base: str, new: str, config: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    from resflow_bench.gate.samples import sides_of_asv
    from resflow_bench.speed.asv_again import results_folder
    from resflow_bench.speed.asv_results import AsvResults

    found = AsvResults(results_folder(config))
    return sides_of_asv(found.rows(_commit(base)), found.rows(_commit(new)))


def _runs(names: str, results: Path) -> list[Run]:
    """The runs of these names, or in these folders; empty if one is neither."""
    from resflow_bench.lab.store import Run, Store, StoreError

    found = []
    for name in names.split(","):
        if (Path(name) / "run.json").exists():
            found.append(Run(Path(name)))
            continue
        try:
            found.append(Store(results).open(name))
        except StoreError:
            return []
    return found


def _commit(name: str) -> str:
    """Its hash, if git knows the name; else the name."""
    from resflow_bench.lab.provenance import commit_of

    return commit_of(name) or name


def _flagged(table: pd.DataFrame) -> set[str]:
    """The benchmarks, without parameters and places."""
    from resflow_bench.gate.judge import WORSE

    bad = table[table["verdict"] == WORSE]
    return set(bad["suite"] + "." + bad["cell"].str.extract(r"^([^ (]+)")[0])


def _once_more(
    config: Path, base: str, new: str, flagged: set[str], says_where: bool
) -> tuple[pd.DataFrame, pd.DataFrame]:
    import tempfile

    from resflow_bench.gate.samples import sides_of_asv
    from resflow_bench.speed.asv_again import measure_again

    click.echo(f"measuring {', '.join(sorted(flagged))} again", err=True)
    with tempfile.TemporaryDirectory() as scratch:
        before, after = measure_again(config, _commit(base), _commit(new), flagged, Path(scratch))
    return sides_of_asv(before, after, says_where)


@cli.command()
def doctor() -> None:
    """Is this machine fit to measure on? What is not, and what mends it; nothing is refused."""
    from resflow_bench.speed.doctor import examine

    for sign in examine():
        click.echo(f"{'mend' if sign.remedy else 'fine'}  {sign.name}: {sign.found}")
        if sign.remedy:
            click.echo(f"      {sign.remedy}")


@cli.command()
@click.argument("out", metavar="FOLDER", type=folder)
@click.option("--format", type=click.Choice(["otava"]), default="otava", show_default=True,
              expose_value=False)  # fmt: skip
@asv_option
def export(out: Path, config: Path) -> None:
    """asv's history for Apache Otava: a CSV per suite and a configuration in FOLDER."""
    from resflow_bench.gate.metrics import METRICS
    from resflow_bench.speed.asv_again import results_folder
    from resflow_bench.speed.asv_results import AsvError
    from resflow_bench.speed.history import export_otava

    worse = {name: metric.worse for name, metric in METRICS.items()}
    with refusals(AsvError):
        tests = export_otava(results_folder(config), out, worse)
    click.echo(f"{len(tests)} suites: {', '.join(tests)}")
    click.echo(f"next: OTAVA_CONFIG={out / 'otava.yaml'} otava analyze {tests[0]}")
