r"""Figures and tables that only the page of Bring in the ExBERT has.

own.show_routing(tokens, top, wanted, fits, …)   a sentence's tokens and their experts
own.figure_model(P)                the model of the report's Figure 1, as it is configured
own.table_scores(P, name, metric, arm)           scores by test set and mixture
own.figure_routing(P)              picks without a place, and whether domains share experts
own.figure_losses(P, part)         losses over the epochs, a panel for each value of a sweep
"""

import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from qa_lib.data import selection
from qa_lib.page import grids, looks, pieces, report, tables
from qa_lib.page.looks import Look
from qa_lib.reports import exbert, plans
from qa_lib.reports.plans import name_mixture
from qa_lib.settings.params import name_dataset
from qa_lib.settings.spec import Spec
from qa_lib.store import runs

# ---- what is printed (sections 3.1, 3.2 and 3.4) ----

# EM by test set and mixture, and by the domain that a model is trained on alone.
MIXTURES = {"v-db": {"SQuAD, 100:0": 52}, "exbert-tuned": {"SQuAD, 40:60": 50}}
SINGLE = {
    "v-db-full": {"SQuAD → SQuAD": 77, "SQuAD → BioASQ": 40, "BioASQ → SQuAD": 5},
    "exbert-full": {"SQuAD → BioASQ": 40, "BioASQ → SQuAD": 5},
}

# ---- models of a part of the page ----

COMPARED = (*exbert.HEADLINE, *exbert.DENSE)
FINAL = "exbert-tuned"
PARTS = {
    "exbert": "ST-MoE block",
    "exbert-tuned": "ST-MoE block",
    "dense-compute": "dense layer, as wide as a token's experts",
    "dense-parameters": "dense layer, as wide as all experts",
    "exbert-all-blocks": "ST-MoE block",
    "dense-all-blocks": "dense layer, as wide as a token's experts",
}
METRICS = {
    "em": "EM, in percent",
    "f1": "F1, in percent",
    "tokens": "mean length of an answer, in tokens",
    "contains": "share of answers in which the gold answer stands within a longer one, in percent",
}


# Below so many bits of mutual information a sentence of the page says that domains share experts;
# the number is chosen.
FEW_BITS = 0.1


def name_columns(P, metric: str = "em") -> dict[str, tuple]:
    """Return heading → place of every test set and mixture."""
    columns = {}
    for test_set in P.domains:
        for ratio in P.ratios:
            place = (test_set, metric, {"ratio": ratio, "order": P.order})
            columns[f"{name_dataset(P, test_set)}, {name_mixture(ratio)}"] = place
    return columns


def name_scores(P) -> dict[str, tuple]:
    """Return heading → place of EM and F1 on every test set."""
    columns = {}
    for test_set in P.domains:
        columns[f"{name_dataset(P, test_set)}, EM"] = (test_set, "em")
        columns[f"{name_dataset(P, test_set)}, F1"] = (test_set, "f1")
    return columns


def find_arm(P) -> str:
    """Return the arm that a page leads with: equal tuning, where it was run."""
    return "tuned" if "tuned" in P.arms else "printed"


def is_run(P, part: str, arm: str = "printed") -> bool:
    """Return whether a part of the study is run, in one arm."""
    return part in P.experiments and arm in P.arms


def find_runs(P, variant: str, arm: str, ratio: float | None = None) -> list[Spec]:
    """Return a model's runs in one arm, in the order of P.order; ratio: of this mixture alone."""
    specs = []
    for spec in plans.plan(P):
        if spec.variant != variant or spec.arm != arm or spec.order != P.order:
            continue
        if ratio is None or spec.ratio == ratio:
            specs.append(spec)
    return specs


# ---- the idea: tokens, experts, and places ----


def show_routing(
    tokens: list[str], top: np.ndarray, wanted: np.ndarray, fits: np.ndarray, capacity: int
) -> report.Html:
    """Return the picture of a routed sentence, from tensors of the notebook.

    top: the experts that each token asks for, best first, (T, N); wanted: whether it does ask,
    (T, N); fits: whether that expert has a place for it, (T, N). capacity: places of an expert.
    """
    top, wanted, fits = (np.asarray(x) for x in (top, wanted, fits))
    caption = (
        f"The tokens of one sentence and four experts of {capacity} places each. Thick lines are "
        "first picks, thin ones second picks. First picks are served before second ones, from the "
        "top down. A dashed line is a pick that finds its expert full."
    )
    served = int(fits.sum())
    alt = (
        f"Lines from tokens to experts: {served} picks have a place, {wanted.sum() - served} none."
    )

    def draw(look: Look) -> Figure:
        return draw_places(tokens, top, wanted, fits, capacity, look)

    return looks.show_drawing(draw, caption, alt)


