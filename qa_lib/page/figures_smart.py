r"""Figures and tables that only the page of Walk Less and Only Down Smooth Valleys has.

own.show_ball(start, step, delta, radius)   a perturbation and the ball that it stays in
own.figure_architectures(P)                 the models, from their configuration
own.figure_terms(P)                         size of SMART's term in training
own.describe_terms(P)                       whether that term could matter at all
own.table_contamination(P)                  what the encoder has seen, with the frozen score
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from qa_lib.data import selection
from qa_lib.data.batches import RoundRobin
from qa_lib.page import grids, looks, pieces, report, tables
from qa_lib.page.looks import Look
from qa_lib.reports import plans
from qa_lib.settings import params
from qa_lib.settings.params import name_dataset
from qa_lib.settings.spec import Spec
from qa_lib.store import runs

# ---- what is printed (smart.txt, Tables 1 and 2) ----

SCORES = ("Sentiment", "Paraphrase", "Similarity")
FILMS = "Sentiment, films"
SECONDS = "Seconds an epoch"
CALIBRATION = "calibration error"
ALTERATIONS = {"typos": "with typing mistakes", "swaps": "with words swapped"}
TABLE_1 = {
    "pretrain": {"Sentiment": 39.3, FILMS: 78.8},
    "finetune": {"Sentiment": 52.2, FILMS: 96.3},
}
HANDOUT = {
    "pretrain": {"Sentiment": 39.0, FILMS: 78.0},
    "finetune": {"Sentiment": 51.5, FILMS: 96.6},
}
ROWS_OF_TABLE_2 = {
    "pretrain": (39.6, 38.0, 1.9, 9),
    "finetune": (52.5, 52.2, 24.0, 25),
    "smart": (52.0, 50.1, 38.2, 161),
    "rrobin": (52.4, 72.6, 58.3, 67),
    "rrobin-smart": (53.2, 74.1, 68.0, 464),
    "rrobin-pre-smart": (51.9, 85.1, 69.0, 3037),
    "rrobin-full": (49.8, 86.3, 76.2, 1420),
    "rrobin-full-smart": (48.5, 85.0, 71.4, 4549),
    "rrobin-full-layer": (50.1, 86.7, 80.2, 1550),
}
TABLE_2 = {
    variant: dict(zip(SCORES, scores, strict=True))
    for variant, (*scores, _) in ROWS_OF_TABLE_2.items()
}
TABLE_2_SECONDS = {
    variant: {SECONDS: seconds} for variant, (*_, seconds) in ROWS_OF_TABLE_2.items()
}

# These models and two controls, each beside the one that it is of: as many steps as SMART takes,
# and every loss a mean.
COMPARED = list(TABLE_2)
COMPARED.insert(COMPARED.index("rrobin") + 1, "rrobin-16")
COMPARED.insert(COMPARED.index("rrobin-full") + 1, "rrobin-full-scaled")

# F1 of each class of sentiment, of the report's best model (the authors' final report).
CLASSES = {"rrobin-full-layer": {"F1 0": 36, "F1 1": 58, "F1 2": 26, "F1 3": 60, "F1 4": 43}}

# ---- models of a part of the page ----

PARTS = {
    "pretrain": "encoder not trained",
    "smart": "SMART's terms",
    "rrobin": "three heads",
    "rrobin-16": "three heads",
    "rrobin-smart": "three heads, SMART's terms",
    "rrobin-pre-smart": "three heads, SMART's terms",
    "rrobin-full": "three heads",
    "rrobin-full-scaled": "three heads",
    "rrobin-full-smart": "three heads, SMART's terms",
    "rrobin-full-layer": "three heads, relational layer",
}
WITH_SMART = ("smart", "rrobin-smart", "rrobin-pre-smart", "rrobin-full-smart")
DEGENERATE = ("rrobin", "rrobin-smart", "rrobin-smart-softmax")
ALTERED = ("finetune", "smart", "rrobin", "rrobin-smart")
COMPARED_WITH_NOISE = ("finetune", "smart")
GAUSSIAN = "smart-gaussian"  # its runs differ in the standard deviation of the noise
NOISE = ("smart-dropout", "smart-unit-norm", "smart-r3f", GAUSSIAN)
CONTROLS = (
    "heads-only",
    "rrobin-16",
    "rrobin-long",
    "rrobin-full-16",
    "rrobin-full-scaled",
    "rrobin-full-no-quora",
    "layer-unshared",
    "rrobin-distribution",
)
GAINS = ("rrobin", "rrobin-smart", "rrobin-full", "rrobin-full-layer")


def name_columns(P, films: bool = False) -> dict[str, tuple[str, str]]:
    """Return heading → (set, metric) of the three tasks; films: of the two sets of sentiment."""
    sentiment, paraphrase, similarity = P.domains
    first = {SCORES[0]: (sentiment, "accuracy")}
    if films:
        return first | ({FILMS: (P.reviews, "accuracy")} if P.reviews else {})
    return first | {SCORES[1]: (paraphrase, "accuracy"), SCORES[2]: (similarity, "pearson")}


def list_single(P) -> list[str]:
    """Return the variants of Table 1: models of one task, and beside reviews SMART too."""
    if "reviews" not in P.experiments:
        return list(TABLE_1)
    models = [*TABLE_1, "smart"]
    return models + [f"{model}-{P.reviews}" for model in models]


def name_altered_columns(P) -> dict[str, tuple[str, str]]:
    """Return heading → (set, metric) of sentiment as it is written, and altered."""
    columns = {SCORES[0]: (P.domains[0], "accuracy")}
    for name in P.altered_tests:
        rule = params.read_datasets(P.source, P.data)[name].altered
        columns[ALTERATIONS[rule]] = (name, "accuracy")
    return columns


def name_class_columns(P) -> dict[str, tuple[str, str]]:
    """Return heading → (set, metric) of the classes of sentiment, and of calibration."""
    sentiment = P.domains[0]
    columns = {f"F1 {number}": (sentiment, f"f1_{number}") for number in range(5)}
    return columns | {CALIBRATION: (sentiment, "ece")}


# Ratios of gradient norms, λR_s to L, that a sentence of the page is chosen by. Both are chosen:
# below the first a step is practically that of the loss alone, below the second nearly so.
TOO_SMALL = 0.01
SMALL = 0.1


# ---- the idea: one example, pushed within its ball ----


def show_ball(
    start: np.ndarray, delta: np.ndarray, by_radius: pd.DataFrame, radius: float
) -> report.Html:
    """Return the picture of a perturbation, from tensors of the notebook.

    start, delta: the Gaussian start, and the perturbation after one ascent step and its projection
    to the ball, (T, D) each, of one example. by_radius: columns radius, adversarial and noise: the
    divergence of the outputs along δ, and along random signs of the same size. radius: ε.
    """
    caption = (
        "First panel: the coordinates of one sentence's perturbation, in multiples of ε. The "
        "ascent step leaves the ball, and the projection brings it back to the surface. Second "
        "panel: how far the outputs move along that direction, and along noise of the same size. "
        "The dotted line is ε; the divergence grows with the square of the size."
    )
    alt = "A histogram of coordinates, most of them at −1 and 1, and two curves that rise."
    start, delta = np.asarray(start) / radius, np.asarray(delta) / radius

    def draw(look: Look) -> Figure:
        return draw_ball(start, delta, by_radius, radius, look)

    return looks.show_drawing(draw, caption, alt)


def draw_ball(
    start: np.ndarray, delta: np.ndarray, by_radius: pd.DataFrame, radius: float, look: Look
) -> Figure:
    """Draw the coordinates of a perturbation, in radii, and how far the outputs move with it."""
    shape = (2, 1) if look.is_narrow else (1, 2)
    height = 5.2 if look.is_narrow else 2.7
    fig, (left, right) = plt.subplots(*shape, figsize=(look.width, height), layout="constrained")
    bins = np.linspace(-3, 3, 61)
    noise, adversary = look.bar, look.tint("#d55e00")
    left.hist(start.ravel(), bins, color=noise)
    left.hist(delta.ravel(), bins, color=adversary, alpha=0.85)
    left.set(xlabel="coordinate of δ, in ε", ylabel="coordinates")
    place = {"xycoords": ("data", "axes fraction"), "va": "top"}
    grey = look.colours["soft"]
    left.annotate("Gaussian\nstart", (-1.15, 0.4), color=grey, ha="right", **place)
    left.annotate("in the\nball", (1.15, 0.95), color=adversary, ha="left", **place)
    right.loglog(by_radius["radius"], by_radius["adversarial"], color=adversary)
    right.loglog(by_radius["radius"], by_radius["noise"], color=look.colours["soft"])
    right.axvline(radius, color=look.colours["text"], lw=1, ls=":")
    right.set(xlabel="size of the perturbation", ylabel="divergence of outputs")
    right.minorticks_off()
    last = by_radius.iloc[-3]
    above = {"textcoords": "offset points", "xytext": (-6, 4), "ha": "right"}
    below = {"textcoords": "offset points", "xytext": (6, -12), "ha": "left"}
    right.annotate("adversarial", (last["radius"], last["adversarial"]), color=adversary, **above)
    at = (last["radius"], last["noise"])
    right.annotate("noise", at, color=look.colours["soft"], **below)
    return fig


# ---- the models, from their configuration ----


def figure_architectures(P, variants: tuple[str, str]) -> report.Html:
    """Return the report's Figures 1 and 2, as the models are configured here.

    variants: a model without and one with the relational layer.
    """
    specs = [find_first(P, variant) for variant in variants]
    specs = [spec for spec in specs if spec is not None]
    if not specs:
        return report.note_absent("models")
    frame = pd.DataFrame({"run": [record["run"] for _, record in runs.require_records(specs)]})
    models = "Two models as they are" if len(specs) == 2 else "A model as it is"
    caption = (
        f"{models} configured here (the report's Figures 1 and 2). The tasks take "
        "turns, a batch each. Below a task stand the rows of its batch."
    )
    alt = "; ".join(
        f"{plans.display_name(P.report, spec.variant)}: "
        + ", ".join(f"{dataset} by {head}" for dataset, head, _, _ in describe_heads(spec))
        for spec in specs
    )

    def draw(look: Look) -> Figure:
        return draw_architectures(P.report, specs, look)

    return looks.save_drawing(P, "fig_architectures", draw, caption, alt, frame)


def find_first(P, variant: str) -> Spec | None:
    """Return the first run of a variant, or None where the plan has none."""
    return next((spec for spec in plans.plan(P) if spec.variant == variant), None)


def describe_heads(spec: Spec) -> list[tuple[str, str, bool, str]]:
    """Return (dataset, head, whether it reads the relational layer, rows a batch) of a run."""
    schedule = None
    if spec.multitask:
        lengths = {d: [1] * rows for d, rows in zip(spec.domains, spec.rows, strict=True)}
        schedule = RoundRobin(lengths, spec.batch_size, spec.multitask, spec.seed)
    described = []
    for dataset, rows in zip(spec.domains, spec.rows, strict=True):
        d = selection.find_dataset(dataset, spec.source, spec.folder)
        reads = spec.heads.relational != "none" and d.text_pair is not None
        head = f"{len(d.classes)} classes" if d.task == "classes" else spec.heads.score
        if d.text_pair is not None and d.task == "classes":
            head = "[u; v; |u − v|]"
        if reads:
            head = "yes or no" if d.task == "classes" else "score"
        batch = min(spec.batch_size, rows)
        if schedule and schedule.is_full:
            batch = min(batch, max(1, round(rows / schedule.rounds)))
        described.append((d.display_name or dataset, head, reads, f"{batch} rows"))
    return described


def draw_architectures(slug: str, specs: list[Spec], look: Look) -> Figure:
    """Draw a panel for each run: the encoder, the relational layer, the heads, and batch sizes."""
    heights = [measure_height(spec) for spec in specs]
    if not look.is_narrow:
        heights = [max(heights)] * len(specs)
    shape = (len(specs), 1) if look.is_narrow else (1, len(specs))
    rows = heights[: shape[0]]
    size = (look.width, 0.52 * sum(rows))
    fig, panels = plt.subplots(
        *shape, figsize=size, height_ratios=rows, squeeze=False, layout="constrained"
    )
    for axes, spec, height in zip(panels.flat, specs, heights, strict=True):
        draw_architecture(axes, spec, look)
        axes.set_ylim(-0.7, height - 0.7)
        axes.set_title(plans.display_name(slug, spec.variant), fontsize=10)
    return fig


def measure_height(spec: Spec) -> float:
    """Return the height of a model's picture, in its own unit: a box is 1 high."""
    return 4.8 if spec.heads.relational != "none" else 3.6


