"""Frames and shared figures of a page, from planted records."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from qa_lib.evidence import verify
from qa_lib.page import figures, tables
from qa_lib.reports import plans
from qa_lib.store import runs
from qa_lib.tasks import metrics

P = plans.load_params("exbert", "quick")

MADE = {"device": "CPU", "precision": "bf16"}


def examples(em: dict[str, list[int]]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "run": run,
                "set": name,
                "id": f"q{i}",
                "em": 100.0 * x,
                "start": 4 * i,
                "end": 4 * i + 3,
                "tokens": 1,
            }
            for run, marks in em.items()
            for name in P.domains
            for i, x in enumerate(marks)
        ]
    )


def test_answers_side_by_side_are_chosen_by_rule():
    found = tables.contrasting_answers(
        examples({"a": [1, 1, 1, 0, 0, 0, 1], "b": [0, 0, 0, 1, 0, 0, 1]}), "a", "b"
    )
    assert len(found) == 2 * (2 + 1 + 1)
    one = found[found["set"] == P.domains[0]]
    assert dict(zip(one["id"], one["case"], strict=True)) == {
        "q0": "only ours",
        "q1": "only ours",
        "q3": "only theirs",
        "q4": "neither",
    }
    assert set(found["run"]) == {("a", "b")}


def test_answers_are_text_where_the_text_is_ours_and_spans_elsewhere(monkeypatch):
    monkeypatch.setattr(
        runs,
        "collect_examples",
        lambda specs: examples({"a": [1, 1, 1, 0, 0], "b": [0, 0, 0, 1, 0]}),
    )
    monkeypatch.setattr(
        runs, "require_records", lambda specs: [(None, {"run": "a"}), (None, {"run": "b"})]
    )
    context = "one two six ten ant bee cat"
    rows = [
        {"id": f"q{i}", "question": f"{i}?", "context": context, "answers": {"text": ["g"]}}
        for i in (0, 3)
    ]
    # of the test rows that there are
    of_domain = {P.domains[0]: (None, rows)}
    ours, theirs = Expert("a", [], "exbert-tuned"), Expert("b", [], "v-db")
    text = tables.answers_table(P, ours, theirs, lambda spec: of_domain)
    elsewhere = P.model_copy(update={"source": "folder"})
    spans = tables.answers_table(elsewhere, ours, theirs, None)
    assert set(spans["V-DB"]) == {"0–3", "4–7", "12–15", "16–19"}
    assert set(spans["right"]) == {"ExBERT (final)", "V-DB", "neither"}
    assert list(text["V-DB"]) == list(text["ExBERT (final)"]) == ["one", "ten"]
    assert list(text["question"]) == ["0?", "3?"]


def test_contains_is_whole_words_and_more_than_the_answer():
    assert metrics.contains("The torn ACL of the knee", ["torn ACL"])
    assert not metrics.contains("a torn ACL", ["torn ACL"])  # exact, once articles are gone
    assert not metrics.contains("acltorn", ["acl"])
    assert not metrics.contains("", ["x"])
    assert not metrics.contains("x", [""])


def history() -> pd.DataFrame:
    return tables.add_display_names(
        pd.DataFrame(
            [
                {
                    "run": f"r{rate}",
                    "variant": "v-db-curve",
                    "report": "exbert",
                    "ratio": 0.6,
                    "seed": 0,
                    "learning_rate": rate,
                    "epoch": e,
                    "train_loss": 3.0 - e,
                    "validation_loss": 2.0 - e / 10,
                }
                for rate in (3e-4, 2e-5)
                for e in (1.0, 2.0)
            ]
        )
    )


def test_names_of_models_mixtures_and_rates():
    frame = history()
    assert set(frame["model"]) == {"V-DB"} and set(frame["mixture"]) == {"60:40"}
    assert list(frame["rate"].cat.categories) == ["2e-5", "3e-4"]  # in the order of the numbers
    assert plans.find_model("exbert", "exbert-tuned") == "exbert-tuned"
    assert plans.find_model("exbert", "exbert-full") == "exbert"
    with pytest.raises(KeyError, match="moe-trial is no model of exbert"):
        plans.find_model("exbert", "moe-trial")


def test_a_last_look_soon_after_another_has_its_training_loss(monkeypatch):
    spec = next(s for s in plans.plan(P) if s.validation_rows)
    past = [
        {"epoch": e, "train_loss": x, "validation_loss": 1.0} for e, x in ((2.99, 1.5), (3.0, None))
    ]
    monkeypatch.setattr(
        runs,
        "require_records",
        lambda specs: [(spec, {"run": "r", "history": past, "environment": MADE})],
    )
    assert list(runs.collect_histories([spec])["train_loss"]) == [1.5, 1.5]
    past[:] = [
        past[0] | {"train_loss": None},
        past[0],
    ]  # before training nothing was logged, whatever stands above
    twice = [spec, spec.model_copy(update={"variant": "v-db-size"})]
    monkeypatch.setattr(
        runs,
        "require_records",
        lambda specs: [(s, {"run": "r", "history": past, "environment": MADE}) for s in specs],
    )
    assert runs.collect_histories(twice)["train_loss"].isna().tolist() == [True, False] * 2
    past.clear()
    assert runs.collect_histories([spec]).empty


def test_a_training_loss_is_never_that_of_another_seed(monkeypatch):
    spec = next(s for s in plans.plan(P) if s.validation_rows)
    records = []
    for run, losses in (("r0", [1.5, 1.2]), ("r1", [None, 1.4])):
        past = [{"epoch": e, "train_loss": x} for e, x in enumerate(losses, 1)]
        records.append((spec, {"run": run, "history": past, "environment": MADE}))
    monkeypatch.setattr(runs, "require_records", lambda specs: records)
    losses = runs.collect_histories([spec, spec])["train_loss"]
    assert losses.isna().tolist() == [False, False, True, False]


def test_shared_figures_have_a_panel_for_each_value_and_a_line_for_each_model():
    ledger = tables.add_display_names(
        pd.DataFrame(
            [
                {
                    "run": f"{v}{r}",
                    "report": "exbert",
                    "variant": v,
                    "ratio": r,
                    "seed": 0,
                    "set": d,
                    "metric": "em",
                    "value": 10 * r,
                }
                for v in ("v-db", "exbert")
                for r in P.ratios
                for d in P.domains
            ]
        )
    )
    grid = figures.draw_by_mixture(P, ledger)
    assert len(grid.axes.flat) == 2
    assert [t.get_text() for t in grid.legend.get_texts()] == [
        "V-DB",
        "ExBERT",
    ]
    plt.close("all")


@pytest.fixture
def routed(monkeypatch):
    p = P.model_copy(update={"experiments": ["untuned"], "ratios": [0.6], "start": None})
    spec = next(s for s in plans.plan(p) if s.layer)
    load = {
        "training": [
            {
                "step": 1,
                "balance_loss": 1.0,
                "z_loss": 4.0,
                "dropped": 0.25,
                "load": [0.5, 0.25, 0.25, 0],
            }
        ],
        P.domains[0]: [30, 10, 0, 0],
        P.domains[1]: [10, 30, 0, 0],
    }
    monkeypatch.setattr(
        runs,
        "require_records",
        lambda specs: [(spec, {"run": "r", "load": load, "environment": MADE})],
    )
    return spec


def test_routing_frames(routed):
    share = tables.collect_routing([routed])
    assert list(share[share["set"] == P.domains[0]]["share"]) == [0.75, 0.25, 0, 0]
    assert set(share["expert"]) == {1, 2, 3, 4}
    step = tables.collect_router_steps([routed]).iloc[0]
    assert step["largest load"] == 2.0 and step["dropped"] == 0.25


def make_claim_row(**changes) -> dict:
    """Return a row of the long table: an undecided claim at the report's settings."""
    row = {
        "claim": "c",
        "arm": "printed",
        "comparison": "claim",
        "control": "",
        "where": "3",
        "says": "It gains",
        "stance": "result",
        "kind": "magnitude",
        "primary": True,
        "printed": "9 to 13",
        "printed_unit": "EM or F1",
        "unit": "EM",
        "confound": "",
        "ours": 1.25,
        "low": -1.0,
        "high": 3.5,
        "part": "",
        "parts": 1,
        "n": 3,
        "verdict": "undecided",
        "reason": "seeds (needs n=9)",
        "unpooled": "undecided",
        "rule_ours": float("nan"),
        "rule_low": float("nan"),
        "rule_high": float("nan"),
        "rule_part": "",
        "more": 0,
        "run": ("a",),
    }
    return row | changes


