r"""Report 1, Sesame Street Ensemble (Consigny; CS224N): experts, each fine-tuned on one dataset, mixed by a gate.

The experts are plain span models (models/heads.py), trained one by one and frozen. What they say of a window is computed once
(qa_lib/training/frozen.py); a mixture weighs it. The list of the report's runs closes the file.
"""

from qa_lib.data import selection
from qa_lib.reports import trials
from qa_lib.settings import encoder_files
from qa_lib.settings.parameters import Gate, Moe
from qa_lib.settings.spec import Spec

# ---- the runs of the report ----

RULES = {
    "uniform-weights": "uniform",
    "best-single": "best",
    "own-expert": "own",
    "other-experts": "others",
    "oracle": "oracle",
}


def plan(p: Moe) -> list[Spec]:
    """Every run of the report at these parameters; with arm `tuned` its trials, and what follows from them once they are
    recorded."""
    shared = p.model_dump(include=set(Spec.model_fields)) | {
        "folder": p.data,
        "weights": encoder_files.identify_weights(p.encoder),
        "recipe": 1,
        "tests": [*p.domains, *p.pools],
        "starter": True,
    }
    start = (
        [
            Spec(
                **shared
                | {
                    "variant": "start",
                    "seed": 0,
                    "domains": [p.start],
                    "rows": [p.start_rows],
                    "tests": [p.start],
                    "fingerprints": [selection.fingerprint(p.start, p.source, p.data)],
                    "learning_rate": p.start_rate,
                    "watched": 0,
                    "schedule": "linear",
                    "checkpoint": "last",
                    "looks": 1,
                    "threads": p.start_threads,
                    "epochs": 2,
                }
            )
        ]
        if p.start
        else []
    )
    shared["parents"] = start
    found = []
    if "printed" in p.arms:
        found += [s for seed in p.seeds for s in plan_printed_arm(p, shared | {"seed": seed})]
        # further seeds of what Fig. 2 compares, for its curves alone: with more test scores these two would have other seeds than
        # the models beside them
        found += [
            s
            for seed in p.curve_seeds
            for m in ("baseline", f"moe-reinit-{p.reinit_blocks}")
            for s in model_runs(p, shared | {"seed": seed, "tests": []}, m)
        ]
    found += plan_tuned_arm(p, shared | {"arm": "tuned"}) if "tuned" in p.arms else []
    return start + list({(s.variant, s.arm, s.hash): s for s in found}.values())


def domain_run(
    p: Moe, shared: dict, variant: str, domains: dict[str, int] | None = None, **fields
) -> Spec:
    """A run on so many rows of each domain; by default on all in-domain ones. Alone or together, a domain gives the same rows."""
    names = domains or dict.fromkeys(p.domains, p.train_rows)
    places = [[*p.domains, *p.few_shot].index(n) for n in names]
    return Spec(
        **shared
        | {
            "variant": variant,
            "domains": list(names),
            "rows": list(names.values()),
            "places": None if places == list(range(len(places))) else places,
            "fingerprints": [selection.fingerprint(n, p.source, p.data) for n in names],
        }
        | fields
    )


def mixture_run(
    p: Moe, shared: dict, variant: str, experts: list[Spec], gate: dict | None = None, **fields
) -> Spec:
    """A mixture of experts; its gate learns on what the baseline learns on."""
    g = Gate(
        **{"input": p.gate_input, "layers": p.gate_layers, "hidden": p.gate_hidden} | (gate or {})
    )
    return domain_run(
        p,
        shared,
        variant,
        gate=g,
        parents=experts,
        **{
            "learning_rate": p.gate_rate,
            "epochs": p.gate_epochs,
            "batch_size": p.gate_batch,
            "checkpoint": p.checkpoint if g.rule == "learned" else "last",
        }
        | fields,
    )


# One set of weights for each dataset is nine numbers: a rate and epochs at which they settle, from equal weights on (chosen).
TOLD = {"learning_rate": 0.1, "epochs": 50.0, "schedule": "linear"}
# too few rows to set any aside
FEW = {
    "looks": 1,
    "watched": 0,
    "validation_rows": 0,
    "checkpoint": "last",
}


def model_runs(p: Moe, shared: dict, model: str, **fields) -> list[Spec]:
    """One of the report's four models, last in the list, after its experts; `fields` of what is fine-tuned."""
    anew = {"reinit": p.reinit_blocks} if "reinit" in model else {}
    if "moe" not in model:
        return [domain_run(p, shared, model, **anew | fields)]
    fields = ({"epochs": p.reinit_epochs} if anew else {}) | anew | fields
    experts = [
        domain_run(p, shared, f"{model.replace('moe', 'expert')}-{d}", {d: p.train_rows}, **fields)
        for d in p.domains
    ]
    return [*experts, mixture_run(p, shared, model, experts)]


