"""Report 4, Walk Less and Only Down Smooth Valleys (Brink, Cooper, Hollister; CS224N).

Its parameters, its models, one function for each of its experiments, and the list of its runs:
SMART (losses/smart.py) on one task; three tasks in turn (data/batches.py) on one encoder with a
head for each (models/shared_encoder.py); the rich relational layer (models/heads.py); the controls
that could explain their gains; sweeps; and equal tuning.

The three datasets are called by their place: the first has classes of one text (sentiment), the
second two classes of pairs (paraphrases; the rich one, with by far the most rows), the third scores
of pairs (similarity).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field, model_validator

from qa_lib.data import selection
from qa_lib.data.batches import RoundRobin
from qa_lib.reports import common, trials
from qa_lib.reports.comparisons import Comparison, Step
from qa_lib.settings.parameters import (
    Batch,
    Heads,
    Imbalance,
    Multitask,
    Penalty,
    Rate,
    Rows,
    Seeds,
    Share,
    Smart,
    Study,
    WholeEpochs,
)
from qa_lib.settings.params import UserError, name_dataset
from qa_lib.settings.spec import Spec
from qa_lib.store import runs

TITLE = "Walk Less and Only Down Smooth Valleys"

# Variant: its name for readers, and its one colour everywhere, in the order of every figure. One
# hue for each of the report's groups: one task, equal batches, all of the rich dataset.
MODELS = {
    "pretrain": ("Frozen encoder", "#6b7280"),
    "finetune": ("Fine-tuned", "#0072b2"),
    "smart": ("SMART", "#d55e00"),
    "smart-dropout": ("SMART, dropout on", "#b5578c"),
    "smart-unit-norm": ("SMART, as public code", "#9a6a4a"),
    "smart-r3f": ("Random noise (R3F)", "#b87a00"),
    "smart-gaussian": ("Gaussian noise", "#94762a"),
    "heads-only": ("Heads alone trained", "#4a4a4a"),
    "rrobin": ("Round-robin", "#009e73"),
    "rrobin-16": ("Round-robin, small batches", "#3c8c6a"),
    "rrobin-long": ("Round-robin, more steps", "#5a7a00"),
    "rrobin-distribution": ("Round-robin, distribution of scores", "#80802c"),
    "rrobin-smart": ("Round-robin + SMART", "#882255"),
    "rrobin-smart-softmax": ("Round-robin + SMART, as report's code", "#c0645a"),
    "pre": ("Paraphrases alone", "#8878c8"),
    "rrobin-pre-smart": ("Paraphrases first, + SMART", "#6a5acd"),
    "rrobin-full": ("All paraphrases", "#1f6f8b"),
    "rrobin-full-16": ("All paraphrases, small batches", "#4a8fa8"),
    "rrobin-full-scaled": ("All paraphrases, every loss a mean", "#2a9d9d"),
    "rrobin-full-no-quora": ("As many rounds, no paraphrases", "#7a8a99"),
    "rrobin-full-smart": ("All paraphrases + SMART", "#aa4499"),
    "rrobin-full-layer": ("All paraphrases + relational layer", "#222222"),
    "layer-unshared": ("A relational layer for each task", "#555577"),
}

# Models that take the seeds of the model they start from, or those of sweeps.
SEEDS_OF = {
    "heads-only": "finetune",
    "rrobin-pre-smart": "pre",
    "smart-r3f": "sweep_seeds",
    "smart-gaussian": "sweep_seeds",
}

# Experiments whose runs, or some of them, have `sweep_seeds`.
SWEEPS = {"noise", "weights", "radius", "bregman", "sizes", "imbalance", "quora"}

# The datasets as the claims call them: the three, in the order of `domains`, and `reviews`.
SETS = ("sst", "quora", "sts")
REVIEWS = "cfimdb"

# Model → what it is, where its name does not say so; stands below the page's first figure.
NOTES = {
    "rrobin": "three tasks in turn",
    "rrobin-full": "more pairs of Quora",
    "rrobin-16": "in the batches that SMART has",
}
# What a page leads with: the clean dataset, and first what has a control.
COMPARISONS = (
    Comparison("smart-small-sst", "Round-robin + SMART", "Round-robin", "sentiment, accuracy"),
    Comparison("smart-single-sst", "SMART", "Fine-tuned", "sentiment, accuracy", is_turned=True),
    Comparison("rich-data-costs-sst", "Round-robin", "All paraphrases", "sentiment, accuracy"),
    Comparison(
        "more-data-wins",
        "All paraphrases",
        "Round-robin",
        "paraphrases, accuracy, and similarity, Pearson's r × 100",
    ),
    Comparison("layer-sts", "Relational layer", "All paraphrases", "similarity, Pearson's r × 100"),
)
# From fine-tuning on one task to the report's best model; on SST by the claim layer-sst, on STS by
# layer-sts.
STEPS = (
    Step("three tasks in turn", "finetune", "rrobin"),
    Step("all paraphrases, batches by data size", "rrobin", "rrobin-full-scaled"),
    Step("sentiment's loss divided by the full batch", "rrobin-full-scaled", "rrobin-full"),
    Step("the relational layer", "rrobin-full", "rrobin-full-layer"),
)

# Equal tuning: the models that have trials, and those that take the settings of round-robin, with
# the experiment that they are of.
TUNED = ("finetune", "smart", "rrobin", "rrobin-smart")
FOLLOWERS = {
    "rrobin-full": "full",
    "rrobin-full-layer": "full",
    "rrobin-full-scaled": "controls",
}


class Parameters(Study):
    """Three tasks, SMART, schedules, a relational layer, and what could explain their gains.

    `train_rows` are those of the first dataset.
    """

    report: Literal["smart"]
    # Classes of one text; two classes of pairs, the rich dataset; scores of pairs.
    domains: list[str] = Field(min_length=3, max_length=3)
    reviews: str | None = None  # another dataset of classes of one text, for one task alone
    # The first dataset's test rows altered: what SMART should stand better than its baseline.
    altered_tests: list[str]
    experiments: list[
        Literal[
            "single",
            "reviews",
            "rrobin",
            "full",
            "full-smart",
            "controls",
            "heads",
            "steps",
            "dropout",
            "weights",
            "radius",
            "bregman",
            "codes",
            "noise",
            "sizes",
            "imbalance",
            "quora",
            "distribution",
        ]
    ] = Field(min_length=1)  # parts of the study that are run
    arms: list[Literal["printed", "tuned"]] = Field(min_length=1)
    # Model → the seeds that its runs have beside `seeds`.
    further_seeds: dict[str, Seeds] = {}
    sweep_seeds: Seeds | None = None  # of sweeps; by default those of the model
    pair_rows: Rows  # training rows of the third dataset, and of the second in equal batches
    full_rows: Rows  # those of the second where it gives all
    review_rows: Rows  # those of `reviews`
    review_models: list[Literal["pretrain", "finetune", "smart"]] = []  # none: all three
    pooling: Literal["cls", "pooler", "mean"]  # what a head reads of a text
    head_dropout: Share
    schedule: Literal["linear", "constant"]
    checkpoint: Literal["last", "best"]  # best: by the mean score of the run's datasets
    judged_on: Literal["validation", "dev"]  # rows that choose the checkpoint of several tasks
    looks: int = Field(gt=0, le=1000)  # evaluations on them in an epoch
    frozen_rate: Rate  # where heads alone are trained
    smart_batch: Batch  # with SMART
    smart_clip: float = Field(gt=0, le=1e30)
    adversarial: Penalty  # λ, weight of the adversarial term
    bregman: Penalty  # μ, weight of the Bregman term
    perturbation: Literal["paper", "unit_norm"]  # projected to the ball, or as in public codes
    radius: Annotated[float, Field(ge=0, le=1)]  # ε
    norm: Literal["inf", "2"] = "inf"  # of the ball; with 2 over all of an example's tokens
    start_sd: Annotated[float, Field(ge=0, le=1)]  # σ of the noise that the ascent starts from
    step_size: Annotated[float, Field(gt=0, le=1000)]  # η of the ascent
    ascent_steps: int = Field(ge=1, le=100)  # K
    beta: Share  # β, what an update keeps of the averaged weights
    beta_schedule: Literal["constant", "paper"]  # paper: 0.99 in the first tenth, then 0.999
    gaussian_weight: Penalty  # weight of the loss on noisy embeddings, beside that on clean ones
    sweep_weights: list[Penalty]
    sweep_radii: list[Annotated[float, Field(ge=0, le=1)]]
    sweep_bregman: list[Penalty]
    sweep_noise: list[Annotated[float, Field(gt=0, le=1)]]  # sd of Gaussian noise
    sweep_rows: list[Rows]  # training rows of one task
    sweep_imbalance: list[Annotated[float, Field(ge=1, le=1000)]]  # of its classes, most to least
    skewed_rows: Rows  # training rows of that sweep
    sweep_full_rows: list[Rows]  # of the second dataset, in as many steps as with all
    # Arm tuned: every rate with every weight λ with SMART, or with every number of epochs without.
    trial_rates: list[Rate] = Field(min_length=1)
    trial_weights: list[Penalty] = Field(min_length=1)
    trial_epochs: list[WholeEpochs] = Field(min_length=1)

    @model_validator(mode="after")
    def _check_reviews(self):
        if "reviews" in self.experiments and not self.reviews:
            raise ValueError(
                "reviews: the part reviews of experiments needs a dataset; name one, or leave the "
                "part out"
            )
        return self

    @model_validator(mode="after")
    def _check_further_seeds(self):
        for model, seeds in self.further_seeds.items():
            if model not in MODELS:
                raise ValueError(
                    f"further_seeds: {model} is no model of this report; its models are "
                    f"{', '.join(MODELS)}"
                )
            if model in SEEDS_OF:
                raise ValueError(
                    f"further_seeds: {model} has the seeds of {SEEDS_OF[model]}; write those "
                    "instead"
                )
            for seed in seeds:
                if seeds.count(seed) > 1:
                    raise ValueError(f"further_seeds: {model} has the seed {seed} twice")
        return self

    @model_validator(mode="after")
    def _check_rows(self):
        if self.full_rows < self.pair_rows:
            raise ValueError(
                f"full_rows: {self.full_rows} is fewer than the {self.pair_rows} of pair_rows, "
                f"which equal batches take of {self.domains[1]}; write at least as many"
            )
        for rows in self.sweep_full_rows:
            if "quora" in self.experiments and rows > self.full_rows:
                raise ValueError(
                    f"sweep_full_rows: {rows} is more than full_rows {self.full_rows}, which is all"
                )
        return self

    @model_validator(mode="after")
    def _check_equal_tuning(self):
        weights, epochs = len(self.trial_weights), len(self.trial_epochs)
        if "tuned" in self.arms and weights != epochs:
            raise ValueError(
                f"trial_weights: with the arm tuned a model with SMART tries {weights} of them at "
                f"each rate, and the others {epochs} of trial_epochs; name as many of both"
            )
        return self

    def named_datasets(self) -> dict[str, list[str]]:
        known = super().named_datasets()
        reviews = [self.reviews] if self.reviews and "reviews" in self.experiments else []
        altered = {"altered_tests": self.altered_tests}
        return known | {"reviews": reviews} | altered

    @property
    def not_measured(self) -> dict[str, str]:
        return {"seconds": "no undisturbed machine"}

    @property
    def stand_ins(self) -> dict[str, str]:
        if self.source != "embedded":
            return {}
        places = dict(zip(self.domains, SETS, strict=True))
        if self.reviews:
            places[self.reviews] = REVIEWS
        return places

    def list_seeds(self, model: str) -> list[int]:
        """Return the seeds of a model's runs."""
        return list(dict.fromkeys([*self.seeds, *self.further_seeds.get(model, [])]))

    def describe_training(self) -> str:
        sentiment, paraphrase, similarity = (name_dataset(self, name) for name in self.domains)
        rows = (
            f"{self.train_rows:,} training examples of {sentiment}, {self.pair_rows:,} of "
            f"{paraphrase} ({self.full_rows:,} for models that take all), "
            f"{self.pair_rows:,} of {similarity}"
        )
        if "reviews" in self.experiments:
            rows += f"; {self.review_rows:,} of {name_dataset(self, self.reviews)} alone"
        return f"{rows}; {self.describe_seeds()}"

    def describe_seeds(self) -> str:
        text = super().describe_seeds()
        most = max([len(self.list_seeds(model)) for model in self.further_seeds], default=0)
        if most > len(self.seeds):  # the table of models says how many each has
            text = f"{len(self.seeds)} to {most} seeds of each model"
        has_sweeps = not SWEEPS.isdisjoint(self.experiments)
        if has_sweeps and self.sweep_seeds and len(self.sweep_seeds) != len(self.seeds):
            text += f", {len(self.sweep_seeds)} in sweeps"
        return text


