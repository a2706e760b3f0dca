"""The page of a comparison: its numbers are those of the table, and what users wrote is escaped."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
from made_up import SUITES, make_frames

from resflow_bench.analysis.margins import Margins
from resflow_bench.gate.comparison import Comparison, compare
from resflow_bench.report.comparison import write_comparison


def comparison() -> Comparison:
    """Made-up rows against the same with two other numbers and one suite less."""
    base, new = make_frames(), make_frames()
    bias = new["bias"]
    is_up = (bias["metric"] == "bias_expected") & (bias["cell"] == "bias1")
    new["bias"] = bias.assign(value=bias["value"] + is_up, ci_low=bias["ci_low"] + is_up,
                              ci_high=bias["ci_high"] + is_up)  # fmt: skip
    inverse = new["inverse"]
    is_less = (inverse["metric"] == "inverse_error") & (inverse["cell"] == "inverse0")
    factor = 1 - 0.9 * is_less
    columns = ("value", "ci_low", "ci_high")
    new["inverse"] = inverse.assign(**{name: inverse[name] * factor for name in columns})
    del new["euler"]
    return compare([("a", base)], [("a", new)], Margins.of_suites(SUITES))


class Tags(HTMLParser):
    """The tags of a page, each closed in turn."""

    VOID = ("meta", "br", "link", "rect")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_shows_what_changed_and_folds_the_rest(tmp_path: Path) -> None:
    found = comparison()
    assert found.counts()["changed"] == 1 == found.counts()["better"]
    page = write_comparison(found, ("<b>", "run2"), tmp_path / "deep").read_text()
    tags = Tags()
    tags.feed(page)
    assert not tags.open
    assert "<b>)" not in page
    assert "From &lt;b&gt; (BASE) to run2 (NEW)" in page
    open_ = re.findall(r"<details open>\s*<summary>(\d+) (\w+)</summary>", page)
    assert sorted(open_) == [("1", "better"), ("1", "changed")]
    folded = re.findall(r"<details>\s*<summary>(\d+) (\w+)</summary>", page)
    n_unchanged = sum(int(n) for n, verdict in folded if verdict == "unchanged")
    assert n_unchanged == found.counts()["unchanged"]
    assert "euler, only in BASE: <span>the whole suite</span>" in page
    assert "&lt;b&gt;no&lt;/b&gt; &amp; so" in page, "a message of a cell that failed"
    assert "<td>bias_expected (nat)</td>" in page, "a metric with its unit"
    rows = pd.read_csv(tmp_path / "deep" / "changes.csv")
    assert len(rows) == len(found.table)
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == [
        "changes.csv",
        "index.html",
    ]
