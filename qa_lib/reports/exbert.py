"""Report 2, Bring in the ExBERT (Fan, Fan, Song; CS 7643): a DistilBERT with a sparse ST-MoE layer.

Its parameters, its models, one function for each of its experiments, and the list of its runs:
V-DB (the plain span model, models/heads.py), ExBERT (models/exbert.py), the controls that could
explain its gain, sweeps, and equal tuning of all.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from pydantic import Field, model_validator

from qa_lib.reports import common, trials
from qa_lib.reports.comparisons import Comparison, Step
from qa_lib.settings.parameters import (
    Blocks,
    Epochs,
    Experts,
    Factor,
    Layer,
    Penalty,
    Rate,
    Rows,
    Seeds,
    Share,
    Study,
)
from qa_lib.settings.spec import Spec
from qa_lib.store import runs

TITLE = "Bring in the ExBERT"

# Variant: its name for readers, and its one colour everywhere, in the order of every figure. The
# colours are after Okabe and Ito, dark enough on white.
MODELS = {
    "v-db": ("V-DB", "#0072b2"),
    "exbert": ("ExBERT", "#b87a00"),
    "exbert-tuned": ("ExBERT (final)", "#d55e00"),
    "plain-tuned": ("(a) without ST-MoE block", "#009e73"),
    "dense-compute": ("(b) dense, equal compute", "#b5578c"),
    "dense-parameters": ("(b) dense, equal weights", "#6a5acd"),
    "v-db-fast": ("V-DB at ExBERT's rate", "#4a8fa8"),
    "exbert-all-blocks": ("ExBERT (final), all blocks", "#9a4a1a"),
    "dense-all-blocks": ("(b) dense, all blocks", "#7b3f61"),
}
HEADLINE = ("v-db", "exbert-tuned", "plain-tuned")
DENSE = ("dense-compute", "dense-parameters")
ON_ALL_BLOCKS = ("v-db-fast", "exbert-all-blocks", "dense-all-blocks")
# Those that experiment longer-trials compares.
LONGER = (*HEADLINE, "exbert-all-blocks")

# Model → what it is, where its name does not say so; stands below the page's first figure.
NOTES = {
    "v-db": "the plain encoder",
    "exbert-tuned": "fewer blocks, and experts",
    "dense-compute": "one layer as wide as a token's experts",
}
# What a page leads with.
COMPARISONS = (
    Comparison(
        "headline",
        "ExBERT (final)",
        "V-DB",
        "EM, mean of mixtures and tests",
        ("v-db-fast", *DENSE),
    ),
    Comparison("squad-plus-8", "ExBERT (final)", "V-DB", "EM on SQuAD at 80:20"),
    Comparison("bioasq-plus-13", "ExBERT (final)", "V-DB", "EM on BioASQ at 80:20"),
)
# From V-DB to ExBERT (final) at the report's settings, by the claim headline.
STEPS = (
    Step("ExBERT's learning rate and epochs", "v-db", "v-db-fast"),
    Step("fewer encoder blocks", "v-db-fast", "plain-tuned"),
    Step("the ST-MoE block", "plain-tuned", "exbert-tuned"),
)
# The same with equal tuning, where every model has its own rate and epochs.
EQUAL_STEPS = (
    Step("fewer encoder blocks", "v-db", "plain-tuned"),
    Step("the ST-MoE block", "plain-tuned", "exbert-tuned"),
)


class Parameters(Layer, Study):
    """Mixtures of two domains, a sparse layer, and what could explain its gain."""

    report: Literal["exbert"]
    domains: list[str] = Field(min_length=2, max_length=2)
    experiments: list[
        Literal[
            "headline",
            "ratios",
            "untuned",
            "order",
            "single",
            "dense",
            "steps",
            "dense-all-blocks",
            "blocks",
            "experts",
            "rates",
            "dropout",
            "balance",
            "more-rows",
            "longer-trials",
        ]
    ] = Field(min_length=1)  # parts of the study that are run
    arms: list[Literal["printed", "tuned"]] = Field(min_length=1)
    ratios: list[float] = Field(min_length=1)  # share of the first domain in the training mixture
    # Of `ratios` those of the controls; those of the order, be they among `ratios` or not.
    control_ratios: list[float]
    # The mixture of sweeps and trials, and of all seeds; trained even where `ratios` lack it.
    centre: float = Field(ge=0, le=1)
    side_seeds: Seeds  # of all runs but V-DB, ExBERT (final) and (a) at the centre
    dense_seeds: Seeds | None = None  # of controls (b), the dearest; None: side_seeds
    step_seeds: Seeds | None = None  # of layers on all blocks; None: side_seeds
    orders: list[Literal["sequential", "shuffled"]]  # beside the trainer's
    full_rows: list[Rows] = Field(min_length=2, max_length=2)  # training rows of each domain alone
    sizes: list[Rows]  # training rows of the first domain alone
    more_rows: Rows | None = None  # training rows of experiment more-rows, at the centre
    more_seeds: Seeds | None = None  # of that experiment; by default `side_seeds`
    # Epochs of experiment longer-trials, beside those of trial_epochs, at the centre.
    longer_epochs: Epochs | None = None
    longer_seeds: Seeds | None = None  # of that experiment; by default `side_seeds`
    tuned_blocks: Blocks  # ExBERT as the report tunes it
    tuned_rate: Rate
    tuned_epochs: Epochs
    tuned_dropout: Literal["none", "before", "after", "both"]
    curve_epochs: Epochs
    sweep_blocks: list[Blocks]
    sweep_experts: list[Experts]
    sweep_rates: list[Factor]  # multiples of the plain rate
    sweep_dropout: list[Literal["none", "before", "after", "both"]]
    sweep_dropout_rates: list[Share]
    sweep_balance: list[Penalty]
    trial_rates: list[Rate] = Field(min_length=1)  # arm tuned: the same trials for every model
    trial_epochs: list[Epochs] = Field(min_length=1)
    # Trials in rounds: every rate with the first of trial_epochs, then the better half with the
    # next, and so on.
    halving: bool = False

    @model_validator(mode="after")
    def _check_ratios(self):
        for name, ratios in (("ratios", self.ratios), ("control_ratios", self.control_ratios)):
            for ratio in ratios:
                if not 0 <= ratio <= 1:
                    raise ValueError(f"{name}: {ratio} is not a share between 0 and 1")
        return self

    @model_validator(mode="after")
    def _check_sweep_experts(self):
        for experts in self.sweep_experts:
            if experts < self.top_n:
                raise ValueError(f"sweep_experts: {experts} is fewer than top_n {self.top_n}")
        return self

    @model_validator(mode="after")
    def _check_more_rows(self):
        if "more-rows" in self.experiments and not self.more_rows:
            raise ValueError(
                "more_rows: the part more-rows of experiments needs a number of training rows"
            )
        return self

    @model_validator(mode="after")
    def _check_longer_epochs(self):
        if "longer-trials" in self.experiments:
            most = max(self.trial_epochs)
            if self.longer_epochs is None or self.longer_epochs <= most:
                raise ValueError(
                    "longer_epochs: the part longer-trials of experiments needs a number of epochs "
                    f"above those of trial_epochs, whose largest is {most:g}"
                )
        return self

    @model_validator(mode="after")
    def _check_trial_epochs(self):
        if self.halving and sorted(self.trial_epochs) != self.trial_epochs:
            rising = ",".join(f"{epochs:g}" for epochs in sorted(self.trial_epochs))
            raise ValueError(
                "trial_epochs: with halving each round has more epochs than the one before it; "
                f"write [{rising}]"
            )
        return self

    @model_validator(mode="after")
    def _check_equal_tuning(self):
        if self.arms == ["tuned"] and EQUALLY_TUNED.isdisjoint(self.experiments):
            raise ValueError(
                f"experiments: equal tuning has no run of {', '.join(self.experiments)}; name one "
                f"of {', '.join(sorted(EQUALLY_TUNED))} too, or write arms=[printed]"
            )
        return self

    @property
    def mixtures(self) -> tuple[float, ...]:
        return tuple(self.ratios)

    @property
    def control_mixtures(self) -> list[float]:
        """The mixtures of the controls."""
        return [ratio for ratio in self.ratios if ratio in self.control_ratios]

    def describe_training(self) -> str:
        return f"{self.train_rows:,} training examples a mixture; {self.describe_seeds()}"

    def describe_seeds(self) -> str:
        text = super().describe_seeds()
        if len(self.side_seeds) != len(self.seeds):
            text += f" in the central comparison, {len(self.side_seeds)} elsewhere"
        of_controls = {
            "dense": self.dense_seeds,
            "steps": self.step_seeds,
            "dense-all-blocks": self.step_seeds,
        }
        numbers = set()
        for part, seeds in of_controls.items():
            if seeds and part in self.experiments:
                numbers.add(len(seeds))
        if numbers:
            text += f", {' to '.join(map(str, sorted(numbers)))} of some controls"
        return text


def list_models(params: Parameters) -> dict[str, dict]:
    """Return model → the fields in which its runs differ from V-DB's, at the report's settings."""
    layer = Layer(**params.model_dump(include=set(Layer.model_fields)))
    final_layer = layer.model_copy(update={"dropout_at": params.tuned_dropout})
    fast = {"learning_rate": params.tuned_rate, "epochs": params.tuned_epochs}
    final = fast | {"blocks": params.tuned_blocks}
    return {
        "v-db": {},
        "exbert": {"layer": layer},
        "exbert-tuned": final | {"layer": final_layer},
        # Control (a): all but the layer.
        "plain-tuned": final,
        # Controls (b): a dense layer as wide as the experts a token meets, and as wide as all of
        # them.
        "dense-compute": final | {"layer": final_layer, "dense": float(layer.top_n)},
        "dense-parameters": final | {"layer": final_layer, "dense": float(layer.experts)},
        # ExBERT's rate and epochs on all blocks, without and with the ST-MoE block.
        "v-db-fast": fast,
        "exbert-all-blocks": fast | {"layer": final_layer},
        # The same with a dense layer as wide as the experts a token meets.
        "dense-all-blocks": fast | {"layer": final_layer, "dense": float(layer.top_n)},
    }


@dataclass(frozen=True)
class Arm:
    """What the experiments of one arm are made of."""

    params: Parameters
    shared: dict  # fields of every run
    models: dict[str, dict]  # model → the fields in which it differs

    def list_mixture_runs(
        self, variant: str, ratios: list[float], seeds: list[int], rows: int | None = None, **fields
    ) -> list[Spec]:
        """Return a run for each mixture and seed; rows: by default all training rows."""
        rows = rows or self.params.train_rows
        specs = []
        for ratio in ratios:
            first = round(rows * ratio)
            for seed in seeds:
                own = {
                    "rows": [first, rows - first],
                    "variant": variant,
                    "ratio": ratio,
                    "seed": seed,
                }
                specs.append(Spec(**self.shared | own | fields))
        return specs

    def list_model_runs(
        self,
        model: str,
        ratios: list[float],
        seeds: list[int],
        variant: str | None = None,
        rows: int | None = None,
        **fields,
    ) -> list[Spec]:
        """Return a run of a model for each mixture and seed.

        variant: by default the model's name; rows: by default all training rows.
        """
        fields = self.models[model] | fields
        return self.list_mixture_runs(variant or model, ratios, seeds, rows, **fields)

    def list_curve_runs(
        self, blocks: int | None = None, rate: float | None = None, **layer
    ) -> list[Spec]:
        """Return ExBERT at one point of a sweep, with losses after each epoch.

        The schedule is the same for all points.

        blocks, rate: None is the plain model's. layer: fields of the ST-MoE layer.
        """
        fields = {"layer": self.models["exbert"]["layer"].model_copy(update=layer)}
        if blocks is not None:
            fields["blocks"] = blocks
        if rate is not None:
            fields["learning_rate"] = rate
        return self.list_mixture_runs(
            "exbert-curve",
            [self.params.centre],
            self.params.side_seeds,
            epochs=self.params.curve_epochs,
            **fields,
        )


def round_rate(rate: float) -> float:
    """Return a rate without rounding errors: 3 × 1e-4 is 3e-4, so that it is one run."""
    return float(f"{rate:.6g}")


# ---- the experiments ----


def plan_headline(arm: Arm) -> list[Spec]:
    """V-DB, ExBERT as the report tunes it, and control (a), over the mixtures (Fig. 6)."""
    params = arm.params
    specs = []
    for model in HEADLINE:
        ratios = params.control_mixtures if model == "plain-tuned" else params.ratios
        others = [ratio for ratio in ratios if ratio != params.centre]
        specs += arm.list_model_runs(model, [params.centre], params.seeds)
        specs += arm.list_model_runs(model, others, params.side_seeds)
    return specs


def plan_dense(arm: Arm) -> list[Spec]:
    """Controls (b): a dense layer in the place of the experts."""
    params = arm.params
    seeds = params.dense_seeds or params.side_seeds
    specs = []
    for model in DENSE:
        specs += arm.list_model_runs(model, params.control_mixtures, seeds)
    return specs


def plan_steps(arm: Arm) -> list[Spec]:
    """All encoder blocks at ExBERT's rate and epochs, without and with the ST-MoE block."""
    params = arm.params
    specs = arm.list_model_runs("v-db-fast", params.control_mixtures, params.side_seeds)
    return specs + list_runs_on_all_blocks(arm, "exbert-all-blocks")


