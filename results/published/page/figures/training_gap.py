# figure: training_gap
# suite: training_gap
# resflow_bench: 0.1.0
# run: full-20261129-121247-d3d9, quick-20261128-234608-f545
# commit: 48e9c4c614a7afb9f47ad6262dc48321df5d800c, 23684d137db18df601b7d8c4b7e982ff319739f3
# preset: full, quick
# seed: 0
# hardware: Intel(R) Xeon(R) Processor, AMD EPYC
# architecture: mlp
# probe: rademacher
# n_probes: 1
# dtype: float64
# device: cpu
import pandas as pd
import seaborn as sns
from matplotlib.lines import Line2D

texts = dict.fromkeys(["panel", "series", "color", "value"], str)
rows = pd.read_csv("training_gap.csv", skiprows=13, dtype=texts)
grid = sns.FacetGrid(rows, col="panel", col_wrap=3, sharex=False, sharey=False)
for (panel, kind, _), some in rows.groupby(["panel", "kind", "group"], sort=False):
    ax, color = grid.axes_dict[panel], "#" + some["color"].iloc[0]
    if "mark" in kind:
        sns.scatterplot(some, x="x", y="y", color=color, ax=ax)
    if kind in ['mark', 'interval']:
        ax.vlines(some["x"], some["y_low"], some["y_high"], color=color)
grid.set(xlabel='optimiser steps', xscale='log', ylabel='held-out log-likelihood (bit/dim)', yscale='linear')
for ax, given in zip(grid.axes.flat, [
    dict(xticks=[100.0, 300.0], xticklabels=['100', '300'], xlim=(80.0, 375.0), ylim=(-2.37352, 0.108934)),
    dict(xticks=[100.0, 300.0], xticklabels=['100', '300'], xlim=(80.0, 375.0), ylim=(-2.55902, 0.1591)),
    dict(xticks=[100.0, 200.0], xticklabels=['100', '200'], xlim=(80.0, 250.0), ylim=(-1.38675, -1.24858)),
    dict(xticks=[100.0, 200.0], xticklabels=['100', '200'], xlim=(80.0, 250.0), ylim=(-1.37113, -1.16569)),
]):
    ax.set(**given)
for ax in grid.axes.flat:
    ax.minorticks_off()
colors = "#" + rows.groupby("series", sort=False)["color"].first()
grid.add_legend({series: Line2D([], [], color=color, lw=4) for series, color in colors.items()})
grid.set_titles("{col_name}").savefig("training_gap-again.png")
