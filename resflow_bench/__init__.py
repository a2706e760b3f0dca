"""Residual flows and what can be said about them: estimators, certified inverses, benchmarks."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_FROM_NOTEBOOK = ("draw", "measure")


def __getattr__(name: str) -> Any:
    """`measure` and `draw`; imported at their first use, as the command line starts without torch.

    See `resflow_bench.notebook`.
    """
    if name in _FROM_NOTEBOOK:
        return getattr(import_module("resflow_bench.notebook"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_FROM_NOTEBOOK]
