"""What the gate says of sides that are known: tables by eye, then false alarms and power."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_up import SUITES

from resflow_bench.analysis.margins import Margins
from resflow_bench.gate import judge as gate
from resflow_bench.gate.conclusion import (
    FAILED,
    PASSED,
    REGRESSION,
    TOO_LITTLE,
    UNDECIDED,
    conclude,
)
from resflow_bench.gate.judge import FINE, NO_BASE, OPEN, UNJUDGED, WORSE, confirmed
from resflow_bench.gate.samples import Samples, of_runs

Row = tuple[str, str, list[float]]

METRICS = {name: metric for s in SUITES.values() for name, metric in s.claims.metrics.items()}


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


def judge(base: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """By the margins of all suites."""
    return gate.judge(base, new, Margins({"s": METRICS}))


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
        ("variance", [math.nan] * 8, [math.nan] * 8, "failed"),
        ("variance", [math.nan] * 8, [1.0] * 8, NO_BASE),
        ("variance", [math.inf] * 8, [1.0] * 8, FINE),
        ("log_prob", [math.inf], [1.0], WORSE),
        ("variance_bound", [math.inf], [5.0], WORSE),
        ("wall_s", [1.0] * 3, [2.0] * 3, UNJUDGED),  # three processes a side
        ("wall_s", [1.0, 1.01] * 4, [1.2, 1.21] * 4, WORSE),
        ("wall_s", [1.2, 1.21] * 4, [1.0, 1.01] * 4, FINE),
        ("wall_s", [1.0, 2.0] * 4, [1.1, 2.1] * 4, OPEN),
        ("wall_s", [1.0, 1.01] * 4, [1.2] * 6 + [9.0] * 2, WORSE),  # disturbed twice
        ("wall_s", [1.0, 1.01] * 4, [1.0, 1.01] * 3 + [9.0] * 2, FINE),
        ("of my own", [1.0], [2.0], UNJUDGED),
    ],
)
def test_one_metric(metric: str, base: list[float], new: list[float], expected: str) -> None:
    assert verdict(metric, base, new, paired=metric != "wall_s") == expected


def test_each_suite_has_margins_of_its_own() -> None:
    """The same metric of a suite without a margin is not judged; a wall_s is a time anywhere."""
    base = side(("c", "bias", [0.0]), ("c", "wall_s", [1.0, 1.01] * 4), paired=False)
    new = side(("c", "bias", [1.0]), ("c", "wall_s", [1.3, 1.31] * 4), paired=False)
    both = [pd.concat([one, one.assign(suite="t")]) for one in (base, new)]
    table = gate.judge(*both, Margins({"s": METRICS}))
    assert table["verdict"].tolist() == [WORSE, WORSE, UNJUDGED, WORSE]


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
    conclusion = conclude(judge(base, new))
    assert conclusion.code == FAILED
    assert conclusion.table["verdict"].tolist() == ["failed", FINE, FINE]
    assert "boom" in conclusion.words("text")
    worse = pd.concat([new[:2], side(("c", "bias", [1.0]))])
    assert conclude(judge(base, worse)).code == REGRESSION


def test_only_what_may_be_skipped_is_excused() -> None:
    base = pd.concat(
        [side(("c", "bias", [0.0])), side(("x-cuda", "", []), status="skipped", message="no GPU")]
    )
    conclusion = conclude(judge(base, base))  # skipped on both sides is no gap, and is said
    assert conclusion.code == PASSED
    assert "not judged, 1: skipped on both sides: no GPU" in conclusion.words("text")
    assert conclude(judge(base[1:], base[1:])).code == TOO_LITTLE
    unknown, other = base.replace("no GPU", ""), base.replace("no GPU", "no network")
    assert conclude(judge(unknown, base)).code == PASSED  # BASE measured nothing, and NEW says why
    for before, after in ((unknown, unknown), (base, unknown), (base, other)):
        assert conclude(judge(before, after)).code == TOO_LITTLE
    assert conclude(judge(base[:1], base)).code == TOO_LITTLE  # new, and skipped
    assert conclude(judge(base[:1], base), allowed=["cuda"]).code == PASSED
    once = pd.concat([side(("x-cuda", "bias", [0.0])), base[:1]])
    assert conclude(judge(once, base), allowed=["cuda"]).code == TOO_LITTLE  # it was there before


def test_a_regression_stands_if_it_is_found_twice() -> None:
    base = side(("a", "bias", [0.0]), ("b", "bias", [0.0]))
    new = side(("a", "bias", [1.0]), ("b", "bias", [1.0]))
    first = judge(base, new)
    second = judge(base, side(("a", "bias", [1.0]), ("b", "bias", [0.0])))
    assert confirmed(first, second)["verdict"].tolist() == [WORSE, FINE]
    assert confirmed(first, second[:0])["verdict"].tolist() == [WORSE, WORSE]
    failed = pd.concat([side(("a", "", []), ("b", "", []), status="failed")])
    assert confirmed(first, judge(base, failed))["verdict"].tolist() == [WORSE, WORSE]
    assert confirmed(first, judge(failed, new))["verdict"].tolist() == [WORSE, WORSE]


def test_a_base_that_mostly_failed_is_no_base() -> None:
    """Nor is a skipped cell that failed before; what is gone from both is nobody's loss."""
    names = [str(i) for i in range(9)]
    new = side(("ok", "bias", [0.0]), *((name, "bias", [0.0]) for name in names))
    failed = pd.concat([new[:1], side(*((name, "", []) for name in names), status="failed")])
    assert conclude(judge(failed, new)).code == TOO_LITTLE
    assert conclude(judge(failed[:2], new[:2])).code == PASSED
    skipped = pd.concat([new[:1], side(("0", "", []), status="skipped")])
    assert conclude(judge(failed[:2], skipped)).code == TOO_LITTLE
    assert conclude(judge(failed[:2], new[:1])).code == PASSED
    assert conclude(judge(skipped, new[:1])).code == PASSED


