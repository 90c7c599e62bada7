"""Tables, figures and provenance of a page: drawn from run records, never from a number at hand.

A frame to be drawn has a column `run`: the run, or a tuple of the runs, that a row comes from.
Files go to figures/<report>/<profile>/; the same numbers give the same bytes. Text is never markup.
"""

import base64
import inspect
import io
import re
import textwrap
from html import escape
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from PIL import Image

from qa_lib.settings.params import UserError
from qa_lib.settings.spec import Spec
from qa_lib.store import runs

PROFILES = {  # what a page's numbers are worth, and the colour of its tag
    "quick": (
        "generated text, small encoder: shows that the study works; no number here is a result",
        "#8a4b00",
    ),
    "real": ("real data, small encoder: a result for this encoder and these sizes", "#00605a"),
    "paper": ("the encoder, data and sizes of the report itself", "#1d3f8f"),
    "own": (
        "your own two domains: a result for them, this encoder and these sizes; the report's claims are not judged by it",
        "#6b2d73",
    ),
}
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
# breaks of lines and pages, and control characters
BREAKS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")

plt.rcdefaults()  # a matplotlibrc of the user's does not count
plt.style.use(Path(__file__).with_name("paper.mplstyle"))


class Html(str):
    """HTML that a notebook displays; its plain form is short, so a notebook holds the text once."""

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

    Columns `x` and `x_sd` are shown as "mean ± sd"; `seeds` says where one seed means no spread. links: text of cells →
    address.
    Raises UserError where a row names no run.
    """
    ids, caption = require_runs(name, frame), f"{caption} {_seeds(frame)}".strip()
    plain = frame.assign(run=[" ".join(_tuple(r)) for r in frame["run"]])
    _write(P, f"{name}.csv", runs.format_csv(plain))
    shown = _format_frame(P, frame, digits)
    # the caption says it
    if "seeds" in shown and shown["seeds"].nunique() == 1 and shown["seeds"].iloc[0].isdigit():
        shown = shown.drop(columns="seeds")
    columns = {name: _markdown(name, quote=False) for name in shown}
    rows = shown.map(_markdown).rename(columns=columns)
    rows = rows.to_markdown(index=False, disable_numparse=True)
    _write(P, f"{name}.md", f"**{profile_tag(P)}** {_markdown(caption)}\n\n{rows}\n")
    tex = (
        shown.drop(columns="runs")
        .rename(columns=_tex)
        .map(_tex)
        .to_latex(index=False, caption=f"[{profile_tag(P)}] {_tex(caption)}", label=f"tab:{name}")
    )
    _write(P, f"{name}.tex", "".join(f"% run {r}\n" for r in ids) + tex)
    looks = [
        " class=number"
        if all(re.fullmatch(r"-?[–\d][\d.,]*( ± [\d.]+)?", x) for x in shown[c])
        else " class=words"
        if any(len(x) > 60 for x in shown[c])
        else " class=name" * any(len(x) > 15 for x in shown[c])
        for c in shown
    ]

    def linked(cell: str) -> str:
        text = escape(cell).replace("$", "<span>$</span>")  # JupyterLab reads $x$ as maths
        return f'<a href="{escape(links[cell])}">{text}</a>' if links and cell in links else text

    def row(cells, first: str, others: str) -> str:
        kinds = [first] + [others] * (len(looks) - 1)
        return (
            "<tr>"
            + "".join(
                f"<{kind}{look}>{linked(cell)}</{kind[:2]}>"
                for kind, look, cell in zip(kinds, looks, cells, strict=True)
            )
            + "</tr>\n"
        )

    head = row(shown, 'th scope="col"', 'th scope="col"')
    body = "".join(row(r, 'th scope="row"', "td") for r in shown.itertuples(index=False))
    title = f'aria-labelledby="{name}-title"'
    return Html(
        f'<figure id="{name}"><figcaption id="{name}-title">{_badge(P)} {escape(caption)}'
        f'</figcaption>\n<div class="scroll" tabindex="0" role="region" {title}>\n'
        f"<table {title}><thead>{head}</thead><tbody>{body}</tbody></table></div>"
        f"{_files(P, name, 'csv', 'md', 'tex')}{_list(ids)}</figure>"
    )


def save_figure(P, name: str, fig, caption: str, alt: str, frame: pd.DataFrame) -> Html:
    """Write <name>.png and .svg; return the figure for display, its image embedded.

    fig: a figure, axes or seaborn grid. frame: what it was drawn from; every row names its run.
    """
    ids, fig = require_runs(name, frame), getattr(fig, "figure", fig)
    for kind, metadata in (("svg", {"Date": None, "Creator": None}), ("png", {"Software": None})):
        fig.savefig(file := io.BytesIO(), format=kind, metadata=metadata)
        if kind == "png":  # 128 colours are enough and a third of the bytes
            picture = Image.open(file).convert("RGB").quantize(128)
            picture.save(file := io.BytesIO(), format=kind, optimize=True)
        _write(P, f"{name}.{kind}", image := file.getvalue())
    plt.close(fig)  # or JupyterLab draws it a second time
    width, height = (n // 2 for n in picture.size)  # 2 pixels a dot
    return Html(
        f'<figure id="{name}"><div class="scroll" tabindex="0"><img width="{width}" '
        f'height="{height}" alt="{escape(alt)}" src="data:image/png;base64,'
        f'{base64.b64encode(image).decode()}"></div><figcaption>{_badge(P)} '
        f"{escape(caption)} {_seeds(frame)}</figcaption>{_files(P, name, 'svg', 'png')}{_list(ids)}</figure>"
    )


def show_source(thing) -> Markdown:
    """The library's own lines of a function or class, and where they stand.

    The file is named by its module: its path may lead through a link.
    """
    lines, first = inspect.getsourcelines(thing)
    file = inspect.unwrap(thing).__module__.replace(".", "/") + ".py"
    code = textwrap.dedent("".join(lines))
    return Markdown(f"`{file}`, line {first}:\n\n```python\n{code}```\n")


def show_header(P, verdicts: str = "") -> Html:
    """Return what the page is: profile, encoder, data, seeds; and, where the runs are there, how its
    claims fare."""
    *others, last = P.domains
    text = (
        f"Encoder {runs.encoder_display_name(P.encoder)}; domains {', '.join(others)} and {last}; "
        f"{P.describe_training()}."
    )
    verdicts = verdicts or (
        "The verdicts on its claims need runs that are not there yet; they stand at the end once they "
        "are."
    )
    lead = r"^((?:Advice|Result): .*?\.)(?= |$)"
    verdicts = re.sub(lead, r"<strong>\1</strong>", escape(verdicts))
    return Html(
        f'<p class="lab">{_badge(P)} {PROFILES[P.profile][0]}.</p><p>{escape(text)}</p>'
        f"<p>{verdicts}</p>"
    )


ABSENT = '<p class="absent">'


def note_absent(part: str) -> Html:
    """What stands in the place of a table or figure whose runs are not part of this page."""
    return Html(f"{ABSENT}Not part of the study at this profile and size: “{escape(part)}”.</p>")


def show_provenance(P, specs: list[Spec]) -> Html:
    """Commit, data, machine, versions, runs and time behind a page, from the runs' records."""
    found, made = (
        list({record["hash"]: record for _, record in runs.require_records(specs)}.values()),
        {},
    )
    for record in found:
        e = record["environment"]
        how = (
            f"at {_commit(e)}, on {e['device']} ({e['processor']}, "
            f"{e['platform']}) in {e['precision']} with Python {e['python']}, torch {e['torch']} and transformers "
            f"{e['transformers']}"
        )
        made.setdefault(how, []).append(record)
    text = [f"{profile_tag(P)}: {PROFILES[P.profile][0]}."]
    for how, group in made.items():
        days = sorted({r["created"][:10] for r in group})
        minutes, seconds = divmod(round(sum(r["seconds"] for r in group)), 60)
        text.append(
            f"{_count(group)}, {minutes // 60} h {minutes % 60} min {seconds} s of work, "
            f"made {' to '.join(dict.fromkeys([days[0], days[-1]]))} {how}."
        )
    here = {r["hash"] for r in found}
    if more := [
        r
        for h, r in runs.read_committed(P.report).items()
        if h not in here and r["spec"]["profile"] == P.profile
    ]:
        text.append(
            f"{_count(more)} more committed, of seeds or parts that are not whole yet: no number here is of them."
        )
    data, encoder = set(), set()
    for s in (r["spec"] for r in found):
        data |= {f"{d} {f[:12]}" for d, f in zip(s["domains"], s["fingerprints"], strict=True)}
        encoder.add(f"{s['encoder']} {s['weights'][:12]}")
    text += [
        f"Data and its fingerprint: {', '.join(sorted(data))}. "
        f"Encoder and its hash: {', '.join(sorted(encoder))}."
    ]
    return Html("".join(f"<p>{escape(t)}</p>\n" for t in text) + _list([r["run"] for r in found]))


