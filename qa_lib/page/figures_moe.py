r"""Figures and tables that only the page of Sesame Street Ensemble has.

own.show_mixture(tokens, starts, weights, mixed)   experts' scores of one question, mixed
own.table_results(P)                               Tables 1 and 2, by the rule that made them
own.figure_trust(P)                                what the gate trusts, and what is right
own.figure_choice(P)                               how often it trusts the one that is right
own.table_controls(P)                              the mixture without a gate, and with an oracle
own.table_overruled(P)                             Table 3, by a rule
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from qa_lib.data import selection
from qa_lib.evidence import claims
from qa_lib.page import charts, looks, pieces, report, tables
from qa_lib.page.looks import Look
from qa_lib.reports import plans
from qa_lib.settings.params import name_dataset
from qa_lib.settings.spec import Spec
from qa_lib.store import runs

# ---- what is printed (Tables 1 and 2) ----

DEV = ("Dev, EM", "Dev, F1")
TEST = ("Test, EM", "Test, F1")
ROWS_OF_TABLES_1_AND_2 = {
    "baseline": (33.246, 48.432, 40.275, 59.187),
    "moe": (31.952, 47.129, 39.768, 58.768),
    "baseline-4": (33.246, 48.432),
    "reinit-4": (31.475, 47.055),
    "moe-reinit-4": (33.034, 47.248, 40.013, 58.781),
}
TABLES_1_AND_2 = {
    variant: dict(zip((*DEV, *TEST), values, strict=False))
    for variant, values in ROWS_OF_TABLES_1_AND_2.items()
}

# ---- models of a part of the page ----

WITHOUT_GATE = ("uniform-weights", "best-single", "told-dataset", "oracle")
FUTURE = (
    "baseline",
    "few-shot",
    "few-shot-augmented",
    "moe",
    "told-dataset",
    "moe-outside",
    "moe-clusters",
)


def list_reported(P) -> list[str]:
    """Return the variants of the report's Table 1, in its order."""
    top = P.reinit_blocks
    return ["baseline", "moe", "baseline-4", f"reinit-{top}", f"moe-reinit-{top}"]


def list_compared(P) -> list[str]:
    """Return the variants of Table 1, and the control of the blocks that start anew."""
    return [*list_reported(P), f"reload-{P.reinit_blocks}"]


def describe_parts(P) -> dict[str, str]:
    """Return variant → its extra parts in words."""
    experts, top = f"{len(P.domains)} experts, a gate", P.reinit_blocks
    return {
        "moe": experts,
        f"reinit-{top}": f"top {top} blocks random",
        f"reload-{top}": f"top {top} blocks as lower ones",
        f"moe-reinit-{top}": f"{experts}, top {top} blocks random",
    }


def name_experts(P) -> dict[str, str]:
    """Return variant → name of the expert of each dataset."""
    return {f"expert-{domain}": f"Expert of {name_dataset(P, domain)}" for domain in P.domains}


def name_columns(P, by_starter: bool = False) -> dict[str, tuple[str, str]]:
    """Return heading → (set, metric) of new domains, dev and test.

    by_starter: by the starter code's rule of scoring, which allows no answer of one token.
    """
    dev, test = P.pools[0], P.pools[-1]
    places = [(dev, "em"), (dev, "f1"), (test, "em"), (test, "f1")]
    if by_starter:
        places = [(pool, claims.BY_STARTER[metric]) for pool, metric in places]
    return dict(zip((*DEV, *TEST), places, strict=True))


def find_mixtures(P) -> list[Spec]:
    """Return the runs of the report's mixture at its settings, one for each seed."""
    return [spec for spec in plans.plan(P) if spec.variant == "moe" and spec.arm == "printed"]


# ---- the idea: three experts of one question, mixed ----


