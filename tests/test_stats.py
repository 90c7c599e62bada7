"""Claims files, and the statistics on planted ledgers, where the answer is known."""

import hashlib
import json
import re
import sys

import numpy as np
import pandas as pd
import pytest

from qa_lib.__main__ import run_verb
from qa_lib.evidence import claims as claims_module
from qa_lib.evidence import power, stats, verify
from qa_lib.evidence.claims import (
    SMALLER,
    Claim,
    Contrast,
    control_claim,
    interval,
    read_claims,
    rules,
    verdict,
)
from qa_lib.evidence.resample import correlation, mean, resample
from qa_lib.reports import exbert, plans
from qa_lib.settings import encoder_files
from qa_lib.settings.parameters import Layer
from qa_lib.settings.params import ROOT, UserError
from qa_lib.settings.spec import Spec
from qa_lib.store import runs

FILES = sorted((ROOT / "params" / "claims").glob("*.yaml"))
DOMAINS = ["squad", "bioasq"]


def plant(
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
    """A ledger and its examples. gains: (variant, ratio) → EM above `base`. cluster_sd: how much the models differ from question
    to question; rows of one cluster share it. seed_sd: of one model from seed to seed."""
    rng, ledger, examples = np.random.default_rng(rng), [], []
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
                ledger.append(
                    labels
                    | {
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
                )
                examples.append(
                    pd.DataFrame(
                        {
                            "id": np.arange(len(y)).astype(str),
                            "cluster": cluster.astype(str),
                            "em": y,
                        }
                    ).assign(set=name, **labels)
                )
    return pd.DataFrame(ledger), pd.concat(examples, ignore_index=True)


PAIR = {
    "ours": {"variant": "exbert-tuned"},
    "against": {"variant": "v-db"},
    "both": {"ratio": 0.8},
    "set": "first",
    "metric": "em",
}


def claim(kind="superiority", contrast=None, **fields) -> Claim:
    return Claim(
        **{
            "id": "planted",
            "where": "here",
            "says": "so",
            "printed": None,
            "unit": "EM",
            "kind": kind,
            "profiles": ["real", "paper"],
            "contrast": Contrast(**PAIR | (contrast or {})),
        }
        | fields
    )


def two(gain: float) -> dict:
    return {("v-db", 0.8): 0.0, ("exbert-tuned", 0.8): gain}


def judged(claim: Claim, planted, profile="real", **kwargs) -> pd.Series:
    return stats.judge_claims([claim], *planted, profile, DOMAINS, **kwargs).iloc[0]


# ---- claims files ----

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
}  # beside the places


@pytest.mark.parametrize("file", FILES, ids=lambda p: p.stem)
def test_claims_validate_and_their_columns_exist(file):
    found = read_claims(file.stem)
    assert len(found) >= 15 and 1 <= sum(c.primary for c in found) <= 5
    columns = {k for k, f in Spec.model_fields.items() if "list" not in str(f.annotation)} | {
        *Layer.model_fields,
        "set",
        "metric",
    }
    for c in found:
        for side in c.contrast.sides() if c.contrast else []:
            assert set(side) <= columns, c.id
            assert set(np.ravel(side["set"])) <= {"first", "second", "validation"} | SETS.get(
                file.stem, set()
            ), c.id
        assert c.contrast is None or c.contrast.parts()
        assert not c.control or control_claim(c).contrast.parts()
        assert not c.primary or c.confound
    ids = re.findall(r"^(\S+):", file.read_text(), re.M)
    assert ids == [c.id for c in found], "an id stands twice"


def test_contradictions_are_entered():
    found = {c.id: c for c in read_claims("exbert")}
    a, b, c = (found[x].range for x in ("headline", "mixed-gain", "squad-plus-8"))
    assert a != b
    assert c[1] < a[0] < b[0]
    assert {"mixed-gain", "squad-plus-8"} <= set(found["headline"].contradicts)


@pytest.fixture
def planned(monkeypatch):
    """Parameters and the runs planned with them, without data or encoder."""
    monkeypatch.setattr(encoder_files, "identify_weights", lambda name: "w" * 64)
    monkeypatch.setattr(exbert.selection, "fingerprint", lambda *_: "f" * 64)

    def plan(profile: str, size: str | None = None, **changes):
        p = plans.load_params("exbert", profile, changes, size)
        return p, exbert.plan(p)

    return plan


def record(spec: Spec, rows=30) -> tuple[dict, pd.DataFrame]:
    """A record and its examples, as training would have left them, with random scores; the best rate is about 1e-4."""
    rng = np.random.default_rng(int(spec.hash[:8], 16))
    examples = pd.concat(
        [
            pd.DataFrame(columns=["set", "id", "cluster", "em", "f1", "tokens"]),
            *(
                pd.DataFrame(
                    {
                        "set": name,
                        "id": np.arange(rows).astype(str),
                        "cluster": np.arange(rows).astype(str),
                        "em": rng.uniform(0, 100, rows),
                        "f1": rng.uniform(0, 100, rows),
                        "tokens": rng.uniform(1, 9, rows),
                    }
                )
                for name in spec.tests
            ),
        ]
    )
    scores = {
        name: x[["em", "f1", "tokens"]].mean().to_dict() | {"n": rows, "clusters": rows}
        for name, x in examples.groupby("set")
    }
    history = [
        {
            "epoch": float(e + 1),
            "step": e + 1,
            "train_loss": rng.uniform(1, 2),
            "validation_loss": rng.uniform(1, 1.5) + 3 * abs(np.log10(spec.learning_rate) + 4),
            "validation_em": 1.0,
            "validation_f1": 1.0,
        }
        for e in range(int(spec.epochs))
    ]
    return {
        "metrics": scores,
        "history": history,
        "environment": {"device": "CPU, 1 thread", "precision": "bf16"},
    }, examples


def test_every_contrast_finds_its_planned_runs_and_no_others(planned, monkeypatch):
    p, specs = planned("paper", arms=["printed"])
    kept = {s.hash: record(s) for s in specs}
    monkeypatch.setattr(
        runs,
        "require_records",
        lambda specs: [(s, {"run": s.run} | kept[s.hash][0]) for s in specs],
    )
    ledger = pd.concat(
        [runs.collect_ledger(specs), stats.curves(runs.collect_histories(specs))], ignore_index=True
    )
    examples = pd.concat([kept[s.hash][1].assign(run=s.run) for s in specs])
    found = read_claims("exbert")
    table = stats.judge_claims("exbert", ledger, examples, "paper", p.domains, times=50).set_index(
        "id"
    )
    for c in found:
        assert table["verdict"][c.id].startswith("not tested") == ("paper" not in c.profiles), (
            table["verdict"][c.id]
        )
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
    monkeypatch.setattr(claims_module, "ROOT", tmp_path)
    with pytest.raises(UserError, match=says) as e:
        read_claims("exbert")
    assert str(e.value).startswith("params/claims/exbert.yaml, line 1: fine: ")


# ---- verdicts ----


@pytest.mark.parametrize(
    "gain, fields, expected",
    [
        (5.0, {}, "reproduced"),
        (0.0, {}, "not reproduced"),  # a true null
        (-5.0, {}, "not reproduced"),
        (2.0, {"delta": 8}, SMALLER),
        (11.0, {"kind": "magnitude", "printed": [9, 13]}, "reproduced"),
        (6.5, {"kind": "magnitude", "printed": [9, 13]}, SMALLER),
        (2.0, {"kind": "magnitude", "printed": [9, 13]}, "not reproduced"),
        (40.0, {"kind": "magnitude", "printed": 8}, "not reproduced"),
        (0.3, {"kind": "equivalence"}, "reproduced"),
        (6.0, {"kind": "equivalence"}, "not reproduced"),
        (-6.0, {"kind": "equivalence"}, "not reproduced"),
    ],
)
def test_verdicts_where_the_evidence_is_plain(gain, fields, expected):
    found = judged(claim(**fields), plant(two(gain), clusters=2000, seed_sd=0.1))
    assert found["verdict"] == expected
    assert found["low"] < found["d"] < found["high"]
    assert found["n"] == 5
    assert abs(found["d"] - gain) < 0.3 and len(found["run"]) == 10


@pytest.mark.parametrize(
    "gain, seed_sd, fields",
    [
        (1.5, 3.0, {}),
        (0.0, 3.0, {}),
        (11.0, 6.0, {"kind": "magnitude", "printed": [9, 13]}),
        (0.0, 3.0, {"kind": "equivalence"}),
    ],
)
def test_noisy_seeds_are_inconclusive_and_say_how_many_would_do(gain, seed_sd, fields):
    found = judged(claim(**fields), plant(two(gain), seeds=4, seed_sd=seed_sd, rng=2))
    needs = int(re.fullmatch(r"inconclusive: seeds \(needs n=(\d+)\)", found["verdict"])[1])
    d, s2, nu, v, clusters = (float(found[k]) for k in ("d", "s2", "nu", "v", "clusters"))
    c = claim(**fields)
    decided = [any(rules(c, d, s2, nu + n - 4, v, n, clusters)) for n in (needs - 1, needs)]
    assert decided == [False, True]


def test_no_significant_difference_is_no_equality():
    planted = plant(two(0.0), seeds=3, seed_sd=4.0, rng=1)
    assert judged(claim(), planted)["p"] > 0.05  # what "no significant difference" rests on
    assert judged(claim("equivalence"), planted)["verdict"].startswith("inconclusive: seeds")


def test_more_seeds_than_anyone_runs():
    estimate = (1.68, 50.0, 3, 0.01, 4, 500)
    assert verdict(claim("equivalence"), [estimate]) == "inconclusive: seeds (needs n>1000)"
    assert (
        verdict(claim("equivalence"), [(1.68, 50.0, 3, 0.2, 4, 500)])
        == "inconclusive: test questions (no n suffices)"
    )


def test_examples_of_one_cluster_count_once():
    ledger, examples = plant(two(0.0), clusters=20, rows=50, cluster_sd=8.0, seed_sd=0.1)
    shift = 3 - judged(claim(), (ledger, examples))["d"]  # d is 3
    ledger, examples = (
        x.assign(**{c: x[c] + shift * (x["variant"] != "v-db")})
        for x, c in ((ledger, "value"), (examples, "em"))
    )
    apart = examples.assign(cluster=examples["id"])
    together, naive = judged(claim(), (ledger, examples)), judged(claim(), (ledger, apart))
    assert together["v"] > 10 * naive["v"]
    assert together["verdict"] == "inconclusive: test questions (no n suffices)"
    assert naive["p"] < 0.05


@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize(
    "fields, gain",
    [({}, 30.0), ({"kind": "magnitude", "printed": 30}, 30.0), ({"kind": "equivalence"}, 0.0)],
)
def test_one_or_two_seeds_reproduce_nothing(seeds, fields, gain):
    ledger, examples = plant(two(gain), seeds=seeds, seed_sd=0.01)
    assert (
        judged(claim(**fields), (ledger, examples))["verdict"] == "inconclusive: seeds (needs n=3)"
    )
    more, its = plant(
        {("v-db", 0.2): 0.0, ("exbert-tuned", 0.2): 0.0}, seed_sd=0.01
    )  # pooled variance does not change that
    other = claim(contrast={"both": {"ratio": 0.2}}, id="other")
    both = pd.concat([ledger, more]), pd.concat([examples, its])
    found = (
        stats.judge_claims([claim(**fields), other], *both, "real", DOMAINS)
        .set_index("id")
        .loc["planted"]
    )
    assert found["verdict"] == "inconclusive: seeds (needs n=3)"
    assert found["nu"] == pytest.approx(4 + seeds - 1)


def test_one_seed_has_no_interval_of_its_own():
    found = judged(claim(), plant(two(30.0), seeds=1))
    assert np.isnan(found["low"])
    assert np.isnan(found["p"])
    assert found["n"] == 1


def test_missing_seeds_are_left_out_on_both_sides():
    ledger, examples = plant(two(5.0), seeds=5)
    gone = ~((ledger["variant"] == "v-db") & (ledger["seed"] == 1))
    found, whole = judged(claim(), (ledger[gone], examples)), judged(claim(), (ledger, examples))
    assert found["n"] == 4
    assert found["dropped"] == (1,)
    assert whole["dropped"] == ()
    v = ledger[ledger["set"] == "squad"].pivot(index="seed", columns="variant", values="value")
    assert found["d"] == pytest.approx((v["exbert-tuned"] - v["v-db"]).drop(1).mean())


def test_ties():
    ledger, examples = plant({("v-db", 0.8): 0.0}, seed_sd=1.0)
    same = [x.assign(variant="exbert-tuned", run="x" + x["run"]) for x in (ledger, examples)]
    planted = pd.concat([ledger, same[0]]), pd.concat([examples, same[1]])
    found = judged(claim(), planted)
    assert found["d"] == 0
    assert found["p"] == 1
    assert found["verdict"] == "not reproduced"
    assert judged(claim("equivalence"), planted)["verdict"] == "reproduced"


def test_the_largest_size_with_three_seeds_and_no_pooling_of_sizes():
    large, small = plant(two(9.0), seeds=1), plant(two(3.0), seeds=3, size="small")
    both = [pd.concat(x) for x in zip(large, small, strict=True)]
    assert judged(claim(), both)["size"] == "small" and abs(judged(claim(), both)["d"] - 3) < 1.5
    three = [pd.concat(x) for x in zip(plant(two(9.0), seeds=3), small, strict=True)]
    assert judged(claim(), three)["size"] == "full"


def test_not_tested():
    planted = plant(two(5.0))
    assert (
        judged(claim(), planted, profile="quick")["verdict"]
        == f"not tested at this profile: {stats.QUICK}"
    )
    only = claim(profiles=["paper"], untestable={"real": "another encoder"})
    assert judged(only, planted)["verdict"] == "not tested at this profile: another encoder"
    absent = judged(claim(contrast={"ours": {"variant": "exbert", "experts": 8}}), planted)
    assert (
        absent["verdict"]
        == "not tested at this profile: no run of variant exbert, experts 8 at 80:20 with em on first"
    )
    assert absent["run"] == () and np.isnan(absent["d"])
    cited = claim().model_copy(
        update={"contrast": None, "profiles": [], "untestable": {"real": "it is cited"}}
    )
    assert judged(cited, planted)["verdict"] == "not tested at this profile: it is cited"


def test_a_claim_over_mixtures_names_those_that_lack_runs():
    """It is not tested on the mixtures that there are, whether it averages over them or asks for each."""
    planted = plant(
        {
            (v, r): 9.0 * (v != "v-db")
            for v, r in [
                ("v-db", 0.2),
                ("v-db", 0.4),
                ("v-db", 0.8),
                ("exbert-tuned", 0.2),
                ("exbert-tuned", 0.8),
            ]
        },
        seed_sd=0.1,
    )
    over = {"both": {"ratio": [0.2, 0.4, 0.6, 0.8], "order": "trainer"}, "set": ["first", "second"]}
    for contrast in (over, over | {"each": ["ratio", "set"]}):
        found = judged(claim(contrast=contrast), planted)
        assert found["verdict"] == (
            "not tested at this profile: no run of order trainer, variant exbert-tuned at 40:60, 60:40 with em on first, second; "
            "no run of order trainer, variant v-db at 60:40 with em on first, second"
        )
        assert found["n"] == 0 and np.isnan(found["d"])


def test_sides_of_different_devices_are_not_compared():
    ledger, examples = plant(two(9.0), seeds=5, seed_sd=0.1)
    on = np.where(ledger["variant"] == "v-db", "CPU, 2 threads", "NVIDIA H200")
    apart = judged(claim(), (ledger.assign(device=on), examples))
    assert (
        apart["verdict"]
        == "not tested at this profile: its sides were trained on different devices, or in different precision"
    )
    other = np.where(ledger["variant"] == "v-db", "fp32", "bf16")
    apart = judged(claim(), (ledger.assign(device="CPU, 1 thread", precision=other), examples))
    assert apart["verdict"].endswith("in different precision")
    on = np.where(
        (ledger["variant"] == "v-db") & (ledger["seed"] == 1), "NVIDIA H200", "CPU, 1 thread"
    )
    some = judged(claim(), (ledger.assign(device=on), examples))
    assert some["n"] == 4
    assert some["dropped"] == (1,)
    assert some["verdict"] == "reproduced"


def test_arms_are_judged_apart():
    printed, tuned = plant(two(6.0)), plant(two(0.0), rng=5)
    tuned = [x.assign(run="t" + x["run"]) for x in tuned]
    planted = (
        pd.concat([printed[0], tuned[0].assign(arm="tuned")]),
        pd.concat([printed[1], tuned[1]]),
    )
    assert judged(claim(), planted)["verdict"] == "reproduced"
    assert judged(claim(), planted, arm="tuned")["d"] < 2


def test_each_part_must_hold():
    gains = {
        (v, r): g * (v != "v-db")
        for v in ("v-db", "exbert-tuned")
        for r, g in [(0.2, 6.0), (0.8, 6.0), (1.0, 0.0)]
    }
    planted = plant(gains, clusters=600, seed_sd=0.1)
    one = claim(
        contrast={
            "both": {"ratio": [0.2, 0.8], "set": ["first", "second"]},
            "set": None,
            "each": ["ratio", "set"],
        }
    )
    assert judged(one, planted)["verdict"] == "reproduced" and judged(one, planted)["parts"] == 4
    all_ = claim(contrast={"both": {"ratio": [0.2, 0.8, 1.0]}, "each": ["ratio"]})
    found = judged(all_, planted)
    assert found["verdict"] == "not reproduced"
    assert found["part"] == "ratio 1.0"
    assert len(found["run"]) == 30
    mean = judged(claim(contrast={"both": {"ratio": [0.2, 0.8, 1.0]}}), planted)
    assert mean["verdict"] == "reproduced" and mean["d"] == pytest.approx(4, abs=0.2)


def test_beyond_relative_lower_and_constants():
    gains = {
        ("v-db", 0.8): 0.0,
        ("v-db", 1.0): 10.0,
        ("exbert-tuned", 0.8): 8.0,
        ("exbert-tuned", 1.0): 13.0,
    }
    planted = plant(gains, clusters=600, seed_sd=0.1)
    beyond = {"beyond": {"ours": {"ratio": 1.0}, "against": {"ratio": 1.0}}}
    found = judged(claim(contrast=beyond), planted)
    assert found["verdict"] == "reproduced" and found["d"] == pytest.approx(5, abs=0.3)
    relative = claim("magnitude", {"scale": "relative"}, printed=16, unit="percent relative")
    base = planted[0].query("variant == 'v-db' and ratio == 0.8 and set == 'squad'")["value"].mean()
    assert judged(relative, planted)["d"] == pytest.approx(100 * 8 / base, abs=0.5)
    assert judged(claim(contrast={"direction": "lower"}), planted)["verdict"] == "not reproduced"
    value = judged(claim("equivalence", {"against": None, "target": base + 8}), planted)
    assert value["verdict"] == "reproduced"
    # a score alone: its questions' whole variance
    assert value["v"] > 10 * found["v"]
    zero = planted[0].assign(value=0.0), planted[1].assign(em=0.0)
    assert (
        judged(relative, zero)["verdict"]
        == "not tested at this profile: it is a percentage of a score that is 0"
    )


def test_holm_for_primary_claims_only():
    ratios = [0.0, 0.2, 0.4, 0.6, 0.8]
    planted = plant(
        {(v, r): 1.2 * (v != "v-db") for v in ("v-db", "exbert-tuned") for r in ratios},
        seeds=4,
        seed_sd=0.7,
    )
    listed = [claim(contrast={"both": {"ratio": r}}, id=f"at-{r}", primary=r < 0.8) for r in ratios]
    found = stats.judge_claims(listed, *planted, "real", DOMAINS)
    primary = found[found["primary"]]
    assert (primary["p_holm"] >= primary["p"]).all() and found["p_holm"].isna().sum() == 1
    assert primary["p_holm"].min() == pytest.approx(4 * primary["p"].min())
    assert primary.loc[primary["verdict"] == "reproduced", "p_holm"].le(0.05).all()
    assert primary.loc[primary["p_holm"] > 0.05, "verdict"].str.startswith("inconclusive").all()


def test_a_verdict_that_hangs_on_the_pooling_says_so():
    """Two comparisons of a kind: of one the seeds agree, of the other they do not, and three are too few for Levene's test."""
    d = {"quiet": [2.0, 2.1, 2.2], "loud": [-9.0, 3.0, 12.0]}
    rows = [
        {
            "run": f"{v}-{m}-s{s}",
            "variant": v,
            "seed": s,
            "ratio": r,
            "size": "full",
            "order": "trainer",
            "arm": "printed",
            "set": n,
            "metric": "em",
            "value": 50 + (v == "exbert-tuned") * x,
        }
        for m, r in (("quiet", 0.8), ("loud", 0.2))
        for s, x in enumerate(d[m])
        for v in ("v-db", "exbert-tuned")
        for n in DOMAINS
    ]
    ledger = pd.DataFrame(rows)
    examples = pd.DataFrame(
        [r | {"id": k, "cluster": k, "em": r["value"]} for r in rows for k in "ab"]
    )
    listed = [
        claim(id=m, primary=m == "quiet", contrast={"both": {"ratio": r}})
        for m, r in (("quiet", 0.8), ("loud", 0.2))
    ]
    found = stats.judge_claims(listed, ledger, examples, "real", DOMAINS).set_index("id")
    assert found["levene"]["quiet"] > 0.01 and found["s2"]["quiet"] == found["s2"]["loud"]
    assert found["verdict"]["quiet"].startswith("inconclusive")
    assert found["unpooled"]["quiet"] == "reproduced"
    only = stats.judge_claims(listed[:1], ledger, examples, "real", DOMAINS).iloc[0]
    assert only["verdict"] == only["unpooled"] == "reproduced"  # nothing else is in its pool
    told = verify.describe_pooling(
        pd.DataFrame({"claim": ["a", "b"], "unpooled": ["", "reproduced instead of inconclusive"]})
    )
    assert told.endswith(
        "own seeds these would be judged otherwise: b (reproduced instead of inconclusive)."
    )
    assert verify.describe_pooling(pd.DataFrame({"claim": ["a"], "unpooled": [""]})).endswith(
        "every verdict would be the same."
    )


def test_variances_are_pooled_unless_levene_objects():
    quiet, loud = (
        plant({("v-db", 0.2): 0.0, ("exbert-tuned", 0.2): 4.0}, seeds=12, seed_sd=0.02, row_sd=0.1),
        plant(two(4.0), seeds=12, seed_sd=20.0, row_sd=0.1),
    )
    listed = [
        claim(id="loud"),
        claim(contrast={"both": {"ratio": 0.2}}, id="quiet"),
        claim("equivalence", {"both": {"ratio": 0.2}}, id="again"),
    ]
    planted = [pd.concat(x) for x in zip(quiet, loud, strict=True)]
    found = stats.judge_claims(listed, *planted, "real", DOMAINS).set_index("id")
    assert (found["levene"] < 0.01).all()
    assert np.allclose(found["nu"], 11)
    assert found["s2"]["loud"] > 100 * found["s2"]["quiet"]
    other = plant({("v-db", 0.2): 0.0, ("exbert-tuned", 0.2): 4.0})
    alike = [pd.concat(x) for x in zip(other, plant(two(4.0), rng=1), strict=True)]
    found = stats.judge_claims(listed, *alike, "real", DOMAINS)
    assert np.allclose(found["nu"], 8)
    # `again` is `quiet` and counts once
    assert found["s2"].nunique() == 1


@pytest.mark.parametrize("others, nu", [(["a"], 4), (["a", "b", "c", "d"], 4 * 16 / 7)])
def test_a_shared_baseline_counts_once(others, nu):
    """C contrasts with one baseline: 4C / (C + 3) times the n − 1 of one, not C times; at most four times."""
    planted = plant({("v-db", 0.8): 0.0} | {(v, 0.8): 1.0 for v in others})
    found = stats.judge_claims(
        [claim(contrast={"ours": {"variant": v}}, id=v) for v in others], *planted, "real", DOMAINS
    )
    assert np.allclose(found["nu"], nu)


def test_what_seeds_average_out_is_no_variance_of_questions():
    """v does not shrink with n: a seed's own noise from question to question is in s² alone."""
    planted = plant(two(1.0), seeds=20, seed_sd=0.0, cluster_sd=1.0, row_sd=10.0, clusters=400)
    found = judged(claim(), planted)
    assert found["v"] == pytest.approx(2 * 1.0 / 400, abs=0.005)
    assert found["s2"] == pytest.approx(2 * 100 / 400, rel=0.5)


def test_few_clusters_widen_an_interval():
    """t of K - 1 clusters, those of the smallest set; and resamples whose variance is that of a mean, not (K - 1) / K of it."""
    low, high = claims_module.interval(0.0, 0.0, 4, 1.0, 3, 5)
    assert (high - low) / 2 == pytest.approx(2.776445)
    few, many = (
        plant(two(3.0), clusters=10, sets=["first"]),
        plant(two(3.0), clusters=100, sets=["second"]),
    )
    found = judged(
        claim(contrast={"set": ["first", "second"]}),
        [pd.concat(x) for x in zip(few, many, strict=True)],
    )
    assert found["clusters"] == 10
    y = np.array([0.0, 0.0, 50.0, 100.0])
    examples = pd.DataFrame(
        {"run": "r", "set": "first", "id": list("abcd"), "cluster": list("abcd"), "em": y}
    )
    draws = resample(
        pd.DataFrame([{"run": "r", "set": "first", "metric": "em", "value": y.mean()}]),
        examples,
        20_000,
    )
    assert draws["r", "first", "em"].var() == pytest.approx(y.var(ddof=1) / 4, rel=0.05)


def test_clusters_first():
    """The score may be a mean of cluster means; the resamples follow whichever average was recorded."""
    rng, sizes = np.random.default_rng(0), np.arange(1, 41)
    cluster = np.repeat(np.arange(40), sizes)
    y = rng.normal(50, 20, 40)[cluster]
    examples = pd.DataFrame(
        {"run": "r", "set": "first", "id": np.arange(len(y)), "cluster": cluster, "em": y}
    )
    means = pd.Series(y).groupby(cluster).mean()
    ledger = pd.DataFrame([{"run": "r", "set": "first", "metric": "em", "value": means.mean()}])
    draws = resample(ledger, examples)["r", "first", "em"]
    assert draws.var() == pytest.approx(means.var() / 40, rel=0.15)
    assert resample(ledger.assign(value=y.mean()), examples)[
        "r", "first", "em"
    ].mean() == pytest.approx(y.mean(), abs=0.5)
    twice = pd.concat([examples, examples])  # one run under two labels of a plan
    assert np.allclose(resample(ledger, twice)["r", "first", "em"], draws)


def test_a_correlation_is_drawn_again_as_a_correlation():
    """Similarity scores: r of the rows drawn, clusters of pairs kept together, `score` the same as `pearson`."""
    rng, K = np.random.default_rng(0), 300
    gold = rng.uniform(0, 5, K)
    examples = pd.DataFrame(
        {
            "run": "r",
            "set": "sts",
            "id": np.arange(K),
            "cluster": np.arange(K) // 2,
            "gold": gold,
            "predicted": gold + rng.normal(0, 1, K),
            "accuracy": np.nan,
        }
    )
    r = np.corrcoef(examples["predicted"], gold)[0, 1]
    ledger = pd.DataFrame(
        [{"run": "r", "set": "sts", "metric": m, "value": 100 * r} for m in ("pearson", "score")]
    )
    draws = resample(ledger, examples, 4000)
    assert np.array_equal(draws["r", "sts", "pearson"], draws["r", "sts", "score"])
    # Fisher
    assert draws["r", "sts", "pearson"].std() == pytest.approx(
        100 * (1 - r**2) / np.sqrt(K), rel=0.15
    )
    whole = correlation(
        np.stack(
            [
                np.ones(K),
                *(examples[["predicted", "gold"]].T.to_numpy()),
                examples["predicted"] ** 2,
                gold**2,
                examples["predicted"] * gold,
            ]
        )[:, :, None],
        np.ones((1, K)),
    )
    assert whole.item() == pytest.approx(100 * r)
    classes = examples.assign(
        set="sst", gold=np.nan, predicted=np.nan, accuracy=100.0 * (rng.uniform(size=K) < 0.6)
    )
    both = ledger.assign(set="sst", metric=["accuracy", "score"], value=classes["accuracy"].mean())
    draws = resample(both, classes)
    assert np.array_equal(draws["r", "sst", "accuracy"], draws["r", "sst", "score"])
    with pytest.raises(UserError, match="disagree about pearson"):
        resample(ledger.assign(value=1.0), examples)


# ---- refusals ----


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
        (
            lambda a, b: (
                pd.concat([a, a.assign(run="z" + a["run"], order="sequential")]),
                pd.concat([b, b.assign(run="z" + b["run"])]),
            ),
            "must say which order",
        ),
    ],
)
def test_refused(spoil, says):
    with pytest.raises(UserError, match=says):
        judged(claim(), spoil(*plant(two(5.0))))


