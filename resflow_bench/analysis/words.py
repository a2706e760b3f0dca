"""Numbers in words, and the cells that have given columns.

Suites import this module, so it must not import pandas at run time: pandas starts threads, which do
not survive asv's forks.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def terminal_width() -> int | None:
    """Columns of the terminal that a table is printed to; None for a pipe or a file."""
    return shutil.get_terminal_size((0, 0)).columns or None


def number(value: float, digits: int = 3) -> str:
    """A number to `digits` significant digits, as ``1,240``, ``0.0123``, ``4.1e-7``."""
    if not math.isfinite(value):
        return {math.inf: "∞", -math.inf: "−∞"}.get(value, "–")
    if value == 0.0:
        return "0"
    if not 1e-4 <= abs(value) < 1e7:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        text = f"{mantissa}e{int(exponent)}"
    elif abs(value) >= 10 ** (digits - 1):
        text = f"{value:,.0f}"
    else:
        text = f"{value:,.{digits - 1 - math.floor(math.log10(abs(value)))}f}"
    return "−" + text[1:] if value < 0 else text


def with_interval(value: float, low: float, high: float) -> str:
    """``0.591 [0.588, 0.594]``, to the second digit of the half-width; without one, the value."""
    half = (high - low) / 2
    if math.isnan(half) or half == 0.0:
        return number(value)
    three = (value, low, high)
    size = max(abs(x) for x in three if math.isfinite(x))
    if math.isinf(half) or not 1e-3 <= size < 1e7:
        value_, low_, high_ = (number(x) for x in three)
    else:
        decimals = min(max(0, 1 - math.floor(math.log10(half) + 1e-9)), 6)
        value_, low_, high_ = (_signed(f"{x:,.{decimals}f}") for x in three)
    return f"{value_} [{low_}, {high_}]"


def interval(cell: pd.Series, metric: str, factor: float = 1.0) -> str:
    """``0.591 [0.588, 0.594]``: a cell's metric with its interval, times `factor`."""
    value, *ends = (factor * cell[f"{metric}{end}"] for end in ("", "_low", "_high"))
    low, high = ends if factor > 0 else ends[::-1]
    return with_interval(value, low, high)


def drawn(cell: pd.Series, metric: str) -> str:
    """``n = 1,024``: the number of draws behind a cell's metric."""
    return f"n = {cell[f'{metric}_n']:,.0f}"


def share(part: float, whole: str) -> str:
    """``12 % of the bound``, and above 200 % ``25 times the bound``."""
    return (
        f"{number(part, 2)} times {whole}" if part > 2 else f"{number(100 * part, 2)} % of {whole}"
    )


def span(values: Collection[float]) -> str:
    """``0.3``, or ``0.3 to 0.9``."""
    return " to ".join(dict.fromkeys((number(min(values)), number(max(values)))))


def plural(count: int, noun: str) -> str:
    """``1 term``, ``1,000 terms``."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def measured(cells: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """The finished cells that have all these columns; none, with NaN for it, if one is missing."""
    if missing := set(columns) - set(cells):
        return cells.head(0).assign(**dict.fromkeys(missing, math.nan))
    return cells[cells["status"] == "ok"].dropna(subset=list(columns))


def _signed(text: str) -> str:
    """The text with a minus for its hyphen, and without a sign if it is zero."""
    return text.lstrip("-") if not text.strip("-0.,") else text.replace("-", "−", 1)