def test_a_failing_claim_says_what_that_means_by_the_rule_s_own_interval():
    failing = {"verdict": "not reproduced", "reason": "opposite"}
    assert verify.format_verdict(pd.Series(make_claim_row(**failing))) == "not reproduced: opposite"
    rule = {
        "rule_ours": -3.0,
        "rule_low": -5.0,
        "rule_high": -1.0,
        "rule_part": "squad",
        "more": 2,
    }
    row = pd.Series(make_claim_row(**failing, **rule, parts=3))
    told = "not reproduced: opposite (squad, adjusted: -3.0 [-5.0, -1.0], and 2 more)"
    assert verify.format_verdict(row) == told


def test_only_the_interval_of_several_parts_is_adjusted():
    """Whether it is wider than the one that is shown says nothing: that is of another part."""
    failing = {
        "verdict": "not reproduced",
        "reason": "opposite",
        "rule_ours": -3.0,
        "rule_low": -5.0,
        "rule_high": -1.0,
        "rule_part": "squad",
    }
    for low in (-9.0, -2.0):
        told = verify.format_verdict(pd.Series(make_claim_row(**failing, low=low, parts=2)))
        assert "(squad, adjusted: " in told
        told = verify.format_verdict(pd.Series(make_claim_row(**failing, low=low, parts=1)))
        assert "(squad: " in told


