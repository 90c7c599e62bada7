"""Report 3, ROaD-ELECTRA (ElFadeel and Peshterliev; arXiv 2103.08809).

Its parameters, its models, one function for each of its experiments, and the list of its runs:
multi-task pre-training with averaged gradients (data/batches.py), one head for all datasets of a
task (models/shared_encoder.py), learning rates that fall from layer to layer
(training/layer_rates.py), and MT-DNN's recipe beside it; the controls that could explain a gain;
and equal tuning.

A model is an encoder that is pre-trained on several datasets and then fine-tuned on the target,
whose dataset is the first of `domains`. It is tested there, and on the second, which nothing is
trained on.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field, model_validator

from qa_lib.data import selection
from qa_lib.reports import common, trials
from qa_lib.reports.comparisons import Comparison, Step
from qa_lib.settings import encoder_files
from qa_lib.settings.parameters import (
    Batch,
    Blocks,
    Heads,
    LayerDecay,
    Multitask,
    Rate,
    Rows,
    Seeds,
    Share,
    Study,
    WholeEpochs,
)
from qa_lib.settings.params import UserError
from qa_lib.settings.spec import Spec

TITLE = "ROaD-ELECTRA"

# Variant: its name for readers, and its one colour everywhere, in the order of every figure. One
# hue for each group: no second pre-training, MT-DNN, averaged gradients, controls. Other encoders
# have the colours of their group, a little darker.
MODELS = {
    "baseline": ("Plain", "#0072b2"),
    "joint-head": ("Plain, joint head", "#5f8fb4"),
    "mt-dnn": ("MT-DNN", "#b87a00"),
    "mtl": ("ROaD", "#d55e00"),
    "target-only": ("Target alone, twice", "#009e73"),
    "mtl-one-draw": ("ROaD, one draw a step", "#9a6a4a"),
    "mtl-own-heads": ("ROaD, a head a dataset", "#b5578c"),
    "mtl-passes": ("ROaD, other draws a step", "#94762a"),
    "baseline-bert": ("Plain BERT", "#00598c"),
    "mt-dnn-bert": ("MT-DNN on BERT", "#8f5f00"),
    "mtl-bert": ("ROaD on BERT", "#a84a00"),
    "baseline-albert": ("Plain ALBERT", "#004166"),
    "mt-dnn-albert": ("MT-DNN on ALBERT", "#6b4700"),
    "mtl-albert": ("ROaD on ALBERT", "#7d3700"),
}

# What a page leads with.
COMPARISONS = (
    Comparison("mtl-over-baseline", "ROaD", "Plain", "target, EM"),
    Comparison("mtl-over-mt-dnn", "ROaD", "MT-DNN", "target, EM"),
    Comparison("averaging-helps", "ROaD", "ROaD, one draw a step", "target, EM"),
    Comparison("mt-dnn-hurts", "MT-DNN", "Plain", "target, EM"),
    Comparison("newsqa-gain", "ROaD", "Plain", "other domain, EM"),
)
# From the plain encoder to the report's pre-training.
STEPS = (
    Step("several datasets, one a step", "baseline", "mt-dnn"),
    Step("gradients of four draws averaged", "mt-dnn", "mtl-own-heads"),
    Step("a head for each task, not dataset", "mtl-own-heads", "mtl"),
)

# Equal tuning: the models that have trials, and those that take the settings of ROaD.
TUNED = ("baseline", "mt-dnn", "mtl")
FOLLOWERS = ("target-only", "mtl-one-draw", "mtl-own-heads")

# What the learning rate is multiplied by, from one layer to the one below.
Decay = Annotated[float, Field(gt=0, le=1)]


class Parameters(Study):
    """Multi-task pre-training, fine-tuning on the target, and what could explain a gain.

    `train_rows`, `learning_rate`, `batch_size`, `epochs` and `warmup` are those of fine-tuning.
    """

    report: Literal["road"]
    # The target, and a dataset of the same task that nothing is trained on.
    domains: list[str] = Field(min_length=2, max_length=2)
    # The target's test questions worded otherwise.
    altered_tests: list[str]
    unanswerable: str | None = None  # another target, whose questions may have no answer
    # Further targets that are among the datasets of pre-training.
    sentences: list[str] = []
    experiments: list[
        Literal[
            "heads",
            "pretraining",
            "controls",
            "passes",
            "unanswerable",
            "sentences",
            "blocks",
            "encoders",
        ]
    ] = Field(min_length=1)  # parts of the study that are run
    arms: list[Literal["printed", "tuned"]] = Field(min_length=1)
    sweep_seeds: Seeds | None = None  # of sweeps; by default `seeds`
    # Dataset of pre-training → its training rows.
    pretraining: dict[str, Rows] = Field(min_length=2)
    steps: Rows  # updates of pre-training
    passes: Annotated[int, Field(ge=1, le=64)]  # draws of a dataset in an update
    sampling: Literal["uniform", "proportional", "annealed"]  # law of the draws
    pretraining_batch: Batch  # windows of an update, of all its draws together
    pretraining_rate: Rate
    pretraining_warmup: Share  # share of the steps
    pretraining_decay: Decay  # of the learning rate, from one layer to the one below
    decay_top: Literal[1, 2]  # power of the decay that the top block has
    probes: Annotated[int, Field(ge=0, le=100)]  # measurements of the datasets' gradients
    decay: Decay  # in fine-tuning
    schedule: Literal["linear", "constant"]
    checkpoint: Literal["last", "best"]
    looks: int = Field(gt=0, le=1000)  # evaluations on validation rows in an epoch
    head_dropout: Share
    pooling: Literal["cls", "pooler", "mean"]  # what a head of classes reads of a text
    sweep_passes: list[Annotated[int, Field(ge=1, le=64)]]
    sweep_blocks: list[Blocks]  # blocks of the encoder
    # Name of an encoder in variants (bert, albert) → the encoder.
    encoders: dict[str, str]
    # Arm tuned. ROaD and MT-DNN: rates and decays of pre-training, and rates of fine-tuning. Plain:
    # rates and epochs.
    trial_pretraining_rates: list[Rate] = Field(min_length=1)
    trial_decays: list[Decay] = Field(min_length=1)
    trial_rates: list[Rate] = Field(min_length=1)
    trial_plain_rates: list[Rate] = Field(min_length=1)
    trial_plain_epochs: list[WholeEpochs] = Field(min_length=1)

    @model_validator(mode="after")
    def _held_out(self):
        for name in self.domains:
            if name in self.pretraining:
                raise ValueError(
                    f"pretraining: {name} stands in domains, and is held out of the pre-training; "
                    "leave it out of one of them"
                )
        return self

    @model_validator(mode="after")
    def _passes(self):
        sweep = self.sweep_passes if "passes" in self.experiments else []
        for number in [self.passes, *sweep]:
            if self.pretraining_batch % number:
                raise ValueError(
                    f"pretraining_batch: {self.pretraining_batch} does not divide among {number} "
                    "passes; change one of them"
                )
        return self

    @model_validator(mode="after")
    def _targets(self):
        if "unanswerable" in self.experiments and not self.unanswerable:
            raise ValueError(
                "unanswerable: the part unanswerable of experiments needs a dataset; name one, or "
                "leave the part out"
            )
        if "sentences" in self.experiments and not self.sentences:
            raise ValueError(
                "sentences: the part sentences of experiments needs datasets; name some, or leave "
                "the part out"
            )
        return self

    def named_datasets(self) -> dict[str, list[str]]:
        known = super().named_datasets()
        unanswerable = [self.unanswerable] if self.unanswerable else []
        return known | {
            "pretraining": list(self.pretraining),
            "altered_tests": self.altered_tests,
            "unanswerable": unanswerable,
            "sentences": self.sentences,
        }

    def named_encoders(self) -> list[str]:
        others = self.encoders.values() if "encoders" in self.experiments else []
        return [self.encoder, *others]

    @property
    def fewest_seeds(self) -> int:
        return min(len(self.seeds), len(self.sweep_seeds or self.seeds))

    def describe_training(self) -> str:
        return (
            f"{self.steps:,} updates of {self.pretraining_batch} windows in pre-training; "
            f"{self.train_rows:,} training examples of {self.domains[0]}; {self.describe_seeds()}"
        )


def check_datasets(params: Parameters):
    """Raise UserError where the report cannot use a dataset's task, or a dataset names no head."""
    asked = {"domains": params.domains, "altered_tests": params.altered_tests}
    if "unanswerable" in params.experiments:
        asked["unanswerable"] = [params.unanswerable]
    for parameter, names in asked.items():
        for name in names:
            d = selection.find_dataset(name, params.source, params.data)
            if d.task != "span":
                raise UserError(
                    f"{parameter}: {name} is of the task {d.task} where the report needs questions "
                    "that spans answer (task span); name another dataset there"
                )
    for name in params.pretraining:
        if selection.find_dataset(name, params.source, params.data).head is None:
            raise UserError(
                f"pretraining: {name} names no head; write head: with its task (mrc, nli, …) in "
                "its definition in params/datasets.yaml"
            )


