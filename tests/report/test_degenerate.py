"""Pages of runs whose numbers are all infinite, zero, or missing."""

from __future__ import annotations

from math import inf, nan
from pathlib import Path

import pandas as pd
import pytest
from made_up import SUITES, make_frames

from resflow_bench.report.page import write_report

NUMBERS = ["value", "standard_error", "ci_low", "ci_high"]
RUN = {"run": "a", "preset": "quick", "seed": 0, "versions": {}, "questions": {}, "arguments": []}


@pytest.fixture(scope="module")
def frames() -> dict[str, pd.DataFrame]:
    return make_frames()


@pytest.mark.filterwarnings("ignore")  # of numpy and matplotlib, at such numbers
@pytest.mark.parametrize("value", [inf, 0.0, nan])
@pytest.mark.parametrize("name", SUITES)
def test_a_page_of_one_value_is_written(
    name: str, value: float, frames: dict[str, pd.DataFrame], tmp_path: Path
) -> None:
    same = {name: frames[name].assign(**dict.fromkeys(NUMBERS, value))}
    page = write_report(same, [RUN], tmp_path, SUITES)
    assert f'id="{name}"' in page.read_text("utf-8")
