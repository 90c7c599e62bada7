"""Own data: the advice in closed form, mistakes on the command line, and two tiny domains from files to page."""

import gzip
import json
import sys

import numpy as np
import pandas as pd
import pytest
import yaml
from test_house import make
from test_stats import plant_scores

from qa_lib.__main__ import run_verb
from qa_lib.data import corpora, selection, sources
from qa_lib.evidence import verify
from qa_lib.own_data import advice
from qa_lib.own_data.advice import NOT, OPEN, WORTH
from qa_lib.page import findings, render
from qa_lib.reports import plans
from qa_lib.settings import hub, params
from qa_lib.settings.params import UserError
from qa_lib.store import runs
from qa_lib.training import study

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
    "trial_epochs": [1],
}


# ---- the rule ----


@pytest.mark.parametrize(
    "low, high, says",
    [
        ([1.1, -0.9], [3, 0.5], WORTH),  # one gains more than 1 EM, the other loses no more than 1
        ([1.1, -1.1], [3, 0.5], OPEN),  # the other may lose more
        ([1.0, 1.0], [3, 3], OPEN),  # 1 EM itself is not above 1 EM
        ([-5, -5], [0.9, 0.9], NOT),  # no gain above 1 EM on either
        ([-5, -5], [0.9, 1.1], OPEN),  # one may still gain
        ([2.0, -5], [4, -1.1], NOT),  # a certain loss is not made good by a certain gain
        ([2.0, -5], [4, -1.0], OPEN),
        ([np.nan, 2], [np.nan, 4], OPEN),
    ],
)
def test_rule(low, high, says):
    assert advice.advise(low, high) == says == advice.advise(low[::-1], high[::-1])


@pytest.fixture
def planted(monkeypatch):
    """Parameters whose runs have these gains of the experts on both domains, and so many seeds and questions."""

    def make(gain: float, seeds=5, epochs=2.0, **how):
        gains = {("exbert-tuned", 0.5): gain, ("plain-tuned", 0.5): 0.0, ("v-db", 0.5): 2.0}
        ledger, examples = plant_scores(gains, seeds, sets=["a", "b"], **how)
        fields = {"arm": "tuned", "tests": ["a", "b"], "epochs": epochs}
        specs = [
            type("Spec", (), {**r, **fields})
            for r in ledger.drop_duplicates("run")[["run", "variant", "ratio"]].to_dict("records")
        ]
        monkeypatch.setattr(plans, "plan", lambda p: specs)
        monkeypatch.setattr(
            runs,
            "collect_ledger",
            lambda s: ledger[ledger["run"].isin([x.run for x in s])].assign(arm="tuned"),
        )
        monkeypatch.setattr(
            runs, "collect_examples", lambda s: examples[examples["run"].isin([x.run for x in s])]
        )
        return plans.load_params("exbert", "own", {"data": "x.yaml", "domains": ["a", "b"]})

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
    assert says in advice.describe_advice(p)
    assert "the plain span model of 6 blocks, V-DB, " in advice.describe_advice(p)
    assert ("trial_epochs" in advice.describe_advice(p)) == (how.get("epochs") == 3.0)
    frame = advice.advice_table(p)
    assert list(frame["tested on"]) == ["a", "b"]
    assert all(len(r) == 3 * how.get("seeds", 5) for r in frame["run"])


def test_no_advice_without_equal_trials(planted, monkeypatch):
    p = planted(5.0)
    monkeypatch.setattr(plans, "plan", lambda p: [])
    assert "There is no advice: it takes" in advice.describe_advice(p)
    with pytest.raises(UserError, match="There is no advice"):
        advice.advice_table(p)


# ---- from files to page ----


def written(path, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))


@pytest.fixture
def domains(tmp_path):
    """Two domains of short generated rows: the texts of DOMAIN_A and DOMAIN_B."""
    for name, register in (("harbour", "encyclopaedia"), ("clinic", "biomedicine")):
        rows = corpora.qa(register, 80)
        half = next(i for i in range(50, 80) if rows[i]["context"] != rows[i - 1]["context"])
        written(tmp_path / name / "train.jsonl", rows[:half])
        written(tmp_path / name / "test.jsonl", rows[half:])
    yield [
        f"{tmp_path / name / 'train.jsonl'}:{tmp_path / name / 'test.jsonl'}"
        for name in ("harbour", "clinic")
    ]
    selection.load_splits.cache_clear()


