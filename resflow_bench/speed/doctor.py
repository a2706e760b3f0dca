"""Checks of the machine: conditions that disturb a timing, and the remedy of each."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resflow_bench.lab.provenance import cores, provenance

MAX_LOAD = 0.3  # running processes per core up to which timings are undisturbed
CPUS = Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class Check:
    """A condition of the machine, its present state, and a remedy, empty if none is needed."""

    name: str
    found: str
    remedy: str = ""


def check_machine(about: dict[str, Any] | None = None) -> list[Check]:
    """All checks that this machine supports, with and without a remedy.

    Args:
        about: a value of `provenance()`; None computes it.
    """
    about = provenance() if about is None else about
    return [*_threads(about), *_load(), *_frequency(), *_boost(), *_others_on_gpus(), *_tree(about)]


def checks_record(about: dict[str, Any]) -> dict[str, dict[str, str]]:
    """The checks as `run.json` stores them: name -> state and remedy."""
    checks = check_machine(about)
    return {check.name: {"found": check.found, "remedy": check.remedy} for check in checks}


def _threads(about: dict[str, Any]) -> Iterator[Check]:
    n_cores, n_threads = about["threads"]["cores"], about["threads"]["torch"]
    remedy = f"set OMP_NUM_THREADS={n_cores}; they share cores" if n_threads > n_cores else ""
    yield Check("threads", f"{n_threads} threads on {n_cores} cores", remedy)


def _load() -> Iterator[Check]:
    load = os.getloadavg()[0]
    busy = load > MAX_LOAD * cores()
    found = f"{load:.2f} running processes on average in the last minute, {cores()} cores"
    yield Check("load", found, "wait, or stop other processes (`top` lists them)" if busy else "")


def _frequency() -> Iterator[Check]:
    files = CPUS.glob("cpu[0-9]*/cpufreq/scaling_governor")
    governors = {file.read_text().strip() for file in files}
    if not governors:
        yield Check("frequency", "this system does not report how it scales the clock")
        return
    remedy = "`sudo cpupower frequency-set --governor performance`"
    found = f"governor {', '.join(sorted(governors))}"
    yield Check("frequency", found, "" if governors == {"performance"} else remedy)


def _boost() -> Iterator[Check]:
    for file, on in ((CPUS / "intel_pstate/no_turbo", "0"), (CPUS / "cpufreq/boost", "1")):
        if file.exists():
            boosts = file.read_text().strip() == on
            remedy = f"`echo {1 - int(on)} | sudo tee {file}`; a hot core slows down"
            yield Check("boost", "on", remedy) if boosts else Check("boost", "off")
            return


def _others_on_gpus() -> Iterator[Check]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return
    query = [tool, "--query-compute-apps=pid,used_memory", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        yield Check("GPU", f"nvidia-smi fails ({error})", "repair the driver")
        return
    others = [line for line in answer.stdout.splitlines() if line.split(",")[0] != str(os.getpid())]
    found = f"{len(others)} other processes" + (f": {'; '.join(others)}" if others else "")
    yield Check("GPU", found, "stop them, or use another GPU" if others else "")


def _tree(about: dict[str, Any]) -> Iterator[Check]:
    if about["commit"] is None:
        found = f"no commit identifies it, since git says: {about.get('git_error')}"
        yield Check("code", found, "run from a clone that git can read")
    elif about["dirty"]:
        yield Check("code", f"{about['commit'][:8]} with uncommitted changes", "commit them")
    else:
        yield Check("code", about["commit"][:8])
