# figure: convergence
# suite: inverse
# resflow_bench: 0.1.0
# run: full-20261128-225641-fc7d
# commit: 23684d137db18df601b7d8c4b7e982ff319739f3
# preset: full
# seed: 0
# dim: 64
# device: cpu
import pandas as pd
import seaborn as sns
from matplotlib.lines import Line2D

AXES = {
    'init, K = 0.5': dict(
        xlabel='steps', xscale='log', xticks=[1.0, 2.0, 5.0, 10.0, 50.0, 100.0, 500.0, 1000.0], xticklabels=['1', '2', '5', '10', '50', '100', '500', '1000'], xlim=(0.8, 1250.0),
        ylabel='‖x̂ − x‖', yscale='log', ylim=(8e-16, 879.161),
    ),
    'minus-identity, K = 0.99': dict(
        xlabel='steps', xscale='log', xticks=[1.0, 2.0, 5.0, 10.0, 50.0, 100.0, 500.0, 1000.0], xticklabels=['1', '2', '5', '10', '50', '100', '500', '1000'], xlim=(0.8, 1250.0),
        ylabel='‖x̂ − x‖', yscale='log', ylim=(8e-05, 15.4566),
    ),
    'plus-identity, K = 0.99': dict(
        xlabel='steps', xscale='log', xticks=[1.0, 2.0, 5.0, 10.0, 50.0, 100.0, 500.0, 1000.0], xticklabels=['1', '2', '5', '10', '50', '100', '500', '1000'], xlim=(0.8, 1250.0),
        ylabel='‖x̂ − x‖', yscale='log', ylim=(8e-05, 3075.56),
    ),
    'orthogonal, K = 0.99': dict(
        xlabel='steps', xscale='log', xticks=[1.0, 2.0, 5.0, 10.0, 50.0, 100.0, 500.0, 1000.0], xticklabels=['1', '2', '5', '10', '50', '100', '500', '1000'], xlim=(0.8, 1250.0),
        ylabel='‖x̂ − x‖', yscale='log', ylim=(8e-05, 2275.58),
    ),
    'symmetric, K = 0.99': dict(
        xlabel='steps', xscale='log', xticks=[1.0, 2.0, 5.0, 10.0, 50.0, 100.0, 500.0, 1000.0], xticklabels=['1', '2', '5', '10', '50', '100', '500', '1000'], xlim=(0.8, 1250.0),
        ylabel='‖x̂ − x‖', yscale='log', ylim=(8e-05, 1559.79),
    ),
    'gaussian, K = 0.99': dict(
        xlabel='steps', xscale='log', xticks=[1.0, 2.0, 5.0, 10.0, 50.0, 100.0, 500.0, 1000.0], xticklabels=['1', '2', '5', '10', '50', '100', '500', '1000'], xlim=(0.8, 1250.0),
        ylabel='‖x̂ − x‖', yscale='log', ylim=(8e-16, 911.614),
    ),
}
COLORS = {
    "Banach's rate, float64": '#1f2328',
    'certificate, float64': '#0173b2',
    'error, float64': '#de8f05',
    "Banach's rate, float32": '#1f2328',
    'certificate, float32': '#0173b2',
    'error, float32': '#de8f05',
}

rows = pd.read_csv("convergence.csv", skiprows=9, dtype={"panel": str, "series": str})
grid = sns.FacetGrid(rows, col="panel", col_wrap=3, sharex=False, sharey=False)
for (panel, kind, _), some in rows.groupby(["panel", "kind", "group"], sort=False):
    ax, color = grid.axes_dict[panel], COLORS[some["series"].iloc[0]]
    if "line" in kind:
        sns.lineplot(some, x="x", y="y", color=color, estimator=None, sort=False, ax=ax)
    if "mark" in kind:
        sns.scatterplot(some, x="x", y="y", color=color, ax=ax)
for panel, ax in grid.axes_dict.items():
    ax.set(**AXES[panel])
    ax.minorticks_off()
grid.set_titles("{col_name}")
grid.add_legend({name: Line2D([], [], color=color, lw=4) for name, color in COLORS.items()})
grid.savefig("convergence-again.png")