def show_mixture(
    tokens: list[str], starts: np.ndarray, weights: np.ndarray, mixed: dict[str, np.ndarray]
) -> report.Html:
    """Return the picture of a mixture, from tensors of the notebook.

    starts: of each expert the probability of each token to begin the answer, (E, T); weights: what
    the gate gives each expert, (E,). mixed: name → the same probabilities of the mixture, (T,).
    """
    caption = (
        "One question of the report (its Table 3), with its gate's weights and scores of our own. "
        "A row is how probable each token is as the first of the answer. Two experts are right, "
        "and the third has the larger weight."
    )
    alt = "A row of tokens for each expert, and for the scores and the probabilities mixed."
    names = [f"expert {k}, weight {weight:.2f}" for k, weight in enumerate(weights, 1)]
    rows = dict(zip(names, np.asarray(starts), strict=True)) | mixed

    def draw(look: Look) -> Figure:
        return draw_mixture(tokens, rows, len(weights), look)

    return looks.show_drawing(draw, caption, alt)


def draw_mixture(
    tokens: list[str], rows: dict[str, np.ndarray], experts: int, look: Look
) -> Figure:
    """Draw a row of cells for each expert and each mixture; the likeliest token is ringed."""
    height = 0.52 if look.is_narrow else 0.34  # a name stands above its row on a phone
    size = (look.width, height * len(rows) + 0.95)
    fig, axes = plt.subplots(figsize=size, layout="constrained")
    for at, (name, values) in enumerate(rows.items()):
        bottom = -at - (0.35 if at >= experts else 0)
        is_mixed = at >= experts
        draw_row(axes, bottom, np.asarray(values, float), look)
        style = {"weight": "bold" if is_mixed else "normal", "annotation_clip": False}
        if look.is_narrow:
            place = {"xytext": (0, 4), "textcoords": "offset points", "ha": "left"}
            axes.annotate(name, (0, bottom + 0.62), **place, **style)
        else:
            place = {"xytext": (-6, 0), "textcoords": "offset points", "ha": "right"}
            axes.annotate(name, (0, bottom + 0.45), va="center", **place, **style)
    last = -(len(rows) - 1) - 0.35
    angle = {"rotation": 40, "ha": "right"} if look.is_narrow else {}
    axes.set_xticks(np.arange(len(tokens)) + 0.5, tokens, fontsize=9, **angle)
    axes.set(xlim=(0, len(tokens)), ylim=(last - 0.05, 1.0), yticks=[])
    axes.tick_params(length=0)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return fig


def draw_row(axes, bottom: float, values: np.ndarray, look: Look):
    """Draw the probabilities of one row of tokens as shaded cells."""
    top = 0.6 if look.is_narrow else 0.9
    best = int(values.argmax())
    for at, value in enumerate(values):
        face = charts.HEAT(value)
        axes.add_patch(plt.Rectangle((at + 0.03, bottom), 0.94, top, facecolor=face, lw=0))
        if value >= 0.05:
            text = {"ha": "center", "va": "center", "fontsize": 9}
            colour = "white" if value > 0.65 else "#1c1e21"
            axes.text(at + 0.5, bottom + top / 2, f"{value:.2f}", color=colour, **text)
    ring = {"facecolor": "none", "edgecolor": look.tint("#d55e00"), "lw": 2.2}
    axes.add_patch(plt.Rectangle((best + 0.03, bottom), 0.94, top, **ring))


# ---- the report's tables ----


def table_results(P, arm: str = "printed") -> report.Html:
    """Return Tables 1 and 2: scores on new domains, by the rule under which they were printed."""
    name = "table1" if arm == "printed" else "table_equal"
    title = "Tables 1 and 2: scores" if arm == "printed" else "Scores"
    caption = f"{title} on questions of new domains, in percent, by the report's scoring."
    printed = TABLES_1_AND_2 if arm == "printed" else {}
    variants = list_reported(P)
    if arm == "tuned":
        variants += ["uniform-weights", "told-dataset", "oracle"]
    columns = name_columns(P, by_starter=True)
    # with equal tuning the oracle stands beside the models
    has_best = arm == "printed"
    return pieces.table_grid(
        P, name, caption, variants, columns, printed, arm=arm, has_best=has_best
    )