# Of each of the three datasets its task, and what it has of texts.
WANTED = (("classes", "single texts"), ("classes", "pairs"), ("score", "pairs"))


def check_datasets(params: Parameters):
    """Raise UserError where the report cannot use a dataset's task, or its test rows."""
    common.check_domains(params)
    asked = []
    for name, wanted in zip(params.domains, WANTED, strict=True):
        asked.append(("domains", name, wanted))
    if "reviews" in params.experiments:
        asked.append(("reviews", params.reviews, WANTED[0]))
    for name in params.altered_tests:
        asked.append(("altered_tests", name, WANTED[0]))
    for parameter, name, wanted in asked:
        d = selection.find_dataset(name, params.source, params.data)
        texts = "single texts" if d.text_pair is None else "pairs"
        if (d.task, texts) != wanted:
            raise UserError(
                f"{parameter}: {name} has {texts} of the task {d.task} where the report needs "
                f"{wanted[1]} of the task {wanted[0]}; name another dataset there"
            )
    first = params.domains[0]
    for name in params.altered_tests:
        d = selection.find_dataset(name, params.source, params.data)
        if d.part_of != first:
            raise UserError(
                f"altered_tests: {name} is no test set of {first}, the first of domains; name one "
                "that is part_of it, or write altered_tests=[]"
            )


