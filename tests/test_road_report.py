"""The report road: the plan of its runs, its claims on planted records, and a tiny study."""

import hashlib

import numpy as np
import pandas as pd
import pytest
import torch
from test_teachers import clear_texts, plant_rows

from qa_lib.data import selection
from qa_lib.evidence import claims, verify
from qa_lib.evidence.verdicts import Verdict
from qa_lib.page import figures_road, figures_teachers, pieces, report
from qa_lib.reports import comparisons, plans, road
from qa_lib.settings import encoder_files, params
from qa_lib.settings.parameters import Distillation
from qa_lib.settings.params import UserError
from qa_lib.settings.spec import Spec
from qa_lib.store import runs
from qa_lib.training import study, teachers

STUDENTS = ("kd", "weighted-kd", "annealed-kd", "shuffled-kd")
SETS = ("naturalquestions", "qamr", "relation-extraction", "boolq", "mnli", "snli", "sst", "quora")
FIRST = ["heads", "pretraining", "controls", "distillation"]
TINY = {
    "train_rows": 12,
    "validation_rows": 8,
    "pretraining": {"search": 16, "nli": 16, "sentiment": 16},
    "pretraining_batch": 8,
    "steps": 2,
    "epochs": 1.0,
    "max_length": 64,
    "stride": 16,
    "blocks": None,
    "start_rows": 16,
    "sweep_passes": [1, 2, 8],
    "sweep_wrong_weights": [0.25],
}


@pytest.fixture
def load(monkeypatch):
    """Return a function that loads parameters for which no data and no encoder are read."""
    monkeypatch.setattr(encoder_files, "identify_weights", lambda name: name.ljust(64, "w"))
    monkeypatch.setattr(selection, "fingerprint", lambda name, *_: name.ljust(64, "f"))

    def load(profile="real", size=None, **changes):
        if profile == "paper":
            changes = {"source": "folder", "pretraining": {"mnli": 9, "sst": 9}} | changes
            changes = {"domains": ["squad", "newsqa"], "sentences": ["mnli", "quora"]} | changes
            whole, _ = params.read_yaml(params.ROOT / "params" / "road.yaml")
            changes = {name: whole[name] for name in ("experiments", "seeds", "steps")} | changes
        if profile != "quick":
            changes = {"data": "data"} | changes
        if size == "small":  # its file lists those that have records
            changes = {"experiments": FIRST} | changes
        return plans.load_params("road", profile, changes, size)

    return load


def find_variants(specs: list[Spec]) -> dict[str, Spec]:
    """Return the first run of each variant."""
    found = {}
    for spec in specs:
        found.setdefault(spec.variant, spec)
    return found


# ---- the plan ----


def test_the_first_runs_on_real_data_are_pre_trained_and_then_fine_tuned(load):
    specs = plans.plan(load(size="small"))
    of = find_variants(specs)
    fine_tuned = ["baseline", "joint-head", "mt-dnn", "mtl", *road.FOLLOWERS]
    assert {s.variant for s in specs if s.tests} == {*fine_tuned, *STUDENTS, "mtl-ensemble"}
    assert {s.precision for s in specs} == {"fp32"}
    for model in fine_tuned:
        spec = of[model]
        assert (spec.domains, spec.rows, spec.epochs) == (["squad"], [2000], 2), model
        assert spec.tests == ["squad", "newsqa"]
        assert spec.multitask is None
        start = spec.start
        if model in ("baseline", "joint-head"):
            assert start is None
            continue
        assert start.variant == f"{model}-pretraining"
        assert start.tests == []
        assert start.held_out == ["squad", "newsqa", "squad2"]
        assert (start.multitask.rounds, start.batch_size, start.epochs) == (600, 32, 1)
        assert (start.layer_decay.rate, start.layer_decay.top) == (0.75, 2)
        # the head of the target goes on where the datasets of a task share one
        assert spec.heads.one_for == start.heads.one_for
        if model != "target-only":
            assert tuple(start.domains) == SETS
    assert of["target-only"].start.domains == ["squad"]
    assert of["target-only"].start.rows == of["baseline"].rows
    assert of["target-only"].start.places == of["baseline"].places