def test_the_recipe_checks_first_then_trains_then_draws():
    told = make(
        "-n",
        "own",
        "VENV=",
        "NAME=mine",
        "DOMAIN_A=a b:c",
        "DOMAIN_B=d:e",
        "PARAMS=epochs=1",
        "YES=1",
    ).stdout.splitlines()
    values = "--params='domains=[mine-a,mine-b] epochs=1'"
    flags = f"exbert --profile own --data='{runs.RUNS}/own/mine.yaml' {values}"
    assert [x for x in told if "qa_lib" in x] == [
        f"python -m qa_lib own {values} -- 'mine' 'a b:c' 'd:e'",
        *(
            f"python -m qa_lib {x}"
            for x in (f"study {flags} --yes", f"render {flags}", f"verify {flags}")
        ),
    ]


def start(monkeypatch, name, texts, **changes):
    """`python -m qa_lib own` with tiny parameters; returns them, as the commands after it read them."""
    for known in (
        params.read_datasets,
        selection.load_splits,
        hub.sha256,
    ):  # each start is a process of its own
        known.cache_clear()
    given = [x for k, v in (TINY | changes).items() for x in ("-p", f"{k}={json.dumps(v)}")]
    monkeypatch.setattr("sys.argv", ["own", name, *texts, *given])
    run_verb(sys.argv)
    return plans.load_params(
        "exbert",
        "own",
        {"domains": [f"{name}-a", f"{name}-b"]}
        | TINY
        | changes
        | {"data": str(runs.RUNS / "own" / f"{name}.yaml")},
    )


def test_from_files_to_page(domains, tmp_path, monkeypatch, capsys):
    for name in ("QA_RUNS", "QA_FIGURES"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setattr(runs, "RUNS", tmp_path / "QA_RUNS")
    monkeypatch.setattr(runs, "FIGURES", tmp_path / "QA_FIGURES")
    p = start(monkeypatch, "mine", domains, domains=["harbour", "clinic"])
    told = capsys.readouterr().out
    assert "profile own: mine; 9 trials, more where" in told
    assert "then about 3 runs" in told
    assert "harbour: 46 training, 4 validation, 30 test rows\n" in told
    study.run(p, plans.plan, workers=1)
    assert set(study.run(p, plans.plan)["trained"]) == {"found"}
    render.render(p)
    folder = tmp_path / "QA_FIGURES" / "exbert" / "own-mine"
    page = (folder / "report.html").read_text()
    assert not list(folder.parent.glob("real"))
    assert not (folder / "claims.csv").exists()
    assert "<strong>Advice: needs more data or seeds.</strong>" in page
    assert "Nothing is decided below 3 seeds" in page
    assert ">OWN</strong>" in page
    assert "claims are not judged" in page
    assert "Not part of the study" not in page
    assert "Are the experts worth it on mine?</h1>" in page
    assert page.index("Advice: ") < page.index('<h2 id="the-idea"')
    assert not any(
        x in page
        for x in ("Claim.", "profile <code>quick", "more questions of both domains exactly")
    )
    assert "harbour/train.jsonl" in page
    assert str(tmp_path) not in page
    assert page.count("<script") == 1
    assert {"table_advice", "table6_trials", "fig6_trials"} <= {f.stem for f in folder.iterdir()}
    assert list(pd.read_csv(folder / "table_advice.csv")["tested on"]) == ["harbour", "clinic"]
    assert verify.find_disagreement(p) in ("", None)
    assert "needs more data" in findings.head(p)


def test_the_dense_controls_are_announced_too(domains, monkeypatch, capsys):
    start(monkeypatch, "mine", domains, experiments=["headline", "dense"])
    told = capsys.readouterr().out
    assert "15 trials, more where" in told
    assert "then about 5 runs" in told
    start(
        monkeypatch, "mine", domains, ratios=[0.25, 0.75], control_ratios=[0.25], centre=0.5
    )  # (a) at two of three
    assert "then about 8 runs" in capsys.readouterr().out


def test_a_run_is_known_by_what_its_files_hold(domains, tmp_path, monkeypatch):
    p = start(monkeypatch, "mine", domains)
    hashes = [s.hash for s in plans.plan(p)]
    (tmp_path / "harbour").rename(tmp_path / "port")
    moved = start(monkeypatch, "yours", [domains[0].replace("harbour", "port"), domains[1]])
    assert [s.hash for s in plans.plan(moved)] == hashes
    written(tmp_path / "port" / "test.jsonl", corpora.qa("news", 9))
    start(monkeypatch, "yours", [domains[0].replace("harbour", "port"), domains[1]])
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
        ("mine", lambda a, b: [a, b + "x"], "DOMAIN_B: .*clinic/test.jsonlx is not there"),
        ("mine", lambda a, b: [a, b.replace("/train.jsonl", "")], "clinic is a folder, not a file"),
        (
            "mine",
            lambda a, b: [":".join([a.split(":")[0]] * 2), b],
            "DOMAIN_A: .* holds the same as the training file of DOMAIN_A",
        ),
        (
            "mine",
            lambda a, b: [a, a],
            "DOMAIN_B: .* holds the same as the training file of DOMAIN_A",
        ),
    ],
)
def test_a_mistake_on_the_command_line(domains, monkeypatch, name, change, words):
    with pytest.raises(UserError, match=words) as e:
        start(monkeypatch, name, change(*domains))
    assert "\n" not in str(e.value)
    assert not list(runs.RUNS.glob("own/*"))


