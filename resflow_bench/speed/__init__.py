"""Time and memory: calls measured, asv benchmarks and their results, the fitness of a machine."""
