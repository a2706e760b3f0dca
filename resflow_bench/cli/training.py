"""The command that trains a flow: `train`."""

from __future__ import annotations

import json
from shlex import quote
from typing import TYPE_CHECKING, Any

import click

from resflow_bench.cli.group import (
    CELLS_FAILED,
    SIGNALLED,
    again_by,
    cli,
    folder,
    no_more_signals,
    note_changes,
    refusals,
    results_option,
    resumption,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from resflow_bench.lab.store import Run
    from resflow_bench.training.plan import Course


@cli.command()
@click.argument("dataset", required=False)
@click.option("--preset", type=click.Choice(["smoke", "quick", "full"]),
              help="Seconds, about a minute, a paper's scale.  [default: quick]")  # fmt: skip
@click.option("--architecture", metavar="NAME", help="mlp, dense, conv or multiscale.  "
              "[default: multiscale for images, else mlp]")  # fmt: skip
@click.option("--lipschitz", type=float, help="Promised for each branch.  [default: 0.9]")
@click.option("--steps", type=int, help="Optimiser steps.")
@click.option("--batch-size", type=int, help="Examples a step.")
@click.option("--learning-rate", type=float, help="After a warm-up; it decays to a tenth.")
@click.option("--ema", type=float, help="Decay of the weights' moving average; 0 keeps none.")
@click.option("--seed", type=click.IntRange(min=0), help="Of batches and noise.  [default: 0]")
@click.option("--device", help="[default: cpu]")
@click.option("--data", type=folder, envvar="RESFLOW_DATA", default="data", show_default=True,
              help="Where the files of mnist, cifar10 and imagenet32 lie.")  # fmt: skip
@results_option
@click.option("--resume", metavar="RUN", help="Go on with a training that was stopped.")
def train(data: Path, results: Path, resume: str | None, **asked: Any) -> int:
    """Train a flow on DATASET by maximum likelihood; keep its log and its weights.

    What is not given is the preset's. Ctrl-C, or worse, costs a few seconds; --resume goes on from
    there, to the same numbers.
    """
    from resflow_bench.data import DATASETS, dataset_named
    from resflow_bench.lab.store import Store
    from resflow_bench.lab.watch import watching
    from resflow_bench.training.plan import Course, begin
    from resflow_bench.training.run import train as carry_out

    with refusals(ValueError), watching() as listen:
        store = Store(results)
        if resume is None:
            if asked["dataset"] is None:
                raise ValueError(f"name a DATASET ({', '.join(DATASETS)}), or --resume RUN.")
            examples = dataset_named(asked["dataset"], data)
            course = Course.of(examples, asked)
            trained = begin(course, store)
        else:
            trained = store.open(resume)
            course = Course.recorded(trained, asked)
            examples = dataset_named(course.recipe.dataset, data)
            if trained.about["status"] != "finished":
                note_changes(trained)
        ending = carry_out(course, examples, trained, listen)
        no_more_signals(ending.signal)
    again = again_by(trained, results)
    steps = f"{ending.n_done} of {course.options['steps']} steps"
    if ending.signal is not None:
        files = f" --data {quote(str(data))}" * (str(data) != "data")
        click.echo(f"interrupted: {steps} are kept; the rest:", err=True)
        click.echo(f"  {resumption(trained, results)}{files}", err=True)
        return SIGNALLED + ending.signal
    if ending.failure:
        click.echo(f"failed: {ending.failure}", err=True)
    click.echo(f"run {trained.name}: {course.recipe}, {steps}")
    for line in _learnt(trained, course):
        click.echo(line)
    click.echo(f"next: resflow-bench report {again}")
    return CELLS_FAILED if ending.failure else 0


def _learnt(trained: Run, course: Course) -> Iterator[str]:
    """The last held-out log-likelihood, where the weights are, and how to load them."""
    from resflow_bench.analysis.tables import wide
    from resflow_bench.analysis.words import with_interval
    from resflow_bench.training.plan import TRAINING
    from resflow_bench.training.run import Files

    rows = wide(trained.frame(TRAINING.name))
    if "log_prob_test" in rows and len(rows := rows.dropna(subset=["log_prob_test"])):
        last = rows.iloc[-1]
        nats, bits = (
            with_interval(*(last[f"{name}{end}"] for end in ("", "_low", "_high")))
            for name in ("log_prob_test", "bits_per_dim")
        )
        n, step = last["log_prob_test_n"], last["step"]
        yield f"held-out log-likelihood: {nats} nat, {bits} bits/dim"
        yield f"  of {n:,.0f} examples by the averaged weights at step {step}, 99 % intervals"
    if (file := Files(trained).weights).exists():
        architecture, lipschitz = course.recipe.architecture, course.recipe.lipschitz
        yield f"weights: {file}"
        yield "  import torch, resflow_bench.architectures as models"
        yield f'  flow = models.architecture_named("{architecture}")({course.event}, {lipschitz})'
        quoted = json.dumps(str(file))
        yield f"  flow.load_state_dict(torch.load({quoted}, weights_only=True))"
