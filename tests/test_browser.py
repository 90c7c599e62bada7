"""Every rendered page in headless Chromium, as wide as a phone and a desk, light and dark.

A page requests nothing and writes nothing to the console. Every image is decoded and described,
nothing is wider than the window, tables sort, and axe-core finds nothing serious. Pages are those
in figures/, and some of planted records (planted_page.py), which need no training.

`make test-browser` also installs axe-core. QA_SHOTS=folder keeps screenshots and a PDF.
"""

import base64
import os
from functools import cache
from pathlib import Path

import pytest
from devtools import CHROMIUM, Tab
from nbformat.v4 import new_markdown_cell, new_notebook
from planted_page import PLANTS, make_page
from test_notebook_form import count_visible_words

from qa_lib.page import render
from qa_lib.reports import plans
from qa_lib.settings.params import ROOT
from qa_lib.store import runs

PAGES = sorted(runs.FIGURES.glob("*/*/report.html"))
INDEX = sorted(runs.FIGURES.glob("index*.html"))
AXE = next((ROOT / ".cache" / "node").glob("*/node_modules/axe-core/axe.min.js"), None)
SHOTS = Path(os.environ.get("QA_SHOTS", ""))
CHECK = """(() => { const look = getComputedStyle(document.body), window = document.documentElement;
const grey = colour => colour.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0) / 3;
return {
  images: [...document.images].filter(i => !i.complete || !i.naturalWidth || !i.alt).length,
  wider: window.scrollWidth - window.clientWidth,
  loose: [...document.querySelectorAll("table")].filter(t => !t.closest(".scroll")).length,
  dead: [...document.querySelectorAll("a[href^='#']")]
    .filter(a => !document.getElementById(a.hash.slice(1))).length,
  contents: document.querySelectorAll("nav a").length,
  maths: document.querySelectorAll("math").length,
  ground: grey(look.backgroundColor), ink: grey(look.color),
  height: window.scrollHeight}; })()"""
# The last table that stands open and has one row of headings, and its first column of numbers.
# Where none stands open, the last one is unfolded.
TABLE = """(() => { const tables = [...document.querySelectorAll("table:has(button)")]
  .filter(t => t.tHead.rows.length == 1 && t.tHead.rows[0].querySelector(".number"));
const table = tables.filter(t => t.checkVisibility()).at(-1) ?? tables.at(-1);
for (let e = table; e; e = e.parentElement) { if (e.tagName == "DETAILS") e.open = true; }
const head = [...table.tHead.rows[0].cells].findIndex(h => h.classList.contains("number"));
return {table, head: table.tHead.rows[0].cells[head],
        column: [...table.tBodies[0].rows].map(r => r.cells[head].textContent)}; })()"""
STATE = f"(() => {{ const t = {TABLE}; return [t.head.getAttribute('aria-sort'), t.column]; }})()"
SERIOUS = """axe.run({resultTypes: ["violations"]}).then(r => r.violations
  .filter(v => ["serious", "critical"].includes(v.impact))
  .map(v => [v.id, v.impact, v.nodes.length, v.nodes[0].html.slice(0, 200)]))"""

# Pages in the newer form have a height at most, in pixels, on a wide screen, and visible words.
HEIGHTS = dict.fromkeys(("exbert", "moe", "road", "smart"), 10_000)
WORDS = dict.fromkeys(("exbert", "moe", "road", "smart"), 1_500)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]
# The pages of planted records, which are made when a test asks for them.
# ExBERT's committed page has both arms and all its figures already.
FROM_RECORDS = [Path(slug) / "planted" / "report.html" for slug in PLANTS if slug != "exbert"]


def name_page(page: Path) -> str:
    """Return the name of a page in the names of tests."""
    return "-".join([*page.parts[-3:-1], page.stem])


