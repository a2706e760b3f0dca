"""The command line: parses, calls, prints.

Exit codes: 0 done; 1 some cells failed, the others are stored; 2 refused, with the reason in one
line; 70 a defect of this code; 75 another process measures these cells; 128 + n ended by signal n.
Only click is imported at the top; other imports wait until a command needs them, so that `--help`
answers at once.
"""

# Each module adds its commands to the group.
from resflow_bench.cli import (  # noqa: F401
    advising,
    exporting,
    gating,
    measuring,
    reading,
    training,
    verifying,
)
from resflow_bench.cli.group import cli, main

__all__ = ["cli", "main"]
