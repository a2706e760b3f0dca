"""The best held-out log-likelihood of a training, and the rows since it last improved."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import fmean

import numpy as np

from resflow_bench.intervals import mean_interval


@dataclass
class BestHeldOut:
    """The row with the largest mean of ln p over the held-out points, so far.

    A row improves beyond noise if the 99 % interval of the mean of ln p(x_i) - reference_i, paired
    over the points, is above 0. So many small improvements count as one once they add up.

    step, log_prob: of the row with the largest mean; 0 and -inf before there is one.
    reference: ln p of each point at the last row that improved beyond noise.
    n_without: number of rows since then.

    >>> best = BestHeldOut()
    >>> [best.note(step, log_prob) for step, log_prob in ((5, [1.0, 2.0]), (10, [1.0, 1.9]))]
    [True, False]
    >>> best.step, best.n_without
    (5, 1)
    """

    step: int = 0
    log_prob: float = -math.inf
    reference: list[float] = field(default_factory=list)
    n_without: int = 0

    def note(self, step: int, log_prob: list[float]) -> bool:
        """Count a row; True if its mean is the largest so far.

        Args:
            log_prob: ln p of each held-out point, nats; a row with one that is not finite counts as
                no improvement.
        """
        self.n_without += 1
        if not all(map(math.isfinite, log_prob)):
            return False
        if not self.reference or mean_interval(np.subtract(log_prob, self.reference)).low > 0:
            self.reference, self.n_without = log_prob, 0
        if (mean := fmean(log_prob)) <= self.log_prob:
            return False
        self.step, self.log_prob = step, mean
        return True
