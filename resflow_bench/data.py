"""Real data that ship in a package, as tensors ready for a flow."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

DIGITS_LEVELS = 17
"""The 8x8 digits are counts of 0 to 16 set pixels in a 4x4 cell of the scanned image."""

LOGIT_MARGIN = 0.05
"""How far the logit transform keeps from 0 and 1 (the residual-flow papers' alpha)."""


class Dataset(NamedTuple):
    """train, test: (n, d), float32."""

    train: Tensor
    test: Tensor


def digits(seed: int = 0) -> Dataset:
    """scikit-learn's 1,797 handwritten digits, d = 64, dequantised and in logit space.

        x = logit(a + (1 - 2a) (count + u)/17),  u ~ U[0, 1),  a = 0.05

    The last 360, in the order of the file, are the test set.

    Args:
        seed: of the dequantisation noise.

    Source: Alpaydin and Kaynak (1998), "Optical Recognition of Handwritten Digits", UCI.

    >>> digits().train.shape
    torch.Size([1437, 64])
    """
    from sklearn.datasets import load_digits

    counts = torch.from_numpy(load_digits().data).double()
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(counts.shape, generator=generator, dtype=torch.float64)
    unit = (counts + noise) / DIGITS_LEVELS
    x = torch.logit(LOGIT_MARGIN + (1 - 2 * LOGIT_MARGIN) * unit).float()
    return Dataset(train=x[:-360], test=x[-360:])
