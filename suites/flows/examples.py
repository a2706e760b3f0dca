"""The other systems as the examples of public libraries train them, small or of our size."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from resflow_bench.architectures import GLOW_STEPS
from resflow_bench.flows import ResidualFlow
from resflow_bench.systems import Continuous, Discrete, fields
from resflow_bench.systems.fields import Field
from resflow_bench.systems.made import MIN_WIDTH, hidden_width
from resflow_bench.systems.ode import METHODS, integrate

N_STEPS = 64
"""Steps of the classical Runge-Kutta method by which a path's density is evaluated."""

LOGIT_SCALE = 255 / 256
"""The factor by which normflows' example multiplies its images."""


class Example:
    """A flow of a library with the loss, the optimiser and the batch of the library's example.

    flow: trained in place.
    loss: of a batch (B, *event) and a generator -> (), nats if it is the likelihood's.
    optimiser: of the flow's parameters.
    log_prob: of a copy of the flow in float64 and points, exact: (n,), nats.
    """

    def __init__(
        self,
        flow: Any,
        loss: Callable[[Tensor, torch.Generator], Tensor],
        log_prob: Callable[[Any, Tensor], Tensor],
        optimiser: torch.optim.Optimizer | None = None,
    ) -> None:
        self.flow, self.loss, self._log_prob = flow, loss, log_prob
        self.optimiser = optimiser or torch.optim.Adam(flow.parameters(), lr=1e-3)

    @torch.no_grad()
    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x), (n,), float64, nats."""
        return self._log_prob(copy.deepcopy(self.flow).double().eval(), x.double())


class NetSize(NamedTuple):
    """The number of transforms in a chain, and the widths of their networks."""

    n_transforms: int
    hidden: tuple[int, ...]


def zuko_discrete(kind: str, event: tuple[int, ...], size: NetSize | None) -> Example:
    """Three transforms of two layers of 64, unless a size is given; Adam at 1e-3.

    Source: docs/tutorials/forward_kl.ipynb of probabilists/zuko, which trains NSF on moons.
    """
    import zuko

    n_transforms, hidden = size or NetSize(3, (64, 64))
    make = getattr(zuko.flows, kind)
    flow = make(math.prod(event), transforms=n_transforms, hidden_features=hidden)
    return Example(flow, lambda x, _: -flow().log_prob(x).mean(), lambda f, x: f().log_prob(x))


def zuko_continuous(event: tuple[int, ...], size: NetSize | None, exact: bool) -> Example:
    """zuko's CNF of two layers of 64, with the same Adam; its density by 64 Runge-Kutta steps."""
    import zuko

    _, hidden = size or NetSize(1, (64, 64))
    flow = zuko.flows.CNF(math.prod(event), hidden_features=hidden, exact=exact)

    def log_prob(f: Any, x: Tensor) -> Tensor:
        return _log_prob(lambda x, t: f.transform.f(t, x), x, 0.0, 1.0)

    return Example(flow, lambda x, _: -flow().log_prob(x).mean(), log_prob)


def torchcfm_paths(event: tuple[int, ...], size: NetSize | None, transport: bool) -> Example:
    """Three layers of 64 SELU units, sigma = 0.1, Adam at 1e-3: torchcfm's example in the plane.

    The loss is written out here, as that package brings a framework of trainings with it.

    Source: examples/8_gaussians_to_2_moons.py of atong01/conditional-flow-matching.
    """
    import zuko

    d, widths = math.prod(event), (size or NetSize(1, (64, 64, 64))).hidden
    net = zuko.nn.MLP(d + 1, d, widths, activation=nn.SELU)

    def loss(x: Tensor, generator: torch.Generator) -> Tensor:
        noise, blur = torch.randn(2, *x.shape, generator=generator)
        t = torch.rand(len(x), 1, generator=generator)
        noise = fields.transported(noise, x) if transport else noise
        point = (1 - t) * noise + t * x + 0.1 * blur
        return (net(torch.cat([point, t], dim=1)) - (x - noise)).square().mean()

    def log_prob(f: Any, x: Tensor) -> Tensor:
        return _log_prob(lambda x, t: f(torch.cat([x, t[:, None]], dim=1)), x, 1.0, 0.0)

    return Example(net, loss, log_prob)