def draw_architecture(axes, spec: Spec, look: Look):
    """Draw one model, from the bottom up."""
    parts = describe_heads(spec)
    related = [at for at, (_, _, reads, _) in enumerate(parts) if reads]
    width = 3.0
    blocks = "all blocks" if spec.blocks is None else f"blocks: {spec.blocks}"
    draw_box(
        axes,
        0,
        0,
        width * len(parts) - 0.2,
        f"encoder, {blocks}\npooling: {spec.heads.pooling}",
        look,
    )
    if related:
        word = "shared" if spec.heads.relational == "shared" else "one each"
        left = width * related[0]
        text = f"relational layer, {word}"
        draw_box(axes, left, 1.5, width * len(related) - 0.2, text, look, is_new=True)
    for at, (dataset, head, reads, batch) in enumerate(parts):
        middle = width * at + (width - 0.2) / 2
        bottom = 3.0 if related else 1.8
        start = 2.5 if reads else 1.0
        if reads:
            draw_arrow(axes, middle, 1.0, 1.5, look)
        draw_arrow(axes, middle, start, bottom, look)
        draw_box(axes, width * at, bottom, width - 0.2, f"{dataset}\n{head}", look)
        text = {"ha": "center", "va": "top", "color": look.colours["soft"], "fontsize": 9}
        axes.text(middle, -0.1, batch, **text)
    axes.set_xlim(-0.1, width * len(parts))
    axes.axis("off")


