"""Answer spans: rows become tokens with labels, windows become batches, and logits become answers.

A (question, context) pair longer than `max_length` tokens becomes several windows. Neighbouring
windows overlap by `stride` tokens. In a window that holds the whole answer the label is the
smallest token span that covers the answer's characters. In the others both ends of the label are 0,
the place of [CLS]. Only the first gold answer trains, as in the reports.

The answer to a question is the best span over all its windows. In each window the candidates are
the 20 best starts and the 20 best ends. The pair with the largest sum of logits wins, among spans
of at most 30 tokens. `one_token=False` is the starter code's variant: its condition was
end <= start, so that it cannot answer with a single token. A joint head (models/heads.py) names its
candidates itself, and the same spans are valid.

Where rows may have no answer, as in SQuAD 2.0, a question has a null margin: how far "no answer"
lies above the best span. It is answered by none where the margin is above a threshold, which is
chosen on validation rows.

Shapes: W windows, B batch, T tokens, K candidates.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy.special import expit, logsumexp

from qa_lib.settings.params import UserError
from qa_lib.tasks import metrics, no_answer
from qa_lib.tasks.characters import normalise_text, widen_to_characters

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from datasets import Dataset

NAME = "span"
SCORE_NAME = "EM"
TRIAL_SCORE = "em"
CHECKPOINT_SCORE = "f1"
ROW_FIELDS = ("id", "question", "context", "answers", "is_impossible")
LABEL_COLUMNS = ("start_positions", "end_positions")

# Tokens of a question. A longer one is cut, so that a window always has room for context
# (google-research/electra).
MAX_QUESTION = 64
N_BEST = 20  # candidates for each end of a span
MAX_TOKENS = 30  # of an answer
CHUNK = 512  # windows whose spans are searched at once
SAMPLED_BY = "context"  # the unit by which a fixed sample of a test set is drawn


def copy_key(row: dict) -> tuple[str, ...]:
    """Return the normalised (question, context) of a row, the same for all copies of it."""
    return normalise_text(row["question"]), normalise_text(row["context"])


def list_texts(row: dict) -> list[str]:
    """Return the texts that a training row may not share with a row of another test set."""
    return [normalise_text(row["context"])]


def tokenise_rows(rows: list[dict], tokenizer, max_length: int, stride: int) -> dict[str, list]:
    """Return the windows of rows as columns; qa_lib/data/features.py describes each column.

    max_length: tokens of a window at most; stride: tokens that neighbouring windows share.
    """
    special = tokenizer.num_special_tokens_to_add(pair=True)  # 3 of BERT's type, 4 of RoBERTa's
    # Beside the stride a window needs one token, or the next window would not go on.
    room = min(MAX_QUESTION, max_length - stride - special - 1)
    encoded = tokenizer(
        cut_questions([row["question"] for row in rows], tokenizer, room),
        [row["context"] for row in rows],
        truncation="only_second",
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    columns: dict[str, list] = {
        "input_ids": encoded["input_ids"],
        "type_ids": [],
        "offsets": [],
        "row": encoded["overflow_to_sample_mapping"],
        "start_positions": [],
        "end_positions": [],
    }
    windows_of_row: dict[int, list[np.ndarray]] = {}
    for window, row in enumerate(columns["row"]):
        parts = encoded.sequence_ids(window)  # 0 question, 1 context, None special
        in_context = np.array([part == 1 for part in parts])  # (T,)
        is_last = np.arange(len(parts)) == len(parts) - 1  # the [SEP] behind the context
        offsets = np.array(encoded["offset_mapping"][window]) * in_context[:, None]  # (T, 2)
        columns["type_ids"].append(in_context.astype(np.int8) | is_last)
        columns["offsets"].append(offsets.ravel().astype(np.int32))
        windows_of_row.setdefault(row, []).append(offsets)
    for row, offsets_of_row in windows_of_row.items():
        answer = answer_characters(rows[row], np.concatenate(offsets_of_row))
        for offsets in offsets_of_row:
            first, last = label_window(answer, offsets)
            columns["start_positions"].append(first)
            columns["end_positions"].append(last)
    return columns


def check_windows(tokenizer):
    """Raise UserError where the windows of a long text leave out a part of it.

    tokenizers 0.23.1 and 0.23.2 stop reading a text once a window is full, so that what follows is
    in no window, or in too few (huggingface/tokenizers, issue 2091).
    """
    text = " ".join(["window"] * 400)
    encoded = tokenizer(
        "?",
        text,
        truncation="only_second",
        max_length=64,
        stride=16,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    last_character = 0
    for offsets in encoded["offset_mapping"]:
        last_character = max(last_character, max(end for _, end in offsets))
    if last_character < len(text):
        raise UserError(
            f"tokenizers {version('tokenizers')} leaves out what a long text has beyond its first "
            "windows, as its versions 0.23.1 and 0.23.2 do; pip install tokenizers==0.23.3"
        )


def cut_questions(questions: list[str], tokenizer, room: int) -> list[str]:
    """Return questions without what follows their first `room` tokens."""
    offsets = tokenizer(
        questions,
        add_special_tokens=False,
        truncation=True,
        max_length=room,
        return_offsets_mapping=True,
    )["offset_mapping"]
    cut = []
    for question, tokens in zip(questions, offsets, strict=True):
        end = tokens[-1][1] if tokens else len(question)
        cut.append(question[:end])
    return cut


def count_beyond_reach(rows: list[dict], tokenizer) -> dict[str, int]:
    """Return how many rows have a question that is cut, and answers that are all too long to give.

    The counts are called "questions" and "answers".
    """
    counts = {"questions": 0, "answers": 0}

    def count_tokens(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    for row in rows:
        counts["questions"] += count_tokens(row["question"]) > MAX_QUESTION
        texts = row["answers"]["text"]
        counts["answers"] += bool(texts) and min(map(count_tokens, texts)) > MAX_TOKENS
    return counts


def answer_characters(row: dict, offsets: np.ndarray) -> tuple[int, int] | None:
    """Return the characters, (begin, end), of all tokens that hold a part of the first gold answer.

    A token may hold more than the answer. Characters at the answer's ends may belong to no token:
    blanks, control and zero-width characters, combining marks. Returns None where the row has no
    answer, and where no token holds a part of it.

    offsets: (T, 2), start and end of each context token in characters, zeros elsewhere; the tokens
    are those of all windows of the row.
    """
    answers = row["answers"]
    if row["is_impossible"] or not answers["text"]:
        return None
    begin = answers["answer_start"][0]
    end = begin + len(answers["text"][0])
    touched = offsets[(offsets[:, 1] > begin) & (offsets[:, 0] < end) & (offsets[:, 1] > 0)]
    if not len(touched):
        return None
    return int(touched[:, 0].min()), int(touched[:, 1].max())


def label_window(answer: tuple[int, int] | None, offsets: np.ndarray) -> tuple[int, int]:
    """Return the first and the last token of an answer in a window.

    Where the window does not hold the whole answer this is (0, 0), the place of [CLS].
    answer: `answer_characters` of the window's row; offsets: (T, 2), of this window.
    """
    inside = np.flatnonzero(offsets[:, 1] > 0)
    if answer is None or not len(inside):
        return 0, 0
    begin, end = answer
    if offsets[inside[0], 0] > begin or offsets[inside[-1], 1] < end:
        return 0, 0
    touched = inside[(offsets[inside, 1] > begin) & (offsets[inside, 0] < end)]
    return int(touched[0]), int(touched[-1])


def count_unlabelled(rows: list[dict], windows: "Dataset") -> int:
    """Count the answerable rows that have no label in any window.

    The answer of such a row is longer than what a window can hold whole.
    """
    pairs = zip(windows["row"], windows["end_positions"], strict=True)
    labelled = {row for row, end in pairs if end > 0}
    unlabelled = 0
    for i, row in enumerate(rows):
        answerable = row["answers"]["text"] and not row["is_impossible"]
        if answerable and i not in labelled:
            unlabelled += 1
    return unlabelled


def remark_on_windows(rows: list[dict], windows: "Dataset") -> tuple[dict[str, int], str]:
    """Return counts of the windows for the record, and a sentence on rows that teach a wrong label.

    The sentence is empty where there is no such row.
    """
    unlabelled = count_unlabelled(rows, windows)
    counts = {
        "further windows": len(windows) - len(rows),
        "answers whole in no window": unlabelled,
    }
    if not unlabelled:
        return counts, ""
    return counts, (
        f"{unlabelled} of {len(rows)} training rows have an answer that no window "
        "holds whole: they teach “no answer”; a larger max_length or stride would keep them"
    )


def measure_windows(windows) -> list[int]:
    """Return the tokens of each window."""
    return [len(ids) for ids in windows["input_ids"]]


def count_characters(row: dict) -> int:
    """Count the characters of a row that the encoder reads."""
    return len(row["context"]) + len(row["question"])


def make_collator(tokenizer, reads_types: bool) -> Callable:
    """Return the collator of windows. reads_types: whether the encoder reads token types."""
    return Collate(tokenizer.pad_token_id, reads_types)


@dataclass
class Collate:
    """Collator of windows into one padded batch.

    The batch is as long as its longest window, rounded up to a multiple of 8.
    """

    pad: int  # id of the padding token
    types: bool  # whether the encoder reads token types

    def __call__(self, windows: list[dict]) -> dict[str, "torch.Tensor"]:
        import torch

        longest = max(len(window["input_ids"]) for window in windows)
        length = -(-longest // 8) * 8
        ids = torch.full((len(windows), length), self.pad)  # (B, T)
        mask = torch.zeros_like(ids)
        types = torch.zeros_like(ids)
        for i, window in enumerate(windows):
            n = len(window["input_ids"])
            ids[i, :n] = torch.as_tensor(window["input_ids"])
            types[i, :n] = torch.as_tensor(window["type_ids"])
            mask[i, :n] = 1
        batch = {"input_ids": ids, "attention_mask": mask}
        if self.types:
            batch["token_type_ids"] = types
        for key in LABEL_COLUMNS:
            batch[key] = torch.tensor([window[key] for window in windows])
        return batch


def read_outputs(output: Any, lengths: list[int]) -> dict[str, list[np.ndarray]]:
    """Return the logits of each window of a batch, (T,) each: start and end.

    Of a joint head these are the spans of its beam, (K·K,) each: first, last and spans, their
    tokens and scores; and null, the logit of "no answer".
    output: of a span model; lengths: the tokens of each window.
    """
    if hasattr(output, "beam"):
        return read_beam(output)
    logits: dict[str, list[np.ndarray]] = {}
    for name, padded in (("start", output.start_logits), ("end", output.end_logits)):
        values = padded.cpu().numpy()  # (B, T)
        logits[name] = [row[:length] for row, length in zip(values, lengths, strict=True)]
    return logits


def read_beam(output: Any) -> dict[str, list[np.ndarray]]:
    """Return the spans in the beam of each window of a batch, as read_outputs does."""
    starts = output.beam.first  # (B, K)
    first = starts.unsqueeze(2).expand_as(output.beam.last)
    columns = {"first": first, "last": output.beam.last, "spans": output.beam.scores}
    values = {name: list(v.flatten(1).cpu().numpy()) for name, v in columns.items()}
    return {**values, "null": list(output.null_logits.cpu().numpy())}


def best_spans(
    start: np.ndarray, end: np.ndarray, context: np.ndarray, one_token: bool = True
) -> tuple[np.ndarray, ...]:
    """Return the best span of each window: its first token, its last token, its score, (W,) each.

    The score of a window without a valid span is −inf.
    start, end: logits, (W, T); context: (W, T), true for context tokens.
    """
    start = np.where(context, start.astype(np.float32), -np.inf)  # (W, T)
    end = np.where(context, end.astype(np.float32), -np.inf)  # (W, T)
    # The k highest starts and ends of each window.
    k = min(N_BEST, start.shape[1])
    first = np.argpartition(-start, k - 1, axis=1)[:, :k]  # (W, k)
    last = np.argpartition(-end, k - 1, axis=1)[:, :k]  # (W, k)
    first_logit = np.take_along_axis(start, first, 1)  # (W, k)
    last_logit = np.take_along_axis(end, last, 1)  # (W, k)
    # All pairs of them.
    score = first_logit[:, :, None] + last_logit[:, None, :]  # (W, k, k)
    length = last[:, None, :] - first[:, :, None] + 1  # (W, k, k)
    shortest = 1 if one_token else 2
    valid = (length >= shortest) & (length <= MAX_TOKENS)
    score = np.where(valid, score, -np.inf)
    # The best pair of each window: the number of its start and that of its end.
    window = np.arange(len(score))
    score = score.reshape(len(score), -1)  # (W, k·k)
    best = score.argmax(1)  # (W,)
    best_first = first[window, best // k]
    best_last = last[window, best % k]
    return best_first, best_last, score[window, best]


def best_beam_span(
    first: np.ndarray,
    last: np.ndarray,
    scores: np.ndarray,
    context: np.ndarray,
    one_token: bool = True,
) -> tuple[int, int, float]:
    """Return the best span in a window's beam: its first token, its last token, its score.

    The score of a window without a valid span is −inf.
    first, last, scores: (K·K,); context: (T,), true for context tokens.
    """
    shortest = 1 if one_token else 2
    length = last - first + 1
    inside = (first < len(context)) & (last < len(context))  # the others are padding
    valid = inside & (length >= shortest) & (length <= MAX_TOKENS)
    valid[valid] = context[first[valid]] & context[last[valid]]
    best = int(np.where(valid, scores, -np.inf).argmax())
    best_score = float(scores[best]) if valid[best] else -np.inf
    return int(first[best]), int(last[best]), best_score


def pad_logits(logits: list[np.ndarray]) -> np.ndarray:
    """Return the logits of several windows as one array, (W, T), padded with −inf."""
    width = max(len(values) for values in logits)
    padded = np.full((len(logits), width), -np.inf, np.float32)
    for row, values in zip(padded, logits, strict=True):
        row[: len(values)] = values
    return padded


def mark_context(offsets: list[list[int]], width: int) -> np.ndarray:
    """Return which tokens of several windows are context, (W, width)."""
    context = np.zeros((len(offsets), width), bool)
    for row, values in zip(context, offsets, strict=True):
        ends = np.asarray(values)[1::2]
        row[: len(ends)] = ends > 0
    return context


def read_span(text: str, offsets: list[int], first: int, last: int) -> dict:
    """Return the answer from a window's first to its last token: text, start, end, tokens."""
    start = int(offsets[2 * first])
    end = int(offsets[2 * last + 1])
    start, end = widen_to_characters(text, start, end)  # a token may end before its letter's accent
    return {"text": text[start:end], "start": start, "end": end, "tokens": int(last - first + 1)}