def test_exact_numbers_do_not_hide_how_many_noisy_ones_are_undecided() -> None:
    exact = [(str(i), "bias", [0.0]) for i in range(20)]
    base = side(*exact, ("c", "wall_s", [1.0, 2.0] * 4), paired=False)
    new = side(*exact, ("c", "wall_s", [1.1, 2.1] * 4), paired=False)
    assert conclude(judge(base, new)).code == UNDECIDED


def test_a_metric_that_is_new_is_shown() -> None:
    base = side(("c", "bias", [0.0]))
    for value, expected in ((1.0, UNJUDGED), (math.nan, "failed")):
        table = judge(base, side(("c", "bias", [0.0]), ("c", "residual", [value])))
        assert table["verdict"].tolist() == [FINE, expected]


@pytest.mark.parametrize("metric", ["variance", "bias"])
@pytest.mark.parametrize("n", [4, 16])
def test_the_smallest_detectable_change_is_found_four_times_in_five(metric: str, n: int) -> None:
    """300 pairs of noise with that change in common: 0.8 +- 0.09 is four standard errors."""
    rng = np.random.default_rng(0)
    scale = 1e-3
    known = judge(*(side(("c", metric, list(1 + scale * noise)), paired=False)
                    for noise in _standard(rng, n)))  # fmt: skip
    change = float(known["detectable"].iloc[0])
    found = 0
    for _ in range(300):
        old, new = (1 + scale * rng.standard_normal(n) for _ in range(2))
        table = judge(
            side(("c", metric, list(old)), paired=False),
            side(("c", metric, list(new + change)), paired=False),
        )
        found += table["verdict"].iloc[0] == WORSE
    assert abs(found / 300 - 0.8) < 0.09


def _standard(rng: np.random.Generator, n: int) -> list[np.ndarray]:
    """Two samples of n whose standard deviations are exactly 1."""
    samples = rng.standard_normal((2, n))
    samples -= samples.mean(1, keepdims=True)
    return list(samples / samples.std(1, ddof=1, keepdims=True))


def test_the_same_numbers_are_fine_however_noisy() -> None:
    """Of runs with one seed that bring a value and its standard error alone."""
    noisy, moved = (side(("c", "log_prob", [0.0])) for _ in range(2))
    noisy["samples"] = [Samples(np.array([0.9]), 0.5)]
    moved["samples"] = [Samples(np.array([0.9 + 1e-9]), 0.5)]
    assert judge(noisy, noisy)["verdict"].tolist() == [FINE]
    assert judge(noisy, moved)["verdict"].tolist() == [OPEN]


def test_too_few_rounds_find_nothing_and_say_so() -> None:
    """Four a side: one in 70 orders is as extreme, which is too often for twenty cells."""
    cells = [(str(i), "wall_s", [1.0, 1.01, 1.02, 1.03]) for i in range(20)]
    table = judge(side(*cells, paired=False), side(*cells, paired=False))
    assert np.isinf(table["detectable"]).all()
    assert "Too few samples to detect any change: wall_s (20)" in conclude(table).words("text")


