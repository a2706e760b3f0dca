"""One self-contained page from the rows of a few runs: no network, two themes.

Its script sorts, filters and hides; without it everything is there.
"""

from __future__ import annotations

import base64
import hashlib
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from resflow_bench import __version__
from resflow_bench.analysis import rules, verdicts
from resflow_bench.analysis.findings import first_of, sentences
from resflow_bench.analysis.tables import (
    axes,
    heading,
    in_order,
    label,
    main_metrics,
    spoken,
    units,
    varying,
    wide,
)
from resflow_bench.analysis.words import number, with_interval
from resflow_bench.files import csv_text, write_whole
from resflow_bench.lab import Statement, Suite
from resflow_bench.lab.progress import Listener, Progress, ignore
from resflow_bench.lab.store import readable
from resflow_bench.report.figures import rendered
from resflow_bench.report.origin import origin, repository

MAX_LINES = 60  # of a list on the page
MAX_CELLS = 500  # of a table on the page; the CSV beside it has them all


def write_report(
    frames: Mapping[str, pd.DataFrame],
    provenance: Sequence[Mapping[str, Any]],
    out: Path,
    suites: Mapping[str, Suite],
    listen: Listener = ignore,
) -> Path:
    """Write `index.html`, `tables/<suite>.csv` and the files of the figures; return the page.

    Args:
        frames: suite to long frame of rows; empty ones are left out.
        provenance: the `run.json` of each run that the rows come from; its `questions`, suite to
            question, head the sections.
        out: folder, made if needed; files of these names are replaced, each whole or not at all.
        suites: name to suite, in the order of the sections. Rows of any other suite follow, as a
            plain table without verdicts.
        listen: called before each suite is drawn.

    Raises:
        OSError: if `out` cannot be written.
        FiguresError: if a suite's figures cannot be imported.
    """
    out = Path(out)
    frames = {suite: frame for suite, frame in frames.items() if len(frame)}
    measured = {name: suite for name, suite in suites.items() if name in frames}
    cells = {suite: wide(frame) for suite, frame in frames.items()}
    judged = verdicts.judge(cells, measured)
    disputed = verdicts.judge_disputed(cells, measured)
    # The newest run's question counts; very old runs record none.
    asked = [record.get("questions") or {} for record in provenance]
    questions = {suite: question for record in asked for suite, question in record.items()}
    said = sentences(cells, measured)
    sections: list[dict[str, Any]] = []
    for name in dict.fromkeys([*measured, *frames]):
        listen(Progress(len(sections), len(frames), message=f"drawing {name}"))
        suite, rows = measured.get(name), frames[name]
        write_whole(out / "tables" / f"{name}.csv", csv_text(readable(rows)))
        section = _section(name, suite, rows, cells[name], judged)
        section["pictures"] = rendered(suite, cells[name], out / "figures", provenance)
        answers = [led(sentences) for _, told, sentences in said if told == name]
        sections.append(section | {"question": questions.get(name), "answers": answers})
    page = ENVIRONMENT.get_template("page.html.j2").render(
        version=__version__,
        written=datetime.now(UTC),
        assets=ASSETS,
        repository=repository(),
        origin=origin(provenance, frames.values()),
        findings=[led(sentences) for sentences in first_of(said)],
        glossary=_glossary(measured),
        summary=_summary(judged, {n: s.claims.statements for n, s in measured.items()}),
        disputed=_summary(disputed, {n: s.claims.disputed for n, s in measured.items()}),
        totals=judged["verdict"].value_counts().reindex(verdicts.VERDICTS, fill_value=0).to_dict(),
        violated=_violated(judged, cells),
        refuted=_violated(disputed, cells),
        reasons=_reasons(judged, measured, frames),
        sections=sections,
        runs=[_run(record) for record in provenance],
    )
    return write_whole(out / "index.html", page)


def led(sentences: str) -> tuple[str, str]:
    """The first of the sentences, and the others.

    >>> led("It is 1.5 nat. Chen et al. (2019) say less. So be it.")
    ('It is 1.5 nat.', 'Chen et al. (2019) say less. So be it.')
    """
    first, *rest = re.split(r"(?<=\.) (?=[A-Z])", sentences, maxsplit=1)
    return first, "".join(rest)


def maths(text: str) -> Markup:
    """The text with subscripts as in ``A_ii`` and ``Σ_{k>N}``, powers, and `code`, set as such.

    >>> str(maths("h^0.9 of `a_b` and S_N"))
    'h<sup>0.9</sup> of <code>a_b</code> and S<sub>N</sub>'
    """
    words, *rest = str(Markup.escape(text)).split("`")
    parts = [_raised(words)]
    for place, part in enumerate(rest):
        parts.append(_raised(part) if place % 2 else f"<code>{part}</code>")
    return Markup("".join(parts))


def _raised(text: str) -> str:
    text = re.sub(r"_(?:\{(.*?)\}|([A-Za-z]+))", r"<sub>\1\2</sub>", text)
    return re.sub(r"\^([0-9.]*[0-9])", r"<sup>\1</sup>", text)


