"""Findings of the suites: functions of the rows, silent without them, conclusions first."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import pandas as pd
import pytest
from made_up import FIXED, MODEL, ROULETTE, SUITES, K, Observed, make_frames, rows

from resflow_bench.analysis.findings import findings, sentences
from resflow_bench.analysis.words import number, share, span
from resflow_bench.report.page import led

TRAINED = MODEL | {"model": "trained"}


def said(suite: str, *cells: tuple[Mapping[str, Any], Observed]) -> list[str]:
    """The findings of a suite on made-up cells."""
    frame = rows(suite, iter([(dict(axes), metrics) for axes, metrics in cells]))
    return [sentence for *_, sentence in sentences({suite: frame}, SUITES)]


def roulette(law: str, model: str = "trained") -> dict[str, Any]:
    return MODEL | ROULETTE | {"model": model, "roulette": law}


@pytest.mark.parametrize("name", SUITES)
def test_every_suite_has_a_title_of_its_own(name: str) -> None:
    titles = [suite.title for suite in SUITES.values()]
    assert titles.count(SUITES[name].title) == 1
    assert SUITES[name].title


@pytest.mark.parametrize("name", sorted(set(SUITES) - {"training"}))
def test_every_suite_has_a_conclusion_of_one_sentence(name: str) -> None:
    """And is silent where no cell is finished."""
    frame = make_frames()[name]
    found = sentences({name: frame}, SUITES)
    assert found
    for *_, sentence in found:
        first, rest = led(sentence)
        assert rest, f"a conclusion and what it rests on: {first}"
        assert len(first) < 180
        assert not re.search(r"\bnan\b", sentence)
    failed = frame.assign(status="failed", metric="", value=math.nan)
    assert sentences({name: failed}, SUITES) == []


def test_roulettes_that_hold_zero_are_counted() -> None:
    """One of infinite variance has no interval, and is said to be left out."""
    open_ = {"bias": (7.0, math.inf), "bias_expected": 0.0}
    (text,) = said(
        "bias",
        (roulette("geometric(0.5)"), {"bias": (0.01, 0.02)}),
        (roulette("geometric(0.1)"), {"bias": (-0.30, 0.10)}),
        (roulette("poisson(2)", "init"), open_),
    )
    assert "zero within its 99 % interval in 1 of 2 cells." in text
    assert "−0.30 [−0.40, −0.20] nat (n = 1,000), of geometric(0.1) on the trained flow" in text
    assert text.endswith("Of 1 more cell the variance is infinite.")
    assert said("bias", (roulette("poisson(2)"), open_)) == []


def test_the_laws_of_infinite_variance_are_named() -> None:
    finite = {"variance_is_finite": 1.0, "spectral_radius": 0.3}
    without = {"variance_is_finite": 0.0, "spectral_radius": 0.9}
    cells = [
        (roulette("geometric(0.5)"), finite),
        (roulette("geometric(0.5)", "minus-identity"), without),
        (roulette("geometric(0.1)"), finite),
        (roulette("poisson(2)"), without | {"spectral_radius": 0.2}),
        (roulette("poisson(2)", "init"), without),
    ]
    (text,) = said("variance", *cells)
    assert text.startswith("3 of 5 roulettes measured have infinite variance.")
    assert "geometric(0.1): finite in 1 of 1, ρ = 0.300;" in text
    assert "geometric(0.5): infinite in 1 of 2, ρ = 0.900;" in text
    assert "poisson(2): infinite in 2 of 2, ρ = 0.200 to 0.900." in text
    (text,) = said("variance", cells[0], cells[2])
    assert text.startswith("All 2 roulettes measured have finite variance.")


@pytest.mark.parametrize(("sign", "word"), [(1, "more"), (-1, "less")])
def test_the_gap_of_a_training_has_its_sign(sign: int, word: str) -> None:
    flow = {"dataset": "moons", "architecture": "mlp", "lipschitz": K, "step": 1000}
    exact = {"log_prob_objective": -1.0, "log_prob_exact": -1.2}
    cut = (flow | FIXED | {"n_terms": 1}, {"gap": (0.2 * sign, 0.05)} | exact)
    free = (flow | ROULETTE | {"roulette": "geometric(0.3)"}, {"gap": (-0.003, 0.01)} | exact)
    (text,) = said("training_gap", cut, free)
    assert f"a flow claims 0.200 [0.150, 0.250] bit/dim {word} than it has (n = 1,000)" in text
    assert "With a roulette the largest gap of 1 cell is −0.003 [−0.013, 0.007]" in text
    (alone,) = said("training_gap", cut)
    assert "roulette" not in alone


def test_the_part_of_a_promise_that_is_reached() -> None:
    numbers = {"lipschitz_promised": K, "lipschitz_certified": K, "spectral_radius": 0.3}
    (text,) = said(
        "lipschitz",
        (TRAINED, numbers | {"lipschitz_realised": K / 2}),
        (MODEL | {"model": "minus-identity"}, numbers | {"lipschitz_realised": K}),
    )
    assert text.startswith("At K = 0.9 the norm of the Jacobian of the trained flow reaches 50 %")
    assert text.endswith("Over 2 cells the ratio of reached to promised is 0.500 to 1.00.")
    assert said("lipschitz", (TRAINED, {"lipschitz_realised": 0.5, "spectral_radius": 0.3})) == []


def test_the_density_names_its_best_and_its_worst_data() -> None:
    """Each at its last step, and images by their bits."""
    flow = {"architecture": "mlp", "lipschitz": K}
    near, far = (flow | {"dataset": name, "step": 1200} for name in ("moons", "rings"))
    texts = said(
        "density",
        (far, {"divergence": (0.8, 0.1), "bits_per_dim": (1.0, 0.1)}),
        (near | {"step": 100}, {"divergence": (0.1, 0.1), "bits_per_dim": (1.0, 0.1)}),
        (near, {"divergence": (0.3, 0.1), "bits_per_dim": (1.0, 0.1)}),
        (flow | {"dataset": "digits", "step": 300}, {"bits_per_dim": (2.2, 0.1)}),
    )
    assert texts[0].startswith("On moons, mlp is 0.30 [0.20, 0.40] nat from the true density.")
    assert texts[0].endswith("on rings it is 0.80 [0.70, 0.90] nat, after 1,200.")
    assert texts[1].startswith("On digits, mlp has 2.20 [2.10, 2.30] bit/dim.")


def test_systems_of_trainings_of_different_lengths_are_compared() -> None:
    axes = {"dataset": "eight-gaussians"}
    cells = [
        (axes | {"architecture": name, "step": step}, {"divergence": (left, 0.01)} | time)
        for name, step, left in (("mlp", 300, 0.3), ("nsf", 2000, 0.1), ("nsf", 100, 0.05))
        for time in [{"train_step_s": (0.01, 0.001)}]
    ]
    (text,) = said("flows", *cells)
    assert "nsf comes nearest to the true density, to 0.100 [0.090, 0.110] nat." in text
    assert "after 2,000 steps, 20.0 s" in text
    assert "mlp, leaves 0.300 [0.290, 0.310] nat after 300 steps, 3.00 s" in text
    assert said("flows", cells[0]) == []


def test_a_bias_of_a_gradient_is_a_share_or_a_multiple_of_its_length() -> None:
    axes = TRAINED | FIXED | {"n_terms": 1, "tolerance": 1e-12}
    small, large = (
        {"gradient_bias": (bias, 0.01), "gradient_bias_expected": bias} for bias in (0.12, 25.0)
    )
    (text,) = said("path_gradient", (axes, small))
    assert "by 12 % of its length." in text
    cut, loose = said("path_gradient", (axes, small), (axes | {"tolerance": 0.01}, large))
    assert "inverted to a tolerance of 0.01 bias that gradient by 25 times its length." in loose
    assert cut == text


def test_shares_and_spans() -> None:
    assert [share(part, "it") for part in (0.0, 0.123, 1.0, 2.0, 24.16)] == [
        *("0 % of it", "12 % of it", "100 % of it", "200 % of it", "24 times it")
    ]
    assert span([0.3, 0.1]) == "0.100 to 0.300"
    assert span(pd.Series([2.0, 2.0])) == "2.00"


@pytest.mark.parametrize("digits", [2, 3, 4, 8])
def test_thousands_have_commas_at_any_number_of_digits(digits: int) -> None:
    assert number(12345.678, digits).startswith("12,34" if digits > 2 else "12,3")


def test_the_first_findings_are_of_three_suites() -> None:
    every = sentences(make_frames(), SUITES)
    suites = [next(n for _, n, s in every if s == one) for one in findings(make_frames(), SUITES)]
    assert len(set(suites)) == 3
