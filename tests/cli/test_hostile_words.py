"""Command lines made to harm: any word in any place is a documented exit code and one sentence."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resflow_bench.cli import main
from resflow_bench.lab.discovery import load
from suites import NAMES

SECONDS = 120
"""After which a command hangs."""

MODELS = """
import torch

x = 3


def plain(dim):
    return torch.nn.Linear(dim, dim)


def broken():
    raise KeyError("broken")


class Late(torch.nn.Module):
    def forward(self, x):
        return {}["late"]


def late():
    return torch.nn.Sequential(torch.nn.Linear(4, 4), Late())


def wrong():
    return "no module"


def steep():
    linear = torch.nn.Linear(4, 4)
    linear.weight.data.mul_(1e3)
    return linear


def lost():
    linear = torch.nn.Linear(4, 4)
    linear.weight.data[0, 0] = float("nan")
    return linear


def still():
    return torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False), torch.nn.Tanh()).apply(
        lambda m: m.weight.data.zero_() if hasattr(m, "weight") else None
    )
"""

SUITES = {
    "hollow": "",
    "raising": "raise OSError('gone')",
    "exiting": "raise SystemExit(3)",
    "wordy": "SUITE = 'bias'",
    "typed": "from resflow_bench.lab import Suite\nSUITE = Suite(1, 2, 3, 4, 5)",
    "torch": "SUITE = 1",
    "cut": "def (",
    "null": "x = 1\0",
}

OWN = ("x", "plain", "broken", "late", "wrong", "steep", "lost", "still")
NUMBERS = ["0", "-1", "1.5", "1e400", "nan", "-inf", "inf", "0x10", "1_0", "٣", "1e-320"]
WORDS = [
    *(
        "",
        "=",
        "=1",
        "a=b",
        ",",
        "..",
        "/",
        "/dev/null",
        "a" * 300,
        "é",
        "\udcff",
        "\n",
        "%s",
        "{}",
    ),
    *(
        "folder",
        "models.py",
        "rows.npy",
        "./rows.npy",
        "run.json",
        "asv.conf.json",
        ":",
        ".pt",
        ".py:x",
    ),
    *(
        "geometric(nan)",
        "poisson(1e400)",
        "geometric(",
        "binomial(2)",
        "geometric(1)",
        "poisson(0)",
    ),
    *(f"models.py:{name}" for name in ("", *OWN)),
    *("run:", "run:../../x", "run:x", "damaged.pt", "flow.pt"),
    *("os:system", "json:loads", "cuda", "meta", "mps", "cpu:7", "float16", "bfloat16", "float64"),
    *(f"suites/{name}" for name in SUITES),
    *("--help", "--nope", "-x", "--resume", "--set", "--version"),
]
VALUES = {
    "model": [
        *("init", "trained", "identity", "nilpotent", "nsf", "run:TRAINING", "flow.pt"),
        *(f"models.py:{name}" for name in OWN),
    ],
    "dim": ["1", "2", "5"],
    "lipschitz": ["0.9999", "1e-320", "1e-30", "0.9999999999999999", "1", "inf"],
    "dtype": ["float64", "bfloat16", "float16"],
    "device": ["cpu", "meta", "cuda", "auto"],
    "truncation": ["fixed", "roulette"],
    "n_terms": ["1", "200"],
    "n_probes": ["1", "30"],
    "probe": ["gaussian", "hadamard", "orthogonal"],
    "roulette": ["geometric(0.001)", "geometric(0.999)", "poisson(1e-9)", "poisson(30)"],
    "n_exact": ["0", "50"],
    "n_traced": ["0", "3"],
    "max_steps": ["1", "50"],
    "tolerance": ["0", "1e-300", "1e300"],
    "dataset": ["./rows.npy", "models.py"],
}
COMMANDS = [
    *("list", "env", "doctor", "report RUN --out page", "show RUN --suite lipschitz --format csv"),
    *("compare RUN RUN", "gate RUN RUN --format json", "export out --asv asv.conf.json"),
    *("run lipschitz --preset smoke --jobs 1 --seed 1 --set model=init dim=4 lipschitz=0.5 MORE",)
    * 4,
    "run bias --preset smoke --jobs 1 --set model=init dim=4 n_terms=2 n_probes=1 MORE",
    "run variance --preset smoke --jobs 1 --set model=init dim=4 truncation=fixed n_terms=2 MORE",
    "run inverse --preset smoke --jobs 1 --set model=init dim=4 max_steps=50 MORE",
    "run --resume RUN --jobs 1 --set MORE",
    "train moons --preset smoke --steps 2 --batch-size 8 --learning-rate 0.01 --ema 0.9",
    "train ./rows.npy --preset smoke --steps 1 --held-out 0.2 --lipschitz 0.9 --architecture mlp",
    "train moons --preset smoke --steps 1 --init run:TRAINING --device cpu --seed 0 --patience 1",
    "train --resume TRAINING --steps 3",
    "advise --model init --dim 4 --batch-size 8 --seconds 0.05 --lipschitz 0.5 --target-error 0.1",
]
CODES, GATE = {0, 1, 2}, {3, 4, 5}

pytestmark = pytest.mark.timeout(900)


class Hangs(BaseException):
    """Raised in a command that takes too long; no handler of it takes this for an error."""


def call(words: list[str]) -> tuple[int, str, str]:
    """The command in this process: its exit code, output and errors."""
    out, err = io.StringIO(), io.StringIO()

    def hang(*_: object) -> None:
        raise Hangs(words)

    before, said = signal.signal(signal.SIGALRM, hang), sys.argv
    sys.argv = ["resflow-bench", *words]
    signal.alarm(SECONDS)
    try:
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as end:
            main()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        sys.argv = said
    return int(end.value.code or 0), out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A folder with a run, a training and files of several kinds; the names of the two runs."""
    folder = tmp_path_factory.mktemp("world") / "inside"
    (folder / "folder").mkdir(parents=True)
    (folder / "models.py").write_text(MODELS)
    (folder / "damaged.pt").write_bytes(b"PK\x03\x04" + bytes(100))
    np.save(folder / "rows.npy", np.random.default_rng(0).normal(size=(60, 2)))
    for name, text in SUITES.items():
        (folder / "suites" / name).mkdir(parents=True)
        (folder / "suites" / name / "__init__.py").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        found = []
        for words in (COMMANDS[8].removesuffix("MORE"), "train moons --preset smoke --steps 2"):
            code, out, err = call(words.split())
            assert code == 0, err
            found.append(out.split("run ")[1].split(":")[0])
        (weights,) = Path("results/models").glob(f"{found[1]}.pt")
        Path("flow.pt").hardlink_to(weights)
        yield {"RUN": found[0], "TRAINING": found[1]}