def table_official(P) -> report.Html:
    """Return the scores of Tables 1 and 2 by SQuAD's scoring."""
    caption = "The models of Tables 1 and 2 by SQuAD's scoring, in percent."
    return pieces.table_grid(P, "table_official", caption, list_compared(P), name_columns(P), {})


def table_controls(P) -> report.Html:
    """Return the mixture beside weights that no gate has learnt, and beside an oracle."""
    if "controls" not in P.experiments:
        return report.note_absent("controls")
    caption = (
        "Has the gate learnt anything? In percent, by SQuAD's scoring. The oracle takes, "
        "of each question, the best expert's answer."
    )
    variants = ["baseline", "moe", "moe-probabilities", *WITHOUT_GATE]
    columns = name_columns(P)
    return pieces.table_grid(P, "table_controls", caption, variants, columns, {}, has_best=False)


def table_future(P) -> report.Html:
    """Return the report's future work: few-shot training, and other experts."""
    parts = [part for part in ("few-shot", "outside", "clusters") if part in P.experiments]
    if not parts:
        return report.note_absent("few-shot, outside, clusters")
    caption = "The report's future work, in percent, by SQuAD's scoring."
    return pieces.table_grid(P, "table_future", caption, list(FUTURE), name_columns(P), {})


# ---- tables whose rows are no models of the report ----


def collect_rows(P, names: dict[str, str], columns: dict[str, tuple[str, str]]) -> pd.DataFrame:
    """Return the rows of some variants at the report's settings, under their names and headings.

    Where that arm was not run there are none.

    names: variant → its name, in the order of the table; columns: heading → (set, metric).
    """
    specs = [s for s in plans.plan(P) if s.arm == "printed" and s.variant in names]
    if not specs:
        return pd.DataFrame()
    rows = pieces.collect_columns(runs.collect_ledger(specs), columns)
    rows = rows.assign(model=rows["variant"].map(names))
    order = list(names.values())
    return rows.sort_values("model", key=lambda column: column.map(order.index), kind="stable")


def table_inside(P) -> report.Html:
    """Return scores on the datasets that are trained on, with each expert's."""
    if "controls" not in P.experiments:
        return report.note_absent("controls")
    names = {"baseline": "Baseline", "moe": "MoE", "uniform-weights": "Equal weights"}
    names |= {"own-expert": "Own expert", "other-experts": "Other experts, mean"}
    names |= name_experts(P)
    columns = {}
    for domain in P.domains:
        name = name_dataset(P, domain)
        columns |= {f"{name}, EM": (domain, "em"), f"{name}, F1": (domain, "f1")}
    caption = (
        "The datasets that are trained on, in percent, by SQuAD's scoring. Own expert: that of "
        "the question's dataset."
    )
    return pieces.save_grid(P, "table_inside", caption, collect_rows(P, names, columns))


def table_parts(P) -> report.Html:
    """Return the scores of Tables 1 and 2 by dataset."""
    wanted = list_reported(P)
    specs = [s for s in plans.plan(P) if s.arm == "printed" and s.variant in wanted and s.tests]
    if not specs:
        return report.note_absent(pieces.ARMS["printed"])
    rows = tables.scores_by_part(specs)
    if rows.empty:
        return report.note_absent("test sets of several datasets")
    titles = {P.pools[0]: "Dev", P.pools[-1]: "Test"}
    headings = []
    for test_set, part in zip(rows["set"], rows["part"], strict=True):
        title = titles.get(test_set, name_dataset(P, test_set))
        headings.append(f"{title}, {name_dataset(P, part)}")
    rows = rows.assign(column=headings).astype({"model": str})
    order = list(dict.fromkeys(plans.display_name(P.report, variant) for variant in wanted))
    rows = rows.sort_values("column").sort_values(
        "model", key=lambda column: column.map(order.index), kind="stable"
    )
    caption = "Tables 1 and 2 by dataset: EM in percent, by SQuAD's scoring."
    return pieces.save_grid(P, "table_parts", caption, rows)


