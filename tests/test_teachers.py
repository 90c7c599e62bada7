"""Soft targets of a run's teachers: computed once, stored, and read window by window."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_multitask import compare_records, make_spec, show_nothing, train_twice
from torch.utils.data import DataLoader
from transformers import AlbertConfig, AlbertModel

from qa_lib.data import features, selection
from qa_lib.models import encoders, heads
from qa_lib.models.shared_encoder import HeadOutput
from qa_lib.settings.parameters import Distillation, Gate, Heads, Multitask
from qa_lib.settings.params import UserError
from qa_lib.settings.spec import Spec
from qa_lib.store import runs
from qa_lib.training import build, evaluate, frozen, study, teachers, train

TASKS = ["encyclopaedia", "nli", "sentiment"]  # spans, and classes of pairs and of single texts
JOINED = Heads(pooling="mean", one_for="task", pairs="joined")


@pytest.fixture(autouse=True)
def cache(store, monkeypatch):
    """Return the folder of an empty store of features and outputs."""
    monkeypatch.setattr(evaluate, "CACHE", store / "cache")
    return store / "cache"


pytestmark = pytest.mark.usefixtures("one_thread")


def make_run(encoder: str, **changes) -> Spec:
    """Return a run of ROaD's kind on generated rows that takes seconds."""
    fields = {"domains": TASKS, "heads": JOINED, "checkpoint": "last", "validation_rows": 12}
    return make_spec(encoder, **fields | changes)


def make_teacher(encoder: str, seed: int, **changes) -> Spec:
    """Return a teacher that was not trained, with weights in the store that make it answer."""
    spec = make_run(encoder, seed=seed, report="road", variant="teacher", **changes)
    model, _ = build.build_model(spec)
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if not name.startswith("encoder.") and parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=1.0)
    folder = runs.run_folder(spec)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), folder / "model.safetensors")
    return spec


def make_student(encoder: str, taught_by: list[Spec], **changes) -> Spec:
    """Return a run that learns from teachers."""
    fields = {"teachers": taught_by, "distillation": Distillation(), "variant": "student"}
    return make_run(encoder, **fields | changes)


def load_examples(spec: Spec) -> tuple[train.Examples, list[dict]]:
    """Return the training examples of a run, and its training rows."""
    model, tokenizer = build.build_model(spec)
    rows, _, counts = train.draw_rows(spec)
    examples = train.load_training_examples(spec, model, tokenizer, rows, counts, show_nothing)
    return examples, rows


def load_windows(spec: Spec, dataset: str, rows: list[dict]):
    """Return the windows of the rows that are a dataset's."""
    _, tokenizer = encoders.load_encoder(spec.encoder)
    own = [row for row in rows if row["domain"] == dataset]
    lengths = (spec.max_length, spec.stride)
    task = selection.find_task(spec, dataset)
    return features.load_windows(own, tokenizer, *lengths, evaluate.CACHE, task)


@pytest.fixture
def loads(monkeypatch) -> list[str]:
    """Return a list to which the hash of each teacher is added that is loaded."""
    seen = []
    load = build.load_trained_model

    def load_and_note(spec: Spec):
        seen.append(spec.hash)
        return load(spec)

    monkeypatch.setattr(build, "load_trained_model", load_and_note)
    return seen


# ---- what is stored ----