def test_recipes_differ_in_draws_law_and_heads_alone(load):
    of = find_variants(plans.plan(load("paper", arms=["printed"])))
    recipes = {}
    for model in ("mt-dnn", "mtl", "mtl-one-draw", "mtl-own-heads"):
        start = of[model].start
        recipes[model] = (start.multitask.passes, start.multitask.sampling, start.heads.one_for)
        same = start.model_dump(exclude={"variant", "multitask", "heads"})
        assert same == of["mtl"].start.model_dump(exclude={"variant", "multitask", "heads"})
    assert recipes == {
        "mt-dnn": (1, "proportional", "dataset"),
        "mtl": (4, "uniform", "task"),
        "mtl-one-draw": (1, "uniform", "task"),
        "mtl-own-heads": (4, "uniform", "dataset"),
    }
    assert of["joint-head"].heads.span == "joint"
    assert of["baseline"].heads.span == "independent"
    start = of["mtl"].start
    assert (start.batch_size, start.learning_rate) == (512, 3e-4)
    assert round(start.warmup * start.multitask.rounds) == 500
    for passes in (1, 2, 4, 8):
        assert of[f"mtl-passes-{passes}"].start.multitask.passes == passes
    assert of["mtl-passes-4"].hash == of["mtl"].hash
    of = find_variants(plans.plan(load("paper", arms=["printed"], probes=5)))
    probed = {variant for variant, spec in of.items() if spec.probes}
    # runs of one hash are measured alike
    assert {v for v in probed if "-bert" not in v and "-albert" not in v} == {
        "mtl-pretraining",
        "mtl-passes-4-pretraining",
        "mt-dnn-pretraining",
    }
    assert of["mtl-passes-1"].hash == of["mtl-one-draw"].hash


def test_other_targets_and_encoders_have_their_own_runs(load):
    specs = plans.plan(load("real", experiments=["unanswerable", "sentences", "blocks"]))
    of = find_variants(specs)
    assert of["baseline-unanswerable"].domains == ["squad2"]
    assert of["mtl-unanswerable"].start.hash == of["mtl"].start.hash
    targets = {tuple(s.domains) for s in specs if s.variant == "mtl"}
    assert targets == {("mnli",), ("quora",)}
    assert of["mtl-blocks"].blocks == of["mtl-blocks"].start.blocks == 3
    specs = plans.plan(load("paper", arms=["printed"], experiments=["encoders"]))
    of = find_variants(specs)
    assert of["mtl-bert"].encoder == of["mtl-bert"].start.encoder == "bert-large-uncased"
    assert of["mt-dnn-albert"].weights.startswith("albert")


def test_the_quick_plan_is_small_and_has_all_six_heads(load):
    specs = plans.plan(load("quick"))
    assert len({s.hash for s in specs}) <= 35
    of = find_variants(specs)
    heads = set()
    for name in of["mtl"].start.domains:
        heads.add(selection.find_dataset(name, "embedded").head)
    assert heads == {"mrc", "yesno", "continuing", "nli", "sentiment", "paraphrase"}
    assert all(s.start or s.gate for s in specs if s.variant != "start")


def test_every_model_of_a_plan_has_a_name_and_a_colour_of_its_own(load):
    for profile in ("paper", "real", "quick"):
        for spec in plans.plan(load(profile, arms=["printed"])):
            if spec.variant != "start":
                assert plans.display_name("road", spec.variant)
    names, colours = zip(*road.MODELS.values(), strict=True)
    assert len(set(names)) == len(names)
    assert len(set(colours)) == len(colours)
    comparisons.check_chain(road.STEPS)


def test_the_central_comparisons_are_claims(load):
    listed = {claim.id: claim for claim in claims.read_claims("road")}
    for comparison in road.COMPARISONS:
        assert listed[comparison.claim].contrast is not None


def test_the_runs_of_the_first_half_are_those_that_they_were(load):
    """Their hashes at real small, as they were before there were teachers."""
    parts = ["heads", "pretraining", "controls", "passes", "unanswerable", "sentences", "blocks"]
    specs = plans.plan(load(size="small", experiments=parts, seeds=[0]))
    hashes = sorted({spec.hash for spec in specs})
    digest = hashlib.sha256("".join(hashes).encode()).hexdigest()
    assert (len(hashes), digest[:16]) == (31, "c64e6b75a7a8fc1b")


# ---- teachers and students ----


