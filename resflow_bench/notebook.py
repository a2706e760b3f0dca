"""Suites from Python: a frame of rows, and its figures."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from resflow_bench.analysis.tables import wide
from resflow_bench.cli.choices import parse
from resflow_bench.lab.axes import Value, axis_named
from resflow_bench.lab.discovery import canonical, load
from resflow_bench.lab.plan import Plan, begin
from resflow_bench.lab.progress import Listener, shown
from resflow_bench.lab.store import Store
from resflow_bench.lab.sweep import sweep
from resflow_bench.models.own import digests, given, settler

N_COLUMNS = 3
"""Panels side by side in a figure of `draw`."""


def measure(
    suites: str | Iterable[str],
    *,
    preset: str = "quick",
    seed: int = 0,
    jobs: int = 1,
    results: str | Path | None = None,
    listen: Listener | None = None,
    **axes: Any,
) -> pd.DataFrame:
    """The rows of suites, one for each metric of a cell: `resflow-bench run` as a function.

    >>> import resflow_bench
    >>> from resflow_bench.flows import ResidualFlow
    >>> flow = ResidualFlow.mlp(dim=2, hidden=(8,), n_blocks=2, lipschitz=0.5)
    >>> rows = resflow_bench.measure("lipschitz", preset="smoke", model=flow)
    >>> rows.set_index("metric")["value"]["lipschitz_promised"]
    np.float64(0.5)

    Args:
        suites: names, or folders of suites of your own.
        axes: in place of the preset's, a value or several, as `--set` takes them. `model` is a
            name, or what `OwnModel` takes for a source: a flow, a module g, a function of `dim` and
            `lipschitz`; or a dictionary of them by the names that the rows shall have.
        jobs: worker processes; objects that are given as models are measured in this one.
        results: the folder where the run and trained weights are kept; None keeps neither.
        listen: receives the progress, which is otherwise printed on standard error.

    Returns:
        The columns of a run's rows; a failed or skipped cell is one row whose `message` says why.

    Warns:
        UserWarning: cells failed or were skipped.

    Raises:
        ValueError: a suite, an axis or a value that does not exist, or no cell that has them.
        KeyboardInterrupt: after Ctrl-C.
    """
    names = [suites] if isinstance(suites, str) else list(suites)
    objects = _objects(axes.get("model"))
    with ExitStack() as stack:
        stack.enter_context(given(objects))
        if objects:
            axes["model"], jobs = [*objects], 1
        if results is None:
            results = stack.enter_context(TemporaryDirectory(prefix="resflow-bench-"))
        overrides = {name: _values(name, value) for name, value in axes.items()}
        files = digests(overrides, Path(results))
        chosen = tuple(load(canonical(name)) for name in names)
        plan = Plan(chosen, preset, overrides, seed, files, settler(Path(results)))
        run = begin(plan, Store(Path(results)))
        listen = listen or stack.enter_context(shown("{}/{} cells"))
        tally = sweep(plan, run, jobs, listen)
        if tally.signal is not None:
            raise KeyboardInterrupt
        for what, lost in (("failed", tally.failed), ("were skipped", tally.skipped)):
            if lost:
                why = f"{len(lost)} of {tally.n_total} cells {what}, such as {lost[0].cell}: "
                warnings.warn(why + lost[0].message, stacklevel=2)
        frames = run.frames()
        return pd.concat([frames[suite.name] for suite in chosen], ignore_index=True)


def draw(suite: str, rows: pd.DataFrame) -> dict[str, Figure]:
    """The figures of a suite's section on the page, by name, from rows of `measure` or of a run.

    Figures for which the rows have no cells are left out.
    """
    found = load(canonical(suite))
    mine = rows[rows["suite"] == found.name]
    if not found.figures or not (mine["status"] == "ok").any():
        return {}
    mine = mine.dropna(axis="columns", how="all")
    cells = wide(mine.assign(message=mine.get("message", "")))
    figures = {
        one.name: one.draw(cells, N_COLUMNS) for one in import_module(found.figures).PICTURES
    }
    return {name: figure for name, figure in figures.items() if figure is not None}


def _objects(model: Any) -> dict[str, object]:
    """Name -> object, of models that are given as such; empty where all are names."""
    if model is None or isinstance(model, str):
        return {}
    if isinstance(model, Mapping):
        return dict(model)
    several = list(model) if isinstance(model, list) else [model]
    if isinstance(model, tuple) and all(isinstance(one, str) for one in model):
        return {}
    if all(isinstance(one, str) for one in several):
        return {}
    names = [str(getattr(one, "__name__", "flow")) for one in several]
    numbered = {n: names.count(n) > 1 for n in names}
    return {
        f"{name} {place}" if numbered[name] else name: one
        for place, (name, one) in enumerate(zip(names, several, strict=True), 1)
    }


def _values(name: str, value: Any) -> tuple[Value, ...]:
    axis = axis_named(name)
    several: Sequence[Any] = value if isinstance(value, list | tuple) else [value]
    return tuple(dict.fromkeys(parse(axis, str(one)) for one in several))
