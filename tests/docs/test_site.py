"""The site of the documentation: all pages and names are in it, formulas are drawn.

`make docs` builds it and checks its links; here are the parts.
"""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

import resflow_bench
import suites
from docs.extensions import checks, formulas, links, mathml, packages, suite_pages
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


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_is_in_the_reference(package: str) -> None:
    """Then its public names are, or `make docs` fails."""
    assert f"```{{package}} resflow_bench.{package}\n" in REFERENCE
    text = packages.directives(f"resflow_bench.{package}")
    assert text.startswith(f".. automodule:: resflow_bench.{package}\n   :members:")


def test_a_name_is_shown_where_it_is_defined_and_a_constant_by_itself() -> None:
    text = packages.directives("resflow_bench.logdet")
    assert ":exclude-members: extra_repr, Law, Linearisation, autograd, cached, dense" in text
    assert text.endswith(".. autodata:: resflow_bench.logdet.LAWS")


def test_a_name_that_no_page_shows_is_found() -> None:
    names = {f"resflow_bench.advise.{name}" for name in ("Advice", "Measured", "advise")}
    assert [*packages.missing(["resflow_bench.advise"], names)] == ["resflow_bench.advise.error_of"]


def test_what_is_made_for_a_notebook_is_in_the_reference() -> None:
    shown = re.search(r"automodule:: resflow_bench.notebook\n   :members: (.*)", REFERENCE)
    assert shown
    assert {*shown[1].split(", ")} == {*dir(resflow_bench)} & {"draw", "measure"}


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
        ("e^z for z < 0, 0 for z > 0", ":math:`e^{z}` for :math:`z<0`, 0 for :math:`z>0`"),
        ("the norm ||.||_p", r"the norm :math:`\lVert\cdot\rVert _{p}`"),
        ("c = <r, s>", r":math:`c=\langle r,s\rangle`"),
        ("A g with a W for each", "A :math:`g` with a :math:`W` for each"),
        ("min_theta -E[x]", r":math:`\min_{\theta}-E[x]`"),
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
