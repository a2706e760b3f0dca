# figure: euler
# suite: euler
# resflow_bench: 0.1.0
# run: quick-20261128-234608-f545
# commit: 23684d137db18df601b7d8c4b7e982ff319739f3
# preset: quick
# seed: 0
# dataset: eight-gaussians
import pandas as pd
import seaborn as sns
from matplotlib.lines import Line2D

AXES = {
    'error: flow-matching, eight-gaussians': dict(
        xlabel='steps T', xscale='log', xticks=[4.0, 16.0, 64.0], xticklabels=['4', '16', '64'], xlim=(3.2, 80.0),
        ylabel='error of log p (nat)', yscale='log', ylim=(8e-05, 1.81942),
    ),
    'norm: flow-matching, eight-gaussians': dict(
        xlabel='steps T', xscale='log', xticks=[4.0, 16.0, 64.0], xticklabels=['4', '16', '64'], xlim=(3.2, 80.0),
        ylabel='largest norm of a step', yscale='log', ylim=(0.008, 2.3576),
    ),
}
COLORS = {
    'euler': '#d55e00',
    'order 1': '#d55e00',
    'midpoint': '#0173b2',
    'order 2': '#0173b2',
    'norm 1': '#1f2328',
}

rows = pd.read_csv("euler.csv", skiprows=8, dtype={"panel": str, "series": str})
grid = sns.FacetGrid(rows, col="panel", col_wrap=2, sharex=False, sharey=False)
for (panel, kind, _), some in rows.groupby(["panel", "kind", "group"], sort=False):
    ax, color = grid.axes_dict[panel], COLORS[some["series"].iloc[0]]
    if "line" in kind:
        sns.lineplot(some, x="x", y="y", color=color, estimator=None, sort=False, ax=ax)
    if "mark" in kind:
        sns.scatterplot(some, x="x", y="y", color=color, ax=ax)
    if kind == "reference" and some["y"].notna().all():
        ax.axhline(some["y"].iloc[0], color=color)
for panel, ax in grid.axes_dict.items():
    ax.set(**AXES[panel])
    ax.minorticks_off()
grid.set_titles("{col_name}")
grid.add_legend({name: Line2D([], [], color=color, lw=4) for name, color in COLORS.items()})
grid.savefig("euler-again.png")
