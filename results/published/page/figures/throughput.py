# figure: throughput
# suite: throughput
# resflow_bench: 0.1.0
# run: full-20261128-215009-980d
# commit: 23684d137db18df601b7d8c4b7e982ff319739f3
# preset: full
# seed: 0
# dim: 64
# lipschitz: 0.9
# dtype: float32
# device: cpu
# probe: rademacher
# n_probes: 1
# batch_size: 256
import pandas as pd
import seaborn as sns
from matplotlib.lines import Line2D

AXES = {
    'log_prob': dict(
        xlabel='examples / s', xscale='linear', xlim=(0.0, 13784.9),
        ylabel='', yscale='linear', yticks=[], yticklabels=[], ylim=(7.3, -0.85),
    ),
    'sample': dict(
        xlabel='examples / s', xscale='linear', xlim=(0.0, 15921.7),
        ylabel='', yscale='linear', yticks=[], yticklabels=[], ylim=(7.3, -0.85),
    ),
    'train_step': dict(
        xlabel='examples / s', xscale='linear', xlim=(0.0, 5953.86),
        ylabel='', yscale='linear', yticks=[], yticklabels=[], ylim=(7.3, -0.85),
    ),
}
COLORS = {
    'conv': '#8a5a00',
    'init': '#de8f05',
    'multiscale': '#5b2a86',
    'trained': '#d55e00',
}

rows = pd.read_csv("throughput.csv", skiprows=14, dtype={"panel": str, "series": str})
grid = sns.FacetGrid(rows, col="panel", col_wrap=3, sharex=False, sharey=False)
for (panel, kind, _), some in rows.groupby(["panel", "kind", "group"], sort=False):
    ax, color = grid.axes_dict[panel], COLORS[some["series"].iloc[0]]
    if kind == "bar":
        ax.barh(some["y"], some["x"] - some["x_base"], 0.3, some["x_base"], color=color)
    if kind in ['bar']:
        ax.hlines(some["y"], some["x_low"], some["x_high"], color=color)
for panel, ax in grid.axes_dict.items():
    ax.set(**AXES[panel])
    ax.minorticks_off()
grid.set_titles("{col_name}")
grid.add_legend({name: Line2D([], [], color=color, lw=4) for name, color in COLORS.items()})
grid.savefig("throughput-again.png")
