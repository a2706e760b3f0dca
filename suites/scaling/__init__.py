"""Exponents of a log-prob's cost in terms, probes and examples, and the share of the rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from resflow_bench.lab import Grid, Preset, Suite
from resflow_bench.speed.benchmark import SuiteBenchmark, described
from suites.grids import Axes, Point, everywhere
from suites.scaling.claims import CLAIMS
from suites.scaling.measure import build_log_prob, build_sized_flow, measure_scaling

FIRST_RUNGS: dict[str, Point] = {
    "n_terms": {"n_terms": 20, "n_probes": 1, "batch_size": 256},
    "n_probes": {"n_terms": 20, "n_probes": 4, "batch_size": 256},
    "batch_size": {"n_terms": 20, "n_probes": 1, "batch_size": 512},
}
"""The first rung of each ladder: large enough that its products take most of the time."""

WIDE_RUNGS: dict[str, Point] = {
    "n_terms": {"n_terms": 5, "n_probes": 8, "batch_size": 64},
    "n_probes": {"n_terms": 20, "n_probes": 1, "batch_size": 64},
    "batch_size": {"n_terms": 20, "n_probes": 8, "batch_size": 8},
}
"""Where the products are nearly all of a call, as in a flow on images of 28 x 28 pixels; the last
rungs have 8 probes and 64 examples."""


def ladders(
    dim: int, width: int, rungs: dict[str, Point], dtypes: tuple[str, ...] = ("float32",)
) -> tuple[Grid, ...]:
    """One cell for each axis that grows, and each dtype."""
    where: Axes = {"dim": (dim,), "width": (width,), "dtype": dtypes, "device": ("cpu",)}
    return tuple(
        Grid({**where, **{name: (value,) for name, value in first.items()}}, {"grows": grows})
        for grows, first in rungs.items()
    )


SUITE = Suite(
    name="scaling",
    title="Growth of the cost",
    question="Does the cost of a log-prob grow linearly in terms, probes and examples, and at what "
    "share of the hardware's rate?",
    axes=("dim", "width", "dtype", "device", "grows", "n_terms", "n_probes", "batch_size"),
    presets={
        "smoke": Preset(ladders(64, 128, FIRST_RUNGS), {"n_rounds": 8}),
        "quick": Preset(
            everywhere(
                ladders(64, 128, FIRST_RUNGS)
                + ladders(784, 1024, {"n_probes": WIDE_RUNGS["n_probes"]})
            ),
            {"n_rounds": 12},
        ),
        "full": Preset(
            everywhere(
                ladders(64, 128, FIRST_RUNGS, ("float32", "float64"))
                + ladders(784, 1024, WIDE_RUNGS, ("float32", "float64"))
            ),
            {"n_rounds": 40},
        ),
    },
    measure=measure_scaling,
    exclusive=True,
    claims=CLAIMS,
    table=("exponent", "exponent_flops", "overhead_s", "marginal_s", "flops_fraction"),
    figures="suites.scaling.figures",
)


class Scaling(SuiteBenchmark):
    """The first rung's time, and the share of the rate at the last, at d = 64."""

    suite = SUITE
    effort = {"n_rounds": 8}
    n_replicates = 1  # the median of rounds already
    cells = {
        f"{grows}-{device}": {
            **{"dim": 64, "width": 128, "dtype": "float32", "device": device, "grows": grows},
            **first,
        }
        for grows, first in FIRST_RUNGS.items()
        for device in ("cpu", "cuda")
    }

    def build(self) -> Callable[[], object]:
        return build_log_prob(build_sized_flow(self.cell), self.cell, seed=0)

    def time_log_prob(self, name: str) -> None:
        self.call()

    @described(unit="1")
    def track_flops_fraction(self, name: str) -> dict[str, Any]:
        return self.track("flops_fraction")
