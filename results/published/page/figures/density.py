# figure: density
# suite: density
# resflow_bench: 0.1.0
# run: quick-20261128-234608-f545, quick-20261129-075741-4b46
# commit: 23684d137db18df601b7d8c4b7e982ff319739f3, 58e52928dd63ecdea66049660ad8b2cf7a0c05ed
# preset: quick
# seed: 0
# hardware: AMD EPYC, Intel(R) Xeon(R) Processor
# architecture: mlp
# lipschitz: 0.9
# dtype: float32
# device: cpu
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.lines import Line2D

texts = dict.fromkeys(["panel", "series", "color", "value"], str)
rows = pd.read_csv("density.csv", skiprows=12, dtype=texts)
grid = sns.FacetGrid(rows, col="panel", col_wrap=3, sharex=False, sharey=False)
for (panel, kind, _), some in rows.groupby(["panel", "kind", "group"], sort=False):
    ax, color = grid.axes_dict[panel], "#" + some["color"].iloc[0]
    if "mark" in kind:
        sns.scatterplot(some, x="x", y="y", color=color, ax=ax)
    if kind == "pixels":
        parts = some[['value']].dropna(axis="columns")
        image = np.array([[part.split() for part in line] for line in parts.values], float)
        ends = *some.iloc[0][["x_low", "x_high"]], some["y_low"].min(), some["y_high"].max()
        ax.imshow(np.moveaxis(image, 1, -1).squeeze(), extent=ends, origin="lower", cmap='mako')
grid.set(xlabel='', xscale='linear', xticks=[], xticklabels=[], ylabel='', yscale='linear', yticks=[], yticklabels=[])
for ax, given in zip(grid.axes.flat, [
    dict(xlim=(-1.92487, 1.92487), ylim=(-1.92487, 1.92487)),
    dict(xlim=(-1.92487, 1.92487), ylim=(-1.92487, 1.92487)),
    dict(xlim=(-1.92487, 1.92487), ylim=(-1.92487, 1.92487)),
    dict(xlim=(-2.8086, 2.8086), ylim=(-2.8086, 2.8086)),
    dict(xlim=(-2.8086, 2.8086), ylim=(-2.8086, 2.8086)),
    dict(xlim=(-2.8086, 2.8086), ylim=(-2.8086, 2.8086)),
]):
    ax.set(**given)
for ax in grid.axes.flat:
    ax.minorticks_off()
colors = "#" + rows.groupby("series", sort=False)["color"].first()
grid.add_legend({series: Line2D([], [], color=color, lw=4) for series, color in colors.items()})
grid.set_titles("{col_name}").savefig("density-again.png")
