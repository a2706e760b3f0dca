"""The published flows are those of the manifest, keep their promises, and are worth measuring."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from resflow_bench.flows import ResidualFlow
from resflow_bench.lab import Skip, silent
from resflow_bench.logdet import Determinant
from resflow_bench.models import MODELS, publish, published
from resflow_bench.models.catalogue import Trained, held_out
from resflow_bench.peers import PEERS, Request
from resflow_bench.training import recipe
from resflow_bench.training.trainer import Training

ENTRIES = published.manifest()
FLOWS = {
    published.key(model.name, constant): (model, constant)
    for model in MODELS.values()
    if isinstance(model, Trained)
    for constant in model.published
}


def test_the_manifest_lists_all_and_they_are_small() -> None:
    assert set(ENTRIES) == set(FLOWS)
    files = {entry["file"] for entry in ENTRIES.values()} | {published.MANIFEST.name}
    assert {file.name for file in published.FOLDER.iterdir()} == files
    assert sum(file.stat().st_size for file in published.FOLDER.iterdir()) <= 8e6


def test_some_are_steep() -> None:
    """A trained flow at its limit is where estimators differ."""
    assert sum(entry["spectral_radius"] > 0.7 for entry in ENTRIES.values()) >= 2


@pytest.mark.parametrize("name", FLOWS)
def test_a_flow_is_that_of_its_entry(name: str, tmp_path: Path) -> None:
    (model, constant), entry = FLOWS[name], ENTRIES[name]
    assert entry["recipe"] == publish.record(model.recipe(constant))
    file = published.FOLDER / entry["file"]
    assert (entry["bytes"], entry["sha256"]) == (file.stat().st_size, published.digest(file))
    dim = torch.Size(recipe.dataset(model.dataset).event).numel()
    flow = model.flow(dim, constant, tmp_path, silent)
    assert not list(tmp_path.iterdir()), "nothing was trained"
    assert {t.dtype for t in flow.state_dict().values() if t.is_floating_point()} == {torch.float32}
    flow.align()
    certified = max(block.branch.lipschitz_certified() for block in flow.blocks)
    assert certified == pytest.approx(entry["lipschitz_certified"], rel=1e-6)
    assert certified <= constant * (1 + 1e-6)
    x = held_out(model.dataset, 20)
    with torch.no_grad():
        log_prob = flow.with_estimator(Determinant()).log_prob(x)
    # Of few examples, so within their scatter.
    error = float(log_prob.std()) / len(x) ** 0.5
    assert abs(float(log_prob.mean()) - entry["log_prob"]["value"]) < 5 * error


@pytest.mark.parametrize("name", [name for name, (m, _) in FLOWS.items() if m.architecture != "conv"
                                  and m.architecture != "multiscale"])  # fmt: skip
@pytest.mark.parametrize("peer", ["normflows", "torchflows"])
def test_the_peers_hold_the_same_weights(name: str, peer: str, tmp_path: Path) -> None:
    model, constant = FLOWS[name]
    x = held_out(model.dataset, 5)
    flow = model.flow(x[0].numel(), constant, tmp_path, silent)
    flow.align()
    try:
        theirs = PEERS[peer](flow, Request("evaluation"))
    except Skip as reason:
        pytest.skip(str(reason))
    with torch.no_grad():
        torch.testing.assert_close(theirs.map(x.clone()), flow(x), atol=2e-3, rtol=2e-3)


def test_a_file_that_is_not_the_manifests_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match="is not the file that its manifest describes"):
        published.published("conv", 0.9)
    ResidualFlow.mlp(2, (4,), 1, 0.9).save(tmp_path / "conv-K0.9.pt")
    with pytest.raises(ValueError, match="is not the file that its manifest describes"):
        published.published("conv", 0.9)
    assert published.published("conv", 0.123) is None


def test_publishing_says_what_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a flow that takes seconds: the first time it is new, then the same, then it is another."""
    small = Trained("small", "mlp", "moons", Training(8, 64), (0.9,))
    weights = tmp_path / "weights"
    weights.mkdir()
    monkeypatch.setattr(publish, "MODELS", {"small": small})
    for module in (publish, published):
        monkeypatch.setattr(module, "FOLDER", weights)
        monkeypatch.setattr(module, "MANIFEST", weights / "manifest.json")

    def run(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(publish.main, [*arguments, "--results", str(tmp_path)])
        return done.exit_code, done.stdout

    code, out = run()
    assert (code, out.split(":")[0]) == (0, "small-K0.9")
    assert out.rstrip().endswith("; new")
    first = (weights / "small-K0.9.pt").read_bytes()
    shutil.rmtree(tmp_path / "models")
    code, out = run("--check")
    assert code == 0, "a fresh training ends at the same likelihood"
    assert "; was " in out
    assert "CHANGED" not in out
    longer = Trained("small", "mlp", "moons", Training(60, 64, learning_rate=0.02), (0.9,))
    monkeypatch.setattr(publish, "MODELS", {"small": longer})
    code, out = run("--check", "small-K0.9")
    assert code == publish.CHANGED
    assert out.startswith("small-K0.9: CHANGED log p")
    assert (weights / "small-K0.9.pt").read_bytes() == first, "a check writes nothing"
    assert run("none")[0] == 2