class WindowSpan(NamedTuple):
    """The best span of a window."""

    offsets: list[int]  # of the window's tokens
    first: int
    last: int
    score: float  # -inf where no span is valid
    null_score: float  # of "no answer"
    probability: float  # of the span, 0 to 1
    null_probability: float


def find_window_spans(
    windows, outputs: dict[str, list[np.ndarray]], one_token: bool
) -> Iterator[WindowSpan]:
    """Yield the best span of each window. windows, outputs: as in predict_answers."""
    search = find_beam_spans if is_joint(outputs) else find_logit_spans
    count = len(next(iter(outputs.values()), []))
    for begin in range(0, count, CHUNK):
        chunk = slice(begin, begin + CHUNK)
        of_chunk = {name: values[chunk] for name, values in outputs.items()}
        yield from search(windows["offsets"][chunk], of_chunk, one_token)


def is_joint(outputs: dict[str, list[np.ndarray]]) -> bool:
    """Return whether outputs are those of a joint head."""
    return "null" in outputs


def find_logit_spans(
    offsets: list[list[int]], outputs: dict[str, list[np.ndarray]], one_token: bool
) -> Iterator[WindowSpan]:
    r"""Yield the best span of each window from the logits of start and end.

    "No answer" is the span of [CLS] alone. The probability of a span is

    $p(i, j) = \operatorname{softmax}_i(s)\, \operatorname{softmax}_j(e)$
    """
    start = pad_logits(outputs["start"])  # (W, T)
    end = pad_logits(outputs["end"])  # (W, T)
    first, last, score = best_spans(start, end, mark_context(offsets, start.shape[1]), one_token)
    null_score = start[:, 0] + end[:, 0]  # (W,)
    # $p(i, j) = \exp(s_i + e_j - \log \sum_k e^{s_k} - \log \sum_k e^{e_k})$
    total = logsumexp(start, axis=1) + logsumexp(end, axis=1)  # (W,)
    chances = np.exp(score - total), np.exp(null_score - total)
    yield from map(WindowSpan, offsets, first, last, score, null_score, *chances)


