"""The command line: parses, calls, prints.

Exit codes: 0 done; 1 some cells failed, the rest is kept; 2 refused, and one line says why; 128 + n
ended by signal n. click alone is imported at the top: the rest waits until a command needs it, so
that `--help` answers at once.
"""

from resflow_bench.cli import advising, gating, measuring, reading, training
from resflow_bench.cli.group import cli, main

__all__ = ["advising", "cli", "gating", "main", "measuring", "reading", "training"]
