"""The page of a comparison: what became worse and better, suite by suite, and what is undecided."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from resflow_bench import __version__
from resflow_bench.analysis.tables import label, varying
from resflow_bench.analysis.words import number, with_interval
from resflow_bench.files import csv_text
from resflow_bench.gate.comparison import REASONS, UNCHANGED, UNDECIDED, VERDICTS, Comparison
from resflow_bench.report.figures import write
from resflow_bench.report.page import ENVIRONMENT, MAX_LINES

FOLDED = (UNDECIDED, UNCHANGED)


def write_comparison(comparison: Comparison, names: tuple[str, str], out: Path) -> Path:
    """Write `index.html` and `changes.csv`, each whole or not at all; return the page.

    Args:
        names: of BASE and NEW, as the user wrote them.
        out: folder, made if needed.

    Raises:
        OSError: if `out` cannot be written.
    """
    table, apart = comparison.table, comparison.apart
    suites = dict.fromkeys([*table["suite"], *apart["suite"]])
    sections = [
        {
            "suite": suite,
            "groups": _groups(table[table["suite"] == suite]),
            "apart": apart[apart["suite"] == suite].to_dict("records"),
        }
        for suite in suites
    ]
    write(Path(out) / "changes.csv", csv_text(table))
    page = ENVIRONMENT.get_template("comparison.html.j2").render(
        version=__version__,
        written=datetime.now(UTC),
        base=names[0],
        new=names[1],
        counts=comparison.counts(),
        n_metrics=len(table),
        reasons=[(n, code, REASONS[code]) for code, n in comparison.reasons().items()],
        notes=comparison.notes,
        sections=sections,
    )
    write(Path(out) / "index.html", page)
    return Path(out) / "index.html"


def _groups(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The metrics of a suite by verdict, those without any left out."""
    at = table.columns.get_loc("q") + 1
    shown = varying(table, table.columns[at:])
    parts = [(verdict, table[table["verdict"] == verdict]) for verdict in VERDICTS]
    return [
        {
            "verdict": verdict,
            "is_folded": verdict in FOLDED,
            "count": len(rows),
            "lines": [_line(row, shown) for row in rows.head(MAX_LINES).to_dict("records")],
            "n_more": max(0, len(rows) - MAX_LINES),
        }
        for verdict, rows in parts
        if len(rows)
    ]


def _line(row: dict[Any, Any], shown: list[str]) -> dict[str, str]:
    unit = "" if row["unit"] in ("", "1") else f" ({row['unit'].replace('^2', '²')})"
    return {
        "metric": f"{row['metric']}{unit}",
        "label": label(row, shown),
        "base": number(row["base"]),
        "new": number(row["new"]),
        "difference": with_interval(row["difference"], row["low"], row["high"]),
        "margin": number(row["margin"]),
        "q": "" if pd.isna(row["q"]) else number(row["q"], 2) if row["q"] else "exact",
        "code": row["code"],
    }
