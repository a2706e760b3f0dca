"""Arrays from files of the user's own: npy, npz, csv, parquet, images. No code of a file is run."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from resflow_bench.files import parquet_table

if TYPE_CHECKING:
    import pandas as pd

N_NAMED = 5
"""Number of columns, rows, files or arrays that a refusal names."""

_IMAGES = (".png", ".jpg", ".jpeg")
_MODES = ("L", "RGB")


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
    if read is None:
        raise ValueError(
            f"{path} is no file of {', '.join(READERS)} and no folder of images. Convert it."
        )
    try:
        return read(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error}).") from error
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
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
    with path.open("rb") as stream:
        return FileArrays(np.lib.format.read_array(stream, allow_pickle=False))


def _npz(path: Path) -> FileArrays:
    if not zipfile.is_zipfile(path):
        raise ValueError("it is no npz file")
    with np.load(path, allow_pickle=False) as archive:
        keys = archive.files
        if {"train", "test"} <= set(keys):
            return FileArrays(archive["train"], archive["test"])
        if "x" in keys or len(keys) == 1:
            return FileArrays(archive["x" if "x" in keys else keys[0]])
    raise ValueError(
        f"{path} has the arrays {named(keys) or '(none)'}. Name the rows `x`, or `train` and "
        "`test`."
    )


def _csv(path: Path) -> FileArrays:
    import pandas as pd

    first = pd.read_csv(path, header=None, nrows=1)
    is_bare = all(pd.api.types.is_numeric_dtype(kind) for kind in first.dtypes)
    # With low_memory a column of two types in a long file is a warning, on several lines.
    return _columns(path, pd.read_csv(path, header=None if is_bare else "infer", low_memory=False))


def _parquet(path: Path) -> FileArrays:
    return _columns(path, parquet_table(path).to_pandas(use_threads=False))


def _columns(path: Path, frame: pd.DataFrame) -> FileArrays:
    if frame.empty:
        raise ValueError("it has no rows")
    numbers = frame.select_dtypes("number", exclude="timedelta")
    others = frame.columns.difference(numbers.columns, sort=False)
    if len(others):
        raise ValueError(
            f"{path} has columns that are no numbers: {named(others)}. Encode or drop them."
        )
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
    for file in files:
        try:
            with Image.open(file) as image:
                mode, pixels = image.mode, np.asarray(image)
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
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
