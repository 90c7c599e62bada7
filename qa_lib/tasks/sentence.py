"""Sentences: a text, or a pair of texts, with a class or with a score.

There are two tasks. In `classes` a row has one of several classes, and accuracy is its measure. In
`score` a pair of texts has a real number within a range, and Pearson's r is its measure.

A row is {id, text, text_pair, label, domain}. `text_pair` is None where a dataset has single texts.
`label` is the number of a class, from 0, or a score. A dataset's definition names the fields that
these come from (qa_lib/settings/parameters.py).

The two texts of a pair are tokenised each by itself, since the shared encoder reads each by itself.
With `joined` they are one sequence, as BERT reads the pairs of NLI. A text of more than
`max_length` tokens is cut at its end; `count_truncated` says how many rows that concerns.

Records never hold a text or a label. A row of `classes` has 100 where the prediction is right and 0
where it is wrong, so that accuracy is the mean, in percent. A row of `score` has 100 (r + I), with
the row's influence I on r (`correlation_influence`). The influences have mean zero, so r is the
mean of these values too, and a bootstrap of the mean is one of r to first order.

Shapes: W windows, one for each row; R rows; B batch; T tokens; C classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.special import expit, softmax

from qa_lib.settings.parameters import Dataset
from qa_lib.tasks import metrics
from qa_lib.tasks.characters import is_visible, normalise_text, text_error

if TYPE_CHECKING:
    import torch

SHOWN_CLASSES = 10  # that an error lists
PAIR = "pair_"  # prefix of the columns and tensors of a second text


# ---- rows ----


def name_fields(d: Dataset) -> tuple[str, ...]:
    """Return the fields of a source's row that a dataset needs."""
    pair = () if d.text_pair is None else (d.text_pair,)
    return d.text, *pair, d.label


def find_text_error(row: Any, d: Dataset) -> str | None:
    """Return what is wrong with the form of a row, whatever its label; None where nothing is.

    row: as its source has it; d: the definition of its dataset.
    """
    if not isinstance(row, dict):
        return "not an object {…}"
    for field in name_fields(d):
        if field not in row:
            second = ", the second text of a pair," if field == d.text_pair else ""
            return f"no field '{field}'{second} among {', '.join(map(str, row)) or 'none'}"
    for field in ("id", d.text, d.text_pair):
        error = text_error(str(field), str(row.get(field)))
        if error:
            return error
    if not is_text(row[d.text]):
        return f"field '{d.text}' holds no text"
    if d.text_pair is not None and not is_text(row[d.text_pair]):
        return f"field '{d.text_pair}' holds no text, and a pair has two"
    if is_absent(row[d.label]):
        return f"field '{d.label}' holds nothing"
    return None


def is_text(value: Any) -> bool:
    """Return whether a value is a text that a reader sees."""
    return isinstance(value, str) and is_visible(value)


def is_absent(value: Any) -> bool:
    """Return whether a field holds nothing: null, no letter, or the NaN that tables have."""
    return value is None or value != value or value == ""  # NaN alone differs from itself


def read_class(label: Any, classes: list[str]) -> int | None:
    """Return the number of a class from its name or its number; None where it is neither.

    Where the name of a class is a number itself, labels are names.
    """
    if isinstance(label, float) and label.is_integer():
        label = int(label)  # tables write whole numbers with a point where another row has none
    name = str(label).strip()
    if name in classes:
        return classes.index(name)
    if any(known.isdecimal() for known in classes):
        return None
    numbers = [str(number) for number in range(len(classes))]
    return numbers.index(name) if name in numbers else None


def read_score(label: Any, low: float, high: float) -> float | None:
    """Return a score; None where the label is no number from `low` to `high`."""
    if isinstance(label, bool):
        return None
    try:
        score = float(label)
    except (TypeError, ValueError, OverflowError):
        return None
    return score if low <= score <= high else None


def list_texts(row: dict) -> list[str]:
    """Return the normalised texts of a row, one or two; a text of signs alone stays as it is."""
    texts = []
    for text in (row["text"], row["text_pair"]):
        if text is not None:
            texts.append(normalise_text(text) or text.strip())
    return texts


def copy_key(row: dict) -> tuple[str, ...]:
    """Return the same key for all copies of a row. The order of a pair plays no part."""
    return tuple(sorted(list_texts(row)))


