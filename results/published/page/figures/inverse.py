# figure: inverse
# suite: inverse
# resflow_bench: 0.1.0
# run: full-20261128-225641-fc7d
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
rows = pd.read_csv("inverse.csv", skiprows=10, dtype=texts)
grid = sns.FacetGrid(rows, col="panel", col_wrap=2, sharex=False, sharey=False)
for (panel, kind, _), some in rows.groupby(["panel", "kind", "group"], sort=False):
    ax, color = grid.axes_dict[panel], "#" + some["color"].iloc[0]
    if "line" in kind:
        sns.lineplot(some, x="x", y="y", color=color, estimator=None, sort=False, ax=ax)
    if "mark" in kind:
        sns.scatterplot(some, x="x", y="y", color=color, ax=ax)
    if kind == "band":
        ax.fill_between(some["x"], some["y_low"], some["y_high"], color=color, alpha=0.2)
grid.set(xscale='log', yscale='log')
for ax, given in zip(grid.axes.flat, [
    dict(xlabel='certificate', xlim=(6.66667e-15, 19.503), ylabel='error', ylim=(6.66667e-17, 19.503)),
    dict(xlabel="Banach's count", xlim=(0.666667, 9420.0), ylabel='steps', ylim=(0.666667, 9420.0)),
]):
    ax.set(**given)
for ax in grid.axes.flat:
    ax.minorticks_off()
colors = "#" + rows.groupby("series", sort=False)["color"].first()
grid.add_legend({series: Line2D([], [], color=color, lw=4) for series, color in colors.items()})
grid.set_titles("{col_name}").savefig("inverse-again.png")
