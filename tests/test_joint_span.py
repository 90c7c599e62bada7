"""ELECTRA's joint span head: size, loss, beam, and a training on rows that may have no answer."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from test_multitask import compare_records, make_spec, train_twice
from test_shared_heads import show_nothing

from qa_lib.data import selection
from qa_lib.models import heads
from qa_lib.settings import params
from qa_lib.settings.parameters import Dataset, Heads, Multitask, Smart
from qa_lib.settings.params import UserError
from qa_lib.tasks import span
from qa_lib.training import build, evaluate, train

JOINT = Heads(span="joint")
# A seventh of these questions has no answer.
TALKS = Dataset(train=["dialogue"], rows=400, train_rows=100, validation_share=0.5, test_rows=60)
TOKENS = 12
DIM = 6


def make_head(beam: int = 20) -> heads.JointSpanHead:
    """Return a head in double precision with weights that are not small."""
    torch.manual_seed(0)
    head = heads.JointSpanHead(DIM, dropout=0.0, hidden=5, beam=beam).double().eval()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    return head


def make_batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return states, candidates and labels of three windows; the second lacks the answer."""
    torch.manual_seed(1)
    states = torch.randn(3, TOKENS, DIM, dtype=torch.float64)
    candidates = torch.ones(3, TOKENS, dtype=torch.long)
    candidates[:, 1:4] = 0  # the question
    candidates[1, 9:] = 0  # padding
    return states, candidates, torch.tensor([[4, 6], [0, 0], [7, 7]])


def read_layers(layers: torch.nn.Sequential, x: np.ndarray) -> float:
    """Return a dense layer with GELU and one logit behind it, as a plain sum."""
    first, last = layers[0], layers[2]
    hidden = first.weight.detach().numpy() @ x + first.bias.detach().numpy()
    gelu = np.array([h * (1 + math.erf(h / math.sqrt(2))) / 2 for h in hidden])
    return float(last.weight.detach().numpy()[0] @ gelu + last.bias.item())


def log_softmax(logits: dict[int, float]) -> dict[int, float]:
    """Return the log-probability of every token that has a logit."""
    total = math.log(sum(math.exp(logit) for logit in logits.values()))
    return {token: logit - total for token, logit in logits.items()}


def score_plainly(head, states: np.ndarray, candidates: np.ndarray) -> tuple[dict, dict, float]:
    """Return log p(i), log p(j | i) by (i, j), and the logit of "no answer" of one window."""
    tokens = np.flatnonzero(candidates)
    weight = head.start.weight.detach().numpy()[0]
    starts = log_softmax({i: float(weight @ states[i] + head.start.bias.item()) for i in tokens})
    ends = {}
    for i in tokens:
        pairs = {j: np.concatenate([states[i], states[j]]) for j in tokens}
        logits = {j: read_layers(head.end, pair) for j, pair in pairs.items()}
        ends |= {(i, j): value for j, value in log_softmax(logits).items()}
    expected = sum(math.exp(value) * states[i] for i, value in starts.items())
    return starts, ends, read_layers(head.null, np.concatenate([states[0], expected]))


def test_the_head_has_the_published_size():
    """2,100,227 parameters at a width of 1024, where the simple head has 2,050."""
    assert sum(p.numel() for p in heads.JointSpanHead(1024).parameters()) == 2_100_227
    assert sum(p.numel() for p in heads.SpanHead(1024).parameters()) == 2_050


@pytest.mark.parametrize("training", [True, False])
def test_the_loss_is_a_plain_loop_s(training):
    head = make_head().train(training)
    states, candidates, labels = make_batch()
    output = head(states, candidates, labels)
    expected = []
    for window in range(3):
        starts, ends, null = score_plainly(head, states[window].numpy(), candidates[window].numpy())
        first, last = labels[window].tolist()
        probability = 1 / (1 + math.exp(-null))
        of_null = -math.log(probability if first == 0 else 1 - probability)
        expected.append((-starts[first] - ends[first, last]) / 2 + 0.5 * of_null)
        assert output.null_logits[window].item() == pytest.approx(null)
    assert output.loss.item() == pytest.approx(np.mean(expected))
    assert (output.beam is None) == training


