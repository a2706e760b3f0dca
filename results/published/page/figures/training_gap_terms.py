# figure: training_gap_terms
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
    'K = 0.7, step 200': dict(
        xlabel='terms N', xscale='log', xticks=[1.0, 5.0], xticklabels=['1', '5'], xlim=(0.8, 6.25),
        ylabel='|objective − exact| (bit/dim)', yscale='log', ylim=(8e-07, 9.21874),
    ),
    'K = 0.97, step 200': dict(
        xlabel='terms N', xscale='log', xticks=[1.0, 5.0], xticklabels=['1', '5'], xlim=(0.8, 6.25),
        ylabel='|objective − exact| (bit/dim)', yscale='log', ylim=(8e-06, 46.3991),
    ),
}
COLORS = {
    'bound from K': '#1f2328',
    'expected': '#d55e00',
    'overstates': '#d55e00',
}

rows = pd.read_csv("training_gap_terms.csv", skiprows=13, dtype={"panel": str, "series": str})
grid = sns.FacetGrid(rows, col="panel", col_wrap=2, sharex=False, sharey=False)
for (panel, kind, _), some in rows.groupby(["panel", "kind", "group"], sort=False):
    ax, color = grid.axes_dict[panel], COLORS[some["series"].iloc[0]]
    if "line" in kind:
        sns.lineplot(some, x="x", y="y", color=color, estimator=None, sort=False, ax=ax)
    if "mark" in kind:
        sns.scatterplot(some, x="x", y="y", color=color, ax=ax)
    if kind in ['mark']:
        ax.vlines(some["x"], some["y_low"], some["y_high"], color=color)
for panel, ax in grid.axes_dict.items():
    ax.set(**AXES[panel])
    ax.minorticks_off()
grid.set_titles("{col_name}")
grid.add_legend({name: Line2D([], [], color=color, lw=4) for name, color in COLORS.items()})
grid.savefig("training_gap_terms-again.png")
