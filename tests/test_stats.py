"""Claims files, and the statistics on planted ledgers, where the answer is known."""

import hashlib
import itertools
import json
import re
import sys
from statistics import stdev

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student_t
from statsmodels.stats.multitest import multipletests

from qa_lib.__main__ import run_verb
from qa_lib.data import selection
from qa_lib.evidence import claims as claims_module
from qa_lib.evidence import power, stats, verdicts, verify
from qa_lib.evidence.claims import Claim, Contrast, control_claim, read_claims
from qa_lib.evidence.resample import mean, resample
from qa_lib.evidence.verdicts import Estimate, Meaning, Verdict, apply_rule, interval, judge
from qa_lib.reports import exbert, plans
from qa_lib.settings import encoder_files, params
from qa_lib.settings.files import digest_text
from qa_lib.settings.parameters import Layer
from qa_lib.settings.params import ROOT, UserError
from qa_lib.settings.spec import Spec
from qa_lib.store import runs
from qa_lib.tasks import sentence

FILES = [ROOT / "params" / "claims" / f"{slug}.yaml" for slug in params.list_claimed_reports()]
DOMAINS = ["squad", "bioasq"]


def plant_scores(
    gains: dict,
    seeds=5,
    seed_sd=0.5,
    clusters=200,
    rows=1,
    cluster_sd=1.0,
    row_sd=1.0,
    base=50.0,
    size="full",
    rng=0,
    sets=DOMAINS,
):
    """Return a ledger and its examples with known differences between the models.

    gains: EM above `base` of each (variant, ratio).
    seed_sd: standard deviation of one model's EM from seed to seed.
    cluster_sd: standard deviation of the models' differences from cluster to cluster.
    row_sd: standard deviation of the noise of a single row.
    """
    rng = np.random.default_rng(rng)
    ledger = []
    examples = []
    cluster = np.repeat(np.arange(clusters), rows)
    for name in sets:
        question = rng.normal(0, 20, clusters)  # common to all models
        for (variant, ratio), gain in gains.items():
            own = rng.normal(0, cluster_sd, clusters)
            for s in range(seeds):
                y = (
                    base
                    + gain
                    + rng.normal(0, seed_sd)
                    + (question + own)[cluster]
                    + rng.normal(0, row_sd, len(cluster))
                )
                run = f"{variant}-{ratio}-{size}-s{s}"
                labels = {"run": run, "variant": variant, "seed": s, "ratio": ratio}
                row = {
                    "report": "exbert",
                    "profile": "real",
                    "size": size,
                    "order": "trainer",
                    "arm": "printed",
                    "set": name,
                    "metric": "em",
                    "value": y.mean(),
                    "n": len(y),
                }
                ledger.append(labels | row)
                frame = {
                    "id": np.arange(len(y)).astype(str),
                    "cluster": cluster.astype(str),
                    "em": y,
                }
                examples.append(pd.DataFrame(frame).assign(set=name, **labels))
    return pd.DataFrame(ledger), pd.concat(examples, ignore_index=True)


def join_planted(*planted) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return one ledger and one frame of examples from several pairs of them."""
    ledgers, examples = zip(*planted, strict=True)
    return pd.concat(ledgers), pd.concat(examples)


PAIR = {
    "ours": {"variant": "exbert-tuned"},
    "against": {"variant": "v-db"},
    "both": {"ratio": 0.8},
    "set": "first",
    "metric": "em",
}


def make_claim(kind="superiority", contrast=None, **fields) -> Claim:
    """Return a claim about PAIR. Arguments change fields of its contrast and of the claim."""
    defaults = {
        "id": "planted",
        "where": "here",
        "says": "so",
        "printed": None,
        "unit": "EM",
        "kind": kind,
        "profiles": ["real", "paper"],
        "contrast": Contrast(**PAIR | (contrast or {})),
    }
    return Claim(**defaults | fields)


def pair_gains(gain: float, ratio=0.8) -> dict:
    """Gains of the two models of PAIR at one ratio: none of the baseline, `gain` of the other."""
    return {("v-db", ratio): 0.0, ("exbert-tuned", ratio): gain}


def judge_claim(claim: Claim, planted, profile="real", **kwargs) -> pd.Series:
    """Return the verdict's row of one claim on a planted ledger and its examples."""
    return stats.judge_claims([claim], *planted, profile, DOMAINS, **kwargs).iloc[0]


# ---- claims files ----

# The test sets that a report's claims may name.
PLACES = {"first", "second", "validation"}
SETS = {
    "moe": {
        "squad",
        "newsqa",
        "naturalquestions",
        "out-of-domain",
        "out-of-domain-test",
        "training",
    },
    "road": {"mnli", "qqp"},
    "smart": {"sst", "cfimdb", "quora", "sts", "training"},
}


@pytest.mark.parametrize("file", FILES, ids=lambda p: p.stem)
def test_claims_validate_and_their_columns_exist(file):
    claims = read_claims(file.stem)
    assert len(claims) >= 15
    assert 1 <= sum(c.primary for c in claims) <= 5
    columns = {"set", "metric", *Layer.model_fields}
    columns |= {k for k, f in Spec.model_fields.items() if "list" not in str(f.annotation)}
    sets = PLACES | SETS.get(file.stem, set())
    for c in claims:
        for side in c.contrast.sides() if c.contrast else []:
            assert set(side) <= columns, c.id
            assert set(np.ravel(side["set"])) <= sets, c.id
        assert c.contrast is None or c.contrast.parts()
        assert not c.control or control_claim(c).contrast.parts()
        assert not c.primary or c.confound
    ids = re.findall(r"^(\S+):", file.read_text(), re.M)
    assert ids == [c.id for c in claims], "an id stands twice"


def test_a_control_keeps_the_target_of_a_difference_alone():
    """The other side may differ in what both sides name, and has no columns of its own then."""
    contrast = {"ours": {"variant": "v-db"}, "both": {"ratio": 0.8}, "target": 2.0}
    difference = make_claim(contrast=contrast | {"against": {}}, control="plain-tuned")
    assert control_claim(difference).contrast.target == 2.0
    value = make_claim(contrast=contrast | {"against": None}, control="plain-tuned")
    assert control_claim(value).contrast.target == 0.0


@pytest.mark.parametrize("file", FILES, ids=lambda p: p.stem)
def test_every_claim_has_a_stance(file):
    stances = claims_module.read_stances(file.stem)
    assert list(stances) == [c.id for c in read_claims(file.stem)]
    assert set(stances.values()) <= set(claims_module.STANCES)


def test_contradictions_are_entered():
    claims = {c.id: c for c in read_claims("exbert")}
    headline = claims["headline"].range
    mixed = claims["mixed-gain"].range
    assert headline != mixed
    assert claims["squad-plus-8"].range[1] < headline[0] < mixed[0]
    assert {"mixed-gain", "squad-plus-8"} <= set(claims["headline"].contradicts)


@pytest.fixture
def planned(monkeypatch):
    """Return a function that loads parameters and plans runs without data or encoder."""
    monkeypatch.setattr(encoder_files, "identify_weights", lambda name: "w" * 64)
    monkeypatch.setattr(selection, "fingerprint", lambda *_: "f" * 64)

    def plan(profile: str, size: str | None = None, **changes):
        p = plans.load_params("exbert", profile, changes, size)
        return p, exbert.plan(p)

    return plan


def make_record(spec: Spec, rows=30) -> tuple[dict, pd.DataFrame]:
    """Return a run's record and examples with random scores. The best rate is about 1e-4."""
    rng = np.random.default_rng(int(spec.hash[:8], 16))
    frames = [pd.DataFrame(columns=["set", "id", "cluster", "em", "f1", "tokens"])]
    for name in spec.tests:
        frame = {
            "set": name,
            "id": np.arange(rows).astype(str),
            "cluster": np.arange(rows).astype(str),
            "em": rng.uniform(0, 100, rows),
            "f1": rng.uniform(0, 100, rows),
            "tokens": rng.uniform(1, 9, rows),
        }
        frames.append(pd.DataFrame(frame))
    examples = pd.concat(frames)
    scores = {}
    for name, x in examples.groupby("set"):
        means = x[["em", "f1", "tokens"]].mean().to_dict()
        scores[name] = means | {"n": rows, "clusters": rows}
    history = []
    for e in range(int(spec.epochs)):
        evaluation = {
            "epoch": float(e + 1),
            "step": e + 1,
            "train_loss": rng.uniform(1, 2),
            "validation_loss": rng.uniform(1, 1.5) + 3 * abs(np.log10(spec.learning_rate) + 4),
            "validation_em": 1.0,
            "validation_f1": 1.0,
        }
        history.append(evaluation)
    environment = {"device": "CPU, 1 thread", "precision": "bf16"}
    return {"metrics": scores, "history": history, "environment": environment}, examples


