"""What all commands share: the group, its exit codes, refusals, and how a run is gone on with."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import click

from resflow_bench import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

    from resflow_bench.lab.store import Run

CELLS_FAILED, REFUSED, MISTAKEN, SIGNALLED = 1, 2, 70, 128

folder = click.Path(path_type=Path)
results_option = click.option(
    "--results", type=folder, default="results", show_default=True, help="Where runs are kept."
)


def main() -> None:
    """The console script; never returns."""
    signal.signal(signal.SIGINT, _once)
    try:
        code = _answer()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # while Python takes itself down
    except KeyboardInterrupt:
        code = SIGNALLED + signal.SIGINT
    except Exception:  # noqa: BLE001 (a mistake of ours: Python's own 1 would look like an answer)
        traceback.print_exc()
        code = MISTAKEN
    sys.exit(code)


def _once(*_: object) -> None:
    """The first Ctrl-C ends what goes on; impatience changes nothing any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def no_more_signals(received: int | None) -> None:
    """After one was received, the last words and the exit code are not to be cut off by another."""
    if received is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _answer() -> int:
    """The exit code of what the command line asks for."""
    try:
        with cli.make_context("resflow-bench", sys.argv[1:]) as context:
            return cli.invoke(context) or 0
    except click.exceptions.Exit as end:  # --help and --version have said what they had to say
        return end.exit_code
    except click.ClickException as error:
        click.echo(f"error: {' '.join(error.format_message().split())}", err=True)
        return REFUSED
    except BrokenPipeError:  # `show ... | head` has seen enough
        _drop_the_rest()
        return 0


def echo_all(text: str) -> None:
    """Print it; a reader that has seen enough changes nothing about the exit code."""
    try:
        click.echo(text, nl=False)
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_the_rest()


def _drop_the_rest() -> None:
    """What Python still holds of the output, which nobody reads any more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def refusals(*kinds: type[Exception]) -> Iterator[None]:
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
    """Residual flows, measured: bias, variance, inverse, Lipschitz constant, speed and its growth.

    \b
    resflow-bench list                      what can be asked
    resflow-bench run bias --preset smoke   ask
    resflow-bench report                    read the answer
    resflow-bench train checkerboard        train a flow, and keep it
    resflow-bench advise --model trained    which estimator to take for it
    resflow-bench gate BASE NEW             has anything become worse?
    """  # noqa: D301 (the b is meant: click keeps the lines)
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def note_changes(measured: Run) -> None:
    """The run goes on; what is not as it was when it began is said."""
    from resflow_bench.lab.plan import go_on

    if changed := go_on(measured):
        what = ", ".join(changed)
        click.echo(f"note: {what} changed since this run began; run.json holds both", err=True)


def again_by(run: Run, results: Path) -> str:
    """What names this run in the next command."""
    return run.name if str(results) == "results" else f"{run.name} --results {quote(str(results))}"


def resumption(run: Run, results: Path) -> str:
    """The command that goes on with it."""
    return f"resflow-bench {command_of(run)} --resume {again_by(run, results)}"


def command_of(run: Run) -> str:
    """The command that began it, `run` or `train`."""
    return str(run.about.get("arguments", ["run"])[0])


def this_machine() -> dict[str, Any]:
    """The part of `run.json` about the code and the machine, with what `doctor` finds of it."""
    from resflow_bench.lab.provenance import provenance
    from resflow_bench.speed.doctor import findings

    about = provenance()
    return {**about, "doctor": findings(about)}
