"""||A||_{p->q} = max ||A x||_q / ||x||_p of matrices and convolutions: attained, and bounded.

Only three families are easy: p = 1 (the largest column q-norm), q = inf (the largest row p*-norm)
and p = q = 2 (the largest singular value). In between the norm is a maximum of a function that is
not concave, and NP-hard to compute for most orders. So `climb` computes an x whose ratio is a lower
bound, often the norm itself for small or benign operators, and `upper_bounds` are theorems.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from resflow_bench.layers.norms.operators import Matrix, Operator
from resflow_bench.layers.orders import norm

# The interpolation computes column and row norms at the ends of so many intervals, and searches
# its weights at so many steps: finer ones lower the bound by .1 % on average, at most by 1.5 %.
_INTERVALS = 6
_STEPS = 8
# |A| is positive, its iteration contracts by (q - 1) / (p - 1) at least where p > q; any vector
# gives a bound.
_PERRON_STEPS = 10
# Keeps the scalings of `balanced` away from zero, as a fraction of their median.
_FLOOR = 1e-3


def ratio(operator: Operator, x: Tensor, p: float | Tensor, q: float | Tensor) -> Tensor:
    """||A x||_q / ||x||_p <= ||A||_{p->q}, (..., n_in) -> (...), for x without zero vectors.

    With x held constant at a maximiser, the derivatives in A, in p and in q are those of
    ||A||_{p->q} itself (envelope theorem).
    """
    return norm(operator.apply(x), q) / norm(x, p)


def climb(
    operator: Operator, starts: Tensor, p: float, q: float, n_steps: int, keep: int = 1
) -> Tensor:
    """The best x of the power iterations from `starts`, (R, n_in) -> (keep, n_in), ||x||_p = 1.

    x <- psi(A^T phi(A x)), where phi(y)_j = sign(y_j) |y_j|^(q-1) is the gradient of ||.||_q up to
    its length, and psi(z)_i = sign(z_i) |z_i|^(1/(p-1)) maximises z^T x over the unit ball.

    Properties: a step maximises a linear lower bound on the convex ||A x||_q that touches it at x,
    so no step decreases the ratio, and the result is at least as good as each start. The limit is
    a stationary point; it is the maximum for p = q = 2 (from almost every start) and for
    non-negative A with p >= q, and in general depends on the start. p above 1, q below inf.
    Source: Boyd (1974), The power method for l^p norms.
    """
    x = starts
    for _ in range(n_steps):
        uphill = operator.adjoint(signed_power(operator.apply(x), q - 1))
        moved = signed_power(uphill, 1 / (p - 1))
        # A x = 0 shows no way up.
        x = torch.where((uphill != 0).any(-1, keepdim=True), moved, x)
    # A start at zero, as a row of zeros makes one, has no ratio and is no candidate.
    ratios = ratio(operator, x, p, q).nan_to_num(nan=-1.0)
    best = ratios.topk(min(keep, len(x))).indices
    x = x.index_select(0, best)
    return x / norm(x, p)[:, None]


def signed_power(x: Tensor, exponent: float) -> Tensor:
    """sign(x) (|x| / max |x|)^exponent; at exponent 0 the sign of 0 is 1, as good as any."""
    size = x.abs()
    largest = size.amax(-1, keepdim=True)
    return torch.where(x < 0, -1, 1) * (size / torch.where(largest > 0, largest, 1)) ** exponent


def simple_starts(operator: Operator, p: float, q: float, n_each: int) -> Tensor:
    """(at most 2 n_each, n_in): the x of the n_each largest columns, and of as many largest rows.

    x = e_i attains ||A||_{1->q} for the largest column, x = psi(A^T e_j) attains ||A||_{p->inf} for
    the largest row; so for A != 0 neither is in the kernel.
    """
    columns, rows = operator.column_norms(q), operator.row_norms(dual(p))
    towards = signed_power(operator.adjoint(_units(rows, n_each)), 1 / (p - 1))
    return torch.cat([_units(columns, n_each), towards])


def _units(norms: Tensor, n: int) -> Tensor:
    """The unit vectors at the n largest entries, (n, len(norms)), or fewer if there are no more."""
    largest = norms.topk(min(n, len(norms))).indices
    return functional.one_hot(largest, len(norms)).to(norms)


def upper_bounds(
    operator: Operator, p: float, q: float, balance: tuple[Tensor, Tensor] | None = None
) -> dict[str, Tensor]:
    """Upper bounds on ||A||_{p->q} by name, each a theorem up to the rounding of its dtype.

    An easy norm has one, and it is exact. Otherwise:

    - "interpolation" between the easy norms, see `interpolation`; for all p, q.
    - "schur": || |A| ||_{p->q} by a test vector, for p >= q, see `schur`.
    - "balance": the spectral norm of D_2^-1 A D_1^-1, for p >= 2 >= q, see `balanced`; only if
      the diagonals are given and the operator is a `Matrix`.
    """
    if p == 1:
        return {"columns": operator.column_norms(q).amax()}
    if q == math.inf:
        return {"rows": operator.row_norms(dual(p)).amax()}
    if p == q == 2:
        return {operator.spectral_method: operator.spectral()}
    bounds = {"interpolation": interpolation(operator, p, q)}
    if p >= q:
        bounds["schur"] = schur(operator, p, q)
    if balance is not None and isinstance(operator, Matrix) and p >= 2 >= q:
        bounds["balance"] = balanced(operator, p, q, balance)
    return bounds


def interpolation(operator: Operator, p: float, q: float) -> Tensor:
    """The least bound that M. Riesz and Thorin's theorem gives between the easy norms.

    Let F(a, b) = ln ||A||_{1/a -> 1/b} over the complex numbers, which is at least the real norm,
    and equal to it where a = 1, where b = 0 and at (1/2, 1/2). Then

    1. F is convex on the unit square (Riesz-Thorin), so that
       F(a', b') <= s F(1/2, 1/2) + c F(1, b1) + r F(a0, 0)
       for weights s, c, r >= 0 of sum 1 and (a', b') = s (1/2, 1/2) + c (1, b1) + r (a0, 0). These
       points make up the triangle a' >= b', that is orders p' <= q'.
    2. ||y||_q <= n_out^(b - b') ||y||_q' for b >= b', and ||x||_p' <= n_in^(a' - a) ||x||_p for
       a' >= a, so that F(a, b) <= F(a', b') + (a' - a) ln n_in + (b - b') ln n_out, which leads
       from p > q into the triangle.

    The weights are searched for on a grid, for a', b' on the diagonal if p > q. F(1, .) and
    F(., 0) are computed at few points; between them the chord of a convex function is above it.
    So the bound is continuous in A, and rounding A changes it by no more than rounding.
    """
    knots = [k / _INTERVALS for k in range(_INTERVALS + 1)]
    columns = [operator.column_norms(_reciprocal(knot)).amax() for knot in knots]
    rows = [operator.row_norms(dual(_reciprocal(knot))).amax() for knot in knots]
    known = torch.stack([operator.spectral(), *columns, *rows])
    # A = 0 has F = -inf, times a weight of 0; the smallest number bounds it as well.
    known = known.clamp(min=torch.finfo(known.dtype).tiny).log()
    table = _combinations(1 / p, 1 / q, operator.n_out, operator.n_in).to(known.device)
    weights, b1, a0, price = table[:, :3], table[:, 3], table[:, 4], table[:, 5]
    on_columns = _chord(known[1 : len(knots) + 1], b1)
    on_rows = _chord(known[len(knots) + 1 :], a0)
    values = torch.stack([known[0].expand_as(price), on_columns, on_rows], dim=1)
    return ((weights * values).sum(1) + price).amin().exp()


def _combinations(a: float, b: float, n_out: int, n_in: int) -> Tensor:
    """Weights, points and the price of step 2 as columns s, c, r, b1, a0, price, (N, 6).

    With (a', b') in the triangle, s runs over [0, 2 min(b', 1 - a')]. What is left,
    ((a', b') - s (1/2, 1/2)) / (1 - s) = (a'', b''), is in the triangle too, and
    c / (1 - s) = k over [b'', a''] makes b1 = b'' / k and a0 = (a'' - k) / (1 - k) orders.
    """
    grid = torch.linspace(0, 1, _STEPS + 1, dtype=torch.float64)
    corners = torch.tensor([[a, b]], dtype=torch.float64)
    if a < b:
        diagonal = torch.cat([a + grid * (b - a), grid.new_tensor([min(max(0.5, a), b)])])
        corners = diagonal[:, None].expand(-1, 2)
    shape = (len(corners), len(grid), len(grid))
    high, low = (side[:, None, None].expand(shape) for side in corners.unbind(1))
    t, u = grid[:, None].expand(shape), grid.expand(shape)
    s = t * 2 * torch.minimum(low, 1 - high)
    left_high, left_low = (
        ((side - s / 2) / (1 - s)).nan_to_num(nan=0.5).clamp(0, 1) for side in (high, low)
    )
    k = torch.lerp(left_low, left_high, u)
    b1 = (left_low / k).nan_to_num(nan=0.0).clamp(0, 1)
    a0 = ((left_high - k) / (1 - k)).nan_to_num(nan=0.0).clamp(0, 1)
    price = (high - a) * math.log(n_in) + (b - low) * math.log(n_out)
    columns = [s, (1 - s) * k, (1 - s) * (1 - k), b1, a0, price]
    return torch.stack([column.flatten() for column in columns], dim=1)


def _chord(values: Tensor, at: Tensor) -> Tensor:
    """Linear interpolation of values at the knots."""
    position = at * (len(values) - 1)
    below = position.long().clamp(max=len(values) - 2)
    return torch.lerp(values[below], values[below + 1], (position - below).to(values))


def schur(operator: Operator, p: float, q: float) -> Tensor:
    """|| |A| ||_{p->q} <= (sum_i c_i^s)^(1 / (s q)), c_i = x_i^(1-q) (|A|^T (|A| x)^(q-1))_i.

    For p >= q, every positive x and 1/s = 1 - q/p (s = inf, the largest c_i, if p = q). Let B = |A|
    and z >= 0. By Jensen, with weights B_ji x_i / (B x)_j,

        (B z)_j^q <= (B x)_j^(q-1) sum_i B_ji x_i (z_i / x_i)^q,

    whose sum over j is ||B z||_q^q <= sum_i c_i z_i^q, and Hölder's inequality with the orders s
    and p / q ends it. At the maximiser x of ||B x||_q / ||x||_p all of it is an equality, so the
    bound is as good as |A|: exact for matrices without negative entries.
    """
    absolute = operator.absolute()
    x = operator.weight.new_ones(operator.n_in)
    for _ in range(_PERRON_STEPS):
        x = signed_power(absolute.adjoint(signed_power(absolute.apply(x), q - 1)), 1 / (p - 1))
        x = x.clamp(min=1e-6)
    y = absolute.apply(x)
    # Powers that underflow would be missing from the bound; rounded up they are in it.
    powers = ((y / y.amax()) ** (q - 1)).clamp(min=1e-300)
    c = x ** (1 - q) * absolute.adjoint(powers)
    bound = norm(c, _reciprocal(1 - q / p)) ** (1 / q) * y.amax() ** (1 - 1 / q)
    return torch.where(bound.isfinite(), bound, math.inf)


def balanced(matrix: Matrix, p: float, q: float, balance: tuple[Tensor, Tensor]) -> Tensor:
    """||W||_{p->q} <= ||d_1||_r ||D_2^-1 W D_1^-1||_2 ||d_2||_s, for p >= 2 >= q and any d > 0.

    ||D_1 x||_2 <= ||d_1||_r ||x||_p with 1/r = 1/2 - 1/p and ||D_2 y||_q <= ||d_2||_s ||y||_2 with
    1/s = 1/q - 1/2, both by Hölder's inequality.

    The least of these over the diagonals is the semidefinite relaxation of ||W||_{p->q}; for
    p = inf, q = 1 Grothendieck's inequality says that it is less than 1.783 times too large.
    """
    d_in, d_out = balance
    inner = Matrix(matrix.weight / d_in / d_out[:, None])
    r, s = _reciprocal(0.5 - 1 / p), _reciprocal(1 / q - 0.5)
    return norm(d_in, r) * inner.spectral() * norm(d_out, s)


def balance_at(
    matrix: Matrix, x: Tensor, p: float, q: float, strength: float
) -> tuple[Tensor, Tensor]:
    """Diagonals for `balanced` made from a stationary x: d_1^2 = |z| / |x|, d_2^2 = |W x|^(2-q).

    With z = W^T phi(W x), D_1 x and D_2 phi(W x) are then a singular pair of D_2^-1 W D_1^-1 with
    the ratio at x as its singular value, up to the lengths of the diagonals: the bound is exact
    if the pair is the leading one. Often it is not, and diagonals nearer to 1 are better, hence the
    power `strength` in [0, 1].
    """
    y = matrix.apply(x)
    z = matrix.adjoint(signed_power(y, q - 1))
    d_in = _flattened(z.abs() / x.abs(), strength / 2) if p > 2 else torch.ones_like(x)
    d_out = _flattened(y.abs(), strength * (2 - q) / 2) if q < 2 else torch.ones_like(y)
    return d_in, d_out


def _flattened(d: Tensor, exponent: float) -> Tensor:
    """d^exponent with d held within three decades of its median, which becomes 1."""
    middle = d.nan_to_num(nan=0.0).median()
    d = torch.where(middle > 0, d / middle, 1.0)
    return d.nan_to_num(nan=1.0, posinf=1 / _FLOOR).clamp(_FLOOR, 1 / _FLOOR) ** exponent


def _reciprocal(x: float) -> float:
    return 1 / x if x > 0 else math.inf


def dual(p: float | Tensor) -> float | Tensor:
    """p* with 1/p + 1/p* = 1."""
    if isinstance(p, Tensor) or 1 < p < math.inf:
        return p / (p - 1)
    return math.inf if p == 1 else 1.0