def test_every_contrast_finds_its_planned_runs_and_no_others(planned, monkeypatch):
    p, specs = planned("paper", arms=["printed"])
    records = {s.hash: make_record(s) for s in specs}
    monkeypatch.setattr(
        runs,
        "require_records",
        lambda specs: [(s, {"run": s.run} | records[s.hash][0]) for s in specs],
    )
    scores = runs.collect_ledger(specs)
    losses = stats.collect_curve_rows(runs.collect_histories(specs))
    ledger = pd.concat([scores, losses], ignore_index=True)
    examples = pd.concat([records[s.hash][1].assign(run=s.run) for s in specs])
    table = stats.judge_claims("exbert", ledger, examples, "paper", p.domains, times=50)
    table = table.set_index("id")
    for c in read_claims("exbert"):
        is_untested = table["verdict"][c.id] == Verdict.NOT_TESTED
        assert is_untested == ("paper" not in c.profiles), table["reason"][c.id]
        assert (table["n"][c.id] == 3) == (c.contrast is not None)


@pytest.mark.parametrize(
    "change, says",
    [
        ({"kind": "magnitud"}, "kind"),
        ({"printed": "ten"}, "printed"),
        ({"margn": 3}, "did you mean margin"),
        ({"kind": "magnitude"}, "needs a number"),
        ({"printed": []}, "a number, or"),
        ({"profiles": ["real"]}, "why profile paper cannot"),
        ({"unit": "loss"}, "delta"),
        ({"contrast": PAIR | {"agains": {}}}, "did you mean against"),
        ({"contrast": PAIR | {"each": ["ratio"]}}, "lists"),
        ({"contrast": None}, "null exactly where"),
        ({"contradicts": ["nothing"]}, "nothing is no claim"),
    ],
)
def test_a_wrong_entry_names_file_and_id(tmp_path, monkeypatch, change, says):
    entry = {
        "where": "here",
        "says": "so",
        "printed": None,
        "unit": "EM",
        "kind": "superiority",
        "profiles": ["real", "paper"],
        "contrast": PAIR,
    } | change
    (tmp_path / "params" / "claims").mkdir(parents=True)
    (tmp_path / "params" / "claims" / "exbert.yaml").write_text(json.dumps({"fine": entry}))
    (tmp_path / "params" / "claims" / "stances.yaml").write_text("exbert: {fine: hope}")
    monkeypatch.setattr(claims_module, "ROOT", tmp_path)
    with pytest.raises(UserError, match=says) as error:
        read_claims("exbert")
    assert str(error.value).startswith("params/claims/exbert.yaml, line 1: fine: ")


# ---- verdicts ----


@pytest.mark.parametrize(
    "gain, fields, expected",
    [
        (5.0, {}, "reproduced"),
        (0.0, {}, "not reproduced"),  # a true null
        (-5.0, {}, "not reproduced"),
        (2.0, {"delta": 8}, "reproduced, smaller"),
        (6.0, {"delta": 8}, "reproduced"),
        (11.0, {"kind": "magnitude", "printed": [9, 13]}, "reproduced"),
        (6.5, {"kind": "magnitude", "printed": [9, 13]}, "reproduced, smaller"),
        (2.0, {"kind": "magnitude", "printed": [9, 13]}, "not reproduced"),
        (40.0, {"kind": "magnitude", "printed": 8}, "not reproduced"),
        (18.0, {"kind": "magnitude", "printed": [9, 13]}, "reproduced"),
        (30.0, {"kind": "magnitude", "printed": [9, 13]}, "not reproduced"),
        (0.3, {"kind": "equivalence"}, "reproduced"),
        (6.0, {"kind": "equivalence"}, "not reproduced"),
        (-6.0, {"kind": "equivalence"}, "not reproduced"),
    ],
)
def test_verdicts_where_the_evidence_is_plain(gain, fields, expected):
    row = judge_claim(
        make_claim(**fields), plant_scores(pair_gains(gain), clusters=2000, seed_sd=0.1)
    )
    assert row["verdict"] == expected
    assert row["low"] < row["d"] < row["high"]
    assert row["n"] == 5
    assert abs(row["d"] - gain) < 0.3
    assert len(row["run"]) == 10


@pytest.mark.parametrize(
    "fields, low, high, meaning",
    [
        ({"kind": "magnitude", "printed": 8}, 1.0, 3.9, Meaning.LESS_THAN_HALF),
        ({"kind": "magnitude", "printed": 8}, 3.0, 6.0, Meaning.BELOW),
        ({"kind": "magnitude", "printed": 8}, -1.0, 6.0, Meaning.OPEN),
        ({"kind": "magnitude", "printed": 8}, -3.0, -1.0, Meaning.OPPOSITE),
        ({"kind": "magnitude", "printed": [9, 13]}, 13.5, 20.0, Meaning.LARGER),
        ({"delta": 8, "printed": 8}, -1.0, 3.0, Meaning.OPEN),
        ({"delta": 8, "printed": 8}, 1.0, 3.0, Meaning.LESS_THAN_HALF),
        ({"delta": 8}, -1.0, 3.0, Meaning.TOO_SMALL),
        # d is counted from the target: below 0.1 it says nothing of what is printed
        ({"delta": 0.1, "printed": 5, "contrast": {"target": 5.5}}, -0.2, 0.0, Meaning.TOO_SMALL),
        ({}, -3.0, -1.0, Meaning.OPPOSITE),
        ({"kind": "equivalence"}, -9.0, -6.0, Meaning.DIFFERENT),
        ({"kind": "equivalence", "printed": [0, 1]}, 6.0, 9.0, Meaning.DIFFERENT),
    ],
)
def test_what_not_reproduced_means(fields, low, high, meaning):
    assert verdicts.explain_failure(make_claim(**fields), low, high) is meaning


def test_of_several_parts_the_first_that_fails_is_shown_by_the_rule_s_own_interval():
    gains = pair_gains(6.0, 0.2) | pair_gains(-3.0, 0.8) | pair_gains(-9.0, 1.0)
    over = {"both": {"ratio": [0.2, 0.8, 1.0]}, "each": ["ratio"]}
    row = judge_claim(make_claim(contrast=over), plant_scores(gains, seed_sd=0.1))
    assert row["verdict"] == Verdict.NOT_REPRODUCED
    assert row["reason"] == Meaning.OPPOSITE
    assert row["rule_part"] == "ratio 0.8"
    assert row["more"] == 1
    one = make_claim(contrast={"both": {"ratio": 0.8}})
    alone = judge_claim(one, plant_scores(gains, seed_sd=0.1))
    assert row["rule_d"] == pytest.approx(alone["d"])
    # at 5 % for three parts it is wider than at 5 % for one
    assert row["rule_low"] < alone["low"]
    assert row["rule_high"] > alone["high"]


@pytest.mark.parametrize(
    "gain, seed_sd, fields",
    [
        (1.5, 3.0, {}),
        (0.0, 3.0, {}),
        (11.0, 6.0, {"kind": "magnitude", "printed": [9, 13]}),
        (0.0, 3.0, {"kind": "equivalence"}),
    ],
)
def test_noisy_seeds_are_undecided_and_say_how_many_would_do(gain, seed_sd, fields):
    c = make_claim(**fields)
    row = judge_claim(c, plant_scores(pair_gains(gain), seeds=4, seed_sd=seed_sd, rng=2))
    assert row["verdict"] == Verdict.UNDECIDED
    needs = int(re.fullmatch(r"seeds \(needs n=(\d+)\)", row["reason"])[1])
    d, s2, nu, v, clusters = (float(row[k]) for k in ("d", "s2", "nu", "v", "clusters"))
    decided = [any(apply_rule(c, d, s2, nu + n - 4, v, n, clusters)) for n in (needs - 1, needs)]
    assert decided == [False, True]


def test_no_significant_difference_is_no_equality():
    planted = plant_scores(pair_gains(0.0), seeds=3, seed_sd=4.0, rng=1)
    # "no significant difference" rests on this alone
    assert judge_claim(make_claim(), planted)["p"] > 0.05
    equality = judge_claim(make_claim("equivalence"), planted)
    assert equality["verdict"] == Verdict.UNDECIDED
    assert equality["reason"].startswith("seeds")


def test_a_verdict_may_need_more_seeds_than_anyone_runs():
    c = make_claim("equivalence")
    needs_seeds = Estimate(1.68, 50.0, 3, 0.01, 4, 500)
    assert judge(c, [needs_seeds]).reason == "seeds (needs n>1000)"
    needs_questions = Estimate(1.68, 50.0, 3, 0.2, 4, 500)
    assert judge(c, [needs_questions]).reason == "test questions (no n suffices)"
    # of one seed v holds that seed's own noise, which more seeds average out
    of_one_seed = needs_questions._replace(n=1)
    assert judge(c, [of_one_seed]).reason == "seeds (one does not tell how many)"


