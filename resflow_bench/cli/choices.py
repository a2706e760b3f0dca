"""Parsing of a user's values for an axis, checked against the names in the library."""

from __future__ import annotations

import re
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from resflow_bench.lab.axes import axis_named

if TYPE_CHECKING:
    from resflow_bench.lab import Value
    from resflow_bench.lab.axes import Axis


_NAMES = {
    "model": "resflow_bench.models:MODELS",
    "dataset": "resflow_bench.data:DATASETS",
    "architecture": "resflow_bench.architectures:ARCHITECTURES",
    "probe": "resflow_bench.logdet:PROBES",
    "expansion": "resflow_bench.logdet:EXPANSIONS",
    "implementation": "resflow_bench.peers:PEERS",
    "mode": "resflow_bench.peers:MODES",
}
"""Axis -> the names that are its values; an axis of numbers or of fixed words is not here."""


def rule_of(axis: Axis, text: str = "") -> str | None:
    """The rule that a value written as `text` breaks; None where it breaks none."""
    if axis.name == "roulette":
        from resflow_bench.logdet import law_named

        try:
            law_named(text)
        except ValueError as error:
            return f"must be a law such as geometric(0.5) or poisson(2): {error}".rstrip(".")
        return None
    names = resolve_name(_NAMES[axis.name]) if axis.name in _NAMES else None
    if names is None or text in names:
        return None
    if axis.name == "model":
        from resflow_bench.models.own import FORMS, is_own

        return None if is_own(text) else f"must be one of {', '.join(names)}, {FORMS}"
    if axis.name == "dataset":
        from resflow_bench.data import FORMS as PATHS
        from resflow_bench.data import is_path

        return None if is_path(text) else f"must be one of {', '.join(names)}, {PATHS}"
    return f"must be one of {', '.join(names)}"


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
