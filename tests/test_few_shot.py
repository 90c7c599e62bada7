"""MoE beyond the report.

Altered copies, out-of-domain experts, experts by clusters of questions, and equal trials.
"""

import random
import re
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from qa_lib.data import augment, selection
from qa_lib.reports import plans
from qa_lib.settings.spec import Spec
from qa_lib.store import runs
from qa_lib.training import clusters, train
from tests.test_moe import plan_moe


def few_shot_rows() -> list[dict]:
    """Return the training rows of the three datasets with few examples."""
    rows = []
    for name in ("plots", "exams", "dialogue"):
        rows += selection.load_splits(name, "embedded").train
    return rows


def assert_answers_in_place(row: dict, message=None) -> None:
    """Assert that each answer of a row stands at its place in the context."""
    answers = row["answers"]
    for text, start in zip(answers["text"], answers["answer_start"], strict=True):
        assert row["context"][start : start + len(text)] == text, message


@pytest.mark.parametrize(
    "words, left", [(1, 1), (2, 2), (3, 3), (4, 3), (12, 12 - round(augment.DROP * 11))]
)
def test_a_question_loses_a_share_of_its_words_and_swaps_one_pair(words, left):
    """The first word stays; of two others none is dropped."""
    question = [str(i) for i in range(words)]
    texts = set()
    for seed in range(20):
        reworded = augment.reword_question(" ".join(question), random.Random(seed))
        order = [int(word) for word in reworded.split()]
        assert order[0] == 0
        assert len(order) == len(set(order)) == left
        descents = sum(after < before for before, after in pairwise(order))
        assert descents == (1 if left > 2 else 0)
        texts.add(reworded)
    assert len(texts) > 1 or words < 4


def test_altered_copies_keep_their_answers():
    rows = few_shot_rows()
    copies = augment.make_copies(rows, 3, seed=0)
    assert len(copies) == 3 * len(rows)
    assert len({r["id"] for r in rows + copies}) == 4 * len(rows)
    assert copies == augment.make_copies(few_shot_rows(), 3, seed=0)
    assert copies != augment.make_copies(few_shot_rows(), 3, seed=1)
    # the copies of a row differ, too
    texts = {(copy["context"], copy["question"]) for copy in copies}
    assert len(texts) > 0.9 * len(copies)
    moved = 0
    for i, new in enumerate(copies):
        old = rows[i // 3]
        assert_answers_in_place(new)
        assert new["answers"]["text"] == old["answers"]["text"]
        assert new["domain"] == old["domain"]
        # the same sentences, and a question with fewer words
        split = augment.SENTENCE.split
        assert Counter(split(new["context"])) == Counter(split(old["context"]))
        old_words = old["question"].split()
        new_words = new["question"].split()
        assert not Counter(new_words) - Counter(old_words)
        assert new_words[0] == old_words[0]
        assert len(new_words) < len(old_words)
        moved += old["context"] != new["context"]
    assert moved > len(copies) / 2


def test_altered_copies_follow_from_the_seed_of_the_run(monkeypatch):
    rows = few_shot_rows()[:6]
    monkeypatch.setattr(selection, "draw_mixture", lambda spec: (rows, [], Counter()))
    spec = next(s for s in plan_moe(experiments=["few-shot"]) if s.augment)
    drawn = []
    for seed in (0, 0, 1):
        drawn.append(train.draw_rows(spec.model_copy(update={"seed": seed}))[0])
    assert drawn[0] == drawn[1]
    assert drawn[0][:6] == drawn[2][:6] == rows
    assert drawn[0][6:] != drawn[2][6:]


def test_answers_that_cross_or_repeat_stay():
    """A sentence that holds any part of an answer keeps its place, in 300 random texts.

    That is so whatever separates the sentences.
    """
    rng = random.Random(0)
    for _ in range(300):
        text = ""
        for _ in range(8):
            text += rng.choice(["ab", "c d", "e", "Mr. f"])
            text += rng.choice([". ", "! ", ".\n\n", " ", "?"])
        spans = [sorted(rng.sample(range(len(text)), 2)) for _ in range(rng.randint(1, 3))]
        answers = {
            "text": [text[a:b] for a, b in spans],
            "answer_start": [a for a, _ in spans],
        }
        row = {"id": "x", "context": text, "question": "q", "answers": answers}
        new = augment.shuffle_sentences(row, rng)
        assert_answers_in_place(new, (text, spans))
        assert sorted(re.sub(r"\s", "", new["context"])) == sorted(re.sub(r"\s", "", text))


def test_clusters_share_out_the_rows():
    specs = [s for s in plan_moe(experiments=["clusters"]) if s.cluster]
    rows, validation, _ = selection.draw_mixture(specs[0])
    train_parts = []
    validation_parts = []
    for spec in specs:
        train_part, validation_part = clusters.select_cluster(spec, rows, validation)
        train_parts.append(train_part)
        validation_parts.append(validation_part)
    assert len(specs) == 3
    assert len({s.hash for s in specs}) == 3
    for parts, whole in ((train_parts, rows), (validation_parts, validation)):
        assert sorted(r["id"] for r in sum(parts, [])) == sorted(r["id"] for r in whole)
    # where a cluster has no validation row, it takes all rather than none
    for few in (validation_parts[1][:1], []):
        assert clusters.select_cluster(specs[0], rows, few)[1] == few


def test_padding_has_no_part_in_a_question_s_state():
    questions = ["Who built it?", "Who built the old mill that stands behind the church?"]
    both = clusters.pool_states("minilm", questions)
    alone = clusters.pool_states("minilm", questions[:1])
    assert np.allclose(both[0], alone[0], atol=1e-5)


def test_clusters_follow_from_the_seed(monkeypatch):
    rows = [{"question": str(i)} for i in range(60)]
    states = np.random.default_rng(0).normal(size=(60, 4))
    monkeypatch.setattr(clusters, "pool_states", lambda encoder, questions: states)
    spec = next(s for s in plan_moe(experiments=["clusters"]) if s.cluster)
    drawn = []
    for seed in (0, 0, 1):
        own, _ = clusters.select_cluster(spec.model_copy(update={"seed": seed}), rows, [])
        drawn.append(own)
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]


