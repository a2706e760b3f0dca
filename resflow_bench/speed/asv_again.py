"""Some benchmarks of two commits measured once more, interleaved, into results of their own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from asv.config import Config  # type: ignore[import-untyped]
from asv.util import UserError  # type: ignore[import-untyped]

from resflow_bench.speed.asv_results import AsvError, AsvResults, Row


def results_folder(config: Path) -> Path:
    """Where this configuration keeps what asv measures.

    Raises:
        AsvError: if it is missing or damaged.
    """
    return Path(_settings(config)["results_dir"])


def measure_again(
    config: Path, base: str, new: str, benchmarks: Iterable[str], scratch: Path
) -> tuple[list[Row], list[Row]]:
    """What asv now finds for these benchmarks of both commits.

    Args:
        config: asv's configuration; its environments are used, its results are left alone. Its
            commands find this Python's packages in `HOST_SITE`.
        base, new: commits, as git knows them.
        benchmarks: `module.Class.method`, all their parameters.
        scratch: an empty folder.

    Raises:
        AsvError: if asv could not measure both.
    """
    settings = _settings(config)
    kept = Path(settings["results_dir"])
    settings |= {"results_dir": str(scratch / "results"), "html_dir": str(scratch / "html")}
    for machine in kept.glob("*/machine.json"):
        (scratch / "results" / machine.parent.name).mkdir(parents=True)
        shutil.copy(machine, scratch / "results" / machine.parent.name)
    written = scratch / "asv.conf.json"
    written.write_text(json.dumps(settings))
    wanted = "|".join(sorted(re.escape(name) for name in benchmarks))
    command = [
        *(sys.executable, "-m", "asv", "continuous", "--config", str(written)),
        *("--interleave-rounds", "--show-stderr", "--bench", rf"^({wanted})(\(|$)"),
        *(base, new),
    ]
    host = {"HOST_SITE": sysconfig.get_path("purelib"), **os.environ}
    here = config.resolve().parent
    ended = subprocess.run(command, cwd=here, env=host, check=False, stdout=sys.stderr)
    try:
        found = AsvResults(scratch / "results")
        return found.rows(base), found.rows(new)
    except AsvError as error:
        raise AsvError(f"measuring again ended with code {ended.returncode}: {error}") from None


def _settings(config: Path) -> dict[str, Any]:
    """What the file says, its paths made absolute, so that a copy elsewhere means the same."""
    try:
        settings = vars(Config.load(str(config))).copy()
    except (UserError, OSError, ValueError) as error:
        raise AsvError(f"`{config}` cannot be read ({error}); name another with --asv.") from None
    here = config.resolve().parent
    for name in ("repo", "benchmark_dir", "env_dir", "results_dir", "html_dir"):
        if "://" not in settings[name]:
            settings[name] = str((here / settings[name]).resolve())
    for name in ("build_command", "install_command", "uninstall_command"):
        if settings.get(name):
            settings[name] = [line.replace("{conf_dir}", str(here)) for line in settings[name]]
    return {"version": 1} | {n: value for n, value in settings.items() if value is not None}
