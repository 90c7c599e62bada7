r"""Figures and tables that only the page of ROaD-ELECTRA has.

own.show_gradients(cosines, left)          gradients of several tasks, from tensors of the notebook
own.table_datasets(P)                      the datasets of pre-training and their heads
own.figure_cosines(P)                      how far the tasks' gradients agree, over training
own.figure_passes(P)                       scores by the draws that an update averages
own.table_cited()                          other people's models, as the report prints them
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from qa_lib.data import selection
from qa_lib.page import charts, grids, looks, pieces, report, tables
from qa_lib.page.looks import Look
from qa_lib.reports import plans
from qa_lib.settings import params
from qa_lib.settings.params import name_dataset
from qa_lib.settings.spec import Spec
from qa_lib.store import runs

# ---- what is printed (T1, T3, T4 and T7) ----

TARGET = ("Target, EM", "Target, F1")
SECOND = ("Other domain, EM", "Other domain, F1")
# T1 has an F1 of 91.x where every later table has 90.x for the same models.
TABLE_1 = {
    "baseline": dict(zip(TARGET, (87.9, 91.5), strict=True)),
    "joint-head": dict(zip(TARGET, (88.0, 91.6), strict=True)),
}
ROWS_OF_TABLES_3_AND_4 = {
    "baseline": (87.9, 90.5, 42.7, 58.0),
    "mt-dnn": (87.5, 90.3),
    "mtl": (88.3, 90.9, 45.5, 60.5),
}
TABLES_3_AND_4 = {
    variant: dict(zip((*TARGET, *SECOND), values, strict=False))
    for variant, values in ROWS_OF_TABLES_3_AND_4.items()
}
# Model → inference cost in plain encoders, parameters in millions, F1 and EM on SQuAD 2.0.
TABLE_7 = {
    "BERT": ("1", "335", "87.5", "84.7"),
    "RoBERTa": ("1", "355", "89.4", "86.5"),
    "ELECTRA": ("1", "339", "90.6", "88.0"),
    "DeBERTa": ("1.3", "400", "90.7", "91.1"),
    "Three ELECTRA": ("3", "1017", "91.1", "88.7"),
    "Retro-Reader": ("2", "670", "91.3", "88.8"),
    "ROaD-ELECTRA": ("1", "335", "91.5", "89.0"),
}

# ---- models of a part of the page ----

PRETRAINED = ("baseline", "mt-dnn", "mtl")
CONTROLS = ("target-only", "mtl-one-draw", "mtl-own-heads")
TAUGHT = ("mtl-ensemble", "kd", "weighted-kd", "shuffled-kd")
UNANSWERABLE = tuple(
    f"{model}-unanswerable" for model in ("baseline", "joint-head", "mt-dnn", "mtl")
)
PARTS = {
    "mt-dnn": "one dataset a step, own heads",
    "mtl": "draws averaged, shared heads",
    "target-only": "pre-training on the target's rows",
    "mtl-one-draw": "one draw a step, shared heads",
    "mtl-own-heads": "draws averaged, own heads",
    "kd": "ROaD, soft targets of its teachers",
    "weighted-kd": "the same, teachers weighted",
    "annealed-kd": "the same, labels count more and more",
}
# Head → its task for readers.
TASKS = {
    "mrc": "reading comprehension",
    "yesno": "yes or no",
    "continuing": "next question",
    "nli": "inference",
    "sentiment": "sentiment",
    "paraphrase": "paraphrase",
}
# Law of draws → how often ROaD draws each dataset in its pre-training.
DRAWS = {
    "uniform": "each of them as often as the others",
    "proportional": "each of them as often as it has rows",
    "annealed": "each of them by its rows at first, and nearly as often as the others at last",
}
# Sets in tables of questions without answers: heading → metric.
ANSWERABILITY = {
    "EM": "em",
    "F1": "f1",
    "EM, with answer": "em_answerable",
    "EM, without": "em_impossible",
    "EM, best threshold": "em_best",
    "EM of never answering": "em_no_answer",
}


def name_columns(P) -> dict[str, tuple[str, str]]:
    """Return heading → (set, metric) of the target and of the other domain."""
    target, second = P.domains
    places = [(target, "em"), (target, "f1"), (second, "em"), (second, "f1")]
    return dict(zip((*TARGET, *SECOND), places, strict=True))


def name_target_columns(P) -> dict[str, tuple[str, str]]:
    """Return heading → (set, metric) of the target alone."""
    return {heading: at for heading, at in name_columns(P).items() if heading in TARGET}


def find_pretrainings(P, variants: tuple[str, ...] = ("mtl",), arm: str = "printed") -> list[Spec]:
    """Return the runs of pre-training of some models."""
    wanted = {f"{variant}-pretraining" for variant in variants}
    return [spec for spec in plans.plan(P) if spec.variant in wanted and spec.arm == arm]


# ---- the idea: gradients of several tasks ----


def show_gradients(cosines: pd.DataFrame, left: float) -> report.Html:
    """Return the picture of tasks' gradients, from tensors of the notebook.

    cosines: between the gradients of each two tasks, whose names are index and columns; left: the
    norm of the mean gradient, in units of the mean norm.
    """
    orthogonal = len(cosines) ** -0.5  # where all are of one length
    caption = (
        "First, the cosine × 100 between the gradients of each two tasks, before training. Second, "
        f"the length of their mean: 1 where they agree, {orthogonal:.2f} where they are orthogonal."
    )
    alt = "A square of cosines, and two bars: one task, and the mean of all."

    def draw(look: Look) -> Figure:
        return draw_gradients(cosines, left, look)

    return looks.show_drawing(draw, caption, alt)


def draw_gradients(cosines: pd.DataFrame, left: float, look: Look) -> Figure:
    """Draw the cosines as a heat map, and the length of the mean gradient as a bar."""
    shape = (2, 1) if look.is_narrow else (1, 2)
    height = 5.4 if look.is_narrow else 2.7
    fig, (square, bars) = plt.subplots(*shape, figsize=(look.width, height), layout="constrained")
    draw_cosines(square, cosines, look)
    bars.barh([1, 0], [1.0, left], 0.5, color=[look.bar, look.tint("#d55e00")])
    bars.set_yticks([1, 0], ["one task", "mean of all"])
    bars.set(xlabel="length of the gradient", xlim=(0, 1.15), ylim=(-0.6, 1.6))
    bars.annotate(f"{left:.2f}", (left, 0), xytext=(4, 0), textcoords="offset points", va="center")
    return fig


def draw_cosines(axes, cosines: pd.DataFrame, look: Look):
    """Draw a square of cosines, a cell for each two datasets, with its value."""
    values = cosines.to_numpy()
    shown = np.ma.masked_array(values, mask=np.eye(len(values), dtype=bool))
    largest = np.abs(shown).max()
    axes.imshow(shown, cmap="RdBu_r", vmin=-largest, vmax=largest)
    for row, column in np.ndindex(values.shape):
        if row != column:
            value = values[row, column]
            colour = "#ffffff" if abs(value) > 0.6 * largest else "#111111"
            text = {"ha": "center", "va": "center", "fontsize": 8, "color": colour}
            axes.text(column, row, f"{round(100 * value)}", **text)
    axes.set_xticks(range(len(values)), cosines.columns, rotation=40, ha="right", fontsize=8)
    axes.set_yticks(range(len(values)), cosines.index, fontsize=8)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.grid(False)


# ---- T2 ----


def table_datasets(P) -> report.Html:
    """Return the datasets of pre-training and of testing: task, rows, draws, and what was seen."""
    specs = find_pretrainings(P)
    if not specs:
        return report.note_absent("pretraining")
    records = runs.require_records(specs)
    ids = tuple(record["run"] for _, record in records)
    spec = specs[0]
    unknown = "no: generated" if P.source == "embedded" else "not stated"
    known = params.read_datasets(P.source, P.data)
    rows = []
    for name, number in zip(spec.domains, spec.rows, strict=True):
        rows.append({"dataset": name, "rows": f"{number:,}", "use": "pre-training"})
    uses = dict(zip(P.domains, ("target", "test alone"), strict=True))
    if "unanswerable" in P.experiments:
        uses[P.unanswerable] = "another target"
    for name, use in uses.items():
        rows.append({"dataset": name, "rows": "–", "use": use})
    for row in rows:
        d = known[row["dataset"]]
        row["head"] = TASKS.get(d.head, d.head)
        row["in place of"] = d.instead_of or "–"
        row["seen by the encoder"] = d.seen_by.get(P.encoder, unknown)
        row["run"] = ids
        row["dataset"] = name_dataset(P, row["dataset"])
    frame = pd.DataFrame(rows)
    heads = len({known[name].head for name in spec.domains})
    caption = (
        f"T2: {len(spec.domains)} datasets of {heads} tasks, each with one head in ROaD; the "
        f"report has nine datasets of six tasks. ROaD draws {DRAWS[P.sampling]}."
    )
    columns = ["dataset", "head", "use", "rows", "seen by the encoder", "run"]
    if P.source == "hub":
        columns.insert(1, "in place of")
    return report.save_table(P, "table_datasets", frame[columns], caption)


# ---- the report's tables ----


def table_heads(P) -> report.Html:
    """Return T1: independent start and end, and ELECTRA's joint head."""
    caption = (
        "T1: two heads for spans, on the target, in percent. Its F1 is probably a slip: later "
        "tables have a lower one for the same models."
    )
    variants, columns = ["baseline", "joint-head"], name_target_columns(P)
    return pieces.table_grid(P, "table1", caption, variants, columns, TABLE_1, part="heads")


