"""Training and test examples, and the dequantisation of counts."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

NOISE_STEPS = 2**15
"""The noise u takes the midpoints of this many steps of [0, 1). count + u then has at most 8 + 16
bits, which float32 represents exactly: no pixel is rounded up into the next count's bin."""


@dataclass(frozen=True)
class Reading:
    """The way in which a file of the user's own becomes a dataset.

    held_out: share of the rows that are held out, by a random split with a fixed seed; None is 0.1,
        or the test rows that the file has.
    standardise: columns to mean 0 and standard deviation 1; None is True for vectors only.

    Raises:
        ValueError: the share is not between 0 and 1.
    """

    held_out: float | None = None
    standardise: bool | None = None

    def __post_init__(self) -> None:
        if self.held_out is not None and not 0 < self.held_out < 1:
            raise ValueError(f"the held-out share is between 0 and 1; got {self.held_out:g}.")


@dataclass(frozen=True, eq=False)
class Dataset:
    """x = (count + u)/n_levels, u ~ U[0, 1): counts, as a sample from a density on the unit cube.

    For any density p of x, with q the model of the counts that p implies,

        q(count) = int p((count + u)/n_levels) du / n_levels^d
        E_u[-log2 p(x)] + d log2 n_levels >= -log2 q(count)

    by Jensen's inequality, so a flow's bits per dimension bound those of a model of the counts
    from above. Continuous data are used unchanged.

    name: the key in `DATASETS`, or the path of a file of the user's own.
    train, test: (n, *event), with the same event shape; uint8 counts in 0..n_levels - 1 if
        `n_levels` is given, else floating-point numbers.
    n_levels: number of distinct counts, 2 to 256; None for continuous data.
    reading: of the user's file; None for a dataset of `DATASETS`.
    mean, scale: of each column, if `train` and `test` are (row - mean)/scale; else empty.

    Raises:
        ValueError: if `train` or `test` breaks these rules, is empty or is not finite.

    Source: Theis, van den Oord and Bethge (2016), "A note on the evaluation of generative models".

    >>> counts = torch.tensor([[0, 3], [1, 2]], dtype=torch.uint8)
    >>> dataset = Dataset("toy", train=counts, test=counts, n_levels=4)
    >>> x = dataset.prepare(counts, torch.Generator().manual_seed(0))
    >>> (x * 4).floor().tolist()
    [[0.0, 3.0], [1.0, 2.0]]
    >>> dataset.bits_per_dim(torch.zeros(1))  # the uniform density
    tensor([2.])
    """

    name: str
    train: Tensor
    test: Tensor
    n_levels: int | None = None
    reading: Reading | None = None
    mean: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.n_levels is not None and not 2 <= self.n_levels <= 256:
            raise ValueError(
                f"{self.name} needs n_levels of 2 to 256, the counts of one byte; got "
                f"{self.n_levels}. Leave `n_levels` out if the data are continuous."
            )
        for part, x in (("train", self.train), ("test", self.test)):
            self._check(part, x)
        if self.train.shape[1:] != self.test.shape[1:]:
            raise ValueError(
                f"{self.name} needs train and test of one event shape; got {self.event} and "
                f"{tuple(self.test.shape[1:])}. Reshape one."
            )

    def _check(self, part: str, x: Tensor) -> None:
        where = f"{self.name}.{part}"
        if x.ndim < 2 or x.numel() == 0:
            raise ValueError(
                f"{where} needs shape (n, *event) without a zero; got {(*x.shape,)}. Pass at least "
                "one example, with a leading axis over examples."
            )
        if self.n_levels is None:
            if not x.is_floating_point():
                raise ValueError(
                    f"{where} is continuous and must be floating; got {x.dtype}. Convert it, or "
                    "give `n_levels` if it holds counts."
                )
            if not torch.isfinite(x).all():
                raise ValueError(f"{where} must be finite; drop the examples with inf or nan.")
            return
        if x.dtype != torch.uint8:
            raise ValueError(
                f"{where} holds counts and must be uint8; got {x.dtype}. Convert it, or leave "
                "`n_levels` out if the data are continuous."
            )
        if (largest := int(x.max())) >= self.n_levels:
            raise ValueError(
                f"{where} needs counts below n_levels={self.n_levels}; got {largest}. "
                "Raise `n_levels`."
            )

    @cached_property
    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 of the examples, their shapes, `n_levels` and units.

        Units are `mean` and `scale`.
        """
        digest = hashlib.sha256(f"{self.train.shape} {self.test.shape} {self.n_levels}".encode())
        for x in (self.train, self.test):
            digest.update(x.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        if self.scale:
            digest.update(repr((self.mean, self.scale)).encode())
        return digest.hexdigest()[:16]

    @property
    def event(self) -> tuple[int, ...]:
        """The shape of one example."""
        return tuple(self.train.shape[1:])

    @property
    def log_scale(self) -> float:
        """sum ln scale, nats: ln p(row) = ln p(x) - log_scale in the units of the file."""
        return sum(map(math.log, self.scale))

    def prepare(self, batch: Tensor, generator: torch.Generator) -> Tensor:
        """(count + u)/n_levels, or the batch itself if the data are continuous.

        Args:
            batch: (B, *event), rows of `train` or `test`.
            generator: draws u, on its own device.

        Returns:
            (B, *event). Counts become float32 in (0, 1), and `floor(x n_levels)` returns the count.

        Raises:
            ValueError: if the data are counts and the batch is not uint8.
        """
        if self.n_levels is None:
            return batch
        if batch.dtype != torch.uint8:
            raise ValueError(
                f"prepare takes the uint8 counts of {self.name}; got {batch.dtype}. Pass rows of "
                "`train` or `test`, and prepare them once only."
            )
        steps = torch.randint(
            NOISE_STEPS,
            batch.shape,
            generator=generator,
            device=generator.device,
            dtype=torch.float32,
        )
        steps = steps.to(batch.device, non_blocking=True)
        return (batch + (steps + 0.5) / NOISE_STEPS) / self.n_levels

    def bits_per_dim(self, log_prob: Tensor) -> Tensor:
        """-log_prob/(d ln 2) + log2 n_levels, without the second term for continuous data.

        Args:
            log_prob: ln p(x) of prepared x, nats, any shape.

        Returns:
            Bits per dimension, the same shape. For counts: those of the implied model of the
            counts, at most `log2 n_levels` for a model no worse than uniform. For continuous data:
            relative to Lebesgue measure, so possibly negative.
        """
        bits = -log_prob / (math.log(2) * math.prod(self.event))
        return bits if self.n_levels is None else bits + math.log2(self.n_levels)
