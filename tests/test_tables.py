"""Frames and shared figures of a page, from planted records."""

import itertools

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from qa_lib.evidence import verify
from qa_lib.page import figures, findings, tables
from qa_lib.reports import catalogue, plans
from qa_lib.settings import params
from qa_lib.store import runs
from qa_lib.tasks import metrics

P = params.load_params("exbert", "quick")

ENVIRONMENT = {"device": "CPU", "precision": "bf16"}


def make_examples(right: dict[str, list[int]]) -> pd.DataFrame:
    """Return examples of runs on both domains. right: for each run, 1 or 0 for each question."""
    rows = []
    for run, marks in right.items():
        for name in P.domains:
            for i, x in enumerate(marks):
                place = {"start": 4 * i, "end": 4 * i + 3, "tokens": 1}
                rows.append({"run": run, "set": name, "id": f"q{i}", "em": 100.0 * x, **place})
    return pd.DataFrame(rows)


def test_answers_side_by_side_are_chosen_by_rule():
    examples = make_examples({"a": [1, 1, 1, 0, 0, 0, 1], "b": [0, 0, 0, 1, 0, 0, 1]})
    answers = tables.contrasting_answers(examples, "a", "b")
    assert len(answers) == 2 * (2 + 1 + 1)
    one = answers[answers["set"] == P.domains[0]]
    assert dict(zip(one["id"], one["case"], strict=True)) == {
        "q0": "only ours",
        "q1": "only ours",
        "q3": "only theirs",
        "q4": "neither",
    }
    assert set(answers["run"]) == {("a", "b")}


def test_answers_are_text_where_the_text_is_ours_and_spans_elsewhere(monkeypatch):
    examples = make_examples({"a": [1, 1, 1, 0, 0], "b": [0, 0, 0, 1, 0]})
    records = [(None, {"run": "a"}), (None, {"run": "b"})]
    monkeypatch.setattr(runs, "collect_examples", lambda specs: examples)
    monkeypatch.setattr(runs, "require_records", lambda specs: records)
    central = {"exbert-tuned": None, "v-db": None}
    # text is shown of the test rows that there are
    row = {"context": "one two six ten ant bee cat", "answers": {"text": ["g"]}}
    rows = [row | {"id": f"q{i}", "question": f"{i}?"} for i in (0, 3)]
    text = tables.answers_table(P, central, lambda spec: {P.domains[0]: (None, rows)})
    assert list(text["V-DB"]) == list(text["ExBERT, tuned"]) == ["one", "ten"]
    assert list(text["question"]) == ["0?", "3?"]
    spans = tables.answers_table(P.model_copy(update={"source": "folder"}), central, None)
    assert set(spans["V-DB"]) == {"0–3", "4–7", "12–15", "16–19"}
    assert set(spans["right"]) == {"ExBERT", "V-DB", "neither"}


def test_contains_is_whole_words_and_more_than_the_answer():
    assert metrics.contains("The torn ACL of the knee", ["torn ACL"])
    # this answer is exact once the article is gone
    assert not metrics.contains("a torn ACL", ["torn ACL"])
    assert not metrics.contains("acltorn", ["acl"])
    assert not metrics.contains("", ["x"])
    assert not metrics.contains("x", [""])


def make_history() -> pd.DataFrame:
    """Return losses of two learning rates over two epochs."""
    rows = []
    for rate in (3e-4, 2e-5):
        for epoch in (1.0, 2.0):
            row = {
                "run": f"r{rate}",
                "variant": "v-db-curve",
                "ratio": 0.6,
                "seed": 0,
                "learning_rate": rate,
                "epoch": epoch,
                "train_loss": 3.0 - epoch,
                "validation_loss": 2.0 - epoch / 10,
            }
            rows.append(row)
    return tables.add_display_names(pd.DataFrame(rows))


def test_models_mixtures_and_rates_have_display_names():
    frame = make_history()
    assert set(frame["model"]) == {"V-DB"}
    assert set(frame["mixture"]) == {"60:40"}
    # in the order of the numbers
    assert list(frame["rate"].cat.categories) == ["2e-5", "3e-4"]
    assert catalogue.model_of("exbert-tuned") == "exbert-tuned"
    assert catalogue.model_of("exbert-full") == "exbert"