def find_beam_spans(
    offsets: list[list[int]], outputs: dict[str, list[np.ndarray]], one_token: bool
) -> Iterator[WindowSpan]:
    """Yield the best span of each window from the beam of a joint head.

    Its scores are log-probabilities, and "no answer" has a classifier's logit.
    """
    beams = zip(outputs["first"], outputs["last"], outputs["spans"], strict=True)
    for of_window, beam, null_score in zip(offsets, beams, outputs["null"], strict=True):
        context = np.asarray(of_window)[1::2] > 0  # (T,)
        first, last, score = best_beam_span(*beam, context, one_token)
        chances = float(np.exp(score)), float(expit(null_score))
        yield WindowSpan(of_window, first, last, score, float(null_score), *chances)


def predict_answers(
    rows: list[dict],
    windows,
    outputs: dict[str, list[np.ndarray]],
    one_token: bool = True,
    null_answers: bool = False,
    null_threshold: float = 0.0,
) -> list[dict]:
    """Return an answer for each row: {text, start, end (characters), tokens, score, window, …}.

    The text is "" where no span is valid. `confidence` is the answer's probability in its window.
    outputs: of read_outputs, for each window in the order of `windows` (tokenise_rows).
    null_answers: answer "" where the null margin is above `null_threshold`, as in SQuAD 2.0. The
    margin is the score of "no answer", the lowest of all windows, less the score of the best span;
    of a joint head it is the logit of its classifier alone. Such answers also have null_margin,
    null_threshold, and best_text, the text of the best span.
    """
    no_answer = {"text": "", "start": 0, "end": 0, "tokens": 0}
    row_of = list(windows["row"])
    first_window: dict[int, int] = {}
    for window, row in enumerate(row_of):
        first_window.setdefault(row, window)
    answers = []
    for row in range(len(rows)):
        nothing_yet = {"score": -np.inf, "window": first_window[row], "confidence": 0.0}
        answers.append(no_answer | nothing_yet)
    null_scores = np.full(len(rows), np.inf)
    null_probabilities = np.zeros(len(rows))
    for window, best in enumerate(find_window_spans(windows, outputs, one_token)):
        row = row_of[window]
        if best.null_score < null_scores[row]:
            null_scores[row] = best.null_score
            null_probabilities[row] = best.null_probability
        if best.score > answers[row]["score"]:
            answer = read_span(rows[row]["context"], best.offsets, best.first, best.last)
            found = {"score": float(best.score), "window": window}
            answers[row] = answer | found | {"confidence": float(best.probability)}
    if not null_answers:
        return answers
    for answer, null_score, chance in zip(answers, null_scores, null_probabilities, strict=True):
        margin = float(null_score if is_joint(outputs) else null_score - answer["score"])
        answer |= {"null_margin": margin, "null_threshold": null_threshold}
        answer["best_text"] = answer["text"]
        if margin > null_threshold:
            answer |= {**no_answer, "score": float(null_score), "confidence": float(chance)}
    return answers


