"""The site of the documentation: all pages and names are in it, formulas are drawn.

`make docs` builds it and checks its links; here are the parts.
"""

from __future__ import annotations

import doctest
import re
from importlib import import_module
from pathlib import Path

import pytest
from extensions import checks, formulas, links, mathml, suite_pages

import resflow_bench
import suites
from resflow_bench.lab.axes import AXES

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.md")}
REFERENCE = "".join(path.read_text("utf-8") for path in (DOCS / "reference").glob("*.md"))
PACKAGES = [
    *("advise", "data", "fixed_point", "flows", "jacobian", "lab", "layers", "logdet", "models"),
    *("peers", "systems", "theory", "training"),
]


def test_every_page_is_in_the_contents() -> None:
    text = (DOCS / "index.md").read_text("utf-8")
    trees = re.findall(r"```\{toctree\}\n(.*?)```", text, re.DOTALL)
    lines = [line for tree in trees for line in tree.splitlines() if line and line[0] != ":"]
    listed = [re.sub(r".*<(.*)>", r"\1", line) for line in lines]
    assert sorted(listed) == sorted(PAGES - {"index"})


def documented(text: str) -> dict[str, set[str] | None]:
    """Module to the names that its directive shows, None for all, less those that it excludes."""
    found: dict[str, set[str] | None] = {}
    for module, options in re.findall(r"automodule:: ([\w.]+)\n((?:   .*\n)*)", text):
        members = re.search(r":members:(.*)", options)
        excluded = re.search(r":exclude-members:(.*)", options)
        names = set(re.findall(r"\w+", members[1] if members else ""))
        if excluded:
            names = set(import_module(module).__all__) - set(re.findall(r"\w+", excluded[1]))
        found[module] = names or None
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_in_the_reference(package: str) -> None:
    shown = documented(REFERENCE)
    module = import_module(f"resflow_bench.{package}")
    names = shown[module.__name__]
    elsewhere = set() if names is None else set(module.__all__) - names
    others = {
        name
        for other, of in shown.items()
        if other != module.__name__
        for name in (of or getattr(import_module(other), "__all__", ()))
    }
    assert elsewhere <= others


def test_what_is_made_for_a_notebook_is_in_the_reference() -> None:
    public = {name for name in dir(resflow_bench) if name in ("draw", "measure")}
    assert documented(REFERENCE)["resflow_bench.notebook"] == public == {"draw", "measure"}


def test_the_reference_check_sees_a_missing_name() -> None:
    text = REFERENCE.replace("Law, ", "Law, Rademacher, ")
    assert "Rademacher" not in documented(text)["resflow_bench.logdet"]


@pytest.mark.parametrize(
    "module", [formulas, links, suite_pages], ids=lambda module: module.__name__
)
def test_the_examples_of_an_extension_run(module) -> None:
    done = doctest.testmod(module)
    assert done.attempted > 0 == done.failed


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A bound on a norm.", "A bound on a norm."),
        ("tr J, (B,)", r":math:`\operatorname{tr}J`, ``(B,)``"),
        ("||x - x*|| <= K", r":math:`\lVert x-x^{*}\rVert \le K`"),
        ("ln|det(I + J)|", r":math:`\ln\lvert \det(I+J)\rvert`"),
        ("P(N >= k)", r":math:`P(N\ge k)`"),
        ("with v ~ N(0, I).", r"with :math:`v\sim N(0,I)`."),
        ("sum_{k>N} K^k/k", r":math:`\sum_{k>N}K^{k}/k`"),
        ("sqrt(a^2 + b_base)", r":math:`\sqrt{a^{2}+b_{\mathrm{base}}}`"),
        ("the log-det of x's row", "the log-det of x's row"),
        ("`flow`s of a *kind*", r"`flow`\ s of a \*kind\*"),
        ("each r x r square", r"each :math:`r\times r` square"),
    ],
)
def test_formulas_are_found_in_a_sentence(text: str, expected: str) -> None:
    assert formulas.with_mathematics(text) == expected


def test_formulas_are_drawn_with_spaces_around_functions() -> None:
    drawn = mathml.mathml(r"\ln \det A_{\mathrm{base}}")
    assert re.search(r"ln</mi>\s*<mspace[^>]*></mspace>\s*<mi>det</mi>", drawn)
    assert "mspace" not in drawn[drawn.index("<msub>") : drawn.index("</msub>")], "it has two parts"
    with pytest.raises(ValueError, match=r"`\\nothing` cannot be drawn"):
        mathml.mathml(r"\nothing")


@pytest.mark.parametrize("name", ["bias", "peers"])
def test_a_suite_s_section_has_what_the_suite_declares(name: str) -> None:
    suite = suites.load(name)
    text = suite_pages.section(suite, set())
    assert [m for m in suite.claims.metrics if f"| `{m}` |" not in text] == []
    assert [s.name for s in suite.claims.statements if f"*{s.name}*" not in text] == []


def test_a_metric_s_margin_and_an_axis_rule_are_in_words() -> None:
    assert "| `bias` | nat | any change | 0.01 |" in suite_pages.section(suites.load("bias"), set())
    assert suite_pages.rule(AXES["n_terms"]) == "at least 1"


def test_broken_links_and_requests_are_found(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text(
        '<a href="a.html#here">1</a> <a href="a.html#gone">2</a> <a href="b.html">3</a>'
        '<a href="https://example.org">4</a> <script src="https://example.org/x.js"></script>'
    )
    (tmp_path / "a.html").write_text('<p id="here"><img src="data:image/png;base64,">')
    assert list(checks.broken(tmp_path)) == [
        "index.html: a.html#gone",
        "index.html: b.html",
        "index.html: fetches https://example.org/x.js",
    ]
