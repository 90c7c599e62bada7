"""Pages as they are on real data with three seeds and both arms, from planted records."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import test_moe_report
import test_road_report
import test_smart_report
from nbformat.v4 import new_code_cell

from qa_lib.data import selection
from qa_lib.page import render
from qa_lib.reports import moe, plans, smart
from qa_lib.settings import encoder_files
from qa_lib.settings.params import ROOT
from qa_lib.settings.spec import Spec
from qa_lib.store import runs

# In a kernel: no data and no encoder are read to know a run by its hash.
STAND_IN = """from qa_lib.data import selection
from qa_lib.settings import encoder_files

selection.fingerprint = lambda name, *_: name.ljust(64, "f")
encoder_files.identify_weights = lambda name: "w" * 64"""
ENVIRONMENT = {
    "commit": "0123456789abcdef",
    "device": "CPU, 1 thread",
    "dirty": False,
    "platform": "Linux",
    "precision": "fp32",
    "processor": "a processor",
    "python": "3.11.7",
    "torch": "2.13.0",
    "transformers": "5.23.0",
}


def complete_smart(spec: Spec, record: dict, rng: np.random.Generator):
    """Add what SMART's page reads of a record beside its scores."""
    for scores in record["metrics"].values():
        if "accuracy" in scores:
            scores |= {f"f1_{number}": rng.uniform(0, 100) for number in range(5)}
            scores["ece"] = rng.uniform(0, 50)
    steps = []
    for step in range(1, 11):
        ratios = {"gradient_ratio": 10 ** rng.uniform(-8, -6)} if step % 3 == 1 else {}
        terms = {"perturbation": 1e-5, "adversarial_loss": 10 ** rng.uniform(-9, -8)}
        for dataset in spec.domains:
            terms[f"adversarial_loss_{dataset}"] = terms["adversarial_loss"]
        steps.append({"step": step} | terms | ratios)
    if spec.smart:
        record["load"] = {"training": steps}


def complete_road(spec: Spec, record: dict, rng: np.random.Generator):
    """Add what ROaD's page reads of a record beside its scores."""
    for name, scores in record["metrics"].items():
        scores["ece"] = rng.uniform(0, 50)
        if name == "squad2":
            for metric in ("em_answerable", "em_impossible", "em_best", "em_no_answer"):
                scores[metric] = rng.uniform(0, 100)
    if spec.distillation:
        measured = {"soft_loss": 1.2, "soft_target_entropy": rng.uniform(2, 4), "n": 10}
        measured |= {"teachers_disagree": rng.uniform(0, 0.4), "largest_weight": 1.1}
        record["metrics"]["training"] = measured
    if not spec.probes:
        return
    record["gradients"] = []
    for step in range(0, 601, 120):
        pairs = combinations(spec.domains, 2)
        cosines = {f"{first}/{second}": rng.uniform(-0.2, 0.4) for first, second in pairs}
        norms = dict.fromkeys(spec.domains, 1.0)
        measured = {"step": step, "norms": norms, "cosines": cosines, "left": rng.uniform(0.3, 0.6)}
        record["gradients"].append(measured)


def plant_scores_of_spans(spec: Spec) -> tuple[dict, pd.DataFrame]:
    """Return an ExBERT run's record and examples with random scores, and answers of two tokens."""
    record, examples = test_road_report.plant_record(spec)
    for scores in record["metrics"].values():
        scores |= {"tokens": 2.0, "contains": 10.0}
    return record, examples.assign(start=3, end=9, tokens=2)


def complete_exbert(spec: Spec, record: dict, rng: np.random.Generator):
    """Add what ExBERT's page reads of a record beside its scores: what routers did."""
    if spec.layer is None:
        return
    experts = spec.layer.experts
    steps = []
    for step in (1, 50, 100):
        load = rng.dirichlet(np.ones(experts))
        logged = {"step": step, "load": list(load), "dropped": rng.uniform(0.3, 0.5)}
        steps.append(logged | {"balance_loss": 1.1, "z_loss": 0.5})
    of_tests = {name: rng.integers(1, 100, experts).tolist() for name in spec.tests}
    record["load"] = of_tests | {"training": steps}


def complete_moe(spec: Spec, record: dict, rng: np.random.Generator):
    """Add nothing: MoE's page reads of a record what its claims are about."""


# Report → the parts of its page, where profile real has not all that real data allow.
PARTS = {"moe": list(moe.EXPERIMENTS), "smart": list(smart.EXPERIMENTS)}
# Report → the function of its test that plants scores, and the one that completes a record.
PLANTS = {
    "exbert": (plant_scores_of_spans, complete_exbert),
    "moe": (test_moe_report.plant_record, complete_moe),
    "road": (test_road_report.plant_record, complete_road),
    "smart": (test_smart_report.plant_record, complete_smart),
}


def plant_whole_record(spec: Spec) -> tuple[dict, object]:
    """Return a run's record with all that a page reads, and its examples; scores are random."""
    plant_scores, complete = PLANTS[spec.report]
    record, examples = plant_scores(spec)
    record |= {
        "environment": ENVIRONMENT,
        "load": {},
        "data": {},
        "created": "2026-01-01T00:00:00+00:00",
        "seconds": 100.0,
        "training_seconds": 90.0,
        "tokens": 90_000,
        "tokens_per_second": 1000.0,
        "peak_memory_mb": 1000.0,
        "parameters": 22_700_000,
        "active_parameters": 22_700_000,
    }
    complete(spec, record, np.random.default_rng(int(spec.hash[8:16], 16)))
    return record, examples


def make_page(slug: str, folder: Path) -> Path:
    """Render a report's page in a folder, in a store of its own, and return the page's path."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RUNS", "RECORDS", "FIGURES"):
            patch.setenv(f"QA_{name}", str(folder / name))
            patch.setattr(runs, name, folder / name)
        patch.setattr(encoder_files, "identify_weights", lambda name: "w" * 64)
        patch.setattr(selection, "fingerprint", lambda name, *_: name.ljust(64, "f"))
        patch.chdir(ROOT)
        runs.read_committed.cache_clear()
        changes = {"data": "data", "seeds": [0, 1, 2], "arms": ["printed", "tuned"]}
        # of all parts those that real data allow
        changes["experiments"] = PARTS.get(slug) or plans.load_params(slug, "real").experiments
        P = plans.load_params(slug, "real", changes, "small")
        test_smart_report.save_missing(P, plant_whole_record)
        nb = render.read_notebook(slug)
        nb.cells.insert(1, new_code_cell(STAND_IN, metadata={"tags": ["notebook"]}))
        nb = render.execute(nb, slug, render.choose_values(nb, P))
        page = runs.page_folder(P) / "report.html"
        page.write_text(render.export_page(nb, P), encoding="utf-8")
    runs.read_committed.cache_clear()
    return page