def table_pretraining(P, arm: str = "printed") -> report.Html:
    """Return T3 and T4: no second pre-training, MT-DNN's and ROaD's."""
    name = "table3" if arm == "printed" else "table_equal"
    caption = "No second pre-training, MT-DNN's and ROaD's: scores in percent."
    if arm == "tuned":
        caption = "Pre-trainings, controls, and students of teachers: scores in percent."
    printed = TABLES_3_AND_4 if arm == "printed" else {}
    if arm == "printed":
        caption = f"Tables 3 and 4. {caption} The report's encoder is ELECTRA-Large."
    variants = list(PRETRAINED) if arm == "printed" else [*PRETRAINED, *CONTROLS, *TAUGHT]
    columns, part = name_columns(P), "pretraining"
    return pieces.table_grid(P, name, caption, variants, columns, printed, arm=arm, part=part)


def table_controls(P) -> report.Html:
    """Return the scores of the controls beside ROaD."""
    caption = "ROaD and what could explain it, at the report's settings."
    variants = ["mtl", *CONTROLS]
    name, part = "table_controls", "controls"
    return pieces.table_grid(P, name, caption, variants, name_columns(P), {}, part=part)


def table_cited() -> report.Html:
    """Return other people's models, as the report prints them; nothing of it was run."""
    columns = ["inference", "parameters, millions", "F1", "EM"]
    shown = pd.DataFrame(TABLE_7, index=columns).T
    classes = pd.DataFrame("number printed", shown.index, shown.columns)
    table = grids.format_html(shown, classes, 'aria-label="Table 7 as printed"')
    words = (
        "Table 7 as printed: SQuAD 2.0, cost of inference in plain encoders. DeBERTa's EM stands "
        "above its F1, which cannot be."
    )
    return report.Html(
        f'<figure class="grid"><figcaption>{words}</figcaption>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="T7">{table}</div></figure>'
    )


