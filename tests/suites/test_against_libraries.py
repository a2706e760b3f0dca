"""The libraries' examples that the systems are compared with: densities, sizes, rows."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from scipy import stats

from resflow_bench.architectures import architecture_named
from resflow_bench.lab import Cell, Context, Failure, Skip
from resflow_bench.seeds import torch_seeded
from resflow_bench.systems import n_parameters
from resflow_bench.training.recipe import dataset
from suites.flows import SUITE, against
from suites.flows.against import HELD, OUR_SIZE, OWN_SIZE, Reached, ours, theirs
from suites.flows.claims import against_examples
from suites.flows.examples import EXAMPLES, NetSize, size_of
from suites.flows.measure import flows_recipe

pytest.importorskip("zuko")
pytest.importorskip("normflows")


@pytest.mark.parametrize("system", EXAMPLES)
def test_the_density_of_an_example_integrates_to_one(system: str) -> None:
    with torch_seeded(0):  # the grid is too coarse for one in thirty initial weights
        example = EXAMPLES[system]((2,), NetSize(2, (8, 8)))
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for parameter in example.flow.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    n, reach = 120, 12.0
    ticks = reach * (2 * torch.arange(n, dtype=torch.float64) + 1 - n) / n
    p = example.log_prob(torch.cartesian_prod(ticks, ticks)).exp()
    assert float(p.sum()) * (2 * reach / n) ** 2 == pytest.approx(1.0, abs=1e-2)


@pytest.mark.parametrize("system", EXAMPLES)
def test_an_example_of_our_size_has_about_our_parameters(system: str) -> None:
    ours = architecture_named(system)((2,), 0.9)
    example = EXAMPLES[system]((2,), size_of(ours))
    # zuko's NICE has a scale for each shift, and torchcfm's field one feature of t for our six.
    assert n_parameters(example.flow) == pytest.approx(n_parameters(ours), rel=0.05)


@pytest.mark.filterwarnings("ignore:torch.lu is deprecated")
def test_a_glow_of_images_has_about_our_parameters() -> None:
    ours = architecture_named("glow")((1, 8, 8), 0.9)
    example = EXAMPLES["glow"]((1, 8, 8), size_of(ours))
    assert n_parameters(example.flow) == pytest.approx(n_parameters(ours), rel=0.05)


EFFORT = {"n_seeds": 2, "n_points": 200}


def cell(system: str, size: str, step: int, dataset: str = "eight-gaussians", **axes) -> Cell:
    where = {"dataset": dataset, "architecture": system, "step": step}
    return Cell("flows", {**where, "implementation": size, **HELD, **axes})


def reached(of: Cell, seed: int, whose: str = "theirs") -> Reached:
    data, recipe = dataset(of["dataset"]), flows_recipe(of)
    if whose == "ours":
        return ours(recipe, data, data.test[:200], seed)
    return theirs(of, recipe, data, data.test[:200], seed)


@pytest.mark.parametrize("whose", ["ours", OUR_SIZE, OWN_SIZE])
def test_a_training_learns_something_and_repeats(whose: str) -> None:
    size = OUR_SIZE if whose == "ours" else whose
    begun, trained = (reached(cell("realnvp", size, step), 1, whose) for step in (1, 60))
    assert trained.log_prob > begun.log_prob + 0.02
    assert reached(cell("realnvp", size, 60), 1, whose) == trained


def test_standardising_is_undone_in_the_density() -> None:
    # At its start a flow of standardised data is about the Gaussian of the data's own moments; the
    # logarithms of the digits' scales sum to -5.5 nat.
    data = dataset("digits-logit")
    gaussian = torch.distributions.Normal(data.train.mean(0), data.train.std(0))
    of_gaussian = float(gaussian.log_prob(data.test[:200]).sum(1).mean())
    trained = reached(cell("realnvp", OWN_SIZE, 1, "digits-logit"), 0)
    assert trained.log_prob == pytest.approx(of_gaussian, abs=3.0)


def test_a_row_is_theirs_minus_ours(monkeypatch) -> None:
    """Differences -0.5, -0.5 and -0.4, within Student's interval."""
    mine, its = (1.0, 1.1, 1.2), (0.5, 0.6, 0.8)
    monkeypatch.setattr(against, "ours", lambda *args: Reached(mine[args[-1]], 10))
    monkeypatch.setattr(against, "theirs", lambda *args: Reached(its[args[-1]], 20))
    context = Context(0, EFFORT | {"n_seeds": 3}, Path("results"))
    seen = {o.metric: o for o in SUITE.measure(cell("nsf", OWN_SIZE, 5), context)}
    difference = seen["log_prob_minus_ours"]
    reach = stats.t.ppf(0.995, df=2) * math.sqrt(1 / 300 / 3)
    assert difference.value == pytest.approx(-7 / 15)
    assert difference.ci_low == pytest.approx(-7 / 15 - reach)
    assert difference.ci_high == pytest.approx(-7 / 15 + reach)
    assert difference.replicates == pytest.approx((-0.5, -0.5, -0.4))
    assert difference.message.startswith("zuko")
    assert seen["log_prob_ours"].value == pytest.approx(1.1)
    assert (seen["n_parameters"].value, seen["n_parameters_ours"].value) == (20, 10)


