"""The suites of measured rows, loaded for their claims and figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from resflow_bench.lab import Suite
    from resflow_bench.lab.store import Run


def suites_of(runs: Sequence[Run]) -> dict[str, Suite]:
    """Name to suite, for every suite of which a run has rows, in the order of the page.

    A suite is loaded by the reference in `run.json`, its name or its folder, else by the name in
    the rows. One that cannot be loaded is left out, with a note on standard error; so is one whose
    folder lies inside a run, since no code that came with a run is executed.
    """
    from pathlib import Path

    from resflow_bench.lab.discovery import canonical, load, page_order

    names = {name: None for run in runs for name in run.suites}
    references = [reference for run in runs for reference in run.about.get("suites") or ()]
    loaded: dict[str, Suite] = {}
    refused: dict[str, str] = {}
    stored = [run.path.resolve() for run in runs]
    for reference in dict.fromkeys([*references, *names]):
        if any(map(Path(canonical(reference)).is_relative_to, stored)):
            refused[reference] = f"`{reference}` is code inside a run; move it elsewhere."
        elif reference not in loaded:
            try:
                suite = load(reference)
                loaded[suite.name] = suite
            except (ValueError, ImportError) as error:
                refused[reference] = str(error)
    if missing := [name for name in names if name not in loaded]:
        click.echo(
            f"note: the rows of {', '.join(missing)} are shown and not judged, since the suite "
            f"cannot be loaded: {next(iter(refused.values()))}",
            err=True,
        )
    order = dict.fromkeys([*page_order(), *names])
    return {name: loaded[name] for name in order if name in loaded}