def test_what_is_undecided_is_named() -> None:
    base = side(("steady", "bias", [0.0, 1e-4] * 4), ("noisy", "bias", [0.0, 9.0] * 4))
    new = side(("steady", "bias", [1e-4, 0.0] * 4), ("noisy", "bias", [9.0, 0.0] * 4))
    conclusion = conclude(judge(base, new))
    assert conclusion.code == PASSED
    assert "noisy" in conclusion.words("text")
    assert "steady" not in conclusion.words("text")
    assert conclude(judge(base, new), max_undecided=0.0).code == UNDECIDED


def test_words() -> None:
    """Suite, cell, both values and the margin, in every layout."""
    base = side(("a | b", "bias", [0.0]), ("c", "wall_s", [1.0, 1.1] * 4))
    new = side(("a | b", "bias", [1.0]), ("c", "wall_s", [1.0, 1.1] * 4))
    conclusion = conclude(judge(base, new))
    text, markdown = conclusion.words("text"), conclusion.words("markdown")
    for said in (text, markdown):
        assert said.startswith("gate: REGRESSION (metrics worse: 1)")
        for word in ("bias", "1.00", "0.0100", "wall_s", "four times in five"):
            assert word in said
    assert "| s | a / b | bias |" in markdown
    rows = json.loads(conclusion.words("json"))
    assert rows["code"] == REGRESSION
    assert [row["verdict"] for row in rows["rows"]] == [WORSE, FINE]


def timed_in(text: str) -> set[str]:
    """First arguments of the calls that give a unit of seconds; of an f-string its beginning."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        units = {"s", "1/s"}
        if not isinstance(node, ast.Call) or not any(
            isinstance(given, ast.Constant) and given.value in units for given in node.args
        ):
            continue
        match node.args[0]:
            case (
                ast.Constant(value=str(name)) | ast.JoinedStr(values=[ast.Constant(value=name), *_])
            ):
                found.add(name)
    return found - {"s", "1/s"}


def test_every_metric_that_the_suites_time_is_known_as_a_time() -> None:
    """Else the calls of one process would count as many, and any busy minute as a regression."""
    root = Path(__file__).parents[2]
    files = [*root.glob("resflow_bench/**/*.py"), *root.glob("suites/**/*.py")]
    names = {name for file in files for name in timed_in(file.read_text("utf-8"))}
    assert names >= {"wall_s", "examples_per_s", "seconds_per_example", "overhead_s", "wall_s_"}
    for name in names:
        known = {metric for metric in METRICS if metric.startswith(name)}
        assert known, f"{name} has no margin"
        assert all(METRICS[metric].is_time for metric in known), name


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


@pytest.mark.parametrize(
    ("reaches", "expected"),
    [
        ((2.595, 2.595), FINE),
        ((2.595, 2.7), FINE),  # of another draw of a skewed statistic
        ((2.595, 1.97), WORSE),  # 95 % in place of 99 %
        ((2.595, 466.0), WORSE),  # an allowance for rounding that swallows everything
        ((2.595, math.nan), WORSE),
        ((3.6, 2.6), FINE),  # mostly rounding in BASE, which differs between machines
        ((math.nan, 2.6), FINE),
        ((math.inf, math.inf), FINE),  # nothing is random
    ],
)
def test_an_interval_of_another_length_is_a_regression(reaches, expected) -> None:
    """Of the same numbers: half the interval in standard errors is that of its level."""
    base, new = side(("c", "bias", [0.1])), side(("c", "bias", [0.1]))
    for table, reach in zip((base, new), reaches, strict=True):
        table["samples"] = [Samples(np.array([0.1]), 0.01, reach)]
    assert judge(base, new)["verdict"].tolist() == [expected]


def test_the_baseline_with_intervals_at_95_percent_is_a_regression() -> None:
    """Every sampled bias of it, and nothing else."""
    frame = pd.read_parquet(Path(__file__).parents[2] / "results" / "baseline" / "bias")
    middle, narrow = (frame["ci_low"] + frame["ci_high"]) / 2, 1.96 / 2.576
    cut = frame.assign(
        ci_low=middle + narrow * (frame["ci_low"] - middle),
        ci_high=middle + narrow * (frame["ci_high"] - middle),
    )
    margins = Margins({"bias": METRICS})
    base, new = (of_runs([{"bias": one}], margins) for one in (frame, cut))
    assert not (gate.judge(base, base, margins)["verdict"] == WORSE).any()
    judged = gate.judge(base, new, margins)
    worse = judged[judged["verdict"] == WORSE]
    assert len(worse) >= 4
    assert set(worse["metric"]) == {"bias", "bias_paired", "weight_bias"}
    assert worse["reason"].str.contains(r"reaches [12]\.?\d* standard errors, 2\.\d+ in BASE").all()
