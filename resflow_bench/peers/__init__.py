"""Implementations of residual flows that hold the same weights, behind the same verbs.

A new one is a function from (flow, what is asked) to a `Peer`, and a line in `PEERS`.
"""

from __future__ import annotations

from collections.abc import Callable

from resflow_bench.flows import ResidualFlow
from resflow_bench.peers import normflows as of_normflows
from resflow_bench.peers import ours
from resflow_bench.peers import torchflows as of_torchflows
from resflow_bench.peers.peer import MODES, TRAINING, Asked, Peer

PEERS: dict[str, Callable[[ResidualFlow, Asked], Peer]] = {
    "ours": ours.make,
    "normflows": of_normflows.make,
    "torchflows": of_torchflows.make,
}
"""What the axis `implementation` offers, by name. Each raises `Skip` for what it has not."""

__all__ = ["MODES", "PEERS", "TRAINING", "Asked", "Peer"]
