# figure: inverse
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
    '‖x̂ − x‖': dict(
        xlabel='certificate', xscale='log', xlim=(6.66667e-15, 19.503),
        ylabel='error', yscale='log', ylim=(6.66667e-17, 19.503),
    ),
    'steps': dict(
        xlabel="Banach's count", xscale='log', xlim=(0.666667, 9420.0),
        ylabel='steps', yscale='log', ylim=(0.666667, 9420.0),
    ),
}
COLORS = {
    'statement violated': '#d55e00',
    'error = certificate': '#1f2328',
    'triangular, float64': '#949494',
    'triangular, float32': '#949494',
    'gaussian, float64': '#ca9161',
    'gaussian, float32': '#ca9161',
    'symmetric, float64': '#cc78bc',
    'symmetric, float32': '#cc78bc',
    'orthogonal, float64': '#029e73',
    'orthogonal, float32': '#029e73',
    'plus-identity, float64': '#56b4e9',
    'plus-identity, float64, at most': '#56b4e9',
    'plus-identity, float32': '#56b4e9',
    'minus-identity, float64': '#0173b2',
    'minus-identity, float64, at most': '#0173b2',
    'minus-identity, float32': '#0173b2',
    'init, float64': '#de8f05',
    'init, float32': '#de8f05',
    'trained, float64': '#d55e00',
    'trained, float32': '#d55e00',
    "steps = Banach's count": '#1f2328',
}

rows = pd.read_csv("inverse.csv", skiprows=9, dtype={"panel": str, "series": str})
grid = sns.FacetGrid(rows, col="panel", col_wrap=2, sharex=False, sharey=False)
for (panel, kind, _), some in rows.groupby(["panel", "kind", "group"], sort=False):
    ax, color = grid.axes_dict[panel], COLORS[some["series"].iloc[0]]
    if "line" in kind:
        sns.lineplot(some, x="x", y="y", color=color, estimator=None, sort=False, ax=ax)
    if "mark" in kind:
        sns.scatterplot(some, x="x", y="y", color=color, ax=ax)
    if kind == "band":
        ax.fill_between(some["x"], some["y_low"], some["y_high"], color=color, alpha=0.2)
for panel, ax in grid.axes_dict.items():
    ax.set(**AXES[panel])
    ax.minorticks_off()
grid.set_titles("{col_name}")
grid.add_legend({name: Line2D([], [], color=color, lw=4) for name, color in COLORS.items()})
grid.savefig("inverse-again.png")
