# figure: launches
# suite: launches
# resflow_bench: 0.1.0
# run: full-20261128-231142-7ed9
# commit: 23684d137db18df601b7d8c4b7e982ff319739f3
# preset: full
# seed: 0
# lipschitz: 0.9
# batch_size: 8
import pandas as pd
import seaborn as sns
from matplotlib.lines import Line2D

AXES = {
    'launches': dict(
        xlabel='per call', xscale='symlog', xlim=(-0.15, 7350.0),
        ylabel='', yscale='linear', yticks=[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0], yticklabels=['certified_inversion', 'gradient', 'inversion', 'log_prob', 'sample', 'train_step', 'update'], ylim=(6.6, -0.6),
    ),
    'waits of the host': dict(
        xlabel='per call', xscale='symlog', xlim=(-0.15, 6.0),
        ylabel='', yscale='linear', yticks=[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0], yticklabels=['certified_inversion', 'gradient', 'inversion', 'log_prob', 'sample', 'train_step', 'update'], ylim=(6.6, -0.6),
    ),
}
COLORS = {
    'ours': '#d55e00',
}

rows = pd.read_csv("launches.csv", skiprows=9, dtype={"panel": str, "series": str})
grid = sns.FacetGrid(rows, col="panel", col_wrap=2, sharex=False, sharey=False)
for (panel, kind, _), some in rows.groupby(["panel", "kind", "group"], sort=False):
    ax, color = grid.axes_dict[panel], COLORS[some["series"].iloc[0]]
    if "mark" in kind:
        sns.scatterplot(some, x="x", y="y", color=color, ax=ax)
for panel, ax in grid.axes_dict.items():
    ax.set(**AXES[panel])
    ax.minorticks_off()
grid.set_titles("{col_name}")
grid.add_legend({name: Line2D([], [], color=color, lw=4) for name, color in COLORS.items()})
grid.savefig("launches-again.png")
