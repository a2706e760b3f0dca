"""Arrays in npy files and npz archives, read in no more memory than their headers account for."""

from __future__ import annotations

import math
import tokenize
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np

from resflow_bench.files import excess

_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # numpy's; others unpack without bound
_SUFFIX = ".npy"


def read_npy(open_stream: Callable[[], IO[bytes]], n_bytes: int) -> np.ndarray:
    """The array of an npy stream of `n_bytes`, which is opened twice.

    Raises:
        ValueError: it is no npy stream, its header promises more than follows, or it holds Python
            objects, which are pickles.
    """
    try:
        with open_stream() as stream:
            shape, dtype = _header(stream)
            promised, follow = math.prod(shape) * dtype.itemsize, n_bytes - stream.tell()
    except (MemoryError, RecursionError, TypeError, tokenize.TokenError) as error:
        raise ValueError(f"its header is damaged ({error})") from error
    if min(shape, default=0) < 0 or (promised > follow and not dtype.hasobject):
        raise ValueError(f"its header promises {dtype} {shape}, and {follow} bytes follow")
    with open_stream() as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


def array_names(archive: zipfile.ZipFile) -> list[str]:
    """The names of the arrays in an npz archive."""
    return [name.removesuffix(_SUFFIX) for name in archive.namelist() if name.endswith(_SUFFIX)]


def read_member(archive: zipfile.ZipFile, name: str, path: Path) -> np.ndarray:
    """One array of the npz archive in the file `path`.

    Raises:
        KeyError: it has no such array.
        ValueError: the array is damaged, a pickle, or would unpack to far more than its file.
    """
    member = archive.getinfo(name + _SUFFIX)
    if member.compress_type not in _COMPRESSIONS or member.flag_bits & 1:
        raise ValueError(f"array {name!r} is encrypted, or compressed as numpy does not do it")
    if why := excess(member.file_size, path.stat().st_size):
        raise ValueError(why)
    return read_npy(lambda: archive.open(member), member.file_size)


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    match np.lib.format.read_magic(stream):
        case (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
        case (2, 0):
            shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
        case version:
            raise ValueError(f"its version {version} is not that of an array of numbers")
    return shape, dtype
