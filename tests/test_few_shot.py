"""MoE beyond the report: altered copies, out-of-domain experts, experts by clusters of questions, equal trials."""

import random
import re
from collections import Counter

import numpy as np
import pytest

from qa_lib.data import augment, selection
from qa_lib.reports import plans
from qa_lib.settings.spec import Spec
from qa_lib.store import runs
from qa_lib.training import clusters
from tests.test_moe import whole_plan


def few() -> list[dict]:
    return [
        r
        for name in ("plots", "exams", "dialogue")
        for r in selection.load_splits(name, "embedded").train
    ]


def test_altered_copies_keep_their_answers():
    rows, copies = few(), augment.make_copies(few(), 3, seed=0)
    assert len(copies) == 3 * len(rows) and len({r["id"] for r in rows + copies}) == 4 * len(rows)
    assert copies == augment.make_copies(few(), 3, seed=0) != augment.make_copies(few(), 3, seed=1)
    moved = 0
    for i, new in enumerate(copies):
        old = rows[i // 3]
        for text, start in zip(new["answers"]["text"], new["answers"]["answer_start"], strict=True):
            assert new["context"][start : start + len(text)] == text
        assert new["answers"]["text"] == old["answers"]["text"] and new["domain"] == old["domain"]
        parts = [Counter(augment.SENTENCE.split(r["context"])) for r in (old, new)]
        assert parts[0] == parts[1]
        words = [r["question"].split() for r in (old, new)]
        assert not Counter(words[1]) - Counter(words[0])
        assert words[0][0] == words[1][0]
        assert len(words[1]) < len(words[0])
        moved += old["context"] != new["context"]
    assert moved > len(copies) / 2


def test_answers_that_cross_or_repeat_stay():
    """Over random texts: a sentence that holds any part of an answer keeps its place, whatever separates sentences."""
    rng = random.Random(0)
    for _ in range(300):
        text = "".join(
            rng.choice(["ab", "c d", "e", "Mr. f"]) + rng.choice([". ", "! ", ".\n\n", " ", "?"])
            for _ in range(8)
        )
        spans = [sorted(rng.sample(range(len(text)), 2)) for _ in range(rng.randint(1, 3))]
        row = {
            "id": "x",
            "context": text,
            "question": "q",
            "answers": {
                "text": [text[a:b] for a, b in spans],
                "answer_start": [a for a, _ in spans],
            },
        }
        new = augment.shuffle_sentences(row, rng)
        for said, start in zip(new["answers"]["text"], new["answers"]["answer_start"], strict=True):
            assert new["context"][start : start + len(said)] == said, (text, spans)
        assert sorted(re.sub(r"\s", "", new["context"])) == sorted(re.sub(r"\s", "", text))


def test_clusters_share_out_the_rows():
    specs = [s for s in whole_plan(experiments=["clusters"]) if s.cluster]
    rows, validation, _ = selection.draw_mixture(specs[0])
    found = [clusters.select_cluster(s, rows, validation) for s in specs]
    assert len(specs) == 3 and len({s.hash for s in specs}) == 3
    for k, whole in enumerate((rows, validation)):
        ids = [r["id"] for part in found for r in part[k]]
        assert sorted(ids) == sorted(r["id"] for r in whole)
    for few in (found[1][1][:1], []):
        assert clusters.select_cluster(specs[0], rows, few)[1] == few  # all rather than none
    x = clusters.pool_states("minilm", [r["question"] for r in rows])
    assert np.allclose(np.linalg.norm(x, axis=1), 1, atol=1e-5)
    place = {r["id"]: i for i, r in enumerate(rows)}
    means = [
        x[[place[r["id"]] for r in part[0]]].mean(0) for part in found
    ]  # k-means: nearest to the mean of one's own
    nearest = [
        np.argmin([np.linalg.norm(x[place[r["id"]]] - m) for m in means]) == k
        for k, part in enumerate(found)
        for r in part[0]
    ]
    assert np.mean(nearest) > 0.98


def test_altered_copies_get_as_many_steps():
    by = {s.variant: s for s in whole_plan(experiments=["few-shot"])}
    plain, more = by["few-shot"], by["few-shot-augmented"]
    assert plain.parents == more.parents == [by["baseline"]]
    assert plain.epochs * sum(plain.rows) == pytest.approx(
        more.epochs * sum(more.rows) * (1 + more.augment)
    )


def test_equal_trials(monkeypatch):
    """Four models, each with every rate and epochs, experts at the trial's rate; then what the best of them say."""
    monkeypatch.setattr(selection, "fingerprint", lambda *a: "f")
    p = plans.load_params(
        "moe", "real", {"data": "data", "arms": ["tuned"], "seeds": [0, 1]}, "full"
    )
    best = {
        "baseline": (1e-4, 3),
        "moe": (1e-4, 4),
        "reinit-4": (3e-4, 3),
        "moe-reinit-4": (1e-4, 4),
    }

    def at(spec: Spec) -> tuple[float, float]:
        own = spec.parents[0] if spec.gate else spec
        return own.learning_rate, own.epochs

    def find(spec, fresh=False):
        if spec.variant.startswith("expert"):
            return None  # whether experts are recorded changes no choice
        right = best[spec.variant.removesuffix("-trial")] == at(spec)
        kept = {
            "step": 3,
            "validation_f1": 60.0,
            "validation_em": 40.0 + right,
            "validation_loss": 1.0,
        }
        other = kept | {
            "validation_f1": 50.0,
            "validation_em": 90.0,
        }  # a look whose weights were not kept
        return {"history": [kept, other] if spec.checkpoint == "best" else [other, kept]}

    monkeypatch.setattr(runs, "find_record", lambda spec, fresh=False: None)
    trials = plans.plan(p)
    deciding = [s for s in trials if not s.variant.startswith("expert")]
    assert len(deciding) == 4 * 3 * 2
    assert not any(s.tests for s in trials)
    assert all(s.variant.endswith("-trial") for s in trials)
    assert all(e.hash in {s.hash for s in trials} for s in deciding for e in s.parents)
    monkeypatch.setattr(runs, "find_record", find)
    specs = plans.plan(p)
    # reinit-4's best lay on the edge
    assert max(s.learning_rate for s in specs if not s.gate) == 6e-4
    final = [s for s in specs if not s.variant.endswith("-trial")]
    assert {s.variant: at(s) for s in final if not s.variant.startswith("expert")} == best
    assert {s.seed for s in final} == {0, 1} and all(s.arm == "tuned" and s.tests for s in final)


def test_out_of_domain_experts_go_on_from_the_baseline():
    specs = whole_plan(experiments=["outside"])
    by = {s.variant: s for s in specs}
    mixture = by["moe-outside"]
    assert [e.domains for e in mixture.parents] == [[d] for d in mixture.domains]
    assert len(mixture.parents) == 6
    assert [e.parents[0].variant for e in mixture.parents] == ["start"] * 3 + ["baseline"] * 3
    assert mixture.validation_rows == 0
    # few-shot validation rows are test rows
    assert mixture.rows == [64] * 3 + [24] * 3
