"""A flow as one file: its architecture, its numbers, and no code.

A part is described by the arguments of its constructor, each of which it keeps as an attribute of
the same name. A part of the user's own is saved and loaded once `PARTS` has its class.
"""

from __future__ import annotations

import inspect
import json
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile, is_zipfile

import torch
from torch import Tensor, nn

from resflow_bench import layers
from resflow_bench.files import excess, written_whole
from resflow_bench.flows.bases import DiagonalNormal, NormalMixture, StandardNormal
from resflow_bench.flows.composition import Chain, FactorOut
from resflow_bench.flows.forms import ActNorm, AffineCoupling, Cube, Flatten, Logit, Mixing, Squeeze
from resflow_bench.flows.inverse import InverseBlock
from resflow_bench.flows.monotone import MonotoneBlock
from resflow_bench.flows.residual import ResidualBlock
from resflow_bench.layers.norms.aol import AOLNorm
from resflow_bench.layers.norms.induced import InducedNorm
from resflow_bench.layers.norms.orthogonal import SemiOrthogonalNorm
from resflow_bench.layers.norms.spectral import SpectralNorm

FORMAT = "resflow_bench flow 1"
"""The first entry of a file; another number is another format."""

_CLASSES: tuple[type, ...] = (
    *(ActNorm, AffineCoupling, Chain, FactorOut, Flatten, Logit, Mixing, ResidualBlock),
    *(Cube, InverseBlock, MonotoneBlock, Squeeze),
    *(layers.Branch, layers.LinearBranch, layers.Linear, layers.Conv2d, layers.DenseLayer),
    *(layers.LipSwish, layers.CLipSwish, layers.Tanh, layers.ELU, layers.Softplus, layers.Sine),
    *(layers.AOL, layers.SemiOrthogonal, layers.SLL),
    *(layers.ReLU, layers.LearnableOrder, layers.Spectral, layers.Induced, layers.Conditioner),
    *(StandardNormal, DiagonalNormal, NormalMixture, layers.Uncertified, layers.BoundedMap),
)
PARTS: dict[str, type] = {one.__name__: one for one in _CLASSES}
"""The classes that a file may name."""

SYSTEMS = "resflow_bench.systems"
"""Adds its parts to `PARTS`; by name, since it builds upon this package, and only if needed."""

_CHOSEN_ANEW = ("generator", "estimator")
"""Arguments that are no part of a flow: its numbers are loaded, its estimator is the user's."""

_UNFIT = (
    *(AttributeError, IndexError, KeyError, TypeError, RuntimeError),
    *(OverflowError, RecursionError, MemoryError),
)
"""Errors that a damaged file, or one written by hand, causes while a flow is built from it."""

_PLAIN = (bool, int, float, str, Tensor, type(None))


@dataclass(frozen=True, eq=False)
class SavedParts:
    """The content of a file.

    architecture: constructor arguments of the flow, in which a part is a dictionary of its class'
        name and its own arguments.
    state: the flow's `state_dict`.
    about: the notes given to `ResidualFlow.save`.
    file: named where they do not fit each other.
    """

    architecture: dict[str, Any]
    state: dict[str, Tensor]
    about: dict[str, Any]
    file: Path | None = None

    def rebuilt(self, make: Callable[..., nn.Module]) -> Any:
        """`make` of the arguments, with the state.

        Raises:
            ValueError: they do not fit each other, or a class is not in `PARTS`.
        """
        builder = _Builder()
        try:
            module = make(**{name: builder.value(v) for name, v in self.architecture.items()})
            module.load_state_dict(self.state, assign=True)
        except _UNFIT as error:
            why = " ".join(f"{type(error).__name__}: {error}".split())
            where = f"`{self.file}`: " if self.file else ""
            why = f"{where}architecture and numbers of the file do not fit: {why}"
            raise ValueError(why) from error
        except ValueError as error:
            if self.file is None:
                raise
            raise ValueError(f"`{self.file}`: {' '.join(str(error).split())}") from error
        return module

    def write(self, file: Path) -> None:
        """Write the file, whole or not at all."""
        content = {
            "format": FORMAT,
            "architecture": self.architecture,
            "state": self.state,
            "about": self.about,
        }
        with written_whole(file) as stream:
            torch.save(content, stream)


def described(flow: nn.Module, about: Mapping[str, Any]) -> SavedParts:
    """The content of the file of a flow.

    Raises:
        ValueError: a part that the file cannot hold: one whose class is not in `PARTS`, one that
            was changed after it was made, or a parameter that two parts share.
    """
    describer = _Describer()
    architecture = {name: describer.value(v) for name, v in arguments(flow).items()}
    state = {name: t.detach().cpu().clone() for name, t in flow.state_dict().items()}
    _check_notes(about)
    saved = SavedParts(architecture, state, dict(about))
    if _ties(saved.rebuilt(type(flow))) != _ties(flow):
        raise ValueError(
            "two parts of this flow share a parameter, which a file cannot say of them. Share the "
            "whole part, or save `flow.state_dict()`."
        )
    return saved