# ---- questions without an answer, and questions worded otherwise ----


def table_unanswerable(P) -> report.Html:
    """Return scores on a target whose questions may have no answer."""
    if not P.unanswerable or "unanswerable" not in P.experiments:
        return report.note_absent("unanswerable")
    columns = {heading: (P.unanswerable, metric) for heading, metric in ANSWERABILITY.items()}
    caption = (
        "Questions that may have no answer, by models that were fine-tuned on such. The threshold "
        "for “no answer” is chosen on validation rows. The best threshold is chosen on the test "
        "rows themselves, as the official script does, and is no result."
    )
    return pieces.table_grid(P, "table_unanswerable", caption, list(UNANSWERABLE), columns, {})


def table_reworded(P) -> report.Html:
    """Return EM on generated questions as they are, and worded otherwise."""
    if not P.altered_tests:
        return report.note_absent("reworded")
    columns = {"As written": (P.domains[0], "em"), "Worded otherwise": (P.altered_tests[0], "em")}
    caption = "The same questions as they were written and in other words: EM in percent."
    variants = [*PRETRAINED, "target-only"]
    return pieces.table_grid(P, "table_reworded", caption, variants, columns, {})


def table_sentences(P) -> report.Html:
    """Return accuracy on targets that are among the datasets of pre-training."""
    if "sentences" not in P.experiments:
        return report.note_absent("sentences")
    columns = {f"{name_dataset(P, s)}, accuracy": (s, "accuracy") for s in P.sentences}
    caption = "Targets that pre-training has seen, too: accuracy in percent."
    return pieces.table_grid(P, "table_sentences", caption, list(PRETRAINED), columns, {})


