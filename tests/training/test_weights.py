"""Trained weights: made once, by what made them; a training that is killed goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from resflow_bench.flows import ResidualFlow
from resflow_bench.lab import silent
from resflow_bench.logdet import Determinant, Fixed, LogDetEstimator, Rademacher
from resflow_bench.training import Training, recipe, weights
from resflow_bench.training.recipe import Recipe, finite_moments_estimator, unbiased_objective
from resflow_bench.training.weights import trained

RECIPE = Recipe(
    "mlp",
    "digits-logit",
    0.8,
    Training(n_steps=4, batch_size=32),
    finite_moments_estimator(0.8, per="batch"),
)


@pytest.fixture(autouse=True)
def checkpoints_at_every_step(monkeypatch):
    monkeypatch.setattr(weights, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)


def equal(a: ResidualFlow, b: ResidualFlow) -> bool:
    theirs = b.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in a.state_dict().items())


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "models").iterdir())


def test_weights_are_made_once_and_read_back(tmp_path):
    said: list[str] = []
    made = trained(RECIPE, tmp_path, said.append)
    assert "training digits-logit-mlp-K0.8: step 2/4" in said[1]
    (file,) = files(tmp_path)
    assert file == f"digits-logit-mlp-K0.8-{RECIPE.fingerprint}-step4.pt"
    said.clear()
    assert equal(made, trained(RECIPE, tmp_path, said.append))
    assert not said
    assert not equal(made, RECIPE.flow())


def test_a_killed_training_goes_on_to_the_same_numbers(tmp_path):
    made = trained(RECIPE, tmp_path / "through", silent)

    def kill(message: str) -> None:
        if "step 2/" in message:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(RECIPE, tmp_path / "killed", kill)
    assert files(tmp_path / "killed") == [f"{RECIPE}-{RECIPE.fingerprint}.checkpoint"]
    said: list[str] = []
    resumed = trained(RECIPE, tmp_path / "killed", said.append)
    assert "step 3/4" in said[0]
    assert equal(made, resumed)
    assert files(tmp_path / "killed") == files(tmp_path / "through")


def test_fewer_steps_are_a_snapshot_that_more_steps_go_on_from(tmp_path):
    trained(RECIPE, tmp_path, silent, step=1)
    said: list[str] = []
    late = trained(RECIPE, tmp_path, said.append, step=3)
    assert "step 2/3" in said[0]
    assert len(files(tmp_path)) == 2
    assert equal(late, trained(RECIPE, tmp_path / "at once", silent, step=3))
    early = trained(RECIPE, tmp_path, said.append, step=2)  # between two snapshots, after both
    assert equal(early, trained(RECIPE, tmp_path / "early", silent, step=2))


def test_other_settings_are_other_weights():
    other = LogDetEstimator(Rademacher(), Fixed(5))
    changed = [
        replace(RECIPE, architecture="dense"),
        replace(RECIPE, dataset="digits"),
        replace(RECIPE, lipschitz=0.7),
        replace(RECIPE, training=replace(RECIPE.training, seed=1)),
        replace(RECIPE, objective=other),
        replace(RECIPE, objective=replace(other, n_probes=2)),
    ]
    assert len({RECIPE.fingerprint, *(r.fingerprint for r in changed)}) == 7
    assert replace(RECIPE).fingerprint == RECIPE.fingerprint


def test_other_data_under_the_same_name_are_other_weights(monkeypatch):
    before = RECIPE.fingerprint
    ours = recipe.dataset("digits-logit")
    other = replace(ours, train=ours.train + 1)
    monkeypatch.setattr(recipe, "dataset", lambda name: other)
    assert replace(RECIPE).fingerprint != before


def test_a_checkpoint_that_is_further_on_stays(tmp_path):
    def kill(message: str) -> None:
        if "step 3/" in message:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(RECIPE, tmp_path, kill)
    early = trained(RECIPE, tmp_path, silent, step=2)
    assert equal(early, trained(RECIPE, tmp_path / "early", silent, step=2))
    said: list[str] = []
    trained(RECIPE, tmp_path, said.append)
    assert "step 4/4" in said[0]


def test_files_of_the_user_are_looked_for_where_the_user_says(tmp_path, monkeypatch):
    monkeypatch.setenv("RESFLOW_DATA", str(tmp_path / "mine"))
    with pytest.raises(ValueError, match=str(tmp_path / "mine")):
        recipe.dataset("mnist")


@pytest.mark.parametrize(
    ("lipschitz", "dim", "exact"),
    [
        (0.9, 2, False),
        (0.98, 2, False),
        (0.99, 64, True),
        (0.999, 3072, False),
        (0.9999, 64, True),
    ],
)
def test_the_objective_has_a_finite_variance_at_every_constant(lipschitz, dim, exact):
    """Geometric(0.01), which it was at every K above 0.99, has an infinite one from 0.995 on."""
    objective = unbiased_objective(lipschitz, (dim,))
    assert isinstance(objective, Determinant) is exact
    if not exact:
        assert all(objective.truncation.moment_is_finite(lipschitz, p) for p in (2, 8, 64))


def test_the_objective_of_no_contraction_is_refused():
    with pytest.raises(ValueError, match="Lower `lipschitz`"):
        unbiased_objective(1.0, (2,))


def test_a_training_by_the_determinant_is_kept_as_any_other(tmp_path):
    near_one = replace(RECIPE, lipschitz=0.999, objective=unbiased_objective(0.999, (64,)))
    assert near_one.truncation == "Determinant()"
    assert near_one.fingerprint != replace(near_one, objective=RECIPE.objective).fingerprint
    assert equal(trained(near_one, tmp_path, silent), trained(near_one, tmp_path, silent))
    assert near_one.fingerprint in files(tmp_path)[0]