def draw_box(axes, left: float, bottom: float, width: float, text: str, look: Look, is_new=False):
    """Draw a box with a text in its middle."""
    edge = look.tint("#d55e00") if is_new else look.colours["soft"]
    box = {"facecolor": "none", "edgecolor": edge, "lw": 1.6 if is_new else 1}
    axes.add_patch(plt.Rectangle((left, bottom), width, 1.0, **box))
    middle = (left + width / 2, bottom + 0.5)
    axes.text(*middle, text, ha="center", va="center", fontsize=9, linespacing=1.3)


def draw_arrow(axes, x: float, bottom: float, top: float, look: Look):
    """Draw an arrow upwards."""
    style = {"arrowstyle": "->", "color": look.colours["soft"]}
    axes.annotate("", (x, top), (x, bottom), arrowprops=style)


# ---- the mechanism: how large SMART's term is ----

# What is drawn of each logged step, and how the axis calls it.
TERMS = {
    "perturbation": "norm of δ",
    "adversarial_loss": "$R_s$",
    "gradient_ratio": r"gradient norms, $\lambda R_s : L$",
}


def collect_terms(P) -> pd.DataFrame:
    """Return what SMART logged: a row for each run and logged step.

    Columns: the labels, model, step, done (share of the training, 0 to 1), and those of TERMS.
    """
    wanted = []
    for spec in plans.plan(P):
        if spec.arm == "printed" and spec.variant in WITH_SMART:
            wanted.append(spec)
    rows = []
    for spec, record in runs.require_records(wanted):
        labels = runs.label_columns(spec, record)
        logged = record["load"]["training"]
        for step in logged:
            values = {name: step.get(name, np.nan) for name in TERMS}
            rows.append(
                labels | values | {"step": step["step"], "done": step["step"] / logged[-1]["step"]}
            )
    return tables.add_display_names(pd.DataFrame(rows)) if rows else pd.DataFrame()


