"""Tables, figures, provenance: no number without a run, the same bytes for the same numbers."""

import re
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from nbconvert.filters.markdown_mistune import markdown2html_mistune

from qa_lib.page import report, tables
from qa_lib.reports import plans
from qa_lib.settings import params
from qa_lib.settings.params import UserError
from qa_lib.store import runs

P = plans.load_params("exbert", "quick")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Return the folder of the page, which does not exist yet."""
    monkeypatch.setattr(report.runs, "FIGURES", tmp_path)
    return tmp_path / "exbert" / "quick"


def make_ledger(seeds=(0, 1)) -> pd.DataFrame:
    """Return a ledger of EM and F1 of one model at three ratios."""
    rows = []
    for i, ratio in enumerate((1.0, 0.0, 0.6)):
        for seed in seeds:
            labels = {
                "run": f"v-db-{ratio:.0%}-s{seed}-{i}{seed}ab",
                "variant": "v-db",
                "ratio": ratio,
                "seed": seed,
                "set": "one",
                "n": 1234,
            }
            em = 40 + 20 * ratio + seed
            rows.append({**labels, "metric": "em", "value": em})
            rows.append({**labels, "metric": "f1", "value": em + 5})
    return pd.DataFrame(rows)


def draw_figure(frame: pd.DataFrame) -> str:
    """Save a figure of some line whose numbers are a frame's, and return its HTML."""
    _, axes = plt.subplots()
    axes.plot([0, 1], [1, 2])
    return report.save_figure(P, "fig_x", axes, "A caption.", "What it shows.", frame)


def test_a_number_without_a_run_is_never_drawn(folder):
    frame = make_ledger()
    for bare in (
        frame.drop(columns="run"),
        frame[:0],
        frame.assign(run=None),
        frame.assign(run=[("a", None)] * len(frame)),
        frame.assign(run=[()] * len(frame)),
    ):
        with pytest.raises(UserError, match="names no run"):
            report.save_table(P, "table_x", bare, "A caption.")
        with pytest.raises(UserError, match="names no run"):
            draw_figure(bare)
    assert not folder.exists()


def test_the_same_numbers_give_the_same_bytes(folder):
    def write() -> dict[str, bytes]:
        averages = tables.average_over_seeds(make_ledger(), ["ratio", "set"])
        report.save_table(P, "table_x", averages, "A caption.")
        draw_figure(make_ledger())
        return {f.name: f.read_bytes() for f in folder.iterdir()}

    first = write()
    assert set(first) == {"table_x.csv", "table_x.md", "table_x.tex", "fig_x.png", "fig_x.svg"}
    assert write() == first
    for content in first.values():
        assert not re.search(rb"20\d\d-\d\d-\d\d|[Mm]atplotlib v", content)


def test_mean_sd_seeds_and_runs_are_shown(folder):
    averages = tables.average_over_seeds(make_ledger(), ["ratio", "set"])
    html = report.save_table(P, "table_x", averages, "A caption.")
    for text in (
        "QUICK",
        "n = 2 seeds.",
        "40.5 ± 0.7",
        "1,234",
        "<td>2 runs</td>",
        "v-db-60%-s1-21ab",
        '<th scope="col" class=number>EM</th>',
        '<th scope="row" class=number>0.0</th>',
    ):
        assert text in html
    row = "40.5,0.707107,45.5,0.707107,1234,2,v-db-0%-s0-10ab v-db-0%-s1-11ab"
    assert row in (folder / "table_x.csv").read_text()
    assert "QUICK" in (folder / "table_x.md").read_text()
    assert r"% run v-db-0%-s0-10ab" in (folder / "table_x.tex").read_text()


def test_one_seed_is_marked():
    one = tables.average_over_seeds(make_ledger(seeds=[0]), ["ratio", "set"])
    html = report.save_table(P, "table_x", one, "A caption.")
    assert "n = 1 seed: no spread." in html
    assert "<td>1 (no sd)</td>" in html
    assert "±" not in html
    assert "n = 1 seed: no spread." in draw_figure(make_ledger(seeds=[0]))


