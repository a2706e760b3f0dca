# figure: convergence
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
rows = pd.read_csv("convergence.csv", skiprows=10, dtype=texts)
grid = sns.FacetGrid(rows, col="panel", col_wrap=3, sharex=False, sharey=False)
for (panel, kind, _), some in rows.groupby(["panel", "kind", "group"], sort=False):
    ax, color = grid.axes_dict[panel], "#" + some["color"].iloc[0]
    if "line" in kind:
        sns.lineplot(some, x="x", y="y", color=color, estimator=None, sort=False, ax=ax)
    if "mark" in kind:
        sns.scatterplot(some, x="x", y="y", color=color, ax=ax)
grid.set(xlabel='steps', xscale='log', xticks=[1.0, 2.0, 5.0, 10.0, 50.0, 100.0, 500.0, 1000.0], xticklabels=['1', '2', '5', '10', '50', '100', '500', '1000'], xlim=(0.8, 1250.0), ylabel='‖x̂ − x‖', yscale='log', ylim=(8e-16, 3075.56))
for ax in grid.axes.flat:
    ax.minorticks_off()
colors = "#" + rows.groupby("series", sort=False)["color"].first()
grid.add_legend({series: Line2D([], [], color=color, lw=4) for series, color in colors.items()})
grid.set_titles("{col_name}").savefig("convergence-again.png")
