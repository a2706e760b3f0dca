"""Time and memory of calls, asv's benchmarks and results, and checks of the machine."""