def test_a_run_is_not_compared_with_itself():
    found = judged(claim(contrast={"ours": {"variant": "v-db"}}), plant(two(5.0)))
    assert (
        found["verdict"]
        == "not tested at this profile: its two sides are the same runs at these sizes"
    )


# ---- losses and epochs ----


def test_a_run_is_compared_with_itself_on_another_set():
    """Its two scores do not cancel: there are as many degrees of freedom as seeds, less one."""
    sides = {
        "ours": {"variant": "v-db", "set": "first"},
        "against": {"variant": "v-db", "set": "second"},
        "set": None,
    }
    row = judged(claim(contrast=sides), plant({("v-db", 0.8): 0.0}, seeds=4))
    assert row["nu"] == pytest.approx(3) and row["low"] < row["d"] < row["high"]


def test_curves_and_whole_epochs():
    rows = [
        {
            "run": f"{v}-s{s}",
            "variant": v,
            "seed": s,
            "ratio": 0.8,
            "size": "full",
            "validation_rows": 500,
            "epoch": float(e),
            "step": e,
            "train_loss": 3.0 - e / 4,
            "validation_loss": 2.0 + abs(e - best) / 10 + s / 100,
            "validation_em": 1.0,
            "validation_f1": 1.0,
        }
        for v, best in [("v-db", 3), ("exbert-tuned", 2)]
        for s in range(5)
        for e in range(1, 7)
    ]
    ledger = stats.curves(pd.DataFrame(rows))
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
    epochs = claim("magnitude", earlier, printed=33, unit="percent relative")
    none = pd.DataFrame(columns=["run", "set", "cluster", "id", "em"])
    five, three = judged(epochs, (ledger, none)), judged(epochs, (ledger[ledger["seed"] < 3], none))
    assert five["d"] == pytest.approx(100 / 3)
    assert five["s2"] > 0
    # equal in all seeds, yet not known exactly
    assert five["v"] == 0
    assert five["high"] - five["low"] < three["high"] - three["low"]
    assert three["verdict"].startswith("inconclusive: seeds (needs n=")
    with pytest.raises(UserError, match="not a number"):
        stats.curves(pd.DataFrame(rows).assign(validation_loss=np.nan))


