"""Tuning constants of `advise`."""

from __future__ import annotations

from dataclasses import dataclass

BIAS_SHARE = 0.1
"""The largest |bias| accepted, as a share of the target error: averaging does not reduce a bias."""


@dataclass(frozen=True)
class SearchSettings:
    """Effort of the inspection of a flow and of the search for candidates."""

    max_dense: int = 256
    """Largest block whose eigenvalues are computed; larger ones use the certified constant."""

    dense_numbers: int = 1024
    """Points times dimension at which eigenvalues are computed, at 2 to 16 points."""

    share: float = 0.1
    """Share of the total time for each of three tasks: Jacobians, tuning, choice of `n_probes`."""

    n_pilot_points: int = 8
    """Largest number of points from which an estimator is tuned."""

    n_pilot_draws: int = 8
    """Draws at each of them; twice as many changed no choice by more than 2 %, d = 64."""

    n_pilot_terms: int = 64
    """Terms of the series that `pilot_roulette` evaluates."""

    n_calls: int = 4
    """Calls from which a variance is estimated to choose the number of probes."""

    min_examples: int = 8
    """Fewest examples of such a call."""

    max_examples: int = 64
    """Most examples of such a call."""

    max_determinants: float = 8.0
    """Largest n_probes n_terms / d: a determinant needs d products, and time for its LU."""

    slack: float = 1.1
    """Factor on the number of probes, so that a noisy variance does not cost a second draw."""

    max_terms: int = 1 << 14
    """Largest number of fixed terms that is considered."""


@dataclass(frozen=True)
class ContestSettings:
    """Division of the time between contenders, and when a contender is dropped."""

    min_rounds: int = 4
    """Calls of a contender before it may be dropped."""

    max_rounds: int = 1000
    """Calls of a contender in one stage."""

    enough_rounds: int = 32
    """Calls in one stage after which the only contender left is not called any more."""

    first_examples: int = 8
    """Examples of a call in the first stage."""

    growth: int = 8
    """Largest factor on the examples from stage to stage: calls of few are mostly overhead."""

    first_share: float = 0.75
    """Share of the remaining time for the first stage."""

    min_first_share: float = 0.3
    """Least share of the total time for the first stage, however long the search took."""

    determinant_share: float = 0.25
    """Share of the first stage's time up to which the determinant is called before all others."""

    stage_share: float = 0.5
    """Share of the remaining time for each later stage; the last ones have most calls."""

    last_share: float = 0.1
    """Share of the total time reserved for the leader, whose error is printed."""

    enough_draws: int = 1024
    """Draws from which a variance is known to some 5 %, and the error to half of that."""

    hopeless: float = 4.0
    """A contender that needs this many times the best one's time to the target is dropped."""

    tie: float = 1.05
    """Ratio of times that count as equal; the first of such candidates is chosen."""

    @property
    def calls_per_stage(self) -> int:
        """Calls for which a stage must have time: a warm-up, which is discarded, and the rounds."""
        return self.min_rounds + 1


SEARCH = SearchSettings()
CONTEST = ContestSettings()
