"""Reading, splits, mixtures, disjointness."""
import gzip
import json
import re
from types import SimpleNamespace

import pandas as pd
import pytest

from qa_lib import data, params, runs, sources
from qa_lib.params import UserError
from qa_lib.settings import Dataset


def row(i: int, **changes) -> dict:
    context = f"The mill at Brun{i} was built in {1800 + i} by Osk{i}."
    return {"id": f"r{i}", "title": f"t{i // 3}", "context": context, "question": f"Who built the mill at Brun{i}?",
            "answers": {"text": [f"Osk{i}"], "answer_start": [context.index(f"Osk{i}")]}} | changes


def write(path, rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt") as f:
        f.writelines(json.dumps(r) + "\n" if isinstance(r, dict) else r for r in rows)


@pytest.fixture
def own(monkeypatch, tmp_path):
    """A folder dataset "own" of the given rows, and how to split it."""
    def make(train, test, **fields):
        write(tmp_path / "train.jsonl", train)
        write(tmp_path / "test.jsonl", test)
        found = {"own": Dataset(train=["train.jsonl"], test=["test.jsonl"], unit="title", **fields)}
        monkeypatch.setattr(params, "datasets", lambda *source: found)
        data.splits.cache_clear()
        return str(tmp_path)

    yield make
    data.splits.cache_clear()


def test_four_formats_give_the_same_rows(tmp_path):
    rows = [row(i) for i in range(4)]
    write(tmp_path / "a.jsonl", rows)
    write(tmp_path / "a.jsonl.gz", rows)
    pd.DataFrame(rows).to_parquet(tmp_path / "a.parquet")
    nested = {"data": [{"title": r["title"], "paragraphs": [{"context": r["context"], "qas": [
        {"id": r["id"], "question": r["question"],
         "answers": [{"text": r["answers"]["text"][0], "answer_start": r["answers"]["answer_start"][0]}]}]}]} for r in rows]}
    (tmp_path / "a.json").write_text(json.dumps(nested))
    found = [sources.read(tmp_path / f, "own", "stop", data.Counter()) for f in ("a.jsonl", "a.jsonl.gz", "a.parquet", "a.json")]
    assert all(f == found[0] for f in found) and len(found[0]) == 4 and found[0][0]["domain"] == "own"


def test_a_malformed_line_is_named(tmp_path):
    write(tmp_path / "a.jsonl", [row(0), '{"id": "broken",\n', row(1)])
    with pytest.raises(UserError, match=r"a\.jsonl, line 2: not JSON .* PARAMS=bad_rows=skip"):
        sources.read(tmp_path / "a.jsonl", "own", "stop", data.Counter())
    counts = data.Counter()
    assert len(sources.read(tmp_path / "a.jsonl", "own", "skip", counts)) == 2 and counts["malformed"] == 1


def test_misplaced_answers_are_counted_never_moved(tmp_path):
    rows = [row(i) for i in range(9)]
    for r in rows[2:7]:
        r["answers"] = {"text": r["answers"]["text"], "answer_start": [0]}
    write(tmp_path / "a.jsonl", rows)
    with pytest.raises(UserError, match=r"5 rows have an answer that does not stand at its answer_start, first r2, r3, r4 "
                       r"\(of the first, '.+' stands at \d+, not at 0\);"):
        sources.read(tmp_path / "a.jsonl", "own", "stop", data.Counter())
    counts = data.Counter()
    assert len(sources.read(tmp_path / "a.jsonl", "own", "skip", counts)) == 4 and counts["misplaced answers"] == 5


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="does not exist; DATA= names the folder"):
        sources.read(tmp_path / "none.jsonl", "own", "stop", data.Counter())


def test_a_planted_leak_is_dropped_and_counted(own):
    """The same text under another id, other case and other spaces, in training and in test."""
    train, test = [row(i) for i in range(30)], [row(i) for i in range(30, 36)]
    leak = dict(train[7], id="leak", title="elsewhere", question=train[7]["question"].upper() + "  ")
    found = data.splits("own", "folder", own(train, test + [leak], validation_rows=6))
    ids = [{r["id"] for r in part} for part in (found.train, found.validation, found.test)]
    assert "leak" in ids[2] and "r7" not in ids[0] | ids[1]
    assert found.counts["copies of held-out rows dropped"] == 1
    pairs = [{data.pair(r) for r in part} for part in (found.train, found.validation, found.test)]
    assert not pairs[0] & pairs[1] and not pairs[0] & pairs[2] and not pairs[1] & pairs[2]
    titles = [{r["title"] for r in part} for part in (found.train, found.validation)]
    assert not titles[0] & titles[1] and len(found.validation) >= 6


def test_what_may_not_train_is_left_out(own, monkeypatch, tmp_path):
    """Rows marked so, rows with a text of another set's test, and in a mixture what another of its sets holds out."""
    train = [row(i) for i in range(30)]
    train[4]["offset"] = "guess"
    other = row(40) | {"context": train[9]["context"].upper(), "answers": {"text": [], "answer_start": []}}
    write(tmp_path / "other.jsonl", [other])
    folder = own(train, [row(30)], leave_out={"offset": "guess"}, apart_from=["other.jsonl"])
    found = data.splits("own", "folder", folder)
    assert {r["id"] for r in train} - {r["id"] for r in found.train} == {"r4", "r9"}
    assert found.counts["contexts of other test sets dropped"] == 1
    whole = {"a": data.Splits(train[:9], [], [], data.Counter()), "b": data.Splits(train[9:], train[3:4], [], data.Counter())}
    spec = SimpleNamespace(domains=["a", "b"], rows=[8, 8], places=[], seed=0, validation_rows=0, tests=[], source="folder",
                           folder=folder, bad_rows="stop")
    with monkeypatch.context() as patch:
        patch.setattr(data, "splits", lambda name, *rest: whole[name])
        mixed, _, counts = data.mixture(spec)
    assert "r3" not in {r["id"] for r in mixed} and counts["copies of other sets' rows dropped"] == 1


