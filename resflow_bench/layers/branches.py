"""Residual branches g with a promised Lipschitz constant and cheap vector-Jacobian products."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise, zip_longest

import torch
from torch import Tensor, nn
from torch.nn import functional

from resflow_bench.layers.activations import Activation, LipSwish
from resflow_bench.layers.spectral import SpectralLinear

# A promise is met up to the rounding of the product that checks it.
_SLACK = 1e-6


class Branch(nn.Module):
    """g(x) = W_L phi(... phi(W_1 x + b_1) ...) + b_L, with Lip(g) <= prod_j c_j prod_j Lip(phi_j).

    J_g(x) = W_L D_{L-1} W_{L-1} ... D_1 W_1 with D_j = diag(phi_j'(z_j)), where W are the
    normalised weights and z_j what activation j sees.

    Args:
        layers: linear, activation, linear, ..., linear.
        lipschitz: the constant promised for the whole branch, in (0, 1).

    Raises:
        ValueError: a promise outside (0, 1), layers that do not alternate or whose sizes do not
            fit, or coefficients and activations whose product exceeds the promise.
    """

    def __init__(self, *layers: SpectralLinear | Activation, lipschitz: float) -> None:
        super().__init__()
        self.lipschitz = _contractive(lipschitz, "Branch")
        linears = [layer for layer in layers[::2] if isinstance(layer, SpectralLinear)]
        activations = [layer for layer in layers[1::2] if isinstance(layer, Activation)]
        if len(layers) % 2 == 0 or len(linears) + len(activations) != len(layers):
            names = ", ".join(type(layer).__name__ for layer in layers) or "none"
            raise ValueError(
                "Branch needs layers that alternate as SpectralLinear, activation, ..., "
                f"SpectralLinear; got {names}."
            )
        for before, after in pairwise([*linears, linears[0]]):
            if before.weight.shape[0] != after.weight.shape[1]:
                raise ValueError(
                    "Branch needs each layer to take what the one before it gives, and the first "
                    f"what the last gives; got {before.weight.shape[0]} features into a layer of "
                    f"{after.weight.shape[1]}."
                )
        constants = [linear.coefficient for linear in linears]
        bound = math.prod(constants + [phi.lipschitz for phi in activations])
        if bound > lipschitz * (1 + _SLACK):
            raise ValueError(
                "Branch needs coefficients and activation constants whose product keeps the "
                f"promised lipschitz={lipschitz}; got {bound:.6g}. Lower `coefficient`."
            )
        self.linears = nn.ModuleList(linears)
        self.activations = nn.ModuleList(activations)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """g(x), shapes (B, d) -> (B, d)."""
        return self.normalised()(x)

    def normalised(self) -> Callable[[Tensor], Tensor]:
        """g with its weights normalised once, for many evaluations at the same parameters."""
        weights = [linear.weight_normalised() for linear in self._linears()]
        biases = [linear.bias for linear in self._linears()]
        activations = self._activations()

        def g(x: Tensor) -> Tensor:
            for weight, bias, phi in zip(weights, biases, activations, strict=False):
                x = phi(functional.linear(x, weight, bias))
            return functional.linear(x, weights[-1], biases[-1])

        return g

    def linearise(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """g(x) and v -> v^T J_g(x), with the weights normalised and the slopes computed once.

        Args:
            x: (B, d).

        Returns:
            y (B, d), and vjp: (..., B, d) -> (..., B, d), usually (m, B, d) for m probes.

        Properties: one vjp costs L matrix products and L-1 elementwise ones, no autograd. It
        records a graph if and only if gradients are enabled when *it* is called; the weights and
        slopes it uses stay attached to the parameters and to x, so that sum(vjp(s) * v) has the
        gradient of s^T J v in weights, beta and x. Call linearise with gradients enabled for that.
        """
        linears, activations = self._linears(), self._activations()
        weights = [linear.weight_normalised() for linear in linears]
        slopes = []
        for weight, linear, phi in zip(weights, linears, activations, strict=False):
            x, slope = phi.value_and_derivative(functional.linear(x, weight, linear.bias))
            slopes.append(slope)  # (B, h)
        y = functional.linear(x, weights[-1], linears[-1].bias)

        def vjp(v: Tensor) -> Tensor:
            in_place = not torch.is_grad_enabled()
            v = v @ weights[-1]
            for weight, slope in zip(reversed(weights[:-1]), reversed(slopes), strict=True):
                # v is a product made here, never the caller's, so it may be overwritten.
                v = v.mul_(slope) if in_place else v * slope
                v = v @ weight
            return v

        return y, vjp

    def update(self, n_steps: int = 5) -> None:
        """Power iteration in every linear layer; call it after each optimiser step."""
        for linear in self._linears():
            linear.update(n_steps)

    def align(self) -> None:
        """Exact singular vectors in every linear layer; after it the promise is kept."""
        for linear in self._linears():
            linear.align()

    def lipschitz_certified(self) -> float:
        """prod_j sigma_1(W_j) prod_j Lip(phi_j), the norms by SVD in float64: a true bound."""
        norms = [linear.spectral_norm_certified() for linear in self._linears()]
        return math.prod(norms + [phi.lipschitz for phi in self._activations()])

    def extra_repr(self) -> str:
        return f"lipschitz={self.lipschitz:.6g}"

    def _linears(self) -> list[SpectralLinear]:
        return list(self.linears)  # type: ignore[arg-type]

    def _activations(self) -> list[Activation]:
        return list(self.activations)  # type: ignore[arg-type]


class LinearBranch(nn.Module):
    """g(x) = x A^T, so J_g = A everywhere: a branch whose log-det, norm and inverse are known.

    Args:
        matrix: A, (d, d), kept as a buffer.
        lipschitz: the promised bound on ||A||_2, in (0, 1).

    Raises:
        ValueError: a promise outside (0, 1), a matrix that is not square, or one whose norm
            exceeds the promise by more than rounding.
    """

    def __init__(self, matrix: Tensor, lipschitz: float) -> None:
        super().__init__()
        self.lipschitz = _contractive(lipschitz, "LinearBranch")
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(
                f"LinearBranch needs a square matrix (d, d); got shape {tuple(matrix.shape)}."
            )
        self.matrix: Tensor
        self.register_buffer("matrix", matrix.detach())
        certified = self.lipschitz_certified()
        if not certified <= lipschitz * (1 + _SLACK):
            raise ValueError(
                "LinearBranch needs a matrix whose spectral norm keeps the promised "
                f"lipschitz={lipschitz}; got norm {certified:.6g}. Scale the matrix down."
            )

    def forward(self, x: Tensor) -> Tensor:
        """x A^T, shapes (B, d) -> (B, d)."""
        return functional.linear(x, self.matrix)

    def normalised(self) -> Callable[[Tensor], Tensor]:
        """g itself: there is nothing to normalise."""
        return self.forward

    def linearise(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """g(x) and v -> v^T A; see `Branch.linearise`."""
        return self.forward(x), lambda v: v @ self.matrix

    def update(self, n_steps: int = 5) -> None:
        """Nothing to do: the norm is exact."""

    def align(self) -> None:
        """Nothing to do: the norm is exact."""

    def lipschitz_certified(self) -> float:
        """||A||_2 by an SVD in float64."""
        return float(torch.linalg.matrix_norm(self.matrix.cpu().double(), ord=2))

    def extra_repr(self) -> str:
        return f"dim={self.matrix.shape[0]}, lipschitz={self.lipschitz:.6g}"


def mlp_branch(
    dim: int,
    hidden: Sequence[int],
    lipschitz: float,
    activation: Callable[[], Activation] = LipSwish,
    generator: torch.Generator | None = None,
) -> Branch:
    """W_L phi ... phi W_1 with every layer's c = (K / Lip(phi)^(L-1))^(1/L), so Lip(g) <= K.

    Args:
        dim: d, the features that go in and come out.
        hidden: widths between the linear layers; (128, 128) makes three layers, () one.
        lipschitz: K, the constant promised for the branch (not for each layer), in (0, 1).
        activation: makes one phi; called once per gap, so each has its own parameters.
        generator: where the weights are drawn from; None is a fresh one with seed 0.

    Raises:
        ValueError: K outside (0, 1), or a size below 1.

    >>> g = mlp_branch(64, (128, 128), lipschitz=0.9)
    >>> y, vjp = g.linearise(torch.zeros(5, 64))
    >>> vjp(torch.ones(3, 5, 64)).shape, g.lipschitz_certified() <= g.lipschitz == 0.9
    (torch.Size([3, 5, 64]), True)
    """
    _contractive(lipschitz, "mlp_branch")
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    activations = [activation() for _ in hidden]
    steepness = math.prod([phi.lipschitz for phi in activations])
    coefficient = (lipschitz / steepness) ** (1 / (len(hidden) + 1))
    sizes = [dim, *hidden, dim]
    layers: list[SpectralLinear | Activation] = []
    for (n_in, n_out), phi in zip_longest(pairwise(sizes), activations):
        layers.append(SpectralLinear(n_in, n_out, coefficient, generator=generator))
        if phi is not None:
            layers.append(phi)
    return Branch(*layers, lipschitz=lipschitz)


def _contractive(lipschitz: float, owner: str) -> float:
    if not 0 < lipschitz < 1:
        raise ValueError(
            f"{owner} needs 0 < lipschitz < 1 for x + g(x) to be invertible; got {lipschitz}. "
            "Choose `lipschitz` for the whole branch, for example 0.9."
        )
    return float(lipschitz)
