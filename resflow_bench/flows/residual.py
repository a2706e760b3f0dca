"""The residual block z = x + g(x), Lip(g) < 1, and its certified inverse."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from resflow_bench.arguments import check_batch
from resflow_bench.fixed_point import Solution
from resflow_bench.flows.bijection import ROUNDING
from resflow_bench.flows.certificate import (
    BranchBounds,
    apart_near,
    branch_bounds,
    near_is_known,
    of_examples,
)
from resflow_bench.flows.copies import in_float64, memoised, normalised_once, on_host, recast
from resflow_bench.flows.inversion import AnyInversion, ToError
from resflow_bench.layers import AnyBranch, Branch, GivenBranch, Layer, Uncertified, together
from resflow_bench.layers.branches import Contraction
from resflow_bench.layers.orders import Order, conversion, norm
from resflow_bench.logdet.estimator import Estimator
from resflow_bench.theory import RESIDUAL, Coefficients

SOFT = 0.1
"""The m below which a block's bound is always tightened: it gains most where K is near one."""

PROMISE_SLACK = 1e-5
"""The relative excess over a promised constant that float32's rounding may cause."""


class ResidualBlock(nn.Module):
    """z = x + g(x),  ln|det dz/dx| = ln|det(I + J_g(x))|,  with Lip(g) <= `lipschitz` < 1.

    Args:
        branch: g, with the constant that it promises.

    Source: Behrmann et al. (2019), Theorem 1.
    """

    coefficients: Coefficients = RESIDUAL
    _kept: Sequence[int] = ()  # the versions at which the promise was last known
    _given: GivenBranch | None = None  # of a view

    def __init__(self, branch: AnyBranch) -> None:
        super().__init__()
        if not isinstance(branch, Contraction):
            raise TypeError(
                "ResidualBlock needs a g with a promised Lipschitz constant, a `Branch` or a "
                f"`LinearBranch`; got {type(branch).__name__}. Build it with `Branch(*stages, "
                "lipschitz=...)` from layers and activations of this package, or take "
                "`Uncertified(g)` to do without a certificate."
            )
        self.branch = branch
        self.promise_is_kept()

    @property
    def lipschitz(self) -> float:
        return self.branch.lipschitz

    @property
    def g(self) -> AnyBranch:
        """The branch; in a view, the branch at the contexts that it was given."""
        return self._given or self.branch

    @property
    def n_context(self) -> int | None:
        """The size of the context, if the block is conditional."""
        conditioner = self.branch.conditioner if isinstance(self.branch, Branch) else None
        return None if conditioner is None else conditioner.n_context

    def given(self, context: Tensor) -> ResidualBlock:
        """A view at the contexts of a batch, (B, n_context), all else shared; itself without one.

        Its inverse is that of the shifts by the context as they are computed in float64.
        """
        if not isinstance(self.branch, Branch) or self.branch.conditioner is None:
            return self
        view = copy.copy(self)
        # Past `nn.Module`, which would register it in the modules that the view shares.
        view.__dict__["_given"] = GivenBranch(self.branch, context)
        return view

    def at(self, x: Tensor) -> Tensor:
        """x: the point of J."""
        return x

    def forward(self, x: Tensor) -> Tensor:
        return x + self.g(x)

    def forward_and_log_det(
        self, x: Tensor, estimator: Estimator, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        estimate = estimator(self.g, x, generator)
        return x + estimate.g, estimate.value

    @torch.no_grad()
    def inverse(
        self, z: Tensor, inversion: AnyInversion, error: Tensor | None = None, certify: bool = True
    ) -> Solution:
        """x with x + g(x) = z, and ||x - x*|| <= (||z - x - g(x)|| + error) / m.

        1. x is the exact inverse of a z that is off by the residual, and m that of `branch_bounds`:
           ||f(x) - f(y)|| >= m ||x - y|| everywhere; at least 1 - K.
        2. With `ToError`, where m is small or leaves a bound above a share of the error, x* is
           within the bound of x, and m of that ball (`apart_near`) is the better one.

        Args:
            z: (B, *event).
            inversion: how x is computed.
            error: (B,), a bound on the distance of z from the intended latent.
            certify: whether to compute `error_bound`: m is then of the weights as they are, not as
                promised, and the residual is evaluated in float64, so that the bound also covers
                what float32 does not resolve.

        Properties: where g is a contraction in a p-norm with p other than 2, the inequality holds
            in that norm; `error` and the bound are converted from and to the 2-norm.
        """
        check_batch("ResidualBlock", z, (...,), name="z")
        self._warn_of_a_broken_promise()
        if isinstance(inversion, ToError):
            solution = inversion(self.g, z, error)
        else:
            solution = inversion(self.g, z)
        if not certify:
            return solution
        branch, z, x = in_float64(self.g), z.double(), solution.value.double()
        order, n = branch.order, math.prod(z.shape[1:])
        known = self.bounds()
        sizes = self.sizes(x, z, order)
        if solution.value.dtype == torch.float64 and order == 2.0:
            residual = solution.residual  # at that x, of that g
        else:
            residual = norm((z - x - branch(x)).flatten(1), order)
        residual = residual + ROUNDING * torch.finfo(x.dtype).eps * sizes
        if error is not None:
            residual = residual + error * conversion(2.0, order, n)
        bound = residual * conversion(order, 2.0, n) / known.apart
        # Where m is not certified to be positive, or the bound is no number, no bound holds.
        bound = torch.where((bound < torch.inf) & (known.apart > 0.0), bound, torch.inf)
        if isinstance(inversion, ToError) and near_is_known(branch, n, known):
            share = inversion.share if known.apart > SOFT else 0.0
            loose = (bound > share * inversion.error) & (bound < torch.inf)
            rows = loose.nonzero()[:, 0]
            if len(rows):
                at, thorough = of_examples(branch, rows), share == 0.0
                near = apart_near(at, x[rows], bound[rows], known, thorough)
                better = residual[rows] / torch.where(near > known.apart, near, known.apart)
                bound = bound.index_copy(0, rows, better)
        return replace(solution, error_bound=bound)

    def bounds(self) -> BranchBounds:
        """The `branch_bounds` of the branch, computed once while its weights last."""
        return memoised(on_host(in_float64(self.branch)), branch_bounds)

    def sizes(self, x: Tensor, z: Tensor, order: Order) -> Tensor:
        """||x|| + ||z|| and the magnitudes inside g at x, to which rounding is relative: (B,).

        float64 in and out, in the norm of this order, which is g's.
        """
        # Float32 has enough digits for sizes.
        g, at = recast(self.g, torch.float32), x.float()
        if isinstance(g, Branch):
            inside = g.magnitude_of(normalised_once(g), at)
        else:
            inside = g.magnitude(at)
        return norm(x.flatten(1), order) + norm(z.flatten(1), order) + inside.double()

    def update(self) -> None:
        """See `ResidualFlow.update`."""
        follow(self)

    def align(self) -> None:
        """See `ResidualFlow.align`."""
        follow(self, align=True)

    def promise_is_kept(self) -> None:
        """Take note that the promise holds for the weights as they are."""
        self.__dict__.setdefault("_kept", [])[:] = self._versions()  # a list that views share

    def _versions(self) -> list[int]:
        """A number for each tensor of the branch that grows whenever it is written to."""
        state = (*self.branch.parameters(), *self.branch.buffers())
        return [0 if t.is_inference() else t._version for t in state]  # noqa: SLF001

    def _warn_of_a_broken_promise(self) -> None:
        """Compare the certified constant with the promised one where the weights have changed."""
        if not self.has_changed():
            return
        try:
            certified = on_host(self.branch).lipschitz_certified()
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            certified = math.inf  # of weights that are not finite
        self.compare(certified)

    def has_changed(self) -> bool:
        """True if the weights were written to since the promise was last known to hold."""
        return self._versions() != self._kept

    def compare(self, certified: float) -> None:
        """Warn unless the branch, with this certified constant, keeps its promise."""
        self.promise_is_kept()
        if not certified <= self.lipschitz * (1 + PROMISE_SLACK):
            beyond = ", so that it may have no inverse" if certified >= 1 else ""
            warnings.warn(
                f"A branch promises lipschitz={self.lipschitz:g} and has {certified:.4g} by its "
                f"certificate{beyond}. Call `update()` on the flow after each optimiser step, and "
                "after its weights were averaged, set, or rounded to another dtype.",
                stacklevel=3,
            )


def compare_all(blocks: Sequence[ResidualBlock]) -> None:
    """Compare the constants of all changed blocks, off the CPU with one wait for all of them."""
    changed = [block for block in blocks if block.has_changed()]
    if changed:
        bounds = torch.stack([block.branch.lipschitz_bound() for block in changed]).tolist()
        for block, bound in zip(changed, bounds, strict=True):
            block.compare(math.inf if math.isnan(bound) else bound)


def follow(part: nn.Module, *, align: bool = False) -> None:
    """Update, or align, all branches of a part, off the CPU in a few batched products.

    Each once, also of what is no block; those inside an `Uncertified` promise nothing.
    """
    blocks = [module for module in part.modules() if isinstance(module, ResidualBlock)]
    free = [block.branch for block in blocks if isinstance(block.branch, Uncertified)]
    unheld = {module for branch in free for module in branch.modules()}
    layers: list[Layer] = []
    for module in part.modules():
        if isinstance(module, Branch) and module not in unheld:
            layers += module.layers
    together.follow(layers, align=align)
    for block in blocks:
        if not isinstance(block.branch, Branch):
            (block.branch.align if align else block.branch.update)()
        block.promise_is_kept()
