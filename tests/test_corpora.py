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


def content_words(text):
    """Return the words of a text in lower case, without stop words."""
    return set(re.findall(r"[a-z0-9]+", text.lower())) - corpora.load_words()["stop"]


def question_difficulty(passage, question) -> dict:
    """Return how hard a question with an answer from its passage is.

    distractors: other values and entities of the answer's type; overlap: share of the question's
    content words in the sentence that answers; answer_words; several: whether it has several
    answers.
    """
    spec = corpora.load_words()["kinds"][passage["kind"]]
    kind = spec[question["relation"]]["of"]
    distractors = -1  # the answer itself is none
    for entity in passage["entities"]:
        distractors += sum(spec[relation]["of"] == kind for relation in entity["facts"])
    if spec["name"] == kind:
        distractors += len(passage["entities"])
    words = content_words(question["question"])
    return {
        "distractors": distractors,
        "overlap": len(words & content_words(question["sentence"])) / len(words),
        "answer_words": len(question["answers"][0][1].split()),
        "several": len(question["answers"]) > 1,
    }


def passage_size(passage) -> dict:
    """Return words, entities and facts of a passage, and whether it has 400 words (long)."""
    words = len(passage["text"].split())
    return {
        "words": words,
        "long": words >= 400,
        "entities": len(passage["entities"]),
        "facts": sum(len(entity["facts"]) for entity in passage["entities"]),
    }


def mean_values(rows: list[dict]) -> dict:
    """Return the mean of each value over rows with the same keys."""
    return {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}


def mean_difficulty(rows) -> dict:
    """Return how hard generated rows are, without a model.

    The values are means over passages or over questions with an answer from the passage. Only
    facts_main is the least number of facts of a passage's first entity.
    """
    passages = {}
    questions = []
    for row in rows:
        register, seed, number, k = row["id"].split("-")
        passage = corpora._passage(register, int(seed), int(number))
        passages[register, seed, number] = passage
        question = passage["questions"][int(k)]
        if question["answers"] and question["answers"][0][1] not in ("yes", "no"):
            questions.append(question_difficulty(passage, question))
    sizes = [passage_size(passage) for passage in passages.values()]
    facts_main = min(len(passage["entities"][0]["facts"]) for passage in passages.values())
    return {**mean_values(sizes), **mean_values(questions), "facts_main": facts_main}


def common_words(rows) -> set[str]:
    """Return the content words of 1 % of the contexts or more, which are no names."""
    contexts = {row["context"] for row in rows}
    count = Counter()
    for context in contexts:
        count.update(content_words(context))
    return {word for word, n in count.items() if n >= 0.01 * len(contexts)}


def vocabulary_overlap(rows_a, rows_b) -> float:
    """Jaccard index of the common words of two sets of rows."""
    a = common_words(rows_a)
    b = common_words(rows_b)
    return len(a & b) / len(a | b)


@pytest.fixture(scope="module")
def rows():
    """Return generated rows of each register."""
    return {register: corpora.draw_questions(register, ROWS) for register in corpora.REGISTERS}


@pytest.mark.parametrize("register", GOLDEN)
def test_text_is_frozen_under_its_version(register):
    text = json.dumps(corpora.draw_questions(register, 50), sort_keys=True)
    assert corpora.VERSION == "1"
    assert hashlib.sha256(text.encode()).hexdigest() == GOLDEN[register]


@pytest.mark.parametrize("register", corpora.REGISTERS)
def test_rows_are_unique_and_have_the_schema_and_right_offsets(rows, register):
    for row in rows[register]:
        assert set(row) == SCHEMA
        assert row["domain"] == register
        texts = row["answers"]["text"]
        starts = row["answers"]["answer_start"]
        assert len(texts) == len(starts)
        assert row["is_impossible"] == (not texts)
        for text, start in zip(texts, starts, strict=True):
            assert text
            assert row["context"][start : start + len(text)] == text
        assert not set("{}[]") & set(row["context"] + row["question"]), "an unfilled template"
    assert len({row["id"] for row in rows[register]}) == ROWS
    assert len({(row["context"], row["question"]) for row in rows[register]}) == ROWS


@pytest.mark.parametrize("register", corpora.REGISTERS)
def test_rows_depend_on_seed_but_not_on_how_many(rows, register):
    corpora._passage.cache_clear()
    assert corpora.draw_questions(register, 100) == rows[register][:100]
    assert corpora.draw_questions(register, 100, seed=1) != rows[register][:100]


