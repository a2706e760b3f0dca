"""Which estimator reaches an asked error on a flow in the least time, from a few seconds of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from resflow_bench.advise.source import imports
from resflow_bench.advise.ways import Allowance, Candidate, Listener, Scout, more_time
from resflow_bench.flows import ResidualFlow
from resflow_bench.jacobian import Map
from resflow_bench.logdet import Determinant, Estimate, Estimator
from resflow_bench.logdet.averaged import Averaged
from resflow_bench.speed.timing import elapsed

MIN_ROUNDS = 4
"""Calls of a contender before it may be dropped."""

MAX_ROUNDS = 1000

ENOUGH = 32
"""Calls after which nothing more is asked of the only one left."""

CALLS = MIN_ROUNDS + 1
"""Calls of so many examples that there must be time for: a first one, to warm up, is forgotten."""

FEW, GROWTH = 8, 8
"""Examples of the first calls, and by how much they grow at a time: in a call of fewer, most of the
time is none of the products'."""

ENTRY, LEAST_ENTRY = 0.75, 0.3
"""What the first calls of all may take of the time that is left; and what of the time asked for,
where the looks before them took longer than they should."""

SURE = 0.25
"""What of that the determinant may take, to be called before all others."""

HEATS = 0.5
"""What those of more examples may take each time, so that the last ones have most calls."""

LAST = 0.1
"""What of the time asked for is the leader's alone, so that its error is what is printed."""

MANY = 1024
"""Draws from which a variance is known to some 5 %, and the error to half of that."""

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
    seconds: of a draw, per example of the whole batch; the median. Where fewer were called, each of
        the others is taken to add twice what its products should, or what one of those took.
    n_calls, n_examples: from how many calls all this is known, each of so many examples: the whole
        batch, or fewer if it was dropped, or there was no time for more.
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
                "n_examples": way.n_examples,
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
        seconds: for all of it, looks and tunings included. What there is no time for is left out,
            the dearest first, and named in `left_out`; a few calls of the cheapest, and a look at
            two Jacobians, are made in any case.
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
    allowance = Allowance(seconds)
    scout = Scout(flow, x, target_error, allowance, listen)
    contenders = [_Contender(one, flow, gradient, len(x)) for one in scout.candidates(unbiased)]
    contenders, late = _compete(contenders, x, target_error, allowance, listen)
    measured = [contender.measured(target_error) for contender in contenders]
    best = measured.pop(_best(measured))
    rest = sorted(measured, key=lambda way: way.seconds_to_target)
    return Advice(target_error, (best, *rest), (*scout.left_out, *late))


def _best(ways: Sequence[Measured]) -> int:
    """Which one is the fastest, or as good as, and comes first."""
    least = min(way.seconds_to_target for way in ways)
    return next(i for i, way in enumerate(ways) if way.seconds_to_target <= TIE * least)


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


@dataclass(eq=False)
class _Contender:
    """A candidate that is being measured; its products are counted as it is called."""

    candidate: Candidate
    flow: ResidualFlow
    gradient: bool
    batch_size: int
    n_examples: int = FEW
    n_products: float = 0.0
    draws: list[Tensor] = field(default_factory=list)
    taken: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.running = self.flow.with_estimator(self._count)
        self.wanted = [p for p in self.flow.parameters() if p.requires_grad]

    @property
    def name(self) -> str:
        return self.candidate.way.name

    @property
    def each(self) -> float:
        """Seconds of a call: the median."""
        return float(np.median(self.taken))

    @property
    def slope(self) -> float:
        """Seconds that another example adds to a call, at most."""
        return min(self.each / self.n_examples, 2.0 * self.candidate.seconds)

    @property
    def seconds(self) -> float:
        """Of a draw, per example of the whole batch, those that were not called at the slope."""
        more = (self.batch_size - self.n_examples) * self.slope
        return (self.each + more) / self.batch_size

    def _count(self, g: Map, x: Tensor, generator: torch.Generator | None = None) -> Estimate:
        estimate = self.candidate.estimator(g, x, generator)
        self.n_products += estimate.n_products
        return estimate

    def grow(self, limit: float) -> bool:
        """Take more examples, as far as a call of them is expected to take `limit` seconds.

        What is known from fewer is forgotten then.
        """
        n = self.n_examples + int((limit - self.each) / self.slope)
        n = min(n, GROWTH * self.n_examples, self.batch_size)
        if n <= self.n_examples or n < min(self.batch_size, 2 * self.n_examples):
            return False
        self.n_examples = n
        self.forget()
        return True

    @property
    def is_sure(self) -> bool:
        """Whether its variance is known well."""
        sure = isinstance(self.candidate.estimator, Determinant)
        return sure or len(self.draws) * self.n_examples >= MANY

    def forget(self) -> None:
        """The calls so far."""
        self.taken, self.draws, self.n_products = [], [], 0.0

    def at_best(self, target_error: float) -> float:
        """Seconds to the target per example, if in a large batch only the products count."""
        return self.measured(target_error).n_draws * min(self.seconds, self.candidate.seconds)

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
        way, estimator, bias, _ = self.candidate
        variance = 0.0 if isinstance(estimator, Determinant) else float(draws.var(0).mean())
        n_draws = max(1, math.ceil(variance / (target_error**2 - bias**2)))
        return Measured(
            estimator if n_draws == 1 else Averaged(estimator, n_draws),
            way.name,
            way.lines,
            bias,
            variance,
            self.n_products / len(self.draws),
            n_draws,
            self.seconds,
            *draws.shape,
        )


