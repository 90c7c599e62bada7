"""A planted notebook as a page: self-contained, accessible, safe; failures; one table alone."""

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
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from qa_lib.__main__ import run_verb
from qa_lib.page import render, report
from qa_lib.reports import catalogue, plans
from qa_lib.settings import command_line, params
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
STREAM = r"print('\x1b[31mred\x1b[0m 1%\r\x1b[31mred\x1b[0m <b>100%'); import sys; print('/se' + 'cret', file=sys.stderr)"


def code(source: str, *tags: str):
    return new_code_cell(source, metadata={"tags": list(tags)})


SETUP = [
    code("seeds = [0]  # how many\nepochs = 1  # passes", "parameters"),
    code(
        "from qa_lib.settings import params\nfrom qa_lib.page import report as page\nfrom pathlib import Path\n"
        "P = params.load_params('exbert', 'quick'); page.runs.FIGURES = Path(data)",
        "setup",
    ),
]
WRITE = "page._write_file(P, '{0}.txt', 'drawn')"


@pytest.fixture
def plant(tmp_path, monkeypatch):
    """Render a notebook of these cells; everything goes to tmp_path/exbert/quick."""

    def rendered(*cells, name=None) -> Path:
        (tmp_path / "notebooks").mkdir(exist_ok=True)
        nb = new_notebook(cells=[new_markdown_cell(TITLE), *SETUP, *cells])
        nbformat.write(nb, tmp_path / "notebooks" / "01_exbert.ipynb")
        monkeypatch.setattr(render, "ROOT", tmp_path)
        monkeypatch.setattr(report.runs, "FIGURES", tmp_path)
        render.render(params.load_params("exbert", "quick", {"data": str(tmp_path)}), name)
        return folder

    folder = tmp_path / "exbert" / "quick"
    folder.mkdir(parents=True)
    return rendered