def test_a_difference_of_losses_has_decimals_enough():
    of_losses = {"unit": "loss", "ours": -0.033, "low": -0.065, "high": -0.0007}
    row = pd.Series(make_claim_row(**of_losses))
    assert verify.format_effect(row) == "-0.033 [-0.065, -0.001] loss"
    failing = {"verdict": "not reproduced", "reason": "opposite", "rule_part": "squad"}
    failing |= {"rule_ours": -0.033, "rule_low": -0.065, "rule_high": -0.0007}
    told = verify.format_verdict(pd.Series(make_claim_row(**of_losses | failing)))
    assert told == "not reproduced: opposite (squad: -0.033 [-0.065, -0.001])"


def show_control(of_claim: dict, of_control: dict) -> str:
    """Return what is said of a control of ExBERT beside its claim. Each: fields of its row."""
    beside = {"comparison": "control", "control": "plain-tuned", "ours": 0.4, "low": 0.0}
    row = make_claim_row(**beside | {"high": 0.8, "verdict": "", "reason": ""} | of_control)
    return verify.format_control(
        "exbert", pd.Series(row), pd.Series(make_claim_row(**of_claim))
    ).removeprefix("(a) without ST-MoE block: ")


def test_a_control_says_how_much_of_the_effect_is_left():
    assert show_control({}, {}) == "0.4 of the 1.2 EM [0.0, 0.8]"
    # of another part, and of an equality, the effects are not the same quantity
    assert show_control({}, {"part": "squad, EM"}) == "0.4 [0.0, 0.8] EM (squad)"
    assert show_control({"kind": "equivalence"}, {"kind": "equivalence"}) == "0.4 [0.0, 0.8] EM"
    # each is a percentage of another score
    relative = {"unit": "percent relative"}
    assert show_control(relative, relative) == "0.4 [0.0, 0.8] percent relative"
    # more than all is left, or less than nothing
    assert show_control({"ours": 0.3}, {}) == "0.4 [0.0, 0.8] EM"
    assert show_control({"ours": -2.0}, {}) == "0.4 [0.0, 0.8] EM"
    # of nothing there is no share, and none of an effect over other seeds
    nothing = {"ours": 0.0, "low": -0.3, "high": 0.3}
    assert show_control({"ours": 0.01}, nothing) == "0.0 [-0.3, 0.3] EM"
    assert show_control({"n": 6}, {}) == "0.4 [0.0, 0.8] EM"
    assert show_control({}, {"ours": -0.2, "low": -0.4}) == "-0.2 [-0.4, 0.8] EM"
    assert show_control({}, {"ours": float("nan")}) == "not tested"


def test_a_part_is_named_as_a_reader_names_it():
    p = plans.load_params("moe", "real")
    said = {
        "metric f1": "F1",
        "set second, metric em": "NewsQA, EM",
        "set out-of-domain": "new domains, dev",
        "variant reinit-2": "Reinit 2",
        "variant moe": "MoE",
        "variant expert-squad, metric em_starter": "Expert of SQuAD, EM",
        "ratio 0.8, set first": "80:20, SQuAD",
        "order shuffled": "order shuffled",
        "": "",
    }
    assert {label: verify.name_part(p, label) for label in said} == said


def test_a_dataset_that_stands_in_for_another_is_named_in_its_place():
    p = plans.load_params("smart", "quick")
    assert verify.name_part(p, "set sst") == p.domains[0] == "sentiment"


