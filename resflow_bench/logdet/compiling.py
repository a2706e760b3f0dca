"""Taylor's series by `torch.compile`: several of its terms in one compiled function."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from resflow_bench.jacobian.chain import Chain
from resflow_bench.jacobian.products import Vjp
from resflow_bench.jacobian.stages import BySlope, Pull
from resflow_bench.logdet.expansions import Expanded, headroom, inner, kept, longest_first, part
from resflow_bench.logdet.truncation import Terms

AT_ONCE = 4
"""Terms in one compiled function; more are compiled longer."""

Run = Callable[[Sequence[Pull], Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class Compiled:
    """`Taylor`'s numbers, to rounding, with what stands between two products in one pass.

    Args:
        backend: of `torch.compile`. "inductor" fuses, and on a CUDA GPU records CUDA graphs
            (`mode="reduce-overhead"`): one launch for `AT_ONCE` terms.

    Properties: weights and slopes are inputs and the batch's size is a symbol: compiled once for
        the sizes of a branch, a dtype, value or gradient, and one probe or several; not for a call,
        a batch, a term or an optimiser's step. After eight such kinds torch compiles no more
        (`torch._dynamo.config.recompile_limit`), and the rest run as they are. A CUDA graph is
        recorded for each size of the batch: `Fixed` terms and a `Roulette` per batch suit it. On a
        CPU it does not pay: calls took 1.07 (d = 784, h = 1024, eight probes) to 1.28 (d = 64,
        h = 128) of `Taylor`'s time, and the first one twenty seconds.

    Raises:
        ValueError: when called, if the backend is "inductor" and what it compiles with is not
            there.
        TypeError: when called, if the products are not a branch's own (`cached`).
    """

    backend: str = "inductor"

    def __str__(self) -> str:
        return "compiled"

    @torch.no_grad()
    def expand(self, vjp: Vjp, v: Tensor, terms: Terms, n_traced: int, adjoint: bool) -> Expanded:
        if not isinstance(vjp, Chain):
            raise TypeError(
                "Compiled needs products that know their stages, which a residual branch of this "
                f"package has (`cached`); got {type(vjp).__name__}. Take `expansion=Taylor()`."
            )
        if self.backend == "inductor":
            _check(v.device.type)
        work = longest_first(vjp, v, terms)
        v, weights = work.v, work.weights
        if not work.n_active:
            return work.expanded(v.new_zeros(v.shape[1]), torch.zeros_like(v) if adjoint else None)
        enter, loop, leave = work.vjp.cycle()  # type: ignore[attr-defined]
        k = torch.arange(1, len(weights) + 1, device=v.device)
        k = k.view(-1, *[1] * (weights.ndim - 1))
        a = weights * (k > n_traced) * (1 - 2 * ((k - 1) % 2))  # (N, B, 1...)
        scale = headroom(v)
        power = enter(v * scale)
        series = power * a[0]
        rest = torch.zeros_like(power)
        for first, last in _runs(work.n_active):
            n = work.n_active[first]
            if n < power.shape[1]:
                power, loop = power[:, :n].contiguous(), part(loop, n)
            some = a[first:last, :n]
            run = self._run if last - first == AT_ONCE and n > 1 else _terms
            power, found, before = run(
                loop.pulls, power, some / k[first:last], some if adjoint else None
            )
            series[:, :n] += found
            rest[:, :n] += before
            power = kept(power, last)
        value = inner(leave(series.div_(scale)), v)
        if not adjoint:
            return work.expanded(value, None)
        return work.expanded(value, torch.addcmul(leave(rest.div_(scale)), v, a[0]))

    def _run(
        self, pulls: Sequence[Pull], power: Tensor, c: Tensor, a: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        pulls = [_as_input(pull) for pull in pulls]
        power = power.contiguous()  # an image's numbers come in either order: one kind, not two
        _symbolic(power, 0, 1)
        for weights in (c, a):
            if weights is not None:
                _symbolic(weights, 1)
        if not power.is_cuda or self.backend != "inductor":
            return _compiled(self.backend, None)(pulls, power, c, a)
        # What a graph returns lies where its next replay writes: copied before that.
        torch.compiler.cudagraph_mark_step_begin()
        power, found, before = _compiled(self.backend, "reduce-overhead")(pulls, power, c, a)
        return power.clone(), found.clone(), before.clone()


def _runs(n_active: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(first, last) of terms first + 1 ... last, from the second on: `AT_ONCE`, or one by one."""
    first = 1
    while first < len(n_active):
        last = first + AT_ONCE
        alike = n_active[first:last] == [n_active[first]] * AT_ONCE
        last = last if alike else first + 1
        yield first, last
        first = last


def _terms(
    pulls: Sequence[Pull], power: Tensor, c: Tensor, a: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """(p J^n, sum_i c_i p J^i, sum_i a_i p J^(i-1)), i = 1..n; the last is 0 without a."""
    power = power.clone()  # an activation may overwrite it, and a changed input forbids CUDA graphs
    found = torch.zeros_like(power)
    before = torch.zeros_like(power)
    for i in range(len(c)):
        if a is not None:
            before = before + a[i] * power
        for pull in reversed(pulls):
            power = pull(power)
        found = found + c[i] * power
    return power, found, before


@lru_cache
def _compiled(backend: str, mode: str | None) -> Run:
    run: Run = torch.compile(_terms, backend=backend, mode=mode)
    return run


def _as_input(part: Any) -> Any:
    """The same pull without its graph; how many examples it has slopes of is a symbol."""
    if isinstance(part, Tensor):
        return part.detach()
    if not is_dataclass(part) or isinstance(part, type):
        return part
    found = replace(part, **{f.name: _as_input(getattr(part, f.name)) for f in fields(part)})
    if isinstance(found, BySlope):
        _symbolic(found.slope, 0)
    return found


def _symbolic(tensor: Tensor, *axes: int) -> None:
    """Let torch compile for any length of these axes."""
    from torch._dynamo import maybe_mark_dynamic  # takes a second, and few compile

    for axis in axes:
        maybe_mark_dynamic(tensor, axis)


@lru_cache
def _check(device: str) -> None:
    """Raise unless there is what inductor compiles with."""
    if device == "cuda":
        missing = "" if find_spec("triton") else "Triton"
    else:
        compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
        missing = "" if shutil.which(compiler) else f"a C++ compiler (`{compiler}`)"
    if missing:
        raise ValueError(
            f"Compiled needs {missing}, which is not here. Install it, or take "
            "`expansion=Taylor()`."
        )
