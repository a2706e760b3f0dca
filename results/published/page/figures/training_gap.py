# figure: training_gap
# suite: training_gap
# resflow_bench: 0.1.0
# run: quick-20261128-234608-f545
# commit: 23684d137db18df601b7d8c4b7e982ff319739f3
# preset: quick
# seed: 0
# dataset: digits-logit
# architecture: mlp
# probe: rademacher
# n_probes: 1
# dtype: float64
# device: cpu
import pandas as pd
import seaborn as sns
from matplotlib.lines import Line2D

AXES = {
    'K = 0.7': dict(
        xlabel='optimiser steps', xscale='log', xticks=[100.0, 200.0], xticklabels=['100', '200'], xlim=(80.0, 250.0),
        ylabel='held-out log-likelihood (bit/dim)', yscale='linear', ylim=(-1.38675, -1.24858),
    ),
    'K = 0.97': dict(
        xlabel='optimiser steps', xscale='log', xticks=[100.0, 200.0], xticklabels=['100', '200'], xlim=(80.0, 250.0),
        ylabel='held-out log-likelihood (bit/dim)', yscale='linear', ylim=(-1.37113, -1.16569),
    ),
}
COLORS = {
    'N = 1, gap': '#21908d',
    'N = 5, gap': '#3b518b',
    'roulette, geometric(0.3), gap': '#d55e00',
    'N = 1, objective claims': '#21908d',
    'N = 1, exact': '#21908d',
    'N = 1, unbiased estimate': '#21908d',
    'N = 5, objective claims': '#3b518b',
    'N = 5, exact': '#3b518b',
    'N = 5, unbiased estimate': '#3b518b',
    'roulette, geometric(0.3), objective claims': '#d55e00',
    'roulette, geometric(0.3), exact': '#d55e00',
    'roulette, geometric(0.3), unbiased estimate': '#d55e00',
}

rows = pd.read_csv("training_gap.csv", skiprows=13, dtype={"panel": str, "series": str})
grid = sns.FacetGrid(rows, col="panel", col_wrap=2, sharex=False, sharey=False)
for (panel, kind, _), some in rows.groupby(["panel", "kind", "group"], sort=False):
    ax, color = grid.axes_dict[panel], COLORS[some["series"].iloc[0]]
    if "line" in kind:
        sns.lineplot(some, x="x", y="y", color=color, estimator=None, sort=False, ax=ax)
    if "mark" in kind:
        sns.scatterplot(some, x="x", y="y", color=color, ax=ax)
    if kind in ['mark']:
        ax.vlines(some["x"], some["y_low"], some["y_high"], color=color)
    if kind == "band":
        ax.fill_between(some["x"], some["y_low"], some["y_high"], color=color, alpha=0.2)
for panel, ax in grid.axes_dict.items():
    ax.set(**AXES[panel])
    ax.minorticks_off()
grid.set_titles("{col_name}")
grid.add_legend({name: Line2D([], [], color=color, lw=4) for name, color in COLORS.items()})
grid.savefig("training_gap-again.png")
