"""Pages of a part of a study: every experiment alone, and every arm alone, from planted records.

A page is drawn after its runs are trained, so an error that a part alone brings would come last.
"""

import pytest
from planted_page import PLANTS, plant_whole_record
from test_smart_report import save_missing

from qa_lib.data import selection
from qa_lib.evidence import compare, verify
from qa_lib.page import looks, pieces, render, report
from qa_lib.reports import exbert, moe, plans, road, smart
from qa_lib.settings import encoder_files
from qa_lib.settings.params import UserError
from qa_lib.store import runs

EXPERIMENTS = {
    "exbert": exbert.EXPERIMENTS,
    "moe": moe.EXPERIMENTS,
    "road": road.EXPERIMENTS,
    "smart": smart.EXPERIMENTS,
}


@pytest.fixture
def load(monkeypatch, tmp_path):
    """Return a function that plants the records of a plan, and returns its parameters.

    No data and no encoder are read. A figure is drawn for a wide page alone, and not encoded.
    """
    for name in ("RUNS", "RECORDS", "FIGURES"):
        monkeypatch.setattr(runs, name, tmp_path / name)
    monkeypatch.setattr(encoder_files, "identify_weights", lambda name: "w" * 64)
    monkeypatch.setattr(selection, "fingerprint", lambda name, *_: name.ljust(64, "f"))
    runs.read_committed.cache_clear()

    def save_drawing(P, name, draw, caption, alt, frame):
        report.require_runs(name, frame)
        with looks.drawn(draw, looks.WIDE, ""):
            pass
        return report.Html(caption)

    monkeypatch.setattr(looks, "save_drawing", save_drawing)

    def load(slug, **changes):
        P = plans.load_params(slug, "real", {"data": "data", "seeds": [0]} | changes, "small")
        save_missing(P, plant_whole_record)
        return P

    yield load
    runs.read_committed.cache_clear()
    for remembered in (verify._tables, verify._scores, verify._samples, compare._pairs):
        remembered.clear()


def run_outputs(P) -> str:
    """Return what the cells of a report's notebook show that have the results."""
    cells = [cell for cell in render.read_notebook(P.report).cells if cell.cell_type == "code"]
    names = {}
    for cell in cells:
        if "setup" in render.tags(cell) and "top" in render.tags(cell):
            lines = [line for line in cell.source.splitlines() if "import " in line]
            exec("\n".join(lines), names)
    names |= {"P": P, "page": pieces}
    shown = []
    for cell in cells:
        if "output" in render.tags(cell):
            shown.append(str(eval(cell.source, names)))
    return "".join(shown)


PARTS = [(slug, part) for slug, parts in EXPERIMENTS.items() for part in parts]
PARTS.remove(("road", "encoders"))  # by default it names none
PARTS.remove(("exbert", "longer-trials"))  # with equal tuning alone


@pytest.mark.slow
@pytest.mark.parametrize("slug, part", PARTS)
def test_every_experiment_alone_has_a_page(load, slug, part):
    rows = {"more_rows": 4000} if part == "more-rows" else {}
    P = load(slug, experiments=[part], arms=["printed"], **rows)
    assert "<code>" in run_outputs(P)


def test_a_plan_without_runs_is_one_sentence(load):
    with pytest.raises(UserError, match="^experiments: encoders has no run at these parameters"):
        load("road", experiments=["encoders"])


@pytest.mark.parametrize("slug, part", [("smart", "codes"), ("smart", "heads"), ("moe", "gates")])
def test_a_table_leaves_out_models_that_were_not_run(load, slug, part):
    P = load(slug, experiments=[part], arms=["printed"])
    assert "<code>" in run_outputs(P)


UNUSUAL = [
    ("moe", {"pools": ["relations"]}),  # it is no pool
    ("moe", {"pools": ["duorc", "out-of-domain", "race"], "few_shot": ["race", "duorc"]}),
    ("road", {"experiments": ["teacher-sizes"], "sweep_blocks": [2, 4]}),
    ("road", {"experiments": ["pretraining", "distillation"], "sampling": "annealed"}),
    ("exbert", {"experiments": ["dropout"], "tuned_dropout": "both"}),
    ("exbert", {"experiments": ["headline"], "place": "feed_forward"}),
]


@pytest.mark.slow
@pytest.mark.parametrize("slug, changes", UNUSUAL)
def test_unusual_parameters_have_a_page(load, slug, changes):
    P = load(slug, **changes)
    assert "<code>" in run_outputs(P)


@pytest.mark.parametrize("slug", PLANTS)
def test_equal_tuning_alone_has_a_page(load, slug):
    P = load(slug, arms=["tuned"])
    assert 'id="table_equal"' in run_outputs(P)