@st.composite
def commands(draw: st.DrawFn) -> list[str]:
    """A command of those above with another word in a place or two."""
    words = draw(st.sampled_from(COMMANDS)).split()
    hostile = st.sampled_from([*NUMBERS, *WORDS])
    if "MORE" in words:
        words.remove("MORE")
        axes = [*VALUES.keys() & load(words[1]).axes] if words[1] in NAMES else [*VALUES]
        for axis in draw(st.lists(st.sampled_from(sorted(axes)), min_size=1, max_size=2)):
            words = [word for word in words if not word.startswith(f"{axis}=")]
            values = st.sampled_from(VALUES[axis])
            words.append(f"{axis}={draw(hostile if draw(st.integers(0, 3)) == 3 else values)}")
    if not words[-1].count("=") or draw(st.integers(0, 3)) == 3:
        place = draw(st.integers(0, len(words) - 1))
        words[place : place + draw(st.integers(0, 1))] = [draw(hostile)]
    return words


def test_any_words_are_an_exit_code_and_one_sentence(world: dict[str, str]) -> None:
    """Never 70, no traceback, no hang, no file outside the folder."""
    outside = Path.cwd().parent

    @settings(
        max_examples=int(os.environ.get("FUZZ_EXAMPLES", "60")),
        derandomize=not os.environ.get("FUZZ_EXAMPLES"),
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
    @given(commands())
    def check(words: list[str]) -> None:
        for name, run in world.items():
            words = [word.replace(name, run) for word in words]
        code, _, err = call(words)
        assert code in (CODES | GATE if words[0] == "gate" else CODES), err
        assert "Traceback" not in err
        if code == 2:
            assert sum(line.startswith("error: ") for line in err.splitlines()) == 1, err
        assert [path.name for path in outside.iterdir()] == ["inside"]

    check()