def describe_rows(params: Parameters, rows: dict[str, int]) -> dict:
    """Return the fields of a run on so many rows of datasets.

    Alone or together, a dataset gives the same rows for one seed.
    """
    every = [*params.domains, params.reviews]
    places = [every.index(name) for name in rows]
    return {
        "domains": list(rows),
        "rows": list(rows.values()),
        "places": None if places == list(range(len(places))) else places,
        "fingerprints": common.fingerprint_domains(params, rows),
        "validation_rows": params.validation_rows * len(rows),
    }


def make_smart(params: Parameters, **changes) -> Smart:
    """Return SMART's options as the parameters say, with changes."""
    fields = {
        "adversarial": params.adversarial,
        "bregman": params.bregman,
        "variant": params.perturbation,
        "radius": params.radius,
        "norm": params.norm,
        "start_sd": params.start_sd,
        "step_size": params.step_size,
        "steps": params.ascent_steps,
        "beta": params.beta,
        "beta_schedule": params.beta_schedule,
    }
    return Smart(**fields | changes)


def count_rounds(params: Parameters) -> int:
    """Count the rounds of an epoch with all rows of the rich dataset."""
    sizes = (params.train_rows, params.full_rows, params.pair_rows)
    lengths = {name: [1] * size for name, size in zip(params.domains, sizes, strict=True)}
    schedule = Multitask(schedule="rrobin-full")
    return RoundRobin(lengths, params.batch_size, schedule, seed=0).natural_rounds


