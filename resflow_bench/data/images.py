"""Images that scikit-learn ships: 8x8 digits, and patches of two photographs."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from resflow_bench.data.dataset import Dataset

DIGITS_LEVELS = 17
"""Each pixel of an 8x8 digit counts the set pixels, 0 to 16, in a 4x4 cell of the scan."""

N_TEST_DIGITS = 360
"""Number of test digits: the last ones in the order of the file."""

LOGIT_MARGIN = 0.05
"""Distance of the logit's argument from 0 and 1 (alpha in the residual-flow papers)."""

PATCH_SIZE = 16


def digits(seed: int = 0) -> Dataset:
    """scikit-learn's 1,797 handwritten digits, d = 64, dequantised and in logit space.

        x = logit(a + (1 - 2a) (count + u)/17),  u ~ U[0, 1),  a = 0.05

    The last 360, in the order of the file, are the test set.

    Args:
        seed: for the dequantisation noise.

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
    return Dataset("digits-logit", train=x[:-N_TEST_DIGITS], test=x[-N_TEST_DIGITS:])


def digits_images() -> Dataset:
    """The digits of `digits` as counts: (n, 1, 8, 8), 17 levels, the same 360 test digits.

    >>> digits_images().event
    (1, 8, 8)
    """
    from sklearn.datasets import load_digits

    counts = torch.from_numpy(load_digits().images).to(torch.uint8)[:, None]
    return Dataset("digits", counts[:-N_TEST_DIGITS], counts[-N_TEST_DIGITS:], DIGITS_LEVELS)


def patches(n_train: int = 20_000, n_test: int = 2_000, seed: int = 0) -> Dataset:
    """RGB patches of scikit-learn's two photographs: (n, 3, 16, 16), 256 levels.

    Training patches lie wholly in the left 464 columns of a photograph, test patches wholly in the
    right 160; the 16 columns between are unused. So no pixel occurs in both sets, nor do two
    adjacent pixels occur one in each. The positions of a set are drawn without replacement from
    both photographs together. Patches of one set overlap, so they are not independent: a standard
    error over test patches is too small.

    Pillow decodes the JPEG files; its versions may differ by one count in a pixel.

    Args:
        n_train: number of training patches, at most 369,976.
        n_test: number of test patches, at most 119,480.
        seed: for the positions.

    Raises:
        ValueError: if a number is below 1 or above the number of positions.

    Source: photographs by danielbuechele (china.jpg) and vultilion (flower.jpg), CC BY 2.0.

    >>> patches(n_train=10, n_test=5).train.shape
    torch.Size([10, 3, 16, 16])
    """
    from sklearn.datasets import load_sample_images

    photographs = np.stack(load_sample_images().images)  # (2, 427, 640, 3)
    generator = torch.Generator().manual_seed(seed)
    return Dataset(
        "patches",
        _cut(photographs[:, :, :464], n_train, "n_train", generator),
        _cut(photographs[:, :, 480:], n_test, "n_test", generator),
        n_levels=256,
    )


def _cut(region: np.ndarray, n: int, name: str, generator: torch.Generator) -> Tensor:
    """n patches at distinct positions of (n_photographs, height, width, 3)."""
    windows = np.lib.stride_tricks.sliding_window_view(region, (PATCH_SIZE, PATCH_SIZE), (1, 2))
    positions = windows.shape[:3]  # before channels, rows and columns of the patch
    n_positions = int(np.prod(positions))
    if not 1 <= n <= n_positions:
        raise ValueError(
            f"patches needs {name} of 1 to {n_positions}, the number of positions; got {n}. "
            f"{'Raise' if n < 1 else 'Lower'} `{name}`."
        )
    chosen = torch.randperm(n_positions, generator=generator)[:n].numpy()
    return torch.from_numpy(windows[np.unravel_index(chosen, positions)])
