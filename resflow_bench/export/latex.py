r"""LaTeX, a file for each suite: a table by booktabs, each metric with its 99 % interval.

    \usepackage{booktabs, longtable}
    \input{bias}

Source: S. Fear, "Publication quality tables in LaTeX", https://ctan.org/pkg/booktabs
"""

from __future__ import annotations

import re
from pathlib import Path

from resflow_bench.analysis.words import with_interval
from resflow_bench.export.rows import ExportedRows
from resflow_bench.files import write_whole

A_PAGE = 45
"""Lines that fit on a page; a longer table is a `longtable`, which breaks across pages."""

ESCAPES = str.maketrans(
    {
        **{c: f"\\{c}" for c in "&%$#_{}"},
        **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
        **{"<": r"\textless{}", ">": r"\textgreater{}", "−": "$-$", "\n": " "},
    }
)
SYMBOLS = {"−": "-", "∞": r"\infty"}


def write(rows: ExportedRows, out: Path) -> list[Path]:
    """Write `<suite>.tex`: the axes that vary, then the metrics of the suite's table on the page.

    Text with characters outside Latin alphabets needs LuaLaTeX or XeLaTeX.
    """
    head = " ".join(f"% 99 % intervals; runs {', '.join(rows.runs)}".split())
    files = []
    for suite in rows.frames:
        table = rows.table(suite, lambda *three: maths(with_interval(*three)))
        n_axes = int(table.columns.name)
        table = table.rename_axis(columns=None)
        table[table.columns[:n_axes]] = table[table.columns[:n_axes]].map(escaped)
        text = table.set_axis([*map(_head, table.columns)], axis=1).to_latex(
            index=False,
            escape=False,
            column_format="l" * n_axes + "r" * (table.shape[1] - n_axes),
            longtable=len(table) > A_PAGE,
        )
        files.append(write_whole(out / f"{suite}.tex", f"{head}\n{text}"))
    return files


def escaped(text: str) -> str:
    r"""The text, in which no character is a command.

    >>> escaped("50 % of a_b")
    '50 \\% of a\\_b'
    """
    return text.translate(ESCAPES)


def maths(text: str) -> str:
    r"""A number of `words.number`, or one with its interval, in mathematics mode.

    >>> maths("−1,240 [−4.1e-7, ∞]")
    '$-1{,}240\\ [-4.1 \\times 10^{-7}, \\infty]$'
    """
    if text == "–":
        return "--"
    text = re.sub(r"e(-?\d+)", r" \\times 10^{\1}", text)
    text = re.sub(r",(?! )", "{,}", text).replace(" [", r"\ [")
    return f"${''.join(SYMBOLS.get(c, c) for c in text)}$"


def _head(name: str) -> str:
    return escaped(name).replace(r"\textasciicircum{}2", "$^2$")