def draw_places(tokens, top, wanted, fits, capacity: int, look: Look) -> Figure:
    """Draw tokens at the left, experts with their places at the right, and picks as lines."""
    experts = 4
    rows = max(len(tokens), experts * (capacity + 1))
    height = 0.165 * rows + 0.2
    fig, axes = plt.subplots(figsize=(look.width, height))
    fig.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=0.99)
    colour, soft = look.tint("#d55e00"), look.colours["soft"]
    left, right = (0.3, 0.68) if look.is_narrow else (0.24, 0.72)
    at_token = np.linspace(1, rows - 1, len(tokens))
    for y, token, is_served in zip(at_token, tokens, fits.any(1), strict=True):
        text = token if is_served else f"{token} (skips)"
        style = {"ha": "right", "va": "center", "color": look.colours["text"]}
        axes.text(left - 0.015, y, text, **style)
    tops = [1 + expert * rows / experts for expert in range(experts)]
    for expert, y in enumerate(tops):
        for place in range(capacity):
            box = {"facecolor": "none", "edgecolor": soft, "lw": 0.8}
            axes.add_patch(plt.Rectangle((right, y + place - 0.5), 0.035, 0.9, **box))
        middle = y + (capacity - 1) / 2
        axes.text(right + 0.05, middle, f"expert {expert + 1}", va="center")
    taken = [0] * experts
    for pick in range(top.shape[1]):
        for token in range(len(tokens)):
            if not wanted[token, pick]:
                continue
            expert = top[token, pick]
            start = (left, at_token[token])
            if fits[token, pick]:
                end = (right, tops[expert] + taken[expert])
                style = {"color": colour, "lw": 2.2 if pick == 0 else 1.0}
                box = {"facecolor": colour, "edgecolor": "none", "alpha": 1 if pick == 0 else 0.5}
                corner = (right, tops[expert] + taken[expert] - 0.5)
                axes.add_patch(plt.Rectangle(corner, 0.035, 0.9, **box))
                taken[expert] += 1
            else:
                end = (right - 0.03, tops[expert] + (capacity - 1) / 2)
                style = {"color": soft, "lw": 1.2, "ls": (0, (3, 2))}
                axes.plot(*end, "x", color=soft, ms=5)
            axes.plot(*zip(start, end, strict=True), solid_capstyle="butt", **style)
    axes.set(xlim=(0, 1), ylim=(rows, 0))
    axes.axis("off")
    return fig


# ---- Figure 1 ----


def figure_model(P) -> report.Html:
    """Return the model of the report's Figure 1, as it is configured here."""
    specs = find_runs(P, FINAL, P.arms[0])
    if not specs:
        return report.note_absent("headline")
    frame = pd.DataFrame({"run": [record["run"] for _, record in runs.require_records(specs)]})
    # In place of an encoder block's feed-forward layer it has the block's norm, and no layer more.
    is_in_encoder = P.place == "feed_forward"
    reads = "reads question and context"
    if is_in_encoder:
        reads = "the last without feed-forward layer"
    norm = "RMSNorm, router" if P.norm and not is_in_encoder else "router"
    padding = "padding takes places too" if P.route_padding else "padding takes no part"
    boxes = [
        (f"encoder, {P.tuned_blocks} blocks", reads),
        (f"dropout {P.layer_dropout:g}", f"placement: {P.tuned_dropout}"),
        (norm, padding),
    ]
    new = len(boxes)
    boxes.append((f"ST-MoE, {P.experts} experts", f"a token is sent to {P.top_n}"))
    if P.feed_forward != "none" and not is_in_encoder:
        boxes.append(("feed-forward", f"placement: {P.feed_forward}"))
    boxes.append(("span head", "start and end score of each token"))
    caption = "ExBERT (final) (Figure 1 of the report), from the bottom up. Orange: the experts."
    alt = "Boxes from the bottom up: " + "; ".join(f"{name}, {does}" for name, does in boxes)

    def draw(look: Look) -> Figure:
        return draw_boxes(boxes, new, look)

    return looks.save_drawing(P, "fig1_model", draw, caption, alt, frame)


def draw_boxes(boxes: list[tuple[str, str]], new: int, look: Look) -> Figure:
    """Draw a model as boxes, from the bottom up; boxes: (name, what it does); new: its new part."""
    height = 0.46 * len(boxes) + 0.3
    fig, axes = plt.subplots(figsize=(look.width, height))
    fig.subplots_adjust(left=0.01, right=0.99, bottom=0.22 / height, top=0.99)
    colours = look.colours
    for at, (name, does) in enumerate(boxes):
        edge = look.tint("#d55e00") if at == new else colours["soft"]
        style = {"facecolor": "none", "edgecolor": edge, "lw": 1.8 if at == new else 1}
        axes.add_patch(plt.Rectangle((0, at), 10, 0.7, **style))
        axes.text(0.2, at + 0.35, name, va="center", weight="bold", fontsize=9)
        axes.text(9.8, at + 0.35, does, va="center", ha="right", color=colours["soft"], fontsize=8)
        if at:
            arrow = {"arrowstyle": "->", "color": colours["soft"]}
            axes.annotate("", (5, at), (5, at - 0.3), arrowprops=arrow)
    axes.set(xlim=(-0.1, 10.1), ylim=(-0.1, len(boxes) - 0.2))
    axes.axis("off")
    return fig


