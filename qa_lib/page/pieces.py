"""The pieces of a report's page, each reached from its notebook by one call.

    from qa_lib.page import pieces as page

    page.show_committed("smart", smart.COMPARISONS)
    page.show_answer(P, smart.COMPARISONS)
    page.figure_comparisons(P, smart.COMPARISONS)
    page.table_models(P, ["finetune", "smart"], {"smart": "adversarial term"})
    page.show_findings(P, "why")

A table or figure whose part of the study was not run shows a note in its place. Prose stands in
params/findings/<slug>.md.
"""

import re
from html import escape, unescape

import pandas as pd

from qa_lib.evidence import compare, verify
from qa_lib.page import charts, grids, looks, markup, report, tables, verdict_groups, written
from qa_lib.reports import plans
from qa_lib.reports.comparisons import Comparison, Step
from qa_lib.settings.spec import Spec
from qa_lib.store import runs

UNWRITTEN = "No findings are written for these runs; the numbers are theirs."
UNTRUE = "The findings do not hold any more for these records; the numbers are theirs."
NOTHING_COMMITTED = report.Html("<p>No results on real data are committed yet.</p>")
ARMS = {"printed": "the report's settings", "tuned": "equal tuning"}
# What is measured after each epoch → how it is called above its panel.
CURVES = {"train_loss": "training loss", "validation_loss": "validation loss"}


# ---- what is recorded already ----


def show_committed(slug: str, comparisons: tuple[Comparison, ...]) -> report.Html:
    """Return the answer and the forest figure of the committed results on real data.

    Nothing is trained or written. Of two sizes it is the larger one that is whole; where neither
    is, a line says so.
    """
    for size in ("full", "small"):
        P = plans.load_params(slug, "real", size=size)
        if all(runs.find_record(spec) for spec in plans.plan(P)):
            figure = figure_comparisons(P, comparisons, is_preview=True)
            return stack(show_answer(P, comparisons), figure)
    return NOTHING_COMMITTED


# ---- prose ----


def show_setting(P) -> report.Html:
    """Return encoder, data and seeds of a page, and in a notebook the profile with its meaning."""
    meaning, _ = report.PROFILES[P.profile]
    head = f'<p class="lab">{report.profile_badge(P)} {meaning}.</p>'
    paragraphs = [f"<p>{text}</p>" for text in report.describe_setting(P)]
    return report.Html(head + "".join(paragraphs))


def show_answer(P, comparisons: tuple[Comparison, ...]) -> report.Html:
    """Return the answer box: the finding, three numbers, and what it does not show.

    On a page of other runs than those that findings were written of, and where the records do not
    bear the answer out: the numbers of the first comparison, and one line that says so.
    """
    found = written.read_findings(P.report)
    notice = UNWRITTEN
    answer = None
    if written.is_written_of(P, found):
        answer = written.fill_answer(P, found)
        notice = UNTRUE
    if answer is None:
        numbers = list_numbers(compare.collect_comparisons(P, comparisons[:1]))
        first, last = f"<p>{notice}</p>", ""
    else:
        numbers = answer.numbers
        first, last = markup.markdown(answer.finding), markup.markdown(answer.limit)
    items = []
    for number, label in numbers:
        items.append(f"<li><strong>{escape(number)}</strong> {show_inline(label)}</li>")
    listed = f"<ul>{''.join(items)}</ul>" if items else ""
    kind = "Answer" if last else "Numbers"
    return report.Html(
        f'<section class="answer" aria-label="{kind}">{first}{listed}{last}</section>'
    )


def show_inline(text: str) -> str:
    """Return Markdown as HTML without a paragraph around it."""
    return markup.markdown(text).strip().removeprefix("<p>").removesuffix("</p>")