def test_the_students_of_a_seed_have_its_teachers(load):
    specs = plans.plan(load(size="small", seeds=[0, 1], side_seeds=None))
    for seed in (0, 1):
        of = find_variants([s for s in specs if s.seed == seed])
        taught_by = of["kd"].teachers
        assert [s.seed for s in taught_by] == [seed, seed + 100, seed + 200]
        assert [s.variant for s in taught_by] == ["mtl", "mtl-teacher", "mtl-teacher"]
        assert [bool(s.tests) for s in taught_by] == [True, False, False]
        assert [s.start.seed for s in taught_by] == [s.seed for s in taught_by]
        assert not any(s.probes for s in specs if s.variant.startswith("mtl-teacher"))
        hashes = [s.hash for s in taught_by]
        assert hashes[0] == of["mtl"].hash
        assert [s.hash for s in of["mtl-ensemble"].experts] == hashes
        for student in STUDENTS:
            assert [s.hash for s in of[student].teachers] == hashes
            alone = {"teachers": [], "distillation": None}
            assert of[student].model_copy(update=alone).hash == of["mtl"].hash
    given = {student: of[student].distillation for student in STUDENTS}
    assert given == {
        "kd": Distillation(),
        "weighted-kd": Distillation(teachers="weighted"),
        "annealed-kd": Distillation(annealing=True),
        "shuffled-kd": Distillation(teachers="shuffled"),
    }
    # all that a record's page and a child need stands in the plan
    planned = {s.hash for s in specs}
    assert {parent.hash for s in specs for parent in s.parents} <= planned


def test_a_teacher_of_the_study_s_own_seeds_is_no_further_teacher(load):
    both = {"seeds": [0, 100], "side_seeds": None}
    specs = plans.plan(load(size="small", teacher_seeds=[0, 100], **both))
    seeds = {s.variant: set() for s in specs}
    for s in specs:
        seeds[s.variant].add(s.seed)
    assert seeds["mtl"] == {0, 100}
    assert seeds["mtl-teacher"] == {200}


def test_a_table_that_was_not_run_is_called_as_parameters_call_it(load):
    """A note by another name would not be dropped where the page lists the parts that it lacks."""
    params = load(size="small", experiments=["heads"], arms=["printed"])
    for draw, part in (
        (figures_road.table_controls, "controls"),
        (figures_teachers.table_soft_pretraining, "soft-pretraining"),
    ):
        assert draw(params) == report.note_absent(part)
        assert part in report.name_parts_not_run(params)
    params = load(size="small", experiments=["pretraining"], arms=["printed"])
    # another part runs a model of each
    assert figures_road.table_heads(params) == report.note_absent("heads")
    assert figures_road.table_controls(params) == report.note_absent("controls")
    tuned = load(size="small", experiments=["pretraining"], arms=["tuned"], seeds=[0])
    [absent] = {figures_road.table_heads(tuned), figures_road.table_pretraining(tuned)}
    assert absent == report.note_absent("the report's settings")
    assert figures_road.table_pretraining(params, "tuned") == report.note_absent("equal tuning")


def test_the_costs_name_the_runs_of_the_teachers(load, monkeypatch):
    def read_records(specs):
        values = {"parameters": 1, "training_seconds": 6.0}
        return [(spec, values | {"run": spec.run}) for spec in specs]

    monkeypatch.setattr(figures_road.runs, "require_records", read_records)
    monkeypatch.setattr(figures_road.report, "save_table", lambda P, name, frame, caption: frame)
    params = load(size="small", experiments=["distillation"], seeds=[0])
    [student] = [spec for spec in plans.plan(params) if spec.variant == "kd"]
    frame = figures_road.table_cost(params)
    of_student = frame["model"] == plans.display_name("road", "kd")
    [row] = frame[of_student].to_dict("records")
    behind = [run for teacher in student.teachers for run in (teacher, teacher.start)]
    assert set(row["run"]) == {spec.run for spec in [student, student.start, *behind]}
    others = {spec.hash for spec in behind} - {student.start.hash}
    assert row["seconds of its teachers"] == f"{6 * len(others)}"


