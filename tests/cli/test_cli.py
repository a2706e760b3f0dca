"""The command line as a user meets it: exit codes, one-line refusals, signals, resume, pipes."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import toys

import suites
from resflow_bench.analysis.changes import changes
from resflow_bench.cli import main
from resflow_bench.lab.plan import Plan, begin
from resflow_bench.lab.store import REPLICATES, Run, Store
from resflow_bench.lab.sweep import sweep

ROOT = Path(__file__).parents[2]
TOYS = "import toys; toys.install(); from resflow_bench.cli import main; main()"


def start(words: str = "", *arguments: str, script: str = TOYS) -> subprocess.Popen[str]:
    """The command on the toy suites, in a process group of its own, as a shell would start it."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", script, *words.split(), *arguments],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


class Outcome:
    """The output and the exit code of a call in this process."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """`call("run rows")` in an empty folder, with the toys in place of the suites."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(suites, "NAMES", suites.NAMES)
    for name in toys.SUITES:
        monkeypatch.setitem(sys.modules, f"suites.{name}", None)
    toys.install()

    def call(words: str = "", *arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["resflow-bench", *words.split(), *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return Outcome(int(end.value.code or 0), *capsys.readouterr())

    return call


def newest(results: Path) -> Run:
    return Store(results).runs()[-1]


# --- help


def test_help_answers_at_once() -> None:
    """The best of three, since a busy machine only ever adds time."""
    script = "from resflow_bench.cli import main; main()"
    times = []
    for _ in range(3):
        before = time.perf_counter()
        process = start("--help", script=script)
        out, err = process.communicate()
        times.append(time.perf_counter() - before)
        assert (process.returncode, err) == (0, "")
        assert "compare" in out
    assert min(times) < 0.3, times


def test_help_imports_nothing_heavy() -> None:
    script = "import sys, resflow_bench.cli; print(*sys.modules)"
    out, _ = start(script=script).communicate()
    assert not {"torch", "numpy", "pandas", "rich", "scipy", "suites"} & set(out.split())


def test_no_command_is_a_call_for_help(call) -> None:
    outcome = call()
    assert outcome.code == 0
    assert "Usage: resflow-bench" in outcome.out


def test_list_says_what_can_be_asked(call) -> None:
    outcome = call("list")
    assert outcome.code == 0
    assert "What of rows?" in outcome.out
    assert "6 smoke, 7 quick" in outcome.out
    assert re.search(r"lipschitz +Lipschitz constant K promised", outcome.out)


def test_the_real_suites_can_be_listed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["resflow-bench", "list"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert all(f"{name}\n" in out for name in suites.NAMES)
    assert all(
        set(suites.load(name).presets) == {"smoke", "quick", "full"} for name in suites.NAMES
    )


def test_env_is_what_a_run_records(call) -> None:
    outcome = call("env")
    assert outcome.code == 0
    assert {"versions", "commit", "dirty", "device", "threads"} <= json.loads(outcome.out).keys()


# --- refusals


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("run rows --set lipschitz=1.2", ("lipschitz", "1.2", "between 0 and 1", "lipschitz=0.9")),
        ("run rows --set lipschitz=abc", ("lipschitz", "abc", "a number", "lipschitz=0.9")),
        ("run rows speed=3", ("`speed`", "the axes are")),
        ("run rows --set probe=gaussian", ("`probe`", "no suite", "leave it out")),
        ("run rows --set dim=1 dim=2", ("`dim`", "set twice", "dim=V1,V2")),
        ("run rows --device nowhere", ("device", "nowhere", "this machine has", "device=cpu")),
        ("run rows --device cuda:99", ("device", "cuda:99", "this machine has", "device=cpu")),
        ("run nope", ("`nope`", "the suites are rows")),
        ("run rows --preset huge", ("huge", "smoke")),
        ("run rows --preset full", ("full", "smoke, quick")),
        ("run rows --jobs 0", ("jobs", "0")),
        ("run rows --results file", ("`file`", "cannot be written", "--results")),
        ("run --resume nope", ("holds no run", "resflow-bench run")),
        ("run --resume nope --results full", ("`nope`", "no run called", "the newest there")),
        ("report --results none", ("`none`", "holds no run", "resflow-bench run")),
        ("report nope --results full", ("`nope`", "no run called")),
        ("show nope", ("holds no run",)),
        ("show nope --results full", ("`nope`", "no run called")),
        ("compare a b --results full", ("`a`", "no run called")),
        ("show", ("RUN",)),
        ("nope", ("nope",)),
        ("run --nope", ("nope",)),
    ],
)
def test_a_refusal_is_one_line_and_changes_nothing(
    call, tmp_path: Path, arguments: str, words: tuple[str, ...]
) -> None:
    (tmp_path / "file").write_text("kept")
    Store(tmp_path / "full").create({"preset": "smoke"})
    before = sorted(tmp_path.rglob("*"))
    outcome = call(arguments)
    assert outcome.code == 2
    assert outcome.out == ""
    assert re.fullmatch(r"error: .*\n", outcome.err)
    for word in words:
        assert word in outcome.err
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "file").read_text() == "kept"


