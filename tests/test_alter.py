"""Altered test sentences (qa_lib/data/alter.py), and datasets that hold them."""

import random
from collections import Counter

import pytest

from qa_lib.data import alter, selection
from qa_lib.reports import plans
from qa_lib.settings import params
from qa_lib.settings.params import UserError

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
