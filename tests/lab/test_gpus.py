"""Workers on a machine with several GPUs: each sees one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import toys

from resflow_bench.lab.plan import Plan, begin
from resflow_bench.lab.store import Store
from resflow_bench.lab.sweep import sweep
from resflow_bench.lab.workers import visible_gpus

NAME = "CUDA_VISIBLE_DEVICES"


@pytest.mark.parametrize(
    ("n_gpus", "named", "visible"),
    [
        (2, None, ["0", "1"]),
        (2, "5,7", ["5", "7"]),
        (2, "GPU-1a,GPU-2b", ["GPU-1a", "GPU-2b"]),
        (1, "3", []),
        (1, None, []),
        (0, None, []),
        (0, "", []),
    ],
)
def test_the_gpus_that_workers_share(
    n_gpus: int, named: str | None, visible: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: n_gpus)
    monkeypatch.delenv(NAME, raising=False)
    if named is not None:
        monkeypatch.setenv(NAME, named)
    assert visible_gpus() == visible


def test_each_worker_sees_one_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resflow_bench.lab.workers.visible_gpus", lambda: ["5", "7"])
    monkeypatch.setenv(NAME, "5,7")
    plan = Plan((toys.GPU,), "smoke")
    run = begin(plan, Store(tmp_path), {})
    tally = sweep(plan, run, jobs=2)
    assert not tally.failed
    assert set(run.frame("gpu")["value"]) == {5.0, 7.0}
    assert os.environ[NAME] == "5,7"
