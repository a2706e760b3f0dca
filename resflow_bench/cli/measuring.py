"""The commands that list the suites, plan runs and measure them: `list`, `plan` and `run`."""

from __future__ import annotations

import json
from contextlib import closing, nullcontext
from functools import reduce
from textwrap import fill
from time import monotonic
from typing import TYPE_CHECKING, Any

import click

from resflow_bench.cli import group

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from resflow_bench.lab import Suite
    from resflow_bench.lab.plan import Plan
    from resflow_bench.lab.store import Run, Shard, Store
    from resflow_bench.lab.sweep import Tally

N_FAILURES_SHOWN = 3
PAGE_SHARE = 20.0
"""Seconds between two pages of a run, per second that the first of them took."""


@group.cli.command("list")
def list_suites() -> None:
    """List the suites with their questions, axes and numbers of cells, and the axes' values."""
    from resflow_bench.analysis.words import terminal_width
    from resflow_bench.cli.choices import rule_of
    from resflow_bench.lab.axes import AXES
    from resflow_bench.lab.discovery import load, names

    width = terminal_width() or 10_000
    for name in names():
        suite = load(name)
        click.secho(name, bold=True)
        click.echo(_wrapped(suite.question, width, "  ", "  "))
        counts = (f"{len(suite.cells(preset))} {preset}" for preset in suite.presets)
        click.echo(f"  cells: {', '.join(counts)}")
        axes = ", ".join(suite.axes)
        click.echo(_wrapped(axes, min(width, 96), "  axes:  ", " " * 9) + "\n")
    click.secho("axes, set with `--set AXIS=V1,V2`", bold=True)
    for axis in AXES.values():
        meaning = f"{axis.meaning}; it {rule_of(axis) or axis.rule}"
        click.echo(_wrapped(meaning, width, f"  {axis.name:<11} ", " " * 14))


def _wrapped(text: str, width: int, first: str, others: str) -> str:
    """The text in lines of that width, none of which ends inside a hyphenated name."""
    return fill(text, width, initial_indent=first, subsequent_indent=others, break_on_hyphens=False)


def _what_to_measure(command: Callable[..., Any]) -> Callable[..., Any]:
    """The argument and the options of `plan` and `run` that say which cells."""
    options = (
        click.argument("names", metavar="[SUITE]...", nargs=-1),
        click.option("--preset", type=click.Choice(["smoke", "quick", "full"]), default="quick",
                     show_default=True, help="Number of cells, and precision of each."),
        click.option("--set", "assignments", metavar="AXIS=V1,V2", multiple=True,
                     help="Values of an axis, in place of the preset's. More may follow: --set A=1 "
                     "B=2,3."),
        click.option("--device", help="The same as --set device=DEVICE."),
        click.option("--dtype", help="The same as --set dtype=DTYPE."),
        click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True),
        group.results_option,
    )  # fmt: skip
    return reduce(lambda command, option: option(command), reversed(options), command)


@group.cli.command()
@_what_to_measure
@click.option("--cells", "lists_cells", is_flag=True, help="List each cell, with its id.")
def plan(names: tuple[str, ...], results: Path, lists_cells: bool, **asked: Any) -> None:
    """Begin a run of SUITEs without measuring it, and print its name alone on standard output.

    The cells and the command that measures them are printed on standard error.
    """
    from resflow_bench.lab.store import Store

    with group.refusals(ValueError):
        planned, begun = _begin(_asked(asked, names), Store(results), "planned")
    for suite in planned.suites:
        cells = planned.cells(suite)
        click.echo(f"{suite.name}: {len(cells)} cells", err=True)
        for cell in cells if lists_cells else ():
            click.echo(f"  {cell.id}  {cell}", err=True)
    click.echo(f"next: {group.resumption(begun, results)} --shard 1/4", err=True)
    click.echo(
        "  and 2/4, 3/4, 4/4, at once or not, here or elsewhere; or all cells without", err=True
    )
    click.echo(begun.name)


