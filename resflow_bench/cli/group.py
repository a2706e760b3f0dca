"""The command group, and the parts that its commands share: exit codes, refusals, resuming."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from shlex import quote
from threading import current_thread, main_thread
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from resflow_bench import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from resflow_bench.lab.store import Run, Shard

CELLS_FAILED, REFUSED, MISTAKEN, HELD, SIGNALLED = 1, 2, 70, 75, 128

folder = click.Path(path_type=Path)
results_option = click.option(
    "--results", type=folder, default="results", show_default=True, help="Folder of the runs."
)


asv_option = click.option("--asv", "config", type=click.Path(path_type=Path, dir_okay=False),
                          default="asv.conf.json", show_default=True,
                          help="asv's configuration.")  # fmt: skip


def main() -> None:
    """The console script; never returns."""
    _on(signal.SIGINT, _once)
    if isinstance(sys.stdout, TextIOWrapper):  # standard error has this handler already
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = _answer()
        _on(signal.SIGINT, signal.SIG_IGN)  # while Python takes itself down
    except KeyboardInterrupt:
        code = SIGNALLED + signal.SIGINT
    except Exception:  # noqa: BLE001 (a defect of this code; Python's exit code is CELLS_FAILED)
        traceback.print_exc()
        code = MISTAKEN
    sys.exit(code)


def _on(number: signal.Signals, handler: Callable[..., None] | signal.Handlers) -> None:
    """Handle a signal where Python does, in the main thread."""
    if current_thread() is main_thread():
        signal.signal(number, handler)


def _once(*_: object) -> None:
    """Raise KeyboardInterrupt at the first Ctrl-C; later ones are ignored."""
    _on(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def no_more_signals(received: int | None) -> None:
    """Ignore signals after the first, so that the summary is printed and the exit code stands."""
    if received is not None:
        _on(signal.SIGINT, signal.SIG_IGN)
        _on(signal.SIGTERM, signal.SIG_IGN)


def _answer() -> int:
    try:
        with cli.make_context("resflow-bench", sys.argv[1:]) as context:
            code = cli.invoke(context) or 0
            sys.stdout.flush()
            return code
    except click.exceptions.Exit as end:  # --help and --version have printed their text
        return end.exit_code
    except click.ClickException as error:
        click.echo(f"error: {' '.join(error.format_message().split())}", err=True)
        return REFUSED
    except BrokenPipeError:  # as in `show ... | head`
        _drop_the_rest()
        return 0
    except OSError as error:  # a full disk, a folder without permission, a name that is too long
        where = f"`{str(error.filename)[:200]}`" if error.filename else "a file or standard output"
        with suppress(OSError):  # standard error may be on the same disk
            click.echo(f"error: {where}: {error.strerror}; make room, or name another.", err=True)
        _drop_the_rest()
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
    from resflow_bench.lab.store import HeldError, StoreError

    try:
        yield
    except HeldError as error:
        click.echo(f"error: {error}", err=True)
        raise click.exceptions.Exit(HELD) from error
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
    resflow-bench plan bias --preset full   begin a run for several machines
    resflow-bench report                    write the page of a run
    resflow-bench train checkerboard        train a flow, and save its weights
    resflow-bench advise --model trained    the estimator of least time for it
    resflow-bench gate BASE NEW             is NEW worse than BASE?
    """  # noqa: D301 (the b is meant: click keeps the lines)
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def note_changes(measured: Run, shard: Shard | None = None) -> None:
    """Become the run's writer, record that it is resumed, and print what changed since it began."""
    from resflow_bench.lab.plan import go_on
    from resflow_bench.lab.store import WHOLE

    if not measured.begin_writing(shard or WHOLE):
        click.echo(
            f"note: the file system of `{measured.path}` has no locks, so that another process may "
            "measure the same cells; none would be lost",
            err=True,
        )
    if changed := go_on(measured, shard or WHOLE):
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
    return next(iter(run.about.get("arguments") or ()), "run")


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
