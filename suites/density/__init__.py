"""The exact held-out likelihood of trained flows."""

from __future__ import annotations

from typing import Any

from resflow_bench.data import DENSITIES
from resflow_bench.lab import Grid, Preset, Suite
from resflow_bench.speed.benchmark import SuiteBenchmark, described
from suites.density.claims import CLAIMS
from suites.density.measure import measure_density, prepare_densities
from suites.grids import LAYERED_FLOWS, NEAR_ONE, Axes


def _grid(
    datasets: tuple[str, ...],
    architectures: tuple[str, ...],
    constants: tuple[float, ...],
    steps: tuple[int, ...],
) -> Grid:
    flows: Axes = {"dataset": datasets, "architecture": architectures, "lipschitz": constants}
    return Grid({**flows, "step": steps, "dtype": ("float32",), "device": ("cpu",)})


def _against(datasets: tuple[str, ...], steps: tuple[int, ...]) -> Grid:
    """Trainings of normflows beside ours."""
    alone = _grid(datasets, ("mlp",), (0.9,), steps)
    return Grid({**alone.axes, "implementation": ("normflows",)})


IMAGES = ("digits", "patches", "mnist", "cifar10", "imagenet32")

SUITE = Suite(
    name="density",
    title="Held-out density",
    question="How good is the density, held out, exactly?",
    axes=("dataset", "architecture", "lipschitz", "step", "implementation", "dtype", "device"),
    presets={
        "smoke": Preset(
            (_grid(("checkerboard",), ("mlp",), (0.9,), (20,)), _against(("checkerboard",), (5,))),
            {"n_points": 200, "n_grid": 16, "n_samples": 200, "n_seeds": 2},
        ),
        "quick": Preset(
            (
                _grid(("checkerboard", "moons"), ("mlp",), (0.9,), (400,)),
                _grid(("digits",), ("mlp",), (0.9,), (300,)),
                _against(("digits",), (200,)),
            ),
            {"n_points": 2000, "n_grid": 80, "n_samples": 2000, "n_seeds": 3},
        ),
        "full": Preset(
            (
                _grid(tuple(DENSITIES), ("mlp", "dense"), (0.7, 0.9, 0.97), (1000, 10_000)),
                _grid(
                    ("checkerboard", "eight-gaussians"), LAYERED_FLOWS, (0.7, 0.9, 0.97), (1000,)
                ),
                _grid(("checkerboard", "eight-gaussians"), ("mlp",), NEAR_ONE, (1000,)),
                _grid(("digits-logit",), ("mlp", "dense"), (0.7, 0.9, 0.97), (1000, 10_000)),
                _grid(("digits-logit",), ("mlp",), NEAR_ONE, (1000,)),
                _grid(IMAGES, ("conv", "multiscale"), (0.9, 0.97), (1000, 10_000)),
                _against(("digits", "checkerboard", "moons"), (200, 800)),
            ),
            {"n_points": 10_000, "n_grid": 120, "n_samples": 10_000, "n_seeds": 10},
        ),
    },
    measure=measure_density,
    prepare=prepare_densities,
    prepared_by=("dataset", "architecture", "lipschitz"),
    has_pictures=True,
    claims=CLAIMS,
    table=(
        *("log_prob", "bits_per_dim", "log_prob_true", "divergence"),
        *("log_prob_ours", "log_prob_minus_ours", "fitted_minus_ours", "steps_to_match"),
        *("lipschitz_certified", "lipschitz_certified_ours", "norm_realised"),
    ),
    figures="suites.density.figures",
)


class Density(SuiteBenchmark):
    """Time of the measure on a flow trained for ten steps, and its log-likelihood."""

    suite = SUITE
    n_replicates = 1
    effort = {"n_points": 100, "n_grid": 8, "n_samples": 100}
    cells = {
        "checkerboard-mlp-K0.9-step10": {
            **{"dataset": "checkerboard", "architecture": "mlp", "lipschitz": 0.9, "step": 10},
            **{"dtype": "float32", "device": "cpu"},
        }
    }

    def time_measure(self, name: str) -> None:
        self.call()

    @described(unit="nat")
    def track_log_prob(self, name: str) -> dict[str, Any]:
        return self.track("log_prob")