def test_a_damaged_part_is_refused_by_all_readers(call, tmp_path: Path) -> None:
    call("run rows --preset smoke --jobs 1")
    run = newest(tmp_path / "results")
    (part,) = run.path.glob("rows/part-*")
    part.write_bytes(part.read_bytes()[:-10])
    for command in ("report", "show", "compare", "run --resume"):
        names = [run.name] * (2 if command == "compare" else 1)
        outcome = call(command, *names)
        assert outcome.code == 2
        assert re.fullmatch(f"error: part .*{part.name}.* is damaged .*--resume.*\n", outcome.err)
    assert run.about["status"] == "finished"


# --- a run


def test_a_run_prints_its_name_and_the_next_command(call, tmp_path: Path) -> None:
    outcome = call("run rows --preset smoke --jobs 1 --seed 5")
    run = newest(tmp_path / "results")
    assert outcome.code == 0
    assert outcome.out == (
        f"run {run.name}: 6 cells measured\nnext: resflow-bench report {run.name}\n"
    )
    assert "preparing rows failed: ArithmeticError" not in outcome.out
    lines = outcome.err.splitlines()
    assert lines == ["6/6 cells: rows dim=6 n_terms=1 device=cpu"], (
        "no more than one in five seconds"
    )
    assert run.about["seed"] == 5


def test_values_that_no_suite_lists_are_measured(call, tmp_path: Path) -> None:
    outcome = call("run rows --set dim=70,71 n_terms=9 --device cpu --jobs 1")
    assert outcome.code == 0
    frame = newest(tmp_path / "results").frame("rows")
    assert set(frame["dim"]) == {70, 71}
    assert set(frame["n_terms"]) == {9}
    assert set(frame["device"]) == {"cpu"}


def test_failed_cells_are_said_and_make_the_exit_code_1(call, tmp_path: Path) -> None:
    where = str(tmp_path / "a b")
    outcome = call("run mixed --preset smoke --jobs 1 --results", where)
    run = newest(Path(where))
    assert outcome.code == 1
    assert f"run {run.name}: 1 cells measured, 1 skipped, 3 failed\n" in outcome.out
    assert outcome.out.endswith(f"next: resflow-bench report {run.name} --results '{where}'\n")
    assert "failed: mixed dim=1 n_terms=3 device=cpu: did not converge\n" in outcome.err
    assert set(run.frame("mixed")["status"]) == {"ok", "failed", "skipped"}


def test_resume_takes_the_run_s_own_plan_and_refuses_another(call, tmp_path: Path) -> None:
    call("run rows --preset smoke --set dim=1,2 --seed 5 --jobs 1")
    run = newest(tmp_path / "results")
    for given in ("--seed 0", "--preset quick", "mixed", "--set dim=1"):
        outcome = call(f"run --resume {run.name} {given}")
        assert outcome.code == 2
        assert re.fullmatch(f"error: run `{run.name}` was begun with .*\n", outcome.err)
    for given in ("", "--seed 5", "rows --preset smoke dim=1,2"):
        outcome = call(f"run --resume {run.name} {given}")
        assert outcome.code == 0
        assert "0 cells measured, 2 kept" in outcome.out


# --- what was measured, read


