"""Models of the user's own: a function in a file, a trained run, a saved flow, an object."""

from __future__ import annotations

import copy
import hashlib
import inspect
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from itertools import count
from pathlib import Path
from threading import Lock
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from resflow_bench.data import Reading, is_path
from resflow_bench.flows import Flatten, ResidualBlock, ResidualFlow, saving
from resflow_bench.jacobian.linearisation import same_shape
from resflow_bench.lab import Cell, Skip, Value
from resflow_bench.layers import Uncertified
from resflow_bench.peers.from_normflows import from_normflows, is_normflows
from resflow_bench.seeds import torch_seeded
from resflow_bench.training.recipe import dataset
from resflow_bench.training.weights import RUN, weights_file

FORMS = "FILE.py:FUNCTION, run:RUN or FILE.pt"
"""The values of the axis `model` beside the names of the catalogue."""

_AXES: Mapping[str, Value] = {"dim": 2, "lipschitz": 0.5}
"""Axes that a function may take, with values at which it is called to see the others."""


_SEEDED = Lock()
"""Held while torch's global generator is seeded, which all threads share."""


class _Given(NamedTuple):
    """Objects that stand for models by name, and a number that no other such set has."""

    objects: Mapping[str, object] = MappingProxyType({})
    number: int = 0


_NONE = _Given()
_GIVEN: ContextVar[_Given] = ContextVar("given", default=_NONE)
_NUMBERS = count(1)


@dataclass(frozen=True, eq=False)
class OwnModel:
    """A flow, or a function that makes one, and the points at which it is measured.

    name: the value of the axis.
    source: a flow of this package or of normflows; a module g, or several, one for each block; a
        pair of one of these and points, (n, *event); or a function of `dim`, `lipschitz`, both or
        neither that returns any of these. torch's global generator is seeded around its call.
    data: the name of the dataset whose held-out examples are the points, if the flow was trained.
    reading: of the data, if they are a file of the user's own.
    """

    name: str
    source: Any
    data: str = ""
    reading: Reading = Reading()
    n_distinct_points = None

    @property
    def fixed(self) -> dict[str, Value]:
        """The values of `dim` and `lipschitz` that the source itself decides.

        A flow without a promise has lipschitz = inf.
        """
        free = self._taken()
        if len(free) == len(_AXES):
            return {}
        flow, _ = self._made(_AXES)
        constant = max((block.lipschitz for block in flow.blocks), default=0.0)
        own: dict[str, Value] = {"dim": flow.dim, "lipschitz": constant}
        return {axis: value for axis, value in own.items() if axis not in free}

    def flow(
        self, dim: int, lipschitz: float, results: Path, say: Callable[[str], None]
    ) -> ResidualFlow:
        asked: Mapping[str, Value] = {"dim": dim, "lipschitz": lipschitz}
        for axis, value in self.fixed.items():
            if value != asked[axis]:
                raise Skip(f"{self.name} has {axis}={value:g}; got {axis}={asked[axis]:g}")
        return self._made(asked)[0]

    def points(self, n: int, dim: int) -> Tensor:
        """The given points; or held-out data; or normal points, and uniform ones for an image.

        Fewer than n are repeated.
        """
        if self.data:
            from resflow_bench.models.catalogue import held_out

            return held_out(self.data, n, self.reading)
        return _points(*self._made({**_AXES, "dim": dim}), n)

    def _taken(self) -> dict[str, Value]:
        """The axes that the source is a function of."""
        if isinstance(self.source, nn.Module) or not callable(self.source):
            return {}
        return {a: v for a, v in _AXES.items() if a in inspect.signature(self.source).parameters}

    def _made(self, axes: Mapping[str, Value]) -> tuple[ResidualFlow, Tensor | None]:
        """The flow, not shared with the source, and the points that come with it."""
        made = self.source
        taken = {axis: axes[axis] for axis in self._taken()}
        if callable(made) and not isinstance(made, nn.Module):
            made = self._called(taken)
        x = None
        if isinstance(made, tuple) and len(made) == 2 and not isinstance(made[1], nn.Module):
            made, x = made
            if not isinstance(x, Tensor) or x.ndim < 2 or not len(x):
                raise ValueError(
                    f"model `{self.name}`: points are a tensor (n, *event), n of at least 1; got "
                    f"{tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__}."
                )
        try:
            flow = _as_flow(copy.deepcopy(made), x, taken)
            _check_dim(flow, taken)
            for part in flow.modules():
                if isinstance(part, Uncertified) and not isinstance(part.g, _Foreign):
                    part.g = _Foreign(part.g).eval()
            check_branches(flow, _points(flow, x, 2))
        except (TypeError, ValueError) as error:
            call = ", ".join(f"{axis}={value}" for axis, value in taken.items())
            called = f", called with {call}" if call else ""
            raise ValueError(f"model `{self.name}`{called}: {error}") from error
        return flow, x

    def _called(self, taken: Mapping[str, Value]) -> Any:
        """The function's result; every cell has the same initial weights."""
        try:
            with _SEEDED, torch_seeded(0):
                return self.source(**taken)
        except (Exception, SystemExit) as error:  # the user's code, which may raise anything
            why = " ".join(f"{type(error).__name__}: {error}".split())
            raise ValueError(
                f"model `{self.name}`: the function, called with {', '.join(taken) or 'nothing'}, "
                f"failed: {why}"
            ) from error