def test_runs_that_a_claim_lacks_are_told_in_words():
    p = plans.load_params("exbert", "real", size="small")
    both = [{"metric": "em", "set": test_set} for test_set in ("first", "second")]
    v_db = {"variant": "v-db", "order": "trainer"}
    assert verify.describe_absent(p, ()) == ""
    at_two = [v_db | {"ratio": ratio} | both[0] for ratio in (0.6, 1.0)]
    assert verify.describe_absent(p, at_two) == "no run of V-DB at 60:40, 100:0 (EM on SQuAD)"
    orders = [v_db | {"order": order} | one for order in ("shuffled", "sequential") for one in both]
    alike = "no run of V-DB (shuffled) or V-DB (sequential) (EM on SQuAD, BioASQ)"
    assert verify.describe_absent(p, orders) == alike
    curve = {"variant": "exbert-curve", "metric": "loss_gap", "set": "validation"}
    curves = [curve | {"dropout_at": "none", "blocks": blocks} for blocks in (4, 6)]
    says = "no run of ExBERT (for curves), dropout at none, blocks 4 or 6 (loss gap on validation)"
    assert verify.describe_absent(p, curves) == says
    full = [{"variant": "v-db-full"} | both[1]]
    says = "no run of V-DB (all rows) (EM on BioASQ)"
    assert verify.describe_absent(p, curves[:1] + full).endswith(f"; {says}")
    p = plans.load_params("smart", "real", size="small")
    review = {"variant": "finetune-cfimdb", "metric": "accuracy", "set": "cfimdb"}
    assert verify.describe_absent(p, [review]) == (
        "no run of Fine-tuned (CFIMDB) (accuracy on CFIMDB)"
    )


def test_a_reason_and_the_absent_runs_stand_together():
    p = plans.load_params("exbert", "real", size="small")
    absent = ({"variant": "exbert", "metric": "em", "set": "first"},)
    no_seed = "no seed that all its sides have"
    judged = pd.Series({"reason": no_seed, "absent": absent})
    reason = verify.describe_reason(p, judged)
    assert reason == f"{no_seed}; no run of ExBERT (EM on SQuAD)"
    judged = pd.Series({"reason": no_seed, "absent": ()})
    assert verify.describe_reason(p, judged) == no_seed


def test_a_calibrated_gate_lies_on_the_line(monkeypatch):
    """A gate that says 0.7 and is right in 7 of 10 has no calibration error; one that says 1.0 has
    0.3.
    """
    p = plans.load_params("moe", "quick")
    a, b = p.domains[:2]
    experts = [Expert(f"e{d}", [d]) for d in (a, b)]

    def examples(sure: float) -> dict[str, pd.DataFrame]:
        sets = [a] * 7 + [b] * 3 + [p.pools[0]] * 10
        base = pd.DataFrame({"set": sets, "id": [f"q{i}" for i in range(20)]})
        said = base.assign(run="m", gate_1=sure, gate_2=1 - sure)
        own = [base.assign(run=f"e{d}", em=[100.0 * (k == 0)] * 20) for k, d in enumerate((a, b))]
        return {"m": said, "e": pd.concat(own)}

    monkeypatch.setattr(runs, "find_record", lambda e: {"run": e.run})
    for sure, error in ((0.7, 0.0), (1.0, 0.3)):
        found = examples(sure)
        monkeypatch.setattr(
            runs,
            "collect_examples",
            lambda specs, found=found: found["m" if isinstance(specs[0], Mixed) else "e"],
        )
        bins = tables.calibration_bins(p.model_copy(update={"domains": [a, b]}), Mixed(experts))
        inside = bins[bins["of"].str.startswith("in domain")]
        assert tables.calibration_error(inside) == pytest.approx(error)
        assert inside["pairs"].sum() == 20
        far = bins[bins["of"].str.startswith(p.pools[0])].set_index("weight")["share"]
        assert list(far) == [0.0, 1.0]  # the trusted expert is right, the other wrong


class Expert:
    def __init__(self, run: str, domains: list[str], variant: str = "expert"):
        self.run = run
        self.domains = domains
        self.variant = variant

    def model_copy(self, update: dict) -> "Expert":
        return self


class Mixed:
    tests: list[str] = []
    test_fingerprints: dict[str, str] = {}

    def __init__(self, parents: list[Expert]):
        self.experts = parents
