"""The embedded corpora: schema, determinism and the stated difficulty, all without a model."""

import hashlib
import itertools
import json
import re
from collections import Counter

import pytest

from qa_lib.data import corpora, sentences
from qa_lib.settings.params import UserError

ROWS = 1200
SCHEMA = {"id", "title", "context", "question", "answers", "is_impossible", "domain"}
# A change of these means that the text changed: bump corpora.VERSION, then write the new hashes.
GOLDEN = {
    "encyclopaedia": "b444cd26baa6edf4066784d4b7931f0e3c9a0a8a7f4637172bb674625ebbea51",
    "biomedicine": "ac8e87f0306568b386f787047cd775cbfd934d32a7078177fd6e7e335cde0566",
}
PROSE = [r for r in corpora.REGISTERS if r != "relations"]


def content(text):
    return set(re.findall(r"[a-z0-9]+", text.lower())) - corpora._load()["stop"]


def difficulty(rows):
    """How hard generated rows are, without a model: means over passages or over span questions.

    facts, facts_main (least), entities, words per passage; long: share with 400 words;
    distractors: other values and entities of the answer's type; overlap: share of the question's
    content words in the sentence that answers; answer_words; several: share with several answers.
    """
    passages, asked = {}, []
    for row in rows:
        register, seed, number, k = row["id"].split("-")
        p = passages[register, seed, number] = corpora._passage(register, int(seed), int(number))
        q, spec = p["questions"][int(k)], corpora._load()["kinds"][p["kind"]]
        if q["answers"] and q["answers"][0][1] not in ("yes", "no"):
            kind, words = spec[q["relation"]]["of"], content(q["question"])
            rivals = sum(spec[r]["of"] == kind for e in p["entities"] for r in e["facts"]) - 1
            asked.append(
                {
                    "distractors": rivals + (spec["name"] == kind) * len(p["entities"]),
                    "overlap": len(words & content(q["sentence"])) / len(words),
                    "answer_words": len(q["answers"][0][1].split()),
                    "several": len(q["answers"]) > 1,
                }
            )
    size = [
        {
            "words": (words := len(p["text"].split())),
            "long": words >= 400,
            "entities": len(p["entities"]),
            "facts": sum(len(e["facts"]) for e in p["entities"]),
        }
        for p in passages.values()
    ]
    out = {key: sum(x[key] for x in part) / len(part) for part in (size, asked) for key in part[0]}
    return out | {"facts_main": min(len(p["entities"][0]["facts"]) for p in passages.values())}


def vocabulary_overlap(rows_a, rows_b):
    """Jaccard of the content words that occur in 1 % of the contexts or more (so of no names)."""
    common = []
    for contexts in ({row["context"] for row in rows} for rows in (rows_a, rows_b)):
        count = Counter(word for context in contexts for word in content(context))
        common.append({word for word, n in count.items() if n >= 0.01 * len(contexts)})
    return len(common[0] & common[1]) / len(common[0] | common[1])


@pytest.fixture(scope="module")
def rows():
    return {register: corpora.qa(register, ROWS) for register in corpora.REGISTERS}


@pytest.mark.parametrize("register", GOLDEN)
def test_text_is_frozen_under_its_version(register):
    text = json.dumps(corpora.qa(register, 50), sort_keys=True)
    assert corpora.VERSION == "1"
    assert hashlib.sha256(text.encode()).hexdigest() == GOLDEN[register]


@pytest.mark.parametrize("register", corpora.REGISTERS)
def test_schema_offsets_and_uniqueness(rows, register):
    for row in rows[register]:
        assert set(row) == SCHEMA and row["domain"] == register
        texts, starts = row["answers"]["text"], row["answers"]["answer_start"]
        assert len(texts) == len(starts) and row["is_impossible"] == (not texts)
        for text, start in zip(texts, starts, strict=True):
            assert text and row["context"][start : start + len(text)] == text
        assert not set("{}[]") & set(row["context"] + row["question"]), "an unfilled template"
    assert len({row["id"] for row in rows[register]}) == ROWS
    assert len({(row["context"], row["question"]) for row in rows[register]}) == ROWS


