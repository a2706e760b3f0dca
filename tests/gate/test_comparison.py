"""The comparison of two runs: each verdict and reason by eye, then symmetry and false alarms."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from resflow_bench.analysis.margins import Margins
from resflow_bench.gate.comparison import (
    BETTER,
    CHANGED,
    FEW_SAMPLES,
    NOT_FINITE,
    OTHER_SEED,
    REASONS,
    UNCHANGED,
    UNDECIDED,
    WIDE,
    WORSE,
    Comparison,
    compare,
)
from resflow_bench.gate.comparison_text import words
from resflow_bench.gate.judge import FEW_PROCESSES, IN_BASE, IN_NEW, NO_ERROR, NO_MARGIN
from resflow_bench.lab import TIME, Metric

NAN, INF = math.nan, math.inf
MARGINS = Margins(
    {
        "s": {
            "error": Metric("more", atol=0.01),
            "score": Metric("less", atol=0.01),
            "bias": Metric("other", atol=0.01),
            "exact": Metric("other", rtol=1e-3),
            "wall_s": TIME,
        }
    }
)
NOISE = np.random.default_rng(0).normal(0, 0.1, 16)


def row(
    metric: str, values: Any, cell: str = "c", error: float | None = None, **axes: Any
) -> dict[str, Any]:
    """One row of a number without sampling error, or of the mean of replicates."""
    values = np.atleast_1d(np.asarray(values, float))
    is_sampled = len(values) > 1
    s = float(values.std(ddof=1)) / len(values) ** 0.5 if is_sampled else 0.0
    s = s if error is None else error
    mean = float(values.mean())
    return {
        **{"suite": "s", "cell": cell, "status": "ok", "message": "", "metric": metric},
        **{"value": mean, "unit": "nat", "standard_error": s, "n": 16},
        **{"ci_low": mean - 2.6 * s, "ci_high": mean + 2.6 * s},
        **{"dim": 2, "model": cell} | axes,
        "replicates": values if is_sampled else np.empty(0),
    }


def broken(cell: str, status: str, message: str) -> dict[str, Any]:
    return row("", NAN, cell) | {"status": status, "message": message}


def run(*rows: dict[str, Any], seed: int = 0) -> tuple[Any, dict[str, pd.DataFrame]]:
    return (("preset", "smoke"), ("seed", seed)), {"s": pd.DataFrame(list(rows))}


def compared(base: list[dict[str, Any]], new: list[dict[str, Any]], seed: int = 0) -> Comparison:
    return compare([run(*base)], [run(*new, seed=seed)], MARGINS)


def verdict(base: dict[str, Any], new: dict[str, Any]) -> tuple[str, str]:
    (line,) = compared([base], [new]).table.itertuples()
    return str(line.verdict), str(line.code)


@pytest.mark.parametrize(
    ("metric", "base", "new", "expected", "code"),
    [
        ("error", NOISE, NOISE + 0.05, WORSE, ""),
        ("error", NOISE + 0.05, NOISE, BETTER, ""),
        ("score", NOISE, NOISE + 0.05, BETTER, ""),
        ("score", NOISE + 0.05, NOISE, WORSE, ""),
        ("bias", NOISE, NOISE + 0.05, CHANGED, ""),
        ("bias", NOISE + 0.05, NOISE, CHANGED, ""),
        ("error", NOISE, NOISE + 0.005, UNCHANGED, ""),  # shown, by pairs, to be in the margin
        ("error", NOISE, NOISE, UNCHANGED, ""),
        ("error", NOISE, NOISE[::-1] + 0.02, UNDECIDED, WIDE),
        ("exact", 1.0, 1.0005, UNCHANGED, ""),
        ("exact", 1.0, 1.1, CHANGED, ""),
        ("of my own", 1.0, 2.0, UNDECIDED, NO_MARGIN),
        ("of my own", 1.0, 1.0, UNCHANGED, ""),
        ("error", 1.0, INF, UNDECIDED, NOT_FINITE),
        ("error", INF, 1.0, BETTER, ""),
        ("error", INF, INF, UNCHANGED, ""),
        ("wall_s", 1.0, 2.0, UNDECIDED, FEW_PROCESSES),
    ],
)
def test_one_metric(metric: str, base: Any, new: Any, expected: str, code: str) -> None:
    assert verdict(row(metric, base), row(metric, new)) == (expected, code)


def test_an_infinite_standard_error_decides_nothing() -> None:
    sides = (row("error", 1.0, error=INF), row("error", 2.0, error=INF))
    assert verdict(*sides) == (UNDECIDED, NO_ERROR)


@pytest.mark.parametrize(("n", "expected"), [(3, FEW_PROCESSES), (4, ""), (8, "")])
def test_times_need_four_runs_a_side_and_are_medians(n: int, expected: str) -> None:
    """Twice as slow, in runs of different seeds; the reason goes with the fourth run."""
    sides = [
        [run(row("wall_s", factor * (1 + i / 100)), seed=seed + i) for i in range(n)]
        for factor, seed in ((1.0, 0), (2.0, 100))
    ]
    (line,) = compare(*sides, MARGINS).table.itertuples()
    assert line.code == expected
    assert line.verdict == (UNDECIDED if expected else WORSE)
    assert line.base == pytest.approx(1 + (n - 1) / 200)
    (line,) = compare(*sides[::-1], MARGINS).table.itertuples()
    assert line.verdict == (UNDECIDED if expected else BETTER)


def test_among_many_metrics_four_runs_are_too_few() -> None:
    """The least p of 4 + 4 ranks is 1/70, which no change passes among a hundred tests."""

    def one_run(seed: int) -> tuple[Any, dict[str, pd.DataFrame]]:
        values = {f"c{i}": 1 + seed % 10 / 9 + i / 999 for i in range(100)}
        return run(*(row("wall_s", v, c, model=c) for c, v in values.items()), seed=seed)

    sides = [[one_run(first + i) for i in range(4)] for first in (0, 10)]
    table = compare(*sides, MARGINS).table
    assert set(table["code"]) == {FEW_SAMPLES}


def test_every_reason_is_explained() -> None:
    codes = {WIDE, FEW_SAMPLES, OTHER_SEED, NOT_FINITE, NO_MARGIN, FEW_PROCESSES, NO_ERROR}
    assert codes == REASONS.keys()


def test_the_interval_is_that_of_the_pairs() -> None:
    """A shift under noise in common has no error; under other noise, that of both."""
    shift = np.linspace(0.04, 0.06, 16)
    (pairs,) = compared([row("error", NOISE)], [row("error", NOISE + shift)]).table.itertuples()
    assert pairs.difference == pytest.approx(0.05)
    assert pairs.high - pairs.low == pytest.approx(2 * 2.947 * shift.std(ddof=1) / 4, rel=1e-3)
    (single,) = compared([row("error", NOISE)], [row("error", NOISE + shift)], 1).table.itertuples()
    assert single.high - single.low == pytest.approx(2 * 2.576 * np.hypot(
        NOISE.std(ddof=1), (NOISE + shift).std(ddof=1)) / 4, rel=1e-3)  # fmt: skip


def test_other_seeds_are_compared_where_exact_numbers_show_the_same_points() -> None:
    sampled = [row("error", NOISE, cell) for cell in ("same", "other", "none")]
    new = [row("error", NOISE[::-1] + 1.0, cell) for cell in ("same", "other", "none")]
    base = [*sampled, row("exact", 3.0, "same"), row("exact", 3.0, "other")]
    new += [row("exact", 3.0 + 1e-9, "same"), row("exact", 4.0, "other")]
    found = compared(base, new, seed=1)
    got = {(line.cell, line.metric): (line.verdict, line.code) for line in found.table.itertuples()}
    assert got == {
        ("same", "error"): (WORSE, ""),
        ("same", "exact"): (UNCHANGED, ""),
        **{(cell, "error"): (UNDECIDED, OTHER_SEED) for cell in ("other", "none")},
        ("other", "exact"): (UNDECIDED, OTHER_SEED),
    }
    (note,) = found.notes
    assert note.startswith("BASE was measured with preset smoke seed 0, NEW with preset smoke seed")


def test_the_same_seeds_in_any_order_make_pairs() -> None:
    sides = []
    for shift in (0.0, 0.05):
        noise = np.random.default_rng(1)
        sides.append([run(row("error", noise.normal(0, 1, 16) + shift), seed=i) for i in range(3)])
    (line,) = compare(sides[0], sides[1][::-1], MARGINS).table.itertuples()
    assert line.verdict == WORSE
    assert line.high - line.low < 1e-9


def test_cells_that_are_not_in_both_are_counted_and_named() -> None:
    base = [row("error", 1.0, "a", dim=2), row("error", 1.0, "b", dim=4),
            row("error", 1.0, "f"), broken("g", "skipped", "no GPU")]  # fmt: skip
    new = [row("error", 1.0, "a", dim=2), row("error", 1.0, "d", dim=8), row("error", 1.0, "e"),
           broken("f", "failed", "did not converge"), broken("g", "skipped", "no GPU")]  # fmt: skip
    found = compared(base, new)
    assert found.apart.values.tolist() == [
        ["s", IN_BASE, 1, "dim = 4; model = b"],
        ["s", IN_NEW, 2, "dim = 8; model = d, e"],
        ["s", "failed", 1, "in NEW: did not converge"],
        ["s", "skipped", 1, "in BASE: no GPU"],
        ["s", "skipped", 1, "in NEW: no GPU"],
    ]
    text = words(found, "text")
    assert "only in BASE, s, 1 cell: dim = 4; model = b" in text
    assert "1 unchanged, of 1 metrics" in text


def test_runs_without_a_cell_in_common_are_matched_without_what_sets_them_apart() -> None:
    """As two trainings of two architectures are, step by step."""
    base = [row("error", e, f"a{step}", model="mlp", step=step) for step, e in ((1, 3.0), (2, 2.0))]
    new = [row("error", e, f"b{step}", model="nsf", step=step) for step, e in ((1, 3.0), (2, 1.0))]
    found = compared(base, new)
    assert found.table[["verdict", "step"]].values.tolist() == [[BETTER, 2], [UNCHANGED, 1]]
    assert found.notes == (
        "no cell is the same in both; cells are matched without model = mlp in BASE and nsf in NEW",
    )
    assert len(compared(base[:1], new[1:]).table) == 1, "then the step sets them apart, too"
    assert compared(base, [row("error", 1.0, "x", model="nsf", step=3)] * 2).table.empty


def test_what_cannot_be_pooled_is_noted() -> None:
    sides = [[run(row("exact", float(seed)), seed=seed) for seed in (1, 2)]] * 2
    found = compare(*sides, MARGINS)
    assert found.table.empty
    assert len(found.notes) == 2
    assert found.notes[0].endswith("exact (1)")


def test_sides_exchanged_exchange_better_and_worse() -> None:
    generator = np.random.default_rng(2)
    sides = [
        [row(metric, generator.normal(mean, 0.1, 16), f"{metric}{i}")
         for metric in ("error", "score", "bias") for i, mean in enumerate(means)]
        for means in (np.zeros(20), np.linspace(-0.2, 0.2, 20))
    ]  # fmt: skip
    there, back = compared(*sides, seed=0), compared(*sides[::-1], seed=0)
    turned = {WORSE: BETTER, BETTER: WORSE}
    a, b = (t.table.set_index(["cell", "metric"]).sort_index() for t in (there, back))
    assert a["verdict"].map(lambda v: turned.get(v, v)).tolist() == b["verdict"].tolist()
    assert there.counts()[WORSE] > 0 < there.counts()[BETTER]


def test_false_alarms() -> None:
    """1,000 metrics without a change beyond the margin: at most 5 % of such families alarm.

    200 families of 5 metrics each, whose true change is the margin itself, where an alarm is most
    likely. More than 20 alarms among 200 families have a probability of 0.1 % at 5 %.
    """
    generator = np.random.default_rng(3)
    n_alarms = 0
    for _ in range(200):
        base, new = [], []
        for i in range(5):
            noise, metric = generator.normal(0, 0.1, 16), ("error", "score", "bias")[i % 3]
            base.append(row(metric, noise, f"c{i}"))
            shift = {"error": 0.01, "score": -0.01, "bias": 0.01}[metric]
            new.append(row(metric, noise + generator.normal(shift, 0.03, 16), f"c{i}"))
        counts = compared(base, new).counts()
        n_alarms += counts[WORSE] + counts[BETTER] + counts[CHANGED] > 0
    assert n_alarms <= 20


def test_the_layouts_say_the_same() -> None:
    base = [row("error", NOISE, "a"), row("error", NOISE, "b"), row("mine", 1.0, "a|b")]
    new = [row("error", NOISE + 0.05, "a"), row("error", NOISE, "b"), row("mine", 2.0, "a|b")]
    found = compared(base, new)
    content = json.loads(words(found, "json"))
    assert content["counts"] == {WORSE: 1, BETTER: 0, CHANGED: 0, UNDECIDED: 1, UNCHANGED: 1}
    assert content["reasons"] == {NO_MARGIN: 1}
    assert [line["verdict"] for line in content["rows"]] == found.table["verdict"].tolist()
    csv = words(found, "csv").splitlines()
    assert csv[0].startswith("suite,cell,metric,verdict,code,unit,base,new,difference,low,high,z")
    assert len(csv) == 1 + 3
    for layout in ("text", "markdown"):
        text = words(found, layout)
        assert "1 worse, 0 better, 0 changed, 1 undecided, 1 unchanged" in text
        assert f"undecided, 1: {NO_MARGIN}: {REASONS[NO_MARGIN]}" in text
        assert text.count("error") == 1, "what is unchanged is counted"
    table = [line for line in words(found, "markdown").splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
