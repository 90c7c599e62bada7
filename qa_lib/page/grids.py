"""Tables of the page: grids of results with what the report prints, and the table of models.

A table is a frame of text. pandas makes all its forms: its Styler HTML and LaTeX, in which the best
values are bold, and `to_markdown` Markdown. great_tables has no Markdown, and writes the colours of
a light page into each cell; the Styler writes classes, to which page.css gives colours for light,
dark and paper.
"""

from html import escape
from pathlib import Path

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

from qa_lib.page import report
from qa_lib.reports import plans
from qa_lib.settings.spec import Spec
from qa_lib.store import runs

MOST_ROWS = 10
PRINTED = "printed"
OURS = "ours"
# The Styler with our template in place of its own.
Table = Styler.from_custom_template(str(Path(__file__).parent), html_table="table.html.j2")


def save_frame(
    P, name: str, shown: pd.DataFrame, classes: pd.DataFrame, caption: str, frame: pd.DataFrame
) -> report.Html:
    """Write <name>.csv, .md and .tex; return the table for display.

    shown: text; its index names the rows. classes: of the same shape, the class of each cell, in
    which `best` is bold. frame: the numbers behind it, whose column `run` names the runs.
    Raises UserError where a row names no run.
    """
    ids = report.require_runs(name, frame)
    shown = shown.map(report.join_lines)
    folder = runs.page_folder(P)
    evidence = [" ".join(run) for run in frame["run"]]
    runs.write(folder / f"{name}.csv", runs.format_csv(frame.assign(run=evidence)))
    tag = report.profile_tag(P)
    runs.write(folder / f"{name}.md", format_markdown(shown, classes, f"**{tag}** {caption}"))
    tex = format_tex(shown, classes, f"[{tag}] {caption}", f"tab:{name}")
    runs.write(folder / f"{name}.tex", "".join(f"% run {run}\n" for run in ids) + tex)
    title = f'aria-labelledby="{name}-title"'
    return report.Html(
        f'<figure id="{name}" class="grid"><figcaption id="{name}-title">{escape(caption)}'
        f'</figcaption>\n<div class="scroll" tabindex="0" role="region" {title}>'
        f"{format_html(shown, classes, title)}</div>"
        f"{report.link_files(P, name, 'csv', 'md', 'tex')}{report.list_runs(ids)}</figure>"
    )


def format_html(shown: pd.DataFrame, classes: pd.DataFrame, title: str) -> str:
    """Return a frame of text as an HTML table. Text is never markup.

    title: the attribute of the table that says where its caption stands.
    """
    safe = shown.rename(columns=escape_html, index=escape_html).map(escape_html)
    cells = classes.set_axis(safe.index).set_axis(safe.columns, axis=1)
    return Table(safe).set_td_classes(cells).to_html(table_attributes=title, exclude_styles=True)


def format_tex(shown: pd.DataFrame, classes: pd.DataFrame, caption: str, label: str) -> str:
    """Return a frame of text as a LaTeX table."""
    safe = shown.rename(columns=report.escape_tex, index=report.escape_tex).map(report.escape_tex)
    bold = np.where(classes.apply(lambda column: column.str.contains("best")), "bfseries:", "")
    table = Styler(safe).apply(lambda _: bold, axis=None)
    caption = report.escape_tex(caption)
    return table.to_latex(
        hrules=True, caption=caption, label=label, multicol_align="c", position="tb"
    )


def format_markdown(shown: pd.DataFrame, classes: pd.DataFrame, caption: str) -> str:
    """Return a frame of text as a Markdown table under its caption, which is Markdown."""
    safe = shown.map(report.escape_markdown)
    safe = safe.where(
        ~classes.apply(lambda column: column.str.contains("best")), "**" + safe + "**"
    )
    if safe.columns.nlevels > 1:
        safe.columns = [", ".join(filter(None, names)) for names in safe.columns]
    return f"{caption}\n\n{safe.to_markdown(disable_numparse=True)}\n"


def escape_html(text: str) -> str:
    """Return a text such that HTML, and the maths of JupyterLab, show it as it is."""
    return escape(text).replace("$", "<span>$</span>")


# ---- results, model × set ----


