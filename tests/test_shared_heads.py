"""Heads that several datasets share, spans among them, and pairs that are one sequence (ROaD)."""

from functools import partial

import pytest
import torch
from test_multitask import make_spec

from qa_lib.data import selection
from qa_lib.models import encoders, heads, shared_encoder
from qa_lib.settings import parameters, params
from qa_lib.settings.parameters import Distillation, Heads, Multitask
from qa_lib.settings.params import UserError
from qa_lib.store import runs
from qa_lib.tasks import have_same_answers
from qa_lib.training import build, study, teachers, train

TASKS = {"search": "mrc", "news": "mrc", "nli": "nli", "sentiment": "sentiment"}
SHARED = Heads(pooling="cls", one_for="task", pairs="joined")


def show_nothing(line: str) -> None:
    """Take a line of a training's progress and show nothing."""


@pytest.fixture(autouse=True)
def named_heads(monkeypatch):
    """Let generated datasets name the head of their task."""
    read = params.read_datasets

    def read_with_heads(source, file=None):
        datasets = dict(read(source, file))
        for name, head in TASKS.items():
            datasets[name] = datasets[name].model_copy(update={"head": head})
        return datasets

    monkeypatch.setattr(params, "read_datasets", read_with_heads)


def make_shared(encoder: str, domains: list[str], **changes):
    """Return a run on datasets of several tasks, whose heads are shared."""
    draws = Multitask(schedule="draws", rounds=6, passes=2)
    fields = {"heads": SHARED, "multitask": draws, "epochs": 1.0, "max_length": 160, "stride": 32}
    return make_spec(encoder, domains=domains, **fields | changes)


def test_datasets_of_a_task_have_one_head(small_encoder):
    model, _ = build.build_model(make_shared(small_encoder, list(TASKS)))
    assert set(model.heads) == {"mrc", "nli", "sentiment"}
    assert model.name_head("search") == model.name_head("news") == "mrc"
    assert isinstance(model.heads["mrc"], heads.SpanHead)
    assert model.heads["nli"].linear.out_features == 3
    own = SHARED.model_copy(update={"one_for": "dataset"})
    model, _ = build.build_model(make_shared(small_encoder, list(TASKS), heads=own))
    assert set(model.heads) == set(TASKS)


def test_a_test_set_of_another_dataset_is_answered_by_the_trained_head_of_its_task(small_encoder):
    own = SHARED.model_copy(update={"one_for": "dataset"})
    tests = ["search", "news", "sentiment"]
    changes = {"heads": own, "multitask": None, "tests": tests}
    model, _ = build.build_model(make_shared(small_encoder, ["search"], **changes))
    assert set(model.heads) == {"search", "sentiment"}
    assert model.name_head("news") == "search"
    # both have heads of their own where both are trained
    both, _ = build.build_model(make_shared(small_encoder, ["search", "news"], heads=own))
    assert both.name_head("news") == "news"


def test_a_dataset_without_a_head_s_name_is_one_sentence(small_encoder):
    spec = make_shared(small_encoder, ["sentiment", "similarity"])
    with pytest.raises(UserError, match="^similarity names no head, and smart has one head for"):
        build.build_model(spec)


@pytest.fixture
def equal_numbers(monkeypatch):
    """Let two datasets that have two classes each, and not the same ones, name one head."""
    read = params.read_datasets

    def read_with_one_head(source, file=None):
        datasets = dict(read(source, file))
        answers = datasets["yesno"].classes
        for name, classes in (("yesno", answers), ("continuing", answers[::-1])):
            changes = {"head": "pairs", "classes": classes}
            datasets[name] = datasets[name].model_copy(update=changes)
        return datasets

    monkeypatch.setattr(params, "read_datasets", read_with_one_head)


SHARE_A_HEAD = "^yesno and continuing share the head .* have different answers .task, classes in"


@pytest.mark.parametrize(
    "changes",
    [
        {"domains": ["yesno", "continuing"]},
        {"domains": ["yesno"], "tests": ["continuing"]},
        {"domains": ["yesno"], "tests": ["continuing"], "heads": Heads(pairs="joined")},
    ],
)
def test_a_head_has_one_list_of_classes(changes, small_encoder, equal_numbers):
    """Their number alone would give one dataset the labels of the other."""
    spec = make_shared(small_encoder, **changes)
    for check in (build.build_model, lambda run: study.estimate_tokens(run, {})):
        with pytest.raises(UserError, match=SHARE_A_HEAD) as error:
            check(spec)
        assert "\n" not in str(error.value)


def test_a_teacher_s_head_has_the_student_s_classes(small_encoder, equal_numbers):
    teacher = make_shared(small_encoder, ["continuing"], variant="teacher")
    student = make_shared(small_encoder, ["yesno"], teachers=[teacher], distillation=Distillation())
    words = "cannot teach .*: its head for continuing has other classes than yesno, another order"
    with pytest.raises(UserError, match=words):
        teachers.find_own_dataset(student, teacher, "yesno")


