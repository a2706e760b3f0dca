"""Examples a second, peak memory, and the share of the hardware's matrix-product rate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from resflow_bench.lab import Preset, Suite
from resflow_bench.models import PREPARED_BY, prepare_models
from resflow_bench.speed.benchmark import SuiteBenchmark, described
from resflow_bench.speed.timing import peak_bytes
from suites import grids
from suites.throughput.claims import CLAIMS
from suites.throughput.measure import build_call, measure_throughput

OPERATIONS = ("log_prob", "train_step", "sample")
COMMON: grids.Axes = {"operation": OPERATIONS, "probe": ("rademacher",), "dtype": ("float32",)}

SUITE = Suite(
    name="throughput",
    title="Speed and memory",
    question="How many examples a second, in how many bytes, at what share of the matmul rate?",
    axes=(*grids.MODEL_AXES, *grids.ESTIMATOR_AXES, "operation", "batch_size"),
    presets={
        "smoke": Preset(
            grids.estimator_grids(
                models=("init",),
                constants=(0.9,),
                fixed={"n_terms": (10,)},
                common={**COMMON, "n_probes": (1,), "batch_size": (64,)},
            ),
            {"seconds": 0.2},
        ),
        "quick": Preset(
            grids.everywhere(
                grids.estimator_grids(
                    trained=(0.9,),
                    fixed={"n_terms": (5, 20)},
                    roulette={"roulette": ("geometric(0.5)",), "n_exact": (3,)},
                    common={**COMMON, "n_probes": (1,), "batch_size": (256,)},
                )
                + grids.estimator_grids(
                    trained=(0.9,),
                    fixed={"n_terms": (5,)},
                    common={**COMMON, "n_probes": (1,), "batch_size": (64,)},
                    flows=("conv",),
                )
            ),
            {"seconds": 0.6},
        ),
        "full": Preset(
            grids.everywhere(
                grids.estimator_grids(
                    models=("init",),
                    constants=(0.9,),
                    trained=(0.9,),
                    fixed={"n_terms": (5, 10, 20, 50)},
                    roulette={"roulette": ("geometric(0.5)", "geometric(0.1)"), "n_exact": (3,)},
                    common={**COMMON, "n_probes": (1, 4), "batch_size": (64, 256, 1024)},
                    flows=(*grids.TRAINED_FLOWS, *grids.LAYERED_FLOWS),
                )
            ),
            {"seconds": 5.0},
        ),
    },
    measure=measure_throughput,
    exclusive=True,
    prepare=prepare_models,
    prepared_by=PREPARED_BY,
    claims=CLAIMS,
    table=("examples_per_s", "wall_s", "cold_s", "replayed_s", "peak_bytes", "flops_fraction"),
    figures="suites.throughput.figures",
)


class Throughput(SuiteBenchmark):
    """Time and peak memory of each operation on the untrained flow."""

    suite = SUITE
    effort = {}
    cells = {
        f"{operation}-{device}": {
            **{"model": "init", "dim": 64, "lipschitz": 0.9, "truncation": "fixed", "n_terms": 20},
            **{"probe": "rademacher", "n_probes": 1, "dtype": "float32", "device": device},
            **{"operation": operation, "batch_size": 256},
        }
        for operation in OPERATIONS
        for device in ("cpu", "cuda")
    }

    def build(self) -> Callable[[], object]:
        return build_call(self.cell, Path("results"))

    def time_operation(self, name: str) -> None:
        self.call()

    @described(unit="bytes")
    def track_peak_bytes(self, name: str) -> float:
        return float(peak_bytes(self.calls[self.cell], self.cell["device"]))