@pytest.mark.parametrize("dataset", TASKS)
def test_what_is_stored_is_what_the_teacher_says_rounded_to_half(small_encoder, dataset):
    teacher = make_teacher(small_encoder, 5)
    student = make_student(small_encoder, [teacher])
    examples, rows = load_examples(student)
    taught = examples.windows.windows[dataset]
    windows = load_windows(student, dataset, rows)
    model = build.load_trained_model(teacher).eval()
    task = selection.find_task(student, dataset)
    _, tokenizer = encoders.load_encoder(small_encoder)
    collate = model.collate(tokenizer, task, dataset)
    outputs, _ = evaluate.compute_outputs(model, windows, collate, "fp32", task)
    names = ("start", "end") if dataset == "encyclopaedia" else ("logits",)
    assert len(taught) == len(windows) >= 24
    for index in range(len(windows)):
        live = [outputs[name][index].astype(np.float16) for name in names]
        stored = taught[index]["teachers"]
        assert stored.dtype == np.float16
        of_names = stored.reshape(len(names), -1)
        assert np.array_equal(of_names, np.stack(live))
        if index >= 8:
            continue
        # and alone in its batch it says the same but for the last digits
        with torch.inference_mode():
            alone = task.read_outputs(model(**collate([windows[index]])), [stored.shape[-1]])
        for values, name in zip(of_names, names, strict=True):
            np.testing.assert_allclose(values, alone[name][0], rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("hidden", ["last", "all"])
def test_hidden_states_are_stored_and_stand_at_their_tokens(small_encoder, hidden):
    taught_by = [make_teacher(small_encoder, 5), make_teacher(small_encoder, 6)]
    of_states = {"distillation": Distillation(hidden=hidden), "domains": TASKS[:2]}
    student = make_student(small_encoder, taught_by, **of_states)
    examples, _ = load_examples(student)
    models = [build.load_trained_model(teacher).eval() for teacher in taught_by]
    blocks = 1 if hidden == "last" else 6
    for indices in list(examples.sampler)[:4]:
        batch = examples.collate([examples.windows[i] for i in indices])
        states = batch["teacher_states"]
        tokens = batch["input_ids"].shape[1]
        assert states.dtype == torch.float32
        assert states.shape == (2, len(indices), blocks, tokens, 48)
        texts = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
        mask = batch["attention_mask"].bool()
        assert not states.transpose(2, 3)[:, ~mask].any()
        for model, of_teacher in zip(models, states, strict=True):
            with torch.inference_mode():
                live = model.encoder(**texts, output_hidden_states=True).hidden_states
            live = torch.stack(live[-blocks:], 1).transpose(1, 2)[mask]  # (tokens, L, D)
            torch.testing.assert_close(of_teacher.transpose(1, 2)[mask], live, rtol=2e-3, atol=2e-3)


def test_a_run_learns_from_hidden_states(small_encoder, loads):
    """Logits and states are stored apart, and a run without states shares the logits."""
    alone = {"domains": ["sentiment"], "multitask": None, "epochs": 1.0}
    teacher = make_teacher(small_encoder, 5, **alone)
    options = {"distillation": Distillation(hidden="last"), **alone}
    record = train.train(make_student(small_encoder, [teacher], **options), progress=show_nothing)
    assert record["metrics"]["training"]["states_loss"] > 0
    assert loads == [teacher.hash] * 2
    train.train(make_student(small_encoder, [teacher], **alone), progress=show_nothing)
    assert loads == [teacher.hash] * 2


def test_what_is_computed_in_another_precision_is_stored_apart(small_encoder):
    teacher = make_run(small_encoder, variant="teacher", seed=5)
    student = make_student(small_encoder, [teacher])
    windows = SimpleNamespace(cache_files=[{"filename": "cache/key/data.arrow"}])
    names = set()
    for precision in ("fp32", "bf16"):
        asking = student.model_copy(update={"precision": precision})
        for kind in ("logits", "last", "all"):
            names.add(teachers.name_outputs(teacher, "nli", windows, asking, kind))
    assert len(names) == 6


def test_states_of_another_shape_are_refused(small_encoder):
    teacher = make_run(small_encoder, seed=5, blocks=3)
    student = make_student(small_encoder, [teacher], distillation=Distillation(hidden="all"))
    with pytest.raises(UserError, match=r"hidden: .* has blocks and width \(3, 48\), and "):
        teachers.check_teachers(student)
    last = student.model_copy(update={"distillation": Distillation(hidden="last")})
    teachers.check_teachers(last)


def test_albert_has_states_at_every_depth(small_encoder, monkeypatch):
    """Its one block is passed several times."""
    encoder = AlbertModel(AlbertConfig(num_hidden_layers=12, hidden_size=48, num_attention_heads=2))
    monkeypatch.setattr(encoders, "read_encoder", lambda name: (encoder, None))
    teacher = make_run(small_encoder, seed=5)
    student = make_student(small_encoder, [teacher], distillation=Distillation(hidden="all"))
    teachers.check_states(student.model_copy(update={"blocks": 12}), teacher)
    with pytest.raises(UserError, match=r"\(12, 48\), and .* has \(1, 48\)"):
        teachers.check_states(student.model_copy(update={"blocks": 1}), teacher)


def test_the_store_is_read_memory_mapped_and_only_read(small_encoder):
    student = make_student(small_encoder, [make_teacher(small_encoder, 5)])
    examples, _ = load_examples(student)
    for taught in examples.windows.windows.values():
        (logits,) = taught.logits
        assert logits.dtype == np.float16
        assert not logits.flags.writeable
        assert not logits.flags.owndata


def test_a_second_run_reads_the_store_and_asks_no_teacher(small_encoder, loads, monkeypatch):
    taught_by = [make_teacher(small_encoder, seed) for seed in (5, 6)]
    hashes = [teacher.hash for teacher in taught_by]
    student = make_student(small_encoder, taught_by)
    first, _ = load_examples(student)
    assert loads == hashes * 3  # for each dataset
    loads.clear()
    other = make_student(small_encoder, taught_by[::-1], distillation=Distillation(temperature=8.0))
    second, _ = load_examples(other)
    assert loads == []
    for index in (0, 30, 60):
        (dataset, ours), (_, theirs) = first.windows[index], second.windows[index]
        assert np.array_equal(ours["teachers"], theirs["teachers"][::-1]), dataset
    # other rows are other windows
    load_examples(make_student(small_encoder, taught_by, seed=1))
    assert loads == hashes * 3
    loads.clear()
    # a teacher that is trained again is asked again
    frozen.drop_outputs(taught_by[1])
    load_examples(student)
    assert loads == hashes[1:] * 3


def truncate(folder):
    """Cut a stored array short."""
    file = folder / teachers.OUTPUTS
    file.write_bytes(file.read_bytes()[:-8])


def spoil(folder):
    """Change a number in a stored array."""
    file = folder / teachers.OUTPUTS
    content = bytearray(file.read_bytes())
    content[-1] ^= 0x40
    file.write_bytes(content)


def leave_half(folder):
    """Leave what a process leaves that is killed while it writes."""
    folder.rename(folder.with_name(f"{folder.name}.half"))
    (folder.with_name(f"{folder.name}.half") / "complete").unlink()


def unseal(folder):
    """Remove the last file of a folder."""
    (folder / "complete").unlink()


@pytest.mark.parametrize("harm", [truncate, spoil, leave_half, unseal])
def test_a_damaged_or_half_written_store_is_made_anew(small_encoder, cache, loads, capsys, harm):
    teacher = make_teacher(small_encoder, 5)
    student = make_student(small_encoder, [teacher], domains=["encyclopaedia"], multitask=None)
    examples, _ = load_examples(student)
    before = [examples.windows[i]["teachers"].copy() for i in range(len(examples.windows))]
    del examples
    (folder,) = [path for path in (cache / "frozen").iterdir() if path.is_dir()]
    assert folder.name.startswith(f"{teacher.hash[:16]}-")
    harm(folder)
    loads.clear()
    again, _ = load_examples(student)
    assert loads == [teacher.hash]
    assert ("are damaged; made anew" in capsys.readouterr().out) == (harm is not leave_half)
    for index, logits in enumerate(before):
        assert np.array_equal(again.windows[index]["teachers"], logits)
    loads.clear()
    load_examples(student)
    assert loads == []


# ---- batches ----


class Planted(heads.EncoderModel):
    """A teacher whose logits tell the window and the teacher that they are of."""

    def __init__(self, number: int, names_datasets: bool):
        super().__init__()
        self.number = number
        self.names_datasets = names_datasets

    @property
    def reads_types(self) -> bool:
        return False

    def forward(self, input_ids, attention_mask, dataset=None, labels=None, **batch):
        values = (input_ids % 1000).float()  # exact in half precision
        if labels is None:
            return heads.SpanOutput(torch.zeros(()), values, -values - self.number)
        total = (values * attention_mask).sum(1) % 1000
        return HeadOutput(torch.zeros(()), torch.stack([total, -total - self.number], 1), None)


def plant_teachers(monkeypatch, taught_by: list[Spec]):
    """Let teachers be those that tell who and where they are."""
    number_of = {teacher.hash: number for number, teacher in enumerate(taught_by)}
    monkeypatch.setattr(
        build, "load_trained_model", lambda spec: Planted(number_of[spec.hash], bool(spec.heads))
    )


def check_batch(batch: dict, number_of_teachers: int):
    """Assert that each row of a batch has its own targets, and the lowest number at padding."""
    ids, mask, targets = batch["input_ids"], batch["attention_mask"].bool(), batch["teachers"]
    values = (ids % 1000).float()
    assert targets.dtype == torch.float32
    if "start_positions" in batch:
        assert targets.shape == (number_of_teachers, len(ids), 2, ids.shape[1])
    else:
        assert targets.shape == (number_of_teachers, len(ids), 2)
    for number in range(number_of_teachers):
        for row in range(len(ids)):
            own = values[row, mask[row]]
            target = targets[number, row]
            if "start_positions" not in batch:
                total = own.sum() % 1000
                assert target.tolist() == [total, -total - number]
                continue
            assert torch.equal(target[0, mask[row]], own)
            assert torch.equal(target[1, mask[row]], -own - number)
            assert (target[:, ~mask[row]] == torch.finfo(torch.float32).min).all()


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("schedule", ["rrobin", "draws"])
def test_each_row_has_its_own_targets_in_batches_of_several_datasets(
    small_encoder, monkeypatch, number, schedule
):
    taught_by = [make_run(small_encoder, seed=seed, variant="t") for seed in range(5, 5 + number)]
    options = {"rounds": 20, "passes": 2} if schedule == "draws" else {}
    multitask = Multitask(schedule=schedule, **options)
    plant_teachers(monkeypatch, taught_by)
    examples, _ = load_examples(make_student(small_encoder, taught_by, multitask=multitask))
    loader = DataLoader(
        examples.windows, batch_sampler=examples.sampler, collate_fn=examples.collate
    )
    datasets = []
    for batch in loader:
        datasets.append(batch["dataset"])
        check_batch(batch, number)
    assert set(datasets) == set(TASKS)


def test_each_row_has_its_own_targets_in_shuffled_batches_of_one_dataset(
    small_encoder, monkeypatch
):
    taught_by = [make_run(small_encoder, seed=seed, variant="t") for seed in (5, 6, 7)]
    plant_teachers(monkeypatch, taught_by)
    alone = {"domains": ["encyclopaedia"], "multitask": None}
    examples, _ = load_examples(make_student(small_encoder, taught_by, **alone))
    lengths = set()
    for epoch in range(2):
        examples.sampler.set_epoch(epoch)
        loader = DataLoader(
            examples.windows, sampler=examples.sampler, batch_size=8, collate_fn=examples.collate
        )
        for batch in loader:
            check_batch(batch, 3)
            lengths.add(int(batch["attention_mask"].sum(1).min()))
    assert len(lengths) > 1


# ---- runs ----


@pytest.mark.slow
def test_a_run_with_teachers_is_killed_and_ends_with_the_same_numbers(
    small_encoder, store, monkeypatch, loads
):
    taught_by = [make_teacher(small_encoder, seed) for seed in (5, 6)]
    student = make_student(small_encoder, taught_by)
    undisturbed, again = train_twice(student, 13, store, monkeypatch)
    compare_records(again, undisturbed)
    assert again["teachers"] == [teacher.hash for teacher in taught_by]
    assert again["metrics"]["training"]["soft_loss"] > 0
    # three trainings, and the store was made in the first
    assert len(loads) == 2 * 3


def test_teachers_are_asked_about_training_windows_alone(small_encoder, monkeypatch):
    teacher = make_teacher(small_encoder, 5)
    student = make_student(small_encoder, [teacher])
    asked = set()
    compute = teachers.compute_logits

    def compute_and_note(model, windows, *rest):
        asked.update(tuple(ids) for ids in windows["input_ids"])
        return compute(model, windows, *rest)

    monkeypatch.setattr(teachers, "compute_logits", compute_and_note)
    train.train(student, progress=show_nothing)
    rows, validation, _ = train.draw_rows(student)
    tests = [row for _, of_set in selection.load_test_sets(student).values() for row in of_set]
    texts = {}
    for name, part in (("train", rows), ("validation", validation), ("test", tests)):
        texts[name] = set()
        for dataset in TASKS:
            windows = load_windows(student, dataset, part)
            texts[name].update(tuple(ids) for ids in windows["input_ids"])
    assert asked == texts["train"]
    assert not asked & (texts["validation"] | texts["test"])


def make_dataset_teachers(encoder: str) -> list[Spec]:
    """Return a teacher for each dataset, trained on it alone."""
    taught_by = []
    for seed, dataset in enumerate(TASKS, 5):
        alone = {"domains": [dataset], "multitask": None, "tests": []}
        taught_by.append(make_teacher(encoder, seed, **alone))
    return taught_by


def test_each_dataset_can_have_a_teacher_of_its_own(small_encoder, loads):
    taught_by = make_dataset_teachers(small_encoder)
    options = {"distillation": Distillation(by_dataset=True)}
    student = make_student(small_encoder, taught_by, **options)
    examples, _ = load_examples(student)
    assert loads == [teacher.hash for teacher in taught_by]  # each about its own dataset alone
    for dataset, of_dataset in examples.windows.windows.items():
        assert len(of_dataset.logits) == 1, dataset
    record = train.train(student, progress=show_nothing)
    assert record["metrics"]["training"]["soft_loss"] > 0
    assert record["metrics"]["training"]["teachers_disagree"] == 0
    # without the option every teacher would be asked about every dataset
    with pytest.raises(UserError, match="it has no head for"):
        load_examples(make_student(small_encoder, taught_by))
    words = "no teacher was trained on sentiment, and by_dataset asks no other; name one that was"
    with pytest.raises(UserError, match=words):
        load_examples(make_student(small_encoder, taught_by[:2], **options))


# ---- what is refused ----


def plant_rows(monkeypatch, name: str, part: str, rows: list[dict]):
    """Add rows to the training, the validation or the test rows of a dataset."""
    load = selection.load_splits

    def load_planted(dataset, *rest):
        splits = load(dataset, *rest)
        if dataset != name:
            return splits
        parts = {p: list(getattr(splits, p)) for p in ("train", "validation", "test")}
        parts[part] += rows
        planted = selection.Splits(**parts, counts=splits.counts, task=splits.task)
        planted.held_out = set(splits.held_out)
        if part != "train":
            planted.held_out |= {selection.row_key(row, splits.task) for row in rows}
        return planted

    monkeypatch.setattr(selection, "load_splits", load_planted)
    clear_texts()


def clear_texts():
    """Forget the texts of datasets."""
    selection.list_part_texts.cache_clear()
    selection.list_training_texts.cache_clear()


@pytest.fixture
def planted(monkeypatch):
    """Return a function that plants rows, for one test."""
    yield lambda *args: plant_rows(monkeypatch, *args)
    clear_texts()


@pytest.mark.parametrize("part", ["validation", "test", "held out"])
@pytest.mark.parametrize("behind", [0, 1, 2])
def test_a_teacher_that_was_trained_on_held_out_texts_is_refused(
    small_encoder, planted, part, behind
):
    """So it is where the run that the teacher goes on from, or learns from, was trained on them."""
    alone = {"domains": ["encyclopaedia"], "multitask": None}
    source = make_run(small_encoder, domains=["news"], multitask=None, variant="leaky", seed=4)
    run = source
    if behind == 1:
        run = make_run(small_encoder, start=source, seed=5, variant="child", **alone)
    if behind == 2:
        run = make_student(small_encoder, [source], seed=5, variant="child", **alone)
    held_out = {"held_out": ["encyclopaedia"], "tests": []} if part == "held out" else {}
    student = make_student(small_encoder, [run], **alone | held_out)
    teachers.check_teachers(student)
    of_part = "validation" if part == "validation" else "test"
    unseen = getattr(selection.load_splits("encyclopaedia", "embedded"), of_part)[0]
    planted("news", "train", [{**unseen, "question": "Who?", "domain": "news"}])
    words = (
        f"^{run.run} cannot teach {student.run}: 1 texts that {source.run} was trained on are "
        f"texts of {of_part} rows of encyclopaedia, which must stay unseen; take other teachers"
    )
    with pytest.raises(UserError, match=words) as error:
        load_examples(student)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=words):  # before the first training
        study.estimate_tokens(student, {})


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"domains": ["encyclopaedia", "nli"]}, "it has no head for sentiment; take teachers that"),
        (
            {"domains": ["encyclopaedia"], "multitask": None, "heads": None},
            "it has no head for nli; take teachers that were trained on nli$",
        ),
        (
            {"heads": JOINED.model_copy(update={"span": "joint"})},
            "the ends of its joint head depend on the start that is given",
        ),
        (
            {"heads": JOINED.model_copy(update={"pairs": "apart"})},
            "reads the two texts of nli apart and the other joined; write the same under pairs$",
        ),
        ({"gate": Gate(), "heads": None}, "is a mixture of experts, and cannot teach"),
    ],
)
def test_a_teacher_that_cannot_be_asked_is_one_sentence(small_encoder, changes, words):
    teacher = make_run(small_encoder, seed=5, variant="teacher", **changes)
    with pytest.raises(UserError, match=words) as error:
        teachers.check_teachers(make_student(small_encoder, [teacher]))
    assert "\n" not in str(error.value)


