"""The ways to a log-determinant that a flow admits, what bias each has, and how each is written."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from resflow_bench import theory
from resflow_bench.advise.source import constructor
from resflow_bench.flows import ResidualFlow
from resflow_bench.jacobian import CHUNK_NUMBERS, Map
from resflow_bench.logdet import (
    Arnoldi,
    Controlled,
    Determinant,
    Estimator,
    Fixed,
    Geometric,
    Hadamard,
    LogDetEstimator,
    PerBranch,
    Probe,
    Rademacher,
    Roulette,
    Taylor,
    Truncation,
    linearise,
    tuned,
)
from resflow_bench.logdet.tuned import PROBES_A_DRAW, mean_terms
from resflow_bench.models.problem import dense_truth
from resflow_bench.speed.timing import elapsed
from resflow_bench.theory.bias import tail
from resflow_bench.threads import one_thread
from suites.efficiency.measure import BIAS_SHARE

Listener = Callable[[str, float], None]
"""Hears what is done now, and how many seconds are left of it all."""

MAX_DENSE = 256
"""Of larger blocks no eigenvalues are computed: the certified constant stands for them."""

DENSE = 1024
"""Numbers, in 2 to 16 points whose Jacobians are looked at."""

N_PILOT = 8
"""The most points that an estimator is tuned from."""

N_PILOT_DRAWS = 8
"""At each of them. Twice as many changed no choice for blocks of 64 numbers by more than 2 %."""

LOOK = 1 / 10
"""What a look at Jacobians, a tuning or all looks at variances may take of the time asked for."""

N_PILOT_TERMS = 64
"""Terms that a pilot looks at, as `pilot_roulette` has them."""

N_LOOKS = 4
"""Calls from which a variance is guessed, to say how many probes are enough."""

MIN_LOOKED_AT, MAX_LOOKED_AT = 8, 64
"""Examples of these calls, by how long they take."""

MAX_DETERMINANTS = 8.0
"""Probes times terms that are tried, over a determinant's d products, whose LU takes time too."""

SLACK = 1.1
"""More probes than the first look asks for, so that a noisy one does not cost a second draw."""

MAX_TERMS = 1 << 14


def now() -> float:
    """Seconds, of a clock that only runs forward."""
    return time.perf_counter()


@dataclass(frozen=True)
class Allowance:
    """The seconds that were asked for, from its making on."""

    seconds: float
    start: float = field(default_factory=now)

    @property
    def left(self) -> float:
        """Seconds, never negative."""
        return max(0.0, self.seconds - (now() - self.start))


class Way(Protocol):
    """How an estimator is had for a flow: itself, or the Python that makes it."""

    @property
    def name(self) -> str:
        """What the table says."""
        ...

    @property
    def lines(self) -> tuple[str, ...]:
        """Python that makes `estimator` of `flow` and `x`."""
        ...

    def build(self, flow: ResidualFlow, x: Tensor) -> Estimator:
        """What these lines make."""
        ...


@dataclass(frozen=True)
class Same:
    """One estimator for every branch."""

    estimator: Estimator

    @property
    def name(self) -> str:
        one = self.estimator
        if not isinstance(one, LogDetEstimator):
            return type(one).__name__.lower()
        return ", ".join([str(one.truncation), *_told(one)])

    @property
    def lines(self) -> tuple[str, ...]:
        return (f"estimator = {constructor(self.estimator)}",)

    def build(self, flow: ResidualFlow, x: Tensor) -> Estimator:
        return self.estimator


@dataclass(frozen=True)
class Tuned:
    """`logdet.tuned` from the first points."""

    base: LogDetEstimator
    n_points: int

    @property
    def name(self) -> str:
        return ", ".join(["tuned", *_told(self.base)])

    @property
    def lines(self) -> tuple[str, ...]:
        return (
            f"base = {constructor(self.base)}",
            f"branches = flow.branches(x[:{self.n_points}])",
            "noise = torch.Generator(x.device).manual_seed(0)",
            f"estimator = tuned(branches, base, generator=noise, n_draws={N_PILOT_DRAWS})",
        )

    def build(self, flow: ResidualFlow, x: Tensor) -> Estimator:
        noise = torch.Generator(x.device).manual_seed(0)
        branches = flow.branches(x[: self.n_points])
        return tuned(branches, self.base, generator=noise, n_draws=N_PILOT_DRAWS)


