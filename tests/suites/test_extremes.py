"""Numbers at the ends of their ranges: each is a right row, or a failed one with its sentence."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import linalg
from torch import Tensor, nn

import resflow_bench
from resflow_bench.flows import (
    Inversion,
    ResidualBlock,
    ResidualFlow,
    ToRounding,
    ToTolerance,
)
from resflow_bench.layers import Uncertified
from resflow_bench.logdet import (
    Arnoldi,
    Chebyshev,
    Determinant,
    Fixed,
    Geometric,
    LogDetEstimator,
    Rademacher,
    Roulette,
)

SHIFT = 3.0 * np.eye(4, k=1)
SUITES = ("bias", "variance", "inverse", "lipschitz")


def of_matrix(matrix: np.ndarray) -> nn.Module:
    """g(x) = A x."""
    g = nn.Linear(4, 4, bias=False, dtype=torch.float64)
    g.weight.data = torch.as_tensor(matrix, dtype=torch.float64).clone()
    return g


def rows(source: object, suites: tuple[str, ...] = SUITES, **axes: object) -> pd.DataFrame:
    """The rows of a model, in float64."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*cells failed")
        return resflow_bench.measure(
            suites, preset="smoke", model={"mine": source}, **{"dtype": "float64", **axes}
        )


def values(frame: pd.DataFrame, suite: str, metric: str) -> np.ndarray:
    assert set(frame["status"][frame["suite"] == suite]) == {"ok"}
    found = frame[(frame["suite"] == suite) & (frame["metric"] == metric)]
    assert len(found)
    return found["value"].to_numpy()


@pytest.mark.parametrize(
    ("matrix", "points"),
    [
        (0 * np.eye(4), None),
        (1e-40 * np.eye(4), None),
        (SHIFT, None),  # nilpotent, of norm 3: a polynomial's log-det, and no contraction
        (-0.9999 * np.eye(4), None),
        (0.5 * np.eye(4), torch.randn(1, 4, generator=torch.Generator().manual_seed(0))),
        (0.5 * np.eye(4), torch.ones(1, 4).expand(7, 4)),  # strides of zero
        (0.5 * np.eye(4), torch.full((3, 4), 1e30)),
        (0.5 * np.eye(4), torch.ones(3, 4, dtype=torch.float16)),
    ],
)
def test_a_row_is_right_at_the_end_of_its_range(matrix: np.ndarray, points: Tensor | None) -> None:
    """log-det, norm and variance against SciPy's logarithm; the inverse is the points."""
    g = of_matrix(matrix)
    frame = rows(g if points is None else (g, points))
    whole = np.eye(4) + matrix
    logarithm = linalg.logm(whole)
    assert values(frame, "bias", "log_det_exact") == pytest.approx(
        math.log(linalg.det(whole)), rel=1e-9, abs=1e-12
    )
    for suite in SUITES[2:]:
        norm = values(
            frame, suite, "lipschitz_realised" if suite == "lipschitz" else "norm_realised"
        )
        assert norm == pytest.approx(np.linalg.norm(matrix, 2), rel=1e-6, abs=1e-45)
    # Rademacher probes of the truncated series: 2 sum over i != j of S_ij^2, S symmetric.
    powers = [np.linalg.matrix_power(matrix, k) for k in range(11)]
    series = sum((-1) ** (k + 1) / k * powers[k] for k in range(1, 11))
    symmetric = (series + series.T) / 2
    variance = 2 * (np.square(symmetric).sum() - np.square(np.diag(symmetric)).sum())
    same = frame["probe"].eq("rademacher") & frame["truncation"].eq("fixed")
    for metric in ("variance_expected", "variance"):
        found = values(frame[same], "variance", metric)
        room = 1e-9 if metric == "variance_expected" else 0.2  # of a few hundred draws
        assert found == pytest.approx(variance, rel=room, abs=1e-20)
    if not np.any(np.tril(matrix)):  # its powers end: exact after four terms
        assert np.abs(logarithm - series).max() < 1e-12
        assert values(frame, "inverse", "inverse_error").max() < 1e-10


@pytest.mark.parametrize(
    ("matrix", "suite", "words"),
    [
        (2 * np.eye(4), "bias", "eigenvalue of modulus 2 and norm 2 .* Scale g down"),
        (1e30 * np.eye(4), "variance", "its series diverges"),
        (-np.eye(4), "bias", "eigenvalue of modulus 1"),
        (-np.eye(4), "inverse", "x \\+ g\\(x\\) is singular at these points"),
    ],
)
def test_where_nothing_can_be_right_the_row_says_why(
    matrix: np.ndarray, suite: str, words: str
) -> None:
    frame = rows(of_matrix(matrix), (suite,))
    assert set(frame["status"]) == {"failed"}
    assert frame["message"].str.contains(words).all()
    assert frame["value"].isna().all()


