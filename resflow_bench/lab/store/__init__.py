"""The store: runs, their rows and records on disk, and the processes that write them."""

from resflow_bench.lab.store.parts import (
    BESIDE,
    COLUMNS,
    PICTURE,
    REPLICATES,
    StoreError,
    axis_columns,
    readable,
)
from resflow_bench.lab.store.run import Run, Store, merge, merge_rows
from resflow_bench.lab.store.whole import RunFiles, inspect, parts_of
from resflow_bench.lab.store.writers import WHOLE, HeldError, Shard

__all__ = [
    "BESIDE",
    "COLUMNS",
    "PICTURE",
    "REPLICATES",
    "WHOLE",
    "HeldError",
    "Run",
    "RunFiles",
    "Shard",
    "Store",
    "StoreError",
    "axis_columns",
    "inspect",
    "merge",
    "merge_rows",
    "parts_of",
    "readable",
]