class Candidate(NamedTuple):
    """A way, what it builds, its |bias| in nats, and the seconds of a draw per example, guessed."""

    way: Way
    estimator: Estimator
    bias: float
    seconds: float


def _told(one: LogDetEstimator) -> Iterator[str]:
    yield str(one.probe) if one.n_probes == 1 else f"{one.n_probes} {one.probe}"
    if one.n_traced:
        yield f"{one.n_traced} traced"
    if str(one.expansion) != "taylor":
        yield re.sub(r"\(.*", "", str(one.expansion))


@dataclass
class Scout:
    """Finds out which ways there are on a flow, the bias of each, and about what each costs."""

    flow: ResidualFlow
    x: Tensor
    target_error: float
    allowance: Allowance
    listen: Listener
    left_out: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._say("a first look")
        with torch.no_grad():
            self.branches = self.flow.branches(self.x)
        self.dims = [math.prod(h.shape[1:]) for _, h in self.branches]
        self.constants = [float(g.lipschitz_certified()) for g, _ in self.branches]
        self.lipschitz = max(self.constants)
        self.eigenvalues: np.ndarray | None = None
        self.radius = self.lipschitz
        self.product_seconds = [_product_seconds(g, h) for g, h in self.branches]
        if max(self.dims) <= MAX_DENSE:
            self._look()

    def _say(self, doing: str) -> None:
        self.listen(doing, self.allowance.left)

    def _look(self) -> None:
        """Eigenvalues, and what x's dtype resolves, at two points and as many as there is time."""
        most, start = max(2, min(16, DENSE // max(self.dims))), now()
        eigenvalues = self._spectra(self.x[:2])
        room = LOOK * self.allowance.seconds / max(now() - start, 1e-9)  # in looks like this one
        rest = self.x[2 : min(most, int(2 * room))]
        if len(rest):
            eigenvalues = np.concatenate([eigenvalues, self._spectra(rest)])
        self.eigenvalues = eigenvalues
        self.radius = float(np.abs(eigenvalues).max())

    def _spectra(self, x: Tensor) -> np.ndarray:
        """Those of all blocks, (P, d of all blocks)."""
        with one_thread():
            jacobians, exact = dense_truth(self.flow, x)
            found = [np.linalg.eigvals(matrices).astype(np.complex128) for matrices in jacobians]
        with torch.no_grad():
            value = self.flow.with_estimator(Determinant()).forward_and_log_det(x)[1]
        rounding = float(np.abs(value.double().cpu().numpy() - exact).max())
        if rounding > BIAS_SHARE * self.target_error:
            raise ValueError(
                f"advise needs a target_error of which a tenth is above the rounding of x's "
                f"{str(x.dtype).removeprefix('torch.')}, here {rounding:.1g} nat; got "
                f"{self.target_error:g}. Raise it, or give flow and x in float64."
            )
        return np.concatenate(found, axis=1)

    def candidates(self, unbiased: bool) -> list[Candidate]:
        """The preferred ones first."""
        ways: list[tuple[Way, float]] = [(Same(Determinant()), 0.0)]
        n_traced = self._n_traced()
        series: list[tuple[Fixed | Roulette, float]] = [(self._roulette(n_traced), 0.0)]
        if not unbiased:
            series.insert(0, self._fixed(n_traced))
        for truncation, bias in series:
            ways += ((Same(one), bias) for one in self._probed(truncation, n_traced))
        for probe in (Rademacher(), Hadamard()):
            if (way := self._tuned(probe, n_traced)) is not None:
                ways.append((way, 0.0))
        return [self._candidate(way, bias) for way, bias in ways]

    def _candidate(self, way: Way, bias: float) -> Candidate:
        if isinstance(way, Tuned):
            self._say(way.name)
        estimator = way.build(self.flow, self.x)
        return Candidate(way, estimator, bias, self._guess(estimator))

    def _guess(self, estimator: Estimator) -> float:
        """Seconds of its products, per example, and of the determinant's LU."""
        if isinstance(estimator, Determinant):
            pairs = zip(self.dims, self.product_seconds, strict=True)
            return sum(dim * t + dim**3 * 1e-10 for dim, t in pairs)
        each = []
        for g, _ in self.branches:
            one = estimator.estimators[g] if isinstance(estimator, PerBranch) else estimator
            assert isinstance(one, LogDetEstimator)  # these three are what is tried
            each.append(one.n_probes * _n_terms(one.truncation))
        return sum(n * t for n, t in zip(each, self.product_seconds, strict=True))

    def _n_traced(self) -> int:
        """The traces that all branches admit, at most two."""
        return max(
            (
                n
                for n in (2, 1)
                if self._admits(LogDetEstimator(Rademacher(), Fixed(n), n_traced=n))
            ),
            default=0,
        )

    def _admits(self, estimator: LogDetEstimator) -> bool:
        try:
            for g, h in self.branches:
                with torch.no_grad():
                    estimator(g, h[:1], torch.Generator(h.device).manual_seed(0))
        except ValueError:  # how an estimator refuses a branch
            return False
        return True

    def _fixed(self, n_traced: int) -> tuple[Fixed, float]:
        """The fewest terms N whose bias, and that of N + 1, is small enough; and that bias.

        Two in a row, because a bias that is small where it changes its sign is no merit.
        """
        share, n = BIAS_SHARE * self.target_error, 64
        while True:
            biases = self._biases(n)
            small = np.maximum(biases[:-1], biases[1:]) <= share
            small[:n_traced] = False
            if small.any() or n >= MAX_TERMS:
                n_terms = int(small.argmax()) + 1 if small.any() else n
                return Fixed(n_terms), float(biases[n_terms - 1])
            n *= 2

    def _biases(self, n: int) -> np.ndarray:
        """The largest |bias| of 1..n terms at the points looked at, or its bound; (n,), nats."""
        if self.eigenvalues is None:
            all_n = np.arange(1, n + 1)
            pairs = zip(self.constants, self.dims, strict=True)
            bounds = [theory.truncation_bias_bound(c, dim, all_n) for c, dim in pairs]
            return np.sum(bounds, axis=0)
        flat = -self.eigenvalues
        power, terms = np.ones_like(flat), np.empty((n, len(flat)))
        for k in range(1, n + 1):
            power *= flat
            terms[k - 1] = power.real.sum(-1) / k
        rest = tail(flat, np.asarray(n)).real.sum(-1)  # (P,), of n terms
        tails = rest + np.cumsum(terms[:0:-1], axis=0)  # of n - 1, ..., 1
        return np.asarray(np.abs(np.vstack([tails[::-1], rest])).max(1))

    def _roulette(self, n_traced: int) -> Roulette:
        """Geometric, decaying as the spectral radius, and finite at the certified constant K.

        That needs K^2 < decay; half-way from K^2 to K is far enough from the border for the
        variance to be a small one there too.
        """
        k = self.lipschitz
        decay = max(self.radius, (k + k**2) / 2)
        stop = math.floor(1000 * (1 - decay)) / 1000 or (1 - decay)
        return Roulette(Geometric(stop), n_traced + 3, "stratified", spectral_radius=k)

    def _probed(self, truncation: Fixed | Roulette, n_traced: int) -> Iterator[LogDetEstimator]:
        """Without traces, with them, with control, with as many probes as the error asks for."""
        plain = LogDetEstimator(Rademacher(), truncation)
        traced = replace(plain, n_traced=n_traced)
        yield plain
        if n_traced:
            yield traced
        if isinstance(truncation, Roulette) and all(_order(g) == 2.0 for g, _ in self.branches):
            yield replace(traced, expansion=Arnoldi())  # which needs ||J||_2 < 1
        controlled = replace(traced, expansion=Controlled())
        best = [traced]
        if max(self.dims) <= MAX_DENSE and self._admits(controlled):
            yield controlled
            best.append(controlled)
        for one in best:
            if (more := self._more_probes(one)) > 1:
                yield replace(one, probe=Hadamard(), n_probes=more)

    def _more_probes(self, one: LogDetEstimator) -> int:
        """m with V (D - m)/(m (D - 1)) <= target^2, V of a few calls; at most what can pay.

        That is as many as memory likes, and as cost a few times the d products of a determinant.
        """
        self._say("how many probes")
        dim, n_terms = max(self.dims), _n_terms(one.truncation)
        each = N_LOOKS * n_terms * sum(self.product_seconds)
        seconds = LOOK * self.allowance.seconds / 4  # of fixed terms and not, controlled and not
        n = max(MIN_LOOKED_AT, min(MAX_LOOKED_AT, int(seconds / each)))
        x = self.x[torch.arange(n, device=self.x.device) % len(self.x)]
        noise = torch.Generator(self.x.device).manual_seed(1)
        running = self.flow.with_estimator(one)
        with torch.no_grad():
            draws = [running.forward_and_log_det(x, noise)[1].double() for _ in range(N_LOOKS)]
        variance = float(torch.stack(draws).var(0).mean())
        block = 2 ** math.ceil(math.log2(dim)) if dim > 1 else 1
        wanted = SLACK * variance * block / (self.target_error**2 * (block - 1) + variance)
        room = CHUNK_NUMBERS // (4 * len(self.x) * dim)
        pays = int(MAX_DETERMINANTS * dim / n_terms)
        return max(1, min(math.ceil(wanted), block, room, pays))

    def _tuned(self, probe: Probe, n_traced: int) -> Tuned | None:
        """From as many points as there is time for, if that is any."""
        n_products = N_PILOT_TERMS * PROBES_A_DRAW * N_PILOT_DRAWS
        each = n_products * sum(self.product_seconds) / LOOK
        n_points = min(N_PILOT, len(self.x), int(self.allowance.seconds / each))
        base = LogDetEstimator(probe, Fixed(n_traced + 1), n_traced=n_traced)
        if n_points < 1:
            told = Tuned(base, 1).name
            self.left_out.append(more_time(told, self.allowance.seconds, each))
            return None
        return Tuned(base, n_points)


def more_time(name: str, seconds: float, needed: float) -> str:
    """What is said of a way for which the seconds given are too few."""
    whole = max(math.ceil(needed), math.floor(seconds) + 1)
    return f"{name}: give seconds={whole} or more"


def _n_terms(truncation: Truncation) -> float:
    """E[N]."""
    if isinstance(truncation, Fixed):
        return truncation.n_terms
    assert isinstance(truncation, Roulette)  # these two are what is tried
    return mean_terms(truncation)


def _order(g: Map) -> float:
    """p of the norm in which a branch is a contraction."""
    return float(g.order)  # type: ignore[attr-defined]


@torch.no_grad()
def _product_seconds(g: Map, h: Tensor) -> float:
    """Seconds of a pilot's terms over their number, of one vector among a hundred."""
    n = max(1, min(128, 2**14 // math.prod(h.shape[1:])))
    jacobian = linearise(g, h[:1]).jacobian
    v = torch.ones(n, *h[:1].shape, dtype=h.dtype, device=h.device)

    def terms(n_terms: int) -> None:
        Taylor().increments(jacobian, v, n_terms)

    terms(1)
    return elapsed(lambda: terms(N_PILOT_TERMS), h.device) / (n * N_PILOT_TERMS)
