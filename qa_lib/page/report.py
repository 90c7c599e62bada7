"""Tables, figures and provenance of a page, all of them drawn from run records.

A frame to be drawn has a column `run`: the run, or a tuple of the runs, that a row comes from.
Files go to figures/<report>/<profile>/. The same numbers give the same bytes. Text is never markup.
"""

import base64
import io
import re
from html import escape
from pathlib import Path
from typing import get_args

import matplotlib.pyplot as plt
import pandas as pd
from PIL import Image

from qa_lib.reports import plans
from qa_lib.settings.params import UserError, name_dataset
from qa_lib.settings.spec import Spec
from qa_lib.store import runs

# What the numbers of a page are worth, and the colour of its tag.
PROFILES = {
    "quick": (
        "generated text, small encoder: shows that the study works; no number here is a result",
        "#8a4b00",
    ),
    "real": ("real data, small encoder: a result for this encoder and these sizes", "#00605a"),
    "paper": ("the encoder, data and sizes of the report itself", "#1d3f8f"),
    "own": (
        "your own two domains: a result for them, this encoder and these sizes; "
        "the report's claims are not judged by it",
        "#6b2d73",
    ),
}
# Names of columns for readers; others are shown with blanks for underscores.
NAMES = {
    "em": "EM",
    "f1": "F1",
    "n": "test rows",
    "peak_memory_mb": "peak memory, MB",
    "tokens": "tokens an answer",
    "validation_em": "validation EM",
    "contains": "gold within a longer answer, %",
}

# What would be markup in Markdown: code, emphasis, maths, an underscore that is not within a word,
# a bracket that begins a link's address, and what GitHub makes links of without being asked.
MARKDOWN = re.compile(
    r"[\\`*~$]|(?<![^\W_])_|_(?![^\W_])|\](?=\()"
    r"|:(?=//)|(?<=www)\.|(?<=\w)@(?=\w)"
)
# Breaks of lines and pages, and control characters.
BREAKS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")

plt.rcdefaults()  # the user's matplotlibrc does not count
plt.style.use(Path(__file__).with_name("paper.mplstyle"))


class Html(str):
    """HTML that a notebook displays.

    Its plain form is short, so that a notebook holds the text once.
    """

    _repr_html_ = str.__str__
    __repr__ = object.__repr__


class Markdown(str):
    """Markdown that a notebook displays."""

    _repr_markdown_ = str.__str__
    __repr__ = object.__repr__


def save_table(
    P,
    name: str,
    frame: pd.DataFrame,
    caption: str,
    digits: int = 1,
    links: dict[str, str] | None = None,
) -> Html:
    """Write <name>.csv, .md and .tex; return the table for display.

    Columns `x` and `x_sd` are shown as "mean ± sd", and `seeds` says where one seed has no spread.
    digits: decimals of a number; links: address of each cell text that is a link.
    Raises UserError where a row names no run.
    """
    ids = require_runs(name, frame)
    caption = f"{caption} {describe_seeds(frame)}".strip()
    evidence = [" ".join(_tuple(run)) for run in frame["run"]]
    _write_file(P, f"{name}.csv", runs.format_csv(frame.assign(run=evidence)))
    shown = _format_frame(frame, digits)
    if "seeds" in shown and shown["seeds"].nunique() == 1 and shown["seeds"].iloc[0].isdigit():
        shown = shown.drop(columns="seeds")  # the caption says it
    _write_file(P, f"{name}.md", _format_markdown(shown, profile_tag(P), caption))
    tex = _format_tex(shown, f"[{profile_tag(P)}] {escape_tex(caption)}", f"tab:{name}")
    _write_file(P, f"{name}.tex", "".join(f"% run {run}\n" for run in ids) + tex)
    title = f'aria-labelledby="{name}-title"'
    return Html(
        f'<figure id="{name}"><figcaption id="{name}-title">{profile_badge(P)} {escape(caption)}'
        f'</figcaption>\n<div class="scroll" tabindex="0" role="region" {title}>\n'
        f"<table {title}>{_format_html(shown, links or {})}</table></div>"
        f"{link_files(P, name, 'csv', 'md', 'tex')}{list_runs(ids)}</figure>"
    )


