"""The values of the axis `model` in words, and which of them a sentence is about."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from resflow_bench.architectures import LINEAR_FAMILIES

if TYPE_CHECKING:
    import pandas as pd

MAIN = "trained"
"""The model that stands out in figures, tables and findings, wherever it was measured."""

FIRST = f"model == '{MAIN}'"
"""Its cells, as a pandas query."""

NAMES = {
    MAIN: "the trained flow",
    "conv": "the trained convolutional flow",
    "multiscale": "the trained multi-scale flow",
    "shallow": "the trained shallow flow",
    "patches": "the flow trained on patches",
    "patches-wide": "the wide fully connected flow trained on patches",
    "checkerboard": "the flow trained on the checkerboard",
    "eight-gaussians": "the flow trained on eight Gaussians",
    "mlp-orthogonal": "the trained flow of orthogonal layers",
    "mlp-aol": "the trained flow of almost-orthogonal layers",
    "mlp-sll": "the trained flow of SLL layers",
    "init": "the untrained flow",
    "steep": "the steep flow",
    "monotone-steep": "the untrained monotone flow",
    "implicit-steep": "the untrained implicit flow",
    "minus-identity": "g(x) = −Kx",
    "plus-identity": "g(x) = +Kx",
}

GLOSSARY = {
    "trained, init": "a flow of several blocks, trained on images of digits, and the same flow "
    "before training",
    "minus-identity, plus-identity": "one block with g(x) = −Kx, the worst case of every bound, "
    "and with g(x) = Kx",
    "mlp-orthogonal, mlp-aol, mlp-sll": "flows of other Lipschitz layers than those of a spectral "
    "norm, trained on eight Gaussians",
    "monotone-steep, implicit-steep": "untrained flows of monotone blocks, (I − g) ∘ (I + g)⁻¹, "
    "and of implicit blocks, x + g₁(x) = z + g₂(z); closed forms and bounds are those of their "
    "series, −2 Σ tr Jᵏ/k over odd k, and the difference of two",
    "orthogonal, symmetric, gaussian, triangular": "one linear block whose random matrix is of "
    "that kind, of norm K; the triangular one is zero on its diagonal, so that ρ = 0 and the "
    "log-det is 0",
}


WEIGHTS = {
    "weight_bias": "ln E[exp(e)], e = estimate − log-det: by how much importance weights exp(e) "
    "are too large on average, in nats; 0.01 is 1 %",
    "ess_loss": "1 − E[w]²/E[w²], w = exp(e): the share of the effective sample size that the "
    "noise of the estimate costs, beside what the weights cost anyway; a bias that is the same at "
    "all points costs nothing",
    "weight_bias_expected, ess_loss_expected": "exact for fixed terms and Gaussian probes; "
    "else for normal errors of the closed-form bias and variance, an approximation. Where the "
    "variance is infinite: ∞ and 1",
}
"""Glossary entries of the suites that measure importance weights."""


def telling(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells of the most telling model that was measured, at its largest Lipschitz constant.

    The trained flow, else the untrained one, else the worst linear map, else the first there is.
    """
    names = list(dict.fromkeys([MAIN, "init", "minus-identity", *cells["model"]]))
    model = next(name for name in names if (cells["model"] == name).any())
    cells = cells[cells["model"] == model]
    largest = cells["lipschitz"].max()
    return cells[cells["lipschitz"] == largest] if not math.isnan(largest) else cells


def named(cell: pd.Series) -> str:
    """The cell's model in a sentence."""
    name = cell["model"]
    return NAMES.get(name, f"the {name} map" if name in LINEAR_FAMILIES else name)
