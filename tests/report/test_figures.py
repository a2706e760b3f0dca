"""The files of a figure: the rows that it shows, the script that draws them again, its tooltips."""

from __future__ import annotations

import re
import runpy
from importlib import import_module
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from made_up import SUITES, make_frames
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from resflow_bench.analysis.tables import wide
from resflow_bench.report.drawn import frame
from resflow_bench.report.figures import rendered, svg

RUN = {"run": "20260101-quick", "commit": "b464267c", "preset": "quick", "seed": 7}
CELLS = {suite: wide(rows) for suite, rows in make_frames().items()}
PICTURES = {
    picture.name: (suite, picture)
    for suite, module in SUITES.items()
    for picture in import_module(module.figures).PICTURES
}
MARKS = ("mark", "marked line")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, str]]]:
    """The folder of every figure's files, and each as it stands on the page."""
    folder = tmp_path_factory.mktemp("figures")
    several = [rendered(SUITES[name], cells, folder, [RUN]) for name, cells in CELLS.items()]
    return folder, {one["name"]: one for some in several for one in some}


@pytest.fixture(scope="module")
def folder(page: tuple[Path, dict[str, dict[str, str]]]) -> Path:
    return page[0]


def draw(name: str, columns: int = 3) -> Figure:
    suite, picture = PICTURES[name]
    figure = picture.draw(CELLS[suite], columns)
    assert figure is not None
    return figure