def test_a_teacher_with_another_tokenizer_or_few_positions_is_refused(small_encoder, monkeypatch):
    student = make_student(small_encoder, [make_run(small_encoder, seed=5)])
    read = encoders.read_encoder
    encoder, tokenizer = read(small_encoder)
    other = type(tokenizer).from_pretrained(small_encoder)
    other.add_tokens(["quernstone"])
    answers = {"other": (encoder, other), small_encoder: (encoder, tokenizer)}
    monkeypatch.setattr(encoders, "read_encoder", answers.__getitem__)
    taught = student.teachers[0].model_copy(update={"encoder": "other"})
    with pytest.raises(UserError, match="its encoder other has another tokenizer than "):
        teachers.check_teachers(student.model_copy(update={"teachers": [taught]}))
    monkeypatch.setattr(encoders, "count_positions", lambda encoder: 40)
    with pytest.raises(UserError, match="max_length: the encoder reads 40 tokens"):
        teachers.check_teachers(student)


def test_a_teacher_answers_for_a_dataset_that_shares_its_head(small_encoder):
    """Encyclopaedia's head is that of all questions where a task has one head."""
    alone = {"domains": ["encyclopaedia"], "multitask": None}
    teacher = make_teacher(small_encoder, 5, **alone)
    of_news = {"domains": ["news"], "multitask": None, "tests": ["news"]}
    student = make_student(small_encoder, [teacher], **of_news)
    examples, rows = load_examples(student)
    assert examples.windows[0]["teachers"].shape[:2] == (1, 2)
    own_heads = {"heads": JOINED.model_copy(update={"one_for": "dataset"})}
    apart = make_run(small_encoder, seed=5, **alone | own_heads)
    with pytest.raises(UserError, match="it has no head for news"):
        load_examples(make_student(small_encoder, [apart], **of_news))
    # a plain span model answers every question
    plain = make_teacher(small_encoder, 6, heads=None, **alone)
    both, _ = load_examples(make_student(small_encoder, [plain, teacher], **of_news))
    assert both.windows[0]["teachers"].shape[:2] == (2, 2)
    assert np.array_equal(both.windows[0]["teachers"][1:], examples.windows[0]["teachers"])


