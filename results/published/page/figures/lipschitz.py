# figure: lipschitz
# suite: lipschitz
# resflow_bench: 0.1.0
# run: full-20261128-222223-39ec, full-20261128-222623-2f64
# commit: 23684d137db18df601b7d8c4b7e982ff319739f3
# preset: full
# seed: 0
# dim: 64
# device: cpu
import pandas as pd
import seaborn as sns
from matplotlib.lines import Line2D

AXES = {
    'panel 1': dict(
        xlabel='constant of the branch', xscale='linear', xlim=(0.0, 1.0197),
        ylabel='', yscale='linear', yticks=[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0, 16.0, 17.0, 18.0, 19.0, 20.0, 21.0, 22.0, 23.0], yticklabels=['trained, K = 0.3, float32', 'trained, K = 0.3, float64', 'trained, K = 0.5, float32', 'trained, K = 0.5, float64', 'trained, K = 0.7, float32', 'trained, K = 0.7, float64', 'trained, K = 0.9, float32', 'trained, K = 0.9, float64', 'trained, K = 0.97, float32', 'trained, K = 0.97, float64', 'trained, K = 0.99, float32', 'trained, K = 0.99, float64', 'conv, K = 0.9, float32', 'conv, K = 0.9, float64', 'multiscale, K = 0.9, float32', 'multiscale, K = 0.9, float64', 'init, K = 0.3, float32', 'init, K = 0.3, float64', 'init, K = 0.5, float32', 'init, K = 0.5, float64', 'init, K = 0.7, float32', 'init, K = 0.7, float64', 'init, K = 0.9, float32', 'init, K = 0.9, float64'], ylim=(23.6, -0.6),
    ),
}
COLORS = {
    'range': '#d7dbe0',
    'promised': '#1f2328',
    'certified': '#0173b2',
    'realised ‖J‖₂': '#d55e00',
    'spectral radius ρ': '#029e73',
}

rows = pd.read_csv("lipschitz.csv", skiprows=9, dtype={"panel": str, "series": str})
grid = sns.FacetGrid(rows, col="panel", col_wrap=1, sharex=False, sharey=False)
for (panel, kind, _), some in rows.groupby(["panel", "kind", "group"], sort=False):
    ax, color = grid.axes_dict[panel], COLORS[some["series"].iloc[0]]
    if "mark" in kind:
        sns.scatterplot(some, x="x", y="y", color=color, ax=ax)
    if kind in ['interval']:
        ax.hlines(some["y"], some["x_low"], some["x_high"], color=color)
for panel, ax in grid.axes_dict.items():
    ax.set(**AXES[panel])
    ax.minorticks_off()
grid.set_titles("{col_name}")
grid.add_legend({name: Line2D([], [], color=color, lw=4) for name, color in COLORS.items()})
grid.savefig("lipschitz-again.png")
