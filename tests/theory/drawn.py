"""Independent draws of an estimate, and z-scores of their mean and variance."""

from __future__ import annotations

import numpy as np
import torch

from resflow_bench.logdet import LogDetEstimator, Probe, Truncation

Sample = np.ndarray


def matrix_map(j: np.ndarray):
    """g(x) = J x, with J the same at every x."""
    transposed = torch.from_numpy(np.array(j)).T
    return lambda x: x @ transposed


def draws(j: np.ndarray, probe: Probe, truncation: Truncation, n: int = 20_000) -> Sample:
    """n independent estimates of ln|det(I + J)|, (n,): one for each example of a batch."""
    x = torch.zeros(n, len(j), dtype=torch.float64)
    estimator = LogDetEstimator(probe, truncation)
    return estimator(matrix_map(j), x, torch.Generator().manual_seed(0)).value.numpy()


def z_of_mean(sample: Sample, mean: float) -> float:
    return float((sample.mean() - mean) / (sample.std() / len(sample) ** 0.5))


def z_of_variance(sample: Sample, variance: float) -> float:
    squares = (sample - sample.mean()) ** 2
    return z_of_mean(squares, variance)
