"""Windows and labels, their cache, and the order of examples.

If DATA names a folder with real data, the labels of all of SQuAD are checked too.
"""

import itertools
import os
from pathlib import Path

import numpy as np
import pytest

from qa_lib.data import features, selection
from qa_lib.data.batches import BucketSampler
from qa_lib.models import encoders, heads
from qa_lib.settings import encoder_files, files
from qa_lib.settings.params import UserError
from qa_lib.store import code_hashes
from qa_lib.tasks import span
from qa_lib.training import frozen


@pytest.fixture(scope="module")
def tokenizer():
    """Return the tokenizer of MiniLM."""
    return encoders.load_encoder("minilm", 1)[1]


@pytest.fixture(scope="module")
def train_rows():
    """Return the generated training rows of one dataset."""
    return selection.load_splits("encyclopaedia", "embedded").train


def list_folders(cache: Path) -> list[Path]:
    """Return the folders in a cache: one for each set of features or outputs."""
    return [path for path in cache.iterdir() if path.is_dir()]


def find_smallest_cover(offsets: np.ndarray, begin: int, stop: int) -> tuple[int, int]:
    """Return (first, last) of the fewest tokens that cover the characters begin to stop.

    All pairs of tokens are tried. Without a cover the result is (0, 0).
    """
    inside = [i for i in range(len(offsets)) if offsets[i, 1] > 0]
    spans = []
    for i, j in itertools.combinations_with_replacement(inside, 2):
        if offsets[i, 0] <= begin and offsets[j, 1] >= stop:
            spans.append((j - i, i, j))
    return min(spans)[1:] if spans else (0, 0)


def check_labels(rows, windows) -> tuple[int, list[str]]:
    """Assert that each labelled window's span is the smallest cover of the gold characters.

    A span is longer than the gold text only if this begins or ends inside a word piece. Returns
    the number of labelled windows and the ids of the rows with such longer spans.
    """
    labelled = 0
    inside_piece = []
    columns = windows.with_format("numpy")
    for w in range(len(windows)):
        window = columns[w]
        row = rows[int(window["row"])]
        offsets = window["offsets"].reshape(-1, 2)
        first = int(window["start_positions"])
        last = int(window["end_positions"])
        begin = row["answers"]["answer_start"][0]
        gold = row["answers"]["text"][0]
        stop = begin + len(gold)
        if first == 0:
            held = offsets[offsets[:, 1] > 0]
            assert not len(held) or held[0, 0] > begin or held[-1, 1] < stop, row["id"]
            continue
        labelled += 1
        # the span covers the gold text without blanks at its ends
        assert offsets[first, 0] <= begin + len(gold) - len(gold.lstrip()), row["id"]
        assert offsets[last, 1] >= stop - len(gold) + len(gold.rstrip()), row["id"]
        # no token at its ends is superfluous
        assert offsets[first, 1] > begin, row["id"]
        assert offsets[last, 0] < stop, row["id"]
        text = row["context"][offsets[first, 0] : offsets[last, 1]]
        if text != gold.strip():
            assert gold.strip() in text, row["id"]
            assert begin > offsets[first, 0] or stop < offsets[last, 1], row["id"]
            inside_piece.append(row["id"])
    return labelled, inside_piece


def test_labels_are_the_smallest_cover(tokenizer, tmp_path, train_rows):
    rows = train_rows[:300]
    windows = features.load_windows(rows, tokenizer, 96, 24, tmp_path)
    # some rows have several windows
    assert len(windows) > len(rows)
    labelled, _ = check_labels(rows, windows)
    # every answer stands in at least one window
    assert labelled >= len(rows)
    columns = windows.with_format("numpy")
    for w in range(0, len(windows), 7):
        window = columns[w]
        row = rows[int(window["row"])]
        begin = row["answers"]["answer_start"][0]
        stop = begin + len(row["answers"]["text"][0])
        label = (int(window["start_positions"]), int(window["end_positions"]))
        cover = find_smallest_cover(window["offsets"].reshape(-1, 2), begin, stop)
        assert cover == label, row["id"]


@pytest.mark.skipif("DATA" not in os.environ, reason="needs real data: make test DATA=path/to/data")
def test_every_label_of_real_squad(tokenizer, tmp_path):
    rows = selection.load_splits("squad", "folder", str(Path(os.environ["DATA"]).resolve())).train
    windows = features.load_windows(rows, tokenizer, 384, 128, tmp_path)
    labelled, inside_piece = check_labels(rows, windows)
    print(
        f"\n{labelled} labelled windows of {len(rows)} questions; "
        f"{len(inside_piece)} answers begin or end inside a word piece: {', '.join(inside_piece)}"
    )
    assert len(inside_piece) < 0.01 * len(rows)


