# figure: roulette
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
rows = pd.read_csv("roulette.csv", skiprows=12, dtype=texts)
grid = sns.FacetGrid(rows, col="panel", col_wrap=1, sharex=False, sharey=False)
for (panel, kind, _), some in rows.groupby(["panel", "kind", "group"], sort=False):
    ax, color = grid.axes_dict[panel], "#" + some["color"].iloc[0]
    if "line" in kind:
        sns.lineplot(some, x="x", y="y", color=color, estimator=None, sort=False, ax=ax)
    if "mark" in kind:
        sns.scatterplot(some, x="x", y="y", color=color, ax=ax)
    if kind == "band":
        ax.fill_between(some["x"], some["y_low"], some["y_high"], color=color, alpha=0.2)
    if kind == "region":
        ax.axvspan(some["x_low"].iloc[0], some["x_high"].iloc[0], color=color, alpha=0.2)
grid.set(xlabel='stop probability', xscale='linear', xticks=[0.0, 0.25, 0.5, 0.75, 1.0, 1.15], xticklabels=['0', '.25', '.5', '.75', '1', 'Poisson'], xlim=(0.0, 1.24), ylabel='spectral radius ρ', yscale='linear', ylim=(0.0, 1.0))
for ax in grid.axes.flat:
    ax.minorticks_off()
colors = "#" + rows.groupby("series", sort=False)["color"].first()
grid.add_legend({series: Line2D([], [], color=color, lw=4) for series, color in colors.items()})
grid.set_titles("{col_name}").savefig("roulette-again.png")
