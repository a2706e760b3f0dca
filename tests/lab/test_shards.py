"""Shards and locks: many processes write one run, none of them a cell of another's."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from itertools import permutations
from pathlib import Path

import pandas as pd
import pytest
import toys
from filelock import FileLock

from resflow_bench.files import HOST
from resflow_bench.lab import Cell
from resflow_bench.lab.plan import Plan, begin, go_on
from resflow_bench.lab.store import HeldError, Run, Shard, Store, StoreError, writers
from resflow_bench.lab.sweep import sweep

ROOT = Path(__file__).parents[2]
PLAN = Plan((toys.ROWS, toys.MIXED), "smoke")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return begin(PLAN, Store(tmp_path), {}, "planned")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pd.DataFrame]:
    run = begin(PLAN, Store(tmp_path_factory.mktemp("whole")), {})
    sweep(PLAN, run)
    return run.frames()


def another(run: Run, shard: str) -> subprocess.Popen[str]:
    """A process that is the writer of a shard of the run."""
    script = f"""
from pathlib import Path
from resflow_bench.lab.store import Run, Shard
run = Run(Path({str(run.path)!r}))
run.begin_writing(Shard.parse({shard!r}))
print("writing", flush=True)
input()
run.end_writing()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "writing\n"
    return process


# --- shards


def test_each_cell_belongs_to_one_shard_on_every_machine() -> None:
    cells = [Cell("rows", {"dim": dim}).id for dim in range(1, 301)]
    for count in (1, 2, 3, 7):
        shards = [Shard(index, count) for index in range(1, count + 1)]
        sizes = [sum(shard.has(cell) for cell in cells) for shard in shards]
        assert sum(sizes) == 300
        assert min(sizes) > 0.6 * 300 / count
    # Pinned: shards that are resumed elsewhere, by another version, are the same cells.
    assert [Shard(1, 3).has(cell) for cell in cells[:6]] == [
        False,
        False,
        False,
        True,
        False,
        False,
    ]


def test_shards_overlap_where_they_share_a_cell() -> None:
    shards = [Shard(index, count) for count in range(1, 7) for index in range(1, count + 1)]
    for one in shards:
        for other in shards:
            share = any(one.has(f"{n:x}") and other.has(f"{n:x}") for n in range(60))
            assert one.overlaps(other) == share, (one, other)


@pytest.mark.parametrize(
    "text", ["", "2", "0/2", "3/2", "-1/2", "1/0", "1/2/3", "a/b", "٣/٤", "1/2 "]
)
def test_a_shard_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--shard 1/4"):
        Shard.parse(text)


@pytest.mark.parametrize("order", list(permutations((1, 2, 3))))
def test_rows_do_not_depend_on_shards_nor_their_order(
    run: Run, whole: dict[str, pd.DataFrame], order: tuple[int, ...]
) -> None:
    done = 0
    for index in order:
        assert run.about["status"] in ("planned", "interrupted")
        tally = sweep(PLAN, run, shard=Shard(index, 3))
        done += tally.n_done
        assert tally.n_total == tally.n_done
    assert done == 11
    assert run.about["status"] == "finished"
    assert run.about["end"] is not None
    for suite, frame in whole.items():
        pd.testing.assert_frame_equal(run.frame(suite), frame, check_exact=True)
        assert len(pd.read_parquet(run.path / suite)) == len(frame)


def test_a_resume_without_shard_measures_what_lost_shards_left(
    run: Run, whole: dict[str, pd.DataFrame]
) -> None:
    first = sweep(PLAN, run, jobs=2, shard=Shard(2, 3))
    rest = sweep(PLAN, run, jobs=4)
    assert rest.n_kept == first.n_done - len(first.failed)
    for suite, frame in whole.items():
        pd.testing.assert_frame_equal(run.frame(suite), frame, check_exact=True)


def test_a_resumed_shard_is_recorded(run: Run) -> None:
    go_on(run, Shard(1, 2))
    assert run.about["status"] == "running"
    (entry,) = run.about["resumed"]
    assert entry["shard"] == "1/2"