@dataclass(frozen=True)
class Pretraining:
    """A second pre-training, before the target.

    domains: dataset → training rows. one_for: what has a head of its own.
    """

    domains: dict[str, int]
    passes: int
    sampling: Literal["uniform", "proportional", "annealed"]
    one_for: Literal["dataset", "task"]


def list_pretrainings(params: Parameters) -> dict[str, Pretraining]:
    """Return model → its second pre-training, at the report's settings."""
    every = params.pretraining
    passes, sampling = params.passes, params.sampling
    alone = {params.domains[0]: params.train_rows}
    return {
        # MT-DNN takes a batch of one dataset a step, and a large dataset as often as it has rows.
        "mt-dnn": Pretraining(every, 1, "proportional", "dataset"),
        "mtl": Pretraining(every, passes, sampling, "task"),
        # As many updates on the target's own training rows: no other data, the same arithmetic.
        "target-only": Pretraining(alone, passes, sampling, "task"),
        "mtl-one-draw": Pretraining(every, 1, sampling, "task"),
        "mtl-own-heads": Pretraining(every, passes, sampling, "dataset"),
    }


def make_decay(params: Parameters, rate: float) -> LayerDecay | None:
    """Return learning rates that fall by `rate` from layer to layer; None where all are one."""
    return None if rate == 1 else LayerDecay(rate=rate, top=params.decay_top)