def table_gates(P) -> report.Html:
    """Return other gates: other depths, other inputs, and probabilities in place of scores."""
    if "gates" not in P.experiments:
        return report.note_absent("gates")
    names = {"moe": f"As above: {P.gate_layers} layers, sees {P.gate_input}"}
    names["moe-probabilities"] = "Mixes probabilities"
    names |= {f"moe-layers-{number}": f"Layers: {number}" for number in P.sweep_layers}
    names |= {f"moe-input-{name}": f"Sees {name}" for name in P.sweep_inputs}
    caption = "Other gates on new domains, in percent, by SQuAD's scoring."
    return pieces.save_grid(P, "table_gates", caption, collect_rows(P, names, name_columns(P)))


def table_longer(P) -> report.Html:
    """Return longer baselines, with the best checkpoint and with the last one."""
    if not {"longer", "last"} & set(P.experiments):
        return report.note_absent("longer")
    longer = [number for number in P.longer if number != P.epochs]
    names = {"baseline": f"{P.epochs:g} epochs, {P.checkpoint} checkpoint"}
    for number in longer:
        names[f"baseline-{number}"] = f"{number} epochs, {P.checkpoint} checkpoint"
    if P.checkpoint != "last":
        names["baseline-last"] = f"{P.epochs:g} epochs, last checkpoint"
        for number in longer:
            names[f"baseline-{number}-last"] = f"{number} epochs, last checkpoint"
    caption = "Longer training of the baseline on new domains, in percent, by SQuAD's scoring."
    return pieces.save_grid(P, "table_longer", caption, collect_rows(P, names, name_columns(P)))


def table_data(P) -> report.Html:
    """Return the datasets: rows, texts, and what the encoder has seen."""
    specs = [s for s in plans.plan(P) if s.variant == "baseline" and s.arm == "printed"]
    if not specs:
        return report.note_absent("baseline")
    caption = (
        "The datasets. A dataset that the encoder has met in its own training is no clean test "
        "of it."
    )
    return report.save_table(P, "table_data", tables.describe_datasets(P, specs[:1]), caption)


def table_cost(P) -> report.Html:
    """Return parameters and training time of each model; of a mixture those of its gate alone."""
    names = {"baseline": "Baseline"}
    names |= name_experts(P)
    for variant in list_compared(P)[1:]:
        names[variant] = plans.display_name(P.report, variant)
    specs = [s for s in plans.plan(P) if s.variant in names and s.arm == "printed" and s.tests]
    if not specs:
        return report.note_absent(pieces.ARMS["printed"])
    cost = tables.collect_costs(specs)
    rows = []
    for variant, name in names.items():
        own = cost[cost["variant"] == variant]
        if own.empty:
            continue
        row = {
            "model": name,
            "parameters": f"{own['parameters'].max():,}",
            "seconds of training": f"{own['training_seconds'].min():,.0f}",
            "with scoring": f"{own['seconds'].min():,.0f}",
        }
        rows.append(row | {"run": tuple(dict.fromkeys(own["run"]))})
    caption = (
        "Parameters, of a mixture with its experts' and the encoder that its gate reads; seconds "
        "as recorded, the least of the seeds, of a mixture its gate's alone. Other work ran on "
        "the machine at times."
    )
    return report.save_table(P, "table_cost", pd.DataFrame(rows), caption)


# ---- what the gate trusts, and what is right ----


