"""The plan of a training: its settings, the presets they come from, and the steps with rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from resflow_bench.architectures import architecture_named
from resflow_bench.data import Reading
from resflow_bench.flows.saving import described
from resflow_bench.lab import Cell, Observation, Skip, Suite
from resflow_bench.lab.axes import axis_named
from resflow_bench.lab.plan import now
from resflow_bench.lab.provenance import provenance
from resflow_bench.training.recipe import Recipe, unbiased_objective
from resflow_bench.training.trainer import Training
from resflow_bench.training.weights import TrainingFiles, load_weights, weights_digest

if TYPE_CHECKING:
    from resflow_bench.data import Dataset
    from resflow_bench.flows import ResidualFlow
    from resflow_bench.lab.store import Run, Store

MAX_ROWS, MIN_STEPS = 30, 5
"""Largest number of rows of a training, and least number of steps between two rows: enough for a
curve and for an interval of each loss, few enough to read as a table."""

PRESETS = {
    "smoke": {
        "vectors": Training(40, 64, 0.05, warm_up=4, ema=0.8),
        "images": Training(20, 32, 0.02, warm_up=2, ema=0.8),
    },
    "quick": {
        "vectors": Training(800, 256, 0.05, warm_up=40, ema=0.98),
        "images": Training(400, 64, 0.02, warm_up=40, ema=0.98),
    },
    "full": {
        "vectors": Training(50_000, 500, 5e-3, warm_up=1000, ema=0.999),
        "images": Training(200_000, 64, 1e-3, warm_up=1000, ema=0.999),
    },
}
"""Settings for vectors and for images. A training takes seconds at `smoke`, about a minute on one
core at `quick`, and has a paper's scale at `full`."""

_SETTINGS = {"steps": "n_steps"} | {
    name: name for name in ("batch_size", "learning_rate", "ema", "seed", "decay_steps")
}
"""Option of the command `train` -> field of `Training`."""

_ADDED = ("init", "init_digest", "patience")
"""Fields of a plan that earlier records lack."""

N_TEST = {"smoke": 200, "quick": 1000, "full": 10_000}
"""Largest number of held-out points that a row evaluates."""


def _no_measure(*_: object) -> Iterable[Observation]:
    raise Skip("rows of `training` come from `resflow-bench train`")


TRAINING = Suite(
    name="training",
    title="Course of a training",
    question="How does the likelihood grow, and is each promised constant kept on the way?",
    axes=("dataset", "architecture", "lipschitz", "batch_size", "step", "dtype", "device"),
    presets={},
    measure=_no_measure,
)
"""The suite of a training's rows: one cell for each logged step."""


