"""Linear maps whose spectral norm is held below a coefficient by power iteration."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class SpectralLinear(nn.Module):
    """y = x W_c^T + b with W_c = W min(1, c' / sigma_hat) and sigma_hat = u^T W v.

    u and v are unit vectors carried from step to step. sigma_hat is at most sigma_1(W) for any
    unit u, v, hence ||W_c||_2 = c' sigma_1 / sigma_hat can exceed the coefficient until u, v have
    converged: the coefficient is a promise that `update` after each optimiser step approaches,
    `align` restores, and `spectral_norm_certified` checks.

    Only `update` and `align` change u and v; `forward` never does. Both replace the buffers rather
    than write into them, so a graph recorded before still has the vectors it was recorded with.

    Args:
        in_features, out_features: sizes of x and y.
        coefficient: the promised bound on ||W_c||_2, above 0.
        bias: whether b is added.
        generator: where W and b are drawn from, both uniform in +-1/sqrt(in_features). None stands
            for a fresh generator with seed 0, never for the global one.

    Raises:
        ValueError: a coefficient that is not positive and finite, or a size below 1.

    Source: Miyato et al. (2018), Spectral normalization; Gouk et al. (2018) for the minimum with 1.
    Gradients go through sigma_hat with u, v constant, which at convergence is the gradient of
    sigma_1 itself, d sigma_1 = u^T dW v.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        coefficient: float,
        *,
        bias: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if in_features < 1 or out_features < 1:
            raise ValueError(
                "SpectralLinear needs sizes of at least 1; "
                f"got in_features={in_features}, out_features={out_features}."
            )
        if not 0 < coefficient < math.inf:
            raise ValueError(
                f"SpectralLinear needs a positive, finite `coefficient`; got {coefficient}."
            )
        self.coefficient = float(coefficient)
        if generator is None:
            generator = torch.Generator().manual_seed(0)
        bound = 1 / math.sqrt(in_features)
        weight = torch.empty(out_features, in_features, device=generator.device)
        self.weight = nn.Parameter(weight.uniform_(-bound, bound, generator=generator))
        self.bias: nn.Parameter | None
        if bias:
            offset = torch.empty(out_features, device=generator.device)
            self.bias = nn.Parameter(offset.uniform_(-bound, bound, generator=generator))
        else:
            self.register_parameter("bias", None)
        self.u: Tensor  # (out_features,)
        self.v: Tensor  # (in_features,)
        self.register_buffer("u", torch.zeros_like(self.weight[:, 0]))
        self.register_buffer("v", torch.zeros_like(self.weight[0]))
        self.align()

    def weight_normalised(self) -> Tensor:
        """W min(1, c' / sigma_hat), shape (out_features, in_features), differentiable in W."""
        sigma = torch.dot(self.u, torch.mv(self.weight, self.v))
        # The coefficient is undercut by what rounding can add, so that a converged layer keeps its
        # promise when checked in float64: float32 rounds each entry of W_c, sigma_hat and the
        # scale by at most 6e-8 relative, together well below 1e-6; coarser types need their eps.
        cushion = max(1e-6, 2 * torch.finfo(self.weight.dtype).eps)
        return self.weight / (sigma / (self.coefficient * (1 - cushion))).clamp(min=1.0)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight_normalised(), self.bias)

    @torch.no_grad()
    def update(self, n_steps: int = 5) -> None:
        """v <- W^T u / ||.||, u <- W v / ||.||, n_steps times: sigma_hat does not decrease.

        Properties: iterates on W^T W, so W may be of any shape and nilpotent; one step shrinks the
        relative gap of sigma_hat by about (sigma_2 / sigma_1)^4.

        Raises:
            ValueError: n_steps below 0.
        """
        if n_steps < 0:
            raise ValueError(f"update needs n_steps of at least 0; got {n_steps}.")
        weight, u, v = self.weight, self.u, self.v
        for k in range(n_steps):
            start = torch.mv(weight.mT, u)
            if k == 0:
                # u orthogonal to the range of W would stay there for ever, and the layer would go
                # unbounded: restart from the longest row, which W does not map to zero.
                longest = torch.linalg.vector_norm(weight, dim=1).argmax()
                row = weight.index_select(0, longest[None])[0]
                start = torch.where(torch.linalg.vector_norm(start) > 0, start, row)
            v = _unit(start, otherwise=v)
            u = _unit(torch.mv(weight, v), otherwise=u)
        self.u, self.v = u, v

    @torch.no_grad()
    def align(self) -> None:
        """Sets u, v to the leading singular pair of W, from an SVD in float64.

        After it ||W_c||_2 <= coefficient. Cost O(n^3): for construction, checkpoints and
        certification, not for every step.

        Raises:
            torch.linalg.LinAlgError: W is not finite.
        """
        left, _, right = torch.linalg.svd(self.weight.cpu().double(), full_matrices=False)
        self.u = left[:, 0].to(self.weight)
        self.v = right[0].to(self.weight)

    @torch.no_grad()
    def spectral_norm_certified(self) -> float:
        """sigma_1(W_c) by an SVD in float64 of the weight that `forward` multiplies with.

        Raises:
            torch.linalg.LinAlgError: W is not finite.
        """
        return float(torch.linalg.matrix_norm(self.weight_normalised().cpu().double(), ord=2))

    def extra_repr(self) -> str:
        n_out, n_in = self.weight.shape
        return f"{n_in}, {n_out}, coefficient={self.coefficient:.6g}, bias={self.bias is not None}"


def _unit(x: Tensor, otherwise: Tensor) -> Tensor:
    """x / ||x||, or `otherwise` where x is zero (W = 0 keeps its vectors)."""
    norm = torch.linalg.vector_norm(x)
    return torch.where(norm > 0, x / norm, otherwise)
