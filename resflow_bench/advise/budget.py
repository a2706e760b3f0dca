"""The time that an advice may take."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

Listener = Callable[[str, float], None]
"""Called with the current step and the seconds left in total."""


def silent(doing: str, seconds_left: float) -> None:
    """Ignore the step."""


def now() -> float:
    """Seconds on a monotonic clock."""
    return time.perf_counter()


@dataclass(frozen=True)
class Budget:
    """Seconds of wall-clock time from the creation of the object on.

    seconds: the total.
    listen: called with every step that `report` is given.
    """

    seconds: float
    listen: Listener
    start: float = field(default_factory=now)

    @property
    def left(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self.seconds - (now() - self.start))

    def report(self, doing: str) -> None:
        """Tell the listener the current step."""
        self.listen(doing, self.left)

    def refusal(self, name: str, needed: float) -> str:
        """Message for a candidate that would need `needed` seconds in total."""
        whole = max(math.ceil(needed), math.floor(self.seconds) + 1)
        return f"{name}: give seconds={whole} or more"
