"""The command that says which estimator to take: `advise`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from resflow_bench.cli.group import cli, refusals, results_option

if TYPE_CHECKING:
    from pathlib import Path

    from resflow_bench.advise.advice import Advice

N_RUNNERS_UP = 5
AXES = ("model", "dim", "lipschitz", "device", "dtype")


@cli.command()
@click.option("--model", default="trained", show_default=True, help="As in `resflow-bench list`.")
@click.option("--dim", default="64", show_default=True, help="Of the data.")
@click.option("--lipschitz", default="0.9", show_default=True, help="Promised for each branch.")
@click.option("--target-error", type=float, default=0.01, show_default=True,
              help="Root mean square, nat an example, of the whole flow's log-det.")  # fmt: skip
@click.option("--device", default="cpu", show_default=True)
@click.option("--dtype", default="float32", show_default=True, help="float32 or float64.")
@click.option("--batch-size", default="256", show_default=True, help="Examples a call.")
@click.option("--seconds", type=float, default=5.0, show_default=True,
              help="For all that is measured, once the model is there.")  # fmt: skip
@click.option("--unbiased", is_flag=True, help="No bias at all, however small.")
@click.option("--gradient", type=click.Choice(["no", "yes"]), default="no", show_default=True,
              help="Whether the backward pass is timed too.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One object, for a script.")
@results_option
def advise(
    target_error: float,
    seconds: float,
    unbiased: bool,
    gradient: str,
    as_json: bool,
    results: Path,
    **asked: str,
) -> None:
    """Measure which estimator reaches an error in the least time; print the Python that makes it.

    Of a flow of your own, the same from Python: resflow_bench.advise.advice.advise(flow, x).
    """
    from resflow_bench.advise import advice
    from resflow_bench.cli.choices import parse
    from resflow_bench.lab.axes import AXES as RULES
    from resflow_bench.lab.cells import Cell
    from resflow_bench.lab.progress import Progress, shown
    from resflow_bench.lab.suite import Skip
    from resflow_bench.models.build import build_flow, build_points
    from resflow_bench.models.catalogue import MODELS

    with refusals(ValueError, Skip), shown("advise") as listen:
        given = {name: parse(RULES[name], text) for name, text in asked.items()}
        if given["dtype"] == "bfloat16":
            raise ValueError(
                "advise needs float32 or float64, which has determinants; got bfloat16."
            )
        if not (target_error > 0.0 and seconds > 0.0):
            raise ValueError(
                f"--target-error and --seconds must be positive; got {target_error:g} and "
                f"{seconds:g}. Give for example --target-error 0.01 --seconds 5."
            )
        cell = Cell("advise", {name: given[name] for name in AXES})
        # Once with words: a training, if there has to be one, takes minutes.
        MODELS[cell["model"]].flow(
            cell["dim"], cell["lipschitz"], results, lambda said: listen(Progress(message=said))
        )
        flow = build_flow(cell, results).requires_grad_(gradient == "yes")
        x = build_points(cell, int(given["batch_size"]))
        found = advice.advise(
            *(flow, x, target_error, seconds, unbiased, gradient == "yes"),
            lambda doing, left: listen(Progress(seconds_left=left, message=doing)),
        )
    code = f"{_problem(cell, results, len(x), gradient == 'yes')}\n{found.code}"
    asked |= {"target_error": target_error, "unbiased": unbiased, "gradient": gradient}  # type: ignore[dict-item]
    click.echo(_object(found, asked, code) if as_json else _text(found, str(cell), code), nl=False)


def _problem(cell: Any, results: Path, n: int, gradient: bool) -> str:
    """Python that makes `flow` and `x`."""
    axes = ", ".join(f"{json.dumps(name)}: {json.dumps(cell[name])}" for name in AXES)
    return "\n".join(
        [
            "from pathlib import Path",
            "from resflow_bench.models.build import build_flow, build_points",
            "from resflow_bench.lab.cells import Cell",
            "",
            f'cell = Cell("advise", {{{axes}}})',
            f"flow = build_flow(cell, Path({json.dumps(str(results))}))"
            + ".requires_grad_()" * gradient,
            f"x = build_points(cell, {n})",
            "",
        ]
    )


def _text(found: Advice, what: str, code: str) -> str:
    """A table, a sentence, and the code."""
    table = found.table.head(1 + N_RUNNERS_UP)
    names = {name: name.replace("_", " ") for name in table.columns}
    best = found.best
    average = f", the mean of {best.n_draws} draws" if best.n_draws > 1 else ""
    expected = (
        f"expected: root mean square error {best.error_expected:.2g} nat of {found.target_error:g} "
        f"asked, variance {best.variance / best.n_draws:.2g} nat^2, "
        f"{best.seconds_to_target:.2g} s an example"
    )
    lines = [
        table.rename(columns=names).to_string(index=False, float_format="{:.3g}".format),
        *(f"not tried: {why}" for why in found.left_out),
        "",
        f"{what}: take {best.name}{average}",
        expected,
        "",
        code,
    ]
    return "\n".join(lines)


def _object(found: Advice, asked: dict[str, Any], code: str) -> str:
    rows = found.table.to_dict(orient="records")
    whole = {
        **{"asked": asked, "best": rows[0], "error_expected": found.best.error_expected},
        **{"ways": rows, "left_out": list(found.left_out), "code": code},
    }
    return json.dumps(whole, indent=1, allow_nan=False) + "\n"
