# figure: scaling
# suite: scaling
# resflow_bench: 0.1.0
# run: full-20261128-220516-52df
# commit: 23684d137db18df601b7d8c4b7e982ff319739f3
# preset: full
# seed: 0
# hardware: AMD EPYC
# device: cpu
import pandas as pd
import seaborn as sns
from matplotlib.lines import Line2D

texts = dict.fromkeys(["panel", "series", "color", "value"], str)
rows = pd.read_csv("scaling.csv", skiprows=9, dtype=texts)
grid = sns.FacetGrid(rows, col="panel", col_wrap=3, sharex=False, sharey=False)
for (panel, kind, _), some in rows.groupby(["panel", "kind", "group"], sort=False):
    ax, color = grid.axes_dict[panel], "#" + some["color"].iloc[0]
    if "line" in kind:
        sns.lineplot(some, x="x", y="y", color=color, estimator=None, sort=False, ax=ax)
    if "mark" in kind:
        sns.scatterplot(some, x="x", y="y", color=color, ax=ax)
    if kind in ['mark']:
        ax.vlines(some["x"], some["y_low"], some["y_high"], color=color)
grid.set(xscale='log', ylabel='seconds of a log-prob', yscale='log')
for ax, given in zip(grid.axes.flat, [
    dict(xlabel='terms N', xticks=[5.0, 10.0, 20.0, 40.0, 80.0, 160.0], xticklabels=['5', '10', '20', '40', '80', '160'], xlim=(4.0, 278.576), ylim=(0.0008, 1.69069)),
    dict(xlabel='probes m', xticks=[4.0, 8.0, 16.0, 32.0], xticklabels=['4', '8', '16', '32'], xlim=(3.2, 44.6318), ylim=(0.0008, 0.367152)),
    dict(xlabel='examples B', xticks=[512.0, 1024.0, 2048.0, 4096.0], xticklabels=['512', '1024', '2048', '4096'], xlim=(409.6, 5712.87), ylim=(0.0008, 0.237795)),
]):
    ax.set(**given)
for ax in grid.axes.flat:
    ax.minorticks_off()
colors = "#" + rows.groupby("series", sort=False)["color"].first()
grid.add_legend({series: Line2D([], [], color=color, lw=4) for series, color in colors.items()})
grid.set_titles("{col_name}").savefig("scaling-again.png")
