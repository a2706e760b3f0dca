# figure: lipschitz
# suite: lipschitz
# resflow_bench: 0.1.0
# run: full-20261128-222223-39ec, full-20261128-222623-2f64
# commit: 23684d137db18df601b7d8c4b7e982ff319739f3
# preset: full
# seed: 0
# hardware: AMD EPYC
# dim: 64
# device: cpu
import pandas as pd
import seaborn as sns
from matplotlib.lines import Line2D

texts = dict.fromkeys(["panel", "series", "color", "value"], str)
rows = pd.read_csv("lipschitz.csv", skiprows=10, dtype=texts)
grid = sns.FacetGrid(rows, col="panel", col_wrap=1, sharex=False, sharey=False)
for (panel, kind, _), some in rows.groupby(["panel", "kind", "group"], sort=False):
    ax, color = grid.axes_dict[panel], "#" + some["color"].iloc[0]
    if "mark" in kind:
        sns.scatterplot(some, x="x", y="y", color=color, ax=ax)
    if kind in ['interval']:
        ax.hlines(some["y"], some["x_low"], some["x_high"], color=color)
grid.set(xlabel='constant of the branch', xscale='linear', xlim=(0.0, 1.0197), ylabel='', yscale='linear', yticks=[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0, 16.0, 17.0, 18.0, 19.0], yticklabels=['trained, K = 0.3', 'trained, K = 0.5', 'trained, K = 0.7', 'trained, K = 0.9', 'trained, K = 0.97', 'trained, K = 0.99', 'conv, K = 0.9', 'multiscale, K = 0.9', 'init, K = 0.3', 'init, K = 0.5', 'init, K = 0.7', 'init, K = 0.9', 'init, K = 0.97', 'init, K = 0.99', 'minus-identity, K = 0.99', 'plus-identity, K = 0.99', 'orthogonal, K = 0.99', 'symmetric, K = 0.99', 'gaussian, K = 0.99', 'triangular, K = 0.99'], ylim=(19.6, -0.6))
for ax in grid.axes.flat:
    ax.minorticks_off()
colors = "#" + rows.groupby("series", sort=False)["color"].first()
grid.add_legend({series: Line2D([], [], color=color, lw=4) for series, color in colors.items()})
grid.set_titles("{col_name}").savefig("lipschitz-again.png")
