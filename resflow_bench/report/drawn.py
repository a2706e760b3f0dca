"""Read from a finished figure what it shows: marks, lines, intervals, bands, bars and images.

The frame of a figure is its CSV, and the tooltip of each mark is made of it. A group is what one
call draws; its series is its `label`, or its kind. Where an axis has names in place of numbers, its
`fmt_xdata` or `fmt_ydata`, by which matplotlib shows a coordinate, returns them. Texts and artists
of other kinds, such as contours, are left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import Collection, LineCollection, PathCollection, PolyCollection
from matplotlib.colors import to_hex
from matplotlib.container import BarContainer
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

COLUMNS = (
    *("panel", "series", "group", "kind", "color", "x", "x_low", "x_high", "x_base", "x_name"),
    *("y", "y_low", "y_high", "y_base", "y_name", "value", "red", "green", "blue"),
    *("x_axis", "y_axis"),
)
ENDS = ("low", "high")
OF_ENDS = ("interval", "band", "region")  # drawn only where all their ends are finite
MARKED = ("mark", "marked line", "bar")
NOTHING = ("None", "none", " ", None)  # markers and line styles that draw nothing


@dataclass(frozen=True, eq=False)
class Group:
    """The rows that one call draws, with some of `COLUMNS`.

    artists: one of all rows, or one for each row.
    """

    ax: Axes
    artists: tuple[Artist, ...]
    series: str
    kind: str
    rows: pd.DataFrame

    def named(self, xy: str) -> list[str | None]:
        """The name on the axis of each mark or bar; None where it is a number."""
        say = self.ax.fmt_xdata if xy == "x" else self.ax.fmt_ydata
        if say is None or self.kind not in MARKED:
            return [None] * len(self.rows)
        return [say(place) for place in self.rows[xy]]


def groups(figure: Figure) -> list[Group]:
    """The groups of a figure; the intervals of marks and bars stand in the rows of these."""
    several = [one for ax in figure.axes for one in _joined(list(_groups(ax)))]
    return [drawn for one in several if (drawn := _finite(one))]


def frame(figure: Figure) -> pd.DataFrame:
    """The rows of all groups, without the columns that none of them fills.

    panel: its title. group: counted from 1. kind: mark, line, marked line (a line with a mark at
    each row), interval, band, bar, region, reference (a line across the panel) or pixels.
    x, y: in the units of `x_axis` and `y_axis`, the labels of the axes; `_low` and `_high` are the
    ends of an interval, a band, a region or a line of pixels, `_base` is where a bar begins,
    `_name` what the axis calls the place. value, or red, green and blue in 0..1: of the pixels of
    a line, to three digits, with a space before each.
    """
    titles = panels(figure)
    frames = [
        one.rows.assign(
            panel=titles[one.ax],
            series=one.series,
            group=place,
            kind=one.kind,
            color=_color(one.artists[0]),
            **{f"{xy}_name": one.named(xy) for xy in "xy"},
            **{f"{xy}_axis": axis_label(one.ax, xy) or None for xy in "xy"},
        )
        for place, one in enumerate(groups(figure), 1)
    ]
    rows = pd.concat([pd.DataFrame(), *frames], ignore_index=True).reindex(columns=[*COLUMNS])
    return rows.dropna(axis="columns", how="all") if len(rows) else rows


def panels(figure: Figure) -> dict[Axes, str]:
    """Panel to title; numbered where it has none, or where several have the same."""
    titles = {ax: _title(ax) for ax in figure.axes}
    several = Counter(titles.values())
    seen: Counter[str] = Counter(titles.values())
    for ax, title in reversed(titles.items()):
        if several[title] > 1 or not title:
            titles[ax] = f"{title or 'panel'} {seen[title]}"
        seen[title] -= 1
    return titles


def axis_label(ax: Axes, xy: str) -> str:
    """The label of an axis on one line; where it has none, that of a panel before it."""
    before = ax.figure.axes[: ax.figure.axes.index(ax) + 1]
    own = [one.get_xlabel() if xy == "x" else one.get_ylabel() for one in reversed(before)]
    above = ax.figure.get_supxlabel() if xy == "x" else ax.figure.get_supylabel()
    return " ".join(next(filter(None, own), above).split())


def _color(artist: Artist) -> str:
    """The colour of an artist as six hexadecimal digits: of several, the first; black of an image.

    Without the usual `#`, which begins a comment in the CSV.
    """
    color: Any = "black"
    if isinstance(artist, Line2D):
        color = artist.get_color()
    elif isinstance(artist, Patch):
        color = artist.get_facecolor()
    elif isinstance(artist, Collection):
        color = [*artist.get_facecolor(), *artist.get_edgecolor(), "black"][0]
    return to_hex(color).lstrip("#")


def _title(ax: Axes) -> str:
    own = next(filter(None, (ax.get_title(loc) for loc in ("left", "center", "right"))), "")
    above = ax.figure.get_suptitle() if isinstance(ax.figure, SubFigure) else ""
    return " ".join(": ".join(filter(None, (above, own))).split())


def _groups(ax: Axes) -> Iterator[Group]:
    """The groups of a panel."""
    bars = {bar: one for one in ax.containers if isinstance(one, BarContainer) for bar in one}
    labels = {part: one.get_label() for one in ax.containers for part in _parts(one)}
    shapes = [*ax.collections, *(patch for patch in ax.patches if patch not in bars), *ax.lines]
    several: list[Artist | BarContainer] = [*ax.images, *dict.fromkeys(bars.values()), *shapes]
    for one in several:
        artists = tuple(one) if isinstance(one, BarContainer) else (one,)
        given = map(str, (artists[0].get_label(), labels.get(artists[0], "")))
        label = next((text for text in given if not text.startswith("_")), "")
        for kind, rows in _read(ax, one):
            yield Group(ax, artists, label or kind, kind, rows.reset_index(drop=True))


def _parts(container: object) -> Iterator[Artist]:
    """The artists of a container, which may stand in tuples of their own."""
    if isinstance(container, Artist):
        yield container
    elif isinstance(container, tuple):
        for part in container:
            yield from _parts(part)


def _read(ax: Axes, artist: object) -> Iterator[tuple[str, pd.DataFrame]]:
    """The kind and the rows of an artist; several where it is of several kinds."""
    if isinstance(artist, Line2D):
        in_x, in_y = artist.get_transform().contains_branch_seperately(ax.transData)
        rows = pd.DataFrame(dict(zip("xy", artist.get_data(orig=False), strict=True)), dtype=float)
        marked, joined = artist.get_marker() not in NOTHING, artist.get_linestyle() not in NOTHING
        if not (in_x and in_y):
            if in_x or in_y:
                yield "reference", rows[["x" if in_x else "y"]].head(1)
        elif every := artist.get_markevery():
            yield from [("line", rows)] if joined else []
            yield from [("mark", rows.iloc[::every])] if marked else []
        elif marked or joined:
            yield "marked line" if marked and joined else "line" if joined else "mark", rows
    elif isinstance(artist, BarContainer):
        yield "bar", _bars(artist)
    elif isinstance(artist, Rectangle):
        in_data = artist.get_data_transform().contains_branch_seperately(ax.transData)
        ends = dict(zip("xy", artist.get_bbox().get_points().T, strict=True))
        given = [xy for xy, known in zip("xy", in_data, strict=True) if known]
        sides = {
            f"{xy}_{end}": [at] for xy in given for end, at in zip(ENDS, ends[xy], strict=True)
        }
        yield "region", pd.DataFrame(sides)
    elif isinstance(artist, PathCollection):
        yield "mark", pd.DataFrame(np.asarray(artist.get_offsets()), columns=["x", "y"])
    elif isinstance(artist, LineCollection):
        yield from [] if (rows := _segments(ax, artist)) is None else [("interval", rows)]
    elif isinstance(artist, PolyCollection):
        for path in artist.get_paths():
            sides = pd.DataFrame(path.vertices, columns=["x", "y"]).groupby("x")["y"]
            yield "band", sides.agg(y_low="min", y_high="max").reset_index()
    elif isinstance(artist, AxesImage):
        yield "pixels", _pixels(artist)


def _bars(bars: BarContainer) -> pd.DataFrame:
    """Each bar's place, the value where it ends, and the base where it begins."""
    place, value = ("y", "x") if bars.orientation == "horizontal" else ("x", "y")
    ends = np.asarray([bar.get_bbox().get_points() for bar in bars])  # (n, 2 corners, 2 axes)
    across, along = (0, 1) if place == "x" else (1, 0)
    columns = {place: ends[:, :, across].mean(axis=1), value: ends[:, 1, along]}
    return pd.DataFrame({**columns, f"{value}_base": ends[:, 0, along]})