def test_the_central_comparison_may_have_more_seeds(load):
    parts = ["heads", "pretraining", "controls", "passes", "distillation"]
    params = load(size="small", experiments=parts, seeds=[0, 1, 2], side_seeds=[0])
    seeds = {}
    for s in plans.plan(params):
        seeds.setdefault(s.variant, set()).add(s.seed)
    for model in ("baseline", "mt-dnn", "mtl", "target-only"):
        assert seeds.pop(model) == seeds.pop(f"{model}-pretraining", {0, 1, 2}) == {0, 1, 2}
    teachers = seeds.pop("mtl-teacher") | seeds.pop("mtl-teacher-pretraining")
    assert teachers == {100, 200}
    assert {"joint-head", "mtl-own-heads", "mtl-passes-1", "kd", "mtl-ensemble"} <= set(seeds)
    assert all(own == {0} for own in seeds.values())
    text = "3 seeds of the plain model, the target alone, MT-DNN and ROaD, 1 of the others"
    assert text in params.describe_training()


def test_only_trials_get_test_sets_on_a_gpu(load, monkeypatch):
    """There a trial is scored at once. A pre-training and a further teacher are tested nowhere."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    parts = ["pretraining", "distillation"]
    params = load(size="small", experiments=parts, arms=["printed", "tuned"])
    todo = study.list_missing(plans.plan(params), fresh=True)
    tested = {s.variant: bool(s.tests) for s in todo}
    assert tested["mtl"]
    assert tested["mtl-trial"]
    for variant in ("mtl-pretraining", "mtl-trial-pretraining", "mtl-teacher"):
        assert not tested[variant]
    # with equal tuning alone no run of the plan has test sets at first
    alone = load(size="small", experiments=parts, arms=["tuned"])
    todo = study.list_missing(plans.plan(alone), fresh=True)
    tested = {s.variant: s.tests for s in todo}
    assert tested["mtl-trial"] == params.domains[:1]
    assert tested["mtl-trial-pretraining"] == []


def test_findings_know_tokens_and_validation_scores(load, monkeypatch):
    """Means over the seeds of a model, of its pre-training and of its fine-tuning."""

    def find_record(spec):
        if spec.variant == "mt-dnn":  # not run
            return None
        score = 30.0 + spec.seed if spec.domains == ["squad"] else 90.0
        row = {"step": 1, "validation_em": score, "validation_loss": 1.0}
        row["validation_accuracy"] = score
        return {"tokens": 100.0 * (spec.seed + 1), "history": [row], "chosen_step": 1}

    monkeypatch.setattr(road.runs, "find_record", find_record)
    # the same models on other targets do not count
    parts = ["pretraining", "sentences"]
    params = load(size="small", experiments=parts, seeds=[0, 1], arms=["printed"])
    assert {s.domains[0] for s in plans.plan(params) if s.variant == "mtl"} > {"squad"}
    assert road.collect_values(params) == {
        "validation_baseline": 30.5,
        "tokens_mt_dnn": 150.0,
        "tokens_mtl": 150.0,
        "validation_mtl": 30.5,
    }


def test_a_run_without_weighted_teachers_does_not_depend_on_their_weight(load):
    parts = ["distillation", "wrong-weights"]
    first = plans.plan(load(size="small", experiments=parts))
    second = plans.plan(load(size="small", experiments=parts, wrong_weight=0.5))
    of, other = find_variants(first), find_variants(second)
    changed = {name for name in of if of[name].hash != other[name].hash}
    assert changed == {"weighted-kd", "shuffled-kd"}
    sweep = {s.distillation.wrong_weight: s.hash for s in first if s.variant.endswith("-sweep")}
    assert set(sweep) == {0.25, 0.5, 0.75, 0.9}
    assert sweep[0.75] == of["weighted-kd"].hash
    assert sweep[0.5] == other["weighted-kd"].hash


def test_soft_pretraining_has_a_teacher_of_each_dataset_on_its_rows(load):
    specs = plans.plan(load("real", experiments=["pretraining", "soft-pretraining", "sentences"]))
    of = find_variants(specs)
    start = of["mtl-kd"].start
    assert start.distillation == Distillation(by_dataset=True)
    assert start.probes == 0
    assert [teacher.domains for teacher in start.teachers] == [[name] for name in SETS]
    assert [teacher.rows[0] for teacher in start.teachers] == start.rows
    assert [teacher.places for teacher in start.teachers] == [None, *([n] for n in range(1, 8))]
    assert [t.fingerprints[0] for t in start.teachers] == start.fingerprints
    for teacher in start.teachers:
        assert teacher.held_out == start.held_out
        assert (teacher.tests, teacher.validation_rows) == ([], 0)
        assert teacher.heads == start.heads
    untaught = start.model_copy(update={"teachers": [], "distillation": None})
    assert untaught.hash == of["mtl"].start.hash
    assert of["mtl-kd"].teachers == []
    targets = {tuple(s.domains) for s in specs if s.variant == "mtl-kd"}
    assert targets == {("squad",), ("mnli",), ("quora",)}


def test_born_again_models_teach_the_next_ones(load):
    of = find_variants(plans.plan(load("real", experiments=["born-again"], generations=3)))
    chain = [of["born-again"]]
    while chain[-1].teachers:
        chain.append(chain[-1].teachers[0])
    names = ["born-again", "born-again-2", "born-again-1", "mtl"]
    assert [s.variant for s in chain] == names
    assert of["born-again-1"].hash == of["kd-one"].hash
    once = find_variants(plans.plan(load("real", experiments=["born-again"], generations=1)))
    assert once["born-again"].hash == once["kd-one"].hash == of["kd-one"].hash


def test_other_teachers_and_controls(load):
    parts = ["smoothing", "ensemble", "teacher-sizes"]
    specs = plans.plan(load("real", experiments=parts))
    of = find_variants(specs)
    assert of["smoothed-labels"].distillation == Distillation(targets="smoothed")
    assert len(of["smoothed-labels"].teachers) == 3
    members = of["ensemble"].experts
    assert [s.variant for s in members] == ["baseline", "baseline-teacher", "baseline-teacher"]
    assert all(s.start is None for s in members)
    blocks = {}
    for name in ("kd-from-larger", "kd-from-smaller", "kd-small"):
        blocks[name] = (of[name].teachers[0].blocks, of[name].blocks)
    assert blocks == {
        "kd-from-larger": (None, 3),
        "kd-from-smaller": (3, None),
        "kd-small": (3, 3),
    }


def test_students_of_teachers_of_two_sizes_stand_apart(load, monkeypatch):
    monkeypatch.setattr(pieces, "save_grid", lambda P, name, caption, rows, part: rows)
    params = load("real", experiments=["teacher-sizes"], arms=["printed"], sweep_blocks=[2, 4])
    for spec in plans.plan(params):
        if runs.find_record(spec) is None:
            runs.save(spec, *plant_record(spec))
    rows = figures_teachers.table_sizes(params)
    models = list(dict.fromkeys(rows["model"]))
    assert len(models) == 1 + 2 * 4
    assert {"2 blocks: " in model or "4 blocks: " in model for model in models[1:]} == {True}
    assert not rows.duplicated(["model", "seed", "column"]).any()


def test_road_base_is_the_one_encoder_at_real_and_a_smaller_one_at_paper(load):
    parts = ["pretraining", "passes", "born-again", "base", "base-passes", "base-hidden"]
    specs = plans.plan(load("real", experiments=parts))
    of = find_variants(specs)
    assert of["base-student"].hash == of["baseline"].hash
    assert of["base-4"].hash == of["kd-one"].hash
    assert of["base-4-untaught"].hash == of["mtl"].hash
    for number in (1, 2, 4, 8):
        assert of[f"base-{number}"].start.hash == of[f"mtl-passes-{number}"].start.hash
    road_alone = [of["mtl"].hash]
    for name in ("base-none", "base-8", "base-hidden", "base-both", "base-last-hidden"):
        assert [s.hash for s in of[name].teachers] == road_alone, name
    learned = {}
    for name in ("base-none", "base-hidden", "base-both", "base-last-hidden"):
        given = of[name].distillation
        learned[name] = (given.targets, given.hidden)
    assert learned == {
        "base-none": ("teachers", "none"),
        "base-hidden": ("none", "all"),
        "base-both": ("teachers", "all"),
        "base-last-hidden": ("teachers", "last"),
    }
    assert [s.variant for s in of["base-from-base-3"].teachers] == [
        "base-student",
        "base-student-teacher",
        "base-student-teacher",
    ]
    assert not any(name.startswith("base-from-electra") for name in of)

    of = find_variants(plans.plan(load("paper", arms=["printed"])))
    student = of["base-4"]
    assert student.encoder == student.start.encoder == "google/electra-base-discriminator"
    assert student.weights != of["mtl"].weights
    assert student.start.multitask.rounds == 40000
    assert (student.learning_rate, student.layer_decay.rate) == (1e-4, 0.8)
    for name, number in (("electra-1", 1), ("electra-3", 3), ("road-3", 3), ("distilled", 1)):
        taught_by = of[f"base-from-{name}"].teachers
        assert len(taught_by) == number
        assert {s.encoder for s in taught_by} == {"google/electra-large-discriminator@refs/pr/2"}
    assert of["base-from-distilled"].teachers[0].hash == of["weighted-kd"].hash


@pytest.mark.parametrize("parts", [None, ["heads", "base"], ["base-passes"], ["heads", "encoders"]])
def test_the_encoders_of_a_plan_are_those_that_are_fetched(load, parts):
    p = load("paper", arms=["printed"], **{"experiments": parts} if parts else {})
    planned = set()
    for spec in plans.plan(p):
        planned |= {spec.encoder, *(parent.encoder for parent in spec.parents)}
    assert set(p.named_encoders()) == planned


def test_every_variant_that_a_claim_names_is_planned(load):
    """At real those that are tested there, at paper all but what has no size of its own there."""
    every = plans.plan(load("paper", arms=["printed"]))
    planned = {"paper": {s.variant for s in every}}
    planned["real"] = {s.variant for s in plans.plan(load("real", arms=["printed"]))}
    missing = {"paper": set(), "real": set()}
    for claim in claims.read_claims("road"):
        for side in claim.contrast.sides() if claim.contrast else []:
            for profile in claim.profiles:
                missing[profile] |= set(np.ravel(side["variant"])) - planned[profile]
    assert missing["real"] == set()
    assert missing["paper"] == {"base-hidden", "base-both", "base-last-hidden"}


def test_teachers_of_a_plan_may_not_have_seen_what_is_held_out(small_encoder, monkeypatch):
    """A text of the target's validation rows among those of a dataset of pre-training."""
    params = plans.load_params("road", "quick", TINY | {"encoder": small_encoder})
    of = find_variants(plans.plan(params))
    taught = [of["kd"], of["mtl-kd"].start, of["born-again"]]
    for spec in taught:
        teachers.check_teachers(spec)
    unseen = selection.load_splits("encyclopaedia", "embedded").validation[0]
    leak = {**unseen, "question": "Who?", "domain": "search"}
    plant_rows(monkeypatch, "search", "train", [leak])
    try:
        with pytest.raises(UserError, match="cannot teach kd-s0.* validation rows of encyclo"):
            teachers.check_teachers(of["kd"])
    finally:
        clear_texts()
    unseen = selection.load_splits("encyclopaedia", "embedded").test[0]
    plant_rows(monkeypatch, "search", "train", [unseen | {"question": "Why?", "domain": "search"}])
    try:
        with pytest.raises(UserError, match="test rows of encyclopaedia, which must stay unseen"):
            teachers.check_teachers(of["mtl-kd"].start)
    finally:
        monkeypatch.undo()
        clear_texts()


