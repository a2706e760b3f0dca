"""Suites found by name, among those of this project, or by path, in a folder of the user's own."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from resflow_bench.lab.suite import Suite

_PACKAGE = "suites"
"""Looked up when a run starts, not imported above: the engine knows no suite."""


def names() -> tuple[str, ...]:
    """The names of the suites that a run can measure."""
    found: tuple[str, ...] = import_module(_PACKAGE).NAMES
    return found


def page_order() -> tuple[str, ...]:
    """The names of all suites that have a section on the page, in its order."""
    found: tuple[str, ...] = import_module(_PACKAGE).PAGE
    return found


def load(reference: str) -> Suite:
    """The suite of that name, or in that folder; its modules are imported only now.

    Raises:
        ValueError: no suite has that name, or the folder holds none.
    """
    suite: Suite = import_module(_PACKAGE).load(reference)
    return suite