def test_the_end_of_a_rise_is_known_to_a_look():
    """Two looks an epoch, three epochs: each plateau lies within a sixth of the steps, however alike the seeds are."""
    row = {"set": "training", "metric": "plateau", "looks": 2, "epochs": 3.0, "value": 50.0, "n": 7}
    drawn = resample(
        pd.DataFrame([row | {"run": r} for r in "ab"]),
        pd.DataFrame(columns=["run", "set", "cluster"]),
    )
    for x in drawn.values():
        assert abs(x - 50).max() < 100 / 12 and x.std() == pytest.approx(100 / 6 / 12**0.5, rel=0.1)


# ---- power, coverage ----


def test_one_score_of_one_run_has_the_binomial_error():
    """The moe report's 382 questions: a score near a third has a standard error of 2.4 EM."""
    own, common = power.spread(claim(contrast={"against": None}), {"first": (382, 33)})
    assert np.sqrt(own + common) == pytest.approx(2.4, abs=0.01)
    own, common = power.spread(claim(contrast={"against": None, "set": "sts"}), {"sts": (863, 70)})
    assert np.sqrt(own + common) == pytest.approx(100 * (1 - 0.7**2) / np.sqrt(863))


def test_power_against_simulated_studies():
    """80 % of simulated studies see the smallest effect: questions of which models and seeds share what is assumed."""
    rng, Q, n, studies = np.random.default_rng(0), 500, 4, 4000
    c = claim()
    own, common = power.spread(c, {"first": (Q, 50)})
    effect = power.smallest(c, own, common, n)
    sides = []
    for _ in range(2):  # variances as `spread` splits them
        theirs = rng.normal(0, np.sqrt(common / 2), (studies, 1))
        sides.append(theirs + rng.normal(0, np.sqrt((own + power.SEED_SD**2) / 2), (studies, n)))
    d = effect + sides[0] - sides[1]
    low, _ = interval(d.mean(1), d.var(1, ddof=1), np.full(studies, n - 1), common, n, Q)
    assert 0.75 <= (low > 0).mean() <= 0.92  # never less than promised, by much


