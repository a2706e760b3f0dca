# figure: efficiency
# suite: efficiency
# resflow_bench: 0.1.0
# run: full-20261128-215333-c7a7
# commit: 23684d137db18df601b7d8c4b7e982ff319739f3
# preset: full
# seed: 0
# model: shallow
# dim: 64
# lipschitz: 0.9
# dtype: float32
# device: cpu
# implementation: ours
# estimator: hutchinson
# batch_size: 256
import pandas as pd
import seaborn as sns
from matplotlib.lines import Line2D

AXES = {
    'shallow, d = 64': dict(
        xlabel='seconds per example', xscale='log', xlim=(2.84592e-05, 0.899959),
        ylabel='root mean square error (nat)', yscale='log', ylim=(0.001, 10.8789),
    ),
}
COLORS = {
    'least of all': '#d55e00',
    '0.01 nat': '#1f2328',
    '10 terms': '#949494',
    '10 terms, 2 traces, Arnoldi': '#949494',
    '10 terms, 2 traces': '#949494',
    'geometric(0.3)': '#949494',
    'geometric(0.3), per example': '#949494',
    'geometric(0.3), stratified': '#949494',
    'all together': '#de8f05',
    'all together, bfloat16': '#de8f05',
    'baseline': '#1f2328',
    '1 trace': '#949494',
    '2 traces': '#949494',
    '16 Hadamard': '#949494',
    'Rademacher': '#949494',
}

rows = pd.read_csv("efficiency.csv", skiprows=15, dtype={"panel": str, "series": str})
grid = sns.FacetGrid(rows, col="panel", col_wrap=1, sharex=False, sharey=False)
for (panel, kind, _), some in rows.groupby(["panel", "kind", "group"], sort=False):
    ax, color = grid.axes_dict[panel], COLORS[some["series"].iloc[0]]
    if "line" in kind:
        sns.lineplot(some, x="x", y="y", color=color, estimator=None, sort=False, ax=ax)
    if "mark" in kind:
        sns.scatterplot(some, x="x", y="y", color=color, ax=ax)
    if kind == "reference" and some["y"].notna().all():
        ax.axhline(some["y"].iloc[0], color=color)
for panel, ax in grid.axes_dict.items():
    ax.set(**AXES[panel])
    ax.minorticks_off()
grid.set_titles("{col_name}")
grid.add_legend({name: Line2D([], [], color=color, lw=4) for name, color in COLORS.items()})
grid.savefig("efficiency-again.png")
