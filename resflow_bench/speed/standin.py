# ruff: noqa: SLF001 - torch keeps what a device in Python needs private, experimental as it is.
"""A stand-in accelerator: the device `sim`, whose kernels and waits are counted, without a GPU.

    with standin() as counts:
        flow, x = flow.to("sim"), x.to("sim")
        flow.log_prob(x)
    print(counts.n_launches, counts.n_waits, counts.waiting_lines)

Inside the context `sim` is a device like any other, also for `torch.device`, `set_default_device`
and `torch.Generator`. Its tensors have data in the CPU's memory, so that results equal the CPU's
to the bit for the same seeds, and they do not mix with tensors on the CPU. As on CUDA, a tensor
without dimensions does mix, and a generator draws on its own device alone.

A count is not a time: it ignores the work of a kernel. An operation that CUDA carries out by
several kernels counts once, and so does a `foreach` operation over many tensors.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, final
from unittest.mock import patch
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.autograd.graph import _engine_run_backward
from torch.optim.optimizer import _foreach_supported_types as optimizer_types
from torch.utils import backend_registration
from torch.utils._foreach_utils import _foreach_supported_types as foreach_types
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

NAME = "sim"
"""The device's name."""

_UNUSED = "privateuseone"  # torch's name for the device as long as nobody has taken it

aten = torch.ops.aten

# Operations for which the host waits until the device has finished all work before them: it needs a
# value, or the size of a result. Of torch.linalg those that say so in their documentation.
_WAITING = frozenset(
    {
        *("_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "bincount"),
        *("_unique2", "unique_dim", "unique_consecutive", "_linalg_check_errors"),
        *("_linalg_eigh", "_linalg_svd", "_linalg_eigvals", "linalg_eig", "linalg_lstsq"),
        *("allclose", "linalg_pinv", "linalg_matrix_exp", "multinomial", "histc", "_histogramdd"),
    }
)

# torch's names of `item` and `to`.
_CALLED = {"_local_scalar_dense": "item", "_to_copy": "to"}

# Operations that are not views for torch, but start no kernel: aliases, and memory without values.
_FREE = frozenset({"detach", "alias", "lift_fresh", "_unsafe_view", "_reshape_alias"})
_ALLOCATIONS = frozenset(
    {"empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided"}
)

_INDEXING = frozenset({"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"})


@final
@dataclass(frozen=True)
class Counts:
    """Launches, waits and copies of all calls inside a `standin`.

    launches: how often each operation was launched, a kernel or a copy; views and allocations are
        none.
    waits: how often the host waited for the device in each line of code, `file:line (operation)`.
        The line is the innermost one outside torch. Copies count as in torch on CUDA: from the
        device always, to it unless `non_blocking`.
    copies: how often each line of code copied numbers from the host to the device. Without waits
        and copies a call can be recorded as a CUDA graph, if its shapes stay the same.
    """

    launches: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)

    @property
    def n_launches(self) -> int:
        return self.launches.total()

    @property
    def n_waits(self) -> int:
        return self.waits.total()

    @property
    def waiting_lines(self) -> list[tuple[str, int]]:
        """The lines that wait, with the number of their waits, the most frequent first."""
        return sorted(self.waits.items(), key=lambda item: (-item[1], item[0]))


def unsupported() -> str:
    """The reason why this process has no stand-in, "" if it has one."""
    if torch.__version__ < "2.10":  # compared as versions
        return f"the stand-in accelerator needs torch 2.10 or newer; this is {torch.__version__}"
    name = torch._C._get_privateuse1_backend_name()
    if name == NAME:
        return ""
    if name != _UNUSED:
        return f"the stand-in accelerator needs torch's PrivateUse1, which `{name}` has taken"
    if torch.accelerator.is_available():
        kind = torch.accelerator.current_accelerator()
        return (
            f"the stand-in accelerator would take the place of {kind} in this process; hide that "
            "from it, as CUDA_VISIBLE_DEVICES= does"
        )
    return ""


@contextmanager
def standin() -> Iterator[Counts]:
    """Make the device `sim` usable inside the context, and count what is asked of it.

    Contexts nest: the innermost counts. Each thread needs one of its own. Tensors may be carried
    from one context to the next, but are of no use outside. Afterwards torch works as before,
    except that it knows the device for as long as the process lives:
    `torch.accelerator.current_accelerator()` is `sim`, not available. Not supported is forward mode
    over reverse mode, as in `torch.func.hessian`.
    Needs torch 2.10 or newer.

    Yields:
        The counts, which grow with every call.

    Raises:
        RuntimeError: this process has no stand-in; the message is that of `unsupported`.
    """
    if reason := unsupported():
        raise RuntimeError(f"{reason}.")
    _register()
    counts = Counts()
    with _changed_torch(), _Dispatch(counts):
        yield counts


_changes = ExitStack()
_n_inside = 0
_lock = threading.Lock()