def test_power_says_what_more_seeds_and_more_questions_can_do():
    def asked(n, **fields):
        c = claim(**fields)
        return power.seeds(c, *power.spread(c, {"first": (n, 50)}))

    c, (own, common) = claim(), power.spread(claim(), {"first": (10_000, 50)})
    n = asked(10_000)  # the fewest, not one near it
    assert 400 < n < 500
    assert power.smallest(c, own, common, n) <= 1 < power.smallest(c, own, common, n - 1)
    assert asked(382) == np.inf
    assert 3 <= asked(40_000) < np.inf
    assert asked(10**8) <= asked(40_000)
    assert asked(382, kind="magnitude", printed=30) == 3
    assert asked(20_000, kind="equivalence", margin=2) < asked(20_000, kind="equivalence", margin=1)
    assert power.spread(claim(contrast={"metric": "best_epoch"}), {"first": (9, 50)}) is None
    assert power.spread(claim(), {"first": (None, 50)}) is None
    twice = power.spread(
        claim(contrast={"set": ["first", "second"]}), {"first": (100, 50), "second": (100, 50)}
    )
    # the mean over two sets
    assert twice == pytest.approx(np.divide(power.spread(claim(), {"first": (100, 50)}), 2))
    apart = {
        "ours": {"variant": "v-db", "set": "first"},
        "against": {"variant": "v-db", "set": "second"},
        "set": None,
    }
    sides = [
        power.spread(claim(contrast={"against": None, "set": s}), {s: (n, 50)})
        for s, n in (("first", 100), ("second", 400))
    ]
    assert power.spread(
        claim(contrast=apart), {"first": (100, 50), "second": (400, 50)}
    ) == pytest.approx(np.sum(sides, 0))
    worse = power.spread(
        claim(contrast={"set": ["first", "second"], "each": ["set"]}),
        {"first": (100, 50), "second": (50, 50)},
    )
    # the smaller of two parts
    assert worse == pytest.approx(np.multiply(power.spread(claim(), {"first": (100, 50)}), 2))


