"""Operator norms of layers: their kinds, bounds, and the divisors that enforce a coefficient."""
