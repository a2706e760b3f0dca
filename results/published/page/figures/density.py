# figure: density
# suite: density
# resflow_bench: 0.1.0
# run: quick-20261128-234608-f545
# commit: 23684d137db18df601b7d8c4b7e982ff319739f3
# preset: quick
# seed: 0
# architecture: mlp
# lipschitz: 0.9
# dtype: float32
# device: cpu
import pandas as pd
import seaborn as sns
from matplotlib.lines import Line2D

AXES = {
    'checkerboard: mlp, K = 0.9, 400 steps; 0.754 nat to learn: true': dict(
        xlabel='', xscale='linear', xticks=[], xticklabels=[], xlim=(-1.92487, 1.92487),
        ylabel='', yscale='linear', yticks=[], yticklabels=[], ylim=(-1.92487, 1.92487),
    ),
    'checkerboard: mlp, K = 0.9, 400 steps; 0.754 nat to learn: learned': dict(
        xlabel='', xscale='linear', xticks=[], xticklabels=[], xlim=(-1.92487, 1.92487),
        ylabel='', yscale='linear', yticks=[], yticklabels=[], ylim=(-1.92487, 1.92487),
    ),
    'checkerboard: mlp, K = 0.9, 400 steps; 0.754 nat to learn: samples': dict(
        xlabel='', xscale='linear', xticks=[], xticklabels=[], xlim=(-1.92487, 1.92487),
        ylabel='', yscale='linear', yticks=[], yticklabels=[], ylim=(-1.92487, 1.92487),
    ),
    'moons: mlp, K = 0.9, 400 steps; 0.299 nat to learn: true': dict(
        xlabel='', xscale='linear', xticks=[], xticklabels=[], xlim=(-2.8086, 2.8086),
        ylabel='', yscale='linear', yticks=[], yticklabels=[], ylim=(-2.8086, 2.8086),
    ),
    'moons: mlp, K = 0.9, 400 steps; 0.299 nat to learn: learned': dict(
        xlabel='', xscale='linear', xticks=[], xticklabels=[], xlim=(-2.8086, 2.8086),
        ylabel='', yscale='linear', yticks=[], yticklabels=[], ylim=(-2.8086, 2.8086),
    ),
    'moons: mlp, K = 0.9, 400 steps; 0.299 nat to learn: samples': dict(
        xlabel='', xscale='linear', xticks=[], xticklabels=[], xlim=(-2.8086, 2.8086),
        ylabel='', yscale='linear', yticks=[], yticklabels=[], ylim=(-2.8086, 2.8086),
    ),
}
COLORS = {
    'density': '#000000',
    'samples': '#d55e00',
}

rows = pd.read_csv("density.csv", skiprows=11, dtype={"panel": str, "series": str})
grid = sns.FacetGrid(rows, col="panel", col_wrap=3, sharex=False, sharey=False)
for (panel, kind, _), some in rows.groupby(["panel", "kind", "group"], sort=False):
    ax, color = grid.axes_dict[panel], COLORS[some["series"].iloc[0]]
    if "mark" in kind:
        sns.scatterplot(some, x="x", y="y", color=color, ax=ax)
    if kind == "pixel":
        image = some.pivot(index="y", columns="x", values="value")
        ax.pcolormesh(image.columns, image.index, image, cmap="mako")
for panel, ax in grid.axes_dict.items():
    ax.set(**AXES[panel])
    ax.minorticks_off()
grid.set_titles("{col_name}")
grid.add_legend({name: Line2D([], [], color=color, lw=4) for name, color in COLORS.items()})
grid.savefig("density-again.png")
