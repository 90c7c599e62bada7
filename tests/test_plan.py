"""The plan of ExBERT's runs: what is listed, what is shared, what trials decide."""

import itertools
from types import SimpleNamespace
from typing import get_args

import pandas as pd
import pytest

from qa_lib.data import selection
from qa_lib.evidence import power
from qa_lib.page import figures_exbert, render
from qa_lib.reports import exbert, plans, trials
from qa_lib.settings import params
from qa_lib.settings.parameters import Dataset
from qa_lib.settings.params import UserError
from qa_lib.store import runs


def load_exbert(profile="quick", size=None, **changes):
    """Return parameters of the report exbert. Profile real reads its data from a folder `data`."""
    if profile == "real":
        changes["data"] = "data"
    return plans.load_params("exbert", profile, changes, size)


@pytest.mark.parametrize("slug", params.list_reports())
def test_parameters_know_the_experiments_that_there_are(slug):
    report = plans.find_report(slug)
    (choices,) = get_args(report.Parameters.model_fields["experiments"].annotation)
    assert sorted(get_args(choices)) == sorted(report.EXPERIMENTS)


def test_the_quick_plan_is_small_and_whole():
    specs = plans.plan(load_exbert())
    assert len({s.hash for s in specs}) <= 30
    assert {s.variant for s in specs} >= {
        *exbert.HEADLINE,
        *exbert.DENSE,
        "exbert",
        "exbert-curve",
        "v-db-full",
        "exbert-full",
    }
    centre = [
        (s.variant, s.seed)
        for s in specs
        if s.ratio == 0.6 and s.variant in exbert.HEADLINE and s.order == "trainer"
    ]
    assert sorted(centre) == sorted(itertools.product(exbert.HEADLINE, (0, 1)))
    rows = []
    for s in specs:
        if s.variant == "exbert-curve":
            rows.append({"blocks": s.blocks, "rate": s.learning_rate, **s.layer.model_dump()})
    frame = pd.DataFrame(rows)
    for column in ("blocks", "rate", "experts", "dropout_at", "balance"):
        assert frame[column].nunique() >= 3, column


def test_profile_paper_has_the_report_s_settings():
    models = exbert.list_models(plans.load_params("exbert", "paper"))
    tuned = models["exbert-tuned"]
    assert (tuned["blocks"], tuned["learning_rate"], tuned["epochs"]) == (4, 1e-4, 2)
    assert tuned["layer"].dropout_at == "before"
    layer = models["exbert"]["layer"]
    assert layer.top_n == 2
    assert layer.threshold == 0.2
    assert layer.capacity_train == 1.25
    assert layer.balance == 1e-2
    assert layer.router_z == 1e-3
    assert layer.dropout_at == "none"
    assert "layer" not in models["plain-tuned"]
    assert models["dense-parameters"]["dense"] == 16


def test_the_dearest_controls_may_have_fewer_seeds(monkeypatch):
    monkeypatch.setattr(selection, "fingerprint", lambda *a: "f")
    for few, seeds in ((None, {0, 1}), ([1], {1})):
        changes = {
            "experiments": ["headline", "dense"],
            "arms": ["printed"],
            "side_seeds": [0, 1],
            "dense_seeds": few,
        }
        specs = plans.plan(load_exbert("real", "small", **changes))
        for model in exbert.DENSE:
            assert {s.seed for s in specs if s.variant == model} == seeds
        assert {s.seed for s in specs if s.variant == "v-db" and s.ratio == 0.4} == {0, 1}


def test_a_page_says_how_many_seeds_the_controls_have():
    told = load_exbert("real", "small", step_seeds=[0]).describe_training()
    assert told.endswith("6 seeds, 1 to 3 of some controls")
    told = load_exbert("real", "small", step_seeds=[0, 1, 2]).describe_training()
    assert told.endswith("6 seeds, 3 of some controls")
    told = load_exbert("real", "small", dense_seeds=None, step_seeds=None).describe_training()
    assert told.endswith("6 seeds")
    # of those that are run
    told = load_exbert("real", "small", step_seeds=[0], experiments=["dense"]).describe_training()
    assert told.endswith("6 seeds, 3 of some controls")
    told = load_exbert("real", "small", experiments=["headline"]).describe_training()
    assert told.endswith("6 seeds")