each = pytest.mark.parametrize("page", [*PAGES, *FROM_RECORDS], ids=name_page, indirect=True)
each_and_index = pytest.mark.parametrize(
    "page", [*PAGES, *INDEX, *FROM_RECORDS], ids=name_page, indirect=True
)
FILES = """[...document.querySelectorAll("a[href]")].map(a => a.getAttribute("href"))
  .filter(h => !/^(#|https?:)/.test(h))"""
BUTTON = f"""(() => {{ const b = {TABLE}.head.firstChild; b.scrollIntoView({{block: "center"}});
const r = b.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; }})()"""
# Elements that are hidden in print, the mark beside a sorted heading, and elements cut off.
HIDDEN = "[...document.querySelectorAll('nav, details, .skip')].every(e => !e.offsetParent)"
MARK = "getComputedStyle(document.querySelector('th[aria-sort] button'), '::after').display"
CUT_OFF = """[...document.querySelectorAll('table, img, math')]
  .filter(e => e.getBoundingClientRect().right > 701).map(e => e.closest('[id]').id)"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    """Yield the tab of a browser that all tests share."""
    with Tab(tmp_path_factory.mktemp("chromium")) as tab:
        yield tab


@pytest.fixture(scope="module")
def plant(tmp_path_factory):
    """Return a function that makes a report's page of planted records, once."""
    return cache(lambda slug: make_page(slug, tmp_path_factory.mktemp("planted")))


@pytest.fixture
def page(request):
    """Return a page's path."""
    if request.param not in FROM_RECORDS:
        return request.param
    return request.getfixturevalue("plant")(request.param.parts[0])


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
@each_and_index
def test_a_page_is_whole_and_accessible(tab, page, width, scheme):
    tab.open(page.as_uri(), width, scheme)
    state = tab.value(CHECK)
    if SHOTS.name:
        name = "-".join([*page.parts[-3:-1], page.stem, str(width), scheme])
        tab.shot(SHOTS / f"{name}.png", width, state["height"])
    assert tab.requests() == {page.as_uri()}
    assert page.stat().st_size < 1_200_000
    assert state["maths"] > 0 or page in INDEX
    assert state["contents"] > 3
    if width == 1400:
        report = page.parent.parent.name
        assert state["height"] <= HEIGHTS.get(report, state["height"])
        words = count_visible_words(page.read_text(encoding="utf-8"))
        assert words <= WORDS.get(report, words)
    for link in tab.value(FILES):
        assert (page.parent / link.split("#")[0]).is_file(), link
    assert [state[x] for x in ("images", "dead", "wider", "loose")] == [0, 0, 0, 0]
    dark, light = sorted((state["ground"], state["ink"]))
    assert dark < 40
    assert light > 220
    assert (state["ground"] == dark) == (scheme == "dark")
    if AXE:
        # the page's content policy does not bind what DevTools evaluates
        tab.value(AXE.read_text() + ";0")
        assert tab.value(SERIOUS) == []
    assert tab.seen("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled") == []


@pytest.mark.skipif(AXE is None, reason="no axe-core; make test-browser installs it")
def test_axe_finds_a_planted_fault(tab, tmp_path):
    (tmp_path / "bad.html").write_text(
        "<!DOCTYPE html><html><title>x</title><img src='data:,'><button></button></html>"
    )
    tab.open((tmp_path / "bad.html").as_uri(), 390, "light")
    tab.value(AXE.read_text() + ";0")
    assert {"image-alt", "button-name", "html-has-lang"} <= {x[0] for x in tab.value(SERIOUS)}


def read_number(text: str) -> float:
    """Return the number with which a cell of a table begins."""
    return float(text.split(" ")[0].replace(",", ""))


