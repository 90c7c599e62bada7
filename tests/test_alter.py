"""Altered test rows (qa_lib/data/alter.py), and datasets that hold them."""

import hashlib
import json
import random
import re
from collections import Counter

import pytest

from qa_lib.data import alter, corpora, selection
from qa_lib.reports import plans
from qa_lib.settings import params
from qa_lib.settings.params import UserError


def content_words(text: str) -> set[str]:
    """Return the words of a text in lower case, without stop words."""
    return set(re.findall(r"[a-z0-9]+", text.lower())) - corpora.load_words()["stop"]


TEXT = "A quiet harbour town keeps its oldest secrets under seven grey stone bridges ."


def make_row(text: str, second: str | None = None, id_: str = "a-1") -> dict:
    return {"id": id_, "text": text, "text_pair": second, "label": 3, "domain": "x"}


@pytest.mark.parametrize("rule", ["typos", "swaps"])
def test_a_row_gets_the_same_alteration_every_time(rule):
    row = make_row(TEXT, "Nobody in the village had seen such weather before .")
    (once,) = alter.alter_rows([row], rule)
    _, again = alter.alter_rows([make_row(TEXT, id_="other"), row], rule)
    assert once == again
    assert once["text"] != row["text"]
    assert once["text_pair"] != row["text_pair"]
    kept = ("id", "label", "domain")
    assert [once[field] for field in kept] == [row[field] for field in kept]
    assert row["text"] == TEXT  # the row itself stays as it was


def test_swaps_keep_all_words():
    (altered,) = alter.alter_rows([make_row(TEXT)], "swaps")
    assert Counter(altered["text"].split(" ")) == Counter(TEXT.split(" "))


def test_a_typing_mistake_keeps_the_ends_of_a_word_and_short_words():
    rng = random.Random(0)
    kinds = set()
    for _ in range(300):
        word = alter.mistype_word("harbour", rng)
        assert (word[0], word[-1]) == ("h", "r")
        kinds.add(len(word) - len("harbour"))
        if len(word) == len("harbour"):
            assert sorted(word) == sorted("harbour")
    assert kinds == {-1, 0, 1}  # left out, swapped, doubled
    assert alter.mistype_words("a b cd", random.Random(0)) == "a b cd"


def test_a_fifth_of_the_words_is_hit_and_at_least_one():
    rows = [make_row(" ".join(["cabinet"] * 40), id_=f"r-{i}") for i in range(100)]
    hit = 0
    for row in alter.alter_rows(rows, "typos"):
        hit += sum(word != "cabinet" for word in row["text"].split(" "))
    assert 0.15 < hit / 4000 < 0.22  # some swaps of equal letters would not show
    for i in range(50):
        (row,) = alter.alter_rows([make_row("great film", id_=f"s-{i}")], "swaps")
        assert row["text"] == "film great"
    assert alter.alter_rows([make_row("film")], "swaps")[0]["text"] == "film"


@pytest.mark.parametrize("rule", ["typos", "swaps"])
def test_an_altered_set_has_the_rows_of_the_set_that_it_is_part_of(rule):
    plain = selection.load_splits("sentiment", "embedded").test
    altered = selection.load_splits(f"sentiment-{rule}", "embedded").test
    assert alter.alter_rows(plain, rule) == [
        {**row, "domain": before["domain"]} for row, before in zip(altered, plain, strict=True)
    ]
    changed = sum(a["text"] != b["text"] for a, b in zip(plain, altered, strict=True))
    assert changed > 0.95 * len(plain)


def test_altering_is_of_test_rows_alone():
    for part in ("train", "validation"):
        plain = getattr(selection.load_splits("sentiment", "embedded"), part)
        altered = getattr(selection.load_splits("sentiment-typos", "embedded"), part)
        assert [row["text"] for row in plain] == [row["text"] for row in altered]


def test_what_is_altered_is_said_by_the_definition():
    definition = params.read_datasets("embedded")
    assert definition["sentiment-typos"].altered == "typos"
    assert definition["sentiment"].altered is None


def test_answers_in_a_context_are_not_altered():
    fields = {"train": ["x.jsonl"], "train_rows": 10, "altered": "typos"}
    with pytest.raises(UserError, match="altered: a dataset of the task span has none"):
        params.validate(params.Dataset, fields, dict.fromkeys(fields, "datasets.yaml: x: "))