def plan_dense_all_blocks(arm: Arm) -> list[Spec]:
    """Control (b) of equal compute on all encoder blocks."""
    return list_runs_on_all_blocks(arm, "dense-all-blocks")


def list_runs_on_all_blocks(arm: Arm, model: str) -> list[Spec]:
    """Return a model with a layer behind all encoder blocks, over the mixtures."""
    params = arm.params
    seeds = params.step_seeds or params.side_seeds
    return arm.list_model_runs(model, params.control_mixtures, seeds)


def plan_ratios(arm: Arm) -> list[Spec]:
    """V-DB over the mixtures (Table 3, Fig. 3)."""
    return arm.list_model_runs("v-db", arm.params.ratios, arm.params.side_seeds)


def plan_untuned(arm: Arm) -> list[Spec]:
    """V-DB and ExBERT with all blocks and V-DB's rate, over the mixtures."""
    specs = []
    for model in ("v-db", "exbert"):
        specs += arm.list_model_runs(model, arm.params.ratios, arm.params.side_seeds)
    return specs


def plan_order(arm: Arm) -> list[Spec]:
    """Both with the training examples in another order."""
    params = arm.params
    mixtures = [ratio for ratio in params.control_ratios if 0 < ratio < 1]
    specs = []
    for model in ("v-db", "exbert"):
        for name in ["trainer", *params.orders]:
            specs += arm.list_model_runs(model, mixtures, params.side_seeds, order=name)
    return specs


