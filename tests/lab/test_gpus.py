"""Workers on a machine with several GPUs: each sees one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import toys

from resflow_bench.lab.plan import Plan, begin
from resflow_bench.lab.store import Store
from resflow_bench.lab.sweep import sweep


@pytest.mark.parametrize(
    ("n_gpus", "named", "seen"),
    [
        (2, None, {0.0, 1.0}),
        (2, "5,7", {5.0, 7.0}),
        (1, None, {-1.0}),
        (0, None, {-1.0}),
        (1, "3", {3.0}),
    ],
)
def test_each_worker_sees_one_gpu(
    n_gpus: int,
    named: str | None,
    seen: set[float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: n_gpus)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda i: f"GPU {i}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    plan = Plan((toys.GPU,), "smoke")
    run = begin(plan, Store(tmp_path), {})
    tally = sweep(plan, run, jobs=2)
    assert not tally.failed
    assert set(run.frame("gpu")["value"]) == seen
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == named
