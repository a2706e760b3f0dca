"""asv's files as asv writes them, and the gate's exit code for each way to measure nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from asv.config import Config
from asv.util import interpolate_command
from made_up import SUITES

import suites
from resflow_bench.cli import main
from resflow_bench.lab import Claims
from resflow_bench.speed import asv_again
from resflow_bench.speed.asv_again import measure_again, results_folder
from resflow_bench.speed.asv_results import AsvError, AsvResults

pytestmark = pytest.mark.timeout(900)  # environments are made, and pip is slow on a busy machine

ROOT = Path(__file__).parents[2]

SUITE = """
from work import work

class Toy:
    params = ["one", "two-cuda"]
    param_names = ["cell"]
    version = "1"
    rounds, repeat, number, warmup_time = 4, 2, 1, 0.0

    def setup(self, name):
        if name.endswith("cuda"):
            raise NotImplementedError("no such device")

    def time_it(self, name):
        work()

    def track_bias(self, name):
        return {"samples": [-0.1, -0.2, -0.1, -0.2], "number": 1}


def track_nothing():
    return float("nan")


def track_failure():
    raise ValueError("boom")
"""

PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "toys"
version = "1"

[tool.setuptools]
py-modules = ["work"]
"""

WORK = "def work():\n    return sum(range({}))\n"


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    answer = subprocess.run(
        ["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True
    )
    return answer.stdout.strip()


def asv(folder: Path, *arguments: str) -> int:
    """Its exit code; the environments see this one's packages."""
    command = [sys.executable, "-m", "asv", *arguments]
    host = {**os.environ, "HOST_SITE": sysconfig.get_path("purelib")}
    return subprocess.run(
        command, cwd=folder, env=host, check=False, capture_output=True
    ).returncode


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two commits, built and measured in turn by asv itself; in the second work takes ten times.

    Environments are built as asv.overlay.conf.json says.
    """
    folder = tmp_path_factory.mktemp("asv")
    (folder / "suite").mkdir()
    (folder / "suite" / "__init__.py").touch()
    (folder / "suite" / "toys.py").write_text(SUITE)
    (folder / "pyproject.toml").write_text(PROJECT)
    ours = vars(Config.load(str(ROOT / "asv.overlay.conf.json")))
    settings = {
        **{"version": 1, "project": "toys", "repo": ".", "branches": ["main"]},
        **{"benchmark_dir": "suite", "results_dir": "found", "env_dir": "env"},
        **{name: ours[name] for name in ("environment_type", "build_command", "install_command")},
        **{"build_cache_size": 20},
    }
    (folder / "asv.conf.json").write_text(json.dumps(settings))
    git(folder, "init", "--quiet", "--initial-branch=main")
    for size in (10_000, 100_000):
        (folder / "work.py").write_text(WORK.format(size))
        git(folder, "add", "--all", "pyproject.toml", "work.py", "suite")
        git(folder, "commit", "--quiet", f"--message={size}")
    assert asv(folder, "machine", "--yes") == 0
    assert asv(folder, "continuous", "HEAD~1", "HEAD") == 2  # one failed, as it should
    return folder


def test_rows_are_what_asv_measured(repository: Path) -> None:
    """Medians of four rounds of two; samples as returned; skips and failures said."""
    assert results_folder(repository / "asv.conf.json") == repository / "found"
    head = git(repository, "rev-parse", "HEAD")
    results = AsvResults(repository / "found")
    assert set(results.commits()) == {head, git(repository, "rev-parse", "HEAD~1")}
    found = {(row.cell, row.metric): row for row in results.rows(head[:8])}
    timed = found["Toy.time_it(one)", "wall_s"]
    assert (timed.suite, timed.status, timed.unit, timed.version) == ("toys", "ok", "s", "1")
    assert len(timed.samples) == 4
    assert all(0 < sample < 1 for sample in timed.samples)
    assert found["Toy.track_bias(one)", "bias"].samples == (-0.1, -0.2, -0.1, -0.2)
    assert found["Toy.track_bias(two-cuda)", "bias"].status == "skipped"
    assert found["track_nothing", "nothing"].status == "skipped"
    assert found["track_failure", "failure"].status == "failed"
    with pytest.raises(AsvError, match="no commits that begin with `fffffff`"):
        results.rows("fffffff")


def test_a_slower_commit_is_red_and_stays_red_when_measured_again(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """asv builds both commits again for it; what was there stays as it was."""
    monkeypatch.chdir(repository)
    kept = {file: file.read_bytes() for file in Path("found").rglob("*.json")}
    code, out, err = call(monkeypatch, capfd, "gate", "HEAD~1", "HEAD", "--again")
    assert code == 1
    assert "measuring toys.Toy.time_it again" in err
    line = next(line for line in out.splitlines() if "Toy.time_it(one)" in line)
    assert line.split()[:5] == ["toys", "Toy.time_it(one)", "wall_s", "s", "regression"]
    assert {file: file.read_bytes() for file in Path("found").rglob("*.json")} == kept
    wheels = list(Path("env").glob("*/asv-build-cache/*/*.whl"))
    assert len(wheels) == 2  # one a commit, and nothing that it depends on


def test_the_same_commit_is_green_but_for_what_failed(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What is skipped, or failed, on both sides is no pass; what is allowed to be skipped is."""
    monkeypatch.chdir(repository)
    code, out, _ = call(monkeypatch, capfd, "gate", "HEAD", "HEAD")
    assert code == 3
    assert "track_failure" in out
    assert "regression" not in out


def test_a_folder_with_a_blank_in_its_name_is_one_word(tmp_path: Path) -> None:
    """As asv splits and fills in the commands of the copy that it measures again from."""
    folder = tmp_path / "a b{c}'d"
    folder.mkdir()
    config = folder / "asv.conf.json"
    config.write_text((ROOT / "asv.conf.json").read_text())
    (command,) = asv_again._settings(config)["install_command"]
    parts, *_ = interpolate_command(command, {"env_dir": "e", "wheel_file": "w f"})
    assert parts[-2:] == [str(folder / "constraints.txt"), "w f"]


def test_it_says_why_it_could_not_measure_again(repository: Path, tmp_path: Path) -> None:
    config = repository / "asv.conf.json"
    with pytest.raises(AsvError, match="the second measurement ended with code"):
        measure_again(config, "HEAD~1", "nothing", ["toys.Toy.time_it"], tmp_path)
    with pytest.raises(AsvError, match="give another with --asv"):
        results_folder(tmp_path / "none.json")


def test_a_label_is_no_checkout(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What asv found in an existing environment, under whichever commit, judges no commit."""
    monkeypatch.chdir(repository)
    settings = json.loads(Path("asv.conf.json").read_text()) | {"results_dir": "labelled"}
    Path("labelled.json").write_text(json.dumps(settings))
    monkeypatch.setenv("ASV_PYTHONPATH", str(repository))
    measured = ["--config", "labelled.json", "--environment", "existing", "--record-samples"]
    for name in ("HEAD~1", "HEAD"):
        label = ["--set-commit-hash", git(repository, "rev-parse", name)]
        asv(repository, "run", *measured, *label, "--bench", "track_bias")
    code, out, _ = call(monkeypatch, capfd, "gate", "HEAD~1", "HEAD", "--asv", "labelled.json")
    assert code == 4
    assert "did not check out" in out


# --- the gate on what asv files can say

REPEATS: dict[str, object] = {
    "toys.T.time_by_default": 0,
    "toys.T.time_in_bounds": [1, 10, 20.0],
}
"""asv's default, and its tuple (least, most, seconds): each round may have another number."""


def written(folder: Path, base: dict[str, Any], new: dict[str, Any]) -> Path:
    """asv's files of two commits, `b...` and `c...`: benchmark -> (results, samples)."""
    (folder / "found" / "machine").mkdir(parents=True)
    described = {
        name: {
            "type": "time" if "time_" in name else "track",
            "unit": "u",
            "rounds": 8,
            "repeat": REPEATS.get(name, 2),
        }
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


@pytest.fixture(autouse=True)
def margins(monkeypatch: pytest.MonkeyPatch) -> None:
    """A suite `toys` of this project, with margins for what its benchmarks track."""
    owners = {"bias": SUITES["bias"], "log_prob": SUITES["density"]}
    claims = Claims({name: suite.claims.metrics[name] for name, suite in owners.items()})
    module = ModuleType("suites.toys")
    module.SUITE = replace(SUITES["bias"], name="toys", claims=claims)
    monkeypatch.setitem(sys.modules, "suites.toys", module)
    monkeypatch.setattr(suites, "NAMES", ("toys",))


NAN = float("nan")
GOOD = {"toys.T.track_bias": ([-0.1], [[-0.1, -0.2] * 4])}
LIKELY = {"toys.T.track_log_prob": ([0.9], [[0.9] * 8])}
SKIPPED = {"toys.T.track_log_prob": ([NAN], [None])}
TIMED = {"toys.T.time_it": ([1.0], [[1.0, 1.01] * 8])}


@pytest.mark.parametrize(
    ("base", "new", "code", "word"),
    [
        (GOOD, GOOD, 0, "nothing is shown to be worse"),  # negative and identical
        (TIMED, TIMED, 0, "nothing is shown to be worse"),
        (TIMED, {"toys.T.time_it": ([1.3], [[1.3, 1.31] * 8])}, 1, "T.time_it(x)"),
        (LIKELY, {"toys.T.track_log_prob": ([0.5], [[0.5] * 8])}, 1, "T.track_log_prob(x)"),
        (GOOD, {"toys.T.track_bias": ([NAN], [None])}, 4, "not a number"),
        ({"toys.T.track_bias": ([NAN], [None])}, {"toys.T.track_bias": ([NAN], [None])}, 4, "MEAS"),
        (GOOD, {}, 4, "TOO LITTLE"),
        ({}, GOOD, 4, "BASE does not have it"),
        ({}, {}, 4, "nothing could be judged"),  # an empty suite
        (GOOD, {"toys.T.track_bias": (None, None)}, 3, "it raised"),
        (TIMED, {"toys.T.time_it": ([1.0], [[1.0] * 7])}, 3, "7 samples, where 8 rounds of 2"),
        (TIMED, {"toys.T.time_it": ([1.0], [[1.0] * 8])}, 3, "8 samples"),  # four rounds crashed
        (TIMED, {"toys.T.time_it": ([1.0], [None])}, 3, "--record-samples"),
        (GOOD, {"toys.T.track_bias": ([{"a": 1}], [None])}, 3, "no number"),
        *(
            (GOOD | one, GOOD | one, 0, "1 process; a time needs 4 on each side")
            for one in ({name: ([1.0], [[1.0, 1.1, 0.9]])} for name in REPEATS)
        ),
        (GOOD | SKIPPED, GOOD | SKIPPED, 4, "no reason is on record"),
        (
            GOOD | {"toys.T.track_log_prob": LIKELY["toys.T.track_log_prob"]},
            GOOD | SKIPPED,
            4,
            "NEW",
        ),
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


def placed(config: Path, letter: str, machine: str, env_name: str, slower: float = 1.0) -> None:
    """That commit's times measured elsewhere too, or there alone."""
    whole = json.loads((config.parent / "found" / "machine" / f"{letter}.json").read_text())
    times = [sample * slower for sample in [1.0, 1.01] * 8]
    results = {"toys.T.time_it": [[slower], [["'x'"]], "1", [times]]}
    file = config.parent / "found" / machine / f"{letter}-{env_name}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(whole | {"env_name": env_name, "results": results}))


def test_only_the_same_place_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other machines and environments of one side are left out; of both sides they are named."""
    config = written(tmp_path, TIMED, TIMED)
    words = ("gate", "b" * 40, "c" * 40, "--asv", str(config))
    placed(config, "b", "other", "env", slower=0.5)
    placed(config, "b", "machine", "env2", slower=0.5)
    code, out, _ = call(monkeypatch, capsys, *words)
    assert (code, "[" in out) == (0, False)
    placed(config, "c", "machine", "env2")
    code, out, _ = call(monkeypatch, capsys, *words)
    assert code == 1
    assert "T.time_it(x) [machine/env2]" in out
    assert "T.time_it(x) [machine/env]" not in out
    for file in ("b.json", "b-env2.json"):
        (tmp_path / "found" / "machine" / file).unlink()
    code, _, err = call(monkeypatch, capsys, *words)
    assert code == 2
    assert "BASE was measured in other/env, and NEW in machine/env, machine/env2" in err


def test_a_second_look_finds_its_cells_wherever_the_first_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Slower again: still red; fine now: green; not measured now: red."""
    slow = {"toys.T.time_it": ([1.3], [[1.3, 1.31] * 8])}
    config = written(tmp_path, TIMED, slow)
    placed(config, "b", "machine", "env2")
    placed(config, "c", "machine", "env2", slower=1.3)
    found = AsvResults(tmp_path / "found")
    seconds = {
        "slower": (found.rows("b"), found.rows("c")),
        "fine": (found.rows("b"), found.rows("b")),
        "failed": (
            found.rows("b"),
            [replace(row, status="failed", samples=()) for row in found.rows("c")],
        ),
    }
    codes = {}
    for name, second in seconds.items():
        monkeypatch.setattr(asv_again, "measure_again", lambda *_, second=second: second)
        words = ("gate", "b" * 40, "c" * 40, "--asv", str(config), "--again")
        codes[name], _, err = call(monkeypatch, capsys, *words)
        assert "measuring toys.T.time_it again" in err
    assert codes == {"slower": 1, "fine": 0, "failed": 1}


def test_a_reader_that_stops_early_changes_no_exit_code(tmp_path: Path) -> None:
    config = written(tmp_path, TIMED, {"toys.T.time_it": ([1.3], [[1.3, 1.31] * 8])})
    words = ["gate", "b" * 40, "c" * 40, "--asv", str(config)]
    script = "import sys; from resflow_bench.cli import main; sys.argv[1:] = {!r}; main()"
    command = [sys.executable, "-c", script.format(words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


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
    skip = ("gate", "b" * 40, "c" * 40, "--asv", str(config), "--allow-skip", "")
    assert call(monkeypatch, capsys, *skip)[0] == 2
    without = json.loads((tmp_path / "found" / "machine" / "c.json").read_text())
    del without["env_name"]
    (tmp_path / "found" / "machine" / "c.json").write_text(json.dumps(without))
    assert "has no `env_name`" in call(monkeypatch, capsys, *skip[:5])[2]
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
    assert lines[1].endswith(",0.15000000000000002,0.9")  # a bias is worse either way
    assert lines[2].endswith(",")
    metrics = json.loads((out / "otava.yaml").read_text())["tests"]["toys"]["metrics"]
    assert metrics["T_track_log_prob(x):log_prob"]["direction"] == 1
    assert metrics["T_track_bias(x):bias"]["direction"] == -1
    (tmp_path / "found" / "machine" / "b.json").unlink()
    other = json.loads((tmp_path / "found" / "machine" / "c.json").read_text())
    for change in ({"env_name": "existing-py"}, {"results": {}}):  # no number at all
        (tmp_path / "found" / "machine" / "c.json").write_text(json.dumps(other | change))
        code, _, err = call(monkeypatch, capsys, "export", str(out), "--asv", str(config))
        assert (code, err.count("\n")) == (2, 1)
    (tmp_path / "found" / "machine" / "c.json").unlink()
    assert call(monkeypatch, capsys, "export", str(out), "--asv", str(config))[0] == 2
