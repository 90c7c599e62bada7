"""A planted notebook as a page, which is self-contained, accessible and safe."""

import ast
import base64
import copy
import hashlib
import os
import re
import sys
from pathlib import Path

import bs4
import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from qa_lib.__main__ import run_verb
from qa_lib.page import render, report
from qa_lib.reports import exbert, plans
from qa_lib.settings import command_line
from qa_lib.settings.params import ROOT, UserError

TITLE = "# A study\n\nThe claim."
MATHS = """## The *idea*

For $x_i < y$, with <script>alert(1)</script> and [a link](javascript:alert(1)):

$$\\mathcal{L} = -\\sum_{i=1}^{T} \\log p_i$$

| symbol | value |
|---|--:|
| T | 3 |
"""
DRAW = """import matplotlib.pyplot as plt, pandas as pd
fig = plt.figure(figsize=(1, 1))
page.save_figure(P, "fig_a", fig, "Caption <b>", "What it shows", pd.DataFrame({"run": ["a-b"]}))"""
STREAM = r"""print('\x1b[31mred\x1b[0m 1%\r\x1b[31mred\x1b[0m <b>100%')
import sys
print('/se' + 'cret', file=sys.stderr)"""


def code(source: str, *tags: str):
    """Code cell with tags."""
    return new_code_cell(source, metadata={"tags": list(tags)})


SETUP = [
    code("seeds = [0]  # how many\nepochs = 1  # passes", "parameters"),
    code(
        "from qa_lib.page import report as page\n"
        "from qa_lib.reports import plans\n"
        "from qa_lib.settings import params\n"
        "P = plans.load_params('exbert', 'quick')",
        "setup",
    ),
]
WRITE = "page._write_file(P, '{0}.txt', 'drawn')"


@pytest.fixture
def plant(tmp_path, monkeypatch):
    """Return a function that renders a notebook of some cells and returns the page's folder.

    name: the one table or figure that is drawn.
    """

    def render_cells(*cells, name=None) -> Path:
        (tmp_path / "notebooks").mkdir(exist_ok=True)
        nb = new_notebook(cells=[new_markdown_cell(TITLE), *SETUP, *cells])
        nbformat.write(nb, tmp_path / "notebooks" / "01_exbert.ipynb")
        monkeypatch.setattr(render, "ROOT", tmp_path)
        monkeypatch.setattr(report.runs, "FIGURES", tmp_path)
        monkeypatch.setenv("QA_FIGURES", str(tmp_path))  # for the kernel
        render.render(plans.load_params("exbert", "quick"), name)
        return folder

    folder = tmp_path / "exbert" / "quick"
    folder.mkdir(parents=True)
    return render_cells


def test_a_page_is_safe_structured_and_whole(plant):
    folder = plant(
        new_markdown_cell(MATHS),
        code(DRAW, "fig_a"),
        code(STREAM),
        code("'<script>alert(2)</script>'"),
        new_markdown_cell("## Data & more"),
    )
    text = (folder / "report.html").read_text()
    soup = bs4.BeautifulSoup(text, "html.parser")
    check_safety(text, soup, folder)
    check_structure(soup)
    check_contents(text, soup)


def check_safety(text: str, soup: bs4.BeautifulSoup, folder: Path) -> None:
    """Assert that a page requests nothing and runs only the library's own script."""
    assert not soup.find_all(["iframe", "object", "embed"])
    assert not re.findall(r"<[^>]* on\w+=", text)
    script = Path(render.__file__).with_name("sort.js").read_text()
    assert [(s.attrs, s.text) for s in soup.find_all("script")] == [({}, script)]
    beside = []
    for element in soup.find_all(True):
        for attribute in ("src", "href", "action", "data"):
            address = element.get(attribute, "#")
            if not address.startswith(("data:", "#")):
                beside.append(address)
    assert beside == ["fig_a.svg", "fig_a.png"]
    assert all((folder / a).is_file() for a in beside)
    assert "@import" not in text
    assert "url(" not in text
    assert "javascript:" not in text
    meta = soup.find("meta", {"http-equiv": "Content-Security-Policy"})
    policy = dict(rule.split(" ", 1) for rule in meta["content"].split("; "))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy["script-src"] == f"'sha256-{digest}'"
    assert {policy[x] for x in ("default-src", "base-uri", "form-action")} == {"'none'"}


