"""The command line: parses, calls, prints.

Exit codes: 0 done; 1 some cells failed, the rest is kept; 2 refused, and one line says why; 128 + n
ended by signal n. click alone is imported at the top: the rest waits until a command needs it, so
that `--help` answers at once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import contextmanager
from math import inf
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from resflow_bench import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import pandas as pd

    from resflow_bench.lab.course import Course
    from resflow_bench.lab.plan import Plan
    from resflow_bench.lab.store import Run, Store
    from resflow_bench.lab.sweep import Tally

CELLS_FAILED, REFUSED, SIGNALLED = 1, 2, 128
N_FAILURES_SHOWN = 3

_folder = click.Path(path_type=Path)
_results = click.option(
    "--results", type=_folder, default="results", show_default=True, help="Where runs are kept."
)


def main() -> None:
    """The console script; never returns."""
    code = None
    try:
        with cli.make_context("resflow-bench", sys.argv[1:]) as context:
            code = cli.invoke(context)
    except click.exceptions.Exit as end:  # --help and --version have said what they had to say
        code = end.exit_code
    except click.ClickException as error:
        click.echo(f"error: {' '.join(error.format_message().split())}", err=True)
        code = REFUSED
    except KeyboardInterrupt:
        code = SIGNALLED + 2
    except BrokenPipeError:  # `show ... | head` has seen enough; what Python still holds is dropped
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


@contextmanager
def _refusals(*kinds: type[Exception]) -> Iterator[None]:
    """What the user can put right becomes one line, without a traceback."""
    from resflow_bench.lab.store import StoreError

    try:
        yield
    except (StoreError, *kinds) as error:  # type: ignore[misc]
        raise click.ClickException(str(error)) from error


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.pass_context
def cli(context: click.Context) -> None:
    """Residual flows, measured: bias, variance, inverse, Lipschitz constant, throughput.

    \b
    resflow-bench list                      what can be asked
    resflow-bench run bias --preset smoke   ask
    resflow-bench report                    read the answer
    resflow-bench train checkerboard        train a flow, and keep it
    """  # noqa: D301 (the b is meant: click keeps the lines)
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@cli.command("list")
def list_suites() -> None:
    """The suites, the question each answers, their axes, and cells per preset."""
    import suites
    from resflow_bench.lab.axes import AXES

    for name in suites.NAMES:
        suite = suites.load(name)
        click.secho(name, bold=True)
        click.echo(f"  {suite.question}")
        counts = (f"{len(suite.cells(preset))} {preset}" for preset in suite.presets)
        click.echo(f"  cells: {', '.join(counts)}")
        click.echo(click.wrap_text(", ".join(suite.axes), 96, "  axes:  ", " " * 9) + "\n")
    click.secho("axes, set with `--set AXIS=V1,V2`", bold=True)
    for axis in AXES.values():
        click.echo(f"  {axis.name:<11} {axis.meaning}; it {axis.rule}")


@cli.command()
@click.argument("names", metavar="[SUITE]...", nargs=-1)
@click.option(
    "--preset",
    type=click.Choice(["smoke", "quick", "full"]),
    default="quick",
    show_default=True,
    help="How much is asked, and how precisely.",
)
@click.option(
    "--set",
    "assignments",
    metavar="AXIS=V1,V2",
    multiple=True,
    help="Values of an axis, in place of the preset's. More may follow: --set A=1 B=2,3.",
)
@click.option("--device", help="The same as --set device=DEVICE.")
@click.option("--dtype", help="The same as --set dtype=DTYPE.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--jobs", type=click.IntRange(min=1), help="Processes.  [default: one per core]")
@_results
@click.option("--resume", metavar="RUN", help="Measure what this run is missing.")
def run(
    names: tuple[str, ...],
    results: Path,
    resume: str | None,
    jobs: int | None,
    **asked: Any,
) -> int:
    """Measure SUITEs (all of them, if none is named) and keep the numbers.

    Ctrl-C keeps every finished cell; --resume goes on from there, to the same numbers.
    """
    from resflow_bench.lab.progress import progress
    from resflow_bench.lab.provenance import cores
    from resflow_bench.lab.store import Store
    from resflow_bench.lab.sweep import sweep

    with _refusals(ValueError):
        store = Store(results)
        asked["suites"] = [name for name in names if "=" not in name]
        asked["set"] = _overrides(asked, names)
        if resume is None:
            plan, measured = _begin(asked, store)
        else:
            plan, measured = _go_on(_given(asked), store.open(resume))
    with _refusals(), progress() as listen:
        tally = sweep(plan, measured, jobs or cores(), listen)
    return _conclude(measured, tally, results)


def _overrides(asked: Mapping[str, Any], names: Iterable[str]) -> dict[str, tuple[Any, ...]]:
    """Axis -> values, of --set, of what follows it, and of --device and --dtype."""
    from resflow_bench.lab.axes import parse_assignment

    texts = [*asked["assignments"], *(name for name in names if "=" in name)]
    texts += [f"{axis}={asked[axis]}" for axis in ("device", "dtype") if asked[axis] is not None]
    overrides: dict[str, tuple[Any, ...]] = {}
    for axis, values in map(parse_assignment, texts):
        if axis in overrides:
            raise ValueError(f"axis `{axis}` is set twice; set it once, as {axis}=V1,V2.")
        overrides[axis] = values
    return overrides


def _given(asked: Mapping[str, Any]) -> dict[str, Any]:
    """What the user did give, defaults left out."""
    source, default = click.get_current_context().get_parameter_source, ParameterSource.DEFAULT
    options = {name: asked[name] for name in ("preset", "seed") if source(name) != default}
    options |= {"suites": asked["suites"]} if asked["suites"] else {}
    chosen = {axis: list(values) for axis, values in asked["set"].items()}
    return options | ({"set": chosen} if chosen else {})


def _begin(asked: Mapping[str, Any], store: Store) -> tuple[Plan, Run]:
    import suites
    from resflow_bench.lab.plan import Plan, begin

    names = dict.fromkeys(asked["suites"] or suites.NAMES)
    plan = Plan(tuple(map(suites.load, names)), asked["preset"], asked["set"], asked["seed"])
    return plan, begin(plan, store)


def _go_on(given: Mapping[str, Any], measured: Run) -> tuple[Plan, Run]:
    """A run's own plan; whatever was given beside its name must not differ from it."""
    import suites
    from resflow_bench.lab.plan import Plan

    if "training" in measured.about:
        resumption = _resumption(measured, measured.path.parents[1])
        raise ValueError(f"run `{measured.name}` is a training; go on with `{resumption}`.")
    plan = Plan.recorded(measured.about, suites.load)
    recorded = plan.record()
    for name, value in given.items():
        if value != recorded[name]:
            raise ValueError(
                f"run `{measured.name}` was begun with {name}={json.dumps(recorded[name])}; got "
                f"{json.dumps(value)}. Give --resume without it, or begin another run."
            )
    measured.done()  # what cannot be read is refused before anything is written
    _note_changes(measured)
    return plan, measured