@pytest.mark.parametrize("changes", [{"rows": None}, {"task": "classes", "classes": ["a", "b"]}])
def test_only_generated_questions_are_reworded(changes):
    fields = {"train": ["x"], "train_rows": 10, "rows": 20, "altered": "reworded"} | changes
    with pytest.raises(UserError, match="altered: only generated questions are reworded"):
        params.validate(params.Dataset, fields, dict.fromkeys(fields, "datasets.yaml: x: "))


# ---- reworded questions ----

# A change of these means that the wording changed: records of runs that were scored on it are of
# other rows.
REWORDED = {"encyclopaedia": "68f8e004dcd64783", "news": "308583762dd1d7d0"}


def generated_question(row: dict) -> dict:
    """Return what the passage of a row knows of its question."""
    register, seed, number, k = row["id"].split("-")
    return corpora._passage(register, int(seed), int(number))["questions"][int(k)]


@pytest.mark.parametrize("register", REWORDED)
def test_reworded_questions_are_frozen(register):
    rows = selection.load_splits(f"{register}-reworded", "embedded").test
    text = json.dumps([[row["id"], row["question"]] for row in rows])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == REWORDED[register]


@pytest.mark.parametrize("register", REWORDED)
def test_a_reworded_question_has_other_words_and_the_same_answer(register):
    plain = selection.load_splits(register, "embedded").test
    reworded = selection.load_splits(f"{register}-reworded", "embedded").test
    assert len(plain) == len(reworded) >= 24
    for before, after in zip(plain, reworded, strict=True):
        assert before | {"question": after["question"]} == after
        assert before["question"] != after["question"]
        name = generated_question(before)["name"]
        assert name.lower() in before["question"].lower()
        assert name.lower() in after["question"].lower()
    assert alter.alter_rows(plain[5:], "reworded") == reworded[5:]
    for part in ("train", "validation"):
        rows = getattr(selection.load_splits(f"{register}-reworded", "embedded"), part)
        assert rows == getattr(selection.load_splits(register, "embedded"), part)


@pytest.mark.parametrize("kind", corpora.load_rewordings())
def test_every_relation_has_two_wordings_that_no_generated_question_has(kind):
    relations = corpora.load_words()["kinds"][kind]
    wordings = corpora.load_rewordings()[kind]
    assert list(wordings) == corpora.load_words()["relations"][kind]
    asked = {form.lower() for relation in wordings for form in relations[relation]["ask"]}
    forms = [form for relation in wordings for form in wordings[relation]]
    assert asked.isdisjoint(form.lower() for form in forms)
    assert len(set(forms)) == len(forms) == 2 * len(wordings)
    for form in forms:
        assert form.count("{s}") == 1
        assert form.endswith("?")


@pytest.mark.parametrize("register", REWORDED)
def test_a_reworded_question_shares_no_more_words_with_its_sentence(register):
    """Else its answer would be easier to find."""
    shares = {"plain": [], "reworded": []}
    for row in corpora.draw_questions(register, 1200):
        question = generated_question(row)
        sentence = content_words(question["sentence"])
        for name, text in (
            ("plain", row["question"]),
            ("reworded", corpora.reword_question(row["id"])),
        ):
            words = content_words(text)
            shares[name].append(len(words & sentence) / len(words))
    mean = {name: sum(values) / len(values) for name, values in shares.items()}
    assert abs(mean["reworded"] - mean["plain"]) < 0.05
    assert mean["reworded"] <= 0.4


@pytest.mark.parametrize("identity", ["search-0-1-0", "dialogue-0-1-0", "r7", "poetry-0-0-0"])
def test_a_question_without_another_wording_is_one_sentence(identity):
    with pytest.raises(UserError, match=f"^row {identity} has no question .*: encyclopaedia, news"):
        corpora.reword_question(identity)


def test_smart_and_its_baselines_are_scored_on_altered_sentences():
    P = plans.load_params("smart", "quick")
    tests = {spec.variant: spec.tests for spec in plans.plan(P) if spec.arm == "printed"}
    for variant in ("finetune", "smart", "rrobin", "rrobin-smart"):
        assert tests[variant] == [*P.domains, "sentiment-typos", "sentiment-swaps"]
    assert tests["rrobin-full"] == P.domains


def test_an_altered_set_of_another_task_is_refused():
    with pytest.raises(UserError, match="altered_tests: similarity has pairs of the task score"):
        P = plans.load_params("smart", "quick", {"altered_tests": ["similarity"]})
        plans.plan(P)
