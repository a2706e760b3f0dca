"""Copies of a module in other dtypes, and other results cached while its parameters last."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from resflow_bench.layers import Branch, GivenBranch, LinearBranch
from resflow_bench.layers.maps import Composition

Module = TypeVar("Module", bound=nn.Module)
Made = TypeVar("Made")


def recast(part: Module, dtype: torch.dtype) -> Module:
    """The map in `dtype`: `part` itself if it has that dtype, else a cached copy.

    Off the CPU a copy too if it has that dtype, unless `part` is a copy: what is made from a copy
    is known to hold without a look at its values, for which the host would have to wait.

    Of a branch given contexts the copy is that of the branch, given the same.
    """
    if isinstance(part, GivenBranch):
        return cast(Module, GivenBranch(recast(part.branch, dtype), part.context))
    if part in _COPIES:
        has_dtype = _COPIES[part] == dtype
    else:
        state = _state(part)
        has_dtype = _on_cpu(state) and all(t.dtype == dtype for t in state if t.is_floating_point())
    return part if has_dtype else cast(Module, memoised(part, _copy_to(dtype)))


def in_float64(part: Module) -> Module:
    """The map in float64, as `recast`."""
    return recast(part, torch.float64)


def on_host(part: Module) -> Module:
    """The same map on the CPU, for LAPACK, if `part` belongs to a copy off it; else `part`."""
    twin: Module = _ON_HOST.get(part, part)
    return twin


def memoised(part: Module, make: Callable[[Module], Made]) -> Made:
    """make(part), or its last result if no parameter and no buffer has changed by a bit.

    They are compared by value, because a write through `.data` leaves no other trace. A comparison
    takes microseconds where a copy or a certificate of the norms takes milliseconds. Off the CPU
    the values are first moved to the host, all at once. Copies made here, to which nobody writes,
    are not compared.

    Args:
        part: the module; the result must not refer to it, or neither is ever freed.
        make: a function that lives as long as the module in which it is defined.
    """
    results = _RESULTS.setdefault(part, {})
    here = [] if part in _COPIES else _state(part)
    devices, state = [t.device for t in here], _moved_to_host(here)
    if make in results:
        old_devices, then, value = results[make]
        if devices == old_devices and all(map(_same, then, state)):
            return value
    value = make(part)
    results[make] = devices, [t.clone() for t in state], value
    return value


def no_grad_for(branch: Branch | LinearBranch | GivenBranch) -> AbstractContextManager[None]:
    """torch's inference mode, which saves a fifteenth of an inverse's time, or its `no_grad`.

    In inference mode nothing can be derived by autograd, which a part that is neither this
    package's nor torch's may do for its slopes.
    """
    whole = branch.branch if isinstance(branch, GivenBranch) else branch
    return torch.inference_mode() if memoised(whole, _is_ours) else torch.no_grad()


def _is_ours(part: nn.Module) -> bool:
    names = {type(module).__module__.partition(".")[0] for module in part.modules()}
    return names <= {"resflow_bench", "torch"}


@torch.no_grad()
def normalised_once(branch: Branch | LinearBranch | GivenBranch) -> Composition:
    """g with its norms computed once; a norm costs as much as a product with some 100 examples."""
    if isinstance(branch, GivenBranch):
        return branch.shifted(memoised(branch.branch, _unshifted))
    return memoised(branch, _unconditional)


@torch.no_grad()
def _unconditional(branch: Branch | LinearBranch) -> Composition:
    return branch.normalised()


@torch.no_grad()
def _unshifted(branch: Branch) -> Composition:
    return branch.unshifted()


_Memo = tuple[list[torch.device], list[Tensor], Any]
"""Devices and values of parameters and buffers, and what was made at them."""

_RESULTS: WeakKeyDictionary[nn.Module, dict[Callable[[Any], Any], _Memo]] = WeakKeyDictionary()
_COPIES: WeakKeyDictionary[nn.Module, torch.dtype] = WeakKeyDictionary()
"""The dtype of each module inside a copy."""
_ON_HOST: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
"""For each module inside a copy off the CPU the same one on it."""


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


def _state(part: nn.Module) -> list[Tensor]:
    return [t.detach() for t in (*part.parameters(), *part.buffers())]


def _on_cpu(state: list[Tensor]) -> bool:
    return all(t.device.type == "cpu" for t in state)


def _moved_to_host(state: list[Tensor]) -> list[Tensor]:
    """The same tensors on the CPU; the host waits once for each dtype among them."""
    if _on_cpu(state):
        return state
    moved: dict[int, Tensor] = {}
    for dtype in {t.dtype for t in state}:
        here = [k for k, t in enumerate(state) if t.dtype == dtype]
        flat = torch.cat([state[k].flatten() for k in here]).cpu()
        pieces = flat.split([state[k].numel() for k in here])
        moved |= {k: p.view(state[k].shape) for k, p in zip(here, pieces, strict=True)}
    return [moved[k] for k in range(len(state))]


@cache
def _copy_to(dtype: torch.dtype) -> Callable[[Any], Any]:
    """One function for each dtype, since `memoised` tells its results apart by the function."""

    def copy_to(part: nn.Module) -> nn.Module:
        state = _state(part)
        copied = _copied(part, state, dtype)
        if not _on_cpu(state) and part not in _COPIES:
            host = _copied(part, _moved_to_host(state), dtype)
            _ON_HOST.update(zip(copied.modules(), host.modules(), strict=True))
        return copied

    return copy_to


def _copied(part: nn.Module, state: list[Tensor], dtype: torch.dtype) -> nn.Module:
    """A copy of `part` with this `state`, floating point in `dtype`."""
    memo: dict[int, Any] = {}  # what `deepcopy` takes for copied already
    for old, t in zip((*part.parameters(), *part.buffers()), state, strict=True):
        new = t.to(dtype, copy=True) if t.is_floating_point() else t.clone()
        is_parameter = isinstance(old, nn.Parameter)
        memo[id(old)] = nn.Parameter(new, old.requires_grad) if is_parameter else new
    copied: nn.Module = copy.deepcopy(part, memo)
    _COPIES.update(dict.fromkeys(copied.modules(), dtype))
    return copied
