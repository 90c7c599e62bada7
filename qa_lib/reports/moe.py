"""Report 1, Sesame Street Ensemble (Consigny; CS224N): experts mixed by a gate.

Each expert is fine-tuned on one dataset.

Its parameters, its models, one function for each of its experiments, and the list of its runs. The
experts are plain span models (models/heads.py), trained one by one and frozen. What they say of a
window is computed once (training/frozen.py); a mixture (models/gated_mixture.py) weighs it.
"""

from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field, model_validator

from qa_lib.reports import common, trials
from qa_lib.reports.comparisons import Comparison, Step
from qa_lib.settings.parameters import (
    Batch,
    Blocks,
    Epochs,
    Gate,
    Layers,
    Rate,
    Rows,
    Seed,
    Seeds,
    Study,
    WholeEpochs,
)
from qa_lib.settings.spec import Spec
from qa_lib.store import runs

TITLE = "Sesame Street Ensemble"

# Variant: its name for readers, and its one colour everywhere, in the order of every figure.
MODELS = {
    "baseline": ("Baseline", "#0072b2"),
    "baseline-4": ("4 epochs", "#4a4a4a"),
    "baseline-5": ("5 epochs", "#8a8a8a"),
    "few-shot": ("Baseline, few-shot", "#6a5acd"),
    "few-shot-augmented": ("Baseline, few-shot, altered copies", "#8878c8"),
    "moe-outside": ("MoE, out-of-domain experts too", "#9a4a1a"),
    "moe-clusters": ("MoE, experts by clusters", "#a8642c"),
    "outside": ("Out-of-domain expert", "#94762a"),
    "expert": ("Expert", "#b87a00"),
    "moe": ("MoE", "#d55e00"),
    "moe-probabilities": ("MoE, probabilities", "#b8722c"),
    "reinit": ("Reinit", "#009e73"),
    "reload": ("Reload", "#5b6f86"),
    "moe-reinit": ("MoE + Reinit", "#b5578c"),
    "uniform-weights": ("Equal weights", "#7a6a00"),
    "best-single": ("Best expert on validation", "#8c5a00"),
    "told-dataset": ("Told the dataset", "#a03c00"),
    "own-expert": ("Own expert", "#5a7a00"),
    "other-experts": ("Other experts", "#80802c"),
    "oracle": ("Oracle", "#222222"),
}
# Control: the rule by which it weighs the experts.
RULES = {
    "uniform-weights": "uniform",
    "best-single": "best",
    "own-expert": "own",
    "other-experts": "others",
    "oracle": "oracle",
}
# Model → what it is, where its name does not say so; stands below the page's first figure.
NOTES = {
    "reinit": "top blocks at random weights",
    "uniform-weights": "every expert counts alike",
    "told-dataset": "weights for each dataset, fitted on its few rows",
    "reload": "top blocks copied from lower ones",
}
# What a page leads with. The claims call the final model's experts by their four blocks.
COMPARISONS = (
    Comparison("moe-dev", "MoE", "Baseline", "new domains, dev", ("told-dataset",)),
    Comparison("moe-test", "MoE", "Baseline", "new domains, test", ("told-dataset",)),
    Comparison("reinit-dev", "Reinit", "Baseline", "new domains, dev"),
    Comparison("moe-reinit-test", "MoE + Reinit", "Baseline", "new domains, test", is_turned=True),
)
# One set of weights for each dataset is nine numbers: a rate and epochs at which they settle, from
# equal weights on (chosen).
TOLD = {"learning_rate": 0.1, "epochs": 50.0, "schedule": "linear"}
# Too few rows to set any aside for validation.
FEW = {"looks": 1, "watched": 0, "validation_rows": 0, "checkpoint": "last"}