# ---- scores by mixture ----


def table_scores(P, name: str, metric: str, arm: str) -> report.Html:
    """Return a score of the compared models by test set and mixture, in one arm."""
    columns = name_columns(P, metric)
    printed = {}
    if metric == "em" and arm == "printed":
        printed = keep_columns(MIXTURES, columns)
    if arm not in P.arms:
        return pieces.note_not_run(P, arm, None)
    domains = " : ".join(name_dataset(P, domain) for domain in P.domains)
    caption = f"With {pieces.ARMS[arm]}, by test set and mixture ({domains}): {METRICS[metric]}."
    has_best = metric in ("em", "f1")
    return pieces.table_grid(
        P, name, caption, list(COMPARED), columns, printed, arm=arm, has_best=has_best
    )


def keep_columns(printed: dict[str, dict[str, float]], columns: dict) -> dict:
    """Return the printed values that stand under headings of a grid."""
    kept = {}
    for variant, values in printed.items():
        of_grid = {heading: value for heading, value in values.items() if heading in columns}
        if of_grid:
            kept[variant] = of_grid
    return kept


def draw_mixtures(
    P, name: str, caption: str, variants: tuple[str, ...], arm: str = "printed"
) -> report.Html:
    """Return EM of models over the mixtures, a panel for each test set."""
    columns = {f"tested on {name_dataset(P, domain)}": (domain, "em") for domain in P.domains}
    label = f"share of {name_dataset(P, P.domains[0])} in the mixture"
    return pieces.figure_sweep(
        P, name, caption, variants, "ratio", label, columns, arm=arm, order=P.order
    )


def figure_mixtures(P, name: str, caption: str, arm: str) -> report.Html:
    """Return EM of V-DB, ExBERT (final) and control (a) over the mixtures, in one arm."""
    if not is_run(P, "headline", arm):
        return pieces.note_not_run(P, arm, "headline")
    return draw_mixtures(P, name, caption, exbert.HEADLINE, arm)


def table_steps(P, arm: str) -> report.Html:
    """Return EM of models on all encoder blocks, beside control (a) and ExBERT (final).

    At the report's settings V-DB stands there with ExBERT's rate and epochs too; with equal tuning
    each model has its own.
    """
    if not is_run(P, "steps", arm):
        return pieces.note_not_run(P, arm, "steps")
    caption = (
        "Models on all encoder blocks, beside control (a) and ExBERT (final), with "
        f"{pieces.ARMS[arm]}: EM, in percent."
    )
    variants = ["v-db", *exbert.ON_ALL_BLOCKS, "plain-tuned", FINAL]
    name = f"table_steps_{arm}"
    return pieces.table_grid(P, name, caption, variants, name_columns(P), {}, arm=arm)


def figure_untuned(P) -> report.Html:
    """Return EM of V-DB and of ExBERT before tuning over the mixtures."""
    if not is_run(P, "untuned"):
        return report.note_absent("untuned")
    caption = "EM by mixture, before ExBERT is tuned."
    return draw_mixtures(P, "fig3_untuned", caption, ("v-db", "exbert"))


def figure_ratios(P) -> report.Html:
    """Return EM of V-DB over the mixtures."""
    if not is_run(P, "ratios"):
        return report.note_absent("ratios")
    return draw_mixtures(P, "fig3_ratios", "EM of V-DB by mixture.", ("v-db",))


def table_single(P) -> report.Html:
    """Return EM of both models trained on one domain alone, with all its rows."""
    if not is_run(P, "single"):
        return report.note_absent("single")
    columns = {}
    for ratio, trained in zip((1.0, 0.0), P.domains, strict=True):
        for tested in P.domains:
            columns[f"{name_dataset(P, trained)} → {name_dataset(P, tested)}"] = (
                tested,
                "em",
                {"ratio": ratio},
            )
    variants = list(SINGLE)
    rows = " and ".join(f"{number:,}" for number in P.full_rows)
    caption = (
        f"Trained on one domain alone, {rows} rows of it, and tested on both (Figure 2 of the "
        "report): EM, in percent."
    )
    printed = keep_columns(SINGLE, columns)
    return pieces.table_grid(P, "table2_single", caption, variants, columns, printed)


