"""Checks of arguments at the public calls, and the sentences in which they refuse."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor

Size = int | None | EllipsisType
"""The size of an axis: a number, or None for any; `...` at the end is any number of axes."""


def check_count(owner: str, name: str, value: Any, least: int = 1) -> int:
    """`value` as an int.

    Raises:
        ValueError: it is no whole number, or below `least`.
    """
    try:
        count = operator.index(value)
    except TypeError:
        raise ValueError(f"{owner} needs a whole number as `{name}`; got {value!r}.") from None
    if count < least:
        raise ValueError(f"{owner} needs {name} of at least {least}; got {count}. Raise `{name}`.")
    return count


def check_batch(
    owner: str, x: Any, event: Sequence[Size], dtype: torch.dtype | None = None, name: str = "x"
) -> None:
    """Refuse what is no batch (B, *event) of floating point.

    Args:
        owner: who refuses.
        event: the sizes of one example.
        dtype: of the parameters that meet x, if x must have it; autocast converts all but float64.

    Raises:
        TypeError: x is no tensor.
        ValueError: x has another shape, is not of floating point, or has another dtype.
    """
    if not isinstance(x, Tensor):
        raise TypeError(
            f"{owner} needs {name} as a tensor; got {type(x).__name__}. Convert it with "
            "`torch.as_tensor`."
        )
    sizes = tuple(event)
    shape: Sequence[int] = x.shape[1:]
    if sizes and sizes[-1] is ...:
        sizes = sizes[:-1]
        shape = shape[: len(sizes)]
    if (
        x.ndim == 0
        or len(shape) != len(sizes)
        or any(want is not None and want != got for want, got in zip(sizes, shape, strict=True))
    ):
        raise ValueError(
            f"{owner} needs {name} of shape ({_described(event)}); got {tuple(x.shape)}."
        )
    if not x.is_floating_point():
        raise ValueError(f"{owner} needs {name} of floating point; got {_name(x.dtype)}.")
    dtypes = {x.dtype, dtype or x.dtype}
    may_cast = torch.float64 not in dtypes and not x.is_meta  # autocast knows no meta tensors
    is_cast = may_cast and torch.is_autocast_enabled(x.device.type)
    if len(dtypes) > 1 and not is_cast:
        raise ValueError(
            f"{owner} has parameters of {_name(dtype)}; got {name} of {_name(x.dtype)}. Convert "
            f"{name} with `.to(torch.{_name(dtype)})`, or the module with "
            f"`.to(torch.{_name(x.dtype)})`."
        )


def finite_rows(x: Tensor) -> Tensor:
    """True for each example whose numbers are all finite, (B, *event) -> (B,)."""
    rows = x.flatten(1) if x.ndim > 1 else x[:, None]
    return rows.abs().amax(1).isfinite()  # a fifth of the time of `isfinite().all(1)`


def _described(event: Sequence[Size]) -> str:
    names = ["any" if n is None else "..." if n is ... else str(n) for n in event]
    return ", ".join(["B", *names])


def _name(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.")
