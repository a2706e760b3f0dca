"""Files written whole or not at all, CSV without formulas, and Parquet read without threads."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

HOST = re.sub(r"\W", "", socket.gethostname())[:40]
SECONDS_HALF_WRITTEN = 86_400.0
"""A file is written in seconds; a half that is older than a day has no writer on any machine."""
MAX_UNPACKED, MAX_RATIO = 2**30, 64
"""Bytes, and times the size of its file, up to which data are unpacked: real data shrink less."""

NUMBER_BYTES = 8


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A stream whose content replaces the file at the end, also if the power fails then.

    Several processes may write the same file at once: the last to end counts. Only one that is
    killed leaves its half, under a hidden name (see `remove_leftovers`).
    """
    temporary = path.with_name(f".{path.name}.{HOST}-{token_hex(4)}.tmp")
    try:
        with temporary.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_whole(path: Path, content: str | bytes) -> Path:
    """Write a file whole, in UTF-8, into a folder that is made if needed; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        content = content.encode(errors="backslashreplace")
    with written_whole(path) as stream:
        stream.write(content)
    return path


def remove_leftovers(folder: Path, pattern: str = ".*.tmp") -> None:
    """Remove the halves of files whose writers were killed; none may be alive on this machine.

    Another machine's halves go a day later: their writers may be alive, where locks are not shared.
    """
    for half in folder.glob(pattern):
        with suppress(FileNotFoundError):
            is_old = time.time() - half.stat().st_mtime > SECONDS_HALF_WRITTEN
            if is_old or f".{HOST}-" in half.name:
                half.unlink()


def csv_text(frame: pd.DataFrame) -> str:
    """The frame as CSV, in which no text is a formula to a spreadsheet.

    Text that begins with `=`, `+`, `-`, `@`, a tab or a line break, and is no number, gets an
    apostrophe before it. A carriage return, which pandas leaves unquoted, becomes a line break.
    Numbers stay as they are.

    Source: OWASP, "CSV Injection".
    """
    texts = frame.select_dtypes(exclude="number").map(_inert, na_action="ignore")
    return frame.assign(**texts).rename(columns=_inert).to_csv(index=False)


def _inert(value: object) -> object:
    if not isinstance(value, str):
        return value
    value = value.replace("\r\n", "\n").replace("\r", "\n")
    if value.startswith(("=", "+", "-", "@", "\t", "\n")):
        try:
            float(value)
        except ValueError:
            return f"'{value}"
    return value


def excess(n_bytes: int, n_packed: int) -> str | None:
    """Why a file of `n_packed` bytes must not be unpacked to `n_bytes`; None if it may be."""
    if n_bytes <= max(MAX_UNPACKED, MAX_RATIO * n_packed):
        return None
    return (
        f"its {n_packed:,} bytes unpack to {n_bytes:,}; the limit is {MAX_UNPACKED:,}, or "
        f"{MAX_RATIO} times the file"
    )


def parquet_table(source: BinaryIO, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of a Parquet file, or some of their columns, read in this thread.

    With its defaults Arrow reads in threads of its own. One that still holds a Python object when
    the interpreter ends aborts the process: a command whose work is done exits with -6
    (apache/arrow#34314).

    Raises:
        pa.ArrowException: the file is damaged, or would unpack to far more than its size.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    n_packed = source.seek(0, os.SEEK_END)
    file = pq.ParquetFile(source, pre_buffer=False)
    groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    n_values = sum(g.column(i).num_values for g in groups for i in range(g.num_columns))
    if why := excess(NUMBER_BYTES * n_values, n_packed):
        raise pa.ArrowInvalid(why)
    return file.read(columns=columns, use_threads=False)
