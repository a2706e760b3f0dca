# figure: variance
# suite: variance
# resflow_bench: 0.1.0
# run: full-20261128-231409-4bb7
# commit: 23684d137db18df601b7d8c4b7e982ff319739f3
# preset: full
# seed: 0
# dim: 64
# dtype: float64
# device: cpu
# truncation: fixed
# n_probes: 1
import pandas as pd
import seaborn as sns
from matplotlib.lines import Line2D

AXES = {
    'panel 1': dict(
        xlabel='cells, by model and closed form', xscale='linear', xticks=[], xticklabels=[], xlim=(-1.0, 322.0),
        ylabel='measured / closed form', yscale='linear', ylim=(0.978795, 1.0212),
    ),
}
COLORS = {
    'closed form': '#1f2328',
    'triangular': '#949494',
    'gaussian': '#ca9161',
    'symmetric': '#cc78bc',
    'orthogonal': '#029e73',
    'plus-identity': '#56b4e9',
    'minus-identity': '#0173b2',
    'init': '#de8f05',
}

rows = pd.read_csv("variance.csv", skiprows=12, dtype={"panel": str, "series": str})
grid = sns.FacetGrid(rows, col="panel", col_wrap=1, sharex=False, sharey=False)
for (panel, kind, _), some in rows.groupby(["panel", "kind", "group"], sort=False):
    ax, color = grid.axes_dict[panel], COLORS[some["series"].iloc[0]]
    if "mark" in kind:
        sns.scatterplot(some, x="x", y="y", color=color, ax=ax)
    if kind in ['mark']:
        ax.vlines(some["x"], some["y_low"], some["y_high"], color=color)
    if kind == "reference" and some["y"].notna().all():
        ax.axhline(some["y"].iloc[0], color=color)
for panel, ax in grid.axes_dict.items():
    ax.set(**AXES[panel])
    ax.minorticks_off()
grid.set_titles("{col_name}")
grid.add_legend({name: Line2D([], [], color=color, lw=4) for name, color in COLORS.items()})
grid.savefig("variance-again.png")