def plan_single(arm: Arm) -> list[Spec]:
    """Both on each domain alone with all its rows, and V-DB on fewer rows of the first."""
    params = arm.params
    specs = []
    for model in ("v-db", "exbert"):
        for ratio, rows in zip((1.0, 0.0), params.full_rows, strict=True):
            specs += arm.list_mixture_runs(
                f"{model}-full", [ratio], params.side_seeds, rows, **arm.models[model]
            )
    for rows in params.sizes:
        specs += arm.list_mixture_runs("v-db-size", [1.0], params.side_seeds, rows)
    return specs


def plan_blocks(arm: Arm) -> list[Spec]:
    """Sweep of the encoder's blocks (Fig. 4)."""
    specs = []
    for number in arm.params.sweep_blocks:
        specs += arm.list_curve_runs(blocks=number)
    return specs


def plan_experts(arm: Arm) -> list[Spec]:
    """Sweep of the number of experts."""
    specs = []
    for number in arm.params.sweep_experts:
        specs += arm.list_curve_runs(experts=number)
    return specs


def list_rate_runs(arm: Arm, plain_rate: float) -> list[Spec]:
    """Return ExBERT at multiples of the plain model's learning rate."""
    specs = []
    for multiple in arm.params.sweep_rates:
        rate = round_rate(multiple * plain_rate)
        specs += arm.list_curve_runs(arm.params.tuned_blocks, rate)
    return specs


