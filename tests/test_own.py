"""Own data: the rule of the advice, mistakes on the command line, and a page of two domains."""

import gzip
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml
from filelock import FileLock
from test_house import make
from test_stats import plant_scores

from qa_lib.__main__ import run_verb
from qa_lib.data import corpora, selection, sources
from qa_lib.data.selection import load_test_sets as load_whole_test_sets
from qa_lib.evidence import verdicts, verify
from qa_lib.own_data import advice, floor, own
from qa_lib.own_data.advice import NOT, OPEN, WORTH
from qa_lib.page import render, report
from qa_lib.reports import exbert, plans
from qa_lib.settings import hub, params
from qa_lib.settings.params import UserError
from qa_lib.store import runs
from qa_lib.tasks import sentence
from qa_lib.training import study, train

TINY = {
    "train_rows": 20,
    "validation_rows": 4,
    "ratios": [0.5],
    "control_ratios": [0.5],
    "blocks": 1,
    "tuned_blocks": 1,
    "max_length": 64,
    "stride": 16,
    "batch_size": 8,
    "precision": "fp32",
    "seeds": [0],
    "experts": 4,
    "trial_rates": [0.0002, 0.002, 0.1],
    "trial_epochs": [1, 2],
}
# Tokens a second that two cores without bf16 train of the plain model: four examples of 176 tokens.
SLOW = 4 * 176


@pytest.fixture(autouse=True)
def known_speed(monkeypatch):
    """Take a speed for granted, since measuring it takes seconds at each start."""
    monkeypatch.setattr(study, "measure_speed", lambda spec: 1000.0)


# ---- the rule ----


@pytest.mark.parametrize(
    "low, high, says",
    [
        # one gains more than 1 EM, and the other loses no more than 1 EM
        ([1.1, -0.9], [3, 0.5], WORTH),
        # the other may lose more
        ([1.1, -1.1], [3, 0.5], OPEN),
        # 1 EM itself is not above 1 EM
        ([1.0, 1.0], [3, 3], OPEN),
        # neither gains more than 1 EM
        ([-5, -5], [0.9, 0.9], NOT),
        # one may still gain
        ([-5, -5], [0.9, 1.1], OPEN),
        # a certain gain does not make up for a certain loss
        ([2.0, -5], [4, -1.1], NOT),
        ([2.0, -5], [4, -1.0], OPEN),
        ([np.nan, 2], [np.nan, 4], OPEN),
    ],
)
def test_the_advice_follows_from_the_intervals_of_both_domains(low, high, says):
    assert advice.advise(low, high) == says
    assert advice.advise(low[::-1], high[::-1]) == says


@pytest.fixture
def planted(monkeypatch):
    """Return a function that plants runs and returns the parameters of their report.

    gain: EM of the experts on both domains. size: of the study; validation: the EM of the three
    models on validation rows, where answers without reading have 4. Further arguments are those of
    `plant_scores`.
    """

    def make(
        gain: float,
        seeds=5,
        epochs=2.0,
        size="full",
        rate=1e-4,
        validation=(30.0, 30.0, 30.0),
        **how,
    ):
        gains = {("exbert-tuned", 0.5): gain, ("plain-tuned", 0.5): 0.0, ("v-db", 0.5): 2.0}
        ledger, examples = plant_scores(gains, seeds, sets=["a", "b"], **how)
        ledger = ledger.assign(arm="tuned")
        fields = {"arm": "tuned", "tests": ["a", "b"], "epochs": epochs, "learning_rate": rate}
        labels = ledger.drop_duplicates("run")[["run", "variant", "ratio"]]
        specs = [SimpleNamespace(**row, **fields) for row in labels.to_dict("records")]

        def rows_of(frame, specs):
            return frame[frame["run"].isin([s.run for s in specs])]

        monkeypatch.setattr(plans, "plan", lambda p: specs)
        monkeypatch.setattr(runs, "collect_ledger", lambda s: rows_of(ledger, s))
        monkeypatch.setattr(runs, "collect_examples", lambda s: rows_of(examples, s))
        scores = dict(zip(("v-db", "exbert-tuned", "plain-tuned"), validation, strict=True))
        monkeypatch.setattr(advice, "validation_scores", lambda p: scores)
        monkeypatch.setattr(advice, "find_floor", lambda p: floor.Floor(4.0, "the first words"))
        changes = {"data": "x.yaml", "domains": ["a", "b"], "size": size}
        return plans.load_params("exbert", "own", changes)

    return make


@pytest.mark.parametrize(
    "gain, how, says",
    [
        (5.0, {}, f"Advice: {WORTH}."),
        (5.0, {}, "put a dense layer of the same cost beside them: PARAMS="),
        (0.0, {"seed_sd": 0.1, "cluster_sd": 0.1}, f"Advice: {NOT}."),
        (-9.0, {}, f"Advice: {NOT}."),
        (
            2.5,
            {"seeds": 3, "seed_sd": 1.5},
            "would decide it if it stayed so; from so few that is a rough guess",
        ),
        (
            2.5,
            {"seeds": 3, "seed_sd": 15.0},
            "hardly trained: first more training rows, or more epochs",
        ),
        (
            2.5,
            {"seeds": 3, "seed_sd": 1.5, "epochs": 3.0},
            'PARAMS="trial_epochs=[3,6]" tries more.',
        ),
        (
            2.5,
            {"seeds": 3, "seed_sd": 1.5, "base": 3.0},
            "of a test set, so little was learnt: first more training rows",
        ),
        (2.5, {"clusters": 12, "cluster_sd": 9.0}, "would hardly decide it: more test questions"),
        (5.0, {"seeds": 2}, "Nothing is decided below 3 seeds"),
    ],
)
def test_advice_on_planted_runs(planted, gain, how, says):
    p = planted(gain, **how)
    text = advice.describe_advice(p)
    assert says in text
    assert "the plain span model of 6 blocks, V-DB, " in text
    assert ("trial_epochs" in text) == (how.get("epochs") == 3.0)
    frame = advice.advice_table(p)
    assert list(frame["tested on"]) == ["a", "b"]
    assert all(len(r) == 3 * how.get("seeds", 5) for r in frame["run"])


def test_an_open_advice_says_which_side_is_open(planted, monkeypatch):
    p = planted(5.0)
    ends = {"low": [2.0, -3.0], "high": [7.0, 5.0]}
    frame = advice.estimates(p)
    monkeypatch.setattr(advice, "estimates", lambda p: frame.assign(**ends))
    text = advice.describe_advice(p)
    assert f"Advice: {OPEN}." in text
    assert "a gain above 1 EM is certain on one domain, and a loss above 1 EM is not" in text