def _commit(environment: dict) -> str:
    """Which code made a run, as a page says it."""
    commit, dirty = environment["commit"], environment["dirty"]
    if commit == "unknown":
        return "a commit that is not known, so nothing says which code it was"
    if dirty is None:
        return f"commit {commit[:12]}, as the machine was told, with or without changes"
    if dirty:
        return f"commit {commit[:12]} with uncommitted changes, so not exactly that code"
    return f"commit {commit[:12]}"


def require_runs(name: str, frame: pd.DataFrame) -> list[str]:
    """The runs that a frame comes from. Raises UserError where a row names none, unless it has no result: – under `ours`."""
    ids = [_tuple(r) for r in frame["run"]] if "run" in frame else []
    nothing = frame["ours"].eq("–") if "ours" in frame else [False] * len(frame)
    if not ids or not all(
        r and all(isinstance(x, str) and x for x in r) or (none and not r)
        for r, none in zip(ids, nothing, strict=True)
    ):
        raise UserError(
            f"{name} is not drawn: its frame, or a row of it, names no run; build it "
            "from runs.collect_ledger(specs), so that every number has a record"
        )
    return list(dict.fromkeys(x for r in ids for x in r))


def profile_tag(P) -> str:
    """The profile's tag, e.g. QUICK; with the size where it has two."""
    return P.profile.upper() + (f" {P.size}" if P.profile == "real" else "")


