"""CSV for spreadsheets: no text is a formula, and numbers are as they were."""

from __future__ import annotations

import csv
import io
import math

import pandas as pd
import pytest

from resflow_bench.files import csv_text


@pytest.mark.parametrize("text", ["=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "-"])
def test_text_that_a_spreadsheet_would_compute_follows_an_apostrophe(text: str) -> None:
    """In every kind of column of text, and in the names of columns."""
    for kind in (object, "string", "category"):
        frame = pd.DataFrame({"message": pd.Series([text, "a=b", None], dtype=kind), text: 1})
        head, first, second, third = csv.reader(io.StringIO(csv_text(frame), newline=""))
        inert = "'" + text.replace("\r", "\n")
        assert head == ["message", inert]
        assert (first[0], second[0], third[0]) == (inert, "a=b", "")


def test_a_carriage_return_begins_no_line() -> None:
    """pandas writes it without quotes, so that a spreadsheet would see a cell `=1+1`."""
    assert csv_text(pd.DataFrame({"message": ["a\r=1+1"]})) == 'message\n"a\n=1+1"\n'


def test_numbers_stay_numbers() -> None:
    """Negative, infinite, missing, and those that stand in a column of text."""
    frame = pd.DataFrame(
        {
            "value": [-1.5, -math.inf, math.nan],
            "n": pd.array([-3, None, 2], dtype="Int64"),
            "text": ["-2.5e-3", "+4", "-inf"],
        }
    )
    assert csv_text(frame) == frame.to_csv(index=False)
    assert "-1.5,-3,-2.5e-3\n-inf,,+4" in csv_text(frame)
    assert csv_text(pd.DataFrame()) == "\n"