class _Foreign(nn.Module):
    """A g of the user's own, any error of which is a RuntimeError: that of its cell, not ours."""

    def __init__(self, g: nn.Module) -> None:
        super().__init__()
        self.g = g

    def forward(self, x: Tensor) -> Tensor:
        try:
            return self.g(x)
        except (ArithmeticError, RuntimeError, MemoryError):
            raise
        except (Exception, SystemExit) as error:  # the user's code, which may raise anything
            raise RuntimeError(f"g raised {type(error).__name__}: {error}") from error


def is_own(name: str) -> bool:
    """True if the name has one of `FORMS`, or is that of an object that is given."""
    return name in _GIVEN.get().objects or name.endswith(".pt") or ":" in name


def own_model(name: str, results: Path) -> OwnModel | None:
    """The model that a value of the axis names in one of `FORMS`; None if it has none of them.

    Raises:
        ValueError: there is no such file, run or function, or it cannot be loaded.
    """
    if not is_own(name):
        return None
    if name in (objects := _GIVEN.get().objects):
        return OwnModel(name, objects[name])
    file = file_of(name, results)
    if file is not None and file.name.endswith(".pt"):
        return _saved(name, file, _stamp(file))
    place, _, function = name.rpartition(":")
    module = _imported(name, file, _stamp(file)) if file else _module(name, place)
    if not hasattr(module, function):
        raise ValueError(f"model `{name}`: `{place}` has no `{function}`.")
    return OwnModel(name, getattr(module, function))


def file_of(name: str, results: Path) -> Path | None:
    """The file that a value of the axis `model` stands for; None for a name."""
    if name in _GIVEN.get().objects:
        return None
    if name.startswith(RUN):
        return weights_file(name, results)
    place = name.rpartition(":")[0] or name
    return Path(place) if place.endswith((".pt", ".py")) else None


def digests(chosen: Mapping[str, Collection[Value]], results: Path) -> dict[str, str]:
    """Value -> first 16 hex digits of the SHA-256 of the file, or the data, that it stands for.

    Args:
        chosen: axis -> values; only some of those of `model` and `dataset` stand for files.

    Raises:
        ValueError: a file cannot be read, or holds no data.
    """
    files = {name: file_of(name, results) for name in map(str, chosen.get("model", ()))}
    found = {
        name: hashlib.sha256(_read(name, file)).hexdigest()[:16]
        for name, file in files.items()
        if file is not None
    }
    paths = filter(is_path, map(str, chosen.get("dataset", ())))
    return found | {path: dataset(path).digest for path in paths}


def settler(results: Path) -> Callable[[Cell, Collection[str]], Cell]:
    """A function that gives a cell the `dim` and `lipschitz` of a model that decides them itself.

    Axes that the user has set stay as they are; the cell is then skipped where they differ.
    """

    def settle(cell: Cell, chosen: Collection[str]) -> Cell:
        model = own_model(cell["model"], results) if "model" in cell.axes else None
        if model is None:
            return cell
        fixed = {a: v for a, v in model.fixed.items() if a in cell.axes and a not in chosen}
        return Cell(cell.suite, {**cell.axes, **fixed})

    return settle


def version(name: str, results: Path) -> int:
    """A number that changes with the model behind the name, as far as its file or object shows."""
    given, file = _GIVEN.get(), file_of(name, results)
    return given.number if name in given.objects else _stamp(file) if file else 0


@contextmanager
def given(objects: Mapping[str, object]) -> Iterator[None]:
    """A context in which these objects are models by name, in this thread alone."""
    token = _GIVEN.set(_Given(objects, next(_NUMBERS)))
    try:
        yield
    finally:
        _GIVEN.reset(token)


def _points(flow: ResidualFlow, x: Tensor | None, n: int) -> Tensor:
    """n of the given points, repeated if they are fewer; or normal, for an image uniform ones."""
    if x is not None:
        return x[torch.arange(n) % len(x)]
    draw = torch.rand if len(flow.event) == 3 else torch.randn
    return draw(n, *flow.event, generator=torch.Generator().manual_seed(0))


