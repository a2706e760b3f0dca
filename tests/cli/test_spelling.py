"""A misspelt name is answered by the nearest one; a run that measures nothing says so."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import toys

import suites
from resflow_bench.cli import main
from resflow_bench.lab.store import Store
from resflow_bench.spelling import suggestion


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """`call("run bias")` in an empty folder; returns the exit code."""
    monkeypatch.chdir(tmp_path)

    def call(words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["resflow-bench", *words.split()])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0)

    return call


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("run biass", "bias"),
        ("run bias lipschits=0.9", "lipschitz"),
        ("run bias --set model=traind", "trained"),
        ("run bias --set truncation=fix", "fixed"),
        ("train checkerbord", "checkerboard"),
        ("train moons --architecture multiscal", "multiscale"),
        ("advise --model traind", "trained"),
    ],
)
def test_the_nearest_name_is_offered(words: str, meant: str, call, capsys) -> None:
    assert call(words) == 2
    err = capsys.readouterr().err
    assert err.endswith(f"Did you mean `{meant}`?\n"), err
    assert len(err.splitlines()) == 1


def test_a_name_like_no_other_has_no_suggestion() -> None:
    assert suggestion("xyz", ("init", "trained")) == ""


def test_an_empty_name_of_a_run_is_no_run(call, capsys, tmp_path: Path) -> None:
    Store(tmp_path / "results").create({"preset": "smoke"})
    assert call("run --resume=") == 2
    assert (
        "name of the run is empty; is a variable of the shell not set?" in capsys.readouterr().err
    )


@pytest.mark.parametrize(("terms", "code"), [("2", 1), ("1,2", 0)])
def test_a_run_of_skipped_cells_alone_ends_with_1(
    terms: str, code: int, call, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suites, "NAMES", suites.NAMES)
    for name in toys.SUITES:
        monkeypatch.setitem(sys.modules, f"suites.{name}", None)
    toys.install()
    assert call(f"run mixed --preset smoke --jobs 1 --set n_terms={terms}") == code
    assert ("every cell was skipped" in capsys.readouterr().err) == bool(code)