@pytest.mark.parametrize(("few", "seeds"), [(None, {0, 1}), ([1], {1})])
def test_the_steps_to_exbert_are_its_rate_and_then_its_block_on_all_encoder_blocks(
    monkeypatch, few, seeds
):
    """V-DB at ExBERT's rate has the seeds of what it is compared with."""
    monkeypatch.setattr(selection, "fingerprint", lambda *a: "f")
    changes = {"arms": ["printed"], "seeds": [0, 1], "side_seeds": [0, 1], "step_seeds": few}
    before = plans.plan(load_exbert("real", "small", experiments=["headline"], **changes))
    parts = ["headline", "steps", "dense-all-blocks"]
    params = load_exbert("real", "small", experiments=parts, **changes)
    specs = plans.plan(params)
    steps = [spec for spec in specs if spec.variant in exbert.ON_ALL_BLOCKS]
    added = {spec.hash for spec in specs} - {spec.hash for spec in before}
    assert {spec.hash for spec in steps} == added
    final = next(spec for spec in specs if spec.variant == "exbert-tuned")
    expected = {
        "v-db-fast": (None, None, {0, 1}),
        "exbert-all-blocks": (final.layer, None, seeds),
        "dense-all-blocks": (final.layer, 2.0, seeds),
    }
    assert set(expected) == set(exbert.ON_ALL_BLOCKS)
    for variant, (layer, dense, of_variant) in expected.items():
        own = [spec for spec in steps if spec.variant == variant]
        assert {(spec.ratio, spec.seed) for spec in own} == {
            (ratio, seed) for ratio in params.ratios for seed in of_variant
        }
        for spec in own:
            assert (spec.blocks, spec.layer, spec.dense) == (params.blocks, layer, dense)
            assert (spec.learning_rate, spec.epochs) == (params.tuned_rate, params.tuned_epochs)


@pytest.fixture
def plant_trials(monkeypatch):
    """Return a function that plants records of trials.

    It takes a function of (variant, rate, epochs) that returns the validation EM of a trial, or
    None for a trial without a record.
    """

    def plant(em):
        def find_record(spec, fresh=False):
            value = em(spec.variant, spec.learning_rate, spec.epochs)
            if value is None:
                return None
            first = {"step": 3, "validation_em": 99.0, "validation_loss": 0.1}
            last = {"step": 6, "validation_em": value, "validation_loss": 1.0}
            return {"history": [first, last]}

        monkeypatch.setattr(runs, "find_record", find_record)

    return plant


@pytest.fixture
def real(monkeypatch):
    """Return parameters of the tuned arm with profile real, for which no data are read."""
    monkeypatch.setattr(selection, "fingerprint", lambda *a: "f")
    return load_exbert("real", "full", arms=["tuned"], experiments=["headline"])


@pytest.mark.parametrize("slug", ["exbert", "moe"])
def test_a_domain_has_questions(slug):
    """Else this would show as a KeyError in training."""
    P = plans.load_params(slug, "quick", {"domains": ["encyclopaedia", "sentiment"]})
    words = "^domains: sentiment is of the task classes where the report needs questions"
    with pytest.raises(UserError, match=words):
        plans.plan(P)


@pytest.mark.parametrize("slug", ["exbert", "moe", "road"])
def test_a_domain_is_no_altered_copy_of_another(slug):
    P = plans.load_params(slug, "quick", {"domains": ["encyclopaedia", "encyclopaedia-reworded"]})
    words = "^domains: encyclopaedia-reworded is a test set of encyclopaedia, which is a domain"
    with pytest.raises(UserError, match=words):
        plans.plan(P)


def is_trial(spec) -> bool:
    """Return whether a run is a trial."""
    return spec.variant.endswith("-trial")


