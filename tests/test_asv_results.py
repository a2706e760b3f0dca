"""asv's files as asv writes them, and the gate's exit code for each way to measure nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from resflow_bench.cli import main
from resflow_bench.lab.asv_again import measure_again, results_folder
from resflow_bench.lab.asv_results import AsvError, commits, rows

SUITE = """
class Toy:
    params = ["one", "two-cuda"]
    param_names = ["cell"]
    version = "1"
    rounds, repeat, number, warmup_time = 4, 2, 1, 0.0

    def setup(self, name):
        if name.endswith("cuda"):
            raise NotImplementedError("no such device")

    def time_it(self, name):
        sum(range(1000))

    def track_bias(self, name):
        return {"samples": [-0.1, -0.2, -0.1, -0.2], "number": 1}


def track_nothing():
    return float("nan")


def track_failure():
    raise ValueError("boom")
"""


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    answer = subprocess.run(
        ["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True
    )
    return answer.stdout.strip()


def asv(folder: Path, *arguments: str) -> int:
    command = [sys.executable, "-m", "asv", *arguments, "--launch-method", "spawn"]
    return subprocess.run(command, cwd=folder, check=False, capture_output=True).returncode


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two commits of one suite, measured by asv itself in this very environment."""
    folder = tmp_path_factory.mktemp("asv")
    (folder / "suite").mkdir()
    (folder / "suite" / "__init__.py").touch()
    (folder / "suite" / "toys.py").write_text(SUITE)
    settings = {
        **{"version": 1, "project": "toys", "repo": ".", "branches": ["main"]},
        **{"benchmark_dir": "suite", "results_dir": "found", "environment_type": "existing"},
    }
    (folder / "asv.conf.json").write_text(json.dumps(settings))
    git(folder, "init", "--quiet", "--initial-branch=main")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message=one")
    git(folder, "commit", "--quiet", "--allow-empty", "--message=two")
    subprocess.run(
        [sys.executable, "-m", "asv", "machine", "--yes"], cwd=folder, check=True,
        capture_output=True,
    )  # fmt: skip
    for name in ("HEAD~1", "HEAD"):
        measured = ["--environment", "existing", "--record-samples"]
        code = asv(folder, "run", *measured, "--set-commit-hash", git(folder, "rev-parse", name))
        assert code == 2  # a benchmark failed, as it should
    return folder


def test_rows_are_what_asv_measured(repository: Path) -> None:
    """Medians of four rounds of two; samples as returned; skips and failures said."""
    assert results_folder(repository / "asv.conf.json") == repository / "found"
    head = git(repository, "rev-parse", "HEAD")
    assert set(commits(repository / "found")) == {head, git(repository, "rev-parse", "HEAD~1")}
    found = {(row.cell, row.metric): row for row in rows(repository / "found", head[:8])}
    timed = found["Toy.time_it(one)", "wall_s"]
    assert (timed.suite, timed.status, timed.unit, timed.version) == ("toys", "ok", "s", "1")
    assert len(timed.samples) == 4
    assert all(0 < sample < 1 for sample in timed.samples)
    assert found["Toy.track_bias(one)", "bias"].samples == (-0.1, -0.2, -0.1, -0.2)
    assert found["Toy.track_bias(two-cuda)", "bias"].status == "skipped"
    assert found["track_nothing", "nothing"].status == "skipped"
    assert found["track_failure", "failure"].status == "failed"
    with pytest.raises(AsvError, match="no commits that begin with `fffffff`"):
        rows(repository / "found", "fffffff")


def test_some_of_it_is_measured_again(repository: Path, tmp_path: Path) -> None:
    """By the very configuration; what was there stays as it was."""
    config = repository / "asv.conf.json"
    with pytest.raises(AsvError, match="measuring again ended with code"):
        measure_again(config, "HEAD~1", "nothing", ["toys.Toy.time_it"], tmp_path)
    with pytest.raises(AsvError, match="name another with --asv"):
        results_folder(tmp_path / "none.json")


# --- the gate on what asv files can say


def written(folder: Path, base: dict[str, Any], new: dict[str, Any]) -> Path:
    """asv's files of two commits, `b...` and `c...`: benchmark -> (results, samples)."""
    (folder / "found" / "machine").mkdir(parents=True)
    described = {
        name: {"type": "time" if "time_" in name else "track", "unit": "u", "repeat": 2}
        for name in {**base, **new}
    }
    (folder / "found" / "benchmarks.json").write_text(json.dumps(described | {"version": 2}))
    for letter, side in (("b", base), ("c", new)):
        results = {
            name: [result, [["'x'"]], "1", samples] for name, (result, samples) in side.items()
        }
        whole = {
            **{"commit_hash": letter * 40, "env_name": "env", "date": ord(letter), "version": 2},
            **{"result_columns": ["result", "params", "version", "samples"], "results": results},
        }
        (folder / "found" / "machine" / f"{letter}.json").write_text(json.dumps(whole))
    config = {
        **{"version": 1, "project": "toys", "repo": ".", "results_dir": "found"},
        **{"benchmark_dir": "suite"},
    }
    (folder / "asv.conf.json").write_text(json.dumps(config))
    return folder / "asv.conf.json"


