"""Candidates measured in turns within a time budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from resflow_bench.advise.budget import Budget
from resflow_bench.advise.candidates import Candidate
from resflow_bench.advise.settings import CONTEST
from resflow_bench.advise.source import imports
from resflow_bench.flows import ResidualFlow
from resflow_bench.jacobian import Map
from resflow_bench.logdet import Averaged, Estimate, Estimator
from resflow_bench.speed.timing import elapsed
from resflow_bench.theory import draws_to_target


@dataclass(frozen=True)
class Measured:
    """An estimator that reaches the target error, and its measured cost.

    estimator: reaches the target in one call of the flow: an average where one draw does not.
    name: in the table.
    lines: Python that makes one draw's estimator of `flow` and `x`.
    bias: largest |bias| at the inspected points, or its certified bound; nats.
    variance: of a draw, per example, mean over the points; nat^2.
    n_products: vector-Jacobian products of a draw, per example, all blocks together.
    n_draws: the least n with bias^2 + variance/n <= target^2.
    seconds: of a draw, per example of the whole batch, from the median over calls. The cost of
        examples that were not in these calls is estimated: each adds twice the guessed cost of its
        products, or the measured cost of an example if that is less.
    n_calls, n_examples: number of calls behind these numbers, and of examples in each: the whole
        batch, or fewer if the candidate was dropped or time was short.
    """

    estimator: Estimator
    name: str
    lines: tuple[str, ...]
    bias: float
    variance: float
    n_products: float
    n_draws: int
    seconds: float
    n_calls: int
    n_examples: int

    @property
    def seconds_to_target(self) -> float:
        """Seconds of all draws together, per example."""
        return self.n_draws * self.seconds

    @property
    def error_expected(self) -> float:
        """sqrt(bias^2 + variance/n), nats."""
        return math.sqrt(self.bias**2 + self.variance / self.n_draws)

    @property
    def ess_expected(self) -> float:
        """exp(-(bias^2 + variance/n)): ESS/n of importance weights exp(error), a normal error."""
        return math.exp(-(self.error_expected**2))

    @property
    def code(self) -> str:
        """Python that computes `log_det`, (B,), to the target error from `flow` and `x`."""
        lines = list(self.lines)
        if self.n_draws > 1:
            lines.append(f"estimator = Averaged(estimator, n_draws={self.n_draws})")
        lines += [
            "flow = flow.with_estimator(estimator)",
            "generator = torch.Generator(x.device).manual_seed(0)",
            "z, log_det = flow.forward_and_log_det(x, generator)",
        ]
        return "\n".join([*imports("\n".join(lines)), "", *lines, ""])


def fastest(measured: Sequence[Measured]) -> int:
    """Index of the first whose time to the target is the least, or equal to it within `tie`."""
    least = min(one.seconds_to_target for one in measured)
    return next(i for i, one in enumerate(measured) if one.seconds_to_target <= CONTEST.tie * least)


@dataclass(eq=False)
class Contender:
    """A candidate that is being measured; its calls are recorded.

    x: the whole batch, (B, *event).
    n_examples: examples of a call, the first of the batch.
    n_products: products per example of all recorded calls.
    draws: estimates of each recorded call, (n_examples,) each.
    wall_s: seconds of each recorded call.
    """

    candidate: Candidate
    flow: ResidualFlow
    x: Tensor
    target_error: float
    gradient: bool
    n_examples: int = 1
    n_products: float = 0.0
    draws: list[Tensor] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.counting_flow = self.flow.with_estimator(self._count)
        self.parameters = [p for p in self.flow.parameters() if p.requires_grad]

    def _count(self, g: Map, x: Tensor, generator: torch.Generator | None = None) -> Estimate:
        estimate = self.candidate.estimator(g, x, generator)
        self.n_products += estimate.n_products
        return estimate

    @property
    def call_seconds(self) -> float:
        """Seconds of a call, the median."""
        return float(np.median(self.wall_s))

    @property
    def example_seconds(self) -> float:
        """Largest seconds that another example is expected to add to a call."""
        return min(self.call_seconds / self.n_examples, 2.0 * self.candidate.seconds)

    @property
    def seconds(self) -> float:
        """Seconds of a draw per example of the whole batch, see `Measured`."""
        more = (len(self.x) - self.n_examples) * self.example_seconds
        return (self.call_seconds + more) / len(self.x)

    @property
    def variance_is_known(self) -> bool:
        """True if the variance is zero, or known from enough draws."""
        n_draws = len(self.draws) * self.n_examples
        return self.candidate.is_exact or n_draws >= CONTEST.enough_draws

    @property
    def least_seconds_to_target(self) -> float:
        """Seconds to the target per example if a large batch costs its products alone."""
        return self.measured.n_draws * min(self.seconds, self.candidate.seconds)

    def call(self, noise: torch.Generator) -> None:
        """Record one draw at each point."""
        x = self.x[: self.n_examples]
        with torch.set_grad_enabled(self.gradient):
            self.wall_s.append(elapsed(lambda: self._draw(x, noise), x.device))

    def _draw(self, x: Tensor, noise: torch.Generator) -> None:
        log_det = self.counting_flow.forward_and_log_det(x, noise)[1]
        if self.gradient:
            torch.autograd.grad(log_det.sum(), self.parameters, allow_unused=True)
        self.draws.append(log_det.detach().double())

    def reset(self) -> None:
        """Discard the recorded calls."""
        self.wall_s, self.draws, self.n_products = [], [], 0.0

    def grow(self, limit: float) -> bool:
        """Take as many more examples as `limit` seconds a call allow, and discard the calls so far.

        Returns whether the number has changed: it at least doubles, or becomes the whole batch.
        """
        n = self.n_examples + int((limit - self.call_seconds) / self.example_seconds)
        n = min(n, CONTEST.growth * self.n_examples, len(self.x))
        if n <= self.n_examples or n < min(len(self.x), 2 * self.n_examples):
            return False
        self.n_examples = n
        self.reset()
        return True

    @property
    def measured(self) -> Measured:
        draws = torch.stack(self.draws)  # (R, B)
        one = self.candidate
        # Draws of an exact candidate differ by rounding, which averaging need not reduce.
        variance = 0.0 if one.is_exact else float(draws.var(0).mean())
        n_draws = math.ceil(draws_to_target(variance, one.bias, self.target_error))
        return Measured(
            estimator=one.estimator if n_draws == 1 else Averaged(one.estimator, n_draws),
            name=one.name,
            lines=one.lines,
            bias=one.bias,
            variance=variance,
            n_products=self.n_products / len(self.draws),
            n_draws=n_draws,
            seconds=self.seconds,
            n_calls=draws.shape[0],
            n_examples=draws.shape[1],
        )


@dataclass(eq=False)
class Contest:
    """Calls of contenders in turns, with more and more examples, until the budget is used.

    budget, noise: of the whole advice, and of all draws.
    left_out: a message for each contender for which there was no time.
    """

    budget: Budget
    noise: torch.Generator
    left_out: list[str] = field(default_factory=list)

    def run(self, contenders: Sequence[Contender]) -> list[Contender]:
        """Measure the contenders; returns those for which there was time, in the order given.

        1. Each is called with a few examples, the cheapest ones first.
        2. In later stages those that are not hopeless are called with more examples.
        3. The leader alone is called until its variance is known.
        """
        entered = self._enter(contenders)
        reserve = CONTEST.last_share * self.budget.seconds
        alive = self._rounds(entered, CONTEST.min_rounds, reserve)
        while self._grow(alive, CONTEST.stage_share * (self.budget.left - reserve)):
            alive = self._rounds(alive, CONTEST.min_rounds, reserve)
        alive = self._rounds(alive, CONTEST.max_rounds, reserve)
        while True:
            leader = alive[fastest([one.measured for one in alive])]
            if leader.variance_is_known or leader.call_seconds > self.budget.left:
                return entered
            if self._grow([leader], self.budget.left):
                self._rounds([leader], CONTEST.min_rounds, reserve)
            else:
                self._call(leader)

    def _call(self, contender: Contender) -> None:
        self.budget.report(contender.candidate.name)
        contender.call(self.noise)

    def _rounds(self, alive: list[Contender], n_most: int, reserve: float) -> list[Contender]:
        """The contenders left after `n_most` calls of each, or when only `reserve` seconds remain.

        Every contender is called `min_rounds` times in any case.
        """
        n_rounds = 0
        while any(len(one.draws) < CONTEST.min_rounds for one in alive) or (
            n_rounds < n_most
            and sum(one.call_seconds for one in alive) <= self.budget.left - reserve
        ):
            for one in alive:
                self._call(one)
            n_rounds += 1
            if n_rounds >= CONTEST.min_rounds:
                least = min(one.measured.seconds_to_target for one in alive)
                limit = CONTEST.hopeless * least
                alive = [one for one in alive if one.least_seconds_to_target <= limit]
            if len(alive) == 1 and n_rounds >= CONTEST.enough_rounds:
                break
        return alive

    def _grow(self, alive: list[Contender], seconds: float) -> bool:
        """True if a contender has more examples a call than before; it has been warmed up.

        A stage with the larger calls of all contenders is expected to take at most `seconds`.
        """
        limit = seconds / (CONTEST.calls_per_stage * len(alive))
        larger = [one for one in alive if one.grow(limit)]
        for one in larger:
            self._call(one)
            one.reset()
        return bool(larger)

    def _enter(self, contenders: Sequence[Contender]) -> list[Contender]:
        """The contenders that the first stage has time for, at least one, each warmed up.

        In the order of their guessed cost, but the determinant, of which one draw is known to be
        enough, comes before all others unless it is too expensive. The rest is `left_out`.
        """
        n_calls, total = CONTEST.calls_per_stage, self.budget.seconds
        room = max(CONTEST.first_share * self.budget.left, CONTEST.min_first_share * total)
        affordable = CONTEST.determinant_share * room / n_calls

        def turn(one: Contender) -> tuple[bool, float]:
            seconds = one.candidate.seconds
            return not (one.candidate.is_exact and seconds <= affordable), seconds

        waiting, entered = sorted(contenders, key=turn), list[Contender]()
        overhead = 0.0  # least seconds of a call so far, however cheap its products
        for n_before, one in enumerate(waiting):
            limit, seconds = room / (n_calls * (len(waiting) - n_before)), one.candidate.seconds
            n_examples = min(CONTEST.first_examples, len(one.x), int(limit / seconds))
            one.n_examples = max(1, n_examples)
            needed = n_calls * max(overhead, one.n_examples * seconds)
            if needed <= room or not entered:
                self._call(one)
                overhead = min(overhead or math.inf, one.call_seconds)
                needed = n_calls * one.call_seconds
                if needed <= room or not entered:
                    entered.append(one)
                room -= needed if one in entered else one.call_seconds
                one.reset()
            if one not in entered:
                enough = total + (needed - room) / CONTEST.first_share
                self.left_out.append(self.budget.refusal(one.candidate.name, enough))
        return [one for one in contenders if one in entered]
