"""Rows as suites write them, made up, for tests of what is drawn from them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from resflow_bench.lab import pack
from resflow_bench.lab.discovery import load, page_order

SUITES = {name: load(name) for name in page_order()}
"""Every suite that has a section on the page."""

DIM, K = 64, 0.9
SIGNS = {"minus-identity": -K, "plus-identity": K, "triangular": 0.0, "trained": -0.45}
MODEL = {"dim": DIM, "lipschitz": K, "dtype": "float64", "device": "cpu"}
FIXED = {"truncation": "fixed", "probe": "gaussian", "n_probes": 1}
ROULETTE = {"truncation": "roulette", "n_exact": 3, "probe": "gaussian", "n_probes": 1}

Observed = Mapping[str, float | tuple[float, float]]


def rows(suite: str, cells: Iterator[tuple[dict[str, Any], Observed]]) -> pd.DataFrame:
    """A long frame; a metric is a number, or a measured number and the half-width at 99 %."""
    lines = []
    for index, (axes, metrics) in enumerate(cells):
        for metric, observed in metrics.items():
            value, half = observed if isinstance(observed, tuple) else (observed, 0.0)
            fixed = {"suite": suite, "cell": f"{suite}{index}", "status": "ok", "message": ""}
            number = {"metric": metric, "value": value, "unit": "nat", "n": 1000}
            interval = {
                "standard_error": half / 2.576,
                "ci_low": value - half,
                "ci_high": value + half,
            }
            lines.append(fixed | number | interval | axes)
    return pd.DataFrame(lines)


def bias_cells(draw: np.random.Generator) -> Iterator[tuple[dict[str, Any], Observed]]:
    for (model, a), n in product(SIGNS.items(), (1, 2, 5, 10)):
        k = np.arange(1, n + 1)
        expected = DIM * (float(np.sum(-((-a) ** k) / k)) - math.log1p(a))
        bound = DIM * (-math.log1p(-K) - float(np.sum(K**k / k)))
        half = 0.02 if abs(a) < K else 0.0
        measured = expected + 0.3 * half * draw.standard_normal()
        yield (
            MODEL | FIXED | {"model": model, "n_terms": n},
            {
                "bias": (measured, half),
                "bias_paired": (measured, half),
                "bias_expected": expected,
                "bias_bound": bound,
                "log_det_exact": DIM * math.log1p(a),
                "weight_bias": (measured + 0.5, 0.1),
                "weight_bias_expected": expected + 0.5,
            },
        )
    yield (
        MODEL | ROULETTE | {"model": "trained", "roulette": "geometric(0.5)"},
        {
            "bias": (0.004, 0.02),
            "bias_paired": (0.001, 0.005),
            "bias_expected": 0.0,
            "log_det_exact": -30.0,
        },
    )


def variance_cells(draw: np.random.Generator) -> Iterator[tuple[dict[str, Any], Observed]]:
    for (model, a), n in product(SIGNS.items(), (5, 10)):
        k = np.arange(1, n + 1)
        expected = 2 * DIM * float(np.sum(-((-a) ** k) / k)) ** 2
        half = 0.03 * expected
        yield (
            MODEL | FIXED | {"model": model, "n_terms": n},
            {
                "variance": (expected + 0.3 * half * draw.standard_normal(), half),
                "variance_expected": expected,
                "variance_bound": 1.3 * expected,
                "variance_bound_lipschitz": 2 * DIM * float(np.sum(K**k / k)) ** 2,
                "variance_bound_printed": 2 * float(np.sum(1 / k)) * math.sqrt(DIM),
                "variance_is_finite": 1.0,
                "spectral_radius": abs(a),
            },
        )
    for (model, a), law in product(SIGNS.items(), ("geometric(0.5)", "poisson(2)")):
        finite = a == 0 or (law != "poisson(2)" and a**2 < 0.5)
        yield (
            MODEL | ROULETTE | {"model": model, "roulette": law},
            {
                "variance": (9.0, 0.5),
                "ess_loss": (0.99, 0.01),
                "ess_loss_expected": 1.0 - math.exp(-9.1) if finite else 1.0,
                "variance_expected": 9.1 if finite else math.inf,
                "variance_bound": 12.0 if finite else math.inf,
                "variance_bound_lipschitz": math.inf,
                "variance_is_finite": float(finite),
                "spectral_radius": abs(a),
            },
        )


def inverse_cells() -> Iterator[tuple[dict[str, Any], Observed]]:
    for dtype, tolerance in product(("float32", "float64"), (1e-2, 1e-4)):
        yield (
            MODEL | {"model": "trained", "dtype": dtype, "tolerance": tolerance, "max_steps": 5000},
            {
                "inverse_error": tolerance / 2,
                "inverse_error_bound": tolerance * 10,
                "error_over_bound": 0.05,
                "n_steps": 8.0,
                "n_steps_bound": 90.0,
                "outcome": 2.0 if (dtype, tolerance) == ("float32", 1e-4) else 0.0,
            },
        )
    for dtype, steps in product(("float32", "float64"), (1, 10, 100)):
        error = max(0.5**steps, 1e-7 if dtype == "float32" else 0.0)
        yield (
            MODEL | {"model": "trained", "dtype": dtype, "tolerance": 0.0, "max_steps": steps},
            {
                "inverse_error": error,
                "inverse_error_bound": 10 * error,
                "error_over_bound": 0.1,
                "inverse_error_banach": 10 * K**steps,
                "outcome": 1.0,
            },
        )


def lipschitz_cells() -> Iterator[tuple[dict[str, Any], Observed]]:
    for model, a in SIGNS.items():
        yield (
            MODEL | {"model": model},
            {
                "lipschitz_promised": K,
                "lipschitz_certified": K,
                "lipschitz_power_iteration": 1.05 if model == "trained" else K,
                "lipschitz_realised": K if abs(a) == K else 0.5,
                "spectral_radius": abs(a),
            },
        )


def throughput_cells() -> Iterator[tuple[dict[str, Any], Observed]]:
    for operation, n in product(("log_prob", "train_step"), (5, 20)):
        axes = {"model": "trained", "operation": operation, "n_terms": n, "batch_size": 256}
        yield (
            MODEL | FIXED | axes,
            {
                "examples_per_s": (12000.0 / n, 300.0 / n),
                "flops_fraction": (0.41, 0.02),
            },
        )


def scaling_cells() -> Iterator[tuple[dict[str, Any], Observed]]:
    """A constant of 2 ms and, at the last rung, 80 or 640 ms in proportion to the size."""
    first = {"n_terms": 20, "n_probes": 4, "batch_size": 256}
    for device, grows, width in product(("cpu", "cuda"), first, (128, 1024)):
        overhead, last = 0.002, 0.08 * width / 128
        axes = {"dim": 64, "width": width, "dtype": "float32", "device": device, "grows": grows}
        yield (
            axes | first,
            {
                **{f"wall_s_{n}": (overhead + last * n / 8, 1e-4) for n in (1, 2, 4, 8)},
                "exponent": (0.95, 0.02),
                "exponent_flops": 1.0,
                "overhead_s": (overhead, 1e-4),
                "marginal_s": (last / 8 / first[grows], 1e-5),
                "flops_fraction": (0.8, 0.02),
            },
        )


def training_gap_cells() -> Iterator[tuple[dict[str, Any], Observed]]:
    flow = {"dataset": "digits-logit", "architecture": "mlp", "lipschitz": K}
    for step, n in product((100, 300), (1, 2, 5)):
        gap = step / 1000 / n**3
        yield (
            flow | {"step": step, "n_terms": n, "truncation": "fixed"},
            {
                "log_prob_objective": (-1.2 + gap, 0.005),
                "log_prob_unbiased": (-1.2, 0.005),
                "log_prob_exact": -1.2,
                "gap": (gap, 1e-3 * gap),
                "gap_expected": gap,
                "gap_bound": 20.0 / n,
            },
        )


def density_frame() -> pd.DataFrame:
    """A density in the plane and images, each with its picture on the first of its rows."""
    common = {"architecture": "mlp", "lipschitz": K, "step": 300}
    learned = np.outer(np.arange(8.0), np.arange(8.0))
    plane = pack(learned=learned, true=learned.T, samples=np.zeros((5, 2)), reach=2.0)
    sheet = np.zeros((1, 16, 16), np.uint8)
    images = {"log_prob": (90.0, 1.0), "bits_per_dim": (2.1, 0.1)}
    plane_numbers = {"log_prob": (-2.5, 0.1), "bits_per_dim": (1.8, 0.1), "divergence": (0.4, 0.1)}
    beside: Observed = {
        **{"log_prob_ours": (90.0, 1.0), "log_prob_minus_ours": (-1.6, 0.2)},
        **{"fitted_minus_ours": (-1.0, 0.2), "steps_to_match": (0.9, 0.1)},
        **{"lipschitz_certified": 1.02 * K, "lipschitz_certified_ours": K},
    }
    cells: list[tuple[dict[str, Any], Observed]] = [
        (common | {"dataset": "moons"}, plane_numbers),
        (common | {"dataset": "digits"}, images),
        (common | {"dataset": "digits", "implementation": "normflows"}, beside),
    ]
    frame = rows("density", iter(cells))
    pictures = {
        "density0": plane,
        "density1": pack(samples=sheet, data=sheet, tiles=np.array([2, 2])),
    }
    shown = frame["cell"].map(pictures).astype(object)
    return frame.assign(picture=shown.where(~frame["cell"].duplicated(), None))


def training_cells() -> Iterator[tuple[dict[str, Any], Observed]]:
    axes = {"dataset": "moons", "architecture": "mlp", "batch_size": 256}
    for step in (10, 20, 30, 40):
        yield (
            MODEL | axes | {"step": step},
            {
                "loss": (2.0 + 8.0 / step, 0.05),
                "log_prob_test": (-2.1 - 8.0 / step, 0.08),
                "bits_per_dim": (1.5 + 5.8 / step, 0.06),
                "lipschitz_certified": min(K, 0.03 * step),
                "lipschitz_excess": 1.01,
                "learning_rate": 0.05,
                "examples_per_s": 4000.0,
            },
        )


def peers_cells() -> Iterator[tuple[dict[str, Any], Observed]]:
    for implementation, mode in product(("ours", "normflows"), ("roulette", "evaluation")):
        off = -9.0 if implementation == "normflows" and mode == "roulette" else 0.0
        error = {"gradient_error": (0.6, 0.01)} if off else {"gradient_error": (0.0, 0.1)}
        inverse = {
            "inverse_error": 1e-3,
            "inverse_batch_error": 2e-3,
            "inverse_over_ours": (0.2, 0.1),
        }
        if implementation == "ours":
            inverse = dict.fromkeys(("inverse_error", "inverse_batch_error"), 1e-9)
            inverse |= {"inverse_batch_bound": 1e-6, "inverse_over_ours": (1.0, 0.1)}
        yield (
            MODEL | {"model": "trained", "implementation": implementation, "mode": mode},
            {
                "bias": (off, 0.1),
                "bias_expected": off,
                "spectral_radius": 0.45,
                "time_over_ours": (2.0, 0.1),
                "peak_over_ours": 3.0,
                "step_over_ours": (1.5, 0.1),
                "gradient_peak_over_ours": 1.2,
                **(inverse | {"inverse_asked": 1e-5} if mode == "evaluation" else error),
            },
        )


def efficiency_cells() -> Iterator[tuple[dict[str, Any], Observed]]:
    """Variance (infinite where told so) and relative time of some candidates, on two models."""
    one = {"truncation": "roulette", "n_exact": 3, "per": "batch", "expansion": "taylor"}
    ours = {"implementation": "ours", "estimator": "hutchinson", "n_probes": 1, "n_traced": 0}
    base = ours | one | {"roulette": "geometric(0.5)", "probe": "gaussian"}
    best = base | {"roulette": "geometric(0.3)", "per": "stratified", "probe": "rademacher"}
    few = {"implementation": "ours", "expansion": "taylor", "n_traced": 2}
    candidates: tuple[tuple[dict[str, Any], float, float, bool], ...] = (
        (base, 40.0, 0.7, False),
        (base | {"n_traced": 1}, 2.5, 0.7, False),
        (best | {"n_traced": 2}, 0.3, 1.2, True),
        (few | {"estimator": "tuned", "probe": "hadamard"}, 0.005, 2.0, True),
        ({"implementation": "ours", "estimator": "determinant"}, 0.0, 3.2, True),
        ({"implementation": "normflows", "mode": "roulette"}, 45.0, 1.1, False),
        ({"implementation": "normflows", "mode": "memory-saving"}, 50.0, 1.5, False),
    )
    flows = [("trained", 64, 1.0), ("steep", 16, 0.2), ("steep", 256, 9.0)]
    for (model, dim, scale), (axes, variance, time, finite) in product(flows, candidates):
        seconds = 4e-5 * scale * time
        expected = {"variance_expected": variance} if finite else {}
        where = MODEL | {"model": model, "dim": dim, "batch_size": 256} | axes
        gradient: Observed = {
            "variance_is_finite": float(finite),
            "gradient_variance": (1e-3 * variance, 1e-4 * variance),
            "gradient_bias": (0.0, 0.1),
            "gradient_seconds": (seconds, 0.1 * seconds),
            "gradient_relative_time": (1.5 * time, 0.1 * time),
        }
        if axes.get("mode") == "memory-saving":
            yield where, gradient
            continue
        yield (
            where,
            {
                "variance": (scale * variance, 0.1 * scale * variance),
                **gradient,
                "bias": (0.0, 0.1 * math.sqrt(variance)),
                "bias_expected": 0.0,
                "seconds_per_example": (seconds, 0.1 * seconds),
                "relative_time": (time, 0.1 * time),
                "seconds_to_target": seconds * max(1.0, 1e4 * scale * variance),
                **{name: scale * value for name, value in expected.items()},
            },
        )


def launches_cells() -> Iterator[tuple[dict[str, Any], Observed]]:
    """A log-prob of three implementations, and a call of ours alone."""
    axes = {"architecture": "mlp", "lipschitz": K, "batch_size": 8, "implementation": "ours"}
    yield axes | {"operation": "sample"}, {"n_launches": 1645.0, "n_waits": 2.0}
    asked = {"ours": (560.0, 0.0), "normflows": (3649.0, 56.0), "torchflows": (1518.0, 44.0)}
    for name, (n_launches, n_waits) in asked.items():
        call = {"operation": "log_prob", "mode": "evaluation", "implementation": name}
        yield axes | call, {"n_launches": n_launches, "n_waits": n_waits}


def path_gradient_cells() -> Iterator[tuple[dict[str, Any], Observed]]:
    """A series of few terms, whose bias shrinks, and a roulette."""
    common = {
        "gradient_variance": (0.01, 0.001),
        "sampling_variance": 0.5,
        "path_variance": 0.02,
    }
    axes = MODEL | {"model": "trained", "tolerance": 1e-12}
    for n in (1, 2, 5):
        bias = 0.1 ** (n / 2)
        yield (
            axes | FIXED | {"n_terms": n},
            common | {"gradient_bias": (1.01 * bias, 0.01), "gradient_bias_expected": bias},
        )
    yield (
        axes | ROULETTE | {"roulette": "geometric(0.5)"},
        common | {"gradient_bias": (0.001, 0.01), "gradient_bias_expected": 0.0},
    )


def flows_frame() -> pd.DataFrame:
    """Two systems in the plane, of two lengths of training each, with pictures."""
    cells: list[tuple[dict[str, Any], Observed]] = []
    for architecture, seconds, left in (("mlp", 0.02, 0.3), ("nsf", 0.01, 0.1)):
        for step in (100, 1000):
            axes = {"dataset": "eight-gaussians", "architecture": architecture, "step": step}
            divergence = left / step**0.3
            metrics: Observed = {
                "log_prob": (-1.45 - divergence, 0.02),
                "divergence": (divergence, 0.02),
                "mass_error": 0.001,
                "sample_gap": (0.01, 0.03),
                **{"n_parameters": 36000.0, "round_trip_error": 1e-5},
                **{"train_step_s": (seconds, 0.001), "sample_s": (1e-4, 1e-5)},
                "log_prob_s": (1e-4, 1e-5),
            }
            cells.append((axes, metrics))
    example = {"dataset": "eight-gaussians", "architecture": "nsf", "step": 1000}
    beside: Observed = {
        **{"log_prob_ours": (-1.5, 0.02), "log_prob_minus_ours": (-0.05, 0.2)},
        **{"n_parameters": 22000.0, "n_parameters_ours": 36000.0},
    }
    cells.append((example | {"implementation": "example-own-size"}, beside))
    frame = rows("flows", iter(cells))
    grid = np.full((4, 4), 0.1)
    plane = pack(learned=grid, true=grid, samples=np.zeros((3, 2)), reach=np.array(2.0))
    first = ~frame.duplicated("cell")
    return frame.assign(picture=[plane if one else None for one in first])


def euler_cells() -> Iterator[tuple[dict[str, Any], Observed]]:
    """The two methods at their orders, contractions from the second number of steps on."""
    axes = {"dataset": "eight-gaussians", "architecture": "flow-matching", "step": 1000}
    for method, order in (("euler", 1), ("midpoint", 2)):
        for n_steps in (4, 16, 64):
            metrics: Observed = {
                **{"step_norm": 5.8 / n_steps, "field_norm": 5.8},
                "is_contraction": float(n_steps > 5),
                "log_prob_rms": 4.0 / n_steps**order,
                "trace_rms": 4.4 / n_steps**order,
                "order": (float(order), 0.01),
                **{"fixed_point_error": 1e-9, "backward_error": 2.0 / n_steps**order},
                "log_det_error": (0.001, 0.01),
                **{"n_evaluations": float(order * n_steps), "n_evaluations_adaptive": 32.0},
            }
            yield axes | {"method": method, "n_solver_steps": n_steps}, metrics
            if n_steps == 4:
                continue
            bound = {"step_norm_certified": 12 / n_steps, "error_over_bound": 0.1, "outcome": 0.0}
            certified = {"architecture": "certified-flow-matching", "method": method}
            yield axes | certified | {"n_solver_steps": n_steps}, metrics | bound
    for method, error in (("zuko", 14.8), ("zuko-unscaled", 3.5)):
        over: Observed = {"z_error_over_tolerance": 1.0, "trace_error_over_tolerance": error}
        of_u: Observed = {"n_evaluations": 900 / error, "n_evaluations_rk4": 64.0}
        yield axes | {"method": method, "tolerance": 1e-4}, over | of_u


def make_frames() -> dict[str, pd.DataFrame]:
    draw = np.random.default_rng(0)
    frames = {
        "bias": rows("bias", bias_cells(draw)),
        "variance": rows("variance", variance_cells(draw)),
        "inverse": rows("inverse", inverse_cells()),
        "lipschitz": rows("lipschitz", lipschitz_cells()),
        "throughput": rows("throughput", throughput_cells()),
        "scaling": rows("scaling", scaling_cells()),
        "launches": rows("launches", launches_cells()),
        "path_gradient": rows("path_gradient", path_gradient_cells()),
        "flows": flows_frame(),
        "euler": rows("euler", euler_cells()),
        "training_gap": rows("training_gap", training_gap_cells()),
        "density": density_frame(),
        "efficiency": rows("efficiency", efficiency_cells()),
        "peers": rows("peers", peers_cells()),
        "training": rows("training", training_cells()),
    }
    failed = (
        frames["inverse"]
        .iloc[[0]]
        .assign(cell="gone", status="failed", message="<b>no</b> & so", metric="", value=math.nan)
    )
    return frames | {"inverse": pd.concat([frames["inverse"], failed])}
