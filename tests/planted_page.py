"""A page of SMART as it is on real data with three seeds and both arms, from planted records."""

from pathlib import Path

import numpy as np
import pytest
from nbformat.v4 import new_code_cell
from test_smart_report import plant_record, save_missing

from qa_lib.data import selection
from qa_lib.page import render
from qa_lib.reports import plans
from qa_lib.settings import encoder_files
from qa_lib.settings.params import ROOT
from qa_lib.settings.spec import Spec
from qa_lib.store import runs

# In a kernel: no data and no encoder are read to know a run by its hash.
STAND_IN = """from qa_lib.data import selection
from qa_lib.settings import encoder_files

selection.fingerprint = lambda *_: "f" * 64
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


def plant_whole_record(spec: Spec) -> tuple[dict, object]:
    """Return a run's record with all that a page reads, and its examples; scores are random."""
    record, examples = plant_record(spec)
    rng = np.random.default_rng(int(spec.hash[8:16], 16))
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
    record |= {
        "environment": ENVIRONMENT,
        "load": {"training": steps} if spec.smart else {},
        "data": {},
        "created": "2026-01-01T00:00:00+00:00",
        "seconds": 100.0,
        "training_seconds": 90.0,
        "parameters": 22_700_000,
        "active_parameters": 22_700_000,
    }
    return record, examples


def make_page(folder: Path) -> Path:
    """Render the page in a folder, in a store of its own, and return the page's path."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RUNS", "RECORDS", "FIGURES"):
            patch.setenv(f"QA_{name}", str(folder / name))
            patch.setattr(runs, name, folder / name)
        patch.setattr(encoder_files, "identify_weights", lambda name: "w" * 64)
        patch.setattr(selection, "fingerprint", lambda *_: "f" * 64)
        patch.chdir(ROOT)
        runs.read_committed.cache_clear()
        changes = {"data": "data", "seeds": [0, 1, 2], "arms": ["printed", "tuned"]}
        changes["experiments"] = plans.load_params("smart", "paper").experiments
        P = plans.load_params("smart", "real", changes, "small")
        save_missing(P, plant_whole_record)
        nb = render.read_notebook("smart")
        nb.cells.insert(1, new_code_cell(STAND_IN, metadata={"tags": ["notebook"]}))
        nb = render.execute(nb, "smart", render.choose_values(nb, P))
        page = runs.page_folder(P) / "report.html"
        page.write_text(render.page(nb, P), encoding="utf-8")
    runs.read_committed.cache_clear()
    return page
