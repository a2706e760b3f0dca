"""The page's numbers are the stored rows': recomputed from Parquet by plain pandas."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pandas as pd
import pytest
from made_up import SUITES

from resflow_bench.lab.store import Run, merge
from resflow_bench.report.page import write_report

BASELINE = Path(__file__).parents[2] / "results" / "baseline"
NUMBER = re.compile(r"[−-]?[\d,]*\.?\d+(?:e[−-]?\d+)?")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    frames = merge([Run(BASELINE)])
    return write_report(frames, [], tmp_path_factory.mktemp("numbers"), SUITES)


@pytest.fixture(scope="module")
def stored() -> dict[str, pd.DataFrame]:
    folders = [folder for folder in BASELINE.iterdir() if folder.is_dir()]
    return {folder.name: pd.read_parquet(folder) for folder in folders}


def shown(text: str) -> Iterator[tuple[str, str, str, float, list[float]]]:
    """suite, cell, metric, the full number and those in the text, of every number in a table."""
    for section in re.findall(r"<section>.*?</section>", text, flags=re.DOTALL):
        suite = re.search(r'<h2 id="(\w+)"', section)[1]
        table = re.search(r'<table class="data sortable rows">.*?</table>', section, re.DOTALL)[0]
        heads = [unescape(head) for head in re.findall(r"<th(?: [^>]*)?>(.*?)</th>", table)]
        for cell, line in re.findall(rf'<tr id="{suite}-(\w+)"[^>]*>(.*?)</tr>', table):
            values = re.findall(r"<td([^>]*)>(.*?)</td>", line)
            for head, (attributes, said) in zip(heads, values, strict=True):
                if full := re.search(r'data-v="([^"]*)"', attributes):
                    numbers = NUMBER.findall(said.replace("∞", ""))
                    parsed = [float(n.replace(",", "").replace("−", "-")) for n in numbers]
                    yield suite, cell, head.split(" (")[0], float(full[1]), parsed


def test_every_number_in_a_table_is_a_stored_one(page, stored) -> None:
    """To the last bit in `data-v`; as text, value and limits within their rounding."""
    rows = pd.concat(stored.values()).query("status == 'ok'").set_index(["suite", "cell", "metric"])
    n = 0
    for suite, cell, metric, full, parsed in shown(page.read_text("utf-8")):
        row = rows.loc[(suite, cell, metric)]
        assert full == row["value"]
        limits = [row["value"], row["ci_low"], row["ci_high"]][: len(parsed)]
        width = row["ci_high"] - row["ci_low"] if len(parsed) == 3 else 0.0
        assert parsed == pytest.approx(limits, rel=5.1e-3, abs=0.06 * width)
        n += 1
    assert n > 200


def test_the_counts_of_cells_are_those_of_the_rows(page, stored) -> None:
    text = page.read_text("utf-8")
    assert f"the {sum(rows['cell'].nunique() for rows in stored.values()):,} cells" in text
    for suite, rows in stored.items():
        assert f"{rows['cell'].nunique()} cells, {len(rows)} rows" in text, suite


def test_the_csv_has_every_row(page, stored) -> None:
    for suite, rows in stored.items():
        read = pd.read_csv(page.parent / "tables" / f"{suite}.csv")
        both = read.merge(rows, on=["cell", "metric"], suffixes=("", "_stored"))
        assert len(read) == len(rows) == len(both)
        assert both["value"].to_numpy() == pytest.approx(both["value_stored"], rel=0, nan_ok=True)