def has_impossible_rows(rows: list[dict]) -> bool:
    """Return whether a row has no answer, as in SQuAD 2.0. Then any row may be answered by none."""
    return any(row["is_impossible"] for row in rows)


def predict(rows: list[dict], windows, outputs: dict[str, list[np.ndarray]], **rule) -> list[dict]:
    """Return an answer for each row, as predict_answers does.

    Where a row of `rows` has no answer, every row may be answered by none.
    outputs: of read_outputs, for each window; rule: options of predict_answers.
    """
    return predict_answers(rows, windows, outputs, null_answers=has_impossible_rows(rows), **rule)


def choose_rule(rows: list[dict], predict_rows: Callable[[], list[dict]]) -> dict[str, float]:
    """Return the options of `predict` that are chosen on validation rows.

    It is the threshold of "no answer" with the highest F1, where a row has no answer.
    predict_rows: returns the rows' predictions, and is called only where there is a choice. Rows of
    a dataset that answers all of its rows have no margin there, and no part in the choice.
    """
    if not has_impossible_rows(rows):
        return {}
    rows_with_margin = []
    predictions = []
    for row, answer in zip(rows, predict_rows(), strict=True):
        if "null_margin" in answer:
            rows_with_margin.append(row)
            predictions.append(answer)
    margins = np.array([answer["null_margin"] for answer in predictions])
    f1_both_ways = score_both_ways(rows_with_margin, predictions)["f1"]
    threshold, _ = no_answer.choose_threshold(margins, *f1_both_ways)
    return {"null_threshold": threshold}