# ---- equal tuning ----


def test_every_tuned_model_has_eight_trials_and_the_controls_take_road_s(load):
    params = load(size="small", arms=["tuned"])
    waiting = road.plan(params, lambda spec: None)
    tried = [s for s in waiting if s.variant.endswith("-trial")]
    assert len(tried) == 24
    assert {selection.trial_column(s) for s in tried} == {"validation_f1"}
    assert {s.seed for s in waiting} == {0}
    assert not any(s.tests for s in waiting)
    settings = {}
    for s in tried:
        before = s.start and (s.start.learning_rate, s.start.layer_decay is None)
        settings.setdefault(s.variant, set()).add((s.learning_rate, s.epochs, before))
    assert settings["baseline-trial"] == {
        (rate, e, None) for rate in (2e-5, 5e-5, 1e-4, 2e-4) for e in (2, 4)
    }
    for model in ("mt-dnn", "mtl"):
        assert settings[f"{model}-trial"] == {
            (rate, 4, (before, is_flat))
            for rate in (5e-5, 1e-4)
            for before in (1e-4, 3e-4)
            for is_flat in (False, True)
        }
    # a pre-training is shared by the trials that differ in fine-tuning alone
    assert len({s.hash for s in waiting if s not in tried}) == 8

    def score(spec):
        before = spec.start.learning_rate if spec.start else 0
        return (spec.learning_rate + spec.epochs - before, 0.0)

    specs = road.plan(params, score)
    of = find_variants([s for s in specs if s.tests])
    assert set(of) == {*road.TUNED, *road.FOLLOWERS, *STUDENTS, "mtl-ensemble"}
    assert (of["baseline"].learning_rate, of["baseline"].epochs) == (2e-4, 4)
    assert {s.variant for s in of["kd"].teachers} == {"mtl", "mtl-teacher"}
    for teacher in of["kd"].teachers:
        assert (teacher.learning_rate, teacher.start.learning_rate) == (1e-4, 1e-4)
    for model in ("mtl", *road.FOLLOWERS, *STUDENTS):
        assert (of[model].learning_rate, of[model].start.learning_rate) == (1e-4, 1e-4), model
    assert {s.arm for s in specs} == {"tuned"}