def test_page(plant):
    folder = plant(
        new_markdown_cell(MATHS),
        code(DRAW, "fig_a"),
        code(STREAM),
        code("'<script>alert(2)</script>'"),
        new_markdown_cell("## Data & more"),
    )
    text = (folder / "report.html").read_text()
    soup = bs4.BeautifulSoup(text, "html.parser")
    # nothing is requested, nothing runs but the one script, as it stands in the library
    assert not soup.find_all(["iframe", "object", "embed"]) and not re.findall(
        r"<[^>]* on\w+=", text
    )
    script = Path(render.__file__).with_name("sort.js").read_text()
    assert [(s.attrs, s.text) for s in soup.find_all("script")] == [({}, script)]
    addresses = [
        e[a]
        for e in soup.find_all(True)
        for a in ("src", "href", "action", "data")
        if e.has_attr(a)
    ]
    beside = [a for a in addresses if not a.startswith(("data:", "#"))]
    assert beside == ["fig_a.svg", "fig_a.png"] and all((folder / a).is_file() for a in beside)
    assert "@import" not in text and "url(" not in text and "javascript:" not in text
    policy = dict(
        x.split(" ", 1)
        for x in soup.find("meta", {"http-equiv": "Content-Security-Policy"})["content"].split("; ")
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy["script-src"] == f"'sha256-{digest}'"
    assert {policy[x] for x in ("default-src", "base-uri", "form-action")} == {"'none'"}
    # structure
    assert soup.html["lang"] == "en" and len(soup.find_all("h1")) == 1
    assert soup.find("header").strong.text == "QUICK" and "A study [QUICK]" == soup.title.text
    assert [a["href"] for a in soup.nav.find_all("a")] == ["#the-idea", "#data-more"]
    assert all(soup.find(id=a["href"][1:]) for a in soup.nav.find_all("a"))
    assert soup.find("a", class_="skip")["href"] == "#main" and soup.main["id"] == "main"
    assert [e.name for e in soup.body.find_all(["header", "nav", "main", "footer"])] == [
        "header",
        "nav",
        "main",
        "footer",
    ]
    assert all(th["scope"] for th in soup.find_all("th")) and len(soup.find_all("th")) == 2
    # maths, image, code, output
    assert {m.get("display") for m in soup.find_all("math")} == {"inline", "block"}
    assert soup.munderover and "$" not in soup.main.text
    image = soup.find("img")
    assert image["src"].startswith("data:image/png;base64,") and image["alt"] == "What it shows"
    folded = soup.find_all("details", class_="code")
    assert len(folded) == 5 and not any(d.has_attr("open") for d in folded)
    assert "Code of fig_a" in [d.summary.text.strip() for d in folded]
    assert [d.pre.text for d in soup.find_all("details", class_="log")] == ["red <b>100%\n"]
    assert "/secret" not in text and "&lt;script&gt;alert(2)" in text and "\x1b" not in text


def test_parameters_are_said_once_with_their_comments(plant):
    text = (plant() / "report.html").read_text()
    shown = bs4.BeautifulSoup(text, "html.parser").find("details", class_="code")
    assert shown.summary.text.strip() == "Parameters"
    assert "seeds = [0, 1]  # how many" in shown.pre.text and text.count("how many") == 1
    assert "papermill" not in nbformat.read(plant() / "report.ipynb", 4).metadata


def test_a_path_of_the_machine_is_not_on_the_page():
    used = code('data = "/somewhere/private/qa"\nencoder = "minilm"', "injected-parameters")
    nb = nbformat.v4.new_notebook(
        cells=[code('data = None  # the folder\nencoder = "minilm"', "parameters"), used]
    )
    render.say_parameters_once(nb)
    assert nb.cells[0].source == 'data = "…/qa"  # the folder\nencoder = "minilm"'


def test_a_users_mistake_is_one_sentence_and_leaves_the_earlier_page(plant, tmp_path, capsys):
    page = tmp_path / "exbert" / "quick" / "report.html"
    page.write_text("earlier")
    with pytest.raises(SystemExit) as stop:
        command_line.run_and_exit(
            lambda: plant(code("raise params.UserError('seeds: say how many')"))
        )
    assert stop.value.code == 2 and capsys.readouterr().err.endswith("error: seeds: say how many\n")
    with pytest.raises(
        SystemExit, match=r"^error: 01_exbert.ipynb, cell `x = 1 …`: ZeroDivisionError: .*zero$"
    ):
        plant(code("x = 1\nx / 0"))
    assert page.read_text() == "earlier" and [f.name for f in page.parent.iterdir()] == [
        "report.html"
    ]


def test_only_draws_one_thing(plant, tmp_path):
    cells = [
        code("1 / 0"),
        code(WRITE.format("table_a"), "table_a"),
        code(WRITE.format("fig_b"), "fig_b"),
    ]
    assert [f.name for f in plant(*cells, name="fig_b").iterdir()] == ["fig_b.txt"]
    with pytest.raises(UserError, match="no table or figure fig_c; the page has table_a, fig_b"):
        plant(*cells, name="fig_c")


def test_a_name_that_is_not_drawn_is_refused_before_runs_are_looked_up(monkeypatch):
    monkeypatch.setattr(plans, "parameters_to_render", None)
    monkeypatch.setattr(
        "sys.argv", ["render", "exbert", "--profile", "real", "--only", "fig9_none"]
    )
    with pytest.raises(
        UserError, match="^there is no table or figure fig9_none; the page has table_data,"
    ):
        run_verb(sys.argv)


@pytest.mark.parametrize("where", ["", "elsewhere"])
def test_a_page_tells_where_it_is(plant, tmp_path, monkeypatch, capsys, where):
    """Seen from the folder where it was started, else by its whole path."""
    (tmp_path / where).mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / where)
    file = plant() / "report.html"
    assert capsys.readouterr().out.startswith(f"{file if where else file.relative_to(tmp_path)}: ")


@pytest.mark.parametrize("slug", ["moe", "exbert"])
def test_what_is_drawn_alone_keeps_the_cells_that_it_takes(slug):
    whole = nbformat.read(next((ROOT / "notebooks").glob(f"*_{slug}.ipynb")), 4)

    def names(nb, kind: type) -> set[str]:
        every = [
            x for c in nb.cells if c.cell_type == "code" for x in ast.walk(ast.parse(c.source))
        ]
        of_lambdas = {x.arg for x in every if isinstance(x, ast.arg)}
        return {
            x.id for x in every if isinstance(x, ast.Name) and isinstance(x.ctx, kind)
        } - of_lambdas

    drawn = [t for c in whole.cells for t in render.tags(c) if t.startswith(("table", "fig"))]
    for name in drawn:
        alone = render.keep_only(copy.deepcopy(whole), name)
        gone = names(whole, ast.Store) - names(alone, ast.Store)
        assert not names(alone, ast.Load) & gone and len(alone.cells) <= 7, name
    assert len(drawn) > 15


