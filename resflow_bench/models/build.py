"""From a cell to the flow, the points and the estimator that it names."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from resflow_bench import logdet
from resflow_bench.flows import ResidualFlow
from resflow_bench.lab import Cell, Context, Skip, silent
from resflow_bench.models.catalogue import MODELS, Model
from resflow_bench.models.own import FORMS, own_model
from resflow_bench.spelling import suggestion


def model_named(name: str, results: Path) -> Model:
    """The model that a value of the axis names: of the catalogue, or of the user's own.

    Raises:
        ValueError: there is none.
    """
    found = own_model(name, results) or MODELS.get(name)
    if found is None:
        near = suggestion(name, MODELS)
        raise ValueError(f"a model is one of {', '.join(MODELS)}, {FORMS}; got `{name}`.{near}")
    return found


def build_flow(cell: Cell, results: Path, aligned: bool = True) -> ResidualFlow:
    """The cell's model, in its dtype and on its device.

    Args:
        cell: its axes model, dim, lipschitz, dtype and device.
        results: the folder under which trained weights are cached.
        aligned: whether each layer's power iteration is at its limit, so that the promised
            constant holds; False leaves it as the training did.

    Raises:
        Skip: where the model does not exist at this dim.
    """
    model = model_named(cell["model"], results)
    flow = model.flow(cell["dim"], cell["lipschitz"], results, silent)
    if aligned:
        flow.align()
    return flow.to(cell["device"], getattr(torch, cell["dtype"])).requires_grad_(False)


def build_points(cell: Cell, n: int, results: Path) -> Tensor:
    """n inputs of the cell's model, (n, *event), in its dtype and on its device."""
    points = model_named(cell["model"], results).points(n, cell["dim"])
    return points.to(cell["device"], getattr(torch, cell["dtype"]))


def build_estimator(cell: Cell) -> logdet.LogDetEstimator:
    """The cell's probe, truncation, number of probes and of exact traces, expansion, gradient."""
    truncation: logdet.Truncation
    if cell["truncation"] == "fixed":
        truncation = logdet.Fixed(cell["n_terms"])
    else:
        law = logdet.law_named(cell["roulette"])
        truncation = logdet.Roulette(law, cell["n_exact"], cell.get("per", "example"))
    return logdet.LogDetEstimator(
        logdet.PROBES[cell["probe"]],
        truncation,
        cell["n_probes"],
        n_traced=cell.get("n_traced", 0),
        expansion=build_expansion(cell),
        gradient=logdet.Series() if cell.get("gradient") == "series" else logdet.Neumann(),
    )


def build_expansion(cell: Cell) -> logdet.Expansion:
    """The cell's series, `taylor` if it names none.

    Raises:
        Skip: for TF32 on a device that has none.
    """
    name = cell.get("expansion", "taylor")
    if "tf32" in name and torch.device(cell.get("device", "cpu")).type != "cuda":
        raise Skip(f"{name} needs a CUDA device; got {cell.get('device', 'cpu')}")
    return logdet.EXPANSIONS[name](cell["lipschitz"])


PREPARED_BY = ("model", "dim", "lipschitz")
"""The axes by whose values the work of `prepare_models` differs."""


def prepare_models(cells: list[Cell], context: Context) -> None:
    """Train each flow that the cells need, once, before the workers start."""
    wanted = {(cell["model"], cell["dim"], cell["lipschitz"]) for cell in cells}
    for name, dim, lipschitz in sorted(wanted):
        with suppress(Skip):  # the cell's own row says so
            model_named(name, context.results).flow(dim, lipschitz, context.results, context.say)
