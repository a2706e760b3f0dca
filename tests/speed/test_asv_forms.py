"""Every legal form of asv's result files."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from test_asv_results import GOOD, NAN, call, margins, written

from resflow_bench.speed.asv_results import SKIPPED, AsvResults
from suites.peers.against import AgainstNormflows
from suites.throughput import Throughput

__all__ = ["margins"]  # a fixture of these tests too


@pytest.mark.parametrize(
    ("attributes", "samples", "n"),
    [
        ({"repeat": 0}, [1.0, 1.01] * 20, 8),  # asv's default: at most five a round
        ({"repeat": 0}, [1.0, 1.01] * 4, 1),  # fewer: nobody knows how many in which
        ({"repeat": 0, "rounds": 1}, [1.0] * 10, 1),
        ({"repeat": [1, 2, 20.0]}, [1.0, 1.01] * 8, 8),
        ({"repeat": [1, 2, 20.0]}, [1.0, 1.01, 1.0], 1),
        ({"repeat": 2.0}, [1.0, 1.01] * 8, 8),
    ],
)
def test_every_legal_form_of_repeat_is_judged_and_exported(
    attributes: dict[str, Any], samples: list[float], n: int, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """A round counts as one only where its limits are known; else the benchmark is one sample."""
    timed = {"toys.T.time_it": ([1.005], [samples])}
    config = written(tmp_path, {**GOOD, **timed}, {**GOOD, **timed})
    redescribe(config, "toys.T.time_it", attributes)
    (row,) = (row for row in AsvResults(tmp_path / "found").rows("b") if row.metric == "wall_s")
    assert (row.status, len(row.samples)) == ("ok", n)
    code, out, _ = call(monkeypatch, capsys, "gate", "b" * 40, "c" * 40, "--asv", str(config))
    assert code == 0
    assert ("1 process; a time needs 4" in out) == (n == 1)
    code, out, _ = call(monkeypatch, capsys, "export", str(tmp_path), "--asv", str(config))
    assert code == 0
    assert "T_time_it(x):wall_s" in (tmp_path / "toys.csv").read_text()


def redescribe(config: Path, name: str, attributes: dict[str, Any]) -> None:
    """The benchmark with these attributes in benchmarks.json."""
    file = config.parent / "found" / "benchmarks.json"
    described = json.loads(file.read_text())
    described[name] |= attributes
    file.write_text(json.dumps(described))


def test_other_legal_names_types_and_parameters(tmp_path: Path) -> None:
    """Memory is no time; a tracked number may have type "time"; 1 beside '1' is another cell."""
    one = ([1.0], None)
    names = ("toys.T.peakmem_it", "toys.T.track_time", "track_alone", "toys.T.track_both")
    config = written(tmp_path, dict.fromkeys(names, one), {})
    file = tmp_path / "found" / "machine" / "b.json"
    whole = json.loads(file.read_text())
    whole["results"]["toys.T.track_both"] = [[1.0, 2.0], [["1", "'1'"]], "1"]
    file.write_text(json.dumps(whole))
    about = tmp_path / "found" / "benchmarks.json"
    described = json.loads(about.read_text())
    described["toys.T.track_time"] = {"type": "time", "unit": "s"}
    about.write_text(json.dumps(described))
    rows = AsvResults(config.parent / "found").rows("b")
    assert [(row.suite, row.cell, row.metric, row.status) for row in rows] == [
        ("toys", "T.peakmem_it(x)", "it", "ok"),
        ("toys", "T.track_time(x)", "time", "ok"),
        ("track_alone", "track_alone(x)", "alone", "ok"),
        ("toys", "T.track_both(1)", "both", "ok"),
        ("toys", "T.track_both('1')", "both", "ok"),
    ]


def test_benchmarks_write_down_why_they_were_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """asv keeps no reason, and the gate must not excuse a cell without one."""
    timed, tracked = "toys.Throughput.time_it", "toys.AgainstNormflows.track_bias"
    both = GOOD | dict.fromkeys((timed, tracked), ([NAN], [None]))
    config = written(tmp_path, both, both)
    found = tmp_path / "found"
    for side in "bc":
        file = found / "machine" / f"{side}.json"
        whole = json.loads(file.read_text())
        whole["results"][tracked] = [[NAN], [], "1"]  # without parameters
        whole["results"][timed][1] = [["'log_prob-cuda'"]]
        file.write_text(json.dumps(whole))
    words = ("gate", "b" * 40, "c" * 40, "--asv", str(config))
    assert call(monkeypatch, capsys, *words)[0] == 4
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("resflow_bench.peers.peer.find_spec", lambda name: None)
    monkeypatch.setenv("ASV_CONF_DIR", str(tmp_path))
    setups = (partial(Throughput().setup, "log_prob-cuda"), AgainstNormflows().setup)
    for commit in ("", "b" * 40, "c" * 40, "c" * 40):  # no commit: an existing environment
        monkeypatch.setenv("ASV_COMMIT", commit)
        for setup in setups:
            with pytest.raises(NotImplementedError):
                setup()
    reasons = tmp_path / "results" / "asv" / SKIPPED
    assert len(reasons.read_text().splitlines()) == 4  # each once
    reasons.rename(found / SKIPPED)
    code, out, _ = call(monkeypatch, capsys, *words)
    assert code == 0
    for why in ("log_prob-cuda needs a CUDA device", "normflows is not installed"):
        assert f"not judged, 1: skipped on both sides: {why}" in out
    (found / SKIPPED).write_text("[")
    code, _, err = call(monkeypatch, capsys, *words)
    assert (code, err.count("\n")) == (2, 1)
