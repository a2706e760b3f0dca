"""A flow at a few points, and its exact values there in float64."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from scipy import linalg
from torch import Tensor

from resflow_bench.flows import ResidualFlow
from resflow_bench.flows.bijection import SeriesBlock, as_bijection
from resflow_bench.lab import Cell, Failure, Observation, Skip, exactly
from resflow_bench.logdet import Determinant, dense_log_det, jacobian
from resflow_bench.models.build import build_flow, build_points, model_named
from resflow_bench.models.own import version
from resflow_bench.theory import Coefficients
from resflow_bench.threads import one_thread


@dataclass(frozen=True, eq=False)
class Problem:
    """A flow at P points, and its exact values there in float64.

    flow, x: of the cell; x is (P, *event).
    jacobians: J of every block's branch, at the block's own point, (P, d, d) each; d is the
        block's, which is less than the data's behind a scale.
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
    def coefficients(self) -> tuple[Coefficients, ...]:
        """The coefficients of every block's series."""
        layers = [layer for layer, _ in self.flow.inputs(self.x[:1])]
        return tuple(layer.coefficients for layer in layers if isinstance(layer, SeriesBlock))

    @cached_property
    def logarithms(self) -> tuple[np.ndarray, ...]:
        """The sum of every block's series, (P, d, d) each: log(I + J) of a residual block.

        Real, since the spectral radius is below 1.
        """

        def logarithm(matrices: np.ndarray) -> np.ndarray:
            return np.asarray([linalg.logm(np.eye(len(m)) + m).real for m in matrices])

        pairs = zip(self.jacobians, self.coefficients, strict=True)
        return tuple(c.combine(logarithm, matrices) for matrices, c in pairs)

    @property
    def is_promised(self) -> bool:
        """True if every branch promises to be a contraction, from which bounds can be claimed."""
        return all(block.lipschitz < 1 for block in self.flow.blocks)

    def over_blocks(
        self, per_block: Callable[[np.ndarray, Coefficients], np.ndarray]
    ) -> np.ndarray:
        """The sum over blocks of a function of J, (P, d, d) -> (P,), and of the coefficients."""
        return np.sum(list(map(per_block, self.jacobians, self.coefficients)), axis=0)

    def over_dims(self, per_dim: Callable[[int, Coefficients], float]) -> float:
        """The sum over blocks of a function of the dimension and of the coefficients."""
        dims = [matrices.shape[-1] for matrices in self.jacobians]
        return sum(map(per_dim, dims, self.coefficients))


def build_problem(cell: Cell, results: Path, n_points: int) -> Problem:
    """The cell's flow at `n_points` points, or at fewer if fewer differ in their Jacobian.

    Raises:
        Skip: the flow has no block with a branch.
    """
    n_points = model_named(cell["model"], results).n_distinct_points or n_points
    axes = ("model", "dim", "lipschitz", "dtype", "device")
    key = Cell(cell.suite, {name: cell[name] for name in axes})
    return _problem(key, results, n_points, version(cell["model"], results))


def convergent(problem: Problem) -> Problem:
    """The problem, if the series of its log-determinants converge.

    Raises:
        Failure: a block has an eigenvalue of modulus 1 or more, as one without a promise may.
    """
    if problem.spectral_radius >= 1.0:
        raise Failure(
            f"a block has an eigenvalue of modulus {problem.spectral_radius:.4g} and norm "
            f"{problem.norm:.4g} at these points: its series diverges, and x + g(x) may have no "
            "inverse. Scale g down."
        )
    return problem


@lru_cache(maxsize=8)
def _problem(cell: Cell, results: Path, n_points: int, version: int) -> Problem:  # noqa: ARG001
    flow = build_flow(cell, results)
    x = build_points(cell, n_points, results)
    with one_thread():  # sums of several threads differ in their last bits
        jacobians, log_det = dense_truth(flow, x)
    if not jacobians:
        raise Skip(f"the flow {cell['model']} has no residual block; take another model")
    return Problem(flow, x, jacobians, log_det, *sizes(jacobians))


def sizes(jacobians: tuple[np.ndarray, ...]) -> tuple[float, float]:
    """The largest ||J||_2 and the largest |eigenvalue| of a J over blocks and points.

    Both are NaN without a block.
    """
    if not jacobians:
        return math.nan, math.nan
    norm = max(np.linalg.norm(matrices, 2, axis=(-2, -1)).max() for matrices in jacobians)
    radius = max(np.abs(np.linalg.eigvals(matrices)).max() for matrices in jacobians)
    return float(norm), float(radius)


def dense_truth(flow: ResidualFlow, x: Tensor) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """(J of every block's branch, exact log-det): (P, d, d) each, (P,), float64.

    Args:
        x: (P, *event); J is taken at the block's own input, or at what solves for its output.
    """
    promoted = copy.deepcopy(flow).double().with_estimator(Determinant())
    jacobians, log_det = [], torch.zeros(len(x), dtype=torch.float64, device=x.device)
    with torch.no_grad():
        for layer, inputs in promoted.inputs(x.double()):
            if isinstance(layer, SeriesBlock):
                matrix = jacobian(layer.g, layer.at(inputs))
                log_det += layer.coefficients.combine(dense_log_det, matrix)
                jacobians.append(matrix.cpu().numpy())
            else:
                log_det += as_bijection(layer).forward_and_log_det(inputs, promoted.estimator)[1]
    return tuple(jacobians), log_det.cpu().numpy()


def realised(norm: float, spectral_radius: float) -> Iterable[Observation]:
    """The rows of the realised ||J||_2 and spectral radius, the same in every suite.

    None for a flow without residual blocks.
    """
    if math.isnan(norm):
        return
    yield exactly("norm_realised", norm, "1")
    yield exactly("spectral_radius", spectral_radius, "1")
