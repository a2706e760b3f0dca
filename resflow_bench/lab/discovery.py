"""Suites found by name, among those of this project, or by path, in a folder of the user's own."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from resflow_bench.lab.suite import Suite
from resflow_bench.spelling import suggestion

_PACKAGE = "suites"  # imported when a run starts, not above: the engine knows no suite


def names() -> tuple[str, ...]:
    """The names of the suites that a run can measure."""
    return _ours().NAMES


def page_order() -> tuple[str, ...]:
    """The names of all suites that have a section on the page, in its order."""
    return _ours().PAGE


def _ours() -> ModuleType:
    """The suites of this project: a clone has them beside this package, an installation in it.

    They are never sought on Python's path, where a folder of the user's may have their name.
    """
    inside, beside = (top / _PACKAGE / "__init__.py" for top in Path(__file__).parents[1:3])
    ours = sys.modules.get(_PACKAGE) or _imported(inside if inside.exists() else beside)
    if not hasattr(ours, "PAGE"):
        raise ValueError(f"{ours!r} has the name of the suites of this project; rename it.")
    return ours


def _imported(file: Path) -> ModuleType:
    """The package of an `__init__.py`, imported under the name of its folder."""
    name = file.parent.name
    spec = spec_from_file_location(name, file, submodule_search_locations=[str(file.parent)])
    assert spec is not None  # the file is there
    assert spec.loader is not None
    module = sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def canonical(reference: str) -> str:
    """A suite's name as it is, or the absolute path of a folder, however it was written."""
    is_folder = reference not in (*names(), *page_order()) and Path(reference).is_dir()
    return str(Path(reference).resolve()) if is_folder else reference


def load(reference: str) -> Suite:
    """The suite of that name, or in that folder; its modules are imported only now.

    Raises:
        ValueError: no suite has that name, or the folder holds none, or one that cannot be
            imported or whose name is taken.
    """
    if reference in (*names(), *page_order()):
        return _ours().load(reference)
    if not Path(reference).is_dir():
        raise ValueError(
            f"no suite is called `{reference}`, nor a folder; the suites are {', '.join(names())}."
            + suggestion(reference, names())
        )
    return _in_folder(Path(canonical(reference)))


@cache
def _in_folder(folder: Path) -> Suite:
    """The `SUITE` of a package outside this project, imported under the folder's own name."""
    file, name = folder / "__init__.py", folder.name
    if not file.exists() or not name.isidentifier():
        raise ValueError(
            f"folder `{folder}` holds no suite: it needs a name that Python can import and an "
            "`__init__.py` with a `SUITE`."
        )
    # Under `python -m` the current folder is on Python's path, so that a suite in it finds itself.
    found = None if name in sys.modules else find_spec(name)
    if name in sys.modules or (found is not None and found.origin != str(file)):
        raise ValueError(f"folder `{folder}` has the name of another Python module; rename it.")
    try:
        return replace(_checked(_imported(file).SUITE), reference=str(folder))
    except (Exception, SystemExit) as error:  # the user's code, which may raise anything
        for loaded in [m for m in sys.modules if m == name or m.startswith(f"{name}.")]:
            del sys.modules[loaded]
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"the suite in `{folder}` cannot be loaded: {why}") from error


def _checked(suite: object) -> Suite:
    if not isinstance(suite, Suite):
        raise TypeError(f"SUITE must be a `resflow_bench.lab.suite.Suite`; got {suite!r}")
    if suite.name in (*names(), *page_order()):
        raise ValueError(f"SUITE has the name of a suite of this project, {suite.name}; rename it")
    return suite
