"""Runs that are compared, exported, or count as one: the commands and what they refuse."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import toys

import suites
from resflow_bench.cli import main
from resflow_bench.export import FORMATS
from resflow_bench.lab import progress
from resflow_bench.lab.plan import Plan, begin
from resflow_bench.lab.store import Run, Store
from resflow_bench.lab.suite import Suite
from resflow_bench.lab.sweep import sweep

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """The command in an empty folder, with the toys in place of the suites."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(suites, "NAMES", suites.NAMES)
    for name in toys.SUITES:
        monkeypatch.setitem(sys.modules, f"suites.{name}", None)
    toys.install()

    def call(words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["resflow-bench", *words.split()])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), *capsys.readouterr()

    return call


def measured(seed: int = 0, preset: str = "smoke", suite: Suite = toys.ROWS) -> Run:
    plan = Plan((suite,), preset, seed=seed)
    run = begin(plan, Store(Path("results")))
    sweep(plan, run)
    run.write_about(run.about | {"dirty": False})
    return run


def shown(call: Call, names: str) -> pd.DataFrame:
    code, out, _ = call(f"show {names} --format csv")
    assert code == 0
    return pd.read_csv(io.StringIO(out)).set_index(["dim", "metric"]).sort_index()


def test_two_seeds_are_shown_and_drawn_as_one_run(call: Call) -> None:
    a, b = measured(0), measured(1)
    one, other, both = (shown(call, names) for names in (a.name, b.name, f"{a.name},{b.name}"))
    assert both.index.equals(one.index)
    np.testing.assert_allclose(both["value"], (one["value"] + other["value"]) / 2)
    random = both[both.index.get_level_values("metric") == "mean"]
    np.testing.assert_allclose(random["standard_error"] / one.loc[random.index, "standard_error"],
                               0.5**0.5, rtol=0.05)  # fmt: skip
    code, out, _ = call(f"report {a.name},{b.name} --out page")
    assert code == 0
    assert out.endswith(f"report: page/index.html, of {a.name},{b.name}\n")
    rows = pd.read_csv("page/tables/rows.csv").set_index(["dim", "metric"]).sort_index()
    np.testing.assert_array_equal(rows["value"], both["value"])


def test_a_long_page_says_which_suite_it_draws(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    run = measured()
    assert call(f"report {run.name}")[2] == "", "a page of a moment says nothing"
    monkeypatch.setattr(progress, "SECONDS_BEFORE_FIRST_LINE", 0.0)
    assert call(f"report {run.name}")[2] == "0/1 suites: drawing rows\n"


def test_runs_are_named_by_their_folders_too(call: Call) -> None:
    run = measured()
    code, out, err = call(f"compare {run.path} {run.name}")
    assert (code, err) == (0, "")
    assert out == (
        "compare: 0 worse, 0 better, 0 changed, 0 undecided, 12 unchanged, of 12 metrics of cells "
        "in both.\n"
    )


@pytest.mark.parametrize("command", ["show {}", "report {}", "export out {} --format csv"])
def test_what_cannot_count_as_one_run(call: Call, command: str) -> None:
    run, quick = measured(), measured(preset="quick")
    for names, words in (
        (f"{run.name},{run.name}", "given twice"),
        (f"{run.name},{quick.name}", "preset smoke and quick"),
        (f"{run.name},nope", "no run called `nope`"),
    ):
        code, out, err = call(command.format(names))
        assert (code, out) == (2, "")
        assert re.fullmatch(r"error: .*\n", err)
        assert words in err
    assert not Path("out").exists()


def test_two_trainings_without_a_step_in_common_have_a_remedy(call: Call) -> None:
    runs = [measured(suite=toys.ROWS), measured(suite=toys.MIXED)]
    for run in runs:
        run.write_about(run.about | {"arguments": ["train", "moons"]})
    names = [run.name for run in runs]
    code, out, err = call(f"compare {' '.join(names)}")
    assert (code, out) == (2, "")
    models = ",".join(f"run:{name}" for name in names)
    assert f"`resflow-bench run inverse lipschitz --set model={models}`" in err


@pytest.mark.parametrize("layout", FORMATS)
def test_each_format_is_written_to_its_folder_alone(call: Call, layout: str) -> None:
    run = measured()
    before = {path for path in Path().rglob("*") if path.is_file()}
    code, out, err = call(f"export deep/out --format {layout}")
    assert (code, err) == (0, "")
    new = {path for path in Path().rglob("*") if path.is_file()} - before
    assert {path.parent for path in new} == {Path("deep/out")}
    assert sorted(out.splitlines()) == sorted(f"wrote {path}" for path in new)
    assert run.about["status"] == "finished"


def test_what_export_refuses(call: Call) -> None:
    run = measured()
    Path("file").touch()
    for words, expected in (
        (f"export file {run.name} --format csv", "`file`"),
        (f"export out {run.name}", "takes no run"),
        (f"export out {run.name} --format csv --asv a.json", "--asv is for the format otava"),
        ("export out nope --format csv", "no run called `nope`"),
        ("export out --format xml", "xml"),
    ):
        code, out, err = call(words)
        assert (code, out) == (2, ""), err
        assert re.fullmatch(r"error: .*\n", err)
        assert expected in err
    empty = Store(Path("results")).create({"preset": "smoke"})
    assert "has no rows to export" in call(f"export out {empty.name} --format csv")[2]


def test_compare_for_a_pipe(call: Call) -> None:
    a, b = measured(0), measured(1)
    rows = pd.read_csv(io.StringIO(call(f"compare {a.name} {b.name} --format csv")[1]))
    assert rows["verdict"].value_counts().to_dict() == {"undecided": 6, "unchanged": 6}
    content = json.loads(call(f"compare {a.name} {b.name} --format json")[1])
    assert [row["cell"] for row in content["rows"]] == rows["cell"].tolist()
    assert content["counts"]["undecided"] == 6