# ---- what is refused ----


def test_datasets_that_share_a_head_have_the_same_classes(load, monkeypatch):
    """As many classes, in another order, would be labels of others."""
    read = params.read_datasets

    def read_turned(source, file=None):
        datasets = dict(read(source, file))
        nli = datasets["nli"]
        datasets["search"] = nli.model_copy(update={"classes": nli.classes[::-1]})
        return datasets

    monkeypatch.setattr(params, "read_datasets", read_turned)
    words = "pretraining: nli and search share the head nli and have different answers .task, cla"
    with pytest.raises(UserError, match=words):
        plans.plan(load("quick", pretraining={"nli": 8, "search": 8}))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"passes": 3}, "pretraining_batch: 16 does not divide among 3 passes"),
        ({"sweep_passes": [1, 5]}, "pretraining_batch: 16 does not divide among 5 passes"),
        (
            {"experiments": ["base-passes"], "sweep_passes": [3], "teacher_seeds": [0, 100]},
            "pretraining_batch: 16 does not divide among 3 passes",
        ),
        (
            {"arms": ["tuned"], "trial_plain_epochs": [2]},
            "trial_plain_rates: with the arm tuned the plain model has ",
        ),
        ({"pretraining": {"nli": 8, "news": 8}}, "pretraining: news stands in domains, and is"),
        ({"domains": ["nli", "news"], "pretraining": {"yesno": 8, "search": 8}}, "domains: nli is"),
        ({"pretraining": {"similarity": 8, "search": 8}}, "pretraining: similarity names no head"),
        ({"experiments": ["unanswerable"]}, "unanswerable: the part unanswerable of experiments"),
        ({"experiments": ["sentences"]}, "sentences: the part sentences of experiments needs"),
        ({"temperature": 0.0}, "temperature: 0.0 is too small; write a number greater than 0"),
        ({"wrong_weight": 1.5}, "wrong_weight: 1.5 is too large; write a number less than"),
        ({"wrong_weight": -0.1}, "wrong_weight: -0.1 is too small"),
        ({"sweep_wrong_weights": [0.5, 2.0]}, "2.0 is too large"),
        ({"hard": 1.1}, "hard: 1.1 is too large"),
        ({"generations": 0}, "generations: 0 is too small"),
        (
            {"teacher_seeds": []},
            "teacher_seeds: the part distillation of experiments needs teachers; write [0,100] ",
        ),
        ({"teacher_seeds": [0, 0]}, "teacher_seeds: 0 stands there twice"),
    ],
)
def test_wrong_parameters_are_one_sentence(load, changes, words):
    with pytest.raises(UserError) as error:
        plans.plan(load("quick", **changes))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_datasets_of_one_head_have_as_many_classes(load, monkeypatch):
    """Else the classes of one would be read as those of another, or there would be too few."""
    known = dict(params.read_datasets("embedded"))
    known["sentiment"] = known["sentiment"].model_copy(update={"head": "nli"})
    monkeypatch.setattr(params, "read_datasets", lambda source, file=None: known)
    for order in (("nli", "sentiment"), ("sentiment", "nli")):
        with pytest.raises(UserError) as error:
            plans.plan(load("quick", pretraining=dict.fromkeys(order, 8)))
        assert f"pretraining: {order[0]} and {order[1]} share the head nli and have" in str(error)
    plans.plan(load("quick", pretraining={"sentiment": 8, "paraphrase": 8}))