@contextmanager
def _changed_torch() -> Iterator[None]:
    """Change torch for the whole process when the first enters; restore it when the last leaves."""
    global _n_inside  # noqa: PLW0603 - of all threads
    with _lock:
        _n_inside += 1
        if _n_inside == 1:
            lifts = torch._C._only_lift_cpu_tensors()
            _changes.callback(torch._C._set_only_lift_cpu_tensors, lifts)
            torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device="sim") passes it
            _changes.enter_context(patch.object(torch, "Generator", _Generator))
            backward = patch.object(
                torch.autograd, "_engine_run_backward", _backward_in_this_thread
            )
            _changes.enter_context(backward)
    try:
        yield
    finally:
        with _lock:
            _n_inside -= 1
            if _n_inside == 0:
                _changes.close()


_run_backward: Any = _engine_run_backward


def _backward_in_this_thread(*args: object, **kwargs: object) -> Any:
    """Torch has threads for those devices alone that it knew at its first backward pass."""
    with torch.autograd.set_multithreading_enabled(False):
        return _run_backward(*args, **kwargs)


def _register() -> None:
    """Make the device known to torch, once in a process."""
    if torch._C._get_privateuse1_backend_name() == NAME:
        return
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
    types: tuple[list[Any], ...] = (foreach_types, optimizer_types)
    for supported in types:
        supported.append(_SimTensor)


@final
class _Backend:
    """`torch.sim`: what torch asks of a device's module."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return False  # or torch's clocks would wait for it, for as long as the process lives

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def manual_seed_all(self, seed: int) -> None:
        """Nothing: without a generator, draws come from the CPU's, which has its seed."""

    def get_rng_state(self, device: object = None) -> Tensor:
        """Numbers that no generator draws come from the CPU's own."""
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: object = None) -> None:
        """Nothing: who restores this state restores the CPU's, which is the same."""

    def _is_in_bad_fork(self) -> bool:
        return False

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]


_CPU_GENERATOR: Any = torch.Generator
_CPU_GENERATOR_TYPE: Any = type(torch.Generator)

# By the address of torch's own object: an operation gets that in another Python object.
_generators: WeakValueDictionary[int, torch.Generator] = WeakValueDictionary()


class _GeneratorType(_CPU_GENERATOR_TYPE):
    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, _CPU_GENERATOR)


@final
class _Generator(_CPU_GENERATOR, metaclass=_GeneratorType):
    """A generator on `sim`, with the numbers of a CPU's; for another device, torch's own."""

    def __new__(cls, device: torch.device | str = "cpu") -> Any:
        if not _is_sim(device):
            return _CPU_GENERATOR(device)
        made = super().__new__(cls, "cpu")
        _generators[made._cdata] = made
        return made

    @property
    def device(self) -> torch.device:
        return torch.device(NAME, 0)