@pytest.mark.parametrize("other", [(1.3, 4.0, 2, 1.0, 3, 500), (0.8, 9.0, 2, 0.0, 3, 500)])
def test_one_part_that_fails_decides_a_claim_before_all_would_hold(other):
    c = make_claim("superiority", delta=2)
    fails = Estimate(-0.5, 1.0, 2, 0.0, 3, 500)
    other = Estimate(*other)
    doubt = judge(c, [fails, other])
    needed = int(re.fullmatch(r"seeds \(needs n=(\d+)\)", doubt.reason)[1])
    more = [x._replace(n=needed, nu=needed - 1) for x in (fails, other)]
    fewer = [x._replace(n=needed - 1, nu=needed - 2) for x in (fails, other)]
    assert judge(c, fewer).verdict == Verdict.UNDECIDED
    assert judge(c, more).verdict == Verdict.NOT_REPRODUCED


def test_seeds_needed_by_primary_claims_are_counted_with_holms_whole_factor():
    """Of p = .67 in each of five the corrected p is 1, and the factor that counts is 5."""
    rows = [{"p": 0.67} for _ in range(5)]
    stats.raise_p_values(rows, "p")
    assert [row["p_holm"] for row in rows] == [1.0] * 5
    assert [row["p_factor"] for row in rows] == pytest.approx([5.0] * 5)


def test_an_effect_that_may_be_twice_what_is_printed_is_too_large():
    """The interval lies above what is printed, and on both sides of twice that."""
    c = make_claim("magnitude", printed=8)
    judgement = judge(c, [Estimate(16.0, 0.05, 4, 0.01, 5, 500)])
    assert judgement.low < 16 < judgement.high
    assert judgement.verdict == Verdict.NOT_REPRODUCED
    assert judgement.reason is Meaning.LARGER


def test_of_parts_that_are_equally_sure_the_one_with_the_smallest_effect_is_shown():
    gains = pair_gains(6.0, 0.2) | pair_gains(2.0, 0.8)
    over = {"both": {"ratio": [0.2, 0.8]}, "each": ["ratio"]}
    # one seed gives no p
    row = judge_claim(make_claim(contrast=over), plant_scores(gains, seeds=1, seed_sd=0.1))
    assert row["part"] == "ratio 0.8"


def test_a_control_has_the_target_of_a_difference_and_none_of_a_score():
    gain = make_claim(contrast={"target": 1.0}, control="plain-tuned")
    assert control_claim(gain).contrast.target == 1.0
    score = make_claim("equivalence", {"against": None, "target": 40.0}, control="plain-tuned")
    assert control_claim(score).contrast.target == 0.0


def test_examples_of_one_cluster_count_once():
    ledger, examples = plant_scores(
        pair_gains(0.0), clusters=20, rows=50, cluster_sd=8.0, seed_sd=0.1
    )
    # shift the scores so that d is 3
    shift = 3 - judge_claim(make_claim(), (ledger, examples))["d"]
    ledger.loc[ledger["variant"] != "v-db", "value"] += shift
    examples.loc[examples["variant"] != "v-db", "em"] += shift
    apart = examples.assign(cluster=examples["id"])
    together = judge_claim(make_claim(), (ledger, examples))
    naive = judge_claim(make_claim(), (ledger, apart))
    assert together["v"] > 10 * naive["v"]
    assert together["verdict"] == Verdict.UNDECIDED
    assert together["reason"] == "test questions (no n suffices)"
    assert naive["p"] < 0.05


@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize(
    "fields, gain",
    [({}, 30.0), ({"kind": "magnitude", "printed": 30}, 30.0), ({"kind": "equivalence"}, 0.0)],
)
def test_one_or_two_seeds_reproduce_nothing(seeds, fields, gain):
    c = make_claim(**fields)
    planted = plant_scores(pair_gains(gain), seeds=seeds, seed_sd=0.01)
    row = judge_claim(c, planted)
    assert row["verdict"] == Verdict.UNDECIDED
    alone = {1: "seeds (one gives no interval)", 2: "seeds (needs n=3)"}
    assert row["reason"] == alone[seeds]
    # a variance that is pooled with another comparison's does not change that
    other = make_claim(contrast={"both": {"ratio": 0.2}}, id="other")
    both = join_planted(planted, plant_scores(pair_gains(0.0, ratio=0.2), seed_sd=0.01))
    table = stats.judge_claims([c, other], *both, "real", DOMAINS)
    row = table.set_index("id").loc["planted"]
    assert row["verdict"] == Verdict.UNDECIDED
    assert row["reason"] == "seeds (needs n=3)"
    assert row["nu"] == pytest.approx(4 + seeds - 1)


def test_one_seed_has_no_interval_of_its_own():
    row = judge_claim(make_claim(), plant_scores(pair_gains(30.0), seeds=1))
    assert np.isnan(row["low"])
    assert np.isnan(row["p"])
    assert row["n"] == 1


def test_missing_seeds_are_left_out_on_both_sides():
    ledger, examples = plant_scores(pair_gains(5.0), seeds=5)
    gone = (ledger["variant"] == "v-db") & (ledger["seed"] == 1)
    some = judge_claim(make_claim(), (ledger[~gone], examples))
    whole = judge_claim(make_claim(), (ledger, examples))
    assert some["n"] == 4
    assert some["dropped"] == (1,)
    assert whole["dropped"] == ()
    v = ledger[ledger["set"] == "squad"].pivot(index="seed", columns="variant", values="value")
    assert some["d"] == pytest.approx((v["exbert-tuned"] - v["v-db"]).drop(1).mean())


def test_equal_scores_are_a_difference_of_zero():
    planted = plant_scores({("v-db", 0.8): 0.0}, seed_sd=1.0)
    same = [x.assign(variant="exbert-tuned", run="x" + x["run"]) for x in planted]
    planted = join_planted(planted, same)
    row = judge_claim(make_claim(), planted)
    assert row["d"] == 0
    assert row["p"] == 1
    assert row["verdict"] == "not reproduced"
    assert judge_claim(make_claim("equivalence"), planted)["verdict"] == "reproduced"


def test_a_claim_that_is_not_tested_says_why():
    planted = plant_scores(pair_gains(5.0))
    assert judge_claim(make_claim(), planted, profile="quick")["reason"] == stats.QUICK
    only = make_claim(profiles=["paper"], untestable={"real": "another encoder"})
    assert judge_claim(only, planted)["reason"] == "another encoder"
    absent = judge_claim(
        make_claim(contrast={"ours": {"variant": "exbert", "experts": 8}}), planted
    )
    [cell] = absent["absent"]
    assert cell.items() >= {"variant": "exbert", "experts": 8, "ratio": 0.8, "set": "first"}.items()
    assert absent["reason"] == ""
    assert absent["verdict"] == Verdict.NOT_TESTED
    assert absent["run"] == ()
    assert np.isnan(absent["d"])
    changes = {"contrast": None, "profiles": [], "untestable": {"real": "it is cited"}}
    cited = make_claim().model_copy(update=changes)
    assert judge_claim(cited, planted)["reason"] == "it is cited"


def test_a_claim_over_mixtures_names_those_that_lack_runs():
    """Such a claim is not tested on fewer mixtures, whether it averages over them or names each."""
    gains = {
        ("v-db", 0.2): 0.0,
        ("v-db", 0.4): 0.0,
        ("v-db", 0.8): 0.0,
        ("exbert-tuned", 0.2): 9.0,
        ("exbert-tuned", 0.8): 9.0,
    }
    planted = plant_scores(gains, seed_sd=0.1)
    over = {"both": {"ratio": [0.2, 0.4, 0.6, 0.8], "order": "trainer"}, "set": ["first", "second"]}
    for contrast in (over, over | {"each": ["ratio", "set"]}):
        row = judge_claim(make_claim(contrast=contrast), planted)
        assert row["verdict"] == Verdict.NOT_TESTED
        cells = {(cell["variant"], cell["ratio"], cell["set"]) for cell in row["absent"]}
        without = [("exbert-tuned", 0.4), ("exbert-tuned", 0.6), ("v-db", 0.6)]
        assert cells == {(*of, test_set) for of in without for test_set in ("first", "second")}
        assert row["n"] == 0
        assert np.isnan(row["d"])


def test_sides_of_different_devices_are_not_compared():
    ledger, examples = plant_scores(pair_gains(9.0), seeds=5, seed_sd=0.1)
    baseline = ledger["variant"] == "v-db"
    device = np.where(baseline, "CPU, 2 threads", "NVIDIA H200")
    apart = judge_claim(make_claim(), (ledger.assign(device=device), examples))
    assert apart["verdict"] == Verdict.NOT_TESTED
    differ = "its sides were trained on different devices, or in different precision"
    assert apart["reason"] == differ
    types = np.where(baseline, "NVIDIA H100 80GB HBM3", "NVIDIA H200")
    assert judge_claim(make_claim(), (ledger.assign(device=types), examples))["reason"] == differ
    cores = np.where(baseline, "CPU, 1 thread", "CPU, 2 threads")
    alike = judge_claim(make_claim(), (ledger.assign(device=cores), examples))
    assert alike["verdict"] == "reproduced"
    precision = np.where(baseline, "fp32", "bf16")
    apart = judge_claim(
        make_claim(), (ledger.assign(device="CPU, 1 thread", precision=precision), examples)
    )
    assert apart["reason"].endswith("in different precision")
    device = np.where(baseline & (ledger["seed"] == 1), "NVIDIA H200", "CPU, 1 thread")
    some = judge_claim(make_claim(), (ledger.assign(device=device), examples))
    assert some["n"] == 4
    assert some["dropped"] == (1,)
    assert some["verdict"] == "reproduced"


