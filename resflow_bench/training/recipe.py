"""Recipes: all that a flow's trained weights depend on, and its fingerprint."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import math
import os
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal

import torch

from resflow_bench.architectures import architecture_named
from resflow_bench.data import Dataset, Reading, dataset_named, is_path
from resflow_bench.flows import ResidualFlow
from resflow_bench.logdet import (
    Determinant,
    Estimator,
    Geometric,
    LogDetEstimator,
    Rademacher,
    Roulette,
)
from resflow_bench.training.trainer import Training

SOURCES = (
    *("architectures", "data", "fixed_point", "flows", "jacobian", "layers", "logdet", "systems"),
    "training.trainer",
)
"""Modules and packages that the weights depend on: a change in one of their files changes every
fingerprint."""


@dataclass(frozen=True)
class Recipe:
    """The settings that, with the code, determine a flow's weights.

    architecture: of `architectures.ARCHITECTURES`.
    dataset: of `data.DATASETS`, or a path.
    lipschitz: promised for each branch.
    training: the optimiser's settings.
    objective: the estimator whose log-likelihood is maximised.
    """

    architecture: str
    dataset: str
    lipschitz: float
    training: Training
    objective: Estimator

    def flow(self) -> ResidualFlow:
        """The flow before any training."""
        event = dataset(self.dataset).event
        return architecture_named(self.architecture)(event, self.lipschitz)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of a SHA-256: of settings, bytes of data, `SOURCES` and torch's version."""
        ingredients = {
            "architecture": self.architecture,
            "dataset": [self.dataset, dataset(self.dataset).digest],
            "lipschitz": self.lipschitz,
            "training": asdict(self.training),
            "objective": self._objective(),
            "torch": torch.__version__.split("+")[0],
        }
        text = json.dumps(ingredients, sort_keys=True) + _source_digest()
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def truncation(self) -> str:
        """The truncation of the objective's series, or `Determinant()`, which has none."""
        if isinstance(self.objective, LogDetEstimator):
            return repr(self.objective.truncation)
        return f"{type(self.objective).__name__}()"

    def _objective(self) -> list[str | int]:
        """All that a step depends on of the objective."""
        one = self.objective
        if not isinstance(one, LogDetEstimator):
            return [self.truncation]
        numbers = (repr(one.truncation), one.n_probes, str(one.gradient), one.n_traced)
        return [str(one.probe), *numbers, str(one.expansion)]

    def __str__(self) -> str:
        return f"{Path(self.dataset).name}-{self.architecture}-K{self.lipschitz:g}"


def finite_moments_estimator(
    spectral_radius: float, per: Literal["example", "batch"] = "example", n_traced: int = 0
) -> LogDetEstimator:
    """An unbiased estimator all of whose moments are finite up to this spectral radius.

    The p-th moment is finite if rho^p < (1 - stop)^(p-1). With stop = 1 - rho the right-hand side
    is rho^(p-1) > rho^p. One N for the whole batch costs E[N] products; one N for each example
    costs the largest N of the batch. A training can use the former.

    Args:
        spectral_radius: rho, the largest |eigenvalue| of J, or a bound on it.
        per: whether N is drawn for each example or once for the batch.
        n_traced: exact leading traces.
    """
    roulette = Roulette(Geometric(min(1 - spectral_radius, 0.9)), n_exact=4, per=per)
    return LogDetEstimator(Rademacher(), roulette, n_traced=n_traced)


def unbiased_objective(
    lipschitz: float,
    event: tuple[int, ...],
    per: Literal["example", "batch"] = "example",
    n_traced: int = 0,
) -> Estimator:
    """An unbiased estimator of finite variance for every flow of blocks of this constant K.

    `finite_moments_estimator`, of 1/(1 - K) products in the mean. From K = 0.99 on the whole
    Jacobian, in examples of at most so many numbers: it takes d products and has no noise.

    Raises:
        ValueError: unless K < 1.
    """
    if not lipschitz < 1.0:
        raise ValueError(
            f"unbiased_objective needs lipschitz < 1; got {lipschitz:g}: no roulette of the series "
            "has a finite variance. Lower `lipschitz`, or take `Determinant()`."
        )
    if lipschitz >= 0.99 and math.prod(event) <= 1 / (1 - lipschitz):
        return Determinant()
    return finite_moments_estimator(lipschitz, per, n_traced)


def dataset(name: str, reading: Reading = Reading()) -> Dataset:
    """`data.dataset_named`, cached until the file behind a path changes.

    Image files are read from the folder in the environment variable RESFLOW_DATA, or from `data`
    where that is not set.
    """
    top = Path(name)
    files = sorted([top, *top.rglob("*")]) if is_path(name) and top.exists() else []
    stamp = hash(tuple((file, file.stat().st_mtime_ns, file.stat().st_size) for file in files))
    return _dataset(name, Path(os.environ.get("RESFLOW_DATA", "data")), reading, stamp)


@lru_cache(maxsize=4)
def _dataset(name: str, folder: Path, reading: Reading, stamp: int) -> Dataset:  # noqa: ARG001
    return dataset_named(name, folder, reading)


@lru_cache(maxsize=1)
def _source_digest() -> str:
    """The SHA-256 of the files in `SOURCES`."""
    digest = hashlib.sha256()
    for name in SOURCES:
        origin = Path(inspect.getfile(importlib.import_module(f"resflow_bench.{name}")))
        files = sorted(origin.parent.rglob("*.py")) if origin.name == "__init__.py" else [origin]
        for file in files:
            digest.update(file.read_bytes())
    return digest.hexdigest()
