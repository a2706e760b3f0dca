"""The axis `model`: flows by name, the points they are measured at, and their exact values."""
