"""Advice: the estimator that reaches an asked error on a flow in the least time."""
