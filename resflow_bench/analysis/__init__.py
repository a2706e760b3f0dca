"""Frames in, frames out: tables, verdicts and findings from measured rows."""