@dataclass(frozen=True)
class TrainingPlan:
    """A requested training: with the code, all that its numbers depend on.

    event: the shape of one example.
    digest: of the data; the files behind a dataset's name may change.
    preset: the source of the settings that were not requested.
    n_test: the largest number of held-out points that a row evaluates.
    reading: of the data, if they are a file of the user's own.
    init, init_digest: the weights to begin with, a file or `run:RUN`, and their digest.
    patience: number of rows without an improvement beyond noise that end the training; 0 is no end.
    """

    recipe: Recipe
    event: tuple[int, ...]
    digest: str
    preset: str
    n_test: int
    device: str = "cpu"
    reading: Reading | None = None
    init: str = ""
    init_digest: str = ""
    patience: int = 0

    @classmethod
    def requested(
        cls, data: Dataset, options: Mapping[str, Any], results: Path = Path("results")
    ) -> Self:
        """The plan of a preset for these data, with the given options in place of its settings.

        Args:
            options: as in the property `options`; a missing option, or None, is the preset's.
            results: the folder of the run that `init` may name.

        Raises:
            ValueError: a setting is outside its range, or the architecture does not accept such
                examples or these initial weights.
        """
        given = {name: value for name, value in options.items() if value is not None}
        chosen: dict[str, Any] = {"preset": "quick", "lipschitz": 0.9, "device": "cpu"} | given
        for name in ("lipschitz", "device"):
            chosen[name] = axis_named(name).parse(str(chosen[name]))
        preset, lipschitz = chosen["preset"], chosen["lipschitz"]
        kind, architecture = ("images", "multiscale") if len(data.event) > 1 else ("vectors", "mlp")
        architecture = given.get("architecture", architecture)
        changes = {field: given[option] for option, field in _SETTINGS.items() if option in given}
        settings = replace(PRESETS[preset][kind], **changes)
        warm_up = min(settings.warm_up, settings.schedule_steps // 10)
        settings = replace(settings, warm_up=warm_up)
        objective = unbiased_objective(lipschitz, data.event, per="batch")
        recipe = Recipe(architecture, data.name, lipschitz, settings, objective)
        plan = cls(
            *(recipe, data.event, data.digest, preset, N_TEST[preset], chosen["device"]),
            reading=data.reading,
            init=(init := given.get("init", "")),
            init_digest=weights_digest(init, results) if init else "",
            patience=given.get("patience", 0),
        )
        flow = plan.flow()  # what cannot be built or saved is refused before the run begins
        described(flow, {})
        if init:
            load_weights(flow, init, results)
        return plan

    @classmethod
    def recorded(cls, run: Run, options: Mapping[str, Any]) -> Self:
        """The plan in a run's `run.json`, if the given options agree with it.

        More `steps` than it was begun with prolong it: the schedule of its learning rate stays, so
        that they are taken at the rate of its end, a tenth.

        Raises:
            ValueError: the run is no training, or an option differs from the plan's; or it cannot
                be prolonged, as it stopped early or has no checkpoint.
        """
        about = run.about
        try:
            record = about["training"]
            event = tuple(record["event"])
            recipe = Recipe(
                **{name: record[name] for name in ("architecture", "dataset", "lipschitz")},
                training=Training(**record["settings"]),
                objective=unbiased_objective(record["lipschitz"], event, per="batch"),
            )
            n_test, device = record["n_test"], record["device"]
            reading = Reading(**record["reading"]) if record.get("reading") else None
            plan = cls(
                *(recipe, event, record["digest"], about["preset"], n_test, device, reading),
                **{name: record[name] for name in _ADDED if name in record},
            )
        except (KeyError, TypeError):
            raise ValueError(
                f"run `{run.name}` is no training; continue it with `resflow-bench run --resume`."
            ) from None
        if (options.get("steps") or 0) > recipe.training.n_steps:
            plan = plan._prolonged(run, options["steps"])
        for name, value in plan.options.items():
            if options.get(name) not in (None, value):
                raise ValueError(
                    f"run `{run.name}` was begun with {name}={value}; got {options[name]}. "
                    "Give --resume without it, or begin another run."
                )
        return plan

    def is_longer_than(self, run: Run) -> bool:
        """True if the run was begun with fewer steps."""
        return bool(run.about["training"]["settings"]["n_steps"] < self.recipe.training.n_steps)

    def _prolonged(self, run: Run, n_steps: int) -> Self:
        settings, about = self.recipe.training, run.about
        n_done = about.get("n_steps_done", settings.n_steps)
        if about.get("status") == "finished" and n_done < settings.n_steps:
            raise ValueError(
                f"run `{run.name}` was stopped at step {n_done} by its patience of {self.patience} "
                f"rows; begin another run from its weights with --init run:{run.name}."
            )
        if about.get("status") == "finished" and not TrainingFiles(run).checkpoint.exists():
            raise ValueError(
                f"run `{run.name}` has no checkpoint to go on from; begin another run from its "
                f"weights with --init run:{run.name}."
            )
        settings = replace(settings, n_steps=n_steps, decay_steps=settings.schedule_steps)
        return replace(self, recipe=replace(self.recipe, training=settings))

    @property
    def options(self) -> dict[str, Any]:
        """Option of the command `train` -> value; None where an option has no use."""
        recipe, reading = self.recipe, self.reading or Reading()
        settings = {name: getattr(recipe.training, field) for name, field in _SETTINGS.items()}
        settings["decay_steps"] = settings["decay_steps"] or None
        return {
            "dataset": recipe.dataset,
            "preset": self.preset,
            "architecture": recipe.architecture,
            "lipschitz": recipe.lipschitz,
            **settings,
            "device": self.device,
            "held_out": reading.held_out,
            "standardise": reading.standardise,
            "init": self.init or None,
            "patience": self.patience or None,
        }

    def record(self) -> dict[str, Any]:
        """The plan's part of `run.json`; `arguments` are of a command that trains it again."""
        recipe = self.recipe
        arguments = [
            _argument(name.replace("_", "-"), value)
            for name, value in self.options.items()
            if value is not None and name != "dataset"
        ]
        return {
            "seed": recipe.training.seed,
            "preset": self.preset,
            "suites": [TRAINING.name],
            "questions": {TRAINING.name: TRAINING.question},
            "training": {
                "dataset": recipe.dataset,
                "event": list(self.event),
                "digest": self.digest,
                "architecture": recipe.architecture,
                "lipschitz": recipe.lipschitz,
                "settings": asdict(recipe.training),
                "objective": recipe.truncation,
                "n_test": self.n_test,
                "device": self.device,
                "reading": asdict(self.reading) if self.reading else None,
                **{name: getattr(self, name) for name in _ADDED},
            },
            "arguments": ["train", recipe.dataset, *arguments],
        }

    def weights_about(self) -> dict[str, Any]:
        """The notes in the file of the weights, from which the data are found again."""
        recipe = self.recipe
        return {
            "dataset": recipe.dataset,
            "digest": self.digest,
            "reading": asdict(self.reading or Reading()),
            "architecture": recipe.architecture,
            "lipschitz": recipe.lipschitz,
        }

    def flow(self) -> ResidualFlow:
        """The flow before any training, on the CPU."""
        flow = architecture_named(self.recipe.architecture)(self.event, self.recipe.lipschitz)
        return flow.with_estimator(self.recipe.objective)

    def cell(self, step: int) -> Cell:
        settings = self.options | {"step": step, "dtype": "float32"}
        return Cell(TRAINING.name, {axis: settings[axis] for axis in TRAINING.axes})

    def is_logged(self, step: int) -> bool:
        """True at every multiple of a spacing of 1, 2 or 5 times 10^k, and at the last step.

        So too at the end of the learning rate's decay, where a prolonged training once ended.
        """
        settings = self.recipe.training
        spacing = _round_up(max(MIN_STEPS, settings.schedule_steps / MAX_ROWS))
        return step % spacing == 0 or step in (settings.n_steps, settings.schedule_steps)


def begin(course: TrainingPlan, store: Store, about: Mapping[str, Any] | None = None) -> Run:
    """A new run of the course.

    Raises:
        StoreError: if the results folder cannot be written.
    """
    times = {"start": now(), "end": None, "status": "running"}
    return store.create({**course.record(), **times, **(about or provenance())})


def _argument(option: str, value: Any) -> str:
    match value:
        case bool():
            return f"--{option}" if value else f"--no-{option}"
    return f"--{option}={value}"


def _round_up(number: float) -> int:
    """The next of 1, 2, 5, 10, 20, 50, ...; of a number of at least 1."""
    power = 10 ** math.floor(math.log10(number))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= number)
