"""`resflow-bench advise` as a user meets it: its text, its JSON, its refusals."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from resflow_bench.cli import main
from resflow_bench.logdet import Determinant

SMALL = "--model minus-identity --dim 4 --lipschitz 0.5 --batch-size 16 --seconds 0.2"


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    monkeypatch.chdir(tmp_path)

    def call(words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["resflow-bench", "advise", *words.split()])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), *capsys.readouterr()

    return call


SMALL = "--model minus-identity --dim 4 --lipschitz 0.5 --batch-size 16 --seconds 0.2"


def test_what_the_command_prints_can_be_pasted_and_run(call) -> None:
    code, out, err = call(f"{SMALL} --target-error 0.05")
    assert (code, err) == (0, "")
    head, start, rest = out.partition("from pathlib import Path\n")
    assert "seconds to target" in head
    assert "take " in head
    names: dict[str, object] = {}
    exec(start + rest, names)
    log_det = names["log_det"]
    assert isinstance(log_det, torch.Tensor)
    assert log_det.shape == (16,)
    assert float((log_det - 4 * np.log(0.5)).square().mean().sqrt()) < 1.2 * 0.05


def test_an_effective_sample_size_as_target(call) -> None:
    """Importance weights exp(error) of what is pasted keep the share."""
    code, out, err = call(f"{SMALL.replace('minus-identity', 'gaussian')} --target-ess 0.999")
    assert (code, err) == (0, "")
    head, start, rest = out.partition("from pathlib import Path\n")
    assert "effective sample size" in head
    names: dict[str, Any] = {}
    exec(start + rest, names)
    flow, x = names["flow"], names["x"]
    draws = torch.stack([flow.forward_and_log_det(x)[1].double() for _ in range(200)])
    weights = (draws - flow.with_estimator(Determinant()).forward_and_log_det(x)[1]).exp()
    assert float(weights.mean() ** 2 / weights.square().mean()) > 0.998


def test_json_is_for_scripts(call) -> None:
    code, out, _ = call(f"{SMALL} --unbiased --gradient no --json")
    assert code == 0
    answer = json.loads(out)
    assert answer["best"] == answer["ways"][0]
    assert {"estimator", "bias", "variance", "n_draws", "seconds_to_target"} <= set(answer["best"])
    assert {row["bias"] for row in answer["ways"]} == {0.0}
    assert "with_estimator" in answer["code"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--model nope", ("`model`", "one of", "nope")),
        ("--model trained --dim 7", ("dim=64", "dim=7")),
        ("--lipschitz 1.5", ("`lipschitz`", "1.5")),
        ("--device nowhere", ("device", "nowhere", "this machine has")),
        ("--dtype bfloat16", ("float64", "bfloat16")),
        ("--target-error 0", ("--target-error", "positive", "0")),
        ("--target-ess 1", ("between 0 and 1", "got 1", "0.99")),
        ("--target-ess 0.9 --target-error 0.1", ("one target", "0.9", "0.1")),
        ("--seconds -1", ("--seconds", "positive", "-1")),
        ("--batch-size 0", ("`batch_size`", "0")),
        ("--gradient maybe", ("maybe",)),
        (f"{SMALL} --dtype float32 --target-error 1e-12", ("float64", "float32")),
    ],
)
def test_a_refusal_is_one_line(call, tmp_path: Path, words: str, said: tuple[str, ...]) -> None:
    code, out, err = call(words)
    assert (code, out) == (2, "")
    assert re.fullmatch(r"error: .*\n", err), err
    assert all(word in err for word in said), err
    assert not list(tmp_path.iterdir())
