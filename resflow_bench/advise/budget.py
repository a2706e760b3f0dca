"""The time that an advice may take."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

from resflow_bench.lab.progress import Listener, Progress


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
        self.listen(Progress(seconds_left=self.left, message=doing))

    def refusal(self, name: str, needed: float) -> str:
        """Message for a candidate that would need `needed` seconds in total."""
        whole = max(math.ceil(needed), math.floor(self.seconds) + 1)
        return f"{name}: give seconds={whole} or more"