@dataclass(frozen=True)
class Arm:
    """What the experiments of one arm are made of."""

    params: Parameters
    shared: dict  # fields of every run
    pretrainings: dict[str, Pretraining]  # model → its second pre-training, where it has one
    # Model → what its trials chose: fields of fine-tuning, and under "pretraining" those of that.
    chosen: dict[str, dict] = field(default_factory=dict)

    def pretrain(self, variant: str, seed: int, pretraining: Pretraining, **fields) -> Spec:
        """Return the run of a second pre-training. It has no test set of its own."""
        params = self.params
        own = {
            "variant": f"{variant}-pretraining",
            "seed": seed,
            "domains": list(pretraining.domains),
            "rows": list(pretraining.domains.values()),
            "fingerprints": common.fingerprint_domains(params, pretraining.domains),
            "validation_rows": 0,
            "tests": [],
            "held_out": self.list_held_out(),
            "heads": self.make_heads(pretraining.one_for),
            "multitask": Multitask(
                schedule="draws",
                rounds=params.steps,
                passes=pretraining.passes,
                sampling=pretraining.sampling,
            ),
            "layer_decay": make_decay(params, params.pretraining_decay),
            "batch_size": params.pretraining_batch,
            "learning_rate": params.pretraining_rate,
            "warmup": params.pretraining_warmup,
            "schedule": "linear",
            "epochs": 1.0,
            "checkpoint": "last",
            "looks": 1,
            "probes": params.probes if self.is_probed(pretraining) else 0,
        }
        return Spec(**self.shared | own | fields)

    def is_probed(self, pretraining: Pretraining) -> bool:
        """Return whether the gradients of the datasets are measured: in ROaD's and in MT-DNN's.

        A sweep that has the same pre-training has the same measurements.
        """
        return pretraining in (self.pretrainings["mtl"], self.pretrainings["mt-dnn"])

    def list_held_out(self) -> list[str]:
        """Return the datasets whose test rows no pre-training may have seen."""
        params = self.params
        return params.domains + ([params.unanswerable] if params.unanswerable else [])

    def make_heads(self, one_for: Literal["dataset", "task"], **options) -> Heads:
        """Return the heads of a run. one_for: what has a head of its own."""
        return Heads(pooling=self.params.pooling, one_for=one_for, pairs="joined", **options)

    def train_model(
        self,
        model: str,
        variant: str | None = None,
        seeds: list[int] | None = None,
        target: str | None = None,
        pretraining: Pretraining | None = None,
        heads: dict | None = None,
        everywhere: dict | None = None,
        **fields,
    ) -> list[Spec]:
        """Return the runs of a model for each seed: its pre-training, and fine-tuning behind it.

        variant: by default the model's name. target: by default the first dataset. pretraining: by
        default the model's. heads: options of heads. everywhere: fields of both runs; fields: of
        fine-tuning alone.
        """
        params = self.params
        pretraining = pretraining or self.pretrainings.get(model)
        one_for = pretraining.one_for if pretraining else "task"
        chosen = self.chosen.get(model, {})
        tests = [target] if target else params.domains + params.altered_tests
        target = target or params.domains[0]
        own = {
            "variant": variant or model,
            "domains": [target],
            "rows": [params.train_rows],
            "fingerprints": common.fingerprint_domains(params, [target]),
            "tests": tests,
            "heads": self.make_heads(one_for, **heads or {}),
            "layer_decay": make_decay(params, params.decay),
        }
        of_fine_tuning = {name: value for name, value in chosen.items() if name != "pretraining"}
        specs = []
        for seed in seeds or params.seeds:
            start = self.shared["start"]
            if pretraining:
                of_pretraining = chosen.get("pretraining", {}) | (everywhere or {})
                start = self.pretrain(variant or model, seed, pretraining, **of_pretraining)
                specs.append(start)
            of_run = {"seed": seed, "start": start} | of_fine_tuning | (everywhere or {}) | fields
            specs.append(Spec(**self.shared | own | of_run))
        return specs