@pytest.mark.parametrize("register", corpora.REGISTERS)
def test_a_title_is_one_passage_so_splits_share_no_text(rows, register):
    pairs = {(row["title"], row["context"]) for row in rows[register]}
    assert len(pairs) == len({title for title, _ in pairs})
    assert len(pairs) == len({context for _, context in pairs})
    per_context = Counter(row["context"] for row in rows[register][:-5])
    assert 3 <= sum(per_context.values()) / len(per_context) <= 5


@pytest.mark.parametrize("register", corpora.REGISTERS)
def test_rows_are_as_hard_as_stated(rows, register):
    d = mean_difficulty(rows[register])
    assert d["facts_main"] >= 5
    assert 8 <= d["facts"] <= 14
    assert d["entities"] >= 3
    assert d["distractors"] >= (1.5 if register in ("search", "dialogue") else 1.9)
    assert d["overlap"] <= (0.55 if register == "search" else 0.4)
    assert 1.4 <= d["answer_words"] <= 2.6
    assert d["several"] >= 0.05
    assert 45 <= d["words"] <= 110
    if register in PROSE:
        assert 0.01 <= d["long"] <= 0.06
    else:
        assert d["long"] == 0


def test_all_registers_together_are_as_hard_as_stated(rows):
    mean = mean_values([mean_difficulty(rows[register]) for register in corpora.REGISTERS])
    assert mean["distractors"] >= 2
    assert mean["overlap"] <= 0.4


def test_long_passages_overflow_a_window_of_384_tokens(rows):
    words = [len(row["context"].split()) for row in rows["encyclopaedia"]]
    assert 400 <= max(words) <= 600
    assert sorted(words)[len(words) // 2] <= 90


def test_registers_differ_in_vocabulary(rows):
    pairs = itertools.combinations(corpora.REGISTERS, 2)
    overlaps = [vocabulary_overlap(rows[a], rows[b]) for a, b in pairs]
    assert max(overlaps) <= 0.4
    assert sum(overlaps) / len(overlaps) <= 0.2
    assert vocabulary_overlap(rows["news"], rows["news"]) == 1


def test_only_the_dialogue_has_unanswerable_and_yes_no_questions(rows):
    for register in corpora.REGISTERS:
        impossible = sum(row["is_impossible"] for row in rows[register])
        answers = Counter(
            row["answers"]["text"][0] for row in rows[register] if row["answers"]["text"]
        )
        if register == "dialogue":
            assert answers["yes"] >= 0.05 * ROWS
            assert answers["no"] >= 0.05 * ROWS
            assert 0.05 * ROWS <= impossible <= 0.25 * ROWS
        else:
            assert not answers["yes"] + answers["no"] + impossible


def test_unknown_register_is_the_users_mistake():
    with pytest.raises(UserError, match="poetry"):
        corpora.draw_questions("poetry", 1)


@pytest.mark.parametrize("task, labels", [("nli", 3), ("paraphrase", 2), ("sentiment", 5)])
def test_classes_are_balanced(task, labels):
    rows = getattr(sentences, task)(600)
    assert Counter(row["label"] for row in rows) == {k: 600 // labels for k in range(labels)}


@pytest.mark.parametrize("task", ["nli", "paraphrase", "similarity", "sentiment"])
def test_sentence_rows_are_unique_and_depend_on_the_seed(task):
    make = getattr(sentences, task)
    rows = make(300)
    assert make(100) == rows[:100]
    assert make(100, seed=1) != rows[:100]
    assert len({row["id"] for row in rows}) == 300
    keys = {"sentence"} if task == "sentiment" else {"sentence1", "sentence2"}
    for row in rows:
        assert set(row) == keys | {"id", "label"}
        for key in keys:
            assert row[key]
            assert not set("{}[]") & set(row[key]), "an unfilled template"
    pairs = [tuple(row[key] for key in sorted(keys)) for row in rows]
    assert len(set(pairs)) >= (200 if task == "sentiment" else 300)


def test_similarity_covers_its_scale():
    scores = [row["label"] for row in sentences.similarity(600)]
    assert 0 <= min(scores) <= 0.5
    assert 4.5 <= max(scores) <= 5
    assert abs(sum(scores) / len(scores) - 2.5) < 0.2