def test_a_domain_of_a_taken_name_is_refused(domains, monkeypatch):
    """Its scores would be taken for those on training rows, and stand in results.csv twice."""
    with pytest.raises(
        UserError,
        match="PARAMS .-p.: domains: 'training' cannot name a dataset, .*; give it another name",
    ):
        start(monkeypatch, "mine", domains, domains=["training", "legal"])
    assert not list(runs.RUNS.glob("own/*"))


def test_too_few_rows_say_what_would_do(domains, monkeypatch):
    with pytest.raises(
        UserError, match=r"mine-a has \d+ training rows; after \d+ for validation \d+ are left"
    ) as e:
        start(monkeypatch, "mine", domains, train_rows=1000, validation_rows=200)
    start(monkeypatch, "mine", domains, **proposed(e.value))


def proposed(error: UserError) -> dict:
    """The parameters that an error proposes."""
    return yaml.safe_load(
        "{"
        + str(error).split('PARAMS="')[1].rstrip('"').replace("=", ": ").replace(" v", ", v")
        + "}"
    )


def crowded(name: str, sizes: list[int]) -> list[dict]:
    """Rows of contexts that hold so many questions each."""
    rows = []
    for i, size in enumerate(sizes):
        context = f"The {name} mill {i} was built in {1000 + i}."
        answers = {"text": [str(1000 + i)], "answer_start": [context.index(str(1000 + i))]}
        rows += [
            {
                "context": context,
                "question": f"When was mill {i} built, asked {k} times?",
                "answers": answers,
            }
            for k in range(size)
        ]
    return rows


@pytest.mark.parametrize(
    "sizes", [[600, 600], [1000] + [1] * 200, [30] * 20, [400, 300, 200, 100, 1]]
)
@pytest.mark.parametrize(
    "changes",
    [
        {"train_rows": 2500, "validation_rows": 200},
        {"train_rows": 2501, "validation_rows": 1},
        {"train_rows": 1999, "validation_rows": 900, "ratios": [0.1, 0.9], "centre": 0.1},
    ],
)
def test_what_is_proposed_works(domains, tmp_path, monkeypatch, sizes, changes):
    """Also where a few contexts hold most of the rows, which go to validation whole."""
    written(tmp_path / "harbour" / "train.jsonl", crowded("harbour", sizes))
    written(tmp_path / "clinic" / "train.jsonl", crowded("clinic", [2] * 800))
    with pytest.raises(
        UserError, match=r"mine-a has \d+ training rows; after \d+ for validation"
    ) as e:
        start(monkeypatch, "mine", domains, **changes)
    fits = proposed(e.value)
    assert fits["train_rows"] < changes["train_rows"]
    p = start(monkeypatch, "mine", domains, **changes | fits)
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
    written(tmp_path / domain / "train.jsonl", crowded("harbour", sizes))
    for given in (
        {"train_rows": 1000, "validation_rows": 200},
        {"train_rows": 20, "validation_rows": 900},
    ):
        with pytest.raises(
            UserError, match=f"{most} training rows, and whole contexts go to validation"
        ) as e:
            start(monkeypatch, "mine", domains, **given)
        name = {"harbour": "mine-a", "clinic": "mine-b"}[domain]
        assert str(e.value).startswith(f"{name} cannot be split: one context holds ")
        assert "add rows of other contexts, or cut that context into several" in str(e.value)
        assert "PARAMS" not in str(e.value)
    rows = crowded("harbour", sizes)
    for i, r in enumerate(rows):
        r["context"] += f" Part {i // 10}."
    written(tmp_path / domain / "train.jsonl", rows)
    start(monkeypatch, "mine", domains)