@pytest.mark.parametrize("report", [f.stem for f in FILES])
def test_power_table(report, capsys, monkeypatch):
    table, listed = power.power_table(report), {c.id: c for c in read_claims(report)}
    assert len(table) >= 25 and set(table["claim"]) < set(listed)
    assert (
        table["seeds, endless questions"] <= table["seeds, the report's questions"].fillna(np.inf)
    ).all()
    monkeypatch.setattr("sys.argv", ["power", report])
    assert run_verb(sys.argv) == 0
    told = capsys.readouterr().out
    assert f"of {len(listed)} claims {len(table)} are about scores" in told
    assert "no number" in told
    assert "nan" not in told
    monkeypatch.setattr("sys.argv", ["power", "mo"])
    with pytest.raises(UserError, match="no report mo; known: exbert, moe"):
        run_verb(sys.argv)


def test_what_changed_since_the_freeze(tmp_path, monkeypatch):
    """A file that is gone or says something else, and rules of another number; line ends are no change."""
    monkeypatch.setattr(claims_module, "ROOT", tmp_path)
    monkeypatch.setattr(claims_module, "RULES", 2)
    assert claims_module.list_changes("exbert") == []  # nothing is frozen yet
    folder = tmp_path / "params" / "claims"
    folder.mkdir(parents=True)
    lines = []
    for name, ends, value in (("a", b"\n", b"1"), ("b", b"\r\n", b"1"), ("c", b"\r\n", b"2")):
        (tmp_path / name).write_bytes(b"x: " + value + ends + b"y: 2" + ends)
        lines.append(
            f"{hashlib.sha256(b'x: 1' + bytes([10]) + b'y: 2' + bytes([10])).hexdigest()}  {name}"
        )
    told = ["# exbert, moe", *lines, "rules 2", "# smart", f"{'0' * 64}  a", "rules 1", ""]
    for ends in ("\n", "\r\n"):
        (folder / "FROZEN").write_bytes(ends.join(told).encode())
        assert claims_module.list_changes("exbert") == claims_module.list_changes("moe") == ["c"]
        rules_then = "the rules of judging (then 1, now 2; docs/claims.md)"
        assert claims_module.list_changes("smart") == ["a", rules_then]
        assert claims_module.list_changes("road") == []
    (tmp_path / "b").unlink()
    assert claims_module.list_changes("exbert") == ["b", "c"]


