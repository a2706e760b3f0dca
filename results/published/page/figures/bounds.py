# figure: bounds
# suite: variance
# resflow_bench: 0.1.0
# run: full-20261128-231409-4bb7
# commit: 23684d137db18df601b7d8c4b7e982ff319739f3
# preset: full
# seed: 0
# dim: 64
# dtype: float64
# device: cpu
# truncation: fixed
# n_probes: 1
import pandas as pd
import seaborn as sns
from matplotlib.lines import Line2D

AXES = {
    'panel 1': dict(
        xlabel='variance of one draw (nat²) d = 64, m = 1', xscale='log', xlim=(0.008, 2370.89),
        ylabel='', yscale='linear', yticks=[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0], yticklabels=['init, K = 0.5, N = 20, rademacher probe', 'init, K = 0.5, N = 20, gaussian probe', 'triangular, K = 0.97, N = 50, gaussian probe', 'triangular, K = 0.97, N = 50, rademacher probe', 'gaussian, K = 0.97, N = 50, rademacher probe', 'gaussian, K = 0.97, N = 50, gaussian probe', 'symmetric, K = 0.97, N = 50, rademacher probe', 'symmetric, K = 0.97, N = 50, gaussian probe', 'plus-identity, K = 0.97, N = 50, rademacher probe', 'plus-identity, K = 0.97, N = 50, gaussian probe', 'orthogonal, K = 0.97, N = 50, rademacher probe', 'orthogonal, K = 0.97, N = 50, gaussian probe', 'minus-identity, K = 0.97, N = 50, rademacher probe', 'minus-identity, K = 0.97, N = 50, gaussian probe'], ylim=(-0.6, 13.6),
    ),
}
COLORS = {
    'range': '#d7dbe0',
    'closed form': '#1f2328',
    'Avron–Toledo': '#0173b2',
    'from K alone': '#029e73',
    'printed formula, no bound': '#cc78bc',
    'measured': '#d55e00',
    'measured, at most': '#d55e00',
}

rows = pd.read_csv("bounds.csv", skiprows=12, dtype={"panel": str, "series": str})
grid = sns.FacetGrid(rows, col="panel", col_wrap=1, sharex=False, sharey=False)
for (panel, kind, _), some in rows.groupby(["panel", "kind", "group"], sort=False):
    ax, color = grid.axes_dict[panel], COLORS[some["series"].iloc[0]]
    if "mark" in kind:
        sns.scatterplot(some, x="x", y="y", color=color, ax=ax)
    if kind in ['mark', 'interval']:
        ax.hlines(some["y"], some["x_low"], some["x_high"], color=color)
for panel, ax in grid.axes_dict.items():
    ax.set(**AXES[panel])
    ax.minorticks_off()
grid.set_titles("{col_name}")
grid.add_legend({name: Line2D([], [], color=color, lw=4) for name, color in COLORS.items()})
grid.savefig("bounds-again.png")
