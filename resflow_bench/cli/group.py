"""The command group, and the parts that its commands share: exit codes, refusals, resuming."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from resflow_bench import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

    from resflow_bench.lab.store import Run

CELLS_FAILED, REFUSED, MISTAKEN, SIGNALLED = 1, 2, 70, 128

folder = click.Path(path_type=Path)
results_option = click.option(
    "--results", type=folder, default="results", show_default=True, help="Folder of the runs."
)


def main() -> None:
    """The console script; never returns."""
    signal.signal(signal.SIGINT, _once)
    if isinstance(sys.stdout, TextIOWrapper):  # standard error has this handler already
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = _answer()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # while Python takes itself down
    except KeyboardInterrupt:
        code = SIGNALLED + signal.SIGINT
    except Exception:  # noqa: BLE001 (a defect of this code; Python's exit code is CELLS_FAILED)
        traceback.print_exc()
        code = MISTAKEN
    sys.exit(code)


def _once(*_: object) -> None:
    """Raise KeyboardInterrupt at the first Ctrl-C; later ones are ignored."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def no_more_signals(received: int | None) -> None:
    """Ignore signals after the first, so that the summary is printed and the exit code stands."""
    if received is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _answer() -> int:
    try:
        with cli.make_context("resflow-bench", sys.argv[1:]) as context:
            return cli.invoke(context) or 0
    except click.exceptions.Exit as end:  # --help and --version have printed their text
        return end.exit_code
    except click.ClickException as error:
        click.echo(f"error: {' '.join(error.format_message().split())}", err=True)
        return REFUSED
    except BrokenPipeError:  # as in `show ... | head`
        _drop_the_rest()
        return 0
    except OSError as error:  # a file or a folder that the user named, or a full disk
        place = f"`{error.filename}` cannot be used" if error.filename else "the system refused"
        click.echo(f"error: {place} ({error.strerror}); make room, or name another.", err=True)
        return REFUSED


def echo_all(text: str) -> None:
    """Print the text; a reader that closes the pipe early does not change the exit code."""
    try:
        click.echo(text, nl=False)
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_the_rest()


def _drop_the_rest() -> None:
    """Discard the output that Python still buffers for a closed pipe."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def is_given(option: str) -> bool:
    """True if the user wrote this option of the running command."""
    source = click.get_current_context().get_parameter_source(option)
    return source is ParameterSource.COMMANDLINE


@contextmanager
def refusals(*kinds: type[Exception]) -> Iterator[None]:
    """Turn errors that the user can correct into one line, without a traceback."""
    from resflow_bench.lab.store import StoreError

    try:
        yield
    except (StoreError, *kinds) as error:  # type: ignore[misc]
        raise click.ClickException(str(error)) from error


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.pass_context
def cli(context: click.Context) -> None:
    """Residual flows, measured: bias, variance, inverse, Lipschitz constant, speed and its growth.

    \b
    resflow-bench list                      suites, axes and their values
    resflow-bench run bias --preset smoke   measure a suite
    resflow-bench report                    write the page of a run
    resflow-bench train checkerboard        train a flow, and save its weights
    resflow-bench advise --model trained    the estimator of least time for it
    resflow-bench gate BASE NEW             is NEW worse than BASE?
    """  # noqa: D301 (the b is meant: click keeps the lines)
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def note_changes(measured: Run) -> None:
    """Record that the run is resumed, and print what changed since it began."""
    from resflow_bench.lab.plan import go_on

    if changed := go_on(measured):
        what = ", ".join(changed)
        click.echo(f"note: {what} changed since this run began; run.json holds both", err=True)


def again_by(run: Run, results: Path) -> str:
    """The run's name, and its results folder if that is not the default, for the next command."""
    return run.name if str(results) == "results" else f"{run.name} --results {quote(str(results))}"


def resumption(run: Run, results: Path) -> str:
    """The command that resumes the run."""
    return f"resflow-bench {command_of(run)} --resume {again_by(run, results)}"


def command_of(run: Run) -> str:
    """The command that began the run, `run` or `train`."""
    return str(run.about.get("arguments", ["run"])[0])


def this_machine() -> dict[str, Any]:
    """The part of `run.json` about the code and the machine, with the checks of `doctor`.

    A failure of git is noted on standard error.
    """
    from resflow_bench.lab.provenance import provenance
    from resflow_bench.speed.doctor import checks_record

    about = provenance()
    if about["git_error"]:
        click.echo(f"note: git does not identify the code: {about['git_error']}", err=True)
    return {**about, "doctor": checks_record(about)}
