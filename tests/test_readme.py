"""The README and the pages of `docs`: their code runs; their commands, files and links exist.

More of their code runs in `docs/test_examples.py`.
"""

from __future__ import annotations

import ast
import re
from importlib import import_module
from importlib.util import find_spec
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_workflows import wrong

from resflow_bench import measure
from resflow_bench.lab import Context
from suites import load

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SOURCE = r"(?:resflow_bench|suites|tests|docs|\.github)/[\w./-]+"


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)


def commands(page: Path) -> str:
    """The lines of a page's console blocks and its code spans, one a line."""
    text = page.read_text("utf-8")
    blocks = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("$")]
    outside = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return "\n".join([*(line.split("#")[0] for line in lines), *re.findall(r"`([^`]+)`", outside)])


def names(page: Path) -> list[str]:
    """The files and folders of this project that a page names in code spans."""
    spans = re.findall(r"`([^`\n]+)`", page.read_text("utf-8"))
    return [span for span in spans if re.fullmatch(SOURCE, span)]


def broken_links(page: Path) -> list[str]:
    """The relative links of a page whose target does not exist."""
    links = re.findall(r"\]\(([\w./-]+)(?:#[\w-]*)?\)", page.read_text("utf-8"))
    return [link for link in links if not (page.parent / link).exists()]


def undefined(page: Path) -> list[str]:
    """The names in code font that a page links to a Python file without a definition of them."""
    links = re.findall(r"\[`(\w+)`\]\(([\w./-]+\.py)\)", page.read_text("utf-8"))
    return [
        name
        for name, file in links
        if not re.search(
            rf"^ *(def|class) {name}\b|^{name}\b", (page.parent / file).read_text(), re.MULTILINE
        )
    ]


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def test_the_python_of_the_readme_runs() -> None:
    """Each block runs as it stands; shapes, signs and sizes are those of the comments."""
    (block,) = python_blocks(ROOT / "README.md")
    found: dict[str, object] = {}
    exec(block, found)
    out, exact = found["out"], found["exact"]
    assert out.value.shape == exact.shape == found["log_p"].shape == (8,)  # type: ignore[attr-defined]
    assert (out.value - exact).abs().max() < 2.0  # type: ignore[attr-defined]
    assert found["samples"].shape == (8, 64)  # type: ignore[attr-defined]
    assert bool(found["solution"].converged.all())  # type: ignore[attr-defined]
    assert torch.isfinite(found["solution"].error_bound).all()  # type: ignore[attr-defined]


def test_the_python_of_the_page_on_own_flows_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make, notebook, file = python_blocks(ROOT / "docs" / "own_flow.md")
    assert len([line for line in make.splitlines() if line]) <= 10, "ten lines are promised"
    found: dict[str, Any] = {}
    exec(make, found)
    exec(notebook, found)
    assert list(found["errors"]["n_terms"])[:2] == [1, 5]
    assert found["figures"].keys() == {"bias"}
    exec(file, found)
    assert torch.equal(found["again"](torch.ones(1, 2)), found["flow"](torch.ones(1, 2)))
    rows = measure(["bias", "inverse"], preset="smoke", model=found["make"])
    assert set(rows["status"]) == {"ok"}


def test_the_python_of_the_page_on_training_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    for block in python_blocks(ROOT / "docs" / "training.md"):
        exec(block, found)
    rows = {round(x, 3) for x in np.load("mine.npy")[:, 0].tolist()}
    assert {round(x, 3) for x in found["rows"][:, 0].tolist()} <= rows


def test_the_python_of_the_suite_page_is_that_of_the_example_or_measures(tmp_path) -> None:
    """The measure that the example lacks is off by the bias that two terms have, |z| < 4."""
    example = "\n".join(path.read_text("utf-8") for path in (ROOT / "docs/my_suite").glob("*.py"))
    others = [b for b in python_blocks(ROOT / "docs" / "own_suite.md") if b not in example]
    (block,) = others
    found: dict[str, Any] = {}
    exec(block, found)
    cell = load("bias").cells("smoke", {"truncation": ("fixed",), "n_terms": (2,)})[0]
    (seen,) = found["measure_error"](cell, Context(0, {}, tmp_path))
    assert cell["model"] == "minus-identity"
    expected = 64 * (-0.5 - 0.5**2 / 2 - log(0.5))
    assert abs(seen.value - expected) < 4 * max(seen.standard_error, 1e-9)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_imports_exists(page: Path) -> None:
    for block in python_blocks(page):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("resflow_bench"):
                module = import_module(str(node.module))
                missing = [name.name for name in node.names if not hasattr(module, name.name)]
                assert not missing, f"{node.module} lacks {missing}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_page_exist(page: Path) -> None:
    text = commands(page)
    assert not wrong(text)
    for module in re.findall(r"python -m (suites[\w.]*\w)", text):
        assert find_spec(module) is not None, module


def test_the_readme_shows_commands() -> None:
    assert len(re.findall(r"^\$ resflow-bench \w+", commands(ROOT / "README.md"), re.MULTILINE)) > 5


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_links_and_files_of_a_page_exist(page: Path) -> None:
    assert not broken_links(page)
    assert not undefined(page)
    assert [name for name in names(page) if not (ROOT / name).exists()] == []


def test_the_checks_see_what_is_missing(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    (tmp_path / "a.py").write_text("def f(): ...\nX = 1\n")
    page.write_text(
        "`make nothing`, `resflow_bench/lab/gone.py`, [a](gone.md), [b](page.md#top), "
        "[`f`](a.py), [`X`](a.py), [`g`](a.py)"
    )
    assert wrong(commands(page)) == {"make nothing"}
    assert names(page) == ["resflow_bench/lab/gone.py"]
    assert broken_links(page) == ["gone.md"]
    assert undefined(page) == ["g"]


def test_every_misprint_on_the_page_of_mathematics_has_a_test() -> None:
    """Row n of table t is `test_s<t>_<n>_...`; no such test is without a row."""
    tables = (ROOT / "docs" / "mathematics.md").read_text("utf-8").split("| | printed |")[1:]
    rows = {
        f"test_s{t}_{int(n):02}"
        for t, table in enumerate(tables)
        for n in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)
    }
    text = "".join(file.read_text("utf-8") for file in (ROOT / "tests").rglob("test_*.py"))
    tests = set(re.findall(r"^def (test_s\d_\d\d)_", text, re.MULTILINE))
    assert tests == rows
    assert len(rows) == 22 + 15