# ---- the experiments ----


def plan_heads(arm: Arm) -> list[Spec]:
    """Independent start and end, and ELECTRA's joint head (T1)."""
    return arm.train_model("baseline") + arm.train_model("joint-head", heads={"span": "joint"})


def plan_pretraining(arm: Arm) -> list[Spec]:
    """No second pre-training, MT-DNN's, and ROaD's (T3, T4)."""
    specs = []
    for model in ("baseline", "mt-dnn", "mtl"):
        specs += arm.train_model(model)
    return specs


def plan_controls(arm: Arm) -> list[Spec]:
    """The target alone for as many updates; one draw a step; a head for each dataset."""
    specs = []
    for model in FOLLOWERS:
        specs += arm.train_model(model)
    return specs


def plan_passes(arm: Arm) -> list[Spec]:
    """Sweep of the draws whose gradients an update averages, at one batch."""
    params = arm.params
    specs = []
    for number in params.sweep_passes:
        draws = Pretraining(params.pretraining, number, params.sampling, "task")
        variant = f"mtl-passes-{number}"
        specs += arm.train_model("mtl", variant, params.sweep_seeds, pretraining=draws)
    return specs


def plan_unanswerable(arm: Arm) -> list[Spec]:
    """Fine-tuning on questions that may have no answer, with both heads and after pre-training."""
    target = arm.params.unanswerable
    specs = arm.train_model("baseline", "baseline-unanswerable", target=target)
    specs += arm.train_model(
        "joint-head", "joint-head-unanswerable", target=target, heads={"span": "joint"}
    )
    for model in ("mt-dnn", "mtl"):
        specs += arm.train_model(model, f"{model}-unanswerable", target=target)
    return specs


def plan_sentences(arm: Arm) -> list[Spec]:
    """Fine-tuning on datasets that were among those of pre-training (T3, MNLI and QQP)."""
    specs = []
    for target in arm.params.sentences:
        for model in ("baseline", "mt-dnn", "mtl"):
            specs += arm.train_model(model, target=target, seeds=arm.params.sweep_seeds)
    return specs


