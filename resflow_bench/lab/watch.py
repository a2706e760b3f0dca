"""A training as it goes, on standard error: a bar in a terminal, now and then a line elsewhere."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from math import isnan
from time import monotonic
from typing import TYPE_CHECKING

from resflow_bench.lab.progress import SECONDS_BETWEEN_LINES, bar

if TYPE_CHECKING:
    from collections.abc import Iterator

    from resflow_bench.training.run import Listener, Standing


@contextmanager
def watching() -> Iterator[Listener]:
    """A listener for `train`, for as long as the training lasts."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    with bar(10, "reading the data") as show:
        yield lambda standing: show(
            standing.n_done, standing.n_steps, _left(standing), _said(standing)
        )


class _Lines:
    """A line every few seconds, the first soon, and one at the last step."""

    def __init__(self) -> None:
        self._next = monotonic() + 1.0

    def __call__(self, standing: Standing) -> None:
        if monotonic() < self._next and (standing.n_done < standing.n_steps or standing.doing):
            return
        self._next = monotonic() + SECONDS_BETWEEN_LINES
        left = f", {_left(standing)}" if standing.n_done < standing.n_steps else ""
        line = f"step {standing.n_done}/{standing.n_steps}{left}: {_said(standing)}"
        print(line, file=sys.stderr, flush=True)  # noqa: T201


def _said(standing: Standing) -> str:
    """`loss 2.77 nat, 2 bits/dim, Lip(g) ≤ 0.9`: per example, per dimension, of the worst block."""
    said = f"loss {standing.loss:.4g} nat"
    if standing.doing:
        return f"{said}; {standing.doing}"
    said += f", {standing.bits_per_dim:.3g} bits/dim"
    return said if isnan(standing.certified) else f"{said}, Lip(g) ≤ {standing.certified:.3g}"


def _left(standing: Standing) -> str:
    minutes, seconds = divmod(round(standing.seconds_left), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02} left" if hours else f"{minutes}:{seconds:02} left"
