"""Norms between two p-norms, ||A||_{p->q}, kept below a coefficient; the orders may be learnt."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from resflow_bench.layers.norms import mixed
from resflow_bench.layers.norms.norm import (
    Certificate,
    checked_coefficient,
    cushion,
    finite,
    full_precision,
)
from resflow_bench.layers.norms.operators import Convolution, Matrix, Operator
from resflow_bench.layers.orders import LearnableOrder, Order, check_order, value

# Power iterations of an update, from the last best vector and two new ones.
UPDATE_STEPS = 5
# `align` iterates from three times so many starts, then from the best few for longer.
ALIGN_STARTS = 16
ALIGN_STEPS = 10
ALIGN_KEEPS = 4
ALIGN_STEPS_MORE = 90
# Up to so many features on the smaller side the bounds of a convolution are those of its dense
# matrix: tighter, and still affordable after every step.
DENSE = 128
# Powers by which the diagonals of the balanced bound move from 1 to those of a stationary point.
STRENGTHS = (0.5, 1.0)


@dataclass(frozen=True)
class Induced:
    """||A||_{p->q} = max ||A x||_q / ||x||_p, with images as flat vectors.

    domain, codomain: the orders p and q, each in [1, inf] or a `LearnableOrder`.

    Raises:
        ValueError: an order below 1.
    """

    domain: Order
    codomain: Order

    def __post_init__(self) -> None:
        check_order(self.domain, "domain")
        check_order(self.codomain, "codomain")

    def normaliser(self, operator: Operator, coefficient: float) -> InducedNorm:
        return InducedNorm(operator, coefficient, self)


class InducedNorm(nn.Module):
    """max(1, sigma_hat inflation / c'), by which W is divided so that ||A(W)||_{p->q} <= c.

    sigma_hat = ||A v||_q / ||v||_p with v carried from step to step. It is a lower bound on the
    norm for every v, and where v is a maximiser its derivatives in W, p and q are the norm's own.
    inflation >= 1 is set by `update` and `align` to the ratio of a theorem's upper bound to
    sigma_hat. Hence right after either the promise is kept, however far power iteration is from
    the maximum, and inflation says what it costs at most.

    Where a fixed p = 1 or q = inf makes the norm easy, sigma_hat is the norm itself, and the
    promise is kept at any time. Elsewhere it may be broken between a step and its update: in 1,000
    Adam steps at learning rate 1e-2 of 5 x 4 matrices the certified norm rose up to 3 % above the
    coefficient at fixed orders, and up to 15 % with orders learnt and shared.

    c is the coefficient, and c' = c (1 - `cushion`) leaves room for rounding, with n the smaller
    side of A. The arguments are those of `Norm.normaliser`, and the orders p and q.

    Source: Chen, Behrmann, Duvenaud and Jacobsen (2019), Residual Flows, on induced mixed norms.
        They take the lower bound of power iteration for the norm.
    """

    def __init__(self, operator: Operator, coefficient: float, orders: Induced) -> None:
        super().__init__()
        self.coefficient = checked_coefficient(coefficient)
        # In a tuple a learnable order is no submodule: the layer registers it, once.
        self.orders = (orders.domain, orders.codomain)
        weight = operator.weight
        self.v: Tensor  # (n_in,)
        self.d_in: Tensor  # (n_in,), diagonals of the best balanced bound; else 1
        self.d_out: Tensor  # (n_out,)
        self.inflation: Tensor  # ()
        self.register_buffer("v", weight.new_ones(operator.n_in))
        self.register_buffer("d_in", weight.new_ones(operator.n_in))
        self.register_buffer("d_out", weight.new_ones(operator.n_out))
        self.register_buffer("inflation", weight.new_ones(()))
        self.align(operator)

    def normalised(self, operator: Operator) -> Tensor:
        """W / divisor."""
        return operator.weight / self.divisor(operator)

    def divisor(self, operator: Operator) -> Tensor:
        """max(1, sigma_hat inflation / c'), (), differentiable in W and in learnable orders."""
        dtype = operator.weight.dtype
        target = self.coefficient * (1 - cushion(dtype, min(operator.n_in, operator.n_out)))
        sigma = self.sigma_hat(operator)
        return (sigma * self.inflation.to(sigma) / target).clamp(min=1).to(dtype)

    def sigma_hat(self, operator: Operator) -> Tensor:
        """||A v||_q / ||v||_p, or the norm itself where it is easy, ()."""
        p, q = (value(order) for order in self.orders)
        dtype = torch.promote_types(self.v.dtype, torch.float32)
        with full_precision(self.v):
            operator = operator.to(dtype)
            if self.orders[0] == 1:
                return operator.column_norms(q).amax()
            if self.orders[1] == math.inf:
                return operator.row_norms(mixed.dual(p)).amax()
            return mixed.ratio(operator, self.v.to(dtype), p, q)

    def update(self, operator: Operator) -> None:
        """A few power iterations, and the bound at the present weights and orders.

        Properties: some fifty passes over W and one Gram matrix's eigenvalues (five if
        p >= 2 >= q and p > q), for a convolution beyond `DENSE` features one Gram matrix a
        frequency; nothing where the norm is easy. The host waits for the device only to read
        learnable orders.
        """
        self._follow(operator, 0, 1, [(UPDATE_STEPS, 1)])

    def align(self, operator: Operator) -> None:
        """Many power iterations from the last vector, large columns and rows, Gaussian vectors."""
        rounds = [(ALIGN_STEPS, ALIGN_KEEPS), (ALIGN_STEPS_MORE, 1)]
        self._follow(operator, ALIGN_STARTS, ALIGN_STARTS, rounds)

    @torch.no_grad()
    def bound(self, operator: Operator) -> Tensor:
        """The least of the known upper bounds on ||A||, () float64, on the device of the weight.

        Not finite where the weight is not. For learnable orders the host waits for the device.
        """
        with full_precision(self.v):
            bounds = self._upper_bounds(*self._exactly(operator))
            return torch.stack([*bounds.values()]).amin()

    @torch.no_grad()
    def certificate(self, operator: Operator) -> Certificate:
        """The least of the known upper bounds.

        Its method is "columns" (p = 1), "rows" (q = inf) or "svd" (p = q = 2, beyond `DENSE`
        features of a convolution "fft"), of which all but "fft" are exact, or the name of a bound
        in `upper_bounds`.
        """
        finite(operator.weight)
        with full_precision(self.v):
            bounds = self._upper_bounds(*self._exactly(operator))
        norms = {float(bound): name for name, bound in bounds.items()}
        return Certificate(min(norms), norms[min(norms)])

    def _exactly(self, operator: Operator) -> tuple[Operator, float, float]:
        """The arguments of a bound: the operator in float64, dense if it is small, p and q."""
        p, q = (float(value(order)) for order in self.orders)
        operator = operator.to(torch.float64)
        if isinstance(operator, Convolution) and min(operator.n_in, operator.n_out) <= DENSE:
            operator = operator.dense()
        return operator, p, q

    def _upper_bounds(self, exactly: Operator, p: float, q: float) -> dict[str, Tensor]:
        return mixed.upper_bounds(exactly, p, q, (self.d_in.double(), self.d_out.double()))

    # Buffers made in inference mode could not take part in a gradient later.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _follow(
        self, operator: Operator, n_drawn: int, n_simple: int, rounds: list[tuple[int, int]]
    ) -> None:
        """Power iteration in rounds of (steps, vectors kept); then the bound, and the inflation."""
        if operator.weight.is_cpu:  # elsewhere sigma_hat is not finite either, without a wait
            finite(operator.weight)
        domain, codomain = self.orders
        if domain == 1 or codomain == math.inf:  # easy, whatever a learnable order's value
            return
        with full_precision(self.v):
            exactly, p, q = self._exactly(operator)
            generator = torch.Generator().manual_seed(0)
            drawn = torch.randn(n_drawn, operator.n_in, generator=generator)
            starts = torch.cat([self.v[None], drawn.to(self.v)]).double()
            best = torch.cat([starts, mixed.simple_starts(exactly, p, q, n_simple)])
            for n_steps, n_kept in rounds:
                best = mixed.climb(exactly, best, p, q, n_steps, n_kept)
            self.v = best[0].to(self.v)
            if isinstance(exactly, Matrix) and p >= 2 >= q and p > q:
                self._rebalance(exactly, best[0], p, q)
            upper = torch.stack([*self._upper_bounds(exactly, p, q).values()]).amin()
            # With sigma_hat as `forward` computes it: its rounding and that of v included.
            sigma = self.sigma_hat(operator).double()
            inflation = torch.where(sigma > 0, upper / sigma, 1.0)
            self.inflation = inflation.clamp(min=1.0).to(self.inflation)

    def _rebalance(self, matrix: Matrix, v: Tensor, p: float, q: float) -> None:
        """Replace the diagonals by those made from v where they give a lower bound."""
        pairs = [(self.d_in, self.d_out)]
        for strength in STRENGTHS:
            d_in, d_out = mixed.balance_at(matrix, v, p, q, strength)
            # Rounded to the buffers' type first: the bound has to hold for the rounded numbers.
            pairs.append((d_in.to(self.d_in), d_out.to(self.d_out)))
        bounds = [mixed.balanced(matrix, p, q, (a.double(), b.double())) for a, b in pairs]
        best = torch.stack(bounds).argmin()[None]
        self.d_in, self.d_out = (
            torch.stack(diagonals).index_select(0, best)[0]
            for diagonals in zip(*pairs, strict=True)
        )

    def extra_repr(self) -> str:
        orders = ["p" if isinstance(o, LearnableOrder) else f"{o:g}" for o in self.orders]
        return f"coefficient={self.coefficient:.6g}, orders {orders[0]} -> {orders[1]}"
