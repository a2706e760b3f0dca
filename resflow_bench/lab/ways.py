"""The ways to a log-determinant that a flow admits, what bias each has, and how each is written."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from resflow_bench import theory
from resflow_bench.flows import ResidualFlow
from resflow_bench.lab.build import dense_truth, sizes
from resflow_bench.lab.measure_efficiency import BIAS_SHARE
from resflow_bench.lab.source import constructor
from resflow_bench.lab.timing import elapsed
from resflow_bench.lab.workers import one_thread
from resflow_bench.logdet import (
    Arnoldi,
    Controlled,
    Determinant,
    Estimator,
    Fixed,
    Geometric,
    Hadamard,
    LogDetEstimator,
    Probe,
    Rademacher,
    Roulette,
    Taylor,
    Truncation,
    linearise,
    tuned,
)
from resflow_bench.logdet.products import CHUNK_NUMBERS, Map
from resflow_bench.logdet.tuned import N_PROBES
from resflow_bench.theory.bias import tail

Listener = Callable[[str, float], None]
"""Hears what is done now, and how many seconds are left of it all."""

MAX_DENSE = 256
"""Of larger blocks no eigenvalues are computed: the certified constant stands for them."""

DENSE = 1024
"""Numbers, in 2 to 16 points whose Jacobians are looked at."""

N_PILOT = 16
"""The most points that an estimator is tuned from."""

N_PILOT_DRAWS = 8
"""Of each choice that a tuning compares: it only has to rank them."""

N_PILOT_TERMS = 64
"""Terms that a pilot looks at, as `pilot_roulette` has them."""

N_LOOKS = 4
"""Calls from which a variance is guessed, to say how many probes are enough."""

MIN_LOOKED_AT, MAX_LOOKED_AT = 8, 256
"""Examples of these calls, by how long they take."""

MAX_DETERMINANTS = 8.0
"""Probes times terms that are tried, over a determinant's d products, whose LU takes time too."""

SLACK = 1.1
"""More probes than the first look asks for, so that a noisy one does not cost a second draw."""

MAX_TERMS = 1 << 14


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


def _told(one: LogDetEstimator) -> Iterator[str]:
    yield str(one.probe) if one.n_probes == 1 else f"{one.n_probes} {one.probe}"
    if one.n_traced:
        yield f"{one.n_traced} traced"
    if str(one.expansion) != "taylor":
        yield re.sub(r"\(.*", "", str(one.expansion))


