"""The plan of a run: what it measures, and the record of that in its `run.json`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from resflow_bench.lab.provenance import provenance
from resflow_bench.lab.store import WHOLE, Shard

if TYPE_CHECKING:
    from resflow_bench.lab.axes import Value
    from resflow_bench.lab.cells import Cell
    from resflow_bench.lab.store import Run, Store
    from resflow_bench.lab.suite import Suite


Settle = Callable[["Cell", Collection[str]], "Cell"]
"""(cell, axes that the user set) -> the cell with the axes that a value of another one decides."""


def _as_it_is(cell: Cell, _: Collection[str]) -> Cell:
    return cell


@dataclass(frozen=True)
class Plan:
    """Suites at a preset, the axes that the user set, and a seed. Equal plans, equal numbers.

    files: value of an axis -> digest of the file that it stands for; resuming needs the same bytes.
    settle: completes cells whose axes depend on each other.

    Raises:
        ValueError: if two suites have one name, a suite lacks the preset, no suite has an axis that
            was set, or no cell is left.
    """

    suites: tuple[Suite, ...]
    preset: str
    overrides: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)
    seed: int = 0
    files: Mapping[str, str] = field(default_factory=dict)
    settle: Settle = field(default=_as_it_is, compare=False)
    _cells: dict[str, list[Cell]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        listed = [suite.name for suite in self.suites]
        if twice := sorted({name for name in listed if listed.count(name) > 1}):
            raise ValueError(
                f"two suites are called `{twice[0]}`, and their rows could not be told apart; "
                "measure one of them, or rename it."
            )
        names = ", ".join(listed)
        for suite in self.suites:
            if self.preset not in suite.presets:
                raise ValueError(
                    f"suite `{suite.name}` has no preset `{self.preset}`; "
                    f"it has {', '.join(suite.presets)}."
                )
        for axis in self.overrides:
            if not any(axis in suite.axes for suite in self.suites):
                raise ValueError(
                    f"axis `{axis}` belongs to no suite that is asked ({names}); leave it out, or "
                    "ask one that has it (see `resflow-bench list`)."
                )
        if not any(self.cells(suite) for suite in self.suites):
            asked = " ".join(f"{a}={','.join(map(str, v))}" for a, v in self.overrides.items())
            raise ValueError(
                f"no cell of {names} at preset `{self.preset}` has {asked or 'anything'}; "
                "set fewer axes, or take another preset or suite (see `resflow-bench list`)."
            )

    def cells(self, suite: Suite) -> list[Cell]:
        """The suite's cells, each once; they are made at the first call."""
        if suite.name not in self._cells:
            cells = suite.cells(self.preset, self.overrides)
            settled = (self.settle(cell, self.overrides) for cell in cells)
            self._cells[suite.name] = list(dict.fromkeys(settled))
        return self._cells[suite.name]

    def record(self) -> dict[str, Any]:
        """The plan's part of `run.json`; `arguments` are a command that measures it again."""
        chosen = {axis: list(values) for axis, values in self.overrides.items()}
        suites = [suite.reference or suite.name for suite in self.suites]
        sets = [f"--set={axis}={','.join(map(str, values))}" for axis, values in chosen.items()]
        options = [f"--preset={self.preset}", f"--seed={self.seed}", *sets]
        return {
            "seed": self.seed,
            "preset": self.preset,
            "suites": suites,
            "questions": {suite.name: suite.question for suite in self.suites},
            "set": chosen,
            **({"files": dict(self.files)} if self.files else {}),
            "arguments": ["run", *suites, *options],
        }

    @classmethod
    def recorded(
        cls, about: Mapping[str, Any], load: Callable[[str], Suite], settle: Settle = _as_it_is
    ) -> Plan:
        """The plan in a `run.json`.

        Raises:
            ValueError: if there is none, or a suite or an axis of it does not exist any more.
        """
        try:
            suites = tuple(map(load, about["suites"]))
            overrides = {axis: tuple(values) for axis, values in about["set"].items()}
            preset, seed = str(about["preset"]), int(about["seed"])
            files = dict(about.get("files", {}))
        except (KeyError, TypeError, AttributeError):
            raise ValueError("its run.json does not say what was to be measured.") from None
        return cls(suites, preset, overrides, seed, files, settle)


def now() -> str:
    """The time in ISO 8601, UTC, such that later times are later strings."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def begin(
    plan: Plan, store: Store, about: Mapping[str, Any] | None = None, status: str = "running"
) -> Run:
    """A new run that is to measure the plan.

    Args:
        about: what `run.json` says of the code and the machine; None is `provenance()`.
        status: "planned" if no process measures it yet.

    Raises:
        StoreError: if the results folder cannot be written.
    """
    times = {"start": now(), "end": None, "status": status}
    return store.create({**plan.record(), **times, **(about or provenance())})


def go_on(run: Run, shard: Shard = WHOLE) -> list[str]:
    """Record in `run.json` that the run is resumed, and what changed since it began.

    Returns the names of what changed: `commit`, `versions`, `device` and the like.
    """
    now_known, begun = provenance(), run.about
    changed = {name: value for name, value in now_known.items() if begun.get(name) != value}
    part = {} if shard == WHOLE else {"shard": str(shard)}

    def resumed(about: dict[str, Any]) -> dict[str, Any]:
        entries = [*(about.get("resumed") or []), {"start": now(), **part, **changed}]
        return {"end": None, "status": "running", "resumed": entries}

    run.revise(resumed)
    return list(changed)


def conclude(plan: Plan, run: Run, is_interrupted: bool, others: bool) -> None:
    """Record in `run.json` that a process has ended, and with it perhaps the run.

    Processes that measure shards do not talk, so that the rows decide: a run is finished once every
    cell of the plan has some, from any process.

    Args:
        is_interrupted: whether the process leaves some of its own cells.
        others: whether other processes go on with theirs.
    """

    def ended(_: dict[str, Any]) -> dict[str, Any]:
        cells = {cell.id for suite in plan.suites for cell in plan.cells(suite)}
        if not is_interrupted and cells <= run.measured():
            return {"status": "finished", "end": now()}
        if others:
            return {"status": "running", "end": None}
        return {"status": "interrupted", "end": now()}

    run.revise(ended)
