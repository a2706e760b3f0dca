"""The three sentences that a reader should take away, each with its interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from resflow_bench.analysis.tables import number, wide, with_interval
from suites.efficiency.comparison import compared, reference, seconds_to

HOW_MANY = 3
TARGET = 0.01  # nat: the standard deviation that a model comparison needs
NOTICEABLE = 0.1  # nat
NAMES = {
    "trained": "the trained flow",
    "conv": "the trained convolutional flow",
    "multiscale": "the trained multi-scale flow",
    "shallow": "the trained shallow flow",
    "patches": "the flow trained on patches",
    "init": "the untrained flow",
    "steep": "the steep flow",
    "minus-identity": "g(x) = −Kx",
    "plus-identity": "g(x) = +Kx",
}
GROWING = {"n_terms": "terms", "n_probes": "probes", "batch_size": "examples"}


def findings(frames: Mapping[str, pd.DataFrame]) -> list[str]:
    """At most three sentences, the most consequential first; fewer where a run measured less.

    In order: the bias of truncation, what it hid in a training, what an error costs at best, what
    another implementation returns, the variance of a probe, the inverse, the roulettes of infinite
    variance, the speed, how the cost grows. Each speaks of the trained flow where it was measured,
    at its largest Lipschitz constant, and of the worst linear map otherwise.
    """
    cells = {suite: wide(frame) for suite, frame in frames.items() if len(frame)}
    said = (find(cells[suite]) for suite, find in _FINDERS if suite in cells)
    return [sentence for sentence in said if sentence][:HOW_MANY]


def _bias(cells: pd.DataFrame) -> str:
    cells = _measured(cells, "bias_paired", "bias_expected", "bias_bound", "n_terms")
    if cells.empty:
        return ""
    cells = _telling(cells).sort_values("n_terms", key=lambda n: (n - 10).abs(), kind="stable")
    c = cells.iloc[0]
    n = int(c["n_terms"])
    return (
        f"Cut after {n} term{'s' * (n > 1)}, the log-det of {_name(c)} is biased by "
        f"{number(c['bias_expected'])} nat, as its Jacobian says without sampling, and by "
        f"{_interval(c, 'bias_paired')} as measured; K = {c['lipschitz']:g} alone guarantees no "
        f"better than {number(c['bias_bound'])}."
    )


def _variance(cells: pd.DataFrame) -> str:
    cells = _measured(cells, "variance", "variance_expected", "variance_bound")
    cells = cells[(cells["variance_expected"] > 0) & np.isfinite(cells["variance_expected"])]
    cells = cells[cells["truncation"] == "fixed"]  # more probes do nothing for a roulette's noise
    if cells.empty:
        return ""
    order = cells.assign(_terms=-cells["n_terms"].fillna(0).astype(float))
    c = _telling(order).sort_values(["n_probes", "_terms"], kind="stable").iloc[0]
    m = int(c["n_probes"])
    probes = float(f"{m * c['variance'] / TARGET**2:.2g}")
    who = f"{m if m > 1 else 'One'} {c['probe'].capitalize()} probe{'s' * (m > 1)}"
    return (
        f"{who} on {_name(c)} give{'s' * (m == 1)} a variance of "
        f"{_interval(c, 'variance')} nat², {100 * c['variance'] / c['variance_bound']:.0f} % of "
        f"what Avron and Toledo allow; a standard deviation of {TARGET} nat takes about "
        f"{probes:,.0f} probes."
    )


def _inverse(cells: pd.DataFrame) -> str:
    cells = _measured(cells, "inverse_error", "inverse_error_bound", "n_steps", "n_steps_bound")
    cells = cells[cells["outcome"] == 0] if "outcome" in cells else cells
    if cells.empty:
        return ""
    c = _telling(cells).sort_values(["dtype", "tolerance"], kind="stable").iloc[0]
    n = c["inverse_error_n"]
    return (
        f"The inverse of {_name(c)}, asked for {number(c['tolerance'], 1)} in {c['dtype']}, is off "
        f"by {number(c['inverse_error'])} at the worst of {n:,.0f} points; all that its residual "
        f"and K = {c['lipschitz']:g} certify, without the truth, is "
        f"[0, {number(c['inverse_error_bound'])}]. It took {c['n_steps']:,.0f} steps where "
        f"Banach's theorem asks for {c['n_steps_bound']:,.0f}."
    )


def _roulette(cells: pd.DataFrame) -> str:
    cells = _measured(cells, "variance_is_finite", "roulette", "spectral_radius")
    if cells.empty:
        return ""
    infinite = cells[cells["variance_is_finite"] == 0]
    if infinite.empty:
        return f"All {len(cells)} roulettes measured have finite variance."
    rho = infinite["spectral_radius"]
    laws = ", ".join(sorted(infinite["roulette"].unique()))
    return (
        f"{len(infinite)} of {len(cells)} roulettes measured have infinite variance ({laws}), at "
        f"spectral radii in [{number(rho.min())}, {number(rho.max())}]: the mean of "
        f"however many draws has it too."
    )


def _throughput(cells: pd.DataFrame) -> str:
    cells = _measured(cells, "examples_per_s", "operation")
    if cells.empty:
        return ""
    c = _telling(cells[cells["operation"] == cells["operation"].iloc[0]]).iloc[0]
    share = c.get("flops_fraction", math.nan)
    peak = (
        "" if math.isnan(share) else f", {100 * share:.0f} % of the rate of a matrix product there"
    )
    return (
        f"{c['operation']} of {_name(c)} runs at {_interval(c, 'examples_per_s')} examples a "
        f"second on {c['device']}{peak}."
    )


def _scaling(cells: pd.DataFrame) -> str:
    cells = _measured(cells, "overhead_s", "marginal_s", "flops_fraction", "grows", "dim", "width")
    if cells.empty:
        return ""
    c = cells[cells["width"] == cells["width"].max()].iloc[0]

    def scaled(metric: str, by: float) -> str:
        return with_interval(*(by * c[f"{metric}{end}"] for end in ("", "_low", "_high")))

    return (
        f"A log-prob at d = {c['dim']}, h = {c['width']} takes {scaled('overhead_s', 1e3)} ms and "
        f"another {scaled('marginal_s', 1e3)} ms for each of its {GROWING[c['grows']]}; at the "
        f"most of them it runs at {scaled('flops_fraction', 100)} % of the rate of a matrix "
        f"product on {c['device']}."
    )


def _training_gap(cells: pd.DataFrame) -> str:
    cells = _measured(cells, "gap", "log_prob_objective", "log_prob_exact", "n_terms", "step")
    if cells.empty:
        return ""
    cells = cells[cells["lipschitz"] == cells["lipschitz"].max()]
    c = cells.sort_values(["step", "n_terms"], ascending=[False, True], kind="stable").iloc[0]
    n = int(c["n_terms"])
    return (
        f"Trained for {c['step']:,} steps on {c['dataset']} at K = {c['lipschitz']:g} with {n} "
        f"term{'s' * (n > 1)}, a flow's objective is off by {_interval(c, 'gap')} bit/dim: it "
        f"claims a held-out log-likelihood of {number(c['log_prob_objective'])}, and has "
        f"{number(c['log_prob_exact'])}."
    )


def _efficiency(cells: pd.DataFrame) -> str:
    flows = [some for _, some in compared(cells).groupby(["dim", "model"])]
    flows = [some for some in flows if reference(some) is not None]
    if not flows:
        return ""
    cells = _telling(pd.concat(flows))
    cells = cells[cells["dim"] == cells["dim"].iloc[0]]
    seconds, usual = seconds_to(cells, np.asarray([TARGET]))[:, 0], reference(cells)
    if usual is None or not np.isfinite(seconds).any():
        return ""
    best = cells.iloc[int(seconds.argmin())]
    rate = seconds.min() / best["relative_time"]  # seconds to the target, per unit of ratio
    ends = (1e3 * rate * best[f"relative_time{end}"] for end in ("", "_low", "_high"))
    spread = usual["spread"] if usual["finite"] else usual["variance_low"]
    needed = usual["seconds"] * spread / (TARGET**2 - best["floor"] ** 2)
    times = float(f"{needed / seconds.min():.2g}")
    infinite = "" if usual["finite"] else ", of infinite variance there,"
    return (
        f"A log-det of {_name(best)} to {TARGET} nat takes {with_interval(*ends)} ms an example by "
        f"the candidate “{best['name']}”; averaging the draw that {_whose(usual)}{infinite} takes "
        f"{'' if usual['finite'] else 'at least '}{times:,.0f} times as long."
    )


def _whose(usual: pd.Series) -> str:
    if usual["implementation"] == "ours":
        return "the public implementations train by, in our code"
    return f"{usual['name'].split(',')[0]} trains by"


def _peers(cells: pd.DataFrame) -> str:
    cells = _measured(cells, "bias", "bias_expected", "implementation", "mode")
    if cells.empty:
        return ""
    cells = cells[(cells["implementation"] != "ours") & (cells["mode"] != "series")]
    cells = cells[cells["bias_expected"].abs() > NOTICEABLE]
    if cells.empty:
        return ""
    c = _telling(cells).sort_values("bias_expected", key=np.abs, ascending=False).iloc[0]
    return (
        f"What {c['implementation']} returns as the log-det of {_name(c)} in its mode "
        f"“{c['mode']}” is another quantity: by the formula in its source it is off by "
        f"{number(c['bias_expected'])} nat, and in the draws by {number(c['bias'])}."
    )


_FINDERS: tuple[tuple[str, Callable[[pd.DataFrame], str]], ...] = (
    ("bias", _bias),
    ("training_gap", _training_gap),
    ("efficiency", _efficiency),
    ("peers", _peers),
    ("variance", _variance),
    ("inverse", _inverse),
    ("variance", _roulette),
    ("throughput", _throughput),
    ("scaling", _scaling),
)


def _measured(cells: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """The cells that have all of these; none if a column is not there at all."""
    if not set(columns) <= set(cells):
        return cells.head(0)
    return cells[cells["status"] == "ok"].dropna(subset=list(columns))


def _telling(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells of the model that says most, at its largest Lipschitz constant."""
    names = list(dict.fromkeys(["trained", "init", "minus-identity", *cells["model"]]))
    model = next(name for name in names if (cells["model"] == name).any())
    cells = cells[cells["model"] == model]
    largest = cells["lipschitz"].max()
    return cells[cells["lipschitz"] == largest] if not pd.isna(largest) else cells


def _name(cell: pd.Series) -> str:
    return NAMES.get(cell["model"], f"the {cell['model']} map")


def _interval(cell: pd.Series, metric: str) -> str:
    return with_interval(cell[metric], cell[f"{metric}_low"], cell[f"{metric}_high"])
