"""The page and its figures, from made-up rows: plausible numbers, every suite and status."""

from __future__ import annotations

import base64
import hashlib
import math
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import toys
from made_up import SUITES, make_frames, rows
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from resflow_bench.analysis.findings import findings
from resflow_bench.analysis.rules import REASONS, AtMost
from resflow_bench.analysis.tables import wide
from resflow_bench.analysis.verdicts import judge
from resflow_bench.lab import Claims, Finding, Statement
from resflow_bench.lab.plan import Plan
from resflow_bench.report import style
from resflow_bench.report.figures import svg
from resflow_bench.report.origin import repository
from resflow_bench.report.page import write_report
from resflow_bench.report.picture import Picture
from suites.efficiency.figures import error_against_time, variance_time, winners
from suites.variance.figures import bounds, over_closed_form, roulette

PICTURES = {
    picture.name: (name, picture.draw)
    for name, suite in SUITES.items()
    for picture in import_module(suite.figures).PICTURES
}

RUN = {
    "run": "20260101-quick",
    "preset": "quick",
    "seed": 7,
    "versions": {"python": "3.11", "torch": "2.13.0"},
    "questions": {name: f"What of <{name}>?" for name in SUITES},
    "arguments": ["run", "--preset", "quick", "--set", "roulette=geometric(0.5)"],
}


@pytest.fixture(scope="module")
def frames() -> dict[str, pd.DataFrame]:
    return make_frames()


