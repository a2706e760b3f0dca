"""The parameters that a cell can have: their kinds, their rules, and how a user writes them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

Value = int | float | str


@dataclass(frozen=True)
class Axis:
    """One named parameter of a cell: a column of every table, and the left side of a `--set`.

    `check` returns the rule that a value breaks, None where it breaks none; `example` is a value
    to offer instead.
    """

    name: str
    kind: type[int | float | str]
    meaning: str
    example: str
    check: Callable[[Any], str | None]

    @property
    def rule(self) -> str:
        """What `check` says of a value that cannot be right."""
        return self.check("" if self.kind is str else self.kind(-1)) or "may be anything"

    def parse(self, text: str) -> Value:
        """The value that a user wrote.

        Raises:
            ValueError: if it is not of the axis' kind, or breaks the axis' rule.
        """
        try:
            value = self.coerce(self.kind(text))
        except ValueError:
            noun = {int: "an integer", float: "a number"}[self.kind]
            raise self._refusal(f"must be {noun}", text) from None
        if (rule := self.check(value)) is not None:
            raise self._refusal(rule, text)
        return value

    def coerce(self, value: Value) -> Value:
        """The same value in the one form that is hashed: 1 and 1.0 are one promise."""
        if self.kind is int and value != int(value):
            raise TypeError(f"axis `{self.name}` holds integers; got {value!r}.")
        return _canonical_law(str(value)) if self.name == "roulette" else self.kind(value)

    def _refusal(self, rule: str, text: str) -> ValueError:
        remedy = f"Give for example `{self.name}={self.example}`."
        return ValueError(f"axis `{self.name}` {rule}; got `{text}`. {remedy}")


def _within(low: float, high: float, rule: str) -> Callable[[Any], str | None]:
    return lambda value: None if low < value < high else rule


def _at_least(low: int) -> Callable[[Any], str | None]:
    return lambda value: None if low <= value < inf else f"must be at least {low}"


def _one_of(*names: str) -> Callable[[Any], str | None]:
    return lambda value: None if value in names else f"must be one of {', '.join(names)}"


def _model(value: str) -> str | None:
    from resflow_bench.models.catalogue import MODELS

    return _one_of(*MODELS)(value)


def _dataset(value: str) -> str | None:
    from resflow_bench.data import DATASETS

    return _one_of(*DATASETS)(value)


def _architecture(value: str) -> str | None:
    from resflow_bench.architectures import ARCHITECTURES

    return _one_of(*ARCHITECTURES)(value)


def _probe(value: str) -> str | None:
    from resflow_bench.logdet import PROBES

    return _one_of(*PROBES)(value)


def _expansion(value: str) -> str | None:
    from resflow_bench.logdet import EXPANSIONS

    return _one_of(*EXPANSIONS)(value)


def _implementation(value: str) -> str | None:
    from resflow_bench.peers import PEERS

    return _one_of(*PEERS)(value)


def _mode(value: str) -> str | None:
    from resflow_bench.peers import MODES

    return _one_of(*MODES)(value)


def _device(value: str) -> str | None:
    if value == "cpu":
        return None
    import torch  # only now: the other axes need no torch

    rule = "must name a device that this machine has"
    try:
        # AssertionError is how a torch without CUDA refuses it.
        return rule if torch.empty(0, device=value).is_meta else None
    except (RuntimeError, AssertionError):
        return rule


_LAW = re.compile(r"([a-z_]+)\(\s*([^\s()]+)\s*\)")


def _canonical_law(text: str) -> str:
    """`geometric( 0.50 )` -> `geometric(0.5)`; what is no law is left for `check` to refuse."""
    if not (match := _LAW.fullmatch(text.strip().lower())):
        return text
    try:
        number = float(match[2])
    except ValueError:
        return text
    return f"{match[1]}({int(number) if number.is_integer() else number})"


def _law(text: str) -> str | None:
    from resflow_bench.logdet import law_named

    try:
        law_named(text)
    except ValueError as error:
        return f"must be a law such as geometric(0.5) or poisson(2): {error}".rstrip(".")
    return None


_AXES = (
    Axis("model", str, "the map whose block is measured", "init", _model),
    Axis("dim", int, "dimension d of the data", "64", _at_least(1)),
    Axis("lipschitz", float, "Lipschitz constant K promised for the branch", "0.9",
         _within(0.0, 1.0, "must lie strictly between 0 and 1, so that the block is invertible")),
    Axis("truncation", str, "how the series is cut", "fixed",
         _one_of("fixed", "roulette")),
    Axis("n_terms", int, "terms N of the fixed truncation", "10", _at_least(1)),
    Axis("roulette", str, "law of the number of terms after the exact ones", "poisson(2)", _law),
    Axis("n_exact", int, "terms that the roulette always evaluates", "2", _at_least(0)),
    Axis("per", str, "what a roulette draws its number of terms for", "example",
         _one_of("example", "batch", "stratified")),
    Axis("n_traced", int, "leading traces that are computed and not estimated", "2", _at_least(0)),
    Axis("expansion", str, "the series whose terms are evaluated", "taylor", _expansion),
    Axis("estimator", str, "how the log-determinant is had", "hutchinson",
         _one_of("hutchinson", "tuned", "determinant")),
    Axis("probe", str, "law of the probe vectors", "rademacher", _probe),
    Axis("n_probes", int, "probe vectors m per example", "1", _at_least(1)),
    Axis("dtype", str, "floating-point type", "float32", _one_of("float32", "float64", "bfloat16")),
    Axis("device", str, "torch device", "cpu", _device),
    Axis("width", int, "units h of the hidden layer", "128", _at_least(1)),
    Axis("batch_size", int, "examples B per call", "256", _at_least(1)),
    Axis("grows", str, "what a ladder of sizes doubles from rung to rung", "n_terms",
         _one_of("n_terms", "n_probes", "batch_size")),
    Axis("tolerance", float, "rtol = atol of the inverse; 0 takes all of max_steps", "1e-6",
         _at_least(0)),
    Axis("max_steps", int, "steps after which the inverse gives up", "1000", _at_least(1)),
    Axis("operation", str, "what is timed", "log_prob",
         _one_of("log_prob", "train_step", "sample")),
    Axis("dataset", str, "what a flow is trained on", "digits-logit", _dataset),
    Axis("architecture", str, "what a trained flow is built of", "mlp", _architecture),
    Axis("step", int, "optimiser steps that a flow was trained for", "300", _at_least(1)),
    Axis("implementation", str, "whose code is measured", "ours", _implementation),
    Axis("mode", str, "what an implementation is asked for", "evaluation", _mode),
)  # fmt: skip
AXES: dict[str, Axis] = {axis.name: axis for axis in _AXES}


def axis_named(name: str) -> Axis:
    """The axis of that name.

    Raises:
        ValueError: if there is none.
    """
    if name not in AXES:
        raise ValueError(f"no axis is called `{name}`; the axes are {', '.join(AXES)}.")
    return AXES[name]


def parse_assignment(text: str) -> tuple[str, tuple[Value, ...]]:
    """`roulette=geometric(0.5),poisson(2)` -> ("roulette", ("geometric(0.5)", "poisson(2)")).

    Raises:
        ValueError: if it is no assignment, or the axis or one of its values is refused.
    """
    name, equals, values = text.partition("=")
    axis = axis_named(name.strip())
    if not equals:
        raise ValueError(f"`{text}` sets nothing; write AXIS=V1,V2 as in {name}={axis.example}.")
    parts = re.split(r",(?![^(]*\))", values)  # commas inside parentheses belong to the value
    return axis.name, tuple(dict.fromkeys(axis.parse(part.strip()) for part in parts))