def normflows_glow(event: tuple[int, ...], size: NetSize | None) -> Example:
    """Glow of 16 blocks a scale, 256 channels and Adamax at 1e-3; two scales for 8 x 8 images.

    The example has three scales for 32 x 32, and a base that knows the class.

    Source: examples/glow.ipynb of VincentStimper/normalizing-flows.
    """
    import normflows

    channels, height, width = event
    n_blocks, (hidden, *_) = size or NetSize(16, (256,))
    n_scales = 3 if min(height, width) >= 32 else 2
    bases, flows, merges = [], [], []
    for i in range(n_scales):
        n_channels = channels * 2 ** (n_scales + 1 - i)
        blocks = [
            normflows.flows.GlowBlock(n_channels, hidden, split_mode="channel", scale=True)
            for _ in range(n_blocks)
        ]
        flows.append([*blocks, normflows.flows.Squeeze()])
        side = 2 ** (n_scales - i)
        last = i == 0
        shape = (n_channels if last else n_channels // 2, height // side, width // side)
        merges += [] if last else [normflows.flows.Merge()]
        bases.append(normflows.distributions.DiagGaussian(shape))
    flow = normflows.MultiscaleFlow(bases, flows, merges)
    shift = math.prod(event) * math.log(LOGIT_SCALE)
    return Example(
        flow,
        lambda x, _: -flow.log_prob(LOGIT_SCALE * x, None).mean(),
        lambda f, x: f.log_prob(LOGIT_SCALE * x, None) + shift,
        torch.optim.Adamax(flow.parameters(), lr=1e-3, weight_decay=1e-5),
    )


def normflows_realnvp(event: tuple[int, ...], size: NetSize | None) -> Example:
    """32 affine couplings of two layers of 64, Adam at 5e-4: normflows' example in the plane.

    Source: examples/real_nvp_colab.ipynb of VincentStimper/normalizing-flows.
    """
    import normflows

    d, flows = math.prod(event), []
    n_blocks, hidden = size or NetSize(32, (64, 64))
    for _ in range(n_blocks):
        net = normflows.nets.MLP([d // 2, *hidden, d], init_zeros=True)
        flows.append(normflows.flows.AffineCouplingBlock(net))
        flows.append(normflows.flows.Permute(d, mode="swap"))
    flow = normflows.NormalizingFlow(normflows.distributions.DiagGaussian(d), flows)
    optimiser = torch.optim.Adam(flow.parameters(), lr=5e-4, weight_decay=1e-5)
    return Example(flow, lambda x, _: flow.forward_kld(x), lambda f, x: f.log_prob(x), optimiser)


EXAMPLES: Mapping[str, Callable[[tuple[int, ...], NetSize | None], Example]] = MappingProxyType(
    {
        "nice": partial(zuko_discrete, "NICE"),
        "realnvp": partial(zuko_discrete, "RealNVP"),
        "maf": partial(zuko_discrete, "MAF"),
        "nsf": partial(zuko_discrete, "NSF"),
        "glow": lambda event, size: (
            normflows_glow(event, size) if len(event) == 3 else normflows_realnvp(event, size)
        ),
        "neural-ode": partial(zuko_continuous, exact=True),
        "ffjord": partial(zuko_continuous, exact=False),
        "flow-matching": partial(torchcfm_paths, transport=False),
        "ot-flow-matching": partial(torchcfm_paths, transport=True),
    }
)
"""Our name of a system -> (shape of one example, size or that of the example) -> `Example`."""


def size_of(flow: ResidualFlow) -> NetSize:
    """The size of a system of ours, for a library's network of about as many parameters."""
    for part in flow.modules():
        if isinstance(part, Discrete):
            return NetSize(part.n_transforms, part.hidden)
        if isinstance(part, Continuous):
            return NetSize(1, part.hidden)
    if len(flow.event) == 3:
        return NetSize(GLOW_STEPS, (MIN_WIDTH,))
    return NetSize(2 * GLOW_STEPS, (hidden_width(flow.dim),) * 2)


def _log_prob(u: Field, x: Tensor, start: float, end: float) -> Tensor:
    """log p(x) of the path dx/dt = u(x, t) from data at `start` to N(0, I) at `end`, (n,)."""

    def rates(t: float, x: Tensor) -> tuple[Tensor, Tensor]:
        return fields.exact_trace(u, x, x.new_full((len(x),), t))

    z, log_det = integrate(rates, x, start, end, METHODS["rk4"], N_STEPS)
    return log_det - 0.5 * z.square().sum(1) - 0.5 * z.shape[1] * math.log(2 * math.pi)