def figure_terms(P) -> report.Html:
    """Return the size of the adversarial term over training, a line for each run."""
    rows = collect_terms(P)
    if rows.empty:
        return report.note_absent("SMART")
    caption = (
        "The adversarial term over the training, a line for each run. First panel: the norm of the "
        "perturbation δ. Second: the term before its weight λ. Third: the norm of the weighted "
        "term's gradient, divided by that of the task's loss; the dotted line is a tenth. "
        f"{describe_terms(P)}"
    )
    alt = "Three panels over training: " + ", ".join(rows["model"].cat.categories) + "."

    def draw(look: Look) -> Figure:
        return draw_terms(P.report, rows, look)

    return looks.save_drawing(P, "fig_terms", draw, caption, alt, rows)


def draw_terms(slug: str, rows: pd.DataFrame, look: Look) -> Figure:
    """Draw the logged values over training, a panel each; models are named above, in colour."""
    models = list(rows["model"].cat.categories)
    heads = 0.2 * len(models) + 0.1
    panels = len(TERMS)
    shape = (panels, 1) if look.is_narrow else (1, panels)
    height = heads + (1.9 * panels if look.is_narrow else 2.3)
    fig, axes = plt.subplots(*shape, figsize=(look.width, height), layout="constrained")
    fig.get_layout_engine().set(rect=(0, 0.2 / height, 1, 1 - (heads + 0.2) / height))
    for axis, (column, label) in zip(axes, TERMS.items(), strict=True):
        for (variant, _), run in rows.groupby(["variant", "run"], sort=False, observed=True):
            run = run.dropna(subset=column)
            run = run[run[column] > 0]
            colour = look.model_colour(slug, variant)
            mark = "o" if len(run) < 4 else ""
            axis.semilogy(100 * run["done"], run[column], color=colour, lw=1.4, marker=mark, ms=4)
        axis.set_title(label, fontsize=10)
        axis.set(xlim=(0, 100), ylim=find_decades(rows[column]))
        axis.minorticks_off()
    for axis in axes if not look.is_narrow else axes[-1:]:
        axis.set_xlabel("training done, %")
    axes[-1].set_ylim(top=max(1.0, axes[-1].get_ylim()[1]))
    axes[-1].axhline(SMALL, color=look.colours["text"], lw=1, ls=":")
    colours = {
        plans.display_name(slug, v): look.model_colour(slug, v) for v in rows["variant"].unique()
    }
    for at, model in enumerate(models):
        y = 1 - (0.2 * at + 0.12) / height
        fig.text(0.01, y, model, color=colours[model], va="center", weight="bold")
    return fig