def _check_notes(about: Any) -> None:
    """Refuse notes that a file without code cannot hold."""
    try:
        json.dumps(dict(about))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"notes are a dictionary of plain values, as JSON has them; got {about!r}."
        ) from error


def read(file: Path) -> SavedParts:
    """The content of a file, from which no code is run.

    Raises:
        ValueError: there is no such file, or it is no saved flow.
    """
    damaged = f"`{file}` is no whole file of a flow. Write it again with `flow.save(file)`."
    try:
        with file.open("rb") as stream:
            if not is_zipfile(stream):
                raise ValueError(damaged)
            with ZipFile(stream) as archive:
                n_bytes = sum(member.file_size for member in archive.infolist())
                if why := excess(n_bytes, file.stat().st_size):
                    raise ValueError(f"`{file}` is refused: {why}.")
                if archive.testzip() is not None:  # torch looks at no checksum
                    raise ValueError(damaged)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"`{file}` cannot be read ({error.strerror}).") from error
    except (pickle.UnpicklingError, BadZipFile, EOFError, UnicodeError, *_UNFIT) as error:
        raise ValueError(damaged) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(
            f"`{file}` holds no flow of the format `{FORMAT}`. Load its weights into a flow with "
            "`load_state_dict`, then `flow.save(file)`."
        )
    architecture, state, about = (content.get(name) for name in ("architecture", "state", "about"))
    if not (
        isinstance(architecture, dict)
        and isinstance(about, dict)
        and isinstance(state, dict)
        and all(map(_is_number, state.items()))
    ):
        raise ValueError(damaged)
    return SavedParts(architecture, state, about, file)


def _is_number(entry: tuple[Any, Any]) -> bool:
    """True for a name with a dense tensor."""
    name, t = entry
    return isinstance(name, str) and isinstance(t, Tensor) and t.layout == torch.strided


def arguments(part: Any) -> dict[str, Any]:
    """Name -> value of the arguments with which the part's class would make it again.

    Raises:
        ValueError: the part has no attribute of the name of an argument.
    """
    found: dict[str, Any] = {}
    if type(part).__init__ is nn.Module.__init__:
        return found
    for name, parameter in inspect.signature(type(part)).parameters.items():
        if name in _CHOSEN_ANEW:
            continue
        value = part if isinstance(part, Chain) else getattr(part, name, inspect.Parameter.empty)
        if value is inspect.Parameter.empty:
            raise ValueError(
                f"{type(part).__name__} keeps no attribute `{name}`, the argument it was made "
                f"with, so that no file can hold it. Keep it, as `self.{name} = {name}`."
            )
        if parameter.annotation in (bool, "bool"):  # of a parameter that is there or not
            value = value if isinstance(value, bool) else value is not None
        found[name] = value
    return found


class _Describer:
    """Plain values in place of parts. A module that comes again is the number of the first."""

    def __init__(self) -> None:
        self.numbers: dict[int, int] = {}

    def value(self, value: Any) -> Any:
        match value:
            case SpectralNorm():
                return self.value(layers.Spectral())
            case AOLNorm():
                return self.value(layers.AOL())
            case SemiOrthogonalNorm():
                return self.value(layers.SemiOrthogonal())
            case InducedNorm():
                return self.value(layers.Induced(*value.orders))
            case tuple() | list() | nn.ModuleList() | nn.Sequential():
                return [self.value(one) for one in value]
            case _ if type(value) in _PLAIN:
                return value.detach().cpu() if isinstance(value, Tensor) else value
        if id(value) in self.numbers:
            return {"same": self.numbers[id(value)]}
        if PARTS.get(name := type(value).__name__) is not type(value):
            raise ValueError(
                f"a file holds no code, and {name} is no part of this package. Add its class to "
                "`resflow_bench.flows.saving.PARTS` here and where it is loaded, or save "
                "`flow.state_dict()`."
            )
        found = {n: self.value(v) for n, v in arguments(value).items()}
        if isinstance(value, nn.Module):
            self.numbers[id(value)] = len(self.numbers)
        return {"part": name, "arguments": found}


class _Builder:
    """Parts from plain values, in the order in which they were described."""

    def __init__(self) -> None:
        self.made: list[Any] = []

    def value(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self.value(one) for one in value]
        if not isinstance(value, dict):
            return value
        if "same" in value:
            return self.made[value["same"]]
        name = value["part"]
        if name not in PARTS:
            import_module(SYSTEMS)
        if name not in PARTS:
            raise ValueError(
                f"this file has a part {name!s:.80}, which is not in "
                "`resflow_bench.flows.saving.PARTS`. Update this package, or add the class."
            )
        found = {n: self.value(v) for n, v in value["arguments"].items()}
        kinds = inspect.signature(PARTS[name]).parameters.values()
        several = [k.name for k in kinds if k.name in found and k.kind is k.VAR_POSITIONAL]
        first = [one for n in several for one in found.pop(n)]
        made = PARTS[name](*first, **found)
        if isinstance(made, nn.Module):
            self.made.append(made)
        return made


def _ties(flow: nn.Module) -> list[list[str]]:
    """The groups of names that one parameter has."""
    names: dict[int, list[str]] = {}
    for name, parameter in flow.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [group for group in names.values() if len(group) > 1]
