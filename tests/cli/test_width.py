"""Tables and lists fit the terminal; a pipe gets each row and each entry on one line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import toys

from resflow_bench.cli import main
from resflow_bench.lab.plan import Plan, begin
from resflow_bench.lab.store import Store
from resflow_bench.lab.sweep import sweep


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of a toy suite."""
    folder = tmp_path_factory.mktemp("results")
    for seed in (0, 1):
        plan = Plan((toys.ROWS,), "smoke", seed=seed)
        sweep(plan, begin(plan, Store(folder)))
    return folder


@pytest.mark.parametrize("command", ["list", "show", "compare"])
def test_what_is_printed_fits_the_terminal(
    command: str, results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, other = (run.name for run in Store(results).runs())
    words = {"list": [], "show": [run], "compare": [run, other]}[command]
    words += [] if command == "list" else ["--results", str(results)]
    lines = {}
    for width in ("60", ""):
        monkeypatch.setenv("COLUMNS", width)
        monkeypatch.setattr(sys, "argv", ["resflow-bench", command, *words])
        with pytest.raises(SystemExit):
            main()
        lines[width] = capsys.readouterr().out.splitlines()
    assert max(map(len, lines["60"])) <= 60 < max(map(len, lines[""]))
    narrow, wide = (set(" ".join(lines[width]).split()) - {"\\"} for width in ("60", ""))
    assert narrow == wide
    assert len(lines[""]) < len(lines["60"])
