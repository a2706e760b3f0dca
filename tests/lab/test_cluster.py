"""A sweep over a Dask cluster: a real scheduler and real workers, on loopback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pandas as pd
import pytest
import toys
from click.testing import CliRunner

from resflow_bench.cli import cli
from resflow_bench.lab.cluster import Cluster, ClusterError
from resflow_bench.lab.plan import Plan, begin
from resflow_bench.lab.progress import Progress
from resflow_bench.lab.store import Run, Store
from resflow_bench.lab.suite import Suite
from resflow_bench.lab.sweep import Tally, sweep

pytest.importorskip("distributed")

TESTS = Path(__file__).parents[1]
Start = Callable[[], subprocess.Popen[bytes]]


@contextmanager
def scheduler(folder: Path) -> Iterator[tuple[str, Start]]:
    """(address, a function that starts a worker); all end with the context."""
    path = {"PYTHONPATH": f"{TESTS.parent}:{TESTS}", "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **path, "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "2"}
    processes: list[subprocess.Popen[bytes]] = []
    log = (folder / "log").open("wb")

    def start(what: str, *options: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"distributed.cli.dask_{what}", *options]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder)
        processes.append(process)
        return process

    file = folder / "scheduler.json"
    start("scheduler", "--host=127.0.0.1", "--port=0", "--no-dashboard", f"--scheduler-file={file}")
    for _ in range(300):
        if file.exists() and (found := pd.read_json(file, typ="series")).get("address"):
            break
        time.sleep(0.1)
    address = str(found["address"])
    worker = ("worker", address, "--host=127.0.0.1", "--nthreads=1", "--no-dashboard", "--no-nanny")
    try:
        yield address, lambda: start(*worker)
    finally:
        for process in processes:
            process.kill()
            process.wait()
        log.close()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Start]]:
    with scheduler(tmp_path_factory.mktemp("dask")) as (address, start):
        start(), start()
        yield address, start


def measured(
    address: str, results: Path, *suites: Suite, said: list[str] | None = None
) -> tuple[Run, Tally]:
    plan = Plan(suites, "smoke")
    run = begin(plan, Store(results), {})
    messages = [] if said is None else said

    def listen(progress: Progress) -> None:
        messages.append(progress.message)

    with closing(Cluster(address)) as workers:
        return run, sweep(plan, run, listen=listen, cluster=workers)


def test_the_rows_are_those_of_one_process(cluster: tuple[str, Start], tmp_path: Path) -> None:
    suites = (toys.ROWS, toys.MIXED)
    run, tally = measured(cluster[0], tmp_path / "there", *suites)
    plan = Plan(suites, "smoke")
    here = begin(plan, Store(tmp_path / "here"), {})
    alone = sweep(plan, here)
    assert (tally.n_done, len(tally.failed), len(tally.skipped)) == (
        (alone.n_done, len(alone.failed), len(alone.skipped))
    )
    for name, frame in here.frames().items():
        pd.testing.assert_frame_equal(run.frame(name), frame)
    assert run.about["status"] == "finished"


def test_cells_wait_for_their_preparation_which_is_done_once(
    cluster: tuple[str, Start], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where the workers are not
    said: list[str] = []
    run, tally = measured(cluster[0], Path("results"), toys.PREPARED, said=said)
    assert not tally.failed
    assert set(run.frame("prepared")["value"]) == {2.0}
    assert {f"preparing dim {dim}" for dim in (1, 2, 3)} <= set(said)


def test_an_exclusive_suite_is_measured_there_with_all_threads(
    cluster: tuple[str, Start], tmp_path: Path
) -> None:
    _, tally = measured(cluster[0], tmp_path, toys.ALONE)
    assert tally.n_done == 2
    assert not tally.failed


def test_a_mistake_of_ours_ends_the_run(cluster: tuple[str, Start], tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"could not go on at mixed.*a mistake of ours"):
        measured(cluster[0], tmp_path, toys.MISTAKE)


def test_a_worker_that_dies_costs_nothing(tmp_path: Path) -> None:
    with scheduler(tmp_path) as (address, start):
        first, _ = start(), start()
        plan = Plan((toys.SLOW,), "smoke")
        run = begin(plan, Store(tmp_path), {})
        dead = []

        def kill_one(progress: Progress) -> None:
            if progress.n_done == 8 and not dead:
                dead.append(first.send_signal(signal.SIGKILL))

        with closing(Cluster(address)) as workers:
            tally = sweep(plan, run, listen=kill_one, cluster=workers)
    assert dead
    assert (tally.n_done, tally.failed) == (32, [])


def test_what_died_with_the_worker_that_held_it_is_measured_again(tmp_path: Path) -> None:
    with scheduler(tmp_path) as (address, start):
        first = start()
        run = begin(plan := Plan((toys.ROWS,), "smoke"), Store(tmp_path), {})
        dead = []
        with closing(Cluster(address)) as workers:
            client = workers.client

            def kill_once_all_is_measured(progress: Progress) -> None:
                if progress.n_done != 1 or dead:
                    return
                wait_until(lambda: len(client.who_has()) >= 5)
                dead.append(first.send_signal(signal.SIGKILL))
                wait_until(lambda: not client.nthreads())
                start()

            tally = sweep(plan, run, listen=kill_once_all_is_measured, cluster=workers)
    assert dead
    assert (tally.n_done, tally.failed) == (6, [])


def wait_until(is_so: Callable[[], bool]) -> None:
    """Wait for it; an error after half a minute."""
    for _ in range(300):
        if is_so():
            return
        time.sleep(0.1)
    raise TimeoutError("it never became so")


def test_a_cell_that_kills_its_workers_is_a_failed_row(tmp_path: Path) -> None:
    with scheduler(tmp_path) as (address, start):
        processes = [start() for _ in range(7)]
        run, tally = measured(address, tmp_path, toys.DEADLY)
        n_dead = sum(process.poll() is not None for process in processes)
    assert n_dead >= 3
    assert run.about["status"] == "finished"
    assert len(tally.failed) == 2
    for result in tally.failed:
        assert "its worker died more often than the scheduler allows" in result.message


def test_a_scheduler_that_goes_away_is_a_sentence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with scheduler(tmp_path) as (address, start):
        start()
        plan = Plan((toys.SLOW,), "smoke")
        run = begin(plan, Store(tmp_path), {})
        pid = int(subprocess.check_output(["pgrep", "-f", "dask_scheduler.*" + str(tmp_path)]))

        def kill(progress: Progress) -> None:
            if progress.n_done == 3:
                os.kill(pid, signal.SIGKILL)

        workers = Cluster(address)
        with pytest.raises(ClusterError, match=r"What was measured is stored"):
            sweep(plan, run, listen=kill, cluster=workers)
        workers.close()
    assert not caplog.records  # no traceback of Dask's beside it
    assert len(run.done()) >= 3
    assert run.about["status"] == "interrupted"


def test_an_address_where_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resflow_bench.lab.cluster.SECONDS_TO_ANSWER", 0.5)
    with pytest.raises(ClusterError, match=r"no Dask scheduler answers at `tcp://127.0.0.1:9`"):
        Cluster("tcp://127.0.0.1:9")


def test_the_command_measures_a_suite_on_the_workers(
    cluster: tuple[str, Start], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "resflow_bench", "run", "lipschitz", "--preset=smoke"]
    command += [f"--results={tmp_path}"]
    for where in ([f"--cluster={cluster[0]}"], ["--jobs=1"]):
        done = subprocess.run([*command, *where], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    there, here = Store(tmp_path).runs()
    pd.testing.assert_frame_equal(there.frame("lipschitz"), here.frame("lipschitz"))


def test_the_command_says_that_nobody_answers(tmp_path: Path) -> None:
    results = tmp_path / "results"
    answer = CliRunner().invoke(
        cli, ["run", "bias", "--preset=smoke", "--cluster=127.0.0.1", f"--results={results}"]
    )
    assert answer.exit_code == 1
    waiting, error = answer.stderr.splitlines()
    assert waiting == "connecting to the scheduler at 127.0.0.1"
    assert error.startswith("Error: `127.0.0.1` is no address; give tcp://HOST:PORT")
    assert not results.exists()
