"""Settings for every test."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

os.environ.pop("COLUMNS", None)  # which pytest-xdist sets: what is captured has no width


@pytest.fixture(autouse=True)
def _ctrl_c_still_stops_the_tests() -> Iterator[None]:
    """The command, called in this process, leaves it deaf to Ctrl-C, as it is about to end."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)