def find_decades(values: pd.Series) -> tuple[float, float]:
    """Return the powers of ten between which all values above 0 lie."""
    exponents = np.log10(values[values > 0])
    if exponents.empty:
        return 0.1, 1.0
    return 10.0 ** np.floor(exponents.min() - 0.1), 10.0 ** np.ceil(exponents.max() + 0.1)


def describe_terms(P) -> str:
    """Return whether the term could matter, by the median ratio of the gradients' norms."""
    rows = collect_terms(P)
    if not rows.empty:
        rows = rows.dropna(subset="gradient_ratio")
    if rows.empty:  # or the Bregman term alone was trained, whose gradient is not measured
        return ""
    ratios = rows.groupby("model", observed=True)["gradient_ratio"]
    medians, highest = ratios.median(), ratios.max()
    most = medians.idxmax()
    if medians[most] < TOO_SMALL:
        verdict = "So the term could not matter in these runs"
    elif medians[most] < SMALL:
        verdict = "So the term could hardly matter in these runs"
    else:
        verdict = "So the term was large enough to matter"
    limits = f"by our rule below {TOO_SMALL:.0%} it cannot, below {SMALL:.0%} hardly"
    ratios_of = f"The median ratio of {most} is {format_ratio(medians.max())}"
    if len(medians) > 1:
        lowest = format_ratio(medians.min())
        ratios_of = f"The models' median ratios are {lowest} to {format_ratio(medians.max())}"
    return (
        f"{ratios_of}, and the highest ratio is {format_ratio(highest.max())} "
        f"({highest.idxmax()}). {verdict}: {limits.replace('%', ' %')}."
    )


def format_ratio(ratio: float) -> str:
    """Return a ratio as percent, or as a power of ten where it is small."""
    if ratio >= 0.001:
        return f"{100 * ratio:.2g} %"
    return np.format_float_scientific(ratio, precision=0, trim="-", exp_digits=1)


# ---- what the encoder has seen ----


