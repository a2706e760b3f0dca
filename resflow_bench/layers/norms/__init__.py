"""Operator norms of layers: which norm, its bounds, and the divisor that keeps a promise."""
