# figure: path-gradient
# suite: path_gradient
# resflow_bench: 0.1.0
# run: full-20261128-233910-cd41, full-20261129-050422-70f6
# commit: 23684d137db18df601b7d8c4b7e982ff319739f3, bf725fdf73e7faf5a51072e82282d02b4b42d06d
# preset: full
# seed: 0
# hardware: AMD EPYC, Intel(R) Xeon(R) Processor
# model: init
# dim: 64
# dtype: float64
# device: cpu
# probe: rademacher
# n_probes: 1
import pandas as pd
import seaborn as sns
from matplotlib.lines import Line2D

texts = dict.fromkeys(["panel", "series", "color", "value"], str)
rows = pd.read_csv("path-gradient.csv", skiprows=14, dtype=texts)
grid = sns.FacetGrid(rows, col="panel", col_wrap=3, sharex=False, sharey=False)
for (panel, kind, _), some in rows.groupby(["panel", "kind", "group"], sort=False):
    ax, color = grid.axes_dict[panel], "#" + some["color"].iloc[0]
    if "line" in kind:
        sns.lineplot(some, x="x", y="y", color=color, estimator=None, sort=False, ax=ax)
    if "mark" in kind:
        sns.scatterplot(some, x="x", y="y", color=color, ax=ax)
    if kind in ['mark']:
        ax.vlines(some["x"], some["y_low"], some["y_high"], color=color)
grid.set(xlabel='terms N', xscale='log', ylabel='|bias| / |gradient|', yscale='log')
for ax, given in zip(grid.axes.flat, [
    dict(xticks=[1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0], xticklabels=['1', '2', '3', '5', '10', '20', '50'], xlim=(0.8, 62.5), ylim=(8e-06, 0.00180375)),
    dict(xticks=[1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0], xticklabels=['1', '2', '3', '5', '10', '20', '50'], xlim=(0.8, 62.5), ylim=(8e-05, 0.00536428)),
    dict(xticks=[1.0, 2.0], xticklabels=['1', '2'], xlim=(0.8, 2.5), ylim=(8e-05, 0.0059863)),
]):
    ax.set(**given)
for ax in grid.axes.flat:
    ax.minorticks_off()
colors = "#" + rows.groupby("series", sort=False)["color"].first()
grid.add_legend({series: Line2D([], [], color=color, lw=4) for series, color in colors.items()})
grid.set_titles("{col_name}").savefig("path-gradient-again.png")