def test_show_prints_rows_for_people_and_pipes(call, tmp_path: Path) -> None:
    call("run rows mixed --preset quick --jobs 1 --set n_terms=1,2")
    run = newest(tmp_path / "results")
    table = call(f"show {run.name} --suite rows").out
    assert "threads" in table
    assert "nan" not in table.lower()
    assert "<NA>" not in table
    rows = pd.read_csv(io.StringIO(call(f"show {run.name} --format csv").out))
    both = pd.concat([run.frame("mixed"), run.frame("rows")], ignore_index=True)
    assert list(rows.columns) == [name for name in both.columns if name != REPLICATES]
    np.testing.assert_array_equal(rows["value"], both["value"])
    objects = json.loads(call(f"show {run.name} --format json").out)
    assert [row["value"] for row in objects] == both["value"].astype(object).where(
        both["value"].notna(), None
    ).to_list()
    assert call(f"show {run.name} --suite nope").code == 2


def test_readers_do_not_mind_an_unfinished_run(call, tmp_path: Path) -> None:
    call("run rows --preset smoke --jobs 1")
    done = newest(tmp_path / "results")
    empty = Store(tmp_path / "results").create({"preset": "smoke"})
    assert call(f"show {empty.name}").code == 0
    assert call(f"show {empty.name} --format csv").code == 0
    assert call(f"show {empty.name} --format json").out.strip() == "[]"
    for command in (f"report {empty.name}", f"compare {done.name} {empty.name}"):
        outcome = call(command)
        assert outcome.code == 2
        assert re.fullmatch(r"error: .*\n", outcome.err)


def test_report_writes_the_page_and_says_where(call, tmp_path: Path) -> None:
    call("run rows --preset smoke --jobs 1")
    outcome = call("report --out page")
    assert outcome.code == 0, outcome.err
    name = newest(tmp_path / "results").name
    assert outcome.out.endswith(f"report: page/index.html, of {name}\n")
    assert newest(tmp_path / "results").name in (tmp_path / "page" / "index.html").read_text()
    (tmp_path / "file").touch()
    refused = call("report --out file")
    assert refused.code == 2
    assert re.fullmatch(r"error: .*`file` cannot be written .*--out DIR\.\n", refused.err)


def test_compare_puts_the_surest_change_first(call, tmp_path: Path) -> None:
    for seed in ("0", "1"):
        call("run rows --preset smoke --jobs 1 --seed", seed)
    base, new = (run.name for run in Store(tmp_path / "results").runs())
    outcome = call(f"compare {base} {new}")
    assert outcome.code == 0
    header, first, *_, last = outcome.out.splitlines()
    names = {"suite", "metric", "verdict", "difference", "low", "high", "z", "dim"}
    assert names <= set(header.split())
    assert "mean" in first
    assert last.startswith("compare: 0 worse, 0 better, 0 changed, 6 undecided, 6 unchanged")
    assert "undecided, 6: no margin" in outcome.out, "the number of threads shows the same points"
    assert "note: BASE was measured with preset smoke seed 0, NEW with" in outcome.out


def test_changes_are_differences_with_their_intervals() -> None:
    columns = ["suite", "cell", "status", "message", "metric", "value", "unit",
               "standard_error", "ci_low", "ci_high", "n", "dim"]  # fmt: skip
    nan, inf = float("nan"), float("inf")

    def frame(*rows: tuple[str, float, float, float, float]) -> pd.DataFrame:
        full = [("s", "c", "ok", "", m, v, "nat", e, lo, hi, 9, 2) for m, v, e, lo, hi in rows]
        return pd.DataFrame(full, columns=columns)

    base = frame(("a", 1.0, 0.3, 0.2, 1.8), ("b", 1.0, nan, 0.5, 1.5), ("c", 1.0, nan, nan, nan),
                 ("d", inf, 0.0, inf, inf), ("gone", 1.0, 0.1, 0.9, 1.1))  # fmt: skip
    new = frame(("a", 2.0, 0.4, 1.0, 3.0), ("b", 1.1, nan, 0.6, 1.6), ("c", 1.5, nan, nan, nan),
                ("d", inf, 0.0, inf, inf))  # fmt: skip
    table = changes({"s": base}, {"s": new}).set_index("metric")
    assert list(table.index) == ["c", "a", "b", "d"]
    assert list(table["difference"]) == pytest.approx([0.5, 1.0, 0.1, 0.0])
    assert list(table["z"]) == pytest.approx([inf, 2.0, 0.1 / (0.5**0.5 / 2.5758293), 0.0])
    assert list(table["high"] - table["difference"]) == pytest.approx(
        [0.0, 2.5758293 * 0.5, 0.5**0.5, 0.0]
    )
    assert set(table["dim"]) == {2}


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    process = start("run rows --preset smoke --jobs 1", "--results", str(tmp_path))
    process.communicate()
    with start("show", newest(tmp_path).name, "--results", str(tmp_path)) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


