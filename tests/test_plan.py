"""The plan of ExBERT's runs: what is listed, what is shared, what trials decide."""

import pandas as pd
import pytest

from qa_lib.data import selection
from qa_lib.reports import exbert, plans
from qa_lib.settings.params import UserError
from qa_lib.store import runs

DATA = {"data": "data"}


def load(profile="quick", size=None, **changes):
    return plans.load_params("exbert", profile, (DATA if profile == "real" else {}) | changes, size)


def test_the_quick_plan_is_small_and_whole():
    specs = plans.plan(load())
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
    assert sorted(centre) == sorted((m, seed) for m in exbert.HEADLINE for seed in (0, 1))
    frame = pd.DataFrame(
        [
            {"blocks": s.blocks, "rate": s.learning_rate, **s.layer.model_dump()}
            for s in specs
            if s.variant == "exbert-curve"
        ]
    )
    for column in ("blocks", "rate", "experts", "dropout_at", "balance"):
        assert frame[column].nunique() >= 3, column


def test_the_report_s_settings():
    models = exbert.list_models(plans.load_params("exbert", "paper"))
    tuned, layer = models["exbert-tuned"], models["exbert"]["layer"]
    assert (tuned["blocks"], tuned["learning_rate"], tuned["epochs"]) == (4, 1e-4, 2)
    assert (layer.top_n, layer.threshold, layer.capacity_train, layer.balance, layer.router_z) == (
        2,
        0.2,
        1.25,
        1e-2,
        1e-3,
    )
    assert tuned["layer"].dropout_at == "before" and layer.dropout_at == "none"
    assert "layer" not in models["plain-tuned"] and models["dense-parameters"]["dense"] == 16


def test_the_dearest_controls_may_have_fewer_seeds(monkeypatch):
    monkeypatch.setattr(selection, "fingerprint", lambda *a: "f")
    for few, seeds in ((None, {0, 1}), ([1], {1})):
        given = {
            "experiments": ["headline", "dense"],
            "arms": ["printed"],
            "side_seeds": [0, 1],
            "dense_seeds": few,
        }
        specs = plans.plan(load("real", "small", **given))
        assert all({s.seed for s in specs if s.variant == m} == seeds for m in exbert.DENSE)
        assert {s.seed for s in specs if s.variant == "v-db" and s.ratio == 0.4} == {0, 1}


@pytest.fixture
def scored(monkeypatch):
    """Plant the result of each trial: a function of (variant, rate, epochs) → validation EM."""

    def plant(em):
        def find(spec, fresh=False):
            value = em(spec.variant, spec.learning_rate, spec.epochs)
            return (
                None
                if value is None
                else {
                    "history": [
                        {"step": 3, "validation_em": 99.0, "validation_loss": 0.1},
                        {"step": 6, "validation_em": value, "validation_loss": 1.0},
                    ]
                }
            )

        monkeypatch.setattr(runs, "find_record", find)

    return plant


@pytest.fixture
def real(monkeypatch):
    monkeypatch.setattr(selection, "fingerprint", lambda *a: "f")
    return lambda **changes: load(
        "real", "full", arms=["tuned"], experiments=["headline"], **changes
    )


def test_trials_come_first_then_what_they_chose(scored, real):
    scored(lambda variant, rate, epochs: None)
    specs = plans.plan(real())
    assert len(specs) == 3 * 4 * 2
    assert all(s.variant.endswith("-trial") and not s.tests and s.ratio == 0.8 for s in specs)
    best = {
        "v-db-trial": (2.5e-4, 3),
        "exbert-tuned-trial": (1e-4, 2),
        "plain-tuned-trial": (2.5e-4, 2),
    }
    scored(lambda variant, rate, epochs: 50.0 + (best[variant] == (rate, epochs)))
    final = [s for s in plans.plan(real()) if not s.variant.endswith("-trial")]
    assert {(s.variant, s.learning_rate, s.epochs) for s in final} == {
        (m.removesuffix("-trial"), *x) for m, x in best.items()
    }
    assert {s.blocks for s in final if s.variant != "v-db"} == {4}
    assert {s.arm for s in final} == {"tuned"}


def test_an_optimum_on_the_edge_extends_the_grid_for_all(scored, real):
    scored(lambda variant, rate, epochs: None if rate > 5e-4 else rate)
    specs = plans.plan(real())
    assert len(specs) == 3 * 5 * 2 and max(s.learning_rate for s in specs) == 1e-3
    scored(
        lambda variant, rate, epochs: 1 - abs(rate - (1e-3 if variant == "v-db-trial" else 1e-4))
    )
    final = {s.variant: s.learning_rate for s in plans.plan(real())}
    assert final["v-db"] == 1e-3 and final["exbert-tuned"] == 1e-4
    scored(lambda variant, rate, epochs: 1 - rate)  # lower is ever better: three times at most
    assert {s.learning_rate for s in plans.plan(real()) if not s.variant.endswith("-trial")} == {
        5e-5 / 8
    }


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"ratios": [1.2]}, "ratios: 1.2 is not a share between 0 and 1"),
        ({"control_ratios": [-0.1]}, "control_ratios: -0.1 is not a share"),
        ({"top_n": 9}, "top_n: 9 is more than the 8 experts there are"),
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
    with pytest.raises(UserError) as e:
        plans.plan(load(**changes))
    assert words in str(e.value) and "\n" not in str(e.value)
