"""This package, with the numbers of terms and the probes that normflows uses."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

import resflow_bench
from resflow_bench.flows import Inversion, ResidualFlow
from resflow_bench.logdet import Fixed, Gaussian, LogDetEstimator, Neumann, Roulette, Series
from resflow_bench.peers.peer import Peer, Request, check_convertible, linear_layers, roulette_after

TOLERANCE = 1e-5
"""Certified error ||x - f^-1(z)||. The number is that of normflows' default tolerance."""


def make(flow: ResidualFlow, request: Request) -> Peer:
    """A copy of the flow whose estimator has the law of normflows' in each mode.

    Raises:
        Skip: the other peers cannot hold the flow, and our row would have none to compare with.
    """
    check_convertible(flow, convolutions=True)
    terms = truncation(request)
    gradient = Neumann() if request.mode == "memory-saving" else Series()
    estimator = LogDetEstimator(Gaussian(), terms, request.n_probes, gradient=gradient)
    flow = copy.deepcopy(flow).requires_grad_(True).with_estimator(estimator)
    generator = torch.Generator(next(flow.parameters()).device)

    @contextmanager
    def seeded(seed: int) -> Iterator[None]:
        generator.manual_seed(seed)
        yield

    def inverse(z: Tensor) -> tuple[Tensor, Tensor | None]:
        solution = flow.inverse(z, Inversion(error=TOLERANCE))
        return solution.value, solution.error_bound

    return Peer(
        version=f"resflow_bench {resflow_bench.__version__}",
        map=flow,
        log_det=lambda x: flow.forward_and_log_det(x, generator)[1],
        log_prob=lambda x: flow.log_prob(x, generator),
        inverse=inverse,
        tolerance=TOLERANCE,
        branches=[block.branch for block in flow.blocks],
        weights=lambda: [(w.weight_normalised(), w.coefficient) for w in linear_layers(flow)],
        bias=terms.bias,
        truncation=terms,
        update=flow.update,
        seeded=seeded,
    )


def truncation(request: Request) -> Fixed | Roulette:
    """The terms' weights that normflows uses.

    The geometric law of normflows starts at 1, so that one term more than its `n_exact_terms` has
    weight one. Its Neumann gradient takes the weight of J^k from the k-th term, ours from the
    (k + 1)-st.
    """
    if request.fixed is not None:
        return request.fixed
    return roulette_after({"roulette": 3, "memory-saving": 4, "evaluation": 21}[request.mode])