class Parameters(Study):
    """An expert for each dataset, a gate that mixes them, re-initialised blocks."""

    report: Literal["moe"]
    domains: list[str] = Field(min_length=2)  # in-domain datasets, one expert each
    few_shot: list[str] = Field(min_length=1)  # out-of-domain datasets with few training examples
    pools: list[str] = Field(min_length=1)  # test sets of several datasets together
    experiments: list[
        Literal[
            "mixture",
            "controls",
            "gates",
            "longer",
            "last",
            "reinit",
            "few-shot",
            "outside",
            "clusters",
        ]
    ] = Field(min_length=1)  # parts of the study that are run
    arms: list[Literal["printed", "tuned"]] = Field(min_length=1)
    curve_seeds: list[Seed] = []  # more seeds of what reinit compares, for training curves alone
    few_rows: Rows  # training examples of each few-shot dataset
    few_epochs: Epochs
    augment_copies: int = Field(gt=0, le=100)  # altered copies of each of them
    clusters: int = Field(ge=2, le=100)  # experts by clusters of questions
    schedule: Literal["linear", "constant"]
    checkpoint: Literal["last", "best"]  # best: by F1 on in-domain validation
    looks: int = Field(gt=0, le=1000)  # at validation, an epoch
    # training examples whose EM and F1 are measured at each look
    watched: int = Field(ge=0, le=10**9)
    longer: list[WholeEpochs] = Field(min_length=1)  # epochs of longer baselines
    longer_seeds: Seeds | None = None  # of these; by default `seeds`
    reinit_blocks: Blocks  # of the experts that are re-initialised
    reinit_epochs: Epochs
    sweep_reinit: list[Blocks]  # blocks of re-initialised baselines
    gate_input: Literal["mean", "cls", "experts"]
    gate_layers: Layers
    gate_hidden: int = Field(gt=0, le=10**5)
    gate_rate: Rate
    gate_epochs: Epochs
    gate_batch: Batch
    sweep_layers: list[Layers]
    sweep_inputs: list[Literal["mean", "cls", "experts"]]
    trial_rates: list[Rate] = Field(min_length=1)  # arm tuned: the same trials for every model
    trial_epochs: list[Epochs] = Field(min_length=1)
    tuned_models: list[Literal["baseline", "moe", "reinit", "moe-reinit"]] = []  # none: all four
    tuned_seeds: Seeds | None = None  # of what the trials chose; by default `seeds`

    @model_validator(mode="after")
    def _check_looks(self):
        """A curve and a best checkpoint need a look at validation before training ends."""
        shortest = {
            "epochs": self.epochs,
            "reinit_epochs": self.reinit_epochs,
            "gate_epochs": self.gate_epochs,
            "trial_epochs": min(self.trial_epochs),
        }
        for name, epochs in shortest.items():
            if self.looks > 1 and epochs < 1 / self.looks:
                raise ValueError(
                    f"{name}: {epochs} ends before the first of {self.looks} looks an epoch; write "
                    f"at least {1 / self.looks:.4g}, or looks=1"
                )
        return self

    @model_validator(mode="after")
    def _check_out_of_domain(self):
        reasons = {
            "few_shot": "which have all their rows; name another dataset",
            "pools": "so that its rows would be counted twice; leave it away",
        }
        for parameter, reason in reasons.items():
            for name in getattr(self, parameter):
                if name in self.domains:
                    raise ValueError(f"{parameter}: {name} is among domains already, {reason}")
        return self

    @model_validator(mode="after")
    def _check_curve_seeds(self):
        if both := set(self.curve_seeds) & set(self.seeds):
            raise ValueError(
                f"curve_seeds: {min(both)} is among seeds {self.seeds} already; leave it away"
            )
        if self.curve_seeds and "reinit" not in self.experiments:
            raise ValueError(
                "curve_seeds: they are of the part reinit, which experiments lacks; name it there"
            )
        return self

    def named_datasets(self) -> dict[str, list[str]]:
        others = {"few_shot": self.few_shot, "pools": self.pools}
        known = super().named_datasets()
        return {"domains": known["domains"], **others, "start": known["start"]}

    def describe_seeds(self) -> str:
        text = super().describe_seeds()
        if "tuned" in self.arms and self.tuned_seeds:
            text += f", {len(self.tuned_seeds)} with equal tuning"
        if self.curve_seeds:
            text += f", {len(self.curve_seeds)} more of two training curves"
        return text


