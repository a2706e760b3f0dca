"""A module for each suite that has pictures; a suite without one is shown as a table.

A figure is one function: cells in (`tables.wide`), a figure `columns` panels wide out; None
where there is nothing to draw.
"""

from resflow_bench.report.figures import (
    bias,
    density,
    efficiency,
    inverse,
    lipschitz,
    peers,
    scaling,
    throughput,
    training,
    training_gap,
    variance,
)

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
