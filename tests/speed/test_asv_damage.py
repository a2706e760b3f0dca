"""asv's files from outside: damaged in any place, and with names that are no names of files."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_asv_results import GOOD, LIKELY, TIMED, call, written

FILES = ("found/machine/b.json", "found/benchmarks.json", "found/skipped.jsonl", "asv.conf.json")
CODES = {"gate": {0, 1, 2, 3, 4, 5}, "export": {0, 2}}
EVIL = [
    *(None, True, -1, 3.5, 10**400, float("inf"), "", "..", "a\0b", "\ud800", "=1+1", "A" * 5000),
    *([], [None], {}, {"a": 1}, [1, 2, "x"], [[["x"] * 1000] * 6], "(" * 3000, "é" * 300),
]
NAMES = ["/tmp/x.time_y", "../../x.time_y", ".time_y", "é" * 300 + ".time_y", "=cmd|'x'!A0.track_y"]
JUNK = [b"", b"\0", b"\xff\xfe", b"[" * 5000, b'{"a":' * 5000, b"9" * 5000, b"\n\n", b"NaN"]


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to every value of a JSON document."""
    yield path
    inside = tree.items() if isinstance(tree, dict) else ()
    for key, value in enumerate(tree) if isinstance(tree, list) else inside:
        yield from places(value, (*path, key))


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The content of a file with other bytes in a place, or with another value in its JSON."""
    if draw(st.booleans()):
        start, end = sorted(draw(st.tuples(*[st.integers(0, len(content))] * 2)))
        return content[:start] + draw(st.sampled_from(JUNK)) + content[end:]
    tree = {"lines": [json.loads(line) for line in content.splitlines()]}
    *path, last = draw(st.sampled_from([*places(tree)][2:]))
    owner = tree
    for key in path:
        owner = owner[key]
    match draw(st.integers(0, 3)):
        case 0:
            del owner[last]
        case 1 if isinstance(owner, dict) and path:
            owner[draw(st.sampled_from(NAMES))] = owner.pop(last)
        case _:
            owner[last] = draw(st.sampled_from(EVIL))
    lines = tree.get("lines", [])
    return "\n".join(map(json.dumps, lines if isinstance(lines, list) else [lines])).encode()


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_one_sentence_that_names_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Or is judged, where the damage changed a number only; no damage is an error of ours."""
    config = written(tmp_path, GOOD | TIMED, GOOD | LIKELY)
    (tmp_path / "found" / "skipped.jsonl").write_text(json.dumps(["b" * 40, "T(x)", "why"]) + "\n")
    whole = (tmp_path / name).read_bytes()
    before = {file for file in tmp_path.rglob("*") if file.is_file()}

    @settings(
        max_examples=int(os.environ.get("FUZZ_EXAMPLES", "25")),
        derandomize=True,
        deadline=20_000,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(damaged(whole))
    def check(content: bytes) -> None:
        (tmp_path / name).write_bytes(content)
        for command, *arguments in (("gate", "b" * 40, "c" * 40), ("export", str(tmp_path / "o"))):
            code, _, err = call(monkeypatch, capsys, command, *arguments, "--asv", str(config))
            assert code in CODES[command], err
            assert code != 2 or (err.count("\n") == 1 and str(tmp_path) in err), err
        after = {file for file in tmp_path.rglob("*") if file.is_file()} - before
        assert {file.parent for file in after} <= {tmp_path / "o"}

    check()


def test_no_name_of_a_benchmark_leads_out_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every suite has its file in FOLDER, also where the names differ only in what is replaced."""
    outside = tmp_path / "outside"
    names = [f"{outside}.time_y", "..", "a\0", "a\n", "é" * 300, "x" * 300, "toys", "Toys", "to/ys"]
    names += ["to_ys", "TO_YS-2"]
    one = ([1.0], [[1.0, 2.0] * 8])
    config = written(tmp_path, {f"{name}.track_bias": one for name in names}, {})
    out = tmp_path / "out"
    code, _, err = call(monkeypatch, capsys, "export", str(out), "--asv", str(config))
    assert code == 0, err
    tests = json.loads((out / "otava.yaml").read_text())["tests"]
    files = sorted(out.iterdir())
    assert len(files) == 1 + len(names)
    assert {file.name.casefold() for file in files} == {
        "otava.yaml", *(f"{name}.csv".casefold() for name in tests)
    }  # fmt: skip
    assert (out / "Toys.csv").exists()
    assert all(Path(test["file"]).parent == out.resolve() for test in tests.values())
    assert {path.name for path in tmp_path.iterdir()} == {"found", "asv.conf.json", "out"}


def test_columns_that_become_the_same_stay_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`a.b` and `a_b` have one name for Otava; no column is a formula."""
    benchmarks = {
        "toys.a.track_b": ([1.0], None),
        "toys.a_track_b": ([2.0], None),
        "toys.=1.track_b": ([3.0], None),
    }
    config = written(tmp_path, benchmarks, benchmarks)
    out = tmp_path / "out"
    assert call(monkeypatch, capsys, "export", str(out), "--asv", str(config))[0] == 0
    head, *lines = csv.reader((out / "toys.csv").read_text().splitlines())
    columns = json.loads((out / "otava.yaml").read_text())["tests"]["toys"]["metrics"]
    assert [*columns] == head[2:]
    assert not any(name.startswith("=") for name in head)
    assert [sorted(line[2:]) for line in lines] == [["1.0", "2.0", "3.0"]] * 2


def test_a_folder_that_cannot_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = written(tmp_path, GOOD, {})
    for out in (config, config / "x", tmp_path / ("é" * 300)):
        code, _, err = call(monkeypatch, capsys, "export", str(out), "--asv", str(config))
        assert (code, err.count("\n")) == (2, 1)
        assert "cannot be written" in err