def check_structure(soup: bs4.BeautifulSoup) -> None:
    """Assert that a page has a language, landmarks, a title and headings that links lead to."""
    assert soup.html["lang"] == "en"
    assert len(soup.find_all("h1")) == 1
    assert soup.find("header").strong.text == "QUICK"
    assert "A study [QUICK]" == soup.title.text
    assert [a["href"] for a in soup.nav.find_all("a")] == ["#the-idea", "#data-more"]
    assert all(soup.find(id=a["href"][1:]) for a in soup.nav.find_all("a"))
    assert soup.find("a", class_="skip")["href"] == "#main"
    assert soup.main["id"] == "main"
    landmarks = ["header", "nav", "main", "footer"]
    assert [e.name for e in soup.body.find_all(landmarks)] == landmarks
    assert all(th["scope"] for th in soup.find_all("th"))
    assert len(soup.find_all("th")) == 2


def check_contents(text: str, soup: bs4.BeautifulSoup) -> None:
    """Assert that a page has maths, an image, folded code, and output without markup."""
    assert {m.get("display") for m in soup.find_all("math")} == {"inline", "block"}
    assert soup.munderover
    assert "$" not in soup.main.text
    image = soup.find("img")
    assert image["src"].startswith("data:image/png;base64,")
    assert image["alt"] == "What it shows"
    folded = soup.find_all("details", class_="code")
    assert len(folded) == 5
    assert not any(d.has_attr("open") for d in folded)
    assert "Code of fig_a" in [d.summary.text.strip() for d in folded]
    assert [d.pre.text for d in soup.find_all("details", class_="log")] == ["red <b>100%\n"]
    assert "/secret" not in text
    assert "&lt;script&gt;alert(2)" in text
    assert "\x1b" not in text


def test_parameters_are_said_once_with_their_comments(plant):
    text = (plant() / "report.html").read_text()
    folded = bs4.BeautifulSoup(text, "html.parser").find("details", class_="code")
    assert folded.summary.text.strip() == "Parameters"
    assert "seeds = [0, 1]  # how many" in folded.pre.text
    assert text.count("how many") == 1
    assert "papermill" not in nbformat.read(plant() / "report.ipynb", 4).metadata


def test_a_path_of_the_machine_is_not_on_the_page():
    defaults = code('data = None  # the folder\nencoder = "minilm"', "parameters")
    used = code('data = "/somewhere/private/qa"\nencoder = "minilm"', "injected-parameters")
    nb = new_notebook(cells=[defaults, used])
    render.say_parameters_once(nb)
    assert nb.cells[0].source == 'data = "…/qa"  # the folder\nencoder = "minilm"'


def test_a_users_mistake_is_one_sentence_and_leaves_the_earlier_page(plant, tmp_path, capsys):
    page = tmp_path / "exbert" / "quick" / "report.html"
    page.write_text("earlier")
    mistake = code("raise params.UserError('seeds: say how many')")
    with pytest.raises(SystemExit) as stop:
        command_line.run_and_exit(lambda: plant(mistake))
    assert stop.value.code == 2
    assert capsys.readouterr().err.endswith("error: seeds: say how many\n")
    words = r"^error: 01_exbert.ipynb, cell .\d+. `x = 1 …`: ZeroDivisionError: .*zero$"
    with pytest.raises(SystemExit, match=words):
        plant(code("x = 1\nx / 0"))
    assert page.read_text() == "earlier"
    assert [f.name for f in page.parent.iterdir()] == ["report.html"]


