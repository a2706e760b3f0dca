"""Which estimator reaches an asked error on a flow in the least time, from a few seconds of it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from resflow_bench.flows import ResidualFlow
from resflow_bench.lab.source import imports
from resflow_bench.lab.timing import elapsed
from resflow_bench.lab.ways import Listener, Scout, Way
from resflow_bench.logdet import Determinant, Estimate, Estimator
from resflow_bench.logdet.averaged import Averaged
from resflow_bench.logdet.products import Map

MIN_ROUNDS = 4
"""Calls of a contender before it may be dropped."""

MAX_ROUNDS = 1000

CALLS = 20
"""Calls that the time must have room for, or they are of fewer examples."""

HOPELESS = 4.0
"""A contender so many times slower to the target than the best is not measured any further."""

TIE = 1.05
"""Times that differ by less are equal, and the first of the candidates is taken."""


def nobody(doing: str, left: float) -> None:
    """Nobody listens."""


@dataclass(frozen=True)
class Measured:
    """A way to the target, and what it was seen to cost.

    estimator: reaches the target in one call of the flow: an average where one draw does not.
    name: of the table. lines: Python that makes `estimator` of `flow` and `x`.
    bias: the largest |bias| at the points looked at, or its certified bound; nats.
    variance: of a draw, per example, mean over the points; nat^2.
    n_products: vector-Jacobian products of a draw, per example, all blocks together.
    n_draws: the least n with bias^2 + variance/n <= target^2.
    seconds: of a draw, per example; the median.
    n_calls: of a whole batch, from which all this is known.
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

    @property
    def seconds_to_target(self) -> float:
        """Seconds an example, all draws together."""
        return self.n_draws * self.seconds

    @property
    def error_expected(self) -> float:
        """sqrt(bias^2 + variance/n), nats."""
        return math.sqrt(self.bias**2 + self.variance / self.n_draws)

    @property
    def code(self) -> str:
        """Python that gives `log_det`, (B,), to the target, where `flow` and `x` are at hand."""
        lines = list(self.lines)
        if self.n_draws > 1:
            lines.append(f"estimator = Averaged(estimator, n_draws={self.n_draws})")
        lines += [
            "flow = flow.with_estimator(estimator)",
            "generator = torch.Generator(x.device).manual_seed(0)",
            "z, log_det = flow.forward_and_log_det(x, generator)",
        ]
        return "\n".join([*imports("\n".join(lines)), "", *lines, ""])


@dataclass(frozen=True)
class Advice:
    """What to take, what came next, and what could not be tried.

    ways: the one to take first, then by seconds to the target.
    left_out: candidates that were not measured, and why.
    """

    target_error: float
    ways: tuple[Measured, ...]
    left_out: tuple[str, ...] = ()

    @property
    def best(self) -> Measured:
        """The one to take."""
        return self.ways[0]

    @property
    def table(self) -> pd.DataFrame:
        """One row a way, the best first."""
        return pd.DataFrame(
            {
                "estimator": way.name,
                "bias": way.bias,
                "variance": way.variance,
                "n_products": way.n_products,
                "n_draws": way.n_draws,
                "seconds_per_example": way.seconds,
                "seconds_to_target": way.seconds_to_target,
            }
            for way in self.ways
        )

    @property
    def code(self) -> str:
        """Python that reaches the target, see `Measured.code`."""
        return self.best.code


def advise(
    flow: ResidualFlow,
    x: Tensor,
    target_error: float = 0.01,
    seconds: float = 5.0,
    unbiased: bool = False,
    gradient: bool = False,
    listen: Listener = nobody,
) -> Advice:
    """The estimator of least n t with bias^2 + variance/n <= target_error^2, |bias| a tenth of it.

    Variance and seconds are measured in turns, on whole batches x: the variance over calls, mean
    over examples. The bias is computed: of a fixed number of terms from the eigenvalues of J at
    a few points if d <= 256, else from the certified constants; zero of a roulette. Only laws whose
    variance is finite at every J that the branches promise are tried. Contenders are the
    determinant, fixed terms, geometric roulettes, and roulettes tuned to each branch; with the
    exact traces that the branches admit, more probes where one is too few, and control.

    Args:
        flow: whose parameters stay as they are.
        x: (B, *event), a batch like those to come, of the size to come: of typical points.
        target_error: root mean square over examples, nats, of the whole flow's log-det.
        seconds: of measuring; besides it a tuning may take half as long each, and a first look.
        unbiased: leave out fixed terms.
        gradient: time and count the backward pass too; the error is the value's.
        listen: hears how far it is.

    Properties: what follows from clocks may differ from call to call, if two ways are close. All
        draws are from generators of their own.

    Raises:
        ValueError: `target_error` or `seconds` is not positive, x is not a batch of the flow's
            events, the flow has no residual block or (with `gradient`) no parameter that wants
            one, or the target is below what x's dtype resolves.
    """
    _check(flow, x, target_error, seconds, gradient)
    scout = Scout(flow, x, target_error, seconds, listen)
    ways = scout.ways(unbiased)
    contenders = [_Contender(way, way.build(flow, x), flow, bias, gradient) for way, bias in ways]
    _compete(contenders, x, target_error, seconds, listen)
    measured = [contender.measured(target_error) for contender in contenders]
    least = min(way.seconds_to_target for way in measured)
    best = next(way for way in measured if way.seconds_to_target <= TIE * least)
    rest = [way for way in measured if way is not best]
    rest.sort(key=lambda way: way.seconds_to_target)
    return Advice(target_error, (best, *rest), tuple(scout.left_out))


