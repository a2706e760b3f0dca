"""Launches and waits of one call, counted on the stand-in accelerator."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from resflow_bench.architectures import architecture_named
from resflow_bench.data import Dataset
from resflow_bench.flows import ResidualFlow, ToError
from resflow_bench.lab import Cell, Context, Observation, Skip, exactly
from resflow_bench.logdet import Determinant
from resflow_bench.models import build_estimator
from resflow_bench.peers import PEERS, Peer, Request
from resflow_bench.speed.standin import NAME, standin, unsupported
from resflow_bench.speed.timing import Call
from resflow_bench.training.trainer import Trainer, Training

VECTORS, IMAGES = (16,), (3, 8, 8)
EVENTS = {"conv": IMAGES, "multiscale": IMAGES}
"""The shape of an example of each architecture; of any other it is `VECTORS`."""

ERROR = 1e-3
"""Requested of the certified inverse."""

N_LINES = 3
"""Waiting lines that a row names."""


def measure_launches(cell: Cell, context: Context) -> Iterable[Observation]:
    """`n_launches` and `n_waits` of a call that is not the first of its kind.

    Raises:
        Skip: the process has no stand-in accelerator, or the implementation no such call.
    """
    check_supported()
    with standin():
        call = build_call(cell, context.generator_seed(cell))
        call()
        with standin() as counts:
            call()
    yield exactly("n_launches", counts.n_launches, "1")
    lines = [f"{n} in {line}" for line, n in counts.waiting_lines[:N_LINES]]
    n_waits = float(counts.n_waits)
    yield Observation("n_waits", n_waits, "1", 0.0, n_waits, n_waits, message=", ".join(lines))


def check_supported() -> None:
    """Skip where the process has no stand-in accelerator."""
    if reason := unsupported():
        raise Skip(reason)


def build_call(cell: Cell, seed: int) -> Call:
    """The cell's operation on a flow and a batch on the stand-in, as a function without arguments.

    log_prob: the estimated log-likelihood, without a graph; gradient: that of its mean in the
    parameters; train_step: loss, gradient, Adam and update; update: that of the norms alone;
    sample: draws from the model; inversion: of the latents, at its default; certified_inversion:
    to a certified error of `ERROR`.

    Raises:
        Skip: the implementation cannot hold the flow, or has no such operation of its own.
    """
    event = EVENTS.get(cell["architecture"], VECTORS)
    flow = architecture_named(cell["architecture"])(event, cell["lipschitz"])
    x = torch.rand(cell["batch_size"], *event, generator=torch.Generator().manual_seed(0))
    flow.initialise(x)
    flow, x = flow.to(NAME), x.to(NAME)
    operation = cell["operation"]
    if (mode := cell.get("mode")) is not None:
        request = Request(mode, cell.get("n_terms"), cell["n_probes"])
        return _call_of_peer(PEERS[cell["implementation"]](flow, request), x, operation, seed)
    if cell["implementation"] != "ours":
        raise Skip(f"{cell['implementation']} is measured in a mode; set `mode`")
    if "truncation" in cell.axes:
        flow = flow.with_estimator(build_estimator(cell))
    elif cell.get("estimator") == "determinant":
        flow = flow.with_estimator(Determinant())
    return _call_of_flow(flow, x, operation, seed)


def _call_of_flow(flow: ResidualFlow, x: Tensor, operation: str, seed: int) -> Call:
    generator = torch.Generator(NAME).manual_seed(seed)
    parameters = list(flow.parameters())
    z = flow(x).detach()
    data = Dataset("points", train=x, test=x)
    calls: dict[str, Call] = {
        "log_prob": torch.no_grad()(lambda: flow.log_prob(x, generator)),
        "gradient": lambda: torch.autograd.grad(flow.log_prob(x, generator).mean(), parameters),
        "train_step": Trainer(flow, data, Training(10**6, batch_size=len(x))).step,
        "update": flow.update,
        "sample": lambda: flow.sample(len(x), generator),
        "inversion": lambda: flow.inverse(z),
        "certified_inversion": lambda: flow.inverse(z, ToError(ERROR)),
    }
    return calls[operation]


def _call_of_peer(peer: Peer, x: Tensor, operation: str, seed: int) -> Call:
    z = torch.no_grad()(peer.map)(x)
    adam = torch.optim.Adam(peer.parameters, fused=True)

    def mean() -> Tensor:
        return peer.log_prob(x.clone()).mean()

    def train_step() -> None:
        adam.zero_grad()
        (-mean()).backward()
        adam.step()
        if peer.update is not None:
            peer.update()

    calls: dict[str, Call | None] = {
        "log_prob": torch.no_grad()(lambda: peer.log_prob(x.clone())),
        "gradient": lambda: torch.autograd.grad(mean(), peer.parameters, allow_unused=True),
        "train_step": train_step,
        "update": peer.update,
        "inversion": torch.no_grad()(lambda: peer.inverse(z)),
    }
    call = calls.get(operation)
    if call is None:
        raise Skip(f"{peer.version} has no {operation} of its own")

    def seeded() -> object:
        with peer.seeded(seed):
            return call()

    return seeded
