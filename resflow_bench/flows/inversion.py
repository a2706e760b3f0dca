"""Inversions of a residual block z = x + g(x): to a tolerance, to rounding, to an error."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from resflow_bench.fixed_point import (
    UNASKED,
    Auto,
    Newton,
    NewtonKrylov,
    Outcome,
    Picard,
    Secant,
    Solution,
    Step,
    direct,
    solve,
)
from resflow_bench.fixed_point.newton import Product, minimal_residuals
from resflow_bench.flows.copies import no_grad_for, normalised_once, recast
from resflow_bench.jacobian import Jacobian, dense_jacobian
from resflow_bench.layers import AnyBranch, Opaque
from resflow_bench.layers.maps import Composition

MAX_STEPS = 2000
"""Default cap on the steps of a block."""

POLISH_STEPS = 20_000
"""Cap on the float64 steps, a block, that a certificate may take: enough for K = 0.998."""

# The coarse iteration ends here, relative to 1 + ||x||: Newton's step then gains more for its
# products than the coarse iteration for as many evaluations.
START = 1e-3
# Three or four suffice; an iteration that takes more does not converge.
MAX_REFINEMENTS = 8
# The steps of `ToTolerance`'s attempts off the CPU, at most `UNASKED`.
PLANNED_STEPS = (8, UNASKED)
# The coarse steps and the corrections of a `Planned` inversion, and the products of a correction
# that is not solved directly.
PLANNED_START = 4
PLANNED_REFINEMENTS = 2
PLANNED_PRODUCTS = 7
# The share of the requested error above which, in the first attempt, a block's bound is worth d
# products to tighten: the blocks that follow will stretch it.
SHARE = 0.3
# The Picard steps of a `Quick` inversion; one, if its start leaves more than this share of the
# largest residual.
QUICK_PICARD = 5
QUICK_RATE = 0.6
# Caps on its Newton steps in either dtype, and on the products of each.
QUICK_COARSE = 8
QUICK_FINE = 5
QUICK_PRODUCTS = 30
# Its systems are solved to these residuals, relative to the right side: coarse and fine steps.
QUICK_LOOSE = 3e-2
QUICK_TIGHT = 1e-5
# The residual at which the coarse steps end, relative to 1 + ||x||, and the fine ones, in float64's
# last place: below the rounding that a certificate counts in any case. They end sooner at this
# share of z's own error, which adds as little to the bound.
QUICK_START = 1e-4
QUICK_FLOOR = 30.0
QUICK_SHARE = 0.03
# The d up to which the mean Jacobian is formed and inverted, at which two threads of MKL are known
# not to hang.
LARGEST_INVERTED = 256
# The d up to which a planned correction solves its systems directly, d^2 numbers an example.
LARGEST_DIRECT = 64


@dataclass(frozen=True)
class ToTolerance:
    """x <- z - g(x) in the dtype of z until ||z - x - g(x)|| <= atol + rtol ||x||.

    step: the rule for the next iterate. `Picard()` has a rate that is known beforehand.
    rtol, atol: bounds on each example's residual, not its square. None is ten units in the last
        place of z's dtype, relative to the size of the numbers: about as far as Picard's iteration
        goes before rounding stops it.
    max_steps: for each block.
    """

    step: Step = Picard()
    rtol: float | None = None
    atol: float | None = None
    max_steps: int = MAX_STEPS

    def __call__(self, branch: AnyBranch, z: Tensor) -> Solution:
        """Solve x + g(x) = z from x = z, (B, *event)."""
        return self.start(branch.normalised(), z, z)

    def start(self, g: Composition | Opaque, z: Tensor, x: Tensor) -> Solution:
        """Solve x + g(x) = z from x, (B, *event) both."""
        floor = 10 * torch.finfo(z.dtype).eps
        return solve(
            lambda x, y, g: y - g(x),
            x,
            self.step,
            rtol=floor if self.rtol is None else self.rtol,
            atol=floor if self.atol is None else self.atol,
            max_steps=self.max_steps,
            args=(z, g),
        )

    def reference(self, dtype: torch.dtype) -> ToTolerance | ToRounding:
        """The inversion in float64 with which an inverse of a z of that dtype is certified.

        This inversion, if it already goes to float64's rounding. `Auto()` replaces `Picard()`: it
        takes the same steps while they are fast.
        """
        if self.rtol is None and self.atol is None and dtype == torch.float64:
            return self
        step = Auto() if isinstance(self.step, Picard) else self.step
        return ToRounding(step, step, POLISH_STEPS)

    def planned(self) -> list[AnyInversion]:
        """First attempts, each of few steps, for which no device makes the host wait.

        An example that needs more ends with MAX_STEPS.
        """
        return [replace(self, max_steps=n) for n in PLANNED_STEPS if n < self.max_steps]


@dataclass(frozen=True)
class ToRounding:
    """x + g(x) = z to ten units in the last place of z's dtype, most of the work in a coarser one.

    1. P = (I + J)^-1 at the batch's mean slopes at z. Iterate x <- x + P (z - x - g(x)) in the
       coarse dtype from x = z, until that changes x by `START` (1 + ||x||).
    2. Correct x by (I + J)^-1 (z - x - g(x)): the residual in z's dtype, J that of the coarse x.
    3. Where that did not reach the tolerance, iterate without P in z's dtype. An `Opaque` g,
       whose products J v are not known, is left to 3 alone.

    coarse, fine: the steps of 1 and of 3.
    max_steps: for each block, in each of 1, 2 and 3.
    dtype: the coarse dtype, float32 or float64. Where z is no finer, 3 alone is left.

    Raises:
        ValueError: another dtype.
    """

    coarse: Step = Secant()
    fine: Step = Auto()
    max_steps: int = MAX_STEPS
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        if self.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                "An inversion iterates in a `dtype` of torch.float32 or torch.float64; "
                f"got {self.dtype}."
            )

    def __call__(self, branch: AnyBranch, z: Tensor) -> Solution:
        """Solve x + g(x) = z from x = z, (B, *event); `n_steps` counts those of 1, 2 and 3."""
        iterate = ToTolerance(self.fine, max_steps=self.max_steps)
        if z.dtype != torch.float64 or self.dtype == torch.float64:
            return iterate(branch, z)
        if isinstance(branch, Opaque):
            return iterate(branch, z)
        fine = normalised_once(branch)
        solution = self._refined(fine, normalised_once(recast(branch, self.dtype)), z)
        rest = (~solution.converged).nonzero()[:, 0]
        if not len(rest):
            return solution
        last = iterate.start(fine.select(rest), z[rest], solution.value[rest])
        return solution.continued(rest, last)

    def _refined(self, fine: Composition, coarse: Composition, z: Tensor) -> Solution:
        """The solution after 1 and 2."""
        target = z.to(self.dtype)
        precondition = mean_preconditioner(coarse, target)
        start = solve(
            lambda x, y, g: x + precondition(y - x - g(x)),
            target,
            self.coarse,
            rtol=START,
            atol=START,
            max_steps=self.max_steps,
            args=(target, coarse),
        )
        newton = NewtonKrylov(_Pushes(coarse), precondition, self.dtype)
        rounds = min(MAX_REFINEMENTS, self.max_steps)
        refine = ToTolerance(newton, max_steps=rounds)
        solution = refine.start(fine, z, start.value.to(z.dtype))
        return replace(solution, n_steps=solution.n_steps + start.n_steps)

    def planned(self) -> list[AnyInversion]:
        """As `ToTolerance.planned`."""
        return [Planned(self)]


@dataclass(frozen=True)
class Planned:
    """Steps 1 and 2 of `ToRounding`, so many of each that no one need ask whether they suffice.

    Up to d = `LARGEST_DIRECT` both are Newton's steps with systems solved directly, and need no P.
    An example that takes more steps than are planned ends with MAX_STEPS.

    solver: gives the coarse dtype, the cap on the steps, and the rule where z is no finer.
    """

    solver: ToRounding = ToRounding()

    def __call__(self, branch: AnyBranch, z: Tensor) -> Solution:
        """Solve x + g(x) = z from x = z, (B, *event)."""
        steps = min(UNASKED, self.solver.max_steps)
        iterate = ToTolerance(self.solver.fine, max_steps=steps)
        coarse_dtype = self.solver.dtype
        if z.dtype != torch.float64 or coarse_dtype == torch.float64:
            return iterate(branch, z)
        if isinstance(branch, Opaque):
            return iterate(branch, z)
        fine = normalised_once(branch)
        coarse = normalised_once(recast(branch, coarse_dtype))
        x = target = z.to(coarse_dtype)
        n_start = min(PLANNED_START, steps)
        product = _Pushes(coarse)
        step: Step
        if math.prod(z.shape[1:]) <= LARGEST_DIRECT:
            step = Newton(product, coarse_dtype)
            for _ in range(n_start):
                g, jacobian = coarse.linearise(x)
                x = x + direct(jacobian.push, target - x - g)
        else:
            # An example that is not finite would spoil the mean.
            precondition = mean_preconditioner(coarse, target.nan_to_num(0.0, 0.0, 0.0))
            step = NewtonKrylov(product, precondition, max_steps=PLANNED_PRODUCTS)
            for _ in range(n_start):
                x = x + precondition(target - x - coarse(x))
        rounds = min(PLANNED_REFINEMENTS, steps)
        solution = replace(iterate, step=step, max_steps=rounds).start(fine, z, x.to(z.dtype))
        return replace(solution, n_steps=solution.n_steps + n_start)

    def planned(self) -> list[AnyInversion]:
        """None: it is itself an attempt."""
        return []


@dataclass(frozen=True)
class Quick:
    """x + g(x) = z by Newton's steps for a whole batch, the fewest operations for a first attempt.

    1. P = (I + J)^-1 at the batch's mean slopes at z. From x = z - P g(z) take Picard's steps with
       P, x <- x + P (z - x - g(x)), one if the start gained little.
    2. Newton's steps in the coarse dtype go to `QUICK_START`, their systems preconditioned by P.
    3. The J of the last of them serves the corrections of residuals in z's dtype, to about the
       rounding that a certificate counts.

    A step ends when all examples' systems are solved, and the inversion when all examples are, so
    that an example costs as much as the worst one. Where that was not reached, x is less exact.

    solver: gives the coarse dtype, and the inversion where z is no finer or g's J v is not known.
    """

    solver: ToRounding = ToRounding()

    def __call__(self, branch: AnyBranch, z: Tensor, error: Tensor | float = 0.0) -> Solution:
        """Solve x + g(x) = z from x = z, (B, *event).

        error: (B,), by which z is off in any case; a residual far below it gains nothing.
        """
        dtype = self.solver.dtype
        if z.dtype != torch.float64 or dtype == torch.float64 or isinstance(branch, Opaque):
            return self.solver(branch, z)
        fine, coarse = normalised_once(branch), normalised_once(recast(branch, dtype))
        with no_grad_for(branch):
            x, size, n_steps = self._iterated(fine, coarse, z, error)
        x, size = x.clone(), size.clone()  # autograd refuses tensors of the inference mode
        outcome = torch.where(size < math.inf, Outcome.CONVERGED, Outcome.DIVERGED)
        steps = torch.full_like(size, n_steps, dtype=torch.int64)
        return Solution(x, size, steps, outcome.to(torch.int8))

    def _iterated(
        self, fine: Composition, coarse: Composition, z: Tensor, error: Tensor | float
    ) -> tuple[Tensor, Tensor, int]:
        """x, ||z - x - g(x)||, (B,), and the evaluations of g."""
        dtype = self.solver.dtype
        # An example that is not finite would spoil the mean.
        target = z.to(dtype).nan_to_num(0.0, 0.0, 0.0)
        g, jacobian = coarse.linearise(target)
        precondition = _mean_inverse(jacobian, target)
        x, n_steps = target - precondition(g), 1
        for k in range(QUICK_PICARD):
            residual, n_steps = target - x - coarse(x), n_steps + 1
            x = x + precondition(residual)
            if k == 0 and _largest(residual) > QUICK_RATE * _largest(g):
                break
        for _ in range(QUICK_COARSE):
            g, jacobian = coarse.linearise(x)
            residual, n_steps = target - x - g, n_steps + 1
            size = _norm(residual)
            is_near = bool((size <= QUICK_START * (1 + _norm(x))).all())
            x = x + _corrected(jacobian, residual, QUICK_LOOSE * size, precondition)
            if is_near:
                break
        wide = x.to(z.dtype)
        floor = QUICK_FLOOR * torch.finfo(z.dtype).eps * (1 + _norm(wide))
        enough = torch.clamp(floor, min=QUICK_SHARE * error)
        for k in range(QUICK_FINE):
            residual, n_steps = z - wide - fine(wide), n_steps + 1
            size = _norm(residual)
            if k == QUICK_FINE - 1 or bool((size <= enough).all()):
                break
            size = size.clamp_min(torch.finfo(z.dtype).tiny)
            scale = size.view(-1, *[1] * (z.ndim - 1))
            limit = (enough / size / 2).clamp_min(QUICK_TIGHT)
            limit = torch.where(size <= enough, math.inf, limit)
            step = _corrected(jacobian, (residual / scale).to(dtype), limit, precondition)
            wide = wide + scale * step.to(z.dtype)
        return wide, size, n_steps

    def planned(self) -> list[AnyInversion]:
        """None: it is itself an attempt."""
        return []


@dataclass(frozen=True)
class ToError:
    """x with a certified ||x - x*||_2 <= error; a flow marks the others UNCERTIFIED.

    A flow first makes an attempt of few operations; an x within the error is good enough, even if
    more steps would change it. Examples that it leaves uncertified are inverted as exactly as
    possible, each block's bound tightened, see `ResidualBlock.inverse`.

    error: the largest error that is good enough, above 0.
    solver: how x is computed: float64's rounding, whatever the dtype of z, is the best that a
        certificate can start from.
    share: of the error, above which a block's bound is tightened.
    slack: an error of every block's latents that is as good as none.

    Raises:
        ValueError: an `error` that is not positive and finite.
    """

    error: float
    solver: ToRounding | Quick = ToRounding()
    share: float = 0.0
    slack: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.error < math.inf:
            raise ValueError(f"An inversion needs a positive, finite `error`; got {self.error}.")

    def __call__(self, branch: AnyBranch, z: Tensor, error: Tensor | None = None) -> Solution:
        """As the solver's; error: (B,), that of z, 0 if None."""
        if not isinstance(self.solver, Quick):
            return self.solver(branch, z)
        slack = self.slack if error is None else error.clamp_min(self.slack)
        return self.solver(branch, z, slack)

    def planned(self) -> list[AnyInversion]:
        """As `ToTolerance.planned`; whether they suffice depends on the bound alone."""
        return self.solver.planned()

    def attempt(self, apart: float) -> ToError:
        """The first attempt on a CPU; apart: a bound on the product of the m of all blocks."""
        if not isinstance(self.solver, ToRounding):
            return self
        slack = self.error * max(apart, 0.0)
        return replace(self, solver=Quick(self.solver), share=SHARE, slack=slack)