def test_questions_belong_to_the_nearest_cluster():
    """A question is nearest to the mean of its own cluster, as in k-means."""
    specs = [s for s in plan_moe(experiments=["clusters"]) if s.cluster]
    rows, validation, _ = selection.draw_mixture(specs[0])
    x = clusters.pool_states("minilm", [r["question"] for r in rows])
    assert np.allclose(np.linalg.norm(x, axis=1), 1, atol=1e-5)
    states = dict(zip([r["id"] for r in rows], x, strict=True))
    parts = []
    for spec in specs:
        part, _ = clusters.select_cluster(spec, rows, validation)
        parts.append(np.stack([states[r["id"]] for r in part]))
    means = np.stack([part.mean(0) for part in parts])
    nearest = []
    for k, part in enumerate(parts):
        distances = np.linalg.norm(part[:, None] - means, axis=2)
        nearest += list(distances.argmin(1) == k)
    assert len(nearest) == len(rows)
    assert np.mean(nearest) > 0.98


def test_altered_copies_get_as_many_steps():
    specs = {s.variant: s for s in plan_moe(experiments=["few-shot"])}
    plain = specs["few-shot"]
    more = specs["few-shot-augmented"]
    for spec in (plain, more):
        assert [parent.hash for parent in spec.parents] == [specs["baseline"].hash]
    rows_of_more = sum(more.rows) * (1 + more.augment)
    assert plain.epochs * sum(plain.rows) == pytest.approx(more.epochs * rows_of_more)


def test_equal_trials_choose_the_settings_of_every_model(monkeypatch):
    """Four models are tried with every rate and every number of epochs.

    The experts of a mixture are trained at the rate of its trial.
    """
    monkeypatch.setattr(selection, "fingerprint", lambda *a: "f")
    changes = {"data": "data", "arms": ["tuned"], "seeds": [0, 1]}
    p = plans.load_params("moe", "real", changes, "full")
    best = {
        "baseline": (1e-4, 3),
        "moe": (1e-4, 4),
        "reinit-4": (3e-4, 3),
        "moe-reinit-4": (1e-4, 4),
    }

    def read_setting(spec: Spec) -> tuple[float, float]:
        trained = spec.parents[0] if spec.gate else spec
        return trained.learning_rate, trained.epochs

    def find_record(spec, fresh=False):
        # whether experts are recorded changes no choice
        if spec.variant.startswith("expert"):
            return None
        is_best = best[spec.variant.removesuffix("-trial")] == read_setting(spec)
        kept = {
            "step": 3,
            "validation_f1": 60.0,
            "validation_em": 41.0 if is_best else 40.0,
            "validation_loss": 1.0,
        }
        # an evaluation whose weights were not kept
        other = kept | {"validation_f1": 50.0, "validation_em": 90.0}
        return {"history": [kept, other] if spec.checkpoint == "best" else [other, kept]}

    monkeypatch.setattr(runs, "find_record", lambda spec, fresh=False: None)
    trials = plans.plan(p)
    deciding = [s for s in trials if not s.variant.startswith("expert")]
    assert len(deciding) == 4 * 3 * 2
    assert not any(s.tests for s in trials)
    assert all(s.variant.endswith("-trial") for s in trials)
    hashes = {s.hash for s in trials}
    for spec in deciding:
        assert {parent.hash for parent in spec.parents} <= hashes
    monkeypatch.setattr(runs, "find_record", find_record)
    specs = plans.plan(p)
    # the best rate of reinit-4 lay on the edge, so the grid goes on
    assert max(s.learning_rate for s in specs if not s.gate) == 6e-4
    final = [s for s in specs if not s.variant.endswith("-trial")]
    chosen = [s for s in final if not s.variant.startswith("expert")]
    of_models = {s.variant: read_setting(s) for s in chosen if s.variant in best}
    assert of_models == best
    # the controls are of the mixture's own experts
    controls = {read_setting(s) for s in chosen if s.variant not in best}
    assert controls == {best["moe"]}
    assert {s.seed for s in final} == {0, 1}
    assert all(s.arm == "tuned" and s.tests for s in final)


def test_out_of_domain_experts_go_on_from_the_baseline():
    specs = plan_moe(experiments=["outside"])
    mixture = {s.variant: s for s in specs}["moe-outside"]
    assert [e.domains for e in mixture.parents] == [[d] for d in mixture.domains]
    assert len(mixture.parents) == 6
    assert [e.parents[0].variant for e in mixture.parents] == ["start"] * 3 + ["baseline"] * 3
    assert mixture.validation_rows == 0
    # few-shot validation rows are test rows
    assert mixture.rows == [12] * 3 + [12] * 3