def plan_printed_arm(p: Moe, shared: dict) -> list[Spec]:
    """Arm `printed`, one seed: the report's rate and epochs; baseline, experts, mixtures, and what is compared with them.

    In the order of their weight for the report, long runs before the gates that cost nothing.
    """

    def run(*args, **fields) -> Spec:
        return domain_run(p, shared, *args, **fields)

    found, top, few_rows = (
        model_runs(p, shared, "baseline"),
        p.reinit_blocks,
        dict.fromkeys(p.few_shot, p.few_rows),
    )
    *experts, moe = model_runs(p, shared, "moe")
    if "mixture" in p.experiments:
        found += [*experts, moe]
    if "reinit" in p.experiments:
        found += [run(f"reinit-{n}", reinit=n) for n in reversed(p.sweep_reinit)]
        found += [run(f"reload-{top}", reinit=top, reinit_from="lower")]
        found += model_runs(p, shared, f"moe-reinit-{top}")
    if "longer" in p.experiments:
        found += [run(f"baseline-{e}", epochs=e) for e in p.longer]
    if "last" in p.experiments:
        found += [run("baseline-last", checkpoint="last")]
        found += [run(f"baseline-{e}-last", epochs=e, checkpoint="last") for e in p.longer]
    if "controls" in p.experiments:
        for name, rule in RULES.items():
            # a new domain has no expert of its own
            within = {"tests": p.domains} if rule in ("own", "others") else {}
            found += [mixture_run(p, shared, name, experts, {"rule": rule, "layers": 1}, **within)]
        found += [
            mixture_run(
                p,
                shared,
                "told-dataset",
                experts,
                {"input": "dataset", "layers": 1},
                domains=few_rows,
                **FEW | TOLD,
            )
        ]
    if "gates" in p.experiments:
        found += [mixture_run(p, shared, "moe-probabilities", experts, {"mixed": "probabilities"})]
        found += [
            mixture_run(p, shared, f"moe-layers-{n}", experts, {"layers": n})
            for n in p.sweep_layers
        ]
        found += [
            mixture_run(p, shared, f"moe-input-{x}", experts, {"input": x}) for x in p.sweep_inputs
        ]
    few = {"domains": few_rows, "epochs": p.few_epochs, "parents": found[:1]} | FEW
    if "few-shot" in p.experiments:  # as many steps with altered copies as without
        found += [
            run("few-shot", **few),
            run(
                "few-shot-augmented",
                **few
                | {"augment": p.augment_copies, "epochs": p.few_epochs / (1 + p.augment_copies)},
            ),
        ]
    if "outside" in p.experiments:
        more = [run(f"outside-{d}", **few | {"domains": {d: p.few_rows}}) for d in p.few_shot]
        every = dict.fromkeys(p.domains, p.train_rows) | few_rows
        found += [
            *experts,
            *more,
            mixture_run(p, shared, "moe-outside", [*experts, *more], domains=every, **FEW),
        ]
    if "clusters" in p.experiments:
        alike = [run(f"expert-cluster-{k + 1}", cluster=[k, p.clusters]) for k in range(p.clusters)]
        found += [*alike, mixture_run(p, shared, "moe-clusters", alike)]
    return found


def plan_tuned_arm(p: Moe, shared: dict) -> list[Spec]:
    """Arm `tuned`: the same trials for each of the report's four models (qa_lib/reports/trials.py), one seed; then what they chose.

    A trial of a mixture trains all its experts at one rate; its gate learns as always.
    """
    models = ["baseline", "moe", f"reinit-{p.reinit_blocks}", f"moe-reinit-{p.reinit_blocks}"]
    parts: list[Spec] = []

    def trial(model: str, rate: float, epochs: float) -> Spec:
        specs = model_runs(
            p, shared | {"seed": p.seeds[0], "tests": []}, model, learning_rate=rate, epochs=epochs
        )
        parts.extend(specs)
        return specs[-1].model_copy(update={"variant": f"{model}-trial"})

    every, best = trials.choose_by_trials(models, trial, p.trial_rates, p.trial_epochs)
    every = [
        s.model_copy(update={"variant": f"{s.variant}-trial"})
        for s in parts
        if s.variant not in models
    ] + every
    return every + [
        s
        for seed in p.seeds
        for m, (rate, epochs) in best.items()
        for s in model_runs(p, shared | {"seed": seed}, m, learning_rate=rate, epochs=epochs)
    ]