def test_a_g_that_raises_late_fails_its_cells_and_no_others() -> None:
    """It passes the checks, which have two points, and raises a KeyError at five."""

    class Late(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 0.2 * x if len(x) < 3 else {}["late"]

    frame = rows((Late(), torch.randn(5, 4, generator=torch.Generator().manual_seed(0))))
    assert set(frame["suite"]) == set(SUITES)
    assert set(frame["message"]) == {"RuntimeError: g raised KeyError: 'late'"}


@pytest.mark.parametrize("dim", [1, 3])
@pytest.mark.parametrize("lipschitz", [1e-320, 0.9999, 0.9999999999999999])
def test_constants_at_both_ends(dim: int, lipschitz: float) -> None:
    """The measured error keeps below its certificate, and the sampled bias is the computed one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="A branch promises")  # of a rounded 1e-320
        frame = resflow_bench.measure(
            ("inverse", "bias"), preset="smoke", model="init", dim=dim, lipschitz=lipschitz,
            dtype="float64",
        )  # fmt: skip
    error, bound = (values(frame, "inverse", f"inverse_error{end}") for end in ("", "_bound"))
    assert (error <= bound).all()
    assert np.isfinite(bound).all()
    table = frame[frame["suite"] == "bias"].pivot_table("value", "cell", "metric")
    width = frame[frame["metric"] == "bias_paired"].set_index("cell")
    assert (
        (width["value"] - table["bias_expected"]).abs()
        <= 4 * width["standard_error"] + 1e-12 * (1 + table["bias_expected"].abs())
    ).all()


ESTIMATORS = {
    "fixed": LogDetEstimator(Rademacher(), Fixed(10), n_probes=4),
    "roulette": LogDetEstimator(Rademacher(), Roulette(Geometric(0.5), n_exact=3), n_probes=4),
    "chebyshev": LogDetEstimator(
        Rademacher(), Fixed(10), n_probes=4, expansion=Chebyshev(-0.9, 0.9)
    ),
    "arnoldi": LogDetEstimator(Rademacher(), Fixed(4), n_probes=4, expansion=Arnoldi()),
    "determinant": Determinant(),
}


def noise() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def mixing() -> nn.Linear:
    torch_noise = noise()
    g = nn.Linear(4, 4)
    g.weight.data = 0.3 * torch.randn(4, 4, generator=torch_noise)
    g.bias.data = torch.randn(4, generator=torch_noise)
    return g


@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_estimate_does_not_depend_on_the_layout_of_its_batch(name: str) -> None:
    """Batches of one and none, strides of zero, transposed, channels last."""
    estimator, g, x = ESTIMATORS[name], mixing(), torch.randn(5, 4, generator=noise())

    def value(g: nn.Module, x: Tensor) -> Tensor:
        return estimator(g, x, noise()).value.detach()

    assert value(g, x[:0]).shape == (0,)
    assert value(g, x[:1]).shape == (1,)
    same = x[:1].expand(5, 4)
    torch.testing.assert_close(value(g, same), value(g, same.clone()))
    torch.testing.assert_close(value(g, x.t().contiguous().t()), value(g, x))
    conv = nn.Conv2d(3, 3, 3, padding=1)
    for parameter in conv.parameters():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=noise())
    images = torch.randn(2, 3, 4, 4, generator=noise())
    last = images.to(memory_format=torch.channels_last)
    torch.testing.assert_close(value(conv, last), value(conv, images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("lost", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_never_becomes_a_finite_estimate(name: str, lost: float) -> None:
    g, x = mixing(), torch.randn(3, 4, generator=noise())
    g.weight.data[1, 2] = lost
    assert not ESTIMATORS[name](g, x, noise()).value.isfinite().any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_half_precision_is_within_its_rounding(name: str, dtype: torch.dtype) -> None:
    """Of the same estimate in float64, with the same Rademacher probes."""
    x = torch.randn(5, 4, generator=noise())
    estimate = ESTIMATORS[name](mixing().to(dtype), x.to(dtype), noise()).value.double()
    wide = mixing().to(dtype).double()
    truth = ESTIMATORS[name](wide, x.to(dtype).double(), noise()).value
    torch.testing.assert_close(estimate, truth, rtol=0, atol=60 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("inversion", [ToTolerance(), ToRounding(), Inversion(error=1e-4)])
@pytest.mark.parametrize("n", [0, 1])
def test_flows_of_one_example_and_of_none(n: int, inversion: ToTolerance | ToRounding) -> None:
    flow = ResidualFlow.mlp(dim=4, hidden=(8,), n_blocks=2, lipschitz=0.9999)
    x = torch.randn(n, 4, generator=noise())
    solution = flow.inverse(flow(x).detach(), inversion).raise_if_failed()
    torch.testing.assert_close(solution.value, x, rtol=0, atol=1e-3)
    assert flow.log_prob(x, noise()).shape == (n,)
    assert flow.sample(n, noise()).shape == (n, 4)


@pytest.mark.parametrize("factor", [2.0, -1.5, math.nan])
@pytest.mark.parametrize("method", [ResidualFlow.sample, ResidualFlow.rsample])
def test_no_sample_comes_from_an_inverse_that_was_not_found(
    factor: float, method: Callable[..., Tensor]
) -> None:
    """g is no contraction, or not finite; the outcome says so, for every example."""
    flow = ResidualFlow([ResidualBlock(Uncertified(of_matrix(factor * np.eye(4))))], (4,)).double()
    z = torch.randn(3, 4, generator=noise(), dtype=torch.float64)
    assert (flow.inverse(z).outcome != 0).all()
    with pytest.raises(ArithmeticError, match="2 of 2 fixed points not found"):
        method(flow, 2, noise())
