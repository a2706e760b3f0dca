"""Hierarchical probes: colours that tell near entries apart, and the variance that is left."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from resflow_bench import theory
from resflow_bench.layers import conv_branch
from resflow_bench.logdet import (
    Fixed,
    Hierarchical,
    LogDetEstimator,
    Rademacher,
    jacobian,
)
from resflow_bench.logdet.optimal import pilot
from resflow_bench.logdet.probes import colours
from resflow_bench.models.catalogue import MODELS
from resflow_bench.models.published import published

DTYPE = torch.float64
EVENTS = [(5,), (1, 4), (2, 2, 2), (3, 2, 1), (1, 2, 3)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(n_probes: int, event: tuple[int, ...], batch_size: int = 1) -> Tensor:
    x = torch.zeros(batch_size, *event, dtype=DTYPE)
    return Hierarchical().sample(n_probes, x, generator(n_probes)).flatten(2)


def correlations(v: Tensor) -> Tensor:
    """|(1/m) sum_j v_ja v_jb| of the first example, which does not depend on the signs."""
    return (v[:, 0].mT @ v[:, 0]).abs() / len(v)


# --- the colours


@pytest.mark.parametrize("event", [*EVENTS, (3, 8, 8), (12, 5, 7)])
def test_every_entry_has_a_colour_of_its_own_in_the_end(event) -> None:
    colour, n_bits = colours(event)
    assert len(colour.unique()) == math.prod(event)
    assert int(colour.max()) < 2**n_bits
    at_most = sum(math.ceil(math.log2(n)) for n in event if n > 1)
    assert n_bits == at_most, "no bit is wasted"


def test_few_colours_are_a_chessboard_and_squares() -> None:
    """Behind the two bits of three channels."""
    colour, _ = colours((3, 4, 4))
    assert torch.equal(colour[:, 0, 0] & 3, torch.arange(3))
    assert ((colour[0] >> 2) & 1).tolist()[:2] == [[0, 1, 0, 1], [1, 0, 1, 0]]
    assert len(colour[0, :2, :2].unique()) == 4


@pytest.mark.parametrize(("bits", "distance"), [(0, 1), (1, 2), (2, 4), (3, 8), (4, 16)])
def test_pixels_of_a_colour_move_apart(bits: int, distance: int) -> None:
    """The least squared distance of two pixels that share the first bits of their colours."""
    colour = colours((1, 16, 16))[0][0] & (2**bits - 1)
    places = torch.cartesian_prod(torch.arange(16), torch.arange(16))
    squares = (places[:, None] - places).square().sum(2)
    same = (colour.flatten()[:, None] == colour.flatten()) & (squares > 0)
    assert int(squares[same].min()) == distance


@pytest.mark.parametrize("event", EVENTS)
def test_pairs_of_one_colour_alone_are_left(event) -> None:
    colour, n_bits = colours(event)
    for bits in range(n_bits + 1):
        some = colour.flatten() & (2**bits - 1)
        expected = (some[:, None] == some).to(DTYPE)
        assert torch.equal(correlations(drawn(2**bits, event)), expected)
    assert torch.equal(correlations(drawn(2**n_bits, event)), torch.eye(math.prod(event)).double())


def test_vectors_in_a_row_are_a_draw() -> None:
    """The first and the last four of eight leave the pairs that four leave; others do not."""
    v = drawn(8, (2, 2, 2))
    expected = correlations(drawn(4, (2, 2, 2)))
    assert torch.equal(correlations(v[:4]), expected)
    assert torch.equal(correlations(v[4:]), expected)
    assert not torch.equal(correlations(v[1:5]), expected)


# --- the variance


@pytest.mark.parametrize("n_probes", [1, 2, 3, 4, 8])
def test_the_variance_over_all_signs_is_that_of_the_pairs(n_probes: int) -> None:
    """2 sum (sym(A) G)^2 off the diagonal, by all 2^8 signs; half of it would be seen."""
    event, d = (2, 2, 2), 8
    a = torch.randn(d, d, generator=generator(3), dtype=DTYPE)
    columns = drawn(n_probes, event)[:, 0]
    columns = columns * columns[0]  # without the signs: the first column is 1
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=d)), dtype=DTYPE)
    v = columns[:, None] * signs
    forms = torch.einsum("mni,ij,mnj->n", v, a, v) / n_probes
    g = columns.mT @ columns / n_probes
    rest = (a + a.mT) / 2 * g * (1 - torch.eye(d))
    assert forms.mean().item() == pytest.approx(a.trace().item(), rel=1e-12)
    expected = 2 * rest.square().sum().item()
    assert forms.var(correction=0).item() == pytest.approx(expected, rel=1e-10, abs=1e-13)
    assert (expected < 1e-12) == (n_probes == 8)
    twin = float(theory.hutchinson_variance(a.numpy(), Rademacher(), n_probes))
    assert (expected == pytest.approx(twin, rel=1e-3)) == (n_probes == 1), "independent signs"


def test_more_vectors_than_colours_come_in_independent_blocks() -> None:
    """Of 11 vectors at d = 5 the first eight are exact, and three have signs of their own."""
    v = drawn(11, (5,), batch_size=400)
    a = torch.randn(5, 5, generator=generator(1), dtype=DTYPE)
    whole = torch.einsum("mbi,ij,mbj->mb", v, a, v)
    torch.testing.assert_close(whole[:8].mean(0), a.trace().expand(400), rtol=1e-12, atol=1e-12)
    assert whole[8:].std() > 0.1
    products = (v[0] * v[8]).sum(0) / math.sqrt(400)  # normal, if the blocks are independent
    assert float(products.abs().max()) < 4


def test_on_images_it_beats_independent_signs() -> None:
    """A trained block on a patch of 3 x 16 x 16, 16 probes: 0.09 of the variance at 200 draws."""
    flow = published("patches", 0.9)
    assert flow is not None
    (branch, x), *_ = flow.branches(MODELS["patches"].points(1, 768))
    errors = {}
    for probe in (Rademacher(), Hierarchical()):
        estimator = LogDetEstimator(probe, Fixed(8), n_probes=16)
        with torch.no_grad():
            draws = estimator(branch, x.expand(200, -1, -1, -1), generator(2)).value
        errors[str(probe)] = draws.double().numpy()
    assert errors["hierarchical"].var() < 0.2 * errors["rademacher"].var()


# --- a pilot without a closed form


def test_a_pilot_has_the_variance_of_every_number_of_probes() -> None:
    """40 pilots of two draws at 60 points: unbiased for every m, to |z| < 4.

    The twin scales the variance of one probe by 1/m.
    """
    event, n_terms = (2, 3, 3), 4
    branch = conv_branch(2, (3, 3), (3, 3), (6,), 0.9, generator=generator()).double()
    with torch.no_grad():
        for p in branch.parameters():
            p.mul_(4.0)
    branch.align()
    branch.requires_grad_(False)
    x = torch.zeros(1, *event, dtype=DTYPE)
    j = jacobian(branch, x)[0].detach()
    terms = [(-1.0) ** (k + 1) / k * torch.linalg.matrix_power(j, k) for k in range(1, 5)]
    tails = torch.stack([sum(terms[k:], torch.zeros_like(j)) for k in range(n_terms)])
    rest = (tails + tails.mT) / 2 * (1 - torch.eye(18))
    base, noise = LogDetEstimator(Hierarchical(), Fixed(4)), generator(7)
    many = x.expand(60, -1, -1, -1)
    seen = [pilot(base, branch, many, 2, (1, 2, 8), noise, n_terms) for _ in range(40)]
    expected = {
        m: (2 * (rest * correlations(drawn(m, event))).square().sum((1, 2))).numpy()
        for m in (1, 2, 8)
    }
    for m, variance in expected.items():
        found = np.stack([one.variances[m] for one in seen])
        error = found.std(0, ddof=1) / 40**0.5
        assert (np.abs(found.mean(0) - variance) < 4 * error).all()
        twin = expected[1] / m
        assert m == 1 or (np.abs(found.mean(0) - twin) > 4 * error).any()
    squares = np.stack([one.mean_squares for one in seen])[:, 1:]  # that of tr J is cut at zero
    traces = tails.diagonal(dim1=1, dim2=2).sum(1).square().numpy()[1:]
    error = squares.std(0, ddof=1) / 40**0.5
    assert (np.abs(squares.mean(0) - traces) < 4 * error).all()
