# figure: efficiency
# suite: efficiency
# resflow_bench: 0.1.0
# run: full-20261128-215333-c7a7, full-20261129-151044-3551, full-20261129-151213-ae7c, full-20261129-151503-0203, full-20261129-151651-a40f, full-20261129-152016-ead3
# commit: 23684d137db18df601b7d8c4b7e982ff319739f3, cb6695ce2fdac2733a2dae5e2e910f2840277e91
# preset: full
# seed: 0
# hardware: AMD EPYC, Intel(R) Xeon(R) Processor
# lipschitz: 0.9
# dtype: float32
# device: cpu
import pandas as pd
import seaborn as sns
from matplotlib.lines import Line2D

texts = dict.fromkeys(["panel", "series", "color", "value"], str)
rows = pd.read_csv("efficiency.csv", skiprows=11, dtype=texts)
grid = sns.FacetGrid(rows, col="panel", col_wrap=2, sharex=False, sharey=False)
for (panel, kind, _), some in rows.groupby(["panel", "kind", "group"], sort=False):
    ax, color = grid.axes_dict[panel], "#" + some["color"].iloc[0]
    if "line" in kind:
        sns.lineplot(some, x="x", y="y", color=color, estimator=None, sort=False, ax=ax)
    if "mark" in kind:
        sns.scatterplot(some, x="x", y="y", color=color, ax=ax)
    if kind == "reference" and some["y"].notna().all():
        ax.axhline(some["y"].iloc[0], color=color)
grid.set(xlabel='seconds per example', xscale='log', ylabel='root mean square error (nat)', yscale='log')
for ax, given in zip(grid.axes.flat, [
    dict(xlim=(2.84592e-05, 0.899959), ylim=(0.001, 10.8789)),
    dict(xlim=(0.000485928, 15.3664), ylim=(0.001, 53.8422)),
]):
    ax.set(**given)
for ax in grid.axes.flat:
    ax.minorticks_off()
colors = "#" + rows.groupby("series", sort=False)["color"].first()
grid.add_legend({series: Line2D([], [], color=color, lw=4) for series, color in colors.items()})
grid.set_titles("{col_name}").savefig("efficiency-again.png")