def test_trials_come_first_then_the_runs_that_they_choose(plant_trials, real):
    plant_trials(lambda variant, rate, epochs: None)
    specs = plans.plan(real)
    assert len(specs) == 3 * 4 * 2
    assert all(is_trial(s) for s in specs)
    assert not any(s.tests for s in specs)
    assert {s.ratio for s in specs} == {0.8}
    best = {
        "v-db-trial": (2.5e-4, 3),
        "exbert-tuned-trial": (1e-4, 2),
        "plain-tuned-trial": (2.5e-4, 2),
    }
    plant_trials(lambda variant, rate, epochs: 51.0 if best[variant] == (rate, epochs) else 50.0)
    final = [s for s in plans.plan(real) if not is_trial(s)]
    chosen = {(f"{s.variant}-trial", (s.learning_rate, s.epochs)) for s in final}
    assert chosen == set(best.items())
    assert {s.blocks for s in final if s.variant != "v-db"} == {4}
    assert {s.arm for s in final} == {"tuned"}


def test_an_optimum_on_the_edge_extends_the_grid_for_all(plant_trials, real):
    plant_trials(lambda variant, rate, epochs: None if rate > 5e-4 else rate)
    specs = plans.plan(real)
    assert len(specs) == 3 * 5 * 2
    assert max(s.learning_rate for s in specs) == 1e-3
    optimum = {"v-db-trial": 1e-3, "exbert-tuned-trial": 1e-4, "plain-tuned-trial": 1e-4}
    plant_trials(lambda variant, rate, epochs: 1 - abs(rate - optimum[variant]))
    final = {s.variant: s.learning_rate for s in plans.plan(real)}
    assert final["v-db"] == 1e-3
    assert final["exbert-tuned"] == 1e-4


def test_the_grid_is_extended_three_times_at_most(plant_trials, real):
    plant_trials(lambda variant, rate, epochs: 1 - rate)
    final = [s for s in plans.plan(real) if not is_trial(s)]
    assert {s.learning_rate for s in final} == {5e-5 / 8}


@pytest.mark.parametrize(
    ("part", "model"), [("steps", "exbert-all-blocks"), ("dense-all-blocks", "dense-all-blocks")]
)
def test_all_encoder_blocks_have_the_trials_that_the_other_models_had(
    plant_trials, monkeypatch, part, model
):
    """A rate beyond them would be a new trial for the others too, and might change their choice."""
    monkeypatch.setattr(selection, "fingerprint", lambda *a: "f")
    changes = {"arms": ["tuned"], "step_seeds": [0, 1]}
    optimum = {"v-db": 1e-3, "exbert-tuned": 1e-4, "plain-tuned": 1e-4, model: 4e-3}

    def near_optimum(variant, rate, epochs):
        return 1 - abs(rate - optimum[variant.removesuffix("-trial")])

    plant_trials(near_optimum)
    before = plans.plan(load_exbert("real", "small", experiments=["headline"], **changes))
    params = load_exbert("real", "small", experiments=["headline", part], **changes)
    specs = plans.plan(params)
    added = {spec.hash for spec in specs} - {spec.hash for spec in before}
    own = [spec for spec in specs if spec.variant.startswith(model)]
    assert {spec.hash for spec in own} == added
    assert {spec.hash for spec in before} < {spec.hash for spec in specs}

    def list_settings(name):
        tried = [spec for spec in specs if spec.variant == f"{name}-trial"]
        return {(spec.learning_rate, spec.epochs) for spec in tried}

    assert list_settings(model) == list_settings("v-db")
    assert max(rate for rate, _ in list_settings("v-db")) == 2e-3
    compared = [spec for spec in own if not is_trial(spec)]
    assert {spec.learning_rate for spec in compared} == {2e-3}
    assert {(spec.ratio, spec.seed) for spec in compared} == {
        (ratio, seed) for ratio in params.ratios for seed in (0, 1)
    }
    assert all(spec.blocks == params.blocks and spec.layer for spec in own)

    def lack_own_trials(variant, rate, epochs):
        is_own = variant.startswith(model)
        return None if is_own else near_optimum(variant, rate, epochs)

    plant_trials(lack_own_trials)
    waiting = plans.plan(params)
    own = [spec for spec in waiting if spec.variant.startswith(model)]
    assert own
    assert all(map(is_trial, own))
    plant_trials(lambda *of_trial: None)
    assert not any(s.variant.startswith(model) for s in plans.plan(params))