def test_a_row_without_an_answer_that_has_one_is_refused(tmp_path):
    write(tmp_path / "a.jsonl", [row(0) | {"is_impossible": True}])
    with pytest.raises(UserError, match="line 1: is_impossible, and yet it has answers"):
        sources.read(tmp_path / "a.jsonl", "own", "stop", data.Counter())


def test_a_training_row_of_another_test_set_is_refused(tiny, monkeypatch):
    """A run may be tested on sets that it does not train on: its sample must not hang on which, so none is dropped."""
    spec = runs.plan(tiny(ratios=[1.0]))[0]
    spec = spec.model_copy(update={"domains": spec.domains[:1], "rows": spec.rows[:1], "fingerprints": spec.fingerprints[:1]})
    whole, leak = data.splits("biomedicine", "embedded"), data.splits("encyclopaedia", "embedded").train[3]
    planted = data.Splits(whole.train, whole.validation, [leak], whole.counts)
    before, splits = data.mixture(spec)[0], data.splits
    monkeypatch.setattr(data, "splits", lambda name, *rest: planted if name == "biomedicine" else splits(name, *rest))
    with pytest.raises(UserError, match="1 training rows of encyclopaedia are test rows of biomedicine; name that set's file in"):
        data.mixture(spec)
    assert data.mixture(spec.model_copy(update={"tests": ["encyclopaedia"]}))[0] == before


@pytest.mark.parametrize("name", ["encyclopaedia", "biomedicine"])
def test_embedded_splits_share_no_text_and_no_entity(name):
    found = data.splits(name, "embedded")
    parts = (found.train, found.validation, found.test)
    for part in ("pair", "title"):
        sets = [{data.pair(r) if part == "pair" else r["title"] for r in rows} for rows in parts]
        assert not sets[0] & sets[1] and not sets[0] & sets[2] and not sets[1] & sets[2], part


def test_a_mixture_is_nested_within_a_seed_and_the_same_for_every_model(tiny):
    def chosen(ratio, seed=0, variant="v-db"):
        spec = runs.plan(tiny(ratios=[ratio], seeds=[seed]))[0].model_copy(update={"variant": variant})
        return [r["id"] for r in data.mixture(spec)[0]]

    half, most = chosen(0.5), chosen(0.75)
    assert set(half[:24]) <= set(most[:36]) and len(half) == len(most) == 48
    assert chosen(0.5, variant="exbert") == half and chosen(0.5, seed=1) != half
    assert [r.split("-")[0] for r in half] == sorted((r.split("-")[0] for r in half), reverse=half[0] > half[-1])


def test_too_few_rows_say_which_set_and_how_many(tiny):
    spec = runs.plan(tiny(train_rows=100_000))[0]
    with pytest.raises(UserError, match=r"needs 50000 training rows of encyclopaedia, which has \d+: \d+ short"):
        data.mixture(spec)


def test_a_share_of_validation_rows_that_is_none_is_refused(tiny):
    with pytest.raises(UserError, match="none of the 1 validation rows falls to encyclopaedia, biomedicine; raise"):
        data.mixture(runs.plan(tiny(validation_rows=1))[0])


def test_a_changed_listed_file_is_refused(own, monkeypatch):
    folder = own([row(i) for i in range(9)], [row(9)])
    monkeypatch.setattr(data, "known_files", lambda: {"train.jsonl": (9, "0" * 64)})
    with pytest.raises(UserError, match="is not the file DATA.md lists"):
        data.splits("own", "folder", folder)


def test_the_hub_is_refused_in_one_sentence_offline():
    """First the encoder, then the data: each with the cures that apply to it."""
    with pytest.raises(UserError, match=r"encoder distilbert-base-uncased: there is no such folder.* and it cannot be had from the "
                                        r"hub .*minilm, which need no network \(PARAMS=encoder=…\), or .* once with network"):
        runs.plan(params.load("exbert", "paper"))
    with pytest.raises(UserError, match=r"dataset .* cannot be had from the hub .*make data .*PROFILE=quick .*PROFILE=real DATA="):
        runs.plan(params.load("exbert", "paper", {"encoder": "minilm"}))


def test_rows_of_the_hub_come_in_two_forms(monkeypatch):
    squad = {"question": "When?", "context": "In March.", "answers": {"text": ["March"], "answer_start": [3]}}
    table = [squad, {"question": "What?", "text": "<answer> ice <context> Ice, and more ice."},
             {"question": "What?", "text": "<answer> snow <context> Ice."}, {"question": "What?", "text": "<answer> no context"}]
    monkeypatch.setattr(sources, "revision", lambda repo: "0" * 40)
    monkeypatch.setattr("datasets.load_dataset", lambda repo, split, revision: [dict(r) for r in table])
    counts = data.Counter()
    first, second = sources.read_hub("a/b:train", "own", counts)
    assert first["answers"] == squad["answers"] and counts["answer not in the context"] == 2
    assert second["answers"] == {"text": ["Ice", "ice"], "answer_start": [0, 14]} and second["id"] == "train-1"


def test_fingerprints_need_no_data_for_listed_files():
    print_ = data.fingerprint("squad", "folder", None)
    assert re.fullmatch("[0-9a-f]{64}", print_) and print_ == data.fingerprint("squad", "folder", "/nowhere")