def test_only_draws_one_thing(plant, tmp_path):
    cells = [
        code("1 / 0"),
        code(WRITE.format("table_a"), "table_a"),
        code(WRITE.format("fig_b"), "fig_b"),
    ]
    assert [f.name for f in plant(*cells, name="fig_b").iterdir()] == ["fig_b.txt"]
    # nor what its cell draws beside it
    beside = "\n".join(WRITE.format(name) for name in ("fig_c", "fig_d"))
    folder = plant(*cells, code(beside, "fig_c", "fig_d", "fig_e"), name="fig_d")
    assert {f.name for f in folder.iterdir()} == {"fig_b.txt", "fig_d.txt"}
    with pytest.raises(UserError, match="^fig_e is not drawn: its part of the study is not run"):
        plant(*cells, code(beside, "fig_c", "fig_d", "fig_e"), name="fig_e")
    assert {f.name for f in folder.iterdir()} == {"fig_b.txt", "fig_d.txt"}
    with pytest.raises(UserError, match="no table or figure fig_c; the page has table_a, fig_b"):
        plant(*cells, name="fig_c")


def test_a_name_that_is_not_drawn_is_refused_before_runs_are_looked_up(monkeypatch):
    monkeypatch.setattr(plans, "parameters_to_render", None)
    command = ["render", "exbert", "--profile", "real", "--only", "fig9_none"]
    monkeypatch.setattr("sys.argv", command)
    words = "^there is no table or figure fig9_none; the page has .*table_data, "
    with pytest.raises(UserError, match=words):
        run_verb(sys.argv)


@pytest.mark.parametrize("where", ["", "elsewhere"])
def test_render_prints_where_the_page_is(plant, tmp_path, monkeypatch, capsys, where):
    """The path is relative to the working folder if the page lies within, and whole otherwise."""
    (tmp_path / where).mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / where)
    file = plant() / "report.html"
    assert capsys.readouterr().out.startswith(f"{file if where else file.relative_to(tmp_path)}: ")


@pytest.mark.parametrize("slug", ["moe", "exbert", "road", "smart"])
def test_a_table_or_figure_drawn_alone_keeps_the_cells_that_it_needs(slug):
    whole = nbformat.read(next((ROOT / "notebooks").glob(f"*_{slug}.ipynb")), 4)
    drawn = []
    for cell in whole.cells:
        drawn += [tag for tag in render.tags(cell) if tag.startswith(("table", "fig"))]
    assert len(drawn) > 15
    for name in drawn:
        alone = render.keep_only(copy.deepcopy(whole), name)
        gone = find_names(whole, ast.Store) - find_names(alone, ast.Store)
        assert not find_names(alone, ast.Load) & gone, name
        assert len(alone.cells) <= 7, name


def find_names(nb, context: type) -> set[str]:
    """Return the names that a notebook's code stores or loads, without arguments of functions."""
    names = set()
    arguments = set()
    for cell in nb.cells:
        if cell.cell_type != "code":
            continue
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.arg):
                arguments.add(node.arg)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, context):
                names.add(node.id)
    return names - arguments


def test_a_page_of_other_parameters_leaves_their_ledger(tmp_path, monkeypatch):
    """A page of fewer seeds has a results.csv of these runs, so make draws the page again."""
    monkeypatch.setattr(render.runs, "FIGURES", tmp_path)
    monkeypatch.setattr(render.runs, "RECORDS", ROOT / "records")
    render.runs.read_committed.cache_clear()
    monkeypatch.setattr(render, "render", lambda p, only: None)
    command = ["render", "exbert", "--profile", "real", "--size", "small"]
    for name in ("seeds", "side_seeds", "dense_seeds", "step_seeds", "longer_seeds"):
        command += ["-p", f"{name}=[1]"]
    monkeypatch.setattr("sys.argv", [*command, "-p", "arms=[printed]"])
    run_verb(sys.argv)
    assert set(pd.read_csv(tmp_path / "exbert" / "real" / "results.csv")["seed"]) == {1}


