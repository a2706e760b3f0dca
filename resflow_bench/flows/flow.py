"""A residual flow: bijections in a chain and a standard normal base."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from resflow_bench.arguments import check_batch, check_count, finite_rows
from resflow_bench.fixed_point import Outcome, Solution
from resflow_bench.flows.actnorm import ActNorm, check_examples
from resflow_bench.flows.composition import AnyBijection, Chain
from resflow_bench.flows.copies import in_float64
from resflow_bench.flows.implicit import attached
from resflow_bench.flows.inversion import AnyInversion, ToError, ToTolerance
from resflow_bench.flows.residual import ResidualBlock, compare_all, follow
from resflow_bench.flows.saving import described, read
from resflow_bench.layers import Activation, AnyBranch, LipSwish, mlp_branch
from resflow_bench.logdet import Geometric, LogDetEstimator, Rademacher, Roulette
from resflow_bench.logdet.estimator import Estimator
from resflow_bench.logdet.probes import drawn_on

DEFAULT_ESTIMATOR = LogDetEstimator(Rademacher(), Roulette(Geometric(0.1), n_exact=3))
"""Unbiased, and of finite variance while the spectral radius stays below 0.94."""


class ResidualFlow(nn.Module):
    """z = f_L(... f_1(x)),  log p(x) = log N(z; 0, I) + sum_l ln|det df_l/dx_(l-1)|.

    Data x go to latents z; each log-det is taken at that layer's own input.

    Args:
        layers: bijections, from data to latent; the output of the last is vectors, (B, d).
        event: shape of one x; an int d is (d,). d is the product of the event's sizes.
        estimator: evaluates the log-det of each residual block.

    Raises:
        ValueError: no layer, or a size below 1.
        TypeError: a layer that is no bijection.

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
    ) -> None:
        super().__init__()
        sizes = tuple(event) if isinstance(event, Sequence) else (event,)
        if not sizes:
            raise ValueError("A flow needs an event of one size or more; got none.")
        self.event = tuple(check_count("A flow", "event", size) for size in sizes)
        self.dim = math.prod(self.event)
        self.layers = Chain(*layers)
        self.estimator = estimator

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
    ) -> Self:
        """`n_blocks` times ActNorm and a block whose g is W phi W ... phi W.

        Args:
            hidden: the widths between the linear layers.
            lipschitz: the bound on each block's g, the product over its layers and activations;
                in (0, 1).
            activation: phi.
            generator: draws the initial weights; None is a fresh one with seed 0. The flow is made
                on its device.

        Raises:
            ValueError: if `lipschitz` is outside (0, 1) or `n_blocks` is below 1.
        """
        check_count("A flow", "n_blocks", n_blocks)
        generator = generator or torch.Generator().manual_seed(0)
        layers = mlp_layers(dim, hidden, n_blocks, lipschitz, activation, generator)
        return cls(layers, dim, estimator).to(generator.device)

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

    def forward(self, x: Tensor) -> Tensor:
        """z = f(x), (B, *event) -> (B, d)."""
        self._check(x)
        z: Tensor = self.layers(x)
        return z

    def forward_and_log_det(
        self, x: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """(z, ln|det df/dx|), (B, d) and (B,) nats, differentiable in x and in the parameters."""
        self._check(x)
        return self.layers.forward_and_log_det(x, self.estimator, generator)

    def log_prob(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """log p(x), (B,), nats: unbiased if the estimator is.

        With a random estimator two calls differ (by 2 nat at d = 64, by the default one). The same
        number every time, without noise and at d products:
        `flow.with_estimator(Determinant()).log_prob(x)`.

        Raises:
            TypeError: x is no tensor.
            ValueError: x is not (B, *event) in the dtype of the parameters; the layers do not end
                in vectors, (B, d).
        """
        z, log_det = self.forward_and_log_det(x, generator)
        if z.shape[1:] != (self.dim,):
            raise ValueError(
                f"A flow needs latents of shape (B, {self.dim}) for its base density; got "
                f"{tuple(z.shape)}. End its layers with Flatten or FactorOut."
            )
        return self._log_base(z) + log_det

    @torch.no_grad()
    def inverse(
        self, z: Tensor, inversion: AnyInversion = ToTolerance(), certify: bool = True
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
        if _is_off_cpu(z):
            compare_all(self.blocks)
        if not certify:
            if isinstance(inversion, ToError):
                raise ValueError(
                    f"An inverse with error={inversion.error:g} needs a certificate; got "
                    "certify=False. Leave one of them out."
                )
            return _solved(self.layers, z, inversion, certify=False)
        reference = inversion
        if isinstance(inversion, ToTolerance):
            reference = inversion.reference(z.dtype)
        exact = _solved(in_float64(self.layers), z.double(), reference, certify=True)
        if reference is inversion:
            value, residual = exact.value.to(z.dtype), exact.residual.to(z.dtype)
            solution = replace(exact, value=value, residual=residual)
        else:
            solution = _solved(self.layers, z, inversion, certify=False)
        bound = (solution.value.double() - exact.value).flatten(1).norm(dim=1) + exact.error_bound
        bound = torch.where(bound < torch.inf, bound, torch.inf)  # also if it is not a number
        solution = replace(solution, error_bound=bound)
        return solution.demand(inversion.error) if isinstance(inversion, ToError) else solution

    @torch.no_grad()
    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        inversion: AnyInversion = ToTolerance(),
    ) -> Tensor:
        """n draws x = f^-1(z), z ~ N(0, I): (n, *event), constants for autograd.

        A loss of samples, such as the reverse Kullback-Leibler divergence, has no gradient through
        them; `rsample` has.

        Warns:
            UserWarning: a branch does not keep its promise, see `update`.

        Raises:
            ValueError: n is no whole number of at least 0.
            ArithmeticError: an inverse diverged, reached its cap on steps, or could not certify
                the error of `ToError`.
        """
        return self._sampled(n, generator, inversion)[1]

    def rsample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        inversion: AnyInversion = ToTolerance(),
    ) -> Tensor:
        """`sample`, (n, *event), differentiable in the parameters at a fixed z.

        By the implicit function theorem, at the x that was found: memory does not grow with the
        steps of the inverse, and the backward pass solves one linear system a block.

        Raises:
            TypeError: a bijection that is iterated and no `ResidualBlock`.
            ArithmeticError: as `sample`; also in the backward pass, if a system is not solved.
        """
        z, x = self._sampled(n, generator, inversion)
        return attached(self.layers, z, x)

    def sample_and_log_prob(
        self,
        n: int,
        generator: torch.Generator | None = None,
        inversion: AnyInversion = ToTolerance(),
    ) -> tuple[Tensor, Tensor]:
        """(x, log p(x)) of n draws, (n, *event) and (n,) nats, both differentiable; see `rsample`.

        The mean of log p(x) - log q(x) is the reverse Kullback-Leibler divergence to q.
        """
        z, x = self._sampled(n, generator, inversion)
        x = attached(self.layers, z, x)
        return x, self._log_base(z) + self.forward_and_log_det(x, generator)[1]

    def inputs(self, x: Tensor) -> Iterator[tuple[AnyBijection, Tensor]]:
        """(layer, that layer's input) from data to latent, those inside other layers included."""
        self._check(x)
        yield from self.layers.inputs(x)

    def branches(self, x: Tensor) -> list[tuple[AnyBranch, Tensor]]:
        """(g, its input) of each residual block, from data to latent."""
        return [(f.branch, h) for f, h in self.inputs(x) if isinstance(f, ResidualBlock)]

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Set every ActNorm from the batch x, (B, *event), each from its own input.

        Raises:
            ValueError: x has no example, or one that is not finite at the input of an ActNorm.
        """
        lost = [layer.fit(h) for layer, h in self.inputs(x) if isinstance(layer, ActNorm)]
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
        follow(self.blocks)

    def align(self) -> None:
        """Make every branch keep its promise as tightly as it can, by exact norms."""
        follow(self.blocks, align=True)

    @torch.no_grad()
    def _sampled(
        self, n: int, generator: torch.Generator | None, inversion: AnyInversion
    ) -> tuple[Tensor, Tensor]:
        """z and f^-1(z) of n draws."""
        check_count("sample", "n", n, 0)
        like = next(t for t in self.state_dict().values() if t.is_floating_point())
        device = drawn_on(like, generator)
        z = torch.randn(n, self.dim, generator=generator, dtype=like.dtype, device=device)
        z = z.to(like.device, non_blocking=True)
        solution = self.inverse(z, inversion, certify=isinstance(inversion, ToError))
        return z, solution.raise_if_failed().value

    def _log_base(self, z: Tensor) -> Tensor:
        """log N(z; 0, I), (B,) nats."""
        return -0.5 * (z.square().sum(-1) + self.dim * math.log(2 * math.pi))

    def _check(self, x: Tensor) -> None:
        check_batch("This flow", x, self.event, self._dtype())

    def _dtype(self) -> torch.dtype | None:
        """That of the parameters, or else of the buffers; None if there is neither."""
        state = chain(self.parameters(), self.buffers())
        return next((t.dtype for t in state if t.is_floating_point()), None)


def _solved(layers: Chain, z: Tensor, inversion: AnyInversion, certify: bool) -> Solution:
    """`layers.inverse`; off the CPU the first of the `planned` attempts that suffices, if one does.

    An attempt suffices if all examples converged or, with `ToError`, have a bound within the error;
    to ask for that is the only wait. A z that is not finite is no reason for another attempt.
    """
    for attempt in inversion.planned() if _is_off_cpu(z) else []:
        solution = layers.inverse(z, attempt, certify=certify)
        if isinstance(inversion, ToError) and solution.error_bound is not None:
            is_near = solution.error_bound <= inversion.error
            lost = torch.where(finite_rows(z), Outcome.MAX_STEPS, Outcome.DIVERGED)
            outcome = torch.where(is_near, Outcome.CONVERGED, lost).to(torch.int8)
            solution = replace(solution, outcome=outcome)
        if bool((solution.converged | ~finite_rows(z)).all()):
            return solution
    return layers.inverse(z, inversion, certify=certify)


def _is_off_cpu(x: Tensor) -> bool:
    return x.device.type != "cpu"


def mlp_layers(
    dim: int,
    hidden: Sequence[int],
    n_blocks: int,
    lipschitz: float,
    activation: Callable[[], Activation],
    generator: torch.Generator,
) -> list[nn.Module]:
    """The layers of `ResidualFlow.mlp`: `n_blocks` times ActNorm and a residual block."""
    layers: list[nn.Module] = []
    for _ in range(n_blocks):
        branch = mlp_branch(dim, hidden, lipschitz, activation, generator=generator)
        layers += [ActNorm(dim), ResidualBlock(branch)]
    return layers