def table_contamination(P) -> report.Html:
    """Return what the encoder had seen of each dataset, the frozen score and each model's gain.

    The frozen score is that of the encoder without any training where its head is trained or has no
    weights, and else that of heads which alone are trained.
    """
    wanted = ("pretrain", "heads-only", *GAINS)
    specs = [s for s in plans.plan(P) if s.variant in wanted and s.arm == "printed"]
    if not specs:
        return report.note_absent("frozen encoder")
    ledger = runs.collect_ledger(specs)
    unknown = "no: generated" if P.source == "embedded" else "not stated"
    rows = []
    for heading, (test_set, metric) in name_columns(P).items():
        of_set = ledger[(ledger["set"] == test_set) & (ledger["metric"] == metric)]
        if of_set.empty:
            continue
        scores = of_set.pivot(index="seed", columns="variant", values="value")
        frozen = "heads-only" if heading == SCORES[1] else "pretrain"
        d = params.read_datasets(P.source, P.data)[test_set]
        row = {
            "dataset": name_dataset(P, test_set),
            "seen by the encoder": d.seen_by.get(P.encoder, unknown),
        }
        if P.source == "hub":
            row["in place of"] = d.instead_of or "–"
        of_frozen = scores.get(frozen, pd.Series(np.nan, scores.index))
        row["frozen score"] = float(of_frozen.mean())
        for variant in GAINS:
            if variant in scores:
                name = f"gain of {plans.display_name(P.report, variant)}"
                row[name] = float((scores[variant] - of_frozen).mean())
        rows.append(row | {"run": tuple(of_set["run"].unique())})
    caption = (
        "What the encoder met in its own training, the score of the frozen encoder, and how far "
        "models at the report's settings are above it. Paraphrases need a trained head: theirs "
        "is the score of “Heads alone trained”, on an encoder fine-tuned on sentiment, where that "
        "was run."
    )
    return report.save_table(P, "table_contamination", pd.DataFrame(rows), caption)


# ---- training curves ----


def figure_learning(P) -> report.Html:
    """Return the losses of one task over the epochs, without and with SMART."""
    specs = []
    for spec in plans.plan(P):
        if spec.variant in ("finetune", "smart") and spec.arm == "printed":
            specs.append(spec)
    if not specs:
        return report.note_absent("single")
    caption = "Losses on sentiment after each epoch, without and with SMART."
    alt = "Training and validation loss by epoch, a line for each of two models."
    return pieces.figure_losses(P, specs, caption, alt)


# ---- sweeps, on sentiment ----


def tell_batches(P) -> str:
    """Return how much smaller SMART's batches are, which by itself gives it more steps."""
    ratio = P.batch_size / P.smart_batch
    if ratio == 1:
        return ""
    return (
        f"With SMART a batch has {P.smart_batch} rows in place of {P.batch_size}, so the model is "
        f"trained in {ratio:g} times as many steps."
    )


def draw_sentiment(
    P, part: str, caption: str, variants: tuple[str, ...], by: str, label: str, **more
) -> report.Html:
    """Return accuracy on sentiment over the values of one setting. part: the sweep's experiment."""
    columns = {SCORES[0]: (P.domains[0], "accuracy")}
    name = f"fig_{part}"
    return pieces.figure_sweep(P, name, caption, variants, by, label, columns, part=part, **more)


def figure_weights(P) -> report.Html:
    """Return accuracy by λ."""
    caption = f"Accuracy on sentiment by the weight λ of the adversarial term. {tell_batches(P)}"
    variants, by = ("smart-weight",), "smart_adversarial"
    return draw_sentiment(P, "weights", caption, variants, by, "λ", baseline="finetune")


def figure_radius(P) -> report.Html:
    """Return accuracy by ε."""
    caption = f"Accuracy on sentiment by the radius ε of the ball. {tell_batches(P)}"
    variants, by = ("smart-radius",), "smart_radius"
    return draw_sentiment(P, "radius", caption, variants, by, "ε", baseline="finetune")


def figure_bregman(P) -> report.Html:
    """Return accuracy by μ."""
    caption = f"Accuracy on sentiment by the weight μ of the Bregman term. {tell_batches(P)}"
    variants, by = ("smart-bregman",), "smart_bregman"
    return draw_sentiment(P, "bregman", caption, variants, by, "μ", baseline="finetune")


def figure_sizes(P) -> report.Html:
    """Return accuracy by training rows, without and with SMART."""
    caption = "Accuracy on sentiment by its training rows, without and with SMART. " + tell_batches(
        P
    )
    variants = ("finetune-size", "smart-size")
    return draw_sentiment(P, "sizes", caption, variants, "rows", "training rows")


