"""Rearrangements of an image: space to depth, and image to vector. Isometries of volume 1."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from resflow_bench.arguments import check_batch, check_count


class Squeeze(nn.Module):
    """(B, C, H, W) -> (B, C r^2, H/r, W/r): each r x r square of pixels becomes r^2 channels.

    The log-det is 0 and distances are kept, since entries are only moved.

    Args:
        factor: r, at least 1; it has to divide H and W.

    Raises:
        ValueError: a factor below 1.

    Source: Dinh, Sohl-Dickstein and Bengio (2017), "Density estimation using Real NVP", 3.6.
    """

    def __init__(self, factor: int = 2) -> None:
        super().__init__()
        self.factor = check_count("Squeeze", "factor", factor)

    def forward(self, x: Tensor) -> Tensor:
        check_batch("Squeeze", x, (None, None, None))
        if x.shape[2] % self.factor or x.shape[3] % self.factor:
            raise ValueError(
                f"Squeeze({self.factor}) needs H and W that it divides; got {tuple(x.shape)}."
            )
        r, (n, c, height, width) = self.factor, x.shape
        # torch's pixel_unshuffle returns an empty batch in its old shape.
        x = x.reshape(n, c, height // r, r, width // r, r).permute(0, 1, 3, 5, 2, 4)
        return x.reshape(n, c * r**2, height // r, width // r)

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self(x), x.new_zeros(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        check_batch("Squeeze", z, (None, None, None), name="z")
        if z.shape[1] % self.factor**2:
            raise ValueError(
                f"Squeeze({self.factor}) needs channels that are a multiple of "
                f"{self.factor**2}; got {tuple(z.shape)}."
            )
        r, (n, c, height, width) = self.factor, z.shape
        z = z.reshape(n, c // r**2, r, r, height, width).permute(0, 1, 4, 2, 5, 3)
        return z.reshape(n, c // r**2, height * r, width * r)

    def inverse_error(self, z: Tensor, x: Tensor, error: Tensor) -> Tensor:
        return error

    def extra_repr(self) -> str:
        return f"{self.factor}"


class Flatten(nn.Module):
    """(B, *event) -> (B, d); the log-det is 0 and distances are kept.

    Args:
        event: the shape that `inverse` restores.
    """

    def __init__(self, event: Sequence[int]) -> None:
        super().__init__()
        self.event = tuple(event)

    def forward(self, x: Tensor) -> Tensor:
        check_batch("Flatten", x, self.event)
        return x.flatten(1)

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self(x), x.new_zeros(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        """(B, d) -> (B, *event)."""
        check_batch("Flatten", z, (math.prod(self.event),), name="z")
        return z.unflatten(1, self.event)

    def inverse_error(self, z: Tensor, x: Tensor, error: Tensor) -> Tensor:
        return error

    def extra_repr(self) -> str:
        return f"{self.event}"