def _format_markdown(shown: pd.DataFrame, tag: str, caption: str) -> str:
    """Return a frame of text as a Markdown table under its caption."""
    rows = shown.rename(columns=escape_markdown).map(escape_markdown)
    table = rows.to_markdown(index=False, disable_numparse=True)
    return f"**{tag}** {escape_markdown(caption)}\n\n{table}\n"


def _format_tex(shown: pd.DataFrame, caption: str, label: str) -> str:
    """Return a frame of text as a LaTeX table."""
    rows = shown.drop(columns="runs").rename(columns=escape_tex).map(escape_tex)
    return rows.to_latex(index=False, caption=caption, label=label)


def _format_html(shown: pd.DataFrame, links: dict[str, str]) -> str:
    """Return the head and body of a frame of text as an HTML table."""
    classes = [_cell_class(cells) for _, cells in shown.items()]

    def format_row(cells, first: str, other: str) -> str:
        """Return a row; first, other: the tag of its first cell, and that of the others."""
        tags = [first] + [other] * (len(classes) - 1)
        parts = []
        for tag, css, cell in zip(tags, classes, cells, strict=True):
            parts.append(f"<{tag}{css}>{_format_cell(cell, links)}</{tag[:2]}>")
        return "<tr>" + "".join(parts) + "</tr>\n"

    head = format_row(shown, 'th scope="col"', 'th scope="col"')
    rows = shown.itertuples(index=False)
    body = "".join(format_row(cells, 'th scope="row"', "td") for cells in rows)
    return f"<thead>{head}</thead><tbody>{body}</tbody>"


def _cell_class(cells: pd.Series) -> str:
    """Return the class attribute of a column's cells, which decides how they are set."""
    if all(re.fullmatch(r"-?[–\d][\d.,]*( ± [\d.]+)?", cell) for cell in cells):
        return " class=number"
    longest = max(len(cell) for cell in cells)
    if longest > 60:
        return " class=words"
    return " class=name" if longest > 15 else ""


def _format_cell(cell: str, links: dict[str, str]) -> str:
    """Return a cell's text as HTML, as a link where it has an address."""
    text = escape(cell).replace("$", "<span>$</span>")  # JupyterLab reads $x$ as maths
    return f'<a href="{escape(links[cell])}">{text}</a>' if cell in links else text


