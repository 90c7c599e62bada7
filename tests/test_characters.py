"""Labels and predictions together, on text of any script.

A model whose logits are right has an exact match of 100.
"""

import unicodedata
from functools import cache

import numpy as np
import pytest
import regex
from datasets import Dataset
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from qa_lib.models import encoders
from qa_lib.tasks import metrics, span
from qa_lib.tasks.characters import trim_invisible, widen_to_characters

WORDS = """
Paris café naïve Zürich İstanbul Straße ﬁne Ελλάδα Ἀθῆναι Москва Йогурт العَرَبِيَّة עִבְרִית
हिन्दी में किताब কলকাতা தமிழ் తెలుగు ಕನ್ನಡ മലയാളം ไทยกำลัง ລາວ မြန်မာ ខ្មែរ 한국어 조선 東京
がぎぐ パピプ 龍𠮷 Việt Nguyễn ṩ q̣̇ å ñ 1990s 3,837 U.S. (an) β-cell
👍🏽 👩‍👩‍👧 🇫🇷 ❤️ 1️⃣ the The a
""".split()
BETWEEN = [
    " ",
    "  ",
    "\n",
    "\r\n",
    "\t",
    "\u00a0",
    "\u3000",
    "\u2028",
    "\u0085",
    ", ",
    ". ",
    "-",
    "",
]
NOTHING = [
    "\u200b",
    "\u200c",
    "\u200d",
    "\u2060",
    "\ufeff",
    "\u00ad",
    "\u200e",
    "\u202a",
    "\x00",
    "\x07",
    "\x1f",
    "\x7f",
    "\x9d",
    "\ufffd",
    "\ue000",
    "\u0378",
    "\u0301",
    "\u20dd",
    "\ufe0f",
    "\u093f",
]
FORMS = ["NFC", "NFD", "NFKC", "NFKD"]


@st.composite
def contexts(draw) -> str:
    """Draw a text of words of many scripts, each in some normal form.

    Blanks, marks and invisible characters stand anywhere between them.
    """
    any_text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=4)
    pieces = []
    for _ in range(draw(st.integers(1, 14))):
        word = draw(st.one_of(st.sampled_from(WORDS), any_text))
        pieces.append(unicodedata.normalize(draw(st.sampled_from(FORMS)), word))
        pieces.append(draw(st.sampled_from([*BETWEEN, *NOTHING])))
    return draw(st.sampled_from(["", *BETWEEN, *NOTHING])) + "".join(pieces)


@cache
def wordpiece():
    """Tokenizer of MiniLM, like BERT's."""
    return encoders.load_encoder("minilm", 1)[1]


def wrap_tokenizer(tokenizer: Tokenizer, cls: str, sep: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer as transformers uses it, with the names of its special tokens."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        cls_token=cls,
        sep_token=sep,
        pad_token="<pad>",
        unk_token="<unk>",
    )


@cache
def byte_level():
    """Tokenizer like RoBERTa's. It is made of bytes, and a blank belongs to the word behind it."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>", "<pad>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(WORDS * 3, trainer)
    ids = [(name, tokenizer.token_to_id(name)) for name in ("</s>", "<s>")]
    tokenizer.post_processor = processors.RobertaProcessing(
        *ids, trim_offsets=True, add_prefix_space=False
    )
    return wrap_tokenizer(tokenizer, "<s>", "</s>")


@cache
def unigram():
    """Tokenizer like ALBERT's. It has sentence pieces, and a blank belongs to the one behind it."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300,
        special_tokens=["[CLS]", "[SEP]", "<pad>", "<unk>"],
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(WORDS * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    return wrap_tokenizer(tokenizer, "[CLS]", "[SEP]")


TOKENIZERS = {"wordpiece": wordpiece, "byte level": byte_level, "unigram": unigram}


def find_offsets(text: str, tokenizer) -> list[tuple[int, int]]:
    """Return where each token of a text begins and ends, without special tokens."""
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return encoding["offset_mapping"]


def list_borders(text: str, offsets: list[tuple[int, int]]) -> list[int]:
    """Return where an answer may begin or end: between characters, and inside no token."""
    places = [m.start() for m in regex.finditer(r"\X", text)] + [len(text)]
    return [x for x in places if not any(a < x < b for a, b in offsets)]


def answer_perfectly(
    rows: list[dict], tokenizer, max_length: int, stride: int
) -> tuple[list[dict], int]:
    """Return the answers of a perfect model, and how many rows have no label.

    The model's logits are 10 at the labels and 0 elsewhere.
    """
    windows = Dataset.from_dict(span.tokenise_rows(rows, tokenizer, max_length, stride))
    start = [np.zeros(len(ids), np.float32) for ids in windows["input_ids"]]
    end = [logits.copy() for logits in start]
    for i in range(len(windows)):
        start[i][windows["start_positions"][i]] = 10
        end[i][windows["end_positions"][i]] = 10
    return span.predict_answers(rows, windows, {"start": start, "end": end}), span.count_unlabelled(
        rows, windows
    )


def make_row(context: str, begin: int, end: int) -> dict:
    """Return a row whose answer is context[begin:end]."""
    answers = {"text": [context[begin:end]], "answer_start": [begin]}
    return {
        "id": "a",
        "context": context,
        "question": "what?",
        "answers": answers,
        "is_impossible": False,
    }


def check_answer(context: str, begin: int, end: int, tokenizer, max_length: int, stride: int):
    """Assert that right logits give the answer context[begin:end]."""
    rows = [make_row(context, begin, end)]
    answers, unlabelled = answer_perfectly(rows, tokenizer, max_length, stride)
    assert unlabelled == 0
    gold = context[begin:end]
    answer = answers[0]["text"]
    assert metrics.exact_match(answer, gold) == 100.0, (answer, gold)
    assert metrics.f1(answer, gold) == 100.0, (answer, gold)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)
