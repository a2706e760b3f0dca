"""Scripts that compare ours with normflows: time, memory, variance, error, likelihood."""
