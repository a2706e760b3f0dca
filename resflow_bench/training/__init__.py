"""Maximum likelihood: the trainer, recipes and their weights, trainings as runs, their curves."""

from resflow_bench.training.curve import CurvePoint, ValidationCurve
from resflow_bench.training.trainer import Diverged, Trainer, Training

__all__ = ["CurvePoint", "Diverged", "Trainer", "Training", "ValidationCurve"]