@pytest.mark.parametrize("register", corpora.REGISTERS)
def test_rows_depend_on_seed_but_not_on_how_many(rows, register):
    corpora._passage.cache_clear()
    assert corpora.qa(register, 100) == rows[register][:100]
    assert corpora.qa(register, 100, seed=1) != rows[register][:100]


@pytest.mark.parametrize("register", corpora.REGISTERS)
def test_a_title_is_one_passage_so_splits_share_no_text(rows, register):
    contexts = {(row["title"], row["context"]) for row in rows[register]}
    assert len(contexts) == len({title for title, _ in contexts}) == len({c for _, c in contexts})
    per_context = Counter(row["context"] for row in rows[register][:-5])
    assert 3 <= sum(per_context.values()) / len(per_context) <= 5


@pytest.mark.parametrize("register", corpora.REGISTERS)
def test_stated_difficulty(rows, register):
    d = difficulty(rows[register])
    assert d["facts_main"] >= 5
    assert 8 <= d["facts"] <= 14
    assert d["entities"] >= 3
    assert d["distractors"] >= (1.5 if register in ("search", "dialogue") else 1.9)
    assert d["overlap"] <= (0.55 if register == "search" else 0.4)
    assert 1.4 <= d["answer_words"] <= 2.6 and d["several"] >= 0.05
    assert 45 <= d["words"] <= 110
    assert (0.01 <= d["long"] <= 0.06) if register in PROSE else d["long"] == 0


def test_difficulty_over_all_registers(rows):
    every = [difficulty(rows[register]) for register in corpora.REGISTERS]
    assert sum(d["distractors"] for d in every) / len(every) >= 2
    assert sum(d["overlap"] for d in every) / len(every) <= 0.4


def test_long_passages_overflow_a_window_of_384_tokens(rows):
    words = [len(row["context"].split()) for row in rows["encyclopaedia"]]
    assert 400 <= max(words) <= 600 and sorted(words)[len(words) // 2] <= 90


def test_registers_differ_in_vocabulary(rows):
    overlap = {
        pair: vocabulary_overlap(rows[pair[0]], rows[pair[1]])
        for pair in itertools.combinations(corpora.REGISTERS, 2)
    }
    assert max(overlap.values()) <= 0.4 and sum(overlap.values()) / len(overlap) <= 0.2
    assert vocabulary_overlap(rows["news"], rows["news"]) == 1


def test_only_the_dialogue_has_unanswerable_and_yes_no_questions(rows):
    for register in corpora.REGISTERS:
        kinds = Counter(
            "none" if row["is_impossible"] else row["answers"]["text"][0] for row in rows[register]
        )
        if register == "dialogue":
            assert min(kinds["yes"], kinds["no"]) >= 0.05 * ROWS <= kinds["none"] <= 0.25 * ROWS
        else:
            assert not kinds["yes"] + kinds["no"] + kinds["none"]


def test_unknown_register_is_the_users_mistake():
    with pytest.raises(UserError, match="poetry"):
        corpora.qa("poetry", 1)


@pytest.mark.parametrize("task, labels", [("nli", 3), ("paraphrase", 2), ("sentiment", 5)])
def test_classes_are_balanced(task, labels):
    rows = getattr(sentences, task)(600)
    assert Counter(row["label"] for row in rows) == {k: 600 // labels for k in range(labels)}


@pytest.mark.parametrize("task", ["nli", "paraphrase", "similarity", "sentiment"])
def test_sentence_rows(task):
    make = getattr(sentences, task)
    rows = make(300)
    assert make(100) == rows[:100] and make(100, seed=1) != rows[:100]
    assert len({row["id"] for row in rows}) == 300
    keys = {"sentence"} if task == "sentiment" else {"sentence1", "sentence2"}
    for row in rows:
        assert set(row) == keys | {"id", "label"}
        assert all(row[key] and not set("{}[]") & set(row[key]) for key in keys)
    pairs = [tuple(row[key] for key in sorted(keys)) for row in rows]
    assert len(set(pairs)) >= (200 if task == "sentiment" else 300)


def test_similarity_covers_its_scale():
    scores = [row["label"] for row in sentences.similarity(600)]
    assert 0 <= min(scores) <= 0.5 and 4.5 <= max(scores) <= 5
    assert abs(sum(scores) / len(scores) - 2.5) < 0.2