RULED = [
    {},
    {"delta": 8},
    {"kind": "magnitude", "printed": [9, 13]},
    {"kind": "equivalence"},
    {"contrast": {"scale": "relative"}, "unit": "percent relative", "delta": 5},
    {"contrast": {"set": ["first", "second"], "each": ["set"]}},
]


def judge_planted() -> pd.DataFrame:
    """Verdicts and intervals of planted comparisons: what a change of the rules would move."""
    rows = []
    for gain in (-3.0, 0.0, 1.5, 6.0, 11.0):
        for seeds, seed_sd in ((1, 0.5), (3, 0.5), (5, 3.0)):
            planted = plant(two(gain), seeds=seeds, seed_sd=seed_sd, clusters=40, rows=2, rng=7)
            for fields in RULED:
                found = judged(claim(**fields), planted)
                numbers = {k: f"{found[k]:.6g}" for k in ("d", "low", "high", "p", "nu")}
                case = {"gain": gain, "seeds": seeds, "claim": json.dumps(fields)}
                rows.append({**case, **numbers, "verdict": found["verdict"]})
    return pd.DataFrame(rows).astype(str)


def test_the_rules_have_a_number():
    """The file of today's number says what the rules make of planted comparisons. Where this fails, the rules have changed: raise
    RULES, write the file of the new number with `judge_planted().to_csv(…)`, and say in docs/claims.md what changed."""
    file = ROOT / "tests" / "net" / f"rules-{claims_module.RULES}.csv"
    held = pd.read_csv(file, dtype=str, keep_default_na=False)
    pd.testing.assert_frame_equal(judge_planted(), held)
    assert f"\n| {claims_module.RULES} |" in (ROOT / "docs" / "claims.md").read_text(
        encoding="utf-8"
    )