def test_arms_are_judged_apart():
    printed = plant_scores(pair_gains(6.0))
    ledger, examples = (x.assign(run="t" + x["run"]) for x in plant_scores(pair_gains(0.0), rng=5))
    planted = join_planted(printed, (ledger.assign(arm="tuned"), examples))
    assert judge_claim(make_claim(), planted)["verdict"] == "reproduced"
    assert judge_claim(make_claim(), planted, arm="tuned")["d"] < 2


def test_each_part_must_hold():
    # the order of models and ratios decides what is drawn
    gains = {
        ("v-db", 0.2): 0.0,
        ("v-db", 0.8): 0.0,
        ("v-db", 1.0): 0.0,
        ("exbert-tuned", 0.2): 6.0,
        ("exbert-tuned", 0.8): 6.0,
        ("exbert-tuned", 1.0): 0.0,
    }
    planted = plant_scores(gains, clusters=600, seed_sd=0.1)
    two_ratios = {
        "both": {"ratio": [0.2, 0.8], "set": ["first", "second"]},
        "set": None,
        "each": ["ratio", "set"],
    }
    row = judge_claim(make_claim(contrast=two_ratios), planted)
    assert row["verdict"] == "reproduced"
    assert row["parts"] == 4
    three_ratios = {"both": {"ratio": [0.2, 0.8, 1.0]}}
    row = judge_claim(make_claim(contrast=three_ratios | {"each": ["ratio"]}), planted)
    assert row["verdict"] == "not reproduced"
    assert row["part"] == "ratio 1.0"
    assert len(row["run"]) == 30
    mean = judge_claim(make_claim(contrast=three_ratios), planted)
    assert mean["verdict"] == "reproduced"
    assert mean["d"] == pytest.approx(4, abs=0.2)


def test_a_contrast_may_go_beyond_another_be_relative_or_have_a_target():
    gains = {
        ("v-db", 0.8): 0.0,
        ("v-db", 1.0): 10.0,
        ("exbert-tuned", 0.8): 8.0,
        ("exbert-tuned", 1.0): 13.0,
    }
    planted = plant_scores(gains, clusters=600, seed_sd=0.1)
    beyond = {"beyond": {"ours": {"ratio": 1.0}, "against": {"ratio": 1.0}}}
    row = judge_claim(make_claim(contrast=beyond), planted)
    assert row["verdict"] == "reproduced"
    assert row["d"] == pytest.approx(5, abs=0.3)
    relative = make_claim("magnitude", {"scale": "relative"}, printed=16, unit="percent relative")
    base = planted[0].query("variant == 'v-db' and ratio == 0.8 and set == 'squad'")["value"].mean()
    assert judge_claim(relative, planted)["d"] == pytest.approx(100 * 8 / base, abs=0.5)
    lower = make_claim(contrast={"direction": "lower"})
    assert judge_claim(lower, planted)["verdict"] == "not reproduced"
    value = judge_claim(make_claim("equivalence", {"against": None, "target": base + 8}), planted)
    assert value["verdict"] == "reproduced"
    # a score alone: its questions' whole variance
    assert value["v"] > 10 * row["v"]
    ledger, examples = planted
    zero = judge_claim(relative, (ledger.assign(value=0.0), examples.assign(em=0.0)))
    assert zero["verdict"] == Verdict.NOT_TESTED
    assert zero["reason"] == "it is a percentage of a score that is 0, or nearly so"


def test_a_percentage_of_a_score_that_few_resamples_have_as_0_is_estimated():
    """V-DB has 4 of 200 questions right, and none of them in about one resample of 55."""
    ledger, examples = plant_scores({("v-db", 0.8): 0.0, ("exbert-tuned", 0.8): 0.0}, seeds=3)
    relative = make_claim("magnitude", {"scale": "relative"}, printed=16, unit="percent relative")
    first = examples.groupby(["run", "set"]).cumcount()
    right = np.where(examples["variant"] == "v-db", 4, 12)
    examples = examples.assign(em=100.0 * (first < right))
    ledger = ledger.assign(value=np.where(ledger["variant"] == "v-db", 2.0, 6.0))
    row = judge_claim(relative, (ledger, examples))
    assert row["d"] == pytest.approx(200)
    assert np.isfinite([row["low"], row["high"]]).all()


@pytest.mark.parametrize("count", [1, 2, 7, 30])
def test_holms_correction_is_that_of_statsmodels(count):
    rng = np.random.default_rng(count)
    p_values = np.concatenate([rng.uniform(0, 0.02, count), rng.uniform(size=count), [0.0, 1.0]])
    p_values = np.append(p_values, p_values[0])  # a tie
    expected = multipletests(p_values, method="holm")[1]
    raised = np.minimum(stats.correct_by_holm(p_values), 1.0)
    np.testing.assert_allclose(raised, expected, rtol=1e-12)


def test_primary_claims_alone_are_corrected_by_holm():
    ratios = [0.0, 0.2, 0.4, 0.6, 0.8]
    gains = {("v-db", r): 0.0 for r in ratios} | {("exbert-tuned", r): 1.2 for r in ratios}
    planted = plant_scores(gains, seeds=4, seed_sd=0.7)
    claims = [
        make_claim(contrast={"both": {"ratio": r}}, id=f"at-{r}", primary=r < 0.8) for r in ratios
    ]
    table = stats.judge_claims(claims, *planted, "real", DOMAINS)
    assert table["p_holm"].isna().sum() == 1
    primary = table[table["primary"]]
    assert (primary["p_holm"] >= primary["p"]).all()
    assert primary["p_holm"].min() == pytest.approx(4 * primary["p"].min())
    assert primary.loc[primary["verdict"] == "reproduced", "p_holm"].le(0.05).all()
    assert (primary.loc[primary["p_holm"] > 0.05, "verdict"] == Verdict.UNDECIDED).all()


def test_a_verdict_that_hangs_on_the_pooling_says_so():
    """The seeds agree on one comparison only, and three are too few for Levene's test."""
    rows = []
    for name, ratio, gains in (
        ("quiet", 0.8, [2.0, 2.1, 2.2]),
        ("loud", 0.2, [-9.0, 3.0, 12.0]),
    ):
        for seed, gain in enumerate(gains):
            for variant, value in (("v-db", 50.0), ("exbert-tuned", 50 + gain)):
                labels = {
                    "run": f"{variant}-{name}-s{seed}",
                    "variant": variant,
                    "seed": seed,
                    "ratio": ratio,
                    "size": "full",
                    "order": "trainer",
                    "arm": "printed",
                    "metric": "em",
                    "value": value,
                }
                rows += [labels | {"set": s} for s in DOMAINS]
    ledger = pd.DataFrame(rows)
    of_cluster = [ledger.assign(id=k, cluster=k, em=ledger["value"]) for k in "ab"]
    examples = pd.concat(of_cluster, ignore_index=True)
    quiet = make_claim(id="quiet", primary=True, contrast={"both": {"ratio": 0.8}})
    loud = make_claim(id="loud", primary=False, contrast={"both": {"ratio": 0.2}})
    table = stats.judge_claims([quiet, loud], ledger, examples, "real", DOMAINS).set_index("id")
    assert table["levene"]["quiet"] > 0.01
    assert table["s2"]["quiet"] == table["s2"]["loud"]
    assert table["verdict"]["quiet"] == Verdict.UNDECIDED
    assert table["unpooled"]["quiet"] == "reproduced"
    # the two test sets score alike, and all questions: its own interval is Student's
    spread = stdev([2.0, 2.1, 2.2]) / np.sqrt(3)
    own_ends = student_t(df=2, loc=2.1, scale=spread).interval(0.95)
    assert list(table.loc["quiet", ["own_low", "own_high"]]) == pytest.approx(list(own_ends))
    assert table["low"]["quiet"] < table["own_low"]["quiet"]
    # alone, nothing else is in its pool
    alone = stats.judge_claims([quiet], ledger, examples, "real", DOMAINS).iloc[0]
    assert alone["verdict"] == alone["unpooled"] == "reproduced"


