"""A residual flow: bijections in a chain and a base density."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from itertools import chain
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from resflow_bench.arguments import check_batch, check_count
from resflow_bench.fixed_point import Solution
from resflow_bench.flows.bases import BaseDensity, StandardNormal
from resflow_bench.flows.bases.base import check_gradient, drawn, log_density
from resflow_bench.flows.bijection import HasLoss, SeriesBlock
from resflow_bench.flows.composition import AnyBijection, Chain, inverse_of, mlp_layers
from resflow_bench.flows.forms.actnorm import ActNorm, check_examples
from resflow_bench.flows.implicit import attached
from resflow_bench.flows.inversion import AnyInversion, ToError, ToTolerance
from resflow_bench.flows.residual import ResidualBlock, follow
from resflow_bench.flows.saving import described, read
from resflow_bench.layers import Activation, AnyBranch, LipSwish
from resflow_bench.layers.given import context_rows
from resflow_bench.logdet import Geometric, LogDetEstimator, Rademacher, Roulette
from resflow_bench.logdet.estimator import Estimator

DEFAULT_ESTIMATOR = LogDetEstimator(Rademacher(), Roulette(Geometric(0.1), n_exact=3))
"""Unbiased, and of finite variance while the spectral radius stays below 0.94."""


class ResidualFlow(nn.Module):
    """z = f_L(... f_1(x)),  log p(x) = log p_base(z) + sum_l ln|det df_l/dx_(l-1)|.

    Data x go to latents z; each log-det is taken at that layer's own input.

    A flow with conditional blocks, g(x; c), has a density log p(x | c). All its methods then need
    `context`: c, (B, n_context) in the dtype of the parameters, a row for each example; or one row
    for all, (n_context,) or (1, n_context). Another flow refuses it.

    Args:
        layers: bijections, from data to latent; the output of the last is vectors, (B, d).
        event: shape of one x; an int d is (d,). d is the product of the event's sizes.
        estimator: evaluates the log-det of each residual block.
        base: the density of z, by default the standard normal; see `BaseDensity`.

    Raises:
        ValueError: no layer, a size below 1, or blocks with contexts of different sizes; in all
            methods a missing context, one that is not needed, or one of another shape or dtype.
        TypeError: a layer that is no bijection, a base that is no density.

    Source: Chen et al. (2019), "Residual Flows for Invertible Generative Modeling".

    >>> flow = ResidualFlow.mlp(dim=2, hidden=(16,), n_blocks=2, lipschitz=0.5,
    ...                         generator=torch.Generator().manual_seed(0))
    >>> flow.log_prob(torch.zeros(3, 2), torch.Generator().manual_seed(1)).shape
    torch.Size([3])
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        event: int | Sequence[int],
        estimator: Estimator = DEFAULT_ESTIMATOR,
        base: BaseDensity | None = None,
    ) -> None:
        super().__init__()
        sizes = tuple(event) if isinstance(event, Sequence) else (event,)
        if not sizes:
            raise ValueError("A flow needs an event of one size or more; got none.")
        self.event = tuple(check_count("A flow", "event", size) for size in sizes)
        self.dim = math.prod(self.event)
        self.layers = Chain(*layers)
        self.estimator = estimator
        if base is None:
            base = StandardNormal(self.dim, next(self._numbers(), None))
        if not isinstance(base, BaseDensity):
            raise TypeError(
                "A flow needs a base density with `log_prob` and `sample`, see `BaseDensity`; "
                f"{type(base).__name__} lacks them."
            )
        self.base = base
        sizes_of_c = {n for block in self.blocks if (n := block.n_context) is not None}
        if len(sizes_of_c) > 1:
            raise ValueError(
                "A flow has one context for all its blocks; got blocks with contexts of sizes "
                f"{sorted(sizes_of_c)}. Give them one `n_context`."
            )
        self.n_context = next(iter(sizes_of_c), None)

    @classmethod
    def mlp(
        cls,
        dim: int,
        hidden: Sequence[int],
        n_blocks: int,
        lipschitz: float,
        activation: Callable[[], Activation] = LipSwish,
        estimator: Estimator = DEFAULT_ESTIMATOR,
        generator: torch.Generator | None = None,
        context: int | None = None,
        base: BaseDensity | None = None,
    ) -> Self:
        """`n_blocks` times ActNorm and a block whose g is W phi W ... phi W.

        Args:
            hidden: the widths between the linear layers.
            lipschitz: the bound on each block's g, the product over its layers and activations;
                in (0, 1).
            activation: phi.
            generator: draws the initial weights; None is a fresh one with seed 0. The flow is made
                on its device.
            context: the size of c, for a conditional flow, see `layers.conditional`.
            base: the density of z, by default the standard normal.

        Raises:
            ValueError: if `lipschitz` is outside (0, 1) or `n_blocks` is below 1.
        """
        check_count("A flow", "n_blocks", n_blocks)
        generator = generator or torch.Generator().manual_seed(0)
        layers = mlp_layers(dim, hidden, n_blocks, lipschitz, activation, generator, context)
        return cls(layers, dim, estimator, base).to(generator.device)

    @property
    def bijections(self) -> list[AnyBijection]:
        return self.layers.bijections

    @property
    def blocks(self) -> list[ResidualBlock]:
        """The residual blocks, from data to latent, those inside other layers included."""
        return [module for module in self.modules() if isinstance(module, ResidualBlock)]

    def __setattr__(self, name: str, value: Any) -> None:
        # An estimator is a setting, and no part of the flow's state even if it is a module: a view
        # with another one shares all of that state.
        if name == "estimator":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def with_estimator(self, estimator: Estimator) -> Self:
        """A view of this flow, parameters shared, with log-dets from `estimator`."""
        view = copy.copy(self)
        view.estimator = estimator
        return view

    def save(self, file: str | Path, about: Mapping[str, Any] | None = None) -> None:
        """Write architecture and numbers into one file, without the estimator; see `load`.

        Args:
            about: notes in plain values, such as the data it was trained on.

        Raises:
            ValueError: a part that a file cannot hold, see `flows.saving`.
            OSError: the file cannot be written.
        """
        described(self, about or {}).write(Path(file))

    @classmethod
    def load(cls, file: str | Path, estimator: Estimator = DEFAULT_ESTIMATOR) -> Self:
        """The flow that `save` wrote, on the CPU, in the dtype it had. No code of the file is run.

        Raises:
            ValueError: it is no file of a flow, or has parts that this package does not know.
        """
        flow: Self = read(Path(file)).rebuilt(cls).with_estimator(estimator)
        return flow

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """z = f(x), (B, *event) -> (B, d)."""
        self._check(x)
        z: Tensor = self._given(context, len(x))(x)
        return z

    def forward_and_log_det(
        self,
        x: Tensor,
        generator: torch.Generator | None = None,
        context: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(z, ln|det df/dx|), (B, d) and (B,) nats, differentiable in x, c and the parameters."""
        self._check(x)
        layers = self._given(context, len(x))
        return layers.forward_and_log_det(x, self.estimator, generator)

    def log_prob(
        self,
        x: Tensor,
        generator: torch.Generator | None = None,
        context: Tensor | None = None,
    ) -> Tensor:
        """log p(x), or log p(x | c), (B,), nats: unbiased if the estimator is.

        With a random estimator two calls differ (by 2 nat at d = 64, by the default one). The same
        number every time, without noise and at d products:
        `flow.with_estimator(Determinant()).log_prob(x)`.

        Raises:
            TypeError: x is no tensor.
            ValueError: x is not (B, *event) in the dtype of the parameters; the layers do not end
                in vectors, (B, d).
        """
        z, log_det = self.forward_and_log_det(x, generator, context)
        if z.shape[1:] != (self.dim,):
            raise ValueError(
                f"A flow needs latents of shape (B, {self.dim}) for its base density; got "
                f"{tuple(z.shape)}. End its layers with Flatten or FactorOut."
            )
        return log_density(self.base, z) + log_det

    def loss(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The number that a training minimises, (): -mean log p(x), in nats.

        If the last bijection has a `loss` of its own, that one, at the outputs of the layers in
        front, which are not trained then.
        """
        *before, last = self.bijections
        if isinstance(last, HasLoss):
            with torch.no_grad():
                h = reduce(lambda h, layer: layer(h), before, x)
            if (own := last.loss(h, generator)) is not None:
                return own
        return -self.log_prob(x, generator).mean()

    @torch.no_grad()
    def inverse(
        self,
        z: Tensor,
        inversion: AnyInversion = ToTolerance(),
        certify: bool = True,
        context: Tensor | None = None,
    ) -> Solution:
        """x near x* = f^-1(z), layer by layer, with a bound on ||x - x*|| for each example.

        Let x' be the inverse of the same z by the same parameters in float64, to rounding. Then

            ||x - x*||  <=  ||x - x'|| + ||x' - x*||.

        1. The first term is computed.
        2. For the second, go from latent to data. Let e be a bound on the error in the z of a
           layer; at first e = 0. A block whose float64 residual is r leaves at most (r + e) / m,
           m >= 1 - K, see `ResidualBlock.inverse`. Any other layer leaves its rounding and e times
           the Lipschitz constant of its inverse.

        Only float64's residuals, some 1e-14 ||x||, are amplified by the product of all 1 / m.

        Off the CPU attempts with few steps come first, see `_solved`; all of the above holds for
        them. The host waits for the weights, and once for each attempt.

        Args:
            z: (B, d). With `ToError` z may be float64 where the parameters are not, and so is x.
            inversion: `ToTolerance`, with which each block iterates in the dtype of z; or `ToError`
                or `ToRounding`, with which x is x' rounded to z's dtype: one pass suffices, its
                iterations in float32 and its residuals in float64, and the first term is rounding.
            certify: whether to compute the bound. With `ToTolerance` it costs x' beside x and does
                not change the value.

        Returns:
            `value` (B, *event); over the blocks the largest `residual`, the sum of `n_steps` and
            the worst `outcome`, or UNCERTIFIED where all converged but the bound is above the error
            of `ToError`. No failed example raises an exception: see `Solution.raise_if_failed`.

        Warns:
            UserWarning: a branch does not keep its promise, see `update`.

        Raises:
            TypeError: z is no tensor.
            ValueError: z is not (B, d), or `ToTolerance` is not given it in the dtype of the
                parameters; `ToError` without `certify`.
        """
        dtype = self._dtype() if isinstance(inversion, ToTolerance) else None
        check_batch("A flow's inverse", z, (self.dim,), dtype, "z")
        rows = self._rows(context, len(z))
        return inverse_of(self.layers, rows, z, inversion, certify)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        inversion: AnyInversion = ToTolerance(),
        context: Tensor | None = None,
        temperature: float = 1.0,
        batch_size: int | None = None,
    ) -> Tensor:
        """n draws x = f^-1(z), z ~ `base`: (n, *event), constants for autograd.

        A loss of samples, such as the reverse Kullback-Leibler divergence, has no gradient through
        them; `rsample` has.

        Args:
            temperature: T > 0; z ~ p_T, proportional to p(z)^(1/T^2), for a normal base that of T
                times its standard deviations. x is then no draw from p(x).
            batch_size: examples that are inverted at a time; None is all. All z are drawn
                beforehand, so that the draws do not depend on it, except by rounding.

        Warns:
            UserWarning: a branch does not keep its promise, see `update`.

        Raises:
            ValueError: n is no whole number of at least 0, `batch_size` none of at least 1;
                a temperature not positive and finite, or not 1 with a base that has none.
            ArithmeticError: an inverse diverged, reached its cap on steps, or could not certify
                the error of `ToError`.
        """
        z = drawn(self.base, n, generator, temperature)
        return self._inverted(z, inversion, context, batch_size)

    def rsample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        inversion: AnyInversion = ToTolerance(),
        context: Tensor | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """`sample`, (n, *event), differentiable in c and in the parameters, the base's included.

        By the implicit function theorem, at the x that was found: memory does not grow with the
        steps of the inverse, and the backward pass solves one linear system a block.

        Raises:
            TypeError: a bijection that is iterated and no block of this package; a base with
                parameters that are trained and samples without a gradient in them.
            ArithmeticError: as `sample`; also in the backward pass, if a system is not solved.
        """
        return self._moving(n, generator, inversion, context, temperature)[1]

    def sample_and_log_prob(
        self,
        n: int,
        generator: torch.Generator | None = None,
        inversion: AnyInversion = ToTolerance(),
        context: Tensor | None = None,
        temperature: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """(x, log p(x)) of n draws, (n, *event) and (n,) nats, both differentiable; see `rsample`.

        The mean of log p(x) - log q(x) is the reverse Kullback-Leibler divergence to q. p is the
        density of the flow at any temperature, not that of tempered draws.
        """
        z, x = self._moving(n, generator, inversion, context, temperature)
        return x, log_density(self.base, z) + self.forward_and_log_det(x, generator, context)[1]

    def inputs(
        self, x: Tensor, context: Tensor | None = None
    ) -> Iterator[tuple[AnyBijection, Tensor]]:
        """(layer, that layer's input) from data to latent, those inside other layers included."""
        self._check(x)
        yield from self._given(context, len(x)).inputs(x)

    def branches(self, x: Tensor, context: Tensor | None = None) -> list[tuple[AnyBranch, Tensor]]:
        """(g, the point at which its J is taken) of each block, from data to latent."""
        return [(f.g, f.at(h)) for f, h in self.inputs(x, context) if isinstance(f, SeriesBlock)]

    @torch.no_grad()
    def initialise(self, x: Tensor, context: Tensor | None = None) -> None:
        """Set every ActNorm from the batch x, (B, *event), each from its own input.

        Raises:
            ValueError: x has no example, or one that is not finite at the input of an ActNorm.
        """
        lost = [layer.fit(h) for layer, h in self.inputs(x, context) if isinstance(layer, ActNorm)]
        if lost:  # read at once, as the host waits for an accelerator here
            for n_lost in torch.stack(lost).tolist():
                check_examples(len(x), n_lost)

    def update(self) -> None:
        """Make every branch keep its promise again; call it after each optimiser step.

        After a step alone a branch may have a Lipschitz constant of 1 and more, and no inverse; so
        may a flow whose weights are an average of others'.

        Properties: elsewhere than on the CPU the norms of all layers are computed in a few batched
            products, and the host does not wait (it does for learnable orders).

        Raises:
            torch.linalg.LinAlgError: a weight on the CPU is not finite. Elsewhere such a weight
                makes the outputs of its layer NaN.
        """
        follow(self.layers)

    def align(self) -> None:
        """Make every branch keep its promise as tightly as it can, by exact norms."""
        follow(self.layers, align=True)

    @torch.no_grad()
    def _inverted(
        self,
        z: Tensor,
        inversion: AnyInversion,
        context: Tensor | None,
        batch_size: int | None = None,
    ) -> Tensor:
        """f^-1(z), so many examples at a time."""
        size = max(1, len(z)) if batch_size is None else batch_size
        check_count("sample", "batch_size", size)
        rows = self._rows(context, len(z))
        certify = isinstance(inversion, ToError)
        parts = []
        for k in range(0, max(1, len(z)), size):
            c = None if rows is None else rows[k : k + size]
            solution = self.inverse(z[k : k + size], inversion, certify, c)
            parts.append(solution.raise_if_failed().value)
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _moving(
        self,
        n: int,
        generator: torch.Generator | None,
        inversion: AnyInversion,
        context: Tensor | None,
        temperature: float,
    ) -> tuple[Tensor, Tensor]:
        """z and f^-1(z) of n draws, differentiable."""
        z = drawn(self.base, n, generator, temperature)
        check_gradient(self.base, z)
        x = self._inverted(z.detach(), inversion, context)
        return z, attached(self._given(context, n), z, x)

    def _given(self, context: Tensor | None, n: int) -> Chain:
        """The layers, at the contexts of n examples if the flow is conditional."""
        return self.layers.given(self._rows(context, n))

    def _rows(self, context: Tensor | None, n: int) -> Tensor | None:
        """The contexts of n examples, (n, n_context)."""
        return context_rows(context, self.n_context, n, self._dtype)

    def _check(self, x: Tensor) -> None:
        check_batch("This flow", x, self.event, self._dtype())

    def _dtype(self) -> torch.dtype | None:
        """That of the parameters, or else of the buffers; None if there is neither."""
        like = next(self._numbers(), None)
        return None if like is None else like.dtype

    def _numbers(self) -> Iterator[Tensor]:
        """The layers' parameters and buffers of floating point."""
        state: Iterator[Tensor] = chain(self.layers.parameters(), self.layers.buffers())
        return (t for t in state if t.is_floating_point())