@group.cli.command()
@_what_to_measure
@click.option("--jobs", type=click.IntRange(min=1), help="Processes.  [default: one per core]")
@click.option("--resume", metavar="RUN", help="Measure what this run is missing.")
@click.option("--shard", metavar="I/N", help="With --resume: measure part I of N of the cells; "
              "other processes measure the others.")  # fmt: skip
@click.option("--cluster", metavar="ADDRESS", help="Measure on the workers of the Dask scheduler "
              "at tcp://HOST:PORT; this process writes, and --jobs is not used.")  # fmt: skip
@click.option("--out", type=group.folder, help="Write the page there whenever a suite is done.")
def run(
    names: tuple[str, ...],
    results: Path,
    resume: str | None,
    shard: str | None,
    jobs: int | None,
    cluster: str | None,
    out: Path | None,
    **asked: Any,
) -> int:
    """Measure SUITEs, or all of them, and store the rows.

    A SUITE is a name, as in `list`, or the folder of a suite of your own. Ctrl-C loses no finished
    cell; --resume measures the rest, with the same numbers as an uninterrupted run.
    """
    from resflow_bench.lab.cluster import Cluster, ClusterError
    from resflow_bench.lab.progress import shown
    from resflow_bench.lab.provenance import cores
    from resflow_bench.lab.store import WHOLE, Shard, Store
    from resflow_bench.lab.sweep import sweep

    with group.refusals(ClusterError, ValueError):
        store, asked, part = Store(results), _asked(asked, names), WHOLE
        if cluster is not None:
            click.echo(f"connecting to the scheduler at {cluster}", err=True)
        workers = nullcontext() if cluster is None else closing(Cluster(cluster))
        if shard is not None:
            part = Shard.parse(shard)
            if resume is None:
                raise ValueError(
                    f"--shard {part} is a part of a run that has begun. Begin one with "
                    f"`resflow-bench plan`, then `run --resume RUN --shard {part}`."
                )
        if resume is None:
            plan, measured = _begin(asked, store)
        else:
            plan, measured = _go_on(_given(asked), store.open(resume), part)
    try:
        with group.refusals(), shown("{}/{} cells") as listen, workers as dask:
            page = _Page(measured, out)
            tally = sweep(plan, measured, jobs or cores(), listen, page, part, dask)
            group.no_more_signals(tally.signal)
    except ClusterError as error:
        again = group.resumption(measured, results)
        raise click.ClickException(f"{error} Go on with `{again}`.") from error
    return _conclude(measured, tally, results, out, part)


