"""The workflows' commands exist; that they run is seen by running them, not here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from ruamel.yaml import YAML

from resflow_bench.cli import cli

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def commands(text: str) -> list[tuple[str, set[str]]]:
    """(name, options) of every call of resflow-bench, its continued lines joined."""
    joined = text.replace("\\\n", " ")
    calls = re.findall(r"resflow-bench (\w+)([^\n|]*)", joined)
    return [(name, set(re.findall(r"(?<= )--[a-z-]+", rest))) for name, rest in calls]


def wrong(text: str) -> set[str]:
    """Targets that the Makefile lacks; commands and options that resflow-bench lacks."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    called = set(re.findall(r"\bmake (?:--silent )?([a-z-]+)", text))
    found = {f"make {target}" for target in called - targets}
    for name, options in commands(text):
        if name not in cli.commands:
            found.add(name)
            continue
        known = {
            text
            for option in cli.commands[name].params
            if isinstance(option, click.Option)
            for text in (*option.opts, *option.secondary_opts, "--help")
        }
        found |= {f"{name} {option}" for option in options - known}
    return found


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_what_a_workflow_calls_exists(workflow: Path) -> None:
    assert not wrong(workflow.read_text("utf-8"))


def test_the_check_sees_what_is_missing() -> None:
    text = "make asv-pairs\n resflow-bench gate A B \\\n --agian --again\n resflow-bench judge"
    assert wrong(text) == {"make asv-pairs", "gate --agian", "judge"}


def test_there_is_a_workflow_for_each_occasion() -> None:
    assert [path.stem for path in WORKFLOWS] == ["gate", "nightly-gpu", "pull-request", "push"]
    for path in WORKFLOWS:
        for action in re.findall(r"uses: (\S+)", path.read_text("utf-8")):
            assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action), action


# --- the gate of other repositories


def read_yaml(text: str) -> dict[str, Any]:
    content: dict[str, Any] = YAML(typ="safe").load(text)
    return content


GATE = read_yaml((ROOT / ".github" / "workflows" / "gate.yml").read_text("utf-8"))


def test_the_caller_in_the_documentation_fits_the_gate() -> None:
    page = (ROOT / "docs" / "regressions.md").read_text("utf-8")
    (text,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    job = read_yaml(text)["jobs"]["gate"]
    assert re.fullmatch(r"\S+/resflow_bench/\.github/workflows/gate\.yml@\S+", job["uses"])
    inputs = GATE["on"]["workflow_call"]["inputs"]
    assert job["with"].keys() <= inputs.keys()
    assert {name for name, about in inputs.items() if about.get("required")} <= job["with"].keys()
    for name in inputs:
        assert f"`{name}`" in page, "the page explains every input"


def test_the_gate_uses_every_input() -> None:
    text = (ROOT / ".github" / "workflows" / "gate.yml").read_text("utf-8")
    used = set(re.findall(r"inputs\.([\w-]+)", text))
    assert used == GATE["on"]["workflow_call"]["inputs"].keys()
    for step in GATE["jobs"]["gate"]["steps"]:
        assert "${{" not in step.get("run", ""), "what a caller passes is no part of a script"


def git(folder: Path, *words: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    done = subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True)
    return done.stdout.decode()


def run_gate(folder: Path, temporary: Path, suites: str) -> tuple[int, str]:
    """The steps of the gate as bash, but for the installation: their exit code and summary."""
    commands_ = temporary / "bin"
    commands_.mkdir()
    script = commands_ / "resflow-bench"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m resflow_bench "$@"\n')
    script.chmod(0o755)
    summary = temporary / "summary.md"
    environment = os.environ | {
        **{"PATH": f"{commands_}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)},
        **{"RUNNER_TEMP": str(temporary), "GITHUB_STEP_SUMMARY": str(summary)},
        **{"BASE": "main", "SUITES": suites, "AXES": "n_terms=1,2", "PRESET": "smoke"},
        **{"ALLOWED": "cuda normflows", "UNDECIDED": "0.5"},
    }
    for step in GATE["jobs"]["gate"]["steps"]:
        if "run" not in step or "pip install" in step["run"]:
            continue
        bash = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
        done = subprocess.run(
            bash, check=False, cwd=folder, env=environment, capture_output=True, text=True
        )
        if done.returncode:
            break
    return done.returncode, summary.read_text() if summary.exists() else done.stderr


def test_the_gate_on_a_repository_of_others(tmp_path: Path) -> None:
    """A suite of theirs, measured at both commits: an error that is 5 % larger is named."""
    folder = tmp_path / "theirs"
    shutil.copytree(ROOT / "docs" / "my_suite", folder / "bench" / "my_suite")
    git(tmp_path, "init", "--quiet", "-b", "main", str(folder))
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "a suite")
    git(folder, "switch", "--quiet", "-c", "change")
    measure = folder / "bench" / "my_suite" / "measure.py"
    text = measure.read_text()
    (line,) = re.findall(r"yield exactly\(\"error\", .*", text)
    measure.write_text(text.replace(line, line.replace('"error", ', '"error", 1.05 * ')))
    git(folder, "commit", "--quiet", "-a", "-m", "a worse one")
    code, summary = run_gate(folder, tmp_path, "bench/my_suite")
    assert code == 1, summary
    assert summary.startswith("gate: REGRESSION (metrics worse: 4)")
    assert "compare: 4 worse, 0 better" in summary
    assert git(folder, "status", "--porcelain").split() == ["??", "compare.md", "??", "gate.log",
                                                            "??", "gate.md"]  # fmt: skip