@pytest.fixture(scope="module")
def page(frames: dict[str, pd.DataFrame], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(frames, [RUN], tmp_path_factory.mktemp("report"), SUITES)


VOID = {"meta", "link", "br", "img", "hr"}


class Outline(HTMLParser):
    """What a page loads, what is open at its end, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids += [given["id"]] if given.get("id") else []
        if tag == "a":
            self.links.append(given["href"] or "")
        else:
            self.loads += [v for k, v in attrs if k in ("src", "href", "xlink:href") and v]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def outline(page: Path) -> Outline:
    parser = Outline()
    parser.feed(page.read_text(encoding="utf-8"))
    assert parser.open == []
    return parser


def test_the_page_loads_nothing(page: Path, outline: Outline) -> None:
    text = page.read_text(encoding="utf-8")
    assert all(load.startswith(("#", "data:image/png;base64,")) for load in outline.loads)
    (script,) = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    assert len(script.encode()) <= 8_000
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'\">" in text
    assert " style=" not in text  # the policy would not apply it
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert len(text.encode()) < 2_000_000


def test_every_link_leads_somewhere(page: Path, outline: Outline) -> None:
    for link in outline.links:
        here = link.startswith("#") and link[1:] in outline.ids
        assert here or link == repository() or (page.parent / link).is_file(), link
    assert len(outline.ids) == len(set(outline.ids))
    local = {load[1:] for load in outline.loads if load.startswith("#")}
    assert local <= set(outline.ids)


def test_the_page_says_what_was_found(
    frames: dict[str, pd.DataFrame], outline: Outline, page: Path
) -> None:
    said = findings(frames, SUITES)
    assert len(said) == 3
    for text in [*said, *RUN["questions"].values(), "resflow-bench run --preset quick"]:
        assert text in outline.text
    assert "stagnated" in outline.text  # the one violation, named
    assert "<b>no</b> & so" in outline.text  # a message is text, not markup
    assert "infinite variance" in outline.text
    assert "power iteration" in outline.text
    assert "open above" not in outline.text  # no interval here is


def test_every_doubt_is_explained(frames: dict[str, pd.DataFrame], outline: Outline) -> None:
    reasons = set(judge(frames, SUITES)["reason"]) - {""}
    assert reasons
    for reason in reasons:
        assert f"{reason}: {REASONS[reason]}" in " ".join(outline.text.split())


def test_a_wide_interval_is_told_the_difference_that_would_matter(
    frames: dict[str, pd.DataFrame], tmp_path: Path
) -> None:
    """In the metric's unit; where nothing is too wide the sentence is not there."""
    wide = frames["variance"].copy()
    sampled = wide["metric"].eq("variance") & (wide["ci_high"] > wide["ci_low"])
    assert sampled.any()
    wide.loc[sampled, "ci_high"] += 1e6
    for some, expected in ((wide, True), (frames["lipschitz"], False)):
        suite = some["suite"].iloc[0]
        page = write_report({suite: some}, [RUN], tmp_path / suite, SUITES).read_text("utf-8")
        assert ("Worth acting upon is a difference of 0.02 nat (variance)." in page) == expected


def test_the_tables_beside_it_are_the_rows(frames: dict[str, pd.DataFrame], page: Path) -> None:
    for suite, frame in frames.items():
        read = pd.read_csv(page.parent / "tables" / f"{suite}.csv", keep_default_na=False)
        assert read["cell"].tolist() == frame["cell"].tolist()


def test_figures_beside_the_page_stand_alone(page: Path) -> None:
    for name in PICTURES:
        text = (page.parent / "figures" / f"{name}.svg").read_text(encoding="utf-8")
        assert text.startswith("<?xml")
        assert "var(--" not in text


def test_the_same_rows_give_the_same_figures(
    frames: dict[str, pd.DataFrame], page: Path, tmp_path: Path
) -> None:
    again = write_report(frames, [RUN], tmp_path, SUITES)
    for figure in (page.parent / "figures").iterdir():
        assert (again.parent / "figures" / figure.name).read_bytes() == figure.read_bytes()


@pytest.mark.parametrize("suite", ["bias", "variance", "inverse", "lipschitz", "throughput"])
def test_a_partial_run_has_a_page(
    suite: str, frames: dict[str, pd.DataFrame], tmp_path: Path
) -> None:
    text = write_report({suite: frames[suite]}, [], tmp_path, SUITES).read_text(encoding="utf-8")
    assert f'id="{suite}"' in text


def test_a_run_of_failures_has_a_page(frames: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    only = frames["inverse"].query("status == 'failed'")
    text = write_report(
        {"inverse": only, "bias": only.head(0)}, [RUN], tmp_path, SUITES
    ).read_text()
    assert "1 of 1 cells gave no number" in text
    assert "No statement is about what was measured" in text


@pytest.mark.parametrize(
    ("record", "question"),
    [
        (RUN | {"questions": {"later": "What is new & odd?"}}, "What is new &amp; odd?"),
        (RUN, None),
    ],
    ids=["told", "of an older run"],
)
def test_a_suite_that_the_page_does_not_know_has_its_question_and_a_table(
    record: dict[str, Any], question: str | None, tmp_path: Path
) -> None:
    cell = {"model": "init", "colour": "green"}, {"novelty": (1.0, 0.1), "oddity": 7.0}
    frame = rows("later", iter([cell]))
    text = write_report({"later": frame}, [record], tmp_path, SUITES).read_text()
    (section,) = re.findall(r"<section>.*?</section>", text, flags=re.DOTALL)
    assert '<h2 id="later">later<a' in section
    asked = re.findall(r'<p class="question">(.*?)</p>', section)
    assert asked == ([question] if question else [])  # or its name alone, which heads it
    assert "<details open>" in section
    assert "could not be loaded" in section
    heads = re.findall(r"<th(?: [^>]*)?>(.*?)</th>", section)
    values = re.findall(r"<td.*?>(.*?)</td>", section)
    assert heads == ["model", "novelty (nat)", "oddity (nat)"]
    assert values == ["init", "1.00 [0.90, 1.10]", "7.00"]
    assert 'href="tables/later.csv"' in section
    assert (tmp_path / "tables" / "later.csv").is_file()


def test_a_suite_of_the_user_s_own_has_figures_verdicts_and_findings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All from its own data; its table begins with the cells that it names first."""

    def draw(cells: pd.DataFrame, columns: int) -> Figure:
        """Nothing but a frame."""
        figure = Figure((columns, 1))
        figure.subplots()
        return figure

    figures = ModuleType("mine.figures")
    figures.PICTURES = (Picture("novelty", draw, "How new it is."),)
    monkeypatch.setitem(sys.modules, "mine", ModuleType("mine"))
    monkeypatch.setitem(sys.modules, "mine.figures", figures)
    claims = Claims(
        statements=(Statement("small", "novelty ≤ 2", "common sense", AtMost("novelty", 2.0)),),
        disputed=(Statement("none", "novelty ≤ 0", "a rumour", AtMost("novelty", 0.0)),),
        findings=(Finding(0, lambda cells: f"{len(cells)} of them are new."),),
        first="colour == 'red'",
        glossary={"red": "the colour of blood"},
    )
    mine = replace(
        SUITES["bias"], name="mine", claims=claims, table=("novelty",), figures="mine.figures"
    )
    metrics = {"novelty": (1.0, 0.1), "oddity": 7.0}
    frame = rows("mine", iter([({"colour": c}, metrics) for c in ("green", "red")]))
    text = write_report({"mine": frame}, [RUN], tmp_path, {"mine": mine}).read_text()
    for said in ("How new it is.", "2 of them are new.", "the colour of blood", "a rumour"):
        assert said in text
    assert '<td class="n" data-verdict="hold">2</td>' in text
    assert "could not be loaded" not in text
    section = text[text.index('<h2 id="mine">') :]
    heads = re.findall(r"<th(?: [^>]*)?>(.*?)</th>", section)
    values = re.findall(r"<td.*?>(.*?)</td>", section)
    assert heads == ["colour", "novelty (nat)"]
    assert values[::2] == ["red", "green"]


def test_a_term_of_two_meanings_names_its_suites(frames, tmp_path: Path) -> None:
    """And what a run's record leaves empty takes no line."""
    glossaries = {
        "bias": {"noise": "of values", "K": "a constant"},
        "variance": {"noise, hum": "of gradients", "K": "a constant"},
    }
    suites = {
        name: replace(SUITES[name], claims=Claims(glossary=terms))
        for name, terms in glossaries.items()
    }
    few = {name: frames[name] for name in suites}
    record = RUN | {"git_error": None, "doctor": {"load": {"remedy": "", "found": "1 process"}}}
    text = write_report(few, [record], tmp_path, suites).read_text(encoding="utf-8")
    for term, meaning in (
        ("noise (bias)", "of values"),
        ("noise, hum (variance)", "of gradients"),
        ("K", "a constant"),
    ):
        assert text.count(f"<dt>{term}</dt><dd>{meaning}</dd>") == 1
    assert "<dt>doctor.load.found</dt><dd>1 process</dd>" in text
    assert "git_error" not in text
    assert "load.remedy" not in text


def test_a_run_records_the_questions_that_it_asks() -> None:
    record = Plan((toys.ROWS, toys.MIXED), "smoke").record()
    assert record["questions"] == {"rows": "What of rows?", "mixed": "What of mixed?"}


def test_the_newest_run_tells_the_question(frames: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    old = {key: value for key, value in RUN.items() if key != "questions"}
    runs = [old, RUN, RUN | {"questions": {"bias": "And now?"}}]
    text = write_report({"bias": frames["bias"]}, runs, tmp_path, SUITES).read_text(
        encoding="utf-8"
    )
    assert '<p class="question">And now?</p>' in text
    assert "What of" not in text


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("columns", [1, 3])
def test_a_figure_keeps_its_text_inside(
    name: str, columns: int, frames: dict[str, pd.DataFrame]
) -> None:
    suite, draw = PICTURES[name]
    figure = draw(wide(frames[suite]), columns)
    assert figure is not None
    figure.draw_without_rendering()
    width, height = figure.get_size_inches()
    inside = figure.get_tightbbox()
    assert -0.02 <= inside.x0 < inside.x1 <= width + 0.02
    assert -0.02 <= inside.y0 < inside.y1 <= height + 0.02


def test_zero_is_drawn_on_a_logarithmic_axis(frames: dict[str, pd.DataFrame]) -> None:
    """The triangular map has variance 0, which the chain of bounds must show on its edge."""
    figure = bounds(wide(frames["variance"]), 3)
    assert figure is not None
    (ax,) = figure.axes
    edge = ax.get_xlim()[0]
    marks = [x for line in ax.lines for x in np.asarray(line.get_xdata(), float)]
    assert edge < min(marks) <= 1.5 * edge
    assert all(np.isfinite(marks))


def test_an_interval_without_an_upper_limit_is_marked(frames: dict[str, pd.DataFrame]) -> None:
    """And none that has one leaves the frame."""
    cells = wide(frames["variance"])
    kept = cells["variance_expected"].between(1e-12, 1e12)
    cells.loc[kept & (cells["model"] == "trained"), "variance_high"] = math.inf
    figure = over_closed_form(cells, 3)
    assert figure is not None
    assert "open above" in [text.get_text() for text in figure.legends[0].get_texts()]
    ratio = cells[kept]["variance_low"] / cells[kept]["variance_expected"]
    ((low, high),) = {ax.get_ylim() for ax in figure.axes}
    assert low < ratio.min() < ratio.max() < high


def test_many_marks_are_thinned_and_the_legend_says_so(frames: dict[str, pd.DataFrame]) -> None:
    """One in n, each with its own interval; a figure with few marks is left as it is."""
    cells = wide(frames["variance"])
    cells = cells[cells["variance_expected"].between(1e-12, 1e12)]
    n_cells = {}
    for copies in (1, 1000 // len(cells), 8000 // len(cells)):
        figure = over_closed_form(pd.concat([cells] * copies, ignore_index=True), 3)
        assert figure is not None
        n = len(cells) * copies
        said = [text.get_text() for text in figure.legends[0].get_texts()]
        step = -(-n // style.MAX_MARKS)
        assert (f"1 mark in {step} drawn" in said) == (step > 1)
        lines = [line for ax in figure.axes for line in ax.lines[1:]]
        marked = [np.c_[line.get_data()][:: line.get_markevery() or 1] for line in lines]
        drawn = [c for ax in figure.axes for c in ax.collections]
        bars = [c.get_segments() for c in drawn if isinstance(c, LineCollection)]
        for at, intervals in zip([m for m in marked if len(m)], filter(len, bars), strict=True):
            assert [float(x) for x in at[:, 0]] == [interval[0][0] for interval in intervals]
        n_cells[n] = len(svg(figure, "f"))
        assert sum(map(len, bars)) <= style.MAX_MARKS + len(bars)
    _, many, most = n_cells.values()
    assert most < 1.5 * many


def test_a_roulette_is_drawn_where_it_is(frames: dict[str, pd.DataFrame]) -> None:
    """On its stop probability, since beside the curve a step to the side is another verdict."""
    figure = roulette(wide(frames["variance"]), 3)
    assert figure is not None
    marks = [line for line in figure.axes[0].lines if line.get_marker() in ("o", "X")]
    assert {float(x) for line in marks for x in line.get_xdata()} == {0.5, 1.15}


def test_times_are_those_of_the_yardstick(frames: dict[str, pd.DataFrame]) -> None:
    """A cell timed while the machine was busy has its mark where its ratio puts it."""
    cells = wide(frames["efficiency"]).query("model == 'trained'")
    calm = error_against_time(cells, 3)
    busy = cells.assign(
        seconds_per_example=cells["seconds_per_example"].where(cells["estimator"] != "tuned", 1.0)
    )
    moved = error_against_time(busy, 3)
    assert calm is not None
    assert moved is not None
    starts = [
        [float(line.get_xdata()[0]) for line in figure.axes[0].lines if line.get_marker() == "o"]
        for figure in (calm, moved)
    ]
    assert len(starts[0]) == 5  # all but the determinant, which has no noise
    assert starts[0] == pytest.approx(starts[1])


def test_what_has_no_variance_is_marked_and_does_not_win(frames: dict[str, pd.DataFrame]) -> None:
    cells = wide(frames["efficiency"])
    figure = variance_time(cells, 3)
    assert figure is not None
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert sum(text.startswith("≥") for text in texts) == 3
    assert "≥ 1.0" in texts  # the reference, over itself
    map_ = winners(cells, 3)
    assert map_ is not None
    named = {text.get_text() for text in map_.legends[0].get_texts()}
    assert named == {"all together", "tuned, Hadamard", "determinant"}
    all_finite = winners(cells.assign(variance_is_finite=1.0), 3)  # a twin: they would win
    assert all_finite is not None
    assert {t.get_text() for t in all_finite.legends[0].get_texts()} - named


def test_what_an_error_costs_is_said(frames: dict[str, pd.DataFrame]) -> None:
    """3.2 of 40 us for the determinant; 1.1 x 40.5 nat^2 / 1e-4 for the draw, at the least."""
    (text, _) = findings({"efficiency": frames["efficiency"]}, SUITES)
    assert "to 0.01 nat takes 0.128 [" in text
    assert "“determinant”" in text
    assert "of infinite variance there, takes at least 140,000 times as long" in text
    value, inverse = findings({"peers": frames["peers"]}, SUITES)
    assert "is off by −9.00 nat" in value
    assert "off by 0.00200 where 1.00e-5 was requested" in inverse


def test_without_the_peer_the_baseline_is_the_reference(frames: dict[str, pd.DataFrame]) -> None:
    cells = wide(frames["efficiency"]).query("implementation == 'ours'")
    figure = variance_time(cells, 1)
    assert figure is not None
    assert "normflows: not measured" in figure.axes[0].get_xlabel()