def figure_sizes(P) -> report.Html:
    """Return EM of V-DB by the training rows of the first domain alone."""
    if not is_run(P, "single"):
        return report.note_absent("single")
    columns = {f"tested on {name_dataset(P, domain)}": (domain, "em") for domain in P.domains}
    caption = f"EM of V-DB by its training rows of {name_dataset(P, P.domains[0])} alone."
    variants, label = ("v-db-size",), "training rows"
    return pieces.figure_sweep(P, "fig2_sizes", caption, variants, "rows", label, columns)


def table_order(P) -> report.Html:
    """Return EM of V-DB and untuned ExBERT by the order of the training rows."""
    if not is_run(P, "order"):
        return report.note_absent("order")
    columns = {}
    for test_set in P.domains:
        for order in ("trainer", *P.orders):
            place = (test_set, "em", {"ratio": P.centre, "order": order})
            columns[f"{name_dataset(P, test_set)}, {order}"] = place
    caption = (
        f"EM by the order of the training rows, mixture {name_mixture(P.centre)}. Trainer: mixed "
        "anew in each epoch; sequential: one domain after the other; shuffled: mixed once."
    )
    return pieces.table_grid(P, "table_order", caption, ["v-db", "exbert"], columns, {})


def table_more_rows(P, arm: str) -> report.Html:
    """Return EM and F1 with more training rows, at the centre mixture."""
    if not is_run(P, "more-rows", arm):
        return pieces.note_not_run(P, arm, "more-rows")
    columns = name_scores(P)
    variants = [f"{model}-more" for model in COMPARED]
    caption = (
        f"With {pieces.ARMS[arm]} and {P.more_rows:,} training rows at {name_mixture(P.centre)}, "
        "in percent."
    )
    name = f"table_more_{arm}"
    return pieces.table_grid(P, name, caption, variants, columns, {}, arm=arm)


def figure_more_trials(P) -> report.Html:
    """Return the trials with more training rows as heat maps."""
    if not is_run(P, "more-rows", "tuned"):
        return report.note_absent("more-rows")
    return pieces.figure_trials(P, name="fig_more_trials", rows_trained=P.more_rows)


def table_longer_trials(P) -> report.Html:
    """Return EM and F1 of the models that trials with more epochs chose, at the centre mixture."""
    if not is_run(P, "longer-trials", "tuned"):
        return report.note_absent("longer-trials")
    variants = [f"{model}-longer" for model in exbert.LONGER]
    specs = [spec for spec in plans.plan(P) if spec.variant in variants]
    columns = name_scores(P)
    rows = pieces.collect_columns(runs.collect_ledger(specs), columns)
    names = []
    for row in rows.itertuples():
        name = plans.display_name(P.report, row.variant)
        names.append(f"{name}, {row.learning_rate}, {row.epochs:g} epochs")
    tried = ", ".join(f"{epochs:g}" for epochs in P.trial_epochs)
    caption = (
        f"With equal tuning over {tried} and {P.longer_epochs:g} epochs, at "
        f"{name_mixture(P.centre)}, and what each model chose: in percent."
    )
    return pieces.save_grid(P, "table_longer_trials", caption, rows.assign(model=names))


def table_trials(P) -> report.Html:
    """Return the validation loss of every trial, which decides between equal scores."""
    tried = []
    for spec in plans.plan(P):
        # Those of experiments longer-trials and more-rows are not what equal tuning chose from.
        model, is_trial, _ = spec.variant.partition("-trial")
        if is_trial and model in exbert.MODELS:
            tried.append(spec)
    if not tried:
        return report.note_absent(report.EQUAL_TUNING)
    frame = tables.trials_table(tried)
    headings = []
    for row in frame.itertuples():
        headings.append(f"{row.rate}, {row.epochs:g} epochs")
    frame = frame.assign(column=headings)
    frame["model"] = frame["model"].cat.remove_unused_categories()
    shown = frame.pivot(index="model", columns="column", values="validation_loss")
    shown = shown[list(dict.fromkeys(headings))].rename_axis(None)
    # by halving the worse half of the rates is not tried with more epochs
    shown = shown.map(lambda loss: "–" if pd.isna(loss) else f"{loss:.2f}")
    shown = shown.set_axis(list(shown.index)).set_axis(list(shown.columns), axis=1)
    classes = pd.DataFrame("number", shown.index, shown.columns)
    caption = "The trials: loss on validation rows, by learning rate and epochs. One seed."
    evidence = frame.assign(run=[(run,) for run in frame["run"]])
    return grids.save_frame(P, "table_trials", shown, classes, caption, evidence)


# ---- why: where tokens go ----


