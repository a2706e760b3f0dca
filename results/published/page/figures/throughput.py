# figure: throughput
# suite: throughput
# resflow_bench: 0.1.0
# run: full-20261128-215009-980d
# commit: 23684d137db18df601b7d8c4b7e982ff319739f3
# preset: full
# seed: 0
# hardware: AMD EPYC
# dim: 64
# lipschitz: 0.9
# dtype: float32
# device: cpu
# probe: rademacher
# n_probes: 1
# batch_size: 256
import pandas as pd
import seaborn as sns
from matplotlib.lines import Line2D

texts = dict.fromkeys(["panel", "series", "color", "value"], str)
rows = pd.read_csv("throughput.csv", skiprows=15, dtype=texts)
grid = sns.FacetGrid(rows, col="panel", col_wrap=3, sharex=False, sharey=False)
for (panel, kind, _), some in rows.groupby(["panel", "kind", "group"], sort=False):
    ax, color = grid.axes_dict[panel], "#" + some["color"].iloc[0]
    if kind == "bar":
        ax.barh(some["y"], some["x"] - some["x_base"], 0.3, some["x_base"], color=color)
    if kind in ['bar']:
        ax.hlines(some["y"], some["x_low"], some["x_high"], color=color)
grid.set(xlabel='examples / s', xscale='linear', ylabel='', yscale='linear', yticks=[], yticklabels=[], ylim=(7.3, -0.85))
for ax, given in zip(grid.axes.flat, [
    dict(xlim=(0.0, 13784.9)),
    dict(xlim=(0.0, 15921.7)),
    dict(xlim=(0.0, 5953.86)),
]):
    ax.set(**given)
for ax in grid.axes.flat:
    ax.minorticks_off()
colors = "#" + rows.groupby("series", sort=False)["color"].first()
grid.add_legend({series: Line2D([], [], color=color, lw=4) for series, color in colors.items()})
grid.set_titles("{col_name}").savefig("throughput-again.png")