@dataclass(frozen=True)
class Arm:
    """What the experiments of one arm are made of, for one seed."""

    params: Parameters
    shared: dict  # fields of every run
    chosen: dict[str, dict] = field(default_factory=dict)  # model → the fields its trials chose

    def make_run(self, variant: str, rows: dict[str, int] | None = None, **fields) -> Spec:
        """Return a run on so many rows of each domain; by default on all in-domain ones.

        Alone or together, a domain gives the same rows.
        """
        params = self.params
        rows = rows or dict.fromkeys(params.domains, params.train_rows)
        every = [*params.domains, *params.few_shot]
        places = [every.index(name) for name in rows]
        own = {
            "variant": variant,
            "domains": list(rows),
            "rows": list(rows.values()),
            "places": None if places == list(range(len(places))) else places,
            "fingerprints": common.fingerprint_domains(params, rows),
        }
        return Spec(**self.shared | own | fields)

    def make_mixture_run(
        self,
        variant: str,
        experts: list[Spec],
        gate: dict | None = None,
        rows: dict[str, int] | None = None,
        **fields,
    ) -> Spec:
        """Return a mixture of experts.

        Its gate learns on what the baseline learns on, or on `rows`.
        """
        params = self.params
        of_report = {
            "input": params.gate_input,
            "layers": params.gate_layers,
            "hidden": params.gate_hidden,
        }
        gate = Gate(**of_report | (gate or {}))
        own = {
            "learning_rate": params.gate_rate,
            "epochs": params.gate_epochs,
            "batch_size": params.gate_batch,
            "checkpoint": params.checkpoint if gate.rule == "learned" else "last",
        }
        return self.make_run(variant, rows, gate=gate, start=None, experts=experts, **own | fields)

    def list_expert_runs(self, model: str, **fields) -> list[Spec]:
        """Return the experts of a mixture, one for each in-domain dataset."""
        fields = self.chosen.get(model, {}) | fields
        name = model.replace("moe", "expert")
        experts = []
        for domain in self.params.domains:
            rows = {domain: self.params.train_rows}
            experts.append(self.make_run(f"{name}-{domain}", rows, **fields))
        return experts

    def list_model_runs(self, model: str, **fields) -> list[Spec]:
        """Return one of the report's four models, last in the list, after its experts.

        fields: those of what is fine-tuned.
        """
        reinit = {"reinit": self.params.reinit_blocks} if "reinit" in model else {}
        fields = self.chosen.get(model, {}) | fields
        if "moe" not in model:
            return [self.make_run(model, **reinit | fields)]
        if reinit:
            fields = {"epochs": self.params.reinit_epochs} | reinit | fields
        experts = self.list_expert_runs(model, **fields)
        return [*experts, self.make_mixture_run(model, experts)]

    def few_rows(self) -> dict[str, int]:
        """Return out-of-domain dataset → its few training rows."""
        return dict.fromkeys(self.params.few_shot, self.params.few_rows)

    def few_shot_fields(self) -> dict:
        """Return the fields of a run that goes on from the baseline on few rows."""
        (baseline,) = self.list_model_runs("baseline")
        return {"epochs": self.params.few_epochs, "start": baseline} | FEW


# ---- the experiments, of one seed ----


def plan_mixture(arm: Arm) -> list[Spec]:
    """The experts and their mixture (Tables 1 and 2)."""
    return arm.list_model_runs("moe")


def plan_reinit(arm: Arm) -> list[Spec]:
    """Top blocks that start anew: in the baseline, from lower blocks, and in the experts."""
    top = arm.params.reinit_blocks
    specs = []
    for number in reversed(arm.params.sweep_reinit):
        specs.append(arm.make_run(f"reinit-{number}", reinit=number))
    specs.append(arm.make_run(f"reload-{top}", reinit=top, reinit_from="lower"))
    return specs + arm.list_model_runs(f"moe-reinit-{top}")


def plan_longer(arm: Arm) -> list[Spec]:
    """The baseline trained for more epochs."""
    seeds = arm.params.longer_seeds
    if seeds and arm.shared["seed"] not in seeds:
        return []
    return [arm.make_run(f"baseline-{n}", epochs=n) for n in arm.params.longer]