def test_unanswerable_rows_point_at_cls(tokenizer, tmp_path):
    row = {
        "id": "a",
        "title": "",
        "domain": "d",
        "is_impossible": True,
        "context": "A short text.",
        "question": "Who?",
        "answers": {"text": [], "answer_start": []},
    }
    window = features.load_windows([row], tokenizer, 64, 16, tmp_path)[0]
    assert (window["start_positions"], window["end_positions"]) == (0, 0)


def test_a_long_question_leaves_room_for_context(tokenizer, tmp_path, train_rows):
    rows = [dict(train_rows[0], question="why " * 500)]
    for window in features.load_windows(rows, tokenizer, 128, 32, tmp_path):
        assert np.flatnonzero(window["offsets"][1::2])[0] <= span.MAX_QUESTION + 2


@pytest.mark.parametrize("length, stride", [(32, 15), (64, 10), (96, 40), (128, 63)])
def test_any_length_and_stride_that_are_taken_leave_room(
    tokenizer, tmp_path, train_rows, length, stride
):
    rows = [dict(train_rows[0], question="why " * 500)]
    windows = features.load_windows(rows, tokenizer, length, stride, tmp_path)
    assert len(windows) > 1
    assert all(len(ids) <= length for ids in windows["input_ids"])


def test_the_cache_is_read_again_and_follows_content_and_code(
    tokenizer, tmp_path, train_rows, monkeypatch
):
    rows = train_rows[:20]
    features.load_windows(rows, tokenizer, 96, 24, tmp_path)
    features.load_windows(rows, tokenizer, 96, 24, tmp_path)
    assert len(list_folders(tmp_path)) == 1
    other = [dict(rows[0], question="Other?"), *rows[1:]]
    features.load_windows(other, tokenizer, 96, 24, tmp_path)
    features.load_windows(rows, tokenizer, 96, 16, tmp_path)
    assert len(list_folders(tmp_path)) == 3
    monkeypatch.setattr(code_hashes, "hash_together", lambda names: "of other code")
    features.load_windows(rows, tokenizer, 96, 24, tmp_path)
    assert len(list_folders(tmp_path)) == 4


def damage_largest(folder: Path, pattern: str):
    """Cut the largest of a folder's files short."""
    file = max(folder.glob(pattern), key=lambda f: f.stat().st_size)
    file.write_bytes(file.read_bytes()[:-99])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: damage_largest(folder, "*.arrow"),
        lambda folder: (folder / "state.json").write_text("", encoding="utf-8"),
        lambda folder: (folder / "dataset_info.json").unlink(),
        lambda folder: (folder / files.SEAL).write_bytes(b"\0" * 40),
        lambda folder: [file.unlink() for file in folder.iterdir()],
    ],
)
def test_a_damaged_cache_is_made_anew(tokenizer, tmp_path, train_rows, capsys, spoil):
    rows = train_rows[:20]
    first = features.load_windows(rows, tokenizer, 96, 24, tmp_path)[:]
    (folder,) = list_folders(tmp_path)
    spoil(folder)
    assert features.load_windows(rows, tokenizer, 96, 24, tmp_path)[:] == first
    assert capsys.readouterr().out == f"cached features {folder.name} are damaged; made anew\n"
    assert features.load_windows(rows, tokenizer, 96, 24, tmp_path)[:] == first
    assert capsys.readouterr().out == ""


def test_a_damaged_store_of_frozen_outputs_is_made_anew(
    tokenizer, tmp_path, train_rows, monkeypatch, capsys
):
    monkeypatch.setattr(frozen.evaluate, "CACHE", tmp_path)
    windows = features.load_windows(train_rows[:4], tokenizer, 96, 24, tmp_path)
    model = heads.SpanModel(encoders.load_encoder("minilm", 1)[0])

    def read_start():
        return frozen.read_outputs("key", windows, tokenizer, lambda: model, "fp32").start

    first = read_start().copy()
    (folder,) = list_folders(tmp_path / "frozen")
    damage_largest(folder, "mean.npy")
    assert (read_start() == first).all()
    assert "stored outputs " in capsys.readouterr().out
    assert (read_start() == first).all()
    assert capsys.readouterr().out == ""


def test_line_ends_of_the_code_do_not_make_the_cache_anew(tmp_path):
    for name, ends in (("a.py", b"\n"), ("b.py", b"\r\n")):
        (tmp_path / name).write_bytes(b"x = 1" + ends + b"y = 2" + ends)
    assert files.digest_text(tmp_path / "a.py") == files.digest_text(tmp_path / "b.py")


