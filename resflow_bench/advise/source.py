"""Settings written back as the Python that makes them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from resflow_bench import logdet


def constructor(setting: Any) -> str:
    """The Python that makes a setting, what is as it would be anyway left out.

    >>> from resflow_bench.logdet import Geometric, LogDetEstimator, Rademacher, Roulette
    >>> constructor(LogDetEstimator(Rademacher(), Roulette(Geometric(0.1), 3), n_traced=1))
    'LogDetEstimator(Rademacher(), Roulette(Geometric(stop=0.1), n_exact=3), n_traced=1)'
    """
    if not is_dataclass(setting) or isinstance(setting, type):
        return setting.__name__ if callable(setting) else repr(setting)
    parts = []
    for one in fields(setting):
        value = getattr(setting, one.name)
        made = one.default_factory() if one.default_factory is not MISSING else one.default
        if one.repr and (made is MISSING or value != made):
            alone = made is MISSING and is_dataclass(value)
            parts.append(constructor(value) if alone else f"{one.name}={constructor(value)}")
    return f"{type(setting).__name__}({', '.join(parts)})"


def imports(text: str) -> list[str]:
    """What the text needs, in the order in which imports are sorted."""

    def used(names: Sequence[str]) -> str:
        return ", ".join(name for name in names if re.search(rf"\b{name}\b", text))

    froms = {
        "resflow_bench.flows": used(["ResidualBlock"]),
        "resflow_bench.logdet": used(logdet.__all__),
        "resflow_bench.logdet.averaged": used(["Averaged"]),
    }
    return ["import torch", *(f"from {m} import {names}" for m, names in froms.items() if names)]