def connect_texts(rows: list[dict]) -> list[str]:
    """Return the unit of each row: rows that share a text are of one unit.

    So are rows that others connect: (a, b) and (c, d) where there is (b, c). A unit's name is the
    first of its texts in the order of letters.
    """
    texts_of_row = [list_texts(row) for row in rows]
    texts = sorted({text for texts in texts_of_row for text in texts})
    place = {text: i for i, text in enumerate(texts)}
    first = [place[texts[0]] for texts in texts_of_row]
    last = [place[texts[-1]] for texts in texts_of_row]
    links = coo_array((np.ones(len(rows)), (first, last)), shape=(len(texts), len(texts)))
    _, component = connected_components(links, directed=False)
    name_of: dict[int, str] = {}
    for text, number in zip(texts, component, strict=True):
        name_of.setdefault(number, text)
    return [name_of[component[i]] for i in first]


# ---- features ----


def tokenise_rows(
    rows: list[dict], tokenizer, max_length: int, stride: int = 0, joined: bool = False
) -> dict[str, list]:
    """Return the features of rows as columns, one window a row. All rows have a pair, or none has.

    input_ids       (T,)
    type_ids        (T,), 1 for a second text that is joined to the first, else 0
    pair_input_ids  (T',), of the second text; these two are left out without one
    pair_type_ids   (T',)
    row             index into `rows`
    truncated       whether a text was cut
    label           number of the class, or score

    max_length: tokens of a window at most, special tokens included; joined: a pair is one sequence
    (of the two texts the longer one is cut first). stride plays no part: no row has two windows.
    Raises ValueError where rows with and without a pair are mixed.
    """
    paired = {row["text_pair"] is not None for row in rows}
    if len(paired) > 1:
        raise ValueError("rows with and without a second text cannot be features of one table")
    texts = [row["text"] for row in rows]
    seconds = [row["text_pair"] for row in rows] if paired == {True} else None
    ids, types, truncated = encode_texts(tokenizer, texts, seconds if joined else None, max_length)
    columns: dict[str, list] = {"input_ids": ids, "type_ids": types}
    if seconds and not joined:
        pair_ids, pair_types, pair_truncated = encode_texts(tokenizer, seconds, None, max_length)
        columns |= {f"{PAIR}input_ids": pair_ids, f"{PAIR}type_ids": pair_types}
        truncated = [a or b for a, b in zip(truncated, pair_truncated, strict=True)]
    columns |= {"row": list(range(len(rows))), "truncated": truncated}
    columns["label"] = [row["label"] for row in rows]
    return columns


def encode_texts(
    tokenizer, texts: list[str], seconds: list[str] | None, max_length: int
) -> tuple[list[list[int]], list[np.ndarray], list[bool]]:
    """Return (token ids, token types, whether it was cut) of each text.

    seconds: texts that are joined to `texts`, one to each.
    """
    if not texts:
        return [], [], []
    encoded = tokenizer(texts, seconds, truncation="longest_first", max_length=max_length)
    types = []
    for number, ids in enumerate(encoded["input_ids"]):
        parts = encoded.sequence_ids(number)  # 0 first text, 1 second, None special
        is_second = np.array([part == 1 for part in parts])  # (T,)
        if seconds:
            is_second[len(ids) - 1] = True  # the [SEP] behind the second text
        types.append(is_second.astype(np.int8))
    return encoded["input_ids"], types, [bool(e.overflowing) for e in encoded.encodings]


def count_truncated(windows) -> int:
    """Count the rows of which a text was cut at max_length."""
    return sum(windows["truncated"])


def remark_on_windows(rows: list[dict], windows) -> tuple[dict[str, int], str]:
    """Return the number of cut rows for the record, and a sentence on them, or ""."""
    cut = count_truncated(windows)
    if not cut:
        return {"texts cut at max_length": cut}, ""
    return {"texts cut at max_length": cut}, (
        f"{cut} of {len(rows)} training rows have a text of more tokens than max_length and are "
        "read without its end; a larger max_length would keep it"
    )


def measure_windows(windows) -> list[int]:
    """Return the tokens of each window, those of both texts."""
    lengths = [len(ids) for ids in windows["input_ids"]]
    names = windows if isinstance(windows, dict) else windows.column_names
    if f"{PAIR}input_ids" in names:
        seconds = windows[f"{PAIR}input_ids"]
        lengths = [n + len(ids) for n, ids in zip(lengths, seconds, strict=True)]
    return lengths


def count_characters(row: dict) -> int:
    """Count the characters of a row that the encoder reads."""
    return len(row["text"]) + len(row["text_pair"] or "")