def test_a_teacher_without_weights_is_one_sentence(small_encoder):
    teacher = make_teacher(small_encoder, 5)
    student = make_student(small_encoder, [teacher])
    runs.discard(teacher, "model.safetensors")
    words = f"the weights of {teacher.run}, which another run needs, were not kept; train it first"
    with pytest.raises(UserError, match=words):
        load_examples(student)
    assert [spec.variant for spec in study.list_missing([student])] == ["teacher", "student"]


def test_heads_of_other_test_sets_are_no_part_of_a_teacher(small_encoder):
    """The test sets of a run are no part of its identity, and its weights may be of others."""
    options = {"domains": ["sentiment"], "multitask": None, "heads": Heads(pooling="mean")}
    scored_on_both = make_teacher(small_encoder, 5, tests=["sentiment", "paraphrase"], **options)
    for tests in ([], ["sentiment"], ["sentiment", "paraphrase"]):
        teacher = scored_on_both.model_copy(update={"tests": tests})
        student = make_student(small_encoder, [teacher], **options | {"tests": ["sentiment"]})
        examples, _ = load_examples(student)
        assert examples.windows[0]["teachers"].shape == (1, 5)
        frozen.drop_outputs(teacher)


# ---- a study ----


def test_a_study_keeps_teachers_until_no_run_left_needs_them(small_encoder, monkeypatch):
    runs.RUNS.mkdir()
    taught_by = [make_run(small_encoder, seed=seed, variant="teacher") for seed in (5, 6)]
    first = make_student(small_encoder, taught_by)
    born_again = make_student(small_encoder, [taught_by[1], first], variant="born-again", seed=1)
    todo = study.list_missing([first, born_again])
    assert [spec.variant for spec in todo] == ["teacher", "teacher", "student", "born-again"]
    there = []

    def train_one(spec, keep, live):
        there.append([runs.has_weights(teacher) for teacher in spec.teachers])
        folder = runs.run_folder(spec)
        folder.mkdir(parents=True)
        if keep:
            save_file({"x": torch.zeros(1)}, folder / "model.safetensors")

    monkeypatch.setattr(study, "_train_one", train_one)
    tokens = {spec.hash: 1.0 for spec in todo}
    study._train(todo, tokens, 1, study.list_parents(todo), False)
    assert there == [[], [], [True, True], [True, True]]
    assert not any(runs.has_weights(spec) for spec in todo)


