"""Scripts that print a comparison with normflows: time, memory, variance, error, likelihood."""
