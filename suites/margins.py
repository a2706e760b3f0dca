"""Margins and resolutions that several suites share."""

from __future__ import annotations

from resflow_bench.lab import TIME, Metric

RATE = Metric("less", rtol=TIME.rtol, is_time=True)
MEMORY = Metric("more", rtol=0.05)
COUNT = Metric("more", rtol=0.05)
SAMPLED_NAT = Metric("other", atol=0.01)
EXACT = Metric("other", rtol=1e-3, atol=1e-6)  # float32's rounding, on another machine
SHARE = Metric("more", atol=0.005)  # of the whole, half of the last digit of "1 %"
BITS = Metric("other", atol=0.005)  # bit/dim: half of the last digit that is printed
NOISE = Metric("more", rtol=0.05, atol=1e-9)
FLAG = Metric("less")  # 0 or 1, and 1 is better
ERROR = Metric("more", rtol=1.0, atol=1e-12)  # at the floor of rounding a factor two is chance
CERTIFIED = Metric("more", rtol=1e-4)
BITS_PER_DIM = Metric("more", atol=0.005)


def each(margin: Metric, *metrics: str) -> dict[str, Metric]:
    """The same margin for each of the metrics."""
    return dict.fromkeys(metrics, margin)


REALISED = each(EXACT, "norm_realised", "spectral_radius")
"""The norm and the spectral radius of J at the points, which most suites have."""

BIAS_RESOLUTION = 0.1
"""Nat: 0.002 bits per dimension at d = 64, less than separates one model from another."""

TARGET = 0.01
"""Nat: the standard deviation that a comparison of models needs."""
