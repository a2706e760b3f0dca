"""Lower bounds m on the stretch of f(x) = x + g(x): everywhere, and near a point.

With H(x) the symmetric part of J_g(x), for all x and y on a segment on which lambda_min(H) > m - 1,

    (f(x) - f(y))^T (x - y)  >=  m ||x - y||^2,   hence   ||f(x) - f(y)|| >= m ||x - y||.

m = 1 - Lip(g) always holds; it is attained by g = -K x alone. Two better ones are computed here.
"""

from __future__ import annotations

import math
from typing import NamedTuple, TypeGuard

import torch
from torch import Tensor

from resflow_bench.jacobian import Examples, dense_jacobian
from resflow_bench.layers import (
    SLL,
    AnyBranch,
    Branch,
    Conv2d,
    DenseLayer,
    GivenBranch,
    Linear,
    LinearBranch,
)
from resflow_bench.layers.activations import Activation, Curved, Sloped

ROUNDING = 8.0
"""Units in float32's last place, relative to sqrt(d) Lip(g) >= ||J||_F, by which each stage whose
product is taken in float32 may change J. Products of 128 terms each err by one or two."""

LARGEST = 256
"""The largest d for which J is formed: a product for each row, and (B, d, d) numbers."""

EXAMPLES = 32
"""Examples whose J is formed at a time: at d = 64 the numbers stay in the cache."""

SHIFT = 0.25
"""The c of lambda_min(H) >= c - ||c I - H||_2, for eigenvalues of which the positive ones are no
larger than the negative ones by more than 2 c."""

Certified = Branch | LinearBranch | GivenBranch


class BranchBounds(NamedTuple):
    """Constants of a branch that hold everywhere.

    lipschitz: K, certified: the product of norms, or the bound by averaged slopes if that is
    smaller. apart: m, at least 1 - K. curvature: Lip(J_g) in the 2-norm, inf where it is not known.
    All hold for the norm of the branch's order; if that is not 2, apart is 1 - K, K the product.
    """

    lipschitz: float
    apart: float
    curvature: float


def branch_bounds(branch: AnyBranch) -> BranchBounds:
    """The bounds at the present weights, by norms in float64."""
    lipschitz = branch.lipschitz_certified()
    apart = 1.0 - lipschitz
    if isinstance(branch, LinearBranch):
        return BranchBounds(lipschitz, max(apart, 1.0 + _lowest(branch.matrix)), 0.0)
    if not isinstance(branch, Branch) or branch.order != 2.0:
        return BranchBounds(lipschitz, apart, math.inf)
    averaged, lowest = _by_averages(branch)
    curvature = _curvature(branch)
    return BranchBounds(min(lipschitz, averaged), max(apart, 1.0 - lowest), curvature)


@torch.no_grad()
def apart_near(
    branch: AnyBranch, x: Tensor, radius: Tensor, known: BranchBounds, thorough: bool = True
) -> Tensor:
    """m with ||f(y) - f(x)|| >= m ||y - x|| for all y within `radius` of x, (B,) float64.

    m = sigma_min(A) - Lip(J) radius, A = I + J(x), as f(y) - f(x) = (A + E)(y - x) with E the mean
    of J - J(x) between the two. With any X that is near the inverse of A, thoroughly,

        sigma_min(A) >= (1 - ||I - A X||_F) / ||X||_2,   ||X||_2 <= (sum_i sigma_i^16)^(1/16);

    in a third of the time, but less sharp, sigma_min(A) >= 1 + lambda_min(H). Products are taken in
    float32, and their rounding is subtracted.

    Args:
        branch: g, in float64.
        x: (B, *event) float64.
        radius: (B,) float64.
        known: the `branch_bounds` of g.
        thorough: whether to compute X, an inverse of each example's A.

    Properties: d products and three of d x d matrices an example, thoroughly four and an inverse.
        -inf, no bound, where d is above `LARGEST` or the curvature is not known.
    Source: Rump (2010), "Verification methods", section 10, for the bound by any X.
    """
    dim = math.prod(x.shape[1:])
    if not near_is_known(branch, dim, known) or not len(x):
        return torch.full_like(radius, -math.inf)
    jacobian = branch.linearise(x)[1].to(torch.float32)
    parts = [slice(k, k + EXAMPLES) for k in range(0, len(x), EXAMPLES)]
    bound = _by_inverse if thorough else _by_symmetric_part
    least = [bound(dense_jacobian(jacobian.select(p), x[p].float())) for p in parts]
    rounding = ROUNDING * torch.finfo(torch.float32).eps * math.sqrt(dim) * known.lipschitz
    whole = branch.branch if isinstance(branch, GivenBranch) else branch
    n_stages = 1 if isinstance(whole, LinearBranch) else len(whole.stages)
    return torch.cat(least) - n_stages * rounding - known.curvature * radius


def near_is_known(branch: AnyBranch, dim: int, known: BranchBounds) -> TypeGuard[Certified]:
    """True if `apart_near` can give a bound."""
    return branch.order == 2.0 and dim <= LARGEST and known.curvature < math.inf


def of_examples(branch: Certified, examples: Examples) -> Certified:
    """The map of some of the examples."""
    return branch.select(examples) if isinstance(branch, GivenBranch) else branch


