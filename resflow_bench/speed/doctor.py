"""Is this machine fit to measure on? What disturbs a timing, and what to do about it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resflow_bench.lab.provenance import cores, provenance

MAX_LOAD = 0.3
"""Running processes per core from which timings are those of a shared machine."""

CPUS = Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class Sign:
    """What was looked at, what was found, and what mends it; no remedy where all is well."""

    name: str
    found: str
    remedy: str = ""


def examine(about: dict[str, Any] | None = None) -> list[Sign]:
    """Every sign, the healthy ones too.

    Args:
        about: of `provenance()`; None asks it now.
    """
    about = provenance() if about is None else about
    looks = (_threads(about), _load(), _frequency(), _boost(), _others_on_gpus(), _tree(about))
    return [sign for look in looks for sign in look]


def findings(about: dict[str, Any]) -> dict[str, dict[str, str]]:
    """`examine`, as `run.json` keeps it beside the provenance: name -> what was found, remedy."""
    return {sign.name: {"found": sign.found, "remedy": sign.remedy} for sign in examine(about)}


def _threads(about: dict[str, Any]) -> Iterator[Sign]:
    n_cores, n_threads = about["threads"]["cores"], about["threads"]["torch"]
    found = f"{n_threads} threads on {n_cores} cores"
    more = n_threads > n_cores
    yield Sign("threads", found, f"set OMP_NUM_THREADS={n_cores}: they take turns" if more else "")


def _load() -> Iterator[Sign]:
    load = os.getloadavg()[0]
    busy = load > MAX_LOAD * cores()
    found = f"{load:.2f} processes were running, of late, on {cores()} cores"
    yield Sign("load", found, "wait, or stop what runs (`top` shows it)" if busy else "")


def _frequency() -> Iterator[Sign]:
    governors = {
        file.read_text().strip() for file in CPUS.glob("cpu[0-9]*/cpufreq/scaling_governor")
    }
    if not governors:
        yield Sign("frequency", "this system does not say how it scales the clock")
        return
    remedy = "`sudo cpupower frequency-set --governor performance`"
    found = f"governor {', '.join(sorted(governors))}"
    yield Sign("frequency", found, "" if governors == {"performance"} else remedy)


def _boost() -> Iterator[Sign]:
    for file, on in ((CPUS / "intel_pstate/no_turbo", "0"), (CPUS / "cpufreq/boost", "1")):
        if file.exists():
            boosts = file.read_text().strip() == on
            remedy = (
                f"`echo {1 - int(on)} | sudo tee {file}`: a hot core slows down" if boosts else ""
            )
            yield Sign("boost", "on" if boosts else "off", remedy)
            return


def _others_on_gpus() -> Iterator[Sign]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return
    query = [tool, "--query-compute-apps=pid,used_memory", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        yield Sign("GPU", f"nvidia-smi fails ({error})", "mend the driver")
        return
    others = [line for line in answer.stdout.splitlines() if line.split(",")[0] != str(os.getpid())]
    found = f"{len(others)} other processes" + (f": {'; '.join(others)}" if others else "")
    yield Sign("GPU", found, "stop them, or take another GPU" if others else "")


def _tree(about: dict[str, Any]) -> Iterator[Sign]:
    if about["commit"] is None:
        found = "not run from a git checkout: no commit says which code was measured"
        yield Sign("code", found, "run from a clone")
    elif about["dirty"]:
        yield Sign("code", f"{about['commit'][:8]} and changes", "commit them: nobody can go back")
    else:
        yield Sign("code", about["commit"][:8])