def test_hardly_any_rows_propose_nothing(domains, tmp_path, monkeypatch):
    written(tmp_path / "clinic" / "train.jsonl", crowded("clinic", [1] * 5))
    with pytest.raises(
        UserError,
        match="mine-b has 5 training rows that no test row repeats: too few to train on; add rows",
    ):
        start(monkeypatch, "mine", domains)


def test_validation_fits_every_mixture_there_is(domains, monkeypatch):
    """One of the controls at 90:10 takes more of its validation rows from the first domain than 50:50 does."""
    start(
        monkeypatch,
        "mine",
        domains,
        train_rows=10,
        validation_rows=10,
        ratios=[0.5],
        control_ratios=[0.9],
        centre=0.5,
    )
    kept = yaml.safe_load((runs.RUNS / "own" / "mine.yaml").read_text())
    assert [d["validation_rows"] for d in kept.values()] == [9, 9]


def test_a_test_set_of_one_context(domains, tmp_path, monkeypatch):
    file = tmp_path / "clinic" / "test.jsonl"
    file.write_text(file.read_text().splitlines()[0] + "\n")
    told = "test file of mine-b has 1 rows and not two different contexts.*of several contexts"
    with pytest.raises(UserError, match=told):
        start(monkeypatch, "mine", domains)


def test_rows_of_one_id(domains, tmp_path, monkeypatch):
    file = tmp_path / "clinic" / "test.jsonl"
    written(file, [json.loads(line) | {"id": "p1"} for line in file.read_text().splitlines()])
    with pytest.raises(
        UserError,
        match="rows of the test file of mine-b share an id; give each an id of its own, or none",
    ):
        start(monkeypatch, "mine", domains)


@pytest.mark.parametrize("kind", ["train", "test"])
def test_a_file_without_any_answer(domains, tmp_path, monkeypatch, kind):
    file = tmp_path / "clinic" / f"{kind}.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    written(file, [row | {"answers": {"text": [], "answer_start": []}} for row in rows])
    with pytest.raises(UserError, match=f"no row of the {kind} file of mine-b has an answer"):
        start(monkeypatch, "mine", domains)


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
            ROW | {"answers": [{"text": "harbour", "answer_start": 4}]},
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
            "1 rows have an answer that does not stand .* first 7 .*stands at 4, not at 5",
        ),
    ],
)
def test_a_bad_row_is_named(domains, tmp_path, monkeypatch, line, words):
    written(tmp_path / "harbour" / "train.jsonl", [line])
    with pytest.raises(UserError, match=words) as e:
        start(monkeypatch, "mine", domains)
    assert str(tmp_path / "harbour" / "train.jsonl") in str(e.value)
    assert "bad_rows=skip" in str(e.value)


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("a.csv", b"id,question\n", "its name has none of the known endings; a file is JSON Lines"),
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
def test_a_file_of_another_format(domains, tmp_path, monkeypatch, name, text, words):
    (tmp_path / name).write_bytes(text)
    with pytest.raises(UserError, match=words) as e:
        start(monkeypatch, "mine", [f"{tmp_path / name}:{domains[0].split(':')[1]}", domains[1]])
    assert "\n" not in str(e.value)


def test_rows_as_people_have_them(tmp_path):
    """Whole numbers as ids, a title of null, no `is_impossible` beside an empty answer, a field `domain`, an empty last line."""
    none = {"text": [], "answer_start": []}
    written(
        tmp_path / "a.jsonl",
        [ROW | {"title": None, "domain": "x"}, ROW | {"id": None, "answers": none}],
    )
    (tmp_path / "a.jsonl").write_text((tmp_path / "a.jsonl").read_text() + "\n")
    first, second = sources.read_rows(tmp_path / "a.jsonl", "mine-a", "stop", selection.Counter())
    assert (first["id"], first["title"], first["domain"], first["is_impossible"]) == (
        "7",
        "",
        "mine-a",
        False,
    )
    assert second["id"] == "mine-a-2"
    assert second["is_impossible"]


def test_own_without_its_file():
    with pytest.raises(
        UserError, match="profile: own goes with source own and the file that `make own` writes"
    ):
        plans.load_params("exbert", "own")
    with pytest.raises(UserError, match="gone.yaml does not exist; make own NAME=gone DOMAIN_A"):
        plans.plan(
            plans.load_params(
                "exbert", "own", {"data": "gone.yaml", "domains": ["gone-a", "gone-b"]}
            )
        )
