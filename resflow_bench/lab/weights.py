"""The trained flow's weights: made once, cached under results/models by what produced them."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from resflow_bench.data import digits
from resflow_bench.flows import ResidualFlow
from resflow_bench.logdet import Geometric, LogDetEstimator, Rademacher, Roulette
from resflow_bench.models import TRAINED_DIM, mlp_flow
from resflow_bench.training import Trainer, Training

SETTINGS = Training(n_steps=1200, batch_size=256, learning_rate=2e-3, n_power_steps=2)
ESTIMATOR = LogDetEstimator(Rademacher(), Roulette(Geometric(0.3), n_exact=4))
"""Unbiased, with finite variance while the spectral radius stays below 0.83."""

MAKERS = ("data", "fixed_point", "flows", "layers", "logdet", "models", "training")
"""What the weights depend on: a change in any of these files makes new weights."""

SECONDS_BETWEEN_CHECKPOINTS = 5.0


def fingerprint(lipschitz: float) -> str:
    """16 hex digits of the SHA-256 of the settings, code and torch that make the weights."""
    digest = hashlib.sha256()
    made_by = {
        "training": asdict(SETTINGS),
        "estimator": [str(ESTIMATOR.probe), repr(ESTIMATOR.truncation), ESTIMATOR.n_probes],
        "lipschitz": lipschitz,
        "torch": torch.__version__.split("+")[0],
    }
    digest.update(json.dumps(made_by, sort_keys=True).encode())
    for name in MAKERS:
        origin = Path(inspect.getfile(importlib.import_module(f"resflow_bench.{name}")))
        files = sorted(origin.parent.glob("*.py")) if origin.name == "__init__.py" else [origin]
        for file in files:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def trained_digits(lipschitz: float, results: Path, say: Callable[[str], None]) -> ResidualFlow:
    """The flow of `mlp_flow(64, lipschitz)` after maximum likelihood on the digits; float32.

    The norms are as training left them: their power iterations are a little behind the weights.
    `align()` makes each promise true.

    Args:
        lipschitz: promised for each branch.
        results: the folder whose `models/` holds the weights. A training that is killed goes on
            from its last checkpoint, to the same numbers.
        say: hears how far the training is, every few seconds.
    """
    flow = mlp_flow(TRAINED_DIM, lipschitz)
    file = results / "models" / f"digits-K{lipschitz:g}-{fingerprint(lipschitz)}.pt"
    if file.exists():
        flow.load_state_dict(torch.load(file, weights_only=True))
        return flow
    file.parent.mkdir(parents=True, exist_ok=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the weights must not depend on how many cores this machine has
    try:
        _train(flow, lipschitz, file, say)
    finally:
        torch.set_num_threads(threads)
    return flow


def _train(flow: ResidualFlow, lipschitz: float, file: Path, say: Callable[[str], None]) -> None:
    trainer = Trainer(flow.with_estimator(ESTIMATOR), digits().train, SETTINGS)
    checkpoint = file.with_suffix(".checkpoint")
    if checkpoint.exists():
        trainer.load_state_dict(torch.load(checkpoint, weights_only=True))
    first, start = trainer.n_steps_done, time.monotonic()
    saved = start
    loss = float("nan")
    while trainer.n_steps_done < SETTINGS.n_steps:
        loss = trainer.step()
        now = time.monotonic()
        if now - saved > SECONDS_BETWEEN_CHECKPOINTS:
            _save(trainer.state_dict(), checkpoint)
            saved = now
            rate = (now - start) / (trainer.n_steps_done - first)
            left = rate * (SETTINGS.n_steps - trainer.n_steps_done)
            say(
                f"training the digits flow at K={lipschitz:g}: step {trainer.n_steps_done}"
                f"/{SETTINGS.n_steps}, loss {loss:.1f} nat, {left:.0f} s left"
            )
    _save(flow.state_dict(), file)
    checkpoint.unlink(missing_ok=True)


def _save(state: object, file: Path) -> None:
    """Whole or not at all: two processes that make the same weights may both write them."""
    temporary = file.with_suffix(f".{os.getpid()}.tmp")
    with temporary.open("wb") as stream:
        torch.save(state, stream)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)