def list_models(params: Parameters) -> dict[str, dict]:
    """Return model → the fields of its runs, at the report's settings.

    What a model starts from is not among them; the experiments say it.
    """
    first, rich, third = params.domains
    few = {first: params.train_rows, rich: params.pair_rows, third: params.pair_rows}
    one = describe_rows(params, {first: params.train_rows})
    equal = describe_rows(params, few)
    every = describe_rows(params, few | {rich: params.full_rows})
    no_rich = describe_rows(params, {first: params.train_rows, third: params.pair_rows})
    heads = Heads(pooling=params.pooling)

    def change_heads(**changes) -> dict:
        return {"heads": heads.model_copy(update=changes)}

    def take_turns(**options) -> dict:
        return {"multitask": Multitask(judged_on=params.judged_on, **options)}

    frozen = change_heads(frozen=True) | {"learning_rate": params.frozen_rate}
    small_batch = {"batch_size": params.smart_batch}
    smart = {"smart": make_smart(params), "clip": params.smart_clip} | small_batch
    in_turn = equal | take_turns()
    # The report's code divides the sum over a batch by the full batch size, though a batch of the
    # first dataset has a few rows there. The control divides by the rows.
    by_size = {"schedule": "rrobin-full", "fixed_divisor": [first]}
    full = every | take_turns(**by_size)
    rounds = count_rounds(params)
    layer = change_heads(relational="shared")
    models = {
        "pretrain": one | frozen,
        "finetune": one,
        "smart": one | smart,
        "smart-dropout": one | smart | {"smart": make_smart(params, dropout="on")},
        "smart-unit-norm": one | smart | {"smart": make_smart(params, variant="unit_norm")},
        # Noise in the adversary's place, at the cost of SMART in forward passes: two draws with a
        # clean side, and three without.
        "smart-r3f": one
        | smart
        | {"smart": make_smart(params, variant="r3f", bregman=0.0, draws=2)},
        # Scores have a head of their own here, since a cosine has nothing to train.
        "heads-only": describe_rows(params, {rich: params.pair_rows, third: params.pair_rows})
        | take_turns()
        | change_heads(frozen=True, score="distribution")
        | {"learning_rate": params.frozen_rate},
        "rrobin": in_turn,
        "rrobin-16": in_turn | small_batch,
        "rrobin-long": equal | take_turns(rounds=rounds),
        "rrobin-distribution": in_turn | change_heads(score="distribution"),
        "rrobin-smart": in_turn | smart,
        "rrobin-smart-softmax": in_turn
        | smart
        | {"smart": make_smart(params, divergence="softmax")},
        "pre": describe_rows(params, {rich: params.full_rows}),
        "rrobin-pre-smart": in_turn | smart,
        "rrobin-full": full,
        "rrobin-full-16": full | small_batch,
        "rrobin-full-scaled": every | take_turns(schedule="rrobin-full"),
        "rrobin-full-no-quora": no_rich | take_turns(rounds=rounds, **by_size),
        "rrobin-full-smart": full | smart,
        "rrobin-full-layer": full | layer,
        "layer-unshared": full | change_heads(relational="own"),
    }
    return {model: {"heads": heads} | fields for model, fields in models.items()}


