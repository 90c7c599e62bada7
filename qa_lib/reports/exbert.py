"""Report 2, Bring in the ExBERT (Fan, Fan, Song; CS 7643): a DistilBERT with a sparse ST-MoE layer (qa_lib/models/st_moe.py).

The list of the report's runs: V-DB (the plain span model, models/heads.py), ExBERT (models/exbert.py), the controls that could
explain its gain, sweeps, and equal trials for all.
"""

from collections.abc import Callable

from qa_lib.data import selection
from qa_lib.reports import trials
from qa_lib.settings import encoder_files
from qa_lib.settings.parameters import Exbert, Layer
from qa_lib.settings.spec import Spec

# ---- the runs of the report ----

HEADLINE, DENSE = ("v-db", "exbert-tuned", "plain-tuned"), ("dense-compute", "dense-parameters")


def model_settings(p: Exbert) -> dict[str, dict]:
    """The models that are compared: fields of their runs, with the report's rates and epochs."""
    layer = Layer(**p.model_dump(include=set(Layer.model_fields)))
    front = layer.model_copy(update={"dropout_at": p.tuned_dropout})
    tuned = {"blocks": p.tuned_blocks, "learning_rate": p.tuned_rate, "epochs": p.tuned_epochs}
    return {
        "v-db": {},
        "exbert": {"layer": layer},
        "exbert-tuned": tuned | {"layer": front},
        "plain-tuned": tuned,  # (a) all but the layer
        "dense-compute": tuned
        | {"layer": front, "dense": float(layer.top_n)},  # (b) what a token meets
        "dense-parameters": tuned | {"layer": front, "dense": float(layer.experts)},
    }  # (b) as many weights


def plan(p: Exbert) -> list[Spec]:
    """Every run of the report at these parameters, each once under each of its names.

    With arm `tuned` its trials, and what follows from them once they are recorded. With `start`, all runs go on from one that
    learnt the span head on another dataset (profile quick: so that short runs can learn at all).
    """
    shared = p.model_dump(include=set(Spec.model_fields)) | {
        "folder": p.data,
        "weights": encoder_files.identify_weights(p.encoder),
        "recipe": 1,
    }

    def domains(names: list[str]) -> dict:
        return {
            "domains": names,
            "tests": names,
            "fingerprints": [selection.fingerprint(n, p.source, p.data) for n in names],
        }

    start = (
        [
            Spec(
                **shared
                | domains([p.start])
                | {"variant": "start", "learning_rate": p.start_rate, "threads": p.start_threads},
                seed=0,
                rows=[p.start_rows],
            )
        ]
        if p.start
        else []
    )
    shared |= domains(p.domains) | {"parents": start}

    def specs(
        variant: str, ratios: list[float], seeds: list[int], rows: int = p.train_rows, **fields
    ) -> list[Spec]:
        return [
            Spec(
                **shared
                | {
                    "rows": [round(rows * r), rows - round(rows * r)],
                    "variant": variant,
                    "ratio": r,
                    "seed": s,
                }
                | fields
            )
            for r in ratios
            for s in seeds
        ]

    found = [
        s
        for arm in p.arms
        for s in (plan_printed_arm(p, specs) if arm == "printed" else plan_tuned_arm(p, specs))
    ]
    return start + list({(s.variant, s.arm, s.hash): s for s in found}.values())


def headline_runs(p: Exbert, specs: Callable, models: dict[str, dict]) -> list[Spec]:
    """The models over the mixtures (Fig. 6), with the controls."""
    runs_, others = [], [r for r in p.ratios if r != p.centre]
    for name in HEADLINE if "headline" in p.experiments else []:
        ratios = [r for r in others if name != "plain-tuned" or r in p.control_ratios]
        runs_ += specs(name, [p.centre], p.seeds, **models[name]) + specs(
            name, ratios, p.side_seeds, **models[name]
        )
    for name in DENSE if "dense" in p.experiments else []:
        runs_ += specs(name, p.control_ratios, p.dense_seeds or p.side_seeds, **models[name])
    return runs_


def sweep_runs(p: Exbert, specs: Callable, **fields) -> list[Spec]:
    """A run of a sweep: the same schedule for all, losses after each epoch. `fields` of the run or of the layer."""
    layer = {k: fields.pop(k) for k in list(fields) if k in Layer.model_fields}
    fields |= {"layer": model_settings(p)["exbert"]["layer"].model_copy(update=layer)}
    return specs("exbert-curve", [p.centre], p.side_seeds, epochs=p.curve_epochs, **fields)