def collect_information(P) -> pd.DataFrame:
    """Return the mutual information of domain and expert: a row for each run of ExBERT (final).

    Columns: arm, ratio, seed, bits, run.
    """
    rows = []
    for arm in P.arms:
        for spec in find_runs(P, FINAL, arm):
            share = tables.collect_routing([spec])
            labels = {"arm": arm, "ratio": spec.ratio, "seed": spec.seed}
            bits = tables.mutual_information(share)
            rows.append(labels | {"bits": bits, "run": share["run"].iloc[0]})
    return pd.DataFrame(rows)


def rank_experts(share: pd.DataFrame, first: str) -> pd.DataFrame:
    """Return shares of picks with `rank`: the place of an expert by its share of the first domain.

    Experts of two seeds have nothing in common but such a place. share: tables.collect_routing.
    """
    parts = []
    for _, of_run in share.groupby("run"):
        of_first = of_run[of_run["set"] == first].set_index("expert")["share"]
        ranks = of_first.rank(ascending=False, method="first").astype(int)
        parts.append(of_run.assign(rank=of_run["expert"].map(ranks)))
    return pd.concat(parts)


def figure_routing(P) -> report.Html:
    """Return picks that found no place over training, experts by domain, and their information."""
    arm = find_arm(P)
    specs = find_runs(P, FINAL, arm, P.centre)
    if not specs:
        return report.note_absent("headline")
    steps = tables.collect_router_steps(specs)
    share = rank_experts(tables.collect_routing(specs), P.domains[0])
    information = collect_information(P)
    first = name_dataset(P, P.domains[0])
    seeds = len(specs)
    number = "One seed." if seeds == 1 else f"Lines and points: {seeds} seeds."
    caption = (
        f"ExBERT (final) with {pieces.ARMS[arm]}, at {name_mixture(P.centre)}. {number} First: "
        f"picks that found their expert full in training. {describe_dropped(P, steps)} Second: "
        f"picks of the test sets, experts sorted by their share of {first}; "
        "dotted: equal shares. Third, all mixtures: what an expert tells about the domain. "
        f"{describe_information(P, information, arm)}"
    )
    alt = "Three panels: dropped picks over training, shares of experts, mutual information."

    def draw(look: Look) -> Figure:
        return draw_routing(P, steps, share, information, look)

    frame = pd.DataFrame({"run": [*steps["run"], *information["run"]]})
    return looks.save_drawing(P, "fig_routing", draw, caption, alt, frame)


def find_least_dropped(P) -> float:
    """Return the share of picks that find no place where all tokens ask for all their experts."""
    return max(0.0, 1 - P.capacity_train / P.top_n)


def describe_dropped(P, steps: pd.DataFrame) -> str:
    """Return how many picks found no place."""
    shares = []
    for _, of_run in steps.groupby("run"):
        shares.append(runs.average_logged(of_run.to_dict("records"), "dropped"))
    low, high = f"{100 * min(shares):.0f}", f"{100 * max(shares):.0f}"
    share = low if low == high else f"{low} to {high}"
    return (
        f"Of a run's picks it is {share} %; dotted: the least there can be if all tokens ask for "
        f"{P.top_n} experts."
    )


def describe_information(P, information: pd.DataFrame, arm: str) -> str:
    """Return the mutual information at the centre mixture, as the report's experts have it."""
    bits = information[(information["arm"] == arm) & (information["ratio"] == P.centre)]["bits"]
    low, high = f"{bits.min():.2f}", f"{bits.max():.2f}"
    value = low if low == high else f"{low} to {high}"
    shared = " So both domains share their experts." if bits.max() < FEW_BITS else ""
    return (
        f"At {name_mixture(P.centre)} it is {value} bits; with separate experts it would be "
        f"1.{shared}"
    )


def draw_routing(P, steps, share, information, look: Look) -> Figure:
    """Draw the three panels of `figure_routing`, side by side or one below the other."""
    shape = (3, 1) if look.is_narrow else (1, 3)
    height = 7.6 if look.is_narrow else 2.9
    size = (look.width, height)
    fig, panels = plt.subplots(*shape, figsize=size, layout="constrained")
    fig.get_layout_engine().set(rect=(0, 0.2 / height, 1, 1 - 0.2 / height))
    colour = look.model_colour(P.report, FINAL)
    dropped, experts, bits = panels
    for _, run in steps.groupby("run"):
        done = 100 * run["step"] / run["step"].max()
        dropped.plot(done, 100 * run["dropped"], color=colour, lw=1)
    dropped.axhline(100 * find_least_dropped(P), color=look.colours["text"], lw=1, ls=":")
    dropped.set(ylim=(0, 100), xlim=(0, 100), xlabel="training done, %")
    dropped.set_title("picks without a place, %", fontsize=10)
    draw_shares(experts, P, share, look)
    draw_information(bits, P, information, look)
    return fig