def test_the_verdicts_that_hang_on_the_pooling_are_listed():
    rows = {"claim": ["a", "b", "b"], "arm": ["printed", "printed", "tuned"]}
    rows["verdict"] = ["reproduced", "undecided", "undecided"]
    hang = pd.DataFrame(rows | {"unpooled": ["reproduced"] * 3})
    assert verify.describe_pooling(hang).endswith(
        "own seeds these would be judged otherwise: b (reproduced instead of undecided); "
        "b (equal tuning: reproduced instead of undecided)."
    )
    none = pd.DataFrame(rows | {"unpooled": rows["verdict"]})
    assert verify.describe_pooling(none).endswith("every verdict would be the same.")


def test_a_comparison_that_shares_with_no_other_has_its_own_variance():
    c = make_claim()
    sample = stats.draw_sample([c], *plant_scores(pair_gains(5.0)), DOMAINS, "printed")
    (part,), _ = stats.estimate_claims([c], sample)["planted"]
    assert list(part.estimate_unpooled()) == pytest.approx(list(part.estimate()))


def test_a_control_that_lacks_a_part_lends_no_variance():
    """It is not estimated in the table of claims either."""
    asked = make_claim()
    lent = make_claim(id="lent", contrast={"both": {"ratio": 0.2}})
    partial = make_claim(id="partial", contrast={"both": {"ratio": [0.2, 0.5]}, "each": ["ratio"]})
    at_both = plant_scores(pair_gains(5.0)), plant_scores(pair_gains(2.0, ratio=0.2))
    sample = stats.draw_sample([asked], *join_planted(*at_both), DOMAINS, "printed")
    freedom = []
    for pool in ([], [lent], [partial]):
        [part], _ = stats.estimate_claims([asked], sample, pool)["planted"]
        freedom.append(part.nu)
    alone, with_lent, with_partial = freedom
    assert with_lent > alone
    assert with_partial == alone


def test_variances_are_pooled_unless_levene_objects():
    claims = [
        make_claim(id="loud"),
        make_claim(contrast={"both": {"ratio": 0.2}}, id="quiet"),
        make_claim("equivalence", {"both": {"ratio": 0.2}}, id="again"),
    ]
    quiet = plant_scores(pair_gains(4.0, ratio=0.2), seeds=12, seed_sd=0.02, row_sd=0.1)
    loud = plant_scores(pair_gains(4.0), seeds=12, seed_sd=20.0, row_sd=0.1)
    table = stats.judge_claims(claims, *join_planted(quiet, loud), "real", DOMAINS)
    table = table.set_index("id")
    assert (table["levene"] < 0.01).all()
    assert np.allclose(table["nu"], 11)
    assert table["s2"]["loud"] > 100 * table["s2"]["quiet"]
    alike = join_planted(
        plant_scores(pair_gains(4.0, ratio=0.2)), plant_scores(pair_gains(4.0), rng=1)
    )
    table = stats.judge_claims(claims, *alike, "real", DOMAINS)
    # the comparison of `again` is that of `quiet` and counts once
    assert np.allclose(table["nu"], 8)
    assert table["s2"].nunique() == 1


@pytest.mark.parametrize("others, nu", [(["a"], 4), (["a", "b", "c", "d"], 4 * 16 / 7)])
def test_a_shared_baseline_counts_once(others, nu):
    """Degrees of freedom of C contrasts with one baseline are 4C / (C + 3) times n − 1.

    They are not C times n − 1, and four times at most.
    """
    planted = plant_scores({("v-db", 0.8): 0.0} | {(v, 0.8): 1.0 for v in others})
    claims = [make_claim(contrast={"ours": {"variant": v}}, id=v) for v in others]
    table = stats.judge_claims(claims, *planted, "real", DOMAINS)
    assert np.allclose(table["nu"], nu)


def test_noise_that_seeds_average_out_is_no_variance_of_questions():
    """v does not shrink with n, because a seed's own noise on each question is in s² alone."""
    planted = plant_scores(
        pair_gains(1.0), seeds=20, seed_sd=0.0, cluster_sd=1.0, row_sd=10.0, clusters=400
    )
    row = judge_claim(make_claim(), planted)
    assert row["v"] == pytest.approx(2 * 1.0 / 400, abs=0.005)
    assert row["s2"] == pytest.approx(2 * 100 / 400, rel=0.5)


def score_frame(scores) -> pd.DataFrame:
    """Examples of run r on set first, with EM scores: one row, and one cluster, a score."""
    ids = np.arange(len(scores))
    return pd.DataFrame({"run": "r", "set": "first", "id": ids, "cluster": ids, "em": scores})


def score_ledger(value: float) -> pd.DataFrame:
    """Ledger of run r with one EM score on set first."""
    return pd.DataFrame([{"run": "r", "set": "first", "metric": "em", "value": value}])


def test_few_clusters_widen_an_interval():
    """The interval is that of t with K - 1 degrees of freedom, K clusters of the smallest set."""
    low, high = verdicts.interval(0.0, 0.0, 4, 1.0, 3, 5)
    assert (high - low) / 2 == pytest.approx(2.776445)
    few = plant_scores(pair_gains(3.0), clusters=10, sets=["first"])
    many = plant_scores(pair_gains(3.0), clusters=100, sets=["second"])
    both = make_claim(contrast={"set": ["first", "second"]})
    assert judge_claim(both, join_planted(few, many))["clusters"] == 10


def test_resamples_have_the_variance_of_a_mean():
    """The variance is not (K - 1) / K of that of a mean."""
    y = np.array([0.0, 0.0, 50.0, 100.0])
    draws = resample(score_ledger(y.mean()), score_frame(y), 20_000)
    assert draws["r", "first", "em"].var() == pytest.approx(y.var(ddof=1) / 4, rel=0.05)


def test_resamples_follow_the_average_that_was_recorded():
    """A score is a mean over rows, or a mean of the clusters' means."""
    rng = np.random.default_rng(0)
    cluster = np.repeat(np.arange(40), np.arange(1, 41))
    y = rng.normal(50, 20, 40)[cluster]
    examples = score_frame(y).assign(cluster=cluster)
    means = pd.Series(y).groupby(cluster).mean()
    ledger = score_ledger(means.mean())
    draws = resample(ledger, examples)["r", "first", "em"]
    assert draws.var() == pytest.approx(means.var() / 40, rel=0.15)
    over_rows = resample(score_ledger(y.mean()), examples)["r", "first", "em"]
    assert over_rows.mean() == pytest.approx(y.mean(), abs=0.5)
    # one run may stand under two labels of a plan
    twice = pd.concat([examples, examples])
    assert np.allclose(resample(ledger, twice)["r", "first", "em"], draws)


def test_a_correlation_is_drawn_again_by_the_influence_of_its_rows():
    """Rows of one cluster are drawn together, and `score` is the same as `pearson`."""
    rng = np.random.default_rng(0)
    K = 300
    gold = rng.uniform(0, 5, K)
    predicted = gold + rng.normal(0, 1, K)
    r = np.corrcoef(predicted, gold)[0, 1]
    examples = pd.DataFrame(
        {
            "run": "r",
            "set": "sts",
            "id": np.arange(K),
            "cluster": np.arange(K) // 2,
            "pearson": 100 * (r + sentence.correlation_influence(predicted, gold)),
            "accuracy": np.nan,
        }
    )
    ledger = pd.DataFrame(
        [{"run": "r", "set": "sts", "metric": m, "value": 100 * r} for m in ("pearson", "score")]
    )
    draws = resample(ledger, examples, 4000)
    assert np.array_equal(draws["r", "sts", "pearson"], draws["r", "sts", "score"])
    fisher = 100 * (1 - r**2) / np.sqrt(K)  # the standard error of a correlation
    assert draws["r", "sts", "pearson"].std() == pytest.approx(fisher, rel=0.15)
    accuracy = np.where(rng.uniform(size=K) < 0.6, 100.0, 0.0)
    classes = examples.assign(set="sst", pearson=np.nan, accuracy=accuracy)
    both = ledger.assign(set="sst", metric=["accuracy", "score"], value=accuracy.mean())
    draws = resample(both, classes)
    assert np.array_equal(draws["r", "sst", "accuracy"], draws["r", "sst", "score"])
    with pytest.raises(UserError, match="disagree about pearson"):
        resample(ledger.assign(value=1.0), examples)


# ---- refusals ----


def add_other_order(ledger, examples):
    """Return the ledger and its examples with the same runs once more, in another order."""
    other = ledger.assign(run="z" + ledger["run"], order="sequential")
    return join_planted((ledger, examples), (other, examples.assign(run="z" + examples["run"])))


@pytest.mark.parametrize(
    "spoil, says",
    [
        (lambda a, b: (a.assign(value=a["value"].where(a.index != 3)), b), "not a number"),
        (lambda a, b: (a, b.assign(em=b["em"].where(b.index != 3))), "not a number"),
        (
            lambda a, b: (a.assign(value=a["value"] + (a.index == 2)), b),
            "disagree about em on first",
        ),
        (
            lambda a, b: (a, b[b["run"] != "v-db-0.8-full-s2"]),
            "v-db-0.8-full-s2 has a score on first but no examples",
        ),
        (lambda a, b: (a, b[b.index != 3]), "tested on other rows"),
        (lambda a, b: (a, b.assign(cluster="0")), "of one cluster"),
        (add_other_order, "must say which order"),
    ],
)
def test_scores_and_examples_that_do_not_fit_are_refused(spoil, says):
    with pytest.raises(UserError, match=says):
        judge_claim(make_claim(), spoil(*plant_scores(pair_gains(5.0))))


