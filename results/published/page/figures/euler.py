# figure: euler
# suite: euler
# resflow_bench: 0.1.0
# run: quick-20261128-234608-f545
# commit: 23684d137db18df601b7d8c4b7e982ff319739f3
# preset: quick
# seed: 0
# hardware: AMD EPYC
# dataset: eight-gaussians
import pandas as pd
import seaborn as sns
from matplotlib.lines import Line2D

texts = dict.fromkeys(["panel", "series", "color", "value"], str)
rows = pd.read_csv("euler.csv", skiprows=9, dtype=texts)
grid = sns.FacetGrid(rows, col="panel", col_wrap=2, sharex=False, sharey=False)
for (panel, kind, _), some in rows.groupby(["panel", "kind", "group"], sort=False):
    ax, color = grid.axes_dict[panel], "#" + some["color"].iloc[0]
    if "line" in kind:
        sns.lineplot(some, x="x", y="y", color=color, estimator=None, sort=False, ax=ax)
    if "mark" in kind:
        sns.scatterplot(some, x="x", y="y", color=color, ax=ax)
    if kind == "reference" and some["y"].notna().all():
        ax.axhline(some["y"].iloc[0], color=color)
grid.set(xlabel='steps T', xscale='log', xticks=[4.0, 16.0, 64.0], xticklabels=['4', '16', '64'], xlim=(3.2, 80.0), yscale='log')
for ax, given in zip(grid.axes.flat, [
    dict(ylabel='error of log p (nat)', ylim=(8e-05, 1.81942)),
    dict(ylabel='largest norm of a step', ylim=(0.008, 2.3576)),
]):
    ax.set(**given)
for ax in grid.axes.flat:
    ax.minorticks_off()
colors = "#" + rows.groupby("series", sort=False)["color"].first()
grid.add_legend({series: Line2D([], [], color=color, lw=4) for series, color in colors.items()})
grid.set_titles("{col_name}").savefig("euler-again.png")