def draw_shares(axes, P, share: pd.DataFrame, look: Look):
    """Draw the share of each expert by domain: a point for each seed, a line for the mean."""
    colour = look.model_colour(P.report, FINAL)
    soft = look.colours["soft"]
    styles = {P.domains[0]: ("o", colour, colour, "-"), P.domains[1]: ("s", soft, look.bar, "--")}
    for place, (name, (mark, shade, pale, line)) in enumerate(styles.items()):
        of_set = share[share["set"] == name]
        means = 100 * of_set.groupby("rank")["share"].mean()
        axes.plot(of_set["rank"], 100 * of_set["share"], mark, color=pale, ms=2)
        axes.plot(means.index, means, line, color=shade, lw=1.4)
        at = {"xycoords": "axes fraction", "ha": "right", "va": "top", "color": shade}
        axes.annotate(name_dataset(P, name), (0.98, 0.97 - 0.12 * place), weight="bold", **at)
    axes.axhline(100 / P.experts, color=look.colours["text"], lw=1, ls=":")
    axes.set(xlabel="expert, by rank", ylim=(0, 135 * share["share"].max()))
    for axis in (axes.xaxis, axes.yaxis):
        axis.get_major_locator().set_params(integer=True)
    axes.set_title("share of picks, %", fontsize=10)


def draw_information(axes, P, information: pd.DataFrame, look: Look):
    """Draw the mutual information of every run, a row for each mixture and arm."""
    marks = {"tuned": ("D", "equal tuning"), "printed": ("o", "report's settings")}
    colour = look.model_colour(P.report, FINAL)
    ticks, labels = [], []
    y = 0.0
    for ratio in sorted(information["ratio"].unique()):
        ticks.append(y + 0.4 * (len(P.arms) - 1) / 2)
        labels.append(name_mixture(ratio))
        for arm, (mark, _) in marks.items():
            is_row = (information["ratio"] == ratio) & (information["arm"] == arm)
            values = information[is_row]["bits"]
            if values.empty:
                continue
            face = colour if arm == "tuned" else look.colours["page"]
            axes.plot(values, [y] * len(values), mark, color=colour, mfc=face, ms=5)
            y += 0.4
        y += 0.6
    axes.set_yticks(ticks, labels)
    axes.set(ylim=(y - 0.4, -0.5), xlim=(0, None), xlabel="information, bits")
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x")
    named = []
    for arm, (mark, words) in marks.items():
        if arm in P.arms:
            named.append(f"{'◆' if mark == 'D' else '○'} {words}")
    axes.set_title("\n".join(named), fontsize=9, color=colour)


def figure_balance(P) -> report.Html:
    """Return the router in training, by the coefficient of the balance loss."""
    specs = find_sweep(P, "balance")
    if not specs:
        return report.note_absent("balance")
    steps = tables.collect_router_steps(specs)
    caption = (
        "The router in training, by the coefficient β of the balance loss: the load of the largest "
        "expert, in even shares, and the picks that found their expert full. "
        + pieces.describe_means(steps)
    )
    alt = "Two panels over training, a line for each coefficient."

    def draw(look: Look) -> Figure:
        return draw_balance(P.report, steps, look)

    return looks.save_drawing(P, "fig_balance", draw, caption, alt, steps)


def find_sweep(P, part: str) -> list[Spec]:
    """Return ExBERT's runs of one sweep, as a plan of that part alone has them.

    There are none where the part is not of the study, and none with equal tuning.
    """
    if part not in P.experiments or "printed" not in P.arms:
        return []
    alone = P.model_copy(update={"experiments": [part], "arms": ["printed"]})
    return find_runs(alone, "exbert-curve", "printed", P.centre)


def draw_balance(slug: str, steps: pd.DataFrame, look: Look) -> Figure:
    """Draw the largest load and the dropped picks over steps, a shade for each coefficient."""
    shape = (2, 1) if look.is_narrow else (1, 2)
    height = 5.0 if look.is_narrow else 2.7
    size = (look.width, height)
    fig, panels = plt.subplots(*shape, figsize=size, layout="constrained")
    fig.get_layout_engine().set(rect=(0, 0.2 / height, 1, 1 - 0.5 / height))
    coefficients = sorted(steps["balance"].unique())
    titles = {"largest load": "largest load, even shares", "dropped": "picks without a place, %"}
    for axes, (column, title) in zip(panels, titles.items(), strict=True):
        for place, coefficient in enumerate(coefficients):
            of_one = steps[steps["balance"] == coefficient]
            means = of_one.groupby("step")[column].mean()
            scale = 100 if column == "dropped" else 1
            shade = fade(look, look.model_colour(slug, FINAL), place, len(coefficients))
            axes.plot(means.index, scale * means, color=shade, marker="o", ms=3)
        axes.set_title(title, fontsize=10)
        axes.set(xlabel="step", ylim=(0, None))
    for place, coefficient in enumerate(coefficients):
        shade = fade(look, look.model_colour(slug, FINAL), place, len(coefficients))
        x = 0.02 + 0.2 * place
        fig.text(x, 1 - 0.14 / height, f"β = {coefficient:g}", color=shade, weight="bold")
    return fig