def plan_rates(arm: Arm) -> list[Spec]:
    """Sweep of the learning rate (Fig. 5), and V-DB at its own rate and at ExBERT's."""
    params = arm.params
    specs = list_rate_runs(arm, params.learning_rate)
    for rate in (params.learning_rate, params.tuned_rate):
        specs += arm.list_mixture_runs(
            "v-db-curve",
            [params.centre],
            params.side_seeds,
            epochs=params.curve_epochs,
            learning_rate=rate,
        )
    return specs


def plan_dropout(arm: Arm) -> list[Spec]:
    """Sweep of dropout: its place, its rate, and both places with a lower learning rate."""
    params = arm.params
    blocks = params.tuned_blocks
    rate = params.tuned_rate
    specs = []
    for place in params.sweep_dropout:
        specs += arm.list_curve_runs(blocks, rate, dropout_at=place)
    for share in params.sweep_dropout_rates:
        place = params.tuned_dropout
        specs += arm.list_curve_runs(blocks, rate, dropout_at=place, layer_dropout=share)
    slow = round_rate(params.learning_rate / 2)
    return specs + arm.list_curve_runs(blocks, slow, dropout_at="both", layer_dropout=0.3)


def plan_balance(arm: Arm) -> list[Spec]:
    """Sweep of the coefficient of the balance loss."""
    params = arm.params
    specs = []
    for coefficient in params.sweep_balance:
        specs += arm.list_curve_runs(
            params.tuned_blocks,
            params.tuned_rate,
            dropout_at=params.tuned_dropout,
            balance=coefficient,
        )
    return specs


