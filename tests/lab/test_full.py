"""A GPU whose memory is full, and a disk that is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import toys

from resflow_bench.lab import Context
from resflow_bench.lab.plan import Plan, begin
from resflow_bench.lab.store import Store
from resflow_bench.lab.sweep import sweep
from resflow_bench.lab.workers import Task, measure
from resflow_bench.logdet import jacobian
from resflow_bench.memory import at_once, share_of_memory


@pytest.mark.parametrize(("dim", "said"), [(1, "1/4"), (2, "1/8")])
def test_a_full_memory_halves_the_chunk_and_the_row_says_so(dim: int, said: str) -> None:
    cell = toys.MEMORY.cells("smoke")[dim - 1]
    (row,) = measure(Task(toys.MEMORY, cell, Context(0, {}, Path()))).result.observations
    assert row.value == 256 / dim
    assert row.message == f"exact; in chunks of {said}, as the GPU's memory was full"
    assert at_once(1024) == 1024


def test_a_memory_that_is_too_small_for_the_least_chunk_is_a_failed_cell() -> None:
    cell = toys.TOO_LARGE.cells("smoke")[1023]
    result = measure(Task(toys.TOO_LARGE, cell, Context(0, {}, Path()))).result
    assert result.status == "failed"
    assert "out of memory" in result.message


def test_a_cell_that_fits_has_no_word_of_it() -> None:
    cell = toys.ROWS.cells("smoke")[0]
    result = measure(Task(toys.ROWS, cell, Context(0, {}, Path()))).result
    assert {one.message for one in result.observations} == {""}


def test_a_dense_jacobian_in_smaller_chunks_is_the_same() -> None:
    x = torch.randn(3, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = jacobian(torch.tanh, x)
    with share_of_memory(1e-6):
        assert at_once(2**24) == 16
        torch.testing.assert_close(jacobian(torch.tanh, x), whole, rtol=0, atol=0)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_full_disk_in_a_measure_is_that_error(jobs: int, tmp_path: Path) -> None:
    plan = Plan((toys.UNWRITABLE,), "smoke")
    run = begin(plan, Store(tmp_path), {})
    with pytest.raises(OSError, match="No space left on device"):
        sweep(plan, run, jobs=jobs)
    assert run.about["status"] == "interrupted"