def _note_changes(measured: Run) -> None:
    """The run goes on; what is not as it was when it began is said."""
    from resflow_bench.lab.plan import go_on

    if changed := go_on(measured):
        what = ", ".join(changed)
        click.echo(f"note: {what} changed since this run began; run.json holds both", err=True)


def _conclude(measured: Run, tally: Tally, results: Path) -> int:
    again = _again(measured, results)
    for result in tally.failed[:N_FAILURES_SHOWN]:
        click.echo(f"failed: {result.cell}: {result.message}", err=True)
    if len(tally.failed) > N_FAILURES_SHOWN:
        click.echo(f"... and {len(tally.failed) - N_FAILURES_SHOWN} more", err=True)
    if tally.signal is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # impatience changes nothing any more
        kept = f"{tally.n_done} of {tally.n_total} cells are kept"
        click.echo(f"interrupted: {kept}; the rest:", err=True)
        click.echo(f"  {_resumption(measured, results)}", err=True)
        return SIGNALLED + tally.signal
    if tally.skipped:
        click.echo(f"skipped: {tally.skipped[0].cell}: {tally.skipped[0].message}", err=True)
    n_measured = tally.n_done - tally.n_kept - len(tally.skipped) - len(tally.failed)
    counts = [f"{n_measured} cells measured"]
    counts += [f"{tally.n_kept} kept"] * bool(tally.n_kept)
    counts += [f"{len(tally.skipped)} skipped"] * bool(tally.skipped)
    counts += [f"{len(tally.failed)} failed"] * bool(tally.failed)
    click.echo(f"run {measured.name}: {', '.join(counts)}")
    click.echo(f"next: resflow-bench report {again}")
    return CELLS_FAILED if tally.failed else 0


