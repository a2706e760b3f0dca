"""Seconds on a GPU, the description of the card, and the device `auto`."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import suites
from resflow_bench.flows import ResidualFlow
from resflow_bench.lab import Cell, axes
from resflow_bench.logdet import Fixed, LogDetEstimator, Rademacher
from resflow_bench.speed import gpu

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo '570.86, 1755, 1980'", ["driver 570.86", "SM clock 1755 of 1980 MHz"]),
        ("echo 'no devices were found'; exit 6", []),
        ("echo 'no devices were found'", []),
        (None, []),
    ],
)
def test_what_nvidia_smi_tells_is_said(
    script: str | None, said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if script is not None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path), "/usr/bin", "/bin"]))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    properties = SimpleNamespace(uuid="1f2e")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert gpu.described("cuda") == ", ".join(["NVIDIA H200", *said, "TF32 off"])


@CUDA
@torch.no_grad()
def test_a_replay_is_no_slower_than_cold_launches() -> None:
    """Of small work; a call that waits cannot be recorded."""
    flow = ResidualFlow.mlp(16, (32, 32), 8, 0.9).cuda()
    flow.estimator = LogDetEstimator(Rademacher(), Fixed(10))
    x = torch.zeros(8, 16, device="cuda")
    cold = gpu.cold_seconds(lambda: flow.log_prob(x), "cuda", 20)
    replayed = gpu.replayed_seconds(lambda: flow.log_prob(x), "cuda", 20)
    assert 0 < sorted(replayed)[10] < sorted(cold)[10]
    with pytest.raises(RuntimeError):
        gpu.replayed_seconds(lambda: x.sum().item(), "cuda", 20)
    assert torch.rand(3, device="cuda").isfinite().all()  # the default generator still works


def device_cells(name: str, preset: str) -> tuple[list[Cell], list[Cell]]:
    """The preset's cells on the CPU, and elsewhere."""
    cells = suites.load(name).cells(preset)
    on_cpu = [cell for cell in cells if cell["device"] == "cpu"]
    return on_cpu, [cell for cell in cells if cell["device"] != "cpu"]


@pytest.mark.parametrize("preset", ["quick", "full"])
@pytest.mark.parametrize(
    "name", ["throughput", "scaling", "efficiency", "inverse", "training_gap", "peers"]
)
def test_presets_have_cells_on_a_gpu_where_there_is_one(
    name: str, preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(axes, "_fastest_device", lambda: "cpu")
    cells, elsewhere = device_cells(name, preset)
    assert not elsewhere
    monkeypatch.setattr(axes, "_fastest_device", lambda: "cuda")
    same, elsewhere = device_cells(name, preset)
    assert same == cells
    assert [Cell(name, {**cell.axes, "device": "cpu"}) for cell in elsewhere] == cells


# All but `launches`, which counts on a device of its own.
@pytest.mark.parametrize("name", [n for n in suites.NAMES if "device" in suites.load(n).axes])
def test_every_suite_can_be_asked_for_another_device(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = suites.load(name)
    for preset in suite.presets:
        cells = suite.cells(preset, {"device": ("cuda",)})
        assert len(cells) == len(suite.cells(preset, {"device": ("cpu",)}))
        assert {cell["device"] for cell in cells} == {"cuda"}


def test_auto_is_a_device_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    axis = axes.axis_named("device")
    assert axis.parse("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    monkeypatch.setattr(axes, "_fastest_device", lambda: "cuda")
    assert Cell("bias", {"device": "auto"})["device"] == "cuda"
