"""Bijections made of bijections: one after the other, or on a part of the channels."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from resflow_bench.arguments import check_batch, finite_rows
from resflow_bench.fixed_point import Outcome, Solution
from resflow_bench.flows.bijection import Bijection, ClosedForm, Formulas, as_bijection, or_zeros
from resflow_bench.flows.copies import in_float64
from resflow_bench.flows.forms.actnorm import ActNorm
from resflow_bench.flows.inverse import InverseBlock
from resflow_bench.flows.inversion import AnyInversion, ToError, ToTolerance
from resflow_bench.flows.residual import ResidualBlock, compare_all
from resflow_bench.layers import Activation, conditional, mlp_branch
from resflow_bench.logdet.estimator import Estimator, LogDetEstimator

AnyBijection = Bijection | ClosedForm
Inputs = Generator[tuple[AnyBijection, Tensor], None, Tensor]
"""Yields (bijection, its input) and returns the output of the last."""


class Chain(nn.Sequential):
    """z = f_L(... f_1(x)),  ln|det dz/dx| = sum_l ln|det df_l/dx_(l-1)|, each at its own input.

    Args:
        layers: bijections, in closed form or not, at least one, from data to latent.

    Raises:
        ValueError: no layer.
        TypeError: a layer that is no bijection.
    """

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*layers)
        if not layers:
            raise ValueError("Chain needs at least one bijection; got none.")
        # Once, since a search for a Protocol's members takes as long as a small layer.
        self._parts = [as_bijection(layer) for layer in self]

    @property
    def bijections(self) -> list[AnyBijection]:
        """The layers, from data to latent."""
        return [part.form if isinstance(part, Formulas) else part for part in self._parts]

    def given(self, context: Tensor | None) -> Chain:
        """A view with conditional blocks at the contexts of a batch, (B, n_context); or itself."""
        if context is None:
            return self
        conditional_parts = Chain | FactorOut | InverseBlock | ResidualBlock
        view = copy.copy(self)
        view._parts = [  # noqa: SLF001 - a view of this class
            part.given(context) if isinstance(part, conditional_parts) else part
            for part in self._parts
        ]
        return view

    def forward(self, x: Tensor) -> Tensor:
        for part in self._parts:
            x = part(x)
        return x

    def forward_and_log_det(
        self, x: Tensor, estimator: Estimator, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        check_batch("Chain", x, (...,))
        log_det = x.new_zeros(len(x))
        # Not of a subclass, which may estimate in another way.
        series = estimator if type(estimator) is LogDetEstimator else None
        draws = []
        for layer in self._parts:
            if series is None or type(layer) is not ResidualBlock:
                x, term = layer.forward_and_log_det(x, estimator, generator)
                log_det = log_det + term
                continue
            draws.append(series.draw(layer.g, x, generator))
            x = x + draws[-1].g
            if not series.joins(draws[-1]):
                log_det = log_det + series.total([draws.pop()])
        if series is not None and draws:
            log_det = log_det + series.total(draws)
        return x, log_det

    @torch.no_grad()
    def inverse(
        self, z: Tensor, inversion: AnyInversion, error: Tensor | None = None, certify: bool = True
    ) -> Solution:
        """x, layer by layer from the last; the error bound of each is the next one's error in z.

        Returns:
            `residual`, the largest over the layers; `n_steps`, their sum; `outcome`, the worst.
        """
        solutions = []
        for layer in reversed(self._parts):
            solutions.append(layer.inverse(z, inversion, error, certify))
            z, error = solutions[-1].value, solutions[-1].error_bound
        return Solution(
            value=z,
            residual=torch.stack([s.residual for s in solutions]).amax(0),
            n_steps=torch.stack([s.n_steps for s in solutions]).sum(0),
            outcome=torch.stack([s.outcome for s in solutions]).amax(0),
            error_bound=error,
        )

    def inputs(self, x: Tensor) -> Inputs:
        """(bijection, its input) from data to latent, those inside other bijections included.

        A layer is evaluated after it has been yielded, so the caller may change it in between.
        """
        for layer in self.bijections:
            if isinstance(layer, Chain | FactorOut):
                x = yield from layer.inputs(x)
            else:
                yield layer, x
                x = layer(x)
        return x


class FactorOut(nn.Module):
    """x = (a, b) by channels  ->  z = (flatten(a), inner(b)): half of the channels become latents.

    ln|det dz/dx| = ln|det d inner/db|. In a flow of several scales the layers of a scale end with
    such a layer, which holds the layers of the next scale as `inner`.

    Args:
        inner: bijections of the channels from C // 2 on, the last of which gives vectors.
        event: (C, H, W) of x, with C at least 2.

    Raises:
        ValueError: an event that is not (C, H, W) with two channels to divide.

    Source: Dinh, Sohl-Dickstein and Bengio (2017), "Density estimation using Real NVP", 3.6.
    """

    def __init__(self, *inner: nn.Module, event: Sequence[int]) -> None:
        super().__init__()
        if len(event) != 3 or event[0] < 2:
            raise ValueError(
                f"FactorOut needs an event (C, H, W) with C of at least 2; got {tuple(event)}. "
                "Squeeze the image first."
            )
        self.inner = Chain(*inner)
        self.event = tuple(event)
        self.n_kept = event[0] // 2

    def given(self, context: Tensor) -> FactorOut:
        """As `Chain.given`."""
        view = FactorOut(*self.inner, event=self.event)
        view.inner = self.inner.given(context)
        return view

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, d)."""
        check_batch("FactorOut", x, self.event)
        return self._join(x, self.inner(x[:, self.n_kept :]))

    def forward_and_log_det(
        self, x: Tensor, estimator: Estimator, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        check_batch("FactorOut", x, self.event)
        inner = self.inner.forward_and_log_det(x[:, self.n_kept :], estimator, generator)
        return self._join(x, inner[0]), inner[1]

    @torch.no_grad()
    def inverse(
        self, z: Tensor, inversion: AnyInversion, error: Tensor | None = None, certify: bool = True
    ) -> Solution:
        """x = (a, inner^-1(rest)): of an error e in z at most e reaches each of the two.

        The bound is therefore sqrt(e^2 + e_b^2), e_b the inner chain's bound for an error e.
        """
        n_latents = self.n_kept * math.prod(self.event[1:])
        check_batch("FactorOut", z, (None,), name="z")
        passed = z[:, :n_latents].unflatten(1, (self.n_kept, *self.event[1:]))
        inner = self.inner.inverse(z[:, n_latents:], inversion, error, certify)
        bound = inner.error_bound
        if bound is not None:
            bound = torch.hypot(or_zeros(error, z), bound)
        return replace(inner, value=torch.cat([passed, inner.value], dim=1), error_bound=bound)

    def inputs(self, x: Tensor) -> Inputs:
        z = yield from self.inner.inputs(x[:, self.n_kept :])
        return self._join(x, z)

    def extra_repr(self) -> str:
        return f"event={self.event}"

    def _join(self, x: Tensor, z: Tensor) -> Tensor:
        return torch.cat([x[:, : self.n_kept].flatten(1), z], dim=1)


def inverse_of(
    chain: Chain, context: Tensor | None, z: Tensor, inversion: AnyInversion, certify: bool
) -> Solution:
    """`ResidualFlow.inverse` by the layers of the flow, at contexts (B, n_context) if any."""
    if _is_off_cpu(z):
        compare_all([part for part in chain.modules() if isinstance(part, ResidualBlock)])
    if not certify:
        if isinstance(inversion, ToError):
            raise ValueError(
                f"An inverse with error={inversion.error:g} needs a certificate; got "
                "certify=False. Leave one of them out."
            )
        return _solved(chain, context, z, inversion, certify=False)
    reference = inversion
    if isinstance(inversion, ToTolerance):
        reference = inversion.reference(z.dtype)
    exact = _solved(in_float64(chain), context, z.double(), reference, certify=True, dtype=z.dtype)
    if reference is inversion:
        value, residual = exact.value.to(z.dtype), exact.residual.to(z.dtype)
        solution = replace(exact, value=value, residual=residual)
    else:
        solution = _solved(chain, context, z, inversion, certify=False)
    bound = (solution.value.double() - exact.value).flatten(1).norm(dim=1) + exact.error_bound
    bound = torch.where(bound < torch.inf, bound, torch.inf)  # also if it is not a number
    solution = replace(solution, error_bound=bound)
    return solution.demand(inversion.error) if isinstance(inversion, ToError) else solution


def _solved(
    chain: Chain,
    context: Tensor | None,
    z: Tensor,
    inversion: AnyInversion,
    certify: bool,
    dtype: torch.dtype | None = None,
) -> Solution:
    """The inverse by an attempt of few operations, if one suffices.

    An attempt suffices if all examples converged or, with `ToError`, have a bound within the error
    that includes their rounding to `dtype`. On the CPU `ToError` alone makes one, and the examples
    that it leaves are inverted again. Off the CPU all attempts are `planned`, and all examples are
    inverted again: to ask whether one suffices is the only wait. A z that is not finite is no
    reason for another attempt.
    """
    layers = chain.given(context)
    if not _is_off_cpu(z):
        if not isinstance(inversion, ToError):
            return layers.inverse(z, inversion, certify=certify)
        blocks = [part for part in chain.modules() if isinstance(part, ResidualBlock)]
        quick = inversion.attempt(math.prod(block.bounds().apart for block in blocks))
        solution = _judged(layers.inverse(z, quick), z, inversion, dtype)
        rows = (~solution.converged & finite_rows(z)).nonzero()[:, 0]
        if not len(rows):
            return solution
        rest = chain.given(None if context is None else context[rows])
        return solution.continued(rows, rest.inverse(z[rows], inversion))
    for attempt in inversion.planned():
        solution = layers.inverse(z, attempt, certify=certify)
        if isinstance(inversion, ToError):
            solution = _judged(solution, z, inversion, dtype)
        if bool((solution.converged | ~finite_rows(z)).all()):
            return solution
    return layers.inverse(z, inversion, certify=certify)


def _judged(
    solution: Solution, z: Tensor, inversion: ToError, dtype: torch.dtype | None
) -> Solution:
    """The solution of an attempt, converged where the bound, once rounded, is within the error."""
    assert solution.error_bound is not None  # asked for with `ToError`
    x = solution.value
    rounding = (x - x.to(dtype or x.dtype).to(x.dtype)).flatten(1).norm(dim=1)
    lost = torch.where(finite_rows(z), Outcome.MAX_STEPS, Outcome.DIVERGED)
    is_near = solution.error_bound + rounding <= inversion.error
    outcome = torch.where(is_near, Outcome.CONVERGED, lost).to(torch.int8)
    return replace(solution, outcome=outcome)


def _is_off_cpu(x: Tensor) -> bool:
    return x.device.type != "cpu"


def mlp_layers(
    dim: int,
    hidden: Sequence[int],
    n_blocks: int,
    lipschitz: float,
    activation: Callable[[], Activation],
    generator: torch.Generator,
    context: int | None = None,
) -> list[nn.Module]:
    """The layers of `ResidualFlow.mlp`: `n_blocks` times ActNorm and a residual block."""
    layers: list[nn.Module] = []
    for _ in range(n_blocks):
        branch = mlp_branch(dim, hidden, lipschitz, activation, generator=generator)
        if context is not None:
            branch = conditional(branch, context, generator=generator)
        layers += [ActNorm(dim), ResidualBlock(branch)]
    return layers