def test_all_reports_are_frozen():
    """Claims are as they were; rules may differ for a report that was frozen before them, and its page says so."""
    told = (ROOT / "params" / "claims" / "FROZEN").read_text()
    for file in FILES:
        assert f"params/claims/{file.name}" in told
        assert not [x for x in claims_module.list_changes(file.stem) if x.endswith(".yaml")]


def coverage(
    n, contrasts, seed_sd, question_sd, noise, replicates=2000, K=100, gain=1.0, rng=0
) -> tuple[float, float]:
    """How often the 95 % interval holds the truth, and how often a true null is found in the claimed direction.

    Contrasts share one baseline. question_sd is common to the seeds of a model, noise is not.
    """
    rng, models = np.random.default_rng(rng), contrasts + 1
    rows = {
        c: pd.DataFrame(
            {
                f"{m}-{s}": w * (np.arange(n) == s)
                for m, w in ((c, 1.0), (0, -1.0))
                for s in range(n)
            }
        )
        for c in range(1, models)
    }
    parts = [stats.Part("", rng.normal(size=n), (), 0.0, K, 0.0, w, ()) for w in rows.values()]
    nu = stats.seed_variance(parts)[id(parts[0])][1]
    y = (
        rng.normal(0, seed_sd, (replicates, models, n, 1))
        + rng.normal(0, question_sd, (replicates, models, 1, K))
        + rng.normal(0, noise, (replicates, models, n, K))
    )
    x = y[:, 1:] - y[:, :1]  # (replicates, contrasts, n, K)
    s2, d = x.mean(3).var(2, ddof=1).mean(1), x[:, 0].mean((1, 2))
    weights = rng.multinomial(K - 1, np.full(K, 1 / K), size=400).astype(float)
    scores = x[:, 0].reshape(-1, K).T
    draws = mean(np.stack([np.ones_like(scores), scores]), weights).reshape(400, replicates, n)
    cov = np.einsum("bri,brj->rij", draws - draws.mean(0), draws - draws.mean(0)) / 399
    v = np.maximum(cov.sum((1, 2)) - np.trace(cov, axis1=1, axis2=2), 0) / (n * (n - 1))
    low, high = interval(gain + d, s2, nu, v, n, K)
    return float(((low <= gain) & (gain <= high)).mean()), float(
        rules(claim(), d, s2, nu, v, n, K)[0].mean()
    )


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
def test_coverage_with_the_seed_variance_estimated(
    n, contrasts, seed_sd, question_sd, noise, record_property
):
    covered, wrong = coverage(n, contrasts, seed_sd, question_sd, noise)
    record_property("coverage", covered)
    print(
        f"n={n} contrasts={contrasts} sd of seeds {seed_sd}, questions {question_sd}, noise {noise}: "
        f"covered {100 * covered:.1f} %, false in the claimed direction {100 * wrong:.1f} %"
    )
    assert 0.94 <= covered <= 0.985
    # nominal 95 %, and 2.5 %: two-sided p, one direction
    assert wrong <= 0.03


# ---- verify ----


