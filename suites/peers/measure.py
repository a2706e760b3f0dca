"""Bias, variance, gradient, inverse and cost of implementations that hold the same weights.

Every implementation, ours included, is measured by the functions below. The exact value is that of
its own map in float64.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import count

import numpy as np
import torch
from torch import Tensor

from resflow_bench.flows import ResidualFlow, ToRounding
from resflow_bench.intervals import Interval, mean_interval, median_interval
from resflow_bench.lab import Cell, Context, Observation, exactly, observe
from resflow_bench.logdet import Fixed, Roulette, exact_log_det
from resflow_bench.models import Problem, build_points, build_problem, realised
from resflow_bench.peers import PEERS, TRAINING, Peer, Request
from resflow_bench.speed.timing import elapsed, peak_bytes
from resflow_bench.theory import Coefficients
from resflow_bench.threads import one_thread
from suites.sampling import (
    NORMAL_ORDER,
    REACHABLE,
    rounding_of,
    sample_variance,
    widened,
    without_logit,
)

UPSTREAM = (1.0, 2.0, 5.0, -1.0)
"""d loss / d log_det of one example after the other: unequal, as importance weights are."""

N_GROUPS = 8
"""Pairs of means whose products are averaged: their interval has this many samples, less one."""

N_WARM_UP = 3

LEARNING_RATE = 1e-3


def measure_peers(cell: Cell, context: Context) -> Iterable[Observation]:
    """Bias, variance, gradient, inverse, seconds and bytes of `implementation` in `mode`.

    Bias and variance are those of its estimate of ln|det df/dx|. The gradient is measured in the
    modes of a training, as is a training step; in evaluation the inverse is: of the points in
    float64, and of a batch of latents in the cell's dtype, with its time. A logit in front of the
    flow, which no other implementation holds, is left out. With more than one probe only bias and
    variance are measured. `variance_is_finite`, of a roulette, is the answer at rho, the largest
    spectral radius of a J at the points.
    """
    request = Request(cell["mode"], cell.get("n_terms"), cell.get("n_probes", 1))
    problem = build_problem(cell, context.results, int(context.effort["n_points"]))
    pristine = problem.flow
    flow, x, known = without_logit(pristine, problem.x)
    problem = replace(problem, flow=flow, x=x, log_det=problem.log_det - known)
    make = PEERS[cell["implementation"]]
    with one_thread():
        peer = make(problem.flow, request)
        double = make(copy.deepcopy(problem.flow).double(), request)
        truth = exact(double, problem.x.double())
        seed, n_copies = context.generator_seed(cell), int(context.effort["n_copies"])
        n_calls = int(context.effort["n_calls"])
        yield from _values(problem, peer, truth.detach().numpy(), n_calls, n_copies, seed)
        if request.n_probes == 1:
            yield from _map_and_weights(problem, peer, seed)
            if request.mode in TRAINING:
                n_draws = int(context.effort["n_gradients"])
                yield gradient_error(peer, double, problem.x, n_draws, n_copies, seed)
            else:
                yield from inverse_error(double, problem.x.double(), seed)
            x = build_points(cell, cell["batch_size"], context.results)
            x = without_logit(pristine, x)[1].contiguous()  # as other packages require
            mine, n_pairs = PEERS["ours"](flow, request), int(context.effort["n_pairs"])
            yield from _costs(peer, mine, request, x, n_pairs, seed)
            if request.mode in TRAINING:
                yield from _step_costs(make(flow, request), mine, x, n_pairs, seed)
            else:
                yield from _inverse_costs(peer, mine, flow, x, n_pairs, seed)
        yield from realised(problem.norm, problem.spectral_radius)


def _values(
    problem: Problem, peer: Peer, truth: np.ndarray, n_calls: int, n_copies: int, seed: int
) -> Iterator[Observation]:
    """`bias`, `bias_expected`, `variance`, whether that is finite, and `batch_correlation`.

    A call is one sample, because the examples of a batch may share their number of terms. Where
    the tail of that number's law is too heavy for a finite variance, the interval of `bias` covers
    the terms reached once in 1e9 draws or more often, and is widened by a bound on the rest.
    """
    draws = draw(peer, problem.x, n_calls, n_copies, seed)  # (n, P, R)
    errors = draws.mean(2) - truth  # (n, P)
    rest = _unreached(problem, peer.truncation)
    interval = widened(mean_interval(errors.mean(1)), rest + rounding_of(problem.x, truth))
    rho, truncation = problem.spectral_radius, peer.truncation
    message = f"{peer.version}; {n_calls} calls of {n_copies} x {len(problem.x)} examples"
    if not truncation.moment_is_finite(rho, 2):
        message += f"; infinite variance, but terms met once in 1e9 draws leave {rest:.1e} nat"
    yield observe("bias", interval, "nat", draws.size, message)
    if (bias := peer.bias) is not None:
        expected = problem.over_blocks(lambda j, _: bias(j)).mean()
        yield exactly("bias_expected", float(expected), "nat")
    yield exactly("log_det_exact", float(truth.mean()), "nat")
    is_normal = truncation.moment_is_finite(rho, NORMAL_ORDER)
    spread = sample_variance(draws.reshape(n_calls, -1), is_normal)
    yield observe("variance", spread, "nat^2", draws.size)
    if isinstance(truncation, Roulette):
        yield exactly("variance_is_finite", float(truncation.moment_is_finite(rho, 2)), "1")
    if n_copies > 1:
        yield observe("batch_correlation", batch_correlation(draws), "1", n_calls)


def draw(peer: Peer, x: Tensor, n_calls: int, n_copies: int, seed: int) -> np.ndarray:
    """Estimates of n calls, each on R copies of the P points: (n, P, R), nats, float64."""
    copies = copied(x, n_copies)
    with peer.seeded(seed), torch.no_grad():
        calls = [peer.log_det(copies.clone()).detach().double() for _ in range(n_calls)]
    return torch.stack(calls).view(n_calls, n_copies, len(x)).transpose(1, 2).numpy()


def exact(double: Peer, x: Tensor) -> Tensor:
    """ln|det df/dx| of the peer's own map, (P,), nats, float64, with a graph to its parameters."""
    # ln|det(I + J)| with g(x) = f(x) - x is that of f, whatever the blocks of f are.
    return exact_log_det(lambda inputs: double.map(inputs).view_as(inputs) - inputs, x)


