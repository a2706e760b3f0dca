"""Train the published flows anew and say what changed: `python -m resflow_bench.models.publish`."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from time import monotonic
from typing import Any

import click
import torch

from resflow_bench.files import written_whole
from resflow_bench.flows import ResidualFlow
from resflow_bench.intervals import mean_interval
from resflow_bench.lab.progress import Listener, Progress, shown
from resflow_bench.lab.provenance import provenance
from resflow_bench.logdet import Determinant, LogDetEstimator
from resflow_bench.models.catalogue import MODELS, Trained, held_out
from resflow_bench.models.problem import dense_truth, sizes
from resflow_bench.models.published import FOLDER, MANIFEST, digest, key, manifest
from resflow_bench.threads import one_thread
from resflow_bench.training.recipe import Recipe, dataset

N_TEST, N_NUMBERS = 1000, 25_000
"""The most held-out examples of a likelihood, and numbers in them: an exact log-det of one takes d
products."""

EXAMPLES = 20
"""Examples whose exact log-det is computed at a time."""

N_JACOBIANS = 16

CHANGED = 1
"""The exit code if a likelihood left its interval, or a promise is broken."""


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME-K...]")
@click.option("--check", is_flag=True, help="Write nothing; fail if a likelihood has changed.")
@click.option("--results", type=click.Path(path_type=Path), default="results", show_default=True,
              help="Folder of trainings under way.")  # fmt: skip
def main(names: tuple[str, ...], check: bool, results: Path) -> None:
    """Train the published flows, or those of the given names, and compare them with the manifest.

    A training that was interrupted goes on from its checkpoint. The exit code is 1 if a held-out
    likelihood differs by more than the two 99 % intervals allow, or a constant is not kept.
    """
    wanted = {key(m.name, k): (m, k) for m in _trained() for k in m.published}
    if unknown := sorted(set(names) - set(wanted)):
        raise click.UsageError(f"no flow is called {unknown[0]}; they are {', '.join(wanted)}.")
    old = manifest() if MANIFEST.exists() else {}
    new, is_worse = dict(old), False
    for name in names or wanted:
        model, lipschitz = wanted[name]
        with shown("") as listen:
            flow, seconds = _train(model, lipschitz, results, listen)
            entry = _described(model, lipschitz, flow, seconds)
        if not check:
            file = FOLDER / f"{name}.pt"
            flow.save(file, {"model": name, **entry["recipe"]})
            entry |= {"file": file.name, "bytes": file.stat().st_size, "sha256": digest(file)}
            new[name] = entry
            with written_whole(MANIFEST) as stream:
                stream.write((json.dumps(new, indent=1, sort_keys=True) + "\n").encode())
        is_kept = _is_kept(entry, old.get(name))
        click.echo(f"{name}: {'' if is_kept else 'CHANGED '}{_in_words(entry, old.get(name))}")
        is_worse |= not is_kept
    sys.exit(CHANGED if is_worse else 0)


def record(recipe: Recipe) -> dict[str, Any]:
    """All that the weights depend on but code and torch, in plain values."""
    return {
        "architecture": recipe.architecture,
        "dataset": recipe.dataset,
        "digest": dataset(recipe.dataset).digest,
        "lipschitz": recipe.lipschitz,
        "training": asdict(recipe.training),
        "objective": recipe.truncation,
        "n_traced": recipe.objective.n_traced
        if isinstance(recipe.objective, LogDetEstimator)
        else 0,
    }


def _trained() -> Iterator[Trained]:
    return (model for model in MODELS.values() if isinstance(model, Trained))


def _train(
    model: Trained, lipschitz: float, results: Path, listen: Listener
) -> tuple[ResidualFlow, float]:
    """The flow, and the seconds since its training began or went on."""
    begun = monotonic()
    flow = model.train(lipschitz, results, lambda message: listen(Progress(message=message)))
    return flow, monotonic() - begun


def _described(
    model: Trained, lipschitz: float, flow: ResidualFlow, seconds: float
) -> dict[str, Any]:
    """The entry of the manifest, without the file."""
    data, recipe = dataset(model.dataset), model.recipe(lipschitz)
    aligned = copy.deepcopy(flow)
    aligned.align()
    n = min(N_TEST, len(data.test), N_NUMBERS // aligned.dim)
    x = held_out(model.dataset, n)
    double = copy.deepcopy(aligned).double().with_estimator(Determinant())
    with one_thread(), torch.no_grad():
        log_prob = torch.cat([double.log_prob(part.double()) for part in x.split(EXAMPLES)])
        jacobians, _ = dense_truth(aligned, x[:N_JACOBIANS])
    norm, radius = sizes(jacobians)
    found = mean_interval(log_prob.numpy())
    return {
        "recipe": record(recipe),
        "commit": provenance()["commit"],
        "torch": torch.__version__.split("+")[0],
        "seconds": round(seconds),
        "log_prob": {"value": found.value, "ci_low": found.low, "ci_high": found.high, "n": n},
        "bits_per_dim": float(data.bits_per_dim(torch.tensor(found.value, dtype=torch.float64))),
        "lipschitz_certified": max(b.branch.lipschitz_certified() for b in aligned.blocks),
        "norm_realised": norm,
        "spectral_radius": radius,
    }


def _is_kept(new: dict[str, Any], old: dict[str, Any] | None) -> bool:
    """True if the promise is kept and the likelihood is that of the old flow, within intervals."""
    if new["lipschitz_certified"] > new["recipe"]["lipschitz"] * (1 + 1e-5):
        return False
    if old is None:
        return True
    a, b = old["log_prob"], new["log_prob"]
    return bool(b["ci_high"] >= a["ci_low"] and b["ci_low"] <= a["ci_high"])


def _in_words(new: dict[str, Any], old: dict[str, Any] | None) -> str:
    a = new["log_prob"]
    text = (
        f"log p {a['value']:.4g} [{a['ci_low']:.4g}, {a['ci_high']:.4g}] nat, "
        f"{new['bits_per_dim']:.4g} bits/dim, Lip(g) <= {new['lipschitz_certified']:.4g}, "
        f"rho {new['spectral_radius']:.3g}, {new['seconds']} s"
    )
    if old is None:
        return f"{text}; new"
    b = old["log_prob"]
    return f"{text}; was {b['value']:.4g} [{b['ci_low']:.4g}, {b['ci_high']:.4g}] nat"


if __name__ == "__main__":
    main()
