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
    git does not know them; `git_error` is its reason then.
    """
    return {
        "versions": {
            "resflow_bench": __version__,
            "python": platform.python_version(),
            **{library: _version(library) for library in _LIBRARIES},
        },
        **_checkout(Path(__file__)),
        "device": _devices(),
        "threads": _threads(),
        "platform": platform.platform(),
    }


def commit_of(name: str) -> str | None:
    """The hash of a commit that git knows by this name in the working directory, else None."""
    try:
        return _git(Path(), "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
    except (OSError, subprocess.SubprocessError):
        return None


def cores() -> int:
    """The cores that this process may use: fewer than the machine's in a container or a job."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def _checkout(file: Path) -> dict[str, Any]:
    """The commit of the checkout that holds this file, or git's reason for not knowing it."""
    found: dict[str, Any] = {"commit": None, "dirty": None, "git_error": None}
    try:
        _git(file.parent, "ls-files", "--error-unmatch", file.name)
        found["commit"] = _git(file.parent, "rev-parse", "HEAD")
        found["dirty"] = _git(file.parent, "status", "--porcelain") != ""
    except (OSError, subprocess.SubprocessError) as error:
        found["git_error"] = " ".join(str(getattr(error, "stderr", None) or error).split())
    return found


def _git(folder: Path, *arguments: str) -> str:
    """git's answer in a folder."""
    command = ["git", "-C", str(folder), *arguments]
    answer = subprocess.run(
        command, capture_output=True, text=True, errors="replace", check=True, timeout=20
    )
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
