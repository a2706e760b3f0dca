"""Expansions of log(I + J): the series whose terms a probe evaluates."""