def test_a_last_evaluation_soon_after_another_has_its_training_loss(monkeypatch):
    spec = next(s for s in plans.plan(P) if s.validation_rows)
    history = []
    record = {"run": "r", "history": history, "environment": ENVIRONMENT}
    monkeypatch.setattr(runs, "require_records", lambda specs: [(s, record) for s in specs])
    assert runs.collect_histories([spec]).empty
    logged = {"epoch": 2.99, "train_loss": 1.5, "validation_loss": 1.0}
    history[:] = [logged, {"epoch": 3.0, "train_loss": None, "validation_loss": 1.0}]
    assert list(runs.collect_histories([spec])["train_loss"]) == [1.5, 1.5]
    # before training nothing was logged, whatever run stands above
    history[:] = [logged | {"train_loss": None}, logged]
    twice = [spec, spec.model_copy(update={"variant": "v-db-size"})]
    assert runs.collect_histories(twice)["train_loss"].isna().tolist() == [True, False] * 2


def test_numbers_in_prose_are_means_with_their_spread_or_intervals():
    ledger = pd.DataFrame(
        {
            "variant": ["a", "a", "b", "a"],
            "set": "x",
            "metric": ["em", "em", "em", "f1"],
            "seed": [0, 1, 1, 0],
            "value": [10.0, 12.0, 5.0, 99.0],
        }
    )
    assert list(tables.select_values(ledger, variant="a", set="x")) == [10.0, 12.0]
    assert findings.spread(tables.select_values(ledger, variant="a", set="x")) == "11.0 ± 1.4"
    assert [findings.spread(tables.select_values(ledger, variant=v)) for v in "bc"] == ["5.0", "–"]
    apart = tables.select_values(ledger, variant="a") - tables.select_values(ledger, variant="b")
    # paired by seed
    assert findings.spread(apart) == "7.0"
    claims = pd.DataFrame(
        {
            "claim": ["c", "d"],
            "verdict": ["not reproduced", "inconclusive: seeds (needs n=5)"],
            "ours": 1.25,
            "low": -1.0,
            "high": 3.5,
            "unit": "EM",
            "part": "F1",
        }
    )
    assert verify.has_verdict(claims, "c", "not reproduced")
    assert not verify.has_verdict(claims, "c", "reproduced")
    assert verify.has_verdict(claims, "d", "inconclusive")
    assert verify.format_claim(claims, "c") == "1.2 [-1.0, 3.5] F1"


def test_shared_figures_have_a_panel_for_each_value_and_a_line_for_each_model():
    grid = figures.draw_losses(make_history(), "rate", "rate")
    titles = [a.get_title(loc="left") or a.get_title() for a in grid.axes.flat]
    assert titles == ["rate 2e-5", "rate 3e-4"]
    rows = []
    for variant, ratio, domain in itertools.product(("v-db", "exbert"), P.ratios, P.domains):
        labels = {"run": f"{variant}{ratio}", "variant": variant, "ratio": ratio, "seed": 0}
        rows.append({**labels, "set": domain, "metric": "em", "value": 10 * ratio})
    grid = figures.draw_by_mixture(P, tables.add_display_names(pd.DataFrame(rows)))
    assert len(grid.axes.flat) == 2
    assert [t.get_text() for t in grid.legend.get_texts()] == ["V-DB", "ExBERT"]
    stack = figures.draw_stack([("a", "b", False), ("c", "d", True)], ["1", "2"])
    assert len(stack.axes[0].patches) == 4
    plt.close("all")


@pytest.fixture
def routed(monkeypatch):
    """Return a run with a router, whose record has a planted routing."""
    p = P.model_copy(update={"experiments": ["untuned"], "ratios": [0.6], "start": None})
    spec = next(s for s in plans.plan(p) if s.layer)
    step = {
        "step": 1,
        "balance_loss": 1.0,
        "z_loss": 4.0,
        "dropped": 0.25,
        "load": [0.5, 0.25, 0.25, 0],
    }
    load = {
        "training": [step],
        P.domains[0]: [30, 10, 0, 0],
        P.domains[1]: [10, 30, 0, 0],
    }
    record = {"run": "r", "load": load, "environment": ENVIRONMENT}
    monkeypatch.setattr(runs, "require_records", lambda specs: [(spec, record)])
    return spec


def test_routing_is_a_share_for_each_expert_and_a_load_for_each_step(routed):
    share = tables.collect_routing([routed])
    assert list(share[share["set"] == P.domains[0]]["share"]) == [0.75, 0.25, 0, 0]
    assert set(share["expert"]) == {1, 2, 3, 4}
    step = tables.collect_router_steps([routed]).iloc[0]
    assert step["largest load"] == 2.0
    assert step["dropped"] == 0.25