def list_numbers(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """Return (number, what it is) of the first comparison: ours in both arms, and the printed."""
    numbers = []
    for row in rows[rows["control"] == ""].itertuples():
        name, _ = charts.SETTINGS[row.setting]
        if row.setting == "printed":
            numbers.append((f"{charts.format_printed(row)} {row.unit}", name))
        elif row.n:
            label = f"{name}: {row.ours} against {row.against}"
            numbers.append((charts.format_difference(row, row.unit), label))
    return numbers


def show_findings(P, section: str) -> report.Markdown:
    """Return a section of the findings, with its numbers.

    It is empty on a page of other runs, since the answer box says that none are written for them.
    """
    found = written.read_findings(P.report)
    if not written.is_written_of(P, found):
        return report.Markdown("")
    return report.Markdown("\n\n".join(written.fill_section(P, found, section)))


def fold(title: str, *parts) -> report.Html:
    """Return parts of a page folded away under a title. A part is HTML, or Markdown.

    Parts that were not run are named in one line at the end. Where none was, a note says so.
    """
    texts = []
    absent = []
    for part in parts:
        if str(part).startswith(report.ABSENT):
            absent += [unescape(name) for name in re.findall("“(.*?)”", part)]
            continue
        texts.append(write_html(part))
    absent = list(dict.fromkeys(absent))
    if not texts:
        return report.note_absent(", ".join(absent))
    if absent:
        texts.append(f"<p>Not run here: {escape(', '.join(absent))}.</p>")
    return report.Html(
        f'<details class="more"><summary>{escape(title)}</summary>{"".join(texts)}</details>'
    )


def stack(*parts) -> report.Html:
    """Return parts of a page one below the other. A part is HTML, or Markdown.

    Notes about what was not run that are alike stand once.
    """
    texts = []
    for part in parts:
        text = write_html(part)
        if text.startswith(report.ABSENT) and text in texts:
            continue
        texts.append(text)
    return report.Html("".join(texts))


def write_html(part: report.Html | report.Markdown) -> str:
    """Return a part of a page as HTML."""
    return str(part) if isinstance(part, report.Html) else markup.markdown(str(part))


def show_provenance(P) -> report.Html:
    """Return what is behind a page, folded: commit, data, machine, versions, runs and time."""
    return fold("Provenance", report.show_provenance(P, plans.plan(P)))


def list_parts_not_run(P) -> report.Html:
    """Return the parts of the study that this page lacks, folded; empty where it has all.

    What an experiment is stands in the first line of its function's docstring.
    """
    missing = report.name_parts_not_run(P)
    if not missing:
        return report.Html("")
    experiments = plans.find_report(P.report).EXPERIMENTS
    items = []
    for name in missing:
        text = "The same trials of settings for every model."
        if name in experiments:
            text = experiments[name].__doc__.splitlines()[0]
        items.append(f"<li>{escape(name)}: {escape(text)}</li>")
    listed = report.Html(f"<ul>{''.join(items)}</ul>")
    return fold("Parts of the study that were not run here", listed)


def note_not_run(P, arm: str, part: str | None) -> report.Html:
    """Return the note in place of a table or figure that no run of an arm is for.

    It names the arm where that was not run. Else it names the part, an experiment by the name that
    parameters have for it; None: the models are not run. Where a part that is run has nothing with
    equal tuning, it says so.
    """
    if arm not in P.arms:
        return report.note_absent(ARMS[arm])
    name = part or "models"
    if arm == "tuned" and (part is None or part in P.experiments):
        name = f"{name} with {ARMS[arm]}"
    return report.note_absent(name)


# ---- figures ----


def figure_comparisons(
    P, comparisons: tuple[Comparison, ...], is_preview: bool = False
) -> report.Html:
    """Return the forest figure: printed, ours in both arms, and what controls leave.

    Comparisons of which nothing was run are named in the caption. is_preview: it is shown outside
    its page, and no file is written.
    """
    rows = compare.collect_comparisons(P, comparisons)
    made = rows[rows["n"] > 0]
    if made.empty:
        return report.note_absent("central comparisons")
    is_run = rows["comparison"].isin(made["comparison"])
    absent = rows[~is_run].drop_duplicates("comparison")
    rows = rows[is_run]
    untuned = ""
    if "equal" not in set(made["setting"]):  # said once, not in a line of every comparison
        rows = rows[rows["setting"] != "equal"]
        untuned = " Equal tuning was not run."
    exact = " EM: exact answers, in percent." if "EM" in set(made["unit"]) else ""
    caption = (
        "Hollow: printed in the report, without an interval. Squares: the same model against a "
        f"control. {explain_names(P.report, made)}{describe_intervals(P, made)}{exact}{untuned}"
    )
    if len(absent):
        groups = absent.groupby("comparison", sort=False)
        names = [charts.name_comparison(group) for _, group in groups]
        caption += f" Not run: {'; '.join(names)}."
    alt = f"A row for each comparison: {charts.describe_values(made)}"

    def draw(look: looks.Look):
        return charts.draw_forest(P.report, rows, look)

    if is_preview:
        return looks.show_drawing(draw, caption, alt, report.profile_tag(P))
    return looks.save_drawing(P, "fig_comparisons", draw, caption, alt, made)


def explain_names(slug: str, made: pd.DataFrame) -> str:
    """Return a sentence about the models of the forest figure whose names leave something open.

    It ends with a blank. It is empty where all names say enough.
    """
    shown = {*made["ours"], *made["against"]}
    shown |= {plans.display_name(slug, control) for control in made["control"] if control}
    texts = []
    for model, note in plans.find_report(slug).NOTES.items():
        name = plans.display_name(slug, model)
        if name in shown:
            texts.append(f"{name}: {note}")
    return f"{'; '.join(texts)}. " if texts else ""


def describe_intervals(P, made: pd.DataFrame) -> str:
    """Return what the bars of the forest figure are, and over how many seeds and test examples."""
    numbers = compare.count_examples(P, made["claim"])
    examples = f"{' or '.join(f'{number:,}' for number in numbers)} test examples"
    fewest, most = made["n"].min(), made["n"].max()
    if made["low"].isna().all():
        return f"One seed: no intervals; {examples}."
    seeds = f"{most}" if fewest == most else f"{fewest} to {most}"
    of_one = made.loc[made["n"] == 1, "low"]
    lone = []
    if of_one.notna().any():
        lone.append("spread borrowed from the others")
    if of_one.isna().any():
        lone.append("no bar")
    one = f" (one: {', or '.join(lone)})" if lone else ""
    return f"Bars are 95 % intervals over {seeds} seeds{one} and {examples}."


def figure_steps(P, claim: str, steps: tuple[Step, ...], arm: str = "printed") -> report.Html:
    """Return the step chart from the baseline to the report's model, by a claim's contrast."""
    if arm not in P.arms:
        return report.note_absent(ARMS[arm])
    rows = compare.collect_steps(P, claim, steps, arm)
    made = rows[rows["n"] > 0]
    if made.empty:
        return report.note_absent("steps to the report's model")
    unit = compare.find_claim(P, claim).unit
    hatched = ""
    if (~made["known"]).any():
        hatched = " Hatched: steps that were run together share one value."
    lines = "" if made["low"].isna().all() else " Lines: 95 % intervals."
    rule = " By the report's scoring." if made["by_starter"].any() else ""
    seeds = ""
    if made["n"].nunique() > 1:
        fewest, most = made["n"].min(), made["n"].max()
        seeds = (
            f" Each step compares the seeds that both models have ({fewest} to {most}), so "
            "they need not add up."
        )
    caption = (
        f"From {plans.display_name(P.report, steps[0].before)} to "
        f"{plans.display_name(P.report, steps[-1].after)}, with {ARMS[arm]}. A step begins where "
        f"the one above it ends.{lines}{hatched}{seeds}{rule}"
    )
    alt = "; ".join(
        f"{row.says}: {charts.format_difference(row, unit)}" for row in made.itertuples()
    )

    def draw(look: looks.Look):
        return charts.draw_steps(P.report, rows, unit, look)

    return looks.save_drawing(P, f"fig_steps_{arm}", draw, caption, alt, made)


def figure_trials(
    P,
    by: tuple[str, str] = ("rate", "epochs"),
    score: str = "validation_em",
    setting: str = "λ, or epochs",
    variants: list[str] | None = None,
    name: str = "fig_trials",
    rows_trained: int | None = None,
) -> report.Html:
    """Return the trials of every model as heat maps, the chosen settings ringed.

    by: the columns of tables.trials_table that go down and across. score: that which chose; where
    the models have different ones, "chosen_by". setting: how a reader calls the column `setting`.
    variants: of the models that are shown, by default all that have trials.
    rows_trained: of the trials with so many training rows alone.
    """
    specs = [spec for spec in plans.plan(P) if rows_trained in (None, sum(spec.rows))]
    tried = [spec for spec in specs if spec.variant.endswith("-trial")]
    if variants is not None:
        tried = [spec for spec in tried if spec.variant.removesuffix("-trial") in variants]
    if not tried:
        return report.note_absent(report.EQUAL_TUNING)
    rows = mark_chosen(P, tables.trials_table(tried), by, rows_trained)
    mixtures = rows["mixture"].dropna().unique()
    at = f" at {mixtures[0]}" if len(mixtures) == 1 else ""
    trials = "all trials" if variants is None else "trials"
    caption = (
        f"The validation score of {trials}{at}, one seed. Ringed: the setting that was "
        f"chosen. {describe_edges(rows, by, setting)}".strip()
    )
    alt = "; ".join(
        f"{row['model']}: {by[0]} {row[by[0]]}, {by[1]} {row[by[1]]}"
        for row in rows[rows["chosen"]].to_dict("records")
    )

    def draw(look: looks.Look):
        return charts.draw_trials(rows, by, score, look, setting)

    return looks.save_drawing(P, name, draw, caption, f"Chosen: {alt}", rows)


def describe_means(rows: pd.DataFrame, has_bars: bool = False) -> str:
    """Return over how many seeds of a model the points of a figure or values of a table are means.

    has_bars: whether a figure has bars from the lowest seed to the highest.
    """
    seeds = rows.groupby("variant", observed=True)["seed"].nunique()
    fewest, most = seeds.min(), seeds.max()
    if most == 1:
        return "One seed."
    number = f"{most}" if fewest == most else f"{fewest} to {most}"
    bars = ", bars from the lowest to the highest" if has_bars else ""
    return f"Means over {number} seeds{bars}."


def figure_losses(P, specs: list[Spec], caption: str, alt: str) -> report.Html:
    """Return the training and validation losses of runs after each epoch, a line for a model."""
    history = runs.collect_histories(specs)
    parts = []
    for column, heading in CURVES.items():
        parts.append(history.assign(column=heading, value=history[column]))
    rows = pd.concat(parts, ignore_index=True)
    caption = f"{caption} {describe_means(rows, has_bars=True)}"

    def draw(look: looks.Look):
        return charts.draw_sweep(P.report, rows, "epoch", "epoch", rows[:0], look)

    return looks.save_drawing(P, "fig_learning", draw, caption, alt, rows)


def figure_sweep(
    P,
    name: str,
    caption: str,
    variants: tuple[str, ...],
    by: str,
    label: str,
    columns: dict[str, tuple],
    baseline: str | None = None,
    arm: str = "printed",
    part: str | None = None,
    **which,
) -> report.Html:
    """Return scores over the values of one setting, a panel for each set.

    variants: those of the sweep. by: the column of the ledger that varies; label: how the axis
    calls it. columns: of `collect_columns`. baseline: a variant without the setting, whose mean is
    a dashed line. part: the experiment that runs the variants. which: further columns of the
    ledger that rows must have.
    """
    of_arm = [spec for spec in plans.plan(P) if spec.arm == arm]
    specs = [spec for spec in of_arm if spec.variant in variants]
    if not specs:
        return note_not_run(P, arm, part)
    rows = collect_columns(runs.collect_ledger(specs), columns)
    for column, value in which.items():
        rows = rows[rows[column] == value]
    if rows.empty:
        return note_not_run(P, arm, part)
    swept = set(rows["seed"])
    beside = [spec for spec in of_arm if spec.variant == baseline and spec.seed in swept]
    lines = collect_columns(runs.collect_ledger(beside), columns) if beside else rows[:0]
    seeds = rows.groupby(["variant", by])["seed"].nunique()
    number = f"{seeds.min()}" if seeds.nunique() == 1 else f"{seeds.min()} to {seeds.max()}"
    spread = "One seed." if number == "1" else f"A point is the mean over {number} seeds."
    caption = f"{caption} {spread}"
    if len(lines):
        caption += f" The dashed line is “{plans.display_name(P.report, baseline)}”."
    alt = f"Scores over {label}: {', '.join(columns)}."

    def draw(look: looks.Look):
        return charts.draw_sweep(P.report, rows, by, label, lines, look)

    return looks.save_drawing(P, name, draw, caption, alt, pd.concat([rows, lines]))


def mark_chosen(
    P, rows: pd.DataFrame, by: tuple[str, str], rows_trained: int | None = None
) -> pd.DataFrame:
    """Return trials with `chosen`: whether the runs of equal tuning have a trial's settings.

    rows_trained: of the runs with so many training rows alone.
    """
    tuned = [spec for spec in plans.plan(P) if spec.arm == "tuned" and spec.tests]
    tuned = [spec for spec in tuned if rows_trained in (None, sum(spec.rows))]
    labels = []
    for spec, record in runs.require_records(tuned):
        if not spec.variant.endswith("-trial"):
            trained = grids.list_trained(spec)[0]
            setting = {"learning_rate": trained.learning_rate, "epochs": trained.epochs}
            setting["setting"] = tables.name_setting(spec)
            labels.append(runs.label_columns(spec, record) | setting)
    if not labels:
        return rows.assign(chosen=False)
    columns = ["model", *by]
    chosen = tables.add_display_names(pd.DataFrame(labels))[columns].astype(str)
    settings = set(chosen.itertuples(index=False, name=None))
    of_trials = rows[columns].astype(str).itertuples(index=False, name=None)
    return rows.assign(chosen=[setting in settings for setting in of_trials])


def describe_edges(rows: pd.DataFrame, by: tuple[str, str], setting: str) -> str:
    """Return one sentence about chosen settings at an edge of what was tried; empty without any."""
    told = []
    for column in by:
        at_edge = []
        for model, of_model in rows.groupby("model", observed=True):
            tried = of_model.sort_values(column)[column].unique()
            chosen = of_model[of_model["chosen"]]
            if len(tried) > 1 and chosen[column].isin([tried[0], tried[-1]]).any():
                at_edge.append(str(model))
        if at_edge:
            name = (charts.NAMES_OF | {"setting": setting}).get(column, column)
            is_every = len(at_edge) == rows["model"].nunique()
            told.append(f"{name} of {'every model' if is_every else ', '.join(at_edge)}")
    return f"At the edge of what was tried: {'; '.join(told)}." if told else ""


# ---- tables ----


def table_models(P, variants: list[str], parts: dict[str, str]) -> report.Html:
    """Return the table of models: what each is made of, and how it is trained in both arms.

    parts: variant → its extra parts in words. Variants without runs are left out.
    """
    specs = plans.plan(P)
    planned = {spec.variant for spec in specs}
    variants = [variant for variant in variants if variant in planned]
    if not variants:
        return report.note_absent("models")
    frame = grids.describe_models(P, variants, parts)
    shown, classes, shared = grids.lay_out_models(frame)
    has_pretraining = any(spec.start and spec.start.multitask for spec in specs)
    trained = "fine-tuned after its pre-training" if has_pretraining else "trained"
    caption = f"The models, and how each is {trained}."
    if shared:
        caption += f" Alike for all: {shared}."
    return grids.save_frame(P, "table_models", shown, classes, caption, frame)


def table_grid(
    P,
    name: str,
    caption: str,
    variants: list[str],
    columns: dict[str, tuple],
    printed: dict[str, dict[str, float]],
    arm: str = "printed",
    lower: tuple[str, ...] = (),
    benchmark: tuple[str, dict[str, dict[str, float]]] | None = None,
    has_best: bool = True,
    part: str | None = None,
    **which,
) -> report.Html:
    """Return a grid of results, model × set, with what the report prints.

    columns: of `collect_columns`. printed: variant → heading → value. lower: the headings under
    which a lower value is better. benchmark: whose values stand beside the printed ones, and these
    values. has_best: whether a higher or lower value is an achievement, so that the best of ours is
    bold. part: the experiment that runs the variants. which: further columns of the ledger that
    rows must have, e.g. ratio=0.6.
    """
    specs = [spec for spec in plans.plan(P) if spec.arm == arm and spec.variant in variants]
    # At the report's settings another part may run one of the variants.
    is_left_out = arm == "printed" and part is not None and part not in P.experiments
    if not specs or is_left_out:
        return note_not_run(P, arm, part)
    ledger = runs.collect_ledger(specs)
    for column, value in which.items():
        ledger = ledger[ledger[column] == value]
    ledger = collect_columns(ledger, columns)
    if ledger.empty:
        return note_not_run(P, arm, part)
    names = [plans.display_name(P.report, variant) for variant in ledger["variant"]]
    ledger = ledger.assign(model=names)
    known = set(ledger["variant"])
    models = list(dict.fromkeys(plans.display_name(P.report, v) for v in variants if v in known))
    cells = grids.average_cells(ledger, models)
    theirs = {plans.display_name(P.report, v): values for v, values in printed.items()}
    further = None
    if benchmark:
        source, values = benchmark
        further = source, {plans.display_name(P.report, v): values[v] for v in values}
    shown, classes = grids.lay_out_grid(cells, theirs, lower, further)
    caption = f"{caption} {grids.describe_seeds(cells)}"
    if has_best:
        caption += grids.describe_bold(cells)
    else:
        classes = classes.replace("number best", "number")
    return grids.save_frame(P, name, shown, classes, caption, cells)


def save_grid(
    P, name: str, caption: str, rows: pd.DataFrame, part: str | None = None
) -> report.Html:
    """Return a grid of results whose rows have names of their own.

    rows: of a ledger, with `model`, a row's name, and `column`, in the order of the table. part:
    the experiment that runs them.
    """
    if rows.empty:
        return note_not_run(P, "printed", part)
    cells = grids.average_cells(rows, list(dict.fromkeys(rows["model"])))
    shown, classes = grids.lay_out_grid(cells, {})
    caption = f"{caption} {grids.describe_seeds(cells)}{grids.describe_bold(cells)}"
    return grids.save_frame(P, name, shown, classes, caption, cells)


def collect_columns(ledger: pd.DataFrame, columns: dict[str, tuple]) -> pd.DataFrame:
    """Return the rows of a ledger that stand under headings, which are in `column`, in their order.

    columns: heading → (set, metric), or (set, metric, further), in which further columns of the
    ledger have their values, e.g. {"ratio": 0.6}.
    """
    headings = pd.Series(None, index=ledger.index, dtype=object)
    for heading, (test_set, metric, *further) in columns.items():
        place = {"set": test_set, "metric": metric}
        for values in further:
            place |= values
        is_there = (ledger[[*place]] == pd.Series(place)).all(axis=1)
        headings[is_there] = heading
    rows = ledger.assign(column=headings)
    rows = rows[rows["column"].notna()]
    rows["column"] = pd.Categorical(rows["column"], list(columns), ordered=True)
    return rows.sort_values("column", kind="stable").astype({"column": str})


def show_verdicts(P) -> report.Html:
    """Return the verdicts by the models that are compared; writes claims.csv beside the page."""
    table = verify.write_claims(P)
    if not (table["n"] > 0).any():
        return report.note_absent("claims")
    return verdict_groups.show_groups(P, table)
