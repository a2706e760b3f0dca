# figure: bias
# suite: bias
# resflow_bench: 0.1.0
# run: full-20261128-222638-0118, full-20261128-225141-4e1c, full-20261129-044121-890d
# commit: 23684d137db18df601b7d8c4b7e982ff319739f3, bf725fdf73e7faf5a51072e82282d02b4b42d06d
# preset: full
# seed: 0
# hardware: AMD EPYC, Intel(R) Xeon(R) Processor
# dim: 64
# dtype: float64
# device: cpu
# probe: rademacher
# n_probes: 1
import pandas as pd
import seaborn as sns
from matplotlib.lines import Line2D

texts = dict.fromkeys(["panel", "series", "color", "value"], str)
rows = pd.read_csv("bias.csv", skiprows=13, dtype=texts)
grid = sns.FacetGrid(rows, col="panel", col_wrap=3, sharex=False, sharey=False)
for (panel, kind, _), some in rows.groupby(["panel", "kind", "group"], sort=False):
    ax, color = grid.axes_dict[panel], "#" + some["color"].iloc[0]
    if "line" in kind:
        sns.lineplot(some, x="x", y="y", color=color, estimator=None, sort=False, ax=ax)
    if "mark" in kind:
        sns.scatterplot(some, x="x", y="y", color=color, ax=ax)
    if kind in ['mark']:
        ax.vlines(some["x"], some["y_low"], some["y_high"], color=color)
grid.set(xlabel='terms N', xscale='log', xticks=[1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0], xticklabels=['1', '2', '3', '5', '10', '20', '50'], xlim=(0.8, 62.5), ylabel='|bias| / d (nat)', yscale='log')
for ax, given in zip(grid.axes.flat, [
    dict(ylim=(8e-09, 0.71859)),
    dict(ylim=(8e-08, 2.44894)),
    dict(ylim=(8e-08, 6.38994)),
    dict(ylim=(8e-08, 17.7836)),
    dict(ylim=(8e-07, 32.1614)),
]):
    ax.set(**given)
for ax in grid.axes.flat:
    ax.minorticks_off()
colors = "#" + rows.groupby("series", sort=False)["color"].first()
grid.add_legend({series: Line2D([], [], color=color, lw=4) for series, color in colors.items()})
grid.set_titles("{col_name}").savefig("bias-again.png")
