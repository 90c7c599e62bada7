"""A report's notebook, executed with a profile's parameters, as one self-contained page.

    python -m qa_lib render exbert --profile quick
        figures/exbert/quick/report.html and all tables and figures on it
    python -m qa_lib render exbert --profile quick --only fig3_ratios
        that figure alone

Tags of a cell say more than which table or figure it draws:

    parameters, setup   run for every table or figure that is drawn alone
    preview             for a reader in JupyterLab, not run for a page
    notebook            run, but not shown on the page
    output              of which the page shows what comes out, and not the code
    top                 shown at the top of the page
    fold                (of text) folded under its first line

The page makes no request: maths is MathML, images are embedded, and a content policy in its head
refuses the rest. Its one script, page/sort.js, lets a reader sort the tables. The policy names this
script by its hash and refuses any other. A notebook that fails leaves the earlier page as it was.
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
from html import unescape
from pathlib import Path

import nbformat
import papermill
from jinja2 import pass_context
from nbconvert.exporters import HTMLExporter
from papermill.iorw import load_notebook_node

from qa_lib.page import markup, report
from qa_lib.reports import plans
from qa_lib.settings.params import ROOT, UserError
from qa_lib.store import runs

SCRIPT = Path(__file__).with_name("sort.js")


def set_variables(values: dict[str, str | None]):
    """Set environment variables; None removes one."""
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextlib.contextmanager
def changed_environment(changes: dict[str, str | None]):
    """Change environment variables, and bring them back at the end. None removes one."""
    before = {name: os.environ.get(name) for name in changes}
    set_variables(changes)
    try:
        yield
    finally:
        set_variables(before)


@contextlib.contextmanager
def clean_settings():
    """Leave out the user's settings of Jupyter, IPython and matplotlib.

    A page is then the same whoever draws it. Inside of this context the folders of these three are
    new and empty, so no home folder is needed either.
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
        # Without MPLBACKEND the kernel chooses a backend that needs no screen.
        absent = (
            "JUPYTER_PATH",
            "JUPYTER_CONFIG_PATH",
            "PYTHONSTARTUP",
            "MPLBACKEND",
            "MATPLOTLIBRC",
        )
        with changed_environment({**ours, **dict.fromkeys(absent)}):
            yield


class Page(HTMLExporter):
    """nbconvert's exporter with our template; `export_page` fills resources["page"]."""

    @pass_context
    def markdown2html(self, context, source):
        """Return Markdown as HTML, by our renderer."""
        return markup.markdown(source)


@clean_settings()
def export_page(nb, p) -> str:
    """Return an executed notebook as HTML; its first cell is the title block.

    Cells tagged `top` stand at the top, those first whose output alone is shown. Cells tagged
    `notebook` are not on the page.
    """
    nb = copy.deepcopy(nb)
    title = nb.cells.pop(0).source
    shown = [cell for cell in nb.cells if "notebook" not in tags(cell)]
    at_top = [cell for cell in shown if "top" in tags(cell)]
    at_top = sorted(at_top, key=lambda cell: "output" not in tags(cell))
    nb.cells = at_top + [cell for cell in shown if "top" not in tags(cell)]
    nb = drop_listed_notes(nb, report.name_parts_not_run(p))
    nb = merge_absent_notes(nb)
    if p.profile == "own":
        title = title.replace("your data", Path(p.data).stem, 1)
    text = "".join(
        markup.markdown(cell.source) for cell in nb.cells if cell.cell_type == "markdown"
    )
    meaning, colour = report.PROFILES[p.profile]
    script = SCRIPT.read_text(encoding="utf-8")
    digest = hashlib.sha256(script.encode()).digest()
    resources = {
        "title": title,
        "name": re.search(r"^# (.+)$", title, re.M)[1],
        "tag": report.profile_tag(p),
        "meaning": meaning,
        "colour": colour,
        "script": script,
        "script_hash": base64.b64encode(digest).decode(),
        "contents": re.findall(r'<h2 id="(.*?)">(.*?)</h2>', text),
    }
    templates = str(Path(__file__).parent.parent)
    exporter = Page(template_name="page", extra_template_basedirs=[templates])
    html, _ = exporter.from_notebook_node(nb, {"page": resources})
    return html


def tags(cell) -> list[str]:
    """Return the tags of a cell."""
    return cell.metadata.get("tags", [])


def check_drawn(nb, name: str):
    """Raise UserError for a table or figure that the notebook does not draw."""
    names = []
    for cell in nb.cells:
        names += [tag for tag in tags(cell) if tag.startswith(("table", "fig"))]
    if name not in names:
        raise UserError(f"there is no table or figure {name}; the page has {', '.join(names)}")


