"""Literal tables, small enough to check by eye."""

from __future__ import annotations

import ast
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_up import SUITES
from scipy import stats

from resflow_bench import analysis
from resflow_bench.analysis import rules
from resflow_bench.analysis.findings import findings
from resflow_bench.analysis.rules import AtMost, Equals, Exactly, apply
from resflow_bench.analysis.tables import axes, label, units, wide
from resflow_bench.analysis.verdicts import judge, judge_disputed, summary
from resflow_bench.analysis.words import number, with_interval
from resflow_bench.lab import Claims, Statement
from resflow_bench.lab.claims import Rule
from resflow_bench.lab.store import COLUMNS
from resflow_bench.logdet import law_named

NAN, INF = math.nan, math.inf
FIXED = "truncation == 'fixed'"


def table(text: str) -> pd.DataFrame:
    """Lines of words to columns; what reads as a number is one, `-` is nothing."""
    head, *lines = (line.split() for line in text.strip().splitlines())
    frame = pd.DataFrame(lines, columns=head).replace("-", None)
    for name in frame:
        try:
            frame[name] = pd.to_numeric(frame[name])
        except ValueError:
            continue
    return frame


LONG = table("""
    suite  cell status  message  metric  value  unit  standard_error  ci_low  ci_high   n   model  n_terms
    bias   a    ok      -        bias    0.5    nat   0.1             0.2     0.8       10  init   5
    bias   a    ok      slow     bound   2      nat   0               2       2         1   init   5
    bias   b    failed  broke    -       -      -     -               -       -         0   init   10
    bias   c    ok      -        bias    9      nat   0.1             8.7     9.3       10  init   20
    bias   c    ok      -        bias    0.1    nat   0.1             -0.2    0.4       10  init   20
""")  # fmt: skip  # noqa: E501


def test_wide_has_a_row_for_each_cell() -> None:
    cells = wide(LONG).set_index("cell")
    assert cells.index.tolist() == ["a", "b", "c"]
    assert axes(LONG) == axes(wide(LONG)) == ["model", "n_terms"]
    assert cells.loc["a", ["bias", "bias_low", "bias_high", "bias_n", "bound"]].tolist() == [
        *(0.5, 0.2, 0.8, 10, 2),
    ]
    assert cells["status"].tolist() == ["ok", "failed", "ok"]
    assert cells["message"].tolist() == ["slow", "broke", ""]
    assert cells["bias"].isna().tolist() == [False, True, False]
    assert cells.loc["c", "bias"] == 0.1  # measured twice: the last counts
    assert units(LONG) == {"bias": "nat", "bound": "nat"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((0.0, "0"), (0.01234, "0.0123"), (1234.5, "1,234"), (-0.5, "−0.500")),
        *((4.14e-7, "4.14e-7"), (9.996, "10.00"), (INF, "∞"), (NAN, "–"), (-INF, "−∞")),
    ],
)
def test_number(value: float, text: str) -> None:
    assert number(value) == text


def test_an_interval_is_given_to_the_second_digit_of_its_half_width() -> None:
    assert with_interval(287.301, 287.29, 287.31) == "287.301 [287.290, 287.310]"
    assert with_interval(0.00899, -0.0675, 0.0855) == "0.009 [−0.068, 0.086]"
    assert with_interval(1234.5, 934.5, 1534.5) == "1,234 [934, 1,534]"
    assert with_interval(-0.001, -0.5, 0.5) == "0.00 [−0.50, 0.50]"
    assert with_interval(1e-7, 0.9e-7, 1.1e-7) == "1.00e-7 [9.00e-8, 1.10e-7]"
    assert with_interval(2.0, 1.0, INF) == "2.00 [1.00, ∞]"
    assert with_interval(0.5, NAN, NAN) == with_interval(0.5, 0.5, 0.5) == "0.500"


def test_a_cell_in_words() -> None:
    cell = {"model": "init", "lipschitz": 0.9, "n_terms": None, "probe": "gaussian"}
    assert label(cell, ["model", "lipschitz", "n_terms", "probe"]) == "init, K = 0.9, gaussian"


def test_decay_of_a_law() -> None:
    assert law_named("geometric(0.1)").decay == pytest.approx(0.9)
    assert law_named("poisson(2)").decay == 0.0


def lines(rule: Rule, cells: str) -> list[tuple[str, str]]:
    """Verdict and reason of each cell, by that rule alone."""
    statement = Statement("it", "says", "source", rule)
    tested = apply(statement, table(cells).assign(status="ok"))
    return list(zip(tested["shown"], tested["reason"], strict=True))


def test_equality_is_shown_by_a_narrow_interval_around_the_reference() -> None:
    cells = """
        cell  y     y_low  y_high  y_se   x
        same  1.00  0.95   1.05    0.019  1.01
        wide  1.00  0.50   1.50    0.190  1.01
        off   1.00  0.95   1.05    0.019  1.06
        small 0.00  -0.02  0.02    0.008  0.001
        none  1.00  -      -       -      1.00
        inf   1.00  -inf   inf     -      1.00
    """
    assert lines(Equals("y", "x"), cells) == [
        (True, ""),
        (False, "interval too wide"),
        (False, rules.CHANCE),
        (True, ""),
        (False, rules.NO_INTERVAL),
        (False, rules.INFINITE),
    ]


