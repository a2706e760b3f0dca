"""Arrays from files of the user's own: npy, npz, csv, parquet, images. No code of a file is run."""

from __future__ import annotations

import math
import struct
import warnings
import zipfile
import zlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from resflow_bench.data.npy import array_names, read_member, read_npy
from resflow_bench.files import excess, parquet_table

if TYPE_CHECKING:
    import pandas as pd

N_NAMED = 5
"""Number of columns, rows, files or arrays that a refusal names."""

MAX_LINE, MAX_COLUMNS = 2**24, 2**16
"""Bytes of a csv's first line that are looked at, and the columns in them that are read."""

_IMAGES = (".png", ".jpg", ".jpeg")
_MODES = ("L", "RGB")

# Exceptions of readers that meet another form than they expect, or are out of memory.
_DAMAGE = (
    *(ValueError, EOFError, MemoryError, OverflowError, RuntimeError, SyntaxError, TypeError),
    *(struct.error, zipfile.BadZipFile, zlib.error),
)


@dataclass(frozen=True, eq=False)
class FileArrays:
    """The content of a file: rows, test rows if it says which they are, and names of columns."""

    train: np.ndarray
    test: np.ndarray | None = None
    columns: tuple[str, ...] = ()


def is_path(name: str) -> bool:
    """True for what `read_arrays` takes: a suffix of `READERS`, a `/`, or an existing folder."""
    if not name:  # which Path takes for the working directory
        return False
    return Path(name).suffix.lower() in READERS or "/" in name or Path(name).is_dir()


def read_arrays(path: Path) -> FileArrays:
    """The arrays of a file or of a folder of images, unchecked but for their dtype.

    Raises:
        ValueError: there is no such file, it is damaged, or it holds something else.
    """
    if not path.exists():
        raise ValueError(f"{path} cannot be read (no such file or folder). Name one that exists.")
    read = _folder if path.is_dir() else READERS.get(path.suffix.lower())
    if read is None or not (path.is_dir() or path.is_file()):
        raise ValueError(
            f"{path} is no file of {', '.join(READERS)} and no folder of images. Convert it."
        )
    try:
        return read(path)
    except OSError as error:
        why = " ".join(str(error.strerror or error).split())
        raise ValueError(f"{path} cannot be read ({why}).") from error
    except _DAMAGE as error:
        if str(error).startswith(str(path)):
            raise
        why = " ".join(str(error).split()).rstrip(".")
        raise ValueError(f"{path} cannot be read: {why}. Write it again.") from error


def named(names: Iterable[object]) -> str:
    """The first few names, and the number of the others.

    >>> named(range(8))
    '0, 1, 2, 3, 4 and 3 more'
    """
    several = [str(name) for name in names]
    more = len(several) - N_NAMED
    return ", ".join(several[:N_NAMED]) + (f" and {more} more" if more > 0 else "")


def _npy(path: Path) -> FileArrays:
    return FileArrays(read_npy(lambda: path.open("rb"), path.stat().st_size))


def _npz(path: Path) -> FileArrays:
    with zipfile.ZipFile(path) as archive:
        keys = array_names(archive)
        if {"train", "test"} <= set(keys):
            train, test = (read_member(archive, key, path) for key in ("train", "test"))
            return FileArrays(train, test)
        if "x" in keys or len(keys) == 1:
            return FileArrays(read_member(archive, "x" if "x" in keys else keys[0], path))
    raise ValueError(
        f"{path} has the arrays {named(keys) or '(none)'}. Name the rows `x`, or `train` and "
        "`test`."
    )


def _csv(path: Path) -> FileArrays:
    import pandas as pd

    with path.open("rb") as stream:
        n_columns = 1 + stream.readline(MAX_LINE).count(b",")
    if n_columns > MAX_COLUMNS:
        raise ValueError(f"it has more than {MAX_COLUMNS:,} columns")
    first = pd.read_csv(path, header=None, nrows=1)
    is_bare = all(pd.api.types.is_numeric_dtype(kind) for kind in first.dtypes)
    # With low_memory a column of two types in a long file is a warning, on several lines.
    return _columns(path, pd.read_csv(path, header=None if is_bare else "infer", low_memory=False))


def _parquet(path: Path) -> FileArrays:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
        index = _index(schema.pandas_metadata)
        fields = [field for field in schema if field.name not in index]
        # Before they are read: text and lists may unpack to any size.
        _check_kinds(path, [
            field.name for field in fields
            if not pa.types.is_integer(field.type) and not pa.types.is_floating(field.type)
        ])  # fmt: skip
        with path.open("rb") as stream:
            table = parquet_table(stream, [field.name for field in fields])
        return _columns(path, table.to_pandas(use_threads=False, ignore_metadata=True))
    except pa.ArrowException as error:
        raise ValueError(str(error)) from error


def _index(metadata: object) -> list[object]:
    """The names of the columns that pandas takes as the index of a table, which are no data."""
    match metadata:
        case {"index_columns": [*names]}:
            return names
    return []


def _check_kinds(path: Path, others: Collection[str]) -> None:
    if len(others):
        raise ValueError(
            f"{path} has columns that are no numbers: {named(others)}. Encode or drop them."
        )


def _columns(path: Path, frame: pd.DataFrame) -> FileArrays:
    if frame.empty:
        raise ValueError("it has no rows")
    numbers = frame.select_dtypes("number", exclude="timedelta")
    _check_kinds(path, frame.columns.difference(numbers.columns, sort=False))
    if any(str(name).startswith("Unnamed: ") for name in frame.columns):
        raise ValueError(
            f"{path} has a column without a name, such as an index. Name it, or write the file "
            "with `index=False`."
        )
    names = tuple(map(str, frame.columns))
    return FileArrays(frame.to_numpy("float64", na_value=np.nan), columns=names)


def _folder(path: Path) -> FileArrays:
    train, test = path / "train", path / "test"
    if train.is_dir() and test.is_dir():
        return FileArrays(_images(train), _images(test))
    return FileArrays(_images(path))


def _images(folder: Path) -> np.ndarray:
    """The images of a folder in the order of their names, (n, C, H, W), uint8."""
    from PIL import Image

    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in _IMAGES)
    if not files:
        raise ValueError(f"{folder} holds no image ({', '.join(_IMAGES)}). Put some there.")
    images: list[np.ndarray] = []
    n_packed = sum(file.stat().st_size for file in files)
    for file in files:
        try:
            with warnings.catch_warnings(action="error"), Image.open(file) as image:
                size = math.prod(image.size) * len(image.getbands())
                if why := excess(size * len(files), n_packed):
                    raise ValueError(why)
                mode, pixels = image.mode, np.asarray(image)
        except (OSError, Image.DecompressionBombError, Warning, *_DAMAGE) as error:
            raise ValueError(f"{file} cannot be read as an image ({error}).") from error
        if mode not in _MODES:
            raise ValueError(f"{file} is an image of mode {mode}. Convert it to grey (L) or RGB.")
        images.append(np.moveaxis(np.atleast_3d(pixels), 2, 0))
        if images[-1].shape != images[0].shape:
            raise ValueError(
                f"{file} is (C, H, W) = {images[-1].shape}, and {files[0].name} is "
                f"{images[0].shape}. Bring them to one size and mode."
            )
    return np.stack(images)


READERS = {".npy": _npy, ".npz": _npz, ".csv": _csv, ".parquet": _parquet}
"""Suffix -> reader."""
