"""`verify`, `plan` and `--shard`; full disks, long names and folders that cannot be written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import toys
from click.testing import CliRunner, Result
from filelock import FileLock

import suites
from resflow_bench.cli import cli
from resflow_bench.lab.plan import Plan, begin
from resflow_bench.lab.store import Run, Store
from resflow_bench.lab.sweep import sweep

ROOT = Path(__file__).parents[2]
PLAN = Plan((toys.ROWS, toys.MIXED), "smoke")


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """`call("verify")` in an empty folder, with the toys in place of the suites."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(suites, "NAMES", suites.NAMES)
    for name in toys.SUITES:
        monkeypatch.setitem(sys.modules, f"suites.{name}", None)
    toys.install()

    def call(words: str) -> Result:
        def command() -> int:
            with cli.make_context("resflow-bench", words.split()) as context:
                return cli.invoke(context) or 0

        with CliRunner().isolation() as (out, err, _):
            code = command()
            return code, out.getvalue().decode(), err.getvalue().decode()

    return call


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = begin(PLAN, Store(tmp_path / "results"), {})
    sweep(PLAN, run)
    return run


# --- verify


def test_what_is_whole_is_said_to_be(call, run: Run) -> None:
    code, out, _ = call("verify")
    assert code == 0
    assert out == (
        f"whole    run {run.name}: 8 of 11 cells; --resume would measure 3, 3 of which failed\n"
    )
    assert call(f"verify {run.name}")[1] == out


def test_a_planned_run_lacks_cells_and_is_whole(call) -> None:
    _, name, _ = call("plan rows --preset smoke")
    code, out, _ = call("verify")
    assert code == 0
    assert out == f"whole    run {name.strip()}: 0 of 6 cells; --resume would measure 6\n"


def test_damaged_and_missing_parts_are_named(call, run: Run) -> None:
    (part,) = run.path.glob("rows/part-*")
    content = part.read_bytes()
    part.write_bytes(content[:-5])
    code, out, _ = call("verify")
    assert code == 1
    first, second = out.splitlines()
    assert first.startswith(f"damaged  part `results/runs/{run.name}/rows/{part.name}` is damaged")
    assert second.startswith(f"damaged  run {run.name}: 2 of 11 cells; --resume would measure 9, 3")
    part.unlink()
    code, out, _ = call("verify")
    assert code == 1
    assert "of a run that was finished: parts are missing" in out
    sweep(PLAN, run)
    assert call("verify")[0] == 0


@pytest.mark.parametrize("content", [None, "", "{", '{"seed": "x"}'])
def test_a_damaged_record_is_named(call, run: Run, content: str | None) -> None:
    file = run.path / "run.json"
    file.write_text(content) if content is not None else file.unlink()
    code, out, _ = call("verify")
    assert code == 1
    assert out.startswith(f"damaged  `results/runs/{run.name}/run.json` ")
    assert out.endswith("away.\n")


def test_damaged_weights_are_named(call, run: Run) -> None:
    models = Path("results/models")
    models.mkdir()
    for name in ("a.pt", "b.checkpoint", f"{run.name}-best.pt"):
        torch.save({"x": torch.arange(100)}, models / name)
    code, out, _ = call("verify")
    assert code == 0
    assert out.endswith("3 files of weights and checkpoints were read\n")
    for file in models.iterdir():
        content = bytearray(file.read_bytes())
        content[content.index(bytes([50, 0, 0, 0, 0, 0, 0, 0, 51]))] ^= 1  # torch does not notice
        file.write_bytes(content)
        torch.load(file)
    code, out, _ = call("verify")
    assert code == 1
    assert len(re.findall(r"damaged  weights `.*checksum of", out)) == 3
    assert out.count("they are trained again when a cell needs them") == 2
    assert f"`resflow-bench train --resume {run.name}`" in out
    assert call(f"verify {run.name}")[1].count("damaged  weights") == 1


# --- plan and shards


def test_plan_prints_the_name_alone(call) -> None:
    code, out, err = call("plan rows mixed --preset smoke --cells")
    assert code == 0
    run = Store(Path("results")).open(out.strip())
    assert out == f"{run.name}\n"
    assert run.about["status"] == "planned"
    assert not run.suites
    assert "rows: 6 cells\n" in err
    assert err.count("dim=") == 11
    assert f"next: resflow-bench run --resume {run.name} --shard 1/4\n" in err
    for shard in ("2/2", "1/2"):
        code, out, _ = call(f"run --resume {run.name} --jobs 1 --shard {shard}")
        assert code in (0, 1)
        assert f"run {run.name}, shard {shard}: " in out
        assert ("other shards" in out) == (shard == "2/2")
    assert run.about["status"] == "finished"


@pytest.mark.parametrize("words", ["run rows --shard 1/2", "run --resume nope --shard 3/2"])
def test_a_shard_without_a_run_or_of_no_kind_is_refused(call, words: str) -> None:
    with pytest.raises(Exception, match=r"--shard 1/"):
        call(words)
    assert not Path("results").exists()


# --- what cannot be written


def command(words: str, where: Path, **options: object) -> subprocess.CompletedProcess[str]:
    script = "import toys; toys.install(); from resflow_bench.cli import main; main()"
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.run(
        [sys.executable, "-c", script, *words.split()],
        env={**os.environ, "PYTHONPATH": path},
        cwd=where,
        text=True,
        check=False,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},  # type: ignore[call-overload]
    )


@pytest.mark.parametrize("words", ["--help", "run rows --preset smoke --jobs 1"])
def test_a_full_disk_behind_standard_output_is_a_sentence(tmp_path: Path, words: str) -> None:
    with Path("/dev/full").open("w") as full:
        ended = command(words, tmp_path, stdout=full)
    assert ended.returncode == 2
    last = ended.stderr.splitlines()[-1]
    assert (
        last
        == "error: a file or standard output: No space left on device; make room, or name another."
    )


def test_a_full_disk_behind_standard_error_changes_nothing(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        ended = command("run rows --preset smoke --jobs 1", tmp_path, stderr=full)
    assert ended.returncode == 0
    assert "6 cells measured" in ended.stdout


@pytest.mark.parametrize("words", ["run {}", "verify --results {}", "gate {} {}"])
def test_a_name_that_is_too_long_is_a_sentence(tmp_path: Path, words: str) -> None:
    ended = command(words.replace("{}", "x" * 300), tmp_path)
    assert ended.returncode == 2
    assert re.fullmatch(r"error: .*x{100}.*\n", ended.stderr)


def test_a_folder_that_cannot_be_written_is_a_sentence(
    call, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    before = run.about
    with pytest.raises(Exception, match=r"cannot be written \(Read-only file system\); make room"):
        call(f"run --resume {run.name}")
    assert run.about == before