@final
class _SimTensor(Tensor):
    """A tensor on `sim`; `data_on_cpu` holds its values."""

    data_on_cpu: Tensor
    __torch_function__: Any = torch._C._disabled_torch_function_impl

    def __new__(cls, data_on_cpu: Tensor) -> _SimTensor:
        made: _SimTensor = Tensor._make_wrapper_subclass(
            cls,
            data_on_cpu.shape,
            strides=data_on_cpu.stride(),
            storage_offset=data_on_cpu.storage_offset(),
            dtype=data_on_cpu.dtype,
            layout=data_on_cpu.layout,
            device=torch.device(NAME, 0),
        )
        made.data_on_cpu = data_on_cpu
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, *_: object) -> Any:
        raise RuntimeError(f"{func} got a tensor on {NAME}, which works inside `standin()` alone.")

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        """With the next method it makes `Module.to` exchange a parameter's content."""
        return ["data_on_cpu"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], *_: object) -> _SimTensor:
        return _SimTensor(inner["data_on_cpu"])

    def __repr__(self, **_: object) -> str:  # type: ignore[override]
        values = self.detach().cpu() if _n_inside else self.data_on_cpu
        return f"{values!r} on {NAME}"

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.ndim == 0 else repr(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied: Tensor = self.detach().clone()
        itself: object = self
        if isinstance(itself, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied)
        memo[id(self)] = copied.requires_grad_(self.requires_grad)
        return copied

    def __reduce_ex__(self, protocol: object) -> Any:
        rebuild = torch._utils._rebuild_device_tensor_from_cpu_tensor  # which `map_location` moves
        return rebuild, (self.detach().cpu(), self.dtype, str(self.device), self.requires_grad)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if force:
            return self.detach().cpu().numpy()
        raise TypeError(f"numpy cannot read a tensor on {NAME}; call `.cpu()` first.")

    def __array__(self, *_: object, **__: object) -> Any:
        return self.numpy()


@final
class _Dispatch(TorchDispatchMode):
    """Carries out every operation of torch on the CPU, and counts those on `sim`."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled():  # where torch leaves that to the mode
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        leaves = tree_flatten((args, kwargs))[0]
        ours = [leaf for leaf in leaves if isinstance(leaf, _SimTensor)]
        device = kwargs.get("device")
        goes_to_sim = _is_sim(device) if device is not None else bool(ours)
        if not ours and not goes_to_sim:
            _check_generators(func, leaves, on_sim=False)
            return func(*args, **kwargs)
        _check_generators(func, leaves, goes_to_sim)
        name = func._schema.name.removeprefix("aten::")
        if name not in ("copy_", "_to_copy"):
            _check_devices(name, args, leaves)
        elif goes_to_sim and not isinstance(args[name == "copy_"], _SimTensor):
            self.counts.copies[_calling_line()] += 1
        if _waits(name, args, kwargs, goes_to_sim):
            self.counts.waits[f"{_calling_line()} ({_CALLED.get(name, name)})"] += 1
        if name not in _ALLOCATIONS and not _is_view(func):
            self.counts.launches[name] += 1
        args_on_cpu, kwargs_on_cpu = tree_map(_on_cpu, (args, kwargs))
        if goes_to_sim and device is not None:
            kwargs_on_cpu["device"] = torch.device("cpu")
        with torch._C._DisableTorchDispatch():  # or a surrounding context would see it on the CPU
            out = func(*args_on_cpu, **kwargs_on_cpu)
        if not goes_to_sim:
            return out
        out = tree_map(_on_sim, out)
        return return_and_correct_aliasing(func, args, kwargs, out) if ours else out


def _is_sim(device: torch.device | str | int | None) -> bool:
    return isinstance(device, torch.device | str) and torch.device(device).type == NAME


def _on_cpu(leaf: Any) -> Any:
    return leaf.data_on_cpu if isinstance(leaf, _SimTensor) else leaf


def _on_sim(leaf: Any) -> Any:
    return _SimTensor(leaf) if type(leaf) is Tensor else leaf


@functools.cache
def _is_view(func: Any) -> bool:
    """True if an operation returns views of its argument, and computes no new values."""
    returned = (item.alias_info for item in func._schema.returns)
    name = func._schema.name.removeprefix("aten::")
    return name in _FREE or any(alias is not None and not alias.is_write for alias in returned)


def _waits(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], goes_to_sim: bool) -> bool:
    """True if the host waits for the device in this operation, which involves the device."""
    if name == "_to_copy":
        crosses = isinstance(args[0], _SimTensor) != goes_to_sim
        return crosses and not (goes_to_sim and kwargs.get("non_blocking", False))
    if name == "copy_":
        to, source, non_blocking = (*args, *kwargs.values(), False)[:3]
        crosses = isinstance(to, _SimTensor) != isinstance(source, _SimTensor)
        return crosses and not (isinstance(to, _SimTensor) and non_blocking)
    if name in _INDEXING:
        indices = [index for index in args[1] if index is not None]
        if name != "index" and args[2].numel() == 1 and not any(args[3:]):
            # One value under masks is a fill, without the masks' indices.
            indices = [index for index in indices if index.dtype not in (torch.bool, torch.uint8)]
        return any(
            not isinstance(index, _SimTensor) or index.dtype in (torch.bool, torch.uint8)
            for index in indices
        )
    if name == "repeat_interleave":
        return kwargs.get("output_size") is None
    return name in _WAITING or bool(kwargs.get("check_errors", False))


def _check_devices(name: str, args: tuple[Any, ...], leaves: list[Any]) -> None:
    """Refuse tensors on two devices, as CUDA does; an index may be on the CPU."""
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if name in _INDEXING and isinstance(args[0], _SimTensor):
        tensors = [args[0], *args[2:3]]
    for tensor in tensors:
        if not isinstance(tensor, _SimTensor) and tensor.ndim > 0:
            raise RuntimeError(
                f"{name} got tensors on {NAME}:0 and on {tensor.device}, in {_calling_line()}. "
                "Move them to one device."
            )


def _check_generators(func: Any, leaves: list[Any], on_sim: bool) -> None:
    """Refuse to draw on one device from another's generator, as CUDA does."""
    for leaf in leaves:
        if isinstance(leaf, _CPU_GENERATOR) and (leaf._cdata in _generators) != on_sim:
            theirs, wanted = ("cpu", NAME) if on_sim else (NAME, "cpu")
            raise RuntimeError(
                f"{func} got a generator on {theirs} for a tensor on {wanted}, in "
                f"{_calling_line()}. Draw on the generator's device and move the result."
            )


def _calling_line() -> str:
    """`package/module.py:line` of the innermost frame outside torch and this module."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if module != __name__ and module.partition(".")[0] not in ("torch", "contextlib"):
            parts = Path(frame.f_code.co_filename).parts
            depth = module.count(".") + 1 + (parts[-1] == "__init__.py")
            return f"{'/'.join(parts[-depth:])}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"
