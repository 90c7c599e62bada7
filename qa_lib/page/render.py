"""A report's notebook, executed with a profile's parameters, as one self-contained page.

    python -m qa_lib render exbert --profile quick    figures/exbert/quick/report.html and all on it
    python -m qa_lib render exbert --profile quick --only fig3_ratios           that figure alone

The page makes no request: maths is MathML, images are embedded, and a content policy in its head
refuses the rest. Its one script, page/sort.js, lets a reader sort the tables; the policy names it by its
hash and refuses any other. A notebook that fails leaves the earlier page as it was.
"""

import ast
import base64
import contextlib
import copy
import hashlib
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import papermill
from jinja2 import pass_context
from latex2mathml.converter import convert
from nbconvert.exporters import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from papermill.iorw import load_notebook_node

from qa_lib.page import report
from qa_lib.settings.params import ROOT, UserError
from qa_lib.store import runs

SCRIPT = Path(__file__).with_name("sort.js")


def mathml(latex: str, display: str = "inline") -> str:
    """LaTeX as MathML, with the space after log and the limits of a sum where LaTeX has them."""
    text = convert(latex.strip(), display=display)
    text = re.sub(
        r"(<mi>(?:log|exp)</mi>)(?!<mo[^>]*>&#x00028;)", r'\1<mspace width="0.17em"/>', text
    )
    if display == "block":
        text = re.sub(
            r"<msubsup>(<mo>&#x022(?:0F|11);</mo>.*?)</msubsup>",
            r"<munderover>\1</munderover>",
            text,
        )
    return text


class Renderer(IPythonRenderer):
    """Markdown to HTML: maths as MathML, headings with an anchor, markup in the text escaped; what is wide scrolls."""

    def block_math(self, body):
        return f'<div class="scroll" tabindex="0" role="group" aria-label="Equation">{mathml(body, "block")}</div>'

    def block_code(self, code, info=None):
        return f'<div class="scroll" tabindex="0" role="group" aria-label="Code">{super().block_code(code, info)}</div>\n'

    def inline_math(self, body):
        return mathml(body)

    def latex_environment(self, name, body):
        return self.block_math(f"\\begin{{{name}}}{body}\\end{{{name}}}")

    def heading(self, text, level, **attrs):
        anchor = re.sub(r"\W+", "-", re.sub(r"<[^>]*>|&\w+;", "", text).lower()).strip("-")
        return f'<h{level} id="{anchor}">{text}</h{level}>\n'

    def table(self, text):
        return f'<div class="scroll" tabindex="0" role="region" aria-label="Table">\n<table>{text}</table></div>\n'

    def table_cell(self, text, align=None, head=False):
        right = ' class="number"' if align == "right" else ""
        return f'<th scope="col"{right}>{text}</th>\n' if head else f"<td{right}>{text}</td>\n"


def markdown(source: str) -> str:
    renderer = Renderer(escape=True, allow_harmful_protocols=False)
    return MarkdownWithMath(renderer=renderer).render(source)


@contextlib.contextmanager
def clean_settings():
    """Leave out the user's set-up of Jupyter, IPython and matplotlib.

    A page is the same whoever draws it. The folders of these three are new and empty for as long as
    this lasts, so no home folder is needed either.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        ours = {"JUPYTER_NO_CONFIG": "1", "PYTHONUTF8": "1"}
        for name in (
            "IPYTHONDIR",
            "JUPYTER_CONFIG_DIR",
            "JUPYTER_DATA_DIR",
            "JUPYTER_RUNTIME_DIR",
            "MPLCONFIGDIR",
        ):
            ours[name] = str(Path(folder) / name.lower())
            Path(ours[name]).mkdir()
        # without MPLBACKEND the kernel chooses a backend that needs no screen
        absent = (
            "JUPYTER_PATH",
            "JUPYTER_CONFIG_PATH",
            "PYTHONSTARTUP",
            "MPLBACKEND",
            "MATPLOTLIBRC",
        )
        before = {name: os.environ.get(name) for name in (*ours, *absent)}
        for name in absent:
            os.environ.pop(name, None)
        os.environ.update(ours)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


class Page(HTMLExporter):
    """nbconvert with our template; resources["page"] holds tag, title, contents and script."""

    @pass_context
    def markdown2html(self, context, source):
        return markdown(source)


@clean_settings()
def page(nb, p) -> str:
    """An executed notebook as HTML; its first cell is the title block."""
    nb = (
        present_own_data(copy.deepcopy(nb), Path(p.data).stem)
        if p.profile == "own"
        else merge_absent_notes(copy.deepcopy(nb))
    )
    title = nb.cells.pop(0).source
    text = "".join(markdown(c.source) for c in nb.cells if c.cell_type == "markdown")
    meaning, colour = report.PROFILES[p.profile]
    script = SCRIPT.read_text(encoding="utf-8")
    exporter = Page(
        template_name="page", extra_template_basedirs=[str(Path(__file__).parent.parent)]
    )
    return exporter.from_notebook_node(
        nb,
        {
            "page": {
                "title": title,
                "name": re.search(r"^# (.+)$", title, re.M)[1],
                "tag": report.profile_tag(p),
                "meaning": meaning,
                "colour": colour,
                "script": script,
                "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
                "contents": re.findall(r'<h2 id="(.*?)">(.*?)</h2>', text),
            }
        },
    )[0]


def tags(cell) -> list[str]:
    return cell.metadata.get("tags", [])


def check_drawn(nb, name: str):
    """Raise UserError for a table or figure that the notebook does not draw."""
    names = [t for c in nb.cells for t in tags(c) if t.startswith(("table", "fig"))]
    if name not in names:
        raise UserError(f"there is no table or figure {name}; the page has {', '.join(names)}")


def keep_only(nb, name: str):
    """The notebook less every cell that the table or figure `name` does without."""
    check_drawn(nb, name)
    kept, need = [], set()
    for cell in reversed([c for c in nb.cells if c.cell_type == "code"]):
        used = [x for x in ast.walk(ast.parse(cell.source)) if isinstance(x, ast.Name)]
        made = {x.id for x in used if isinstance(x.ctx, ast.Store)}
        if {"parameters", "setup", name} & set(
            tags(cell)
        ) or made & need:  # cells that make what it names stay too
            kept, need = [cell, *kept], need - made | {x.id for x in used} - made
    nb.cells = kept
    return nb


OWN = """# Are the experts worth it on {name}?

