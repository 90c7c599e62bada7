"""Figures that several experiments share: scores by mixture, losses by epoch, a model as boxes."""

from itertools import cycle

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns

from qa_lib.reports import plans

# Of a report's models in their order, so that a line is known without its colour.
DASHES = ["-", (0, (4, 1.5)), (0, (1, 1)), (0, (3, 1, 1, 1)), (0, (5, 1)), (0, (2, 2))]
MARKERS = "oXsPD^"


def shades_of(report: str, variant: str, n: int) -> list:
    """Return a model's colour and n − 1 lighter shades of it, for figures that split one model."""
    colour = plans.colours(report)[plans.display_name(report, variant)]
    return sns.light_palette(colour, n + 1, reverse=True)[:n]


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


def draw_losses(history: pd.DataFrame, by: str, words: str):
    """Draw training and validation loss over epochs, a panel for each value of `by`.

    A ring marks the lowest validation loss. words: what a panel's title says before the value.
    """
    losses = history.rename(columns=lambda name: name.removesuffix("_loss"))
    colours = shades_of(history["report"].iloc[0], history["variant"].iloc[0], 2)
    if losses[by].dtype == "category":
        # Each unused category would have an empty panel.
        losses[by] = losses[by].cat.remove_unused_categories()
    long = losses.melt([by, "epoch", "run", "seed"], ["train", "validation"], "loss on")
    grid = sns.relplot(
        long,
        x="epoch",
        y="value",
        hue="loss on",
        style="loss on",
        col=by,
        col_wrap=min(losses[by].nunique(), 4),
        kind="line",
        markers=True,
        errorbar="sd",
        palette=colours,
        height=2.1,
        aspect=0.95,
    )
    mean = losses.groupby([by, "epoch"], observed=True)["validation"].mean()
    for value, axes in grid.axes_dict.items():
        axes.scatter(
            mean[value].idxmin(),
            mean[value].min(),
            s=110,
            facecolors="none",
            edgecolors="0.2",
            zorder=5,
            clip_on=False,
        )
    grid.set_titles(f"{words} {{col_name}}")
    grid.set(xticks=sorted(long["epoch"].unique()))
    grid.set_axis_labels("epoch", "loss")
    sns.move_legend(grid, "lower center", bbox_to_anchor=(0.5, 1), ncols=2, title=None)
    return grid


def draw_calibration(report: str, variant: str, bins: pd.DataFrame):
    """Draw how often an expert was right against the weight that the gate gave it.

    A panel for each of the two meanings of "right". On the dashed diagonal a weight is a
    probability.
    A point's area grows with the number of pairs. bins: of tables.calibration_bins.
    """
    grid = sns.relplot(
        bins,
        x="weight",
        y="share",
        col="of",
        size="pairs",
        sizes=(15, 150),
        color=shades_of(report, variant, 1)[0],
        height=2.9,
        aspect=1.15,
    )
    for axes in grid.axes.flat:
        axes.axline((0, 0), slope=1, color="0.3", ls="--", lw=1)
    grid.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03)).set_titles("{col_name}")
    return grid.set_axis_labels("weight of the gate", "share of pairs")


def draw_routing(report: str, variant: str, steps: pd.DataFrame):
    """Draw the largest load and the share of dropped assignments over training steps.

    steps: tables.collect_router_steps; a line for each coefficient of the balance loss.
    """
    long = steps.rename(columns={"balance": "coefficient"})
    long = long.melt(["coefficient", "step", "run"], ["largest load", "dropped"], "what")
    grid = sns.relplot(
        long,
        x="step",
        y="value",
        hue="coefficient",
        style="coefficient",
        col="what",
        kind="line",
        errorbar="sd",
        palette=shades_of(report, variant, long["coefficient"].nunique()),
        height=2.6,
        aspect=1.1,
        facet_kws={"sharey": False},
    )
    return grid.set_titles("{col_name}").set_axis_labels("step", "")


def draw_stack(boxes: list[tuple[str, str, bool]], wide: list[str]):
    """Draw a model as a stack of boxes, from bottom to top.

    boxes: (name, what it does, whether it is the new part); wide: the experts, which are drawn side
    by side in the new part.
    """
    fig, axes = plt.subplots(figsize=(6.0, 0.62 * len(boxes) + 0.9))
    gap = 0.28
    bottom = 0.0
    for i, (name, does, new) in enumerate(boxes):
        height = 1.7 if new and wide else 0.8
        colour = "#fbe3d6" if new else "#e8eef4"
        box = plt.Rectangle((0, bottom), 10, height, facecolor=colour, edgecolor="0.35")
        axes.add_patch(box)
        y = bottom + height - 0.4
        axes.text(0.2, y, name, va="center", weight="bold")
        axes.text(9.8, y, does, va="center", ha="right", color="0.25", fontsize=9)
        if new and wide:
            draw_experts(axes, wide, bottom)
        top = bottom + height
        if i < len(boxes) - 1:
            arrow = {"arrowstyle": "->", "color": "0.35"}
            axes.annotate("", (5, top + gap), (5, top), arrowprops=arrow)
        bottom = top + gap
    axes.set(xlim=(-0.1, 10.1), ylim=(-0.1, bottom))
    axes.axis("off")
    return fig


def draw_experts(axes, names: list[str], bottom: float):
    """Draw the experts side by side, in the box that begins at `bottom`."""
    step = 9.6 / len(names)
    for i, name in enumerate(names):
        corner = (0.2 + (i + 0.07) * step, bottom + 0.12)
        box = plt.Rectangle(corner, 0.86 * step, 0.62, facecolor="white", edgecolor="#d55e00")
        axes.add_patch(box)
        x = 0.2 + (i + 0.5) * step
        axes.text(x, bottom + 0.43, name, ha="center", va="center", fontsize=8)
