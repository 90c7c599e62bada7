"""The task of finding an answer's span: rows become tokens with labels, windows a batch, and logits answers.

A (question, context) pair longer than `max_length` tokens becomes several windows that overlap by `stride` tokens.
In a window that holds the whole answer the label is the smallest token span that covers the answer's characters;
in the others both ends point at [CLS], token 0. Only the first gold answer trains, as in the reports.

An answer is the best span over all windows of its question: of the 20 best starts and 20 best ends of each window, the
pair with the largest sum of logits, at most 30 tokens long. `one_token=False` is the starter code's variant, which
cannot answer with a single token (its condition was end <= start).

Shapes: W windows, B batch, T tokens.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from qa_lib.tasks.characters import widen_to_characters

if TYPE_CHECKING:
    import torch
    from datasets import Dataset

MAX_QUESTION = 64  # tokens; longer questions are cut so that a window always has room for context (google-research/electra)


def tokenise_rows(rows: list[dict], tokenizer, max_length: int, stride: int) -> dict[str, list]:
    """Return the columns of `windows`."""
    questions = [r["question"] for r in rows]
    special = tokenizer.num_special_tokens_to_add(pair=True)  # 3 of BERT's type, 4 of RoBERTa's
    # and for windows that go on by a token at least
    room = min(MAX_QUESTION, max_length - stride - special - 1)
    cut = tokenizer(
        questions,
        add_special_tokens=False,
        truncation=True,
        max_length=room,
        return_offsets_mapping=True,
    )["offset_mapping"]
    questions = [q[: o[-1][1]] if o else q for q, o in zip(questions, cut, strict=True)]
    encoded = tokenizer(
        questions,
        [r["context"] for r in rows],
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
        sequence = np.array([-1 if s is None else s for s in encoded.sequence_ids(window)])
        offsets = np.array(encoded["offset_mapping"][window]) * (sequence == 1)[:, None]  # (T, 2)
        windows_of_row.setdefault(row, []).append(offsets)
        columns["type_ids"].append(
            (sequence == 1).astype(np.int8) | (np.arange(len(sequence)) == len(sequence) - 1)
        )
        columns["offsets"].append(offsets.ravel().astype(np.int32))
    for row, every in windows_of_row.items():
        answer = answer_characters(rows[row], np.concatenate(every))
        for offsets in every:
            first, last = label_window(answer, offsets)
            columns["start_positions"].append(first)
            columns["end_positions"].append(last)
    return columns


def answer_characters(row: dict, offsets: np.ndarray) -> tuple[int, int] | None:
    """Return the characters, (begin, end), of all tokens that hold a character of the first gold answer.

    A token may hold more than the answer, and characters at the answer's ends may belong to no token: blanks, control and
    zero-width characters, combining marks. None where the row has no answer, or no token holds any of it.

    offsets: (T, 2), character start and end of each context token of all windows of the row, zeros elsewhere.
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
    """Return the first and the last token of an answer in a window; (0, 0), [CLS], where it is not wholly inside.

    answer: `answer_characters` of the window's row. offsets: (T, 2), of this window.
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
    """Count the answerable rows that have no label in any window: the answer is longer than what windows hold whole."""
    answerable = {
        i for i, row in enumerate(rows) if row["answers"]["text"] and not row["is_impossible"]
    }
    labelled = {
        row for row, end in zip(windows["row"], windows["end_positions"], strict=True) if end > 0
    }
    return len(answerable - labelled)


@dataclass
class Collate:
    """Windows → one padded batch; the length is the longest window's, rounded up to a multiple of 8."""

    pad: int
    types: bool  # whether the encoder reads token types

    def __call__(self, windows: list[dict]) -> dict[str, "torch.Tensor"]:
        import torch

        length = -(-max(len(w["input_ids"]) for w in windows) // 8) * 8
        ids = torch.full((len(windows), length), self.pad)  # (B, T)
        mask, types = torch.zeros_like(ids), torch.zeros_like(ids)
        for i, w in enumerate(windows):
            n = len(w["input_ids"])
            ids[i, :n] = torch.as_tensor(w["input_ids"])
            types[i, :n] = torch.as_tensor(w["type_ids"])
            mask[i, :n] = 1
        batch = {"input_ids": ids, "attention_mask": mask} | (
            {"token_type_ids": types} if self.types else {}
        )
        for key in ("start_positions", "end_positions"):
            batch[key] = torch.tensor([w[key] for w in windows])
        return batch


N_BEST, MAX_TOKENS = 20, 30


def best_spans(
    start: np.ndarray, end: np.ndarray, context: np.ndarray, one_token: bool = True
) -> tuple[np.ndarray, ...]:
    """Best span of each window: (first token, last token, score), each (W,); score −inf where there is no valid span.

    start, end: logits (W, T); context: (W, T), true for context tokens.
    """
    k = min(N_BEST, start.shape[1])
    s = np.where(context, start.astype(np.float32), -np.inf)  # (W, T)
    e = np.where(context, end.astype(np.float32), -np.inf)
    tops = np.argpartition(-s, k - 1, axis=1)[:, :k]  # (W, k)
    tope = np.argpartition(-e, k - 1, axis=1)[:, :k]
    score = (
        np.take_along_axis(s, tops, 1)[:, :, None] + np.take_along_axis(e, tope, 1)[:, None, :]
    )  # (W, k, k)
    length = tope[:, None, :] - tops[:, :, None] + 1
    valid = (length >= (1 if one_token else 2)) & (length <= MAX_TOKENS)
    score = np.where(valid, score, -np.inf).reshape(len(s), -1)
    best = score.argmax(1)
    rows = np.arange(len(s))
    return tops[rows, best // k], tope[rows, best % k], score[rows, best]


def predict_answers(
    rows: list[dict],
    windows,
    start: list[np.ndarray],
    end: list[np.ndarray],
    one_token: bool = True,
    null_answers: bool = False,
) -> list[dict]:
    """One answer a row: {text, start, end (characters), tokens, score, window}; text "" where no span is valid.

    start, end: logits of each window, (T,) each, in the order of `windows` (windows).
    null_answers: answer "" where the [CLS] pair beats the best span in every window (SQuAD 2.0).
    """
    row_of = list(windows["row"])
    first_of = {row: i for i, row in reversed(list(enumerate(row_of)))}
    answers = [
        {"text": "", "start": 0, "end": 0, "tokens": 0, "score": -np.inf, "window": first_of[i]}
        for i in range(len(rows))
    ]
    null = np.full(len(rows), np.inf)
    for at in range(0, len(start), 512):  # windows of like place, padded to the chunk's longest
        part, offsets = range(at, min(at + 512, len(start))), windows["offsets"][at : at + 512]
        width = max(len(start[i]) for i in part)
        s, e = (np.full((len(part), width), -np.inf, np.float32) for _ in range(2))
        context = np.zeros((len(part), width), bool)
        for j, i in enumerate(part):
            n = len(start[i])
            s[j, :n], e[j, :n] = start[i], end[i]
            context[j, :n] = np.asarray(offsets[j])[1::2] > 0
        for j, (first, last, score) in enumerate(
            zip(*best_spans(s, e, context, one_token), strict=True)
        ):
            i, row = part[j], row_of[part[j]]
            null[row] = min(null[row], s[j, 0] + e[j, 0])
            if score > answers[row]["score"]:
                text = rows[row]["context"]
                begin, stop = int(offsets[j][2 * first]), int(offsets[j][2 * last + 1])
                # a token may end before its letter's accent
                begin, stop = widen_to_characters(text, begin, stop)
                answers[row] = {
                    "text": text[begin:stop],
                    "start": begin,
                    "end": stop,
                    "tokens": int(last - first + 1),
                    "score": float(score),
                    "window": i,
                }
    if null_answers:
        for i, answer in enumerate(answers):
            if null[i] > answer["score"]:
                answers[i] |= {
                    "text": "",
                    "start": 0,
                    "end": 0,
                    "tokens": 0,
                    "score": float(null[i]),
                }
    return answers
