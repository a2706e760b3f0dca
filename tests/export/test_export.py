"""`export`: each format read back by a reader that is not ours, and compared with the rows."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_up import SUITES, make_frames
from matplotlib.mathtext import MathTextParser

from resflow_bench.analysis.words import with_interval
from resflow_bench.export import FORMATS
from resflow_bench.export.latex import escaped, maths
from resflow_bench.export.rows import ExportedRows
from resflow_bench.lab.store import BESIDE

RUN = "quick-20260101-000000-abcd"
HOSTILE = r"50 % of a_b & #1 {x} \input ~ ^ $y$ <z>"


@pytest.fixture(scope="module")
def rows() -> ExportedRows:
    return ExportedRows(make_frames(), SUITES, (RUN,))


def write(layout: str, rows: ExportedRows, out: Path) -> list[Path]:
    files: list[Path] = import_module(f"resflow_bench.export.{FORMATS[layout]}").write(rows, out)
    assert {file.parent for file in files} == {out}
    assert sorted(files) == sorted(out.iterdir()), "neither halves nor files that are not named"
    return files


def finite_rows(rows: ExportedRows) -> pd.DataFrame:
    every = pd.concat(rows.frames.values(), ignore_index=True)
    return every[(every["status"] == "ok") & np.isfinite(every["value"])]


def test_csv_and_parquet_have_every_row(rows: ExportedRows, tmp_path: Path) -> None:
    for layout, read in (("csv", pd.read_csv), ("parquet", pd.read_parquet)):
        (tmp_path / layout).mkdir()
        assert len(write(layout, rows, tmp_path / layout)) == len(rows.frames)
        for suite, frame in rows.frames.items():
            got = read(tmp_path / layout / f"{suite}.{layout}")
            beside = BESIDE if layout == "csv" else ()
            assert list(got.columns) == [name for name in frame if name not in beside]
            np.testing.assert_array_equal(got["value"], frame["value"])
            assert got["cell"].tolist() == frame["cell"].tolist()


def test_text_in_csv_is_no_formula(rows: ExportedRows, tmp_path: Path) -> None:
    frame = rows.frames["bias"].assign(model="=1+1")
    write("csv", ExportedRows({"bias": frame}, SUITES, (RUN,)), tmp_path)
    assert set(pd.read_csv(tmp_path / "bias.csv")["model"]) == {"'=1+1"}


def test_json_has_every_row(rows: ExportedRows, tmp_path: Path) -> None:
    write("json", rows, tmp_path)
    for suite, frame in rows.frames.items():
        got = json.loads((tmp_path / f"{suite}.json").read_text())
        values = [math.nan if row["value"] is None else float(row["value"]) for row in got]
        np.testing.assert_array_equal(values, frame["value"])


def test_a_table_has_the_cells_their_intervals_and_what_varies(rows: ExportedRows) -> None:
    """By eye: the half-width is 0.02, the model varies, and the dimension does not."""
    table = rows.table("bias", with_interval)
    assert list(table.columns[:2]) == ["truncation", "model"]
    assert "dim" not in table
    line = table[table["model"] == "trained"].iloc[-1]
    assert line["bias (nat)"] == "0.004 [−0.016, 0.024]"
    assert line["bias_expected (nat)"] == "0"


def test_latex_is_a_table_of_booktabs_and_nothing_else(rows: ExportedRows, tmp_path: Path) -> None:
    frames = rows.frames | {"bias": rows.frames["bias"].replace({"model": {"trained": HOSTILE}})}
    parse = MathTextParser("agg").parse
    for file in write("latex", ExportedRows(frames, SUITES, (RUN,)), tmp_path):
        text = file.read_text()
        assert text.startswith(f"% 99 % intervals; runs {RUN}\n\\begin{{")
        for rule in ("\\toprule", "\\midrule", "\\bottomrule"):
            assert rule in text
        body = [line for line in text.splitlines() if line.endswith("\\\\")]
        n_columns = len(re.search(r"\\begin\{\w+\}\{([lr]+)\}", text)[1])
        lines = [line for line in body if "multicolumn" not in line]
        counts = {len(re.findall(r"(?<!\\)&", line)) + 1 for line in lines}
        assert counts == {n_columns}, file.name
        assert not re.findall(r"(?<!\\)[#%]|(?<![\\$\w{])_", "".join(body))
        for formula in set(re.findall(r"(?<!\\)\$[^$]+(?<!\\)\$", "".join(body))):
            parse(formula.replace("{,}", ","))
    assert (
        r"50 \% of a\_b \& \#1 \{x\} \textbackslash{}input" in (tmp_path / "bias.tex").read_text()
    )


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="there is no LaTeX")
def test_latex_compiles(rows: ExportedRows, tmp_path: Path) -> None:
    files = write("latex", rows, tmp_path)
    document = "\n".join(rf"\input{{{file.stem}}}\clearpage" for file in files)
    head = r"\documentclass{article}\usepackage[utf8]{inputenc}\usepackage{booktabs,longtable}"
    (tmp_path / "all.tex").write_text(rf"{head}\begin{{document}}{document}\end{{document}}")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True, timeout=200)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.591 [0.588, 0.594]", r"$0.591\ [0.588, 0.594]$"),
        ("1,240", "$1{,}240$"),
        ("−4.1e-7", r"$-4.1 \times 10^{-7}$"),
        ("1.10 [1.06, ∞]", r"$1.10\ [1.06, \infty]$"),
        ("–", "--"),
    ],
)
def test_a_number_in_latex(text: str, expected: str) -> None:
    assert maths(text) == expected


def test_special_characters_in_latex() -> None:
    assert escaped("\\&%$#_{}~^") == (
        r"\textbackslash{}\&\%\$\#\_\{\}\textasciitilde{}\textasciicircum{}"
    )


def test_markdown_has_a_line_for_each_finished_cell(rows: ExportedRows, tmp_path: Path) -> None:
    frames = rows.frames | {"bias": rows.frames["bias"].replace({"model": {"trained": "a|b"}})}
    write("markdown", ExportedRows(frames, SUITES, (RUN,)), tmp_path)
    for suite, frame in frames.items():
        lines = (tmp_path / f"{suite}.md").read_text().splitlines()
        assert len(lines) == 2 + frame[frame["status"] == "ok"]["cell"].nunique()
        assert len({line.count("|") for line in lines}) == 1


def test_the_directions_of_github_action_benchmark(rows: ExportedRows, tmp_path: Path) -> None:
    """Fields and types are those that its documentation shows; each metric is in its file."""
    write("github-action-benchmark", rows, tmp_path)
    expected = finite_rows(rows)
    for name, worse in (("smaller", "more"), ("bigger", "less")):
        entries = json.loads((tmp_path / f"{name}-is-better.json").read_text())
        declared = {
            (suite, metric)
            for suite in SUITES
            for metric, margin in SUITES[suite].claims.metrics.items()
            if margin.worse == worse
        }
        pairs = zip(expected["suite"], expected["metric"], strict=True)
        of = expected[[pair in declared for pair in pairs]]
        assert [entry["value"] for entry in entries] == of["value"].tolist()
        assert len({entry["name"] for entry in entries}) == len(entries)
        for entry in entries:
            assert entry.keys() <= {"name", "unit", "value", "range", "extra"}
            assert type(entry["value"]) is float
            assert RUN in entry["extra"]
    bigger = json.loads((tmp_path / "bigger-is-better.json").read_text())
    assert any("flops_fraction" in e["name"] and e["range"] == "± 0.02" for e in bigger)


def test_bencher_metric_format(rows: ExportedRows, tmp_path: Path) -> None:
    """By the schema of its documentation: benchmark, measure, value and limits, all finite."""
    write("bencher", rows, tmp_path)
    benchmarks = json.loads((tmp_path / "bencher.json").read_text())
    values = []
    for name, measures in benchmarks.items():
        assert 0 < len(name) <= 1024
        for measure, numbers in measures.items():
            assert len(measure) <= 64
            assert {"value"} <= numbers.keys() <= {"value", "lower_value", "upper_value"}
            assert all(map(math.isfinite, numbers.values()))
            values.append(numbers["value"])
    assert sorted(values) == sorted(finite_rows(rows)["value"])


@pytest.mark.parametrize("layout", FORMATS)
def test_rows_that_all_failed_are_exported(layout: str, tmp_path: Path) -> None:
    frame = make_frames()["inverse"].tail(1)
    write(layout, ExportedRows({"inverse": frame}, SUITES, (RUN,)), tmp_path)