def _badge(P) -> str:
    style = f"background:{PROFILES[P.profile][1]};color:#fff;padding:0 .4em;border-radius:.2em"
    return f'<strong style="{style}">{profile_tag(P)}</strong>'


def _tuple(run) -> tuple:
    return (run,) if isinstance(run, str) or not hasattr(run, "__len__") else tuple(run)


def _count(found) -> str:
    return f"{len(found)} run{'s' * (len(found) != 1)}"


def _files(P, name: str, *kinds: str) -> str:
    """Links to the files beside the page, or in its folder `beside`; hidden in a notebook, which has none beside it."""
    links = (
        f'<a href="{getattr(P, "beside", "")}{name}.{kind}" aria-label="{name} as {kind}">{kind}</a>'
        for kind in kinds
    )
    return f'<span class="files" hidden>{" ".join(links)}</span>'


def _list(ids: list[str]) -> str:
    names = escape("  ".join(ids))
    return f"<details><summary>{_count(ids)}</summary><code>{names}</code></details>"


def _seeds(frame: pd.DataFrame) -> str:
    """How many seeds stand behind a frame; nothing for one whose rows are single runs."""
    if {"seed", "variant", "ratio"} <= set(frame):
        frame = frame.assign(
            seeds=frame.groupby(["variant", "ratio"], dropna=False)["seed"].transform("nunique")
        )
    if "seeds" not in frame:
        return ""
    n = frame["seeds"]
    if n.max() == 1:
        return "n = 1 seed: no spread."
    most = n.groupby(frame["model"], sort=False).max() if "model" in frame else pd.Series(dtype=int)
    # means over fewer seeds than another's beside it
    few = "; ".join(most.index[most == n.min()]) if most.nunique() > 1 else ""
    return f"n = {n.min()}{f' to {n.max()}' if n.max() > n.min() else ''} seeds{f' ({n.min()}: {few})' * bool(few)}."


def _format_frame(P, frame: pd.DataFrame, digits: int) -> pd.DataFrame:
    """The frame as text, one line a cell: "mean ± sd", missing seeds counted, runs by the digits of
    their hash."""

    def text(column, values) -> str:
        value, sd = values[column], values.get(f"{column}_sd")
        value = value.item() if hasattr(value, "item") else value
        if column == "seeds":
            least = P.fewest_seeds
            return f"{value}" + f" of {least}" * (value < least) + " (no sd)" * (value == 1)
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
    return rows.map(_one_line)


def _one_line(text: str) -> str:
    """The text with a space in place of line breaks and control characters, which end a row."""
    return BREAKS.sub(" ", text)


def _markdown(text: str, quote: bool = True) -> str:
    """The text such that Markdown shows it as it is; quote: quotation marks as references too.

    Character references stand for what would be markup: no dialect reads them as such, where some
    read a backslash as the beginning of maths.
    """
    text = MARKDOWN.sub(lambda found: f"&#{ord(found[0])};", escape(text, quote))
    return text.replace("|", "\\|")


def _tex(text: str) -> str:
    """The text such that LaTeX shows it as it is, less what it has no plain letter for.

    A row that begins with [ or * would be an argument of the line break before it.
    """
    text = re.sub(r"([&%$#_{}])", r"\\\1", re.sub(r"[\\~^]", " ", text))
    return re.sub(r"^(?=\s*[\[*])", "{}", text)


def _write(P, file: str, content: str | bytes):
    runs.write(runs.page_folder(P) / file, content)