def average_cells(rows: pd.DataFrame, models: list[str]) -> pd.DataFrame:
    """Return mean and standard deviation over seeds: a row for each model and column of a grid.

    rows: of a ledger, with `column`, where a value stands. Columns: model, column, value, value_sd,
    seeds, value_shared (the mean over the seeds that all models of the column have, if any), run.
    Raises ValueError where a seed has two values in one cell.
    """
    cells = []
    for column, of_column in rows.groupby("column", sort=False, observed=True):
        by_seed = of_column.groupby(["seed", "model"], sort=False, observed=True)["value"]
        if (by_seed.size() > 1).any():
            raise ValueError(f"a model has several values of one seed under {column}")
        shared = by_seed.first().unstack("model").dropna().mean()
        for model, group in of_column.groupby("model", sort=False, observed=True):
            cells.append(
                {
                    "model": model,
                    "column": column,
                    "value": group["value"].mean(),
                    "value_sd": group["value"].std(),
                    "seeds": group["seed"].nunique(),
                    "value_shared": shared[model],
                    "run": tuple(group["run"].unique()),
                }
            )
    frame = pd.DataFrame(cells)
    return frame.sort_values("model", key=lambda names: names.map(models.index), kind="stable")


def lay_out_grid(
    cells: pd.DataFrame,
    printed: dict[str, dict[str, float]],
    lower: tuple[str, ...] = (),
    benchmark: tuple[str, dict[str, dict[str, float]]] | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return a grid as text, and the class of each of its cells.

    Rows are models, columns are sets. Bold is the best of ours in a column, where it is best both
    over each model's seeds, as is shown, and over those that all models have. What the report
    prints stands above ours, a row for each model, where all rows are at most ten. Else it stands
    beside ours, a column for each.

    cells: of `average_cells`. printed: model → column → value. lower: the columns in which a lower
    value is better. benchmark: a source and its values, rows above those that are printed.
    """
    models = list(cells["model"].unique())
    columns = list(cells["column"].unique())
    shown = cells.pivot(index="model", columns="column", values="value")
    shared = cells.pivot(index="model", columns="column", values="value_shared")
    ours, best = [], []
    for model in models:
        of_model = cells[cells["model"] == model].set_index("column")
        ours.append([format_cell(of_model, column) for column in columns])
        best_of_model = []
        for column in columns:
            is_lower = column in lower
            is_best_shown = is_best(shown[column], model, is_lower)
            best_of_model.append(is_best_shown and is_best(shared[column], model, is_lower))
        best.append(best_of_model)
    ours = pd.DataFrame(ours, models, columns)
    classes = pd.DataFrame(best, models, columns).map(
        lambda is_it: "number best" if is_it else "number"
    )
    theirs = list_values(printed, columns)
    if theirs.empty:
        return ours, classes
    grey = pd.DataFrame("number printed", theirs.index, columns)
    if benchmark is None and len(theirs) + len(ours) > MOST_ROWS:
        return interleave(theirs, ours), interleave(grey, classes)
    sources = {PRINTED: theirs}
    if benchmark:
        sources = {benchmark[0]: list_values(benchmark[1], columns), PRINTED: theirs}
    above = [
        frame.set_axis([f"{model}, {source}" for model in frame.index])
        for source, frame in sources.items()
    ]
    above = pd.concat(above)
    grey = pd.DataFrame("number printed", above.index, columns)
    return pd.concat([above, ours]), pd.concat([grey, classes])


def list_values(of_models: dict[str, dict[str, float]], columns: list[str]) -> pd.DataFrame:
    """Return what a source has of models as text: a row for each model, "–" where it has none."""
    rows = {}
    for model, values in of_models.items():
        rows[model] = [f"{values[c]:g}" if c in values else "–" for c in columns]
    return pd.DataFrame(rows, columns).T


def interleave(printed: pd.DataFrame, ours: pd.DataFrame) -> pd.DataFrame:
    """Return two frames side by side, the printed column of each set before ours."""
    columns = {}
    for column in ours:
        columns[column, PRINTED] = printed[column].reindex(ours.index)
        columns[column, OURS] = ours[column]
    return pd.DataFrame(columns).fillna("–").rename_axis(None)


def format_cell(of_model: pd.DataFrame, column: str) -> str:
    """Return a mean with its standard deviation over seeds; of one seed the value alone."""
    if column not in of_model.index:
        return "–"
    cell = of_model.loc[column]
    spread = "" if pd.isna(cell["value_sd"]) else f" ± {cell['value_sd']:.1f}"
    return f"{cell['value']:.1f}{spread}"


def is_best(values: pd.Series, model: str, is_lower: bool) -> bool:
    """Return whether a model has the best value of a column, as it is shown."""
    shown = values.round(1)
    return bool(shown[model] == (shown.min() if is_lower else shown.max()))


def describe_bold(cells: pd.DataFrame) -> str:
    """Return what is bold in a grid."""
    if cells["value_shared"].isna().all():
        return ""
    if np.allclose(cells["value_shared"], cells["value"], equal_nan=True):
        return " Bold: the best of ours."
    return " Bold: the best, over shared seeds too."


def describe_seeds(cells: pd.DataFrame) -> str:
    """Return how many seeds a grid's means are over."""
    numbers = cells["seeds"]
    if numbers.max() == 1:
        return "One seed: no spread."
    fewest, most = numbers[numbers > 1].min(), numbers.max()
    number = f"{most}" if fewest == most else f"{fewest} to {most}"
    text = f"Mean ± standard deviation over {number} seeds"
    return f"{text}; without ±, one seed." if numbers.min() == 1 else f"{text}."


# ---- the models ----

# Arm → how it is called above its columns, and these columns.
ARMS = {"printed": "report's settings", "tuned": "equal tuning"}
IN_ARM = ("rate", "batch", "epochs", "steps", "seeds")


def describe_models(P, variants: list[str], parts: dict[str, str]) -> pd.DataFrame:
    """Return a row for each model: what it is made of, and how it is trained in both arms.

    Columns: model, blocks, extra parts, weights (millions), run, and the columns IN_ARM of each
    arm. variants: of the report's MODELS. parts: variant → its extra parts in words. An arm that
    was not run has "–". Of a mixture they are those of its experts.
    """
    specs = plans.plan(P)
    rows = []
    for variant in variants:
        own = [spec for spec in specs if spec.variant == variant]
        records = runs.require_records(own)
        row = {
            "model": plans.display_name(P.report, variant),
            "blocks": join_values(spec.blocks or "all" for spec in own),
            "extra parts": parts.get(variant, "–"),
            "weights, millions": join_values(
                f"{record['parameters'] / 1e6:.1f}" for _, record in records
            ),
        }
        for arm, words in ARMS.items():
            of_arm = [run for spec in own if spec.arm == arm for run in list_trained(spec)]
            row[f"rate, {words}"] = join_values(format_rate(s.learning_rate) for s in of_arm)
            row[f"batch, {words}"] = join_values(s.batch_size for s in of_arm)
            row[f"epochs, {words}"] = join_values(f"{s.epochs:g}" for s in of_arm)
            row[f"steps, {words}"] = describe_steps(of_arm)
            row[f"seeds, {words}"] = len({spec.seed for spec in of_arm}) or "–"
        rows.append(row | {"run": tuple(dict.fromkeys(record["run"] for _, record in records))})
    return pd.DataFrame(rows)


def list_trained(spec: Spec) -> list[Spec]:
    """Return the runs whose rate and epochs a model has: of a mixture those of its experts."""
    return spec.experts if spec.gate else [spec]


def describe_steps(specs: list[Spec]) -> str:
    """Return how many updates runs have, the fewest and the most; "–" where there are none."""
    steps = []
    for spec in specs:
        record = runs.find_record(spec)
        if record and record["history"]:
            steps.append(record["history"][-1]["step"])
    if not steps:
        return "–"
    fewest, most = min(steps), max(steps)
    return f"{most:,}" if fewest == most else f"{fewest:,} to {most:,}"


def join_values(values) -> str:
    """Return the different values of a model's runs, or "–" where there are none."""
    return " or ".join(dict.fromkeys(str(value) for value in values)) or "–"


def format_rate(rate: float) -> str:
    """Return a rate as one would write it: 3e-5, not 3e-05."""
    return np.format_float_scientific(rate, trim="-", exp_digits=1)


def lay_out_models(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """Return the table of models as text, the class of each of its cells, and what all share.

    The columns of an arm stand under its name; an arm in which no model was run has none. What is
    the same for several models is no column, but said in words: "blocks all; epochs 4".
    """
    columns = {("", "blocks"): "number", ("", "extra parts"): "name"}
    columns["", "weights, millions"] = "number"
    for arm in ARMS.values():
        if set(frame[f"seeds, {arm}"]) != {"–"}:
            columns |= {(arm, name): "number" for name in IN_ARM}
    arms = {arm for arm, _ in columns if arm}
    shown = {}
    alike: dict[str, list[str]] = {}  # what all models share → the arms in which they do
    for arm, name in list(columns):
        cells = frame[f"{name}, {arm}" if arm else name].astype(str).to_list()
        told = cells
        if arm and name != "seeds":  # which say what models an arm has
            ran = frame[f"seeds, {arm}"] != "–"
            told = [cell for cell, is_told in zip(cells, ran, strict=True) if is_told]
        if len(told) > 1 and len(set(told)) == 1:
            del columns[arm, name]
            alike.setdefault(f"{name} {told[0]}", []).append(arm)
            continue
        shown[arm, name] = cells
    shared = []
    for text, of_arms in alike.items():
        in_every_arm = of_arms == [""] or len(of_arms) == len(arms)
        shared.append(text if in_every_arm else f"{text} ({of_arms[0]})")
    shown = pd.DataFrame(shown, index=frame["model"].to_list())
    classes = pd.DataFrame([list(columns.values())] * len(shown), shown.index, shown.columns)
    return shown, classes, "; ".join(shared)
