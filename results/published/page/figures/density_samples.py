# figure: density_samples
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
    'digits: mlp, K = 0.9, 300 steps; 2.23 bit/dim: test images': dict(
        xlabel='', xscale='linear', xticks=[], xticklabels=[], xlim=(-0.5, 47.5),
        ylabel='', yscale='linear', yticks=[], yticklabels=[], ylim=(31.5, -0.5),
    ),
    'digits: mlp, K = 0.9, 300 steps; 2.23 bit/dim: samples': dict(
        xlabel='', xscale='linear', xticks=[], xticklabels=[], xlim=(-0.5, 47.5),
        ylabel='', yscale='linear', yticks=[], yticklabels=[], ylim=(31.5, -0.5),
    ),
}
COLORS = {
    'pixel': '#000000',
    'between images': '#fefefe',
}

rows = pd.read_csv("density_samples.csv", skiprows=11, dtype={"panel": str, "series": str})
grid = sns.FacetGrid(rows, col="panel", col_wrap=2, sharex=False, sharey=False)
for (panel, kind, _), some in rows.groupby(["panel", "kind", "group"], sort=False):
    ax, color = grid.axes_dict[panel], COLORS[some["series"].iloc[0]]
    if kind == "reference" and some["y"].notna().all():
        ax.axhline(some["y"].iloc[0], color=color)
    if kind == "reference" and some["x"].notna().all():
        ax.axvline(some["x"].iloc[0], color=color)
    if kind == "pixel":
        image = some.pivot(index="y", columns="x", values="value")
        ax.pcolormesh(image.columns, image.index, image, cmap="gray")
for panel, ax in grid.axes_dict.items():
    ax.set(**AXES[panel])
    ax.minorticks_off()
grid.set_titles("{col_name}")
grid.add_legend({name: Line2D([], [], color=color, lw=4) for name, color in COLORS.items()})
grid.savefig("density_samples-again.png")
