"""The command that writes files for other tools: `export`."""

from __future__ import annotations

from importlib import import_module
from shlex import quote
from typing import TYPE_CHECKING

import click

from resflow_bench.cli.group import asv_option, cli, folder, is_given, refusals, results_option
from resflow_bench.cli.runs import opened, pooled
from resflow_bench.cli.suites import suites_of
from resflow_bench.export import FORMATS

if TYPE_CHECKING:
    from pathlib import Path

OTAVA = "otava"


@cli.command()
@click.argument("out", metavar="FOLDER", type=folder)
@click.argument("names", metavar="[RUN]...", nargs=-1)
@click.option("--format", "layout", type=click.Choice([OTAVA, *FORMATS]), default=OTAVA,
              show_default=True)  # fmt: skip
@results_option
@asv_option
def export(out: Path, names: tuple[str, ...], layout: str, results: Path, config: Path) -> None:
    """Write the rows of RUNs, or of the newest, to FOLDER in a format of other tools.

    RUN1,RUN2,... counts as one run. The format otava is that of Apache Otava, and of asv's history
    instead of runs: a CSV per suite and a configuration.
    """
    if layout == OTAVA:
        if names:
            raise click.ClickException(
                f"the format otava is of asv's history and takes no run; got `{names[0]}`. Name "
                f"another with --format, one of {', '.join(FORMATS)}."
            )
        _export_otava(out, config)
        return
    if is_given("config"):
        raise click.ClickException("--asv is for the format otava alone; leave it out for runs.")
    _export_rows(out, names, layout, results)


def _export_rows(out: Path, names: tuple[str, ...], layout: str, results: Path) -> None:
    from resflow_bench.export.rows import ExportedRows
    from resflow_bench.lab.store import Store

    with refusals(ValueError):
        groups = [opened(name, results) for name in names] or [Store(results).runs()[-1:]]
        runs = [run for group in groups for run in group]
        suites = suites_of(runs)
        frames = pooled(groups, suites)
    if not frames:
        raise click.ClickException(
            f"run `{runs[-1].name}` has no rows to export; measure some, or name another run."
        )
    rows = ExportedRows(frames, suites, tuple(run.name for run in runs))
    try:
        out.mkdir(parents=True, exist_ok=True)
        files = import_module(f"resflow_bench.export.{FORMATS[layout]}").write(rows, out)
    except OSError as error:
        raise click.ClickException(
            f"`{out}` cannot be written ({error.strerror}); name another folder."
        ) from error
    for file in files:
        click.echo(f"wrote {file}")


def _export_otava(out: Path, config: Path) -> None:
    from resflow_bench.export.otava import export_otava
    from resflow_bench.lab.discovery import load, names
    from resflow_bench.speed.asv_again import results_folder
    from resflow_bench.speed.asv_results import AsvError

    worse = {
        (name, metric): margin.worse
        for name in names()
        for metric, margin in load(name).claims.metrics.items()
    }
    with refusals(AsvError):
        tests = export_otava(results_folder(config), out, worse)
    click.echo(f"{len(tests)} suites: {', '.join(tests)}")
    click.echo(f"next: OTAVA_CONFIG={quote(str(out / 'otava.yaml'))} otava analyze {tests[0]}")