def keep_only(nb, name: str):
    """Return the notebook with only the cells that the table or figure `name` needs.

    These are the cells tagged with `name`, parameters or setup, and those that assign a name which
    a later one of them uses.
    """
    check_drawn(nb, name)
    cells = []
    needed: set[str] = set()
    for cell in reversed(nb.cells):
        if cell.cell_type != "code":
            continue
        tree = ast.walk(ast.parse(cell.source))
        names = [node for node in tree if isinstance(node, ast.Name)]
        assigned = {node.id for node in names if isinstance(node.ctx, ast.Store)}
        used = {node.id for node in names} - assigned
        is_tagged = not {"parameters", "setup", name}.isdisjoint(tags(cell))
        is_needed = not needed.isdisjoint(assigned)
        if is_tagged or is_needed:
            cells.insert(0, cell)
            needed -= assigned
            needed |= used
    nb.cells = cells
    return nb


NOTE = f"{re.escape(report.ABSENT)}.*?</p>"  # a note about a part that was not run


def absent_part(cell) -> str:
    """Return the part of the study for which a cell shows notes and nothing else; "" otherwise."""
    parts = []
    for html in list_html(cell):
        if not re.fullmatch(f"({NOTE})+", html.strip()):
            return ""
        parts += map(unescape, re.findall("“(.*?)”", html))
    return ", ".join(parts)


def drop_listed_notes(nb, listed: list[str]):
    """Return the notebook without notes about parts that the page lists as not run.

    Equal tuning is not dropped, for it changes what a page concludes. Nor is a note in a section
    that shows no table or figure: the section would be empty. A note may stand in a cell of its
    own, or beside a table or figure.
    """
    dropped = set(listed) - {report.EQUAL_TUNING}
    drawn = set()  # sections that show a table or a figure
    section = 0
    sections = []
    for cell in nb.cells:
        if cell.cell_type == "markdown" and re.search("^## ", cell.source, re.M):
            section += 1
        sections.append(section)
        if any("<figure" in html for html in list_html(cell)):
            drawn.add(section)

    def leave_out(note: re.Match) -> str:
        """Return nothing for a note about listed parts, any other as it is."""
        (names,) = re.findall("“(.*?)”", note[0])
        return "" if set(names.split(", ")) <= dropped else note[0]

    cells = []
    for cell, section in zip(nb.cells, sections, strict=True):
        if section in drawn and any(report.ABSENT in html for html in list_html(cell)):
            for output in cell.outputs:
                if "text/html" in output.get("data", {}):
                    output.data["text/html"] = re.sub(NOTE, leave_out, output.data["text/html"])
            if not any(list_html(cell)):
                continue
        cells.append(cell)
    nb.cells = cells
    return nb


def list_html(cell) -> list[str]:
    """Return what a cell shows as HTML."""
    return [output.get("data", {}).get("text/html", "") for output in cell.get("outputs", [])]


def merge_absent_notes(nb):
    """Return the notebook with one sentence for neighbouring parts that are not drawn."""
    cells: list = []
    for cell in nb.cells:
        part = absent_part(cell)
        before = absent_part(cells[-1]) if cells else ""
        if part and before:
            parts = dict.fromkeys(f"{before}, {part}".split(", "))
            cells[-1].outputs[-1].data["text/html"] = report.note_absent(", ".join(parts))
        else:
            cells.append(cell)
    nb.cells = cells
    return nb


def read_notes(source: str) -> dict[str, str]:
    """Return the comment behind each assignment of a cell, by the name that is assigned."""
    notes = {}
    lines = source.splitlines()
    for statement in ast.parse(source).body:
        rest = lines[statement.end_lineno - 1].encode()[statement.end_col_offset :].decode()
        if isinstance(statement, ast.Assign) and rest.startswith("  # "):
            notes[statement.targets[0].id] = rest
    return notes


def find_parameters(nb):
    """Return the cell of a notebook that is tagged `parameters`."""
    return next(cell for cell in nb.cells if "parameters" in tags(cell))


def say_parameters_once(nb):
    """Merge the cell of default parameters with the cell of used ones that papermill adds below.

    The values are those used, and the comments are those of the defaults.
    """
    cells = {}
    for cell in nb.cells:
        cells |= dict.fromkeys(tags(cell), cell)
    default = cells.get("parameters")
    used = cells.get("injected-parameters")
    if default is None or used is None:
        return
    notes = read_notes(default.source)
    lines = []
    for line in used.source.splitlines():
        if line.startswith("#"):
            continue
        # A page shows no path of the machine.
        line = re.sub('^(data|encoder) = "/.*/', r'\1 = "…/', line)
        lines.append(line + notes.get(line.split(" = ")[0], ""))
    used.source = "\n".join(lines)
    used.metadata.tags = ["parameters"]
    nb.cells.remove(default)


