# figure: flows_densities
# suite: flows
# resflow_bench: 0.1.0
# run: quick-20261128-234608-f545
# commit: 23684d137db18df601b7d8c4b7e982ff319739f3
# preset: quick
# seed: 0
# hardware: AMD EPYC
# dataset: eight-gaussians
# dtype: float32
# device: cpu
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.lines import Line2D

texts = dict.fromkeys(["panel", "series", "color", "value"], str)
rows = pd.read_csv("flows_densities.csv", skiprows=11, dtype=texts)
grid = sns.FacetGrid(rows, col="panel", col_wrap=3, sharex=False, sharey=False)
for (panel, kind, _), some in rows.groupby(["panel", "kind", "group"], sort=False):
    ax, color = grid.axes_dict[panel], "#" + some["color"].iloc[0]
    if kind == "pixels":
        parts = some[['value']].dropna(axis="columns")
        image = np.array([[part.split() for part in line] for line in parts.values], float)
        ends = *some.iloc[0][["x_low", "x_high"]], some["y_low"].min(), some["y_high"].max()
        ax.imshow(np.moveaxis(image, 1, -1).squeeze(), extent=ends, origin="lower", cmap='mako', vmin=0.0, vmax=0.648239254951477)
grid.set(xlabel='', xscale='linear', xticks=[], xticklabels=[], xlim=(-2.28114, 2.28114), ylabel='', yscale='linear', yticks=[], yticklabels=[], ylim=(-2.28114, 2.28114))
for ax in grid.axes.flat:
    ax.minorticks_off()
colors = "#" + rows.groupby("series", sort=False)["color"].first()
grid.add_legend({series: Line2D([], [], color=color, lw=4) for series, color in colors.items()})
grid.set_titles("{col_name}").savefig("flows_densities-again.png")
