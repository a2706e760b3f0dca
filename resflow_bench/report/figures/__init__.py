"""A module for each suite that has pictures; a suite without one is shown as a table.

A figure is one function: cells in (`tables.wide`), a figure `columns` panels wide out; None
where there is nothing to draw.
"""

from suites.bias import figures as bias
from suites.density import figures as density
from suites.efficiency import figures as efficiency
from suites.inverse import figures as inverse
from suites.lipschitz import figures as lipschitz
from suites.peers import figures as peers
from suites.scaling import figures as scaling
from suites.throughput import figures as throughput
from suites.training import figures as training
from suites.training_gap import figures as training_gap
from suites.variance import figures as variance

SECTIONS = tuple(
    m.SECTION
    for m in (
        bias,
        variance,
        inverse,
        lipschitz,
        throughput,
        scaling,
        training,
        training_gap,
        density,
        efficiency,
        peers,
    )
)
"""In the order of the page."""
