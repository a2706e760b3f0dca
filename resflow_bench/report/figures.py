"""The figures of a suite as inline SVG for a page, and as files beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from resflow_bench import __version__
from resflow_bench.analysis.tables import axes, plain
from resflow_bench.files import csv_text, write_whole
from resflow_bench.lab import Suite
from resflow_bench.report import style
from resflow_bench.report.drawn import frame
from resflow_bench.report.picture import Picture
from resflow_bench.report.redraw import script
from resflow_bench.report.tooltips import titled

PHONE, LAPTOP = 1, 3  # panels side by side: each figure is drawn twice, and the page shows one
TAG = re.compile(r"<[a-z][^>]*>")
PLACED = r'\n<(?:use [^>]*? y|path d)="[^"]*"{look}(?:/>|>.*?</use>)'
MARKS = re.compile(
    rf"<g([^<>]*)>((?:<title>[^<]*</title>)?{PLACED.format(look='([^>]*?)')}"
    rf"(?:{PLACED.format(look=chr(92) + '3')})*\n)</g>"
)
"""A group of marks or lines: its attributes, what it has, and the attributes of each but place."""

Facts = dict[str, str]
Rendered = dict[str, str]


class FiguresError(Exception):
    """A user's figure that cannot be drawn, or a module of figures that cannot be imported."""


def rendered(
    suite: Suite | None,
    cells: pd.DataFrame,
    folder: Path,
    runs: Sequence[Mapping[str, Any]] = (),
) -> list[Rendered]:
    """The figures of a suite that are not empty, rendered; their module is imported only now.

    Each is a name, a caption and inline SVG for two widths of the page. `<name>.svg`, `.pdf`,
    `.csv` (its rows, see `drawn.frame`) and `.py` (which draws them again) are written to `folder`,
    each with its origin from `runs`, the records of the runs.

    Raises:
        FiguresError: the module cannot be imported, or a figure of a user's own suite fails; of
            ours that is a mistake, and raised as is.
    """
    if suite is None or not suite.figures:
        return []
    try:
        pictures: tuple[Picture, ...] = import_module(suite.figures).PICTURES
    except (ImportError, AttributeError, SyntaxError) as error:
        raise FiguresError(
            f"suite `{suite.name}` has no figures in `{suite.figures}` ({error}); name a module "
            "with `PICTURES` in its SUITE, or leave `figures` out."
        ) from error
    try:
        facts = _facts(suite, cells, runs)
        return [one for each in pictures if (one := _render(each, cells, folder, facts))]
    except Exception as error:
        if not suite.reference:
            raise
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise FiguresError(f"a figure of suite `{suite.name}` cannot be drawn: {why}.") from error


def _render(picture: Picture, cells: pd.DataFrame, folder: Path, facts: Facts) -> Rendered | None:
    """The picture in both widths as inline SVG, and the wide one as files; None if empty."""
    drawn = {width: picture.draw(cells, width) for width in (LAPTOP, PHONE)}
    wide, name = drawn[LAPTOP], picture.name
    if wide is None:
        return None
    lines = [f"{key}: {value}" for key, value in ({"figure": name} | facts).items()]
    caption = picture.caption.replace("{hardware}", facts.get("hardware", "unrecorded hardware"))
    about = " ".join(f"{caption} {'; '.join(lines)}.".split())
    svgs = {w: svg(f, f"{name}-{w}", about) for w, f in drawn.items() if f is not None}
    ground = rf'\1<rect width="100%" height="100%" fill="{style.PAPER}"/>'
    rows = frame(wide)
    files: dict[str, str | bytes] = {
        "svg": re.sub(r"(<svg[^>]*>)", ground, svgs[LAPTOP], count=1),
        "pdf": _pdf(wide, about),
        "csv": "".join(f"# {line}\n" for line in lines) + csv_text(rows),
        "py": script(wide, rows, name, lines),
    }
    for kind, content in files.items():
        write_whole(folder / f"{name}.{kind}", content)
    alt = (picture.draw.__doc__ or "").strip()
    inlined = {w: inline(svgs[w], alt) for w in (LAPTOP, PHONE)}
    return {"name": name, "wide": inlined[LAPTOP], "narrow": inlined[PHONE]} | {"caption": caption}


