"""The page of a comparison of two runs."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from resflow_bench import __version__
from resflow_bench.analysis.tables import heading, label, varying
from resflow_bench.analysis.words import number, with_interval
from resflow_bench.files import csv_text, write_whole
from resflow_bench.gate.comparison import REASONS, UNCHANGED, UNDECIDED, VERDICTS, WORSE, Comparison
from resflow_bench.gate.judge import FALSE_DISCOVERIES
from resflow_bench.report.page import ASSETS, ENVIRONMENT, MAX_CELLS

FOLDED = (UNDECIDED, UNCHANGED)
HEADS = ["cell", "metric", "because", "BASE", "NEW", "NEW − BASE", "margin", "z"]
N_WORDS = 3  # the first heads, which are no numbers


def write_comparison(comparison: Comparison, names: tuple[str, str], out: Path) -> Path:
    """Write `index.html` and `changes.csv`, every metric of every cell in both; return the page.

    Args:
        names: of BASE and of NEW.
        out: folder, made if needed; files of these names are replaced, each whole or not at all.

    Raises:
        OSError: if `out` cannot be written.
    """
    table = comparison.table
    page = ENVIRONMENT.get_template("comparison.html.j2").render(
        assets=ASSETS,
        version=__version__,
        written=datetime.now(UTC),
        base=names[0],
        new=names[1],
        rate=f"{100 * FALSE_DISCOVERIES:g} %",
        counts=comparison.counts(),
        notes=comparison.notes,
        reasons=[
            {"code": code, "n": n, "means": REASONS[code]}
            for code, n in comparison.reasons().items()
        ],
        apart=comparison.apart.to_dict("records"),
        sections=[_section(str(suite), some) for suite, some in table.groupby("suite", sort=False)],
    )
    write_whole(Path(out) / "changes.csv", csv_text(table))
    return write_whole(Path(out) / "index.html", page)


def _section(suite: str, table: pd.DataFrame) -> dict[str, Any]:
    """The metrics of a suite by verdict; verdicts that none has are left out."""
    shown = varying(table, list(table.columns[table.columns.get_loc("q") + 1 :]))
    counts = table["verdict"].value_counts().reindex(VERDICTS, fill_value=0).to_dict()
    groups = [
        {"verdict": verdict, "is_folded": verdict in FOLDED, "count": counts[verdict]}
        | {"table": _table(suite, table[table["verdict"] == verdict], shown)}
        for verdict in VERDICTS
        if counts[verdict]
    ]
    return {"suite": suite, "n_worse": counts[WORSE], "groups": groups}


def _table(suite: str, table: pd.DataFrame, shown: list[str]) -> dict[str, Any]:
    lines = [
        {
            "id": f"{suite}-{row['cell']}-{row['metric']}",
            "is_violated": row["verdict"] == WORSE,
            "values": _values(row, label(row, shown)),
        }
        for row in table.head(MAX_CELLS).to_dict("records")
    ]
    n_more = len(table) - len(lines)
    return {"heads": HEADS, "n_axes": N_WORDS, "lines": lines, "n_more": n_more}


def _values(row: Mapping[Any, Any], cell: str) -> list[tuple[str, float | None]]:
    words = [cell, heading(row["metric"], row["unit"]).replace("^2", "²"), row["code"]]
    numbers = [row[name] for name in ("base", "new", "difference", "margin", "z")]
    texts = [
        *(number(value) for value in numbers[:2]),
        with_interval(row["difference"], row["low"], row["high"]),
        *("" if pd.isna(value) else f"{value:.3g}" for value in numbers[3:]),
    ]
    return [
        *((text, None) for text in words),
        *((t, None if pd.isna(v) else v) for t, v in zip(texts, numbers, strict=True)),
    ]