@given(data=st.data(), context=contexts(), short=st.booleans())
def test_right_logits_give_the_answer_in_any_script(name, data, context, short):
    tokenizer = TOKENIZERS[name]()
    offsets = [(a, b) for a, b in find_offsets(context, tokenizer) if b > a]
    borders = list_borders(context, offsets)
    spans = []
    for i, begin in enumerate(borders):
        for end in borders[i + 1 :]:
            tokens = sum(begin < b and a < end for a, b in offsets)
            if 1 <= tokens <= 12 and trim_invisible(context[begin:end]):
                spans.append((begin, end))
    if spans:
        begin, end = data.draw(st.sampled_from(spans))
        length, stride = (32, 15) if short else (512, 128)
        check_answer(context, begin, end, tokenizer, length, stride)


@pytest.mark.parametrize(
    "context, answer",
    [
        ("Painted in May ", "May "),
        ("Painted in May\n", "May\n"),
        (" Painted in May", " Painted"),
        ("\ufeffPainted in May", "\ufeffPainted"),
        ("Painted in May\u200b", "May\u200b"),
        ("Painted in May\u200b", "May"),
        ("Painted in a cafe\u0301", "cafe\u0301"),
        ("the cafe\u0301 is old", "cafe\u0301"),
        ("cafe\u0301", "cafe\u0301"),
        ("\u0301Painted in May", "\u0301Painted"),
        ("\x00\x07May\x1f", "\x00\x07May\x1f"),
        ("in\u00a0May\u00a0", "May\u00a0"),
        ("in May\r\n", "May\r\n"),
        ("2 किताबें", "किताबें"),
        ("in \u202aMay\u202c", "\u202aMay\u202c"),
        ("lost \ufffd", "lost \ufffd"),
        ("private \ue000", "private \ue000"),
    ],
)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_an_answer_at_an_edge_is_labelled_and_found(name, context, answer):
    begin = context.index(answer)
    check_answer(context, begin, begin + len(answer), TOKENIZERS[name](), 384, 128)


def test_an_answer_at_a_windows_edge_is_labelled_in_that_window():
    """Each window that holds all tokens of an answer is labelled, with any blanks at its ends."""
    context = " ".join(f"word{i}\u200b " for i in range(60))
    pieces = np.array(find_offsets(context, wordpiece()))
    labelled = 0
    for begin, _ in pieces[5:-5:3]:
        end = context.index(" ", begin) + 1
        needed = ((pieces[:, 1] > begin) & (pieces[:, 0] < end)).sum()
        windows = span.tokenise_rows([make_row(context, int(begin), end)], wordpiece(), 48, 15)
        for flat, last in zip(windows["offsets"], windows["end_positions"], strict=True):
            offsets = flat.reshape(-1, 2)
            held = ((offsets[:, 1] > begin) & (offsets[:, 0] < end) & (offsets[:, 1] > 0)).sum()
            assert (last > 0) == (held == needed)
            labelled += last > 0
    assert labelled > 30


def test_an_answer_longer_than_windows_is_counted():
    context = " ".join(["long"] * 100)
    rows = [
        make_row(context, 0, len(context)),
        make_row(context, 0, 9),
        {**make_row(context, 0, 4), "is_impossible": True},
    ]
    windows = Dataset.from_dict(span.tokenise_rows(rows, wordpiece(), 48, 15))
    assert span.count_unlabelled(rows, windows) == 1


@pytest.mark.parametrize(
    "text, span, wider",
    [
        ("cafe\u0301 x", (0, 4), (0, 5)),
        ("cafe\u0301 x", (0, 3), (0, 3)),
        ("abc", (1, 2), (1, 2)),
        ("한국", (0, 1), (0, 1)),
        ("कि", (0, 1), (0, 2)),
        ("कि", (1, 2), (0, 2)),
        ("a\u0301b", (1, 3), (0, 3)),
        ("é", (0, 0), (0, 0)),
        ("", (0, 0), (0, 0)),
        ("x e\u0301\u0323\u200d y", (2, 3), (2, 6)),
    ],
)
def test_a_span_cuts_no_character(text, span, wider):
    assert widen_to_characters(text, *span) == wider


@pytest.mark.parametrize(
    "text, visible",
    [
        ("May", "May"),
        (" May\n", "May"),
        ("\ufeffMay\u200b", "May"),
        ("cafe\u0301\u200b", "cafe\u0301"),
        ("\u0301May", "May"),
        ("a\u200bb", "a\u200bb"),
        ("\u200b", ""),
        ("", ""),
        ("\u3000東京\u2028", "東京"),
        ("\x00x\x00", "x"),
        ("“May”", "“May”"),
    ],
)
def test_invisible_characters_are_trimmed_at_both_ends(text, visible):
    assert trim_invisible(text) == visible