def list_runs_with_more_rows(arm: Arm, models: tuple[str, ...]) -> list[Spec]:
    """Return the runs of models at the centre with `more_rows` training rows."""
    params = arm.params
    seeds = params.more_seeds or params.side_seeds
    specs = []
    for model in models:
        variant = f"{model}-more"
        specs += arm.list_model_runs(model, [params.centre], seeds, variant, params.more_rows)
    return specs


def plan_more_rows(arm: Arm) -> list[Spec]:
    """V-DB at the report's rate with more training rows: what equal tuning gives it."""
    return list_runs_with_more_rows(arm, ("v-db",))


def plan_tuned_more_rows(arm: Arm) -> list[Spec]:
    """V-DB, ExBERT (final) and controls (a) and (b) with more training rows."""
    return list_runs_with_more_rows(arm, (*HEADLINE, *DENSE))


def plan_longer_trials(arm: Arm) -> list[Spec]:
    """Trials with more epochs, and what all trials then choose at the centre; equal tuning alone.

    At the report's settings there are no trials, and so no runs.
    """
    return []


def plan_tuned_rates(arm: Arm) -> list[Spec]:
    """Sweep of the learning rate in multiples of the rate that V-DB's trials chose."""
    return list_rate_runs(arm, arm.models["v-db"]["learning_rate"])


# The experiments that parameter `experiments` names, in the order of their runs; and those of them
# that equal tuning has too.
EXPERIMENTS = {
    "headline": plan_headline,
    "dense": plan_dense,
    "steps": plan_steps,
    "dense-all-blocks": plan_dense_all_blocks,
    "ratios": plan_ratios,
    "untuned": plan_untuned,
    "order": plan_order,
    "single": plan_single,
    "blocks": plan_blocks,
    "experts": plan_experts,
    "rates": plan_rates,
    "dropout": plan_dropout,
    "balance": plan_balance,
    "more-rows": plan_more_rows,
    "longer-trials": plan_longer_trials,
}
WITH_EQUAL_TUNING = {
    "headline": plan_headline,
    "dense": plan_dense,
    "rates": plan_tuned_rates,
}
# All parts that have runs with equal tuning.
EQUALLY_TUNED = frozenset(
    {*WITH_EQUAL_TUNING, "steps", "dense-all-blocks", "longer-trials", "more-rows"}
)


# ---- the list of runs ----


def choose_settings(
    arm: Arm,
    models: list[str],
    score: Callable[[Spec], trials.Score],
    variant: str = "{}-trial",
    rows: int | None = None,
    rates: list[float] | None = None,
    epochs: list[float] | None = None,
) -> tuple[list[Spec], Arm | None]:
    """Return the trials of models, one seed at the centre, and the arm of what they chose.

    The arm is None until every trial is recorded. score: of a trial; variant: the trials' name, of
    the model's; rows: by default all training rows; rates: those to try, and none beyond their
    edge; by default trial_rates, and those beyond it; epochs: by default trial_epochs.
    """
    params = arm.params
    rounds = epochs or params.trial_epochs
    choose = trials.choose_by_halving if params.halving else trials.choose_by_trials
    if rates and not params.halving:
        choose = partial(choose, times=0)

    def trial(model: str, rate: float, epochs: float) -> Spec:
        fields = {"learning_rate": rate, "epochs": epochs, "tests": []}
        # The winner of the last round is the first run of the comparison, so it is scored at once.
        if params.halving and epochs == rounds[-1]:
            fields["tests"] = params.domains
        centre, seed = [params.centre], params.seeds[:1]
        return arm.list_model_runs(model, centre, seed, variant.format(model), rows, **fields)[0]

    tried, best = choose(models, trial, rates or params.trial_rates, rounds, score)
    if not best:
        return tried, None
    chosen = dict(arm.models)
    for model, (rate, epochs) in best.items():
        chosen[model] = arm.models[model] | {"learning_rate": rate, "epochs": epochs}
    return tried, Arm(params, arm.shared, chosen)


