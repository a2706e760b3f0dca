"""A residual flow: bijections in a chain and a standard normal base."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from resflow_bench.fixed_point import Solution
from resflow_bench.flows.actnorm import ActNorm
from resflow_bench.flows.residual import Inversion, ResidualBlock
from resflow_bench.layers import Activation, LipSwish, mlp_branch
from resflow_bench.logdet import Geometric, LogDetEstimator, Rademacher, Roulette
from resflow_bench.logdet.estimator import Estimator

DEFAULT_ESTIMATOR = LogDetEstimator(Rademacher(), Roulette(Geometric(0.1), n_exact=3))
"""Unbiased, and of finite variance while the spectral radius stays below 0.94."""


class Bijection(Protocol):
    """A layer of a flow: x -> z with its log-det, and z -> x with its error bound."""

    def __call__(self, x: Tensor) -> Tensor:
        """z, (B, *event)."""
        ...

    def forward_and_log_det(
        self, x: Tensor, estimator: Estimator, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """(z, ln|det dz/dx|): (B, *event), (B,) nats."""
        ...

    def inverse(
        self, z: Tensor, inversion: Inversion, error: Tensor | None = None, certify: bool = True
    ) -> Solution:
        """x, and a bound on its distance from the x of a z that is off by at most `error`."""
        ...


class ResidualFlow(nn.Module):
    """z = f_L(... f_1(x)),  log p(x) = log N(z; 0, I) + sum_l ln|det df_l/dx_(l-1)|.

    Data x go to latents z; each log-det is taken at that layer's own input.

    Args:
        layers: bijections, from data to latent.
        dim: d; x is (B, d).
        estimator: how each residual block's log-det is evaluated.

    Source: Chen et al. (2019), "Residual Flows for Invertible Generative Modeling".

    >>> flow = ResidualFlow.mlp(dim=2, hidden=(16,), n_blocks=2, lipschitz=0.5,
    ...                         generator=torch.Generator().manual_seed(0))
    >>> flow.log_prob(torch.zeros(3, 2), torch.Generator().manual_seed(1)).shape
    torch.Size([3])
    """

    def __init__(
        self, layers: Sequence[nn.Module], dim: int, estimator: Estimator = DEFAULT_ESTIMATOR
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.dim = dim
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
            dim: d.
            hidden: the widths between the linear layers.
            n_blocks: residual blocks.
            lipschitz: the bound on each block's g, the product over its layers and activations;
                in (0, 1).
            activation: phi.
            estimator: for the log-dets.
            generator: for the initial weights; None is a fresh one with seed 0. The
                flow is made on its device.

        Raises:
            ValueError: if `lipschitz` is outside (0, 1) or `n_blocks` is below 1.
        """
        if n_blocks < 1:
            raise ValueError(f"A flow needs n_blocks of at least 1; got {n_blocks}.")
        if generator is None:
            generator = torch.Generator().manual_seed(0)
        layers: list[nn.Module] = []
        for _ in range(n_blocks):
            branch = mlp_branch(dim, hidden, lipschitz, activation, generator=generator)
            layers += [ActNorm(dim), ResidualBlock(branch)]
        return cls(layers, dim, estimator).to(generator.device)

    @property
    def bijections(self) -> list[Bijection]:
        """The layers, from data to latent."""
        return list(self.layers)  # type: ignore[arg-type]

    @property
    def blocks(self) -> list[ResidualBlock]:
        """The residual blocks, from data to latent."""
        return [layer for layer in self.layers if isinstance(layer, ResidualBlock)]

    def with_estimator(self, estimator: Estimator) -> Self:
        """The same flow, parameters shared, whose log-dets come from `estimator`."""
        view = copy.copy(self)
        view.estimator = estimator
        return view

    def forward(self, x: Tensor) -> Tensor:
        """z = f(x), (B, d)."""
        for layer in self.bijections:
            x = layer(x)
        return x

    def forward_and_log_det(
        self, x: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """(z, ln|det df/dx|), (B, d) and (B,) nats, differentiable in x and in the parameters."""
        log_det = x.new_zeros(x.shape[0])
        for layer in self.bijections:
            x, term = layer.forward_and_log_det(x, self.estimator, generator)
            log_det = log_det + term
        return x, log_det

    def log_prob(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """log p(x), (B,), nats: unbiased if the estimator is."""
        z, log_det = self.forward_and_log_det(x, generator)
        return -0.5 * (z.square().sum(-1) + self.dim * math.log(2 * math.pi)) + log_det

    def inverse(
        self, z: Tensor, inversion: Inversion = Inversion(), certify: bool = True
    ) -> Solution:
        """x = f^-1(z), block by block, with a bound on ||x - x*|| for each example.

        Returns:
            `value` (B, d); `residual`, the largest over the blocks; `n_steps`, the sum over the
            blocks; `outcome`, the worst over the blocks; `error_bound` (B,), None unless
            `certify`. The errors of the later blocks are carried through the earlier ones, each
            of which may stretch them by 1/(1 - K).

        Nothing is raised: ask `raise_if_failed()` of what is returned, or read its `outcome`.
        """
        error = None
        solutions = []
        for layer in reversed(self.bijections):
            solution = layer.inverse(z, inversion, error, certify)
            z, error = solution.value, solution.error_bound
            solutions.append(solution)
        return Solution(
            value=z,
            residual=torch.stack([s.residual for s in solutions]).amax(0),
            n_steps=torch.stack([s.n_steps for s in solutions]).sum(0),
            outcome=torch.stack([s.outcome for s in solutions]).amax(0),
            error_bound=error,
        )

    @torch.no_grad()
    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        inversion: Inversion = Inversion(),
    ) -> Tensor:
        """n draws x = f^-1(z), z ~ N(0, I): (n, d).

        Raises:
            ArithmeticError: if an inverse diverged or met its cap on steps.
        """
        like = next(iter(self.state_dict().values()))
        z = torch.randn(n, self.dim, generator=generator, dtype=like.dtype, device=like.device)
        solution = self.inverse(z, inversion, certify=False)
        solution.raise_if_failed()
        return solution.value

    def inputs(self, x: Tensor) -> Iterator[tuple[Bijection, Tensor]]:
        """(layer, that layer's input) from data to latent."""
        for layer in self.bijections:
            yield layer, x
            x = layer(x)

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Set every ActNorm from the batch x, (B, d), each on what reaches it."""
        for layer in self.bijections:
            if isinstance(layer, ActNorm):
                layer.initialise(x)
            x = layer(x)

    def update(self, n_steps: int = 5) -> None:
        """Power iteration in every linear layer; call it after each optimiser step."""
        for block in self.blocks:
            block.branch.update(n_steps)

    def align(self) -> None:
        """Set every power iteration to its limit, by singular value decomposition."""
        for block in self.blocks:
            block.branch.align()