def test_longer_trials_choose_anew_and_leave_equal_tuning_as_it_was(plant_trials, monkeypatch):
    monkeypatch.setattr(selection, "fingerprint", lambda *a: "f")
    optimum = {"v-db": 4, "exbert-tuned": 3, "plain-tuned": 4, "exbert-all-blocks": 4}

    def best_epochs(variant, rate, epochs):
        model = variant.removesuffix("-trial").removesuffix("-longer")
        return 1 - abs(rate - 1e-4) - 1e-6 * abs(epochs - optimum[model])

    plant_trials(best_epochs)
    before = plans.plan(load_exbert("real", "small", arms=["tuned"], experiments=["headline"]))
    changes = {"longer_epochs": 4, "longer_seeds": [0, 1, 2], "arms": ["tuned"]}
    params = load_exbert("real", "small", experiments=["headline", "longer-trials"], **changes)
    specs = plans.plan(params)
    assert [spec for spec in specs if "longer" not in spec.variant] == before
    tried = [spec for spec in specs if spec.variant == "v-db-longer-trial"]
    own = [spec for spec in specs if spec.variant == "v-db-trial"]
    assert {spec.hash for spec in own} < {spec.hash for spec in tried}
    assert {spec.epochs for spec in tried} == {2, 3, 4}
    assert {s.learning_rate for s in tried} == {s.learning_rate for s in own}
    compared = [spec for spec in specs if spec.variant.endswith("-longer")]
    assert {(spec.ratio, spec.seed) for spec in compared} == {(0.8, seed) for seed in range(3)}
    assert {(spec.variant, spec.epochs) for spec in compared} == {
        (f"{model}-longer", epochs) for model, epochs in optimum.items()
    }
    # what chooses as before is not trained again
    known = {spec.hash for spec in before}
    assert {s.variant for s in compared if s.hash in known} == {"exbert-tuned-longer"}
    changes["arms"] = ["printed"]
    printed = load_exbert("real", "small", experiments=["longer-trials"], **changes)
    with pytest.raises(UserError, match="longer-trials has no run at these parameters"):
        plans.plan(printed)
    for epochs in (None, 3):
        with pytest.raises(UserError, match="longer_epochs: .* whose largest is 3"):
            load_exbert("real", "small", experiments=["longer-trials"], longer_epochs=epochs)


def test_more_rows_have_trials_of_their_own(plant_trials, monkeypatch):
    monkeypatch.setattr(selection, "fingerprint", lambda *a: "f")
    changes = {"experiments": ["headline", "more-rows"], "more_rows": 4000, "more_seeds": [1, 2]}
    p = load_exbert("real", "small", arms=["printed", "tuned"], **changes)

    def best_rate(variant, rate, epochs):
        return 1 - abs(rate - (2.5e-4 if "-more" in variant else 1e-4))

    plant_trials(best_rate)
    specs = plans.plan(p)
    more = [s for s in specs if s.variant.endswith("-more")]
    assert {sum(s.rows) for s in more} == {4000}
    assert {s.ratio for s in more} == {p.centre}
    assert {s.seed for s in more} == {1, 2}
    at_report_s_rate = {(s.variant, s.learning_rate) for s in more if s.arm == "printed"}
    assert at_report_s_rate == {("v-db-more", 2e-5)}
    tuned = {(s.variant, s.learning_rate) for s in more if s.arm == "tuned"}
    assert tuned == {(f"{name}-more", 2.5e-4) for name in (*exbert.HEADLINE, *exbert.DENSE)}
    fewer = {s.learning_rate for s in specs if s.arm == "tuned" and s.variant in exbert.HEADLINE}
    assert fewer == {1e-4}
    with pytest.raises(UserError, match="more_rows: the part more-rows .* needs a number"):
        load_exbert("real", "small", experiments=["more-rows"])


