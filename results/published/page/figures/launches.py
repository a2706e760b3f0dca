# figure: launches
# suite: launches
# resflow_bench: 0.1.0
# run: full-20261128-231142-7ed9
# commit: 23684d137db18df601b7d8c4b7e982ff319739f3
# preset: full
# seed: 0
# hardware: AMD EPYC
# lipschitz: 0.9
# batch_size: 8
import pandas as pd
import seaborn as sns
from matplotlib.lines import Line2D

texts = dict.fromkeys(["panel", "series", "color", "value"], str)
rows = pd.read_csv("launches.csv", skiprows=10, dtype=texts)
grid = sns.FacetGrid(rows, col="panel", col_wrap=2, sharex=False, sharey=False)
for (panel, kind, _), some in rows.groupby(["panel", "kind", "group"], sort=False):
    ax, color = grid.axes_dict[panel], "#" + some["color"].iloc[0]
    if "mark" in kind:
        sns.scatterplot(some, x="x", y="y", color=color, ax=ax)
grid.set(xlabel='per call', xscale='symlog', ylabel='', yscale='linear', yticks=[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0], yticklabels=['gradient, memory-saving', 'gradient, roulette', 'gradient, series', 'inversion, evaluation', 'log_prob, evaluation', 'log_prob, memory-saving', 'log_prob, roulette', 'log_prob, series', 'train_step, memory-saving', 'train_step, roulette', 'train_step, series', 'update, evaluation', 'certified_inversion', 'sample'], ylim=(13.6, -0.6))
for ax, given in zip(grid.axes.flat, [
    dict(xlim=(-0.15, 38484.0)),
    dict(xlim=(-0.15, 272.0)),
]):
    ax.set(**given)
for ax in grid.axes.flat:
    ax.minorticks_off()
colors = "#" + rows.groupby("series", sort=False)["color"].first()
grid.add_legend({series: Line2D([], [], color=color, lw=4) for series, color in colors.items()})
grid.set_titles("{col_name}").savefig("launches-again.png")
