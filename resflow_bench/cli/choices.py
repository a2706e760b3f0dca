"""Parsing of a user's values for an axis, checked against the names in the library."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from resflow_bench.lab.axes import axis_named

if TYPE_CHECKING:
    from resflow_bench.lab import Value
    from resflow_bench.lab.axes import Axis


def names_for(axis: str) -> tuple[str, ...] | None:
    """The names that are values of an axis; None for an axis of numbers or of fixed words."""
    match axis:
        case "model":
            from resflow_bench.models import MODELS

            return tuple(MODELS)
        case "dataset":
            from resflow_bench.data import DATASETS

            return tuple(DATASETS)
        case "architecture":
            from resflow_bench.architectures import ARCHITECTURES

            return tuple(ARCHITECTURES)
        case "probe":
            from resflow_bench.logdet import PROBES

            return tuple(PROBES)
        case "expansion":
            from resflow_bench.logdet import EXPANSIONS

            return tuple(EXPANSIONS)
        case "implementation":
            from resflow_bench.peers import PEERS

            return tuple(PEERS)
        case "mode":
            from resflow_bench.peers import MODES

            return tuple(MODES)
    return None


def rule_of(axis: Axis, text: str = "") -> str | None:
    """The rule that a value written as `text` breaks; None where it breaks none."""
    if axis.name == "roulette":
        from resflow_bench.logdet import law_named

        try:
            law_named(text)
        except ValueError as error:
            return f"must be a law such as geometric(0.5) or poisson(2): {error}".rstrip(".")
        return None
    names = names_for(axis.name)
    return None if names is None or text in names else f"must be one of {', '.join(names)}"


def parse(axis: Axis, text: str) -> Value:
    """The value that a user wrote.

    Raises:
        ValueError: it is not of the axis' kind, or breaks its rule.
    """
    value = axis.parse(text)
    if (rule := rule_of(axis, str(value))) is not None:
        raise axis.refusal(rule, text)
    return value


def parse_assignment(text: str) -> tuple[str, tuple[Value, ...]]:
    """`roulette=geometric(0.5),poisson(2)` -> ("roulette", ("geometric(0.5)", "poisson(2)")).

    Raises:
        ValueError: it is no assignment, or the axis or one of its values is refused.
    """
    name, equals, values = text.partition("=")
    axis = axis_named(name.strip())
    if not equals:
        raise ValueError(f"`{text}` sets nothing; write AXIS=V1,V2 as in {name}={axis.example}.")
    parts = re.split(r",(?![^(]*\))", values)  # commas inside parentheses belong to the value
    return axis.name, tuple(dict.fromkeys(parse(axis, part.strip()) for part in parts))
