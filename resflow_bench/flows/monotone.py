"""The monotone block: a residual map after the inverse of another, with no even trace."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from resflow_bench.fixed_point import Solution
from resflow_bench.flows.bijection import or_zeros
from resflow_bench.flows.inversion import AnyInversion
from resflow_bench.flows.preimage import block_inverse, preimage
from resflow_bench.flows.residual import ResidualBlock
from resflow_bench.layers import Branch, Conv2d, Linear
from resflow_bench.layers.layer import Normalised
from resflow_bench.layers.norms.norm import Certificate
from resflow_bench.logdet.estimator import Averaged, Estimator, LogDetEstimator
from resflow_bench.logdet.expansions.taylor import Taylor
from resflow_bench.logdet.tuned import PerBranch
from resflow_bench.theory import MONOTONE, Coefficients


class MonotoneBlock(nn.Module):
    """z = 2 w - x with w + g(w) = x, that is (I - g) o (I + g)^-1, for Lip(g) <= K < 1.

    ln|det dz/dx| = ln|det(I - J)| - ln|det(I + J)| = -2 (tr J + tr J^3 / 3 + tr J^5 / 5 + ...),

    J that of g at w. It is the Cayley transform of a monotone map: z and x change by factors
    between (1 - K) / (1 + K) and (1 + K) / (1 - K), where a residual block has 1 - K and 1 + K.

    Args:
        branch: g, a `Branch` without a context, in the Euclidean norm.

    Properties: Taylor's series of a `LogDetEstimator` takes these coefficients, at the products of
        one residual block; so does a mean of such, or a choice by branch. Any other estimator
        (`Determinant`, `Arnoldi`, one of your own) is called twice, for g and -g with the same
        draws, so that the even terms cancel in each draw. Unbiased if the estimator is. Each call
        solves for w to rounding, and a backward pass solves one linear system, see
        `flows.preimage`.

    Raises:
        TypeError: g is no `Branch`, or does not end with a `Linear` or `Conv2d`.
        ValueError: g takes a context or is a contraction in another norm.
        ArithmeticError: in every call, where w was not found.

    Source: Ahn, Kim, Park and Lee (2022), "Invertible monotone operators for normalizing flows".
    """

    coefficients: Coefficients = MONOTONE
    minus: ResidualBlock  # of -g; not registered, as it shares all parameters with `plus`

    def __init__(self, branch: Branch) -> None:
        super().__init__()
        if not isinstance(branch, Branch):
            raise TypeError(
                f"MonotoneBlock needs a `Branch`, to form -g; got {type(branch).__name__}. Build "
                "it with `Branch(*stages, lipschitz=...)` or `mlp_branch`."
            )
        if branch.conditioner is not None or branch.order != 2.0:
            raise ValueError(
                "MonotoneBlock needs a branch without a context in the Euclidean norm; got order "
                f"{branch.order} and conditioner {branch.conditioner}. Take a ResidualBlock."
            )
        if not isinstance(last := branch.stages[-1], Linear | Conv2d):
            raise TypeError(
                "MonotoneBlock needs a branch that ends with a Linear or Conv2d, to form -g; got "
                f"{type(last).__name__}. Put one behind it."
            )
        self.plus = ResidualBlock(branch)
        negated = (*branch.stages[:-1], Negative(last))
        minus = ResidualBlock(Branch(*negated, lipschitz=branch.lipschitz))
        minus.__dict__["_kept"] = self.plus._kept  # noqa: SLF001 - the same weights
        self.__dict__["minus"] = minus

    @property
    def branch(self) -> Branch:
        """g."""
        branch = self.plus.branch
        assert isinstance(branch, Branch)
        return branch

    @property
    def g(self) -> Branch:
        """g."""
        return self.branch

    def at(self, x: Tensor) -> Tensor:
        """w with w + g(w) = x: the point of J, (B, *event)."""
        return preimage(self.plus, x)

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.at(x) - x

    def forward_and_log_det(
        self, x: Tensor, estimator: Estimator, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        w = self.at(x)
        return 2 * w - x, self._log_det(w, estimator, generator)

    def _log_det(
        self, w: Tensor, estimator: Estimator, generator: torch.Generator | None
    ) -> Tensor:
        match estimator:
            case LogDetEstimator(expansion=Taylor()):
                return estimator(self.branch, w, generator, self.coefficients).value
            case PerBranch():
                return self._log_det(w, estimator.of(self.branch), generator)
            case Averaged(one, n_draws):
                draws = [self._log_det(w, one, generator) for _ in range(n_draws)]
                return torch.stack(draws).mean(0)
        generator = torch.default_generator if generator is None else generator
        state = generator.get_state()
        plus = estimator(self.plus.g, w, generator).value
        generator.set_state(state)
        return estimator(self.minus.g, w, generator).value - plus

    def reflected(self, z: Tensor, w: Tensor) -> Tensor:
        """x = 2 w - z to rounding, for the w with w - g(w) = z, with its derivatives."""
        return 2 * block_inverse(self.minus.g, z, w) - z

    @torch.no_grad()
    def inverse(
        self, z: Tensor, inversion: AnyInversion, error: Tensor | None = None, certify: bool = True
    ) -> Solution:
        """x = 2 w - z with w - g(w) = z: the same block with -g.

        ||x - x*||  <=  2 ||w - w*||  +  error (1 + K) / (1 - K), plus the rounding of x, with the
        certified K and the bound on ||w - w*|| of `ResidualBlock.inverse`.
        """
        solution = self.minus.inverse(z, inversion, certify=certify)
        x = 2 * solution.value - z
        bound = solution.error_bound
        if bound is not None:
            k = self.plus.bounds().lipschitz
            stretch = (1 + k) / (1 - k) if k < 1 else torch.inf
            rounding = torch.finfo(x.dtype).eps * x.double().flatten(1).norm(dim=1)
            bound = 2 * bound + rounding
            # Not 0 times infinity.
            bound += torch.where(or_zeros(error, z) > 0, or_zeros(error, z) * stretch, 0.0)
        return replace(solution, value=x, error_bound=bound)


class Negative(nn.Module):
    """x -> -s(x) of a linear layer s, whose weights and norms it shares."""

    def __init__(self, layer: Linear | Conv2d) -> None:
        super().__init__()
        self.layer = layer
        self.n_in, self.n_out = layer.n_in, layer.n_out
        self.domain, self.codomain = layer.domain, layer.codomain
        self.coefficient = layer.coefficient

    def forward(self, x: Tensor) -> Tensor:
        return self.normalised()(x)

    def normalised(self) -> Normalised:
        """The map at the present weights, differentiable in them."""
        affine = self.layer.normalised()
        bias = None if affine.bias is None else -affine.bias
        return replace(affine, weight=-affine.weight, bias=bias)

    def update(self) -> None:
        """Nothing to do: the layer follows its own weights."""

    def align(self) -> None:
        """As `update`."""

    def certificate(self) -> Certificate:
        """The layer's."""
        return self.layer.certificate()
