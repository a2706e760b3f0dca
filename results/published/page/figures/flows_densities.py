# figure: flows_densities
# suite: flows
# resflow_bench: 0.1.0
# run: quick-20261128-234608-f545
# commit: 23684d137db18df601b7d8c4b7e982ff319739f3
# preset: quick
# seed: 0
# dataset: eight-gaussians
# dtype: float32
# device: cpu
import pandas as pd
import seaborn as sns
from matplotlib.lines import Line2D

AXES = {
    'eight-gaussians, true': dict(
        xlabel='', xscale='linear', xticks=[], xticklabels=[], xlim=(-2.28114, 2.28114),
        ylabel='', yscale='linear', yticks=[], yticklabels=[], ylim=(-2.28114, 2.28114),
    ),
    'nsf, 5.4 s': dict(
        xlabel='', xscale='linear', xticks=[], xticklabels=[], xlim=(-2.28114, 2.28114),
        ylabel='', yscale='linear', yticks=[], yticklabels=[], ylim=(-2.28114, 2.28114),
    ),
    'flow-matching, 14 s': dict(
        xlabel='', xscale='linear', xticks=[], xticklabels=[], xlim=(-2.28114, 2.28114),
        ylabel='', yscale='linear', yticks=[], yticklabels=[], ylim=(-2.28114, 2.28114),
    ),
    'realnvp, 5.1 s': dict(
        xlabel='', xscale='linear', xticks=[], xticklabels=[], xlim=(-2.28114, 2.28114),
        ylabel='', yscale='linear', yticks=[], yticklabels=[], ylim=(-2.28114, 2.28114),
    ),
    'residual, 8.4 s': dict(
        xlabel='', xscale='linear', xticks=[], xticklabels=[], xlim=(-2.28114, 2.28114),
        ylabel='', yscale='linear', yticks=[], yticklabels=[], ylim=(-2.28114, 2.28114),
    ),
}
COLORS = {
    'density': '#000000',
}

rows = pd.read_csv("flows_densities.csv", skiprows=10, dtype={"panel": str, "series": str})
grid = sns.FacetGrid(rows, col="panel", col_wrap=3, sharex=False, sharey=False)
for (panel, kind, _), some in rows.groupby(["panel", "kind", "group"], sort=False):
    ax, color = grid.axes_dict[panel], COLORS[some["series"].iloc[0]]
    if kind == "pixel":
        image = some.pivot(index="y", columns="x", values="value")
        ax.pcolormesh(image.columns, image.index, image, cmap="mako")
for panel, ax in grid.axes_dict.items():
    ax.set(**AXES[panel])
    ax.minorticks_off()
grid.set_titles("{col_name}")
grid.add_legend({name: Line2D([], [], color=color, lw=4) for name, color in COLORS.items()})
grid.savefig("flows_densities-again.png")
