"""Suites, one folder each: ``SUITE``, its measure, its claims and its figures."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from resflow_bench.lab import Suite

NAMES = (
    "bias",
    "variance",
    "inverse",
    "lipschitz",
    "throughput",
    "scaling",
    "training_gap",
    "density",
    "efficiency",
    "peers",
    "launches",
    "path_gradient",
    "flows",
    "euler",
)

PAGE = (*NAMES[:6], "training", *NAMES[6:])
"""The order of the page. `training` is the log of `resflow-bench train`; no run measures it."""


def load(name: str) -> Suite:
    """The suite of that name; its modules are imported only now.

    Raises:
        ValueError: if no suite has that name.
    """
    if name not in (*NAMES, *PAGE):
        raise ValueError(f"no suite is called `{name}`; the suites are {', '.join(NAMES)}.")
    suite: Suite = import_module(f"suites.{name}").SUITE
    return suite