def plan_blocks(arm: Arm) -> list[Spec]:
    """The same on encoders of fewer blocks, in place of T3's other encoders."""
    specs = []
    for blocks in arm.params.sweep_blocks:
        for model in ("baseline", "mt-dnn", "mtl"):
            specs += arm.train_model(
                model,
                f"{model}-blocks",
                arm.params.sweep_seeds,
                everywhere={"blocks": blocks},
            )
    return specs


def plan_encoders(arm: Arm) -> list[Spec]:
    """The same on other encoders (T3)."""
    specs = []
    for name, encoder in arm.params.encoders.items():
        weights = encoder_files.identify_weights(encoder)
        of_encoder = {"encoder": encoder, "weights": weights}
        for target in [None, *arm.params.sentences]:
            for model in ("baseline", "mt-dnn", "mtl"):
                specs += arm.train_model(
                    model, f"{model}-{name}", target=target, everywhere=of_encoder
                )
    return specs


# The experiments that parameter `experiments` names, in the order of their runs.
EXPERIMENTS = {
    "heads": plan_heads,
    "pretraining": plan_pretraining,
    "controls": plan_controls,
    "passes": plan_passes,
    "unanswerable": plan_unanswerable,
    "sentences": plan_sentences,
    "blocks": plan_blocks,
    "encoders": plan_encoders,
}


# ---- the list of runs ----


def list_settings(params: Parameters, model: str) -> list[dict]:
    """Return what each trial of a model changes: eight at the report's grid, for every model."""
    settings = []
    if model == "baseline":
        for rate in params.trial_plain_rates:
            for epochs in params.trial_plain_epochs:
                settings.append({"learning_rate": rate, "epochs": float(epochs)})
        return settings
    for pretraining_rate in params.trial_pretraining_rates:
        for decay in params.trial_decays:
            for rate in params.trial_rates:
                before = {
                    "learning_rate": pretraining_rate,
                    "layer_decay": make_decay(params, decay),
                }
                settings.append({"learning_rate": rate, "pretraining": before})
    return settings


def plan_tuned_arm(arm: Arm, score: Callable[[Spec], trials.Score]) -> list[Spec]:
    """Return the trials of the models that are tuned, on one seed, and the runs of what they chose.

    The controls take the settings of ROaD, which they are controls of.
    """
    params = arm.params
    specs = []

    def trial(model: str, setting: dict) -> Spec:
        tried = Arm(params, arm.shared, arm.pretrainings, {model: setting})
        variant, seeds = f"{model}-trial", params.seeds[:1]
        *before, tuned = tried.train_model(model, variant, seeds, tests=[], trial_score="f1")
        specs.extend(before)
        return tuned

    settings = {model: list_settings(params, model) for model in TUNED}
    tried, best = trials.choose_from_settings(settings, trial, score)
    specs += tried
    if not best:
        return specs
    chosen = best | dict.fromkeys(FOLLOWERS, best["mtl"])
    tuned = Arm(params, arm.shared, arm.pretrainings, chosen)
    specs += plan_pretraining(tuned)
    if "controls" in params.experiments:
        specs += plan_controls(tuned)
    return specs


def plan(
    params: Parameters, score: Callable[[Spec], trials.Score] = trials.find_score
) -> list[Spec]:
    """Return every run of the report at these parameters, each once under each of its names.

    With arm `tuned` its trials, and what follows from them once they are recorded. score: of a
    trial; by default the one in its record.
    """
    check_datasets(params)
    shared = common.shared_fields(params) | {"probes": 0}
    heads = Heads(pooling=params.pooling, one_for="task", pairs="joined")
    start = common.plan_start(params, shared, heads=heads)
    shared["start"] = start[0] if start else None
    pretrainings = list_pretrainings(params)
    specs = []
    for name in params.arms:
        arm = Arm(params, shared | {"arm": name}, pretrainings)
        if name == "tuned":
            specs += plan_tuned_arm(arm, score)
            continue
        for experiment, list_runs in EXPERIMENTS.items():
            if experiment in params.experiments:
                specs += list_runs(arm)
    return start + common.drop_repeats(specs)