def _asked(options: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The options with the suites and the values of axes among the names."""
    from resflow_bench.lab.discovery import canonical

    suites = [canonical(name) for name in names if "=" not in name]
    return {**options, "suites": suites, "set": _overrides(options, names)}


class _Page:
    """The page of a run that is under way, in the folder `out` if there is one.

    It is written for the first suite that is done, and for later ones if the last page is older
    than some twenty times what it took, so that pages cost little of the run.
    """

    def __init__(self, run: Run, out: Path | None) -> None:
        self.run, self.out = run, out
        self.due = 0.0

    def __call__(self, suite: Suite) -> None:
        from resflow_bench.cli.reading import write_page

        if self.out is None or (begun := monotonic()) < self.due:
            return
        try:
            page, _ = write_page([[self.run]], self.out)
        except click.ClickException as error:
            click.echo(f"note: {error.format_message()}", err=True)
        else:
            click.echo(f"page: {page}, with {suite.name}", err=True)
        self.due = monotonic() + PAGE_SHARE * (monotonic() - begun)


def _overrides(asked: Mapping[str, Any], names: Iterable[str]) -> dict[str, tuple[Any, ...]]:
    """Axis to values, from --set, the assignments after it, --device and --dtype."""
    from resflow_bench.cli.choices import parse_assignment

    texts = [*asked["assignments"], *(name for name in names if "=" in name)]
    texts += [f"{axis}={asked[axis]}" for axis in ("device", "dtype") if asked[axis] is not None]
    overrides: dict[str, tuple[Any, ...]] = {}
    for axis, values in map(parse_assignment, texts):
        if axis in overrides:
            raise ValueError(f"axis `{axis}` is set twice; set it once, as {axis}=V1,V2.")
        overrides[axis] = values
    return overrides


def _given(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The options that the user gave, without defaults."""
    options = {name: asked[name] for name in ("preset", "seed") if group.is_given(name)}
    chosen = {axis: list(values) for axis, values in asked["set"].items()}
    several = {"suites": asked["suites"], "set": chosen}
    return options | {name: value for name, value in several.items() if value}


def _begin(asked: Mapping[str, Any], store: Store, status: str = "running") -> tuple[Plan, Run]:
    from resflow_bench.lab.discovery import load, names
    from resflow_bench.lab.plan import Plan, begin
    from resflow_bench.models.own import digests, settler

    chosen = dict.fromkeys(asked["suites"] or names())
    suites = tuple(map(load, chosen))
    files, settle = digests(asked["set"], store.results), settler(store.results)
    plan = Plan(suites, asked["preset"], asked["set"], asked["seed"], files, settle)
    return plan, begin(plan, store, group.this_machine(), status)


def _go_on(given: Mapping[str, Any], measured: Run, shard: Shard) -> tuple[Plan, Run]:
    """A run's own plan; options that the user gave beside its name must agree with it."""
    from resflow_bench.lab.discovery import load
    from resflow_bench.lab.plan import Plan
    from resflow_bench.models.own import digests, settler

    if group.command_of(measured) != "run":
        command = group.resumption(measured, measured.path.parents[1])
        raise ValueError(f"run `{measured.name}` is a training; resume it with `{command}`.")
    results = measured.path.parents[1]
    plan = Plan.recorded(measured.about, load, settler(results))
    for name, now in digests(plan.overrides if plan.files else {}, results).items():
        if now != plan.files[name]:
            raise ValueError(
                f"run `{measured.name}` was begun with another `{name}` (digest "
                f"{plan.files[name]}; got {now}). Put the file back, or begin another run."
            )
    recorded = plan.record()
    for name, value in given.items():
        if value != recorded[name]:
            raise ValueError(
                f"run `{measured.name}` was begun with {name}={json.dumps(recorded[name])}; got "
                f"{json.dumps(value)}. Give --resume without it, or begin another run."
            )
    measured.done()  # refuses damaged rows before anything is written
    group.note_changes(measured, shard)
    return plan, measured


def _conclude(measured: Run, tally: Tally, results: Path, out: Path | None, shard: Shard) -> int:
    from resflow_bench.cli.reading import echo_page
    from resflow_bench.lab.store import WHOLE

    again = group.again_by(measured, results)
    only = "" if shard == WHOLE else f" --shard {shard}"
    for result in tally.failed[:N_FAILURES_SHOWN]:
        click.echo(f"failed: {result.cell}: {result.message}", err=True)
    if len(tally.failed) > N_FAILURES_SHOWN:
        click.echo(f"... and {len(tally.failed) - N_FAILURES_SHOWN} more", err=True)
    if tally.signal is not None:
        cells = f"{tally.n_done} of {tally.n_total} cells"
        click.echo(f"interrupted: {cells} are stored; measure the rest with:", err=True)
        click.echo(f"  {group.resumption(measured, results)}{only}", err=True)
        return group.SIGNALLED + tally.signal
    if tally.skipped:
        click.echo(f"skipped: {tally.skipped[0].cell}: {tally.skipped[0].message}", err=True)
    n_measured = tally.n_done - tally.n_kept - len(tally.skipped) - len(tally.failed)
    others = {"kept": tally.n_kept, "skipped": len(tally.skipped), "failed": len(tally.failed)}
    counts = [f"{n_measured} cells measured", *(f"{n} {how}" for how, n in others.items() if n)]
    click.echo(f"run {measured.name}{only.replace(' --', ', ')}: {', '.join(counts)}")
    if only and measured.about.get("status") != "finished":
        click.echo("other shards have cells without rows; the page shows what is there")
    if out is None:
        click.echo(f"next: resflow-bench report {again}")
    else:
        echo_page([[measured]], out)
    if not only and tally.skipped and len(tally.skipped) == tally.n_total:
        click.echo("error: every cell was skipped, so nothing was measured", err=True)
        return group.CELLS_FAILED
    return group.CELLS_FAILED if tally.failed else 0
