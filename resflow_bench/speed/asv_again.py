"""A second measurement of some benchmarks of two commits, interleaved, with separate results."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from asv.config import Config  # type: ignore[import-untyped]
from asv.util import UserError  # type: ignore[import-untyped]

from resflow_bench.speed.asv_results import DAMAGE, MAX_SHOWN, AsvError, AsvResults, Row, of_kind


def results_folder(config: Path) -> Path:
    """The folder of asv's results under this configuration.

    Raises:
        AsvError: if the configuration is missing or damaged.
    """
    return Path(_settings(config)["results_dir"])


def measure_again(
    config: Path, base: str, new: str, benchmarks: Iterable[str], scratch: Path
) -> tuple[list[Row], list[Row]]:
    """Measure benchmarks of both commits again; the new rows of each.

    Args:
        config: asv's configuration. Its environments are used; its results are not changed. Its
            commands find the packages of this Python in the variable `HOST_SITE`.
        base, new: names of commits that git knows.
        benchmarks: `module.Class.method`; each is measured at all its parameters.
        scratch: an empty folder.

    Raises:
        AsvError: if asv could not measure both.
    """
    settings = _settings(config)
    for machine in Path(settings["results_dir"]).glob("*/machine.json"):
        (scratch / "results" / machine.parent.name).mkdir(parents=True)
        shutil.copy(machine, scratch / "results" / machine.parent.name)
    settings |= {"results_dir": str(scratch / "results"), "html_dir": str(scratch / "html")}
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
    process = subprocess.run(command, cwd=here, env=host, check=False, stdout=sys.stderr)
    try:
        results = AsvResults(scratch / "results")
        return results.rows(base), results.rows(new)
    except AsvError as error:
        ended = f"the second measurement ended with code {process.returncode}"
        raise AsvError(f"{ended}: {error}") from None


def _settings(config: Path) -> dict[str, Any]:
    """The settings in the file, with absolute paths, so that a copy elsewhere is equivalent."""
    here = config.resolve().parent
    try:
        settings = vars(Config.load(str(config))).copy()
        for name in ("repo", "benchmark_dir", "env_dir", "results_dir", "html_dir"):
            if "://" not in of_kind(str, settings[name]):
                settings[name] = str((here / settings[name]).resolve())
        for name in ("build_command", "install_command", "uninstall_command"):
            if settings.get(name):
                settings[name] = [_at(here, line) for line in of_kind(list, settings[name])]
    except (UserError, *DAMAGE) as error:
        why = " ".join(str(error).split())[:MAX_SHOWN]
        raise AsvError(f"`{config}` cannot be read ({why}); give another with --asv.") from None
    return {"version": 1} | {n: value for n, value in settings.items() if value is not None}


def _at(here: Path, command: str) -> str:
    """The command with its `{conf_dir}`, one word that asv neither splits nor fills in again."""
    whole = str(here).replace("{", "{{").replace("}", "}}")
    return shlex.join(word.replace("{conf_dir}", whole) for word in shlex.split(command))
