"""Implementations of residual flows that hold the same weights, behind one interface.

A new implementation is a function (flow, request) -> `Peer` and a line in `PEERS`.
"""

from __future__ import annotations

from collections.abc import Callable

from resflow_bench.flows import ResidualFlow
from resflow_bench.peers import normflows as of_normflows
from resflow_bench.peers import ours
from resflow_bench.peers import torchflows as of_torchflows
from resflow_bench.peers.peer import MODES, TRAINING, Peer, Request

PEERS: dict[str, Callable[[ResidualFlow, Request], Peer]] = {
    "ours": ours.make,
    "normflows": of_normflows.make,
    "torchflows": of_torchflows.make,
}
"""The values of the axis `implementation`. Each raises `Skip` for a request it does not support."""

__all__ = ["MODES", "PEERS", "TRAINING", "Peer", "Request"]
