"""Maximum likelihood: the trainer, recipes and their weights, and trainings as runs."""

from resflow_bench.training.trainer import Diverged, Trainer, Training

__all__ = ["Diverged", "Trainer", "Training"]
