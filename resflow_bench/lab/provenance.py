"""Provenance: the code, the libraries and the machine that numbers were measured with."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from resflow_bench import __version__

_LIBRARIES = ("torch", "numpy", "scipy", "pandas", "pyarrow", "scikit-learn")


def provenance() -> dict[str, Any]:
    """Versions, commit, devices and threads, as `run.json` records them.

    `commit` and `dirty` (are there changes, or new files, that no commit holds?) are None where
    the package does not run from a git checkout.
    """
    return {
        "versions": {
            "resflow_bench": __version__,
            "python": platform.python_version(),
            **{library: _version(library) for library in _LIBRARIES},
        },
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if (status := _git("status", "--porcelain")) is None else status != "",
        "device": _devices(),
        "threads": _threads(),
        "platform": platform.platform(),
    }


def commit_of(name: str) -> str | None:
    """The hash of a commit that git knows by this name in the working directory, else None."""
    return _git_at(Path(), "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")


def cores() -> int:
    """The cores that this process may use: fewer than the machine's in a container or a job."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """git's answer in the checkout that holds this file; None if the file is in none."""
    here = Path(__file__)
    if _git_at(here.parent, "ls-files", "--error-unmatch", here.name) is None:
        return None
    return _git_at(here.parent, *arguments)


def _git_at(folder: Path, *arguments: str) -> str | None:
    """git's answer in a folder; None if git fails or is not installed."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def _devices() -> dict[str, str]:
    """{"cpu": "AMD EPYC 9654", "cuda:0": "NVIDIA H200"}: every torch device with its name."""
    import torch

    devices = {"cpu": _cpu_model()}
    for index in range(torch.cuda.device_count()):
        devices[f"cuda:{index}"] = torch.cuda.get_device_name(index)
    return devices


def _cpu_model() -> str:
    file = Path("/proc/cpuinfo")
    text = file.read_text(errors="replace") if file.exists() else ""
    if named := re.search("^model name.*?:(.*)", text, re.MULTILINE):
        return named[1].strip()
    return platform.processor() or platform.machine()


def _threads() -> dict[str, int | None]:
    import torch

    limit = os.environ.get("OMP_NUM_THREADS", "")
    return {
        "cores": cores(),
        "torch": torch.get_num_threads(),
        "OMP_NUM_THREADS": int(limit) if limit.isdecimal() else None,
    }
