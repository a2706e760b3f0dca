"""A clock whose seconds do not depend on how fast a shared machine runs at the moment."""

from __future__ import annotations

from functools import cached_property

import torch
from torch.utils.benchmark.utils.timer import timer

YARDSTICK_S = 5e-3
"""Duration of the reference work, in seconds of the steady clock. It took about as long on the
machine where it was chosen; only its constancy matters."""


class SteadyClock:
    """Seconds of a machine of constant speed.

    The speed of a shared machine changes from one second to the next, for whole processes at a
    time, with its clock frequency and its neighbours. `calibrate` times a fixed piece of work,
    small matrix products and an interpreted loop. From then on a wall-clock second counts
    `YARDSTICK_S` over that time.

    With this clock, medians of 10 calls differed between processes by 4 to 7 %; with the wall
    clock, by 14 to 23 % (standard deviations, four cells, 12 processes each, two shared cores).
    """

    rate = 1.0

    @cached_property
    def _rotation(self) -> torch.Tensor:
        """Computed at its first use: torch's threads do not survive asv's forks."""
        start = torch.randn(128, 128, generator=torch.Generator().manual_seed(0))
        return torch.linalg.qr(start).Q

    def __call__(self) -> float:
        return self.rate * timer()

    def calibrate(self, device: torch.device) -> None:
        """Measure the CPU's present speed; for any other device, use seconds of the wall clock."""
        self.rate = 1.0
        if device.type != "cpu":
            return
        x, total = self._rotation, 0
        start = timer()
        for i in range(100):
            x = torch.cos(x @ self._rotation)
            total += sum(range(100 + i))
        self.rate = YARDSTICK_S / (timer() - start)
