"""Files written whole or not at all, and Parquet read without threads."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    import pyarrow as pa

HOST = re.sub(r"\W", "", socket.gethostname())[:40]
SECONDS_HALF_WRITTEN = 86_400.0
"""A file is written in seconds; a half that is older than a day has no writer on any machine."""


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


def remove_leftovers(folder: Path, pattern: str = ".*.tmp") -> None:
    """Remove the halves of files whose writers were killed; none may be alive on this machine.

    Another machine's halves go a day later: their writers may be alive, where locks are not shared.
    """
    for half in folder.glob(pattern):
        with suppress(FileNotFoundError):
            is_old = time.time() - half.stat().st_mtime > SECONDS_HALF_WRITTEN
            if is_old or f".{HOST}-" in half.name:
                half.unlink()


def parquet_table(source: Path | BinaryIO) -> pa.Table:
    """The rows of a Parquet file, read in this thread.

    With its defaults Arrow reads in threads of its own. One that still holds a Python object when
    the interpreter ends aborts the process: a command whose work is done exits with -6
    (apache/arrow#34314).
    """
    import pyarrow.parquet as pq

    return pq.ParquetFile(source, pre_buffer=False).read(use_threads=False)