@clean_settings()
def execute(nb, name: str, values: dict):
    """Run a notebook with the parameters `values`; return it with its outputs.

    A UserError in a cell is raised again. Other failures exit with one sentence.
    """
    try:
        nb = papermill.execute_notebook(
            nb,
            None,
            values,
            kernel_name="python3",
            language="python",
            progress_bar=sys.stderr.isatty(),
            extra_arguments=["--log-level=50"],  # else the kernel remarks on its own transport
        )
    except papermill.PapermillExecutionError as e:
        if e.ename == "UserError":
            raise UserError(e.evalue) from None
        cell = e.source.strip().splitlines()[0]
        where = f"{name}, cell [{e.exec_count}] `{cell} …`"
        sys.exit(f"error: {where}: {e.ename}: {' '.join(e.evalue.split())}")
    except Exception as e:  # there is no kernel, or it died: nothing of ours is on the stack
        sys.exit(f"error: {name}: {type(e).__name__}: {' '.join(str(e).split())}")
    say_parameters_once(nb)
    del nb.metadata["papermill"]  # paths and times of this machine
    return nb


def find_notebook(slug: str, profile: str | None = None) -> Path:
    """Return the path of a report's notebook; of profile own that of own data.

    Raises UserError where there is none.
    """
    name = "own" if profile == "own" else slug
    found = sorted((ROOT / "notebooks").glob(f"*_{name}.ipynb"))
    if not found:
        raise UserError(
            f"notebooks/<number>_{name}.ipynb does not exist; copy that of the nearest report"
        )
    return found[0]


def read_notebook(slug: str, profile: str | None = None):
    """Return a report's notebook; of profile own that of own data.

    Cells tagged `preview` are left out: they show a reader in JupyterLab what is recorded already.
    """
    nb = load_notebook_node(str(find_notebook(slug, profile)))
    nb.cells = [cell for cell in nb.cells if "preview" not in tags(cell)]
    return nb


def choose_values(nb, p) -> dict:
    """Return the parameters that a notebook is executed with.

    A notebook lists every parameter, or a few. To the cell of a few are added those that differ
    from what the files of the profile have.
    """
    values = p.model_dump()
    cell = find_parameters(nb)
    listed = read_notes(cell.source)
    if set(values) <= set(listed):
        return values
    needed = {name: values[name] for name in listed}
    try:
        usual = plans.load_params(p.report, p.profile, needed).model_dump()
    except UserError:  # those of the files alone do not fit the ones that are listed
        usual = {}
    added = []
    for name, value in values.items():
        if name not in listed and (name not in usual or usual[name] != value):
            added.append(name)
    cell.source += "".join(f"\n{name} = None" for name in added)
    return {name: values[name] for name in [*listed, *added]}


def draw_alone(nb, p, name: str):
    """Write the files of one table or figure.

    Its cell may draw others too; their files go to a folder that is not kept. Raises UserError
    where the cell does not draw it.
    """
    nb = keep_only(nb, name)
    with tempfile.TemporaryDirectory() as elsewhere:
        with changed_environment({"QA_FIGURES": elsewhere}):
            execute(nb, find_notebook(p.report, p.profile).name, choose_values(nb, p))
        files = list(Path(elsewhere).rglob(f"{name}.*"))
        for file in files:
            runs.write(runs.page_folder(p) / file.name, file.read_bytes())
    if not files:
        raise UserError(
            f"{name} is not drawn: its part of the study is not run at this profile and size"
        )


def render(p, name: str | None = None):
    """Write a report's report.ipynb, report.html, tables and figures.

    name: a table or figure of which alone the files are written.
    """
    start = time.time()
    folder = runs.page_folder(p)
    nb = read_notebook(p.report, p.profile)
    if name:
        draw_alone(nb, p, name)
    else:
        nb = execute(nb, find_notebook(p.report, p.profile).name, choose_values(nb, p))
        html = export_page(nb, p)
        runs.write(folder / "report.ipynb", nbformat.writes(nb))
        runs.write(folder / "report.html", html)
    path = folder / (name or "report.html")
    if path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    print(f"{path}: {time.time() - start:.0f} s", flush=True)