def table_blocks(P) -> report.Html:
    """Return scores of encoders with fewer blocks."""
    if "blocks" not in P.experiments:
        return report.note_absent("blocks")
    variants = [f"{model}-blocks" for model in PRETRAINED]
    columns = {}
    for blocks in P.sweep_blocks:
        for heading, place in name_columns(P).items():
            columns[f"{heading}, {blocks} blocks"] = (*place, {"blocks": blocks})
    caption = "Encoders of fewer blocks."
    return pieces.table_grid(P, "table_blocks", caption, variants, columns, {})


def table_cost(P) -> report.Html:
    """Return parameters and passes of each model when it answers, and the seconds of training."""
    rows = []
    for variant in (*PRETRAINED, "joint-head", *CONTROLS, *TAUGHT, "mtl-kd", "ensemble"):
        own = [s for s in plans.plan(P) if s.variant == variant and s.arm == "printed"]
        own = [spec for spec in own if spec.domains[0] == P.domains[0]]
        if not own:
            continue
        records = [record for _, record in runs.require_records(own)]
        starts = [spec.start for spec in own if spec.start and spec.start.multitask]
        before = [record for _, record in runs.require_records(starts)]
        others = [record for _, record in runs.require_records(list_others(own))]
        row = {
            "model": plans.display_name(P.report, variant),
            "parameters": f"{records[0]['parameters']:,}",
            "passes of the encoder": f"{max(1, len(own[0].experts))}",
            "windows of pre-training": f"{starts[0].batch_size * P.steps:,}" if starts else "0",
            "seconds of pre-training": average_seconds(before, len(own)),
            "seconds of fine-tuning": average_seconds(records, len(own)),
            "seconds of its teachers": average_seconds(others, len(own)),
        }
        rows.append(row | {"run": tuple(record["run"] for record in records + before + others)})
    if not rows:
        return report.note_absent("models")
    caption = (
        "Parameters when answering, how often the encoder then reads a window, and training time "
        "as recorded, for one seed. Teachers are the further models that have to be trained."
    )
    return report.save_table(P, "table_cost", pd.DataFrame(rows), caption)


def list_others(specs: list[Spec]) -> list[Spec]:
    """Return the runs that are behind some runs as teachers, or as members of an ensemble.

    What a run goes on from is left out.
    """
    others = {}
    for spec in specs:
        chain = [spec]
        while chain[-1].start:
            chain.append(chain[-1].start)
        own = {run.hash for run in chain}
        for run in selection.list_lineage(spec):
            if run.hash not in own:
                others[spec.seed, run.hash] = run
    return list(others.values())


def average_seconds(records: list[dict], seeds: int) -> str:
    """Return the seconds that the training of some runs took for one seed, or "–" without runs."""
    if not records:
        return "–"
    return f"{sum(record['training_seconds'] for record in records) / seeds:.0f}"


# ---- why: do tasks pull in one direction? ----


TELLING = 0.1  # share by which the mean gradient is shorter or longer where gradients disagree


