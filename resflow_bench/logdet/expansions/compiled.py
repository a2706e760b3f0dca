"""Taylor's series by `torch.compile`: several terms in one compiled function."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor

from resflow_bench.jacobian import Jacobian, JacobianChain, Stage
from resflow_bench.jacobian.operator import inner
from resflow_bench.logdet.expansions.compaction import State, longest_first
from resflow_bench.logdet.expansions.expansion import Expanded
from resflow_bench.logdet.expansions.numerics import flushed, headroom
from resflow_bench.logdet.truncation import Terms

AT_ONCE = 4
"""Terms in one compiled function; more take longer to compile."""

Sums = tuple[Tensor, Tensor, Tensor]
"""p J^n, sum_i c_i p J^i and sum_i a_i p J^(i-1) (0 without a), i = 1..n, of a power p."""

SeveralTerms = Callable[[Sequence[Stage], Tensor, Tensor, Tensor | None], Sums]


@dataclass(frozen=True)
class Compiled:
    """`Taylor`'s numbers, to rounding, with all operations between two products fused into one.

    Args:
        backend: of `torch.compile`. "inductor" fuses, and on a CUDA GPU records CUDA graphs
            (`mode="reduce-overhead"`): one launch for `AT_ONCE` terms.

    Properties: weights and slopes are inputs and the batch's size is a symbol: compiled once for
        the sizes of a branch, a dtype, value or gradient, and one probe or several; not for a call,
        a batch, a term or an optimiser's step. After eight such kinds torch compiles no more
        (`torch._dynamo.config.recompile_limit`), and further ones run uncompiled. A CUDA graph is
        recorded for each size of the batch: `Fixed` terms and a `Roulette` per batch suit it. On a
        CPU it does not pay: calls took 1.07 (d = 784, h = 1024, eight probes) to 1.28 (d = 64,
        h = 128) of `Taylor`'s time, and the first one twenty seconds.

    Raises:
        ValueError: when called, if the backend is "inductor" and its compiler is not installed.
        TypeError: when called, if J is no `JacobianChain`, as a branch's own (`cached`) is.
    """

    backend: str = "inductor"

    def __str__(self) -> str:
        return "compiled"

    @torch.no_grad()
    def expand(
        self, jacobian: Jacobian, v: Tensor, terms: Terms, n_traced: int, adjoint: bool
    ) -> Expanded:
        if not isinstance(jacobian, JacobianChain):
            raise TypeError(
                "Compiled needs products that know their stages, which a residual branch of this "
                f"package has (`cached`); got {type(jacobian).__name__}. Take "
                "`expansion=Taylor()`."
            )
        if self.backend == "inductor":
            _check(v.device.type)
        work = longest_first(jacobian, v, terms)
        v, weights = work.v, work.weights
        if not work.n_active:
            return work.zero(adjoint)
        enter, loop, leave = work.jacobian.cycle()
        k = torch.arange(1, len(weights) + 1, device=v.device)
        k = k.view(-1, *[1] * (weights.ndim - 1))
        a = weights * (k > n_traced) * (1 - 2 * ((k - 1) % 2))  # (N, B, 1...)
        scale = headroom(v)
        power = enter.vjp(v * scale)
        series = power * a[0]
        rest = torch.zeros_like(power)
        last_of = _runs(work.n_active)

        def step(first: int, state: State) -> State:
            (loop,), (power,) = state
            assert isinstance(loop, JacobianChain)  # as `jacobian` is
            n, last = power.shape[1], last_of[first]
            some = a[first - 1 : last, :n]
            c = some / k[first - 1 : last]
            run = self._run if last - first + 1 == AT_ONCE and n > 1 else _terms
            power, partial, before = run(loop.stages, power, c, some if adjoint else None)
            series[:, :n] += partial
            rest[:, :n] += before
            return State((loop,), (flushed(power, last),))

        work.recur(State((loop,), (power,)), step, last_of)
        value = inner(leave(series.div_(scale)), v)
        s = torch.addcmul(leave(rest.div_(scale)), v, a[0]) if adjoint else None
        return work.expanded(value, s)

    def _run(self, stages: Sequence[Stage], power: Tensor, c: Tensor, a: Tensor | None) -> Sums:
        stages = [stage.mapped(torch.Tensor.detach, _any_batch) for stage in stages]
        power = power.contiguous()  # an image's numbers come in either order: one kind, not two
        _symbolic(power, 0, 1)
        for weights in (c, a):
            if weights is not None:
                _symbolic(weights, 1)
        if not power.is_cuda or self.backend != "inductor":
            return _compiled(self.backend, None)(stages, power, c, a)
        # A graph's outputs lie where its next replay writes, so they are copied.
        torch.compiler.cudagraph_mark_step_begin()
        power, partial, before = _compiled(self.backend, "reduce-overhead")(stages, power, c, a)
        return power.clone(), partial.clone(), before.clone()


def _runs(n_active: Sequence[int]) -> dict[int, int]:
    """first -> last of the terms evaluated together from the second on: `AT_ONCE`, or one."""
    last_of, first = {}, 2
    while first <= len(n_active):
        alike = n_active[first - 1 : first - 1 + AT_ONCE] == [n_active[first - 1]] * AT_ONCE
        last_of[first] = first + AT_ONCE - 1 if alike else first
        first = last_of[first] + 1
    return last_of


def _terms(stages: Sequence[Stage], power: Tensor, c: Tensor, a: Tensor | None) -> Sums:
    power = power.clone()  # an activation may overwrite it, and a changed input forbids CUDA graphs
    partial = torch.zeros_like(power)
    before = torch.zeros_like(power)
    for i in range(len(c)):
        if a is not None:
            before = before + a[i] * power
        for stage in reversed(stages):
            power = stage.vjp(power)
        partial = partial + c[i] * power
    return power, partial, before


@lru_cache
def _compiled(backend: str, mode: str | None) -> SeveralTerms:
    return torch.compile(_terms, backend=backend, mode=mode)


def _any_batch(tensor: Tensor) -> Tensor:
    """The tensor without its graph; its first axis, the examples, is a symbol."""
    tensor = tensor.detach()
    _symbolic(tensor, 0)
    return tensor


def _symbolic(tensor: Tensor, *axes: int) -> None:
    """Let torch compile for any length of these axes."""
    from torch._dynamo import maybe_mark_dynamic  # takes a second, and few compile

    for axis in axes:
        maybe_mark_dynamic(tensor, axis)


@lru_cache
def _check(device: str) -> None:
    """Raise a ValueError unless inductor's compiler is installed."""
    if device == "cuda":
        missing = "" if find_spec("triton") else "Triton"
    else:
        compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
        missing = "" if shutil.which(compiler) else f"a C++ compiler (`{compiler}`)"
    if missing:
        raise ValueError(
            f"Compiled needs {missing}, which is not installed. Install it, or use "
            "`expansion=Taylor()`."
        )
