"""Tuning constants of `advise`."""

from __future__ import annotations

from dataclasses import dataclass

BIAS_SHARE = 0.1
"""The largest |bias| accepted, as a share of the target error: averaging does not reduce a bias."""


@dataclass(frozen=True)
class SearchSettings:
    """Effort of the inspection of a flow and of the search for candidates."""

    max_dense: int = 256  # largest block whose eigenvalues are computed; else certified constants
    dense_numbers: int = 1024  # points times dimension of the eigenvalues, at 2 to 16 points
    share: float = 0.1  # of the total time, for each of Jacobians, tuning and choice of `n_probes`
    n_pilot_points: int = 8  # largest number of points from which an estimator is tuned
    n_pilot_draws: int = 8  # at each of them; twice as many changed no choice by over 2 %, d = 64
    n_pilot_terms: int = 64  # of a series, where an estimator is tuned or a product is timed
    n_calls: int = 4  # from which a variance is estimated to choose the number of probes
    min_examples: int = 8  # of such a call
    max_examples: int = 64  # of such a call
    max_determinants: float = 8.0  # largest n_probes n_terms / d; a determinant takes d products
    slack: float = 1.1  # on the number of probes, so that a noisy variance costs no second draw
    max_terms: int = 1 << 14  # largest number of fixed terms that is considered


@dataclass(frozen=True)
class ContestSettings:
    """Division of the time between contenders, and when a contender is dropped."""

    min_rounds: int = 4  # calls of a contender before it may be dropped
    max_rounds: int = 1000  # calls of a contender in one stage
    enough_rounds: int = 32  # calls in one stage after which the only contender left is done
    first_examples: int = 8  # of a call in the first stage
    growth: int = 8  # largest factor on the examples per stage: calls of few are mostly overhead
    first_share: float = 0.75  # of the remaining time, for the first stage
    min_first_share: float = 0.3  # of all time, at least, for the first stage after a long search
    determinant_share: float = 0.25  # of the first stage; a cheaper determinant is called first
    stage_share: float = 0.5  # of the remaining time, for each later stage; the last has most calls
    last_share: float = 0.1  # of all time, reserved for the leader, whose error is printed
    enough_draws: int = 1024  # that give a variance to some 5 %, and the error to half of that
    hopeless: float = 4.0  # times the best one's time to the target: slower ones are dropped
    tie: float = 1.05  # ratio of times that count as equal; the first such candidate is chosen

    @property
    def calls_per_stage(self) -> int:
        """Calls for which a stage must have time: a warm-up, which is discarded, and the rounds."""
        return self.min_rounds + 1


SEARCH = SearchSettings()
CONTEST = ContestSettings()