def figure_imbalance(P) -> report.Html:
    """Return accuracy by the imbalance of classes, without and with SMART."""
    caption = (
        "Accuracy on sentiment, without and with SMART, by the balance of its classes in training: "
        "rows of the first class for each row of the last. The number of rows is the same."
    )
    variants, label = (
        ("finetune-imbalance", "smart-imbalance"),
        "rows of the first class to the last",
    )
    return draw_sentiment(P, "imbalance", caption, variants, "imbalance_ratio", label)


def figure_quora(P) -> report.Html:
    """Return accuracy on sentiment by the rows of the rich dataset that it is trained beside."""
    caption = (
        "Accuracy on sentiment by the number of paraphrases that are trained beside it, in the "
        "same number of steps."
    )
    variants, label = ("rrobin-full-size",), "training rows of all tasks"
    return draw_sentiment(P, "quora", caption, variants, "rows", label)


# ---- full tables ----


def table_noise(P) -> report.Html:
    """Return SMART beside its variants and random noise of equal cost, on sentiment."""
    wanted = (*COMPARED_WITH_NOISE, *NOISE)
    specs = [s for s in plans.plan(P) if s.variant in wanted and s.arm == "printed"]
    if not any(spec.variant in NOISE for spec in specs):
        return report.note_absent("noise")
    columns = {SCORES[0]: (P.domains[0], "accuracy")}
    rows = pieces.collect_columns(runs.collect_ledger(specs), columns)
    names = []
    for row in rows.itertuples():
        name = plans.display_name(P.report, row.variant)
        if row.variant == GAUSSIAN:
            name += f", sd {row.smart_start_sd:g}"
        names.append(name)
    order = {variant: place for place, variant in enumerate(wanted)}
    rows = rows.assign(model=names).sort_values(
        "variant", key=lambda column: column.map(order), kind="stable"
    )
    has_noise = any(spec.variant in ("smart-r3f", GAUSSIAN) for spec in specs)
    noise = ", and random noise at its cost" if has_noise else ""
    caption = f"Fine-tuning, SMART, variants of it{noise}: accuracy on sentiment. {tell_batches(P)}"
    return pieces.save_grid(P, "table_noise", caption, rows)


def table_altered(P) -> report.Html:
    """Return accuracy on altered sentences, without and with SMART."""
    caption = (
        "Accuracy on sentiment as it is written; with typing mistakes, in one of five words that "
        "have four letters or more; and with one word of five swapped with the next. At least one "
        "word of a sentence is changed."
    )
    columns = name_altered_columns(P)
    name, part = "table_altered", "single"
    return pieces.table_grid(P, name, caption, list(ALTERED), columns, {}, part=part)


def table_classes(P) -> report.Html:
    """Return F1 of each class of sentiment, and the calibration error."""
    caption = (
        "F1 of each class of sentiment, from 0 (very negative) to 4 (very positive), and the "
        "calibration error (ECE), of which less is better; all in percent."
    )
    columns = name_class_columns(P)
    variants, lower, part = list(TABLE_2), (CALIBRATION,), "single"
    return pieces.table_grid(
        P, "table_classes", caption, variants, columns, CLASSES, lower=lower, part=part
    )


def table_single(P) -> report.Html:
    """Return Table 1: models of one task on the two sets of sentiment."""
    caption = "Table 1: accuracy of one task, in percent. Handout: the course's own benchmark."
    variants, columns = list_single(P), name_columns(P, films=True)
    benchmark = ("handout", HANDOUT)
    return pieces.table_grid(P, "table1", caption, variants, columns, TABLE_1, benchmark=benchmark)


def table_seconds(P) -> report.Html:
    """Return the last column of Table 2: the seconds of training in an epoch."""
    specs = [s for s in plans.plan(P) if s.arm == "printed" and s.variant in TABLE_2]
    if not specs:
        return report.note_absent("seconds of training")
    rows = []
    for spec, record in runs.require_records(specs):
        rows.append(
            {
                "model": plans.display_name(P.report, spec.variant),
                "column": SECONDS,
                "seed": spec.seed,
                "value": record["training_seconds"] / spec.epochs,
                "run": record["run"],
            }
        )
    cells = grids.average_cells(pd.DataFrame(rows), plans.display_names(P.report))
    printed = {}
    for variant, values in TABLE_2_SECONDS.items():
        printed[plans.display_name(P.report, variant)] = values
    shown, classes = grids.lay_out_grid(cells, printed)
    classes = classes.replace("number best", "number")  # how long a run took is no achievement
    caption = (
        "Table 2: seconds of training in an epoch, as recorded. Machines did other work, so ours "
        f"say little about cost. {grids.describe_seeds(cells)}"
    )
    return grids.save_frame(P, "table2_seconds", shown, classes, caption, cells)