@dataclass(frozen=True)
class Arm:
    """What the experiments of one arm are made of."""

    params: Parameters
    shared: dict  # fields of every run
    models: dict[str, dict]  # model → the fields of its runs
    chosen: dict[str, dict] = field(default_factory=dict)  # model → those that its trials chose

    def list_model_runs(
        self, model: str, variant: str | None = None, seeds: list[int] | None = None, **fields
    ) -> list[Spec]:
        """Return a run of a model for each seed.

        variant: by default the model's name; seeds: by default those that the parameters give it.
        """
        of_model = self.models[model] | self.chosen.get(model, {})
        specs = []
        for seed in seeds or self.params.list_seeds(model):
            own = {"variant": variant or model, "seed": seed}
            specs.append(Spec(**self.shared | of_model | own | fields))
        return specs

    def list_sweep_runs(self, model: str, word: str, **fields) -> list[Spec]:
        """Return the runs of one point of a sweep on the first dataset, by `word` in their names.

        They are scored on that dataset alone.
        """
        fields = {"tests": self.params.domains[:1]} | fields
        return self.list_model_runs(model, f"{model}-{word}", self.params.sweep_seeds, **fields)


# ---- the experiments ----


def list_tests(params: Parameters) -> list[str]:
    """Return the test sets of SMART's models and of their baselines, the altered ones too."""
    return params.domains + params.altered_tests