def _segments(ax: Axes, drawn: LineCollection) -> pd.DataFrame | None:
    """Place and ends of each segment along one of the axes; None if one is along neither."""
    paths = [np.asarray(path.vertices, float)[[0, -1]] for path in drawn.get_paths()]
    ends = np.reshape(paths, (-1, 2, 2))
    same = (ends[:, 0] == ends[:, 1]) | np.isnan(ends[:, 0])
    upright, level = same.all(axis=0)
    if not (upright or level):
        return None
    along = 0 if level and (ax.fmt_ydata or not upright) else 1
    low, high = np.sort(ends[:, :, along], axis=1).T
    xy = "xy"[along]
    return pd.DataFrame(
        {"xy"[1 - along]: ends[:, 0, 1 - along], f"{xy}_low": low, f"{xy}_high": high}
    )


def _pixels(image: AxesImage) -> pd.DataFrame:
    """The ends of each line of pixels, from low y to high, and its values or colours."""
    values: np.ndarray = np.ma.filled(np.ma.asarray(image.get_array(), float), np.nan)
    left, right, bottom, top = image.get_extent()
    first, last = (bottom, top) if image.origin == "lower" else (top, bottom)
    ends = np.linspace(first, last, len(values) + 1)
    parts, shares = ["value"], values[..., None]
    if values.ndim == 3:
        parts, shares = ["red", "green", "blue"], values / (255 if values.max() > 1 else 1)
    lines = {
        part: ["".join(f" {value:.3g}" for value in line) for line in shares[..., place]]
        for place, part in enumerate(parts)
    }
    low, high = np.sort([ends[:-1], ends[1:]], axis=0)
    rows = pd.DataFrame({"x_low": left, "x_high": right, "y_low": low, "y_high": high, **lines})
    return rows.sort_values("y_low")


