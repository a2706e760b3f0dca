"""Coupling, autoregressive and spline flows of zuko, as bijections of a flow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from resflow_bench.arguments import check_batch
from resflow_bench.seeds import torch_seeded

KINDS: Mapping[str, str] = MappingProxyType(
    {"nice": "NICE", "realnvp": "RealNVP", "maf": "MAF", "nsf": "NSF"}
)
"""Our name -> zuko's class."""


class Discrete(nn.Module):
    """z = f(x) by a chain of zuko's transforms, with the exact ln|det dz/dx|: (B, d) -> (B, d).

    Args:
        kind: nice (additive coupling), realnvp (affine coupling), maf (masked autoregressive, whose
            inverse takes d passes) or nsf (autoregressive rational-quadratic splines on [-5, 5]).
        dim: d, at least 2.
        n_transforms: transforms in the chain.
        hidden: the widths of each transform's network.

    Raises:
        ValueError: another kind, or zuko is not installed.

    Source: Dinh et al. (2015), "NICE"; Dinh et al. (2017), "Real NVP"; Papamakarios et al. (2017),
    "Masked autoregressive flow"; Durkan et al. (2019), "Neural spline flows".
    """

    def __init__(
        self, kind: str, dim: int, n_transforms: int = 3, hidden: Sequence[int] = (64, 64)
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"Discrete needs a kind of {', '.join(KINDS)}; got {kind!r}.")
        self.kind, self.dim = kind, dim
        self.n_transforms, self.hidden = n_transforms, tuple(hidden)
        library = zuko()
        additive = {"univariate": library.transforms.AdditiveTransform, "shapes": [()]}
        own = additive if kind == "nice" else {}  # zuko's NICE is affine, as its RealNVP
        with torch_seeded(0):
            flow = getattr(library.flows, KINDS[kind])(
                dim, transforms=n_transforms, hidden_features=self.hidden, **own
            )
        self.transforms = flow.transform

    def forward(self, x: Tensor) -> Tensor:
        check_batch("Discrete", x, (self.dim,))
        z: Tensor = self.transforms()(x)
        return z

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        check_batch("Discrete", x, (self.dim,))
        z, log_det = self.transforms().call_and_ladj(x)
        return z, log_det

    def inverse(self, z: Tensor) -> Tensor:
        check_batch("Discrete", z, (self.dim,), name="z")
        x: Tensor = self.transforms().inv(z)
        return x

    def inverse_error(self, z: Tensor, x: Tensor, error: Tensor) -> Tensor:
        """Infinity: no Lipschitz constant of the inverse is known."""
        return torch.full_like(error, torch.inf)

    def extra_repr(self) -> str:
        return f"kind={self.kind}, dim={self.dim}, n_transforms={self.n_transforms}"


def zuko() -> Any:
    """The library."""
    try:
        import zuko as library
    except ImportError:
        raise ValueError(
            "this flow is zuko's, which is not installed; .venv/bin/pip install -e '.[baselines]' "
            "brings it."
        ) from None
    return library