def read(folder: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(folder / f"{name}.csv", comment="#")


def every_kind() -> Figure:
    """A figure of a user's own, with plain matplotlib and labels."""
    figure = Figure()
    left, right = figure.subplots(1, 2)
    left.vlines([1, 2, np.nan], [3, np.nan, 0], [5, np.nan, 0], label="a")
    left.plot([1, 2, np.nan], [4, 5, 6], "o", label="a")
    left.axhline(4.5, label="norm")
    left.fill_between([1, 2], [0, 1], [2, 3], label="band")
    left.set(title="one", xlabel="terms N", ylabel="error (nat)")
    right.barh([0, 1], [10, 20], left=1, label="b")
    right.fmt_ydata = lambda y: ("up", "down", "right")[round(y)]
    right.hlines([7], [0], [1], label="alone")
    right.errorbar([1.0], [2.0], [[0.5], [1.0]], fmt="s-", label="e")
    right.imshow([[1, 2]], extent=(0, 4, 0, 1), origin="lower", aspect="auto")
    return figure


def test_the_rows_are_what_is_drawn() -> None:
    """Intervals stand beside their marks; a mark at NaN is not drawn, nor is its row there."""
    rows = frame(every_kind())
    names = ["panel", "series", "kind", "x", "x_low", "x_high", "y", "y_low", "y_high", "y_name"]
    table = rows.sort_values(["panel", "kind", "x"], kind="stable")[[*names, "value"]]
    n = None
    expected = [
        ("one", "band", "band", 1, n, n, n, 0, 2, n, n),
        ("one", "band", "band", 2, n, n, n, 1, 3, n, n),
        ("one", "a", "mark", 1, n, n, 4, 3, 5, n, n),
        ("one", "a", "mark", 2, n, n, 5, n, n, n, n),
        ("one", "norm", "reference", n, n, n, 4.5, n, n, n, n),
        ("panel 1", "b", "bar", 11, n, n, 0, n, n, "up", n),
        ("panel 1", "b", "bar", 21, n, n, 1, n, n, "down", n),
        ("panel 1", "alone", "interval", n, 0, 1, 7, n, n, n, n),
        ("panel 1", "e", "marked line", 1, n, n, 2, 1.5, 3, "right", n),
        ("panel 1", "pixels", "pixels", n, 0, 4, n, 0, 1, n, " 1 2"),
    ]
    wanted = pd.DataFrame(expected, columns=table.columns)
    for name in table:
        assert [None if pd.isna(v) else v for v in table[name]] == [
            *wanted[name].replace({np.nan: None})
        ], name
    assert set(rows["x_axis"]) == {"terms N"}
    assert rows.loc[rows["kind"] == "bar", "x_base"].tolist() == [1, 1]


def test_the_csv_has_the_marks_lines_and_bars_of_the_figure(folder: Path) -> None:
    """Each vertex of each line, offset of each collection and end of each bar, of every suite."""
    for name in PICTURES:
        drawn = []
        for ax in draw(name).axes:
            for line in ax.lines:
                if line.get_transform() == ax.transData:
                    drawn += np.c_[line.get_data()].astype(float).tolist()
            for bar in ax.patches:
                assert isinstance(bar, Rectangle)
                box = bar.get_bbox()
                drawn += [[box.x1, box.y1]] if bar.get_data_transform() == ax.transData else []
        drawn = [point for point in drawn if np.isfinite(point).all()]
        rows = read(folder, name)
        rows = rows[rows["kind"].isin(["line", "bar", *MARKS])]
        stored = rows.reindex(columns=["x", "y"]).to_numpy(float)
        assert len(stored) == len(drawn), name
        if len(drawn) > 0 and not (rows["kind"] == "bar").any():
            assert np.sort(stored, axis=0) == pytest.approx(np.sort(drawn, axis=0), rel=1e-12)


@pytest.mark.parametrize("name", PICTURES)
def test_the_script_draws_the_figure_again(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many panels and marks, on the same scales, under the same labels."""
    monkeypatch.chdir(folder)
    rows, figure = read(folder, name), draw(name)
    try:
        grid = runpy.run_path(f"{name}.py")["grid"]
        assert list(grid.axes_dict) == list(dict.fromkeys(rows["panel"]))
        for (panel, ax), own in zip(grid.axes_dict.items(), figure.axes, strict=True):
            here = rows[rows["panel"] == panel]
            offsets = [
                np.asarray(c.get_offsets()) for c in ax.collections if isinstance(c, PathCollection)
            ]
            assert sum(map(len, offsets)) == here["kind"].isin(MARKS).sum()
            assert (ax.get_xscale(), ax.get_yscale()) == (own.get_xscale(), own.get_yscale())
            assert ax.get_xlim() == pytest.approx(own.get_xlim(), rel=1e-4)
            assert ax.get_ylim() == pytest.approx(own.get_ylim(), rel=1e-4)
            assert {ax.get_xlabel()} == {*here.get("x_axis", [""])}
    finally:
        plt.close("all")
    assert (folder / f"{name}-again.png").is_file()


def test_every_mark_has_a_tooltip(page: tuple[Path, dict[str, dict[str, str]]]) -> None:
    """In both widths, except the marks of a picture that is stored as pixels."""
    folder, figures = page
    assert set(figures) == set(PICTURES)
    for name, figure in figures.items():
        rows = read(folder, name)
        marks = rows["kind"].isin(MARKS) & ~rows["series"].isin(["samples", "data"])
        for width in ("wide", "narrow"):
            assert len(re.findall("<use [^>]*><title>[^<]*: ", figure[width])) == marks.sum(), name
            bars = (rows["kind"] == "bar").sum()
            titles = re.findall("<title>[^<]*: [^<]*</title>", figure[width])
            assert len(titles) >= marks.sum() + bars, name


def test_a_tooltip_says_where_its_mark_is() -> None:
    """Also where others are outside the page, at NaN, beyond zero of a logarithm, or thinned."""
    figure = Figure(dpi=150)
    ax = figure.subplots()
    n = np.asarray([1, 2, 3, 1e6, np.nan, 0, 7, 8, 9])
    (line,) = ax.plot(n, n**2, "o", label="a")
    ax.vlines(n, 0.5 * n**2, 2 * n**2, label="a")
    ax.set(xscale="log", yscale="log", xlim=(1, 10), ylim=(1, 100), xlabel="n", ylabel="n² (nat)")
    markup = svg(figure, "f")
    assert re.findall(r"<title>(a: .*?)</title>", markup) == [
        f"a: n = {k}, n² = {said} nat"
        for k, said in (
            (1, "1.00 [0.50, 2.00]"),
            (2, "4.0 [2.0, 8.0]"),
            (3, "9.0 [4.5, 18.0]"),
            (7, "49 [24, 98]"),
            (8, "64 [32, 128]"),
            (9, "81 [40, 162]"),
        )
    ]
    line.set_markevery(2)
    titles = re.findall(r"<title>a: n = (.*?),", svg(figure, "f"))
    assert titles == ["1", "3", "7", "9"]


def test_each_file_says_where_it_comes_from(folder: Path) -> None:
    """Its run, and the axes that are the same in all its cells."""
    lines = (folder / "bias.csv").read_text("utf-8").splitlines()
    heads = [line for line in lines if line.startswith("# ")]
    for said in ("figure: bias", "run: 20260101-quick", "commit: b464267c", "seed: 7", "dim: 64"):
        assert f"# {said}" in heads
        assert f"# {said}" in (folder / "bias.py").read_text("utf-8")
        assert said in (folder / "bias.svg").read_text("utf-8")
    assert not any(head.startswith("# model") for head in heads)
    pdf = (folder / "bias.pdf").read_bytes()
    said = "run: 20260101-quick"
    assert any(said.encode(kind) in pdf for kind in ("ascii", "utf-16-be"))
    assert b"CreationDate" not in pdf
    assert b"/FontFile2" in pdf  # TrueType, type 42
    assert b"/Type3" not in pdf
