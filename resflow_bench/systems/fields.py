"""Velocity fields u(x, t), the trace of their Jacobian, and the paths that they are fitted to."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from resflow_bench.jacobian import CHUNK_NUMBERS
from resflow_bench.layers import CLipSwish, GivenBranch, conditional, mlp_branch
from resflow_bench.memory import at_once

N_FREQUENCIES = 3

CONSTANT = 0.9
"""K of the branch inside a `LipschitzField`: any below 1 gives the same fields."""

SHARPNESS = 30.0
"""s of a `LipschitzField`: activations start near their kinks, where alone their slopes reach 1.

At L = 28.8 the eight Gaussians had 0.20, 0.18 and 0.16 nat left to learn after 2,000 steps with
s = 10, 30 and 100; with s = 1, of two hidden layers, 0.7 after 1,000 steps at L = 14.4."""

Field = Callable[[Tensor, Tensor], Tensor]
"""u: (B, d) and t, (B,) -> (B, d)."""


class VelocityField(nn.Module):
    """u(x, t) by SiLU layers on x and cos, sin of k pi t, k = 1, 2, 3.

    Args:
        dim: d.
        hidden: the widths between the linear layers.
        generator: draws the weights; None is a fresh one with seed 0.
    """

    def __init__(
        self, dim: int, hidden: tuple[int, ...], generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.dim, self.hidden = dim, hidden
        generator = generator or torch.Generator().manual_seed(0)
        widths = (dim + 2 * N_FREQUENCIES, *hidden, dim)

        def drawn(n_in: int, *shape: int) -> nn.Parameter:
            limit = n_in**-0.5  # the law of nn.Linear
            return nn.Parameter(torch.empty(shape).uniform_(-limit, limit, generator=generator))

        pairs = list(pairwise(widths))
        self.weights = nn.ParameterList(drawn(n, m, n) for n, m in pairs)
        self.biases = nn.ParameterList(drawn(n, m) for n, m in pairs)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = torch.cat([x, waves(t)], dim=1)
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            h = functional.silu(functional.linear(h, weight, bias))
        return functional.linear(h, self.weights[-1], self.biases[-1])


class LipschitzField(nn.Module):
    """u(x, t) = L / (K s) g(s x; c), with Lip(g) <= K for every c: Lip(u) <= L in x at all times.

    g is a conditional `mlp_branch` of CLipSwish, c the cos and sin of k pi t, k = 1, 2, 3.

    Args:
        dim: d.
        hidden: the widths between the linear layers. One layer has the tightest certificate.
        lipschitz: L > 0, promised: it holds after each `update` or `align` of the flow.
        generator: draws the weights; None is a fresh one with seed 0.

    Raises:
        ValueError: L is not positive and finite.
    """

    def __init__(
        self,
        dim: int,
        hidden: tuple[int, ...],
        lipschitz: float,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not 0 < lipschitz < math.inf:
            raise ValueError(
                f"A velocity field needs a positive, finite lipschitz; got {lipschitz}."
            )
        self.dim, self.hidden, self.lipschitz = dim, hidden, lipschitz
        generator = generator or torch.Generator().manual_seed(0)
        branch = mlp_branch(dim, hidden, CONSTANT, CLipSwish, generator)
        self.branch = conditional(branch, 2 * N_FREQUENCIES, generator=generator)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.lipschitz / (CONSTANT * SHARPNESS) * self._at(t)(SHARPNESS * x)

    def lipschitz_bound(self) -> Tensor:
        """A certified bound on Lip(u) of the weights as they are, () float64 on their device."""
        return self.lipschitz / CONSTANT * self.branch.lipschitz_bound()

    def magnitude(self, x: Tensor, t: Tensor) -> Tensor:
        """As `Branch.magnitude`, (B,)."""
        inside = self._at(t).magnitude(SHARPNESS * x)
        return self.lipschitz / (CONSTANT * SHARPNESS) * inside

    def _at(self, t: Tensor) -> GivenBranch:
        return GivenBranch(self.branch, waves(t))


def waves(t: Tensor) -> Tensor:
    """cos and sin of k pi t, k = 1, 2, 3: (B,) -> (B, 6)."""
    k = torch.arange(1, N_FREQUENCIES + 1, dtype=t.dtype, device=t.device)
    angle = math.pi * k * t[:, None]
    return torch.cat([angle.cos(), angle.sin()], dim=1)


def exact_trace(u: Field, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """(u, tr du/dx) at (x, t), (B, d) and (B,): d vector-Jacobian products."""
    v = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)[:, None].expand(-1, len(x), -1)
    velocity, forms = _quadratic_forms(u, x, t, v)
    return velocity, forms.sum(0)


def hutchinson_trace(u: Field, x: Tensor, t: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """(u, mean over j of v_j^T (du/dx) v_j) at (x, t), from probes v, (m, B, d).

    Properties: unbiased; the variance is that of the probe, see `theory.hutchinson`.

    Source: Grathwohl et al. (2019), "FFJORD", section 3.1.
    """
    velocity, forms = _quadratic_forms(u, x, t, v)
    return velocity, forms.mean(0)


def _quadratic_forms(u: Field, x: Tensor, t: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """(u, v_j^T (du/dx) v_j): (B, d), (m, B); in pieces of v of bounded memory.

    With a graph where one is recorded and x or a parameter of u needs it.
    """
    attached = torch.is_grad_enabled() and (x.requires_grad or _is_trained(u))
    forms = []
    with torch.enable_grad():
        if not (attached and x.requires_grad):
            x = x.detach().requires_grad_()
        velocity = u(x.view_as(x), t)  # torch's counter of FLOPs takes no leaf into a module
        for piece in v.split(max(1, at_once(CHUNK_NUMBERS) // x.numel())):
            (products,) = torch.autograd.grad(
                velocity, x, piece, is_grads_batched=True, create_graph=attached, retain_graph=True
            )
            forms.append((products * piece).sum(2))
    together = torch.cat(forms)
    return (velocity, together) if attached else (velocity.detach(), together.detach())


def _is_trained(u: Field) -> bool:
    """True unless u is a module without a parameter that needs a gradient."""
    return not isinstance(u, nn.Module) or any(p.requires_grad for p in u.parameters())


class Pairs(NamedTuple):
    """A point of the path between noise and data, (B, d), and its velocity there."""

    x: Tensor
    velocity: Tensor


def straight(noise: Tensor, data: Tensor, t: Tensor) -> Pairs:
    """x_t = (1 - t) noise + t data, of velocity data - noise.

    Source: Lipman et al. (2023), "Flow matching for generative modeling", with sigma_min = 0.
    """
    return Pairs(torch.lerp(noise, data, t[:, None]), data - noise)


def variance_preserving(noise: Tensor, data: Tensor, t: Tensor) -> Pairs:
    """x_t = cos(a) noise + sin(a) data, with a = pi t / 2, and dx_t/dt.

    The noising of a diffusion of variance cos^2 a, on the cosine schedule; its velocity is minus
    pi / 2 times the "v" of v-prediction. Fitting it is denoising score matching with weights, and
    the fitted field is the probability-flow ODE's, see `score`.

    Source: Salimans and Ho (2022), "Progressive distillation", section 4 and appendix D.
    """
    a = 0.5 * math.pi * t[:, None]
    x = a.cos() * noise + a.sin() * data
    return Pairs(x, 0.5 * math.pi * (a.cos() * data - a.sin() * noise))


def score(u: Field, x: Tensor, t: Tensor) -> Tensor:
    """grad ln p_t(x) of a field fitted to `variance_preserving` paths, (B, d), for t < 1.

    With a = pi t / 2 the mean of the noise given x is cos(a) x - (2/pi) sin(a) u, and the score is
    minus that over cos(a).
    """
    a = 0.5 * math.pi * t[:, None]
    return -(x - 2 / math.pi * a.tan() * u(x, t))


Path = Callable[[Tensor, Tensor, Tensor], Pairs]
PATHS: Mapping[str, Path] = MappingProxyType(
    {"straight": straight, "variance-preserving": variance_preserving}
)
"""(noise, data, t) -> a point of the path and its velocity."""


def transported(noise: Tensor, data: Tensor) -> Tensor:
    """The noise reordered so that the sum of ||noise_i - data_i||^2 is smallest: pairs without
    replacement, each example once.

    Source: Pooladian et al. (2023), "Multisample flow matching"; Tong et al. (2024).
    """
    from scipy.optimize import linear_sum_assignment

    cost = torch.cdist(data.double(), noise.double()).square().cpu().numpy()
    rows, columns = linear_sum_assignment(cost)
    assert (rows == range(len(data))).all()
    return noise[torch.as_tensor(columns, device=noise.device)]