def plan_single(arm: Arm) -> list[Spec]:
    """One task: frozen encoder, fine-tuned, with SMART (Table 2, rows 1 to 3)."""
    specs = []
    for model in ("pretrain", "finetune", "smart"):
        specs += arm.list_model_runs(model, tests=list_tests(arm.params))
    return specs


def plan_reviews(arm: Arm) -> list[Spec]:
    """The same on another dataset (Table 1, which has no SMART there)."""
    params = arm.params
    rows = describe_rows(params, {params.reviews: params.review_rows})
    specs = []
    for model in params.review_models or ("pretrain", "finetune", "smart"):
        variant = f"{model}-{params.reviews}"
        specs += arm.list_model_runs(model, variant, **rows, tests=[params.reviews])
    return specs


def plan_rrobin(arm: Arm) -> list[Spec]:
    """Three tasks in turn, in equal batches, without and with SMART (rows 4 and 5).

    And with SMART's small batches alone, since they are four times as many updates.
    """
    tests = list_tests(arm.params)
    return (
        arm.list_model_runs("rrobin", tests=tests)
        + arm.list_model_runs("rrobin-smart", tests=tests)
        + arm.list_model_runs("rrobin-16", tests=arm.params.domains)
    )


def plan_full(arm: Arm) -> list[Spec]:
    """All of the rich dataset, without and with the relational layer (rows 7 and 9)."""
    return arm.list_model_runs("rrobin-full") + arm.list_model_runs("rrobin-full-layer")


def plan_full_smart(arm: Arm) -> list[Spec]:
    """SMART with the rich dataset: that alone first, and all in turn (rows 6 and 8)."""
    specs = []
    for start in arm.list_model_runs("pre", tests=[]):
        specs.append(start)
        specs += arm.list_model_runs("rrobin-pre-smart", seeds=[start.seed], start=start)
    return specs + arm.list_model_runs("rrobin-full-smart")


def plan_controls(arm: Arm) -> list[Spec]:
    """A loss by its own rows; no rich dataset; relational layers apart."""
    specs = []
    for model in ("rrobin-full-scaled", "rrobin-full-no-quora", "layer-unshared"):
        tests = arm.models[model]["domains"]  # a head that nothing trained has no score here
        specs += arm.list_model_runs(model, tests=tests)
    return specs


def plan_heads(arm: Arm) -> list[Spec]:
    """Heads of the pairs alone, on the encoder that was fine-tuned on one task."""
    specs = []
    for start in arm.list_model_runs("finetune", tests=list_tests(arm.params)):
        tests = arm.models["heads-only"]["domains"]
        specs.append(start)
        specs += arm.list_model_runs("heads-only", seeds=[start.seed], start=start, tests=tests)
    return specs


def plan_steps(arm: Arm) -> list[Spec]:
    """Equal batches for as many steps as with all of the rich dataset; and that in small ones."""
    return arm.list_model_runs("rrobin-long") + arm.list_model_runs("rrobin-full-16")


def plan_dropout(arm: Arm) -> list[Spec]:
    """SMART with dropout in its adversarial term."""
    return arm.list_model_runs("smart-dropout", tests=arm.params.domains[:1])


