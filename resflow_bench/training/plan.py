"""What a training is: its settings, the presets that they come from, and which steps have rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from resflow_bench.architectures import architecture_named
from resflow_bench.lab.axes import axis_named
from resflow_bench.lab.cells import Cell
from resflow_bench.lab.observe import Observation
from resflow_bench.lab.plan import now
from resflow_bench.lab.provenance import provenance
from resflow_bench.lab.suite import Skip, Suite
from resflow_bench.speed.doctor import findings
from resflow_bench.training.recipe import Recipe, finite_moments_estimator
from resflow_bench.training.trainer import Training

if TYPE_CHECKING:
    from resflow_bench.data import Dataset
    from resflow_bench.flows import ResidualFlow
    from resflow_bench.lab.store import Run, Store

MAX_ROWS, MIN_STEPS = 30, 5
"""Of one training, and between two rows: enough for a curve and for an interval of each loss, few
enough to read as a table."""

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
"""Settings for vectors and for images: seconds, about a minute on one core, a paper's scale."""

_SETTINGS = {
    "steps": "n_steps",
    "batch_size": "batch_size",
    "learning_rate": "learning_rate",
    "ema": "ema",
    "seed": "seed",
}
"""Options of the command to fields of `Training`."""

N_TEST = {"smoke": 200, "quick": 1000, "full": 10_000}
"""Held-out points of each row, at most."""


def _no_measure(*_: object) -> Iterable[Observation]:
    """A training's rows come one after the other, not each alone."""
    raise Skip("rows of `training` come from `resflow-bench train`")


TRAINING = Suite(
    name="training",
    question="How does the likelihood grow, and is each promised constant kept on the way?",
    axes=("dataset", "architecture", "lipschitz", "batch_size", "step", "dtype", "device"),
    presets={},
    measure=_no_measure,
)
"""How the rows look in the store: one cell for each logged step."""


@dataclass(frozen=True)
class Course:
    """A training as it was asked for: with the code, all that its numbers depend on.

    recipe: what is trained, on what, and how.
    event: the shape of one example.
    digest: of the data, which may be other files at another time.
    preset: where the settings began.
    n_test: held-out points of each row, at most.
    device: a torch device.
    """

    recipe: Recipe
    event: tuple[int, ...]
    digest: str
    preset: str
    n_test: int
    device: str = "cpu"

    @classmethod
    def of(cls, data: Dataset, asked: Mapping[str, Any]) -> Self:
        """A preset's course for these data, with what was `asked` in place of its settings.

        Args:
            data: what is trained on.
            asked: of the names in `options`; None, or left out, is the preset's.

        Raises:
            ValueError: a setting outside its range, or an architecture that is not for such data.
        """
        kind = "images" if len(data.event) > 1 else "vectors"
        usual = {
            "preset": "quick",
            "architecture": "multiscale" if kind == "images" else "mlp",
            "lipschitz": 0.9,
            "device": "cpu",
        }
        told = usual | {name: value for name, value in asked.items() if value is not None}
        for name in ("lipschitz", "device"):
            axis_named(name).parse(str(told[name]))
        settings = PRESETS[told["preset"]][kind]
        changed = {name: told[option] for option, name in _SETTINGS.items() if option in told}
        settings = replace(settings, **changed)
        settings = replace(settings, warm_up=min(settings.warm_up, settings.n_steps // 10))
        objective = finite_moments_estimator(told["lipschitz"], per="batch")
        recipe = Recipe(told["architecture"], data.name, told["lipschitz"], settings, objective)
        n_test = N_TEST[told["preset"]]
        course = cls(recipe, data.event, data.digest, told["preset"], n_test, told["device"])
        course.flow()  # what cannot be made is refused before a run begins
        return course

    @classmethod
    def recorded(cls, run: Run, asked: Mapping[str, Any]) -> Self:
        """The course that a run remembers, if what is `asked` (see `of`) is the same.

        Raises:
            ValueError: if it remembers none, or another.
        """
        about = run.about
        try:
            told = about["training"]
            names = ("architecture", "dataset", "lipschitz")
            recipe = Recipe(
                **{n: told[n] for n in names},
                training=Training(**told["settings"]),
                objective=finite_moments_estimator(told["lipschitz"], per="batch"),
            )
            event, n_test, device = tuple(told["event"]), told["n_test"], told["device"]
            course = cls(recipe, event, told["digest"], about["preset"], n_test, device)
        except (KeyError, TypeError):
            raise ValueError(
                f"run `{run.name}` is no training; go on with `resflow-bench run --resume`."
            ) from None
        for name, value in course.options.items():
            if asked.get(name) not in (None, value):
                raise ValueError(
                    f"run `{run.name}` was begun with {name}={value}; got {asked[name]}. "
                    "Give --resume without it, or begin another run."
                )
        return course

    @property
    def options(self) -> dict[str, Any]:
        """What a user can ask, by the names of the command's options."""
        recipe = self.recipe
        settings = {name: getattr(recipe.training, field) for name, field in _SETTINGS.items()}
        return {
            "dataset": recipe.dataset,
            "preset": self.preset,
            "architecture": recipe.architecture,
            "lipschitz": recipe.lipschitz,
            **settings,
            "device": self.device,
        }

    def record(self) -> dict[str, Any]:
        """Its part of `run.json`; `arguments` are those of a command that trains it again."""
        recipe = self.recipe
        given = {name.replace("_", "-"): value for name, value in self.options.items()}
        name = given.pop("dataset")
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
                "objective": repr(recipe.objective.truncation),
                "n_test": self.n_test,
                "device": self.device,
            },
            "arguments": ["train", name, *(f"--{n}={value}" for n, value in given.items())],
        }

    def flow(self) -> ResidualFlow:
        """The flow before any training, on the CPU."""
        flow = architecture_named(self.recipe.architecture)(self.event, self.recipe.lipschitz)
        return flow.with_estimator(self.recipe.objective)

    def cell(self, step: int) -> Cell:
        """The cell of a step."""
        axes: dict[str, Any] = {
            "dataset": self.recipe.dataset,
            "architecture": self.recipe.architecture,
            "lipschitz": self.recipe.lipschitz,
            "batch_size": self.recipe.training.batch_size,
            "step": step,
            "dtype": "float32",
            "device": self.device,
        }
        return Cell(TRAINING.name, axes)

    def is_logged(self, step: int) -> bool:
        """Whether a step has a row: every 1, 2 or 5 times 10^k-th, and the last."""
        n_steps = self.recipe.training.n_steps
        return step % _round_up(max(MIN_STEPS, n_steps / MAX_ROWS)) == 0 or step == n_steps


def begin(course: Course, store: Store) -> Run:
    """A new run of the course.

    Raises:
        StoreError: if the results folder cannot be written.
    """
    times = {"start": now(), "end": None, "status": "running"}
    about = provenance()
    return store.create({**course.record(), **times, **about, "doctor": findings(about)})


def _round_up(number: float) -> int:
    """The next of 1, 2, 5, 10, 20, 50, ...; of a number of at least 1."""
    power = 10 ** math.floor(math.log10(number))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= number)
