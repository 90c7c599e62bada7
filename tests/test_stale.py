"""Records that other code made: which they are, what becomes of them, and who is told."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

from qa_lib.__main__ import run_verb
from qa_lib.evidence import verify
from qa_lib.page import report as page
from qa_lib.reports import plans, trials
from qa_lib.settings import files, params
from qa_lib.settings.params import UserError
from qa_lib.store import code_hashes, runs
from qa_lib.training import frozen, study, train

ROOT = Path(__file__).parent.parent
SPARSE = "models/st_moe.py"
# What generated text is made of.
WORDS = {path.name for path in (ROOT / "qa_lib" / "data").glob("*.yaml")}
SCORES = {"em": 50.0, "f1": 50.0, "em_rows": 50.0, "f1_rows": 50.0, "n": 1, "clusters": 1}


@pytest.fixture(autouse=True)
def sources(monkeypatch):
    """Return the sources of the library as this test sees them, to be edited."""
    edited = dict(code_hashes.SOURCES)
    monkeypatch.setattr(code_hashes, "SOURCES", edited)
    code_hashes.hash_module.cache_clear()
    yield edited
    code_hashes.hash_module.cache_clear()


def edit(sources, *modules: str):
    """Add a line of code to modules."""
    for name in modules:
        sources[name] += b"\nADDED = 1\n"
    code_hashes.hash_module.cache_clear()


def record_run(spec, em: float = 50.0, **changes):
    """Write a record of a run that was not trained. em: on its validation rows."""
    row = {"step": 1, "validation_em": em, "validation_f1": em, "validation_loss": 1.0}
    environment = {"device": "CPU, 1 thread", "precision": "fp32"}
    record = {
        "metrics": {name: SCORES for name in spec.tests},
        "history": [row],
        "environment": environment,
        "seconds": 1.0,
    }
    runs.save(spec, record | changes, pd.DataFrame({"set": [], "id": []}))


def record_all(specs):
    """Write a record of each run, and weights of the run that all others go on from."""
    for spec in specs:
        record_run(spec)
        if spec.variant == "start":
            save_file({"w": np.zeros(1)}, runs.run_folder(spec) / "model.safetensors")


def plan_quick(slug: str, **changes):
    """Return the runs of a report at profile quick, in a precision that every machine has."""
    return plans.plan(plans.load_params(slug, "quick", {"precision": "fp32"} | changes))


# ---- what an edit is ----

CODE = b'''
"""A module."""


def pick(x, kind="top"):  # a comment
    """Return the best."""
    progress(f"run {x}  picks")
    self.progress("step " + str(x))
    print("picked", x)
    kind = OTHER_NAMES.get("kind", kind)
    if kind not in ("top", "low"):
        raise ValueError(f"{kind} is not known")
    return UserError("none") if x is None else x * 0.5
'''


@pytest.mark.parametrize(
    "before, after",
    [
        ("# a comment", "# another"),
        ('"""Return the best."""', '"""Return the best one.\n\n    x: rows\n    """'),
        ('    """Return the best."""\n', ""),
        ('"""A module."""', ""),
        ("run {x}  picks", "{x}, {len(x)}  picks"),
        ('"step "', '"at step "'),
        ('"picked"', '"it picked"'),
        ("{kind} is not known", "there is no {kind}"),
        ('UserError("none")', "UserError('no rows')"),
        ('f"{kind} is not known"', '"no"'),
        ("x * 0.5", "(x  *\n        0.5)"),
        ("\n", "\r\n"),
    ],
)
def test_what_people_read_is_no_code(before, after):
    assert before.encode() in CODE
    changed = CODE.replace(before.encode(), after.encode())
    assert code_hashes.hash_source(changed) == code_hashes.hash_source(CODE)


@pytest.mark.parametrize(
    "before, after",
    [
        ("0.5", "0.25"),
        ('kind="top"', 'kind="low"'),
        ('("top", "low")', '("top",)'),
        ("ValueError", "KeyError"),
        ("is None", "is not None"),
        ("print(", "write("),
        ('get("kind"', 'get("sort"'),
        ("    return", "    x = x + 1\n    return"),
    ],
)
def test_what_the_program_does_is_code(before, after):
    assert before.encode() in CODE
    changed = CODE.replace(before.encode(), after.encode())
    assert code_hashes.hash_source(changed) != code_hashes.hash_source(CODE)


def test_a_file_that_does_not_parse_has_a_hash():
    assert code_hashes.hash_source(b"def f(:") != code_hashes.hash_source(b"def f(")


# ---- which modules count ----

# Imported by what trains a run, and in none of its numbers: what they say is in the run's hash, or
# they only look up, write and tell.
NOT_COUNTED = {
    "settings/command_line.py",
    "settings/encoder_files.py",
    "settings/files.py",
    "settings/hub.py",
    "settings/parameters.py",
    "settings/params.py",
    "settings/spec.py",
    "store/code_hashes.py",
    "store/runs.py",
    "training/memory.py",
}


def list_imports(name: str) -> set[str]:
    """Return the modules of the library that a module imports, anywhere in it."""
    library = code_hashes.LIBRARY
    words = set()
    for node in ast.walk(ast.parse((library / name).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("qa_lib."):
            words.add(node.module)
            words |= {f"{node.module}.{alias.name}" for alias in node.names}
    paths = {word.removeprefix("qa_lib.").replace(".", "/") + ".py" for word in words}
    return {path for path in paths if (library / path).is_file()}


def test_every_module_behind_a_training_counts_or_is_known_not_to():
    reached = {"training/train.py"}
    new = reached
    while new:
        new = set().union(*map(list_imports, new)) - reached
        reached |= new
    modules = {name for name in code_hashes.SOURCES if name.endswith(".py")}
    assert reached == modules | (NOT_COUNTED & reached)
    assert not set(code_hashes.SOURCES) & NOT_COUNTED


def uses(spec, field: str) -> bool:
    """Return whether a run, or one that it goes on from, has a field."""
    return bool(getattr(spec, field)) or any(uses(parent, field) for parent in spec.parents)


@pytest.mark.parametrize(
    "slug, module, field",
    [
        ("exbert", SPARSE, "layer"),
        ("exbert", "models/exbert.py", "layer"),
        ("moe", "models/gated_mixture.py", "gate"),
        ("moe", "data/augment.py", "augment"),
        ("moe", "training/clusters.py", "cluster"),
        ("smart", "losses/smart.py", "smart"),
        ("road", "losses/distillation.py", "distillation"),
        ("road", "training/teachers.py", "teachers"),
        ("road", "training/gradients.py", "probes"),
    ],
)
def test_an_edit_makes_stale_the_runs_that_use_the_module(sources, slug, module, field):
    specs = plan_quick(slug, **({"experiments": ALL} if slug == "moe" else {}))
    record_all(specs)
    assert runs.list_stale(specs) == {}
    edit(sources, module)
    stale = runs.list_stale(specs)
    users = {spec.hash for spec in specs if uses(spec, field)}
    assert set(stale) == users
    assert 0 < len(users) < len({spec.hash for spec in specs})
    assert set(map(tuple, stale.values())) == {(module,)}


ALL = ["mixture", "controls", "gates", "few-shot", "outside", "clusters"]


@pytest.mark.parametrize("module", code_hashes.EVERY_RUN)
def test_an_edit_of_what_all_runs_use_makes_all_stale(sources, module):
    specs = plan_quick("moe", experiments=["mixture"])
    record_all(specs)
    edit(sources, module)
    assert set(runs.list_stale(specs)) == {spec.hash for spec in specs}


@pytest.mark.parametrize("words", sorted(WORDS))
def test_an_edit_of_generated_text_makes_its_runs_stale(sources, words):
    """Neither a run's hash nor a fingerprint knows the words that text is made of."""
    specs = plan_quick("moe", experiments=["mixture"])
    record_all(specs)
    edit(sources, f"data/{words}")
    assert set(runs.list_stale(specs)) == {spec.hash for spec in specs}
    read = specs[0].model_copy(update={"source": "folder"})
    assert f"data/{words}" not in code_hashes.list_modules(read)


