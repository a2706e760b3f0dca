"""The command `advise`: which estimator reaches a target error in the least time."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from resflow_bench.cli.group import cli, is_given, refusals, results_option

if TYPE_CHECKING:
    from pathlib import Path

    from resflow_bench.advise import Advice
    from resflow_bench.lab import Cell

N_RUNNERS_UP = 5
AXES = ("model", "dim", "lipschitz", "device", "dtype")


@cli.command()
@click.option("--model", default="trained", show_default=True, help="See `resflow-bench list`.")
@click.option("--dim", default="64", show_default=True, help="Dimension of the data.")
@click.option("--lipschitz", default="0.9", show_default=True, help="Promised for each branch.")
@click.option(
    "--target-error",
    type=float,
    help="Root mean square error of the flow's log-det, nats.  [default: 0.01]",
)
@click.option("--target-ess", type=float, help="In its place: the share of the effective sample "
              "size that importance weights exp(error) keep, such as 0.99.")  # fmt: skip
@click.option("--device", default="cpu", show_default=True)
@click.option("--dtype", default="float32", show_default=True, help="float32 or float64.")
@click.option("--batch-size", default="256", show_default=True, help="Examples of a call.")
@click.option("--seconds", type=float, default=5.0, show_default=True,
              help="Time for the measurement, after the model is loaded or trained.")  # fmt: skip
@click.option("--unbiased", is_flag=True, help="Leave out estimators with a bias.")
@click.option("--gradient", type=click.Choice(["no", "yes"]), default="no", show_default=True,
              help="Time the backward pass too.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@results_option
def advise(
    target_error: float | None,
    target_ess: float | None,
    seconds: float,
    unbiased: bool,
    gradient: str,
    as_json: bool,
    results: Path,
    **axes: str,
) -> None:
    """Measure which estimator reaches an error in the least time; print the Python that makes it.

    For a flow of your own, call resflow_bench.advise.advise(flow, x) from Python.
    """
    from resflow_bench.advise import advise as measure
    from resflow_bench.advise import error_of
    from resflow_bench.cli.choices import parse
    from resflow_bench.lab import Cell, Skip
    from resflow_bench.lab.axes import AXES as RULES
    from resflow_bench.lab.progress import Progress, shown
    from resflow_bench.models import build_flow, build_points, model_named
    from resflow_bench.models.own import settler

    with refusals(ValueError, Skip), shown("advise") as listen:
        given = {name: parse(RULES[name], text) for name, text in axes.items()}
        if given["dtype"] == "bfloat16":
            raise ValueError(
                "advise computes determinants, which needs float32 or float64; got bfloat16. "
                "Give --dtype float32."
            )
        target_error = error_of(target_error, target_ess)
        if not (target_error > 0.0 and seconds > 0.0):
            raise ValueError(
                f"--target-error and --seconds must be positive; got {target_error:g} and "
                f"{seconds:g}. Give for example --target-error 0.01 --seconds 5."
            )
        cell = Cell("advise", {name: given[name] for name in AXES})
        cell = settler(results)(cell, [name for name in AXES if is_given(name)])

        def say(message: str) -> None:
            listen(Progress(message=message))

        # Built once with a listener: a model that has to be trained first takes minutes.
        model = model_named(cell["model"], results)
        model.flow(cell["dim"], cell["lipschitz"], results, say)
        flow = build_flow(cell, results).requires_grad_(gradient == "yes")
        x = build_points(cell, int(given["batch_size"]), results)
        advice = measure(flow, x, target_error, seconds, unbiased, gradient == "yes", listen)
    code = f"{_problem(cell, results, len(x), gradient == 'yes')}\n{advice.code}"
    request = {**axes, "target_error": target_error, "target_ess": target_ess}
    request |= {"unbiased": unbiased, "gradient": gradient}
    text = _json(advice, request, code) if as_json else _text(advice, str(cell), code)
    click.echo(text, nl=False)


def _problem(cell: Cell, results: Path, n: int, gradient: bool) -> str:
    """Python that makes `flow` and `x`."""
    # Python has no word for infinity, the constant of a flow without a promise.
    axes = json.dumps({name: cell[name] for name in AXES}).replace("Infinity", 'float("inf")')
    return f"""\
from pathlib import Path
from resflow_bench.models.build import build_flow, build_points
from resflow_bench.lab.cells import Cell

cell = Cell("advise", {axes})
results = Path({json.dumps(str(results))})
flow = build_flow(cell, results){".requires_grad_()" * gradient}
x = build_points(cell, {n}, results)
"""


def _text(advice: Advice, cell: str, code: str) -> str:
    """The table, the choice with its expected error and cost, and the code."""
    from resflow_bench.analysis.words import terminal_width

    table = advice.table.head(1 + N_RUNNERS_UP)
    table.columns = table.columns.str.replace("_", " ")
    best, target = advice.best, advice.target_error
    average = f", the mean of {best.n_draws} draws" if best.n_draws > 1 else ""
    expected = (
        f"expected: root mean square error {best.error_expected:.2g} nat of {target:g} "
        f"requested, variance {best.variance / best.n_draws:.2g} nat^2, "
        f"{best.seconds_to_target:.2g} s an example; importance weights exp(error) keep "
        f"{100 * best.ess_expected:.4g} % of their effective sample size"
    )
    lines = [
        table.to_string(index=False, float_format="{:.3g}".format, line_width=terminal_width()),
        *(f"not tried: {why}" for why in advice.left_out),
        "",
        f"{cell}: take {best.name}{average}",
        expected,
        "",
        code,
    ]
    return "\n".join(lines)


def _json(advice: Advice, request: dict[str, Any], code: str) -> str:
    rows = advice.table.to_dict(orient="records")
    whole = {"asked": request, "best": rows[0], "error_expected": advice.best.error_expected}
    whole |= {
        "ess_expected": advice.best.ess_expected,
        "ways": rows,
        "left_out": list(advice.left_out),
        "code": code,
    }
    return json.dumps(whole, indent=1, allow_nan=False) + "\n"
