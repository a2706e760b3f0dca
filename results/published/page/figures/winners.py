# figure: winners
# suite: efficiency
# resflow_bench: 0.1.0
# run: full-20261128-215333-c7a7
# commit: 23684d137db18df601b7d8c4b7e982ff319739f3
# preset: full
# seed: 0
# model: shallow
# dim: 64
# lipschitz: 0.9
# dtype: float32
# device: cpu
# implementation: ours
# estimator: hutchinson
# batch_size: 256
import pandas as pd
import seaborn as sns
from matplotlib.lines import Line2D

AXES = {
    'panel 1': dict(
        xlabel='', xscale='linear', xticks=[0.0], xticklabels=['shallow\nd = 64'], xlim=(-0.5, 0.5),
        ylabel='error (nat)', yscale='log', ylim=(0.0001, 1.0),
    ),
}
COLORS = {
    '2 traces': '#949494',
    '10 terms, 2 traces': '#de8f05',
    'all together': '#56b4e9',
}

rows = pd.read_csv("winners.csv", skiprows=15, dtype={"panel": str, "series": str})
grid = sns.FacetGrid(rows, col="panel", col_wrap=1, sharex=False, sharey=False)
for (panel, kind, _), some in rows.groupby(["panel", "kind", "group"], sort=False):
    ax, color = grid.axes_dict[panel], COLORS[some["series"].iloc[0]]
    if kind == "bar":
        ax.bar(some["x"], some["y"] - some["y_base"], bottom=some["y_base"], color=color)
for panel, ax in grid.axes_dict.items():
    ax.set(**AXES[panel])
    ax.minorticks_off()
grid.set_titles("{col_name}")
grid.add_legend({name: Line2D([], [], color=color, lw=4) for name, color in COLORS.items()})
grid.savefig("winners-again.png")