def plan_last(arm: Arm) -> list[Spec]:
    """The baseline with its last checkpoint in place of the best."""
    specs = [arm.make_run("baseline-last", checkpoint="last")]
    for n in arm.params.longer:
        specs.append(arm.make_run(f"baseline-{n}-last", epochs=n, checkpoint="last"))
    return specs


def plan_controls(arm: Arm) -> list[Spec]:
    """What a learned gate is compared with: fixed weights, one expert, an oracle."""
    experts = arm.list_expert_runs("moe")
    specs = []
    for name, rule in RULES.items():
        # A new domain has no expert of its own.
        fields = {"tests": arm.params.domains} if rule in ("own", "others") else {}
        specs.append(arm.make_mixture_run(name, experts, {"rule": rule, "layers": 1}, **fields))
    gate = {"input": "dataset", "layers": 1}
    told = arm.make_mixture_run("told-dataset", experts, gate, arm.few_rows(), **FEW | TOLD)
    return [*specs, told]


def plan_gates(arm: Arm) -> list[Spec]:
    """Other gates: probabilities in place of scores, other depths, other inputs."""
    experts = arm.list_expert_runs("moe")
    specs = [arm.make_mixture_run("moe-probabilities", experts, {"mixed": "probabilities"})]
    for number in arm.params.sweep_layers:
        specs.append(arm.make_mixture_run(f"moe-layers-{number}", experts, {"layers": number}))
    for name in arm.params.sweep_inputs:
        specs.append(arm.make_mixture_run(f"moe-input-{name}", experts, {"input": name}))
    return specs


def plan_few_shot(arm: Arm) -> list[Spec]:
    """The baseline on few out-of-domain rows, alone and with altered copies, for as many steps."""
    fields = arm.few_shot_fields()
    copies = arm.params.augment_copies
    augmented = fields | {"augment": copies, "epochs": arm.params.few_epochs / (1 + copies)}
    return [
        arm.make_run("few-shot", arm.few_rows(), **fields),
        arm.make_run("few-shot-augmented", arm.few_rows(), **augmented),
    ]


def plan_outside(arm: Arm) -> list[Spec]:
    """A mixture with an expert for each out-of-domain dataset too."""
    params = arm.params
    experts = arm.list_expert_runs("moe")
    more = []
    for name in params.few_shot:
        rows = {name: params.few_rows}
        more.append(arm.make_run(f"outside-{name}", rows, **arm.few_shot_fields()))
    rows = dict.fromkeys(params.domains, params.train_rows) | arm.few_rows()
    mixed = arm.make_mixture_run("moe-outside", [*experts, *more], rows=rows, **FEW)
    return [*experts, *more, mixed]


def plan_clusters(arm: Arm) -> list[Spec]:
    """A mixture of experts by clusters of questions that are alike."""
    number = arm.params.clusters
    experts = []
    for k in range(number):
        experts.append(arm.make_run(f"expert-cluster-{k + 1}", cluster=[k, number]))
    return [*experts, arm.make_mixture_run("moe-clusters", experts)]


# The experiments that parameter `experiments` names, in the order of their weight for the report:
# long runs before the gates, which cost nothing.
EXPERIMENTS = {
    "mixture": plan_mixture,
    "reinit": plan_reinit,
    "longer": plan_longer,
    "last": plan_last,
    "controls": plan_controls,
    "gates": plan_gates,
    "few-shot": plan_few_shot,
    "outside": plan_outside,
    "clusters": plan_clusters,
}


# ---- the list of runs ----


def plan_printed_arm(params: Parameters, shared: dict) -> list[Spec]:
    """Return the baseline and the experiments at the report's rate and epochs, seed by seed."""
    specs = []
    for seed in params.seeds:
        arm = Arm(params, shared | {"seed": seed})
        specs += arm.list_model_runs("baseline")
        specs += common.list_runs_of_experiments(arm, EXPERIMENTS)
    # Further seeds of what Fig. 2 compares, for its curves alone: with test scores these two models
    # would have other seeds than those beside them.
    for seed in params.curve_seeds:
        arm = Arm(params, shared | {"seed": seed, "tests": []})
        specs += arm.list_model_runs("baseline")
        specs += arm.list_model_runs(f"moe-reinit-{params.reinit_blocks}")
    return specs