def _facts(suite: Suite, cells: pd.DataFrame, runs: Sequence[Mapping[str, Any]]) -> Facts:
    """The record in a figure's files: its runs, and the axes that are the same in all its cells."""
    mine = [run for run in runs if suite.name in run.get("suites", [suite.name])]
    recorded = {
        key: dict.fromkeys(str(run[key]) for run in mine if run.get(key) is not None)
        for key in ("run", "commit", "preset", "seed")
    }
    done = cells[cells["status"] == "ok"]
    same = [name for name in axes(cells) if done[name].nunique(dropna=False) == 1]
    facts = {"suite": suite.name, "resflow_bench": __version__}
    facts |= {key: ", ".join(values) for key, values in recorded.items() if values}
    devices = [name for run in mine for name in (run.get("device") or {}).values()]
    facts["hardware"] = ", ".join(dict.fromkeys(devices))
    facts |= {name: plain(done[name].iloc[0]) for name in same}
    return {key: " ".join(value.split()) for key, value in facts.items() if value}


def svg(figure: Figure, name: str, about: str = "") -> str:
    """The figure as SVG with text as text, and with tooltips.

    The bytes and ids are the same for the same figure, name and description `about`.
    """

    def save(figure: Figure) -> str:
        text = StringIO()
        facts = {"Date": None, "Creator": None, "Description": about or None}
        with mpl.rc_context({**style.THEME, "svg.hashsalt": name}):
            figure.savefig(text, format="svg", metadata=facts)
        return text.getvalue()

    return titled(figure, save)


def _pdf(figure: Figure, about: str) -> bytes:
    """The figure, as `svg` laid it out, as PDF with its fonts: the same bytes for the same."""
    figure.set_layout_engine("none")
    stream = BytesIO()
    facts = {"Subject": about, "CreationDate": None}
    with mpl.rc_context({**style.THEME, "pdf.fonttype": 42}):
        figure.savefig(stream, format="pdf", metadata=facts)
    return stream.getvalue()


def inline(markup: str, alt: str) -> Markup:
    """The SVG for use inside a page: no prolog, no unused ids, the page's colours and font."""
    body = markup[markup.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', body))
    body = re.sub(r' id="([^"]+)"', lambda m: m[0] if m[1] in used else "", body)
    for name, color in style.NEUTRAL.items():
        body = body.replace(color, f"var(--{name})")
    body = re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL)  # the page's own has it
    body = re.sub(r' style="([^"]*)"', _attributes, body)
    body = re.sub(r' (?:font-family|stroke-linejoin|stroke-linecap)="[^"]*"', "", body)  # as well
    body = TAG.sub(lambda tag: re.sub(r"(\.\d\d)\d+", r"\1", tag[0]), body)  # of a point
    body = re.sub(r' transform="rotate\(-0 [^"]*"', "", body)
    body = re.sub(r" ?\n\s*", "\n", body)
    body = MARKS.sub(_look_once, body)
    body = re.sub(r"<(g|defs)>\s*</\1>\n", "", body)
    return Markup(body.replace("<svg", f'<svg role="img" aria-label="{Markup.escape(alt)}"', 1))


def _look_once(marks: re.Match[str]) -> str:
    """The group with the common attributes of what it has, which inherits them."""
    group, uses, look = marks.groups()
    return f"<g{group}{look}>{uses.replace(look, '') if look else uses}</g>"


def _attributes(style_: re.Match[str]) -> str:
    """A style as attributes of their own, which the page's policy admits.

    >>> _attributes(re.match('(.*)', 'fill: none; stroke-width: 2'))
    ' fill="none" stroke-width="2"'
    """
    pairs = (pair.split(":", 1) for pair in style_[1].split(";") if ":" in pair)
    return "".join(f' {name.strip()}="{value.strip()}"' for name, value in pairs)
