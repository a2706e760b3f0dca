"""The engine: suites and their cells, runs, workers and the store; it knows no suite by name."""

from resflow_bench.lab.axes import Value
from resflow_bench.lab.cells import Cell, Grid, Preset
from resflow_bench.lab.claims import TIME, Claims, Finding, Metric, Statement
from resflow_bench.lab.observe import (
    Observation,
    Result,
    exactly,
    observe,
    pack,
    replicates,
    unpack,
)
from resflow_bench.lab.suite import Context, Failure, Skip, Suite, silent

__all__ = [
    "TIME",
    "Cell",
    "Claims",
    "Context",
    "Failure",
    "Finding",
    "Grid",
    "Metric",
    "Observation",
    "Preset",
    "Result",
    "Skip",
    "Statement",
    "Suite",
    "Value",
    "exactly",
    "observe",
    "pack",
    "replicates",
    "silent",
    "unpack",
]