def collect_trust(P, mixtures: list[Spec]) -> pd.DataFrame:
    """Return what gates trust: a row for each mixture, test question and expert.

    Columns: run, seed, dataset, question, expert, weight, right (whether the expert's answer is, by
    SQuAD's scoring), trusted (whether it has the largest weight), alone (whether it alone is
    right).
    """
    frames = []
    for mixture in mixtures:
        key = ["set", "id", "expert"]
        weights = tables.name_weights(tables.collect_parts([mixture]), P.domains)
        weights = weights.melt(["run", "seed", "set", "part", "id"], P.domains, "expert", "weight")
        answers = runs.collect_expert_examples(mixture)[[*key, "em"]]
        frames.append(weights.merge(answers, on=key))
    rows = pd.concat(frames, ignore_index=True)
    rows = rows.assign(
        dataset=rows["part"].fillna(rows["set"]),
        question=rows["set"] + "/" + rows["id"],
        right=rows["em"].gt(0),
    )
    of_question = rows.groupby(["run", "question"], sort=False)
    is_largest = rows["weight"] == of_question["weight"].transform("max")
    number_right = of_question["right"].transform("sum")
    rows = rows.assign(trusted=is_largest, alone=rows["right"] & (number_right == 1))
    return rows.drop(columns=["part", "em"])


def list_datasets(P, rows: pd.DataFrame) -> list[str]:
    """Return the datasets of test questions: those that are trained on, then the new ones."""
    known = set(rows["dataset"])
    named = list(dict.fromkeys([*P.domains, *P.few_shot]))
    # datasets of a pool need not be those of few-shot training
    return [name for name in named if name in known] + sorted(known.difference(named))


def figure_trust(P) -> report.Html:
    """Return the gate's mean weights, and how often each expert is right, by dataset."""
    mixtures = find_mixtures(P)
    if not mixtures:
        return report.note_absent("mixture")
    rows = collect_trust(P, mixtures)
    by = ["dataset", "expert", "seed", "run"]
    means = rows.groupby(by, as_index=False, sort=False)[["weight", "right"]].mean()
    datasets = list_datasets(P, rows)
    seeds = means["seed"].nunique()
    spread = "one seed" if seeds == 1 else f"means over {seeds} seeds"
    caption = (
        f"Each expert by dataset, in percent, {spread}. First panel: the gate's weight. Second: "
        "the questions that the expert answers right. The experts' own datasets stand above the "
        "line, the new ones below it, dev and test together. Bold: the highest of a row."
    )
    told = []
    for dataset in datasets:
        of_dataset = means[means["dataset"] == dataset].groupby("expert")[["weight", "right"]]
        average = of_dataset.mean()
        told.append(
            f"{name_dataset(P, dataset)}: trusts {name_dataset(P, average['weight'].idxmax())}, "
            f"right most often {name_dataset(P, average['right'].idxmax())}"
        )

    def draw(look: Look) -> Figure:
        return draw_trust(P, means, datasets, look)

    return looks.save_drawing(P, "fig_trust", draw, caption, "; ".join(told), means)


def draw_trust(P, means: pd.DataFrame, datasets: list[str], look: Look) -> Figure:
    """Draw two heat maps, dataset × expert: the mean weight, and the share of right answers."""
    shape = (2, 1) if look.is_narrow else (1, 2)
    height = 0.3 * len(datasets) + 1.2
    size = (look.width, height * shape[0])
    fig, panels = plt.subplots(*shape, figsize=size, sharey=True, layout="constrained")
    fig.get_layout_engine().set(rect=(0, 0.2 / size[1], 1, 1 - 0.2 / size[1]))
    titles = {"weight": "weight of the gate, %", "right": "right answers, %"}
    for axes, (column, title) in zip(panels, titles.items(), strict=True):
        average = 100 * means.pivot_table(index="dataset", columns="expert", values=column)
        values = average.loc[datasets, P.domains].to_numpy()
        most = 100 if column == "weight" else max(values.max(), 1)
        axes.pcolormesh(
            values, cmap=charts.HEAT, vmin=0, vmax=most, edgecolors=look.colours["page"], lw=2
        )
        for (row, at), value in np.ndenumerate(values):
            colour = "white" if value > 0.65 * most else "#1c1e21"
            is_best = value == values[row].max()
            weight = "bold" if is_best else "normal"
            place = {"ha": "center", "va": "center", "color": colour, "weight": weight}
            axes.text(at + 0.5, row + 0.5, f"{value:.0f}", **place)
        slant = {"rotation": 20, "ha": "right", "rotation_mode": "anchor"}
        experts = [name_dataset(P, name) for name in P.domains]
        rows = [name_dataset(P, name) for name in datasets]
        axes.set_xticks(np.arange(len(experts)) + 0.5, experts, fontsize=9, **slant)
        axes.set_yticks(np.arange(len(rows)) + 0.5, rows)
        axes.set_ylim(len(datasets), 0)
        axes.set_xlabel("expert")
        axes.set_title(title, fontsize=10)
        inside = len([name for name in datasets if name in P.domains])
        axes.axhline(inside, color=look.colours["text"], lw=1.2)
        axes.tick_params(length=0)
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set_visible(False)
    return fig