def test_the_estimate_counts_what_teachers_are_asked_once(small_encoder):
    taught_by = [make_run(small_encoder, seed=seed, variant="teacher") for seed in (5, 6)]
    plain = make_run(small_encoder)
    known = {}
    of_plain = study.estimate_tokens(plain, known)
    of_rows = 0.0
    for dataset in TASKS:
        rows = [row for row in train.draw_rows(plain)[0] if row["domain"] == dataset]
        of_rows += study.count_tokens(rows, selection.find_task(plain, dataset))
    first = study.estimate_tokens(make_student(small_encoder, taught_by), known)
    assert first == pytest.approx(of_plain + 2 * of_rows / 3)
    warmer = make_student(small_encoder, taught_by, distillation=Distillation(temperature=8.0))
    assert study.estimate_tokens(warmer, known) == pytest.approx(of_plain)
    other_rows = make_student(small_encoder, taught_by[:1], seed=1)
    assert study.estimate_tokens(other_rows, known) == pytest.approx(of_plain + of_rows / 3)


def test_the_estimate_counts_a_teacher_of_one_dataset_on_its_rows(small_encoder):
    taught_by = make_dataset_teachers(small_encoder)
    options = {"distillation": Distillation(by_dataset=True)}
    student = make_student(small_encoder, taught_by, **options)
    known = {}
    of_plain = study.estimate_tokens(make_run(small_encoder), known)
    rows = study.count_run_tokens(student, known).rows
    assert study.estimate_tokens(student, known) == pytest.approx(of_plain + rows / 3)


