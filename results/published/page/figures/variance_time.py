# figure: variance_time
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
rows = pd.read_csv("variance_time.csv", skiprows=11, dtype=texts)
grid = sns.FacetGrid(rows, col="panel", col_wrap=1, sharex=False, sharey=False)
for (panel, kind, _), some in rows.groupby(["panel", "kind", "group"], sort=False):
    ax, color = grid.axes_dict[panel], "#" + some["color"].iloc[0]
    if "mark" in kind:
        sns.scatterplot(some, x="x", y="y", color=color, ax=ax)
    if kind in ['mark', 'interval']:
        ax.hlines(some["y"], some["x_low"], some["x_high"], color=color)
    if kind == "reference" and some["x"].notna().all():
        ax.axvline(some["x"].iloc[0], color=color)
grid.set(xlabel='variance × time, over that of our baseline (normflows: not measured)', xscale='log', xlim=(0.0008, 19.0079), ylabel='', yscale='linear', yticks=[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0], yticklabels=['geometric(0.3), per example', 'geometric(0.3), stratified', '10 terms', 'geometric(0.3)', 'baseline', 'Rademacher', '16 Hadamard', '1 trace', '10 terms, 2 traces, Arnoldi', 'all together, bfloat16', '2 traces', 'all together', '10 terms, 2 traces'], ylim=(-0.6, 12.6))
for ax in grid.axes.flat:
    ax.minorticks_off()
colors = "#" + rows.groupby("series", sort=False)["color"].first()
grid.add_legend({series: Line2D([], [], color=color, lw=4) for series, color in colors.items()})
grid.set_titles("{col_name}").savefig("variance_time-again.png")
