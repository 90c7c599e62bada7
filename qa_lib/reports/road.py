"""Report 3, ROaD-ELECTRA (ElFadeel and Peshterliev; arXiv 2103.08809).

Its parameters, its models, one function for each of its experiments, and the list of its runs:
multi-task pre-training with averaged gradients (data/batches.py), one head for all datasets of a
task (models/shared_encoder.py), learning rates that fall from layer to layer
(training/layer_rates.py), and MT-DNN's recipe beside it; distillation from trained models, weighted
by who is right or not (losses/distillation.py); the controls that could explain a gain; and equal
tuning.

A model is an encoder that is pre-trained on several datasets and then fine-tuned on the target,
whose dataset is the first of `domains`. It is tested there, and on the second, which nothing is
trained on. Teachers are models of the same kind that were trained before; those of a seed beyond
the study's have a name of their own and are tested nowhere.
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
    Distillation,
    Gate,
    Heads,
    LayerDecay,
    Multitask,
    Rate,
    Rows,
    Seed,
    Seeds,
    Share,
    Study,
    WholeEpochs,
)
from qa_lib.settings.params import UserError, name_dataset
from qa_lib.settings.spec import Spec
from qa_lib.store import runs
from qa_lib.tasks import have_same_answers

TITLE = "ROaD-ELECTRA"

# Variant: its name for readers, and its one colour everywhere, in the order of every figure. One
# hue for each group: no second pre-training, MT-DNN, averaged gradients, distillation, controls.
# Other encoders have the colours of their group, a little darker, and ROaD-Base has greys.
MODELS = {
    "baseline": ("Plain", "#0072b2"),
    "joint-head": ("Plain, joint head", "#5f8fb4"),
    "mt-dnn": ("MT-DNN", "#b87a00"),
    "mtl": ("ROaD", "#d55e00"),
    "target-only": ("Target alone, as many updates", "#009e73"),
    "mtl-one-draw": ("ROaD, one draw a step", "#9a6a4a"),
    "mtl-own-heads": ("ROaD, a head a dataset", "#b5578c"),
    "mtl-passes": ("ROaD, other draws a step", "#94762a"),
    "baseline-bert": ("Plain BERT", "#00598c"),
    "mt-dnn-bert": ("MT-DNN on BERT", "#8f5f00"),
    "mtl-bert": ("ROaD on BERT", "#a84a00"),
    "baseline-albert": ("Plain ALBERT", "#004166"),
    "mt-dnn-albert": ("MT-DNN on ALBERT", "#6b4700"),
    "mtl-albert": ("ROaD on ALBERT", "#7d3700"),
    "mtl-kd": ("ROaD, soft targets", "#c2431a"),
    "mtl-ensemble": ("Ensemble of ROaD", "#6b4fa0"),
    "kd": ("Distillation", "#8a6fc4"),
    "weighted-kd": ("Weighted distillation", "#7b2d8b"),
    "annealed-kd": ("Annealed distillation", "#a05fb0"),
    "born-again": ("Born again", "#4c5fb0"),
    "kd-one": ("Distillation, one teacher", "#7f8fd0"),
    "shuffled-kd": ("Weights at random", "#a83c78"),
    "smoothed-labels": ("Smoothed labels", "#0f8f8f"),
    "ensemble": ("Ensemble of Plain", "#3a6ea5"),
    "kd-from-larger": ("Distillation, larger teacher", "#5a4a8a"),
    "kd-from-smaller": ("Distillation, smaller teacher", "#9a8ad0"),
    "kd-small": ("Distillation, both smaller", "#76629f"),
    "mtl-small": ("ROaD, fewer blocks", "#e0703a"),
    "mtl-teacher": ("ROaD, further seed", "#e08a5a"),
    "baseline-teacher": ("Plain, further seed", "#6aa5cc"),
    "teacher": ("Teacher of one dataset", "#c09060"),
    "base": ("Base, other draws", "#3a3a3a"),
    "base-student": ("Base, no teacher", "#4f5b66"),
    "base-student-teacher": ("Base, further seed", "#8a949c"),
    "base-none": ("Base, ROaD teaches", "#5b5348"),
    "base-1": ("Base, 1 draw", "#7a7062"),
    "base-2": ("Base, 2 draws", "#6e6456"),
    "base-4": ("Base, 4 draws", "#62584a"),
    "base-8": ("Base, 8 draws", "#564c3e"),
    "base-4-untaught": ("Base, 4 draws, no teacher", "#9a9082"),
    "base-hidden": ("Base, states alone", "#4a6a5a"),
    "base-both": ("Base, logits and states", "#5a7a6a"),
    "base-last-hidden": ("Base, logits and last states", "#6a8a7a"),
    "base-from-base-1": ("Base, one Base teaches", "#3f6f8f"),
    "base-from-base-3": ("Base, several Base teach", "#2f5f7f"),
    "base-from-electra-1": ("Base, one Plain teaches", "#4f8fbf"),
    "base-from-electra-3": ("Base, several Plain teach", "#3f7faf"),
    "base-from-road-3": ("Base, several ROaD teach", "#b5653a"),
    "base-from-distilled": ("Base, distilled ROaD teaches", "#8f4f9f"),
}

# Model → what it is, where its name does not say so; stands below the page's first figure.
NOTES = {
    "mtl": "its pre-training, no teachers",
    "mtl-own-heads": "each dataset its own",
}
# What a page leads with.
COMPARISONS = (
    Comparison("mtl-over-baseline", "ROaD", "Plain", "target, EM"),
    Comparison("mtl-over-mt-dnn", "ROaD", "MT-DNN", "target, EM"),
    Comparison("newsqa-gain", "ROaD", "Plain", "other domain, EM"),
    Comparison("kd-over-single", "Distillation", "ROaD", "target, EM"),
    Comparison("weighted-over-kd", "Weighted distillation", "Distillation", "target, EM"),
    Comparison("final-over-baseline", "Weighted distillation", "Plain", "target, EM"),
)
# From the plain encoder to the report's final model.
STEPS = (
    Step("several datasets, one a step", "baseline", "mt-dnn"),
    Step("uniform draws averaged", "mt-dnn", "mtl-own-heads"),
    Step("a head for each task, not dataset", "mtl-own-heads", "mtl"),
    Step("the soft targets of teachers", "mtl", "kd"),
    Step("teachers weighted by who is right", "kd", "weighted-kd"),
)

# Equal tuning: the models that have trials, and those that take the settings of ROaD.
TUNED = ("baseline", "mt-dnn", "mtl")
FOLLOWERS = ("target-only", "mtl-one-draw", "mtl-own-heads")
# The parts that need a team of teachers.
TAUGHT = (
    "distillation",
    "born-again",
    "smoothing",
    "wrong-weights",
    "ensemble",
    "teacher-sizes",
    "base",
    "base-passes",
    "base-hidden",
)
# The parts whose students are those of ROaD-Base.
BASE = frozenset({"base", "base-passes", "base-hidden"})

# What the learning rate is multiplied by, from one layer to the one below.
Decay = Annotated[float, Field(gt=0, le=1)]
Portion = Annotated[float, Field(ge=0, le=1)]


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
            "soft-pretraining",
            "distillation",
            "born-again",
            "smoothing",
            "wrong-weights",
            "ensemble",
            "teacher-sizes",
            "base",
            "base-passes",
            "base-hidden",
        ]
    ] = Field(min_length=1)  # parts of the study that are run
    arms: list[Literal["printed", "tuned"]] = Field(min_length=1)
    # Of the joint head, of students, and of controls but the first; by default `seeds`.
    side_seeds: Seeds | None = None
    # Of sweeps, of targets that are sentences, and of ROaD-Base; by default `side_seeds`.
    sweep_seeds: Seeds | None = None
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
    # Distillation (settings/parameters.py has the same in Distillation). The teachers of seed s are
    # models of the seeds s + 0, s + 100, …
    teacher_seeds: list[Seed]
    temperature: float = Field(gt=0, le=1000)  # T of teachers and student
    hard: Portion  # α, weight of the labels' own loss
    square: bool  # the teachers' part is multiplied by T²
    wrong_weight: Portion  # W of a teacher that is wrong
    correct: Literal["joint", "separate"]  # start and end are right together, or each by itself
    all_wrong: Literal["mean", "scaled"]  # where no teacher is right
    generations: int = Field(ge=1, le=10)  # of models that are born again
    sweep_wrong_weights: list[Portion]
    # The student of ROaD-Base, where it differs from the study's own models. None: it does not.
    base_encoder: str | None = None
    base_steps: Rows | None = None
    base_learning_rate: Rate | None = None  # of fine-tuning
    base_decay: Decay | None = None  # of fine-tuning
    # Arm tuned. ROaD and MT-DNN: rates and decays of pre-training, and rates of fine-tuning. Plain:
    # rates and epochs.
    trial_pretraining_rates: list[Rate] = Field(min_length=1)
    trial_decays: list[Decay] = Field(min_length=1)
    trial_rates: list[Rate] = Field(min_length=1)
    trial_plain_rates: list[Rate] = Field(min_length=1)
    trial_plain_epochs: list[WholeEpochs] = Field(min_length=1)

    @model_validator(mode="after")
    def _check_held_out(self):
        for name in self.domains:
            if name in self.pretraining:
                raise ValueError(
                    f"pretraining: {name} stands in domains, and is held out of the pre-training; "
                    "leave it out of one of them"
                )
        return self

    @model_validator(mode="after")
    def _check_passes(self):
        sweep = self.sweep_passes if {"passes", "base-passes"} & set(self.experiments) else []
        for number in [self.passes, *sweep]:
            if self.pretraining_batch % number:
                raise ValueError(
                    f"pretraining_batch: {self.pretraining_batch} does not divide among {number} "
                    "passes; change one of them"
                )
        return self

    @model_validator(mode="after")
    def _check_equal_tuning(self):
        ours = len(self.trial_pretraining_rates) * len(self.trial_decays) * len(self.trial_rates)
        plain = len(self.trial_plain_rates) * len(self.trial_plain_epochs)
        if "tuned" in self.arms and ours != plain:
            raise ValueError(
                f"trial_plain_rates: with the arm tuned the plain model has {plain} trials, by "
                f"trial_plain_rates and trial_plain_epochs, and the others {ours}, by "
                "trial_pretraining_rates, trial_decays and trial_rates; name as many"
            )
        return self

    @model_validator(mode="after")
    def _check_targets(self):
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

    @model_validator(mode="after")
    def _check_teachers(self):
        for part in TAUGHT:
            if part in self.experiments and not self.teacher_seeds:
                raise ValueError(
                    f"teacher_seeds: the part {part} of experiments needs teachers; write [0,100] "
                    "for two of them, or leave the part out"
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
        names = [self.encoder]
        if "encoders" in self.experiments:
            names += self.encoders.values()
        if self.base_encoder and not BASE.isdisjoint(self.experiments):
            names.append(self.base_encoder)
        return names

    def describe_seeds(self) -> str:
        text = super().describe_seeds()
        if self.side_seeds and len(self.side_seeds) != len(self.seeds):
            main = "the plain model, the target alone, MT-DNN and ROaD"
            text += f" of {main}, {len(self.side_seeds)} of the others"
        return text

    def describe_training(self) -> str:
        return (
            f"pre-training of {self.steps:,} updates on {len(self.pretraining)} datasets; "
            f"{self.train_rows:,} training examples of {name_dataset(self, self.domains[0])}; "
            f"{self.describe_seeds()}"
        )


def check_datasets(params: Parameters):
    """Raise UserError where the report cannot use a dataset's task or head."""
    asked = {"domains": params.domains, "altered_tests": params.altered_tests}
    if "unanswerable" in params.experiments:
        asked["unanswerable"] = [params.unanswerable]
    common.check_domains(params)
    common.check_questions(params, asked)
    first_of = {}  # head → the first dataset that has it
    for name in params.pretraining:
        d = selection.find_dataset(name, params.source, params.data)
        if d.head is None:
            raise UserError(
                f"pretraining: {name} names no head; write head: with its task (mrc, nli, …) in "
                "its definition in params/datasets.yaml"
            )
        first = first_of.setdefault(d.head, name)
        other = selection.find_dataset(first, params.source, params.data)
        if not have_same_answers(d, other):
            raise UserError(
                f"pretraining: {first} and {name} share the head {d.head} and have different "
                "answers (task, classes in their order, or range); give one of them another head: "
                "in its definition in params/datasets.yaml"
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
    steps: int  # updates


def list_pretrainings(params: Parameters) -> dict[str, Pretraining]:
    """Return model → its second pre-training, at the report's settings."""
    every = params.pretraining
    passes, sampling, steps = params.passes, params.sampling, params.steps
    alone = {params.domains[0]: params.train_rows}
    return {
        # MT-DNN takes a batch of one dataset a step, and a large dataset as often as it has rows.
        "mt-dnn": Pretraining(every, 1, "proportional", "dataset", steps),
        "mtl": Pretraining(every, passes, sampling, "task", steps),
        # As many updates on the target's own training rows: no other data, the same arithmetic.
        "target-only": Pretraining(alone, passes, sampling, "task", steps),
        "mtl-one-draw": Pretraining(every, 1, sampling, "task", steps),
        "mtl-own-heads": Pretraining(every, passes, sampling, "dataset", steps),
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

    def make_pretraining_run(
        self, variant: str, seed: int, pretraining: Pretraining, **fields
    ) -> Spec:
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
                rounds=pretraining.steps,
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

    def list_model_runs(
        self,
        model: str,
        variant: str | None = None,
        seeds: list[int] | None = None,
        target: str | None = None,
        pretraining: Pretraining | None = None,
        heads: dict | None = None,
        everywhere: dict | None = None,
        before: dict | None = None,
        **fields,
    ) -> list[Spec]:
        """Return the runs of a model for each seed: its pre-training, and fine-tuning behind it.

        variant: by default the model's name. target: by default the first dataset. pretraining: by
        default the model's. heads: options of heads. everywhere: fields of both runs; before: of
        the pre-training alone; fields: of fine-tuning alone.
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
                of_pretraining = chosen.get("pretraining", {}) | (everywhere or {}) | (before or {})
                start = self.make_pretraining_run(
                    variant or model, seed, pretraining, **of_pretraining
                )
                specs.append(start)
            of_run = {"seed": seed, "start": start} | of_fine_tuning | (everywhere or {}) | fields
            specs.append(Spec(**self.shared | own | of_run))
        return specs

    # ---- teachers and students ----

    def list_side_seeds(self) -> list[int]:
        """Return the seeds of most controls and of students."""
        return self.params.side_seeds or self.params.seeds

    def list_sweep_seeds(self) -> list[int]:
        """Return the seeds of sweeps, of targets that are sentences, and of ROaD-Base."""
        return self.params.sweep_seeds or self.list_side_seeds()

    def list_targets(self) -> list[str | None]:
        """Return the targets of models that the report fine-tunes on several; None is the first."""
        further = self.params.sentences if "sentences" in self.params.experiments else []
        return [None, *further]

    def list_teacher_runs(
        self, model: str, seed: int, size: int | None = None, variant: str | None = None, **how
    ) -> tuple[list[Spec], list[Spec]]:
        """Return the teachers of a seed, with the runs behind them, and the teachers alone.

        They are one model at several seeds. One beyond the study's seeds is named as a teacher and
        has no test set, so that it enters no comparison. size: how many; how: of list_model_runs.
        """
        variant = variant or model
        specs, teachers = [], []
        for added in self.params.teacher_seeds[:size]:
            own = {"variant": variant, "seeds": [seed + added]} | how
            if seed + added not in self.params.seeds:
                own |= {"variant": f"{variant}-teacher", "tests": []}
                own["everywhere"] = how.get("everywhere", {}) | {"probes": 0}
            specs += self.list_model_runs(model, **own)
            teachers.append(specs[-1])
        return specs, teachers

    def gather_teachers(
        self, seed: int, size: int | None = None
    ) -> tuple[list[Spec], Spec, list[Spec]]:
        """Return the runs that a student of ROaD needs, the student itself, and its teachers.

        The student is not taught yet. size: how many teachers.
        """
        own = self.list_model_runs("mtl", seeds=[seed])
        behind, teachers = self.list_teacher_runs("mtl", seed, size)
        return own + behind, own[-1], teachers

    def list_dataset_teacher_runs(self, seed: int) -> list[Spec]:
        """Return a plain model for each dataset of pre-training, trained on its rows there."""
        params = self.params
        teachers = []
        for place, (name, rows) in enumerate(params.pretraining.items()):
            own = {
                "variant": f"teacher-{name}",
                "seed": seed,
                "domains": [name],
                "rows": [rows],
                "places": [place] if place else None,
                "fingerprints": common.fingerprint_domains(params, [name]),
                "validation_rows": 0,
                "tests": [],
                "held_out": self.list_held_out(),
                "heads": self.make_heads("task"),
                "layer_decay": make_decay(params, params.decay),
                "checkpoint": "last",
                "looks": 1,
            }
            teachers.append(Spec(**self.shared | own))
        return teachers

    def make_distillation(self, **options) -> Distillation:
        """Return the report's distillation with other options, without what these do not read."""
        params = self.params
        own = {"temperature": params.temperature, "square": params.square}
        if "annealing" not in options:
            own["hard"] = params.hard
        if "teachers" in options:  # weighted, or the weights at random
            own["wrong_weight"] = params.wrong_weight
            own |= {"correct": params.correct, "all_wrong": params.all_wrong}
        return Distillation(**own | options)

    def make_student_run(
        self, variant: str, student: Spec, taught_by: list[Spec], **options
    ) -> Spec:
        """Return the run of a student that learns from teachers while it is fine-tuned.

        student: the same run without teachers; options: of Distillation.
        """
        distillation = self.make_distillation(**options)
        taught = {"variant": variant, "teachers": taught_by, "distillation": distillation}
        return student.model_copy(update=taught)

    def make_ensemble_run(self, variant: str, seed: int, members: list[Spec]) -> Spec:
        """Return the run that answers by the mean of its members' logits and trains nothing."""
        params = self.params
        target = params.domains[0]
        own = {
            "variant": variant,
            "seed": seed,
            "domains": [target],
            "rows": [params.train_rows],
            "fingerprints": common.fingerprint_domains(params, [target]),
            "tests": params.domains + params.altered_tests,
            "gate": Gate(rule="uniform"),
            "experts": members,
            "start": None,
        }
        return Spec(**self.shared | own)


# ---- the experiments ----


def plan_heads(arm: Arm) -> list[Spec]:
    """Independent start and end, and ELECTRA's joint head (T1)."""
    specs = arm.list_model_runs("baseline")
    seeds = arm.list_side_seeds()
    return specs + arm.list_model_runs("joint-head", seeds=seeds, heads={"span": "joint"})


def plan_pretraining(arm: Arm) -> list[Spec]:
    """No second pre-training, MT-DNN's, and ROaD's (T3, T4)."""
    specs = []
    for model in ("baseline", "mt-dnn", "mtl"):
        specs += arm.list_model_runs(model)
    return specs


def plan_controls(arm: Arm) -> list[Spec]:
    """The target alone for as many updates; one draw a step; a head for each dataset.

    The first is what ROaD's own gain is measured against, so it has all seeds.
    """
    specs = []
    for model in FOLLOWERS:
        seeds = arm.params.seeds if model == "target-only" else arm.list_side_seeds()
        specs += arm.list_model_runs(model, seeds=seeds)
    return specs


def plan_passes(arm: Arm) -> list[Spec]:
    """Sweep of the draws whose gradients an update averages, at one batch."""
    params = arm.params
    specs = []
    for number in params.sweep_passes:
        draws = Pretraining(params.pretraining, number, params.sampling, "task", params.steps)
        variant = f"mtl-passes-{number}"
        specs += arm.list_model_runs("mtl", variant, arm.list_sweep_seeds(), pretraining=draws)
    return specs


def plan_unanswerable(arm: Arm) -> list[Spec]:
    """Fine-tuning on questions that may have no answer, with both heads and after pre-training."""
    target = arm.params.unanswerable
    specs = arm.list_model_runs("baseline", "baseline-unanswerable", target=target)
    specs += arm.list_model_runs(
        "joint-head", "joint-head-unanswerable", target=target, heads={"span": "joint"}
    )
    for model in ("mt-dnn", "mtl"):
        specs += arm.list_model_runs(model, f"{model}-unanswerable", target=target)
    return specs


def plan_sentences(arm: Arm) -> list[Spec]:
    """Fine-tuning on datasets that were among those of pre-training (T3, MNLI and QQP)."""
    specs = []
    for target in arm.params.sentences:
        for model in ("baseline", "mt-dnn", "mtl"):
            specs += arm.list_model_runs(model, target=target, seeds=arm.list_sweep_seeds())
    return specs


def plan_blocks(arm: Arm) -> list[Spec]:
    """The same on encoders of fewer blocks, in place of T3's other encoders."""
    specs = []
    for blocks in arm.params.sweep_blocks:
        for model in ("baseline", "mt-dnn", "mtl"):
            specs += arm.list_model_runs(
                model,
                f"{model}-blocks",
                arm.list_sweep_seeds(),
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
                specs += arm.list_model_runs(
                    model, f"{model}-{name}", target=target, everywhere=of_encoder
                )
    return specs


# ---- the experiments with teachers ----


def plan_soft_pretraining(arm: Arm) -> list[Spec]:
    """ROaD's pre-training with the soft targets of one teacher for each dataset (T5)."""
    specs = []
    for seed in arm.list_side_seeds():
        teachers = arm.list_dataset_teacher_runs(seed)
        specs += teachers
        distillation = arm.make_distillation(by_dataset=True)
        before = {"teachers": teachers, "distillation": distillation, "probes": 0}
        targets = arm.list_targets() if seed in arm.list_sweep_seeds() else [None]
        for target in targets:
            specs += arm.list_model_runs("mtl", "mtl-kd", [seed], target=target, before=before)
    return specs


def plan_distillation(arm: Arm) -> list[Spec]:
    """Three teachers together, and students that learn from them in several ways (T6).

    The control has the weights of weighted distillation, given to teachers at random.
    """
    specs = []
    for seed in arm.list_side_seeds():
        behind, student, teachers = arm.gather_teachers(seed)
        specs += behind
        specs += [
            arm.make_ensemble_run("mtl-ensemble", seed, teachers),
            arm.make_student_run("kd", student, teachers),
            arm.make_student_run("weighted-kd", student, teachers, teachers="weighted"),
            arm.make_student_run("annealed-kd", student, teachers, annealing=True),
            arm.make_student_run("shuffled-kd", student, teachers, teachers="shuffled"),
        ]
    return specs


def plan_born_again(arm: Arm) -> list[Spec]:
    """A student of one teacher, and models that each teach the next one."""
    specs = []
    for seed in arm.list_side_seeds():
        behind, student, (teacher,) = arm.gather_teachers(seed, size=1)
        specs += behind
        specs.append(arm.make_student_run("kd-one", student, [teacher]))
        last = arm.params.generations
        for generation in range(1, last + 1):
            variant = "born-again" if generation == last else f"born-again-{generation}"
            teacher = arm.make_student_run(variant, student, [teacher])
            specs.append(teacher)
    return specs


def plan_smoothing(arm: Arm) -> list[Spec]:
    """Labels as soft as the teachers' targets, without what the teachers say of wrong answers."""
    specs = []
    for seed in arm.list_side_seeds():
        behind, student, teachers = arm.gather_teachers(seed)
        specs += behind
        specs.append(arm.make_student_run("smoothed-labels", student, teachers, targets="smoothed"))
    return specs


def plan_wrong_weights(arm: Arm) -> list[Spec]:
    """Sweep of the weight W that a wrong teacher has; at 1 it is ordinary distillation."""
    specs = []
    for seed in arm.list_sweep_seeds():
        behind, student, teachers = arm.gather_teachers(seed)
        specs += behind
        for weight in arm.params.sweep_wrong_weights:
            options = {"teachers": "weighted", "wrong_weight": weight}
            variant = "weighted-kd-sweep"
            specs.append(arm.make_student_run(variant, student, teachers, **options))
    return specs


def plan_ensemble(arm: Arm) -> list[Spec]:
    """Plain models together, which T7 compares with one final model."""
    specs = []
    for seed in arm.list_side_seeds():
        team, members = arm.list_teacher_runs("baseline", seed)
        specs += [*team, arm.make_ensemble_run("ensemble", seed, members)]
    return specs


def plan_teacher_sizes(arm: Arm) -> list[Spec]:
    """Teachers with more blocks than their student, with fewer, and with as few."""
    specs = []
    for seed in arm.list_sweep_seeds():
        *pretraining, large = arm.list_model_runs("mtl", seeds=[seed])
        specs += [*pretraining, large]
        for blocks in arm.params.sweep_blocks:
            few = {"blocks": blocks}
            *pretraining, small = arm.list_model_runs("mtl", "mtl-small", [seed], everywhere=few)
            specs += [*pretraining, small]
            specs += [
                arm.make_student_run("kd-from-larger", small, [large]),
                arm.make_student_run("kd-from-smaller", large, [small]),
                arm.make_student_run("kd-small", small, [small]),
            ]
    return specs


# ---- ROaD-Base, of the report's author's later post ----


def describe_base(params: Parameters) -> dict:
    """Return in what the students of ROaD-Base differ, as arguments of Arm.list_model_runs."""
    differing = {"everywhere": {}}
    if params.base_encoder:
        weights = encoder_files.identify_weights(params.base_encoder)
        differing["everywhere"] = {"encoder": params.base_encoder, "weights": weights}
    if params.base_learning_rate:
        differing["learning_rate"] = params.base_learning_rate
    if params.base_decay:
        differing["layer_decay"] = make_decay(params, params.base_decay)
    return differing


def plan_base(arm: Arm) -> list[Spec]:
    """Students without a second pre-training: untaught, and of several kinds of teachers."""
    specs = []
    base = describe_base(arm.params)
    for seed in arm.list_sweep_seeds():
        for target in arm.list_targets():
            specs += arm.list_model_runs("baseline", "base-student", [seed], target=target, **base)
        *_, student = arm.list_model_runs("baseline", "base-student", [seed], **base)
        of_road, (road,) = arm.list_teacher_runs("mtl", seed, size=1)
        of_plain, plain = arm.list_teacher_runs("baseline", seed, variant="base-student", **base)
        specs += [*of_road, *of_plain]
        specs += [
            arm.make_student_run("base-none", student, [road]),
            arm.make_student_run("base-from-base-1", student, plain[:1]),
            arm.make_student_run("base-from-base-3", student, plain),
        ]
        if arm.params.base_encoder:
            specs += plan_larger_teachers(arm, seed, student)
    return specs


def plan_larger_teachers(arm: Arm, seed: int, student: Spec) -> list[Spec]:
    """Return the runs of a student whose teachers are larger, or were distilled themselves."""
    of_plain, plain = arm.list_teacher_runs("baseline", seed)
    of_road, single, road = arm.gather_teachers(seed)
    distilled = arm.make_student_run("weighted-kd", single, road, teachers="weighted")
    return [
        *of_plain,
        *of_road,
        distilled,
        arm.make_student_run("base-from-electra-1", student, plain[:1]),
        arm.make_student_run("base-from-electra-3", student, plain),
        arm.make_student_run("base-from-road-3", student, road),
        arm.make_student_run("base-from-distilled", student, [distilled]),
    ]


def plan_base_passes(arm: Arm) -> list[Spec]:
    """Students of one teacher behind pre-trainings of several draws a step; one untaught too."""
    params = arm.params
    specs = []
    base = describe_base(params)
    steps = params.base_steps or params.steps
    for seed in arm.list_sweep_seeds():
        of_road, (road,) = arm.list_teacher_runs("mtl", seed, size=1)
        specs += of_road
        for number in params.sweep_passes:
            draws = Pretraining(params.pretraining, number, params.sampling, "task", steps)
            how = {"seeds": [seed], "pretraining": draws} | base
            variant = f"base-{number}"
            pretraining, student = arm.list_model_runs("mtl", variant, **how)
            specs += [pretraining, arm.make_student_run(variant, student, [road])]
            if number == params.passes:
                for target in arm.list_targets():
                    specs += arm.list_model_runs("mtl", f"{variant}-untaught", target=target, **how)
    return specs


def plan_base_hidden(arm: Arm) -> list[Spec]:
    """What is distilled: hidden states alone, logits and states, and logits and the last states."""
    specs = []
    base = describe_base(arm.params)
    for seed in arm.list_sweep_seeds():
        *_, student = arm.list_model_runs("baseline", "base-student", [seed], **base)
        of_road, (road,) = arm.list_teacher_runs("mtl", seed, size=1)
        specs += of_road
        specs += [
            arm.make_student_run("base-hidden", student, [road], hidden="all", targets="none"),
            arm.make_student_run("base-both", student, [road], hidden="all"),
            arm.make_student_run("base-last-hidden", student, [road], hidden="last"),
        ]
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
    "soft-pretraining": plan_soft_pretraining,
    "distillation": plan_distillation,
    "born-again": plan_born_again,
    "smoothing": plan_smoothing,
    "wrong-weights": plan_wrong_weights,
    "ensemble": plan_ensemble,
    "teacher-sizes": plan_teacher_sizes,
    "base": plan_base,
    "base-passes": plan_base_passes,
    "base-hidden": plan_base_hidden,
}


# ---- the list of runs ----


def list_settings(params: Parameters, model: str) -> list[dict]:
    """Return what each trial of a model changes: eight at the report's grid, for every model.

    After a second pre-training all have the most epochs that the plain encoder may choose.
    """
    most = float(max(params.trial_plain_epochs))
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
                fine_tuning = {"learning_rate": rate, "epochs": most}
                settings.append(fine_tuning | {"pretraining": before})
    return settings


def plan_tuned_arm(arm: Arm, score: Callable[[Spec], trials.Score]) -> list[Spec]:
    """Return the trials of the models that are tuned, on one seed, and the runs of what they chose.

    The controls take the settings of ROaD, which they are controls of. So do its teachers and the
    students that learn from them.
    """
    params = arm.params
    specs = []

    def trial(model: str, setting: dict) -> Spec:
        tried = Arm(params, arm.shared, arm.pretrainings, {model: setting})
        variant, seeds = f"{model}-trial", params.seeds[:1]
        *before, tuned = tried.list_model_runs(model, variant, seeds, tests=[], trial_score="f1")
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
    if "distillation" in params.experiments:
        specs += plan_distillation(tuned)
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
        if name == "printed":
            specs += common.list_runs_of_experiments(arm, EXPERIMENTS)
        else:
            specs += plan_tuned_arm(arm, score)
    return start + common.drop_repeats(specs)


def collect_values(params: Parameters) -> dict[str, float]:
    """Return numbers that findings name and no score has: means over the seeds of a model.

    tokens_mtl, tokens_target_only …: the training tokens of a second pre-training.
    validation_mtl, validation_target_only …: the score on the target's validation rows.
    """
    found: dict[str, list[float]] = {}
    for spec in plan(params):
        record = runs.find_record(spec)
        if record is None or spec.arm != "printed":
            continue
        model = spec.variant.removesuffix("-pretraining").replace("-", "_")
        if spec.variant.endswith("-pretraining"):
            found.setdefault(f"tokens_{model}", []).append(record["tokens"])
        elif spec.domains == params.domains[:1] and spec.validation_rows and record["history"]:
            score, _ = trials.validation_score(spec, record)
            found.setdefault(f"validation_{model}", []).append(score)
    return {name: sum(numbers) / len(numbers) for name, numbers in found.items()}