def plan_weights(arm: Arm) -> list[Spec]:
    """Sweep of λ, the weight of the adversarial term."""
    specs = []
    for weight in arm.params.sweep_weights:
        smart = make_smart(arm.params, adversarial=weight)
        specs += arm.list_sweep_runs("smart", "weight", smart=smart)
    return specs


def plan_radius(arm: Arm) -> list[Spec]:
    """Sweep of ε, the radius of the ball."""
    specs = []
    for radius in arm.params.sweep_radii:
        smart = make_smart(arm.params, radius=radius)
        specs += arm.list_sweep_runs("smart", "radius", smart=smart)
    return specs


def plan_bregman(arm: Arm) -> list[Spec]:
    """Sweep of μ, the weight of the Bregman term."""
    specs = []
    for weight in arm.params.sweep_bregman:
        smart = make_smart(arm.params, bregman=weight)
        specs += arm.list_sweep_runs("smart", "bregman", smart=smart)
    return specs


def plan_codes(arm: Arm) -> list[Spec]:
    """SMART as the report's code has it, where it is 0 on pairs, and as public codes have it."""
    one_task = arm.list_model_runs("smart-unit-norm", tests=arm.params.domains[:1])
    return arm.list_model_runs("rrobin-smart-softmax") + one_task


def plan_noise(arm: Arm) -> list[Spec]:
    """Noise in the adversary's place, at its cost: R3F, and plain Gaussian noise."""
    params = arm.params
    tests = params.domains[:1]
    specs = arm.list_model_runs("smart-r3f", seeds=params.sweep_seeds, tests=tests)
    gaussian = {"variant": "gaussian", "adversarial": params.gaussian_weight}
    for sd in params.sweep_noise:
        smart = make_smart(params, **gaussian, start_sd=sd, bregman=0.0, draws=3)
        specs += arm.list_sweep_runs("smart", "gaussian", smart=smart)
    return specs


def plan_sizes(arm: Arm) -> list[Spec]:
    """What SMART gains on one task by its training rows."""
    params = arm.params
    specs = []
    for rows in params.sweep_rows:
        fields = describe_rows(params, {params.domains[0]: rows})
        for model in ("finetune", "smart"):
            specs += arm.list_sweep_runs(model, "size", **fields)
    return specs


def plan_imbalance(arm: Arm) -> list[Spec]:
    """What SMART gains on one task by the imbalance of its classes, on as many rows."""
    params = arm.params
    fields = describe_rows(params, {params.domains[0]: params.skewed_rows})
    specs = []
    for ratio in params.sweep_imbalance:
        for model in ("finetune", "smart"):
            skewed = {"imbalance": Imbalance(ratio=ratio)}
            specs += arm.list_sweep_runs(model, "imbalance", **fields | skewed)
    return specs


def plan_quora(arm: Arm) -> list[Spec]:
    """The first task beside more and more rows of the rich dataset, in as many steps."""
    params = arm.params
    first, rich, third = params.domains
    options = arm.models["rrobin-full"]["multitask"]
    specs = []
    for number in params.sweep_full_rows:
        rows = {first: params.train_rows, rich: number, third: params.pair_rows}
        fields = describe_rows(params, rows)
        if number < params.full_rows:
            rounds = {"rounds": count_rounds(params)}
            fields["multitask"] = options.model_copy(update=rounds)
        variant = "rrobin-full-size"
        specs += arm.list_model_runs("rrobin-full", variant, params.sweep_seeds, **fields)
    return specs


def plan_distribution(arm: Arm) -> list[Spec]:
    """A distribution over scores in place of a cosine: the report's future work."""
    return arm.list_model_runs("rrobin-distribution")


