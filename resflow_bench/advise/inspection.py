"""Facts about a flow from which candidates are chosen: constants, spectra, cost of a product."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from resflow_bench import theory
from resflow_bench.advise.budget import Budget, now
from resflow_bench.advise.settings import BIAS_SHARE, SEARCH
from resflow_bench.flows import ResidualFlow
from resflow_bench.flows.bijection import SeriesBlock
from resflow_bench.flows.certificate import branch_bounds
from resflow_bench.jacobian import Map
from resflow_bench.layers import AnyBranch
from resflow_bench.logdet import Determinant, Taylor, linearise
from resflow_bench.models import dense_truth
from resflow_bench.speed.timing import elapsed
from resflow_bench.theory import Coefficients
from resflow_bench.theory.bias import tail
from resflow_bench.threads import one_thread


@dataclass(frozen=True, eq=False)
class Inspection:
    """Facts about a flow at a batch of points.

    flow, x: the flow and the batch, (B, *event).
    branches: (g, the point at which its J is taken) of each block, from data to latent.
    coefficients: of the series of each block.
    dims: dimension of each block.
    constants: the sharpest certified Lipschitz constant of each branch, or its largest ||J||_2 at
        a few points where one has no certificate.
    product_seconds: seconds of a vector-Jacobian product of each branch, per example.
    eigenvalues: of J of all blocks at P points, (P, sum of dims); None if a block is too large.
    """

    flow: ResidualFlow
    x: Tensor
    branches: list[tuple[AnyBranch, Tensor]]
    coefficients: list[Coefficients]
    dims: list[int]
    constants: list[float]
    product_seconds: list[float]
    eigenvalues: np.ndarray | None

    @property
    def spectral_radius(self) -> float:
        """Largest |eigenvalue|, or the largest certified constant if there are no eigenvalues."""
        if self.eigenvalues is None:
            return max(self.constants)
        return float(np.abs(self.eigenvalues).max())

    def truncation_biases(self, n: int) -> np.ndarray:
        """Largest |bias| of 1..n terms over the points, or a bound on it; (n,), nats."""
        if self.eigenvalues is None:
            all_n = np.arange(1, n + 1)
            blocks = zip(self.constants, self.dims, self.coefficients, strict=True)
            bounds = [theory.truncation_bias_bound(k, dim, all_n, c) for k, dim, c in blocks]
            return np.sum(bounds, axis=0)
        flat = -self.eigenvalues
        ratios = [np.repeat([c.ratio(k) for c in self.coefficients], self.dims) for k in (1, 2)]
        power, terms = np.ones_like(flat), np.empty((n, len(flat)))
        for k in range(1, n + 1):
            power *= flat
            terms[k - 1] = (ratios[(k - 1) % 2] * power.real).sum(-1) / k
        of_n, ends = np.asarray(n), np.cumsum(self.dims)[:-1]
        parts = zip(np.split(flat, ends, axis=1), self.coefficients, strict=True)
        rest = sum(c.combine(lambda t: tail(t, of_n).real.sum(-1), part) for part, c in parts)
        tails = rest + np.cumsum(terms[:0:-1], axis=0)  # of n - 1, ..., 1
        return np.asarray(np.abs(np.vstack([tails[::-1], rest])).max(1))


def inspect(flow: ResidualFlow, x: Tensor, target_error: float, budget: Budget) -> Inspection:
    """Inspect a flow at a batch x.

    Raises:
        ValueError: the rounding error of x's dtype is above `BIAS_SHARE` of the target.
    """
    budget.report("inspecting the flow")
    with torch.no_grad():
        blocks = [(f, h) for f, h in flow.inputs(x) if isinstance(f, SeriesBlock)]
        branches = [(f.g, f.at(h)) for f, h in blocks]
    coefficients = [f.coefficients for f, _ in blocks]
    dims = [math.prod(h.shape[1:]) for _, h in branches]
    constants = [branch_bounds(g).lipschitz for g, _ in branches]
    if math.inf in constants:
        constants = _realised(flow, x, max(dims))
    seconds = [_product_seconds(g, h) for g, h in branches]
    eigenvalues = None
    if max(dims) <= SEARCH.max_dense:
        eigenvalues = _eigenvalues(flow, x, max(dims), target_error, budget)
    return Inspection(flow, x, branches, coefficients, dims, constants, seconds, eigenvalues)


def _realised(flow: ResidualFlow, x: Tensor, dim: int) -> list[float]:
    """The largest ||J||_2 of each block at a few points, of a flow without a promise.

    Raises:
        ValueError: a block is too large for its J, or the series of one diverges.
    """
    if dim > SEARCH.max_dense:
        raise ValueError(
            f"advise needs a certified constant for a block of more than {SEARCH.max_dense} "
            f"dimensions; got d={dim} and a g without one. Build g of layers of this package."
        )
    with one_thread():
        jacobians, _ = dense_truth(flow, x[: SEARCH.n_pilot_points])
    norms = [float(np.linalg.norm(m, 2, axis=(-2, -1)).max()) for m in jacobians]
    if max(norms) >= 1.0:
        raise ValueError(
            f"advise needs blocks of norm below 1; got ||J||_2 = {max(norms):.4g} at these points. "
            "Scale g down."
        )
    return norms


def _eigenvalues(
    flow: ResidualFlow, x: Tensor, dim: int, target_error: float, budget: Budget
) -> np.ndarray:
    """Eigenvalues at two points, and at as many more as there is time for."""
    most, start = max(2, min(16, SEARCH.dense_numbers // dim)), now()
    first = _eigenvalues_at(flow, x[:2], target_error)
    repeats = SEARCH.share * budget.seconds / max(now() - start, 1e-9)  # of the work just done
    rest = x[2 : min(most, int(2 * repeats))]
    if not len(rest):
        return first
    return np.concatenate([first, _eigenvalues_at(flow, rest, target_error)])


def _eigenvalues_at(flow: ResidualFlow, x: Tensor, target_error: float) -> np.ndarray:
    """Eigenvalues of J of all blocks, (P, sum of dims); checks the rounding error on the way."""
    with one_thread():
        jacobians, exact = dense_truth(flow, x)
        eigenvalues = [np.linalg.eigvals(matrices).astype(np.complex128) for matrices in jacobians]
    with torch.no_grad():
        value = flow.with_estimator(Determinant()).forward_and_log_det(x)[1]
    rounding = float(np.abs(value.double().cpu().numpy() - exact).max())
    if rounding > BIAS_SHARE * target_error:
        raise ValueError(
            f"advise needs a target_error of at least {1 / BIAS_SHARE:g} times the rounding error "
            f"of x's {str(x.dtype).removeprefix('torch.')}, here {rounding:.1g} nat; got "
            f"{target_error:g}. Raise it, or give flow and x in float64."
        )
    return np.concatenate(eigenvalues, axis=1)


@torch.no_grad()
def _product_seconds(g: Map, h: Tensor) -> float:
    """Seconds of one product, as part of a series of terms with some hundred vectors at a time."""
    n = max(1, min(128, 2**14 // math.prod(h.shape[1:])))
    jacobian = linearise(g, h[:1]).jacobian
    v = torch.ones(n, *h[:1].shape, dtype=h.dtype, device=h.device)

    def terms(n_terms: int) -> None:
        Taylor().increments(jacobian, v, n_terms)

    terms(1)
    return elapsed(lambda: terms(SEARCH.n_pilot_terms), h.device) / (n * SEARCH.n_pilot_terms)
