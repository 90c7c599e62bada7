"""Features: tokenised windows with their labels, cached by content, and the batches made of them.

A (question, context) pair longer than `max_length` tokens becomes several windows that overlap by `stride` tokens.
In a window that holds the whole answer the label is the smallest token span that covers the answer's characters;
in the others both ends point at [CLS], token 0. Only the first gold answer trains, as in the reports.

Shapes: W windows, B batch, T tokens.
"""

import hashlib
import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, disable_progress_bars, load_from_disk
from filelock import FileLock
from torch.utils.data import Sampler

from qa_lib.files import digest_text, read_seal, write_folder
from qa_lib.spec import canonical

MAX_QUESTION = 64  # tokens; longer questions are cut so that a window always has room for context (google-research/electra)
disable_progress_bars()


def windows(rows: list[dict], tokenizer, max_length: int, stride: int, cache: Path) -> Dataset:
    """The windows of `rows`: memory-mapped from `cache`, made there at first use.

    Columns: input_ids, type_ids (T), offsets (2T: character start, end of each context token, else 0),
    row (index into `rows`), start_positions, end_positions.
    """
    identity = [
        [r["id"], r["question"], r["context"], r["answers"], r["is_impossible"]] for r in rows
    ]
    words = {
        k: v
        for k, v in json.loads(tokenizer.backend_tokenizer.to_str()).items()
        if k not in ("truncation", "padding")
    }
    code = digest_text(Path(__file__))
    key = hashlib.sha256(canonical([identity, words, max_length, stride, code]).encode())
    folder = cache / key.hexdigest()[:32]
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):  # another worker that wants the same waits
        if read_seal(folder) is None:
            if folder.exists():
                print(f"cached features {folder.name} are damaged; made anew", flush=True)
            made = Dataset.from_dict(tokenise(rows, tokenizer, max_length, stride))
            write_folder(folder, made.save_to_disk)
        return load_from_disk(folder)


def tokenise(rows: list[dict], tokenizer, max_length: int, stride: int) -> dict[str, list]:
    """Return the columns of `windows`."""
    questions = [r["question"] for r in rows]
    special = tokenizer.num_special_tokens_to_add(pair=True)  # 3 of BERT's type, 4 of RoBERTa's
    room = min(
        MAX_QUESTION, max_length - stride - special - 1
    )  # and for windows that go on by a token at least
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
            first, last = label(answer, offsets)
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


def label(answer: tuple[int, int] | None, offsets: np.ndarray) -> tuple[int, int]:
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


def count_unlabelled(rows: list[dict], windows: Dataset) -> int:
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

    def __call__(self, windows: list[dict]) -> dict[str, torch.Tensor]:
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


class BucketSampler(Sampler):
    """Indices in an order in which neighbours have like lengths, so that batches hold little padding.

    order  trainer     everything shuffled anew each epoch, as the Trainer's own sampler does
           sequential  domain after domain, as concatenated; shuffled once within each domain
           shuffled    shuffled once, the same order in every epoch
    Buckets of `batch_size` × 32 neighbours are sorted by length, cut into batches, and the batches shuffled;
    no bucket crosses a domain boundary when the order is sequential.
    """

    def __init__(
        self, lengths: list[int], domains: list[str], batch_size: int, order: str, seed: int
    ):
        self.lengths, self.domains, self.batch_size, self.order, self.seed = (
            lengths,
            domains,
            batch_size,
            order,
            seed,
        )
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int):
        """Called by the Trainer's data loader at the start of each epoch, and when it resumes."""
        self.epoch = epoch

    def __iter__(self):
        rng = random.Random(f"{self.seed}/{self.epoch if self.order == 'trainer' else 0}")
        groups = [list(range(len(self)))]
        if self.order == "sequential":
            groups = [
                [i for i, d in enumerate(self.domains) if d == name]
                for name in dict.fromkeys(self.domains)
            ]
        given, size = 0, 32 * self.batch_size
        for group in groups:
            rng.shuffle(group)
            fill = -given % self.batch_size  # completes the batch the last domain left short
            yield from group[:fill]
            given, group = given + len(group), group[fill:]
            batches = []
            for bucket in (group[i : i + size] for i in range(0, len(group), size)):
                bucket.sort(key=lambda i: -self.lengths[i])
                batches += [
                    bucket[i : i + self.batch_size] for i in range(0, len(bucket), self.batch_size)
                ]
            short = (
                [batches.pop()] if batches and len(batches[-1]) < self.batch_size else []
            )  # stays last
            rng.shuffle(batches)
            for batch in batches + short:
                yield from batch
