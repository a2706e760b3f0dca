"""Settings written as the Python that makes them."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from resflow_bench import logdet


def constructor(setting: Any) -> str:
    """The Python that makes a setting, without the fields that have their default value.

    >>> from resflow_bench.logdet import Geometric, LogDetEstimator, Rademacher, Roulette
    >>> constructor(LogDetEstimator(Rademacher(), Roulette(Geometric(0.1), 3), n_traced=1))
    'LogDetEstimator(Rademacher(), Roulette(Geometric(stop=0.1), n_exact=3), n_traced=1)'
    """
    if not is_dataclass(setting) or isinstance(setting, type):
        return setting.__name__ if callable(setting) else repr(setting)
    parts = []
    for one in fields(setting):
        value = getattr(setting, one.name)
        default = one.default_factory() if one.default_factory is not MISSING else one.default
        if one.repr and (default is MISSING or value != default):
            positional = default is MISSING and is_dataclass(value)
            parts.append(constructor(value) if positional else f"{one.name}={constructor(value)}")
    return f"{type(setting).__name__}({', '.join(parts)})"


def imports(code: str) -> list[str]:
    """The sorted import lines of Python that uses torch and names of `resflow_bench.logdet`."""
    names = [name for name in logdet.__all__ if re.search(rf"\b{name}\b", code)]
    return ["import torch", f"from resflow_bench.logdet import {', '.join(names)}"]