def test_a_page_of_other_parameters_leaves_their_ledger(tmp_path, monkeypatch):
    """make draws again what a page of fewer seeds overwrote: results.csv is then of other runs."""
    monkeypatch.setattr(render.runs, "FIGURES", tmp_path)
    monkeypatch.setattr(render.runs, "RECORDS", ROOT / "records")
    render.runs.read_committed.cache_clear()
    monkeypatch.setattr(render, "render", lambda p, only: None)
    seeds = [x for k in ("seeds", "side_seeds", "dense_seeds") for x in ("-p", f"{k}=[1]")]
    monkeypatch.setattr(
        "sys.argv",
        [
            "render",
            "exbert",
            "--profile",
            "real",
            "--size",
            "small",
            *seeds,
            "-p",
            "arms=[printed]",
        ],
    )
    run_verb(sys.argv)
    assert set(pd.read_csv(tmp_path / "exbert" / "real" / "results.csv")["seed"]) == {1}


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast():
    css = Path(report.__file__).with_name("page.css").read_text()
    light, dark = (dict(re.findall(r"--(\w+): (#\w{6})", css.split(":root {")[i])) for i in (1, 2))
    for scheme in (light, dark):
        for ink in set(scheme) - {"page", "box", "line"}:
            assert (
                min(contrast(scheme[ink], scheme[ground]) for ground in ("page", "box")) >= 4.5
            ), ink
    assert all(contrast("#ffffff", colour) >= 4.5 for _, colour in report.PROFILES.values())
    assert all(contrast("#ffffff", colour) >= 3 for _, colour in catalogue.MODELS.values())


def test_neighbours_that_are_not_drawn_share_a_sentence(plant):
    lack = "page.note_absent('{0}')"
    folder = plant(
        code(lack.format("rates"), "fig_a"),
        code(lack.format("rates, tuned"), "fig_b"),
        new_markdown_cell("Between."),
        code(lack.format("order"), "fig_c"),
    )
    page = (folder / "report.html").read_text()
    assert re.findall("size: (“.*?”)", page) == ["“rates, tuned”", "“order”"]


START = "P = 5\nseeds = [9]\nimport pandas; pandas.options.display.precision = 1\n"
MATPLOTLIBRC = "font.size: 30\ntext.usetex: True\naxes.facecolor: red\nbackend: TkAgg\n"


@pytest.fixture
def hostile_home(tmp_path, monkeypatch):
    """A home folder, a working folder and variables with settings that would show on a page."""
    home = tmp_path / "home"
    kernel = '{"argv": ["false"], "display_name": "x", "language": "python"}'
    settings = {
        ".ipython/profile_default/startup/00.py": START,
        ".ipython/profile_default/ipython_kernel_config.py": "c.InlineBackend.rc = {'font.size': 30}\nc.InteractiveShellApp.exec_lines = ['x = 1']",
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


def test_the_user_s_set_up_does_not_reach_a_page(plant, request):
    """Start-up files, configuration, kernels and templates of the home folder, and a matplotlibrc."""
    cells = [code("import pandas"), NAMES, code(LABELLED, "fig_a")]
    first = {f.name: f.read_bytes() for f in plant(*cells).iterdir() if f.suffix != ".ipynb"}
    assert {"report.html", "fig_a.png", "fig_a.svg"} <= set(first)
    request.getfixturevalue("hostile_home")
    before = dict(os.environ)
    again = {f.name: f.read_bytes() for f in plant(*cells).iterdir() if f.suffix != ".ipynb"}
    assert [name for name in first if again[name] != first[name]] == [] and set(again) == set(first)
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
    assert (plant(code(DRAW, "fig_a")) / "fig_a.png").exists() and not (tmp_path / "~").exists()


def test_a_figures_folder_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "figures").write_text("a file", encoding="utf-8")
    monkeypatch.setattr(render.runs, "FIGURES", tmp_path / "figures")
    monkeypatch.setattr(
        plans, "parameters_to_render", lambda args: params.load_params("exbert", "quick")
    )
    monkeypatch.setattr("sys.argv", ["render", "exbert", "--profile", "quick"])
    with pytest.raises(
        UserError,
        match="figures/exbert/quick cannot be written .*; mend that, or set QA_FIGURES to a folder",
    ):
        run_verb(sys.argv)
