"""Rules of the source itself: imports, names, sizes, random draws, pinned versions."""

from __future__ import annotations

import ast
import inspect
import os
import subprocess
import sys
import tomllib
from collections.abc import Collection, Iterator
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from asv.config import Config
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import suites
from resflow_bench.lab.axes import AXES

ROOT = Path(__file__).parents[1]
MODULES = sorted(p for top in ("resflow_bench", "suites") for p in (ROOT / top).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

# Rooms, lowest first. Those on one line do not import each other.
FLOORS = (
    {"arguments", "constants", "files", "memory", "seeds", "spelling"},
    {"theory", "intervals", "threads"},
    {"jacobian", "fixed_point", "data"},
    {"layers", "logdet"},
    {"flows"},
    {"systems"},
    {"architectures"},
    {"lab"},
    {"training", "speed"},
    {"peers"},
    {"models"},
    {"advise"},
    {"analysis"},
    {"gate"},
    {"export"},
    {"report"},
    {"cli"},
    {"notebook"},
    {"__main__"},
    {"suites"},
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

# What must run with any suite, and so may name none.
ENGINE = ("lab", "speed", "analysis", "gate", "export", "report", "cli")

MAX_LINES = 450
"""Longer than this and a file has more than one subject."""

MAX_FILES = 15
"""More than this and a folder has more than one subject."""


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    """``resflow_bench.logdet`` for ``resflow_bench/logdet/__init__.py``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(path): path for path in MODULES}


def room_of(module: str) -> str | None:
    """``logdet`` for ``resflow_bench.logdet.probes``; None for ``resflow_bench`` itself."""
    top, *rest = module.split(".")
    if top == "suites":
        return "suites"
    return rest[0] if rest and not rest[0].startswith("__v") else None


def imported(tree: ast.AST, known: Collection[str]) -> Iterator[tuple[str, int]]:
    """Our own modules that a file imports, at its top, inside functions or for types alone.

    Each with its line; ``from package import name`` is the module ``name`` if there is one.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            names = [
                whole if (whole := f"{node.module}.{alias.name}") in known else str(node.module)
                for alias in node.names
            ]
        else:
            continue
        for name in dict.fromkeys(names):
            if name.split(".")[0] in ("resflow_bench", "suites"):
                yield name, node.lineno


def imported_packages(tree: ast.AST) -> Iterator[str]:
    """The top-level package of every import in a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module.split(".")[0]


def upward_imports(module: str, tree: ast.AST) -> list[str]:
    """The imports of a module that the floors forbid."""
    room = room_of(module)
    if room is None:
        return []
    return [
        f"{module}, line {line}: {room} imports {other}"
        for name, line in imported(tree, FILES)
        if (other := room_of(name)) is not None and other != room and FLOOR[other] >= FLOOR[room]
    ]


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def test_imports_go_down() -> None:
    found = [
        line for module, path in FILES.items() for line in upward_imports(module, parsed(path))
    ]
    assert not found, "\n".join(found)


def test_the_import_check_sees_an_upward_import() -> None:
    def upward(module: str, text: str) -> list[str]:
        return upward_imports(f"resflow_bench.{module}", ast.parse(text))

    assert upward("logdet.probes", "from resflow_bench.flows import ResidualFlow")
    assert upward("logdet.probes", "from resflow_bench.layers import Linear"), "a neighbour"
    assert upward("logdet.probes", "def f():\n    from resflow_bench import lab")
    assert upward("lab.sweep", "if TYPE_CHECKING:\n    import suites.bias")
    assert not upward("logdet.probes", "from resflow_bench import theory, __version__")


def test_no_files_import_each_other_in_a_circle() -> None:
    graph = {
        module: {name for name, _ in imported(parsed(path), FILES) if name in FILES} - {module}
        for module, path in FILES.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"these files import each other in a circle: {' -> '.join(error.args[1])}")


def test_the_engine_names_no_suite() -> None:
    """Nor a module of one: it runs any suite, found by its name or its folder.

    A suite that shares its name with an axis cannot be told from that axis here.
    """
    names = {*suites.NAMES, "training"} - AXES.keys()
    found = [
        f"{relative(path)}, line {node.lineno}: {node.value!r}"
        for module, path in FILES.items()
        if room_of(module) in ENGINE
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if node.value in names or node.value.startswith("suites.")
    ]
    assert not found, "\n".join(found)


# asv's history knows these classes by their names, whatever else has them.
ASV_CLASSES = {
    "".join(word.capitalize() for word in name.split("_")) for name in suites.NAMES
}  # fmt: skip


def type_names(tree: ast.Module) -> Iterator[str]:
    """The classes of a module and its capitalised aliases, without a leading underscore."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield node.name.lstrip("_")
    for node in tree.body:
        targets = (
            node.targets
            if isinstance(node, ast.Assign)
            else [node.target]
            if isinstance(node, ast.AnnAssign)
            else []
        )
        for target in targets:
            if isinstance(target, ast.Name):
                name = target.id.lstrip("_")
                if name[:1].isupper() and not name.isupper() and "_" not in name:
                    yield name


def test_a_type_name_has_one_meaning() -> None:
    where: dict[str, set[str]] = {}
    for module, path in FILES.items():
        is_face = room_of(module) == "suites" and path.name == "__init__.py"
        for name in type_names(parsed(path)):
            if not (is_face and name in ASV_CLASSES):
                where.setdefault(name, set()).add(module)
    twice = {name: sorted(modules) for name, modules in where.items() if len(modules) > 1}
    assert not twice, "\n".join(f"{name}: {', '.join(of)}" for name, of in sorted(twice.items()))


def test_a_folder_is_one_subject() -> None:
    folders = {path.parent for path in MODULES + TESTS}
    counts = {relative(folder): len(list(folder.glob("*.py"))) for folder in folders}
    large = {folder: n for folder, n in counts.items() if n > MAX_FILES}
    assert not large, large


def test_a_module_of_tests_has_a_name_of_its_own() -> None:
    """Two of one name cannot be imported side by side: pytest puts each folder on the path."""
    folders: dict[str, list[str]] = {}
    for path in TESTS:
        folders.setdefault(path.name, []).append(relative(path))
    twice = {name: paths for name, paths in folders.items() if len(paths) > 1}
    assert not twice, twice


@pytest.mark.parametrize("path", MODULES + TESTS, ids=relative)
def test_a_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text("utf-8"))), "no docstring"