# ---- ensembles ----


def test_an_ensemble_answers_by_the_mean_of_its_members_logits(small_encoder, monkeypatch):
    alone = {"domains": ["encyclopaedia"], "tests": ["encyclopaedia", "news"], "multitask": None}
    members = [make_teacher(small_encoder, seed, **alone) for seed in (5, 6, 7)]
    fields = {"heads": None, "gate": Gate(rule="uniform"), "experts": members}
    ensemble = make_run(small_encoder, variant="ensemble", **alone | fields)
    mixture, tokenizer = build.build_model(ensemble)
    rows = selection.load_test_sets(ensemble)["news"][1]
    _, outputs, _ = evaluate.predict_outputs(mixture, tokenizer, ensemble, "news", rows)
    of_members = []
    for member in members:
        model = build.load_trained_model(member)
        _, own, _ = evaluate.predict_outputs(model, tokenizer, member, "news", rows)
        of_members.append(own)
    for name in ("start", "end"):
        for window, values in enumerate(outputs[name]):
            mean = np.mean([own[name][window] for own in of_members], axis=0)
            np.testing.assert_allclose(values, mean, rtol=2e-3, atol=1e-2)  # stored in fp16

    def refuse(*args):
        raise AssertionError("an ensemble reads no training window")

    monkeypatch.setattr(train, "load_training_examples", refuse)
    record = train.train(ensemble, progress=show_nothing)
    assert (record["history"], record["training_seconds"]) == ([], 0)
    assert set(record["metrics"]) == {"encyclopaedia", "news"}
    own = sum(parameter.numel() for parameter in model.parameters())
    assert record["parameters"] == 3 * own


