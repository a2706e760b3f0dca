"""A comparison as text, Markdown, JSON or CSV."""

from __future__ import annotations

import math
from textwrap import fill

import pandas as pd

from resflow_bench.analysis.layouts import all_rows, json_text, objects, table_text
from resflow_bench.analysis.tables import label, varying
from resflow_bench.analysis.words import terminal_width
from resflow_bench.files import csv_text
from resflow_bench.gate.comparison import REASONS, UNCHANGED, Comparison


def words(comparison: Comparison, layout: str) -> str:
    """The comparison in layout text, markdown, json or csv, ending in a newline.

    csv and json have every metric of every cell in both; text and markdown leave out those that are
    unchanged, and count them.
    """
    table = comparison.table
    if layout == "csv":
        return csv_text(table)
    if layout == "json":
        return json_text(
            {
                **{"counts": comparison.counts(), "reasons": comparison.reasons()},
                **{"notes": comparison.notes, "apart": objects(comparison.apart)},
                "rows": objects(table),
            }
        )
    shown = table[table["verdict"] != UNCHANGED]
    shown = shown.drop(columns=["cell", "margin", "q"]).rename(columns={"code": "because"})
    blocks = []
    if len(shown):
        is_text = layout == "text"
        blocks.append(all_rows(shown) if is_text else table_text(_named(shown), layout))
    mark = "" if layout == "text" else "- "
    lines = [f"undecided, {n}: {code}: {REASONS[code]}" for code, n in comparison.reasons().items()]
    lines += [
        f"{line.what}, {line.suite}, {line.n} cell{'s' * (line.n > 1)}: {line.says}"
        for line in comparison.apart.itertuples()
    ]
    lines += [f"note: {note}" for note in comparison.notes]
    if lines:
        blocks.append("\n".join(_wrapped(mark + line, layout) for line in lines))
    counts = ", ".join(f"{n:,} {verdict}" for verdict, n in comparison.counts().items())
    end = f"compare: {counts}, of {len(table):,} metrics of cells in both."
    blocks.append(_wrapped(end, layout))
    if layout == "markdown":
        blocks.reverse()
    return "\n\n".join(blocks) + "\n"


def _wrapped(line: str, layout: str) -> str:
    width = terminal_width() if layout == "text" else None
    if width is None:
        return line
    return fill(line, width, break_long_words=False, break_on_hyphens=False)


def _named(table: pd.DataFrame) -> pd.DataFrame:
    """The table with each cell in words, by the axes that differ in its suite, for its axes."""
    kept = table.columns[: table.columns.get_loc("z") + 1]
    axes = [name for name in table if name not in kept]
    parts = [
        cells[kept].assign(cell=[label(cell, shown) for _, cell in cells.iterrows()])
        for _, cells in table.groupby("suite", sort=False)
        for shown in [varying(cells, axes)]
    ]
    named = pd.concat(parts).loc[table.index].astype(object)
    return named.where(named.notna() & (named != ""), math.nan)
