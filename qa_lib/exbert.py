"""Report 2, Bring in the ExBERT (Fan, Fan, Song; CS 7643): the list of its runs.

The plain span model ("V-DB", encoders.SpanModel) on mixtures of two domains.
"""
from qa_lib import data, encoders
from qa_lib.params import Exbert, Spec


def plan(p: Exbert) -> list[Spec]:
    """Every run of the report at these parameters."""
    prints = [data.fingerprint(d, p.source, p.data) for d in p.domains]
    shared = p.model_dump(include=set(Spec.model_fields) - {"model"}) | {
        "folder": p.data, "fingerprints": prints, "weights": encoders.weights(p.encoder), "tests": p.domains}
    runs = []
    for seed in p.seeds:
        for ratio in p.ratios:
            first = round(p.train_rows * ratio)
            runs.append(Spec(**shared, variant="v-db", ratio=ratio, seed=seed, rows=[first, p.train_rows - first]))
    return runs