def _again(run: Run, results: Path) -> str:
    """What names this run in the next command."""
    return run.name if str(results) == "results" else f"{run.name} --results {quote(str(results))}"


def _resumption(run: Run, results: Path) -> str:
    """The command that goes on with it."""
    command = "train" if "training" in run.about else "run"
    return f"resflow-bench {command} --resume {_again(run, results)}"


@cli.command()
@click.argument("dataset", required=False)
@click.option("--preset", type=click.Choice(["smoke", "quick", "full"]),
              help="Seconds, about a minute, a paper's scale.  [default: quick]")  # fmt: skip
@click.option("--architecture", metavar="NAME", help="mlp, dense, conv or multiscale.  "
              "[default: multiscale for images, else mlp]")  # fmt: skip
@click.option("--lipschitz", type=float, help="Promised for each branch.  [default: 0.9]")
@click.option("--steps", type=int, help="Optimiser steps.")
@click.option("--batch-size", type=int, help="Examples a step.")
@click.option("--learning-rate", type=float, help="After a warm-up; it decays to a tenth.")
@click.option("--ema", type=float, help="Decay of the weights' moving average; 0 keeps none.")
@click.option("--seed", type=click.IntRange(min=0), help="Of batches and noise.  [default: 0]")
@click.option("--device", help="[default: cpu]")
@click.option("--data", type=_folder, envvar="RESFLOW_DATA", default="data", show_default=True,
              help="Where the files of mnist, cifar10 and imagenet32 lie.")  # fmt: skip
@_results
@click.option("--resume", metavar="RUN", help="Go on with a training that was stopped.")
def train(data: Path, results: Path, resume: str | None, **asked: Any) -> int:
    """Train a flow on DATASET by maximum likelihood; keep its log and its weights.

    What is not given is the preset's. Ctrl-C, or worse, costs a few seconds; --resume goes on from
    there, to the same numbers.
    """
    from resflow_bench.data import DATASETS, dataset_named
    from resflow_bench.lab.course import Course, begin
    from resflow_bench.lab.store import Store
    from resflow_bench.lab.train import train as carry_out
    from resflow_bench.lab.watch import watching

    with _refusals(ValueError), watching() as listen:
        store = Store(results)
        if resume is None:
            if asked["dataset"] is None:
                raise ValueError(f"name a DATASET ({', '.join(DATASETS)}), or --resume RUN.")
            examples = dataset_named(asked["dataset"], data)
            course = Course.of(examples, asked)
            trained = begin(course, store)
        else:
            trained = store.open(resume)
            course = Course.recorded(trained, asked)
            examples = dataset_named(course.recipe.dataset, data)
            if trained.about["status"] != "finished":
                _note_changes(trained)
        ending = carry_out(course, examples, trained, listen)
    again = _again(trained, results)
    steps = f"{ending.n_done} of {course.options['steps']} steps"
    if ending.signal is not None:
        files = f" --data {quote(str(data))}" * (str(data) != "data")
        click.echo(f"interrupted: {steps} are kept; the rest:", err=True)
        click.echo(f"  {_resumption(trained, results)}{files}", err=True)
        return SIGNALLED + ending.signal
    if ending.failure:
        click.echo(f"failed: {ending.failure}", err=True)
    click.echo(f"run {trained.name}: {course.recipe}, {steps}")
    for line in _learnt(trained, course):
        click.echo(line)
    click.echo(f"next: resflow-bench report {again}")
    return CELLS_FAILED if ending.failure else 0