def test_a_page_shows_claims_with_runs_and_says_untested_briefly():
    row = {
        "claim": "c",
        "where": "3",
        "says": "It gains",
        "printed": "9 to 13",
        "printed_unit": "EM or F1",
        "unit": "EM",
        "ours": 1.25,
        "low": -1.0,
        "high": 3.5,
        "part": "",
        "n": 3,
        "primary": True,
        "confound": "",
        "judged": "magnitude",
        "verdict": "inconclusive: seeds (needs n=9)",
        "tuned": f"{verify.UNTESTED}: why",
        "control": "Equal weights: not reproduced",
        "run": ("a",),
        **dict.fromkeys(("tuned_ours", "tuned_low", "tuned_high"), float("nan")),
        "tuned_part": "",
        "control_ours": 0.5,
        "control_low": -1.0,
        "control_high": 2.0,
        "control_part": "squad, EM",
    }
    one = {"low": float("nan"), "n": 1, "confound": "It may not.", "judged": "superiority"}
    shown = verify.claims_for_page(pd.DataFrame([row, row | {"run": ()}, row | one]))
    assert list(shown["printed"]) == ["9 to 13 EM or F1", "9 to 13 EM or F1 (direction)"]
    assert list(shown["ours"]) == ["1.2 [-1.0, 3.5] EM", "1.2 EM"]
    assert list(shown["equal trials"]) == ["not tested"] * 2
    assert shown["verdict"].iloc[0] == "inconclusive: seeds (needs n=9)"
    assert shown.iloc[0, 0] == "It gains (3; primary)"
    assert shown.iloc[1, 0] == "It gains (3; primary) To bear in mind: It may not."
    assert shown["control"].iloc[0] == "0.5 [-1.0, 2.0] EM (squad), Equal weights: not reproduced"


@pytest.mark.parametrize(
    "part, name",
    [
        ("metric f1", "F1"),
        ("set second, metric em", "bioasq, EM"),
        ("variant reinit-2", "reinit-2"),
        ("", ""),
    ],
)
def test_a_part_is_named_as_a_reader_names_it(part, name):
    assert verify.part(part, ["squad", "bioasq"]) == name


class Expert:
    """Stand-in for the run of an expert."""

    def __init__(self, run: str, domains: list[str]):
        self.run = run
        self.domains = domains

    def model_copy(self, update: dict) -> "Expert":
        return self


class Mixture:
    """Stand-in for the run of a mixture."""

    tests: list[str] = []

    def __init__(self, parents: list[Expert]):
        self.parents = parents


@pytest.mark.parametrize("weight, error", [(0.7, 0.0), (1.0, 0.3)])
def test_a_calibrated_gate_has_no_calibration_error(monkeypatch, weight, error):
    """The gate gives its first expert this weight, which is right for 7 of 10 rows."""
    p = params.load_params("moe", "quick")
    a, b = p.domains[:2]
    pool = p.pools[0]
    ids = [f"q{i}" for i in range(20)]
    rows = pd.DataFrame({"set": [a] * 7 + [b] * 3 + [pool] * 10, "id": ids})
    mixture_examples = rows.assign(run="m", gate_1=weight, gate_2=1 - weight)
    right = rows.assign(run="first", em=100.0)
    wrong = rows.assign(run="second", em=0.0)
    expert_examples = pd.concat([right, wrong])

    def collect_examples(specs):
        return mixture_examples if isinstance(specs[0], Mixture) else expert_examples

    monkeypatch.setattr(runs, "find_record", lambda expert: {"run": expert.run})
    monkeypatch.setattr(runs, "collect_examples", collect_examples)
    mixture = Mixture([Expert("first", [a]), Expert("second", [b])])
    bins = tables.calibration_bins(p.model_copy(update={"domains": [a, b]}), mixture)
    in_domain = bins[bins["of"].str.startswith("in domain")]
    assert tables.calibration_error(in_domain) == pytest.approx(error)
    assert in_domain["pairs"].sum() == 20
    out_of_domain = bins[bins["of"].str.startswith(pool)].set_index("weight")["share"]
    # the trusted expert is right, and the other one wrong
    assert list(out_of_domain) == [0.0, 1.0]