def list_tuned_models(params: Parameters) -> list[str]:
    """Return the variants of the models that are tuned, in the order of the report."""
    top = params.reinit_blocks
    variants = {
        "baseline": "baseline",
        "moe": "moe",
        "reinit": f"reinit-{top}",
        "moe-reinit": f"moe-reinit-{top}",
    }
    wanted = params.tuned_models or list(variants)
    return [variant for model, variant in variants.items() if model in wanted]


def plan_tuned_arm(params: Parameters, shared: dict) -> list[Spec]:
    """Return the trials of the report's models, on one seed, and the runs of what they chose.

    A trial of a mixture trains all its experts at one rate; its gate learns as always. The controls
    of the mixture are of the experts that its trials chose.
    """
    models = list_tuned_models(params)
    of_trials = Arm(params, shared | {"seed": params.seeds[0], "tests": []})
    experts: list[Spec] = []

    def name_trial(spec: Spec) -> Spec:
        return spec.model_copy(update={"variant": f"{spec.variant}-trial"})

    def trial(model: str, rate: float, epochs: float) -> Spec:
        *own_experts, run = of_trials.list_model_runs(model, learning_rate=rate, epochs=epochs)
        experts.extend(name_trial(expert) for expert in own_experts)
        return name_trial(run)

    tried, best = trials.choose_by_trials(models, trial, params.trial_rates, params.trial_epochs)
    specs = experts + tried
    if not best:
        return specs
    chosen = {}
    for model, (rate, epochs) in best.items():
        chosen[model] = {"learning_rate": rate, "epochs": epochs}
    for seed in params.tuned_seeds or params.seeds:
        arm = Arm(params, shared | {"seed": seed}, chosen)
        for model in models:
            specs += arm.list_model_runs(model)
        if "controls" in params.experiments and "moe" in models:
            specs += plan_controls(arm)
    return specs


# ---- for the page ----


def list_steps(params: Parameters) -> tuple[Step, ...]:
    """Return the steps from the baseline to the report's final model."""
    top = params.reinit_blocks
    return (
        Step("one expert a dataset, weighed alike", "baseline", "uniform-weights"),
        Step("a gate learns the weights", "uniform-weights", "moe"),
        Step(f"top {top} blocks of experts start anew", "moe", f"moe-reinit-{top}"),
    )


def collect_values(params: Parameters) -> dict:
    """Return what findings say of experts and baselines: how many, and how many learn to the end.

    One that is best in its last epoch would probably get better with more of them.
    """
    of_report = [spec for spec in plan(params) if spec.arm == "printed"]
    mixtures = [spec for spec in of_report if spec.variant == "moe"]
    experts = [expert for mixture in mixtures for expert in mixture.experts]
    baselines = [spec for spec in of_report if spec.variant == "baseline"]
    values = {}
    for name, specs in (("experts", experts), ("baselines", baselines)):
        history = runs.collect_histories(specs)
        if history.empty:
            return {}
        best = history.loc[history.groupby("run")["validation_f1"].idxmax()]
        is_last = best["epoch"] > best["epochs"] - 1
        values |= {name: len(best), f"{name}_still_learning": int(is_last.sum())}
    return values


# ---- all runs ----


def plan(params: Parameters) -> list[Spec]:
    """Return every run of the report at these parameters, each once under each of its names.

    With arm `tuned` its trials, and what follows from them once they are recorded.
    """
    common.check_domains(params)
    asked = {"domains": params.domains, "few_shot": params.few_shot, "pools": params.pools}
    common.check_questions(params, asked)
    shared = common.shared_fields(params)
    shared |= {"tests": [*params.domains, *params.pools], "starter": True}
    # Short and on generated text alone: none of the report's settings.
    unlike_report = {
        "watched": 0,
        "schedule": "linear",
        "checkpoint": "last",
        "looks": 1,
        "epochs": 2,
    }
    start = common.plan_start(params, shared, **unlike_report)
    shared["start"] = start[0] if start else None
    specs = []
    if "printed" in params.arms:
        specs += plan_printed_arm(params, shared)
    if "tuned" in params.arms:
        specs += plan_tuned_arm(params, shared | {"arm": "tuned"})
    return start + common.drop_repeats(specs)
