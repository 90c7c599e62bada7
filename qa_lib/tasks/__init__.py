"""Tasks: what a row is, how it becomes tokens, and what an answer is worth.

A dataset's definition names its task. The library asks the task and knows no row from inside, but
for the few places that docs/code.md lists under "a task". A task has:

NAME               its name in a dataset's definition
SCORE_NAME         the name of its score for readers, as in "EM"
TRIAL_SCORE        the score on validation rows that chooses among trials
CHECKPOINT_SCORE   the score that chooses among checkpoints
ROW_FIELDS         the fields of a row that its tokens and labels are made of
LABEL_COLUMNS      the columns of its labels
SAMPLED_BY         the unit by which a fixed sample of a test set is drawn
copy_key(row)      the same for all copies of a row
list_texts(row)    the normalised texts that a training row may not share with another test set
tokenise_rows(rows, tokenizer, max_length, stride)
                   windows as columns: input_ids, type_ids, row, those of LABEL_COLUMNS, and others
                   that `predict` reads
remark_on_windows(rows, windows)
                   (counts for the record, a sentence for the user or ""), of what tokens cannot
                   hold
measure_windows(windows)           the tokens of each window
count_characters(row)              of all that the encoder reads
make_collator(tokenizer, reads_types)
                   the function that makes a padded batch of windows
read_outputs(output, lengths)      a model's output on a batch, as arrays for each window by name
predict(rows, windows, outputs, **rule)
                   a prediction for each row; outputs: of all windows, by name; rule: of choose_rule
choose_rule(rows, predict_rows)
                   options of `predict` that are chosen on validation rows; predict_rows(): their
                   predictions
score(rows, predictions, clusters=None)
                   (score of each row by name, their averages by name); clusters: those of the rows,
                   where the average is over clusters
describe_predictions(rows, windows, predictions, values, clusters=None)
                   further numbers that a record has of a test set
tabulate(rows, predictions, values)
                   a row for each example: id, scores and what a page may show, never text
"""

from typing import Any

from qa_lib.settings.parameters import Dataset

# Task → its module.
MODULES = {"span": "span", "classes": "sentence", "score": "sentence"}


def have_same_answers(first: Dataset, second: Dataset) -> bool:
    """Return whether one head can answer two datasets: with one task, and one range or order.

    Classes correspond by their order, so that "1 star" and "very negative" may be one. Where a
    class of both has another place in each, they do not.
    """
    if (first.task, first.range) != (second.task, second.range):
        return False
    classes, others = first.classes or [], second.classes or []
    if len(classes) != len(others):
        return False
    return all(name == others[i] or name not in others for i, name in enumerate(classes))


def get_task(name: str, joined: bool = False) -> Any:
    """Return the task of this name: a module, or an object where one module has two tasks.

    joined: whether a pair of texts is one sequence, as question and context are anyway.
    """
    from qa_lib.tasks import sentence, span

    if name == "span":
        return span
    if joined:
        return {"classes": sentence.JOINED_CLASSES, "score": sentence.JOINED_SCORES}[name]
    return {"classes": sentence.CLASSES, "score": sentence.SCORES}[name]
