"""The figure of the suite's section."""

import seaborn as sns

from resflow_bench.report.picture import Picture
from resflow_bench.report.style import make_panels, themed


@themed
def error(cells, columns=3):
    """The error against the number of terms."""
    figure, (axes,) = make_panels(1, columns)
    sns.lineplot(cells, x="n_terms", y="error", hue="lipschitz", marker="o", ax=axes)
    axes.set(yscale="log", xlabel="terms N", ylabel="error (nat)")
    return figure


PICTURES = (Picture("my_suite", error, "The error falls as the next term of the series does."),)