def check_branches(flow: ResidualFlow, x: Tensor) -> None:
    """Refuse a module g that is no branch, at points (n, *event), n of at least 2.

    Raises:
        ValueError: g changes the shape, is not finite, couples the examples of a batch, or hides
            its dependence on x from autograd.
    """
    dtype = next((p.dtype for p in flow.parameters()), x.dtype)
    h = x.to(dtype)
    for layer in flow.bijections:
        if isinstance(layer, ResidualBlock) and isinstance(layer.branch, Uncertified):
            h = h.detach().requires_grad_()
            try:
                y = same_shape(layer.branch(h), h)
                alone = layer.branch(h[:1])
            except RuntimeError as error:
                why = " ".join(str(error).split())
                raise ValueError(f"g fails at points of shape {(*h.shape,)}: {why}") from error
            if not bool(torch.isfinite(y).all()):
                raise ValueError("g is not finite at its points. Check weights and points.")
            size = float(y.detach().abs().max())
            if not torch.allclose(alone, y[:1], rtol=1e-2, atol=1e-3 * size):
                raise ValueError(
                    "g couples the examples of a batch: g(x)[:1] and g(x[:1]) differ. Each row of "
                    "g(x) must depend on its own row of x alone."
                )
            if not y.requires_grad or torch.autograd.grad(y.sum(), h, allow_unused=True)[0] is None:
                raise ValueError(
                    "g hides its dependence on x from autograd, by `detach` or numpy, so that its "
                    "Jacobian would count as 0. Write it with torch's operations."
                )
        with torch.no_grad():
            h = layer(h)


def _check_dim(flow: ResidualFlow, taken: Mapping[str, Value]) -> None:
    """Refuse a flow of another `dim` than the one that its function was called with."""
    if flow.dim != taken.get("dim", flow.dim):
        raise ValueError(
            f"the function returns a flow of dim={flow.dim}. Make one of the dim that it is called "
            "with, or take no `dim`."
        )


def _as_flow(made: Any, x: Tensor | None, axes: Mapping[str, Value]) -> ResidualFlow:
    if isinstance(made, ResidualFlow):
        if made.n_context is not None:
            raise ValueError(
                f"a conditional flow needs a context of {made.n_context} numbers, which no suite "
                "gives it. Give the flow at one context, as a module g for each block."
            )
        return made.eval()
    if is_normflows(made):
        return from_normflows(made)
    several = made if isinstance(made, list | tuple | nn.ModuleList) else [made]
    if not several or not all(isinstance(g, nn.Module) for g in several):
        raise TypeError(
            "a model is a ResidualFlow, a flow of normflows, a module g or a list of them, or a "
            f"pair (model, points); got {type(made).__name__}."
        )
    event = _event(several[0], x, axes)
    layers: list[nn.Module] = [ResidualBlock(Uncertified(g.eval())) for g in several]
    return ResidualFlow([*layers, *([Flatten(event)] if len(event) > 1 else [])], event)


def _event(g: nn.Module, x: Tensor | None, axes: Mapping[str, Value]) -> tuple[int, ...]:
    if x is not None:
        return tuple(x.shape[1:])
    if "dim" in axes:
        return (int(axes["dim"]),)
    linear = [layer for layer in g.modules() if isinstance(layer, nn.Linear)]
    if not linear:
        raise ValueError(
            "the shape of its inputs is not known. Give a pair (model, points), with points of "
            "shape (n, *event)."
        )
    return (linear[0].in_features,)


@lru_cache(maxsize=8)
def _saved(name: str, file: Path, stamp: int) -> OwnModel:  # noqa: ARG001 -- part of the key
    """The flow in a file; trained ones note their data in it."""
    try:
        saved = saving.read(file)
        flow = saved.rebuilt(ResidualFlow)
    except ValueError as error:
        remedy = ""
        if name.startswith(RUN) and file.exists() and not name.endswith("-best"):
            remedy = (
                " A training writes it again: delete the file, then `resflow-bench train --resume "
                f"{name.removeprefix(RUN)}`."
            )
        raise ValueError(f"model `{name}`: {error}{remedy}") from error
    data, digest = str(saved.about.get("dataset", "")), saved.about.get("digest")
    try:
        reading = Reading(**saved.about.get("reading", {}))
    except TypeError as error:
        raise ValueError(f"model `{name}`: its notes do not say how data are read.") from error
    if data and digest not in (None, dataset(data, reading).digest):  # which refuses missing data
        raise ValueError(
            f"model `{name}` was trained on other bytes of {data} (digest {digest}; got "
            f"{dataset(data, reading).digest}). Put the file back, or train again."
        )
    return OwnModel(name, flow, data, reading)


@lru_cache(maxsize=8)
def _imported(name: str, file: Path, stamp: int) -> ModuleType:
    """The module of a file, whose folder is from then on searched for imports, as a script's."""
    folder = str(file.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    spec = spec_from_file_location(f"_resflow_model_{file.stem}_{stamp}", file)
    assert spec is not None  # a file that ends in .py
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        with _SEEDED, torch_seeded(0):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the user's code, which may raise anything
        raise _not_loaded(name, error) from error
    return module


@cache
def _module(name: str, place: str) -> ModuleType:
    try:
        return import_module(place)
    except (Exception, SystemExit) as error:  # the user's code, which may raise anything
        raise _not_loaded(name, error) from error


def _not_loaded(name: str, error: BaseException) -> ValueError:
    why = " ".join(f"{type(error).__name__}: {error}".split())
    return ValueError(f"model `{name}` cannot be loaded: {why}")


def _stamp(file: Path) -> int:
    """A number that changes when the file does; 0 if there is none."""
    return file.stat().st_mtime_ns if file.exists() else 0


def _read(name: str, file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ValueError(f"model `{name}`: `{file}` cannot be read ({error.strerror}).") from error