@pytest.mark.parametrize("gain, ahead", [(0.0, True), (5.0, False)])
def test_the_plain_model_is_named_where_it_is_ahead(planted, gain, ahead):
    """The advice is about the block alone; a reader may want the best model."""
    text = advice.describe_advice(planted(gain, seed_sd=0.1, cluster_sd=0.1))
    assert ("V-DB, which has no experts, is ahead, by " in text) == ahead


def test_a_plain_model_of_all_blocks_is_told_so(planted):
    text = advice.describe_advice(planted(5.0).model_copy(update={"blocks": None}))
    assert "the plain span model of all blocks, V-DB, " in text


@pytest.mark.parametrize(
    "validation, learnt",
    [
        ((9.1, 9.1, 0.0), True),
        # the plain model is at the floor, whatever the others do
        ((9.0, 50.0, 50.0), False),
        # neither of the two that are compared has learnt
        ((50.0, 9.0, 9.0), False),
        ((50.0, 9.0, 9.1), True),
        ((0.0, 0.0, 0.0), False),
    ],
)
def test_models_that_learnt_nothing_give_no_advice(planted, validation, learnt):
    """Without the floor two models at 0 EM would say that the experts are not worth it."""
    p = planted(0.0, seed_sd=0.1, cluster_sd=0.1, size="small", validation=validation)
    text = advice.describe_advice(p)
    assert advice.has_learnt(p) == learnt
    assert (f"Advice: {NOT}." in text) == learnt
    assert ("Advice: none yet, since the models have learnt too little." in text) != learnt
    if not learnt:
        assert "The best of three answers that need no reading (the first words) has 4.0" in text
        assert "a model that has learnt has more than 9.0." in text
        assert 'PARAMS="trial_epochs=[2,4]" trains twice as long, and SIZE=full' in text
    assert "EM on the two: with the ST-MoE block" in text


def test_the_task_says_by_which_score_models_have_learnt(monkeypatch):
    spec = SimpleNamespace(variant="v-db", checkpoint="last", multitask=None, trial_score=None)
    row = {"step": 1, "validation_accuracy": 62.0, "validation_loss": 1.0}
    records = [(spec, {"history": [row]}), (spec, {"history": [row | {"validation_accuracy": 64}]})]
    monkeypatch.setattr(advice, "centre_runs", lambda p: [spec])
    monkeypatch.setattr(runs, "require_records", lambda specs: records)
    monkeypatch.setattr(selection, "find_task", lambda spec: sentence.CLASSES)
    assert advice.validation_scores(None) == {"v-db": 63.0}


def test_a_rate_at_the_edge_of_the_trials_is_said(planted):
    p = planted(5.0, size="small", rate=1e-3)
    text = advice.describe_advice(p)
    assert "The best rate of ExBERT (final) and (a) without ST-MoE block is at the edge" in text
    rates = text.split('PARAMS="trial_rates=')[1].split('"')[0]
    assert yaml.safe_load(rates) == [1.7e-5, *p.trial_rates, 3e-3]
    assert "at the edge" not in advice.describe_advice(planted(5.0, size="small", rate=1.5e-4))
    # a grid goes on beyond its edge by itself
    assert "at the edge" not in advice.describe_advice(planted(5.0, size="full", rate=5e-4))


def make_answer(text: str | None, context="The old mill stands here.") -> dict:
    """Return a row with an answer, or without one."""
    texts = [] if text is None else [text]
    return {"context": context, "answers": {"text": texts}}


@pytest.mark.parametrize(
    "validation, training, em, words",
    [
        ([None, "k"], ["b"], 50.0, "no question has an answer"),
        (["yes", "yes", "k", None], ["yes", "b", "yes"], 50.0, "most frequent answer"),
        # two words, which is what answers usually have; the article does not count
        (["old", "k", "b"], ["x y", "x z", "w"], 100 / 3, "first words of the text"),
        (["k", "b"], ["c", "d"], 0.0, ""),
    ],
)
def test_the_floor_is_the_best_answer_that_needs_no_reading(validation, training, em, words):
    answers = [make_answer(text) for text in validation]
    best = floor.measure_floor(answers, [make_answer(text) for text in training])
    assert best.em == pytest.approx(em)
    assert words in best.answer


def test_no_advice_without_equal_trials(planted, monkeypatch):
    p = planted(5.0)
    monkeypatch.setattr(plans, "plan", lambda p: [])
    assert "There is no advice: it takes" in advice.describe_advice(p)
    with pytest.raises(UserError, match="There is no advice"):
        advice.advice_table(p)


# ---- from files to page ----


def write_rows(path, rows):
    """Write rows as JSON lines."""
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))


@pytest.fixture
def domains(tmp_path):
    """Make files of two domains with short generated rows. Yield DOMAIN_A and DOMAIN_B."""
    pairs = []
    for name, register in (("harbour", "encyclopaedia"), ("clinic", "biomedicine")):
        rows = corpora.draw_questions(register, 80)
        half = next(i for i in range(50, 80) if rows[i]["context"] != rows[i - 1]["context"])
        train = tmp_path / name / "train.jsonl"
        test = tmp_path / name / "test.jsonl"
        write_rows(train, rows[:half])
        write_rows(test, rows[half:])
        pairs.append(f"{train}:{test}")
    yield pairs
    selection.load_splits.cache_clear()


def test_the_recipe_checks_first_then_trains_then_draws():
    variables = ["VENV=", "NAME=mine", "DOMAIN_A=a b:c", "DOMAIN_B=d:e", "PARAMS=epochs=1", "YES=1"]
    lines = make("-n", "own", *variables).stdout.splitlines()
    values = "--params='domains=[mine-a,mine-b] epochs=1'"
    flags = f"exbert --profile own --data='{runs.RUNS}/own/mine.yaml' {values}"
    assert [line for line in lines if "qa_lib" in line] == [
        f"python -m qa_lib own {values} -- 'mine' 'a b:c' 'd:e'",
        f"python -m qa_lib study {flags} --yes",
        f"python -m qa_lib render {flags}",
        f"python -m qa_lib verify {flags}",
    ]
    lines = make("-n", "own", "SIZE=full", *variables).stdout.splitlines()
    commands = [line for line in lines if "qa_lib" in line]
    assert len(commands) == 4
    assert all(" --size='full' " in line for line in commands)


def own_values(p) -> dict:
    """Return where the domains are, and their names, as parameters that a user gives."""
    return {"data": p.data, "domains": p.domains}


def start_own(monkeypatch, name, texts, tiny=True, **changes):
    """Run `python -m qa_lib own` and return its parameters as later commands read them.

    tiny: with tiny parameters, else with those of the profile.
    """
    # each start stands for a process of its own
    for cached in (params.read_datasets, selection.load_splits, hub.digest_data_file):
        cached.cache_clear()
    command = ["own", name, *texts]
    changes = (TINY if tiny else {}) | changes
    for key, value in changes.items():
        command += ["-p", f"{key}={json.dumps(value)}"]
    monkeypatch.setattr("sys.argv", command)
    run_verb(sys.argv)
    values = {"domains": [f"{name}-a", f"{name}-b"]} | changes
    values["data"] = str(runs.RUNS / "own" / f"{name}.yaml")
    return plans.load_params("exbert", "own", values)