def collect_cosines(P) -> pd.DataFrame:
    """Return the measured cosines between datasets' gradients: a row for each run, step and pair.

    Columns: the labels, model, step, first, second, cosine, same (whether both have one head), left
    (the norm of the mean gradient in units of the mean norm), orthogonal (what that would be were
    gradients of these lengths orthogonal).
    """
    known = params.read_datasets(P.source, P.data)
    rows = []
    specs = find_pretrainings(P, ("mtl", "mt-dnn"), "printed")
    for spec, record in runs.require_records(specs):
        labels = runs.label_columns(spec, record)
        for probe in record.get("gradients", []):
            places = {dataset: place for place, dataset in enumerate(spec.domains)}
            lengths = np.array([*probe["norms"].values()])
            orthogonal = np.sqrt((lengths**2).sum()) / lengths.sum()
            for pair, cosine in probe["cosines"].items():
                first, second = sorted(pair.split("/"), key=places.get)
                measured = {"step": probe["step"], "cosine": cosine, "left": probe["left"]}
                measured["orthogonal"] = orthogonal
                same = known[first].head == known[second].head
                rows.append(labels | measured | {"first": first, "second": second, "same": same})
    return tables.add_display_names(pd.DataFrame(rows)) if rows else pd.DataFrame()


def figure_cosines(P) -> report.Html:
    """Return how far the gradients of datasets agree: over training, and for each two datasets."""
    rows = collect_cosines(P)
    if rows.empty:
        return report.note_absent("gradients")
    of_mtl = rows[rows["variant"] == "mtl-pretraining"]
    square = make_square(of_mtl, list(P.pretraining))
    names = [name_dataset(P, name) for name in square]
    square = square.set_axis(names).set_axis(names, axis=1)
    caption = (
        "Cosines between gradients. First over pre-training, of datasets that share a task "
        f"(dashed) and that do not; then of each two datasets in ROaD. {describe_cosines(of_mtl)}"
    )
    alt = "Lines of cosines over the updates of pre-training, and a square of cosines."

    def draw(look: Look) -> Figure:
        return draw_agreement(P.report, rows, square, look)

    return looks.save_drawing(P, "fig_cosines", draw, caption, alt, rows)