def test_two_shards_at_once_fill_the_run(tmp_path: Path) -> None:
    plan = Plan((toys.SLOW,), "smoke")
    run = begin(plan, Store(tmp_path), {}, "planned")
    script = "import toys; toys.install(); from resflow_bench.cli import main; main()"
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    words = ["run", "--jobs=1", "--results", str(tmp_path), "--resume", run.name]
    command = [sys.executable, "-c", script, *words]
    processes = [
        subprocess.Popen(
            [*command, "--shard", shard],
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
        for shard in ("1/2", "2/2")
    ]
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    assert run.about["status"] == "finished"
    assert {entry["shard"] for entry in run.about["resumed"]} == {"1/2", "2/2"}
    assert pd.read_parquet(run.path / "slow").groupby("cell").size().tolist() == [2] * 32
    assert not list(run.path.glob(".*"))


# --- locks


@pytest.mark.parametrize(
    ("theirs", "says"),
    [
        ("1/1", {"1/1": "has all cells. Wait", "2/3": "all cells, which overlaps shard 2/3. Wait"}),
        ("1/2", {"1/1": "has shard 1/2. Wait", "3/4": "shard 1/2, which overlaps shard 3/4. Wait"}),
    ],
)
def test_cells_that_another_process_measures_are_refused(
    run: Run, theirs: str, says: dict[str, str]
) -> None:
    process = another(run, theirs)
    before = run.about
    for mine, words in says.items():
        with pytest.raises(HeldError, match=f"process {process.pid} on .* since 20.*{words}"):
            sweep(PLAN, run, shard=Shard.parse(mine))
    assert run.about == before
    assert not run.suites
    process.communicate("\n", timeout=10)
    assert sweep(PLAN, run, shard=Shard(2, 3)).n_done


def test_disjoint_shards_and_readers_are_not_refused(run: Run) -> None:
    process = another(run, "1/2")
    tally = sweep(PLAN, run, shard=Shard(2, 4))
    assert tally.n_done > 0
    assert run.frames()
    assert run.about["status"] == "running", "the other goes on"
    process.communicate("\n", timeout=10)
    sweep(PLAN, run, shard=Shard(4, 4))
    assert run.about["status"] == "interrupted", "1/2 measured nothing"
    assert run.about["end"] is not None


def test_a_killed_writer_leaves_no_lock_and_no_halves(run: Run) -> None:
    process = another(run, "1/1")
    (run.path / "rows").mkdir()
    halves = [run.path / f".run.json.{HOST}-12.tmp", run.path / "rows" / f".part-1.{HOST}-34.tmp"]
    halves += [run.path / "rows" / ".part-1.elsewhere-56.tmp", run.path / ".run.json.1234.tmp"]
    for half in halves:
        half.write_bytes(b"half")
    os.utime(halves[-1], (0, 0))
    young = halves.pop(2)
    with pytest.raises(HeldError):
        run.begin_writing()
    assert all(half.exists() for half in halves), "their writer is alive"
    process.kill()
    process.communicate()
    assert run.begin_writing()
    assert not any(half.exists() for half in halves)
    assert young.exists(), "its writer may be alive on another machine"
    run.end_writing()
    assert not list(run.path.glob(".*"))


def test_a_process_of_the_same_number_is_another(run: Run, tmp_path: Path) -> None:
    """A lock is the system's, not a number in a file."""
    about = {"pid": os.getpid(), "host": "elsewhere", "since": "now"}
    (run.path / ".writer-1-of-1.lock").write_text(json.dumps(about))
    assert run.begin_writing()


def test_two_runs_of_one_folder_in_one_process_are_two_writers(run: Run) -> None:
    assert run.begin_writing()
    assert run.begin_writing(), "a second call does nothing"
    with pytest.raises(HeldError, match=f"process {os.getpid()} "):
        Run(run.path).begin_writing()


def no_locks(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSYS, "Function not implemented")


def test_without_locks_nothing_is_lost_and_no_cell_is_read_twice(
    run: Run, whole: dict[str, pd.DataFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on some network file systems: two that measure the same at once."""
    monkeypatch.setattr(FileLock, "acquire", no_locks)
    assert run.begin_writing() is False
    other = Run(run.path)
    for cell in PLAN.cells(toys.ROWS):
        for one in (run, other):
            one.append(toys.ROWS, toys.result(cell))
            one.flush()
    pd.testing.assert_frame_equal(run.frame("rows"), whole["rows"], check_exact=True)
    sweep(PLAN, run)
    assert run.about["status"] == "finished"
    for suite, frame in whole.items():
        pd.testing.assert_frame_equal(run.frame(suite), frame, check_exact=True)
        assert len(pd.read_parquet(run.path / suite)) == len(frame)


def test_a_lock_that_is_not_given_back_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writers, "SECONDS_PATIENT", 0.2)
    with FileLock(run.path / ".run.lock"):
        process_waits = time.monotonic()
        with pytest.raises(StoreError, match=r"held by a process .*\.run\.lock"):
            run.begin_writing()
        assert time.monotonic() - process_waits < 5
    assert run.begin_writing()


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_folder_that_takes_no_lock_is_named(
    run: Run, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    for owner, verb in ((FileLock, "acquire"), (Path, "write_text")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, verb, refuse)
            with pytest.raises(StoreError, match=f"`{run.path}` cannot be written .*make room"):
                sweep(PLAN, run)
        assert not list(run.path.glob(".*"))
    assert run.begin_writing()


def test_a_second_resume_of_a_run_ends_with_75(tmp_path: Path) -> None:
    plan = Plan((toys.SLOW,), "smoke")
    run = begin(plan, Store(tmp_path), {}, "planned")
    process = another(run, "1/1")
    script = "import toys; toys.install(); from resflow_bench.cli import main; main()"
    words = ["run", "--results", str(tmp_path), "--resume", run.name]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    before = run.about
    second = subprocess.run(
        [sys.executable, "-c", script, *words],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert second.returncode == 75
    assert second.stdout == ""
    assert second.stderr.startswith(f"error: run `{run.name}` is being measured: process")
    assert run.about == before
