"""How many terms does the log-determinant of a trained flow need?

A script in cells: run it whole, `python docs/from_question_to_figure.py`, or cell by cell in an
editor that knows the percent format (VS Code, PyCharm, Spyder, Jupytext).
"""

# %% [markdown]
# The log-determinant is a series, and an estimate stops after N terms. How large must N be for a
# bias of at most 0.01 nat? The theorem that uses the Lipschitz constant K alone gives one answer,
# the trained flow another.

# %%
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns

import resflow_bench
from resflow_bench.theory import truncation_bias_bound

TARGET = 0.01  # nat

# %% Measure: one cell for each N, on the flow that comes with the package
rows = resflow_bench.measure(
    "bias",
    preset="smoke",
    model="trained",
    lipschitz=0.9,
    truncation="fixed",
    n_terms=(1, 2, 4, 7, 10, 14),
)

# %% One line for each N: measured, computed from the Jacobian without sampling, and the bound
kinds = {"bias_paired": "measured", "bias_expected": "exact", "bias_bound": "bound from K = 0.9"}
chosen = rows[rows["metric"].isin(kinds)]
table = chosen.assign(kind=chosen["metric"].map(kinds), size=chosen["value"].abs())
print(table.pivot(index="n_terms", columns="kind", values="size")[list(kinds.values())].round(4))

# %% The figure, with the 99 % intervals of what was measured
figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
sns.lineplot(table, x="n_terms", y="size", hue="kind", style="kind", markers=True, ax=axes)
measured = table[table["kind"] == "measured"]
axes.vlines(measured["n_terms"], measured["ci_low"], measured["ci_high"], color="C0", linewidth=3)
axes.axhline(TARGET, color="grey", linestyle=":")
axes.set(yscale="log", xlabel="terms N", ylabel="|bias|, nat")
axes.get_legend().set_title(None)
figure.savefig("from_question_to_figure.svg")

# %% The answer
exact = table[table["kind"] == "exact"].set_index("n_terms")["size"]
enough = exact[exact <= TARGET].index.min()
n_terms = np.arange(1, 300)
bound = 8 * truncation_bias_bound(0.9, dim=64, n_terms=n_terms)  # the flow has 8 blocks
promised = n_terms[bound <= TARGET].min()
print(f"{enough} terms are enough for {TARGET} nat; K = 0.9 alone would ask for {promised}.")