def measure_choice(P, mixtures: list[Spec]) -> pd.DataFrame:
    """Return, of the questions that one expert alone answers right, how often a gate trusts it.

    A row for each mixture and dataset: run, seed, dataset, questions (with one right expert),
    share (of them on which the gate trusts that one most, in percent), best (the same if the gate
    always trusted the expert that is right most often on this dataset).
    """
    rows = collect_trust(P, mixtures)
    alone = rows[rows["alone"]]
    measured = []
    for (run, seed, dataset), own in alone.groupby(["run", "seed", "dataset"], sort=False):
        measured.append(
            {
                "run": run,
                "seed": seed,
                "dataset": dataset,
                "questions": len(own),
                "share": 100 * own["trusted"].mean(),
                "best": 100 * own["expert"].value_counts(normalize=True).max(),
            }
        )
    return pd.DataFrame(measured)


def figure_choice(P) -> report.Html:
    """Return how often the gate trusts the one expert that is right, by dataset and seed."""
    mixtures = find_mixtures(P)
    if not mixtures:
        return report.note_absent("mixture")
    rows = measure_choice(P, mixtures)
    if rows.empty:
        return report.note_absent("questions that one expert alone answers right")
    chance = 100 / len(P.domains)
    inside = rows["dataset"].isin(P.domains)
    means = []
    for place, own in (("experts' own datasets", rows[inside]), ("new domains", rows[~inside])):
        if len(own):
            mean = np.average(own["share"], weights=own["questions"])
            means.append(f"{mean:.0f} % on {place}")
    caption = (
        "Questions that one expert alone answers right: how often the gate trusts that expert "
        "most. In brackets: their number, a mean over seeds. A dot is a seed. It does so for "
        f"{' and '.join(means)}; chance, the dotted line, is {chance:.0f} %. Diamonds: always the "
        "expert that is right most often on the dataset."
    )
    alt = "; ".join(
        f"{name_dataset(P, dataset)}: {own['share'].mean():.0f} %"
        for dataset, own in rows.groupby("dataset", sort=False)
    )

    def draw(look: Look) -> Figure:
        return draw_choice(P, rows, chance, look)

    return looks.save_drawing(P, "fig_choice", draw, caption, alt, rows)


def draw_choice(P, rows: pd.DataFrame, chance: float, look: Look) -> Figure:
    """Draw a line for each dataset: a dot for each seed's gate, and the best fixed choice."""
    board = charts.start_board(look)
    board.y -= 0.06
    groups = {"The experts' own datasets": P.domains, "New domains, dev and test": P.few_shot}
    for heading, names in groups.items():
        board.add_heading(heading)
        for name in names:
            own = rows[rows["dataset"] == name]
            if own.empty:
                continue
            number = f"{own['share'].mean():.0f} %"
            questions = f"{own['questions'].mean():.0f}"
            y = board.add_line(f"{name_dataset(P, name)} ({questions})", number)
            hollow = {"color": look.colours["soft"], "mfc": look.colours["page"], "mew": 1.4}
            board.axes.plot(own["best"].mean(), y, "D", ms=6, zorder=3, **hollow)
            colour = look.model_colour(P.report, "moe")
            edge = look.colours["page"]
            board.axes.plot(
                own["share"], [y] * len(own), "o", color=colour, ms=7, mec=edge, mew=0.8, zorder=4
            )
        board.y -= 0.4 * charts.LINE
    board.axes.axvline(chance, color=look.colours["text"], lw=1, ls=":", zorder=1)
    fig = board.finish("trusted most, % of these questions")
    board.axes.set_xlim(0, 105)  # room for the last number of the axis
    return fig