def test_equal_tuning_of_parts_that_have_none_has_no_trials(monkeypatch):
    monkeypatch.setattr(selection, "fingerprint", lambda *a: "f")
    both = {"experiments": ["untuned"], "arms": ["printed", "tuned"]}
    assert {spec.arm for spec in plans.plan(load_exbert("real", "small", **both))} == {"printed"}
    with pytest.raises(UserError, match="experiments: equal tuning has no run of untuned; name"):
        load_exbert("real", "small", experiments=["untuned"], arms=["tuned"])
    # trials of its own, and no others
    more = {"experiments": ["more-rows"], "more_rows": 4000, "arms": ["tuned"]}
    trials_of = {spec.variant for spec in plans.plan(load_exbert("real", "small", **more))}
    assert trials_of == {f"{name}-more-trial" for name in (*exbert.HEADLINE, *exbert.DENSE)}


def test_mixtures_that_differ_have_names_that_differ():
    names = [plans.name_mixture(ratio) for ratio in (0.0, 0.005, 0.29, 0.8, 1 / 3)]
    assert names == ["0:100", "0.5:99.5", "29:71", "80:20", "33.333:66.667"]


def test_a_sweep_is_of_the_report_s_settings_alone():
    changes = {"experiments": ["headline", "blocks"]}
    with_both = load_exbert("quick", **changes, arms=["printed", "tuned"])
    assert figures_exbert.find_sweep(with_both, "blocks")
    assert not figures_exbert.find_sweep(load_exbert("quick", **changes, arms=["tuned"]), "blocks")


def test_controls_are_of_mixtures_that_the_study_has(monkeypatch):
    monkeypatch.setattr(selection, "fingerprint", lambda *a: "f")
    changes = {"ratios": [0.2, 0.8], "control_ratios": [0.4, 0.8], "arms": ["printed"]}
    p = load_exbert("real", "small", experiments=["headline", "dense", "steps"], **changes)
    controls = (*exbert.DENSE, "v-db-fast", "exbert-all-blocks")
    assert {s.ratio for s in plans.plan(p) if s.variant in controls} == {0.8}


@pytest.fixture
def halved(monkeypatch):
    """Return parameters of own data, whose trials are halved; no data are read."""
    monkeypatch.setattr(selection, "fingerprint", lambda *a: "f")
    monkeypatch.setattr(selection, "find_dataset", lambda *a: Dataset(train=["x"], test=["y"]))
    return plans.load_params("exbert", "own", {"data": "x.yaml", "domains": ["a", "b"]})


def test_the_better_half_of_the_rates_goes_on_alike_for_all(plant_trials, halved):
    plant_trials(lambda variant, rate, epochs: None)
    first = plans.plan(halved)
    assert len(first) == 3 * 4
    assert {s.epochs for s in first} == {1}
    assert not any(s.tests for s in first)
    # after one epoch 4e-4 is ahead of 1.5e-4, after two behind it
    early = {"v-db-trial": 5e-5, "exbert-tuned-trial": 4e-4, "plain-tuned-trial": 1e-3}

    def one_round(variant, rate, epochs):
        return 50 - abs(rate - early[variant]) if epochs == 1 else None

    plant_trials(one_round)
    second = [s for s in plans.plan(halved) if s.epochs == 2]
    rates = {}
    for spec in second:
        rates.setdefault(spec.variant, []).append(spec.learning_rate)
    assert rates == {
        "v-db-trial": [5e-5, 1.5e-4],
        "exbert-tuned-trial": [4e-4, 1.5e-4],
        "plain-tuned-trial": [1e-3, 4e-4],
    }
    assert all(is_trial(s) for s in second)
    plant_trials(lambda *trial: one_round(*trial) or 50 - trial[1])
    specs = plans.plan(halved)
    final = [s for s in specs if not is_trial(s)]
    chosen = {s.variant: s.learning_rate for s in final}
    assert chosen == {"v-db": 5e-5, "exbert-tuned": 1.5e-4, "plain-tuned": 4e-4}
    assert {s.epochs for s in final} == {2}
    # the best trials are the first seed of the comparison, and are not trained again
    trained = {s.hash for s in specs if is_trial(s)}
    assert len(trained) == 3 * (4 + 2)
    assert {s.seed for s in final if s.hash in trained} == {0}
    assert len({s.hash for s in final} - trained) == 3 * 2
    assert {s.variant for s in specs if is_trial(s) and s.tests} == set(rates)


