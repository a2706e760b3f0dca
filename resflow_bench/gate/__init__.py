"""The gate: a test of each metric against its margin, and an exit code for all of them."""
