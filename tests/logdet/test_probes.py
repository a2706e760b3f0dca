"""Every law of the probes: its moments, its variance, its independence; and twins that fail."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import reference
import torch
from reference import linear_families
from torch import Tensor

from resflow_bench import theory
from resflow_bench.layers import mlp_branch
from resflow_bench.logdet import (
    PROBES,
    Fixed,
    Hadamard,
    LogDetEstimator,
    Orthogonal,
    Probe,
    Rademacher,
    Sphere,
    exact_log_det,
)
from resflow_bench.theory import ProbeVariance

DTYPE = torch.float64
N = 10_000
CLOSED = {str(p): p for p in PROBES.values() if isinstance(p, ProbeVariance)}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Twin:
    """A probe that is wrong: `sample` as given."""

    def __init__(self, sample: Callable[[int, Tensor, torch.Generator | None], Tensor]) -> None:
        self.sample = sample


def with_replacement(n_probes: int, x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Hadamard's columns, drawn without looking at those already drawn."""
    one = [Hadamard().sample(1, x, generator) for _ in range(n_probes)]
    return torch.cat(one)


def unit_sphere(n_probes: int, x: Tensor, generator: torch.Generator | None) -> Tensor:
    """On the sphere of radius 1, not sqrt(d)."""
    return Sphere().sample(n_probes, x, generator) / math.sqrt(x.shape[1])