def fade(look: Look, colour: str, place: int, number: int) -> str:
    """Return a colour's shade at a place of a scale: the last one is the colour itself."""
    share = 0.45 + 0.55 * (place + 1) / number
    ground = to_rgb(look.colours["page"])
    mixed = [share * c + (1 - share) * g for c, g in zip(to_rgb(colour), ground, strict=True)]
    return to_hex(mixed)


def table_balance(P) -> report.Html:
    """Return EM by the coefficient of the balance loss."""
    specs = find_sweep(P, "balance")
    if not specs:
        return report.note_absent("balance")
    columns = {name_dataset(P, test_set): (test_set, "em") for test_set in P.domains}
    rows = pieces.collect_columns(runs.collect_ledger(specs), columns)
    rows = rows.assign(model=rows["balance"].map("β = {:g}".format))
    rows = rows.sort_values("balance", kind="stable")
    caption = "EM by the coefficient of the balance loss."
    return pieces.save_grid(P, "table_balance", caption, rows)


# ---- losses over the epochs ----

# Part of the study: the name of its figure, the column of a panel, and the caption.
SWEEPS = {
    "blocks": ("fig4_blocks", "blocks", "number of encoder blocks (Figure 4 of the report)"),
    "experts": ("fig_experts", "experts", "number of experts"),
    "rates": ("fig5_rates", "rate", "learning rate (Figure 5 of the report)"),
    "dropout": ("fig_dropout", "dropout", "place and rate of dropout"),
}


def figure_losses(P, part: str) -> report.Html:
    """Return the losses of ExBERT over the epochs, a panel for each value of a sweep."""
    name, by, words = SWEEPS[part]
    specs = find_sweep(P, part)
    if not specs:
        return report.note_absent(part)
    rows = tables.add_display_names(runs.collect_histories(specs))
    caption = f"Losses of ExBERT by the {words}."
    is_slow = rows["learning_rate"] != P.tuned_rate
    if part == "dropout" and is_slow.any():
        # the same place and rate of dropout may be run at the others' learning rate too
        rows.loc[is_slow, by] += ", slow"
        rate = rows[is_slow]["learning_rate"].iloc[0]
        caption += f" Slow: learning rate {rate:g}; the others have {P.tuned_rate:g}."
    return save_losses(P, name, rows, by, caption)


def figure_plain_losses(P) -> report.Html:
    """Return the losses of V-DB over the epochs, at its own rate and at ExBERT's."""
    specs = find_runs(P, "v-db-curve", "printed", P.centre)
    if not specs:
        return report.note_absent("rates")
    rows = tables.add_display_names(runs.collect_histories(specs))
    caption = "Losses of V-DB, at its own learning rate and at ExBERT (final)'s."
    return save_losses(P, "fig_loss_vdb", rows, "rate", caption)


def save_losses(P, name: str, rows: pd.DataFrame, by: str, caption: str) -> report.Html:
    """Return losses over the epochs as a figure, a panel for each value of a column."""
    means = pieces.describe_means(rows)
    caption = f"{caption} Rings: the lowest loss on validation rows. {means}"
    alt = f"Training and validation loss over epochs, a panel for each value of {by}."

    def draw(look: Look) -> Figure:
        return draw_losses(rows, by, look)

    return looks.save_drawing(P, name, draw, caption, alt, rows)


