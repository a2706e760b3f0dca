"""Kill anywhere: a coordinator, a shard or a worker, at any moment; nothing is lost or doubled.

RESFLOW_KILLS is the number of kills, 10 without it.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import cycle
from pathlib import Path

import pandas as pd
import pytest
import toys

from resflow_bench.lab.plan import Plan, begin
from resflow_bench.lab.store import Run, Store
from resflow_bench.lab.sweep import sweep

TESTS = Path(__file__).parents[1]
N_KILLS = int(os.environ.get("RESFLOW_KILLS", "10"))
PLAN = Plan((toys.SECOND,), "smoke")

FORKS = """
import os, sys
from pathlib import Path
import toys
from resflow_bench.lab.plan import Plan
from resflow_bench.lab.store import Run, Shard, run as store
from resflow_bench.lab.sweep import sweep
store.SECONDS_BUFFERED = 0.03  # many parts
toys.install()
for line in sys.stdin:
    word, *words = line.split()
    if word == "wait":
        os.waitpid(int(words[0]), 0)
        print("ended", flush=True)
    elif not (child := os.fork()):
        path, shard, jobs = words
        sweep(Plan((toys.SECOND,), "smoke"), Run(Path(path)), int(jobs), shard=Shard.parse(shard))
        os._exit(0)
    else:
        print(child, flush=True)
"""


class Forks:
    """Processes that sweep, forked from one that has imported everything: each begins at once."""

    def __init__(self) -> None:
        path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
        self.process = subprocess.Popen(
            [sys.executable, "-c", FORKS],
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _ask(self, words: str) -> str:
        self.process.stdin.write(f"{words}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline()

    def sweep(self, run: Run, shard: str = "1/1", jobs: int = 1) -> int:
        return int(self._ask(f"sweep {run.path} {shard} {jobs}"))

    def wait(self, pid: int) -> None:
        assert self._ask(f"wait {pid}") == "ended\n"


@pytest.fixture
def forks() -> Iterator[Forks]:
    forks = Forks()
    yield forks
    forks.process.stdin.close()
    forks.process.stdout.close()
    forks.process.wait(timeout=20)


def workers_of(pid: int) -> list[int]:
    """The children of a process that measure (Linux); the resource tracker is none of them."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            command = (stat.parent / "cmdline").read_text()
            if parent == pid and "spawn_main" in command:
                found.append(int(stat.parent.name))
    return found


def kill_something(kind: str, run: Run, forks: Forks, draw: random.Random) -> None:
    if kind == "worker":
        pid = forks.sweep(run, jobs=2)
        deadline = time.monotonic() + 20
        while not (workers := workers_of(pid)) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 3.0))
        with suppress(ProcessLookupError):
            os.kill(draw.choice(workers or [pid]), signal.SIGKILL)
        forks.wait(pid)
        return
    shards = ["1/2", "2/2"] if kind == "shard" else ["1/1"]
    pids = [forks.sweep(run, shard, 2 if kind == "workers" else 1) for shard in shards]
    time.sleep(draw.uniform(0, 2.5 if kind == "workers" else 0.5))
    os.kill(pids[0], signal.SIGKILL)
    for pid in pids:
        forks.wait(pid)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    run = begin(PLAN, Store(tmp_path_factory.mktemp("whole")), {})
    sweep(PLAN, run)
    sweep(PLAN, run)
    return run.frame("second")


@pytest.mark.timeout(60 + 12 * N_KILLS)
def test_kill_anywhere(tmp_path: Path, forks: Forks, whole: pd.DataFrame) -> None:
    draw, n_kills, n_runs = random.Random(0), 0, 0
    kinds = cycle(["coordinator", "shard"] * 4 + ["workers", "worker"])
    expected = whole.set_index(["cell", "metric"])
    while n_kills < N_KILLS:
        n_runs += 1
        run = begin(PLAN, Store(tmp_path / str(n_runs)), {}, "planned")
        known: set[str] = set()
        while n_kills < N_KILLS and len(known) < 24:
            kill_something(next(kinds), run, forks, draw)
            n_kills += 1
            assert known <= run.done(), "a cell was lost"
            known = run.done()
            if run.suites:
                frame = run.frame("second")
                assert not frame.duplicated(["cell", "metric"]).any()
                finished = frame[frame["status"] == "ok"].set_index(["cell", "metric"])
                pd.testing.assert_frame_equal(
                    finished, expected.loc[finished.index], check_exact=True
                )
        for _ in range(3):  # the first finds what no process has asked for yet
            sweep(PLAN, run)
        pd.testing.assert_frame_equal(run.frame("second"), whole, check_exact=True)
        assert len(pd.read_parquet(run.path / "second")) == len(whole)
        assert run.about["status"] == "finished"
        assert not [file for file in run.path.rglob("*") if file.name.startswith(".")]


@pytest.mark.parametrize("jobs", [1, 2])
def test_ctrl_c_before_the_first_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    run, done = begin(PLAN, Store(tmp_path), {}), Run.done

    def interrupted(run: Run) -> set[str]:
        signal.raise_signal(signal.SIGINT)
        return done(run)

    monkeypatch.setattr(Run, "done", interrupted)
    tally = sweep(PLAN, run, jobs)
    assert (tally.signal, tally.n_done, tally.n_total) == (signal.SIGINT, 0, 24)
    assert run.about["status"] == "interrupted"
    assert [file.name for file in run.path.iterdir()] == ["run.json"]


def test_a_daemon_thread_ends_with_its_program_and_says_so(tmp_path: Path) -> None:
    script = f"""
import sys, threading, time
from pathlib import Path
import toys
from resflow_bench.cli import main
sys.argv = ["resflow-bench", "run", "slow", "--preset=smoke", "--jobs=1", "--results={tmp_path}"]
toys.install()
threading.Thread(target=main, daemon=True).start()
while not list(Path({str(tmp_path)!r}).glob("runs/*/slow/part-*")):
    time.sleep(0.05)
"""
    path = os.pathsep.join(str(Path(__file__).parents[n]) for n in (1, 2))
    ended = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": path},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    (run,) = Store(tmp_path).runs()
    assert ended.returncode == 0
    assert "Traceback" not in ended.stderr
    assert run.about["status"] == "interrupted"
    assert 0 < len(run.done()) < 32
    assert not list(run.path.glob(".*"))