def collect_calibration(P, mixtures: list[Spec]) -> pd.DataFrame:
    """Return `tables.calibration_bins` of each mixture, with its seed."""
    bins = [tables.calibration_bins(P, mixture).assign(seed=mixture.seed) for mixture in mixtures]
    return pd.concat(bins, ignore_index=True)


def figure_calibration(P) -> report.Html:
    """Return whether a weight of the gate is a probability: a line for each seed."""
    mixtures = find_mixtures(P)
    if not mixtures:
        return report.note_absent("mixture")
    rows = collect_calibration(P, mixtures)
    told = []
    for name, own in rows.groupby("of", sort=False):
        errors = [tables.calibration_error(of_seed) for _, of_seed in own.groupby("seed")]
        equal = tables.equal_weights_error(own, len(P.domains))
        told.append(f"{name}: {np.mean(errors):.2f}, of equal weights {equal:.2f}")
    caption = (
        "Is a weight of the gate a probability? Pairs of question and expert in tenths of the "
        "weight, a line for each seed; on the dashed line they would be one. Expected calibration "
        f"error, {'; '.join(told)}. Weights sum to 1, so where {len(P.domains)} experts are seldom "
        "right none could lie on the line."
    )
    alt = "Two panels: share of own questions, and share of right answers, over the weight."

    def draw(look: Look) -> Figure:
        return draw_calibration(P.report, rows, look)

    return looks.save_drawing(P, "fig_calibration", draw, caption, alt, rows)


def draw_calibration(slug: str, rows: pd.DataFrame, look: Look) -> Figure:
    """Draw how often an expert was right against the weight that the gate gave it."""
    names = list(rows["of"].unique())
    shape = (len(names), 1) if look.is_narrow else (1, len(names))
    height = 2.4 * shape[0] + 0.2
    size = (look.width, height)
    fig, panels = plt.subplots(*shape, figsize=size, squeeze=False, layout="constrained")
    fig.get_layout_engine().set(rect=(0, 0.2 / height, 1, 1 - 0.2 / height))
    colour = look.model_colour(slug, "moe")
    for axes, name in zip(panels.flat, names, strict=True):
        for _, own in rows[rows["of"] == name].groupby("seed"):
            axes.plot(own["weight"], own["share"], "o-", color=colour, ms=4, lw=1.3, alpha=0.8)
        axes.axline((0, 0), slope=1, color=look.colours["soft"], ls="--", lw=1)
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), ylabel="share of pairs")
        axes.set_title(name, fontsize=10)
    for axes in panels.flat if not look.is_narrow else panels.flat[-1:]:
        axes.set_xlabel("weight of the gate")
    return fig


def table_choice(P) -> report.Html:
    """Return counts of questions that one expert alone answers right, for each seed, on dev."""
    mixtures = find_mixtures(P)
    if not mixtures:
        return report.note_absent("mixture")
    rows = []
    for mixture in mixtures:
        table, counts = tables.overruled_answers(P, mixture)
        examples = runs.collect_examples([mixture])
        run = tuple(table["run"].iloc[0]) if len(table) else (examples["run"].iloc[0],)
        rows.append({"seed": mixture.seed} | counts | {"run": run})
    caption = (
        f"Test set: {name_dataset(P, P.pools[0])}. A row for each seed. Where one expert alone is "
        "right: how often the gate trusts it most, how often it would by chance, and how often the "
        "mixture is right if it does, and wrong if it does not."
    )
    return report.save_table(P, "table_choice", pd.DataFrame(rows), caption, digits=0)


