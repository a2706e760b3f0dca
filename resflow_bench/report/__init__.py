"""The only writer of reports: figures and one self-contained page."""
