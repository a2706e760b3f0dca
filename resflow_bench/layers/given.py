"""Conditional branches g(x; c), and their map of x at given contexts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from resflow_bench.arguments import check_batch
from resflow_bench.jacobian import Examples, JacobianChain
from resflow_bench.jacobian.stages import rows as some_rows
from resflow_bench.layers.branches import Branch
from resflow_bench.layers.conditioner import Conditioner
from resflow_bench.layers.maps import Composition, Shifted
from resflow_bench.layers.orders import Order


def conditional(
    branch: Branch, n_context: int, width: int = 64, generator: torch.Generator | None = None
) -> Branch:
    """The branch with shifts by a context: s_j(x) + V_j h(c) for the output of each layer j.

    J_g, taken in x, keeps its form, and the certificate its value, for every c.

    Args:
        branch: g, whose layers are used, not copied.
        n_context: the size of c.
        width, generator: of the `Conditioner`.

    >>> from resflow_bench.layers import mlp_branch
    >>> g = conditional(mlp_branch(2, (16,), lipschitz=0.9), n_context=3)
    >>> GivenBranch(g, torch.zeros(5, 3))(torch.zeros(5, 2)).shape
    torch.Size([5, 2])
    """
    n_out = sum(layer.n_out for layer in branch.layers)
    conditioner = Conditioner(n_context, n_out, width, generator)
    return Branch(*branch.stages, lipschitz=branch.lipschitz, conditioner=conditioner)


def context_rows(
    context: Tensor | None,
    n_context: int | None,
    n: int,
    dtype: Callable[[], torch.dtype | None],
) -> Tensor | None:
    """The contexts of n examples, (n, n_context), of a flow with such contexts; None without.

    Args:
        context: (n, n_context); or one for all, (n_context,) or (1, n_context).
        dtype: that of the flow's parameters, asked for only if there is a context.

    Raises:
        ValueError: a context is missing, is not needed, or has another shape or dtype.
        TypeError: a context that is no tensor.
    """
    if n_context is None and context is None:
        return None
    if n_context is None:
        raise ValueError(
            "This flow takes no context; got one. Leave it out, or make the flow with `context`, "
            "the size of one."
        )
    if context is None:
        raise ValueError(
            f"This flow needs `context`, {n_context} numbers for each example; got none."
        )
    check_batch("This flow", context, (...,), name="context")
    rows = context[None] if context.shape == (n_context,) else context
    check_batch("This flow", rows, (n_context,), dtype(), "context")
    if len(rows) not in (1, n):
        raise ValueError(
            f"This flow needs a context for each of {n} examples, or one for all; got {len(rows)}."
        )
    return rows.expand(n, -1)


class GivenBranch(nn.Module):
    """x -> g(x; c) at the context of each example: what an estimator and an inverse are given.

    The shifts are computed at each evaluation, with the parameters and in the dtype of the branch.

    Args:
        branch: g, with a conditioner; shared, not copied.
        context: c, (B, n_context), a row for each row of x.

    Raises:
        ValueError: when evaluated, at an x of another number of rows; a branch without conditioner.
    """

    def __init__(self, branch: Branch, context: Tensor) -> None:
        super().__init__()
        if branch.conditioner is None:
            raise ValueError(
                "GivenBranch needs a branch with a conditioner; this one has none. Make it with "
                "`conditional(branch, n_context)`."
            )
        self.branch = branch
        self.conditioner = branch.conditioner
        self.context = context

    def __eq__(self, other: object) -> bool:
        """True for the same branch, at any contexts: an estimator is chosen for a branch."""
        return isinstance(other, GivenBranch) and self.branch is other.branch

    def __hash__(self) -> int:
        return hash(self.branch)

    @property
    def lipschitz(self) -> float:
        return self.branch.lipschitz

    @property
    def order(self) -> Order:
        return self.branch.order

    def forward(self, x: Tensor) -> Tensor:
        """g(x; c), (B, *event)."""
        self._check(x)
        return self.normalised()(x)

    def normalised(self) -> Composition:
        """As `Branch.normalised`; a map of B examples."""
        return self.shifted(self.branch.unshifted())

    def shifted(self, maps: Composition) -> Composition:
        """`Branch.unshifted`, of this branch, with the shifts."""
        sizes = [layer.n_out for layer in self.branch.layers]
        shifts = iter(self.conditioner(self.context).split(sizes, dim=1))
        stages = zip(maps.stages, self.branch.is_layer, strict=True)
        return Composition([Shifted(s, next(shifts)) if layer else s for s, layer in stages])

    def linearise(self, x: Tensor) -> tuple[Tensor, JacobianChain]:
        """g(x; c) and its Jacobian in x; see `Branch.linearise`."""
        self._check(x)
        return self.normalised().linearise(x)

    def select(self, examples: Examples) -> GivenBranch:
        """The map of some of the examples."""
        return GivenBranch(self.branch, some_rows(self.context, examples))

    def magnitude(self, x: Tensor) -> Tensor:
        """As `Branch.magnitude`, with the sizes of the shifts."""
        return self.branch.magnitude_of(self.normalised(), x)

    def lipschitz_certified(self) -> float:
        """As `Branch.lipschitz_certified`, whatever the context."""
        return self.branch.lipschitz_certified()

    def lipschitz_bound(self) -> Tensor:
        """As `Branch.lipschitz_bound`, whatever the context."""
        return self.branch.lipschitz_bound()

    def _check(self, x: Tensor) -> None:
        self.branch.check(x)
        if len(x) != len(self.context):
            raise ValueError(
                "A branch needs a context for each example; got "
                f"{len(self.context)} for {len(x)} examples."
            )
