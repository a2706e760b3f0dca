"""A suite in a folder of the user's own: measured, resumed, reported and gated by the command."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

from resflow_bench.lab import Metric, discovery

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "my_suite"


def command(*words: object, code: int = 0, cwd: Path | None = None, path: Path = ROOT) -> str:
    """What the command prints, in a process of its own; it has to end with the code."""
    environment = {**os.environ, "PYTHONPATH": str(path), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "-m", "resflow_bench", *map(str, words)],
        capture_output=True, text=True, check=False, env=environment, cwd=cwd,
    )  # fmt: skip
    assert ended.returncode == code, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


@pytest.fixture
def own(tmp_path) -> Path:
    return Path(shutil.copytree(EXAMPLE, tmp_path / "my_suite"))


def run_in(results: Path) -> Path:
    (run,) = (results / "runs").iterdir()
    return run


def test_the_example_is_short() -> None:
    lines = [line for file in EXAMPLE.glob("*.py") for line in file.read_text("utf-8").splitlines()]
    assert len([line for line in lines if line.strip()]) < 60


@pytest.mark.parametrize("installed", [False, True])
def test_our_own_suites_are_found_beside_a_folder_of_their_name(tmp_path, installed) -> None:
    """By workers too; a wheel has them inside its package."""
    (tmp_path / "suites").mkdir()
    (tmp_path / "suites" / "__init__.py").write_text("raise AttributeError('not ours')")
    site = ROOT
    if installed:
        site, source = tmp_path / "site", tmp_path / "source"
        for name in ("resflow_bench", "suites"):
            shutil.copytree(ROOT / name, source / name)
        for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, source)
        pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", source]
        subprocess.run([*pip, "--wheel-dir", tmp_path], check=True, capture_output=True)
        shutil.unpack_archive(next(tmp_path.glob("*.whl")), site, "zip")
        assert sorted(p.name for p in site.iterdir() if p.suffix == "") == ["resflow_bench"]
    cell = ("--set", "model=init", "dim=4", "n_terms=1", "n_probes=2")
    words = ("run", "bias", "--preset", "smoke", "--jobs", 2, *cell)
    assert "2 cells measured" in command(*words, cwd=tmp_path, path=site)


def test_a_module_with_the_name_of_our_suites_is_refused(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "suites", ModuleType("suites"))
    with pytest.raises(ValueError, match=r"<module 'suites'> .*; rename it"):
        discovery.names()


def test_it_is_measured_resumed_and_reported(own, tmp_path) -> None:
    """By two workers, which find it in its folder as the command did."""
    results = tmp_path / "results"
    command("run", own, "--jobs", 2, "--results", results)
    run = run_in(results)
    rows = pd.read_parquet(run / "my_suite")
    assert rows["cell"].nunique() == 8
    assert set(rows["metric"]) == {"error", "error_bound"}
    assert json.loads((run / "run.json").read_text())["suites"] == [str(own)]
    assert "0 cells measured, 8 kept" in command("run", "--resume", run.name, "--results", results)
    command("report", run.name, "--results", results, "--out", tmp_path / "page")
    page = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    assert '<h2 id="my_suite">' in page
    assert "Leibniz" in page, "its statement"
    assert "<b>8</b>hold" in page
    assert page.count("<figure") == 1, "its figure, in two widths"


def test_every_way_to_write_its_folder_is_the_same_suite(own, tmp_path) -> None:
    """From the folder that it is in, where `python -m` can import it; twice; and to resume."""
    results = tmp_path / "results"
    asked = ("run", own.name, f"./{own.name}", "--jobs", 2, "--results", results)
    assert "8 cells measured" in command(*asked, cwd=own.parent)
    resume = ("run", f"../{own.name}", "--resume", run_in(results).name, "--results", results)
    assert "0 cells measured, 8 kept" in command(*resume, cwd=results)


def test_two_suites_of_one_name_are_refused(own, tmp_path) -> None:
    """Their cells would have the same ids."""
    other = shutil.copytree(own, tmp_path / "other_suite")
    face = other / "__init__.py"
    face.write_text(face.read_text().replace("from my_suite.", "from ."))
    text = command("run", own, other, "--results", tmp_path / "results", code=2)
    assert "two suites are called `my_suite`" in text
    assert not (tmp_path / "results" / "runs").exists()


def test_it_is_gated_by_its_margin(own, tmp_path) -> None:
    """2 % more error is a regression, where the suite allows 1 %."""
    command("run", own, "--results", tmp_path / "base")
    measure = own / "measure.py"
    measure.write_text(measure.read_text().replace("abs(sum", "1.02 * abs(sum"))
    command("run", own, "--results", tmp_path / "new")
    base, new = (run_in(tmp_path / name) for name in ("base", "new"))
    again = shutil.copytree(base, tmp_path / "again")
    command("gate", base, again, code=0)
    assert "regression" in command("gate", base, new, code=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "holds no suite"),
        ("SUITE = 1", "must be a `resflow_bench.lab.suite.Suite`; got 1"),
        ("SUITE = 1 +", "SyntaxError"),
        ("SUITE = {}['none']", "KeyError"),
        ("import nothing_like_it", "ModuleNotFoundError"),
        ("from suites.bias import SUITE", "name of a suite of this project, bias"),
    ],
)
def test_a_folder_without_a_suite_is_refused_in_one_line(own, text, message) -> None:
    (own / "__init__.py").unlink()
    if text is not None:
        (own / "__init__.py").write_text(text)
    with pytest.raises(ValueError, match=message) as refusal:
        discovery.load(str(own))
    assert "\n" not in str(refusal.value)


def test_a_folder_that_would_hide_a_module_is_refused(own) -> None:
    with pytest.raises(ValueError, match="name of another Python module"):
        discovery.load(str(own.rename(own.parent / "json")))


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="no suite is called `bais`, nor a folder; the suites are"):
        discovery.load("bais")


def test_figures_that_cannot_be_imported_are_refused_in_one_line(own, tmp_path) -> None:
    init = own / "__init__.py"
    init.write_text(init.read_text().replace("my_suite.figures", "my_suite.none"))
    command("run", own, "--set", "n_terms=1", "--results", tmp_path)
    ended = command("report", "--results", tmp_path, "--out", tmp_path / "page", code=2)
    assert "error: suite `my_suite` has no figures in `my_suite.none`" in ended
    assert "Traceback" not in ended


def test_a_figure_that_raises_is_refused_in_one_line(own, tmp_path) -> None:
    figures = own / "figures.py"
    figures.write_text(figures.read_text().replace('x="n_terms"', 'x="none"'))
    command("run", own, "--set", "n_terms=1", "--results", tmp_path)
    ended = command("report", "--results", tmp_path, "--out", tmp_path / "page", code=2)
    assert "error: a figure of suite `my_suite` cannot be drawn: ValueError" in ended
    assert "Traceback" not in ended


def test_a_suite_without_any_number_has_a_page(own, tmp_path) -> None:
    measure = own / "measure.py"
    measure.write_text(measure.read_text().replace("    k, n =", "    return\n    k, n ="))
    command("run", own, "--set", "n_terms=1", "--results", tmp_path, code=1)
    command("report", "--results", tmp_path, "--out", tmp_path / "page")
    assert "the measure observed nothing" in (tmp_path / "page" / "index.html").read_text("utf-8")


def test_a_margin_with_a_typo_is_refused() -> None:
    with pytest.raises(ValueError, match="`more`, `less` or `other`; got 'moer'"):
        Metric("moer")  # type: ignore[arg-type]


def test_code_that_came_with_a_run_is_not_executed(own, tmp_path) -> None:
    """Its `run.json` may name a folder inside the run; the rows are shown, and not judged."""
    command("run", own, "--set", "n_terms=1", "--results", tmp_path)
    run = run_in(tmp_path)
    evil = run / "evil"
    evil.mkdir()
    (evil / "__init__.py").write_text("open('executed', 'w')")
    about = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(about | {"suites": [str(evil)]}))
    text = command("report", "--results", tmp_path, "--out", tmp_path / "page", cwd=evil)
    assert "is code inside a run; move it elsewhere" in text
    assert [file.name for file in evil.iterdir()] == ["__init__.py"]