def test_missing_seeds_are_counted():
    frame = make_ledger()
    frame = frame[(frame["ratio"] > 0) | (frame["seed"] == 0)]
    assert "n = 1 to 2 seeds." in draw_figure(frame)
    several = pd.DataFrame({"model": ["a", "b", "b"], "seeds": [3, 6, 3], "run": "r"})
    assert "n = 3 to 6 seeds (3: a)." in report.save_table(P, "table_x", several, "A caption.")


def test_dataset_text_is_never_markup(folder):
    evil = "<script>alert('1|2')</script> & co_1 \\input{x}"
    frame = pd.DataFrame({"question": [evil], "run": "a-b"})
    html = report.save_table(P, "table_x", frame, evil)
    assert "<script" not in html
    assert html.count("&lt;script&gt;") == 2
    assert "<script" not in (folder / "table_x.md").read_text()
    assert r"1\|2" in (folder / "table_x.md").read_text()
    assert r"\& co\_1  input\{x\}" in (folder / "table_x.tex").read_text()
    fig = report.save_figure(P, "fig_x", plt.figure(), evil, f'{evil}" onload="x', frame)
    assert "<script" not in fig
    assert '" onload' not in fig


class Cells(HTMLParser):
    """The text of each cell of a table's body, and the names of all tags."""

    def __init__(self, html: str):
        super().__init__()
        self.texts = []
        self.tags = set()
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "td":
            self.texts.append("")

    def handle_data(self, data):
        if self.texts and self.lasttag != "th":
            self.texts[-1] += data


EVIL = [
    "**b** and *i*",
    "__b__ and _i_ and a_b",
    "`code`",
    "[x](https://y.z)",
    "![x](y)",
    "<b>b</b> &amp; <!-- c",
    "~~s~~",
    "&copy;",
    "$x^2$ for $5",
    "a|b||c",
    "\\*a\\|b\\\\",
    "\\(x\\)",
    "www.x.org, a@b.org",
    "# h",
    "- l",
    "1. l",
    "> q",
    "---",
    "[x]: /y",
]


def test_markup_in_a_cell_is_text_in_markdown(folder):
    frame = pd.DataFrame({"set": "one", "question": EVIL, "run": "a-b"})
    report.save_table(P, "table_x", frame, "A caption with *stars*.")
    cells = Cells(markdown2html_mistune((folder / "table_x.md").read_text()))
    assert [x.strip() for x in cells.texts[1::3]] == EVIL
    assert not cells.tags & {"em", "code", "a", "img", "del", "b", "math", "h1", "li"}
    assert "*stars*" not in (folder / "table_x.md").read_text()


@pytest.mark.parametrize(
    "end",
    ["\n", "\r", "\r\n", "\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x00", "\x1b", "\n\n\n"],
)
def test_a_cell_is_one_line(folder, end):
    frame = pd.DataFrame({"question": [f"When{end}| did it?"], "run": "a-b"})
    html = report.save_table(P, "table_x", frame, "A caption.")
    lines = (folder / "table_x.md").read_text().splitlines()
    assert len(lines) == 5
    assert re.fullmatch(r"\| When \\\| did it\? +\| b +\|", lines[4])
    assert "\nWhen | did it? \\\\\n" in (folder / "table_x.tex").read_text()
    assert "When | did it?" in html


def test_text_without_markup_is_not_escaped_in_markdown(folder):
    plain = [
        "58eb99f3_000",
        "qa_lib/evidence/claims.py",
        "9.4 [6.5, 12.4] EM (squad, EM)",
        "3–13",
        "a - b",
        "50 % #1!",
        "10:30",
    ]
    frame = pd.DataFrame({"set": plain, "run": "a-b"})
    report.save_table(P, "table_x", frame, "It's qa_lib/evidence/claims.py.")
    text = (folder / "table_x.md").read_text()
    assert all(f"| {x} " in text for x in plain)
    assert "It's qa_lib/evidence/claims.py." in text


