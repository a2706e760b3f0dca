"""Residual flows and what can be said about them: estimators, certified inverses, benchmarks."""

__version__ = "0.1.0"