def test_a_run_is_not_compared_with_itself():
    row = judge_claim(
        make_claim(contrast={"ours": {"variant": "v-db"}}), plant_scores(pair_gains(5.0))
    )
    reason = "its two sides are the same runs at these sizes"
    assert row["verdict"] == Verdict.NOT_TESTED
    assert row["reason"] == reason


# ---- losses and epochs ----


def test_a_run_is_compared_with_itself_on_another_set():
    """The two scores do not cancel. There are n - 1 degrees of freedom with n seeds."""
    sides = {
        "ours": {"variant": "v-db", "set": "first"},
        "against": {"variant": "v-db", "set": "second"},
        "set": None,
    }
    row = judge_claim(make_claim(contrast=sides), plant_scores({("v-db", 0.8): 0.0}, seeds=4))
    assert row["nu"] == pytest.approx(3)
    assert row["low"] < row["d"] < row["high"]


def loss_histories(best_epochs: dict) -> pd.DataFrame:
    """Histories of six epochs and five seeds. best_epochs: a model's epoch of lowest loss."""
    rows = []
    for variant, best in best_epochs.items():
        for seed, epoch in itertools.product(range(5), range(1, 7)):
            row = {
                "run": f"{variant}-s{seed}",
                "variant": variant,
                "seed": seed,
                "ratio": 0.8,
                "size": "full",
                "validation_rows": 500,
                "epoch": float(epoch),
                "step": epoch,
                "train_loss": 3.0 - epoch / 4,
                "validation_loss": 2.0 + abs(epoch - best) / 10 + seed / 100,
                "validation_em": 1.0,
                "validation_f1": 1.0,
            }
            rows.append(row)
    return pd.DataFrame(rows)


def test_curves_and_whole_epochs_are_scores_of_a_run():
    histories = loss_histories({"v-db": 3, "exbert-tuned": 2})
    ledger = stats.collect_curve_rows(histories)
    one = ledger[ledger["run"] == "v-db-s0"].set_index("metric")["value"]
    assert one["best_epoch"] == 3
    assert one["validation_loss"] == 2
    assert one["validation_loss_2"] == pytest.approx(2.1)
    assert one["loss_gap"] == pytest.approx(2.3 - 1.5)
    assert set(ledger["set"]) == {"validation"}
    assert (ledger["n"] == 500).all()
    earlier = {
        "set": "validation",
        "metric": "best_epoch",
        "scale": "relative",
        "direction": "lower",
    }
    epochs = make_claim("magnitude", earlier, printed=33, unit="percent relative")
    none = pd.DataFrame(columns=["run", "set", "cluster", "id", "em"])
    five = judge_claim(epochs, (ledger, none))
    three = judge_claim(epochs, (ledger[ledger["seed"] < 3], none))
    assert five["d"] == pytest.approx(100 / 3)
    # all seeds agree, yet the best epoch is not known exactly
    assert five["s2"] > 0
    assert five["v"] == 0
    assert five["high"] - five["low"] < three["high"] - three["low"]
    assert three["verdict"] == Verdict.UNDECIDED
    assert three["reason"].startswith("seeds (needs n=")
    with pytest.raises(UserError, match="not a number"):
        stats.collect_curve_rows(histories.assign(validation_loss=np.nan))


def test_the_end_of_a_rise_is_known_to_an_evaluation():
    """Two evaluations an epoch, for three epochs, place a plateau within a sixth of the steps.

    That is so however alike the seeds are.
    """
    row = {"set": "training", "metric": "plateau", "looks": 2, "epochs": 3.0, "value": 50.0, "n": 7}
    ledger = pd.DataFrame([row | {"run": r} for r in "ab"])
    no_examples = pd.DataFrame(columns=["run", "set", "cluster"])
    for draws in resample(ledger, no_examples).values():
        assert abs(draws - 50).max() < 100 / 12
        assert draws.std() == pytest.approx(100 / 6 / 12**0.5, rel=0.1)


# ---- power, coverage ----


def test_one_score_of_one_run_has_the_binomial_error():
    """With the moe report's 382 questions a score of 33 EM has a standard error of 2.4 EM."""
    alone = make_claim(contrast={"against": None})
    own, common = power.effect_variance(alone, {"first": (382, 33)})
    assert np.sqrt(own + common) == pytest.approx(2.4, abs=0.01)
    own, common = power.effect_variance(
        make_claim(contrast={"against": None, "set": "sts"}), {"sts": (863, 70)}
    )
    assert np.sqrt(own + common) == pytest.approx(100 * (1 - 0.7**2) / np.sqrt(863))


def test_power_is_that_of_simulated_studies():
    """About 80 % of simulated studies detect the smallest effect.

    Models and seeds share as much of the questions' variance as `spread` assumes.
    """
    rng = np.random.default_rng(0)
    Q = 500
    n = 4
    studies = 4000
    c = make_claim()
    own, common = power.effect_variance(c, {"first": (Q, 50)})
    effect = power.smallest_visible_effect(c, own, common, n)
    sides = []
    for _ in range(2):  # variances as `spread` splits them
        theirs = rng.normal(0, np.sqrt(common / 2), (studies, 1))
        sides.append(theirs + rng.normal(0, np.sqrt((own + power.SEED_SD**2) / 2), (studies, n)))
    d = effect + sides[0] - sides[1]
    low, _ = interval(d.mean(1), d.var(1, ddof=1), np.full(studies, n - 1), common, n, Q)
    # not much less than the power that was asked for
    assert 0.75 <= (low > 0).mean() <= 0.92


def count_seeds(questions: int, **fields) -> float:
    """Return the seeds that a claim needs with as many test questions and scores near 50 EM."""
    c = make_claim(**fields)
    return power.count_needed_seeds(c, *power.effect_variance(c, {"first": (questions, 50)}))


def test_power_says_what_more_seeds_and_more_questions_can_do():
    c = make_claim()
    own, common = power.effect_variance(c, {"first": (10_000, 50)})
    n = count_seeds(10_000)
    assert 400 < n < 500
    # n seeds are the fewest, not a number near it
    assert power.smallest_visible_effect(c, own, common, n) <= 1
    assert power.smallest_visible_effect(c, own, common, n - 1) > 1
    assert count_seeds(382) == np.inf
    assert 3 <= count_seeds(40_000) < np.inf
    assert count_seeds(10**8) <= count_seeds(40_000)
    assert count_seeds(382, kind="magnitude", printed=30) == 3
    wide = count_seeds(20_000, kind="equivalence", margin=2)
    narrow = count_seeds(20_000, kind="equivalence", margin=1)
    assert wide < narrow


def test_spread_is_that_of_a_claim_s_sets_sides_and_parts():
    of_epochs = make_claim(contrast={"metric": "best_epoch"})
    assert power.effect_variance(of_epochs, {"first": (9, 50)}) is None
    assert power.effect_variance(make_claim(), {"first": (None, 50)}) is None
    one = power.effect_variance(make_claim(), {"first": (100, 50)})

    mean = make_claim(contrast={"set": ["first", "second"]})
    over_two = power.effect_variance(mean, {"first": (100, 50), "second": (100, 50)})
    assert over_two == pytest.approx(np.divide(one, 2))

    apart = {
        "ours": {"variant": "v-db", "set": "first"},
        "against": {"variant": "v-db", "set": "second"},
        "set": None,
    }
    sides = []
    for name, n in (("first", 100), ("second", 400)):
        side = make_claim(contrast={"against": None, "set": name})
        sides.append(power.effect_variance(side, {name: (n, 50)}))
    both_sets = {"first": (100, 50), "second": (400, 50)}
    both = power.effect_variance(make_claim(contrast=apart), both_sets)
    assert both == pytest.approx(np.sum(sides, 0))

    # the smaller of two parts decides
    parts = make_claim(contrast={"set": ["first", "second"], "each": ["set"]})
    worse = power.effect_variance(parts, {"first": (100, 50), "second": (50, 50)})
    assert worse == pytest.approx(np.multiply(one, 2))


@pytest.mark.parametrize("report", [f.stem for f in FILES])
def test_power_is_computed_for_every_claim_about_scores(report, capsys, monkeypatch):
    table = power.power_table(report)
    claims = {c.id for c in read_claims(report)}
    assert len(table) >= 25
    assert set(table["claim"]) < claims
    endless = table["seeds, endless questions"]
    assert (endless <= table["seeds, the report's questions"].fillna(np.inf)).all()
    monkeypatch.setattr("sys.argv", ["power", report])
    assert run_verb(sys.argv) == 0
    output = capsys.readouterr().out
    assert f"of {len(claims)} claims {len(table)} are about scores" in output
    assert "no number" in output
    assert "nan" not in output
    monkeypatch.setattr("sys.argv", ["power", "mo"])
    with pytest.raises(UserError, match="'mo' is not a report of this study; known: exbert, moe"):
        run_verb(sys.argv)