NAN = float("nan")
GOOD = {"toys.T.track_bias": ([-0.1], [[-0.1, -0.2] * 4])}
LIKELY = {"toys.T.track_log_prob": ([0.9], [[0.9] * 8])}
TIMED = {"toys.T.time_it": ([1.0], [[1.0, 1.01] * 8])}


@pytest.mark.parametrize(
    ("base", "new", "code", "word"),
    [
        (GOOD, GOOD, 0, "nothing is worse"),  # negative and identical
        (TIMED, TIMED, 0, "nothing is worse"),
        (TIMED, {"toys.T.time_it": ([1.3], [[1.3, 1.31] * 8])}, 1, "T.time_it(x)"),
        (LIKELY, {"toys.T.track_log_prob": ([0.5], [[0.5] * 8])}, 1, "T.track_log_prob(x)"),
        (GOOD, {"toys.T.track_bias": ([NAN], [None])}, 4, "not a number"),
        ({"toys.T.track_bias": ([NAN], [None])}, {"toys.T.track_bias": ([NAN], [None])}, 4, "MEAS"),
        (GOOD, {}, 4, "TOO LITTLE"),
        ({}, GOOD, 4, "BASE does not have it"),
        (GOOD, {"toys.T.track_bias": (None, None)}, 3, "it raised"),
        (TIMED, {"toys.T.time_it": ([1.0], [[1.0] * 7])}, 3, "no rounds of 2"),
        (TIMED, {"toys.T.time_it": ([1.0], [None])}, 3, "--record-samples"),
        (GOOD, {"toys.T.track_bias": ([{"a": 1}], [None])}, 3, "no number"),
    ],
)
def test_the_gate_on_asv_s_files(
    base: dict[str, Any], new: dict[str, Any], code: int, word: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    config = written(tmp_path, base, new)
    found = call(monkeypatch, capsys, "gate", "b" * 40, "c" * 40, "--asv", str(config))
    assert found[0] == code
    assert word in found[1]


def test_what_cannot_be_compared_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line on standard error and 2: no such commit, damaged files, nothing at all."""
    config = written(tmp_path, GOOD, GOOD)
    for words in (("b" * 40, "d" * 40, str(config)), ("b" * 40, "c" * 40, str(tmp_path / "no"))):
        code, out, err = call(monkeypatch, capsys, "gate", *words[:2], "--asv", words[2])
        assert (code, out) == (2, "")
        assert err.startswith("error: ")
        assert err.count("\n") == 1
    (tmp_path / "found" / "machine" / "c.json").write_text("{")
    assert call(monkeypatch, capsys, "gate", "b" * 40, "c" * 40, "--asv", str(config))[0] == 2


def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["resflow-bench", *words])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0), *capsys.readouterr()


# --- for Otava


def test_history_is_a_line_a_commit_and_says_which_way_is_worse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the order of the commits; what failed leaves its place empty."""
    failed = {"toys.T.track_log_prob": (None, None)}
    config = written(tmp_path, {**GOOD, **LIKELY}, {**GOOD, **failed})
    out = tmp_path / "history"
    code, said, _ = call(monkeypatch, capsys, "export", str(out), "--asv", str(config))
    assert code == 0
    assert "otava analyze toys" in said
    lines = (out / "toys.csv").read_text().splitlines()
    assert lines[0] == "time,commit,T_track_bias(x):bias,T_track_log_prob(x):log_prob"
    assert [line.split(",")[1][0] for line in lines[1:]] == ["b", "c"]
    assert lines[1].endswith("-0.15000000000000002,0.9")
    assert lines[2].endswith(",")
    metrics = json.loads((out / "otava.yaml").read_text())["tests"]["toys"]["metrics"]
    assert metrics["T_track_log_prob(x):log_prob"]["direction"] == 1
    assert metrics["T_track_bias(x):bias"]["direction"] == -1
    (tmp_path / "found" / "machine" / "b.json").unlink()
    (tmp_path / "found" / "machine" / "c.json").unlink()
    assert call(monkeypatch, capsys, "export", str(out), "--asv", str(config))[0] == 2