def make_square(rows: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """Return the mean cosine of each two datasets as a square; 1 on its diagonal."""
    square = pd.DataFrame(np.eye(len(names)), names, names)
    for (first, second), of_pair in rows.groupby(["first", "second"], sort=False):
        square.loc[first, second] = square.loc[second, first] = of_pair["cosine"].mean()
    return square


def describe_cosines(rows: pd.DataFrame) -> str:
    """Return one sentence on what the cosines say of the report's explanation."""
    other = rows[~rows["same"]]
    if other.empty:
        return "All datasets are of one task."
    of_probes = rows.groupby(["run", "step"])[["left", "orthogonal"]].first().mean()
    left, orthogonal = of_probes["left"], of_probes["orthogonal"]
    against = 100 * (other["cosine"] < 0).mean()
    told = "they neither agree nor disagree"
    if abs(left - orthogonal) > TELLING * orthogonal:
        told = "they disagree" if left < orthogonal else "they agree"
    return (
        f"Of the cosines between tasks, {against:.0f} % are negative. The mean of all gradients is "
        f"{left:.2f} times as long as one; {orthogonal:.2f} if they were orthogonal, so on the "
        f"whole {told}."
    )


def draw_agreement(slug: str, rows: pd.DataFrame, square: pd.DataFrame, look: Look) -> Figure:
    """Draw mean cosines over updates, a line for each model and kind of pair, and the square."""
    shape = (2, 1) if look.is_narrow else (1, 2)
    height = 6.6 if look.is_narrow else 3.4
    fig, (lines, heat) = plt.subplots(*shape, figsize=(look.width, height), layout="constrained")
    for (variant, same), of_kind in rows.groupby(["variant", "same"], sort=False, observed=True):
        means = of_kind.groupby("step")["cosine"].mean()
        colour = look.model_colour(slug, variant)
        lines.plot(means.index, means, "o-" if not same else "o--", ms=4, color=colour)
    for place, variant in enumerate(rows["variant"].unique()):
        name, colour = plans.display_name(slug, variant), look.model_colour(slug, variant)
        above = {"xycoords": "axes fraction", "color": colour, "weight": "bold"}
        lines.annotate(name, (0.4 * place, 1.03), **above)
    lines.axhline(0, color=look.colours["soft"], lw=1)
    lines.set(xlabel="update of pre-training", ylabel="cosine")
    draw_cosines(heat, square, look)
    return fig


# ---- draws an update ----


def figure_passes(P) -> report.Html:
    """Return scores by the draws whose gradients an update averages, at one batch."""
    prefix = "mtl-passes-"
    specs = [s for s in plans.plan(P) if s.arm == "printed" and s.variant.startswith(prefix)]
    specs = [spec for spec in specs if spec.tests]
    if not specs:
        return report.note_absent("passes")
    ledger = pieces.collect_columns(runs.collect_ledger(specs), name_columns(P))
    draws = [int(variant.removeprefix(prefix)) for variant in ledger["variant"]]
    rows = ledger.assign(draws=draws, variant="mtl")
    rows = rows[rows["column"].str.endswith("EM")]
    plain = [s for s in plans.plan(P) if s.arm == "printed" and s.variant == "baseline" and s.tests]
    plain = [s for s in plain if s.domains[0] == P.domains[0] and s.seed in set(rows["seed"])]
    lines = pieces.collect_columns(runs.collect_ledger(plain), name_columns(P)) if plain else None
    lines = rows[:0] if lines is None else lines[lines["column"].str.endswith("EM")]
    seeds = rows["seed"].nunique()
    caption = (
        "EM by the draws of a dataset that an update averages, at one batch in all. Points: means "
        f"over seeds, of which there {'is one' if seeds == 1 else f'are {seeds}'}."
    )
    if len(lines):
        caption += " Dashed: Plain."
    alt = "EM on the target and on the other domain over the draws of an update."

    def draw(look: Look) -> Figure:
        return charts.draw_sweep(P.report, rows, "draws", "draws an update", lines, look)

    frame = pd.concat([rows, lines])
    return looks.save_drawing(P, "fig_passes", draw, caption, alt, frame)


# ---- training curves and examples ----


def figure_learning(P) -> report.Html:
    """Return the losses of fine-tuning after each epoch."""
    specs = []
    for spec in plans.plan(P):
        is_target = spec.domains[0] == P.domains[0]
        if spec.variant in PRETRAINED and spec.arm == "printed" and is_target:
            specs.append(spec)
    if not specs:
        return report.note_absent("pretraining")
    caption = "Losses of fine-tuning on the target after each epoch."
    alt = "Training and validation loss by epoch, a line for each model."
    return pieces.figure_losses(P, specs, caption, alt)


def table_examples(P) -> report.Html:
    """Return questions that one of two models alone has right: two each way.

    With question and answer where the text is generated; else by id, since real text is not
    published.
    """
    first = []
    for variant in ("mtl", "baseline"):
        own = [s for s in plans.plan(P) if s.variant == variant and s.domains[0] == P.domains[0]]
        first += own[:1]
    if len(first) < 2:
        return report.note_absent("pretraining")
    examples = runs.collect_examples(first)
    examples = examples[examples["set"] == P.domains[0]]
    right = examples.pivot(index="id", columns="variant", values="em").gt(0)
    parts = {"ROaD": right["mtl"] & ~right["baseline"], "Plain": right["baseline"] & ~right["mtl"]}
    texts = {}
    if P.source == "embedded":
        _, test_rows = selection.load_test_sets(first[0])[P.domains[0]]
        texts = {row["id"]: row for row in test_rows}
    rows = []
    for name, of_part in parts.items():
        for id_ in of_part[of_part].index[:2]:
            row = {"only right": name, "id": id_}
            if id_ in texts:
                row["question"] = texts[id_]["question"]
                row["answer"] = (texts[id_]["answers"]["text"] or ["none"])[0]
            rows.append(row | {"run": tuple(examples["run"].unique())})
    if not rows:
        return report.note_absent("examples on which two models differ")
    caption = "Questions that one of two models alone has right, the first two each way."
    return report.save_table(P, "table_examples", pd.DataFrame(rows), caption)
