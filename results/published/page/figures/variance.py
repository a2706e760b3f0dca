# figure: variance
# suite: variance
# resflow_bench: 0.1.0
# run: full-20261128-231409-4bb7, full-20261129-053501-5172
# commit: 23684d137db18df601b7d8c4b7e982ff319739f3, 6347301bb25e03ad454f1e63e081223e4128e622
# preset: full
# seed: 0
# hardware: AMD EPYC, Intel(R) Xeon(R) Processor
# dim: 64
# dtype: float64
# device: cpu
# n_probes: 1
import pandas as pd
import seaborn as sns
from matplotlib.lines import Line2D

texts = dict.fromkeys(["panel", "series", "color", "value"], str)
rows = pd.read_csv("variance.csv", skiprows=12, dtype=texts)
grid = sns.FacetGrid(rows, col="panel", col_wrap=3, sharex=False, sharey=False)
for (panel, kind, _), some in rows.groupby(["panel", "kind", "group"], sort=False):
    ax, color = grid.axes_dict[panel], "#" + some["color"].iloc[0]
    if "mark" in kind:
        sns.scatterplot(some, x="x", y="y", color=color, ax=ax)
    if kind in ['mark']:
        ax.vlines(some["x"], some["y_low"], some["y_high"], color=color)
    if kind == "reference" and some["y"].notna().all():
        ax.axhline(some["y"].iloc[0], color=color)
grid.set(xlabel='', xscale='linear', xticks=[], xticklabels=[], ylabel='measured / closed form', yscale='linear', ylim=(0.218401, 1.7816))
for ax, given in zip(grid.axes.flat, [
    dict(xlim=(-1.0, 26.0)),
    dict(xlim=(-1.0, 51.0)),
    dict(xlim=(-1.0, 51.0)),
    dict(xlim=(-1.0, 81.0)),
    dict(xlim=(-1.0, 81.0)),
    dict(xlim=(-1.0, 90.0)),
    dict(xlim=(-1.0, 105.0)),
]):
    ax.set(**given)
for ax in grid.axes.flat:
    ax.minorticks_off()
colors = "#" + rows.groupby("series", sort=False)["color"].first()
grid.add_legend({series: Line2D([], [], color=color, lw=4) for series, color in colors.items()})
grid.set_titles("{col_name}").savefig("variance-again.png")
