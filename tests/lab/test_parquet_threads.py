"""Parquet is read in the thread that asks: one of Arrow's own may abort a process that ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from resflow_bench.lab import Cell
from resflow_bench.lab.store import COLUMNS

COUNTED = """
import sys
from pathlib import Path
import numpy, pandas, pyarrow.parquet
from resflow_bench.data.arrays import read_arrays
from resflow_bench.lab.store import Run

def threads():
    names = {task: (task / "comm").read_text() for task in Path("/proc/self/task").iterdir()}
    return {task for task, name in names.items() if "jemalloc" not in name}  # holds no object

before = threads()
path = Path(sys.argv[1])
Run(path).frame("rows") if path.is_dir() else read_arrays(path)
print(len(threads() - before))
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads as Linux does")
@pytest.mark.parametrize("stored", [False, True])
def test_reading_starts_no_thread(tmp_path: Path, stored: bool) -> None:
    """Its own file and a file of data, both of several columns and many rows."""
    n = 20_000
    file = tmp_path / "data.parquet"
    rows = pd.DataFrame({f"x{i}": range(n) for i in range(8)})
    if stored:
        file = tmp_path / "rows" / "part-1.parquet"
        file.parent.mkdir()
        text = {name: ["ok"] * n for name in ("suite", "cell", "status", "message", "metric")}
        rows = pd.DataFrame({name: text.get(name, [1.0] * n) for name in COLUMNS})
        rows["unit"], rows["cell"] = "1", Cell("ok", {}).id
    rows.to_parquet(file)
    command = [sys.executable, "-c", COUNTED, str(tmp_path if stored else file)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "0\n"), ended.stderr