def test_without_labels_the_end_is_that_of_the_best_start():
    head = make_head()
    states, candidates, _ = make_batch()
    output = head(states, candidates)
    assert output.loss is None
    best = output.start_logits.argmax(1)
    labels = torch.stack([best, best], 1)
    assert torch.equal(output.end_logits, head(states, candidates, labels).end_logits)


@pytest.mark.parametrize("one_token", [True, False])
def test_a_beam_as_wide_as_the_window_finds_the_best_of_all_pairs(one_token):
    head = make_head(beam=TOKENS).requires_grad_(False)
    states, candidates, _ = make_batch()
    outputs = span.read_outputs(head(states, candidates), [TOKENS, 9, TOKENS])
    for window in range(3):
        of_window = candidates[window].numpy()
        starts, ends, null = score_plainly(head, states[window].numpy(), of_window)
        context = of_window.astype(bool)
        context[0] = False
        shortest = 1 if one_token else 2
        pairs = {}
        for i, j in itertools.product(np.flatnonzero(context), repeat=2):
            if j - i + 1 >= shortest:
                pairs[i, j] = starts[i] + ends[i, j]
        best = max(pairs, key=pairs.get)
        beam = (outputs[name][window] for name in ("first", "last", "spans"))
        first, last, score = span.best_beam_span(*beam, context, one_token)
        assert (first, last) == best
        assert score == pytest.approx(pairs[best])
        assert outputs["null"][window] == pytest.approx(null)


def test_padding_is_never_chosen_and_changes_nothing():
    """A window among longer ones has the scores that it has alone."""
    head = make_head(beam=20).requires_grad_(False)  # wider than the window
    states, candidates, _ = make_batch()
    together = head(states, candidates)
    alone = head(states[1:2, :9], candidates[1:2, :9])
    torch.testing.assert_close(together.null_logits[1], alone.null_logits[0])
    context = np.arange(TOKENS) > 3
    found = []
    for output, window, length in ((together, 1, 9), (alone, 0, 9)):
        values = span.read_outputs(output, [length] * len(output.null_logits))
        beam = (values[name][window] for name in ("first", "last", "spans"))
        found.append(span.best_beam_span(*beam, context[:length]))
    assert found[0] == pytest.approx(found[1])
    # Ends of the best starts alone: of padding as a start nothing is asked.
    good = together.beam.scores[1] > -1e9
    chosen = together.beam.last[1][good]
    assert len(chosen) == 36
    assert set(chosen.tolist()) == {0, 4, 5, 6, 7, 8}


def test_a_window_without_a_valid_span_has_none():
    beam = (np.array([0, 5]), np.array([0, 4]), np.array([-1.0, -2.0]))
    assert span.best_beam_span(*beam, np.arange(8) > 3)[2] == -np.inf


# ---- in a model ----


@pytest.fixture(autouse=True)
def talks(monkeypatch):
    """Let there be a dataset of questions that may have no answer."""
    read = params.read_datasets

    def read_with_talks(source, file=None):
        return {**read(source, file), "talks": TALKS}

    monkeypatch.setattr(params, "read_datasets", read_with_talks)


def make_joint(encoder: str, **changes):
    """Return a run on questions of which some have no answer."""
    fields = {"domains": ["talks"], "tests": ["talks"], "multitask": None, "heads": JOINT}
    sizes = {"epochs": 1.0, "max_length": 160, "stride": 32, "checkpoint": "last"}
    return make_spec(encoder, **fields | sizes | changes)