def test_a_bound_is_shown_by_an_interval_inside() -> None:
    cells = """
        cell    y      y_low  y_high  y_se   b     x
        inside  1.00   0.90   1.10    0.039  1.2   1.0
        equal   1.00   0.90   1.10    0.039  1.0   1.0
        across  1.00   0.90   1.10    0.039  1.05  0.9
        above   1.00   0.90   1.10    0.039  0.8   0.7
        minus   -1.00  -1.10  -0.90   0.039  1.2   -1.0
        over    -1.00  -1.10  -0.90   0.039  0.8   -1.0
        nothing 1.00   0.90   1.10    0.039  inf   1.0
        exact   1.00   1.00   1.00    0      1.0   1.0
    """
    assert lines(AtMost("y", "b", theory="x", absolute=True), cells) == [
        (True, ""),
        (False, "the bound is attained"),
        (False, "interval across the bound"),
        (False, rules.CHANCE),
        (True, ""),
        (False, rules.CHANCE),
        (True, ""),  # and the cell without a bound is left out
    ]


def test_p_is_that_of_the_normal_law() -> None:
    cells = table("""
        cell  y    y_low  y_high  y_se  x
        at    1.0  0.9    1.2     0.05  1.0
        edge  1.0  0.9    1.2     0.05  0.9
        above 1.0  0.9    1.2     0.05  1.2
        twice 1.0  0.9    1.2     0.05  0.8
        bound 1.0  0.9    1.2     -     0.0
        in    1.0  0.9    1.2     -     1.1
        exact 1.0  1.0    1.0     0     1.1
    """).assign(status="ok")
    two = Equals("y", "x").test(cells)["p"].tolist()
    far = 2 * stats.norm.sf(2 * stats.norm.ppf(0.995))
    assert two == pytest.approx([1, 0.01, 0.01, far, 0.01, 1, 0], abs=1e-12)
    one = AtMost("y", "x").test(cells)["p"].tolist()
    assert one == pytest.approx([0.5, 0.005, 0.995, far / 2, 0.01, 1, 1], abs=1e-4)


def test_exact_numbers_are_compared_up_to_rounding() -> None:
    cells = """
        cell  y          b
        less  0.9        0.9
        round 0.9000001  0.9
        more  0.91       0.9
    """
    statement = Statement("it", "says", "source", Exactly("y", "b"))
    tested = apply(statement, table(cells).assign(status="ok"))
    assert tested["broken"].tolist() == [False, False, True]
    assert tested["p"].isna().all()


def rows(frame: pd.DataFrame) -> pd.DataFrame:
    """Long rows of suite `bias` from columns y, low, high, se, expected."""
    common = {"suite": "bias", "status": "ok", "message": "", "unit": "nat", "n": 9}
    measured = frame.rename(columns={"y": "value", "low": "ci_low", "high": "ci_high"})
    measured = measured.rename(columns={"se": "standard_error"}).assign(metric="bias", **common)
    expected = measured.assign(metric="bias_expected", value=measured["expected"])
    both = pd.concat([measured, expected]).drop(columns="expected")
    return both.assign(truncation="fixed", **common)


def test_judge_gives_each_cell_a_verdict_with_its_numbers() -> None:
    cells = table("""
        cell  y    low   high  se     expected
        good  1.0  0.95  1.05  0.019  1.01
        bad   1.0  0.95  1.05  0.019  1.20
        wide  1.0  0.50  1.50  0.190  1.20
    """)
    frame = rows(cells)
    judged = judge({"bias": frame, "empty": frame.head(0)}, SUITES).set_index("cell")
    assert judged["statement"].unique().tolist() == ["bias as expected"]
    assert judged["verdict"].to_dict() == {"good": "holds", "bad": "violated", "wide": "undecided"}
    assert judged["reason"].to_dict() == {"good": "", "bad": "", "wide": "interval too wide"}
    assert judged.loc["bad", "detail"] == "1.000 [0.950, 1.050], expected 1.20"
    assert judged.loc["bad", "q"] == pytest.approx(3 * judged.loc["bad", "p"])
    assert summary(judged.reset_index()).to_dict("records") == [
        {
            "suite": "bias",
            "statement": "bias as expected",
            "holds": 1,
            "violated": 1,
            "undecided": 1,
        }
    ]


def test_infinite_variance_is_said_and_not_averaged() -> None:
    cells = table("""
        cell  y    y_low  y_high  y_se  x    variance_is_finite  status
        yes   1.0  0.99   1.01    0.01  1.0  1                   ok
        no    9.0  8.99   9.01    0.01  1.0  0                   ok
    """)
    tested = apply(Statement("it", "says", "source", Equals("y", "x")), cells)
    assert tested["reason"].tolist() == ["", rules.INFINITE]
    assert tested["p"].isna().tolist() == [False, True]