@pytest.fixture
def recorded(planned, monkeypatch, tmp_path):
    """Records of a small study with both arms, its results.csv, and its command line."""
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
    while missing := [
        s for s in specs if runs.find_record(s) is None
    ]:  # trials, then what they choose
        for spec in missing:
            runs.save(spec, *record(spec))
        specs = exbert.plan(p)
    runs.write_ledger(p, specs)
    given = [x for k, v in changes.items() for x in ("-p", f"{k}={v}")]
    monkeypatch.setattr(
        "sys.argv", ["verify", "exbert", "--profile", "real", "--size", "small", *given]
    )
    return p


def test_verify_prints_and_writes_every_verdict(recorded, capsys):
    assert run_verb(sys.argv) == 0
    told, written = (
        capsys.readouterr().out.splitlines(),
        runs.FIGURES / "exbert" / "real" / "claims.csv",
    )
    table, listed = pd.read_csv(written).set_index("claim"), read_claims("exbert")
    assert (
        list(table.index)
        == [c.id for c in listed]
        == [line.split("  ")[1] for line in told[: len(listed)]]
    )
    effects = {
        f"{which}{k}"
        for which in ("", "tuned_", "control_", "fair_")
        for k in ("ours", "low", "high", "part")
    }
    others = {
        "where",
        "says",
        "printed",
        "printed_unit",
        "unit",
        "n",
        "seed_part",
        "verdict",
        "tuned",
        "control",
        "primary",
        "run",
        "judged",
        "confound",
        "unpooled",
    }
    assert set(table.columns) == effects | others
    eight = table.loc["squad-plus-8"]
    assert (
        f", n=3, seed part {eight['seed_part']:.2f}: "
        in told[list(table.index).index("squad-plus-8")]
    )
    assert eight["low"] < eight["ours"] < eight["high"]
    assert eight["n"] == 3
    assert len(eight["run"].split()) == 6
    assert not eight["tuned"].startswith("not tested")
    assert eight["control"].startswith("(a) without ST-MoE block: ")
    assert eight["control_low"] < eight["control_ours"] < eight["control_high"]
    assert np.isfinite(eight["tuned_ours"])
    assert (
        verify.claims_table(recorded.model_copy(update={"arms": ["printed"]}))["tuned"]
        .iloc[-1]
        .endswith("there are no runs")
    )
    assert not table["verdict"]["headline"].startswith("not tested")
    assert table["printed"]["headline"] == "9 to 13"
    # the mixtures of this size do, the domains alone do not
    assert "at 0:100, 100:0" in table["verdict"]["beats-everywhere"]
    fifty = verify.claims_table(recorded).set_index("claim").loc["fifty-on-1600"]
    assert np.isnan(fifty["ours"]) and fifty["run"] == ()
    assert ", n=0: not tested" in told[list(table.index).index("fifty-on-1600")]
    frame = verify.claims_table(recorded)
    assert told[len(listed) : len(listed) + 2] == [
        verify.count_verdicts(frame),
        verify.describe_pooling(frame),
    ]
    assert told[len(listed)].startswith(f"{len(listed)} claims: ")


def test_a_score_is_shown_as_a_score(recorded, monkeypatch):
    """A claim about a score, not a difference: ours stands in the unit of what is printed, whatever its direction."""
    both = {"against": None, "ours": {"variant": "v-db", "order": "trainer"}, "target": 40.0}
    listed = [
        claim("equivalence", both, id="higher"),
        claim("equivalence", both | {"direction": "lower"}, id="lower"),
        claim(id="gain"),
        claim(contrast={"target": -1}, id="no-loss-of-1"),
    ]
    monkeypatch.setattr(claims_module, "read_claims", lambda slug, ratios: listed)
    a, b, gain, kept = (x for _, x in verify.claims_table(recorded).iterrows())
    # shifts the rule
    assert kept[["ours", "low", "high"]].tolist() == pytest.approx(
        gain[["ours", "low", "high"]].tolist()
    )
    values = [
        r["metrics"]["squad"]["em"]
        for s, r in runs.require_records(plans.plan(recorded))
        if (s.variant, s.ratio, s.arm) == ("v-db", 0.8, "printed")
    ]
    assert a["ours"] == pytest.approx(np.mean(values)) and a["low"] < a["ours"] < a["high"]
    assert b[["ours", "low", "high"]].tolist() == pytest.approx(a[["ours", "low", "high"]].tolist())
    assert a["seed_part"] == pytest.approx(np.std(values, ddof=1) / np.sqrt(3))
    # its pool has no other
    assert a["seed_part"] > 0


def test_verify_stops_where_the_ledger_on_disk_disagrees(recorded, capsys):
    file = runs.FIGURES / "exbert" / "real" / "results.csv"
    whole = file.read_text()
    for spoilt in (
        re.sub(r"(\d)\.(\d)", r"\1.9\2", whole, count=1),
        "".join(whole.splitlines(True)[:-1]),
    ):
        file.write_text(spoilt)
        assert run_verb(sys.argv) == 1
        assert "results.csv and the records disagree" in capsys.readouterr().out
    file.unlink()
    assert run_verb(sys.argv) == 0  # nothing on disk, nothing that disagrees


def test_a_report_without_runs_of_a_profile_has_no_verdicts(capsys, monkeypatch):
    quick = {"spec": {"profile": "quick"}}
    for profile in ("real", "paper"):
        monkeypatch.setattr(runs, "read_all", lambda report: [quick])
        monkeypatch.setattr("sys.argv", ["verify", "moe", "--profile", profile])
        assert run_verb(sys.argv) == 0
        said = capsys.readouterr().out
        assert (
            f"moe: no run of profile {profile} has been recorded, so none of its 41 claims is tested"
            in said
        )
    monkeypatch.setattr("sys.argv", ["verify", "moe", "--profile", "quick"])
    with pytest.raises(UserError, match="have no record"):
        run_verb(sys.argv)


def test_power_with_our_own_test_sets(recorded):
    table = verify.power_for_page(recorded)
    assert "seeds, ours" in table and (table["run"].map(len) == 1).all()
    # 30 questions a set
    assert table.set_index("claim").loc["mixed-gain", "seeds, ours"] == "no number"
    effects = power.power_table("exbert").set_index("claim")[
        "effect"
    ]  # of a score of 50 half in points
    assert effects["mixed-gain-relative"] == effects["mixed-gain"] / 2