def _learnt(trained: Run, course: Course) -> Iterator[str]:
    """The last held-out log-likelihood, where the weights are, and how to load them."""
    from resflow_bench.analysis.tables import wide, with_interval
    from resflow_bench.lab.course import TRAINING
    from resflow_bench.lab.train import Files

    rows = wide(trained.frame(TRAINING.name))
    if "log_prob_test" in rows and len(rows := rows.dropna(subset=["log_prob_test"])):
        last = rows.iloc[-1]
        nats, bits = (
            with_interval(*(last[f"{name}{end}"] for end in ("", "_low", "_high")))
            for name in ("log_prob_test", "bits_per_dim")
        )
        n, step = last["log_prob_test_n"], last["step"]
        yield f"held-out log-likelihood: {nats} nat, {bits} bits/dim"
        yield f"  of {n:,.0f} examples by the averaged weights at step {step}, 99 % intervals"
    if (file := Files(trained).weights).exists():
        architecture, lipschitz = course.recipe.architecture, course.recipe.lipschitz
        yield f"weights: {file}"
        yield "  import torch, resflow_bench.models as models"
        yield f'  flow = models.architecture_named("{architecture}")({course.event}, {lipschitz})'
        quoted = json.dumps(str(file))
        yield f"  flow.load_state_dict(torch.load({quoted}, weights_only=True))"


@cli.command()
@click.argument("runs", metavar="[RUN]...", nargs=-1)
@_results
@click.option("--out", type=_folder, default="reports", show_default=True, help="Where it goes.")
def report(runs: tuple[str, ...], results: Path, out: Path) -> None:
    """One page from RUNs (the newest, if none is named); of a cell in several, the last counts."""
    from resflow_bench.lab.store import Store, merge

    with _refusals():
        store = Store(results)
        chosen = [store.open(name) for name in runs] or store.runs()[-1:]
        frames = merge(chosen)
        provenance = [run.about for run in chosen]
    if not frames:
        raise click.ClickException(
            f"run `{chosen[-1].name}` has no finished cell; go on with "
            f"`{_resumption(chosen[-1], results)}`."
        )
    from resflow_bench.analysis.findings import findings
    from resflow_bench.report.page import write_report

    try:
        page = write_report(frames, provenance, out)
    except OSError as error:
        raise click.ClickException(
            f"reports folder `{out}` cannot be written ({error.strerror}); name another with "
            "--out DIR."
        ) from error
    for finding in findings(frames):
        click.echo(f"- {finding}")
    click.echo(f"report: {page}, of {', '.join(run.name for run in chosen)}")


@cli.command()
@click.argument("name", metavar="RUN")
@click.option("--suite", help="Rows of this suite alone.")
@click.option("--format", "layout", type=click.Choice(["table", "csv", "json"]), default="table",
              show_default=True)  # fmt: skip
@_results
def show(name: str, suite: str | None, layout: str, results: Path) -> None:
    """The rows of RUN, in the terminal or for a pipe."""
    import pandas as pd

    from resflow_bench.lab.store import PICTURE, Store

    with _refusals():
        run = Store(results).open(name)
        frames = run.frames() if suite is None else {suite: run.frame(suite)}
    frames = {s: frame.drop(columns=PICTURE, errors="ignore") for s, frame in frames.items()}
    if layout == "table":
        for frame in frames.values():
            click.echo(f"{_table(frame.drop(columns=['suite', 'cell']))}\n")
        return
    rows = pd.concat(frames.values(), ignore_index=True) if frames else pd.DataFrame()
    click.echo(rows.to_csv(index=False) if layout == "csv" else _json(rows), nl=False)


def _json(rows: pd.DataFrame) -> str:
    """A list of one object per row; what is missing is null, what is infinite a string."""
    import pandas as pd

    def plain(value: Any) -> Any:
        return None if pd.isna(value) else str(value) if value in (inf, -inf) else value

    records = rows.to_dict(orient="records")
    objects = [{str(name): plain(value) for name, value in row.items()} for row in records]
    return json.dumps(objects, indent=1, allow_nan=False) + "\n"


def _table(frame: pd.DataFrame) -> str:
    """Every row, to six digits; long messages last, columns that say nothing left out."""
    order = sorted(frame.columns, key=lambda name: name == "message")
    shown = frame[order].astype(object).where(frame.notna(), "")
    said = [name for name in order if (shown[name] != "").any()]
    return shown[said].to_string(index=False, float_format="{:.6g}".format)


@cli.command()
@click.argument("base", metavar="BASE")
@click.argument("new", metavar="NEW")
@_results
def compare(base: str, new: str, results: Path) -> None:
    """NEW - BASE for what both runs measured, with 99 % intervals, the surest change first."""
    from resflow_bench.lab.store import Store

    with _refusals():
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
    """Versions, devices and threads, as a run records them."""
    from resflow_bench.lab.provenance import provenance

    click.echo(json.dumps(provenance(), indent=2))
