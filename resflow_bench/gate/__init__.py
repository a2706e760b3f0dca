"""The gate: whether a metric has become worse than its margin allows, and the exit code."""