def draw_losses(rows: pd.DataFrame, by: str, look: Look) -> Figure:
    """Draw training and validation loss over epochs, a panel for each value of a column."""
    values = list(rows.sort_values(by, kind="stable")[by].unique())
    columns = min(len(values), 2 if look.is_narrow else 4)
    lines = -(-len(values) // columns)
    height = 1.7 * lines + 0.6
    size = (look.width, height)
    fig, panels = plt.subplots(
        lines, columns, figsize=size, squeeze=False, sharey=True, layout="constrained"
    )
    fig.get_layout_engine().set(rect=(0, 0.2 / height, 1, 1 - 0.5 / height))
    slug, variant = rows["report"].iloc[0], rows["variant"].iloc[0]
    styles = {
        "train_loss": ("training", look.colours["soft"], "--"),
        "validation_loss": ("validation", look.model_colour(slug, variant), "-"),
    }
    for axes, value in zip(panels.flat, values, strict=False):
        of_value = rows[rows[by] == value]
        for column, (_, colour, line) in styles.items():
            means = of_value.groupby("epoch")[column].mean()
            axes.plot(means.index, means, line, color=colour, marker="o", ms=3)
        lowest = of_value.groupby("epoch")["validation_loss"].mean()
        ring = {"mfc": "none", "mec": look.colours["text"], "ms": 10}
        axes.plot(lowest.idxmin(), lowest.min(), "o", clip_on=False, **ring)
        text = f"{value:g}" if isinstance(value, float) else str(value)
        axes.set_title(textwrap.shorten(f"{by}: {text}", 26), fontsize=9)
        axes.set_xticks(sorted(of_value["epoch"].unique()))
    for axes in panels.flat[len(values) :]:
        axes.axis("off")
    for axes in panels[-1]:
        axes.set_xlabel("epoch")
    for place, (name, colour, _) in enumerate(styles.values()):
        x = 0.02 + (0.45 if look.is_narrow else 0.25) * place
        y = 1 - 0.2 / height
        fig.text(x, y, f"{name} loss", color=colour, weight="bold")
    return fig


def figure_learning(P) -> report.Html:
    """Return the losses of the compared models after each epoch, at the centre mixture."""
    arm = find_arm(P)
    specs = []
    for variant in exbert.HEADLINE:
        specs += find_runs(P, variant, arm, P.centre)
    if not specs:
        return report.note_absent("headline")
    caption = f"Losses after each epoch with {pieces.ARMS[arm]}, at {name_mixture(P.centre)}."
    alt = "Training and validation loss by epoch, a line for each model."
    return pieces.figure_losses(P, specs, caption, alt)


# ---- data, cost, answers ----


def table_data(P) -> report.Html:
    """Return the two test sets, and what the encoder has seen of them."""
    specs = [spec for spec in plans.plan(P) if spec.tests == P.domains]
    caption = (
        "The two domains. A dataset that the encoder has met in its own training is no clean test."
    )
    return report.save_table(P, "table_data", tables.describe_datasets(P, specs), caption)


def table_mixtures(P) -> report.Html:
    """Return what V-DB is trained on at the first seed: rows, windows, and rows left out."""
    specs = [s for s in find_runs(P, "v-db", P.arms[0]) if s.seed == P.seeds[0]]
    if not specs:
        return report.note_absent("ratios")
    _, record = runs.require_records(specs)[0]
    frame = tables.collect_costs(specs).fillna(0)
    frame = frame[["mixture", *P.domains, *record["data"], "run"]].sort_values(P.domains[0])
    names = {domain: name_dataset(P, domain) for domain in P.domains}
    # as records count the rows whose answer's place in the text is guessed
    names["offset=guess left out of training"] = "rows left out: answer's place guessed"
    frame = frame.rename(columns=names)
    caption = f"What V-DB is trained on with seed {P.seeds[0]}: rows, windows, rows left out."
    return report.save_table(P, "table_mixtures", frame, caption, digits=0)


def table_cost(P) -> report.Html:
    """Return weights, time, speed and memory of each model."""
    specs = []
    for variant in exbert.MODELS:
        specs += find_runs(P, variant, P.arms[0])
    if not specs:
        return report.note_absent("models")
    costs = tables.collect_costs(specs)
    frame = costs.groupby(["model", "device"], observed=True, as_index=False).agg(
        parameters=("parameters", "max"),
        active_parameters=("active_parameters", "max"),
        seconds=("seconds", "median"),
        tokens_per_second=("tokens_per_second", "median"),
        peak_memory_mb=("peak_memory_mb", "min"),
        run=("run", lambda names: tuple(dict.fromkeys(names))),
    )
    caption = (
        f"Cost with {pieces.ARMS[P.arms[0]]}: weights, those that a token meets "
        "where no expert is full, seconds for training and scoring a run and training tokens in a "
        "second (medians), and the least of the runs' peaks of memory. The machine may have had "
        "other work."
    )
    return report.save_table(P, "table_cost", frame, caption, digits=0)


def table_answers(P) -> report.Html:
    """Return answers of V-DB and ExBERT (final) to the same questions, chosen by rule."""
    first = {}
    for variant in (FINAL, "v-db"):
        for spec in find_runs(P, variant, P.arms[0], P.centre):
            if spec.seed == P.seeds[0]:
                first[variant] = spec
    if len(first) < 2:
        return report.note_absent("headline")
    frame = tables.answers_table(P, first[FINAL], first["v-db"], selection.load_test_sets)
    caption = (
        "Answers of V-DB and ExBERT (final), first seed (the report's Table 1). Of each test set, "
        "in the order of ids: the first two questions that only one model answers exactly, for "
        "each model, and the first that neither does. Of real data their place in the context, in "
        "characters."
    )
    return report.save_table(P, "table1_answers", frame, caption)