# ---- claims, on planted records ----


def plant_record(spec: Spec, rows=40) -> tuple[dict, pd.DataFrame]:
    """Return a run's record and examples with random scores, as training writes them."""
    rng = np.random.default_rng(int(spec.hash[:8], 16))
    frames = [pd.DataFrame({"set": [], "id": [], "cluster": []})]
    scores = {}
    for name in spec.tests:
        metrics = ["accuracy"] if name in ("mnli", "quora") else ["em", "f1"]
        columns = {m: rng.choice([0.0, 100.0], rows, p=[0.4, 0.6]) for m in metrics}
        numbers = np.arange(rows).astype(str)
        frames.append(pd.DataFrame({"set": name, "id": numbers, "cluster": numbers} | columns))
        scores[name] = {m: v.mean() for m, v in columns.items()}
        scores[name] |= {"n": rows, "clusters": rows}
    history = []
    for epoch in range(1, int(spec.epochs) + 1) if spec.validation_rows else []:
        losses = {"train_loss": rng.uniform(1, 2), "validation_loss": rng.uniform(1, 2)}
        columns = {f"validation_{name}": rng.uniform(0, 100) for name in ("em", "f1", "accuracy")}
        history.append({"epoch": float(epoch), "step": epoch} | losses | columns)
    environment = {"device": "CPU, 1 thread", "precision": "fp32"}
    record = {"metrics": scores, "history": history, "environment": environment}
    return record, pd.concat(frames)