@dataclass
class Scout:
    """Finds out which ways there are on a flow, and the bias of each."""

    flow: ResidualFlow
    x: Tensor
    target_error: float
    seconds: float
    listen: Listener
    left_out: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.listen("a first look", self.seconds)
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

    def _look(self) -> None:
        """Eigenvalues, and what x's dtype resolves."""
        x = self.x[: max(2, min(16, DENSE // max(self.dims)))]
        with one_thread():
            jacobians, exact = dense_truth(self.flow, x)
        found = [np.linalg.eigvals(matrices).astype(np.complex128) for matrices in jacobians]
        self.eigenvalues = np.concatenate(found, axis=1)  # (P, d of all blocks)
        self.radius = sizes(jacobians)[1]
        with torch.no_grad():
            value = self.flow.with_estimator(Determinant()).forward_and_log_det(x)[1]
        rounding = float(np.abs(value.double().cpu().numpy() - exact).max())
        if rounding > BIAS_SHARE * self.target_error:
            raise ValueError(
                f"advise needs a target_error of which a tenth is above the rounding of x's "
                f"{str(x.dtype).removeprefix('torch.')}, here {rounding:.1g} nat; got "
                f"{self.target_error:g}. Raise it, or give flow and x in float64."
            )

    def ways(self, unbiased: bool) -> list[tuple[Way, float]]:
        """Each way with its |bias|, the preferred ones first."""
        ways: list[tuple[Way, float]] = []
        if self._affordable(
            "determinant",
            sum(
                dim * t + dim**3 * 1e-10
                for dim, t in zip(self.dims, self.product_seconds, strict=True)
            ),
        ):
            ways.append((Same(Determinant()), 0.0))
        n_traced = self._n_traced()
        series: list[tuple[Fixed | Roulette, float]] = [(self._roulette(n_traced), 0.0)]
        if not unbiased:
            series.insert(0, self._fixed(n_traced))
        for truncation, bias in series:
            ways += ((Same(one), bias) for one in self._probed(truncation, n_traced))
        for probe in (Rademacher(), Hadamard()):
            if (way := self._tuned(probe, n_traced)) is not None:
                ways.append((way, 0.0))
        return ways

    def _affordable(self, name: str, seconds: float) -> bool:
        if seconds <= self.seconds:
            return True
        self.left_out.append(f"{name}: give seconds={math.ceil(seconds)} or more")
        return False

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
        """About the fewest terms N whose bias, and that of N + 1, is small enough; and that bias.

        Two in a row, because a bias that is small where it changes its sign is no merit.
        """
        share, n = BIAS_SHARE * self.target_error, n_traced + 1
        while n < MAX_TERMS and max(self._bias(n), self._bias(n + 1)) > share:
            n += 1 + n // 16
        return Fixed(n), self._bias(n)

    def _bias(self, n_terms: int) -> float:
        """The largest |bias| at the points looked at, or its bound; nats."""
        if self.eigenvalues is None:
            pairs = zip(self.constants, self.dims, strict=True)
            return sum(float(theory.truncation_bias_bound(k, dim, n_terms)) for k, dim in pairs)
        biases = tail(-self.eigenvalues, np.asarray(n_terms)).real.sum(-1)
        return float(np.abs(biases).max())

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
        self.listen("how many probes", self.seconds)
        dim, n_terms = max(self.dims), _n_terms(one.truncation)
        each = N_LOOKS * n_terms * sum(self.product_seconds)
        n = max(MIN_LOOKED_AT, min(MAX_LOOKED_AT, int(self.seconds / 8 / each)))
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
        """From as many points as half of the time has room for, if that is any."""
        n_products = 16 * N_PILOT_TERMS * sum(N_PROBES)  # 16 draws a pilot
        each = 1.5 * n_products * sum(self.product_seconds)
        n_points = min(N_PILOT, len(self.x), int(self.seconds / 2 / each))
        base = LogDetEstimator(probe, Fixed(n_traced + 1), n_traced=n_traced)
        way = Tuned(base, max(1, n_points))
        if n_points < 1:
            self._affordable(way.name, max(2 * each, 1.01 * self.seconds))
            return None
        self.listen(f"tuning, {probe} probes", self.seconds + n_points * each)
        return way


def _n_terms(truncation: Truncation) -> float:
    """E[N]."""
    if isinstance(truncation, Fixed):
        return truncation.n_terms
    assert isinstance(truncation, Roulette)  # these two are what is tried
    return truncation.n_exact + truncation.law.decay / (1.0 - truncation.law.decay)


def _order(g: Map) -> float:
    """p of the norm in which a branch is a contraction."""
    return float(g.order)  # type: ignore[attr-defined]


@torch.no_grad()
def _product_seconds(g: Map, h: Tensor) -> float:
    """Seconds of a pilot's terms over their number, of one vector among a hundred."""
    n = max(1, min(128, 2**14 // math.prod(h.shape[1:])))
    vjp = linearise(g, h[:1]).vjp
    v = torch.ones(n, *h[:1].shape, dtype=h.dtype, device=h.device)

    def terms(n_terms: int) -> None:
        Taylor().increments(vjp, v, n_terms)

    terms(1)
    return elapsed(lambda: terms(N_PILOT_TERMS), h.device) / (n * N_PILOT_TERMS)
