"""Ctrl-C and SIGTERM, taken only where nothing is half written."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

NUMBERS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """The user, or the machine, wants an end. Like KeyboardInterrupt, no measure may catch it."""


class Interrupts:
    """While entered, a signal waits for `check`, unless it comes inside `allowed`.

    received: the number of the last signal, None before one came.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._allowed = False

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._receive) for number in NUMBERS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        if self._allowed:
            self._allowed = False
            raise Interrupted

    def check(self) -> None:
        """Here is a good moment.

        Raises:
            Interrupted: if a signal came.
        """
        if self.received is not None:
            raise Interrupted

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Any moment inside is good: `Interrupted` rises wherever the signal finds us."""
        try:
            self._allowed = True
            self.check()
            yield
        finally:
            self._allowed = False