def luminance(colour: str) -> float:
    """Relative luminance of a colour #rrggbb (WCAG 2)."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours (WCAG 2)."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_text_and_lines_have_enough_contrast():
    css = Path(report.__file__).with_name("page.css").read_text()
    _, light, dark, *_ = css.split(":root {")
    for block in (light, dark):
        scheme = dict(re.findall(r"--(\w+): (#\w{6})", block))
        for ink in set(scheme) - {"page", "box", "line"}:
            assert contrast(scheme[ink], scheme["page"]) >= 4.5, ink
            assert contrast(scheme[ink], scheme["box"]) >= 4.5, ink
    assert all(contrast("#ffffff", colour) >= 4.5 for _, colour in report.PROFILES.values())
    assert all(contrast("#ffffff", colour) >= 3 for _, colour in exbert.MODELS.values())


def test_tags_say_where_a_cell_stands(plant, tmp_path):
    folder = plant(
        new_markdown_cell("## Data"),
        code("'unseen'", "notebook"),
        code("'what was run'", "top"),
        code("'foremost'", "top", "output"),
        new_markdown_cell("### Folded *title*\n\n- a **rest**", metadata={"tags": ["fold"]}),
    )
    text = (folder / "report.html").read_text()
    assert "unseen" not in text
    assert text.index("foremost") < text.index("what was run") < text.index('id="data"')
    assert text.count("foremost") == 1  # what comes out, and no code
    more = bs4.BeautifulSoup(text, "html.parser").find("details", class_="more")
    assert more.summary.text == "Folded *title*"
    assert more.li.strong.text == "rest"
    # a cell for a reader in JupyterLab alone is not even run
    nb = new_notebook(cells=[code("1 / 0", "preview"), code("1")])
    nbformat.write(nb, tmp_path / "notebooks" / "01_exbert.ipynb")
    assert [cell.source for cell in render.read_notebook("exbert").cells] == ["1"]


def test_neighbours_that_are_not_drawn_share_a_sentence(plant):
    lack = "page.note_absent('{0}')"
    folder = plant(
        code(lack.format("rates"), "fig_a"),
        code(lack.format("rates, tuned"), "fig_b"),
        new_markdown_cell("Between."),
        code(lack.format("order"), "fig_c"),
    )
    page = (folder / "report.html").read_text()
    assert re.findall("Not run here: (“.*?”)", page) == ["“rates, tuned”", "“order”"]


def shows(html: str):
    """Code cell whose output is HTML."""
    return new_code_cell("x", outputs=[new_output("display_data", {"text/html": html})])


def test_a_note_is_dropped_where_the_page_lists_its_part_and_the_section_shows_more():
    figure = "<figure id='fig_a'></figure>"
    rates, tuned, claims = map(report.note_absent, ("rates", report.EQUAL_TUNING, "claims"))
    cells = [
        new_markdown_cell("## One"),
        shows(figure),
        shows(rates),  # dropped
        shows(figure + rates),  # the note is dropped, the figure stays
        shows(tuned),  # changes what a page concludes
        shows(claims),  # not listed
        new_markdown_cell("## Two"),
        shows(rates),  # else the section would be empty
    ]
    listed = ["rates", report.EQUAL_TUNING]
    nb = render.drop_listed_notes(copy.deepcopy(new_notebook(cells=cells)), listed)
    shown = [render.list_html(cell) for cell in nb.cells if cell.cell_type == "code"]
    assert shown == [[figure], [figure], [tuned], [claims], [rates]]
    assert [render.absent_part(cell) for cell in nb.cells[1:5]] == [
        "",
        "",
        "equal tuning",
        "claims",
    ]


def test_neighbouring_notes_are_one_sentence():
    notes = [report.note_absent("A & B"), report.note_absent("rates")]
    nb = new_notebook(cells=[shows(note) for note in notes])
    merged = render.merge_absent_notes(render.merge_absent_notes(nb))
    assert render.list_html(merged.cells[0]) == [report.note_absent("A & B, rates")]
    assert len(merged.cells) == 1


# Settings of a user that would show on a page.
START = "P = 5\nseeds = [9]\nimport pandas; pandas.options.display.precision = 1\n"
MATPLOTLIBRC = "font.size: 30\ntext.usetex: True\naxes.facecolor: red\nbackend: TkAgg\n"
KERNEL_CONFIG = (
    "c.InlineBackend.rc = {'font.size': 30}\nc.InteractiveShellApp.exec_lines = ['x = 1']"
)


@pytest.fixture
def hostile_home(tmp_path, monkeypatch):
    """Set up a home folder, a working folder and variables with settings that would show."""
    home = tmp_path / "home"
    kernel = '{"argv": ["false"], "display_name": "x", "language": "python"}'
    settings = {
        ".ipython/profile_default/startup/00.py": START,
        ".ipython/profile_default/ipython_kernel_config.py": KERNEL_CONFIG,
        ".config/matplotlib/matplotlibrc": MATPLOTLIBRC,
        ".jupyter/jupyter_config.py": "c.HTMLExporter.exclude_input = True",
        ".local/share/jupyter/kernels/python3/kernel.json": kernel,
        ".local/share/jupyter/nbconvert/templates/base/display_priority.j2": "not ours",
        "here/matplotlibrc": MATPLOTLIBRC,
        "start.py": START,
    }
    for name, text in settings.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text, encoding="utf-8")
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "MPLCONFIGDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("JUPYTER_PATH", str(home / ".local" / "share" / "jupyter"))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
    monkeypatch.setenv("PYTHONSTARTUP", str(home / "start.py"))
    monkeypatch.setenv("MPLBACKEND", "TkAgg")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(home / "here")


LABELLED = DRAW.replace(
    "fig = plt.figure(figsize=(1, 1))",
    "fig, axes = plt.subplots(); axes.plot([1, 2]); axes.set_title('a')",
)
NAMES = code(
    "print(sorted(k for k in globals() if not k.startswith('_')), pandas.options.display.precision)"
)


def read_page(folder: Path) -> dict[str, bytes]:
    """Return the files of a page, without its notebook."""
    return {f.name: f.read_bytes() for f in folder.iterdir() if f.suffix != ".ipynb"}


def test_the_user_s_set_up_does_not_reach_a_page(plant, request):
    """The set-up has start-up files, configuration, kernels, templates and a matplotlibrc."""
    cells = [code("import pandas"), NAMES, code(LABELLED, "fig_a")]
    first = read_page(plant(*cells))
    assert {"report.html", "fig_a.png", "fig_a.svg"} <= set(first)
    request.getfixturevalue("hostile_home")
    before = dict(os.environ)
    again = read_page(plant(*cells))
    assert [name for name in first if again[name] != first[name]] == []
    assert set(again) == set(first)
    assert dict(os.environ) == before


def test_a_page_needs_no_home(plant, tmp_path, monkeypatch):
    """The home folder is a file here, in which nobody can make a folder."""
    (tmp_path / "home").write_text("", encoding="utf-8")
    for name in (
        "HOME",
        "XDG_CACHE_HOME",
        "XDG_CONFIG_HOME",
        "XDG_DATA_HOME",
        "XDG_RUNTIME_DIR",
        "HF_HOME",
    ):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    assert (plant(code(DRAW, "fig_a")) / "fig_a.png").exists()
    assert not (tmp_path / "~").exists()


def test_a_figures_folder_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "figures").write_text("a file", encoding="utf-8")
    monkeypatch.setattr(render.runs, "FIGURES", tmp_path / "figures")
    monkeypatch.setattr(
        plans, "parameters_to_render", lambda args: plans.load_params("exbert", "quick")
    )
    monkeypatch.setattr("sys.argv", ["render", "exbert", "--profile", "quick"])
    words = "figures/exbert/quick cannot be written .*; mend that, or set QA_FIGURES to a folder"
    with pytest.raises(UserError, match=words):
        run_verb(sys.argv)
