# figure: winners
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
rows = pd.read_csv("winners.csv", skiprows=11, dtype=texts)
grid = sns.FacetGrid(rows, col="panel", col_wrap=1, sharex=False, sharey=False)
for (panel, kind, _), some in rows.groupby(["panel", "kind", "group"], sort=False):
    ax, color = grid.axes_dict[panel], "#" + some["color"].iloc[0]
    if kind == "bar":
        ax.bar(some["x"], some["y"] - some["y_base"], bottom=some["y_base"], color=color)
grid.set(xlabel='', xscale='linear', xticks=[0.0, 1.0], xticklabels=['patches\nd = 768', 'shallow\nd = 64'], xlim=(-0.5, 1.5), ylabel='error (nat)', yscale='log', ylim=(0.0001, 1.0))
for ax in grid.axes.flat:
    ax.minorticks_off()
colors = "#" + rows.groupby("series", sort=False)["color"].first()
grid.add_legend({series: Line2D([], [], color=color, lw=4) for series, color in colors.items()})
grid.set_titles("{col_name}").savefig("winners-again.png")
