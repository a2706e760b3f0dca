"""The size of a cell's chunks, which is smaller after a GPU's memory was full."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_SHARE = ContextVar("share", default=1.0)


def at_once(n: int) -> int:
    """n numbers, examples or the like at once, or the share of them that is set; at least 1."""
    return max(1, int(n * _SHARE.get()))


@contextmanager
def share_of_memory(share: float) -> Iterator[None]:
    """Take this share of the usual chunks inside the context."""
    token = _SHARE.set(share)
    try:
        yield
    finally:
        _SHARE.reset(token)
