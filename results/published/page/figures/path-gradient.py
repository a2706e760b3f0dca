# figure: path-gradient
# suite: path_gradient
# resflow_bench: 0.1.0
# run: full-20261128-233910-cd41
# commit: 23684d137db18df601b7d8c4b7e982ff319739f3
# preset: full
# seed: 0
# model: init
# dim: 64
# dtype: float64
# device: cpu
# truncation: fixed
# probe: rademacher
# n_probes: 1
# tolerance: 0.0001
import pandas as pd
import seaborn as sns
from matplotlib.lines import Line2D

AXES = {
    'K = 0.5': dict(
        xlabel='terms N', xscale='log', xticks=[1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0], xticklabels=['1', '2', '3', '5', '10', '20', '50'], xlim=(0.8, 62.5),
        ylabel='|bias| / |gradient|', yscale='log', ylim=(8e-06, 0.00180375),
    ),
    'K = 0.9': dict(
        xlabel='terms N', xscale='log', xticks=[1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0], xticklabels=['1', '2', '3', '5', '10', '20', '50'], xlim=(0.8, 62.5),
        ylabel='|bias| / |gradient|', yscale='log', ylim=(8e-05, 0.00536428),
    ),
    'K = 0.97': dict(
        xlabel='terms N', xscale='log', xticks=[1.0, 2.0], xticklabels=['1', '2'], xlim=(0.8, 2.5),
        ylabel='|bias| / |gradient|', yscale='log', ylim=(8e-05, 0.0059863),
    ),
}
COLORS = {
    'init, theory': '#de8f05',
    'init': '#de8f05',
    'init, at most': '#de8f05',
}

rows = pd.read_csv("path-gradient.csv", skiprows=15, dtype={"panel": str, "series": str})
grid = sns.FacetGrid(rows, col="panel", col_wrap=3, sharex=False, sharey=False)
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
grid.savefig("path-gradient-again.png")