def table_controls(P) -> report.Html:
    """Return the scores of the controls."""
    caption = (
        "The controls, at the report's settings: accuracy, and of similarity Pearson's r × 100."
    )
    name, part = "table_controls", "controls"
    return pieces.table_grid(P, name, caption, list(CONTROLS), name_columns(P), {}, part=part)


def table_examples(P) -> report.Html:
    """Return sentences on which fine-tuning without and with SMART differ: two each way.

    With text and class where the text is generated; else by id, since real text is not published.
    """
    first = [find_first(P, variant) for variant in ("finetune", "smart")]
    if None in first:
        return report.note_absent("single")
    examples = runs.collect_examples(first)
    examples = examples[examples["set"] == P.domains[0]]
    right = examples.pivot(index="id", columns="variant", values="accuracy").gt(0)
    ours, theirs = right["smart"], right["finetune"]
    parts = {"SMART": ours & ~theirs, "Fine-tuned": theirs & ~ours}
    texts = {}
    classes = []
    if P.source == "embedded":
        d, test_rows = selection.load_test_sets(first[0])[P.domains[0]]
        texts = {row["id"]: row for row in test_rows}
        classes = d.classes
    rows = []
    for name, of_part in parts.items():
        for id_ in of_part[of_part].index[:2]:
            row = {"only right": name, "id": id_}
            if id_ in texts:
                label = int(texts[id_]["label"])
                row |= {"sentence": texts[id_]["text"], "class": classes[label]}
            rows.append(row | {"run": tuple(examples["run"].unique())})
    if not rows:
        return report.note_absent("examples on which two models differ")
    caption = "Sentences that only one of the two models has right: the first two of each."
    return report.save_table(P, "table_examples", pd.DataFrame(rows), caption)


# ---- SMART as in the report's code ----


def table_degenerate(P) -> report.Html:
    """Return scores of SMART as in the report's code beside the correct one, and their terms.

    The report's code takes a softmax over one logit, which is always 1. So on paraphrases its term
    is 0, and on scores it runs across the batch.
    """
    specs = [s for s in plans.plan(P) if s.variant in DEGENERATE and s.arm == "printed"]
    if not any(spec.variant == DEGENERATE[-1] for spec in specs):
        return report.note_absent("SMART as in the report's code")
    rows = []
    for variant in DEGENERATE:
        records = runs.require_records([spec for spec in specs if spec.variant == variant])
        if not records:
            continue
        row = {"model": plans.display_name(P.report, variant)}
        for heading, (test_set, metric) in name_columns(P).items():
            row[heading] = float(np.mean([r["metrics"][test_set][metric] for _, r in records]))
        for heading, dataset in zip(SCORES, P.domains, strict=True):
            row[f"R, {heading.lower()}"] = average_term(records, dataset)
        rows.append(row | {"run": tuple(record["run"] for _, record in records)})
    means = pieces.describe_means(runs.collect_ledger(specs))
    caption = (
        "SMART as in the report's code, whose term is 0 on paraphrases, beside the correct one. "
        f"{means} R is the mean of the term in training."
    )
    return report.save_table(P, "table_degenerate", pd.DataFrame(rows), caption)


def average_term(records: list, dataset: str) -> str:
    """Return the mean of the adversarial term on a dataset, as text; "–" where there is none."""
    name = f"adversarial_loss_{dataset}"
    of_runs = []
    for _, record in records:
        of_runs.append(runs.average_logged(record["load"].get("training", []), name))
    if not np.isfinite(of_runs).any():
        return "–"
    mean = float(np.nanmean(of_runs))
    return np.format_float_scientific(mean, precision=0, trim="-", exp_digits=1) if mean else "0"
