"""The examples of the documentation: their code runs, and prints what the page says."""

from __future__ import annotations

import ast
import contextlib
import doctest
import io
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
import torch
from click.testing import CliRunner

from resflow_bench.cli import cli
from resflow_bench.flows import ResidualFlow

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def blocks(page: str) -> list[tuple[str, str]]:
    """The language and the text of each block of a page."""
    return BLOCK.findall((DOCS / f"{page}.md").read_text("utf-8"))


def python_of(page: str) -> list[str]:
    return [text for language, text in blocks(page) if language == "python"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def for_advice() -> dict[str, Any]:
    flow = ResidualFlow.mlp(dim=2, hidden=(8,), n_blocks=2, lipschitz=0.5)
    return {"flow": flow, "x": torch.randn(16, 2), "generator": torch.Generator().manual_seed(0)}


@pytest.mark.parametrize(
    ("page", "prepare"),
    [
        ("advise", for_advice),
        *((page, dict) for page in ("efficiency", "lipschitz_layers", "parts", "systems")),
    ],
)
def test_the_python_of_a_page_runs(page: str, prepare: Callable[[], dict[str, Any]]) -> None:
    """Blocks of a page continue each other; `advise` is given one second in place of five."""
    found = prepare()
    for block in python_of(page):
        exec(block.replace("seconds=5.0", "seconds=1.0"), found)
    assert found


def test_the_python_of_the_page_on_regressions_counts_launches() -> None:
    """In a process of its own, as a stand-in takes the place of a real accelerator."""
    (block,) = python_of("regressions")
    done = subprocess.run(
        [sys.executable, "-c", block], capture_output=True, text=True, cwd=ROOT, check=False
    )
    if "needs torch" in done.stderr:
        pytest.skip(done.stderr.splitlines()[-1])
    assert int(done.stdout.split()[0]) > 0, done.stderr


def outputs(page: str) -> list[tuple[str, str]]:
    """(what is printed, what the page says) for each command and each block of Python."""
    found: dict[str, Any] = {}
    pairs: list[tuple[str, str]] = []
    for language, text in blocks(page):
        if language == "console":
            for call in text.replace("\\\n", "").removeprefix("$ ").split("\n$ "):
                command, _, expected = call.partition("\n")
                name, *arguments = shlex.split(command, comments=True)
                if name == "resflow-bench":
                    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
                    assert done.exit_code == 0, done.output
                    pairs.append((done.stdout, expected))
        elif language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(text, found)
            pairs.append((printed.getvalue(), ""))
        elif language == "text":
            pairs[-1] = (pairs[-1][0], text)
    return pairs


def agrees(printed: str, expected: str) -> bool:
    return doctest.OutputChecker().check_output(expected, printed, FLAGS)


def test_the_tour_prints_what_it_says() -> None:
    pairs = outputs("tour")
    assert [bool(expected) for _, expected in pairs] == [True] * 4
    for printed, expected in pairs:
        assert agrees(printed, expected), f"the page says\n{expected}\nand is\n{printed}"
    printed, expected = pairs[2]
    assert not agrees(printed, expected.replace("1.166", "1.167")), "it can fail"


def test_the_script_answers_its_question(capsys: pytest.CaptureFixture[str]) -> None:
    with mpl.rc_context({"backend": "agg"}):
        found = runpy.run_path(str(DOCS / "from_question_to_figure.py"))
        found["plt"].close(found["figure"])
    assert capsys.readouterr().out.splitlines()[-1].startswith("10 terms are enough for 0.01 nat")
    assert Path("from_question_to_figure.svg").stat().st_size > 1000
    measured = found["measured"].set_index("n_terms")
    exact = found["table"][found["table"]["metric"] == "bias_expected"].set_index("n_terms")
    inside = exact["value"].between(measured["ci_low"], measured["ci_high"])
    assert inside.sum() >= len(inside) - 1, "99 % intervals, of the same draws"


def test_no_page_has_python_that_is_not_run() -> None:
    """Other pages' blocks run in `test_readme.py`; `py` marks one that needs other packages."""
    here = {"advise", "efficiency", "lipschitz_layers", "parts", "systems", "regressions", "tour"}
    there = {"own_flow", "own_suite", "training"}
    assert {page.stem for page in DOCS.glob("*.md") if python_of(page.stem)} == here | there
    for page in here | there:
        for block in python_of(page):
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom):
                    assert import_module(str(node.module))