def test_scores_of_joined_pairs_are_refused(small_encoder):
    """Their heads compare two texts."""
    joined = Heads(pairs="joined")
    spec = make_shared(small_encoder, ["similarity"], heads=joined, multitask=None)
    words = "^pairs: similarity is a dataset of scores, whose heads compare two texts that are read"
    for check in (build.build_model, lambda run: study.estimate_tokens(run, {})):
        with pytest.raises(UserError, match=words):
            check(spec)
    with pytest.raises(ValueError, match="relational: the relational layer reads two texts apart"):
        Heads(pairs="joined", relational="shared")


def test_the_name_of_a_head_is_no_part_of_a_fingerprint(monkeypatch):
    named = selection.fingerprint("search", "embedded", None)
    monkeypatch.undo()
    assert selection.fingerprint("search", "embedded", None) == named


def test_the_span_head_is_the_plain_span_model_s():
    """Loss, logits and the gradient of the encoder, with the same weights."""
    torch.manual_seed(0)
    encoder, _ = encoders.load_encoder("minilm", 1)
    plain = heads.SpanModel(encoder, head_dropout=0.0).eval()
    head = heads.SpanHead(encoder.config.hidden_size, dropout=0.0)
    head.linear.load_state_dict(plain.head.state_dict())
    shared = shared_encoder.SharedEncoder(encoder, {"mrc": head}).eval()
    batch = {
        "input_ids": torch.randint(1000, 2000, (3, 16)),
        "attention_mask": torch.ones(3, 16, dtype=torch.long),
        "start_positions": torch.tensor([0, 4, 7]),
        "end_positions": torch.tensor([0, 6, 7]),
    }
    batch["attention_mask"][1, 12:] = 0
    expected = plain(**batch)
    output = shared(**batch)
    assert torch.equal(output.start_logits, expected.start_logits)
    assert torch.equal(output.end_logits, expected.end_logits)
    torch.testing.assert_close(output.loss, expected.loss)
    (theirs,) = torch.autograd.grad(expected.loss, encoder.embeddings.word_embeddings.weight)
    (ours,) = torch.autograd.grad(output.loss, encoder.embeddings.word_embeddings.weight)
    torch.testing.assert_close(ours, theirs)


def test_a_joined_pair_is_one_sequence(small_encoder):
    spec = make_shared(small_encoder, ["nli", "sentiment"])
    model, tokenizer = build.build_model(spec)
    task = selection.find_task(spec, "nli")
    rows = selection.load_splits("nli", "embedded").train[:2]
    windows = task.tokenise_rows(rows, tokenizer, 64)
    expected = tokenizer(rows[0]["text"], rows[0]["text_pair"])
    assert windows["input_ids"][0] == expected["input_ids"]
    assert "pair_input_ids" not in windows
    batch = model.collate(tokenizer, task, "nli")(
        [{name: column[i] for name, column in windows.items()} for i in range(2)]
    )
    assert batch["token_type_ids"][0].sum() == sum(expected["token_type_ids"])
    assert model(**batch).logits.shape == (2, 3)
    apart = spec.model_copy(update={"heads": Heads(one_for="task")})
    assert "pair_input_ids" in selection.find_task(apart, "nli").tokenise_rows(rows, tokenizer, 64)


def test_spans_and_sentences_train_together_and_the_target_goes_on(small_encoder):
    """The shared encoder and the task's head go on; a target of another task has the seed's."""
    spec = make_shared(small_encoder, list(TASKS), tests=[], checkpoint="last")
    record = train.train(spec, progress=show_nothing, keep_weights=True)
    assert {"validation_f1_search", "validation_accuracy_nli"} <= set(record["history"][0])
    target = make_shared(
        small_encoder,
        ["news"],
        tests=["news", "search"],
        start=spec,
        multitask=None,
        variant="mtl",
        checkpoint="last",
    )
    weights = build.load_weights(spec)
    model, _ = build.build_model(target)
    assert set(model.heads) == {"mrc"}
    assert torch.equal(model.heads["mrc"].linear.weight, weights["heads.mrc.linear.weight"])
    record = train.train(target, progress=show_nothing)
    assert set(record["metrics"]) == {"news", "search"}
    assert {"em", "f1"} <= set(record["metrics"]["search"])
    assert len(runs.collect_examples([target])) == sum(
        record["metrics"][name]["n"] for name in ("news", "search")
    )


def test_classes_of_one_head_correspond_by_their_order():
    make_dataset = partial(parameters.Dataset, train=["x"], test=["y"])
    stars = make_dataset(task="classes", classes=["1 star", "2 stars", "3 stars"])
    words = make_dataset(task="classes", classes=["bad", "fair", "good"])
    turned = make_dataset(task="classes", classes=["good", "fair", "bad"])
    assert have_same_answers(stars, words)
    assert not have_same_answers(words, turned)
    fewer = make_dataset(task="classes", classes=["bad", "good"])
    assert not have_same_answers(words, fewer)
    scores = params.read_datasets("embedded")["similarity"]
    assert have_same_answers(scores, scores)
    assert not have_same_answers(scores, scores.model_copy(update={"range": [0.0, 1.0]}))
