"""The weights that come with the package: flows trained long, and the manifest that describes them.

A file is known by its digest in the manifest, not by the code that trained it, so that a change of
that code trains nothing again.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from resflow_bench.flows import ResidualFlow, saving

FOLDER = Path(__file__).parent / "weights"
MANIFEST = FOLDER / "manifest.json"


def key(name: str, lipschitz: float) -> str:
    """The name of a flow's entry in the manifest, and of its file without the suffix.

    >>> key("conv", 0.9)
    'conv-K0.9'
    """
    return f"{name}-K{lipschitz:g}"


def manifest() -> dict[str, dict[str, Any]]:
    """Key -> recipe, commit, torch, seconds, held-out likelihood, constants, bytes and digest."""
    entries: dict[str, dict[str, Any]] = json.loads(MANIFEST.read_text())
    return entries


def published(name: str, lipschitz: float) -> ResidualFlow | None:
    """The flow with the norms of its last training step; None if it is not in the manifest.

    Raises:
        ValueError: the file is missing, or is not the one that the manifest describes.
    """
    if (entry := _entries().get(key(name, lipschitz))) is None:
        return None
    file = FOLDER / entry["file"]
    if not file.exists() or digest(file) != entry["sha256"]:
        raise ValueError(
            f"`{file}` is not the file that its manifest describes. Restore it with "
            f"`git checkout -- {FOLDER.name}`, or install the package again."
        )
    flow: ResidualFlow = saving.read(file).rebuilt(ResidualFlow)
    return flow


def digest(file: Path) -> str:
    """The SHA-256 of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


@cache
def _entries() -> dict[str, dict[str, Any]]:
    return manifest()