def _section(
    name: str,
    suite: Suite | None,
    frame: pd.DataFrame,
    cells: pd.DataFrame,
    judged: pd.DataFrame,
) -> dict[str, Any]:
    """The numbers of one suite, as the template needs them; a suite may be None."""
    broken = cells[cells["status"] != "ok"]
    shown = varying(cells, axes(frame))
    mine = judged[judged["suite"] == name]
    violated = set(mine.loc[mine["verdict"] == "violated", "cell"])
    unit = units(frame)
    metrics = main_metrics(suite.table if suite else (), unit)
    ordered = in_order(cells, suite.claims.first if suite else "", violated)
    lines = [
        {
            "id": f"{name}-{cell['cell']}",
            "is_violated": cell["cell"] in violated,
            "values": [
                *((spoken(cell[axis]), None) for axis in shown),
                *(_measured(cell, metric) for metric in metrics),
            ],
        }
        for cell in ordered.head(MAX_CELLS).to_dict("records")
    ]
    heads = [*shown, *(heading(m, unit[m]).replace("^2", "²") for m in metrics)]
    return {
        "suite": name,
        "title": suite.title if suite else "",
        "is_known": suite is not None,
        "n_cells": len(cells),
        "n_rows": len(frame),
        "verdicts": mine["verdict"].value_counts().reindex(verdicts.VERDICTS, fill_value=0),
        "table": {
            **{"heads": heads, "n_axes": len(shown)},
            **{"lines": lines, "n_more": len(ordered) - len(lines)},
        },
        "broken": [
            {"label": label(cell, shown), "status": cell["status"], "message": cell["message"]}
            for _, cell in broken.head(MAX_LINES).iterrows()
        ],
        "n_broken": len(broken),
    }


def _unit(unit: str) -> str:
    """A blank and the unit; nothing for a pure number."""
    return "" if unit in ("", "1") else f" {unit.replace('^2', '²')}"


def _measured(cell: Mapping[Any, Any], metric: str) -> tuple[str, float | None]:
    """The value with its interval, unless that is no wider than rounding; and all its digits."""
    value, low, high = (cell[f"{metric}{end}"] for end in ("", "_low", "_high"))
    if pd.isna(value):
        return "", None
    return with_interval(*rules.worth_showing(value, low, high)), value


def _summary(
    judged: pd.DataFrame, statements: Mapping[str, Iterable[Statement]]
) -> list[dict[str, Any]]:
    """Each statement with its number of cells of each verdict."""
    by_name = {(suite, s.name): s for suite, several in statements.items() for s in several}
    lines = verdicts.summary(judged).to_dict("records")
    return [line | vars(by_name[line["suite"], line["statement"]]) for line in lines]


def _reasons(
    judged: pd.DataFrame, suites: Mapping[str, Suite], frames: Mapping[str, pd.DataFrame]
) -> list[dict[str, Any]]:
    """The reasons for undecided verdicts, each with its count and its meaning."""
    open_ = judged[judged["verdict"] == "undecided"]
    lines = [
        {"says": reason, "count": n, "means": rules.REASONS.get(reason, "")}
        for reason, n in open_["reason"].value_counts().items()
    ]
    wide_ = set(zip(open_["suite"], open_["statement"], open_["reason"], strict=True))
    worth = {
        f"{rule.resolution:g}{_unit(units(frames[name]).get(rule.metric, ''))} ({rule.metric})"
        for name, suite in suites.items()
        for statement in suite.claims.statements
        if isinstance(rule := statement.rule, rules.Equals)
        and (name, statement.name, rules.WIDE) in wide_
    }
    for line in lines:
        if line["says"] == rules.WIDE and worth:
            line["means"] += f" Worth acting upon is a difference of {', '.join(sorted(worth))}."
    return lines


def _violated(judged: pd.DataFrame, cells: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """The violations, each with its cell in words, and how many more there are."""
    violated = judged[judged["verdict"] == "violated"]
    lines = violated.head(MAX_LINES).to_dict("records")
    named = {name: cells[name].set_index("cell") for name in {line["suite"] for line in lines}}
    shown = {name: varying(suite, axes(suite)) for name, suite in named.items()}
    for line in lines:
        name, q = line["suite"], line["q"]
        line["rate"] = "exact" if pd.isna(q) else number(q, 2) if q else "< 1e-300"
        line["label"] = label(named[name].loc[line["cell"]], shown[name])
    return {"lines": lines, "n_more": len(violated) - len(lines)}


def _glossary(suites: Mapping[str, Suite]) -> dict[str, str]:
    """Term to meaning; a term to which suites give different meanings has their names after it."""
    said = {
        (term, meaning): name
        for name, suite in suites.items()
        for term, meaning in suite.claims.glossary.items()
    }
    uses = Counter(word for term, _ in said for word in term.split(", "))
    return {
        f"{term} ({name})" if any(uses[word] > 1 for word in term.split(", ")) else term: meaning
        for (term, meaning), name in said.items()
    }


def _run(record: Mapping[str, Any]) -> dict[str, Any]:
    """A run's record, nested names joined by a dot, and the command that measures it again.

    Fields of very old runs may be missing; what is empty is left out.
    """
    facts = {name: fact for name, fact in record.items() if name != "questions"}
    flat = pd.json_normalize(facts).iloc[0]
    words = {k: " ".join(map(str, v)) if isinstance(v, list) else v for k, v in flat.items()}
    facts = {name: str(fact) for name, fact in words.items() if fact is not None and fact != ""}
    command = shlex.join(["resflow-bench", *(record.get("arguments") or ())])
    return {"name": record.get("run"), "facts": facts, "command": command}


class _Assets(NamedTuple):
    """The style and the script of a page, and the hashes by which its policy admits them alone."""

    style: Markup
    script: Markup
    style_hash: Markup
    script_hash: Markup

    @classmethod
    def read(cls) -> _Assets:
        texts = [(TEMPLATES / f"page.{kind}").read_text("utf-8") for kind in ("css", "js")]
        digests = [hashlib.sha256(text.encode()).digest() for text in texts]
        hashes = [f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests]
        return cls(*map(Markup, (*texts, *hashes)))


TEMPLATES = Path(__file__).parent / "templates"
ASSETS = _Assets.read()
ENVIRONMENT = Environment(
    loader=PackageLoader("resflow_bench.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
ENVIRONMENT.filters["maths"] = maths
ENVIRONMENT.filters["commas"] = "{:,}".format
