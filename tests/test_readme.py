"""What the README shows runs."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from resflow_bench.cli import cli

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")


def test_the_python_runs() -> None:
    """Each block as it stands; then what the first one's comments say of shapes, signs, sizes."""
    block, *others = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, object] = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec(block, names)
        for other in others:
            exec(other, {})
    out, exact = names["out"], names["exact"]
    assert out.value.shape == exact.shape == names["log_p"].shape == (8,)  # type: ignore[attr-defined]
    assert (out.value - exact).abs().max() < 2.0  # type: ignore[attr-defined]
    assert names["samples"].shape == (8, 64)  # type: ignore[attr-defined]
    assert bool(names["solution"].converged.all())  # type: ignore[attr-defined]
    assert torch.isfinite(names["solution"].error_bound).all()  # type: ignore[attr-defined]


def test_every_command_exists() -> None:
    shown = set(re.findall(r"^\$ resflow-bench (\w+)", README, re.MULTILINE))
    assert shown
    assert shown <= set(cli.commands)


def test_the_make_targets_exist() -> None:
    makefile = (Path(__file__).parents[1] / "Makefile").read_text("utf-8")
    for target in re.findall(r"[`$] ?make (\w+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_the_figure_is_there() -> None:
    for path in re.findall(r"\]\((\w[^):]*)\)", README):
        assert (Path(__file__).parents[1] / path).exists(), path
