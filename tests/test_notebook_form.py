"""Notebooks that read like an annotated paper: their form, Run All, and the page they make."""

import ast
import re

import bs4
import nbformat
import numpy as np
import pytest

from qa_lib.evidence import verify
from qa_lib.page import pieces, render
from qa_lib.reports import plans
from qa_lib.settings import params
from qa_lib.settings.params import ROOT, UserError
from qa_lib.store import runs
from qa_lib.training import study

FILES = {
    "moe": "01_moe.ipynb",
    "exbert": "02_exbert.ipynb",
    "road": "03_road.ipynb",
    "smart": "04_smart.ipynb",
}
# The sections of every notebook; those of its mechanism stand between the two lists.
BEFORE = [
    "The idea",
    "What was run",
    "With equal tuning",
    "At the report's settings",
    "Why",
]
MECHANISM = {
    "moe": ["Does the gate trust the right expert?"],
    "exbert": ["Where do tokens go?"],
    "road": ["Do the tasks pull in one direction?", "Does it matter which teacher is right?"],
    "smart": ["Could the term matter?"],
}
AFTER = ["Verdicts", "Limits", "If you want to use this", "More", "Try this"]
TINY = {
    "exbert": {
        "start_threads": 1,
        "domains": ["search", "news"],  # these have the shortest texts
        "seeds": [0],
        "train_rows": 32,
        "validation_rows": 8,
        "epochs": 1.0,
        "blocks": 2,
        "precision": "fp32",
        "start_rows": 16,
        "ratios": [0.6],
        "tuned_epochs": 1.0,
        "curve_epochs": 1.0,
        "tuned_blocks": 1,
        "sweep_blocks": [1, 2],
        "sweep_experts": [4, 8],
        "sweep_rates": [1.0, 2.0],
        "sweep_balance": [0.1],
        "full_rows": [32, 32],
        "sizes": [16, 32],
    },
    "smart": {
        "seeds": [0],
        "train_rows": 24,
        "pair_rows": 24,
        "full_rows": 48,
        "validation_rows": 8,
        "epochs": 1.0,
        "blocks": 1,
        "batch_size": 8,
        "smart_batch": 4,
        "experiments": ["single", "rrobin", "full", "codes", "weights"],
        "sweep_weights": [1.0, 100.0],
    },
    "moe": {
        "start_threads": 1,
        "seeds": [0],
        "train_rows": 12,
        "validation_rows": 9,
        "epochs": 1.0,
        "blocks": 2,
        "start_rows": 16,
        "max_length": 128,
        "stride": 32,
        "few_rows": 12,
        "few_epochs": 2.0,
        "watched": 4,
        "longer": [2],
        "reinit_epochs": 1.0,
        "reinit_blocks": 1,
        "sweep_reinit": [1],
        "gate_epochs": 1.0,
        "sweep_layers": [1],
        "sweep_inputs": ["cls"],
        "curve_seeds": [1],
        "experiments": [
            "mixture",
            "controls",
            "gates",
            "longer",
            "reinit",
            "few-shot",
            "outside",
            "clusters",
        ],
    },
    "road": {
        "start_threads": 1,
        "seeds": [0],
        "train_rows": 12,
        "validation_rows": 8,
        "pretraining": {"search": 16, "nli": 16, "sentiment": 16},
        "pretraining_batch": 8,
        "steps": 2,
        "epochs": 1.0,
        "max_length": 64,
        "stride": 16,
        "blocks": 1,
        "start_rows": 16,
        "sweep_passes": [1, 2, 8],
        "sweep_wrong_weights": [0.25],
    },
}
# The figure of the mechanism.
OWN_FIGURE = {
    "moe": "fig_trust",
    "exbert": "fig_routing",
    "road": "fig_cosines",
    "smart": "fig_terms",
}
# Tables and figures that a page of these parameters has, and what only a notebook shows.
DRAWN = {
    "moe": {
        "table1",
        "fig_steps_printed",
        "fig_trust",
        "table_controls",
        "fig_training",
        "fig_reinit",
        "table_inside",
        "table_future",
    },
    "exbert": {"table_printed", "fig_routing", "fig_balance", "table1_answers", "fig5_rates"},
    "smart": {"table1", "table2", "fig_terms", "table_degenerate"},
    "road": {
        "table1",
        "table3",
        "table5",
        "table6",
        "table7",
        "table_datasets",
        "table_targets",
        "table_controls",
        "fig_cosines",
        "fig_passes",
        "fig_wrong_weights",
    },
}
IN_NOTEBOOK = {
    "moe": "what the gate sees:",
    "exbert": "picks of the first token",
    "smart": "first numbers of the second token",
    "road": "numbers in a gradient",
}


