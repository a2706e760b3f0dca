# figure: peers
# suite: peers
# resflow_bench: 0.1.0
# run: full-20261128-220015-3afd
# commit: 23684d137db18df601b7d8c4b7e982ff319739f3
# preset: full
# seed: 0
# model: init
# dim: 64
# lipschitz: 0.9
# dtype: float32
# device: cpu
# n_probes: 1
# batch_size: 256
import pandas as pd
import seaborn as sns
from matplotlib.lines import Line2D

AXES = {
    'bias of the value': dict(
        xlabel='mean − exact log-det (nat)', xscale='linear', xlim=(-0.0102257, 0.00481393),
        ylabel='', yscale='linear', yticks=[0.0, 1.0], yticklabels=['memory-\nsaving', 'roulette'], ylim=(1.55, -0.55),
    ),
    'bias of the gradient': dict(
        xlabel='‖mean − exact‖ / ‖exact‖', xscale='log', xlim=(0.0008, 0.0633826),
        ylabel='', yscale='linear', yticks=[0.0, 1.0], yticklabels=['memory-\nsaving', 'roulette'], ylim=(1.55, -0.55),
    ),
    'time of log-prob': dict(
        xlabel='times ours', xscale='log', xticks=[0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0], xticklabels=['0.1', '0.2', '0.5', '1', '2', '5', '10', '20', '50'], xlim=(0.791975, 2.95358),
        ylabel='', yscale='linear', yticks=[0.0, 1.0], yticklabels=['memory-\nsaving', 'roulette'], ylim=(1.55, -0.55),
    ),
    'peak memory of log-prob': dict(
        xlabel='times ours', xscale='log', xticks=[0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0], xticklabels=['0.1', '0.2', '0.5', '1', '2', '5', '10', '20', '50'], xlim=(0.8, 16.8207),
        ylabel='', yscale='linear', yticks=[0.0, 1.0], yticklabels=['memory-\nsaving', 'roulette'], ylim=(1.55, -0.55),
    ),
}
COLORS = {
    'equal': '#1f2328',
    'ours': '#d55e00',
    'normflows': '#0173b2',
    'torchflows': '#029e73',
    'mean of its formula': '#6a737d',
    'ours, at most': '#d55e00',
    'normflows, at most': '#0173b2',
    'torchflows, at most': '#029e73',
}

rows = pd.read_csv("peers.csv", skiprows=14, dtype={"panel": str, "series": str})
grid = sns.FacetGrid(rows, col="panel", col_wrap=3, sharex=False, sharey=False)
for (panel, kind, _), some in rows.groupby(["panel", "kind", "group"], sort=False):
    ax, color = grid.axes_dict[panel], COLORS[some["series"].iloc[0]]
    if "mark" in kind:
        sns.scatterplot(some, x="x", y="y", color=color, ax=ax)
    if kind in ['mark']:
        ax.hlines(some["y"], some["x_low"], some["x_high"], color=color)
    if kind == "reference" and some["x"].notna().all():
        ax.axvline(some["x"].iloc[0], color=color)
for panel, ax in grid.axes_dict.items():
    ax.set(**AXES[panel])
    ax.minorticks_off()
grid.set_titles("{col_name}")
grid.add_legend({name: Line2D([], [], color=color, lw=4) for name, color in COLORS.items()})
grid.savefig("peers-again.png")
