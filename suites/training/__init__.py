"""The log of a training, written by `resflow-bench train`: likelihood, loss and constants."""
