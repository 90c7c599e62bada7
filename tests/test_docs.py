"""README.md and docs/: length, links, commands, and the parts that are written from records."""

import csv
import json
import re
import shlex
from collections import Counter
from itertools import chain
from pathlib import Path

import pandas as pd
import pytest
import yaml
from test_house import make

from qa_lib.__main__ import make_parser
from qa_lib.data import selection, sources
from qa_lib.page import overview, readme, written
from qa_lib.reports import plans
from qa_lib.settings import params
from qa_lib.settings.parameters import Dataset
from qa_lib.settings.params import ROOT
from qa_lib.store import runs

PAGES = [ROOT / "README.md", ROOT / "DATA.md", *sorted((ROOT / "docs").glob("*.md"))]
PARTS = [(file, name) for file, parts in readme.PARTS.items() for name in parts]


@pytest.fixture(autouse=True)
def committed_records(monkeypatch):
    """Read the records of the repository."""
    monkeypatch.setattr(runs, "RECORDS", ROOT / "records")
    runs.read_committed.cache_clear()
    yield
    runs.read_committed.cache_clear()


def read_code(text: str) -> list[str]:
    """Return the code of a Markdown page: fenced, indented by four blanks, or within a line."""
    spans = re.findall(r"`([^`\n]+)`", text)
    indented = re.findall(r"^ {4}(\S.*)$", text, re.M)
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
    return spans + indented + [line for block in fenced for line in block.splitlines()]


def list_commands() -> list[str]:
    """Return each command of make that README.md and docs/ name, as a reader would type it."""
    commands = set()
    for page in PAGES:
        for code in read_code(page.read_text(encoding="utf-8")):
            line = code.split("  #")[0].strip()
            is_command = re.match(r"make [a-zA-Z]", line)
            if is_command and "TARGET" not in line:
                commands.add(line)
    return sorted(commands)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 900