def test_every_report_s_notebook_is_looked_at():
    for known in (FILES, MECHANISM, TINY, OWN_FIGURE, DRAWN, IN_NOTEBOOK):
        assert set(known) == set(params.list_reports())


@pytest.fixture(params=list(FILES))
def slug(request) -> str:
    """Return a report whose notebook has this form."""
    return request.param


@pytest.fixture
def notebook(slug):
    """Return the notebook of a report."""
    return nbformat.read(ROOT / "notebooks" / FILES[slug], as_version=nbformat.NO_CONVERT)


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Make runs, records and figures those of this test. The kernel inherits the names."""
    for name in ("QA_RUNS", "QA_RECORDS", "QA_FIGURES"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.chdir(ROOT)
    return tmp_path


def list_sources(nb, kind: str) -> list[str]:
    """Return the text of all cells of one kind, code or markdown."""
    return [cell.source for cell in nb.cells if cell.cell_type == kind]


def test_it_is_stripped_and_short(notebook):
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert len(notebook.cells) <= 38
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs
            assert cell.execution_count is None
            assert len(cell.source.splitlines()) <= 30
        assert set(cell.metadata) <= {"tags"}


def test_a_dozen_parameters_are_those_of_the_quick_profile(notebook, slug):
    source = render.find_parameters(notebook).source
    assigned = {}
    for node in ast.parse(source).body:
        assigned[node.targets[0].id] = ast.literal_eval(node.value)
    assert 10 <= len(assigned) <= 14
    assert set(render.read_notes(source)) == set(assigned)
    quick = plans.load_params(slug, "quick").model_dump()
    assert assigned == {name: quick[name] for name in assigned}


def test_any_parameter_can_be_given(notebook, slug):
    changes = {"weight_decay": 0.2, "epochs": 1.0}
    p = plans.load_params(slug, "quick", changes)
    values = render.choose_values(notebook, p)
    assert values["weight_decay"] == 0.2
    assert plans.load_from_names(slug, values) == p


def test_a_parameter_with_names_and_values_can_be_given():
    changes = {"pretraining": {"search": 16, "nli": 16}}
    p = plans.load_params("road", "quick", changes)
    values = render.choose_values(render.read_notebook("road"), p)
    assert plans.load_from_names("road", values).pretraining == changes["pretraining"]


def test_it_has_its_sections_and_no_typed_result(notebook, slug):
    text = "\n".join(list_sources(notebook, "markdown"))
    assert re.findall(r"^## (.+)$", text, re.M) == [*BEFORE, *MECHANISM[slug], *AFTER]
    prose = re.sub(r"\$\$?.*?\$\$?|`.*?`|CS ?\d+|\(https:\S+\)", "", text, flags=re.S)
    assert not re.findall(r"\d+\.\d+|\d+ ?%|\d+ (?:points?|percent)", prose), "a result, typed in"


def test_a_table_or_figure_has_one_cell(notebook, slug):
    drawn = []
    for cell in notebook.cells:
        drawn += [tag for tag in render.tags(cell) if tag.startswith(("table", "fig"))]
    assert len(drawn) == len(set(drawn)) > 12
    alone = render.keep_only(notebook, OWN_FIGURE[slug])
    assert len(alone.cells) == 4


def test_a_mistyped_parameter_is_one_sentence(places):
    words = "^notebook parameter seed is not a parameter; did you mean seeds"
    with pytest.raises(UserError, match=words):
        render.execute(render.read_notebook("smart"), "smart", {"seed": 0})
    assert not (places / "QA_RUNS").exists()


def test_the_first_cell_shows_committed_results_alone(notebook, slug):
    assert render.tags(notebook.cells[1]) == ["preview"]
    for cell in render.read_notebook(slug).cells:
        assert "show_committed" not in cell.source
    # the store of a test is empty
    assert (
        pieces.show_committed(slug, plans.find_report(slug).COMPARISONS) == pieces.NOTHING_COMMITTED
    )


def count_visible_words(html: str) -> int:
    """Count the words that a reader sees without unfolding anything.

    Maths and numbers are none.
    """
    soup = bs4.BeautifulSoup(html, "html.parser")
    folded = "details > :not(summary)"
    for hidden in soup.select(f"style, script, math, nav, .skip, .files, .lab, {folded}"):
        hidden.extract()
    words = soup.body.get_text(" ").split()
    return len([word for word in words if re.search(r"[^\W\d_]", word)])


def test_visible_words_are_counted():
    html = (
        "<body><p>One two 3.4 <math>x</math></p><details><summary>three</summary><p>4</p></details>"
    )
    assert count_visible_words(html) == 3


def repeat_first_cells(nb):
    """Append a notebook's first two code cells to it, and return it.

    So a test fails where a name that some cell leaves behind is taken for a parameter.
    """
    nb.cells += [nbformat.v4.new_code_cell(cell.source) for cell in nb.cells[1:3]]
    return nb


@pytest.mark.parametrize(
    "slug",
    [
        "exbert",
        # their studies are many runs; small ones stand in the tests of each report
        pytest.param("smart", marks=pytest.mark.slow),
        pytest.param("moe", marks=pytest.mark.slow),
        pytest.param("road", marks=pytest.mark.slow),
    ],
)
def test_run_all_makes_a_short_page(places, small_encoder, slug, monkeypatch):
    """The whole study runs, its page is short, and its records are whole."""
    p = plans.load_params(slug, "quick", TINY[slug] | {"encoder": small_encoder})
    nb = repeat_first_cells(render.read_notebook(slug))
    nb = render.execute(nb, slug, render.choose_values(nb, p))
    del nb.cells[-2:]
    html = render.export_page(nb, p)
    check_page(html)
    assert IN_NOTEBOOK[slug] not in html
    names = re.findall(r'<figure [^>]*id="(\w+)"', html)
    files = {f.stem for f in (places / "QA_FIGURES" / slug / "quick").iterdir()}
    assert files - {"claims"} == set(names)
    assert DRAWN[slug] <= set(names)
    assert "“equal tuning”" in html
    assert str(ROOT) not in html
    monkeypatch.setattr(runs, "RUNS", places / "QA_RUNS")
    check_records(p)


def test_smart_s_loop_finds_another_norm_in_the_library():
    """The term is about 1e-15, so that a check by an absolute tolerance finds nothing."""
    nb = render.read_notebook("smart")
    names = {}
    for cell in nb.cells:
        if cell.cell_type != "code":
            continue
        if "loop_over_sentences" in cell.source:
            break
        exec(cell.source, names)
    exec(cell.source, names)
    names["settings"] = names["settings"].model_copy(update={"norm": "2"})
    with pytest.raises(AssertionError):
        exec(cell.source, names)


def check_records(p):
    """Assert that every run is recorded with scores, and that nothing is trained twice."""
    ledger = runs.collect_ledger(plans.plan(p))
    assert np.isfinite(ledger["value"]).all()
    assert len(verify.claims_table(p)) > 0
    assert set(study.run(p, plans.plan, live=False)["trained"]) == {"found"}


def check_page(html: str):
    """Assert that a page is short, and has its answer before the idea."""
    assert len(html.encode()) < 1_200_000
    assert count_visible_words(html) <= 1500
    assert "<math" in html
    parts = [pieces.UNWRITTEN, 'id="the-idea"', 'id="verdicts"', 'id="limits"']
    places = [html.index(part) for part in parts]
    assert places == sorted(places)
    assert "Try this" not in html