def test_a_statement_speaks_only_of_the_cells_it_is_about() -> None:
    cells = table("""
        cell  y    b    truncation  status
        a     1.0  2.0  fixed       ok
        b     1.0  2.0  roulette    ok
        c     1.0  2.0  fixed       failed
        d     1.0  -    fixed       ok
    """)
    statement = Statement("it", "says", "source", Exactly("y", "b"), only=FIXED)
    assert apply(statement, cells)["cell"].tolist() == ["a"]
    elsewhere = Statement("it", "says", "source", Exactly("y", "absent"))
    assert apply(elsewhere, cells).empty


def _judged(draw: np.random.Generator, bias: float, n: int) -> pd.DataFrame:
    """n cells of true mean 1 + `bias` standard errors held to mean 1."""
    z = draw.standard_normal(n) + bias
    half = 0.01 * stats.norm.ppf(0.995)
    frame = pd.DataFrame({"y": 1 + 0.01 * z, "se": 0.01, "expected": 1.0})
    frame = frame.assign(low=frame["y"] - half, high=frame["y"] + half, cell=range(n))
    return judge({"bias": rows(frame)}, SUITES)


def test_true_statements_are_hardly_ever_violated_and_false_ones_are() -> None:
    """50 sweeps of 50 true cells: each has a violation with probability at most 1 %, so more than
    0.5 + 4 sqrt(0.5) = 3.3 such sweeps would be a false alarm rate above it; without the control
    they would be 20. The biased twin is off by 6 standard errors in every cell; 4 show.
    """
    draw = np.random.default_rng(0)
    alarms = sum((_judged(draw, 0.0, 50)["verdict"] == "violated").any() for _ in range(50))
    assert alarms <= 3
    assert (_judged(draw, 6.0, 50)["verdict"] == "violated").mean() > 0.95


def test_findings_of_nothing_are_none() -> None:
    assert findings({}, SUITES) == []
    assert findings({"bias": LONG.head(0)}, SUITES) == []
    assert findings({"bias": LONG}, SUITES) == []


def peers(cells: str) -> dict[str, pd.DataFrame]:
    wide_ = table(cells)
    common = {"suite": "peers", "status": "ok", "message": "", "unit": "nat", "n": 9}
    told = ("cell", "implementation", "mode")
    parts = []
    for metric in ("bias", "bias_expected", "spectral_radius"):
        part = wide_[[*told, metric]].rename(columns={metric: "value"})
        half = 0.5 if metric == "bias" else 0.0
        ends = {"ci_low": part["value"] - half, "ci_high": part["value"] + half}
        parts.append(part.assign(metric=metric, standard_error=half / 2.576, **ends, **common))
    return {"peers": pd.concat(parts)}


def test_claims_about_a_mean_are_not_judged_by_draws_that_have_none() -> None:
    """rho^2 = 0.58 is above the decay of geometric(0.5): a mean may be anywhere; its formula is
    not, and is what the claim is held to. The cell `unlucky` would be refuted by its draws.
    """
    frames = peers("""
        cell     implementation  mode           bias   bias_expected  spectral_radius
        unlucky  normflows       roulette       2.0    0.0            0.76
        other    normflows       memory-saving  -9.6   -9.4           0.76
        light    normflows       memory-saving  -2.0   -9.4           0.40
        cut      normflows       series         0.2    0.2            0.76
    """)
    stated, claimed = judge(frames, SUITES), judge_disputed(frames, SUITES)
    assert stated.set_index("cell")["verdict"].to_dict() == {
        "light": "violated",
        "cut": "undecided",
    }
    assert claimed.set_index("cell")["verdict"].to_dict() == {
        **{"unlucky": "holds", "other": "violated", "light": "violated"},
    }
    by_draws = Claims(statements=(Statement("it", "says", "source", Equals("bias", 0.0)),))
    twin = {"peers": replace(SUITES["peers"], claims=by_draws)}
    judged = judge(frames, twin).set_index("cell")
    assert judged.loc["unlucky", "verdict"] == "violated"


def test_statements_have_names_of_their_own() -> None:
    for suite in SUITES.values():
        named = [s.name for s in (*suite.claims.statements, *suite.claims.disputed)]
        assert len(named) == len(set(named))


def test_analysis_reads_frames_and_nothing_else() -> None:
    """No file is opened and no torch is loaded where frames become verdicts."""
    for file in Path(analysis.__file__).parent.glob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        names = {
            a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names
        }
        assert not names & {"torch", "pathlib", "os"}


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_whose_cells_were_all_skipped_has_nothing_to_say(name: str) -> None:
    """As of a model that it cannot measure: no finding, no verdict, no crash of the page."""
    suite = SUITES[name]
    row = dict.fromkeys([*COLUMNS, *suite.axes])
    row |= {"suite": name, "cell": "a", "status": "skipped", "message": "no", "metric": ""}
    frame = pd.DataFrame([row]).astype({"value": float, "ci_low": float, "ci_high": float})
    assert findings({name: frame}, {name: suite}) == []
    for statement in suite.claims.statements:
        assert rules.apply(statement, wide(frame)).empty
