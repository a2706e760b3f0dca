"""The estimators that are considered on a flow: bias, guessed cost, and Python of each."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from resflow_bench import theory
from resflow_bench.advise.budget import Budget
from resflow_bench.advise.inspection import Inspection
from resflow_bench.advise.settings import BIAS_SHARE, SEARCH
from resflow_bench.advise.source import constructor
from resflow_bench.jacobian import CHUNK_NUMBERS, linearise
from resflow_bench.logdet import (
    Arnoldi,
    CirculantControlled,
    Controlled,
    Determinant,
    Estimator,
    Fixed,
    Geometric,
    Hadamard,
    Hierarchical,
    LogDetEstimator,
    Rademacher,
    Roulette,
    tuned,
)
from resflow_bench.logdet.exact import determinant_work
from resflow_bench.logdet.optimal import PROBES_A_DRAW
from resflow_bench.logdet.tuned import N_PROBES, mean_terms


@dataclass(frozen=True)
class Candidate:
    """An estimator that is considered on a flow.

    name: in the table.
    lines: Python that makes `estimator` of `flow` and `x`.
    bias: largest |bias|, or a bound on it, nats.
    seconds: guessed seconds of a draw, per example.
    """

    name: str
    lines: tuple[str, ...]
    estimator: Estimator
    bias: float
    seconds: float

    @property
    def is_exact(self) -> bool:
        """True if the estimator has neither bias nor variance."""
        return isinstance(self.estimator, Determinant)


@dataclass(frozen=True, eq=False)
class Search:
    """A search for estimators that reach a target error on an inspected flow."""

    inspection: Inspection
    target_error: float
    budget: Budget

    def candidates(self, unbiased: bool) -> tuple[list[Candidate], list[str]]:
        """The candidates, simplest first; and a message for each that there is no time to make.

        With `unbiased`, without fixed numbers of terms.
        """
        n_traced = self._n_traced()
        series: list[tuple[Fixed | Roulette, float]] = [(self._roulette(n_traced), 0.0)]
        if not unbiased:
            series.insert(0, self._fixed(n_traced))
        made = [self._determinant()]
        for truncation, bias in series:
            made += (self._same(one, bias) for one in self._probed(truncation, n_traced))
        tuned_ones = [self._tuned(base) for base in self._bases(n_traced)]
        made += (one for one in tuned_ones if isinstance(one, Candidate))
        return made, [one for one in tuned_ones if isinstance(one, str)]

    def _determinant(self) -> Candidate:
        seconds = 0.0
        pairs = zip(self.inspection.branches, self.inspection.product_seconds, strict=True)
        for (g, x), product in pairs:
            n_products, n_operations = determinant_work(linearise(g, x[:1]).jacobian, x[:1])
            seconds += n_products * product + n_operations * 1.5e-10
        one = Determinant()
        return Candidate("determinant", (f"estimator = {constructor(one)}",), one, 0.0, seconds)

    def _same(self, one: LogDetEstimator, bias: float) -> Candidate:
        """One estimator for all branches."""
        name = ", ".join([str(one.truncation), *_parts(one)])
        seconds = self._seconds([one] * len(self.inspection.branches))
        return Candidate(name, (f"estimator = {constructor(one)}",), one, bias, seconds)

    def _bases(self, n_traced: int) -> Iterator[LogDetEstimator]:
        """The two estimators that are tuned; for convolutions the second has a control variate."""
        one = LogDetEstimator(Rademacher(), Fixed(n_traced + 1), n_traced=n_traced)
        yield one
        for_images = replace(one, probe=Hierarchical(), expansion=CirculantControlled())
        if self.inspection.x.ndim == 4 and self._is_supported(for_images):
            yield for_images
        else:
            yield replace(one, probe=Hadamard())

    def _tuned(self, base: LogDetEstimator) -> Candidate | str:
        """`logdet.tuned` from as many points as there is time for, or the message if it is none."""
        name = ", ".join(["tuned", *_parts(base)])
        if not all(g.lipschitz < 1.0 for g, _ in self.inspection.branches):
            return f"{name}: a branch promises no constant"
        closed = isinstance(base.probe, theory.ProbeVariance)
        n_probes = PROBES_A_DRAW if closed else max(N_PROBES)
        n_products = SEARCH.n_pilot_terms * n_probes * SEARCH.n_pilot_draws
        flow, x = self.inspection.flow, self.inspection.x
        needed = n_products * sum(self.inspection.product_seconds) / SEARCH.share  # for one point
        n_points = min(SEARCH.n_pilot_points, len(x), int(self.budget.seconds / needed))
        if n_points < 1:
            return self.budget.refusal(name, needed)
        self.budget.report(name)
        lines = (
            f"base = {constructor(base)}",
            f"branches = flow.branches(x[:{n_points}])",
            "noise = torch.Generator(x.device).manual_seed(0)",
            f"estimator = tuned(branches, base, generator=noise, n_draws={SEARCH.n_pilot_draws})",
        )
        noise = torch.Generator(x.device).manual_seed(0)
        branches = flow.branches(x[:n_points])
        estimator = tuned(branches, base, generator=noise, n_draws=SEARCH.n_pilot_draws)
        seconds = self._seconds([estimator.estimators[g] for g, _ in branches])
        return Candidate(name, lines, estimator, 0.0, seconds)

    def _seconds(self, per_branch: list[LogDetEstimator]) -> float:
        """Guessed seconds of the products of a draw, per example."""
        pairs = zip(per_branch, self.inspection.product_seconds, strict=True)
        return sum(one.n_probes * _mean_terms(one) * t for one, t in pairs)

    def _n_traced(self) -> int:
        """Number of cheap exact traces that all branches support, at most two.

        The second one of a convolution takes some thirty products.
        """
        tried = (2, 1) if self.inspection.x.ndim == 2 else (1,)
        traced = {n: LogDetEstimator(Rademacher(), Fixed(n), n_traced=n) for n in tried}
        return next((n for n, one in traced.items() if self._is_supported(one)), 0)

    def _is_supported(self, estimator: LogDetEstimator) -> bool:
        try:
            for g, h in self.inspection.branches:
                with torch.no_grad():
                    estimator(g, h[:1], torch.Generator(h.device).manual_seed(0))
        except ValueError:  # raised by an estimator that does not support a branch
            return False
        return True

    def _fixed(self, n_traced: int) -> tuple[Fixed, float]:
        """The fewest terms N such that the biases of N and N + 1 are small enough; and the bias.

        Two in a row, because a bias may be small by chance where it changes its sign.
        """
        limit, n = BIAS_SHARE * self.target_error, 64
        while True:
            biases = self.inspection.truncation_biases(n)
            small = np.maximum(biases[:-1], biases[1:]) <= limit
            small[:n_traced] = False
            if small.any() or n >= SEARCH.max_terms:
                n_terms = int(small.argmax()) + 1 if small.any() else n
                return Fixed(n_terms), float(biases[n_terms - 1])
            n *= 2

    def _roulette(self, n_traced: int) -> Roulette:
        """A geometric law whose decay is the spectral radius, or (K + K^2)/2 if that is larger.

        The variance is finite at the certified constant K if K^2 < decay. Half-way from K^2 to K
        is far enough from this border for the variance to be small at K, too.
        """
        k = max(self.inspection.constants)
        decay = max(self.inspection.spectral_radius, (k + k**2) / 2)
        stop = math.floor(1000 * (1 - decay)) / 1000 or (1 - decay)
        return Roulette(Geometric(stop), n_traced + 3, "stratified", spectral_radius=k)

    def _probed(self, truncation: Fixed | Roulette, n_traced: int) -> Iterator[LogDetEstimator]:
        """Without and with traces, by Arnoldi's expansion, with control, with more probes."""
        plain = LogDetEstimator(Rademacher(), truncation)
        traced = replace(plain, n_traced=n_traced)
        yield plain
        if n_traced:
            yield traced
        is_roulette = isinstance(truncation, Roulette)
        if is_roulette and all(g.order == 2.0 for g, _ in self.inspection.branches):
            yield replace(traced, expansion=Arnoldi())  # which needs ||J||_2 < 1
        is_image = self.inspection.x.ndim == 4
        controlled = replace(traced, expansion=CirculantControlled() if is_image else Controlled())
        best = [traced]
        if self.inspection.eigenvalues is not None and self._is_supported(controlled):
            yield controlled
            best.append(controlled)
        for one in best:
            if (n_probes := self._n_probes(one)) > 1:
                yield replace(one, probe=Hadamard(), n_probes=n_probes)

    def _n_probes(self, one: LogDetEstimator) -> int:
        """The least m with V (D - m)/(m (D - 1)) <= target^2, V the variance of a few calls.

        D is the order of the Hadamard matrix. Capped by memory, and by `max_determinants`.
        """
        self.budget.report("choosing the number of probes")
        flow, x = self.inspection.flow, self.inspection.x
        dim, n_terms = max(self.inspection.dims), _mean_terms(one)
        needed = SEARCH.n_calls * n_terms * sum(self.inspection.product_seconds)
        # A quarter: it is done for fixed terms and the roulette, with and without control.
        affordable = int(SEARCH.share * self.budget.seconds / 4 / needed)
        n = max(SEARCH.min_examples, min(SEARCH.max_examples, affordable))
        examples = x[torch.arange(n, device=x.device) % len(x)]
        noise = torch.Generator(x.device).manual_seed(1)
        running = flow.with_estimator(one)
        with torch.no_grad():
            calls = [running.forward_and_log_det(examples, noise) for _ in range(SEARCH.n_calls)]
        variance = float(torch.stack([log_det.double() for _, log_det in calls]).var(0).mean())
        if variance == 0:
            return 1
        order = 2 ** math.ceil(math.log2(dim)) if dim > 1 else 1
        least = SEARCH.slack * variance * order / (self.target_error**2 * (order - 1) + variance)
        memory = CHUNK_NUMBERS // (4 * len(x) * dim)
        cost = int(SEARCH.max_determinants * dim / n_terms)
        return max(1, min(math.ceil(least), order, memory, cost))


def _parts(one: LogDetEstimator) -> Iterator[str]:
    """The parts of an estimator's name that come after its truncation."""
    yield str(one.probe) if one.n_probes == 1 else f"{one.n_probes} {one.probe}"
    if one.n_traced:
        yield f"{one.n_traced} traced"
    if str(one.expansion) != "taylor":
        yield re.sub(r"\(.*", "", str(one.expansion))


def _mean_terms(one: LogDetEstimator) -> float:
    """E[N]."""
    if isinstance(one.truncation, Fixed):
        return one.truncation.n_terms
    assert isinstance(one.truncation, Roulette)  # a candidate has one of the two
    return mean_terms(one.truncation)
