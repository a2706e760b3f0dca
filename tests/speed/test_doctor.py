"""Checks of the machine, on invented machines."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

from resflow_bench.cli import main
from resflow_bench.cli.group import this_machine
from resflow_bench.lab.provenance import cores
from resflow_bench.speed import doctor
from resflow_bench.speed.doctor import check_machine

ABOUT = {"threads": {"cores": 2, "torch": 2}, "commit": "0123456789abcdef", "dirty": False}


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with nothing to mend; its /sys/devices/system/cpu."""
    (tmp_path / "cpu0" / "cpufreq").mkdir(parents=True)
    (tmp_path / "cpu0" / "cpufreq" / "scaling_governor").write_text("performance\n")
    (tmp_path / "intel_pstate").mkdir()
    (tmp_path / "intel_pstate" / "no_turbo").write_text("1\n")
    monkeypatch.setattr(doctor, "CPUS", tmp_path)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 9.0, 9.0))
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def to_mend(about: dict[str, object] = ABOUT) -> dict[str, str]:
    return {check.name: check.remedy for check in check_machine(about) if check.remedy}


def test_a_quiet_machine_has_nothing_to_mend(quiet: Path) -> None:
    assert to_mend() == {}
    assert [check.name for check in check_machine(ABOUT)] == [
        "threads", "load", "frequency", "boost", "code",
    ]  # fmt: skip


def test_what_disturbs_a_timing_is_named_with_its_remedy(
    quiet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (quiet / "cpu0" / "cpufreq" / "scaling_governor").write_text("powersave\n")
    (quiet / "intel_pstate" / "no_turbo").write_text("0\n")
    monkeypatch.setattr(os, "getloadavg", lambda: (0.5 * cores(), 0.0, 0.0))
    tool = quiet / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho '4711, 300 MiB'\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{quiet}:/bin:/usr/bin")
    about = {"threads": {"cores": 2, "torch": 8}, "commit": "0123456789", "dirty": True}
    found = to_mend(about)
    assert set(found) == {"threads", "load", "frequency", "boost", "GPU", "code"}
    assert "OMP_NUM_THREADS=2" in found["threads"]
    assert "governor performance" in found["frequency"]
    assert "echo 1 | sudo tee" in found["boost"]
    assert "commit them" in found["code"]


def test_a_machine_that_says_little_is_not_blamed(quiet: Path) -> None:
    (quiet / "cpu0" / "cpufreq" / "scaling_governor").unlink()
    (quiet / "intel_pstate" / "no_turbo").unlink()
    assert to_mend() == {}
    assert "clone" in to_mend(ABOUT | {"commit": None})["code"]


def test_a_git_that_refuses_the_checkout_is_quoted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it does where another user owns the folder, in a container for example."""
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    for place in ("GLOBAL", "SYSTEM"):
        monkeypatch.setenv(f"GIT_CONFIG_{place}", os.devnull)
    about = this_machine()
    assert about["commit"] is about["dirty"] is None
    assert "dubious ownership" in about["git_error"]
    assert (
        f"note: git does not identify the code: {about['git_error']}\n" == capsys.readouterr().err
    )
    assert about["git_error"] in about["doctor"]["code"]["found"]


def test_the_command_prints_it_and_refuses_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["resflow-bench", "doctor"])
    with pytest.raises(SystemExit) as end:
        main()
    out = capsys.readouterr().out
    assert not end.value.code
    for word in ("threads: ", "load: ", "frequency: ", "code: "):
        assert word in out