def score(
    rows: list[dict], predictions: list[dict], clusters: list[str] | None = None
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Return EM and F1 of each row, (n,) each, and their averages, all by name.

    clusters: the cluster of each row, where the average is over clusters.
    """
    from qa_lib.tasks.span_score import SpanScore

    scores = SpanScore(keep_in_memory=True).compute(
        predictions=[answer["text"] for answer in predictions],
        references=[row["answers"]["text"] for row in rows],
    )
    values = {"em": scores["em_rows"], "f1": scores["f1_rows"]}
    averages = {name: metrics.average_scores(v, clusters) for name, v in values.items()}
    return values, averages


def score_both_ways(
    rows: list[dict], predictions: list[dict]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return EM and F1 of each row, (n,), with its best span and without an answer, by name.

    predictions: of rows that may have no answer.
    """
    answered, _ = score(rows, [{"text": answer["best_text"]} for answer in predictions])
    unanswered, _ = score(rows, [{"text": ""}] * len(rows))
    return {name: (answered[name], unanswered[name]) for name in answered}


def score_as_starter(
    rows: list[dict], windows, outputs: dict[str, list[np.ndarray]], **rule
) -> dict[str, np.ndarray]:
    """Return EM and F1 of each row by the starter code's rule: em_starter and f1_starter.

    rule: other options of predict_answers.
    """
    predictions = predict(rows, windows, outputs, one_token=False, **rule)
    values, _ = score(rows, predictions)
    return {f"{name}_starter": of_rows for name, of_rows in values.items()}


def describe_predictions(
    rows: list[dict],
    windows,
    predictions: list[dict],
    values: dict[str, np.ndarray],
    clusters: list[str] | None = None,
) -> dict[str, float]:
    """Return further numbers of a test set: what a record has beside EM and F1.

    em_rows, f1_rows: averages over rows; tokens: mean length of an answer; contains: percent of the
    answers that hold a gold answer and more words; ece: calibration error of the answers'
    probabilities against EM, in percent; overflowed: rows of several windows. Where rows
    may have no answer, also what no_answer.describe_scores gives.
    """
    within = [
        100.0 * metrics.contains(answer["text"], row["answers"]["text"])
        for answer, row in zip(predictions, rows, strict=True)
    ]
    windows_of_row = Counter(windows["row"])
    confidence = np.array([answer["confidence"] for answer in predictions])
    scores = {
        "em_rows": metrics.average_scores(values["em"]),
        "f1_rows": metrics.average_scores(values["f1"]),
        "tokens": float(np.mean([answer["tokens"] for answer in predictions])),
        "contains": metrics.average_scores(np.array(within), clusters),
        "ece": metrics.calibration_error(confidence, values["em"] / 100),
        "overflowed": sum(n > 1 for n in windows_of_row.values()),
    }
    if has_impossible_rows(rows):
        both_ways = score_both_ways(rows, predictions)
        scores |= no_answer.describe_scores(rows, predictions, values, both_ways, clusters)
    return scores


def tabulate(
    rows: list[dict], predictions: list[dict], values: dict[str, np.ndarray]
) -> "pd.DataFrame":
    """Return a row for each example: id, scores, character span and length in tokens.

    Where rows may have no answer, also null_margin.
    """
    import pandas as pd

    examples = pd.DataFrame(
        {
            "id": [row["id"] for row in rows],
            **{name: v.astype(np.float32) for name, v in values.items()},
            "start": [answer["start"] for answer in predictions],
            "end": [answer["end"] for answer in predictions],
            "tokens": [answer["tokens"] for answer in predictions],
        }
    )
    if has_impossible_rows(rows):
        margins = [answer["null_margin"] for answer in predictions]
        examples["null_margin"] = np.array(margins, np.float32)
    return examples.astype({"start": np.int32, "end": np.int32, "tokens": np.int16})
