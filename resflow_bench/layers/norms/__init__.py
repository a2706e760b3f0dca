"""Operator norms of matrices and convolutions: bounds, certificates, and what divides a weight."""