def copied(x: Tensor, n_copies: int) -> Tensor:
    """The points over and over, (n_copies * P, *event)."""
    return x.repeat(n_copies, *[1] * (x.ndim - 1))


def batch_correlation(draws: np.ndarray) -> Interval:
    """Cov(a, b) / Var(a) of two estimates a, b at the same x in the same call.

    Zero where each example has draws of its own. Args: draws (n, P, R), R at least 2.
    The interval is that of a ratio of means over the n calls, by the delta method.
    """
    n_copies = draws.shape[2]
    centred = draws - draws.mean((0, 2), keepdims=True)
    squares = (centred**2).mean((1, 2))  # (n,)
    pairs = (centred.sum(2) ** 2 - (centred**2).sum(2)).mean(1) / (n_copies * (n_copies - 1))
    ratio = pairs.mean() / squares.mean()
    return mean_interval(ratio + (pairs - ratio * squares) / squares.mean())


def gradient_error(
    peer: Peer, double: Peer, x: Tensor, n_draws: int, n_copies: int, seed: int
) -> Observation:
    """||E grad - exact|| / ||exact||, grad of sum_i u_i log_det_i in the parameters of all g.

    u is `UPSTREAM`, over and over. With e = (grad - exact) / ||exact|| the squared length of E e
    is the mean of <e', e''>, e' and e'' independent: no noise adds to it, as it would to ||mean||.
    """
    u = torch.tensor(UPSTREAM, dtype=torch.float64).repeat(-(-len(x) // len(UPSTREAM)))[: len(x)]
    truth = _flat(exact(double, x.double()) @ u, double.parameters)
    size, weights, copies = truth.norm(), u.to(x).repeat(n_copies) / n_copies, copied(x, n_copies)
    length = max(1, n_draws // (2 * N_GROUPS))
    means = []
    with peer.seeded(seed):
        for _ in range(2 * N_GROUPS):
            total = torch.zeros_like(truth)
            for _ in range(length):
                total += _flat(peer.log_det(copies.clone()) @ weights, peer.parameters).double()
            means.append((total / length - truth) / size)
    e = torch.stack(means).view(N_GROUPS, 2, -1)
    squared = mean_interval((e[:, 0] * e[:, 1]).sum(1).numpy())
    value, low, high = (math.sqrt(max(0.0, y)) for y in (squared.value, squared.low, squared.high))
    n = 2 * N_GROUPS * length
    given = ", ".join(f"{w:g}" for w in UPSTREAM)
    message = f"{peer.version}; {n} calls of {len(copies)} examples weighted {given}, ..."
    return Observation("gradient_error", value, "1", math.nan, low, high, n, message)


def _flat(value: Tensor, parameters: list[Tensor]) -> Tensor:
    """d value / d parameters as one vector."""
    parts = torch.autograd.grad(value, parameters, materialize_grads=True)
    return torch.cat([part.flatten() for part in parts])


def inverse_error(double: Peer, x: Tensor, seed: int) -> Iterator[Observation]:
    """max ||x^ - x||_2 over points, x^ the peer's inverse of z = f(x), in float64 throughout.

    In float64 the error shows where the iteration stops, without float32's rounding.
    """
    with double.seeded(seed), torch.no_grad():
        inverse, bound = double.inverse(double.map(x))
    error = float((inverse - x).flatten(1).norm(dim=1).max())
    requested = "no tolerance can be asked for"
    if double.tolerance is not None:
        requested = f"asked for {double.tolerance:g}"
        yield exactly("inverse_asked", double.tolerance, "1")
    if bound is not None:
        yield exactly("inverse_bound", float(bound.max()), "1")
    message = f"{double.version}; {requested}; {len(x)} points"
    yield Observation("inverse_error", error, "1", 0.0, error, error, len(x), message)


def _map_and_weights(problem: Problem, peer: Peer, seed: int) -> Iterator[Observation]:
    """The peer's map minus ours, and its linear layers' norms over the requested ones."""
    with torch.no_grad(), peer.seeded(seed):
        difference = peer.map(problem.x).flatten(1) - problem.flow(problem.x).flatten(1)
        first, second = peer.weights(), peer.weights()
    norms = [float(torch.linalg.matrix_norm(w.double(), 2)) / c for w, c in first]
    again = zip(first, second, strict=True)
    moved = [float(torch.linalg.matrix_norm((w - v).double(), 2)) / c for (w, c), (v, _) in again]
    yield exactly("map_difference", float(difference.abs().max()), "1")
    if not norms:  # a flow of convolutions
        return
    yield exactly("norm_over_asked", max(norms), "1")
    yield exactly("weight_change", max(moved), "1")


def _costs(
    peer: Peer, ours: Peer, request: Request, x: Tensor, n_pairs: int, seed: int
) -> Iterator[Observation]:
    """Seconds of log-prob on one thread, their ratio to ours in interleaved pairs, and bytes."""

    def gradient(of: Peer) -> object:
        return _flat(of.log_prob(x.clone()).mean(), of.parameters)

    def peak_over_ours(call: Callable[[Peer], object]) -> tuple[float, float]:
        with peer.seeded(seed), ours.seeded(seed):
            peak, our_peak = (peak_bytes(partial(call, one), str(x.device)) for one in (peer, ours))
        return float(peak), peak / our_peak

    seconds = log_prob_seconds(peer, ours, x, n_pairs, seed)
    wall, ratio = median_interval(seconds[:, 0]), median_interval(seconds[:, 0] / seconds[:, 1])
    yield observe("wall_s", wall, "s", n_pairs, f"{peer.version}; one thread, B = {len(x)}")
    yield observe("time_over_ours", ratio, "1", n_pairs, "interleaved pairs")
    peak, over = peak_over_ours(partial(_log_prob, x=x))
    yield Observation("peak_bytes", peak, "B")
    yield exactly("peak_over_ours", over, "1")
    if request.mode in TRAINING:
        peak, over = peak_over_ours(gradient)
        yield Observation("peak_bytes_gradient", peak, "B")
        yield exactly("gradient_peak_over_ours", over, "1")


def log_prob_seconds(peer: Peer, ours: Peer, x: Tensor, n_pairs: int, seed: int) -> np.ndarray:
    """Seconds of interleaved calls of log-prob without a graph, (n_pairs, [peer, ours])."""
    with peer.seeded(seed), ours.seeded(seed):
        calls = [partial(_log_prob, one, x) for one in (peer, ours)]
        pairs = [list(map(elapsed, calls)) for _ in range(N_WARM_UP + n_pairs)]
    return np.asarray(pairs[N_WARM_UP:])


def _log_prob(of: Peer, x: Tensor) -> Tensor:
    with torch.no_grad():
        return of.log_prob(x.clone())


def _inverse_costs(
    peer: Peer, ours: Peer, flow: ResidualFlow, x: Tensor, n_pairs: int, seed: int
) -> Iterator[Observation]:
    """Seconds of the inverse of a batch of z ~ N(0, I), their ratio to ours, max ||x^ - x||_2.

    The certificate is part of ours. The truth is the inverse of our map in float64, to rounding;
    that of another map differs from it by about `map_difference`.
    """
    z = latents(x)
    seconds = inverse_seconds(peer, ours, x, n_pairs, seed)
    wall, ratio = median_interval(seconds[:, 0]), median_interval(seconds[:, 0] / seconds[:, 1])
    message = f"{peer.version}; one thread, {len(z)} latents"
    yield observe("inverse_s", wall, "s", n_pairs, message)
    yield observe("inverse_over_ours", ratio, "1", n_pairs, "interleaved pairs")
    truth = copy.deepcopy(flow).double().inverse(z.double(), ToRounding()).value.flatten(1)
    with peer.seeded(seed), torch.no_grad():
        inverse, bound = peer.inverse(_as_latents_of(peer, x))
    error = float((inverse.double().flatten(1) - truth).norm(dim=1).max())
    yield Observation("inverse_batch_error", error, "1", 0.0, error, error, len(z), message)
    if bound is not None:
        yield exactly("inverse_batch_bound", float(bound.max()), "1")


def inverse_seconds(peer: Peer, ours: Peer, x: Tensor, n_pairs: int, seed: int) -> np.ndarray:
    """Seconds of interleaved inverses of `latents`, (n_pairs, [peer, ours])."""
    with peer.seeded(seed), ours.seeded(seed), torch.no_grad():
        calls = [partial(one.inverse, _as_latents_of(one, x)) for one in (peer, ours)]
        pairs = [list(map(elapsed, calls)) for _ in range(N_WARM_UP + n_pairs)]
    return np.asarray(pairs[N_WARM_UP:])


def latents(x: Tensor) -> Tensor:
    """z ~ N(0, I), the points that sampling inverts: as many numbers as x has, (B, d)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(x.flatten(1).shape, generator=generator).to(x)


def _as_latents_of(peer: Peer, x: Tensor) -> Tensor:
    """The latents in the shape that the peer's map returns."""
    return latents(x).view_as(peer.map(x))


def _step_costs(
    peer: Peer, ours: Peer, x: Tensor, n_pairs: int, seed: int
) -> Iterator[Observation]:
    """Seconds of a training step on one thread, their ratio to ours, and the share of the update.

    A step is the loss, its gradient, Adam (fused) and the update of the norms, by which ours
    certifies every norm.
    """
    taken = step_seconds(peer, ours, x, n_pairs, seed)
    totals = taken.sum(2)
    step, ratio = median_interval(totals[:, 0]), median_interval(totals[:, 0] / totals[:, 1])
    share = median_interval(taken[:, 0, 1] / totals[:, 0])
    yield observe("step_s", step, "s", n_pairs, f"{peer.version}; one thread, B = {len(x)}")
    yield observe("step_over_ours", ratio, "1", n_pairs, "interleaved pairs")
    yield observe("update_share", share, "1", n_pairs)


def step_seconds(peer: Peer, ours: Peer, x: Tensor, n_pairs: int, seed: int) -> np.ndarray:
    """Seconds of interleaved steps on one batch, which train the two.

    Returns (n_pairs, [peer, ours], [gradient and Adam, update]).
    """
    steps = [_steps(one, x) for one in (peer, ours)]
    with peer.seeded(seed), ours.seeded(seed):
        pairs = [[next(one) for one in steps] for _ in range(N_WARM_UP + n_pairs)]
    return np.asarray(pairs[N_WARM_UP:])


def _steps(peer: Peer, x: Tensor) -> Iterator[tuple[float, float]]:
    """Seconds of the two parts of each step: gradient and Adam, and the update of the norms."""
    adam = torch.optim.Adam(peer.parameters, lr=LEARNING_RATE, fused=True)

    def learn() -> None:
        adam.zero_grad()
        (-peer.log_prob(x.clone()).mean()).backward()
        adam.step()

    while True:
        yield elapsed(learn), elapsed(peer.update) if peer.update is not None else 0.0


def _unreached(problem: Problem, truncation: Fixed | Roulette) -> float:
    """Bound in nats on the share of the mean in terms evaluated less than once in 1e9 draws.

    sum_{k >= n} sum_i |lambda_i|^k / k <= sum_i |lambda_i|^n / (n (1 - |lambda_i|)).
    """
    if isinstance(truncation, Fixed) or truncation.moment_is_finite(problem.spectral_radius, 2):
        return 0.0
    n = next(k for k in count(1) if truncation.law.survival(np.asarray(k)) < REACHABLE)

    def of(jacobian: np.ndarray, _: Coefficients) -> np.ndarray:
        sizes = np.abs(np.linalg.eigvals(jacobian))  # (P, d)
        return np.asarray((sizes**n / (n * (1 - sizes))).sum(-1))

    return float(problem.over_blocks(of).mean())