def test_the_estimate_of_an_ensemble_counts_what_its_members_are_asked(small_encoder):
    alone = {"domains": ["encyclopaedia"], "multitask": None}
    members = [make_run(small_encoder, seed=seed, **alone) for seed in (5, 6)]
    fields = {"heads": None, "gate": Gate(rule="uniform"), "experts": members}
    ensemble = make_run(small_encoder, variant="ensemble", **alone | fields)
    known = {}
    tokens = study.count_run_tokens(ensemble, known)
    expected = 2 * (tokens.validation + tokens.scored) / 3
    assert study.estimate_tokens(ensemble, known) == pytest.approx(expected)


def test_the_estimate_has_room_for_hidden_states(small_encoder):
    alone = {"domains": ["encyclopaedia"], "multitask": None}
    taught_by = []
    for seed in (5, 6):
        taught_by.append(make_run(small_encoder, seed=seed, variant="teacher", **alone))
    student = make_student(small_encoder, taught_by, **alone)
    known = {}
    assert study.count_stored_bytes(student, known) == 0
    rows, _, _ = train.draw_rows(student)
    tokens = study.count_tokens(rows, selection.find_task(student, "encyclopaedia"))
    for hidden, blocks in (("last", 1), ("all", 6)):
        of_states = student.model_copy(update={"distillation": Distillation(hidden=hidden)})
        expected = 2 * tokens * 2 * blocks * 48
        assert study.count_stored_bytes(of_states, known) == pytest.approx(expected)
        # another student of the same teachers finds them stored
        other = of_states.model_copy(update={"learning_rate": 2e-3})
        assert study.count_stored_bytes(other, known) == 0


