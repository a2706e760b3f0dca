"""One self-contained page from the rows of a few runs: no script, no network, two themes."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from resflow_bench import __version__
from resflow_bench.analysis import rules, verdicts
from resflow_bench.analysis.findings import findings
from resflow_bench.analysis.statements import CLAIMS, STATEMENTS
from resflow_bench.analysis.tables import (
    axes,
    label,
    number,
    plain,
    units,
    varying,
    wide,
    with_interval,
)
from resflow_bench.lab.store import BESIDE
from resflow_bench.report import look
from resflow_bench.report.figures import SECTIONS
from resflow_bench.report.section import Picture, Section

MAX_LINES = 60  # of a table or a list on the page; the CSV beside it has them all
PHONE = 1
"""Panels beside each other; a figure is drawn twice, and the page shows the one that fits."""
LAPTOP = 3


REASONS = {
    rules.INFINITE: "the roulette has no variance there, so no interval can be trusted.",
    rules.NO_INTERVAL: "too few draws for one.",
    rules.CHANCE: "a near miss, too small to reject among so many comparisons.",
    "the bound is attained": "theory puts the mean on the bound itself, so its interval straddles "
    "the bound however many draws are made.",
    "interval too wide": "it holds the expected value but reaches further than 10 % of it and than "
    "0.02 nat² (of a bias, 0.1 nat); more draws would decide.",
    "interval across the bound": "it holds the bound; more draws would decide.",
}
"""What each reason for an undecided verdict means."""


def write_report(
    frames: Mapping[str, pd.DataFrame], provenance: Sequence[Mapping[str, Any]], out: Path
) -> Path:
    """Writes `index.html`, `tables/<suite>.csv` and `figures/<name>.svg`; returns the page.

    Args:
        frames: suite to long frame of rows; empty ones are left out.
        provenance: the `run.json` of each run that the rows come from; its `questions`, suite to
            question, head the sections.
        out: folder, made if needed; files of these names are replaced, each whole or not at all.

    Raises:
        OSError: if `out` cannot be written.
    """
    out = Path(out)
    frames = {suite: frame for suite, frame in frames.items() if len(frame)}
    judged, claimed = verdicts.judge(frames), verdicts.judge(frames, CLAIMS)
    questions = _questions(provenance)
    page = _ENVIRONMENT.get_template("page.html.j2").render(
        version=__version__,
        written=datetime.now(UTC),
        findings=findings(frames),
        summary=_summary(judged, STATEMENTS),
        claims=_summary(claimed, CLAIMS),
        totals=judged["verdict"].value_counts().reindex(verdicts.VERDICTS, fill_value=0).to_dict(),
        violated=_violated(judged, frames),
        refuted=_violated(claimed, frames),
        reasons=_reasons(judged),
        sections=[_section(s, frames[s.suite], questions, out) for s in _order(frames)],
        runs=[_run(record) for record in provenance],
    )
    write(out / "index.html", page)
    return out / "index.html"


def _render(picture: Picture, cells: pd.DataFrame, folder: Path) -> dict[str, str] | None:
    """The picture in both widths as inline SVG; the wide one also as a file; None if empty."""
    drawn = {width: picture.draw(cells, width) for width in (LAPTOP, PHONE)}
    if drawn[LAPTOP] is None:
        return None
    svgs = {w: svg(f, f"{picture.name}-{w}") for w, f in drawn.items() if f is not None}
    ground = rf'\1<rect width="100%" height="100%" fill="{look.PAPER}"/>'
    alone = re.sub(r"(<svg[^>]*>)", ground, svgs[LAPTOP], count=1)
    write(folder / f"{picture.name}.svg", alone)
    alt = (picture.draw.__doc__ or "").strip()
    wide_, narrow = (inline(svgs[w], alt) for w in (LAPTOP, PHONE))
    return {"name": picture.name, "wide": wide_, "narrow": narrow, "caption": picture.caption}


def svg(figure: Figure, name: str) -> str:
    """The figure as SVG: the same bytes for the same figure, ids its own, text left as text."""
    text = StringIO()
    with mpl.rc_context({**look.THEME, "svg.hashsalt": name}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()


def inline(markup: str, alt: str) -> Markup:
    """SVG fit to stand in a page: no prolog, no unused ids, in the page's colours and font."""
    body = markup[markup.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', body))
    body = re.sub(r' id="([^"]+)"', lambda m: m[0] if m[1] in used else "", body)
    for color, variable in (
        (look.INK, "ink"),
        (look.MUTED, "muted"),
        (look.LINE, "line"),
        (look.PAPER, "paper"),
    ):
        body = body.replace(color, f"var(--{variable})")
    body = body.replace("'DejaVu Sans'", "var(--sans)")
    body = re.sub(r"\n\s*", "\n", body)
    return Markup(body.replace("<svg", f'<svg role="img" aria-label="{Markup.escape(alt)}"', 1))


def maths(text: str) -> Markup:
    """``A_ii`` and ``Σ_{k>N}`` with their subscripts set as such."""
    escaped = str(Markup.escape(text))
    return Markup(re.sub(r"_(?:\{(.*?)\}|([A-Za-z]+))", r"<sub>\1\2</sub>", escaped))


def write(path: Path, text: str) -> None:
    """Whole or not at all: a reader never meets half a page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)


def _order(frames: Mapping[str, pd.DataFrame]) -> list[Section]:
    known = [section for section in SECTIONS if section.suite in frames]
    names = {section.suite for section in known}
    return known + [Section(suite) for suite in frames if suite not in names]


def _questions(provenance: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Suite to question, as the newest run that tells it; runs of long ago tell none."""
    told = (record.get("questions", {}) for record in provenance)
    return {suite: question for record in told for suite, question in record.items()}


def _section(
    section: Section, frame: pd.DataFrame, questions: Mapping[str, str], out: Path
) -> dict[str, Any]:
    cells = wide(frame)
    rows = frame.drop(columns=list(BESIDE), errors="ignore")
    write(out / "tables" / f"{section.suite}.csv", rows.to_csv(index=False))
    pictures = (_render(picture, cells, out / "figures") for picture in section.pictures)
    broken = cells[cells["status"] != "ok"]
    shown = varying(cells, axes(frame))
    return {
        "suite": section.suite,
        "question": questions.get(section.suite),
        "n_cells": len(cells),
        "n_rows": len(frame),
        "pictures": [picture for picture in pictures if picture],
        "table": _table(cells, shown, section.metrics, units(frame)),
        "broken": [
            {"label": label(cell, shown), "status": cell["status"], "message": cell["message"]}
            for _, cell in broken.head(MAX_LINES).iterrows()
        ],
        "n_broken": len(broken),
    }


def _table(
    cells: pd.DataFrame, shown: list[str], metrics: Iterable[str], unit: Mapping[str, str]
) -> dict[str, Any]:
    cells = cells[cells["status"] == "ok"]
    if "model" in cells:
        cells = cells.sort_values("model", key=lambda m: m != "trained", kind="stable")
    names = [m for m in metrics if m in cells] or [m for m in unit if m in cells]
    lines = [
        [*(plain(cell[a]) for a in shown), *(_measured(cell, m) for m in names)]
        for _, cell in cells.head(MAX_LINES).iterrows()
    ]
    heads = [*shown, *(_head(m, unit.get(m, "")) for m in names)]
    return {"heads": heads, "lines": lines, "n_axes": len(shown), "n_more": len(cells) - len(lines)}


def _head(metric: str, unit: str) -> str:
    """A column's head; a pure number has no unit worth a word."""
    return f"{metric} ({unit.replace('^2', '²')})" if unit not in ("", "1", metric) else metric


def _measured(cell: pd.Series, metric: str) -> str:
    """With its interval, unless that is rounding alone."""
    value, low, high = (cell[f"{metric}{end}"] for end in ("", "_low", "_high"))
    rounding = high - low <= 2 * rules.ROUNDING * abs(value)
    return number(value) if rounding else with_interval(value, low, high)


def _summary(judged: pd.DataFrame, statements: Iterable[rules.Statement]) -> list[dict[str, Any]]:
    by_name = {(s.suite, s.name): s for s in statements}
    lines = verdicts.summary(judged).to_dict("records")
    return [line | vars(by_name[line["suite"], line["statement"]]) for line in lines]


def _reasons(judged: pd.DataFrame) -> list[dict[str, Any]]:
    counts = judged[judged["verdict"] == "undecided"]["reason"].value_counts()
    return [{"says": r, "count": n, "means": REASONS.get(r, "")} for r, n in counts.items()]


def _violated(judged: pd.DataFrame, frames: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """The violations, each with the words for its cell, and how many more there are."""
    cells = {suite: wide(frame).set_index("cell") for suite, frame in frames.items()}
    lines = judged[judged["verdict"] == "violated"].to_dict("records")
    for line in lines[:MAX_LINES]:
        suite = cells[line["suite"]]
        line["rate"] = (
            "exact" if pd.isna(line["q"]) else number(line["q"], 2) if line["q"] else "< 1e-300"
        )
        line["label"] = label(suite.loc[line["cell"]], varying(suite, axes(suite)))
    return {"lines": lines[:MAX_LINES], "n_more": len(lines[MAX_LINES:])}


def _run(record: Mapping[str, Any]) -> dict[str, Any]:
    """A run's record as lines to read, nested names joined by a dot, and the command for it."""
    facts = {name: fact for name, fact in record.items() if name != "questions"}
    flat = pd.json_normalize(facts).iloc[0]
    facts = {k: " ".join(map(str, v)) if isinstance(v, list) else str(v) for k, v in flat.items()}
    command = shlex.join(["resflow-bench", *map(str, record["arguments"])])
    return {"name": record["run"], "facts": facts, "command": command}


_ENVIRONMENT = Environment(
    loader=PackageLoader("resflow_bench.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters["maths"] = maths
