"""Taylor's series of log(I + J)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from resflow_bench.jacobian import Jacobian
from resflow_bench.logdet.expansions import numerics
from resflow_bench.logdet.expansions.compaction import State, Work, longest_first
from resflow_bench.logdet.expansions.expansion import Expanded, WeightedSum, series_sign
from resflow_bench.logdet.truncation import Terms

PACK_FOR = 6
"""The least number of products for which a matrix is packed: packing takes the time that about
four of them save."""


@dataclass(frozen=True)
class Taylor:
    """Delta_k = (-1)^(k+1)/k v^T J^k v,    s^T = sum_k w_k (-1)^(k-1) v^T J^(k-1).

    Args:
        tail: the dtype of the products that form J^2 v and higher powers; None is that of v. Sums
            are in v's dtype. Half the bits make a product several times cheaper on hardware with
            units for them, at the price of a bias, which is small once the first trace is exact.
            "tf32" leaves the numbers float32 in memory and lets a GPU's tensor cores round the
            factors to ten bits of mantissa. All other products follow torch's global settings,
            which are restored.

    Properties: unbiased if E w_k = 1, up to the rounding of `tail`. Cost: a product a term, cheaper
        where two outer matrices in a row can be replaced by one (`JacobianChain.cycle`). The work
        of a batch is the sum of its N if J `shrinks`, since finished examples leave the batch, and
        B max N if not. Memory: four vectors shaped like v.

    Raises:
        ValueError: if `tail` is neither a dtype, "tf32" nor None; when called, if J does not
            support it: TF32 needs a CUDA GPU of compute capability 8.0 or more, and float32.

    Source: Chen et al. (2019), "Residual Flows for Invertible Generative Modeling", Theorems 1, 2.

    >>> str(Taylor()), str(Taylor(torch.bfloat16)), str(Taylor("tf32"))
    ('taylor', 'taylor(bfloat16)', 'taylor(tf32)')
    """

    tail: numerics.Precision | None = None

    def __post_init__(self) -> None:
        if isinstance(self.tail, str) and self.tail != "tf32":
            raise ValueError(
                f"Taylor needs a tail that is a torch dtype or `tf32`; got {self.tail!r}. Set "
                "`tail=None`."
            )

    def __str__(self) -> str:
        return f"taylor({str(self.tail).removeprefix('torch.')})" if self.tail else "taylor"

    @torch.no_grad()
    def expand(
        self, jacobian: Jacobian, v: Tensor, terms: Terms, n_traced: int, adjoint: bool
    ) -> Expanded:
        if self.tail == "tf32":
            numerics.check_tf32(v)
        work = longest_first(jacobian, v, terms)
        v, scale = work.v, numerics.headroom(v)
        if not work.n_active:
            return work.zero(adjoint)
        enter, loop, leave = work.jacobian.cycle()
        series, rest = (WeightedSum(work.weights, n_traced) for _ in range(2))

        def step(k: int, state: State) -> State:
            (enter, loop), (power,) = state
            if self.tail is not None and k == (2 if n_traced == 0 else 1):
                enter, loop = numerics.lowered(enter, self.tail), numerics.lowered(loop, self.tail)
                power = power if self.tail == "tf32" else power.to(self.tail)
            if k == 1:
                power = enter.vjp(power)
            else:
                if adjoint:
                    rest.add(k, series_sign(k), power)
                loop = _packed(loop, power, work, k)
                power = loop.vjp(power)
            series.add(k, series_sign(k) / k, power)
            return State((enter, loop), (numerics.flushed(power, k),))

        work.recur(State((enter, loop), (v * scale,)), step)
        forms = work.forms(leave(series.over(scale)))
        value = forms.mean(0)
        if not adjoint:
            return work.expanded(value, None, forms)
        s = leave(rest.over(scale)) if len(work.n_active) > 1 else torch.zeros_like(v)
        s = s if n_traced else torch.addcmul(s, v, work.weights[0])
        return work.expanded(value, s, forms)

    @torch.no_grad()
    def increments(self, jacobian: Jacobian, v: Tensor, n_terms: int, n_traced: int = 0) -> Tensor:
        scale = numerics.headroom(v)
        power, terms = v * scale, []
        for k in range(1, n_terms + 1):
            power = jacobian.vjp(power)
            form = (power * v).flatten(2).sum(2) if v.ndim > 2 else power * v
            zero = k <= n_traced
            terms.append(torch.zeros_like(form) if zero else form * (series_sign(k) / (k * scale)))
            power = numerics.flushed(power, k)
        return torch.stack(terms)


def _packed(loop: Jacobian, power: Tensor, work: Work, k: int) -> Jacobian:
    """`loop`, packed where the batch has a new size from term k on and keeps it long enough."""
    n = power.shape[1]
    new_size = k == 2 or n < work.n_active[k - 2]
    pays = new_size and work.n_active.count(n) >= PACK_FOR
    return loop.packed(len(power) * n) if pays else loop