def test_from_files_to_page(domains, tmp_path, monkeypatch, capsys):
    for name in ("QA_RUNS", "QA_FIGURES"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setattr(runs, "RUNS", tmp_path / "QA_RUNS")
    monkeypatch.setattr(runs, "FIGURES", tmp_path / "QA_FIGURES")
    changes = {"domains": ["harbour", "clinic"], "trial_rates": [0.0002, 0.002]}
    p = start_own(monkeypatch, "mine", domains, **changes)
    output = capsys.readouterr().out
    words = "mine; 6 trials by successive halving (2 rates for every model, 1 and then 2 epochs"
    assert words in output
    assert "all rounds together take about 1 min on this machine; with fewer than 3" in output
    assert "harbour: 46 training, 4 validation, 30 test rows\n" in output
    assert "take the questions of one context together, and titles play no part; " in output
    assert re.search("; contexts: harbour has [0-9]+ training, [0-9]+ validation, [0-9]+", output)
    assert "The advice needs runs that are not there yet; it stands here" in report.show_header(p)
    train.train(plans.plan(p)[0], progress=lambda line: None)
    start_own(monkeypatch, "mine", domains, **changes)
    assert "what is left takes about 1 min on this machine; with" in capsys.readouterr().out
    study.run(p, plans.plan, workers=1)
    assert set(study.run(p, plans.plan)["trained"]) == {"found"}
    # what is trained already is not announced again
    start_own(monkeypatch, "mine", domains, **changes)
    output = capsys.readouterr().out
    assert "all rounds together" not in output
    assert "what is left" not in output
    render.render(p)
    folder = tmp_path / "QA_FIGURES" / "exbert" / "own-mine"
    page = (folder / "report.html").read_text()
    assert not list(folder.parent.glob("real"))
    assert not (folder / "claims.csv").exists()
    assert "<strong>Advice: none yet, since the models have learnt too little.</strong>" in page
    assert "EM on validation rows: V-DB 0.0, " in page
    assert ">OWN</strong>" in page
    assert "claims are not judged" in page
    assert "Successive halving, alike for all models: every rate is tried with 1, then 2" in page
    assert "Not run here" not in page
    assert "Is ExBERT's block worth it on mine?</h1>" in page
    assert page.index("Advice: ") < page.index('<h2 id="the-question"')
    for text in ("Claim.", "profile <code>quick", "more questions of both domains exactly"):
        assert text not in page
    assert "harbour/train.jsonl" in page
    assert str(tmp_path) not in page
    assert page.count("<script") == 1
    drawn = {"table_advice", "fig_scores", "table_scores", "table_trials", "table_data"}
    assert {f.stem for f in folder.iterdir()} == {*drawn, "table_answers", "report"}
    assert re.findall('<figure id="(.*?)">', page)[:2] == ["table_advice", "fig_scores"]
    assert list(pd.read_csv(folder / "table_advice.csv")["tested on"]) == ["harbour", "clinic"]
    assert verify.find_disagreement(p) in ("", None)
    assert "Advice: none yet" in advice.describe_head(p)
    # the page of another size says what it compares
    assert "halving" not in own.describe_trials(p.model_copy(update={"halving": False}))


def test_the_dense_controls_are_announced_too(domains, monkeypatch, capsys):
    parts = ["headline", "dense"]
    start_own(monkeypatch, "mine", domains, experiments=parts, seeds=[0, 1])
    output = capsys.readouterr().out
    assert "20 trials by successive halving" in output
    # V-DB and control (a) are one model at one block; the best trial is the first seed of each
    assert "then 6 runs" in output
    start_own(monkeypatch, "mine", domains, experiments=parts, size="full")
    output = capsys.readouterr().out
    assert "24 trials, more where" in output
    assert "then about 4 runs" in output
    # control (a) has runs at two of three mixtures
    start_own(monkeypatch, "mine", domains, ratios=[0.25, 0.75], control_ratios=[0.25], centre=0.5)
    assert "then 12 runs" in capsys.readouterr().out


def count_foreseen_tokens(p) -> float:
    """Return the tokens of a study of own data, as an estimate has them before anything is run."""
    known = {}
    every = {spec.hash: spec for spec in own.foresee_plan(p)}
    return sum(study.estimate_tokens(spec, known) for spec in every.values())


def make_domain_files(folder, name: str, rows: int, test_rows: int, characters: int) -> str:
    """Write the training and the test file of a domain; return them as make wants them.

    characters: of context and question together.
    """
    parts = []
    for part, count in (("train", rows), ("test", test_rows)):
        made = make_crowded_rows(f"{name} {part}", [1] * count)
        for row in made:
            missing = characters - len(row["context"]) - len(row["question"])
            row["context"] += " " + "x" * (missing - 1)
        write_rows(folder / name / f"{part}.jsonl", made)
        parts.append(str(folder / name / f"{part}.jsonl"))
    return ":".join(parts)


def test_the_default_gives_its_advice_in_two_hours(tmp_path, monkeypatch):
    """On two cores without bf16, of two domains of 1,000 rows with 176 tokens each.

    Every token counts as one of the plain model of six blocks, the dearest.
    """
    monkeypatch.setattr(selection, "load_test_sets", load_whole_test_sets)
    characters = round(176 * study.CHARACTERS)
    texts = [make_domain_files(tmp_path, name, 1000, 250, characters) for name in "ab"]
    p = start_own(monkeypatch, "mine", texts, tiny=False)
    assert p.size == "small"
    hours = count_foreseen_tokens(p) / SLOW / 3600
    assert 1 < hours < 1.9  # what is left is for the start of 24 runs and for the page
    thorough = plans.load_params("exbert", "own", own_values(p) | {"size": "full"})
    assert count_foreseen_tokens(thorough) / SLOW / 3600 > 5


@pytest.mark.parametrize(
    "rates, epochs, plan, page",
    [
        ([1e-4], [1, 2], "1 rate for every model, 1 and then 2 epochs, the better half", "1, then"),
        ([1e-4, 2e-4], [2], r"2 rates for every model, 2 epochs\)", r"2 epochs\. The best"),
        ([1e-4, 2e-4], [1], r"2 rates for every model, 1 epoch\)", r"1 epoch\. The best"),
    ],
)
def test_halving_is_told_by_its_numbers_of_rates_and_rounds(monkeypatch, rates, epochs, plan, page):
    monkeypatch.setattr(own, "foresee_plan", lambda p: [])
    changes = {"data": "x.yaml", "domains": ["a", "b"]}
    p = plans.load_params("exbert", "own", changes | {"trial_rates": rates, "trial_epochs": epochs})
    assert re.search(rf"\({plan}", own.describe_plan(p))
    assert re.search(rf"is tried with {page}", own.describe_trials(p))


def test_long_texts_are_told_what_takes_two_hours(planted):
    p = planted(0.0, size="small")
    assert own.describe_cost(p, 1.9, False).endswith("take about 1.9 hours on this machine")
    few = p.model_copy(update={"seeds": [0, 1]})
    assert own.describe_cost(few, 1.9, False).endswith("with fewer than 3 seeds it decides nothing")
    # other rows would train anew what is done
    assert own.describe_cost(p, 4.0, True) == "what is left takes about 4.0 hours on this machine"
    text = own.describe_cost(p, 4.0, False)
    assert 'about 4.0 hours on this machine; PARAMS="train_rows=320" takes about 2' in text
    assert "PARAMS" not in own.describe_cost(planted(0.0, size="full"), 9.0, False)


def test_size_full_is_the_plan_that_was_there_before(domains, monkeypatch):
    few = {"train_rows": 40, "validation_rows": 5}
    p = start_own(monkeypatch, "mine", domains, tiny=False, size="full", **few)
    specs = plans.plan(p)
    assert len(specs) == 24
    assert {spec.batch_size for spec in specs} == {16}
    assert {spec.epochs for spec in specs} == {2, 3}
    assert sorted({spec.learning_rate for spec in specs}) == [5e-5, 1e-4, 2.5e-4, 5e-4]
    foreseen = own.foresee_plan(p)
    assert len({spec.hash for spec in foreseen}) == 24 + 15 - 3
    assert {spec.ratio for spec in foreseen} == {0.2, 0.5, 0.8}


SECTIONS = [
    "The question",
    "Advice",
    "Scores",
    "Tuning",
    "Data",
    "Examples",
    "Limits",
    "Provenance",
]


def test_the_notebook_is_short_and_names_what_it_draws():
    nb = render.read_notebook("exbert", "own")
    text = "\n".join(cell.source for cell in nb.cells if cell.cell_type == "markdown")
    assert re.findall(r"^## (.+)$", text, re.M) == SECTIONS
    assert len(text.split()) < 600
    for cell in nb.cells:
        drawn = re.findall(r'save_(?:table|figure)\(\s*P,\s*"(\w+)"', cell.source)
        assert [tag for tag in render.tags(cell) if tag.startswith(("table", "fig"))] == drawn


def test_the_notebook_s_parameters_are_those_of_own_data(domains, monkeypatch):
    p = start_own(monkeypatch, "mine", domains)
    nb = render.read_notebook("exbert", "own")
    names = set(render.read_notes(nb.cells[1].source))
    assert names < set(exbert.Parameters.model_fields)
    values = render.choose_values(nb, p)
    assert set(render.read_notes(nb.cells[1].source)) == names
    assert values.keys() == plans.read_names("exbert", run_cell(nb.cells[1].source)).keys()
    assert names < set(values)
    assert {"max_length", "tuned_blocks"} <= set(values)  # which these tests change
    assert "stride" not in values or p.stride != 128
    assert plans.load_from_names("exbert", values, "own") == p
    # a parameter that the cell leaves open is that of the size
    cell = {"report": "exbert", "data": p.data, "train_rows": None, "seeds": [0, 1]}
    small = plans.load_from_names("exbert", cell, "own")
    full = plans.load_from_names("exbert", cell | {"size": "full"}, "own")
    assert (small.train_rows, full.train_rows) == (640, 1000)
    assert (small.halving, full.halving) == (True, False)
    with pytest.raises(
        UserError, match="^notebook parameter seed is not a parameter; did you mean"
    ):
        plans.load_from_names("exbert", cell | {"seed": 0}, "own")


def test_run_all_reads_data_that_were_mended_since(domains, tmp_path, monkeypatch):
    """A kernel outlives an edit of the files, and of their definition."""
    cell = own_values(start_own(monkeypatch, "mine", domains))
    first = plans.load_from_names("exbert", cell, "own")
    hashes = {spec.hash for spec in plans.plan(first)}
    rows = selection.load_splits("mine-a", "own", first.data).train
    file = tmp_path / "harbour" / "train.jsonl"
    file.write_text(file.read_text().replace(rows[0]["question"], "Is it mended?"))
    second = plans.load_from_names("exbert", cell, "own")
    assert not hashes & {spec.hash for spec in plans.plan(second)}
    read = selection.load_splits("mine-a", "own", first.data).train
    assert read[0]["question"] == "Is it mended?"
    definition = Path(first.data).read_text()
    Path(first.data).write_text(definition.replace("validation_rows: 2", "validation_rows: 9"))
    plans.load_from_names("exbert", cell, "own")
    assert selection.find_dataset("mine-a", "own", first.data).validation_rows == 9


def run_cell(source: str) -> dict:
    """Return the names that a cell leaves behind."""
    names = {}
    exec(source, {}, names)
    return names


def test_a_run_is_known_by_what_its_files_hold(domains, tmp_path, monkeypatch):
    p = start_own(monkeypatch, "mine", domains)
    hashes = [s.hash for s in plans.plan(p)]
    (tmp_path / "harbour").rename(tmp_path / "port")
    moved = start_own(monkeypatch, "yours", [domains[0].replace("harbour", "port"), domains[1]])
    assert [s.hash for s in plans.plan(moved)] == hashes
    write_rows(tmp_path / "port" / "test.jsonl", corpora.draw_questions("news", 9))
    start_own(monkeypatch, "yours", [domains[0].replace("harbour", "port"), domains[1]])
    assert not set(hashes) & {s.hash for s in plans.plan(moved)}


@pytest.mark.parametrize(
    "name, change, words",
    [
        ("mi/ne", lambda a, b: [a, b], "NAME=mi/ne: a name is letters"),
        (
            "mine",
            lambda a, b: ["", b],
            "DOMAIN_A= does not name two files: write DOMAIN_A=train.jsonl:test.jsonl",
        ),
        ("mine", lambda a, b: [a, b.split(":")[0]], "does not name two files"),
        (
            "mine",
            lambda a, b: [a, b + "x"],
            "DOMAIN_B: .*clinic/test.jsonlx is not there; .*; the folder .*/clinic holds "
            "test.jsonl, train.jsonl; did you mean test.jsonl.$",
        ),
        (
            "mine",
            lambda a, b: [a.replace("harbour", "harbor"), b],
            "DOMAIN_A: .*harbor/train.jsonl is not there; .* holds .*harbour.*mean harbour.$",
        ),
        (
            "mine",
            lambda a, b: [a, b.replace("/train.jsonl", "")],
            "clinic is a folder, not a file; .*/clinic holds test.jsonl, train.jsonl",
        ),
        (
            "mine",
            lambda a, b: [":".join([a.split(":")[0]] * 2), b],
            "DOMAIN_A: .* holds the same as the training file of DOMAIN_A; name another test file",
        ),
        (
            "mine",
            lambda a, b: [a, a],
            "DOMAIN_B: .* holds the same as the training file of DOMAIN_A",
        ),
    ],
)
def test_a_mistake_on_the_command_line_is_one_sentence(domains, monkeypatch, name, change, words):
    with pytest.raises(UserError, match=words) as error:
        start_own(monkeypatch, name, change(*domains))
    assert "\n" not in str(error.value)
    assert not list(runs.RUNS.glob("own/*"))


def test_the_longest_name_has_domains_of_its_own():
    """They are the name with -a and -b behind it."""
    name = "a" * 40
    own.check_name(name)
    own.check_domains(SimpleNamespace(domains=[f"{name}-a", f"{name}-b"]))
    with pytest.raises(UserError, match="^NAME=a+: a name is letters"):
        own.check_name(name + "a")


def test_a_mistake_replaces_no_definition(domains, tmp_path, monkeypatch):
    p = start_own(monkeypatch, "mine", domains)
    content = Path(p.data).read_bytes()
    short = tmp_path / "clinic" / "short.jsonl"
    write_rows(short, corpora.draw_questions("biomedicine", 3))
    train, test = domains[1].split(":")
    with pytest.raises(UserError, match="mine-b cannot be split: one context holds 3 of"):
        start_own(monkeypatch, "mine", [domains[0], f"{short}:{test}"])
    with pytest.raises(UserError, match="short.jsonl, line 1: not JSON"):
        short.write_text("{\n", encoding="utf-8")
        start_own(monkeypatch, "mine", [domains[0], f"{train}:{short}"])
    # nor does what no memory can hold
    monkeypatch.setattr(study, "estimate_cost", refuse_for_memory)
    with pytest.raises(UserError, match="^no memory for that$"):
        start_own(monkeypatch, "mine", domains[::-1])
    assert Path(p.data).read_bytes() == content


def refuse_for_memory(specs, workers):
    """Refuse a study as one that is too large."""
    raise UserError("no memory for that")


@pytest.mark.parametrize("text", ["mine-a: [", "mine-a: 3", "[1]", "x", "", "mine-a: {train: [x]}"])
def test_a_damaged_definition_is_written_anew(domains, monkeypatch, text):
    p = start_own(monkeypatch, "mine", domains)
    content = Path(p.data).read_bytes()
    Path(p.data).write_text(text, encoding="utf-8")
    start_own(monkeypatch, "mine", domains)
    assert Path(p.data).read_bytes() == content


def test_a_rate_is_told_with_all_its_digits():
    rates = [advice.format_rate(rate) for rate in (5e-5, 1.25e-4, 1e-3)]
    assert rates == ["5.0e-05", "1.25e-04", "1.0e-03"]
    assert [yaml.safe_load(rate) for rate in rates] == [5e-5, 1.25e-4, 1e-3]


def test_the_definition_of_a_study_that_trains_is_not_replaced(domains, monkeypatch):
    p = start_own(monkeypatch, "mine", domains)
    content = Path(p.data).read_bytes()
    with FileLock(runs.RUNS / "exbert.lock"):
        start_own(monkeypatch, "mine", domains)
        start_own(monkeypatch, "yours", domains)
        with pytest.raises(UserError, match="own/mine.yaml defines other .* a study of exbert is"):
            start_own(monkeypatch, "mine", domains[::-1])
        assert Path(p.data).read_bytes() == content
    start_own(monkeypatch, "mine", domains[::-1])
    assert Path(p.data).read_bytes() != content


def test_a_file_behind_a_link_keeps_the_ending_of_the_link(domains, tmp_path, monkeypatch):
    """The hub's cache names its files by their content, and links to them by their names."""
    file = tmp_path / "clinic" / "test.jsonl"
    file.symlink_to(file.rename(tmp_path / "0123abcd"))
    p = start_own(monkeypatch, "mine", domains)
    assert selection.find_dataset("mine-b", "own", p.data).test == [str(file)]


def test_a_file_whose_name_is_too_long_is_one_sentence(domains, monkeypatch):
    with pytest.raises(UserError, match="DOMAIN_A: x{300} is not there; write"):
        start_own(monkeypatch, "mine", [f"{'x' * 300}:test.jsonl", domains[1]])
    with pytest.raises(UserError, match="x{300}.yaml does not exist; make own"):
        params.read_datasets("own", f"{'x' * 300}.yaml")


def test_a_file_that_has_become_a_folder_is_one_sentence(domains, tmp_path, monkeypatch):
    cell = own_values(start_own(monkeypatch, "mine", domains))
    file = tmp_path / "clinic" / "train.jsonl"
    file.unlink()
    file.mkdir()
    with pytest.raises(UserError, match="clinic/train.jsonl is a folder, and a file is read; name"):
        plans.plan(plans.load_from_names("exbert", cell, "own"))


def test_help_says_what_a_domain_is(capsys):
    with pytest.raises(SystemExit):
        run_verb(["own", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "the two files of a domain, train.jsonl:test.jsonl; docs/own-data.md has their" in text
    assert "does this, trains, and draws the page" in text


def count_wrong(advised: str, seeds: list[int], times: int = 2000) -> float:
    """Return in which share of studies the advice is wrong, where the gains are at its border.

    advised: “worth it”, though the gain on both domains is 1 EM and no more, or “not worth it”,
    though it is 1 EM on one and the other loses no more. seeds: how many there are at each look; a
    study ends at the first look that is not open.
    """
    gains = {WORTH: (advice.ROOM, advice.ROOM), NOT: (advice.ROOM, -advice.ROOM)}[advised]
    rng = np.random.default_rng(0)
    of_questions = 0.2  # EM: sd of what other test questions would change, on each domain
    effects = np.reshape(gains, (2, 1)) + rng.normal(0, of_questions, (times, 2, 1))
    measured = effects + rng.normal(0, 1.5, (times, 2, max(seeds)))
    open_ = np.ones(times, bool)
    wrong = 0
    for n in seeds:
        seen = measured[..., :n]
        ends = verdicts.interval(
            seen.mean(-1), seen.var(-1, ddof=1), n - 1, of_questions**2, n, 600
        )
        said = np.array([advice.advise(low, high) for low, high in zip(*ends, strict=True)])
        wrong += (open_ & (said == advised)).sum()
        open_ &= said == OPEN
    return wrong / times


@pytest.mark.parametrize("n", [3, 6])
def test_at_most_5_percent_of_studies_give_the_wrong_advice(n):
    assert 0.01 < count_wrong(WORTH, [n]) <= 0.05
    assert 0.01 < count_wrong(NOT, [n]) <= 0.055  # 5 % and the error of 2,000 studies


def test_who_looks_after_each_seed_errs_more_often():
    """docs/own-data.md says by how much."""
    assert 0.14 < count_wrong(WORTH, list(range(3, 21))) < 0.19
    assert 0.14 < count_wrong(NOT, list(range(3, 21))) < 0.25


def test_a_domain_of_a_taken_name_is_refused(domains, monkeypatch):
    """The scores would be taken for those on training rows, and stand in results.csv twice."""
    words = "PARAMS .-p.: domains: 'training' cannot name a dataset, .*; give it another name"
    with pytest.raises(UserError, match=words):
        start_own(monkeypatch, "mine", domains, domains=["training", "legal"])
    assert not list(runs.RUNS.glob("own/*"))


@pytest.mark.parametrize("changes", [{"arms": ["printed"]}, {"experiments": ["dense"]}])
def test_parts_that_give_no_advice_are_refused(domains, monkeypatch, changes):
    """Else this would show after hours, when the page is drawn."""
    with pytest.raises(UserError, match="experiment headline with equal tuning; keep them: PARAMS"):
        start_own(monkeypatch, "mine", domains, **changes)
    assert not list(runs.RUNS.glob("own/*"))


@pytest.mark.parametrize(
    "changes, fewest",
    [({"validation_rows": 1}, 2), ({"validation_rows": 2, "control_ratios": [0.8]}, 3)],
)
def test_too_few_validation_rows_are_refused_before_the_plan_is_told(
    domains, monkeypatch, capsys, changes, fewest
):
    words = (
        f"PARAMS: validation_rows={fewest - 1} leaves a mixture without a validation row of each "
        f"domain; write validation_rows={fewest} or more"
    )
    with pytest.raises(UserError, match=f"^{words}$"):
        start_own(monkeypatch, "mine", domains, **changes)
    assert not capsys.readouterr().out
    p = start_own(monkeypatch, "mine", domains, **changes | {"validation_rows": fewest})
    for spec in plans.plan(p):
        _, validation, _ = selection.draw_mixture(spec)
        assert {row["domain"] for row in validation} == set(p.domains)


def test_too_few_rows_say_what_would_do(domains, monkeypatch):
    words = r"mine-a has \d+ training rows; after \d+ for validation \d+ are left"
    with pytest.raises(UserError, match=words) as error:
        start_own(monkeypatch, "mine", domains, train_rows=1000, validation_rows=200)
    start_own(monkeypatch, "mine", domains, **read_proposal(error.value))


def read_proposal(error: UserError) -> dict:
    """Return the parameters that an error proposes."""
    proposal = str(error).split("in PARAMS: ")[1]
    return yaml.safe_load("{" + proposal.replace("=", ": ").replace(" v", ", v") + "}")


def make_crowded_rows(name: str, sizes: list[int]) -> list[dict]:
    """Return rows of contexts with several questions each, of which `sizes` has the numbers."""
    rows = []
    for i, size in enumerate(sizes):
        year = str(1000 + i)
        context = f"The {name} mill {i} was built in {year}."
        answers = {"text": [year], "answer_start": [context.index(year)]}
        for k in range(size):
            question = f"When was mill {i} built, asked {k} times?"
            rows.append({"context": context, "question": question, "answers": answers})
    return rows


@pytest.mark.parametrize(
    "sizes", [[600, 600], [1000] + [1] * 200, [30] * 20, [400, 300, 200, 100, 1]]
)
@pytest.mark.parametrize(
    "changes",
    [
        {"train_rows": 2500, "validation_rows": 200},
        {"train_rows": 2501, "validation_rows": 2},
        {"train_rows": 1999, "validation_rows": 900, "ratios": [0.1, 0.9], "centre": 0.1},
    ],
)
def test_parameters_that_are_proposed_work(domains, tmp_path, monkeypatch, sizes, changes):
    """They also work if a few contexts hold most of the rows. A context is never split."""
    write_rows(tmp_path / "harbour" / "train.jsonl", make_crowded_rows("harbour", sizes))
    write_rows(tmp_path / "clinic" / "train.jsonl", make_crowded_rows("clinic", [2] * 800))
    words = r"mine-a has \d+ training rows; after \d+ for validation"
    with pytest.raises(UserError, match=words) as error:
        start_own(monkeypatch, "mine", domains, **changes)
    fits = read_proposal(error.value)
    assert fits["train_rows"] < changes["train_rows"]
    p = start_own(monkeypatch, "mine", domains, **changes | fits)
    for spec in plans.plan(p):
        train, validation, _ = selection.draw_mixture(spec)
        assert len(train) == fits["train_rows"]
        assert validation


@pytest.mark.parametrize(
    "sizes, most", [([1200], "1,200 of its 1,200"), ([1195, 1, 1], "1,195 of its 1,197")]
)
@pytest.mark.parametrize("domain", ["harbour", "clinic"])
def test_one_context_of_all_rows_cannot_be_split(
    domains, tmp_path, monkeypatch, sizes, most, domain
):
    write_rows(tmp_path / domain / "train.jsonl", make_crowded_rows("harbour", sizes))
    for train_rows, validation_rows in ((1000, 200), (20, 900)):
        words = f"{most} training rows, and whole contexts go to validation"
        with pytest.raises(UserError, match=words) as error:
            start_own(
                monkeypatch,
                "mine",
                domains,
                train_rows=train_rows,
                validation_rows=validation_rows,
            )
        name = {"harbour": "mine-a", "clinic": "mine-b"}[domain]
        sentence = str(error.value)
        assert sentence.startswith(f"{name} cannot be split: one context holds ")
        assert "add rows of other contexts, or cut that context into several" in sentence
        assert "PARAMS" not in sentence
    rows = make_crowded_rows("harbour", sizes)
    for i, r in enumerate(rows):
        r["context"] += f" Part {i // 10}."
    write_rows(tmp_path / domain / "train.jsonl", rows)
    start_own(monkeypatch, "mine", domains)


def test_hardly_any_rows_propose_nothing(domains, tmp_path, monkeypatch):
    write_rows(tmp_path / "clinic" / "train.jsonl", make_crowded_rows("clinic", [1] * 5))
    words = (
        "mine-b has 5 training rows that no test row repeats: too few to train on; add rows, 12 "
        "are needed in all with train_rows=20 and validation_rows=4"
    )
    with pytest.raises(UserError, match=words):
        start_own(monkeypatch, "mine", domains)


def test_too_few_rows_say_how_many_were_left_out_and_why(domains, tmp_path, monkeypatch):
    rows = make_crowded_rows("clinic", [1] * 40)
    repeated = rows[:5]
    for row in rows[10:]:
        row["question"] = None
    write_rows(tmp_path / "clinic" / "train.jsonl", rows)
    test_file = tmp_path / "clinic" / "test.jsonl"
    test_file.write_text(test_file.read_text() + "".join(json.dumps(r) + "\n" for r in repeated))
    words = (
        r"mine-b has 5 training rows that no test row repeats \(left out of its files: "
        r"30 incomplete, 5 copies of held-out rows; bad_rows=stop in PARAMS says what is "
        r"wrong with the bad ones\): too few to train on; add rows"
    )
    with pytest.raises(UserError, match=words):
        start_own(monkeypatch, "mine", domains, bad_rows="skip")


def test_validation_fits_every_mixture_there_is(domains, monkeypatch):
    """A control at 90:10 takes more validation rows of the first domain than 50:50 does."""
    start_own(
        monkeypatch,
        "mine",
        domains,
        train_rows=10,
        validation_rows=10,
        ratios=[0.5],
        control_ratios=[0.9],
        centre=0.5,
    )
    definition = yaml.safe_load((runs.RUNS / "own" / "mine.yaml").read_text())
    assert [d["validation_rows"] for d in definition.values()] == [9, 9]


def test_a_test_set_of_one_context_is_refused(domains, tmp_path, monkeypatch):
    file = tmp_path / "clinic" / "test.jsonl"
    file.write_text(file.read_text().splitlines()[0] + "\n")
    words = "all rows of the test file of mine-b .1. have one context, .*; add test rows of other"
    with pytest.raises(UserError, match=words):
        start_own(monkeypatch, "mine", domains)


def test_rows_without_titles_are_split_by_context(domains, tmp_path, monkeypatch, capsys):
    for name in ("harbour", "clinic"):
        for kind in ("train", "test"):
            file = tmp_path / name / f"{kind}.jsonl"
            rows = [json.loads(line) for line in file.read_text().splitlines()]
            for row in rows:
                del row["title"]
            write_rows(file, rows)
    start_own(monkeypatch, "mine", domains)
    output = capsys.readouterr().out
    assert "mine-a: 46 training, 4 validation, 30 test rows\n" in output
    counts = re.search("mine-a has ([0-9]+) training, ([0-9]+) validation, ([0-9]+)", output)
    assert all(0 < int(count) < 46 for count in counts.groups())


def test_rows_that_share_an_id_are_refused(domains, tmp_path, monkeypatch):
    file = tmp_path / "clinic" / "test.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    write_rows(file, [row | {"id": "p1"} for row in rows])
    words = (
        r"rows of the test file of mine-b share an id: \d+ have 'p1', the first of 1 such ids; "
        "give each row an id of its own, or leave the field id out"
    )
    with pytest.raises(UserError, match=words):
        start_own(monkeypatch, "mine", domains)


def read_file(file: Path) -> list[dict]:
    """Return the rows of a file of JSON Lines."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_rows_that_make_scores_say_less_are_told(domains, tmp_path, monkeypatch, capsys):
    start_own(monkeypatch, "mine", domains)
    assert "also train" not in capsys.readouterr().out
    train, test = tmp_path / "clinic" / "train.jsonl", tmp_path / "clinic" / "test.jsonl"
    rows = read_file(test)
    first = rows[0] | {"id": "again", "answers": {"text": [], "answer_start": []}}
    text = "word " * 40
    long = {"text": [text.strip()], "answer_start": [0]}
    rows += [
        first,
        rows[1] | {"id": "long", "context": text, "answers": long},
        rows[2] | {"id": "asked", "question": "Why " * 70},
    ]
    write_rows(test, rows)
    # a row of the test whose context trains with another question
    write_rows(train, [*read_file(train), rows[3] | {"id": "shared", "question": "What is it?"}])
    # a training row of the other domain that the test holds
    other = tmp_path / "harbour" / "train.jsonl"
    write_rows(other, [*read_file(other), rows[4] | {"id": "copy"}])
    p = start_own(monkeypatch, "mine", domains)
    told = capsys.readouterr().out
    contexts = len({row["context"] for row in rows})
    assert f"mine-b: 1 of {contexts} contexts of the test also train, so that scores" in told
    assert "mine-b: 2 test rows ask another test row's question of its context" in told
    assert re.search(r"mine-b: 1 of \d+ rows have no answer of at most 30 tokens", told)
    assert re.search(r"mine-b: 1 of \d+ questions have more than 64 tokens", told)
    assert not re.search("mine-a: .* (also train|test rows ask|at most 30|more than 64)", told)
    left_out = own.describe_counts(p)
    assert "mine-a: 1 copies of the other domain's held-out rows dropped" in left_out


def test_other_names_of_trained_domains_are_refused(domains, monkeypatch):
    """The runs would be trained again, for scores under the new names in place of the old ones."""
    p = start_own(monkeypatch, "mine", domains, domains=["harbour", "clinic"])
    start_own(monkeypatch, "mine", domains)  # nothing is trained yet
    start_own(monkeypatch, "mine", domains, domains=["harbour", "clinic"])
    record = {"metrics": {"clinic": {}, "harbour": {}}}
    monkeypatch.setattr(runs, "read_all", lambda report: [record])
    content = Path(p.data).read_bytes()
    words = (
        r"PARAMS: domains: the study of these files calls them harbour and clinic; add "
        r"domains=\[harbour,clinic\] to go on with it, or delete .*mine.yaml"
    )
    with pytest.raises(UserError, match=words):
        start_own(monkeypatch, "mine", domains)
    assert Path(p.data).read_bytes() == content
    start_own(monkeypatch, "mine", domains, domains=["harbour", "clinic"])


def test_other_names_of_other_files_are_not_refused(domains, monkeypatch):
    """Nothing of these files was trained, so no score would stand in the place of another."""
    start_own(monkeypatch, "mine", domains, domains=["harbour", "clinic"])
    record = {"metrics": {"clinic": {}, "harbour": {}}}
    monkeypatch.setattr(runs, "read_all", lambda report: [record])
    train_file, test_file = domains[0].split(":")
    other = f"{domains[1].split(':')[0]}:{test_file}"
    p = start_own(monkeypatch, "mine", [f"{train_file}:{domains[1].split(':')[1]}", other])
    assert p.domains == ["mine-a", "mine-b"]


def test_the_needed_rows_are_the_most_that_a_run_takes(domains, monkeypatch):
    p = start_own(monkeypatch, "mine", domains)
    taken = [spec.rows for spec in own.foresee_plan(p)]
    assert own.needed_rows(p, p.train_rows) == [max(rows) for rows in zip(*taken, strict=True)]


def test_the_rows_that_fit_are_the_most_that_fit(tmp_path, monkeypatch):
    texts = [
        make_domain_files(tmp_path, name, rows, 40, 300) for name, rows in (("a", 90), ("b", 200))
    ]
    with pytest.raises(UserError, match="take what fits, in PARAMS") as raised:
        start_own(monkeypatch, "mine", texts, train_rows=190, validation_rows=20)
    named = re.search(r"train_rows=(\d+) validation_rows=(\d+)", str(raised.value))
    train_rows, validation_rows = map(int, named.groups())
    fits = {"train_rows": train_rows, "validation_rows": validation_rows}
    start_own(monkeypatch, "mine", texts, **fits)
    with pytest.raises(UserError, match="take what fits, in PARAMS"):
        start_own(monkeypatch, "mine", texts, **fits | {"train_rows": train_rows + 1})


@pytest.mark.parametrize("kind", ["train", "test"])
def test_a_file_without_any_answer_is_refused(domains, tmp_path, monkeypatch, kind):
    file = tmp_path / "clinic" / f"{kind}.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    write_rows(file, [row | {"answers": {"text": [], "answer_start": []}} for row in rows])
    with pytest.raises(UserError, match=f"no row of the {kind} file of mine-b has an answer"):
        start_own(monkeypatch, "mine", domains)


ROW = {
    "id": 7,
    "context": "The harbour froze.",
    "question": "What froze?",
    "answers": {"text": ["harbour"], "answer_start": [4]},
}


@pytest.mark.parametrize(
    "line, words",
    [
        (
            {k: v for k, v in ROW.items() if k != "answers"} | {"answer": "x"},
            "line 1: no field 'answers' among id, context, question,",
        ),
        (
            ROW | {"answers": ["harbour"]},
            "line 1: field 'answers' is not",
        ),
        (
            ROW | {"answers": {"text": ["harbour"], "answer_start": []}},
            "line 1: field 'answers' is not",
        ),
        (ROW | {"answers": {"text": [""], "answer_start": [0]}}, "line 1: field 'answers' is not"),
        (ROW | {"context": None}, "line 1: field 'context' holds no text"),
        ([1, 2], "line 1: not an object"),
        (
            ROW | {"answers": {"text": ["harbour"], "answer_start": [5]}},
            "line 1: the answer 'harbour' stands at 4, not at 5",
        ),
    ],
)
def test_a_bad_row_is_named(domains, tmp_path, monkeypatch, line, words):
    write_rows(tmp_path / "harbour" / "train.jsonl", [line, ROW])
    with pytest.raises(UserError, match=words) as error:
        start_own(monkeypatch, "mine", domains)
    assert str(tmp_path / "harbour" / "train.jsonl") in str(error.value)
    assert "bad_rows=skip" in str(error.value)


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("a.xlsx", b"PK", "its name has none of the known endings; save it as JSON Lines"),
        (
            "a.csv",
            b"id,question\n",
            "cannot be read .no column 'context' among 'id', 'question'; a row has context, "
            "question, answer, answer_start",
        ),
        (
            "a.json",
            b'{"context": "x"}\n{"context": "y"}\n',
            "cannot be read .*one row a line is a .jsonl",
        ),
        ("a.json", b'{"rows": []}', "cannot be read .no field 'data'"),
        ("a.jsonl.gz", b"not gzip", "cannot be read .Not a gzipped file"),
        (
            "a.jsonl.gz",
            gzip.compress(b"{}", mtime=0)[:10] + b"\xff" * 9,
            "cannot be read .Error -3 while decompressing",
        ),
        ("a.jsonl", b"\xff\xfe", "cannot be read .*utf-8"),
        ("a.parquet", b"no", "cannot be read"),
    ],
)
def test_a_file_of_another_format_is_refused(domains, tmp_path, monkeypatch, name, text, words):
    (tmp_path / name).write_bytes(text)
    test_file = domains[0].split(":")[1]
    with pytest.raises(UserError, match=words) as error:
        start_own(monkeypatch, "mine", [f"{tmp_path / name}:{test_file}", domains[1]])
    assert "\n" not in str(error.value)


def test_rows_are_read_as_people_have_them(tmp_path):
    """Rows may have whole numbers as ids, null as title, and a field `domain`.

    An empty answer needs no `is_impossible`, and the last line may be empty.
    """
    none = {"text": [], "answer_start": []}
    file = tmp_path / "a.jsonl"
    write_rows(file, [ROW | {"title": None, "domain": "x"}, ROW | {"id": None, "answers": none}])
    file.write_text(file.read_text() + "\n")
    first, second = sources.read_rows(file, "mine-a", "stop", selection.Counter())
    expected = {"id": "7", "title": "", "domain": "mine-a", "is_impossible": False}
    assert {key: first[key] for key in expected} == expected
    assert second["id"] == "mine-a-2"
    assert second["is_impossible"]


def test_the_profile_own_needs_its_file():
    words = "profile: own goes with source own and the file that `make own` writes"
    with pytest.raises(UserError, match=words):
        plans.load_params("exbert", "own")
    changes = {"data": "gone.yaml", "domains": ["gone-a", "gone-b"]}
    with pytest.raises(UserError, match="gone.yaml does not exist; make own NAME=gone DOMAIN_A"):
        plans.plan(plans.load_params("exbert", "own", changes))


def test_the_notebook_names_what_there_is_instead(domains, tmp_path, monkeypatch):
    """Of a wrong file, of a wrong domain, and of a data file that was moved."""
    p = start_own(monkeypatch, "mine", domains)
    cell = own_values(p)
    wrong = p.data.replace("mine.yaml", "mime.yaml")
    words = "mime.yaml does not exist; .*; the folder .*/own holds .*; did you mean mine.yaml.$"
    with pytest.raises(UserError, match=words):
        plans.plan(plans.load_from_names("exbert", cell | {"data": wrong}, "own"))
    words = "'harbor' is no own dataset; .*/own/mine.yaml has mine-a, mine-b"
    with pytest.raises(UserError, match=words):
        plans.plan(plans.load_from_names("exbert", cell | {"domains": ["harbor", "mine-b"]}, "own"))
    (tmp_path / "clinic" / "test.jsonl").rename(tmp_path / "clinic" / "tests.jsonl")
    words = (
        "clinic/test.jsonl does not exist; make own NAME=… DOMAIN_A=… DOMAIN_B=… takes it from "
        "where it is now; the folder .*/clinic holds tests.jsonl, train.jsonl; did you mean tests"
    )
    with pytest.raises(UserError, match=words):
        plans.plan(plans.load_from_names("exbert", cell, "own"))


def test_the_first_words_are_as_many_as_an_answer_usually_has():
    """The median, which one long answer does not change."""
    training = [make_answer(text) for text in ("x y", "x z", "w", "a b c d e", "v w")]
    best = floor.measure_floor([make_answer("old"), make_answer("k")], training)
    assert best == (50.0, "the first words of the text")
