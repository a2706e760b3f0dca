"""The name that a misspelt one stands for, most likely."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def suggestion(text: str, names: Iterable[str]) -> str:
    """The question, after a space, whether the nearest of `names` was meant; empty if none is near.

    >>> suggestion("traind", ("init", "trained"))
    ' Did you mean `trained`?'
    """
    near = get_close_matches(text, list(names), n=1)
    return f" Did you mean `{near[0]}`?" if near else ""