def _compete(
    contenders: Sequence[_Contender],
    x: Tensor,
    target_error: float,
    allowance: Allowance,
    listen: Listener,
) -> tuple[list[_Contender], list[str]]:
    """Calls in turns, of more and more examples; who is far behind is called no more.

    Returns those that were called, in the order in which they came, and what is to be said of those
    for whom there was no time.
    """
    noise = torch.Generator(x.device).manual_seed(2)
    last = LAST * allowance.seconds

    def call(contender: _Contender) -> None:
        listen(contender.name, allowance.left)
        contender.call(x, noise)

    def rounds(alive: list[_Contender], most: int) -> list[_Contender]:
        """Whoever is left after so many, or when the time is over."""
        n_rounds = 0
        while any(len(contender.draws) < MIN_ROUNDS for contender in alive) or (
            n_rounds < most and sum(contender.each for contender in alive) <= allowance.left - last
        ):
            for contender in alive:
                call(contender)
            n_rounds += 1
            if n_rounds >= MIN_ROUNDS:
                least = min(c.measured(target_error).seconds_to_target for c in alive)
                alive = [c for c in alive if c.at_best(target_error) <= HOPELESS * least]
            if len(alive) == 1 and n_rounds >= ENOUGH:
                break
        return alive

    def grown(alive: list[_Contender], seconds: float) -> bool:
        """Whether one took more examples, for which so much time is enough; it is warm then."""
        limit = seconds / (CALLS * len(alive))
        larger = [contender for contender in alive if contender.grow(limit)]
        for contender in larger:
            call(contender)
            contender.forget()
        return bool(larger)

    called, late = _enter(contenders, call, allowance)
    alive = rounds(called, MIN_ROUNDS)
    while grown(alive, HEATS * (allowance.left - last)):
        alive = rounds(alive, MIN_ROUNDS)
    alive = rounds(alive, MAX_ROUNDS)

    def leader() -> _Contender:
        return alive[_best([contender.measured(target_error) for contender in alive])]

    while not (first := leader()).is_sure and first.each <= allowance.left:
        if grown([first], allowance.left):
            rounds([first], MIN_ROUNDS)
        else:
            call(first)
    return called, late


def _enter(
    contenders: Sequence[_Contender],
    call: Callable[[_Contender], None],
    allowance: Allowance,
) -> tuple[list[_Contender], list[str]]:
    """Those that there is time for, each after a call to warm up; and what is said of the rest.

    The cheapest first, but before them the determinant, if it is not too dear: whose one draw is
    known to do. There is always time for one.
    """
    room = max(ENTRY * allowance.left, LEAST_ENTRY * allowance.seconds)
    chosen: list[_Contender] = []
    late: list[str] = []

    def turn(contender: _Contender) -> tuple[bool, float]:
        candidate = contender.candidate
        sure = isinstance(candidate.estimator, Determinant)
        return not (sure and CALLS * candidate.seconds <= SURE * room), candidate.seconds

    waiting = sorted(contenders, key=turn)
    least = 0.0  # seconds of a call, however cheap its products
    for n_before, contender in enumerate(waiting):
        limit = room / (CALLS * (len(waiting) - n_before))
        seconds = contender.candidate.seconds
        contender.n_examples = max(1, min(FEW, contender.batch_size, int(limit / seconds)))
        needed = CALLS * max(least, contender.n_examples * seconds)
        if needed <= room or not chosen:
            call(contender)
            least = min(least or math.inf, contender.each)
            needed = CALLS * contender.each
            if needed <= room or not chosen:
                chosen.append(contender)
            room -= needed if contender in chosen else contender.each
            contender.forget()
        if contender not in chosen:
            enough = allowance.seconds + (needed - room) / ENTRY
            late.append(more_time(contender.name, allowance.seconds, enough))
    return [contender for contender in contenders if contender in chosen], late
