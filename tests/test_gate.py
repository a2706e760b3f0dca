"""What the gate says of sides that are known: tables by eye, then false alarms and power."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from resflow_bench.analysis.gate import FINE, OPEN, UNJUDGED, WORSE, Samples, judge, only_twice
from resflow_bench.analysis.metrics import METRICS
from resflow_bench.analysis.outcome import (
    FAILED,
    PASSED,
    REGRESSION,
    TOO_LITTLE,
    UNDECIDED,
    conclude,
)

Row = tuple[str, str, list[float]]


def side(
    *rows: Row, status: str = "ok", message: str = "", paired: bool = True, version: str = "1"
) -> pd.DataFrame:
    """Rows of (cell, metric, samples) in the suite `s`."""
    return pd.DataFrame(
        [
            {
                **{"suite": "s", "cell": cell, "metric": metric, "status": status},
                **{"message": message, "unit": "u", "samples": Samples(np.array(samples))},
                **{"paired": paired, "version": version},
            }
            for cell, metric, samples in rows
        ]
    )


def verdict(metric: str, base: list[float], new: list[float], paired: bool = True) -> str:
    table = judge(*(side(("c", metric, one), paired=paired) for one in (base, new)))
    return str(table["verdict"].iloc[0])


@pytest.mark.parametrize(
    ("metric", "base", "new", "expected"),
    [
        ("log_det_exact", [-44.0], [-44.0], FINE),
        ("log_det_exact", [-44.0], [-44.1], WORSE),  # a tenth of a nat, where rounding is 1e-3
        ("log_det_exact", [-44.0], [-43.9], WORSE),  # no better than the truth either
        ("bias", [-0.1] * 8, [-0.1] * 8, FINE),  # negative and identical
        ("bias", [0.0, 0.2] * 8, [0.02, 0.22] * 8, WORSE),  # 0.02 nat, the noise in common
        ("bias", [0.0, 0.2] * 8, [0.005, 0.205] * 8, FINE),
        ("log_prob", [0.9], [0.5], WORSE),  # an accuracy that drops
        ("log_prob", [0.5], [0.9], FINE),
        ("inverse_error", [1e-6], [1.9e-6], FINE),
        ("inverse_error", [1e-6], [1e-3], WORSE),
        ("inverse_error", [0.0], [1e-9], WORSE),
        ("variance", [math.inf] * 8, [math.inf] * 8, FINE),
        ("variance", [1.0] * 8, [math.inf] * 8, "failed"),
        ("variance", [1.0] * 8, [math.nan] * 8, "failed"),
        ("wall_s", [1.0] * 3, [2.0] * 3, UNJUDGED),  # three processes a side
        ("wall_s", [1.0, 1.01] * 4, [1.2, 1.21] * 4, WORSE),
        ("wall_s", [1.2, 1.21] * 4, [1.0, 1.01] * 4, FINE),
        ("wall_s", [1.0, 2.0] * 4, [1.3, 2.3] * 4, OPEN),
        ("of my own", [1.0], [2.0], UNJUDGED),
    ],
)
def test_one_metric(metric: str, base: list[float], new: list[float], expected: str) -> None:
    assert verdict(metric, base, new, paired=metric != "wall_s") == expected


def test_common_random_numbers_count_only_where_they_are_common() -> None:
    """0.02 nat under a noise of 0.1: seen in pairs, not between strangers."""
    noise = np.random.default_rng(0).normal(0, 0.1, 16)
    base, new = noise.tolist(), (noise + 0.02).tolist()
    assert verdict("bias", base, new) == WORSE
    assert verdict("bias", base, new, paired=False) == OPEN
    assert verdict("bias", base, new[:15]) == OPEN  # not as many: no pairs


@pytest.mark.parametrize(
    ("base", "new", "expected"),
    [
        (side(("c", "bias", [0.0])), side(("c", "bias", [0.0])), PASSED),
        (side(("c", "bias", [0.0])), side(("c", "bias", [1.0])), REGRESSION),
        (side(("c", "bias", [0.0])), side(("c", "", []), status="failed"), FAILED),
        (side(("c", "bias", [0.0])), side(("c", "", []), status="skipped"), TOO_LITTLE),
        (side(("c", "bias", [0.0])), side(("c", "variance", [1.0])), TOO_LITTLE),
        (side(("c", "bias", [0.0])), side(("d", "bias", [0.0])), TOO_LITTLE),
        (side(("c", "bias", [0.0])), side(), TOO_LITTLE),
        (side(), side(("c", "bias", [0.0])), TOO_LITTLE),
        (side(), side(), TOO_LITTLE),
        (side(("c", "", []), status="skipped"), side(("c", "", []), status="skipped"), TOO_LITTLE),
        (side(("c", "", []), status="failed"), side(("c", "bias", [0.0])), TOO_LITTLE),
        (side(("c", "bias", [0.0])), side(("c", "bias", [9.0]), version="2"), TOO_LITTLE),
        (
            side(("c", "wall_s", [1.0, 2.0] * 4), paired=False),
            side(("c", "wall_s", [1.1, 2.1] * 4), paired=False),
            UNDECIDED,
        ),
    ],
)
def test_the_exit_code(base: pd.DataFrame, new: pd.DataFrame, expected: int) -> None:
    columns = side(("c", "bias", [0.0])).columns
    sides = (one.reindex(columns=columns) for one in (base, new))
    assert conclude(judge(*sides)).code == expected


def test_a_failed_cell_hides_no_regression_and_no_other_cell() -> None:
    base = side(("a", "bias", [0.0]), ("b", "bias", [0.0]), ("c", "bias", [0.0]))
    new = pd.concat([side(("a", "", []), status="failed", message="boom"), base[1:]])
    outcome = conclude(judge(base, new))
    assert outcome.code == FAILED
    assert outcome.table["verdict"].tolist() == ["failed", FINE, FINE]
    assert "boom" in outcome.words("text")
    worse = pd.concat([new[:2], side(("c", "bias", [1.0]))])
    assert conclude(judge(base, worse)).code == REGRESSION


def test_only_what_may_be_skipped_is_excused() -> None:
    base = pd.concat([side(("c", "bias", [0.0])), side(("x-cuda", "", []), status="skipped")])
    table = judge(base, base)
    assert conclude(table).code == TOO_LITTLE
    assert conclude(table, allowed=["cuda"]).code == PASSED
    assert conclude(judge(base[1:], base[1:]), allowed=["cuda"]).code == TOO_LITTLE
    once = pd.concat([side(("x-cuda", "bias", [0.0])), base[:1]])
    assert conclude(judge(once, base), allowed=["cuda"]).code == TOO_LITTLE  # it was there before


def test_a_regression_stands_if_it_is_found_twice() -> None:
    base = side(("a", "bias", [0.0]), ("b", "bias", [0.0]))
    new = side(("a", "bias", [1.0]), ("b", "bias", [1.0]))
    first = judge(base, new)
    second = judge(base, side(("a", "bias", [1.0]), ("b", "bias", [0.0])))
    assert only_twice(first, second)["verdict"].tolist() == [WORSE, OPEN]


def test_words() -> None:
    """Suite, cell, both values and the margin, in every layout."""
    base = side(("a | b", "bias", [0.0]), ("c", "wall_s", [1.0, 1.1] * 4))
    new = side(("a | b", "bias", [1.0]), ("c", "wall_s", [1.0, 1.1] * 4))
    outcome = conclude(judge(base, new))
    text, markdown = outcome.words("text"), outcome.words("markdown")
    for said in (text, markdown):
        assert said.startswith("gate: REGRESSION (1 metrics are worse)")
        for word in ("bias", "1.00", "0.0100", "wall_s", "four times in five"):
            assert word in said
    assert "| s | a / b | bias |" in markdown
    rows = json.loads(outcome.words("json"))
    assert rows["code"] == REGRESSION
    assert [row["verdict"] for row in rows["rows"]] == [WORSE, FINE]


def test_every_metric_that_the_suites_time_is_known_as_a_time() -> None:
    assert {name for name, metric in METRICS.items() if metric.is_time} >= {
        "wall_s", "examples_per_s", "seconds_per_example", "flops_fraction",
    }  # fmt: skip


# --- false alarms and power


def times(rng: np.random.Generator, factor: np.ndarray, between: float) -> pd.DataFrame:
    """Eight rounds of each of the cells, whose processes differ by so much."""
    rounds = 1e-2 * factor[:, None] * np.exp(rng.normal(0, between, (len(factor), 8)))
    rows = [(str(c), "wall_s", row.tolist()) for c, row in enumerate(rounds)]
    return side(*rows, paired=False)


def share_red(make: Callable[[int], tuple[pd.DataFrame, pd.DataFrame]], n: int) -> float:
    return float(np.mean([(judge(*make(i))["verdict"] == WORSE).any() for i in range(n)]))


@pytest.mark.parametrize("between", [0.02, 0.05])
def test_times_of_one_tree_are_no_regression_and_a_slower_suite_is(between: float) -> None:
    """200 cells, processes that differ by 2 and 5 %: red in at most 1 of 20; 20 cells that are
    15 % slower are found in at least 18 of 20.
    """
    rng = np.random.default_rng(0)
    same = np.ones(200)
    slower = np.where(np.arange(200) < 20, 1.15, 1.0)
    assert share_red(lambda _: (times(rng, same, between), times(rng, same, between)), 20) <= 0.05
    assert share_red(lambda _: (times(rng, same, between), times(rng, slower, between)), 20) >= 0.9


def test_a_planted_bias_and_a_planted_variance_are_found() -> None:
    """0.02 nat on replicates whose noise is common, 20 % of a variance on 16 shares of 250."""
    rng = np.random.default_rng(0)

    def bias(_: int) -> tuple[pd.DataFrame, pd.DataFrame]:
        draws = rng.normal(0, 0.2, (40, 16))
        shifted = draws + np.where(np.arange(40) == 7, 0.02, 0.0)[:, None]
        rows = ([(str(c), "bias", r.tolist()) for c, r in enumerate(d)] for d in (draws, shifted))
        base, new = (side(*one) for one in rows)
        return base, new

    def variance(_: int) -> tuple[pd.DataFrame, pd.DataFrame]:
        draws = rng.normal(0, 1.0, (40, 16, 250))
        both = draws.var(2), (draws * np.sqrt(1.2)).var(2)
        rows = ([(str(c), "variance", r.tolist()) for c, r in enumerate(d)] for d in both)
        base, new = (side(*one) for one in rows)
        return base, new

    assert share_red(bias, 20) >= 0.95
    assert share_red(variance, 20) >= 0.95
