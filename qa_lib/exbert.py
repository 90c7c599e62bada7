"""Report 2, Bring in the ExBERT (Fan, Fan, Song; CS 7643): the list of its runs.

The plain span model ("V-DB", encoders.SpanModel) on mixtures of two domains.
"""
from qa_lib import data, encoders
from qa_lib.params import Exbert, Spec


def plan(p: Exbert) -> list[Spec]:
    """Every run of the report at these parameters.

    With `start`, all runs go on from one that learnt the span head on another dataset (profile quick: so that
    short runs can learn at all).
    """
    shared = p.model_dump(include=set(Spec.model_fields)) | {
        "folder": p.data, "weights": encoders.weights(p.encoder), "variant": "v-db", "model": "span"}

    def domains(names: list[str]) -> dict:
        return {"domains": names, "tests": names, "fingerprints": [data.fingerprint(n, p.source, p.data) for n in names]}

    runs = []
    if p.start:
        runs.append(Spec(**shared | domains([p.start]) | {"variant": "start"}, seed=0, rows=[p.start_rows]))
    shared |= domains(p.domains) | {"parents": runs[:1]}
    for seed in p.seeds:
        for ratio in p.ratios:
            first = round(p.train_rows * ratio)
            runs.append(Spec(**shared, ratio=ratio, seed=seed, rows=[first, p.train_rows - first]))
    return runs
