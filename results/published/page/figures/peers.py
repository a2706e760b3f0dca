# figure: peers
# suite: peers
# resflow_bench: 0.1.0
# run: full-20261128-220015-3afd, full-20261129-144618-a88d
# commit: 23684d137db18df601b7d8c4b7e982ff319739f3, 55a5553695fefeefc0628100872746fc3ecb348c
# preset: full
# seed: 0
# hardware: AMD EPYC, Intel(R) Xeon(R) Processor
# dim: 64
# lipschitz: 0.9
# dtype: float32
# device: cpu
# n_probes: 1
# batch_size: 256
import pandas as pd
import seaborn as sns
from matplotlib.lines import Line2D

texts = dict.fromkeys(["panel", "series", "color", "value"], str)
rows = pd.read_csv("peers.csv", skiprows=14, dtype=texts)
grid = sns.FacetGrid(rows, col="panel", col_wrap=3, sharex=False, sharey=False)
for (panel, kind, _), some in rows.groupby(["panel", "kind", "group"], sort=False):
    ax, color = grid.axes_dict[panel], "#" + some["color"].iloc[0]
    if "mark" in kind:
        sns.scatterplot(some, x="x", y="y", color=color, ax=ax)
    if kind in ['interval']:
        ax.vlines(some["x"], some["y_low"], some["y_high"], color=color)
    if kind in ['mark']:
        ax.hlines(some["y"], some["x_low"], some["x_high"], color=color)
    if kind == "reference" and some["x"].notna().all():
        ax.axvline(some["x"].iloc[0], color=color)
grid.set(ylabel='', yscale='linear', yticks=[0.0], yticklabels=['evaluation'], ylim=(0.55, -0.55))
for ax, given in zip(grid.axes.flat, [
    dict(xlabel='mean − exact log-det (nat)', xscale='linear', xlim=(-0.0910722, 0.0539558)),
    dict(xlabel='largest ‖x̂ − x‖', xscale='log', xlim=(8e-10, 0.0858136)),
    dict(xlabel='times ours', xscale='log', xticks=[0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0], xticklabels=['0.1', '0.2', '0.5', '1', '2', '5', '10', '20', '50'], xlim=(0.41331, 1.26688)),
    dict(xlabel='times ours', xscale='log', xticks=[0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0], xticklabels=['0.1', '0.2', '0.5', '1', '2', '5', '10', '20', '50'], xlim=(0.795306, 3.08015)),
    dict(xlabel='times ours', xscale='log', xticks=[0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0], xticklabels=['0.1', '0.2', '0.5', '1', '2', '5', '10', '20', '50'], xlim=(0.8, 1.95598)),
]):
    ax.set(**given)
for ax in grid.axes.flat:
    ax.minorticks_off()
colors = "#" + rows.groupby("series", sort=False)["color"].first()
grid.add_legend({series: Line2D([], [], color=color, lw=4) for series, color in colors.items()})
grid.set_titles("{col_name}").savefig("peers-again.png")