def plan_printed_arm(p: Exbert, specs: Callable) -> list[Spec]:
    """Arm `printed`: the report's own rates, epochs and sweeps."""
    models, five, four = (
        model_settings(p),
        {"learning_rate": p.tuned_rate},
        {"blocks": p.tuned_blocks},
    )
    runs_, seeds = headline_runs(p, specs, models), p.side_seeds
    if "ratios" in p.experiments:
        runs_ += specs("v-db", p.ratios, seeds)
    if "untuned" in p.experiments:
        runs_ += [s for m in ("v-db", "exbert") for s in specs(m, p.ratios, seeds, **models[m])]
    if "order" in p.experiments:
        mixtures = [r for r in p.control_ratios if 0 < r < 1]
        runs_ += [
            s
            for m in ("v-db", "exbert")
            for o in ["trainer", *p.orders]
            for s in specs(m, mixtures, seeds, **models[m], order=o)
        ]
    if "single" in p.experiments:
        for m in ("v-db", "exbert"):
            for ratio, rows in zip((1.0, 0.0), p.full_rows, strict=True):
                runs_ += specs(f"{m}-full", [ratio], seeds, rows, **models[m])
        runs_ += [s for rows in p.sizes for s in specs("v-db-size", [1.0], seeds, rows)]
    sweeps = {
        "blocks": [{"blocks": b} for b in p.sweep_blocks],
        "experts": [{"experts": e} for e in p.sweep_experts],
        "rates": [four | {"learning_rate": round_rate(m * p.learning_rate)} for m in p.sweep_rates],
        "dropout": [four | five | {"dropout_at": a} for a in p.sweep_dropout]
        + [
            four | five | {"dropout_at": p.tuned_dropout, "layer_dropout": d}
            for d in p.sweep_dropout_rates
        ]
        + [
            four
            | {
                "learning_rate": round_rate(p.learning_rate / 2),
                "dropout_at": "both",
                "layer_dropout": 0.3,
            }
        ],  # slow, dropped
        "balance": [
            four | five | {"dropout_at": p.tuned_dropout, "balance": b} for b in p.sweep_balance
        ],
    }
    runs_ += [
        s
        for name, points in sweeps.items()
        if name in p.experiments
        for at in points
        for s in sweep_runs(p, specs, **at)
    ]
    if "rates" in p.experiments:
        runs_ += [
            s
            for rate in (p.learning_rate, p.tuned_rate)
            for s in specs(
                "v-db-curve", [p.centre], seeds, epochs=p.curve_epochs, learning_rate=rate
            )
        ]
    return runs_


def plan_tuned_arm(p: Exbert, specs: Callable) -> list[Spec]:
    """Arm `tuned`: the same trials for every model (qa_lib/reports/trials.py), one seed, at the centre; then what the best of them say."""
    models = {
        m: f
        for m, f in model_settings(p).items()
        if m in HEADLINE or m in DENSE and "dense" in p.experiments
    }

    def trial(model: str, rate: float, epochs: float) -> Spec:
        return specs(
            f"{model}-trial",
            [p.centre],
            p.seeds[:1],
            arm="tuned",
            tests=[],
            **models[model] | {"learning_rate": rate, "epochs": epochs},
        )[0]

    every, best = trials.choose_by_trials(list(models), trial, p.trial_rates, p.trial_epochs)
    if not best:
        return every
    frozen = {
        m: models[m] | {"learning_rate": rate, "epochs": epochs, "arm": "tuned"}
        for m, (rate, epochs) in best.items()
    }
    runs_ = every + headline_runs(p, specs, frozen)
    if "rates" in p.experiments:
        runs_ += [
            s
            for m in p.sweep_rates
            for s in sweep_runs(
                p,
                specs,
                arm="tuned",
                blocks=p.tuned_blocks,
                learning_rate=round_rate(m * best["v-db"][0]),
            )
        ]
    return runs_


def round_rate(rate: float) -> float:
    """A rate as one would write it: 3 × 1e-4 is 3e-4, so that runs of the same rate are the same run."""
    return float(f"{rate:.6g}")
