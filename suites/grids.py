"""Grids that several suites share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from resflow_bench.lab import Grid, Value

MODEL_AXES = ("model", "dim", "lipschitz", "dtype", "device")
ESTIMATOR_AXES = ("truncation", "n_terms", "roulette", "n_exact", "probe", "n_probes")
IMAGE_FLOWS = ("conv", "multiscale")
TRAINED_FLOWS = ("trained", *IMAGE_FLOWS)
PLANE_FLOWS = ("checkerboard", "eight-gaussians")
LAYERED_FLOWS = ("mlp-orthogonal", "mlp-aol", "mlp-sll")
"""Flows of other Lipschitz layers, trained on eight Gaussians, and their architectures."""
OTHER_BLOCKS = ("monotone-steep", "implicit-steep")
"""Untrained flows of other blocks than residual ones, whose forward pass is iterated."""
DIM = {
    **dict.fromkeys((*PLANE_FLOWS, *LAYERED_FLOWS), 2),
    **dict.fromkeys(OTHER_BLOCKS, 8),
    **dict.fromkeys(("patches", "patches-wide"), 768),
}
"""The dimension at which a flow is measured; 64 for all others."""

LAWS = ("geometric(0.5)", "geometric(0.1)", "poisson(2)")

NEAR_ONE = (0.99, 0.999, 0.9999)
"""Promised constants near one."""

LAWS_NEAR_ONE = ("geometric(0.5)", "geometric(0.01)", "geometric(0.001)")
"""Laws whose variance is finite below a spectral radius of 0.707, 0.995 and 0.9995."""

Axes = Mapping[str, tuple[Value, ...]]
"""The values of free axes."""

Point = Mapping[str, Value]
"""One value of each of some axes."""


def model_grids(
    models: tuple[str, ...],
    constants: tuple[float, ...],
    trained: tuple[float, ...],
    axes: Axes,
    flows: tuple[str, ...] = ("trained",),
) -> tuple[Grid, ...]:
    """`models` at d = 64 and each promised constant; the trained `flows` at those in `trained`."""
    free: Axes = {"device": ("cpu",), **axes}
    return (
        Grid({"model": models, "dim": (64,), "lipschitz": constants, **free}),
        *(
            Grid({"lipschitz": trained, **free}, {"model": name, "dim": DIM.get(name, 64)})
            for name in flows
        ),
    )


def everywhere(grids: Iterable[Grid]) -> tuple[Grid, ...]:
    """The grids on the CPU, and on a GPU where this machine has one."""
    devices: Axes = {"device": ("cpu", "auto")}
    return tuple(replace(grid, axes={**grid.axes, **devices}) for grid in grids)


def estimator_grids(
    *,
    models: tuple[str, ...] = (),
    constants: tuple[float, ...] = (),
    trained: tuple[float, ...] = (),
    fixed: Axes,
    roulette: Axes | None = None,
    common: Axes,
    flows: tuple[str, ...] = ("trained",),
) -> tuple[Grid, ...]:
    """`model_grids` with fixed truncation (`n_terms`) and roulettes (`roulette`, `n_exact`)."""
    return tuple(
        Grid(grid.axes, {**grid.pinned, "truncation": truncation})
        for truncation, axes in (("fixed", fixed), ("roulette", roulette))
        if axes is not None
        for grid in model_grids(models, constants, trained, {**axes, **common}, flows)
    )