def test_markup_in_a_cell_is_text_in_latex_and_html(folder):
    frame = pd.DataFrame({"question": ["[2pt] or", "* star", "$5 & $6"], "run": "a-b"})
    html = report.save_table(P, "table_x", frame, "A caption.")
    lines = (folder / "table_x.tex").read_text().splitlines()
    # without {} the line break would take [2pt] as its argument
    assert {r"{}[2pt] or \\", r"{}* star \\", r"\$5 \& \$6 \\"} <= set(lines)
    # JupyterLab takes two dollar signs in one text for maths
    assert "<span>$</span>5 &amp; <span>$</span>6" in html


def test_mixtures_stand_in_order():
    mixtures = tables.add_display_names(make_ledger().assign(report="exbert"))["mixture"]
    assert list(mixtures.cat.categories) == ["0:100", "60:40", "100:0"]


@pytest.mark.parametrize(
    "value, place",
    [
        (None, params.ROOT / "runs"),
        ("", params.ROOT / "runs"),
        ("~/a b$c", Path("/home/x/a b$c")),
        ("a/~", Path("a/~")),
    ],
)
def test_the_environment_may_name_the_place_of_the_runs(monkeypatch, value, place):
    monkeypatch.setenv("HOME", "/home/x")
    if value is None:
        monkeypatch.delenv("QA_RUNS")
    else:
        monkeypatch.setenv("QA_RUNS", value)
    assert runs.find_place("QA_RUNS", "runs") == place


def make_record(commit="0123456789abcdef", dirty=False, **changed) -> dict:
    """Return a record with only what provenance is written from, and some fields changed."""
    environment = {
        "commit": commit,
        "dirty": dirty,
        "device": "CPU, 1 thread",
        "processor": "Chip 1",
        "precision": "bf16",
        "platform": "Linux",
        "python": "3.11.2",
        "torch": "2.13",
        "transformers": "5.23",
    }
    spec = {
        "domains": ["one", "two"],
        "fingerprints": ["f" * 64, "e" * 64],
        "encoder": "minilm",
        "weights": "d" * 64,
    }
    return {
        "run": "v-db-s0-ab",
        "seconds": 100.4,
        "created": "2026-11-20T10:00:00+00:00",
        "environment": environment,
        "spec": spec,
    } | changed


def test_provenance_is_read_from_the_records(monkeypatch):
    records = [
        make_record(),
        make_record(),
        make_record(dirty=True, created="2026-11-22T10:00:00+00:00"),
    ]
    records = [r | {"hash": str(i)} for i, r in enumerate(records)]
    # one record is that of two runs
    pairs = [(None, r) for r in [*records, records[0]]]
    monkeypatch.setattr(runs, "require_records", lambda specs: pairs)
    text = report.show_provenance(P, [])
    clean = (
        "2 runs, 0 h 3 min 21 s of work, made 2026-11-20 at commit 0123456789ab, on CPU, 1 thread "
        "(Chip 1, Linux) in bf16 with Python 3.11.2, torch 2.13 and transformers 5.23."
    )
    assert clean in text
    dirty = "1 run, 0 h 1 min 40 s of work, made 2026-11-22 at commit 0123456789ab with uncommitted"
    assert dirty in text
    assert "one ffffffffffff, two eeeeeeeeeeee" in text
    assert "no number here is a result" in text
    assert "committed, of" not in text
    spec = make_record()["spec"]
    quick = make_record(spec=spec | {"profile": "quick"})
    real = make_record(spec=spec | {"profile": "real"})
    committed = {"0": records[0], "7": quick, "8": real}
    monkeypatch.setattr(runs, "read_committed", lambda report: committed)
    assert "1 run more committed, of seeds or parts" in report.show_provenance(P, [])
