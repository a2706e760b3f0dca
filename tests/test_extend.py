"""A made-up part of each kind is one class or function and an entry in the list that exports it.

Layers, activations, bijections and norms are added in `layers/test_extensions.py`, kinds of J in
`jacobian/test_jacobian.py`, peers in `suites/test_peers.py`, suites in `suites/test_own_suite.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import suites
from resflow_bench import architectures, data, logdet, theory
from resflow_bench.cli.choices import parse_assignment
from resflow_bench.data import densities
from resflow_bench.flows import ResidualFlow
from resflow_bench.lab import Cell, Context
from resflow_bench.logdet import Estimate, Exact, exact_log_det
from resflow_bench.models import MODELS

CELL: dict[str, Any] = {
    **{"model": "init", "dim": 4, "lipschitz": 0.5, "dtype": "float64", "device": "cpu"},
    **{"truncation": "roulette", "roulette": "geometric(0.5)", "n_exact": 3},
    **{"probe": "rademacher", "n_probes": 1},
}
EFFORT = {"n_points": 2, "max_draws": 2000, "half_width": 0.1}


def measured(suite: str, tmp_path: Path, *assignments: str) -> dict[str, float]:
    """The metrics of one cell, with values as a user writes them after `--set`."""
    axes = {**CELL, **{name: values[0] for name, values in map(parse_assignment, assignments)}}
    found = suites.load(suite).measure(Cell(suite, axes), Context(0, EFFORT, tmp_path))
    return {observation.metric: observation.value for observation in found}


@dataclass(frozen=True)
class Uniform:
    """v uniform on [-sqrt 3, sqrt 3]^d: entries of variance 1 and fourth moment 9/5."""

    def __str__(self) -> str:
        return "uniform"

    def sample(
        self, n_probes: int, x: torch.Tensor, generator: torch.Generator | None
    ) -> torch.Tensor:
        shape = (n_probes, *x.shape)
        uniform = torch.rand(shape, generator=generator, dtype=x.dtype, device=x.device)
        return (2 * uniform - 1) * 3**0.5

    def variance(self, moments: theory.Moments, n_probes: int) -> np.ndarray:
        return (2 * moments.symmetric_sq + (9 / 5 - 3) * moments.diagonal_sq) / n_probes


def test_a_probe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be one of gaussian"):
        parse_assignment("probe=uniform")
    monkeypatch.setitem(logdet.PROBES, "uniform", Uniform())
    found = measured("variance", tmp_path, "probe=uniform")
    assert found["variance"] == pytest.approx(found["variance_expected"], rel=0.25)
    assert found["variance"] > measured("variance", tmp_path)["variance"], "Rademacher's is less"


@dataclass(frozen=True)
class Linear:
    """P(M >= j) = max(0, 1 - j/n): at most n - 1 terms after the exact ones."""

    n: float

    def __str__(self) -> str:
        return f"linear({self.n:g})"

    @property
    def decay(self) -> float:
        return 0.0

    def survival(self, j: np.ndarray) -> np.ndarray:
        return np.maximum(0.0, 1.0 - np.asarray(j, float) / self.n)


def test_a_law(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name and number are parsed as those of the laws that are here."""
    with pytest.raises(ValueError, match="must be a law such as"):
        parse_assignment("roulette=linear(5)")
    monkeypatch.setitem(logdet.LAWS, "linear", Linear)
    assert parse_assignment("roulette=linear( 5.0 )") == ("roulette", ("linear(5)",))
    roulette = logdet.Roulette(logdet.law_named("linear(5)"), n_exact=1)
    terms = roulette.draw(4000, torch.zeros(1), torch.Generator().manual_seed(0))
    assert terms.n_terms.max() == 5
    mean = terms.weights.float().mean(1)
    torch.testing.assert_close(mean, torch.ones(5), atol=0.15, rtol=0)


@dataclass(frozen=True)
class Halves:
    """The exact log-det, halved: no estimator that anyone should use."""

    def __call__(self, g: Any, x: torch.Tensor, generator: torch.Generator | None = None) -> Any:
        return Estimate(g(x), exact_log_det(g, x).to(x.dtype) / 2, 0)


def test_an_estimator() -> None:
    flow = ResidualFlow.mlp(3, (8,), 2, 0.5)
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    (_, half), (_, whole) = (
        flow.with_estimator(one).forward_and_log_det(x) for one in (Halves(), Exact())
    )
    torch.testing.assert_close(2 * half, whole)


@dataclass(frozen=True)
class Doubled:
    """Two residual blocks of one linear family, the second after the first."""

    name: str = "doubled"
    n_distinct_points = 1

    def flow(self, dim: int, lipschitz: float, results: Path, say: Any) -> ResidualFlow:
        make = MODELS["plus-identity"].flow
        layers = [make(dim, lipschitz, results, say).bijections[0] for _ in range(2)]
        return ResidualFlow(layers, dim).double()  # type: ignore[arg-type]

    def points(self, n: int, dim: int) -> torch.Tensor:
        return torch.zeros(n, dim)


def test_a_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(MODELS, "doubled", Doubled())
    found = measured("bias", tmp_path, "model=doubled")
    assert exp(found["log_det_exact"]) == pytest.approx(1.5 ** (2 * CELL["dim"]))


@dataclass(frozen=True)
class Square:
    """The uniform density on [-1, 1]^2."""

    name: str = "square"

    def sample(self, n: int, generator: torch.Generator) -> torch.Tensor:
        return 2 * torch.rand(n, 2, generator=generator, dtype=torch.float64) - 1

    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        inside = (x.abs() <= 1).all(1)
        return torch.where(inside, -np.log(4.0), -torch.inf)


def one_block(event: tuple[int, ...], lipschitz: float) -> ResidualFlow:
    """One block, before training."""
    return ResidualFlow.mlp(event[0], (8,), 1, lipschitz)


def test_a_density_a_dataset_and_an_architecture(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(densities.DENSITIES, "square", Square())
    make = densities.density_dataset
    monkeypatch.setitem(data.DATASETS, "square", lambda _: make(Square(), 500, 200))
    monkeypatch.setitem(architectures.ARCHITECTURES, "one-block", one_block)
    named = [parse_assignment(text) for text in ("dataset=square", "architecture=one-block")]
    axes = {name: values[0] for name, values in named}
    cell = Cell(
        "density", {**axes, "lipschitz": 0.9, "step": 3, "dtype": "float32", "device": "cpu"}
    )
    effort = {"n_points": 50, "n_grid": 4, "n_samples": 10}
    measure = suites.load("density").measure
    found = {o.metric: o.value for o in measure(cell, Context(0, effort, tmp_path))}
    assert found["log_prob_true"] == pytest.approx(-np.log(4.0))
    assert found["divergence"] > 0
