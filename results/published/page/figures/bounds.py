# figure: bounds
# suite: variance
# resflow_bench: 0.1.0
# run: full-20261128-231409-4bb7, full-20261129-053501-5172
# commit: 23684d137db18df601b7d8c4b7e982ff319739f3, 6347301bb25e03ad454f1e63e081223e4128e622
# preset: full
# seed: 0
# hardware: AMD EPYC, Intel(R) Xeon(R) Processor
# dim: 64
# dtype: float64
# device: cpu
# n_probes: 1
import pandas as pd
import seaborn as sns
from matplotlib.lines import Line2D

texts = dict.fromkeys(["panel", "series", "color", "value"], str)
rows = pd.read_csv("bounds.csv", skiprows=12, dtype=texts)
grid = sns.FacetGrid(rows, col="panel", col_wrap=1, sharex=False, sharey=False)
for (panel, kind, _), some in rows.groupby(["panel", "kind", "group"], sort=False):
    ax, color = grid.axes_dict[panel], "#" + some["color"].iloc[0]
    if "mark" in kind:
        sns.scatterplot(some, x="x", y="y", color=color, ax=ax)
    if kind in ['mark', 'interval']:
        ax.hlines(some["y"], some["x_low"], some["x_high"], color=color)
grid.set(xlabel='variance of one draw (nat²) d = 64, m = 1', xscale='log', xlim=(0.008, 2370.89), ylabel='', yscale='linear', yticks=[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0], yticklabels=['init, K = 0.5, N = 20, rademacher probe', 'init, K = 0.5, N = 20, gaussian probe', 'triangular, K = 0.97, N = 50, gaussian probe', 'triangular, K = 0.97, N = 50, rademacher probe', 'gaussian, K = 0.97, N = 50, rademacher probe', 'gaussian, K = 0.97, N = 50, gaussian probe', 'symmetric, K = 0.97, N = 50, rademacher probe', 'symmetric, K = 0.97, N = 50, gaussian probe', 'plus-identity, K = 0.97, N = 50, rademacher probe', 'plus-identity, K = 0.97, N = 50, gaussian probe', 'orthogonal, K = 0.97, N = 50, rademacher probe', 'orthogonal, K = 0.97, N = 50, gaussian probe', 'minus-identity, K = 0.97, N = 50, rademacher probe', 'minus-identity, K = 0.97, N = 50, gaussian probe'], ylim=(-0.6, 13.6))
for ax in grid.axes.flat:
    ax.minorticks_off()
colors = "#" + rows.groupby("series", sort=False)["color"].first()
grid.add_legend({series: Line2D([], [], color=color, lw=4) for series, color in colors.items()})
grid.set_titles("{col_name}").savefig("bounds-again.png")
