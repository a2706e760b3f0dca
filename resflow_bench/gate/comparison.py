"""The comparison of two runs, or of several on each side: what changed, and by which evidence.

Each metric with a margin is tested in both directions by the tests of `evidence`: is NEW worse than
BASE by more than the margin, and is BASE worse than NEW? p is twice the smaller of the two, and
false discoveries are controlled over all metrics at once, as the gate does.

    worse, better  rejected at `judge.FALSE_DISCOVERIES`, in that direction
    changed        the same, of a metric of which any change is worse
    unchanged      shown to lie within the margin, or the same number
    undecided      none of these; `code` says why

Source: Benjamini and Hochberg (1995); Schuirmann (1987), two one-sided tests, for "unchanged".
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from resflow_bench.analysis.changes import KEYS, changes
from resflow_bench.analysis.margins import Margins
from resflow_bench.analysis.overlap import Frames, Matched, matched, named
from resflow_bench.analysis.pooling import PooledRuns, pool
from resflow_bench.analysis.rules import ROUNDING
from resflow_bench.gate import judge
from resflow_bench.gate.samples import labels, of_rows

VERDICTS = WORSE, BETTER, CHANGED, UNDECIDED, UNCHANGED = (
    *("worse", "better", "changed", "undecided", "unchanged"),
)
WIDE, FEW_SAMPLES, OTHER_SEED, NOT_FINITE = (
    *("wide interval", "few samples", "other seed", "not finite"),
)
REASONS = {
    WIDE: "the change may be larger than the margin or smaller; more draws would decide.",
    FEW_SAMPLES: "so few samples show no change, however large; measure more runs.",
    judge.FEW_PROCESSES: f"a time needs {judge.MIN_ROUNDS} processes on each side, and a run is "
    "one: give several, as RUN1,RUN2,...",
    OTHER_SEED: "the sides have other seeds or presets, and nothing shows that they measured at "
    "the same points; measure both with the same --seed and --preset.",
    judge.NO_MARGIN: "the suite does not say which change of this metric is for the worse.",
    judge.NO_ERROR: "the variance is infinite, and so is the standard error.",
    NOT_FINITE: "NEW has no finite number, or BASE has none.",
}
"""The meaning of each reason for which a metric is undecided."""


@dataclass(frozen=True)
class Comparison:
    """The end of a comparison.

    table: suite, cell, metric, verdict, code, unit, base, new, difference, low, high (at 99 %), z,
        margin, q (the share of false discoveries at which it counts as changed) and the axes; the
        surest change first.
    apart: suite, what ("only in BASE", "only in NEW", "failed", "skipped"), n (cells) and says,
        of the cells that are not compared.
    notes: sentences about the two sides.
    """

    table: pd.DataFrame
    apart: pd.DataFrame
    notes: tuple[str, ...]

    def counts(self) -> dict[str, int]:
        """Verdict to its number of metrics."""
        return self.table["verdict"].value_counts().reindex(VERDICTS, fill_value=0).to_dict()

    def reasons(self) -> dict[str, int]:
        """Reason to its number of undecided metrics, the most frequent first."""
        return self.table.loc[self.table["verdict"] == UNDECIDED, "code"].value_counts().to_dict()


Runs = Sequence[tuple[Hashable, Frames]]


def compare(base: Runs, new: Runs, margins: Margins) -> Comparison:
    """The comparison of two sides.

    Args:
        base, new: of each run what its draws follow from, such as preset and seed, and its rows.
            Several runs of a side are pooled.
    """
    sides = pool(base, margins), pool(new, margins)
    found = matched(sides[0].frames, sides[1].frames)
    draws = [{key for key, _ in runs} for runs in (base, new)]
    is_same = draws[0] == draws[1]
    is_paired = is_same and not found.differing
    if not found.base or not found.new:
        empty = pd.DataFrame(columns=[*KEYS, "verdict", "code"])
        return Comparison(empty, _apart(found), ())
    table = changes(found.base, found.new, is_paired)
    tables = [of_rows(side, margins, is_paired) for side in (found.base, found.new)]
    judged = _judged(tables[0], tables[1], margins)
    names = pd.concat([f.assign(label=labels(f)) for f in found.base.values()])
    cells = names.drop_duplicates(["suite", "cell"]).set_index(["suite", "cell"])["label"]
    where = pd.MultiIndex.from_frame(table[["suite", "cell"]])
    table = table.assign(label=cells.reindex(where).to_numpy())
    table = table.merge(
        judged.rename(columns={"cell": "label"}), on=["suite", "label", "metric"], how="left"
    )
    repeated = (table["difference"] == 0.0) & ((table["low"] == table["high"]) | is_same)
    if not is_same:
        unclear = ~table["cell"].isin(_same_points(table))
        times = [
            margins.is_time(*pair) for pair in zip(table["suite"], table["metric"], strict=True)
        ]
        table.loc[unclear & ~np.array(times), ["verdict", "code"]] = UNDECIDED, OTHER_SEED
    table.loc[repeated, ["verdict", "code"]] = UNCHANGED, ""
    order = [*KEYS, "verdict", "code"]
    rest = [name for name in table if name not in (*order, "label", "margin", "q")]
    at = rest.index("z") + 1
    table = table[[*order, *rest[:at], "margin", "q", *rest[at:]]]
    return Comparison(table, _apart(found), tuple(_notes(draws, found, sides)))


def _judged(base: pd.DataFrame, new: pd.DataFrame, margins: Margins) -> pd.DataFrame:
    """suite, cell, metric, verdict, code, margin and q of every metric that both sides have."""
    lines = judge.weigh(base, new, margins)
    lines = lines[~lines["code"].isin([judge.IN_BASE, judge.IN_NEW]) & (lines["metric"] != "")]
    back = judge.weigh(new, base, margins).set_index(KEYS)
    back = back.reindex(pd.MultiIndex.from_frame(lines[KEYS]))
    metrics = [margins.of(*pair) for pair in zip(lines["suite"], lines["metric"], strict=True)]
    is_other = np.array(
        [metric is not None and metric.worse == "other" for metric in metrics], bool
    )
    down, p_within = lines["p"].to_numpy(), lines["p_beyond"].to_numpy()
    # Where BASE alone is not finite, no test of it is made, and NEW is better.
    up = np.where(back["verdict"] == "failed", 0.0, back["p"].to_numpy())
    p = np.where(is_other, down, np.minimum(1.0, 2 * np.fmin(down, up)))
    tested = ~np.isnan(down)
    q = np.full(len(lines), np.nan)
    if tested.any():
        q[tested] = stats.false_discovery_control(p[tested])
    least = 2 * lines["least_p"].to_numpy() > judge.FALSE_DISCOVERIES / max(1, tested.sum())
    alpha = 1 - judge.CONFIDENCE
    within = (p_within <= alpha) & (is_other | (back["p_beyond"].to_numpy() <= alpha))
    within |= (lines["verdict"] == judge.FINE).to_numpy()
    is_changed = tested & (q <= judge.FALSE_DISCOVERIES)
    both_ways = is_other | (down == up)
    verdict = np.select(
        [is_changed & both_ways, is_changed & (down < up), is_changed, within],
        [CHANGED, WORSE, BETTER, UNCHANGED],
        UNDECIDED,
    )
    code = np.select(
        [verdict != UNDECIDED, lines["code"] == judge.BROKEN, lines["code"] != "", least],
        ["", NOT_FINITE, lines["code"], FEW_SAMPLES],
        WIDE,
    )
    return lines[[*KEYS, "margin"]].assign(verdict=verdict, code=code, q=q)


def _same_points(table: pd.DataFrame) -> pd.Series:
    """The cells that measured at the same points, whatever the seed.

    They have numbers without sampling error, such as the exact log-determinant, and those agree.
    """
    exact = table[(table["low"] == table["high"]) & table["difference"].notna()]
    close = np.isclose(exact["base"], exact["new"], rtol=ROUNDING, atol=ROUNDING**2)
    agree = pd.Series(close, exact["cell"]).groupby(level=0).all()
    return agree.index[agree].to_series()


def _apart(found: Matched) -> pd.DataFrame:
    lines = [
        {"suite": suite, "what": what, "n": n, "says": says}
        for suite in dict.fromkeys([*found.base, *found.new])
        for what, n, says in _not_compared(found.base.get(suite), found.new.get(suite))
    ]
    return pd.DataFrame(lines, columns=["suite", "what", "n", "says"])


def _not_compared(
    base: pd.DataFrame | None, new: pd.DataFrame | None
) -> Iterator[tuple[str, int, str]]:
    nothing = pd.DataFrame(columns=["cell", "status", "message", "metric"])
    sides = [nothing if frame is None else frame for frame in (base, new)]
    for frame, other, what in ((*sides, judge.IN_BASE), (*sides[::-1], judge.IN_NEW)):
        alone = frame[~frame["cell"].isin(other["cell"])]
        if len(alone):
            yield what, alone["cell"].nunique(), named(alone, other)
    for status in ("failed", "skipped"):
        for frame, other, name in ((*sides, "BASE"), (*sides[::-1], "NEW")):
            cells = frame[(frame["status"] == status) & frame["cell"].isin(other["cell"])]
            for message, of in cells.groupby("message", sort=False):
                yield status, of["cell"].nunique(), f"in {name}: {message}"


def _notes(
    draws: Sequence[set[Hashable]], found: Matched, sides: tuple[PooledRuns, PooledRuns]
) -> Iterator[str]:
    if draws[0] != draws[1]:
        names = [", ".join(sorted(map(_words, keys))) for keys in draws]
        yield (
            f"BASE was measured with {names[0]}, NEW with {names[1]}: they drew other random "
            "numbers, so the noise of both counts, and cells at other points are undecided"
        )
    if found.differing:
        axes = "; ".join(f"{k} = {b or 'none'} in BASE and {n or 'none'} in NEW"
                         for k, (b, n) in found.differing.items())  # fmt: skip
        yield f"no cell is the same in both; cells are matched without {axes}"
    for name, side in zip(("BASE", "NEW"), sides, strict=True):
        if len(side.left_out):
            counts = side.left_out["metric"].value_counts()
            each = ", ".join(f"{metric} ({n})" for metric, n in counts.items())
            yield (
                f"not pooled in {name}, because the seeds differ in them and they are no means "
                f"over draws: {each}"
            )


def _words(key: Hashable) -> str:
    """The preset and the seed, or other origin of draws, in words."""
    return " ".join(f"{k} {v}" for k, v in key) if isinstance(key, tuple) else str(key)