AnyInversion = ToTolerance | ToRounding | ToError | Planned | Quick


def Inversion(  # noqa: N802 -- an older name, of a class with all of these fields
    step: Step | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    max_steps: int = MAX_STEPS,
    error: float | None = None,
    dtype: torch.dtype | None = None,
) -> AnyInversion:
    """`ToError` if an error is given, else `ToRounding` for a dtype, else `ToTolerance`.

    Raises:
        ValueError: tolerances together with an error or a dtype, both of which go to rounding; an
            `error` that is not positive and finite; a dtype other than float32 and float64.

    >>> Inversion(rtol=1e-3, atol=0.0)
    ToTolerance(step=Picard(), rtol=0.001, atol=0.0, max_steps=2000)
    """
    if error is None and dtype is None:
        return ToTolerance(step or Picard(), rtol, atol, max_steps)
    if rtol is not None or atol is not None:
        raise ValueError(
            "An inversion goes to a tolerance, or to rounding for an `error` or in a `dtype`; got "
            f"rtol={rtol} and atol={atol} with error={error} and dtype={dtype}. Leave one out."
        )
    solver = ToRounding(step or Secant(), step or Auto(), max_steps, dtype or torch.float32)
    return solver if error is None else ToError(error, solver)


def mean_preconditioner(g: Composition, x: Tensor) -> Callable[[Tensor], Tensor]:
    """r -> (I + J)^-1 r with the one J of the mean slopes at x; r -> r where d is large.

    (I + J)^-1 exists for ||J|| < 1, which holds for a mean of Jacobians below 1 in norm. Where it
    does not exist, its numbers are not finite, and an iteration with it diverges.
    """
    if math.prod(x.shape[1:]) > LARGEST_INVERTED or not len(x):
        return lambda r: r
    return _mean_inverse(g.linearise(x)[1], x)


