"""The command that trains a flow: `train`."""

from __future__ import annotations

import json
from shlex import quote
from typing import TYPE_CHECKING, Any

import click

from resflow_bench.cli import group

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from resflow_bench.data import Dataset
    from resflow_bench.lab.store import Run
    from resflow_bench.training.weights import TrainingFiles


@group.cli.command()
@click.argument("dataset", required=False)
@click.option("--preset", type=click.Choice(["smoke", "quick", "full"]),
              help="Takes seconds, a minute, or days.  [default: quick]")  # fmt: skip
@click.option("--architecture", metavar="NAME", help="mlp, shallow, wide, deep, dense, conv, "
              "multiscale, monotone, implicit, mlp-orthogonal, mlp-aol or mlp-sll; of other "
              "systems nice, realnvp, maf, nsf, glow, "
              "neural-ode, ffjord, flow-matching, ot-flow-matching or diffusion.  "
              "[default: multiscale for images, else mlp]")  # fmt: skip
@click.option("--lipschitz", type=float, help="Constant promised for each branch.  [default: 0.9]")
@click.option("--steps", type=int, help="Number of optimiser steps.")
@click.option("--decay-steps", type=click.IntRange(min=1),
              help="Steps in which the learning rate decays.  [default: --steps]")  # fmt: skip
@click.option("--batch-size", type=int, help="Examples in each step.")
@click.option("--learning-rate", type=float,
              help="Peak rate, after a warm-up; it decays to a tenth.")  # fmt: skip
@click.option("--ema", type=float, help="Decay of the moving average of the weights; 0 keeps none.")
@click.option("--seed", type=click.IntRange(min=0), help="Seed of batches and noise.  [default: 0]")
@click.option("--device", help="[default: cpu]")
@click.option("--init", metavar="FILE", help="Begin with a saved flow's weights, or run:RUN's.")
@click.option("--patience", type=click.IntRange(min=1), metavar="ROWS",
              help="Stop after so many rows without an improvement beyond noise.")  # fmt: skip
@click.option("--held-out", type=float,
              help="Share of a file's rows that are not trained on.  [default: 0.1]")  # fmt: skip
@click.option("--standardise/--no-standardise", default=None,
              help="Columns of a file to mean 0 and standard deviation 1.  [default: yes, unless "
              "images]")  # fmt: skip
@click.option("--data", type=group.folder, envvar="RESFLOW_DATA", default="data", show_default=True,
              help="Folder of the files of mnist, cifar10 and imagenet32.")  # fmt: skip
@group.results_option
@click.option("--resume", metavar="RUN",
              help="Continue a training that was interrupted, or with more --steps.")  # fmt: skip
def train(data: Path, results: Path, resume: str | None, **options: Any) -> int:
    """Train a flow on DATASET by maximum likelihood; save its log and its weights.

    DATASET is a name, or the path of a .npy, .npz, .csv or .parquet file or of a folder of images.

    An option that is not given has the preset's value. An interrupted or killed training loses at
    most a few seconds of work; --resume continues it to the same numbers.
    """
    from resflow_bench.data import DATASETS, FORMS, FROM_FOLDER, Reading, dataset_named
    from resflow_bench.lab.progress import shown
    from resflow_bench.lab.store import Store
    from resflow_bench.training.plan import TrainingPlan, begin
    from resflow_bench.training.run import train as carry_out
    from resflow_bench.training.weights import TrainingFiles

    with group.refusals(ValueError), shown("step {}/{}") as listen:
        store = Store(results)
        if resume is None:
            if (name := options["dataset"]) is None:
                raise ValueError(
                    f"name a DATASET ({', '.join(DATASETS)}, {FORMS}), or --resume RUN."
                )
            if group.is_given("data") and name not in FROM_FOLDER:
                raise ValueError(
                    f"--data is the folder of {', '.join(FROM_FOLDER)}; got {data} with {name}, "
                    "which needs no files. Leave it out."
                )
            reading = Reading(options["held_out"], options["standardise"])
            examples = dataset_named(name, data, reading)
            plan = TrainingPlan.requested(examples, options, results)
            run = begin(plan, store, group.this_machine())
        else:
            run = store.open(resume)
            plan = TrainingPlan.recorded(run, options)
            examples = dataset_named(plan.recipe.dataset, data, plan.reading or Reading())
            goes_on = run.about.get("status") != "finished" or plan.is_longer_than(run)
            if goes_on and examples.digest == plan.digest:
                group.note_changes(run)
        result = carry_out(plan, examples, run, listen)
        group.no_more_signals(result.signal)
    again = group.again_by(run, results)
    n_steps = plan.recipe.training.n_steps
    steps = f"{result.n_done} of {n_steps} steps"
    if result.signal is not None:
        files = f" --data {quote(str(data))}" * (str(data) != "data")
        click.echo(f"interrupted: {steps} are stored; train the rest with:", err=True)
        click.echo(f"  {group.resumption(run, results)}{files}", err=True)
        return group.SIGNALLED + result.signal
    if result.failure:
        click.echo(f"failed: {result.failure}", err=True)
    elif result.n_done < n_steps:
        steps += f", stopped after {plan.patience} rows without an improvement"
    click.echo(f"run {run.name}: {plan.recipe}, {steps}")
    for line in _summary(run, examples, TrainingFiles(run)):
        click.echo(line)
    click.echo(f"next: resflow-bench report {again}")
    return group.CELLS_FAILED if result.failure else 0


def _summary(run: Run, data: Dataset, files: TrainingFiles) -> Iterator[str]:
    """The last held-out log-likelihood, the files of the weights, and Python that loads them."""
    from resflow_bench.analysis.tables import wide
    from resflow_bench.analysis.words import interval
    from resflow_bench.training.plan import TRAINING

    rows = wide(run.frame(TRAINING.name))
    if "log_prob_test" in rows and len(rows := rows.dropna(subset=["log_prob_test"])):
        last = rows.iloc[-1]
        nats, bits = (interval(last, name) for name in ("log_prob_test", "bits_per_dim"))
        n, step = last["log_prob_test_n"], last["step"]
        yield f"held-out log-likelihood: {nats} nat, {bits} bits/dim"
        yield f"  of {n:,.0f} examples by the averaged weights at step {step}, 99 % intervals"
        if data.scale:
            units = f"in the units of the file add {-data.log_scale:.4g} nat"
            yield f"  of standardised columns; {units}"
    if files.weights.exists():
        yield f"weights: {files.weights}"
        yield "  from resflow_bench.flows import ResidualFlow"
        yield f"  flow = ResidualFlow.load({json.dumps(str(files.weights))})"
    if files.best.exists():
        best = rows.loc[rows["log_prob_test"].idxmax()]
        likelihood = f"{interval(best, 'log_prob_test')} nat"
        yield f"best: {likelihood} at step {best['step']}, weights: {files.best}"
