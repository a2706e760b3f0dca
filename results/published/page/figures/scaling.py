# figure: scaling
# suite: scaling
# resflow_bench: 0.1.0
# run: full-20261128-220516-52df
# commit: 23684d137db18df601b7d8c4b7e982ff319739f3
# preset: full
# seed: 0
# device: cpu
import pandas as pd
import seaborn as sns
from matplotlib.lines import Line2D

AXES = {
    'terms, cpu': dict(
        xlabel='terms N', xscale='log', xticks=[5.0, 10.0, 20.0, 40.0, 80.0, 160.0], xticklabels=['5', '10', '20', '40', '80', '160'], xlim=(4.0, 200.0),
        ylabel='seconds of a log-prob', yscale='log', ylim=(0.0008, 1.69069),
    ),
    'probes, cpu': dict(
        xlabel='probes m', xscale='log', xticks=[4.0, 8.0, 16.0, 32.0], xticklabels=['4', '8', '16', '32'], xlim=(3.2, 40.0),
        ylabel='seconds of a log-prob', yscale='log', ylim=(0.0008, 0.367152),
    ),
    'examples, cpu': dict(
        xlabel='examples B', xscale='log', xticks=[512.0, 1024.0, 2048.0, 4096.0], xticklabels=['512', '1024', '2048', '4096'], xlim=(409.6, 5120.0),
        ylabel='seconds of a log-prob', yscale='log', ylim=(0.0008, 0.237795),
    ),
}
COLORS = {
    '64 × 128, float32': '#d55e00',
    '64 × 128, float32, fit': '#d55e00',
    '64 × 128, float32, without the constant': '#d55e00',
    '64 × 128, float64': '#0173b2',
    '64 × 128, float64, fit': '#0173b2',
    '64 × 128, float64, without the constant': '#0173b2',
    '784 × 1024, float32': '#029e73',
    '784 × 1024, float32, fit': '#029e73',
    '784 × 1024, float32, without the constant': '#029e73',
    '784 × 1024, float64': '#de8f05',
    '784 × 1024, float64, fit': '#de8f05',
    '784 × 1024, float64, without the constant': '#de8f05',
}

rows = pd.read_csv("scaling.csv", skiprows=8, dtype={"panel": str, "series": str})
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
grid.savefig("scaling-again.png")