def test_the_suite_trains_both() -> None:
    of = cell("realnvp", OUR_SIZE, 3)
    seen = {o.metric: o for o in SUITE.measure(of, Context(0, EFFORT, Path("results")))}
    pairs = [(reached(of, seed, "ours"), reached(of, seed)) for seed in (0, 1)]
    expected = sum(b.log_prob - a.log_prob for a, b in pairs) / 2
    assert seen["log_prob_minus_ours"].value == pytest.approx(expected)
    assert seen["n_parameters"].value == pytest.approx(seen["n_parameters_ours"].value, rel=0.05)


def test_what_has_no_example_is_skipped(monkeypatch) -> None:
    context = Context(0, EFFORT, Path("results"))

    def refused(of: Cell, words: str) -> None:
        with pytest.raises(Skip, match=words):
            list(SUITE.measure(of, context))

    refused(cell("mlp", OUR_SIZE, 3), "got mlp on eight-gaussians, example")
    refused(cell("nsf", "zuko", 3), "got nsf on eight-gaussians, zuko")
    refused(cell("realnvp", OUR_SIZE, 3, "eight-gaussians", dtype="float64"), "got float64")
    monkeypatch.setattr(against, "find_spec", lambda name: None)
    refused(cell("nsf", OUR_SIZE, 3), r"zuko is not installed; .*\[baselines\]")
    refused(cell("glow", OUR_SIZE, 3), r"normflows is not installed; .*\[peers\]")


def test_a_loss_that_is_not_finite_names_the_step() -> None:
    of, data = cell("nsf", OUR_SIZE, 3), dataset("eight-gaussians")
    broken = replace(data, train=torch.ones_like(data.train))  # of scale zero
    with pytest.raises(Failure, match=r"the loss of the example is (nan|inf) at step"):
        theirs(of, flows_recipe(of), broken, data.test, 0)


def test_the_finding_counts_where_an_example_does_better() -> None:
    common = {"status": "ok", "implementation": OWN_SIZE, "dataset": "digits-logit", "step": 300}
    ends = {"log_prob_minus_ours_low": 0.6, "log_prob_minus_ours_high": 2.9}
    numbers = {"log_prob_minus_ours_n": 3, "n_parameters": 49_920.0}
    best = common | numbers | ends | {"architecture": "maf", "log_prob_minus_ours": 1.7}
    other = best | {"architecture": "nsf", "log_prob_minus_ours": -0.5}
    other |= {"log_prob_minus_ours_low": -2.8, "log_prob_minus_ours_high": 1.8}
    said = against_examples(pd.DataFrame([other, best]))
    assert "in 1 of 2 comparisons" in said
    assert "that of maf on digits-logit" in said
    assert "1.7 [0.6, 2.9] nat after 300 steps (n = 3 seeds), with 49,920 parameters" in said