@dataclass
class Collate:
    """Collator of windows into one padded batch.

    Each of the two sequences of a pair is as long as its longest in the batch, rounded up to a
    multiple of 8. The tensors of second texts have the same names with the prefix `pair_`.
    """

    pad: int  # id of the padding token
    types: bool  # whether the encoder reads token types
    scores: bool  # whether labels are real numbers

    def __call__(self, windows: list[dict]) -> dict[str, "torch.Tensor"]:
        import torch

        batch = self.pad_texts(windows, "")
        if f"{PAIR}input_ids" in windows[0]:
            batch |= self.pad_texts(windows, PAIR)
        kind = torch.float32 if self.scores else torch.int64
        batch["labels"] = torch.tensor([window["label"] for window in windows], dtype=kind)  # (B,)
        return batch

    def pad_texts(self, windows: list[dict], prefix: str) -> dict[str, "torch.Tensor"]:
        """Return the padded ids, mask and token types of the first or of the second texts."""
        import torch

        longest = max(len(window[f"{prefix}input_ids"]) for window in windows)
        length = -(-longest // 8) * 8
        ids = torch.full((len(windows), length), self.pad)  # (B, T)
        mask = torch.zeros_like(ids)
        types = torch.zeros_like(ids)
        for i, window in enumerate(windows):
            n = len(window[f"{prefix}input_ids"])
            ids[i, :n] = torch.as_tensor(window[f"{prefix}input_ids"])
            types[i, :n] = torch.as_tensor(window[f"{prefix}type_ids"])
            mask[i, :n] = 1
        batch = {f"{prefix}input_ids": ids, f"{prefix}attention_mask": mask}
        if self.types:
            batch[f"{prefix}token_type_ids"] = types
        return batch


# ---- predictions and what they are worth ----


def read_labels(rows: list[dict]) -> np.ndarray:
    """Return the labels of rows, (R,)."""
    return np.array([row["label"] for row in rows])


def read_outputs(output: Any, lengths: list[int]) -> dict[str, list[np.ndarray]]:
    """Return the logits of each window of a batch. output: a model's, with `logits`."""
    return {"logits": list(output.logits.float().cpu().numpy())}


def order_by_row(windows, outputs: dict[str, list[np.ndarray]]) -> np.ndarray:
    """Return the logits of rows, (R, …), from those of windows in the order of `windows`.

    outputs: of all windows, by name (read_outputs). Raises ValueError for a logit that is not
    finite.
    """
    of_windows = np.asarray(outputs["logits"], np.float64)
    if not np.isfinite(of_windows).all():
        raise ValueError("a logit is not a finite number")
    of_rows = np.empty_like(of_windows)
    of_rows[np.asarray(windows["row"])] = of_windows
    return of_rows


def class_probabilities(logits: np.ndarray) -> np.ndarray:
    """Return the probabilities of the classes, (R, C), from logits (R, C).

    One logit a row, (R,) or (R, 1), is the log-odds of the second of two classes.
    """
    if logits.ndim == 1 or logits.shape[1] == 1:
        second = expit(logits.reshape(-1))
        return np.stack([1 - second, second], axis=1)
    return softmax(logits, axis=1)


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the expected calibration error of classes, in percent (metrics.calibration_error).

    The confidence of a row is its largest probability. probabilities: (R, C); labels: numbers of
    the true classes, (R,).
    """
    right = probabilities.argmax(axis=1) == labels  # (R,)
    return metrics.calibration_error(probabilities.max(axis=1), right)


def score_each_class(labels: np.ndarray, predicted: np.ndarray, classes: int) -> pd.DataFrame:
    """Return a row for each class: its number, n, precision, recall and F1 in percent.

    A class that is never predicted has precision 0, one without rows recall 0.
    labels, predicted: numbers of classes, (R,).
    """
    rows = []
    for number in range(classes):
        is_class = labels == number
        is_predicted = predicted == number
        hits = int((is_class & is_predicted).sum())
        rows.append(
            {
                "class": number,
                "n": int(is_class.sum()),
                "precision": 100 * hits / max(1, int(is_predicted.sum())),
                "recall": 100 * hits / max(1, int(is_class.sum())),
                "f1": 200 * hits / max(1, int(is_class.sum() + is_predicted.sum())),
            }
        )
    return pd.DataFrame(rows)


def correlate(predicted: np.ndarray, labels: np.ndarray) -> float:
    r"""Return Pearson's r; 0 where predictions or labels are all the same.

    $r = \frac{1}{R} \sum_i z_{xi} z_{yi}$, with $z_{xi} = (x_i - \bar x) / s_x$ and
    $s_x^2 = \frac{1}{R} \sum_i (x_i - \bar x)^2$, likewise for y.
    """
    return float(np.mean(standardise(predicted) * standardise(labels)))


def standardise(values: np.ndarray) -> np.ndarray:
    """Return values with mean 0 and standard deviation 1, or zeros where they are all the same."""
    values = np.asarray(values, np.float64)
    if np.ptp(values) == 0:
        return np.zeros(len(values))
    return (values - values.mean()) / values.std()


def correlation_influence(predicted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    r"""Return the empirical influence of each row on Pearson's r, (R,). Its mean is 0.

    Devlin, Gnanadesikan and Kettenring 1975, Robust estimation and outlier detection with
    correlation coefficients:

    $I_i = z_{xi} z_{yi} - \frac{r}{2} (z_{xi}^2 + z_{yi}^2)$

    A sample that has row i with weight w_i (their mean is 1) has r plus the mean of w_i I_i, to
    first order in w_i − 1.
    """
    x = standardise(predicted)
    y = standardise(labels)
    r = np.mean(x * y)
    return x * y - r * (x**2 + y**2) / 2


# ---- the two tasks ----


class Sentences:
    """What the two tasks share.

    joined: whether a pair is one sequence; else the encoder reads its two texts each by itself.
    """

    ROW_FIELDS = ("id", "text", "text_pair", "label")  # that features are made of
    LABEL_COLUMNS = ("label",)
    SAMPLED_BY = "text"  # the unit by which a fixed sample of a test set is drawn

    copy_key = staticmethod(copy_key)
    list_texts = staticmethod(list_texts)
    remark_on_windows = staticmethod(remark_on_windows)
    measure_windows = staticmethod(measure_windows)
    count_characters = staticmethod(count_characters)
    read_outputs = staticmethod(read_outputs)

    @staticmethod
    def choose_rule(rows: list[dict], predict_rows: Callable) -> dict[str, float]:
        """Return the options of `predict` that are chosen on validation rows: none."""
        return {}

    def __init__(self, joined: bool = False):
        self.joined = joined

    def tokenise_rows(
        self, rows: list[dict], tokenizer, max_length: int, stride: int = 0
    ) -> dict[str, list]:
        """Return the features of rows as columns, one window a row (tokenise_rows)."""
        return tokenise_rows(rows, tokenizer, max_length, stride, self.joined)

    def read_label(self, label: Any, d: Dataset) -> int | float | None:
        """Return the label of a source's row; None where the dataset has no such label."""
        raise NotImplementedError

    def describe_labels(self, d: Dataset) -> str:
        """Return what a wrong label is not, for an error."""
        raise NotImplementedError

    def find_row_error(self, row: Any, d: Dataset) -> str | None:
        """Return what is wrong with a row; None where nothing is.

        row: as its source has it; d: the definition of its dataset.
        """
        error = find_text_error(row, d)
        if error is None and self.read_label(row[d.label], d) is None:
            shown = repr(row[d.label])[:40]
            error = f"field '{d.label}' is {shown}, which is {self.describe_labels(d)}"
        return error

    def complete_row(self, row: dict, d: Dataset, name: str, number: int) -> dict:
        """Return a source's row, which is not wrong, as {id, text, text_pair, label, domain}.

        The fields by which the dataset leaves rows out stay. A row without an id is named by
        dataset and number.
        """
        identity = row.get("id")
        return {
            **{field: row.get(field) for field in d.leave_out},
            "id": f"{name}-{number}" if is_absent(identity) else str(identity),
            "text": row[d.text],
            "text_pair": None if d.text_pair is None else row[d.text_pair],
            "label": self.read_label(row[d.label], d),
            "domain": name,
        }

    def tabulate(
        self, rows: list[dict], predictions: np.ndarray, values: dict[str, np.ndarray]
    ) -> pd.DataFrame:
        """Return a row for each example: its id and its values of `score`, never text or label."""
        examples = pd.DataFrame({"id": [row["id"] for row in rows]})
        for name, of_rows in values.items():
            examples[name] = of_rows.astype(np.float32)
        return examples


class Classes(Sentences):
    """Texts or pairs with one of several classes."""

    NAME = "classes"
    SCORE_NAME = "accuracy"
    TRIAL_SCORE = "accuracy"
    CHECKPOINT_SCORE = "accuracy"

    def read_label(self, label: Any, d: Dataset) -> int | None:
        """Return the number of a label's class; None where it is none of the dataset's."""
        return read_class(label, d.classes)

    def describe_labels(self, d: Dataset) -> str:
        """Return what a wrong label is not, for an error."""
        names = ", ".join(d.classes[:SHOWN_CLASSES])
        more = ", …" if len(d.classes) > SHOWN_CLASSES else ""
        return f"none of its {len(d.classes)} classes ({names}{more})"

    def make_collator(self, tokenizer, reads_types: bool) -> Collate:
        """Return the collator of windows; labels are int64, (B,)."""
        return Collate(tokenizer.pad_token_id, reads_types, scores=False)

    def predict(
        self, rows: list[dict], windows, outputs: dict[str, list[np.ndarray]]
    ) -> np.ndarray:
        """Return the probabilities of the classes, (R, C).

        outputs: the logits of each window, (C,), or one where it stands for two classes.
        """
        return class_probabilities(order_by_row(windows, outputs))

    def score(
        self, rows: list[dict], predictions: np.ndarray, clusters: list[str] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """Return the accuracy of each row, 100 or 0, (R,), and on average, both by name.

        predictions: probabilities, (R, C); clusters: those of the rows, where the average is over
        clusters.
        """
        from qa_lib.tasks.sentence_score import Accuracy

        scores = Accuracy(keep_in_memory=True).compute(
            predictions=predictions.argmax(axis=1), references=read_labels(rows)
        )
        of_rows = scores["accuracy_rows"]
        return {"accuracy": of_rows}, {"accuracy": metrics.average_scores(of_rows, clusters)}

    def describe_predictions(
        self,
        rows: list[dict],
        windows,
        predictions: np.ndarray,
        values: dict[str, np.ndarray],
        clusters: list[str] | None = None,
    ) -> dict[str, float]:
        """Return further numbers of a test set, over rows and in percent.

        ece: expected calibration error; of the class with number k precision_k, recall_k and f1_k;
        truncated: rows of which a text was cut.
        """
        labels = read_labels(rows)
        further = {"ece": calibration_error(predictions, labels)}
        each = score_each_class(labels, predictions.argmax(axis=1), predictions.shape[1])
        for of_class in each.to_dict("records"):
            for name in ("precision", "recall", "f1"):
                further[f"{name}_{of_class['class']}"] = of_class[name]
        return further | {"truncated": count_truncated(windows)}


class Scores(Sentences):
    """Pairs with a real number within a range."""

    NAME = "score"
    SCORE_NAME = "100 r"
    TRIAL_SCORE = "pearson"
    CHECKPOINT_SCORE = "pearson"

    def read_label(self, label: Any, d: Dataset) -> float | None:
        """Return a label as a number; None where it is none within the dataset's range."""
        return read_score(label, *d.range)

    def describe_labels(self, d: Dataset) -> str:
        """Return what a wrong label is not, for an error."""
        low, high = d.range
        return f"no number from {low:g} to {high:g}"

    def make_collator(self, tokenizer, reads_types: bool) -> Collate:
        """Return the collator of windows; labels are float32, (B,)."""
        return Collate(tokenizer.pad_token_id, reads_types, scores=True)

    def predict(
        self, rows: list[dict], windows, outputs: dict[str, list[np.ndarray]]
    ) -> np.ndarray:
        """Return the predicted scores, (R,). outputs: one number for each window."""
        return order_by_row(windows, outputs).reshape(len(rows))

    def score(
        self, rows: list[dict], predictions: np.ndarray, clusters: list[str] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """Return `pearson` of each row, 100 (r + I), (R,), and on average, 100 r.

        predictions: scores, (R,). The values' mean is the average. clusters play no part: a
        correlation is over rows.
        """
        from qa_lib.tasks.sentence_score import Correlation

        scores = Correlation(keep_in_memory=True).compute(
            predictions=predictions, references=read_labels(rows)
        )
        return {"pearson": scores["pearson_rows"]}, {"pearson": scores["pearson"]}

    def describe_predictions(
        self,
        rows: list[dict],
        windows,
        predictions: np.ndarray,
        values: dict[str, np.ndarray],
        clusters: list[str] | None = None,
    ) -> dict[str, float]:
        """Return further numbers of a test set. truncated: rows of which a text was cut."""
        return {"truncated": count_truncated(windows)}


CLASSES = Classes()
SCORES = Scores()
JOINED_CLASSES = Classes(joined=True)
JOINED_SCORES = Scores(joined=True)
