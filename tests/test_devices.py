"""Each call does on another device, the stand-in, what it does on the CPU.

Bits are equal where both devices take the same steps. Norms and inverses are computed in other ways
off the CPU, and there the contract is that of the number: a certificate holds, an error is bounded.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from resflow_bench.data import Dataset
from resflow_bench.flows import (
    ActNorm,
    Flatten,
    MultiScale,
    ResidualBlock,
    ResidualFlow,
    ToError,
    ToRounding,
    ToTolerance,
    image_flow,
)
from resflow_bench.layers import (
    AOL,
    ELU,
    CLipSwish,
    Linear,
    SemiOrthogonal,
    conv_branch,
    dense_branch,
    dense_conv_branch,
    mlp_branch,
    sll_branch,
)
from resflow_bench.logdet import (
    Arnoldi,
    Chebyshev,
    Controlled,
    Determinant,
    Estimator,
    Exact,
    Fixed,
    Gaussian,
    Geometric,
    Hadamard,
    LogDetEstimator,
    Orthogonal,
    Rademacher,
    Roulette,
    Series,
    Sphere,
)
from resflow_bench.speed.standin import standin, unsupported
from resflow_bench.training.trainer import Trainer, Training

pytestmark = pytest.mark.skipif(bool(unsupported()), reason=unsupported() or "-")

FIXED = LogDetEstimator(Rademacher(), Fixed(4), n_probes=2)
ROULETTE = LogDetEstimator(Rademacher(), Roulette(Geometric(0.3), n_exact=2))
ESTIMATORS: dict[str, Estimator] = {
    **{str(p): LogDetEstimator(p, Fixed(4), n_probes=2)
       for p in (Gaussian(), Rademacher(), Sphere(), Orthogonal(), Hadamard())},
    **{per: LogDetEstimator(Rademacher(), Roulette(Geometric(0.3), n_exact=2, per=per))
       for per in ("example", "batch", "stratified")},
    "series": LogDetEstimator(Rademacher(), Fixed(4), gradient=Series()),
    "rouletted series": LogDetEstimator(Rademacher(), ROULETTE.truncation, gradient=Series()),
    "arnoldi": LogDetEstimator(Rademacher(), Fixed(4), expansion=Arnoldi()),
    "chebyshev": LogDetEstimator(Rademacher(), Fixed(4), expansion=Chebyshev(-0.9, 0.9)),
    "controlled": LogDetEstimator(Rademacher(), Fixed(4), expansion=Controlled()),
    "determinant": Determinant(),
    "exact": Exact(),
}  # fmt: skip
ROULETTED = {"example", "batch", "stratified", "rouletted series"}


def _vectors(*branches) -> ResidualFlow:
    layers = [layer for g in branches for layer in (ActNorm(4), ResidualBlock(g))]
    return ResidualFlow(layers, 4, FIXED)


def _images(branch) -> ResidualFlow:
    event = (3, 4, 4)
    return ResidualFlow([ActNorm(3), ResidualBlock(branch), Flatten(event)], event, FIXED)


FLOWS: dict[str, Callable[[], ResidualFlow]] = {
    "mlp": lambda: ResidualFlow.mlp(4, (16, 16), 2, 0.9, estimator=FIXED),
    "shallow": lambda: ResidualFlow.mlp(4, (16,), 2, 0.9, ELU, FIXED),
    "mixed": lambda: _vectors(mlp_branch(4, (8,), 0.9), mlp_branch(4, (8, 8), 0.5)),
    "concatenated": lambda: _vectors(mlp_branch(4, (8, 8), 0.9, CLipSwish)),
    "dense": lambda: _vectors(dense_branch(4, 8, 2, 0.9)),
    "almost orthogonal": lambda: _vectors(mlp_branch(4, (8, 8), 0.9, norm=AOL())),
    "orthogonal": lambda: _vectors(mlp_branch(4, (8, 8), 0.9, norm=SemiOrthogonal())),
    "residual layers": lambda: _vectors(sll_branch(4, (8, 6), 0.9)),
    "convolutional": lambda: _images(conv_branch(3, (4, 4), (3, 1, 3), (4, 4), 0.9)),
    "dense convolutional": lambda: _images(dense_conv_branch(3, (4, 4), 4, 2, 0.9)),
    "multi-scale": lambda: image_flow(
        (2, 4, 4), MultiScale(n_blocks=1, hidden=(4, 4), tail_hidden=(8,), mixing=True), FIXED
    ),
}


def points(flow: ResidualFlow, n: int = 6) -> Tensor:
    """In (0, 1), as the logit of an image flow needs."""
    return torch.rand(n, *flow.event, generator=torch.Generator().manual_seed(1), device="cpu")


@pytest.fixture(params=FLOWS)
def pair(request) -> Iterator[tuple[ResidualFlow, ResidualFlow]]:
    """The same flow on the CPU and on the stand-in, inside of its context."""
    flow = FLOWS[request.param]()
    flow.initialise(points(flow))
    with standin():
        yield flow, copy.deepcopy(flow).to("sim")


def value_and_gradients(flow: ResidualFlow, noise: torch.Generator) -> list[Tensor]:
    device = next(flow.parameters()).device
    x = points(flow).to(device).requires_grad_()
    value = flow.log_prob(x, noise)
    weights = torch.linspace(1, 2, len(x), device=device)
    wanted = [x, *flow.parameters()]
    gradients = torch.autograd.grad(value @ weights, wanted, materialize_grads=True)
    assert {t.device.type for t in (value, *gradients)} == {device.type}
    return [t.detach().cpu() for t in (value, *gradients)]


def assert_same_bits(here: list[Tensor], there: list[Tensor], rounding: float = 0.0) -> None:
    for a, b in zip(here, there, strict=True):
        torch.testing.assert_close(a, b, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("on", ["cpu", "sim"])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_estimate_and_its_gradient_have_the_same_bits(name: str, on: str) -> None:
    """Of every estimator, with a generator on the CPU and with one on the device.

    A number of terms is drawn on the host, whose numbers are others than a device's. The exact
    value decomposes its products in another order for a device in Python.
    """
    if on == "sim" and name in ROULETTED:
        pytest.skip("its number of terms is drawn on the host")
    flow = FLOWS["mlp"]().with_estimator(ESTIMATORS[name])
    here = value_and_gradients(flow, torch.Generator().manual_seed(5))
    with standin():
        there = value_and_gradients(flow.to("sim"), torch.Generator(on).manual_seed(5))
    assert_same_bits(here, there, 1e-6 if name == "exact" else 0.0)


def test_layers_have_the_same_bits(pair) -> None:
    flow, moved = pair
    for estimator in (FIXED, ROULETTE):
        here = value_and_gradients(flow.with_estimator(estimator), torch.Generator().manual_seed(5))
        there = moved.with_estimator(estimator)
        assert_same_bits(here, value_and_gradients(there, torch.Generator().manual_seed(5)))


def test_norms_are_certified(pair) -> None:
    """After an update of weights that exceed their norms; by singular values on the CPU."""
    _, moved = pair
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.mul_(3.0)
    moved.update()
    back = copy.deepcopy(moved).to("cpu")
    for block, again in zip(moved.blocks, back.blocks, strict=True):
        promised = block.branch.lipschitz * (1 + 1e-6)
        assert float(block.branch.lipschitz_certified()) <= promised
        layers = [layer for layer in again.modules() if isinstance(layer, Linear)]
        for layer in layers:
            norm = torch.linalg.matrix_norm(layer.weight_normalised().double(), 2)
            assert norm <= layer.coefficient * (1 + 1e-6)


@pytest.mark.parametrize("inversion", [ToTolerance(), ToRounding(), ToError(1e-3)], ids=repr)
def test_an_inverse_is_within_its_bound(pair, inversion) -> None:
    flow, moved = pair
    x = points(flow)
    z = flow(x).detach()
    solution = moved.inverse(z.to("sim"), inversion).raise_if_failed()
    assert solution.value.device.type == "sim"
    error = (solution.value.cpu() - x).flatten(1).norm(dim=1).double()
    rounding = 1e-5 * (1 + x.flatten(1).norm(dim=1))  # of z
    assert (error <= solution.error_bound.cpu() + rounding).all()


def test_samples_are_the_same(pair) -> None:
    flow, moved = pair
    here = flow.sample(3, torch.Generator().manual_seed(2))
    there = moved.sample(3, torch.Generator().manual_seed(2))
    assert there.device.type == "sim"
    torch.testing.assert_close(there.cpu(), here, rtol=1e-4, atol=1e-4)


def test_a_checkpoint_goes_from_one_device_to_another(pair) -> None:
    flow, moved = pair
    here = value_and_gradients(flow, torch.Generator().manual_seed(5))
    file = io.BytesIO()
    torch.save(moved.state_dict(), file)
    file.seek(0)
    state = torch.load(file, map_location="cpu", weights_only=True)
    fresh = copy.deepcopy(flow)
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.zero_()
    fresh.load_state_dict(state)
    assert_same_bits(here, value_and_gradients(fresh, torch.Generator().manual_seed(5)))
    fresh.to("sim").load_state_dict(flow.state_dict())
    assert_same_bits(here, value_and_gradients(fresh, torch.Generator().manual_seed(5)))


@pytest.mark.parametrize("levels", [None, 256])
def test_a_training_is_the_same(levels: int | None) -> None:
    """Losses of three steps; counts are dequantised on the way."""
    x = points(FLOWS["multi-scale"](), 16)
    x = x if levels is None else (x * levels).to(torch.uint8)

    def losses(device: str) -> list[float]:
        data = Dataset("points", x.to(device), x.to(device), levels)
        flow = FLOWS["multi-scale"]().to(device).with_estimator(FIXED)
        trainer = Trainer(flow, data, Training(10, batch_size=8, learning_rate=1e-2))
        return [trainer.step() for _ in range(3)]

    with standin():
        assert losses("sim") == pytest.approx(losses("cpu"), rel=1e-4)


def test_a_training_goes_on_on_another_device() -> None:
    """From a checkpoint of either kind, to the losses of a training that stayed."""
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(1))

    def trainer(device: str) -> Trainer:
        flow = _vectors(mlp_branch(4, (8,), 0.9)).with_estimator(ROULETTE).to(device)
        data = Dataset("points", x.to(device), x.to(device))
        return Trainer(flow, data, Training(10, batch_size=8, learning_rate=1e-2))

    stayed = trainer("cpu")
    expected = [stayed.step() for _ in range(6)]
    with standin():
        for start, end in (("cpu", "sim"), ("sim", "cpu")):
            first = trainer(start)
            losses = [first.step() for _ in range(3)]
            file = io.BytesIO()
            torch.save(first.state_dict(), file)
            file.seek(0)
            then = trainer(end)
            then.load_state_dict(torch.load(file, map_location="cpu"))
            losses += [then.step() for _ in range(3)]
            assert losses == pytest.approx(expected, rel=1e-4)


def test_a_default_device_changes_nothing() -> None:
    flow = FLOWS["multi-scale"]()
    here = value_and_gradients(flow, torch.Generator().manual_seed(5))
    with standin(), torch.device("sim"):
        made = FLOWS["multi-scale"]().to("sim")
        there = value_and_gradients(made, torch.Generator().manual_seed(5))
        made.update()
        made.inverse(made(points(flow).to("sim")).detach(), ToError(1e-3)).raise_if_failed()
    assert_same_bits(here, there)


def test_a_generator_elsewhere_draws_a_roulette_without_a_wait() -> None:
    """N follows its state and its law, 2 + M with E M = 7/3 and Var M = 70/9."""
    with standin() as counts:
        like, generator = torch.zeros(1, device="sim"), torch.Generator("sim").manual_seed(3)
        first, second = (ROULETTE.truncation.draw(4000, like, generator) for _ in range(2))
        again = ROULETTE.truncation.draw(4000, like, torch.Generator("sim").manual_seed(3))
    assert counts.n_waits == 0
    assert (first.n_terms == again.n_terms).all()
    assert not (first.n_terms == second.n_terms).all()
    for terms in (first, second):
        assert abs(terms.n_terms.mean() - (2 + 7 / 3)) < 4 * (70 / 9 / 4000) ** 0.5


def test_what_has_fixed_terms_can_be_recorded() -> None:
    """A log-prob and its gradient neither wait nor copy from the host; a roulette's weights do."""
    copies = {}
    for name, estimator in (("fixed", FIXED), ("roulette", ROULETTE)):
        with standin():
            flow = _vectors(*(mlp_branch(4, (8,), 0.9) for _ in range(2))).to("sim")
            flow, x = flow.with_estimator(estimator), torch.zeros(8, 4, device="sim")
            flow.log_prob(x).sum().backward()  # constants are made once
            with standin() as counts:
                flow.log_prob(x).sum().backward()
        assert counts.n_waits == 0
        copies[name] = counts.copies.total()
    assert copies["fixed"] == 0 < copies["roulette"]


