"""Directives that list axes and suites as the source declares them."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from sphinx.util.docutils import SphinxDirective

import suites
from docs.extensions.formulas import with_mathematics
from resflow_bench.cli.choices import rule_of
from resflow_bench.lab.axes import AXES, Axis

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from docutils import nodes
    from sphinx.application import Sphinx

    from resflow_bench.lab import Metric, Suite

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results"
NOTATION = {
    **{"−": "-", "≤": "<=", "≥": ">=", "‖": "||", "∘": " o ", "′": "'", "x̂": "xhat"},
    **{"Σ": "sum", "∫": "int ", "∂": "partial ", "τ": "tau", "ρ": "rho", "ε": "epsilon"},
    **{"ᵀ": "^T ", "ᵏ": "^k ", "ⁿ": "^n ", "ᵉ": "^e ", "²": "^2 ", "⁻¹": "^-1 "},
    **{"₁": "_1", "₂": "_2", "Kx": "K x", "√d": "sqrt(d)"},
}
"""Signs of the page's sentences in the notation of docstrings."""


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the directives `axes` and `suites`."""
    app.add_directive("axes", Axes)
    app.add_directive("suites", Suites)
    return {"parallel_read_safe": True}


class Axes(SphinxDirective):
    """A table of all axes."""

    def run(self) -> list[nodes.Node]:
        rows = [(f"`{a.name}`", a.meaning, rule(a), f"`{a.example}`") for a in AXES.values()]
        text = table(("axis", "meaning", "values", "for example"), rows)
        return self.parse_text_to_nodes(text)


class Suites(SphinxDirective):
    """The words that suites share, and a section for every suite."""

    def run(self) -> list[nodes.Node]:
        loaded = [suites.load(name) for name in suites.PAGE]
        counts = Counter(term for suite in loaded for term in suite.claims.glossary)
        shared = {term for term, count in counts.items() if count > 1}
        says = {t: s for suite in loaded for t, s in suite.claims.glossary.items() if t in shared}
        parts = [f"## Words\n\n{words(says)}", *(section(suite, shared) for suite in loaded)]
        text = "\n\n".join(parts)
        return self.parse_text_to_nodes(text, allow_section_headings=True)


def rule(axis: Axis) -> str:
    """The words of an axis for its values."""
    text = rule_of(axis) or axis.rule
    return escaped(re.sub("^(must (be|lie|name)|may be) ", "", text))


def section(suite: Suite, shared: Collection[str]) -> str:
    """The section of a suite, in Markdown; `shared` words are explained elsewhere."""
    own = {term: says for term, says in suite.claims.glossary.items() if term not in shared}
    return "\n\n".join(
        [
            f"## {suite.name}",
            f"**{suite.question}**",
            f"Cells: {sizes(suite)}. Axes: {', '.join(f'`{name}`' for name in suite.axes)}.",
            *metrics(suite),
            *statements(suite),
            words(own),
        ]
    )


def sizes(suite: Suite) -> str:
    """The number of cells of each preset."""
    return ", ".join(f"{len(suite.cells(preset))} {preset}" for preset in suite.presets)


def metrics(suite: Suite) -> Iterator[str]:
    """The table of a suite's metrics, those without a margin last."""
    units = units_of(suite.name)
    names = dict.fromkeys([*suite.claims.metrics, *suite.table, *units])
    rows = [
        (f"`{name}`", units.get(name, ""), *margin(suite.claims.metrics.get(name)))
        for name in names
    ]
    if rows:
        yield table(("metric", "unit", "worse is", "margin of the gate"), rows)


def units_of(suite: str) -> dict[str, str]:
    """Metric to unit, from the stored rows that come with the source."""
    folders = [RESULTS / "baseline" / suite, *RESULTS.glob(f"published/**/{suite}")]
    frames = [pd.read_parquet(f, columns=["metric", "unit"]) for f in folders if f.is_dir()]
    rows = pd.concat(frames).dropna() if frames else pd.DataFrame({"metric": [], "unit": []})
    return dict(zip(rows["metric"], rows["unit"], strict=True))


def margin(metric: Metric | None) -> tuple[str, str]:
    """The worse direction of a metric and its margin, in words."""
    if metric is None:
        return "", "not judged"
    parts = [f"{100 * metric.rtol:g} %"] * bool(metric.rtol)
    parts += [f"{metric.atol:g}"] * bool(metric.atol)
    worse = {"more": "more", "less": "less", "other": "any change"}[metric.worse]
    return worse, " + ".join(parts) or "none"


def statements(suite: Suite) -> Iterator[str]:
    """The statements that a verdict is given on, and the disputed ones."""
    for title, several in (
        ("Statements", suite.claims.statements),
        ("Disputed statements", suite.claims.disputed),
    ):
        if several:
            lines = [
                f"- *{one.name}*: {in_markdown(one.says)}. {in_markdown(one.source)}."
                for one in several
            ]
            yield f"{title}:\n\n" + "\n".join(lines)


def words(glossary: Mapping[str, str]) -> str:
    """A list of terms and their meanings."""
    return "\n".join(f"- `{term}`: {in_markdown(says)}" for term, says in glossary.items())


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A table in Markdown."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escaped(text: str) -> str:
    """The text with what Markdown would take for markup escaped."""
    return text.replace("_", r"\_").replace("*", r"\*").replace("|", r"\|")


def in_markdown(text: str) -> str:
    r"""A sentence of the page in Markdown, its formulas as mathematics.

    >>> print(in_markdown("‖A‖₂ ≤ d τ_N(K), so small"))
    {math}`\lVert A\rVert _{2}\le d\tau_{N}(K)`, so small
    """
    plain = re.sub("|".join(NOTATION), lambda sign: NOTATION[sign[0]], text)
    return with_mathematics(plain).replace(":math:`", "{math}`").replace("\\ ", "")