# --- killed, and resumed


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """The slow suite's rows, of a run that nobody disturbed."""
    results = tmp_path_factory.mktemp("whole")
    plan = Plan((toys.SLOW,), "smoke")
    sweep(plan, begin(plan, Store(results)))
    return newest(results).frame("slow")


def wait_for_rows(process: subprocess.Popen[str], results: Path) -> None:
    while process.poll() is None and not list(results.glob("runs/*/slow/part-*")):
        time.sleep(0.02)


def descendants(process: subprocess.Popen[str]) -> set[int]:
    """The processes of its session, itself left out (Linux)."""
    found = set()
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = file.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == process.pid and fields[0] != "Z":
            found.add(int(file.parent.name))
    return found - {process.pid}


@pytest.mark.parametrize(
    ("number", "jobs"),
    [
        (signal.SIGINT, 1),
        (signal.SIGINT, 2),
        (signal.SIGTERM, 2),
        (signal.SIGKILL, 1),
        (signal.SIGKILL, 2),
    ],
)
def test_a_run_that_was_stopped_goes_on_to_the_same_numbers(
    call, tmp_path: Path, whole: pd.DataFrame, number: signal.Signals, jobs: int
) -> None:
    process = start(f"run slow --preset smoke --jobs {jobs}", "--results", str(tmp_path))
    wait_for_rows(process, tmp_path)
    if number == signal.SIGKILL:
        os.kill(process.pid, number)  # the parent alone: its workers must notice
    else:
        os.killpg(process.pid, number)  # as a terminal does
    out, err = process.communicate(timeout=30)
    run = newest(tmp_path)
    n_kept = len(run.done())
    assert 0 < n_kept < 32
    if number == signal.SIGKILL:
        assert process.returncode == -number
        assert run.about["status"] == "running"
        assert run.about["end"] is None
    else:
        assert process.returncode == 128 + number
        assert out == ""
        command = f"resflow-bench run --resume {run.name} --results {tmp_path}"
        assert (
            f"interrupted: {n_kept} of 32 cells are stored; measure the rest with:\n  {command}\n"
            in err
        )
        assert "Traceback" not in err
        assert run.about["status"] == "interrupted"
    deadline = time.monotonic() + 10
    while descendants(process) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not descendants(process)
    seen = run.frame("slow")

    outcome = call("run --jobs 1 --resume", run.name, "--results", str(tmp_path))
    assert outcome.code == 0
    assert f"{32 - n_kept} cells measured, {n_kept} kept" in outcome.out
    pd.testing.assert_frame_equal(run.frame("slow"), whole, check_exact=True)
    assert len(pd.read_parquet(run.path / "slow")) == len(whole)
    assert set(seen["cell"]) <= set(whole["cell"])
    assert run.about["status"] == "finished"


def test_a_second_ctrl_c_loses_nothing_either(tmp_path: Path) -> None:
    process = start("run slow --preset smoke --jobs 2", "--results", str(tmp_path))
    wait_for_rows(process, tmp_path)
    while process.poll() is None:  # to the very end, when Python takes itself down
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.001)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert newest(tmp_path).done()


def test_help_keeps_its_lines(call) -> None:
    assert (
        "\n  resflow-bench list                      suites, axes and their values\n"
        in call("--help").out
    )


def test_list_says_what_each_axis_takes(call) -> None:
    said = call("list").out
    for rule in (
        "must be one of gaussian, rademacher",
        "minus-identity, plus-identity",
        "must be at least 1",
    ):
        assert rule in said


@pytest.mark.parametrize("law", ["geometric", "geometric()", "zeta(2)", "geometric(x)"])
def test_a_law_needs_a_name_and_a_number(call, law: str) -> None:
    outcome = call(f"run bias --preset smoke --set roulette={law}")
    assert outcome.code == 2
    assert "one of geometric, poisson with a number in parentheses" in outcome.err
    assert f"got `{law}`" in outcome.err
