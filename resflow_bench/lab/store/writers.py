"""Shards of a run, and the locks by which no cell is measured by two processes at once.

    .writer-<I>-of-<N>.lock   held by the process that measures shard I/N, and says who that is
    .run.lock                 held for moments: who begins or ends, run.json, superseded parts

The locks are the system's (flock), so that they end with their process, however it ends.
"""

from __future__ import annotations

import errno
import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from math import gcd
from pathlib import Path
from typing import Self

from filelock import FileLock, Timeout

from resflow_bench.files import remove_leftovers
from resflow_bench.lab.store.parts import StoreError

SECONDS_PATIENT = 60.0
"""The run's own lock is held for milliseconds, or seconds where many parts are rewritten."""

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)


class HeldError(Exception):
    """A request for cells that another process is measuring; the message says which process."""


@dataclass(frozen=True)
class Shard:
    """Part I of N of the cells: those whose id, a hash, is I - 1 modulo N.

    >>> Shard.parse("2/4").overlaps(Shard(2, 2)), Shard.parse("2/4").overlaps(Shard(1, 2))
    (True, False)

    Raises:
        ValueError: unless 1 <= I <= N.
    """

    index: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count:
            raise ValueError(
                f"a shard is I/N with 1 <= I <= N; got {self}. Give for example --shard 1/4."
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """The shard of `I/N`."""
        if not (numbers := re.fullmatch(r"(\d{1,9})/(\d{1,9})", text, re.ASCII)):
            raise ValueError(f"a shard is I/N; got `{text}`. Give for example --shard 1/4.")
        return cls(int(numbers[1]), int(numbers[2]))

    def has(self, cell: str) -> bool:
        """True if the cell of this id belongs to the shard."""
        return int(cell, 16) % self.count == self.index - 1

    def overlaps(self, other: Shard) -> bool:
        """True if some id belongs to both: indices are equal modulo gcd(N, M)."""
        return (self.index - other.index) % gcd(self.count, other.count) == 0

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


WHOLE = Shard()
"""All cells."""


class Writers:
    """The processes that write to a run's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._mine: FileLock | None = None

    def enter(self, shard: Shard) -> bool:
        """Take the lock of a shard; False where the file system has no locks.

        What a killed process left half written is removed, if no other process writes.

        Raises:
            HeldError: a live process has the lock of an overlapping shard.
            OSError: the folder cannot be written.
        """
        if self._mine is not None:
            return True
        with self.exclusive() as is_locked:
            if not is_locked:
                return False
            others = self._living()
            for other, file in others.items():
                if other.overlaps(shard):
                    raise HeldError(_sentence(self.folder.name, shard, other, file))
            if not others:
                remove_leftovers(self.folder)
                remove_leftovers(self.folder, "*/.*.tmp")
            mine = _lock(self.folder / f".writer-{shard.index}-of-{shard.count}.lock")
            mine.acquire(timeout=0)
            about = {"host": socket.gethostname(), "pid": os.getpid(), "since": _now()}
            try:
                Path(mine.lock_file).write_text(json.dumps(about))
            except OSError:
                _remove(mine)
                raise
            self._mine = mine
        return True

    def leave(self) -> None:
        """Give the lock back, if it was taken."""
        if (mine := self._mine) is not None:
            self._mine = None
            _remove(mine)

    @property
    def are_there(self) -> bool:
        """True if a live process has a lock, this one included."""
        return bool(self._living())

    def _living(self) -> dict[Shard, Path]:
        """Shard to lock, of those that a process holds; locks that were left are removed."""
        living = {}
        for file in self.folder.glob(".writer-*-of-*.lock"):
            try:
                shard = Shard.parse(file.stem.removeprefix(".writer-").replace("-of-", "/"))
            except ValueError:  # not of ours
                continue
            lock = _lock(file)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                living[shard] = file
            else:
                _remove(lock)
        return living

    @contextmanager
    def exclusive(self) -> Iterator[bool]:
        """A context that one process at a time is in; False where the file system has no locks.

        Raises:
            StoreError: another process does not leave it.
            OSError: the folder cannot be written.
        """
        lock = _lock(self.folder / ".run.lock")
        try:
            lock.acquire(timeout=SECONDS_PATIENT)
        except Timeout:
            raise StoreError(
                f"run `{self.folder.name}` is held by a process that has been rewriting it for "
                f"{SECONDS_PATIENT:.0f} s (`{lock.lock_file}`); end that process, or try later."
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            yield False
            return
        try:
            yield True
        finally:
            _remove(lock)


def _lock(file: Path) -> FileLock:
    """The system's lock, or an OSError: a lock that is a file outlives a process that is killed."""
    return FileLock(file, thread_local=False, fallback_to_soft=False)


def _remove(lock: FileLock) -> None:
    """Remove the file while it is locked; a process that waits for it then sees that it is gone."""
    with suppress(OSError):
        Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()


def _sentence(run: str, shard: Shard, other: Shard, file: Path) -> str:
    try:
        about = json.loads(file.read_text())
        holder = f"process {about['pid']} on {about['host']} since {about['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        holder = "a process that has just begun or ends"
    theirs = "all cells" if other == WHOLE else f"shard {other}"
    mine = "" if shard == WHOLE else f", which overlaps shard {shard}"
    return (
        f"run `{run}` is being measured: {holder} has {theirs}{mine}. Wait until it ends, end it, "
        "or measure another shard."
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