def test_changes_since_the_freeze_are_listed(tmp_path, monkeypatch):
    """A file that is gone or edited is a change, and so are other rules. Line ends are none."""
    monkeypatch.setattr(verdicts, "ROOT", tmp_path)
    monkeypatch.setattr(verdicts, "RULES", 2)
    # nothing is frozen yet
    assert verdicts.list_changes("exbert") == []
    assert verify.describe_changes("exbert").startswith("Nothing of this report is frozen")
    folder = tmp_path / "params" / "claims"
    folder.mkdir(parents=True)
    frozen = hashlib.sha256(b"x: 1\ny: 2\n").hexdigest()
    lines = []
    for name, ends, value in (("a", b"\n", b"1"), ("b", b"\r\n", b"1"), ("c", b"\r\n", b"2")):
        (tmp_path / name).write_bytes(b"x: " + value + ends + b"y: 2" + ends)
        lines.append(f"{frozen}  {name}")
    lines = ["# exbert, moe", *lines, "rules 2", "# smart", f"{'0' * 64}  a", "rules 1", ""]
    for ends in ("\n", "\r\n"):
        (folder / "FROZEN").write_bytes(ends.join(lines).encode())
        assert verdicts.list_changes("exbert") == verdicts.list_changes("moe") == ["c"]
        rules_then = "the rules of judging (version 1 then, 2 now: docs/claims.md)"
        assert verdicts.list_changes("smart") == ["a", rules_then]
        assert verdicts.list_changes("road") == []
        assert verdicts.is_frozen("moe")
        assert not verdicts.is_frozen("road")
    (tmp_path / "b").unlink()
    assert verdicts.list_changes("exbert") == ["b", "c"]


# Fields of the claims that hold the rules of judging in place.
RULED = [
    {},
    {"delta": 8},
    {"kind": "magnitude", "printed": [9, 13]},
    {"kind": "equivalence"},
    {"contrast": {"scale": "relative"}, "unit": "percent relative", "delta": 5},
    {"contrast": {"set": ["first", "second"], "each": ["set"]}},
]


def judge_planted() -> pd.DataFrame:
    """Return verdicts and intervals of planted comparisons, which a change of the rules moves."""
    rows = []
    for gain in (-3.0, 0.0, 1.5, 6.0, 11.0):
        for seeds, seed_sd in ((1, 0.5), (3, 0.5), (5, 3.0)):
            planted = plant_scores(
                pair_gains(gain), seeds=seeds, seed_sd=seed_sd, clusters=40, rows=2, rng=7
            )
            for fields in RULED:
                row = judge_claim(make_claim(**fields), planted)
                numbers = {k: f"{row[k]:.6g}" for k in ("d", "low", "high", "p", "nu")}
                case = {"gain": gain, "seeds": seeds, "claim": json.dumps(fields)}
                outcome = {"verdict": str(row["verdict"]), "reason": row["reason"]}
                rows.append({**case, **numbers, **outcome})
    return pd.DataFrame(rows).astype(str)