def raw_qr(n_probes: int, x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Q as LAPACK leaves it: the first entry of the first column is never positive."""
    normal = torch.randn(*x.shape, n_probes, generator=generator, dtype=x.dtype)
    return torch.linalg.qr(normal).Q.permute(2, 0, 1) * math.sqrt(x.shape[1])


def common_signs(n_probes: int, x: Tensor, generator: torch.Generator | None) -> Tensor:
    """One draw for the whole batch."""
    return Hadamard().sample(n_probes, x[:1], generator).expand(-1, len(x), -1)


def worst_z(samples: Tensor, truth: Tensor | float = 0.0) -> float:
    """max |mean - truth| / its standard error, over all but the first axis; 1e-12 is rounding."""
    error = samples.std(0) / len(samples) ** 0.5
    return float(((samples.mean(0) - truth).abs() / (error + 1e-12)).max())


# --- the laws -------------------------------------------------------------------------------------


def moments_z(probe: Probe | Twin, n_probes: int, dim: int) -> float:
    """The worst z of E v_j = 0 and E v_j v_j^T = I, each j and entry."""
    v = probe.sample(n_probes, torch.zeros(N, dim, dtype=DTYPE), generator(1)).transpose(0, 1)
    outer = v[..., :, None] * v[..., None, :]  # (N, m, d, d)
    return max(worst_z(v), worst_z(outer, torch.eye(dim, dtype=DTYPE)))


@pytest.mark.parametrize("probe", PROBES.values(), ids=PROBES)
@pytest.mark.parametrize(("n_probes", "dim"), [(1, 1), (1, 5), (3, 5), (6, 5), (9, 5), (3, 2)])
def test_mean_zero_and_the_identity_as_covariance(probe: Probe, n_probes: int, dim: int) -> None:
    """|z| < 4, n = 10,000: sees a mean of 0.04 and a covariance that is off by 0.06."""
    assert moments_z(probe, n_probes, dim) < 4


@pytest.mark.parametrize("twin", [unit_sphere, raw_qr])
def test_a_wrong_length_and_a_wrong_sign_are_seen(twin: Callable[..., Tensor]) -> None:
    assert moments_z(Twin(twin), 3, 5) > 4


def forms_z(
    probe: Probe | Twin, law: ProbeVariance, n_probes: int, dim: int
) -> tuple[float, float]:
    """z of the mean of (1/m) sum_j v_j^T A v_j against tr A, and of its variance against `law`."""
    a = torch.randn(dim, dim, generator=generator(5), dtype=DTYPE)
    v = probe.sample(n_probes, torch.zeros(N, dim, dtype=DTYPE), generator(2))
    form = torch.einsum("mni,ij,mnj->n", v, a, v) / n_probes
    expected = float(law.variance(theory.moments(a.numpy()), n_probes))
    centred = (form - form.mean()) ** 2
    return worst_z(form, a.trace()), worst_z(centred, expected)


@pytest.mark.parametrize("probe", CLOSED.values(), ids=CLOSED)
@pytest.mark.parametrize(
    ("n_probes", "dim"), [(1, 5), (3, 5), (5, 5), (7, 5), (8, 5), (11, 5), (4, 4), (2, 1)]
)
def test_a_draw_has_the_mean_and_the_variance_of_its_law(probe, n_probes: int, dim: int) -> None:
    """|z| < 4, n = 10,000: sees a variance that is off by 10 %."""
    mean, variance = forms_z(probe, probe, n_probes, dim)
    assert mean < 4
    assert variance < 4


def test_columns_with_replacement_are_seen() -> None:
    """Unbiased, and with the variance of as many Rademacher vectors."""
    assert forms_z(Twin(with_replacement), Hadamard(), 3, 5)[1] > 4
    assert forms_z(Twin(with_replacement), Rademacher(), 3, 5)[1] < 4


@pytest.mark.parametrize("probe", ["sphere", "orthogonal", "hadamard"])
@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("n_probes", [1, 2, 3, 4, 5, 7])
def test_the_closed_form_is_the_sum_over_all_values(n_probes: int, dim: int, probe: str) -> None:
    for a in linear_families(dim, 0.5, seed=3).values():
        truth = reference.block_variance(a, probe, n_probes)
        found = float(theory.hutchinson_variance(a, CLOSED[probe], n_probes))
        assert found == pytest.approx(truth, rel=1e-10, abs=1e-15)


@pytest.mark.parametrize("n_probes", [1, 3, 7, 8, 10])
def test_a_hadamard_matrix_larger_than_the_event(n_probes: int) -> None:
    """d = 5 in D = 8: exact at 8, not at 5."""
    a = linear_families(5, 0.5, seed=3)["gaussian"]
    truth = reference.block_variance(a, "hadamard", n_probes)
    found = float(theory.hutchinson_variance(a, Hadamard(), n_probes))
    assert found == pytest.approx(truth, rel=1e-10, abs=1e-15)
    assert (found == 0.0) == (n_probes == 8)


@pytest.mark.parametrize("probe", CLOSED.values(), ids=CLOSED)
def test_no_law_exceeds_the_bound_or_improves_on_itself_by_fewer_probes(probe) -> None:
    for a in linear_families(6, 0.5).values():
        variances = [float(theory.hutchinson_variance(a, probe, m)) for m in range(1, 30)]
        bounds = [float(theory.avron_toledo_bound(a, m)) for m in range(1, 30)]
        assert all(v <= b * (1 + 1e-12) for v, b in zip(variances, bounds, strict=True))
        assert variances[0] == max(variances)


# --- the draws ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 8), (3, 2, 2, 2), (3,), (0, 8)])
@pytest.mark.parametrize("probe", PROBES.values(), ids=PROBES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_probes_look_like_the_events(shape: tuple[int, ...], probe: Probe, dtype) -> None:
    x = torch.zeros(shape, dtype=dtype)
    for n_probes in (1, 4, 11):
        v = probe.sample(n_probes, x, generator())
        assert v.shape == (n_probes, *shape)
        assert v.dtype == dtype
        again = probe.sample(n_probes, x, generator())
        assert torch.equal(v, again)


@pytest.mark.parametrize(("n_probes", "dim"), [(4, 8), (8, 8), (3, 6), (8, 6)])
def test_geometry(n_probes: int, dim: int) -> None:
    """||v||^2 = d, and right angles in a block; Hadamard: where d = D, or of rows at m = D."""
    x = torch.zeros(7, dim, dtype=DTYPE)
    sphere = Sphere().sample(n_probes, x, generator())
    torch.testing.assert_close(
        sphere.square().sum(2), torch.full((n_probes, 7), float(dim)).double()
    )
    v = Orthogonal().sample(n_probes, x, generator())[:dim].transpose(0, 1)
    expected = (dim * torch.eye(v.shape[1], dtype=DTYPE)).expand(7, -1, -1)
    torch.testing.assert_close(v @ v.mT, expected)
    h = Hadamard().sample(n_probes, x, generator()).transpose(0, 1)  # (B, m, d)
    assert torch.equal(h.abs(), torch.ones_like(h))
    if dim == 8:
        assert torch.equal(h @ h.mT, (8 * torch.eye(n_probes, dtype=DTYPE)).expand(7, -1, -1))
    if n_probes == 8:
        assert torch.equal(h.mT @ h, (8 * torch.eye(dim, dtype=DTYPE)).expand(7, -1, -1))


def between_examples_z(probe: Probe | Twin) -> float:
    """z of the covariance of two examples' estimates, both of which have mean tr A = 0."""
    a = torch.tensor([[1.0, 2.0, 0.0], [0.5, -2.0, 1.0], [0.0, 1.0, 1.0]], dtype=DTYPE)
    noise, x = generator(4), torch.zeros(2, 3, dtype=DTYPE)
    v = torch.stack([probe.sample(2, x, noise) for _ in range(3000)])  # (n, m, B, d)
    form = torch.einsum("nmbi,ij,nmbj->nb", v, a, v)
    return worst_z(form[:, 0] * form[:, 1])


@pytest.mark.parametrize("probe", PROBES.values(), ids=PROBES)
def test_examples_do_not_know_of_each_other(probe: Probe) -> None:
    """|z| < 4, n = 3,000 batches: sees a correlation of 0.08."""
    assert between_examples_z(probe) < 4


def test_common_signs_are_seen() -> None:
    assert between_examples_z(Twin(common_signs)) > 4


@pytest.mark.parametrize(("probe", "n_probes"), [(Orthogonal(), 5), (Hadamard(), 8)], ids=str)
def test_a_full_block_is_exact_in_value_and_gradient(probe: Probe, n_probes: int) -> None:
    """The estimate with 120 terms is the log-det, and its gradient is the log-det's, to 1e-9."""
    branch = mlp_branch(5, (12,), 0.8, generator=generator()).double()
    x = torch.randn(3, 5, generator=generator(9), dtype=DTYPE).requires_grad_()
    estimate = LogDetEstimator(probe, Fixed(120), n_probes)(branch, x, generator()).value
    exact = exact_log_det(branch, x)
    torch.testing.assert_close(estimate, exact, rtol=0, atol=1e-9)
    weights = torch.tensor([1.0, -2.0, 3.0], dtype=DTYPE)
    inputs = [x, *branch.parameters()]
    ours = torch.autograd.grad(estimate @ weights, inputs, allow_unused=True)
    truth = torch.autograd.grad(exact @ weights, inputs, allow_unused=True)
    for a, b in zip(ours, truth, strict=True):
        if b is not None:
            torch.testing.assert_close(a, b, rtol=0, atol=1e-9)
    fewer = LogDetEstimator(probe, Fixed(120), n_probes - 1)(branch, x, generator()).value
    assert (fewer - exact).abs().max() > 1e-6