One sparse mixture-of-experts layer on a small encoder (ExBERT) against the same model without it, on two domains of your own.
The method is that of Alexander Fan, James Fan and James Song, *Bring in the ExBERT*.
"""


def present_own_data(nb, name: str):
    """The notebook as the page of own data: less the tables and figures that are not drawn, the sections and texts that only led to
    them, and cells tagged study: a reader with data of their own asked for one comparison, not for the report."""

    def dead(group: list) -> bool:
        code = [absent_part(c) for c in group if c.cell_type == "code"]
        return bool(code) and all(code)

    nb.cells[0].source = OWN.format(name=name)
    nb.cells = [c for c in nb.cells if "study" not in tags(c)]
    for mark in ("##", ""):  # whole sections, then texts within the others
        groups: list[list] = []
        for cell in nb.cells:
            if not groups or cell.cell_type == "markdown" and cell.source.startswith(mark):
                groups.append([])
            groups[-1].append(cell)
        nb.cells = [
            c for g in groups if not dead(g) or not mark and g[0].source.startswith("##") for c in g
        ]
    nb.cells = [c for c in nb.cells if not absent_part(c)]
    return nb


def absent_part(cell) -> str:
    """What a table or figure is not drawn for; empty where it is drawn."""
    found = [o.get("data", {}).get("text/html", "") for o in cell.get("outputs", [])]
    return "".join(re.findall("“(.*?)”", text)[0] for text in found if report.ABSENT in text)


def merge_absent_notes(nb):
    """The notebook with one sentence for neighbouring tables and figures that are not drawn."""
    kept: list = []
    for cell in nb.cells:
        if absent_part(cell) and kept and (before := absent_part(kept[-1])):
            parts = dict.fromkeys(f"{before}, {absent_part(cell)}".split(", "))
            kept[-1].outputs[-1].data["text/html"] = report.note_absent(", ".join(parts))
        else:
            kept.append(cell)
    nb.cells = kept
    return nb


def read_notes(source: str) -> dict[str, str]:
    """Return the comment behind each assignment of a cell, by the name that is assigned."""
    notes, lines = {}, source.splitlines()
    for statement in ast.parse(source).body:
        rest = lines[statement.end_lineno - 1].encode()[statement.end_col_offset :].decode()
        if isinstance(statement, ast.Assign) and rest.startswith("  # "):
            notes[statement.targets[0].id] = rest
    return notes


def say_parameters_once(nb):
    """Papermill puts a cell with the values used below the one with the defaults: keep the values
    used, with the comments of the defaults."""
    cells = {tag: cell for cell in nb.cells for tag in tags(cell)}
    default, used = cells.get("parameters"), cells.get("injected-parameters")
    if default is None or used is None:
        return
    notes = read_notes(default.source)
    lines = []
    for line in used.source.splitlines():
        if line.startswith("#"):
            continue
        # a path is the machine's, not the page's
        shown = re.sub('^(data|encoder) = "/.*/', r'\1 = "…/', line)
        lines.append(shown + notes.get(line.split(" = ")[0], ""))
    used.source = "\n".join(lines)
    used.metadata.tags = ["parameters"]
    nb.cells.remove(default)


@clean_settings()
def execute(nb, name: str, values: dict):
    """Run a notebook. A UserError in a cell is raised again; other failures end in one sentence."""
    try:
        # the kernel's remarks on its own transport
        nb = papermill.execute_notebook(
            nb,
            None,
            values,
            kernel_name="python3",
            language="python",
            progress_bar=sys.stderr.isatty(),
            extra_arguments=["--log-level=50"],
        )
    except papermill.PapermillExecutionError as e:
        if e.ename == "UserError":
            raise UserError(e.evalue) from None
        cell = e.source.strip().splitlines()[0]
        sys.exit(f"error: {name}, cell `{cell} …`: {e.ename}: {' '.join(e.evalue.split())}")
    except Exception as e:  # no kernel, or one that died: nothing of ours is on the stack
        sys.exit(f"error: {name}: {type(e).__name__}: {' '.join(str(e).split())}")
    say_parameters_once(nb)
    del nb.metadata["papermill"]  # paths and times of this machine
    return nb


def find_notebook(slug: str) -> Path:
    """The notebook of a report."""
    return next((ROOT / "notebooks").glob(f"*_{slug}.ipynb"))


def read_notebook(slug: str):
    return load_notebook_node(str(find_notebook(slug)))


def render(p, name: str | None = None):
    """Write a report's report.ipynb and report.html and all on it, or only the files of `name`."""
    start, folder = time.time(), runs.page_folder(p)
    nb = read_notebook(p.report)
    nb = execute(keep_only(nb, name) if name else nb, find_notebook(p.report).name, p.model_dump())
    if not name:
        html = page(nb, p)
        runs.write(folder / "report.ipynb", nbformat.writes(nb))
        runs.write(folder / "report.html", html)
    shown = folder / (name or "report.html")
    if shown.is_relative_to(Path.cwd()):
        shown = shown.relative_to(Path.cwd())
    print(f"{shown}: {time.time() - start:.0f} s", flush=True)
