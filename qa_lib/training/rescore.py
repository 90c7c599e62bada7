"""Score the stored answers of runs again, after the rules of scoring have changed (runs.SCORING).

    python -m qa_lib rescore REPORT [--profile P] [--size S] --data DIR

A record holds each answer as a span of characters, so the test rows are needed, but no model and no
training. Other values stay as they are: losses, histories, and scores whose answers are not stored,
as those by the starter code's rule and by the best threshold of "no answer". Runs of the store and
committed runs are both rewritten, each whole or not at all.
"""

import numpy as np
import pandas as pd

from qa_lib.data import selection
from qa_lib.settings.parameters import Dataset
from qa_lib.settings.params import UserError
from qa_lib.settings.spec import Spec
from qa_lib.store import runs
from qa_lib.tasks import metrics, no_answer, span
from qa_lib.tasks.characters import widen_to_characters
from qa_lib.training import evaluate


def rescore_answers(frame: pd.DataFrame, rows: dict[str, dict]) -> pd.DataFrame:
    """Return the examples of one test set with spans and scores by today's rules.

    frame: a row for each example, with id, start and end; rows: the test rows by id. The result
    has a further column `contains`, in percent.
    """
    changed = []
    for example in frame.itertuples(index=False):
        row = rows[example.id]
        start, end = widen_to_characters(row["context"], int(example.start), int(example.end))
        answer = row["context"][start:end]
        golds = row["answers"]["text"]
        em, f1 = metrics.score_answer(answer, golds)
        contains = 100.0 * metrics.contains(answer, golds)
        changed.append({"start": start, "end": end, "em": em, "f1": f1, "contains": contains})
    return frame.assign(**pd.DataFrame(changed, index=frame.index))


def average_test_set(frame: pd.DataFrame, d: Dataset) -> dict[str, float]:
    """Return the scores of a test set from its examples: em, f1, em_rows, f1_rows, contains."""
    clusters = frame["cluster"].tolist() if d.average == "clusters" else None
    scores = {}
    for name in ("em", "f1"):
        scores[name] = metrics.average_scores(frame[name].to_numpy(), clusters)
        scores[f"{name}_rows"] = metrics.average_scores(frame[name].to_numpy())
    scores["contains"] = metrics.average_scores(frame["contains"].to_numpy(), clusters)
    return scores


def average_parts(frame: pd.DataFrame, rows: dict[str, dict], d: Dataset) -> dict[str, float]:
    """Return EM and F1 over the answerable and over the impossible rows of a test set, by name.

    frame, rows: as for rescore_answers.
    """
    impossible = np.array([rows[identity]["is_impossible"] for identity in frame["id"]])
    clusters = frame["cluster"].tolist() if d.average == "clusters" else None
    scores = {}
    for name in ("em", "f1"):
        values = frame[name].to_numpy()
        for part, of_part in (("answerable", ~impossible), ("impossible", impossible)):
            scores |= no_answer.average_part(values, of_part, f"{name}_{part}", clusters)
    return scores


def rescore_run(spec: Spec, record: dict) -> tuple[dict, pd.DataFrame]:
    """Return the record of a run and its examples by today's rules of scoring.

    Raises UserError where test rows are gone whose answers the record has.
    """
    names = [name for name in record["metrics"] if name != "training"]
    spec = spec.model_copy(update={"tests": names})
    metrics_by_set = dict(record["metrics"])
    if evaluate.is_combined(spec):
        scores, frame = evaluate.combine_expert_scores(spec)
        metrics_by_set |= scores
        return {**record, "metrics": metrics_by_set, "scoring": runs.SCORING}, frame
    stored = runs.read_examples(record)
    frames = []
    for name, (d, rows) in selection.load_test_sets(spec).items():
        if d.task != span.NAME:  # what others stored is no answer, but what it was worth
            frames.append(stored[stored["set"] == name])
            continue
        by_id = {row["id"]: row for row in rows}
        gone = set(stored.loc[stored["set"] == name, "id"]) - set(by_id)
        if gone:
            raise UserError(
                f"of the questions that {record['run']} has answered {name} lacks {len(gone)} "
                f"today, first {min(gone)}; give the data that it was scored on"
            )
        frame = rescore_answers(stored[stored["set"] == name], by_id)
        metrics_by_set[name] = {**metrics_by_set[name], **average_test_set(frame, d)}
        if "null_threshold" in metrics_by_set[name]:
            metrics_by_set[name] |= average_parts(frame, by_id, d)
        frames.append(frame.drop(columns="contains"))
    frame = pd.concat(frames, ignore_index=True) if frames else stored
    for name in ("em", "f1", "start", "end"):
        if name in stored:
            frame[name] = frame[name].astype(stored[name].dtype)
    return {**record, "metrics": metrics_by_set, "scoring": runs.SCORING}, frame


def count_differences(old: pd.DataFrame, new: pd.DataFrame) -> int:
    """Count the examples whose score or span differs between two frames."""
    key = ["set", "id"]
    names = [name for name in ("em", "f1", "start", "end") if name in old and name in new]
    both = old[key + names].merge(new[key + names], on=key, suffixes=("", "_new"), validate="1:1")
    differs = np.zeros(len(both), bool)
    for name in names:
        differs |= ~np.isclose(both[name], both[f"{name}_new"], atol=1e-4, equal_nan=True)
    return int(differs.sum())


def rescore(report: str, specs: list[Spec]):
    """Score the records of these runs that have another version of scoring; print what moved.

    Where there is none, it says so.
    """
    found_any = False
    combined = [spec for spec in specs if evaluate.is_combined(spec)]
    alone = [spec for spec in specs if not evaluate.is_combined(spec)]
    for group in (alone, combined):  # a combination needs its experts' new scores
        changed = {}
        for spec in group:
            record = runs.find_record(spec)
            if record is None or runs.scoring_version(record) == runs.SCORING:
                continue
            new, frame = rescore_run(spec, record)
            moved = count_differences(runs.read_examples(record), frame)
            print(f"{record['run']}: {moved} of {len(frame)} answers scored otherwise", flush=True)
            found_any = True
            changed[record["hash"]] = (new, frame, moved)
        runs.replace_rescored(report, changed)
    if not found_any:
        print(f"no record of these {len(specs)} runs of {report} is of an earlier scoring")
