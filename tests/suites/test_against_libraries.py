"""The libraries' examples that the systems are compared with: densities, sizes, the verdict."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from resflow_bench.architectures import architecture_named
from resflow_bench.systems import n_parameters
from resflow_bench.training.recipe import dataset
from suites.comparisons.examples import EXAMPLES, NetSize, size_of
from suites.comparisons.systems import OUR_SIZE, OURS, OWN_SIZE, Reached, Spec, train, verdict

pytest.importorskip("zuko")
pytest.importorskip("normflows")


@pytest.mark.parametrize("system", EXAMPLES)
def test_the_density_of_an_example_integrates_to_one(system: str) -> None:
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


@pytest.mark.parametrize("whose", [OURS, OUR_SIZE, OWN_SIZE])
def test_a_training_learns_something_and_repeats(whose: str) -> None:
    spec = Spec("eight-gaussians", "realnvp", whose, 1, 60)
    begun = train(Spec("eight-gaussians", "realnvp", whose, 1, 1))
    trained = train(spec)
    assert trained.log_prob > begun.log_prob + 0.02
    assert train(spec) == trained


def test_standardising_is_undone_in_the_density() -> None:
    # At its start a flow of standardised data is about the Gaussian of the data's own moments; the
    # logarithms of the digits' scales sum to -5.5 nat.
    data = dataset("digits-logit")
    gaussian = torch.distributions.Normal(data.train.mean(0), data.train.std(0))
    of_gaussian = float(gaussian.log_prob(data.test).sum(1).mean())
    trained = train(Spec("digits", "realnvp", OWN_SIZE, 0, 1))
    assert trained.log_prob == pytest.approx(of_gaussian, abs=3.0)


def test_the_verdict_names_the_difference_its_interval_and_the_size() -> None:
    ours = [Reached(value, 10) for value in (1.0, 1.1, 1.2)]
    theirs = [Reached(value, 20) for value in (0.5, 0.6, 0.8)]
    t = stats.t.ppf(0.995, df=2)  # 99 %; the differences are 0.5, 0.5 and 0.4
    reach = t * math.sqrt(1 / 300 / 3)
    low, high = 7 / 15 - reach, 7 / 15 + reach
    assert verdict(ours, theirs) == f"+0.467 [{low:+.3f}, {high:+.3f}] (20)"
