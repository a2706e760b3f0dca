"""Ctrl-C and SIGTERM, handled only where no file is half written."""

from __future__ import annotations

import atexit
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

NUMBERS = (signal.SIGINT, signal.SIGTERM)
SECONDS_AT_EXIT = 10.0
"""Time for a daemon thread to end its cell; a program should not hang for longer at its end."""


class Interrupted(BaseException):
    """A signal came. As with KeyboardInterrupt, no measure may catch this."""


class Interrupts:
    """A context in which a signal waits for `check`, unless it comes inside `allowed`.

    Python handles signals in the main thread alone; in any other, none comes here. A daemon thread
    gets SIGTERM from here when the program ends, and some seconds to finish what it is about.

    received: the number of the last signal, None before one came.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._allowed = False
        self._is_over = threading.Event()

    def __enter__(self) -> Self:
        mine = NUMBERS if threading.current_thread() is threading.main_thread() else ()
        self._before = {number: signal.signal(number, self._receive) for number in mine}
        if not mine:
            atexit.register(self._end_with_program)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._is_over.set()
        atexit.unregister(self._end_with_program)

    def _end_with_program(self) -> None:
        self.received = signal.SIGTERM
        self._is_over.wait(SECONDS_AT_EXIT)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        if self._allowed:
            self._allowed = False
            raise Interrupted

    def check(self) -> None:
        """Raise `Interrupted` if a signal has come; called where it is safe to stop."""
        if self.received is not None:
            raise Interrupted

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """A context that a signal may interrupt anywhere, by raising `Interrupted`."""
        try:
            self._allowed = True
            self.check()
            yield
        finally:
            self._allowed = False