def _by_symmetric_part(jacobian: Tensor) -> Tensor:
    """1 + c - ||c I - H||_2 of each J, (B, d, d) float32 -> (B,) float64."""
    shifted = (jacobian + jacobian.mT) / -2
    shifted.diagonal(dim1=1, dim2=2).add_(SHIFT)
    return 1.0 + SHIFT - _norm(shifted, 3)


def _by_inverse(jacobian: Tensor) -> Tensor:
    """(1 - ||I - A X||) / ||X|| with A = I + J of each J, (B, d, d) float32 -> (B,) float64."""
    matrix = jacobian.clone()
    matrix.diagonal(dim1=1, dim2=2).add_(1)
    inverse = torch.linalg.inv_ex(matrix).inverse
    off = matrix @ inverse
    off.diagonal(dim1=1, dim2=2).sub_(1)
    sizes = [torch.linalg.vector_norm(m, dim=(1, 2)).double() for m in (off, matrix, inverse)]
    # The rounding of the product included.
    distance = sizes[0] + ROUNDING * torch.finfo(matrix.dtype).eps * sizes[1] * sizes[2]
    norm = _norm(inverse.mT @ inverse, 2).sqrt()
    # An X that is no number gives no bound.
    return torch.where(distance < 1, (1 - distance) / norm, -math.inf)


def _norm(symmetric: Tensor, squarings: int) -> Tensor:
    """(sum_i |lambda_i|^p)^(1/p) >= ||S||_2 with p = 2^(squarings + 1), (B, d, d) -> (B,) float64.

    Of a Gram matrix S = X^T X the same with sigma_i^2 for |lambda_i|.
    """
    # Scaled to 1, so that no power overflows.
    size = torch.linalg.vector_norm(symmetric, dim=(1, 2), keepdim=True)
    power = symmetric / size.clamp_min(torch.finfo(symmetric.dtype).tiny)
    for _ in range(squarings):
        power = power @ power  # symmetric, so that the last one's norm is that of its eigenvalues
    total = torch.linalg.vector_norm(power, dim=(1, 2)).double()
    # Each product is off by d^2 units at most: 1e-3 holds for three up to d = 256.
    return size[:, 0, 0].double() * total ** (1 / 2**squarings) * (1 + 1e-3)


def _by_averages(branch: Branch) -> tuple[float, float]:
    """(K, 1 - m): J = W_L D_(L-1) ... D_1 W_1 is expanded about the middle of all slopes.

    1. D_j = c_j I + E_j with ||E_j|| <= r_j, c_j and r_j the middle and half the width of the range
       of phi_j'. J is a sum over the choices, for each j, between c_j I and E_j.
    2. A product of W's without an E between has its exact norm, times the c's that it passes. So
       S_j = sum_i S_(i-1) r_(i-1) c_i ... c_(j-1) ||W_j ... W_i||, S_0 r_0 = 1, bounds ||J_j||.
       K = S_L.
    3. For m, of the term without any E only -lambda_min of its symmetric part counts, as the sum
       then bounds -v^T J v.

    Source: Combettes and Pesquet (2020), "Lipschitz certificates for layered network structures
        driven by averaged activation operators", for 1 and 2; they sum norms alone.
    """
    matrices, ranges = [], []
    for k, stage in enumerate(branch.stages):
        if k % 2 == 0 and isinstance(stage, Linear):
            matrices.append(stage.weight_normalised().detach().double())
        elif k % 2 == 1 and isinstance(stage, Sloped):
            ranges.append(stage.slopes)
        else:
            return math.inf, math.inf
    middles = [(low + high) / 2 for low, high in ranges]
    widths = [1.0, *((high - low) / 2 for low, high in ranges)]
    sums = [1.0]
    for j in range(len(matrices)):
        total, product, passed = 0.0, matrices[j], 1.0
        for i in range(j, -1, -1):
            size = float(torch.linalg.matrix_norm(product.cpu(), 2))
            total += sums[i] * widths[i] * abs(passed) * size
            if i:
                product, passed = product @ matrices[i - 1], passed * middles[i - 1]
        sums.append(total)
    lowest = sums[-1] - abs(passed) * size - _lowest(passed * product)
    return sums[-1] + 1e-12, lowest + 1e-12  # a few thousand units of float64's rounding


def _curvature(branch: Branch) -> float:
    """Lip(J) of a chain: L(f o g) = L(f) Lip(g)^2 + Lip(f) L(g), L of linear maps 0."""
    lipschitz, curvature = 1.0, 0.0
    for stage in branch.stages:
        if isinstance(stage, Linear | Conv2d) and stage.domain == stage.codomain == 2.0:
            norm, own = stage.certificate().norm, 0.0
        elif isinstance(stage, DenseLayer) and isinstance(stage.activation, Curved):
            norm, inner = stage.certificate().norm, stage.layer.certificate().norm
            own = float(stage.mix()[1]) * stage.activation.curvature() * inner**2
        elif isinstance(stage, SLL):
            norm, own = stage.certificate().norm, stage.curvature()
        elif isinstance(stage, Curved) and isinstance(stage, Activation):
            norm, own = stage.lipschitz, stage.curvature()
        else:
            return math.inf
        curvature = own * lipschitz**2 + norm * curvature
        lipschitz *= norm
    return curvature


def _lowest(matrix: Tensor) -> float:
    """lambda_min of the symmetric part."""
    matrix = matrix.detach().cpu().double()
    return float(torch.linalg.eigvalsh((matrix + matrix.mT) / 2)[0])
