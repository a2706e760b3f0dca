"""`gate` on runs: what it refuses, what it notes, and what an empty side is worth."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import toys

import suites
from resflow_bench.cli import main
from resflow_bench.lab import Cell, Result
from resflow_bench.lab.plan import Plan, begin
from resflow_bench.lab.store import Run, Store
from resflow_bench.lab.sweep import sweep

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """The command, with the toys in place of the suites."""
    monkeypatch.setattr(suites, "NAMES", suites.NAMES)
    for name in toys.SUITES:
        monkeypatch.setitem(sys.modules, f"suites.{name}", None)
    toys.install()

    def gate(*words: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["resflow-bench", "gate", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), *capsys.readouterr()

    return gate


def measured(folder: Path, preset: str = "smoke", seed: int = 0, dirty: bool = False) -> Path:
    """The folder of a run of the toy suite `rows`, whose mean nobody declared a margin for."""
    plan = Plan((toys.ROWS,), preset, seed=seed)
    run = begin(plan, Store(folder))
    sweep(plan, run)
    run.write_about(run.about | {"dirty": dirty})
    return run.path


def test_runs_that_drew_other_points_are_refused(gate: Call, tmp_path: Path) -> None:
    """Their exact values differ by nobody's fault."""
    run = measured(tmp_path)
    for other, name in ((measured(tmp_path, seed=1), "seed"), (measured(tmp_path, "quick"), "pre")):
        for sides in ((run, other), (f"{run},{other}", run)):
            code, out, err = gate(*sides)
            assert (code, out) == (2, "")
            assert err.startswith("error: runs of ")
            assert f"the same --{name}" in err


def test_a_run_cannot_be_measured_again(gate: Call, tmp_path: Path) -> None:
    run = measured(tmp_path)
    code, out, err = gate(run, run, "--again")
    assert (code, out) == (2, "")
    assert "--again builds and measures commits" in err
    code, out, err = gate(run, run, "--asv", "asv.conf.json")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "--asv tells where commits were measured" in err


def test_a_dirty_tree_is_said(gate: Call, tmp_path: Path) -> None:
    """On standard error, whichever side it is: what was measured, no commit brings back."""
    clean, dirty = measured(tmp_path), measured(tmp_path, dirty=True)
    assert "note:" not in gate(clean, clean)[2]
    for sides in ((clean, dirty), (dirty, clean)):
        err = gate(*sides)[2]
        assert err.count("note: ") == 1
        commit = Run(dirty).about["commit"][:8]
        assert f"note: {dirty.name} measured {commit} with uncommitted changes" in err


def test_nothing_that_can_be_judged_is_no_pass(gate: Call, tmp_path: Path) -> None:
    """No margin declared; no suite at all; a run that somebody stopped before its first cell."""
    run = measured(tmp_path)
    code, out, _ = gate(run, run)
    assert code == 4
    assert "no margin is declared for mean" in out
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "run.json").write_text(json.dumps(Run(run).about | {"run": "empty"}))
    assert gate(empty, empty)[0] == 4
    code, out, _ = gate(run, empty)
    assert code == 4
    assert "6 missing" in out


def test_a_character_that_the_terminal_lacks_changes_no_exit_code(
    gate: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, new = measured(tmp_path), Run(measured(tmp_path))
    new.append(toys.ROWS, Result(Cell("rows", {"dim": 1}), "failed", message="not ρ ≤ 1"))
    new.flush()
    out = io.TextIOWrapper(io.BytesIO(), "latin-1")
    monkeypatch.setattr(sys, "stdout", out)
    assert gate(base, new.path)[0] == 3
    assert rb"not \u03c1 \u2264 1" in out.buffer.getvalue()


def test_rows_of_a_suite_that_is_gone_are_not_judged(
    gate: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One note says which suite, and why."""
    run = measured(tmp_path)
    monkeypatch.setattr(suites, "NAMES", ("mixed",))
    code, out, err = gate(run, run)
    assert code == 4
    assert "no margin is declared for mean" in out
    assert err.count("note: ") == 1
    assert "note: the rows of rows are shown and not judged" in err
    assert "no suite is called `rows`" in err


def test_a_run_against_a_commit_is_refused(gate: Call, tmp_path: Path) -> None:
    code, out, err = gate(measured(tmp_path), "main")
    assert (code, out) == (2, "")
    assert "give two runs, or two commits" in err


def test_a_mistake_of_ours_looks_like_no_verdict(
    gate: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python's own exit code of a traceback is 1, which here says regression."""
    run = measured(tmp_path)
    monkeypatch.delattr("resflow_bench.gate.samples._rows")
    code, out, err = gate(run, run)
    assert (code, out) == (70, "")
    assert "NameError" in err