def _mean_inverse(jacobian: Jacobian, x: Tensor) -> Callable[[Tensor], Tensor]:
    """As `mean_preconditioner`, from the J at x."""
    dim = math.prod(x.shape[1:])
    if dim > LARGEST_INVERTED or not len(x):
        return lambda r: r
    mean = dense_jacobian(jacobian.mean(), x[:1])[0]
    identity = torch.eye(dim, dtype=x.dtype, device=x.device)
    inverse = torch.linalg.inv_ex(identity + mean).inverse.mT.contiguous()
    return lambda r: (r.flatten(1) @ inverse).view_as(r)


def _corrected(jacobian: Jacobian, right: Tensor, limit: Tensor, precondition: Product) -> Tensor:
    """d with ||right - (I + J) d|| <= limit, (B,), or the best of `QUICK_PRODUCTS`."""
    return minimal_residuals(
        jacobian.push, right, limit, QUICK_PRODUCTS, precondition, lambda k: jacobian.select(k).push
    )


def _norm(x: Tensor) -> Tensor:
    """||x||_2 over the event, (B,)."""
    norm: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return norm


def _largest(x: Tensor) -> float:
    """The largest ||x||_2 of the batch, 0 without an example."""
    return max(_norm(x).tolist(), default=0.0)


@dataclass(frozen=True, eq=False)
class _Pushes:
    """x -> (v -> J_g(x) v)."""

    g: Composition

    def __call__(self, x: Tensor) -> Product:
        return self.g.linearise(x)[1].push

    def select(self, examples: Tensor) -> _Pushes:
        return _Pushes(self.g.select(examples))
