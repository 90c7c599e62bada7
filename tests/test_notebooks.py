"""The first notebook: limits, and Run All. `make test-notebooks` also runs the first two untouched.

tests/test_notebook_form.py has those of the later ones.
"""

import ast
import re

import nbformat
import pytest

from qa_lib.page import render
from qa_lib.reports import plans
from qa_lib.settings.params import ROOT, UserError

NOTEBOOKS = {f.stem.split("_")[1]: f for f in sorted((ROOT / "notebooks").glob("0[12]_*.ipynb"))}
SECTIONS = ["The idea", "Data", "Train", "Results", "Findings", "Deviations", "Provenance"]
SMALL = {
    "train_rows": 32,
    "validation_rows": 8,
    "seeds": [0],
    "epochs": 1.0,
    "blocks": 2,
    "precision": "fp32",
    "start_rows": 16,
}
SMALL["domains"] = ["search", "news"]  # these have the shortest texts
TINY = {
    "moe": SMALL
    | {
        "pools": ["out-of-domain"],
        "train_rows": 12,
        "precision": "bf16",
        "max_length": 128,
        "stride": 32,
        "few_rows": 12,
        "few_epochs": 2.0,
        "watched": 4,
        "looks": 1,
        "longer": [2],
        "reinit_epochs": 1.0,
        "reinit_blocks": 1,
        "sweep_reinit": [1],
        "gate_epochs": 1.0,
        "sweep_layers": [1],
        "sweep_inputs": ["cls"],
    },
}
# Parts of a study, an absent part, what is drawn, and the beginning of what is not drawn.
FEW = {
    "moe": (["mixture", "few-shot", "outside", "clusters"], "reinit", "table_future", "fig_reinit"),
}
each = pytest.mark.parametrize("slug", list(TINY))


def read_notebook(slug: str):
    """Return the notebook of a report."""
    return nbformat.read(NOTEBOOKS[slug], as_version=nbformat.NO_CONVERT)


def select_cells(slug: str, kind: str):
    """Return the cells of one kind, code or markdown, of a report's notebook."""
    return [c for c in read_notebook(slug).cells if c.cell_type == kind]


def read_assignments(source: str) -> dict:
    """Return the values that a cell assigns, by name."""
    return {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(source).body}


@each
def test_a_notebook_is_stripped_and_has_no_loop_and_no_function(slug):
    nb = read_notebook(slug)
    nbformat.validate(nb)
    assert (nb.nbformat, nb.nbformat_minor) == (4, 5)
    assert nb.metadata.kernelspec.name == "python3"
    assert set(nb.metadata) <= {"kernelspec", "language_info"}
    for cell in select_cells(slug, "code"):
        assert not cell.outputs
        assert cell.execution_count is None
        assert set(cell.metadata) <= {"tags"}
        for node in ast.walk(ast.parse(cell.source)):
            assert not isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.For, ast.While))
        assert not re.search(r"""["'](/|~|[A-Z]:\\)""", cell.source), "an absolute path"


@each
def test_parameters_are_those_of_the_quick_profile(slug):
    cell = read_notebook(slug).cells[1]
    assert render.tags(cell) == ["parameters"]
    assert read_assignments(cell.source) == plans.load_params(slug, "quick").model_dump()
    assert set(render.read_notes(cell.source)) == set(read_assignments(cell.source))
    assert f'P = plans.load_from_names("{slug}", globals())' in read_notebook(slug).cells[2].source


@each
def test_a_notebook_has_its_sections_and_no_typed_result(slug):
    text = "\n".join(c.source for c in select_cells(slug, "markdown"))
    assert re.findall(r"^## (.+)$", text, re.M) == SECTIONS
    for cell in select_cells(slug, "code"):
        saved = re.findall(r'save_(?:table|figure)\(\s*P,\s*"(\w+)"', cell.source)
        assert [t for t in render.tags(cell) if t.startswith(("table", "fig"))] == saved
    prose = re.sub(r"\$\$?.*?\$\$?|`.*?`|\d+:\d+|CS \d+", "", text, flags=re.S)
    typed = re.findall(r"\d+\.\d+|\d+ ?%|\d+ (?:EM|F1|points?|percent)", prose)
    assert not typed, "a result, typed in"


def repeat_first_cells(nb):
    """Append a notebook's first two code cells to it, and return it.

    So a test fails where a name that some cell leaves behind is taken for a parameter.
    """
    nb.cells += [nbformat.v4.new_code_cell(cell.source) for cell in nb.cells[1:3]]
    return nb


@pytest.fixture
def store(tmp_path, monkeypatch):
    """Make runs, records and figures those of this test. The kernel inherits the names."""
    for name in ("QA_RUNS", "QA_RECORDS", "QA_FIGURES"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.chdir(ROOT)
    return tmp_path


def draw_page(slug: str, changes: dict):
    """Execute the notebook of a report with changed parameters, and return its page."""
    p = plans.load_params(slug, "quick", changes)
    nb = render.execute(repeat_first_cells(read_notebook(slug)), slug, p.model_dump())
    del nb.cells[-2:]
    return render.page(nb, p)


@each
def test_run_all_with_tiny_parameters_and_then_of_few_parts(slug, store, small_encoder):
    changes = TINY[slug] | {"encoder": small_encoder}
    page = draw_page(slug, changes | ({"curve_seeds": [1]} if slug == "moe" else {}))
    assert "<math" in page
    assert len(page) < 1_200_000
    names = re.findall(r'<figure id="(\w+)">', page)
    files = {f.stem for f in (store / "QA_FIGURES" / slug / "quick").iterdir()}
    assert files == {*names, "claims"}
    assert len(names) >= 4
    assert "n = 1 seed: no spread." in page
    assert str(ROOT) not in page
    # A study of few parts, whose runs are recorded now, says what it lacks.
    parts, absent, drawn, gone = FEW[slug]
    page = draw_page(slug, changes | {"experiments": parts})
    assert re.search(f"Not part of the study at this profile and size: “[^”]*{absent}", page)
    assert f'<figure id="{drawn}">' in page
    assert f'<figure id="{gone}' not in page


@each
def test_a_mistyped_parameter_is_one_sentence(slug, store):
    words = "^notebook parameter seed is not a parameter; did you mean seeds"
    with pytest.raises(UserError, match=words):
        render.execute(read_notebook(slug), slug, {"seed": 0})
    assert not (store / "QA_RUNS").exists()


@pytest.mark.parametrize("slug", NOTEBOOKS)
@pytest.mark.slow
def test_run_all_untouched(slug, store, monkeypatch):
    # runs that are trained already are not trained again
    monkeypatch.delenv("QA_RUNS")
    nb = render.execute(read_notebook(slug), slug, {})
    assert all(c.execution_count for c in nb.cells if c.cell_type == "code")
