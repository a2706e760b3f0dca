"""Learning curves: the likelihood, and the constants that were promised, step by step."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resflow_bench.analysis.tables import label, varying
from resflow_bench.report import style
from resflow_bench.report.picture import Picture
from suites.marks import drawn_from, entry

TRAINING = ["dataset", "architecture", "lipschitz", "batch_size", "device"]
"""The axes that the rows of one curve share."""

SHARE = 0.15
"""The share of the rows, from the first on, that a panel may leave below its edge: shown whole, the
first steps would flatten all that follows."""


@drawn_from("loss", "log_prob_test")
def likelihood(cells: pd.DataFrame, columns: int) -> Figure:
    """Log-likelihood of the batches and of held-out points over the steps, a panel a training."""
    figure, panels = _panels(cells, columns)
    for ax, here in panels:
        steps = here["step"].astype(float)
        batches, low, high = -here["loss"], -here["loss_high"], -here["loss_low"]
        name = "training batches"
        ax.fill_between(steps, low, high, color=style.BLUE, alpha=0.15, lw=0, label=name)
        ax.plot(steps, batches, color=style.BLUE, lw=1.2, label=name)
        held_out, low, high = (here[f"log_prob_test{end}"] for end in ("", "_low", "_high"))
        name = "held out"
        ax.fill_between(steps, low, high, color=style.ACCENT, alpha=0.18, lw=0, label=name)
        ax.plot(steps, held_out, color=style.ACCENT, lw=1.8, marker="o", ms=3, label=name)
        shown = np.concatenate([batches, held_out, low])
        bottom, top = np.quantile(shown, SHARE), max(batches.max(), high.max())
        if bottom - shown.min() > top - bottom:
            ax.set_ylim(bottom - 0.25 * (top - bottom), top + 0.1 * (top - bottom))
    style.label_outer([ax for ax, _ in panels], columns, "log p (nat)")
    handles = [
        entry("held out, averaged weights", style.ACCENT, lw=1.8, marker="o", ms=3),
        entry("training batches", style.BLUE, lw=1.2),
    ]
    style.add_legend(figure, handles)
    return figure


@drawn_from("lipschitz_certified", "lipschitz_excess")
def promises(cells: pd.DataFrame, columns: int) -> Figure:
    """The worst block's certified constant over the steps, before and after each update."""
    figure, panels = _panels(cells, columns)
    for ax, here in panels:
        steps, promised = here["step"].astype(float), here["lipschitz"].iloc[0]
        certified = 100 * here["lipschitz_certified"] / promised
        excess = 100 * here["lipschitz_excess"]
        ax.axhline(100, color=style.INK, lw=1.1, ls=style.DASHES, label="promised")
        for name, percent, look in (
            ("before the update", excess, {"color": style.ACCENT, "lw": 1.2, "marker": "s"}),
            ("certified", certified, {"color": style.BLUE, "lw": 1.8, "marker": "o"}),
        ):
            ax.plot(steps, percent, **look, ms=3, label=name)
        # The promise is in the middle; blocks begin far below it.
        reach = style.largest(excess - 100, 100 - certified.median(), least=0.1)
        ax.set_ylim(100 - 1.2 * reach, 100 + 1.2 * reach)
    style.label_outer([ax for ax, _ in panels], columns, "% of the promised K")
    handles = [
        entry("promised", style.INK, lw=1.1, ls=style.DASHES),
        entry("certified", style.BLUE, lw=1.8, marker="o", ms=3),
        entry("before the update", style.ACCENT, lw=1.2, marker="s", ms=3),
    ]
    style.add_legend(figure, handles)
    return figure


def _panels(cells: pd.DataFrame, columns: int) -> tuple[Figure, list[tuple[Axes, pd.DataFrame]]]:
    """A panel for each training, titled by the axes that differ, with its rows by step."""
    shown = list(dict.fromkeys(["dataset", "architecture", "lipschitz", *varying(cells, TRAINING)]))
    groups = [here.sort_values("step") for _, here in cells.groupby(TRAINING, sort=False)]
    groups = groups[: style.MAX_PANELS]
    figure, panels = style.make_panels(len(groups), columns)
    for ax, here in zip(panels, groups, strict=True):
        ax.set(title=label(here.iloc[0], shown), xlabel="step")
    return figure, list(zip(panels, groups, strict=True))


PICTURES = (
    Picture(
        "likelihood",
        likelihood,
        "Higher is better. Training batches: the objective, an unbiased estimate of log p with "
        "the current weights, as the mean over the steps since the last row. Held out: points "
        "that the training never sees, with the moving average of the weights, which is saved at "
        "the end. Bands are 99 % intervals. Held-out points that fall behind the batches show "
        "overfitting; the first steps may lie below the edge of the panel.",
    ),
    Picture(
        "promises",
        promises,
        "The constant of the worst block, certified from its layers' norms, in percent of the "
        "promised constant: after the update of each step, where it must not pass 100, and before "
        "that update, as the optimiser's step left it. The excess before the update accumulates "
        "in a training that updates its norms less often. Blocks that have not grown to the "
        "promised constant yet lie far under the line or below the edge of the panel.",
    ),
)