def test_a_study_estimates_and_trains_teachers_and_students(small_encoder):
    runs.RUNS.mkdir()
    options = {"domains": ["sentiment"], "multitask": None, "epochs": 1.0}
    teacher = make_run(small_encoder, seed=5, variant="teacher", **options)
    student = make_student(small_encoder, [teacher], **options)
    todo = study.list_missing([student])
    tokens, hours, _ = study.estimate_cost(todo, 1)
    assert hours > 0
    study._train(todo, tokens, 1, study.list_parents(todo), False)
    record = runs.find_record(student)
    assert record["teachers"] == [teacher.hash]
    assert record["metrics"]["training"]["soft_loss"] > 0
    assert not runs.has_weights(teacher)


def test_a_teacher_needs_positions_for_the_windows_of_the_run(small_encoder, monkeypatch):
    """Those that it was trained on may have been shorter."""
    teacher = make_run(small_encoder, seed=5, max_length=32)
    student = make_student(small_encoder, [teacher])
    monkeypatch.setattr(encoders, "count_positions", lambda encoder: 40)
    with pytest.raises(UserError, match="reads 40 tokens, and windows of 48 are asked for"):
        teachers.check_teachers(student)


def test_a_text_that_a_run_far_behind_a_teacher_has_seen_is_refused(small_encoder, planted):
    alone = {"domains": ["encyclopaedia"], "multitask": None}
    source = make_run(small_encoder, domains=["news"], multitask=None, variant="leaky", seed=4)
    child = make_run(small_encoder, start=source, seed=5, variant="child", **alone)
    run = make_run(small_encoder, start=child, seed=6, variant="grandchild", **alone)
    student = make_student(small_encoder, [run], **alone)
    teachers.check_teachers(student)
    unseen = selection.load_splits("encyclopaedia", "embedded").test[0]
    planted("news", "train", [{**unseen, "question": "Who?", "domain": "news"}])
    with pytest.raises(UserError, match=f"1 texts that {source.run} was trained on are texts of"):
        teachers.check_teachers(student)


def test_on_a_gpu_all_runs_behind_a_run_are_those_of_a_gpu(small_encoder):
    """Otherwise they would be looked up under other hashes."""
    teacher = make_run(small_encoder, seed=5, start=make_run(small_encoder, seed=6))
    student = make_student(small_encoder, [teacher], start=teacher)
    for changed in (student.on_gpu(), student.change_with_parents(threads="cuda")):
        assert {run.threads for run in selection.list_lineage(changed)} == {"cuda"}