def _joined(several: list[Group]) -> list[Group]:
    """The groups, with the intervals of a series in the rows of its marks or bars."""
    kept = list(several)
    for one in several:
        if one.kind != "interval":
            continue
        for place, marks in enumerate(kept):
            if _belong(marks, one):
                ends = one.rows[[name for name in one.rows if name not in marks.rows]]
                kept[place] = replace(marks, rows=marks.rows.join(ends))
                kept.remove(one)
                break
    return kept


def _belong(marks: Group, intervals: Group) -> bool:
    """True if both have one series, and the same places in the same order."""
    rows, ends = marks.rows, intervals.rows
    alike = marks.series == intervals.series and len(rows) == len(ends)
    if not alike or marks.kind not in MARKED or f"{'y' if 'x' in ends else 'x'}_low" in rows:
        return False
    place = "x" if "x" in ends else "y"
    return bool(((rows[place] == ends[place]) | ends[place].isna()).all())


def _finite(one: Group) -> Group | None:
    """The rows that are drawn: those whose coordinates are finite; None if there are none."""
    needed = [name for name in one.rows if name in "xy" or one.kind in OF_ENDS]
    drawn = np.isfinite(one.rows[needed].to_numpy(float)).all(axis=1)
    artists = one.artists if len(one.artists) == 1 else tuple(np.asarray(one.artists)[drawn])
    return replace(one, artists=artists, rows=one.rows[drawn]) if drawn.any() else None
