"""Tables, verdicts and findings from measured rows: frames in, frames out."""
