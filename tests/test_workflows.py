"""The workflows' commands exist; that they run is seen by running them, not here."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

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
    assert [path.stem for path in WORKFLOWS] == ["nightly-gpu", "pull-request", "push"]
    for path in WORKFLOWS:
        for action in re.findall(r"uses: (\S+)", path.read_text("utf-8")):
            assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action), action