def test_the_larger_half_of_an_odd_number_of_rates_goes_on(monkeypatch):
    """Of those that are left after the last round the best one is chosen."""
    monkeypatch.setattr(runs, "find_record", lambda spec: None)

    def trial(model, rate, epochs):
        return SimpleNamespace(rate=rate, epochs=epochs, hash=f"{model}/{rate}/{epochs}")

    def score(spec):
        return spec.rate, 0.0

    every, best = trials.choose_by_halving(["v-db"], trial, [1e-4, 2e-4, 3e-4], [1, 2], score)
    assert [(spec.rate, spec.epochs) for spec in every[3:]] == [(3e-4, 2), (2e-4, 2)]
    assert best == {"v-db": (3e-4, 2)}
    _, best = trials.choose_by_halving(["v-db"], trial, [1e-4, 2e-4, 3e-4], [1], score)
    assert best == {"v-db": (3e-4, 1)}


def test_rounds_of_fewer_epochs_than_before_are_refused():
    changes = {"data": "x.yaml", "domains": ["a", "b"], "trial_epochs": [2, 1]}
    words = r"each round has more epochs .*; write \[1,2\]$"  # as PARAMS takes it, without a space
    with pytest.raises(UserError, match=words) as error:
        plans.load_params("exbert", "own", changes)
    assert str(error.value).startswith("PARAMS (-p): trial_epochs: ")


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"ratios": [1.2]}, "ratios: 1.2 is not a share between 0 and 1"),
        ({"control_ratios": [-0.1]}, "control_ratios: -0.1 is not a share"),
        ({"top_n": 9}, "top_n: 9 is more than the 4 experts there are"),
        ({"top_n": 1}, "top_n: the weight of a single pick among 4 experts is always 1, so that"),
        (
            {"capacity_train": 0.0},
            "capacity_train: 0.0 is too small; write a number greater than 0",
        ),
        (
            {"capacity_eval": -1.0},
            "capacity_eval: -1.0 is too small; write a number greater than 0",
        ),
        ({"sweep_experts": [8, 1]}, "sweep_experts: 1 is fewer than top_n 2"),
        (
            {"experiments": ["ratio"]},
            "experiments: 'ratio' is not known; known: 'headline', 'ratios'",
        ),
    ],
)
def test_wrong_parameters_are_one_sentence(changes, words):
    with pytest.raises(UserError) as error:
        plans.plan(load_exbert(**changes))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_report_that_is_not_whole_is_one_sentence(monkeypatch):
    """Before any training, and with what its file lacks."""
    plans.find_report.cache_clear()
    monkeypatch.setattr(params, "check_report", lambda slug: slug)
    with pytest.raises(UserError, match="^qa_lib/reports/tiny.py does not exist; docs/code.md"):
        plans.find_report("tiny")
    monkeypatch.delattr(exbert, "EXPERIMENTS")
    monkeypatch.setattr(plans, "FIELDS", ("experiments", "halves"))
    says = "^qa_lib/reports/exbert.py lacks EXPERIMENTS, Parameters.halves; docs/code.md says"
    with pytest.raises(UserError, match=says):
        plans.find_report("exbert")
    plans.find_report.cache_clear()


def test_a_report_without_a_notebook_or_questions_is_one_sentence():
    with pytest.raises(UserError, match="^notebooks/<number>_tiny.ipynb does not exist; copy"):
        render.find_notebook("tiny")
    with pytest.raises(UserError, match="^params/questions.yaml has no entry tiny; write there"):
        power.read_questions("tiny")


def test_a_trial_is_chosen_by_validation_and_not_by_its_test_scores():
    """The last round's trials are scored on test sets at once, which must not choose."""
    spec = plans.plan(load_exbert())[-1]
    history = [{"step": 9, "validation_em": 20.0, "validation_f1": 30.0, "validation_loss": 2.0}]
    record = {"history": history, "metrics": {}}
    score = trials.validation_score(spec, record)
    of_tests = {name: {"em": 100.0, "f1": 100.0, "n": 1} for name in spec.tests}
    assert spec.tests
    assert trials.validation_score(spec, record | {"metrics": of_tests}) == score
    assert score == (20.0, -2.0)
