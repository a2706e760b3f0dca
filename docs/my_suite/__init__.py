"""An example of a suite: the error of a truncated series, against its bound."""

from my_suite.claims import CLAIMS
from my_suite.measure import measure_tail
from resflow_bench.lab import Grid, Preset, Suite

GRID = Grid({"lipschitz": (0.5, 0.9), "n_terms": (1, 2, 5, 10)})

SUITE = Suite(
    name="my_suite",
    question="How far is ln(1 + K) from the first N terms of its series, and from the bound?",
    axes=("lipschitz", "n_terms"),
    presets=dict.fromkeys(("smoke", "quick", "full"), Preset((GRID,))),
    measure=measure_tail,
    claims=CLAIMS,
    figures="my_suite.figures",
)