def test_the_readme_names_the_test_command():
    assert re.search(r"^ {4}make test\b", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file(page):
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    for link in links:
        if not link.startswith(("https://", "#")):
            assert (page.parent / link.split("#")[0]).exists(), f"{page.name}: {link}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_is_named_exists(page):
    """Files of the repository in code font. What runs write is not there before they ran."""
    written = ("params/pins.yaml", "figures/exbert/own-", "figures/exbert/quick/", "figures/index")
    known = r"(?:qa_lib|params|docs|tests|notebooks|records|figures)/[\w./-]+"
    for code in re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8")):
        if re.fullmatch(known, code) and not code.startswith(written):
            assert (ROOT / code).exists(), f"{page.name}: {code}"


def test_commands_are_found():
    commands = list_commands()
    assert {"make test", "make site", "make readme", "make verify PROFILE=real"} <= set(commands)


@pytest.mark.parametrize("command", list_commands())
def test_every_command_exists(command):
    """`make -n` knows it, and each variable that it sets."""
    words = shlex.split(command)
    done = make("-n", *words[1:], "VENV=")
    assert done.returncode == 0, done.stderr


def list_verbs() -> list[str]:
    """Return each `python -m qa_lib VERB …` that README.md and docs/ name, without its program."""
    commands = set()
    for page in PAGES:
        for code in read_code(page.read_text(encoding="utf-8")):
            program, _, words = code.split("  #")[0].strip().partition(" qa_lib ")
            # A verb alone is its name in a sentence.
            if program == "python -m" and " " in words and "VERB" not in words:
                commands.add(words.replace("REPORT", "road"))
    return sorted(commands)


@pytest.mark.parametrize("command", list_verbs())
def test_every_verb_takes_what_is_written(command):
    assert make_parser().parse_args(shlex.split(command)).verb in command


def test_one_file_is_parted_by_context_as_the_page_says(tmp_path, monkeypatch):
    """Rows come through whole: line breaks, commas and offsets in cells stay what they are."""
    page = (ROOT / "docs" / "own-data.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    monkeypatch.chdir(tmp_path)
    rows = []
    for number in range(30):
        context = f"Ship {number // 2} came,\r\nand it left in May."
        rows.append((context, f"When did it leave? {number}", "May", str(context.index("May"))))
    rows[0] = ("None came.", "How many came?", "None", "0")  # a text that pandas takes for no value
    with open("harbour.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([sources.COLUMNS, *rows])
    exec(block, {})
    parts = {}
    for name in ("harbour/train.csv", "harbour/test.csv"):
        counts = Counter()
        parts[name] = sources.read_rows(Path(name), "harbour", "stop", counts)
        assert not counts
    contexts = [{row["context"] for row in part} for part in parts.values()]
    assert not contexts[0] & contexts[1]
    assert [len(of_part) for of_part in contexts] == [8, 8]
    kept = [
        (row["context"], row["question"], *row["answers"]["text"])
        for row in chain.from_iterable(parts.values())
    ]
    assert sorted(kept) == sorted(row[:3] for row in rows)


def test_a_dataset_of_one_s_own_is_read_as_its_page_says(tmp_path, monkeypatch):
    """The definition and the parameters of docs/own-data.md."""
    page = (ROOT / "docs" / "own-data.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```yaml\n(.*?)^```", page, re.M | re.S)
    defined = yaml.safe_load(block)["folder"]["tickets"]
    known = params.read_datasets("folder") | {"tickets": Dataset(**defined)}
    monkeypatch.setattr(params, "read_datasets", lambda source, file=None: known)
    (words,) = re.findall(r'^    make train-smart .* PARAMS="(.*)"$', page, re.M)
    rows = []
    for number in range(1000):
        label = defined["classes"][number % 2] if number % 3 else number % 2
        message = f"Message {number} of a customer."
        rows.append(json.dumps({"id": number, "message": message, "urgency": label}) + "\n")
    file = tmp_path / defined["train"][0]
    file.parent.mkdir()
    file.write_text("".join(rows), encoding="utf-8")
    given = ["study", "smart", "--profile", "real", "--size", "small", "--data", str(tmp_path)]
    p = plans.load_from_args(make_parser().parse_args([*given, "--params", words]))
    of_tickets = [spec for spec in plans.plan(p) if spec.domains == ["tickets"]]
    assert of_tickets
    for spec in of_tickets:
        alone = spec.model_copy(update={"tests": ["tickets"]})  # the other datasets are not here
        train_rows, validation_rows, _ = selection.draw_mixture(alone)
        assert (len(train_rows), len(validation_rows)) == (500, 100)
        assert {row["label"] for row in train_rows} == {0, 1}
    assert len(selection.load_splits("tickets", "folder", str(tmp_path)).test) == 240


def test_road_takes_questions_of_one_s_own_as_its_page_says(tmp_path, monkeypatch):
    """Two datasets of questions without titles, and another among those of pre-training."""
    page = (ROOT / "docs" / "own-data.md").read_text(encoding="utf-8")
    (words,) = re.findall(r"^    make train-road .* PARAMS='(.*)'$", page, re.M)
    known = dict(params.read_datasets("folder"))
    of_questions = {"task": "span", "unit": "context", "head": "mrc", "train_rows": 600}
    for name in ("manuals", "faq"):
        rows = []
        for number in range(1000):
            row = {"context": f"Part {number} holds {number} bolts.", "question": "How many bolts?"}
            start = row["context"].index("holds ") + len("holds ")
            row["answers"] = {"text": [str(number)], "answer_start": [start]}
            rows.append(json.dumps(row) + "\n")
        (tmp_path / f"{name}.jsonl").write_text("".join(rows), encoding="utf-8")
        known[name] = Dataset(train=[f"{name}.jsonl"], validation_share=0.4, **of_questions)
    known["tickets"] = known["boolq"]
    monkeypatch.setattr(params, "read_datasets", lambda source, file=None: known)
    given = ["study", "road", "--profile", "real", "--size", "small", "--data", str(tmp_path)]
    p = plans.load_from_args(make_parser().parse_args([*given, "--params", words]))
    tuned = [spec for spec in plans.plan(p) if spec.variant == "baseline"]
    assert [spec.tests for spec in tuned] == [["manuals", "faq"]] * len(p.seeds)
    train_rows, validation_rows, _ = selection.draw_mixture(tuned[0])
    assert (len(train_rows), len(validation_rows)) == (500, 100)
    pretrained = [spec for spec in plans.plan(p) if spec.variant == "mtl-pretraining"]
    assert [spec.domains for spec in pretrained] == [["tickets", "boolq"]] * len(p.seeds)


# Pattern of commands of which `make -n` alone is run → why.
NOT_RUN = {
    r"make (reproduce|figures|own)\b(?!.*PROFILE=real$)": "it trains for minutes; others test that",
    r".*DATA=path": "it needs real data",
    r"make (data|pin)\b": "it needs a hub; tests/test_hub.py has a stand-in",
    r"make (test|bench)": "it runs tests, or measures for minutes",
    r"make lab": "it opens a server; tests/test_lab.py opens that in a browser",
    r"make land": "it writes into the checkout's records",
    r"make readme": "it writes into the checkout; each part has a test here",
    r"make (site|verify)$": "tests/test_overview.py runs it, or the profile real does",
}


def is_run(command: str) -> bool:
    """Return whether a test runs a command as it stands."""
    return not any(re.match(pattern, command) for pattern in NOT_RUN)


def test_each_pattern_is_of_some_command():
    for pattern in NOT_RUN:
        assert any(re.match(pattern, command) for command in list_commands()), pattern
    assert len([command for command in list_commands() if is_run(command)]) >= 4


@pytest.mark.slow
@pytest.mark.parametrize("command", [line for line in list_commands() if is_run(line)])
def test_a_command_runs(command, tmp_path):
    """From the committed records, with pages in a folder of its own."""
    words = shlex.split(command)
    places = {"QA_FIGURES": str(tmp_path), "QA_RECORDS": str(ROOT / "records")}
    done = make(*words[1:], "VENV=", **places)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("file", "name"), PARTS, ids=[f"{file.name}, {name}" for file, name in PARTS]
)
def test_what_is_written_from_records_is_current(file, name):
    _, inside, _ = readme.split_part(file.read_text(encoding="utf-8"), name)
    assert inside == readme.PARTS[file][name](), "make readme writes it"


def read_coordinates(svg: bytes) -> list[float]:
    """Return the numbers of an SVG in their order, without names, which hash all digits of them."""
    text = re.sub(r'(?:id="|href="#|url\(#)[^")]*', "", svg.decode())
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", text)]


def test_the_figure_is_current():
    drawn, committed = (
        read_coordinates(svg) for svg in (readme.draw_figure(), readme.FIGURE.read_bytes())
    )
    assert drawn == pytest.approx(committed, abs=0.01), "make readme draws it"


def select_answer(slug: str):
    """Return the rows of what answers a report's question."""
    rows = readme.measure_answers()
    return rows[rows["report"] == slug]


def test_the_figure_shows_what_is_printed_and_both_settings():
    of_exbert = select_answer("exbert").set_index(["setting", "control"]).sort_index()
    beside = {control for _, control in of_exbert.index}
    assert beside == {"", "plain-tuned"}
    assert of_exbert.loc[("equal", ""), "high"] < 0 < of_exbert.loc[("report", ""), "low"]
    assert list(of_exbert.loc[("printed", ""), ["low", "high"]]) == [9, 13]
    # printed as so much below the baseline: drawn on the left, and ours by the same scoring rule
    of_moe = select_answer("moe").set_index(["setting", "control"]).sort_index()
    assert of_moe.loc[("printed", ""), "low"] == -1.294
    assert of_moe.loc[("report", ""), "value"].round(1) == -7.0
    assert of_moe.loc[("equal", ""), "n"] == 0


def test_the_readme_counts_the_effects_that_are_larger_than_printed():
    counts = []
    for file in sorted((ROOT / "figures").glob("*/real/claims.csv")):
        larger = 0
        with open(file, newline="", encoding="utf-8") as lines:
            for row in csv.DictReader(lines):
                is_verdict = (row["arm"], row["comparison"]) == ("printed", "claim")
                is_larger = row["stance"] == "result" and row["reason"] == "larger"
                larger += is_verdict and is_larger
        if larger:
            counts.append(f"{larger} (`{file.parent.parent.name}`)")
    assert counts
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f" Not reproduced, as larger than printed: {', '.join(counts)}." in text


def test_an_answer_needs_an_interval_on_one_side():
    rows = select_answer("exbert")
    assert overview.answer_question(rows)[0] == "no (equal tuning)"
    ours = rows[(rows["control"] == "") & (rows["setting"] == "equal")]
    turned = ours.assign(value=-ours["value"], low=-ours["high"], high=-ours["low"])
    control = rows[(rows["control"] != "") & (rows["setting"] == "equal")]
    not_run = "yes, but its control was not run (equal tuning)"
    assert overview.answer_question(turned)[0] == not_run
    assert overview.answer_question(turned.assign(has_control=False))[0] == "yes (equal tuning)"
    wide = rows.assign(low=-99.0, high=99.0)
    assert overview.answer_question(wide)[0] == "undecided (equal tuning)"
    one_seed = rows.assign(low=float("nan"), high=float("nan"), n=1)
    assert overview.answer_question(one_seed)[0] == "undecided (one seed)"
    assert overview.answer_question(turned.assign(n=2))[0] == "undecided (two seeds)"
    assert overview.answer_question(rows.assign(n=2))[0] == "no (equal tuning)"
    assert overview.answer_question(pd.concat([turned, control]))[0] == "yes (equal tuning)"
    may_gain = "yes, but a control may gain as much (equal tuning)"
    unknown = float("nan")
    for low, high, answer in (
        (-1.0, 1.0, may_gain),
        (unknown, unknown, may_gain),
        (-2.0, -1.0, "yes, but a control gains more (equal tuning)"),
    ):
        beside = pd.concat([turned, control.assign(low=low, high=high)])
        assert overview.answer_question(beside)[0] == answer
    at_settings = rows[rows["setting"] != "equal"]
    assert overview.answer_question(at_settings)[0] == "yes (report's settings)"
    assert overview.answer_question(rows[:0]) == ("not run yet", None)


def test_findings_of_other_runs_are_not_in_the_readme(monkeypatch):
    assert "not written yet" not in overview.describe_answer("exbert", "real")
    monkeypatch.setattr(written, "hash_runs", lambda P: "other")
    assert "not written yet" in overview.describe_answer("exbert", "real")


def test_an_answer_that_does_not_hold_is_not_in_the_readme(monkeypatch):
    """The records may change below the names of the same runs."""
    monkeypatch.setattr(written, "is_borne_out", lambda found, paragraph, names: False)
    assert "do not hold any more" in overview.describe_answer("exbert", "real")


def test_every_report_is_cited_with_its_question():
    citation, _ = params.read_yaml(ROOT / "CITATION.cff")
    references = citation["references"]
    assert {x["abbreviation"] for x in references} == set(params.list_claimed_reports())
    assert all(x["notes"].endswith("?") for x in references)


@pytest.mark.parametrize("slug", params.list_reports())
def test_the_folders_that_a_report_needs_are_those_that_it_reads(slug):
    text = (ROOT / "DATA.md").read_text(encoding="utf-8")
    (item,) = re.findall(rf"^- `{slug}`: ((?:`nlu/|`qa/)[^-]*?)\n(?=-|\n)", text, re.M)
    P = plans.load_params(slug, "real", size="small")
    needed = set()
    for names in P.named_datasets().values():
        for name in names:
            dataset = selection.find_dataset(name, "folder", str(ROOT))
            for files in (dataset.train, dataset.test):
                needed.update(str(Path(file).parent) for file in files)
    assert set(re.findall("`(.*?)`", item)) == needed
