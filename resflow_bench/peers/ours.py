"""Ours, asked for the same numbers of terms and the same probes as normflows takes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

import resflow_bench
from resflow_bench.flows import Inversion, ResidualFlow
from resflow_bench.logdet import Fixed, Gaussian, LogDetEstimator, Neumann, Roulette, Series
from resflow_bench.peers.peer import Asked, Peer, check_convertible, linear_layers, roulette_after

TOLERANCE = 1e-5
"""On ||x - f^-1(z)||, as an error that is certified; normflows' default is the same number."""


def make(flow: ResidualFlow, asked: Asked) -> Peer:
    """A copy of the flow, with the estimator whose law is that of normflows in each mode.

    Raises:
        Skip: a flow that the peers cannot hold, so that no row of ours stands alone.
    """
    check_convertible(flow)
    used = estimator(asked)
    flow = copy.deepcopy(flow).requires_grad_(True).with_estimator(used)
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
        bias=used.truncation.bias,
        decay=used.truncation.law.decay if isinstance(used.truncation, Roulette) else 0.0,
        seeded=seeded,
    )


def estimator(asked: Asked) -> LogDetEstimator:
    """Gaussian probes, and the weights of the terms that normflows gives them in that mode.

    Its geometric law starts at 1, so that one term more than its `n_exact_terms` has weight one;
    its Neumann gradient takes the weight of J^k from the k-th term, ours from the k + 1-st.
    """
    if asked.mode == "series":
        return LogDetEstimator(Gaussian(), Fixed(asked.n_terms), asked.n_probes, gradient=Series())
    if asked.mode == "memory-saving":
        return LogDetEstimator(Gaussian(), roulette_after(4), asked.n_probes, gradient=Neumann())
    n_exact = 21 if asked.mode == "evaluation" else 3
    return LogDetEstimator(Gaussian(), roulette_after(n_exact), asked.n_probes, gradient=Series())