def save_figure(P, name: str, fig, caption: str, alt: str, frame: pd.DataFrame) -> Html:
    """Write <name>.png and .svg; return the figure for display, its image embedded.

    fig: a figure, axes or seaborn grid; frame: the data it was drawn from.
    Raises UserError where a row of the frame names no run.
    """
    ids = require_runs(name, frame)
    fig = getattr(fig, "figure", fig)
    svg = io.BytesIO()
    fig.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    _write_file(P, f"{name}.svg", svg.getvalue())
    drawn = io.BytesIO()
    fig.savefig(drawn, format="png", metadata={"Software": None})
    # 128 colours are enough, and take a third of the bytes.
    picture = Image.open(drawn).convert("RGB").quantize(128)
    png = io.BytesIO()
    picture.save(png, format="png", optimize=True)
    _write_file(P, f"{name}.png", png.getvalue())
    plt.close(fig)  # or JupyterLab draws it a second time
    width, height = (pixels // 2 for pixels in picture.size)  # two pixels a dot
    image = base64.b64encode(png.getvalue()).decode()
    return Html(
        f'<figure id="{name}"><div class="scroll" tabindex="0"><img width="{width}" '
        f'height="{height}" alt="{escape(alt)}" src="data:image/png;base64,{image}"></div>'
        f"<figcaption>{profile_badge(P)} {escape(caption)} {describe_seeds(frame)}</figcaption>"
        f"{link_files(P, name, 'svg', 'png')}{list_runs(ids)}</figure>"
    )


def show_header(P, verdicts: str = "") -> Html:
    """Return what a page is: profile, encoder, data, seeds, and how its claims fare.

    A page of own data has advice in their place.
    Where stale records are kept it says so, since the page is drawn from them.
    """
    if not verdicts and P.profile == "own":
        verdicts = "The advice needs runs that are not there yet; it stands here once they are."
    verdicts = verdicts or (
        "The verdicts on its claims need runs that are not there yet; they stand at the end once "
        "they are."
    )
    lead = r"^((?:Advice|Result): .*?\.)(?= |$)"
    verdicts = re.sub(lead, r"<strong>\1</strong>", escape(verdicts))
    setting, *remarks = describe_setting(P)
    paragraphs = [setting, verdicts, *remarks]
    head = f'<p class="lab">{profile_badge(P)} {PROFILES[P.profile][0]}.</p>'
    return Html(head + "".join(f"<p>{paragraph}</p>" for paragraph in paragraphs))


def name_encoder(encoder: str) -> str:
    """Return an encoder's name as a page says it."""
    return "MiniLM" if encoder == "minilm" else runs.encoder_display_name(encoder)


def describe_setting(P) -> list[str]:
    """Return encoder, data and seeds of a page as HTML, and that stale records are kept if so."""
    *others, last = (name_dataset(P, domain) for domain in P.domains)
    text = (
        f"Encoder {name_encoder(P.encoder)}; datasets {', '.join(others)} and {last}; "
        f"{P.describe_training()}."
    )
    paragraphs = [escape(text)]
    foreign = list_foreign_datasets(P)
    if foreign:
        names = ", ".join(name_dataset(P, name) for name in foreign)
        paragraphs.append(
            escape(
                f"The study has no runs on {names}: what this page says of claims, of printed "
                "numbers and of datasets is about the study's own datasets."
            )
        )
    specs = plans.plan(P)
    remark = runs.describe_stale(specs)
    if remark and not specs[0].trains_stale:
        paragraphs.append(escape(f"{remark[0].upper()}{remark[1:]}."))
    return paragraphs


def list_foreign_datasets(P) -> list[str]:
    """Return the training datasets of a page that its report's study does not name anywhere.

    Of data that `make own` defines the page is about nothing else, so there are none.
    """
    if P.profile == "own":
        return []
    usual = plans.load_params(P.report, P.profile, size=P.size, data=P.data)
    named = {name for names in usual.named_datasets().values() for name in names}
    return [name for name in P.domains if name not in named]


ABSENT = '<p class="absent">'
EQUAL_TUNING = "equal tuning"  # as a note calls it where it was not run


def note_absent(part: str) -> Html:
    """Return the note in place of a table or figure whose runs are not part of this page."""
    return Html(f"{ABSENT}Not run here: “{escape(part)}”.</p>")


def name_parts_not_run(P) -> list[str]:
    """Return the parts of a report's study that its page lacks, as its parameters name them."""
    if not hasattr(P, "experiments"):  # a page about all reports
        return []
    field = type(P).model_fields["experiments"]
    (choices,) = get_args(field.annotation)
    missing = [name for name in get_args(choices) if name not in P.experiments]
    if "tuned" not in P.arms:
        missing.append(EQUAL_TUNING)
    return missing


def show_provenance(P, specs: list[Spec]) -> Html:
    """Return what is behind a page: commit, data, machine, versions, runs and time.

    All of it is read from the runs' records.
    """
    by_hash = {record["hash"]: record for _, record in runs.require_records(specs)}
    records = list(by_hash.values())
    groups: dict[str, list[dict]] = {}
    for record in records:
        groups.setdefault(_describe_machine(record["environment"]), []).append(record)
    text = [f"{profile_tag(P)}: {PROFILES[P.profile][0]}."]
    for machine, group in groups.items():
        text.append(_describe_group(group, machine))
    more = []
    for key, record in runs.read_committed(P.report).items():
        if key not in by_hash and record["spec"]["profile"] == P.profile:
            more.append(record)
    if more:
        text.append(
            f"{_count(more)} more committed, of seeds or parts that are not whole yet: "
            "no number here is of them."
        )
    data = set()
    encoders = set()
    for spec in (record["spec"] for record in records):
        encoders.add(f"{spec['encoder']} {spec['weights'][:12]}")
        for domain, fingerprint in zip(spec["domains"], spec["fingerprints"], strict=True):
            data.add(f"{domain} {fingerprint[:12]}")
    text.append(
        f"Data and its fingerprint: {', '.join(sorted(data))}. "
        f"Encoder and its hash: {', '.join(sorted(encoders))}."
    )
    paragraphs = "".join(f"<p>{escape(paragraph)}</p>\n" for paragraph in text)
    return Html(paragraphs + list_runs([record["run"] for record in records]))


def _describe_machine(environment: dict) -> str:
    """Return the commit, machine and versions of a record's environment, as a page says them."""
    return (
        f"at {_describe_commit(environment)}, on {environment['device']} "
        f"({environment['processor']}, {environment['platform']}) in {environment['precision']} "
        f"with Python {environment['python']}, torch {environment['torch']} and transformers "
        f"{environment['transformers']}"
    )


def _describe_group(records: list[dict], machine: str) -> str:
    """Return the number, time and days of runs that were made in the same environment."""
    minutes, seconds = divmod(round(sum(record["seconds"] for record in records)), 60)
    days = sorted({record["created"][:10] for record in records})
    period = " to ".join(dict.fromkeys([days[0], days[-1]]))
    return (
        f"{_count(records)}, {minutes // 60} h {minutes % 60} min {seconds} s of work, "
        f"made {period} {machine}."
    )


def _describe_commit(environment: dict) -> str:
    """Return which code made a run, as a page says it."""
    commit = environment["commit"]
    dirty = environment["dirty"]
    if commit == "unknown":
        return "a commit that is not known, so nothing says which code it was"
    if dirty is None:
        return f"commit {commit[:12]}, as the machine was told, with or without changes"
    if dirty:
        return f"commit {commit[:12]} with uncommitted changes, so not exactly that code"
    return f"commit {commit[:12]}"


def require_runs(name: str, frame: pd.DataFrame) -> list[str]:
    """Return the runs that a frame comes from, each once.

    Raises UserError where a row names none. A row without a result, whose `ours` is –, needs none.
    """
    error = UserError(
        f"{name} is not drawn: its frame, or a row of it, names no run; build it "
        "from runs.collect_ledger(specs), so that every number has a record"
    )
    if "run" not in frame or len(frame) == 0:
        raise error
    without_result = [False] * len(frame)
    if "ours" in frame:
        without_result = frame["ours"].eq("–")
    unique: dict[str, None] = {}
    for run, no_result in zip(frame["run"], without_result, strict=True):
        ids = _tuple(run)
        if not ids and no_result:
            continue
        if not ids or not all(isinstance(run_id, str) and run_id for run_id in ids):
            raise error
        unique |= dict.fromkeys(ids)
    return list(unique)


def profile_tag(P) -> str:
    """Return the profile's tag, e.g. QUICK; with the size where the profile has two."""
    if P.profile == "real":
        return f"REAL {P.size}".strip()  # the page of all reports has no size
    return P.profile.upper()


def profile_badge(P) -> str:
    """Return the profile's tag in its colour."""
    style = f"background:{PROFILES[P.profile][1]};color:#fff;padding:0 .4em;border-radius:.2em"
    return f'<strong style="{style}">{profile_tag(P)}</strong>'


def _tuple(run) -> tuple:
    """Return a row's evidence as a tuple: it may be one run or several."""
    return (run,) if isinstance(run, str) or not hasattr(run, "__len__") else tuple(run)


def _count(ids) -> str:
    """Return "1 run", "2 runs" …"""
    return "1 run" if len(ids) == 1 else f"{len(ids)} runs"


def link_files(P, name: str, *kinds: str) -> str:
    """Return links to the files beside the page, or in its folder `beside`.

    They are hidden in a notebook, which has no files beside it.
    """
    folder = getattr(P, "beside", "")
    links = []
    for kind in kinds:
        address = f"{folder}{name}.{kind}"
        links.append(f'<a href="{address}" aria-label="{name} as {kind}">{kind}</a>')
    return f'<span class="files" hidden>{" ".join(links)}</span>'


def list_runs(ids: list[str]) -> str:
    """Return the names of runs, folded away under their number."""
    names = escape("  ".join(ids))
    return f"<details><summary>{_count(ids)}</summary><code>{names}</code></details>"


def describe_seeds(frame: pd.DataFrame) -> str:
    """Return how many seeds a frame has, or "" for a frame whose rows are single runs."""
    if {"seed", "variant", "ratio"} <= set(frame):
        groups = frame.groupby(["variant", "ratio"], dropna=False)
        frame = frame.assign(seeds=groups["seed"].transform("nunique"))
    if "seeds" not in frame:
        return ""
    fewest = frame["seeds"].min()
    most = frame["seeds"].max()
    if most == 1:
        return "n = 1 seed: no spread."
    text = f"n = {fewest}"
    if most > fewest:
        text += f" to {most}"
    text += " seeds"
    if "model" in frame:
        of_model = frame.groupby("model", sort=False)["seeds"].max()
        few = of_model.index[of_model == fewest]
        # Name the models whose means are over fewer seeds than those of a model beside them.
        if of_model.nunique() > 1 and len(few):
            text += f" ({fewest}: {'; '.join(few)})"
    return f"{text}."


def _format_frame(frame: pd.DataFrame, digits: int) -> pd.DataFrame:
    """Return the frame as text, one line a cell.

    Means are "mean ± sd", one seed is marked, and runs stand by the digits of their hash.
    """

    def text(column, values) -> str:
        value, sd = values[column], values.get(f"{column}_sd")
        value = value.item() if hasattr(value, "item") else value
        if column == "seeds":
            return "1 (no sd)" if value == 1 else f"{value}"
        if isinstance(value, float):
            spread = "" if sd is None or pd.isna(sd) else f" ± {sd:.{digits}f}"
            return "–" if pd.isna(value) else f"{value:,.{digits}f}{spread}"
        return f"{value:,}" if isinstance(value, int) else str(value)

    def hashes(run: tuple) -> str:
        return " ".join(r.rsplit("-", 1)[-1] for r in run) if len(run) == 1 else _count(run)

    columns = [c for c in frame if c != "run" and not c.endswith("_sd")]
    rows = pd.DataFrame(
        [
            {NAMES.get(c, c.replace("_", " ")): text(c, values) for c in columns}
            | {"runs": hashes(_tuple(values["run"]))}
            for values in frame.to_dict("records")
        ]
    )
    return rows.map(join_lines)


def join_lines(text: str) -> str:
    """Return the text with a space in place of breaks and control characters, which end a row."""
    return BREAKS.sub(" ", text)


def escape_markdown(text: str) -> str:
    """Return the text such that Markdown shows it as it is.

    What would be markup becomes a character reference. No backslash is used, since some dialects
    read that as maths.
    """
    text = MARKDOWN.sub(lambda match: f"&#{ord(match[0])};", escape(text, quote=False))
    return text.replace("|", "\\|")


def escape_tex(text: str) -> str:
    """Return the text such that LaTeX shows it as it is; backslash, ~ and ^ become spaces.

    A row that begins with [ or * would be an argument of the line break before it.
    """
    text = re.sub(r"[\\~^]", " ", text)
    text = re.sub(r"([&%$#_{}])", r"\\\1", text)
    return re.sub(r"^(?=\s*[\[*])", "{}", text)


def _write_file(P, file: str, content: str | bytes):
    """Write a file into the page's folder."""
    runs.write(runs.page_folder(P) / file, content)
