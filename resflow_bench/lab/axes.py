"""Axes: the parameters of a cell, with their kinds, meanings and rules."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import inf
from typing import Any

from resflow_bench.spelling import suggestion

Value = int | float | str


@dataclass(frozen=True)
class Axis:
    """One named parameter of a cell: a column of every table, and the left side of a `--set`.

    `check` returns the rule that a value breaks, None where it breaks none; `example` is a value
    to offer instead. An axis whose values are the names of library parts has no check here: they
    are known to the command line alone.
    """

    name: str
    kind: type[int | float | str]
    meaning: str
    example: str
    check: Callable[[Any], str | None] = lambda _: None

    @property
    def rule(self) -> str:
        """The words of `check` for a value that cannot be right."""
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
            raise self.refusal(f"must be {noun}", text) from None
        if (rule := self.check(value)) is not None:
            raise self.refusal(rule, text)
        return value

    def coerce(self, value: Value) -> Value:
        """The same value in the one form that is hashed: 1 and 1.0 are one promise."""
        if self.kind is int and value != int(value):
            raise TypeError(f"axis `{self.name}` holds integers; got {value!r}.")
        if self.name == "device" and value == "auto":
            return _fastest_device()
        return _canonical_law(str(value)) if self.name == "roulette" else self.kind(value)

    def refusal(self, rule: str, text: str) -> ValueError:
        """The error for a user's `text`: with the name in `rule` that is near it, or an example."""
        near = suggestion(text, rule.removeprefix("must be one of ").split(", "))
        remedy = near or f" Give for example `{self.name}={self.example}`."
        return ValueError(f"axis `{self.name}` {rule}; got `{text}`.{remedy}")


def _within(low: float, high: float, rule: str) -> Callable[[Any], str | None]:
    return lambda value: None if low < value < high else rule


def _at_least(low: int) -> Callable[[Any], str | None]:
    return lambda value: None if low <= value < inf else f"must be at least {low}"


def _one_of(*names: str) -> Callable[[Any], str | None]:
    return lambda value: None if value in names else f"must be one of {', '.join(names)}"


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


@cache
def _fastest_device() -> str:
    import torch  # only now: the other axes need no torch

    return "cuda" if torch.cuda.is_available() else "cpu"


_LAW = re.compile(r"([a-z_]+)\(\s*([^\s()]+)\s*\)")


def _canonical_law(text: str) -> str:
    """`geometric( 0.50 )` -> `geometric(0.5)`; text that is no law is returned as it is."""
    if not (match := _LAW.fullmatch(text.strip().lower())):
        return text
    try:
        number = float(match[2])
    except ValueError:
        return text
    return f"{match[1]}({int(number) if number.is_integer() else number})"


_AXES = (
    Axis("model", str, "the map whose block is measured", "init"),
    Axis("dim", int, "dimension d of the data", "64", _at_least(1)),
    Axis("lipschitz", float, "Lipschitz constant K promised for the branch", "0.9",
         _within(0.0, 1.0, "must lie strictly between 0 and 1, so that the block is invertible")),
    Axis("truncation", str, "how the series is truncated", "fixed",
         _one_of("fixed", "roulette")),
    Axis("n_terms", int, "terms N of the fixed truncation", "10", _at_least(1)),
    Axis("roulette", str, "law of the number of terms after the exact ones", "poisson(2)"),
    Axis("n_exact", int, "terms that the roulette always evaluates", "2", _at_least(0)),
    Axis("per", str, "unit for which a roulette draws a number of terms", "example",
         _one_of("example", "batch", "stratified")),
    Axis("n_traced", int, "leading traces that are computed exactly", "2", _at_least(0)),
    Axis("expansion", str, "the series whose terms are evaluated", "taylor"),
    Axis("gradient", str, "how an estimate is differentiated", "neumann",
         _one_of("neumann", "series")),
    Axis("estimator", str, "which log-determinant estimator is used", "hutchinson",
         _one_of("hutchinson", "tuned", "xtrace", "determinant")),
    Axis("probe", str, "law of the probe vectors", "rademacher"),
    Axis("n_probes", int, "probe vectors m per example", "1", _at_least(1)),
    Axis("dtype", str, "floating-point type", "float32", _one_of("float32", "float64", "bfloat16")),
    Axis("device", str, "torch device; auto is a CUDA GPU if there is one", "cpu", _device),
    Axis("width", int, "units h of the hidden layer", "128", _at_least(1)),
    Axis("batch_size", int, "examples B per call", "256", _at_least(1)),
    Axis("grows", str, "the size that doubles from rung to rung", "n_terms",
         _one_of("n_terms", "n_probes", "batch_size")),
    Axis("tolerance", float, "rtol = atol of an inverse or a path; 0 runs for all of max_steps",
         "1e-6", _at_least(0)),
    Axis("error", float, "error that an inverse is asked to certify", "1e-6",
         lambda value: None if 0.0 < value < inf else "must be positive and finite"),
    Axis("max_steps", int, "steps after which the inverse gives up", "1000", _at_least(1)),
    Axis("operation", str, "the call that is measured", "log_prob",
         _one_of("log_prob", "gradient", "train_step", "update", "sample", "inversion",
                 "certified_inversion")),
    Axis("dataset", str, "data that a flow is trained on", "digits-logit"),
    Axis("architecture", str, "architecture of the trained flow", "mlp"),
    Axis("step", int, "optimiser steps that a flow was trained for", "300", _at_least(1)),
    Axis("method", str, "the Runge-Kutta method of a path", "midpoint"),
    Axis("n_solver_steps", int, "equal steps T of a path, h = 1/T", "16", _at_least(1)),
    Axis("implementation", str, "the package whose code is measured", "ours"),
    Axis("mode", str, "the kind of estimate that an implementation is asked for", "evaluation"),
)  # fmt: skip
AXES: dict[str, Axis] = {axis.name: axis for axis in _AXES}


def axis_named(name: str) -> Axis:
    """The axis of that name.

    Raises:
        ValueError: if there is none.
    """
    if name not in AXES:
        near = suggestion(name, AXES)
        raise ValueError(f"no axis is called `{name}`; the axes are {', '.join(AXES)}.{near}")
    return AXES[name]