def test_a_latent_that_is_not_finite_diverges_and_spoils_no_other() -> None:
    flow = _vectors(mlp_branch(4, (8,), 0.9), mlp_branch(4, (6,), 0.9))
    z = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    z[0, 0] = float("nan")
    here = flow.inverse(z, ToError(1e-3)).outcome
    with standin():
        there = copy.deepcopy(flow).to("sim").inverse(z.to("sim"), ToError(1e-3)).outcome.cpu()
    assert here.tolist() == there.tolist() == [3, 0, 0]


@pytest.mark.parametrize("n_blocks", [2, 6])
def test_promises_are_compared_with_one_wait(n_blocks: int) -> None:
    """After weights are loaded, whose norms nobody has certified on this device."""
    flow = ResidualFlow.mlp(4, (8,), n_blocks, 0.9)
    with standin():
        flow = flow.to("sim")
        flow.sample(4)
        flow.load_state_dict(copy.deepcopy(flow.state_dict()))
        with standin() as counts:
            flow.sample(4)
        assert counts.n_waits <= 4
        with torch.no_grad():
            for parameter in flow.parameters():
                parameter.add_(torch.randn(parameter.shape).to("sim"))
        with pytest.warns(UserWarning, match="A branch promises lipschitz"):
            flow.inverse(torch.zeros(1, 4, device="sim"), certify=False)


def test_huge_weights_are_bounded() -> None:
    """In float64, where the square of a norm overflows."""
    with standin():
        layer = Linear(3, 2, 0.5).double().to("sim")
        layer.weight.data.mul_(1e200)
        layer.update()
        norm = torch.linalg.matrix_norm(layer.weight_normalised().detach().cpu(), 2)
    assert 0.499 < float(norm) <= 0.5
