"""One self-contained page from the rows of a few runs: no script, no network, two themes."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from resflow_bench import __version__
from resflow_bench.analysis import verdicts
from resflow_bench.analysis.findings import findings
from resflow_bench.analysis.tables import axes, label, plain, units, varying, wide, with_interval
from resflow_bench.report import figures

MAX_LINES = 60  # of a table or a list on the page; the CSV beside it has them all
PHONE = 1
"""Panels beside each other; a figure is drawn twice, and the page shows the one that fits."""
LAPTOP = 3


@dataclass(frozen=True)
class Picture:
    """A figure and the sentence that says how to read it."""

    name: str
    draw: figures.Draw
    caption: str

    def render(self, cells: pd.DataFrame, folder: Path) -> dict[str, str] | None:
        """The picture in both widths as inline SVG; the wide one also as a file; None if empty."""
        drawn = {width: self.draw(cells, width) for width in (LAPTOP, PHONE)}
        if drawn[LAPTOP] is None:
            return None
        svgs = {w: svg(f, f"{self.name}-{w}") for w, f in drawn.items() if f is not None}
        ground = rf'\1<rect width="100%" height="100%" fill="{figures.PAPER}"/>'
        alone = re.sub(r"(<svg[^>]*>)", ground, svgs[LAPTOP], count=1)
        write(folder / f"{self.name}.svg", alone)
        alt = (self.draw.__doc__ or "").strip()
        wide_, narrow = (inline(svgs[w], alt) for w in (LAPTOP, PHONE))
        return {"name": self.name, "wide": wide_, "narrow": narrow, "caption": self.caption}


@dataclass(frozen=True)
class Section:
    """One suite on the page: its question, what it draws, and the metrics of its table."""

    suite: str
    question: str
    pictures: tuple[Picture, ...] = ()
    metrics: tuple[str, ...] = ()


SECTIONS = (
    Section(
        "bias",
        "How far off, on average, is a log-determinant whose series was cut?",
        (
            Picture(
                "bias",
                figures.bias,
                "Bias per dimension against the number of terms. A mark is measured, its bar the "
                "99 % interval; it should lie on its line, which theory computes from the Jacobian "
                "without sampling, and below the dashed bound, which knows only K and, for a flow "
                "(in its colour), the number of blocks. How far the trained flow stays below it is "
                "what its realised constant saves.",
            ),
        ),
        ("bias", "bias_expected", "bias_bound", "log_det_exact"),
    ),
    Section(
        "variance",
        "How noisy is one draw, and how much of the noise does theory foresee?",
        (
            Picture(
                "variance",
                figures.variance,
                "Measured variance over its closed form, 99 % intervals. Marks scatter about one; "
                "one bar in a hundred misses it by chance. A bar that leaves the frame is open "
                "above, since the roulette's tail is too heavy for more. Cells whose variance is "
                "zero or infinite have no ratio and are not drawn.",
            ),
            Picture(
                "bounds",
                figures.bounds,
                "What each model is allowed. From left to right: measured (on its closed form), "
                "Avron and Toledo's bound, the bound from K alone. The cross is the bound as "
                "printed in a widely read post: wherever it lies left of the measurement, it is "
                "none.",
            ),
            Picture(
                "roulette",
                figures.roulette,
                "Which roulettes have a variance at all. A geometric law that stops with "
                "probability p needs ρ(J)² < 1 − p; a Poisson law stops too surely for any J that "
                "is not nilpotent. Means over draws of a red cell do not settle.",
            ),
        ),
        (
            *("variance", "variance_expected", "variance_bound", "variance_bound_lipschitz"),
            *("variance_bound_printed", "variance_is_finite"),
        ),
    ),
    Section(
        "inverse",
        "How wrong is a computed inverse, and does its certificate know?",
        (
            Picture(
                "convergence",
                figures.convergence,
                "What is left of the error after so many steps. It must stay under its "
                "certificate, which is measured along the way and levels off at the rounding "
                "floor, and under Banach's rate, which is known before the first step.",
            ),
            Picture(
                "inverse",
                figures.inverse,
                "Left: the true error of the inverse against the certificate ‖r‖ / (1 − K), which "
                "needs no truth. Right: the steps taken against the number that Banach's theorem "
                "asks for beforehand. Each mark belongs on or under the diagonal; how far under is "
                "how cautious the theory is.",
            ),
        ),
        (
            "inverse_error",
            "inverse_error_bound",
            "inverse_error_banach",
            "n_steps",
            "n_steps_bound",
            "outcome",
        ),
    ),
    Section(
        "lipschitz",
        "What constant was promised, what is certified, and what happens at the data?",
        (
            Picture(
                "lipschitz",
                figures.lipschitz,
                "From right to left: the promise, the product of the layers' norms by SVD, the "
                "largest ‖J(x)‖₂ met at the points, and the spectral radius, which alone decides "
                "how fast the series converges.",
            ),
        ),
        ("lipschitz_promised", "lipschitz_certified", "lipschitz_realised", "spectral_radius"),
    ),
    Section(
        "throughput",
        "How many examples a second, and how much of the machine is that?",
        (
            Picture(
                "throughput",
                figures.throughput,
                "Examples a second; the dark line at a bar's end is the 99 % interval. The peak is "
                "the rate of a large matrix product measured in the same run.",
            ),
        ),
        ("examples_per_s", "wall_s", "peak_bytes", "flops_fraction"),
    ),
)


def write_report(
    frames: Mapping[str, pd.DataFrame], provenance: Iterable[Mapping[str, Any]], out: Path
) -> Path:
    """Writes `index.html`, `tables/<suite>.csv` and `figures/<name>.svg`; returns the page.

    Args:
        frames: suite to long frame of rows; empty ones are left out.
        provenance: the `run.json` of each run that the rows come from.
        out: folder, made if needed; files of these names are replaced, each whole or not at all.

    Raises:
        OSError: if `out` cannot be written.
    """
    out = Path(out)
    frames = {suite: frame for suite, frame in frames.items() if len(frame)}
    judged, claimed = verdicts.judge(frames), verdicts.judge(frames, verdicts.CLAIMS)
    page = _ENVIRONMENT.get_template("page.html.j2").render(
        version=__version__,
        written=datetime.now(UTC),
        findings=findings(frames),
        summary=_summary(judged, verdicts.STATEMENTS),
        claims=_summary(claimed, verdicts.CLAIMS),
        totals=judged["verdict"].value_counts().reindex(verdicts.VERDICTS, fill_value=0).to_dict(),
        violated=_violated(judged, frames),
        refuted=_violated(claimed, frames),
        reasons=judged[judged["verdict"] == "undecided"]["reason"].value_counts().to_dict(),
        sections=[_section(section, frames[section.suite], out) for section in _order(frames)],
        runs=[_run(record) for record in provenance],
    )
    write(out / "index.html", page)
    return out / "index.html"


def svg(figure: Figure, name: str) -> str:
    """The figure as SVG: the same bytes for the same figure, ids its own, text left as text."""
    text = StringIO()
    with mpl.rc_context({**figures.THEME, "svg.hashsalt": name}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()


def inline(markup: str, alt: str) -> Markup:
    """SVG fit to stand in a page: no prolog, no unused ids, in the page's colours and font."""
    body = markup[markup.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', body))
    body = re.sub(r' id="([^"]+)"', lambda m: m[0] if m[1] in used else "", body)
    for color, variable in (
        (figures.INK, "ink"),
        (figures.MUTED, "muted"),
        (figures.LINE, "line"),
        (figures.PAPER, "paper"),
    ):
        body = body.replace(color, f"var(--{variable})")
    body = body.replace("'DejaVu Sans'", "var(--sans)")
    body = re.sub(r"\n\s*", "\n", body)
    return Markup(body.replace("<svg", f'<svg role="img" aria-label="{Markup.escape(alt)}"', 1))


def maths(text: str) -> Markup:
    """``A_ii`` and ``Σ_{k>N}`` with their subscripts set as such."""
    escaped = str(Markup.escape(text))
    return Markup(re.sub(r"_(?:\{(.*?)\}|([A-Za-z]+))", r"<sub>\1\2</sub>", escaped))


def write(path: Path, text: str) -> None:
    """Whole or not at all: a reader never meets half a page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)


def _order(frames: Mapping[str, pd.DataFrame]) -> list[Section]:
    known = [section for section in SECTIONS if section.suite in frames]
    names = {section.suite for section in known}
    return known + [Section(suite, "") for suite in frames if suite not in names]


def _section(section: Section, frame: pd.DataFrame, out: Path) -> dict[str, Any]:
    cells = wide(frame)
    write(out / "tables" / f"{section.suite}.csv", frame.to_csv(index=False))
    pictures = (picture.render(cells, out / "figures") for picture in section.pictures)
    broken = cells[cells["status"] != "ok"]
    shown = varying(cells, axes(frame))
    return {
        "suite": section.suite,
        "question": section.question,
        "n_cells": len(cells),
        "n_rows": len(frame),
        "pictures": [picture for picture in pictures if picture],
        "table": _table(cells, shown, section.metrics, units(frame)),
        "broken": [
            {"label": label(cell, shown), "status": cell["status"], "message": cell["message"]}
            for _, cell in broken.head(MAX_LINES).iterrows()
        ],
        "n_broken": len(broken),
    }


def _table(
    cells: pd.DataFrame, shown: list[str], metrics: Iterable[str], unit: Mapping[str, str]
) -> dict[str, Any]:
    cells = cells[cells["status"] == "ok"]
    if "model" in cells:
        cells = cells.sort_values("model", key=lambda m: m != "trained", kind="stable")
    names = [m for m in metrics if m in cells] or [m for m in unit if m in cells]
    lines = [
        [*(plain(cell[a]) for a in shown), *(_measured(cell, m) for m in names)]
        for _, cell in cells.head(MAX_LINES).iterrows()
    ]
    heads = [*shown, *(f"{m} ({unit[m]})" if unit.get(m) else m for m in names)]
    return {"heads": heads, "lines": lines, "n_axes": len(shown), "n_more": len(cells) - len(lines)}


def _measured(cell: pd.Series, metric: str) -> str:
    return with_interval(cell[metric], cell[f"{metric}_low"], cell[f"{metric}_high"])


def _summary(
    judged: pd.DataFrame, statements: Iterable[verdicts.Statement]
) -> list[dict[str, Any]]:
    by_name = {(s.suite, s.name): s for s in statements}
    lines = verdicts.summary(judged).to_dict("records")
    return [line | vars(by_name[line["suite"], line["statement"]]) for line in lines]


def _violated(judged: pd.DataFrame, frames: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """The violations, each with the words for its cell, and how many more there are."""
    cells = {suite: wide(frame).set_index("cell") for suite, frame in frames.items()}
    lines = judged[judged["verdict"] == "violated"].to_dict("records")
    for line in lines[:MAX_LINES]:
        suite = cells[line["suite"]]
        line["label"] = label(suite.loc[line["cell"]], varying(suite, axes(suite)))
    return {"lines": lines[:MAX_LINES], "n_more": len(lines[MAX_LINES:])}


def _run(record: Mapping[str, Any]) -> dict[str, Any]:
    """A run's record as lines to read, nested names joined by a dot, and the command for it."""
    flat = pd.json_normalize(dict(record)).iloc[0]
    facts = {k: " ".join(map(str, v)) if isinstance(v, list) else str(v) for k, v in flat.items()}
    command = shlex.join(["resflow-bench", *map(str, record["arguments"])])
    return {"name": record["run"], "facts": facts, "command": command}


_ENVIRONMENT = Environment(
    loader=PackageLoader("resflow_bench.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters["maths"] = maths
