"""Grids that more than one suite is measured on."""

from __future__ import annotations

from collections.abc import Mapping

from resflow_bench.lab.axes import Value
from resflow_bench.lab.cells import Grid

MODEL_AXES = ("model", "dim", "lipschitz", "dtype", "device")
ESTIMATOR_AXES = ("truncation", "n_terms", "roulette", "n_exact", "probe", "n_probes")

Axes = Mapping[str, tuple[Value, ...]]


def model_grids(
    models: tuple[str, ...], constants: tuple[float, ...], trained: tuple[float, ...], axes: Axes
) -> tuple[Grid, ...]:
    """`models` at d = 64 and each promised constant, and the digits flow at those in `trained`."""
    return (
        Grid({"model": models, "dim": (64,), "lipschitz": constants, "device": ("cpu",), **axes}),
        Grid({"lipschitz": trained, "device": ("cpu",), **axes}, {"model": "trained", "dim": 64}),
    )


def estimator_grids(
    models: tuple[str, ...],
    constants: tuple[float, ...],
    trained: tuple[float, ...],
    fixed: Axes,
    roulette: Axes,
    common: Axes,
) -> tuple[Grid, ...]:
    """The same with fixed truncation (`n_terms`) and with roulette (`roulette`, `n_exact`)."""
    return tuple(
        Grid(grid.axes, {**grid.pinned, "truncation": truncation})
        for truncation, axes in (("fixed", fixed), ("roulette", roulette))
        for grid in model_grids(models, constants, trained, {**axes, **common})
    )