def _check(
    flow: ResidualFlow, x: Tensor, target_error: float, seconds: float, gradient: bool
) -> None:
    for name, value in (("target_error", target_error), ("seconds", seconds)):
        if not 0.0 < value < math.inf:
            raise ValueError(f"advise needs a positive {name}; got {value}. Give {name}=0.01, say.")
    if x.shape[1:] != flow.event or len(x) == 0:
        raise ValueError(
            f"advise needs x of shape (B, {', '.join(map(str, flow.event))}), B >= 1, as the flow "
            f"takes; got {tuple(x.shape)}. Give a batch of typical points."
        )
    if not flow.blocks:
        raise ValueError(
            "advise needs a flow with a residual block; got none: its log-det is exact."
        )
    if gradient and not any(p.requires_grad for p in flow.parameters()):
        raise ValueError(
            "advise with gradient=True needs a flow with a parameter that wants a gradient; got "
            "none. Call `flow.requires_grad_(True)`."
        )


@dataclass
class _Contender:
    """A way that is being measured; its products are counted as it is called."""

    way: Way
    estimator: Estimator
    flow: ResidualFlow
    bias: float
    gradient: bool
    n_examples: int = 0
    n_products: float = 0.0
    draws: list[Tensor] = field(default_factory=list)
    taken: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.running = self.flow.with_estimator(self._count)
        self.wanted = [p for p in self.flow.parameters() if p.requires_grad]

    def _count(self, g: Map, x: Tensor, generator: torch.Generator | None = None) -> Estimate:
        estimate = self.estimator(g, x, generator)
        self.n_products += estimate.n_products
        return estimate

    def size(self, x: Tensor, noise: torch.Generator, limit: float) -> None:
        """Settle for fewer examples if a call of them all would take longer than `limit` seconds.

        Eight times as many at a time; these calls are a warm-up, and forgotten.
        """
        self.n_examples = 1
        self.call(x, noise)
        while self.n_examples < len(x) and 8 * self.taken[-1] <= limit:
            self.n_examples = min(len(x), 8 * self.n_examples)
            self.call(x, noise)
        room = int(limit * self.n_examples / max(self.taken[-1], 1e-9))
        self.n_examples = max(self.n_examples, min(len(x), room))
        self.taken, self.draws, self.n_products = [], [], 0.0

    def call(self, x: Tensor, noise: torch.Generator) -> None:
        """One draw at each point, kept with its seconds."""
        x = x[: self.n_examples]
        with torch.set_grad_enabled(self.gradient):
            self.taken.append(elapsed(lambda: self._draw(x, noise), x.device))

    def _draw(self, x: Tensor, noise: torch.Generator) -> None:
        log_det = self.running.forward_and_log_det(x, noise)[1]
        if self.gradient:
            torch.autograd.grad(log_det.sum(), self.wanted, allow_unused=True)
        self.draws.append(log_det.detach().double())

    def measured(self, target_error: float) -> Measured:
        """What is known of it by now."""
        draws = torch.stack(self.draws)  # (R, B)
        # The same each time is rounding's doing, not chance's.
        steady = isinstance(self.estimator, Determinant)
        variance = 0.0 if steady else float(draws.var(0).mean())
        n_draws = max(1, math.ceil(variance / (target_error**2 - self.bias**2)))
        return Measured(
            self.estimator if n_draws == 1 else Averaged(self.estimator, n_draws),
            self.way.name,
            self.way.lines,
            self.bias,
            variance,
            self.n_products / len(self.draws),
            n_draws,
            float(np.median(self.taken)) / draws.shape[1],
            len(self.draws),
        )


def _compete(
    contenders: Sequence[_Contender],
    x: Tensor,
    target_error: float,
    seconds: float,
    listen: Listener,
) -> None:
    """Calls in turns until the time is over; who is far behind by then is called no more."""
    noise = torch.Generator(x.device).manual_seed(2)
    alive, start, n_rounds = list(contenders), time.perf_counter(), 0
    for contender in alive:
        listen(contender.way.name, seconds)
        contender.size(x, noise, seconds / CALLS)
    start = time.perf_counter()
    while n_rounds < MIN_ROUNDS or (n_rounds < MAX_ROUNDS and _since(start) < seconds):
        for contender in alive:
            at_least = _since(start) * (MIN_ROUNDS / n_rounds - 1) if n_rounds else 0.0
            listen(contender.way.name, max(0.0, seconds - _since(start), at_least))
            contender.call(x, noise)
        n_rounds += 1
        if n_rounds >= MIN_ROUNDS:
            to_target = [c.measured(target_error).seconds_to_target for c in alive]
            limit = HOPELESS * min(to_target)
            alive = [c for c, t in zip(alive, to_target, strict=True) if t <= limit]


def _since(start: float) -> float:
    return time.perf_counter() - start