def test_spans_begin_and_end_in_the_context(small_encoder):
    model, tokenizer = build.build_model(make_joint(small_encoder))
    assert isinstance(model.heads["talks"], heads.JointSpanHead)
    rows = selection.load_splits("talks", "embedded").train[:2]
    columns = span.tokenise_rows(rows, tokenizer, 160, 32)
    windows = [{name: values[i] for name, values in columns.items()} for i in range(2)]
    batch = model.collate(tokenizer, span, "talks")(windows)
    for candidates, window in zip(batch["candidates"], windows, strict=True):
        tokens = len(window["input_ids"])
        assert candidates[0] == 1
        assert candidates[1:tokens].tolist() == [int(x) for x in window["type_ids"][1:]]
        assert not candidates[tokens:].any()
    output = model.eval()(**batch)
    assert output.start_logits[batch["candidates"] == 0].max() < -1e30
    independent, _ = build.build_model(make_joint(small_encoder, heads=Heads()))
    assert isinstance(independent.heads["talks"], heads.SpanHead)
    assert "candidates" not in independent.collate(tokenizer, span, "talks")(windows)


@pytest.mark.parametrize("kind", ["joint", "independent"])
def test_a_run_chooses_its_threshold_on_validation_rows(small_encoder, kind):
    """Its record has the scores of SQuAD 2.0; the threshold is the best on validation rows."""
    spec = make_joint(small_encoder, heads=Heads(span=kind), validation_rows=60)
    record = train.train(spec, progress=show_nothing, keep_weights=True)
    scores = record["metrics"]["talks"]
    assert scores["em_no_answer"] <= scores["em_best"]
    assert scores["f1"] <= scores["f1_best"]
    model = build.load_trained_model(spec)
    _, tokenizer = build.build_model(spec)
    _, validation, _ = selection.draw_mixture(spec)
    assert any(row["is_impossible"] for row in validation)
    rules = evaluate.choose_rules(model, tokenizer, spec, validation)
    assert rules == {"span": {"null_threshold": pytest.approx(scores["null_threshold"])}}
    predictions, _, _ = evaluate.score_rows(model, tokenizer, spec, "talks", validation)
    both_ways = span.score_both_ways(validation, predictions)["f1"]
    margins = np.array([answer["null_margin"] for answer in predictions])
    chosen = np.where(margins <= scores["null_threshold"], *both_ways).mean()
    for threshold in margins:
        assert np.where(margins <= threshold, *both_ways).mean() <= chosen + 1e-9


def test_datasets_in_turn_have_one_threshold_and_a_joint_head(small_encoder):
    spec = make_joint(
        small_encoder,
        domains=["talks", "news", "sentiment"],
        tests=["talks", "news", "sentiment"],
        heads=JOINT.model_copy(update={"pairs": "joined"}),
        multitask=Multitask(schedule="draws", rounds=4, passes=2),
        validation_rows=120,
    )
    _, validation, _ = selection.draw_mixture(spec)
    assert any(row.get("is_impossible") for row in validation)
    record = train.train(spec, progress=show_nothing)
    with_threshold = [name for name, s in record["metrics"].items() if "null_threshold" in s]
    assert with_threshold == ["talks"]
    assert record["metrics"]["talks"]["null_threshold"] != 0.0


def test_a_target_goes_on_with_the_joint_head(small_encoder):
    """One with another head begins with the seed's."""
    start = make_joint(small_encoder, tests=[])
    train.train(start, progress=show_nothing, keep_weights=True)
    weights = build.load_weights(start)
    going_on, _ = build.build_model(make_joint(small_encoder, start=start))
    head = going_on.heads["talks"]
    assert torch.equal(head.end[0].weight, weights["heads.talks.end.0.weight"])
    other, _ = build.build_model(make_joint(small_encoder, start=start, heads=Heads()))
    plain, _ = build.build_model(make_joint(small_encoder, heads=Heads()))
    drawn = copy.deepcopy(plain.heads["talks"].linear.weight)
    assert torch.equal(other.heads["talks"].linear.weight, drawn)


@pytest.mark.slow
def test_a_run_with_a_joint_head_is_killed_and_ends_with_the_same_numbers(
    small_encoder, store, monkeypatch
):
    draws = Multitask(schedule="draws", rounds=6, passes=2)
    spec = make_joint(small_encoder, multitask=draws)
    compare_records(*train_twice(spec, 4, store, monkeypatch))


def test_smart_and_a_joint_head_are_one_sentence(small_encoder):
    with pytest.raises(UserError, match="^span: SMART compares .* write span: independent"):
        build.build_model(make_joint(small_encoder, smart=Smart()))
