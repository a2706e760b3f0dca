"""From a cell to the objects that are measured, and to the truth that they are held to."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from scipy import linalg
from torch import Tensor

from resflow_bench.flows import ResidualBlock, ResidualFlow
from resflow_bench.lab.cells import Cell, Context, Skip, silent
from resflow_bench.logdet import (
    EXPANSIONS,
    PROBES,
    Expansion,
    Fixed,
    LogDetEstimator,
    Roulette,
    Truncation,
    dense_log_det,
    jacobian,
    law_named,
)
from resflow_bench.models.catalogue import MODELS
from resflow_bench.threads import one_thread


def build_flow(cell: Cell, results: Path, aligned: bool = True) -> ResidualFlow:
    """The cell's model, in its dtype and on its device.

    Args:
        cell: its axes model, dim, lipschitz, dtype and device.
        results: where trained weights are kept.
        aligned: whether each layer's power iteration is at its limit, so that the promised
            constant holds; False leaves it as the training did.

    Raises:
        Skip: where the model does not exist at this dim.
    """
    flow = MODELS[cell["model"]].flow(cell["dim"], cell["lipschitz"], results, silent)
    if aligned:
        flow.align()
    return flow.to(cell["device"], getattr(torch, cell["dtype"])).requires_grad_(False)


def build_points(cell: Cell, n: int) -> Tensor:
    """The model's n inputs, (n, *event), in the cell's dtype and on its device."""
    points = MODELS[cell["model"]].points(n, cell["dim"])
    return points.to(cell["device"], getattr(torch, cell["dtype"]))


def build_truncation(cell: Cell) -> Truncation:
    """`Fixed(n_terms)` or `Roulette(law, n_exact, per)`."""
    if cell["truncation"] == "fixed":
        return Fixed(cell["n_terms"])
    return Roulette(law_named(cell["roulette"]), cell["n_exact"], cell.get("per", "example"))


def build_estimator(cell: Cell) -> LogDetEstimator:
    """The cell's probe, truncation, number of probes and of exact traces, and expansion."""
    return LogDetEstimator(
        PROBES[cell["probe"]],
        build_truncation(cell),
        cell["n_probes"],
        n_traced=cell.get("n_traced", 0),
        expansion=build_expansion(cell),
    )


def build_expansion(cell: Cell) -> Expansion:
    """The cell's series, `taylor` if it names none.

    Raises:
        Skip: for TF32 on a device that has none.
    """
    name = cell.get("expansion", "taylor")
    if "tf32" in name and torch.device(cell["device"]).type != "cuda":
        raise Skip(f"{name} needs a CUDA device; got {cell['device']}")
    return EXPANSIONS[name](cell["lipschitz"])


@dataclass(frozen=True, eq=False)
class Problem:
    """A flow, P points, and what is true of it there, in float64.

    flow, x: as the cell asks, (P, *event).
    jacobians: J of every block at its own input, (P, d, d) each; d is the block's, which is less
        than the data's behind a scale.
    log_det: the exact ln|det df/dx|, (P,), nats.
    norm: the largest ||J||_2.
    spectral_radius: the largest |eigenvalue| of a J.
    """

    flow: ResidualFlow
    x: Tensor
    jacobians: tuple[np.ndarray, ...]
    log_det: np.ndarray
    norm: float
    spectral_radius: float

    @cached_property
    def logarithms(self) -> tuple[np.ndarray, ...]:
        """log(I + J) of every block, (P, d, d) each: real, since the spectral radius is below 1."""
        return tuple(
            np.asarray([linalg.logm(np.eye(len(m)) + m).real for m in matrices])
            for matrices in self.jacobians
        )

    def over_blocks(self, per_block: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """The sum over blocks of what comes of a block's J, (P, d, d) -> (P,)."""
        return np.sum([per_block(matrices) for matrices in self.jacobians], axis=0)

    def over_dims(self, per_dim: Callable[[int], float]) -> float:
        """The sum over blocks of a bound that knows only the block's dimension."""
        return sum(per_dim(matrices.shape[-1]) for matrices in self.jacobians)


def build_problem(cell: Cell, results: Path, n_points: int) -> Problem:
    """The cell's flow at `n_points` points, or as many as have a J of their own."""
    n_points = MODELS[cell["model"]].n_distinct_points or n_points
    axes = ("model", "dim", "lipschitz", "dtype", "device")
    key = Cell(cell.suite, {name: cell[name] for name in axes})
    return _problem(key, results, n_points)


@lru_cache(maxsize=8)
def _problem(cell: Cell, results: Path, n_points: int) -> Problem:
    flow = build_flow(cell, results)
    x = build_points(cell, n_points)
    with one_thread():  # sums of several threads differ in their last bits
        jacobians, log_det = dense_truth(flow, x)
    return Problem(flow, x, jacobians, log_det, *sizes(jacobians))


def sizes(jacobians: tuple[np.ndarray, ...]) -> tuple[float, float]:
    """The largest ||J||_2 and the largest |eigenvalue| of a J: what the data meet of a promise."""
    norm = max(np.linalg.norm(matrices, 2, axis=(-2, -1)).max() for matrices in jacobians)
    radius = max(np.abs(np.linalg.eigvals(matrices)).max() for matrices in jacobians)
    return float(norm), float(radius)


def dense_truth(flow: ResidualFlow, x: Tensor) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """(J of every block at its own input, exact log-det): (P, d, d) each, (P,), float64."""
    promoted = copy.deepcopy(flow).double()
    jacobians, log_det = [], torch.zeros(len(x), dtype=torch.float64, device=x.device)
    with torch.no_grad():
        for layer, inputs in promoted.inputs(x.double()):
            if isinstance(layer, ResidualBlock):
                matrix = jacobian(layer.branch, inputs)
                log_det += dense_log_det(matrix)
                jacobians.append(matrix.cpu().numpy())
            else:
                log_det += layer.forward_and_log_det(inputs, flow.estimator)[1]
    return tuple(jacobians), log_det.cpu().numpy()


def prepare_models(cells: list[Cell], context: Context) -> None:
    """Make each trained flow that the cells ask for, once, before any worker wants it."""
    wanted = {(cell["model"], cell["dim"], cell["lipschitz"]) for cell in cells}
    for name, dim, lipschitz in sorted(wanted):
        with suppress(Skip):  # the cells will say so
            MODELS[name].flow(dim, lipschitz, context.results, context.say)
