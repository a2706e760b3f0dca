# figure: bias
# suite: bias
# resflow_bench: 0.1.0
# run: full-20261128-222638-0118, full-20261128-225141-4e1c
# commit: 23684d137db18df601b7d8c4b7e982ff319739f3
# preset: full
# seed: 0
# dim: 64
# dtype: float64
# device: cpu
# truncation: fixed
# probe: rademacher
# n_probes: 1
import pandas as pd
import seaborn as sns
from matplotlib.lines import Line2D

AXES = {
    'K = 0.3': dict(
        xlabel='terms N', xscale='log', xticks=[1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0], xticklabels=['1', '2', '3', '5', '10', '20', '50'], xlim=(0.8, 62.5),
        ylabel='|bias| / d (nat)', yscale='log', ylim=(8e-09, 0.71859),
    ),
    'K = 0.5': dict(
        xlabel='terms N', xscale='log', xticks=[1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0], xticklabels=['1', '2', '3', '5', '10', '20', '50'], xlim=(0.8, 62.5),
        ylabel='|bias| / d (nat)', yscale='log', ylim=(8e-08, 2.44894),
    ),
    'K = 0.7': dict(
        xlabel='terms N', xscale='log', xticks=[1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0], xticklabels=['1', '2', '3', '5', '10', '20', '50'], xlim=(0.8, 62.5),
        ylabel='|bias| / d (nat)', yscale='log', ylim=(8e-08, 6.38994),
    ),
    'K = 0.9': dict(
        xlabel='terms N', xscale='log', xticks=[1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0], xticklabels=['1', '2', '3', '5', '10', '20', '50'], xlim=(0.8, 62.5),
        ylabel='|bias| / d (nat)', yscale='log', ylim=(8e-08, 17.7836),
    ),
    'K = 0.97': dict(
        xlabel='terms N', xscale='log', xticks=[1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0], xticklabels=['1', '2', '3', '5', '10', '20', '50'], xlim=(0.8, 62.5),
        ylabel='|bias| / d (nat)', yscale='log', ylim=(8e-07, 32.1614),
    ),
}
COLORS = {
    'bound from K alone': '#1f2328',
    'trained, bound': '#d55e00',
    'triangular, at most': '#949494',
    'gaussian, theory': '#ca9161',
    'gaussian': '#ca9161',
    'gaussian, at most': '#ca9161',
    'symmetric, theory': '#cc78bc',
    'symmetric': '#cc78bc',
    'symmetric, at most': '#cc78bc',
    'orthogonal, theory': '#029e73',
    'orthogonal': '#029e73',
    'orthogonal, at most': '#029e73',
    'plus-identity, theory': '#56b4e9',
    'plus-identity': '#56b4e9',
    'plus-identity, at most': '#56b4e9',
    'minus-identity, theory': '#0173b2',
    'minus-identity': '#0173b2',
    'minus-identity, at most': '#0173b2',
    'init, theory': '#de8f05',
    'init': '#de8f05',
    'init, at most': '#de8f05',
    'trained, theory': '#d55e00',
    'trained': '#d55e00',
    'trained, at most': '#d55e00',
    'init, bound': '#de8f05',
    'conv, bound': '#8a5a00',
    'conv, theory': '#8a5a00',
    'conv': '#8a5a00',
}

rows = pd.read_csv("bias.csv", skiprows=13, dtype={"panel": str, "series": str})
grid = sns.FacetGrid(rows, col="panel", col_wrap=3, sharex=False, sharey=False)
for (panel, kind, _), some in rows.groupby(["panel", "kind", "group"], sort=False):
    ax, color = grid.axes_dict[panel], COLORS[some["series"].iloc[0]]
    if "line" in kind:
        sns.lineplot(some, x="x", y="y", color=color, estimator=None, sort=False, ax=ax)
    if "mark" in kind:
        sns.scatterplot(some, x="x", y="y", color=color, ax=ax)
    if kind in ['mark']:
        ax.vlines(some["x"], some["y_low"], some["y_high"], color=color)
for panel, ax in grid.axes_dict.items():
    ax.set(**AXES[panel])
    ax.minorticks_off()
grid.set_titles("{col_name}")
grid.add_legend({name: Line2D([], [], color=color, lw=4) for name, color in COLORS.items()})
grid.savefig("bias-again.png")