def test_another_model_s_code_makes_nothing_stale(sources):
    specs = plan_quick("moe", experiments=["mixture"])
    record_all(specs)
    edit(sources, SPARSE, "data/augment.py", "training/clusters.py", "data/sources.py")
    assert runs.list_stale(specs) == {}


# ---- an edit in a checkout ----

LIST = """
import json, sys
from qa_lib.reports import plans
from qa_lib.store import runs
from qa_lib.training import study
stale = None if len(sys.argv) < 2 else sys.argv[1]
P = plans.load_params("exbert", "quick", {"stale": stale, "precision": "fp32"})
specs = plans.plan(P)
todo = [spec.variant for spec in study.list_missing(specs)]
print(json.dumps([todo, runs.describe_stale(specs)]))
"""
TEXTS = {
    "models/heads.py": ("Heads on an encoder", "Heads above an encoder"),
    "training/train.py": ("is damaged or of other code; ", "is broken or of other code; "),
    "training/build.py": ("# Few examples have to move", "# Only few examples move"),
    "data/selection.py": (
        "a run needs {need} training",
        "this mixture needs {need} training",
    ),
}


def list_todo(checkout: Path, *choice: str) -> tuple[list[str], str]:
    """Return what the plan of quick has to train in a checkout, and the line about stale runs."""
    env = os.environ | {"PYTHONPATH": str(checkout)}
    done = subprocess.run(
        [sys.executable, "-c", LIST, *choice], env=env, cwd=checkout, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def change_line(file: Path, before: str, after: str):
    text = file.read_text(encoding="utf-8")
    assert text.count(before) == 1
    file.write_text(text.replace(before, after), encoding="utf-8")


def test_an_edit_of_the_sparse_layer_in_a_checkout_trains_its_runs_alone(tmp_path):
    for name in ("qa_lib", "params"):
        shutil.copytree(ROOT / name, tmp_path / "copy" / name)
    for name in ("DATA.md", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path / "copy" / name)
    specs = plan_quick("exbert")
    record_all(specs)
    library = tmp_path / "copy" / "qa_lib"
    for name, (before, after) in TEXTS.items():
        change_line(library / name, before, after)
    assert list_todo(tmp_path / "copy") == [[], ""]
    text = (library / SPARSE).read_text(encoding="utf-8")
    (library / SPARSE).write_text(f"{text}\nADDED = 1\n", encoding="utf-8")
    todo, remark = list_todo(tmp_path / "copy")
    sparse: dict[str, str] = {}
    for spec in specs:
        if spec.layer:
            sparse.setdefault(spec.hash, spec.variant)
    assert sorted(todo) == sorted(sparse.values())
    planned = len({spec.hash for spec in specs})
    assert remark == (
        f"other code made the records of {len(sparse)} of {planned} runs (qa_lib/{SPARSE} "
        "differs): they are trained again, STALE=keep keeps the records"
    )
    todo, remark = list_todo(tmp_path / "copy", "keep")
    assert todo == []
    assert "the records are kept, STALE=train trains these runs again" in remark


# ---- who trains again, and who keeps ----


def plan_profile(profile: str, **changes):
    """Return V-DB and ExBERT on one mixture at a profile, without reading data or encoder."""
    (plain, *_, sparse) = plan_quick("exbert", experiments=["untuned"], start=None, seeds=[0])
    return [spec.model_copy(update={"profile": profile} | changes) for spec in (plain, sparse)]


@pytest.mark.parametrize(
    "profile, stale, trained",
    [
        ("quick", None, True),
        ("quick", "keep", False),
        ("real", None, False),
        ("paper", None, False),
        ("own", None, False),
        ("real", "train", True),
        ("own", "train", True),
    ],
)
def test_quick_trains_stale_runs_and_the_others_keep_them(sources, profile, stale, trained):
    plain, sparse = specs = plan_profile(profile, stale=stale)
    record_all(specs)
    edit(sources, SPARSE)
    assert [spec.variant for spec in study.list_missing(specs)] == [sparse.variant] * trained
    assert (runs.find_record(sparse) is None) == trained
    choice = "they are trained again" if trained else "the records are kept"
    assert f"of 1 of 2 runs (qa_lib/{SPARSE} differs): {choice}" in runs.describe_stale(specs)
    if trained:
        with pytest.raises(UserError, match="1 of 2 runs have no record.*other code made") as error:
            runs.require_records(specs)
        assert "\n" not in str(error.value)
    else:
        assert len(runs.require_records(specs)) == 2


@pytest.mark.parametrize("verb", ["study", "verify", "land"])
def test_every_verb_that_uses_kept_records_says_so(monkeypatch, capsys, verb):
    P = plans.load_params("exbert", "real", {"data": "data"}, "small")
    monkeypatch.setattr(plans, "plan", lambda P: [])
    monkeypatch.setattr(plans, "parameters_to_render", lambda args: P)
    monkeypatch.setattr(runs, "read_all", lambda report: [{"spec": {"profile": "real"}}])
    monkeypatch.setattr(runs, "read_committed", lambda report: {"hash": {}})
    monkeypatch.setattr(runs, "describe_stale", lambda specs: "so many are stale")
    monkeypatch.setattr(runs, "write_ledger", lambda P, specs: "results.csv")
    monkeypatch.setattr(verify, "print_verdicts", lambda P: None)
    monkeypatch.setattr(verify, "find_disagreement", lambda P: None)
    assert run_verb([verb, "exbert", "--profile", "real"]) == 0
    assert "so many are stale\n" in capsys.readouterr().out


def test_a_study_and_a_page_say_what_is_kept(sources, monkeypatch, capsys):
    specs = plan_profile("real")
    P = plans.load_params("exbert", "real", {"data": "data"}, "small")
    monkeypatch.setattr(plans, "plan", lambda P: specs)
    record_all(specs)
    study.run(P, plans.plan)
    assert "other code" not in capsys.readouterr().out
    assert "ther code" not in page.show_header(P, "Verdicts.")
    edit(sources, SPARSE)
    study.run(P, plans.plan)
    (line, *_) = capsys.readouterr().out.splitlines()
    assert line == runs.describe_stale(specs)
    assert f"<p>Other code made the records of 1 of 2 runs (qa_lib/{SPARSE} differs)" in (
        page.show_header(P, "Verdicts.")
    )


def test_a_page_of_other_datasets_says_what_is_not_about_them(monkeypatch):
    monkeypatch.setattr(plans, "plan", lambda P: [])
    P = plans.load_params("exbert", "real", {"data": "data", "domains": ["squad", "race"]}, "small")
    header = page.show_header(P, "Verdicts.")
    assert "<p>The study has no runs on RACE: what this page says of claims, of printed" in header
    P = plans.load_params("exbert", "real", {"data": "data", "domains": ["bioasq", "squad"]})
    assert "The study has no runs" not in page.show_header(P, "Verdicts.")


def test_a_page_does_not_speak_of_runs_that_are_trained_again(sources, monkeypatch):
    specs = plan_profile("quick")
    monkeypatch.setattr(plans, "plan", lambda P: specs)
    record_all(specs)
    edit(sources, SPARSE)
    assert "ther code" not in page.show_header(plans.load_params("exbert", "quick"), "Verdicts.")


def test_the_choice_reaches_every_run(monkeypatch):
    P = plans.load_params("moe", "quick", {"stale": "keep"})
    assert {spec.stale for spec in plans.plan(P)} == {"keep"}
    assert all(parent.stale == "keep" for spec in plans.plan(P) for parent in spec.parents)
    with pytest.raises(UserError, match="stale: 'old' is not known; known: 'train' or 'keep'"):
        plans.load_params("moe", "quick", {"stale": "old"})
    names = plans.load_params("moe", "quick").model_dump() | {"stale": "keep"}
    assert plans.load_from_names("moe", names).stale == "keep"


@pytest.mark.parametrize("verb", ["study", "render", "verify", "land"])
def test_every_verb_that_reads_records_takes_the_choice(monkeypatch, verb):
    seen = []

    def load(args, size=None):
        seen.append(args.p)
        raise UserError("enough")

    monkeypatch.setattr(plans, "load_from_args", load)
    monkeypatch.setattr(runs, "read_all", lambda report: [{"spec": {"profile": "real"}}])
    words = [verb, "exbert", "--profile", "real", "--stale", "train"]
    with pytest.raises(UserError, match="enough"):
        run_verb(words)
    assert seen == [["stale=train"]]
    with pytest.raises(UserError, match="STALE=old is not known; known: train, keep"):
        run_verb([*words[:-1], "old"])


def test_make_passes_the_choice_on():
    words = ["-n", "reproduce-exbert", "VENV=", "PROFILE=quick", "STALE=keep"]
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(["make", *words], cwd=ROOT, env=env, capture_output=True, text=True)
    commands = [line for line in done.stdout.splitlines() if "qa_lib" in line]
    assert len(commands) == 2
    assert all(command.endswith("--profile quick --stale='keep'") for command in commands)
    assert (
        "STALE=train|keep"
        in subprocess.run(
            ["make", "help"], cwd=ROOT, env=env, capture_output=True, text=True
        ).stdout
    )


# ---- what a record tells ----


def change_record(spec, **changes):
    """Write fields of a run's record anew; a field of None is left out."""
    file = runs.run_folder(spec) / "metrics.json"
    record = json.loads(file.read_text()) | changes
    record = {name: value for name, value in record.items() if value is not None}
    record["checksum"] = runs.checksum(record)
    file.write_text(json.dumps(record))


@pytest.mark.parametrize("profile, trained", [("quick", True), ("real", False)])
@pytest.mark.parametrize("code", [None, {"python": "3.8", "modules": {}}])
def test_code_that_cannot_be_compared_counts_as_other_code(profile, trained, code):
    plain, _ = plan_profile(profile)
    record_run(plain)
    change_record(plain, code=code)
    assert (runs.find_record(plain) is None) == trained
    assert "(the code of 1 is not known, or of another version of Python)" in (
        runs.describe_stale([plain])
    )


def test_the_choice_is_no_part_of_a_run():
    kept, _ = plan_profile("quick", stale="keep")
    trained, _ = plan_profile("quick", stale="train")
    assert kept.hash == trained.hash
    record_run(kept)
    record = runs.find_record(trained)
    assert "stale" not in record["spec"]
    assert "stale" not in runs.label_columns(kept, record)


def test_a_landed_record_is_never_stale_and_keeps_its_code(sources):
    _, sparse = plan_profile("real", stale="train")
    record_run(sparse)
    stored = runs.find_record(sparse)
    assert runs.land("exbert", [sparse]) == 1
    edit(sources, SPARSE)
    # the stored one, still there, is stale, and the landed one serves
    record = runs.find_record(sparse)
    assert record["folder"] is None
    assert record["code"] == stored["code"]
    assert study.list_missing([sparse]) == []
    assert runs.describe_stale([sparse]) == ""
    # with fresh=True the landed one does not count
    assert runs.find_record(sparse, fresh=True) is None


def test_stale_records_are_landed_only_where_they_are_kept(sources):
    kept, _ = plan_profile("real")
    record_run(kept)
    edit(sources, "models/heads.py")
    assert runs.land("exbert", [kept.model_copy(update={"stale": "train"})]) == 0
    assert runs.land("exbert", [kept]) == 1


def test_landed_records_say_no_more_than_before():
    """Their hashes and their pages hang on no field that this code adds."""
    for slug in ("exbert", "moe"):
        specs = plans.plan(plans.load_params(slug, "real", size="small"))
        assert all(spec.stale is None and not spec.trains_stale for spec in specs)


# ---- parents ----


def plan_family():
    """Return a parent with a sparse layer, and a plain run that goes on from it."""
    plain, sparse = plan_profile("quick")
    return sparse, plain.model_copy(update={"start": sparse, "variant": "child"})


def test_a_child_of_a_stale_parent_is_stale_too(sources):
    parent, child = plan_family()
    plain, _ = plan_profile("quick")
    record_all([parent, child, plain])
    edit(sources, SPARSE)
    assert set(runs.list_stale([parent, child, plain])) == {parent.hash, child.hash}
    record_run(parent)  # trained again; the child still comes from the old weights
    assert set(runs.list_stale([parent, child, plain])) == {child.hash}
    record_run(child)
    assert runs.list_stale([parent, child, plain]) == {}


def test_a_child_that_is_trained_from_a_kept_parent_is_stale(sources):
    parent, child = plan_family()
    record_run(parent)
    edit(sources, "models/heads.py")  # which both have
    record_run(child)
    assert runs.list_stale([child]) == {child.hash: ["models/heads.py"]}
    sources["models/heads.py"] = sources["models/heads.py"].removesuffix(b"\nADDED = 1\n")
    code_hashes.hash_module.cache_clear()
    # the child is of both versions, and fits neither
    assert runs.list_stale([parent, child]) == {child.hash: ["models/heads.py"]}


def test_a_child_of_a_parent_of_unknown_code_is_unknown():
    parent, child = plan_family()
    record_run(parent)
    change_record(parent, code=None)
    record_run(child)
    assert runs.list_stale([child]) == {child.hash: None}


def test_a_child_of_a_landed_parent_alone_is_not_stale_for_good():
    parent, child = plan_family()
    record_run(parent)
    runs.land("exbert", [parent])
    shutil.rmtree(runs.run_folder(parent))
    record_run(child)
    assert runs.list_stale([child]) == {}


def test_a_record_without_a_module_that_counts_today_is_stale():
    plain, _ = plan_profile("quick")
    record_run(plain)
    code = runs.describe_code(plain)
    del code["modules"]["training/build.py"]
    change_record(plain, code=code)
    assert runs.list_stale([plain]) == {plain.hash: ["training/build.py"]}


def test_stale_weights_do_not_serve_a_child(sources):
    parent, child = plan_family()
    record_run(parent)
    save_file({"w": np.zeros(1)}, runs.run_folder(parent) / "model.safetensors")
    assert study.list_missing([child])[0].variant == "child"
    edit(sources, SPARSE)
    assert not runs.has_weights(parent)
    assert [spec.variant for spec in study.list_missing([child])] == [parent.variant, "child"]
    kept = child.model_copy(update={"start": parent.model_copy(update={"stale": "keep"})})
    assert [spec.variant for spec in study.list_missing([kept])] == ["child"]


# ---- what else is made by code ----


def test_a_stale_trial_does_not_choose(sources):
    plain, sparse = plan_profile("quick")

    def choose(stale: str | None):
        def trial(model, rate, epochs):
            fields = {"learning_rate": rate, "stale": stale, "tests": []}
            return {"plain": plain, "sparse": sparse}[model].model_copy(update=fields)

        return trials.choose_by_trials(["plain", "sparse"], trial, [1e-4, 2e-4, 4e-4], [1.0])

    for trial in choose(None)[0]:
        record_run(trial, em=60.0 if trial.learning_rate == 2e-4 else 50.0)
    assert choose(None)[1] == {"plain": (2e-4, 1.0), "sparse": (2e-4, 1.0)}
    edit(sources, SPARSE)
    assert choose(None)[1] == {}
    assert choose("keep")[1] == {"plain": (2e-4, 1.0), "sparse": (2e-4, 1.0)}


def test_trials_of_two_versions_of_scoring_choose_nothing():
    plain, _ = plan_profile("quick")

    def trial(model, rate, epochs):
        return plain.model_copy(update={"learning_rate": rate, "tests": []})

    def choose():
        return trials.choose_by_trials(["plain"], trial, [1e-4, 2e-4, 4e-4], [1.0])[1]

    for rate in (1e-4, 2e-4, 4e-4):
        record_run(trial("plain", rate, 1.0), em=60.0 if rate == 2e-4 else 50.0)
    assert choose() == {"plain": (2e-4, 1.0)}
    change_record(trial("plain", 1e-4, 1.0), scoring=runs.SCORING - 1)
    assert choose() == {}


@pytest.mark.parametrize("stale, kept", [(None, True), ("keep", False)])
def test_an_edit_does_not_cost_the_run_that_all_go_on_from(monkeypatch, stale, kept):
    """Its weights stay where stale runs are trained again, and the others' go as they did."""
    (start, *_) = plan_quick("exbert", stale=stale)
    plain, _ = plan_profile("quick", stale=stale)
    middle = plain.model_copy(update={"start": start})
    last = plain.model_copy(update={"start": middle, "seed": 1})

    def write_weights(spec, keep, live):
        record_run(spec)
        save_file({"w": np.zeros(1)}, runs.run_folder(spec) / "model.safetensors")

    monkeypatch.setattr(study, "_train_one", write_weights)
    todo = [start, middle, last]
    study._train(todo, dict.fromkeys((s.hash for s in todo), 1.0), 1, set(), None)
    assert runs.has_weights(start) == kept
    assert not runs.has_weights(middle)


def test_a_checkpoint_of_other_code_does_not_serve(tmp_path):
    plain, _ = plan_profile("quick")
    code = runs.describe_code(plain)
    folder = tmp_path / "checkpoint-4"
    folder.mkdir()
    (folder / "trainer_state.json").write_text('{"best_model_checkpoint": null}')
    files.seal(folder, seconds=1.0, code=code)
    assert train.last_checkpoint(tmp_path, code) == folder
    other = code | {"modules": code["modules"] | {"models/heads.py": "0" * 16}}
    assert train.last_checkpoint(tmp_path, other) is None
    assert train.last_checkpoint(tmp_path) == folder  # where stale runs are kept
    joined = code_hashes.join_codes(other, code)
    assert code_hashes.list_differences(plain, joined) == ["models/heads.py"]
    files.seal(folder, seconds=1.0)  # by code that did not say what it was
    assert train.last_checkpoint(tmp_path, code) is None


def test_cached_outputs_follow_the_code(sources, tmp_path, monkeypatch):
    class Windows:
        cache_files = [{"filename": str(tmp_path / "windows" / "data.arrow")}]

    monkeypatch.setattr(frozen.evaluate, "CACHE", tmp_path)

    modules = ("training/frozen.py", "models/st_moe.py")

    def store(value: float) -> float:
        made = {"start": np.array(value)}
        folder = frozen._store_once("key", Windows, "fp32", modules, lambda: made)
        return float(np.load(folder / "start.npy"))

    assert store(1.0) == 1.0
    assert store(2.0) == 1.0
    edit(sources, "training/frozen.py")
    assert store(3.0) == 3.0
    edit(sources, "models/heads.py")  # none of theirs
    assert store(4.0) == 3.0
    edit(sources, "models/st_moe.py")
    assert store(5.0) == 5.0


def test_code_that_is_edited_while_a_study_runs_ends_it(sources):
    plain, _ = plan_profile("quick")
    record_run(plain)
    study._check_code([plain])
    edit(sources, "models/heads.py")  # a worker's record is of other code than this process's
    with pytest.raises(UserError, match="edited while the study ran") as error:
        study._check_code([plain])
    assert "\n" not in str(error.value)
    study._check_code([plain.model_copy(update={"stale": "keep"})])


def test_a_kernel_that_runs_the_library_as_it_was_is_refused(sources):
    names = plans.load_params("exbert", "quick").model_dump()
    plans.load_from_names("exbert", names)
    sources[SPARSE] += b"# a comment\n"
    code_hashes.hash_module.cache_clear()
    plans.load_from_names("exbert", names)
    edit(sources, SPARSE)
    with pytest.raises(UserError, match=f"qa_lib/{SPARSE} was edited after this kernel started"):
        plans.load_from_names("exbert", names)


def test_the_words_of_the_choice_are_those_of_the_parameter():
    field = plans.find_report("exbert").Parameters.model_json_schema()["properties"]["stale"]
    assert tuple(field["anyOf"][0]["enum"]) == params.STALE