@each
def test_a_table_sorts_by_mouse_and_by_keyboard(tab, page):
    tab.open(page.as_uri(), 1400, "light")
    first, drawn = tab.value(STATE)
    there = sorted((x for x in drawn if x != "–"), key=read_number)
    missing = ["–"] * drawn.count("–")
    assert first is None
    assert len(drawn) > 1
    x, y = tab.value(BUTTON)
    for kind in ("mousePressed", "mouseReleased"):
        tab.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
    assert tab.value(STATE) == ["ascending", there + missing]
    if SHOTS.name:
        name = "-".join(page.parts[-3:-1])
        tab.shot(SHOTS / f"{name}-sorted.png", 1400, tab.value(CHECK)["height"])
    assert tab.value("document.activeElement.tagName") == "BUTTON"
    tab.press("Enter", 13, "\r")
    state, column = tab.value(STATE)
    assert state == "descending"
    numbers = [read_number(x) for x in column[: len(there)]]
    assert numbers == [read_number(x) for x in reversed(there)]
    assert column[len(there) :] == missing
    tab.press(" ", 32, " ")
    assert tab.value(STATE) == [None, drawn]


PLANTED = """# A title

| a | b | c |
|---|---|---|
| x10 | 1,234 | 80:20 |
| x9 | – | 5:95 |
| X1 | 12.3 ± 0.4 | 100:0 |
| y | -3 | 20:80 |
| z | 5e-1 | 40:60 |
"""


def test_numbers_sort_as_numbers_and_words_as_words(tab, tmp_path):
    nb = new_notebook(cells=[new_markdown_cell("# Title"), new_markdown_cell(PLANTED)])
    html = render.export_page(nb, plans.load_params("exbert", "quick"))
    (tmp_path / "page.html").write_text(html)
    tab.open((tmp_path / "page.html").as_uri(), 1400, "light")
    sort = """(i => { const t = document.querySelector("table");
              t.querySelectorAll("button")[i].click();
              return [...t.tBodies[0].rows].map(r => r.cells[i].textContent); })"""
    assert tab.value(f"{sort}(1)") == ["-3", "5e-1", "12.3 ± 0.4", "1,234", "–"]
    assert tab.value(f"{sort}(1)") == ["1,234", "12.3 ± 0.4", "5e-1", "-3", "–"]
    assert tab.value(f"{sort}(2)") == ["5:95", "20:80", "40:60", "80:20", "100:0"]
    assert tab.value(f"{sort}(0)") == ["X1", "x9", "x10", "y", "z"]
    assert tab.value("document.querySelectorAll('[aria-sort]').length") == 1


def test_a_script_of_the_text_does_not_run(tab, tmp_path):
    """The policy names one script by its hash. It refuses any other that escaping might miss."""
    nb = new_notebook(cells=[new_markdown_cell("# Title")])
    text = render.export_page(nb, plans.load_params("exbert", "quick"))
    evil = (
        "<script>document.title = 'run'</script>"
        "<img src='data:,' onerror=\"document.title = 'run'\"></main>"
    )
    (tmp_path / "page.html").write_text(text.replace("</main>", evil))
    tab.open((tmp_path / "page.html").as_uri(), 1400, "light")
    refused = [e["entry"]["text"] for e in tab.seen("Log.entryAdded")]
    assert tab.value("document.title") != "run"
    assert len(refused) == 2
    assert all("Content Security Policy" in x for x in refused)


@each
def test_a_printed_page_is_black_on_white_and_cuts_nothing_off(tab, page, tmp_path):
    """That is so even if the screen is dark. Contents, code and buttons are left out."""
    # the width is that of a sheet
    tab.open(page.as_uri(), 700, "dark")
    tab.value(f"{TABLE}.head.firstChild.click()")
    tab.call(
        "Emulation.setEmulatedMedia",
        media="print",
        features=[{"name": "prefers-color-scheme", "value": "dark"}],
    )
    state = tab.value(CHECK)
    assert (state["ground"], state["ink"]) == (255, 0)
    assert tab.value(HIDDEN)
    assert tab.value(MARK) == "none"
    assert tab.value(CUT_OFF) == []
    if SHOTS.name:
        pdf = tab.call("Page.printToPDF", preferCSSPageSize=True)["data"]
        name = "-".join(page.parts[-3:-1])
        (SHOTS / f"{name}.pdf").write_bytes(base64.b64decode(pdf))
