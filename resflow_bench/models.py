"""The models that a suite can be run on: linear maps whose Jacobian is known, and MLP flows.

The linear families attain their promised constant: ||J||_2 = K exactly. Between them they hold the
worst case of every bound (-K I), its best case for Rademacher probes (K I, -K I), eigenvalues on a
circle (orthogonal), real ones (symmetric), a generic spectrum (gaussian) and none at all
(triangular: nilpotent, so the log-det is exactly 0 at every truncation and only noise is left).
"""

from __future__ import annotations

import torch
from torch import Tensor

from resflow_bench.flows import ResidualBlock, ResidualFlow
from resflow_bench.layers import LinearBranch

LINEAR_FAMILIES = (
    "minus-identity",
    "plus-identity",
    "orthogonal",
    "symmetric",
    "gaussian",
    "triangular",
)

MLP_BLOCKS = 8
TRAINED_DIM = 64
"""Of the 8x8 digits that the trained flow is trained on."""


def family_matrix(name: str, dim: int, lipschitz: float, seed: int = 0) -> Tensor:
    """A, (d, d), float64, with ||A||_2 = lipschitz, of one of `LINEAR_FAMILIES`.

    Args:
        name: minus-identity -K I; plus-identity K I; orthogonal K Q; symmetric K Q diag(t) Q^T
            with t uniform on [-1, 1] and scaled to max |t| = 1; gaussian, independent normal
            entries, scaled; triangular, the same strictly above the diagonal, scaled.
        dim: d; at least 2 for the triangular family, which is zero at d = 1.
        lipschitz: K.
        seed: of the random families.

    Raises:
        ValueError: if `name` is not one of them, or d = 1 is asked of the triangular one.

    >>> family_matrix("plus-identity", 2, 0.5).tolist()
    [[0.5, 0.0], [0.0, 0.5]]
    """
    if name not in LINEAR_FAMILIES:
        raise ValueError(f"A linear family is one of {', '.join(LINEAR_FAMILIES)}; got {name!r}.")
    if name == "triangular" and dim < 2:
        raise ValueError(f"The triangular family needs dim of at least 2; got {dim}.")
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(dim, dim, dtype=torch.float64, generator=generator)
    identity = torch.eye(dim, dtype=torch.float64)
    if name in ("minus-identity", "plus-identity"):
        matrix = identity if name == "plus-identity" else -identity
    elif name == "orthogonal":
        matrix = _orthogonal(normal)
    elif name == "symmetric":
        eigenvalues = 2 * torch.rand(dim, dtype=torch.float64, generator=generator) - 1
        basis = _orthogonal(normal)
        matrix = (basis * eigenvalues) @ basis.T
        matrix = 0.5 * (matrix + matrix.T)
    elif name == "gaussian":
        matrix = normal
    else:
        matrix = normal.triu(diagonal=1)
    return lipschitz * matrix / torch.linalg.matrix_norm(matrix, 2)


def linear_flow(name: str, dim: int, lipschitz: float) -> ResidualFlow:
    """One residual block with g(x) = x A^T, A from `family_matrix`; float64."""
    branch = LinearBranch(family_matrix(name, dim, lipschitz), lipschitz)
    return ResidualFlow([ResidualBlock(branch)], dim).double()


def mlp_flow(dim: int, lipschitz: float, seed: int = 0) -> ResidualFlow:
    """Eight blocks of two hidden layers of 2d LipSwish units, untrained; float32.

    At d = 64 this is the architecture of the trained flow.
    """
    return ResidualFlow.mlp(
        dim=dim,
        hidden=(2 * dim, 2 * dim),
        n_blocks=MLP_BLOCKS,
        lipschitz=lipschitz,
        generator=torch.Generator().manual_seed(seed),
    )


def _orthogonal(normal: Tensor) -> Tensor:
    """Haar-distributed Q from the QR decomposition, its signs fixed."""
    q, r = torch.linalg.qr(normal)
    return q * torch.sign(r.diagonal())