@pytest.mark.parametrize("order", ["trainer", "sequential", "shuffled"])
def test_every_order_has_all_examples_once_and_little_padding(order):
    rng = np.random.default_rng(0)
    lengths = list(rng.integers(20, 300, 1000))
    domains = ["a"] * 600 + ["b"] * 400
    sampler = BucketSampler(lengths, domains, 16, order, seed=0)
    sampler.set_epoch(0)
    first = list(sampler)
    assert sorted(first) == list(range(1000))
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert (list(sampler) == first) == (order != "trainer")
    seen = [domains[i] for i in first]
    assert (seen == domains) == (order == "sequential")
    padded = sum(16 * max(lengths[i] for i in first[k : k + 16]) for k in range(0, 992, 16))
    assert padded < 1.1 * sum(lengths)
    assert list(BucketSampler(lengths, domains, 16, order, seed=1)) != first


def test_encoder_errors_are_sentences(tmp_path):
    for blocks in (7, 0, -1, "2", 1.0):
        words = (
            f"^a run asks for {blocks!r} blocks of encoder minilm, which has 6; ask for a whole "
            "number from 1 to 6 .* or sweep_blocks, whichever"
        )
        with pytest.raises(UserError, match=words):
            encoders.load_encoder("minilm", blocks)
    with pytest.raises(UserError, match="encoder folder .* has no config.json"):
        encoder_files.identify_weights(str(tmp_path))
    with pytest.raises(UserError, match="does not exist"):
        encoder_files.identify_weights("./none")


def label_by_earlier_rule(row: dict, offsets: np.ndarray) -> tuple[int, int]:
    """Return (first, last) by the rule that the landed runs were trained with.

    It took blanks and marks at a window's edge to be outside of the window.
    """
    answers = row["answers"]
    if row["is_impossible"] or not answers["text"]:
        return 0, 0
    begin = answers["answer_start"][0]
    end = begin + len(answers["text"][0])
    inside = np.flatnonzero(offsets[:, 1] > 0)
    if not len(inside) or offsets[inside[0], 0] > begin or offsets[inside[-1], 1] < end:
        return 0, 0
    touched = inside[(offsets[inside, 1] > begin) & (offsets[inside, 0] < end)]
    return (int(touched[0]), int(touched[-1])) if len(touched) else (0, 0)


@pytest.mark.slow
@pytest.mark.skipif(
    "DATA" not in os.environ, reason="needs real data: DATA=path/to/data pytest -m slow"
)
@pytest.mark.parametrize(
    "name", ["squad", "bioasq", "newsqa", "naturalquestions", "duorc", "race", "relations"]
)
def test_no_training_row_of_the_landed_runs_has_another_label(tokenizer, tmp_path, name):
    rows = selection.load_splits(name, "folder", str(Path(os.environ["DATA"]).resolve())).train
    windows = features.load_windows(rows, tokenizer, 384, 128, tmp_path)
    labels = zip(windows["start_positions"], windows["end_positions"], strict=True)
    moved = set()
    for row, flat, label in zip(windows["row"], windows["offsets"], labels, strict=True):
        if label_by_earlier_rule(rows[row], np.asarray(flat).reshape(-1, 2)) != label:
            moved.add(row)
    print(
        f"\n{name}: {len(rows)} training rows, {len(moved)} with another label, "
        f"{span.count_unlabelled(rows, windows)} without any"
    )
    assert not moved


def test_a_tokenizer_that_leaves_out_the_end_of_a_text_is_refused(tokenizer):
    """Versions 0.23.1 and 0.23.2 of tokenizers gave two windows at most."""

    def two_windows(*args, **kwargs):
        encoded = tokenizer(*args, **kwargs)
        return {"offset_mapping": encoded["offset_mapping"][:2]}

    span.check_windows(tokenizer)
    with pytest.raises(UserError, match="leaves out what a long text has .*0.23.1 and 0.23.2"):
        span.check_windows(two_windows)


@pytest.mark.parametrize("long, beyond", [(30, 0), (31, 1)])
def test_an_answer_is_beyond_reach_where_all_of_its_row_are_too_long(tokenizer, long, beyond):
    answers = {"text": ["mill " * long], "answer_start": [0]}
    row = {"question": "mill " * (34 + long), "answers": answers}
    counts = {"questions": beyond, "answers": beyond}
    assert span.count_beyond_reach([row], tokenizer) == counts
    answers["text"].append("mill")
    assert span.count_beyond_reach([row], tokenizer) == counts | {"answers": 0}
