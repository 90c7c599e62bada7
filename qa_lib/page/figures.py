"""The figures of own data: scores by mixture, and of every seed at one mixture."""

from itertools import cycle

import pandas as pd
import seaborn as sns

from qa_lib.reports import plans

# Of a report's models in their order, so that a line is known without its colour.
DASHES = ["-", (0, (4, 1.5)), (0, (1, 1)), (0, (3, 1, 1, 1)), (0, (5, 1)), (0, (2, 2))]
MARKERS = "oXsPD^"


def draw_by_mixture(P, ledger: pd.DataFrame):
    """Draw EM over mixtures: a panel for each test set, a line for each model.

    The axis begins at 0. Error bars are the standard deviation over seeds.
    """
    em = ledger[ledger["metric"] == "em"]
    em = em.assign(model=em["model"].cat.remove_unused_categories())
    names = list(em["model"].cat.categories)
    every = plans.display_names(P.report)
    dashes = dict(zip(every, cycle(DASHES), strict=False))
    markers = dict(zip(every, cycle(MARKERS), strict=False))
    ticks = dict(zip(em["ratio"], em["mixture"], strict=True))
    grid = sns.catplot(
        em,
        x="ratio",
        y="value",
        hue="model",
        col="set",
        col_order=P.domains,
        kind="point",
        native_scale=True,
        dodge=0.08 * len(names),
        markers=[markers[n] for n in names],
        linestyles=[dashes[n] for n in names],
        palette=plans.colours(P.report),
        errorbar="sd",
        err_kws={"linewidth": 1.2},
        linewidth=1.6,
        markersize=5,
        height=2.9,
        aspect=1.05,
    )
    grid.set_titles("tested on {col_name}").set_axis_labels("", "EM (percent)")
    grid.set(xticks=list(ticks), xticklabels=list(ticks.values()), ylim=(0, None))
    sns.move_legend(grid, "lower center", bbox_to_anchor=(0.5, 1), ncols=2, title=None)
    grid.figure.tight_layout()  # also over the room that seaborn kept for the legend at the right
    grid.figure.supxlabel(f"mixture, {' : '.join(P.domains)}", y=0.0, va="top", size=11)
    return grid


def draw_seeds(P, ledger: pd.DataFrame):
    """Draw EM of every seed at one mixture: a panel for each test set, a row for each model.

    A line marks a model's mean over seeds.
    """
    em = ledger[ledger["metric"] == "em"]
    em = em.assign(model=em["model"].cat.remove_unused_categories())
    grid = sns.catplot(
        em,
        x="value",
        y="model",
        hue="model",
        col="set",
        col_order=P.domains,
        kind="strip",
        jitter=False,
        palette=plans.colours(P.report),
        size=7,
        alpha=0.8,
        height=1.9,
        aspect=1.7,
        legend=False,
    )
    for name, axes in grid.axes_dict.items():
        means = em[em["set"] == name].groupby("model", observed=True)["value"].mean()
        axes.plot(means, range(len(means)), ls="", marker="|", ms=22, mew=1.6, color="0.2")
    grid.set(xlim=(0, max(10, 1.1 * em["value"].max())), ylim=(em["model"].nunique() - 0.5, -0.5))
    return grid.set_titles("tested on {col_name}").set_axis_labels("EM (percent)", "")