def test_claims_about_models_that_were_run_are_judged(load):
    parts = ["heads", "pretraining", "controls", "distillation", "soft-pretraining"]
    params = load("real", experiments=parts, arms=["printed"], seeds=[0, 1, 2])
    for spec in plans.plan(params):
        if runs.find_record(spec) is None:
            runs.save(spec, *plant_record(spec))
    specs = plans.plan(params)
    table = verify.judge_records(params, specs, claims.read_claims("road"))
    table = verify.select(table)
    run_here = {s.variant for s in specs}
    further = {runs.find_record(s)["run"] for s in specs if s.variant == "mtl-teacher"}
    assert len(further) == 6
    assert not further & {run for names in table["run"] for run in names}
    judged = set()
    for claim in claims.read_claims("road"):
        named = set()
        for side in claim.contrast.sides() if claim.contrast else []:
            named.update(np.ravel(side["variant"]))
        if "real" in claim.profiles and named <= run_here:
            assert table.loc[claim.id, "n"] == 3, claim.id
            assert table.loc[claim.id, "verdict"] != Verdict.NOT_TESTED, claim.id
            judged.add(claim.id)
        else:
            assert table.loc[claim.id, "verdict"] == Verdict.NOT_TESTED, claim.id
    assert {c.claim for c in road.COMPARISONS} <= judged
    assert len(judged) == 25


# ---- a tiny study ----


def test_a_small_study_runs_to_the_end(small_encoder):
    """Pre-training in each way, an ensemble of teachers, and what is learnt from it."""
    changes = TINY | {"encoder": small_encoder, "arms": ["printed"], "start_threads": 1}
    changes |= {"blocks": 1, "experiments": ["pretraining", "distillation"]}
    params = plans.load_params("road", "quick", changes)
    study.run(params, plans.plan, workers=1, live=False)
    ledger = runs.collect_ledger(plans.plan(params))
    assert np.isfinite(ledger["value"]).all()
    assert set(ledger["variant"]) >= {"baseline", "mt-dnn", "mtl", *STUDENTS, "mtl-ensemble"}
    measured = ledger[ledger["variant"] == "weighted-kd"].set_index(["set", "metric"])["value"]
    assert measured["training", "soft_target_entropy"] > 0
    assert 0 <= measured["training", "teachers_disagree"] <= 1
    assert 0 <= measured["encyclopaedia", "ece"] <= 100
    assert len(verify.claims_table(params)) > 0
    # nothing of it is trained twice
    assert set(study.run(params, plans.plan, live=False)["trained"]) == {"found"}


@pytest.mark.parametrize(
    ("left", "told"),
    [
        (0.6, "they disagree"),
        (0.75, "they neither agree nor disagree"),
        (0.9, "they agree"),
    ],
)
def test_what_gradients_say_is_measured_at_orthogonal_ones(left, told):
    row = {"run": "a", "step": 1, "first": "nli", "second": "mrc", "same": False, "cosine": -0.1}
    measured = {"left": left, "orthogonal": 0.71}
    text = figures_road.describe_cosines(pd.DataFrame([row | measured]))
    assert "100 % are negative" in text
    assert text.endswith(f"0.71 if they were orthogonal, so on the whole {told}.")
