"""Readers of image dataset files. None of them executes code from a file."""

from __future__ import annotations

import gzip
import math
import pickle
import pickletools
import struct
import zipfile
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np

from resflow_bench.data.npy import read_member
from resflow_bench.files import excess


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """The uint8 array of an IDX file, gzipped if its name ends in ``.gz``.

    Layout: two zero bytes, the type (8: unsigned byte), the number of axes, each axis' length as a
    big-endian uint32, then the entries, last axis fastest.

    Raises:
        ValueError: if the file has another layout, another number of axes, or a wrong length.

    Source: LeCun, Cortes and Burges, "The MNIST database of handwritten digits".
    """
    start = 4 + 4 * ndim
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            head = stream.read(start)
            if len(head) < start or head[:4] != bytes([0, 0, 8, ndim]):
                reason = f"not an IDX file of unsigned bytes with {ndim} axes, by its first bytes"
                raise _damaged(path, reason)
            shape = struct.unpack_from(f">{ndim}I", head, offset=4)
            promised = math.prod(shape)
            if why := excess(promised, path.stat().st_size):
                raise _damaged(path, why)
            content = stream.read(promised + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, f"not a whole gzip file ({error})") from error
    if len(content) != promised:
        follow = f"{'at least ' * (len(content) > promised)}{len(content)} follow"
        raise _damaged(path, f"its header promises {promised} entries, {shape}, and {follow}")
    return np.frombuffer(content, np.uint8).reshape(shape)


def read_npz(path: Path, key: str) -> np.ndarray:
    """One array of an npz file. Arrays of Python objects are refused, since they are pickles.

    Raises:
        ValueError: if the file is not an npz file, has no array `key`, or is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return read_member(archive, key, path)
    except KeyError as error:
        raise _damaged(path, f"it holds no array {key!r}") from error
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(path, f"not a whole npz file ({error})") from error


def read_pickled_bytes(path: Path, key: str, width: int) -> np.ndarray:
    """The uint8 array (n, width) at `key` of a pickled dict, read without executing the pickle.

    The pickle may name three things: numpy's array, its dtype, and the function that rebuilds an
    array. Each is replaced by a stand-in that only records its arguments and state. The array is
    read from the recorded bytes, not by numpy's own unpickling, which trusts its input.

    Raises:
        ValueError: if the pickle names anything else, is damaged, or has no such array at `key`.
    """
    content = path.read_bytes()
    try:
        # The unpickler makes room for every number up to that of a memo, which may be 2^32.
        memos = (n or 0 for code, n, _ in pickletools.genops(content) if code.name in _MEMOS)
        if any(int(n) > len(content) for n in memos):
            raise pickle.UnpicklingError("its memos have numbers that no writer gives")
        batch = _InertUnpickler(BytesIO(content), encoding="bytes").load()
    except _DAMAGE as error:
        raise _damaged(path, f"not a pickle to be read safely: {error}") from error
    found = batch.get(key.encode(), batch.get(key)) if isinstance(batch, dict) else None
    match found:
        case _StandIn(
            state=(_, (int(n), columns), _StandIn(arguments=(code, *_)), by_column, bytes(raw))
        ):
            if columns == width and code in (b"u1", "u1") and len(raw) == n * width:
                flat = np.frombuffer(raw, np.uint8)
                return flat.reshape((n, width), order="F" if by_column else "C")
    raise _damaged(path, f"it holds no uint8 array (n, {width}) at {key!r}")


class _StandIn:
    """A stand-in for an array or a dtype that records its arguments and its state."""

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state


_REPLACED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),  # as numpy 1 wrote it
    ("numpy._core.multiarray", "_reconstruct"),  # as numpy 2 does
}

_MEMOS = ("PUT", "BINPUT", "LONG_BINPUT")

# Exceptions of the unpickler on a damaged pickle: the first three by design, the others because it
# assumes that each item on its stack exists, has the right type, and fits into memory.
_DAMAGE = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    AttributeError,
    IndexError,
    KeyError,
    MemoryError,
    OverflowError,
    TypeError,
)


class _InertUnpickler(pickle.Unpickler):
    """An unpickler of dicts, lists, tuples, bytes and numbers that can call stand-ins only."""

    def find_class(self, module: str, name: str) -> type[_StandIn]:
        if (module, name) not in _REPLACED:
            raise pickle.UnpicklingError(
                f"it asks for {module + '.' + name!r}, which no image batch needs; nothing was run"
            )
        return _StandIn


def _damaged(path: Path, why: str) -> ValueError:
    # Python's own reasons may run over two lines and end in a full stop.
    reason = " ".join(why.split()).rstrip(".")
    return ValueError(f"{path} cannot be read: {reason}. Download it again.")