# The experiments that parameter `experiments` names, in the order of their runs.
EXPERIMENTS = {
    "single": plan_single,
    "reviews": plan_reviews,
    "rrobin": plan_rrobin,
    "full": plan_full,
    "controls": plan_controls,
    "full-smart": plan_full_smart,
    "heads": plan_heads,
    "steps": plan_steps,
    "dropout": plan_dropout,
    "codes": plan_codes,
    "noise": plan_noise,
    "weights": plan_weights,
    "radius": plan_radius,
    "bregman": plan_bregman,
    "sizes": plan_sizes,
    "imbalance": plan_imbalance,
    "quora": plan_quora,
    "distribution": plan_distribution,
}


# ---- the list of runs ----


def list_settings(params: Parameters, model: str) -> list[dict]:
    """Return the fields of each trial of a model: four at the report's grid, for every model.

    With SMART all have the most epochs that the others may choose.
    """
    most = float(max(params.trial_epochs))
    settings = []
    for rate in params.trial_rates:
        if "smart" in model:
            for weight in params.trial_weights:
                smart = make_smart(params, adversarial=weight)
                settings.append({"learning_rate": rate, "epochs": most, "smart": smart})
        else:
            for epochs in params.trial_epochs:
                settings.append({"learning_rate": rate, "epochs": float(epochs)})
    return settings


def plan_tuned_arm(arm: Arm, score: Callable[[Spec], trials.Score]) -> list[Spec]:
    """Return the trials of the models that are tuned, on one seed, and the runs of what they chose.

    All of the rich dataset is too dear for trials of its own: its models take the settings of
    round-robin in equal batches.
    """
    params = arm.params

    def trial(model: str, setting: dict) -> Spec:
        variant, seeds = f"{model}-trial", params.seeds[:1]
        return arm.list_model_runs(model, variant, seeds, **setting, tests=[])[0]

    settings = {model: list_settings(params, model) for model in TUNED}
    specs, best = trials.choose_from_settings(settings, trial, score)
    if not best:
        return specs
    followers = []
    for model, experiment in FOLLOWERS.items():
        if experiment in params.experiments:
            followers.append(model)
    chosen = best | dict.fromkeys(followers, best["rrobin"])
    tuned = Arm(params, arm.shared, arm.models, chosen)
    for model in TUNED:
        specs += tuned.list_model_runs(model, tests=list_tests(params))
    for model in followers:
        specs += tuned.list_model_runs(model)
    return specs


def plan(
    params: Parameters, score: Callable[[Spec], trials.Score] = trials.find_score
) -> list[Spec]:
    """Return every run of the report at these parameters, each once under each of its names.

    With arm `tuned` its trials, and what follows from them once they are recorded. score: of a
    trial; by default the one in its record.
    """
    check_datasets(params)
    shared = common.shared_fields(params) | {"tests": params.domains}
    start = common.plan_start(params, shared, heads=Heads(pooling=params.pooling))
    shared["start"] = start[0] if start else None
    models = list_models(params)
    specs = []
    for name in params.arms:
        arm = Arm(params, shared | {"arm": name}, models)
        if name == "printed":
            specs += common.list_runs_of_experiments(arm, EXPERIMENTS)
        else:
            specs += plan_tuned_arm(arm, score)
    return start + common.drop_repeats(specs)


def collect_values(params: Parameters) -> dict[str, int]:
    """Return numbers that findings name and no score has.

    steps_rrobin, steps_rrobin_16 …: the updates of a model, at the report's settings; none of
    sweeps, whose runs differ. alone: the runs of one task, without and with SMART, and
    alone_still_learning: those of them whose validation loss is least after the last epoch.
    """
    values = {}
    alone = []
    for spec in plan(params):
        record = runs.find_record(spec)
        if record and spec.arm == "printed" and spec.variant in MODELS:
            name = f"steps_{spec.variant}".replace("-", "_")
            values[name] = record["history"][-1]["step"]
            if spec.variant in ("finetune", "smart"):
                losses = [row["validation_loss"] for row in record["history"]]
                alone.append(losses[-1] == min(losses))
    return values | {"alone": len(alone), "alone_still_learning": sum(alone)}