def table_overruled(P) -> report.Html:
    """Return Table 3: questions on which the gate overrules a right expert, chosen by a rule.

    With the question where the text is generated; else by id, since real text is not published.
    """
    mixtures = find_mixtures(P)
    if not mixtures:
        return report.note_absent("mixture")
    table, _ = tables.overruled_answers(P, mixtures[0])
    if table.empty:
        return report.note_absent("questions on which the gate overrules a right expert")
    if P.source == "embedded":
        _, test_rows = selection.load_test_sets(mixtures[0])[P.pools[0]]
        texts = {row["id"]: row["question"] for row in test_rows}
        table.insert(2, "question", table["id"].map(texts))
    caption = (
        "Table 3: the gate's weight of each expert, and whether it is right. Of each dataset the "
        "first two questions, by id, that the mixture and the expert it trusts most get wrong, and "
        "another expert right. First seed."
    )
    return report.save_table(P, "table3", table, caption)


# ---- training ----

CURVES = {"train_em": "EM on training rows", "train_f1": "F1 on training rows"}


def figure_training(P) -> report.Html:
    """Return Figure 2: EM and F1 on training rows over the steps, means over seeds."""
    wanted = list_reported(P)
    specs = [s for s in plans.plan(P) if s.variant in wanted and s.arm == "printed"]
    history = runs.collect_histories(specs) if specs else pd.DataFrame()
    if history.empty or not P.watched:
        return report.note_absent("training curves")
    # Seeds have a step more or less between looks, and a last look may follow one at once.
    history = history.assign(look=(history["epoch"] * P.looks).round())
    history = history.drop_duplicates(["run", "look"], keep="last")
    done = (100 * history["look"] / (history["epochs"] * P.looks)).round()
    parts = []
    for column, heading in CURVES.items():
        parts.append(history.assign(column=heading, value=history[column], done=done))
    rows = pd.concat(parts, ignore_index=True).dropna(subset="value")
    order = [variant for variant in wanted if variant in set(rows["variant"])]
    rows = rows.sort_values("variant", key=lambda names: names.map(order.index), kind="stable")
    more = ""
    if P.curve_seeds:
        number = len(P.curve_seeds)
        seeds = "1 seed" if number == 1 else f"{number} seeds"
        more = f" The first and the last model have {seeds} more."
    caption = (
        f"Figure 2: EM and F1 on {P.watched} training rows over the steps. Of a mixture the gate "
        "alone is trained, on experts that have learnt already. "
        f"{pieces.describe_means(rows, has_bars=True)}{more}"
    )
    alt = "Two panels, EM and F1 on training rows, a line for each model over its steps."

    def draw(look: Look) -> Figure:
        return charts.draw_sweep(P.report, rows, "done", "steps done, %", rows[:0], look)

    return looks.save_drawing(P, "fig_training", draw, caption, alt, rows)


def figure_reinit(P) -> report.Html:
    """Return EM by the number of top blocks that start anew, from random or from lower weights."""
    columns = {"Dev, EM": (P.pools[0], "em"), "Test, EM": (P.pools[-1], "em")}
    parts = []
    for model in ("reinit", "reload"):
        names = {"baseline": "0"}
        for spec in plans.plan(P):
            if spec.variant.startswith(f"{model}-") and spec.arm == "printed":
                names[spec.variant] = f"{spec.reinit}"
        if len(names) > 1:
            of_model = collect_rows(P, names, columns)
            parts.append(of_model.assign(variant=model, blocks=of_model["model"].astype(int)))
    if not parts:
        return report.note_absent("reinit")
    rows = pd.concat(parts, ignore_index=True)
    caption = (
        "EM on new domains by the number of top blocks that start anew, by SQuAD's scoring: from "
        "random weights (Reinit), or from those of lower blocks (Reload). "
        + pieces.describe_means(rows, has_bars=True)
    )
    alt = "Two panels, dev and test, a line for random weights and one for those of lower blocks."

    def draw(look: Look) -> Figure:
        label = "top blocks that start anew"
        return charts.draw_sweep(P.report, rows, "blocks", label, rows[:0], look)

    return looks.save_drawing(P, "fig_reinit", draw, caption, alt, rows)