def plan_tuned_on_all_blocks(
    arm: Arm, model: str, rates: list[float], score: Callable[[Spec], trials.Score]
) -> list[Spec]:
    """Return a model with a layer behind all encoder blocks: its trials, and what they chose.

    V-DB and ExBERT's own blocks have chosen their rates and epochs already. It has the same trials
    as they had, and no rate beyond: that would be a trial for the others too, and might change what
    they chose. rates: of their trials.
    """
    specs, chosen = choose_settings(arm, [model], score, rates=rates)
    if chosen:
        specs += list_runs_on_all_blocks(chosen, model)
    return specs


def plan_tuned_longer_trials(
    arm: Arm, rates: list[float], score: Callable[[Spec], trials.Score]
) -> list[Spec]:
    """Return trials with more epochs beside those there are, and the runs of what all chose.

    rates: of the trials there are; none is added.
    """
    params = arm.params
    epochs = [*params.trial_epochs, params.longer_epochs]
    name = "{}-longer-trial"
    specs, chosen = choose_settings(arm, list(LONGER), score, name, rates=rates, epochs=epochs)
    if chosen:
        seeds = params.longer_seeds or params.side_seeds
        for model in LONGER:
            specs += chosen.list_model_runs(model, [params.centre], seeds, f"{model}-longer")
    return specs


def plan_tuned_arm(arm: Arm, score: Callable[[Spec], trials.Score]) -> list[Spec]:
    """Return the trials of every model, and the runs of what they chose.

    Experiment more-rows has trials of its own: what is best for few rows need not be for more.
    """
    params = arm.params
    specs: list[Spec] = []
    chosen = None
    if not EQUALLY_TUNED.isdisjoint({*params.experiments} - {"more-rows"}):
        models = [*HEADLINE, *(DENSE if "dense" in params.experiments else ())]
        specs, chosen = choose_settings(arm, models, score)
    if chosen:
        rates = sorted({spec.learning_rate for spec in specs})
        specs += common.list_runs_of_experiments(chosen, WITH_EQUAL_TUNING)
        if "steps" in params.experiments:
            specs += plan_tuned_on_all_blocks(arm, "exbert-all-blocks", rates, score)
        if "dense-all-blocks" in params.experiments:
            specs += plan_tuned_on_all_blocks(arm, "dense-all-blocks", rates, score)
        if "longer-trials" in params.experiments:
            specs += plan_tuned_longer_trials(arm, rates, score)
    if "more-rows" in params.experiments:
        models = [*HEADLINE, *DENSE]
        tried, chosen = choose_settings(arm, models, score, "{}-more-trial", params.more_rows)
        specs += tried
        if chosen:
            specs += plan_tuned_more_rows(chosen)
    return specs


def plan(
    params: Parameters, score: Callable[[Spec], trials.Score] = trials.find_score
) -> list[Spec]:
    """Return every run of the report at these parameters, each once under each of its names.

    With arm `tuned` its trials, and what follows from them once they are recorded. score: of a
    trial; by default the one in its record.
    """
    common.check_domains(params)
    common.check_questions(params, {"domains": params.domains})
    shared = common.shared_fields(params)
    start = common.plan_start(params, shared)
    shared |= {
        "domains": params.domains,
        "tests": params.domains,
        "fingerprints": common.fingerprint_domains(params, params.domains),
        "start": start[0] if start else None,
    }
    models = list_models(params)
    specs = []
    for name in params.arms:
        arm = Arm(params, shared | {"arm": name}, models)
        if name == "printed":
            specs += common.list_runs_of_experiments(arm, EXPERIMENTS)
        else:
            specs += plan_tuned_arm(arm, score)
    return start + common.drop_repeats(specs)


# ---- what findings call `values` ----


def collect_values(params: Parameters) -> dict[str, float]:
    """Return numbers that findings name and no score has.

    dropped_least, dropped_most: the share of a run's picks that found their expert full, the mean
    over its training, of ExBERT (final).
    """
    shares = []
    for spec in plan(params):
        record = runs.find_record(spec)
        if record is None:
            continue
        steps = record.get("load", {}).get("training")
        if spec.variant == "exbert-tuned" and steps:
            shares.append(runs.average_logged(steps, "dropped"))
    if not shares:
        return {}
    return {"dropped_least": min(shares), "dropped_most": max(shares)}
