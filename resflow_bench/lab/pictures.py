"""A cell's picture as bytes that a row can hold: small arrays in an .npz, without pickles."""

from __future__ import annotations

import io

import numpy as np


def pack(**arrays: np.ndarray | float) -> bytes:
    """The arrays by name; equal arrays give equal bytes."""
    stream = io.BytesIO()
    np.savez_compressed(stream, allow_pickle=False, **{k: np.asarray(v) for k, v in arrays.items()})
    return stream.getvalue()


def unpack(picture: bytes) -> dict[str, np.ndarray]:
    """What `pack` was given.

    >>> unpack(pack(reach=2.0))["reach"].item()
    2.0
    """
    with np.load(io.BytesIO(picture), allow_pickle=False) as arrays:
        return dict(arrays)