def test_the_rules_have_a_number():
    """Verdicts of planted comparisons equal those in the file of today's number.

    If this fails, the rules have changed. Then raise RULES, write the file of the new number with
    `judge_planted().to_csv(…)`, and say in docs/claims.md what changed.
    """
    file = ROOT / "tests" / "net" / f"rules-{verdicts.RULES}.csv"
    held = pd.read_csv(file, dtype=str, keep_default_na=False)
    pd.testing.assert_frame_equal(judge_planted(), held)
    page = (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
    assert f"\n| {verdicts.RULES} |" in page


def test_all_reports_are_frozen():
    """Claims have changed in what FROZEN calls mended alone, and the page of the report says so.

    The rules may have changed; then the page says so too.
    """
    frozen, mended = (ROOT / "params" / "claims" / "FROZEN").read_text().split("# mended")
    for file in FILES:
        name = f"params/claims/{file.name}"
        assert name in frozen
        changed = [x for x in verdicts.list_changes(file.stem) if x.endswith(".yaml")]
        assert changed == ([name] if name in mended else [])
        if changed:
            assert f"{digest_text(file)}  {name}\n" in mended


def test_a_gain_below_a_claim_s_threshold_does_not_refute_it():
    """Half of delta lies between the gain that confirms and the one that refutes: it is small."""
    thresholds = []
    for file in FILES:
        for claim in read_claims(file.stem):
            contrast = claim.contrast
            if claim.kind == "superiority" and contrast and contrast.against and contrast.target:
                thresholds.append(claim)
    assert {claim.id for claim in thresholds} == {
        "born-again-no-better",
        "smart-vanishes",
        "smart-vanishes-sst",
    }
    for claim in thresholds:
        assert claim.contrast.target == -1
        assert claim.foreseen == 1  # seeds are counted as if there were no gain
        planned = make_claim(delta=claim.delta, contrast={"target": claim.contrast.target})
        seen = {}
        for gain in (0.9, 1.5):
            planted = plant_scores(pair_gains(-gain), seed_sd=0.1, cluster_sd=0.3, row_sd=0.3)
            seen[gain] = str(judge_claim(planned, planted)["verdict"])
        assert seen == {0.9: "reproduced", 1.5: "not reproduced"}


def weigh_runs(contrast: int, n: int) -> pd.DataFrame:
    """Return each run's weight in n differences (rows): 1 for model `contrast`, -1 for model 0."""
    weights = {}
    for model, weight in ((contrast, 1.0), (0, -1.0)):
        for seed in range(n):
            weights[f"{model}-{seed}"] = weight * (np.arange(n) == seed)
    return pd.DataFrame(weights)


def simulate_coverage(
    n, contrasts, seed_sd, question_sd, noise, replicates=2000, K=100, gain=1.0, rng=0
) -> tuple[float, float]:
    """Return two rates over simulated studies.

    The first is how often the 95 % interval holds the true difference, the second how often a
    true null is rejected in the claimed direction.

    n: seeds; K: clusters of questions. Contrasts share one baseline. question_sd is the
    deviation that is common to the seeds of a model, noise the deviation that is not.
    """
    rng = np.random.default_rng(rng)
    models = contrasts + 1
    parts = []
    for c in range(1, models):
        parts.append(stats.Part("", rng.normal(size=n), (), 0.0, K, 0.0, weigh_runs(c, n), ()))
    nu = stats.seed_variance(parts)[id(parts[0])][1]
    y = (
        rng.normal(0, seed_sd, (replicates, models, n, 1))
        + rng.normal(0, question_sd, (replicates, models, 1, K))
        + rng.normal(0, noise, (replicates, models, n, K))
    )
    x = y[:, 1:] - y[:, :1]  # (replicates, contrasts, n, K)
    s2 = x.mean(3).var(2, ddof=1).mean(1)
    d = x[:, 0].mean((1, 2))
    weights = rng.multinomial(K - 1, np.full(K, 1 / K), size=400).astype(float)
    scores = x[:, 0].reshape(-1, K).T
    draws = mean(np.stack([np.ones_like(scores), scores]), weights).reshape(400, replicates, n)
    cov = np.einsum("bri,brj->rij", draws - draws.mean(0), draws - draws.mean(0)) / 399
    v = np.maximum(cov.sum((1, 2)) - np.trace(cov, axis1=1, axis2=2), 0) / (n * (n - 1))
    low, high = interval(gain + d, s2, nu, v, n, K)
    covered = (low <= gain) & (gain <= high)
    rejected = apply_rule(make_claim(), d, s2, nu, v, n, K)[0]
    return float(covered.mean()), float(rejected.mean())


@pytest.mark.parametrize(
    "n, contrasts, seed_sd, question_sd, noise",
    [
        (3, 1, 1.0, 0.1, 0.1),
        (3, 1, 1.0, 5.0, 5.0),
        (3, 1, 0.0, 5.0, 10.0),
        (3, 1, 0.2, 10.0, 5.0),
        (3, 4, 1.0, 0.1, 0.1),
        (3, 4, 1.0, 5.0, 5.0),
        (3, 4, 0.0, 5.0, 10.0),
        (3, 4, 0.2, 10.0, 5.0),
        (3, 12, 1.0, 5.0, 5.0),
        (5, 4, 1.0, 5.0, 5.0),
        (5, 4, 0.2, 10.0, 5.0),
        (5, 1, 1.0, 1.0, 1.0),
    ],
)
def test_coverage_is_nominal_with_an_estimated_seed_variance(
    n, contrasts, seed_sd, question_sd, noise, record_property
):
    covered, wrong = simulate_coverage(n, contrasts, seed_sd, question_sd, noise)
    record_property("coverage", covered)
    print(
        f"n={n} contrasts={contrasts} "
        f"sd of seeds {seed_sd}, questions {question_sd}, noise {noise}: "
        f"covered {100 * covered:.1f} %, false in the claimed direction {100 * wrong:.1f} %"
    )
    # nominally 95 %
    assert 0.94 <= covered <= 0.985
    # nominally 2.5 %: p is two-sided, and one direction is claimed
    assert wrong <= 0.03


# ---- verify ----


@pytest.fixture
def recorded(planned, monkeypatch, tmp_path):
    """Return parameters of a small study with both arms, which has records and a results.csv.

    sys.argv is the command line that verifies it.
    """
    monkeypatch.setattr(runs, "FIGURES", tmp_path / "figures")
    changes = {
        "seeds": [0, 1, 2],
        "side_seeds": [0, 1, 2],
        "ratios": [0.2, 0.8],
        "control_ratios": [0.8],
        "trial_epochs": [1],
        "arms": ["printed", "tuned"],
    }
    p, specs = planned("real", "small", **changes)
    # first the trials, then the runs that they choose
    missing = specs
    while missing:
        for spec in missing:
            runs.save(spec, *make_record(spec))
        specs = exbert.plan(p)
        missing = [s for s in specs if runs.find_record(s) is None]
    runs.write_ledger(p, specs)
    command = ["verify", "exbert", "--profile", "real", "--size", "small"]
    for name, value in changes.items():
        command += ["-p", f"{name}={value}"]
    monkeypatch.setattr("sys.argv", command)
    return p


def test_scores_that_another_program_saved_otherwise_are_written_anew(recorded):
    file = runs.page_folder(recorded) / "results.csv"
    whole = file.read_bytes()
    file.write_bytes(whole.decode().encode("utf-16"))
    assert verify.find_disagreement(recorded)
    runs.write_ledger(recorded, plans.plan(recorded))
    assert file.read_bytes() == whole
    assert verify.find_disagreement(recorded) == ""
    header, first, *others = whole.decode().splitlines()
    file.write_text("\n".join(["", header, *others, first, ""]), encoding="utf-8")
    assert verify.find_disagreement(recorded) == ""
    file.write_text("\n".join(["", header, *others]), encoding="utf-8")
    assert verify.find_disagreement(recorded) == first.split(",")[0]
    file.write_text("\n".join([f"{header},x", first, *others]), encoding="utf-8")
    assert verify.find_disagreement(recorded) == "its columns"


def read_verdicts(arm="printed", comparison="claim") -> pd.DataFrame:
    """Return rows of the claims.csv that verify has written, by claim."""
    table = pd.read_csv(runs.FIGURES / "exbert" / "real" / "claims.csv")
    return verify.select(table, arm, comparison)


def test_verify_prints_and_writes_every_verdict(recorded, capsys):
    assert run_verb(sys.argv) == 0
    lines = capsys.readouterr().out.splitlines()
    table = read_verdicts()
    ids = [c.id for c in read_claims("exbert")]
    assert list(table.index) == ids
    assert [line.split("  ")[1] for line in lines[: len(ids)]] == ids
    frame = verify.claims_table(recorded)
    after = lines[len(ids) : len(ids) + 2]
    assert after == [verify.count_verdicts(frame), verify.describe_pooling(frame)]
    assert after[0].startswith(f"{len(ids)} claims. 51 results: ")
    assert "1 hope: " in after[0]
    plus_8 = table["seed_part"]["squad-plus-8"]
    assert f", n=3, seed part {plus_8:.2f}: " in lines[ids.index("squad-plus-8")]
    assert ", n=0: not tested: " in lines[ids.index("fifty-on-1600")]


def test_the_table_has_a_row_for_each_claim_arm_and_comparison(recorded):
    assert run_verb(sys.argv) == 0
    ids = [c.id for c in read_claims("exbert")]
    controlled = [c.id for c in read_claims("exbert") if c.control and c.contrast]
    for arm in ("printed", "tuned"):
        assert list(read_verdicts(arm).index) == ids
        beside = read_verdicts(arm, "control")
        assert list(beside.index) == controlled
        # a control has numbers and no verdict
        assert beside["verdict"].isna().all()
        eight = beside.loc["squad-plus-8"]
        assert eight["low"] < eight["ours"] < eight["high"]
        assert eight["control"] == "plain-tuned"
    table = read_verdicts()
    eight = table.loc["squad-plus-8"]
    assert eight["low"] < eight["ours"] < eight["high"]
    assert eight["n"] == 3
    assert len(eight["run"].split()) == 6
    assert read_verdicts("tuned")["verdict"]["squad-plus-8"] != Verdict.NOT_TESTED
    assert table["verdict"]["headline"] != Verdict.NOT_TESTED
    assert table["printed"]["headline"] == "9 to 13"
    assert table["stance"]["sparse-overfits-less"] == "hope"
    # this size has runs of the mixtures, and none of the domains alone
    assert "at 0:100, 100:0" in table["reason"]["beats-everywhere"]


def test_an_arm_without_runs_is_not_tested(recorded):
    table = verify.claims_table(recorded.model_copy(update={"arms": ["printed"]}))
    tuned = verify.select(table, "tuned")
    assert set(tuned["verdict"]) == {Verdict.NOT_TESTED}
    assert tuned["reason"].iloc[-1] == "there are no runs"
    fifty = verify.select(table).loc["fifty-on-1600"]
    assert np.isnan(fifty["ours"])
    assert fifty["run"] == ()


def test_a_score_is_shown_as_a_score(recorded, monkeypatch):
    """A claim about a score has `ours` in the unit of the printed score, in either direction."""
    score = {"against": None, "ours": {"variant": "v-db", "order": "trainer"}, "target": 40.0}
    claims = [
        make_claim("equivalence", score, id="higher"),
        make_claim("equivalence", score | {"direction": "lower"}, id="lower"),
        make_claim(id="gain"),
        make_claim(contrast={"target": -1}, id="no-loss-of-1"),
    ]
    monkeypatch.setattr(claims_module, "read_claims", lambda slug, ratios: claims)
    table = verify.select(verify.claims_table(recorded))
    effects = table[["ours", "low", "high"]].astype(float)
    # a target moves the rule and not the difference that is shown
    assert list(effects.loc["no-loss-of-1"]) == pytest.approx(list(effects.loc["gain"]))
    assert list(effects.loc["lower"]) == pytest.approx(list(effects.loc["higher"]))
    values = [
        r["metrics"]["squad"]["em"]
        for s, r in runs.require_records(plans.plan(recorded))
        if (s.variant, s.ratio, s.arm) == ("v-db", 0.8, "printed")
    ]
    higher = table.loc["higher"]
    assert higher["ours"] == pytest.approx(np.mean(values))
    assert higher["low"] < higher["ours"] < higher["high"]
    # its pool holds no other claim
    assert higher["seed_part"] == pytest.approx(np.std(values, ddof=1) / np.sqrt(3))
    assert higher["seed_part"] > 0


def test_verify_stops_where_the_ledger_on_disk_disagrees(recorded, capsys):
    file = runs.FIGURES / "exbert" / "real" / "results.csv"
    whole = file.read_text()
    other_number = re.sub(r"(\d)\.(\d)", r"\1.9\2", whole, count=1)
    last_line_missing = "".join(whole.splitlines(True)[:-1])
    for spoilt in (other_number, last_line_missing):
        file.write_text(spoilt)
        assert run_verb(sys.argv) == 1
        assert "results.csv and the records disagree" in capsys.readouterr().out
    # without the file there is nothing to disagree with
    file.unlink()
    assert run_verb(sys.argv) == 0


def test_a_report_without_runs_of_a_profile_has_no_verdicts(capsys, monkeypatch):
    quick = {"spec": {"profile": "quick"}}
    for profile in ("real", "paper"):
        monkeypatch.setattr(runs, "read_all", lambda report: [quick])
        monkeypatch.setattr("sys.argv", ["verify", "moe", "--profile", profile])
        assert run_verb(sys.argv) == 0
        none = f"moe: no run of profile {profile} has been recorded"
        assert f"{none}, so none of its 41 claims is tested" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["verify", "moe", "--profile", "quick"])
    with pytest.raises(UserError, match="have no record"):
        run_verb(sys.argv)


def test_an_effect_in_percent_of_a_score_counts_in_points():
    effects = power.power_table("exbert").set_index("claim")["effect"]
    # a percentage of a score near 50 is half as many points
    assert effects["mixed-gain-relative"] == effects["mixed-gain"] / 2


def test_a_claim_of_all_mixtures_is_not_tested_where_none_mixes():
    ledger = pd.DataFrame({"variant": ["a"], "metric": ["em"], "ratio": [1.0], "set": ["x"]})
    side = {"variant": "a", "set": "x", "metric": "em", "ratio": []}
    with pytest.raises(stats.Lacking, match="no mixture of both domains"):
        stats.find_cells([side, side], ledger)