@pytest.mark.parametrize("path", MODULES + TESTS, ids=relative)
def test_a_file_is_one_subject(path: Path) -> None:
    n_lines = len(path.read_text("utf-8").splitlines())
    assert n_lines <= MAX_LINES


# Draw from a generator if they are given one, else from the global state.
TORCH_DRAWS = {
    "bernoulli",
    "multinomial",
    "normal",
    "poisson",
    "rand",
    "randint",
    "randn",
    "randperm",
}
TENSOR_DRAWS = {
    *("bernoulli_", "cauchy_", "exponential_", "geometric_", "log_normal_", "normal_", "random_"),
    *("uniform_", "kaiming_normal_", "kaiming_uniform_", "orthogonal_", "trunc_normal_"),
    *("xavier_normal_", "xavier_uniform_"),
}
# Cannot be given a generator on every torch that we support.
TORCH_GLOBAL = {"manual_seed", "rand_like", "randint_like", "randn_like", "seed", "set_rng_state"}
MODULES_THAT_DRAW = {"Bilinear", "Conv1d", "Conv2d", "Conv3d", "Dropout", "Embedding", "Linear"}
NUMPY_GENERATORS = {"BitGenerator", "Generator", "PCG64", "Philox", "SeedSequence", "default_rng"}


def global_draws(tree: ast.AST) -> list[str]:
    """The calls in a module that draw from a random state, or seed one, that nobody passed in."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            if "random" in [getattr(node, "module", None), *(alias.name for alias in node.names)]:
                found.append(f"line {node.lineno}: {ast.unparse(node)}")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner, name = ast.unparse(node.func.value), node.func.attr
            given = {keyword.arg for keyword in node.keywords}
            if (
                (owner == "torch" and name in TORCH_DRAWS and "generator" not in given)
                or (name in TENSOR_DRAWS and "generator" not in given)
                or (owner.split(".")[0] == "torch" and "(" not in owner and name in TORCH_GLOBAL)
                or (owner in ("nn", "torch.nn") and name in MODULES_THAT_DRAW)
                or (owner in ("np.random", "numpy.random") and name not in NUMPY_GENERATORS)
                or (name == "default_rng" and not node.args and not given)
                or (name == "rvs" and "random_state" not in given)
            ):
                found.append(f"line {node.lineno}: {owner}.{name}")
    return found


def test_nothing_draws_from_a_global_generator() -> None:
    found = [
        f"{relative(path)}, {line}"
        for path in MODULES
        for line in global_draws(ast.parse(path.read_text("utf-8")))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "line",
    [
        "import random",
        "from numpy import random",
        "torch.manual_seed(0)",
        "torch.cuda.manual_seed(0)",
        "torch.randn(3)",
        "torch.randn_like(x)",
        "x.uniform_(0, 1)",
        "nn.init.orthogonal_(w)",
        "nn.Linear(2, 2)",
        "np.random.normal(size=3)",
        "np.random.default_rng()",
        "law.rvs(3)",
    ],
)
def test_the_draw_check_sees_a_global_draw(line: str) -> None:
    assert global_draws(ast.parse(line))


@pytest.mark.parametrize(
    "line",
    [
        "torch.Generator().manual_seed(0)",
        "generator.manual_seed(0)",
        "torch.randn(3, generator=generator)",
        "x.uniform_(0, 1, generator=generator)",
        "np.random.default_rng(seed).normal(size=3)",
        "law.rvs(3, random_state=rng)",
    ],
)
def test_the_draw_check_leaves_a_given_generator_alone(line: str) -> None:
    assert not global_draws(ast.parse(line))


@pytest.mark.parametrize("name", suites.NAMES)
def test_a_suite_has_a_time_and_a_tracked_accuracy_in_asv(name: str) -> None:
    """`asv check` says "no problems" of a suite without a benchmark, so this is asked here."""
    benchmarks = {
        attribute: cls
        for _, cls in inspect.getmembers(import_module(f"suites.{name}"), inspect.isclass)
        for attribute in dir(cls)
        if attribute.startswith(("time_", "track_", "peakmem_"))
    }
    assert any(attribute.startswith("time_") for attribute in benchmarks), sorted(benchmarks)
    assert any(attribute.startswith("track_") for attribute in benchmarks), sorted(benchmarks)
    for attribute, cls in benchmarks.items():
        # Without it asv hashes the source, and a new comment ends the history.
        assert isinstance(getattr(cls, "version", None), str), f"{cls.__name__}.{attribute}"


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    split = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in split}


def test_every_dependency_is_pinned_within_its_range() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    extras = project["project"]["optional-dependencies"].values()
    declared = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    for requirement in map(Requirement, [*declared, *(line for extra in extras for line in extra)]):
        version = pins().get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} has no pin"
        assert requirement.specifier.contains(version), f"{requirement}, but {version} is pinned"


def test_every_import_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = [lines for name, lines in project["optional-dependencies"].items() if name != "dev"]
    declared = {
        canonicalize_name(Requirement(line).name)
        for line in chain(project["dependencies"], *extras)
    }
    distributions = packages_distributions()
    undeclared = {
        f"{relative(path)} imports {name}"
        for path in MODULES
        for name in imported_packages(ast.parse(path.read_text("utf-8")))
        if name not in sys.stdlib_module_names and name not in ("resflow_bench", "suites")
        if declared.isdisjoint(canonicalize_name(d) for d in distributions.get(name, [name]))
    }
    assert not undeclared, "\n".join(sorted(undeclared))


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads in /proc")
def test_importing_the_suites_starts_no_threads_of_torch() -> None:
    """asv forks after the import, and a fork of a process with such threads waits for ever."""
    count = "len(os.listdir('/proc/self/task'))"
    lines = [
        "import os, torch",
        f"before = {count}",
        f"import {', '.join(f'suites.{name}' for name in suites.NAMES)}",
        f"assert {count} == before, {count}",
        "torch.linalg.qr(torch.randn(128, 128)); torch.randn(999, 999) @ torch.randn(999, 999)",
        f"assert {count} > before",  # else it could not be seen
    ]
    names = {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "1"}
    environment = {**os.environ, **names}
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, cwd=ROOT, env=environment)


def asv_settings(name: str) -> dict[str, Any]:
    return vars(Config.load(str(ROOT / name)))


def test_asv_measures_the_pinned_torch() -> None:
    assert asv_settings("asv.conf.json")["matrix"]["req"]["torch"] == [pins()["torch"]]


def test_asv_s_two_configurations_differ_in_where_torch_comes_from_alone() -> None:
    clean, overlay = map(asv_settings, ("asv.conf.json", "asv.overlay.conf.json"))
    differing = {name for name in clean if clean[name] != overlay[name]}
    assert clean.keys() == overlay.keys()
    assert differing == {"matrix", "install_command"}
    for settings in (clean, overlay):
        assert "--no-deps" in settings["build_command"][0]  # else torch joins each commit's wheel
