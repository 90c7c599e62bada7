"""Numbers of a device against float64 on the processor.

Each test is for the processor's own fp32 too. The part on CUDA is skipped where there is none.
"""

import copy
import statistics
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_multitask import SENTENCES, make_spec, show_nothing
from test_smart import EVERY_KIND, compare, in_float64
from test_smart import make as make_model_and_batch
from test_stmoe import draw_tokens, full_mask, make_layer
from test_teachers import TASKS, load_examples, load_windows, make_student, make_teacher
from transformers.utils.import_utils import enable_tf32

from qa_lib.data import selection
from qa_lib.losses import smart as smart_module
from qa_lib.losses.smart import SmartLoss, adversarial_term
from qa_lib.models import encoders
from qa_lib.settings.parameters import Layer, Multitask, Smart
from qa_lib.settings.params import UserError
from qa_lib.training import build, evaluate, multitask, study, teachers, train

CUDA = pytest.param(
    "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=["cpu", CUDA])
def device(request) -> str:
    """Return the device whose numbers are checked. Products are not in TF32, as in SMART's runs.

    A run of another test may have set that; it is turned off as the Trainer does it.
    """
    if request.param == "cuda":
        enable_tf32.cache_clear()
        enable_tf32(False)
    return request.param


def move_to(device: str, batch: dict) -> dict:
    """Return a batch with its tensors on a device."""
    return {k: v.to(device) if torch.is_tensor(v) else v for k, v in batch.items()}


def keep_float64(monkeypatch):
    """Let no part of a model turn float64 into fp32 by itself, as router and span head do."""
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self)


# ---- the sparse layer ----


def run_layer(layer, x: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the experts, output, losses and gradients of a layer in training, by name."""
    x = x.clone().requires_grad_()
    out = layer(x, mask)
    routing = layer.routing
    (out.square().sum() + routing.balance_loss + routing.z_loss).backward()
    values = {"expert": routing.expert, "out": out, "balance": routing.balance_loss}
    values |= {"z": routing.z_loss, "x": x.grad}
    return values | {name: parameter.grad for name, parameter in layer.named_parameters()}


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_the_sparse_layer_and_its_gradients(factor, device, monkeypatch):
    """With padding, and with experts that are full and that are not."""
    layer = make_layer(threshold=1e-6, capacity_train=factor)  # no random draw decides
    mask = full_mask()
    mask[1, 20:] = 0
    reference = copy.deepcopy(layer).double()
    ours = run_layer(layer.to(device), draw_tokens().to(device), mask.to(device))
    assert (layer.routing.dropped > 0.1) == (factor < 1)
    keep_float64(monkeypatch)
    expected = run_layer(reference, draw_tokens().double(), mask)
    assert torch.equal(ours.pop("expert").cpu(), expected.pop("expert"))
    for name, value in ours.items():
        assert value.device.type == device
        assert value.dtype == torch.float32
        assert expected[name].dtype == torch.float64
        torch.testing.assert_close(
            value.cpu().double(), expected[name], rtol=1e-4, atol=1e-5, msg=name
        )


# ---- SMART ----


def find_terms(dataset: str, seed: int, device: str, monkeypatch) -> tuple[float, float, float]:
    """Return SMART's term as a bf16 run has it, and in float64 at its perturbation and at its own.

    All start from the same noise.
    """
    model, batch = make_model_and_batch(dataset)
    wide, wide_batch = in_float64(model, batch)
    wide.eval()
    mask = model.token_mask(batch)
    noise = smart_module.draw_noise(
        model.embed(batch).detach(), mask, 1e-5, torch.Generator().manual_seed(seed)
    )
    monkeypatch.setattr(smart_module, "draw_noise", lambda x, *_: noise.to(x))
    terms = []
    monkeypatch.setattr(SmartLoss, "log_term", lambda self, *args: terms.append(args[3]))
    settings = Smart(radius=1e-5, adversarial=1.0, bregman=0.0)
    loss = SmartLoss(settings, model.to(device), 0, 100)
    batch = move_to(device, batch)
    with torch.autocast(device, torch.bfloat16):
        value = loss.loss(model, batch, model(**batch), 0)
    assert value.dtype == torch.float32
    keep_float64(monkeypatch)
    f = compare(wide, wide_batch)
    x = wide.embed(wide_batch)
    divergence = smart_module.DIVERGENCES[wide.output_kind(wide_batch)]
    delta = terms[0].perturbation.cpu().double()
    there = divergence(f(x + delta), f(x), False).mean()
    own = adversarial_term(f, x, f(x), mask, settings, divergence, torch.Generator())
    assert own.value.dtype == there.dtype == torch.float64
    return value.item(), there.item(), own.value.item()


@pytest.mark.parametrize("dataset", EVERY_KIND)
def test_smart_s_term_at_the_paper_s_radius(dataset, device, monkeypatch):
    """It is fp32 within a bf16 run, and within 5 % of float64.

    So it is at its own perturbation from every start, and at float64's in the median of nine: from
    some starts fp32 sees an output not move, as tests/test_smart.py says.
    """
    ratios = []
    for seed in range(9):
        with monkeypatch.context() as patch:
            ours, there, own = find_terms(dataset, seed, device, patch)
        assert 0 < ours == pytest.approx(there, rel=0.05)
        ratios.append(ours / own)
    assert statistics.median(ratios) == pytest.approx(1, rel=0.05)


def test_each_run_of_a_study_turns_tf32_on_or_off_anew(small_encoder, monkeypatch):
    """Runs with SMART, without it and with it again, as they are trained in one process."""
    monkeypatch.setattr(torch.backends, "fp32_precision", torch.backends.fp32_precision)
    seen = []

    def start_and_stop(spec, *args, **kwargs):
        enable_tf32(spec.smart is None)  # as TrainingArguments does on a GPU
        seen.append(torch.backends.fp32_precision)
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "train", start_and_stop)
    for smart in (Smart(), None, Smart(), None):
        with pytest.raises(KeyboardInterrupt):
            study._train_one(make_spec(small_encoder, smart=smart), False, False)
    assert seen == ["ieee", "tf32", "ieee", "tf32"]


@pytest.mark.parametrize(
    "capability, changes, expected",
    [
        ((7, 5), {}, False),
        ((8, 0), {}, True),
        ((12, 0), {}, True),
        ((8, 0), {"smart": Smart()}, False),
        ((8, 0), {"layer": Layer(), "heads": None}, False),
        ((8, 0), {"precision": "bf16"}, False),
    ],
)
def test_tf32_is_asked_for_where_the_gpu_has_it_and_nothing_must_not_be_rounded(
    capability, changes, expected, small_encoder, monkeypatch
):
    """It is turned off expressly where it is not asked for."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    if capability >= (8, 0):  # on this machine the real class may refuse what is asked for
        monkeypatch.setattr(train, "TrainingArguments", lambda **kw: SimpleNamespace(n_gpu=1, **kw))
    spec = make_spec(small_encoder, **changes).on_gpu()
    assert train.training_arguments(spec, 10, False).tf32 is expected


# ---- what teachers say ----


@pytest.fixture
def own_cache(store, monkeypatch):
    """Store features and outputs in an empty folder."""
    monkeypatch.setattr(evaluate, "CACHE", store / "cache")


@pytest.mark.parametrize("dataset", TASKS)
def test_what_teachers_say_is_stored_as_it_is_rounded(
    dataset, device, small_encoder, own_cache, tmp_path, monkeypatch
):
    """Stored logits are those of the device in fp16, and these are those of float64 but for it."""
    teacher = make_teacher(small_encoder, 5)
    student = make_student(small_encoder, [teacher])
    _, rows = load_examples(student)
    windows = load_windows(student, dataset, rows)
    model = build.load_trained_model(teacher).eval()
    wide = copy.deepcopy(model).double()
    model.to(device)
    task = selection.find_task(student, dataset)
    _, tokenizer = encoders.load_encoder(small_encoder)
    collate = model.collate(tokenizer, task, dataset)
    of_task = (windows, collate, "fp32", task)
    teachers.write_outputs(tmp_path / "logits.npy", model, *of_task, "logits")
    stored = np.load(tmp_path / "logits.npy")
    assert stored.dtype == np.float16
    assert np.array_equal(stored, teachers.compute_logits(model, *of_task).astype(np.float16))
    keep_float64(monkeypatch)
    expected = teachers.compute_logits(wide, *of_task)
    assert expected.shape == stored.shape
    np.testing.assert_allclose(stored, expected, rtol=1e-3, atol=1e-4)


# ---- an update of several batches ----


def no_dropout(monkeypatch):
    """Load encoders without dropout."""
    load = encoders.load_encoder

    def load_without(*args, **kwargs):
        encoder, tokenizer = load(*args, **kwargs)
        for module in encoder.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        encoder.config.attention_probs_dropout_prob = 0.0
        return encoder, tokenizer

    monkeypatch.setattr(encoders, "load_encoder", load_without)


@pytest.mark.parametrize("draws, limit", [(4, None), (1, 50)])
def test_an_update_has_the_gradient_of_the_mean_loss(
    draws, limit, device, small_encoder, monkeypatch
):
    """Against the mean over the batches of the update in float64, in one backward pass.

    draws: batches of the update; limit: tokens of a forward pass.
    """
    of_draws = Multitask(schedule="draws", rounds=1, passes=draws)
    monkeypatch.setattr(multitask, "limit_pass", lambda spec: limit)
    options = {"epochs": 1.0, "head_dropout": 0.0, "clip": 1e30, "warmup": 0.0}
    spec = make_spec(small_encoder, multitask=of_draws, checkpoint="last", **options)
    if device == "cuda":
        spec = spec.on_gpu()
    no_dropout(monkeypatch)
    taken = {}
    sizes = []
    compute_loss = train.RunTrainer.compute_loss

    def count_tokens(self, model, inputs, *args, **kwargs):
        sizes.append(inputs["input_ids"].numel())
        return compute_loss(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(train.RunTrainer, "compute_loss", count_tokens)

    def take_gradients(self, args, state, control, model=None, **kwargs):
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                assert parameter.device.type == device
                taken[name] = parameter.grad.cpu().double()

    monkeypatch.setattr(train.Keeper, "on_pre_optimizer_step", take_gradients, raising=False)
    record = train.train(spec, progress=show_nothing)
    if limit:
        assert len(sizes) > draws
        assert max(sizes) <= limit
    else:
        assert len(sizes) == draws
    model, tokenizer = build.build_model(spec)
    rows, _, counts = train.draw_rows(spec)
    examples = train.load_training_examples(spec, model, tokenizer, rows, counts, show_nothing)
    model.double().train()
    keep_float64(monkeypatch)
    losses = []
    datasets = set()
    for indices in examples.sampler:
        _, batch = in_float64(model, examples.collate([examples.windows[i] for i in indices]))
        datasets.add(batch["dataset"])
        losses.append(model(**batch).loss)
    assert len(losses) == draws
    assert min(draws, 2) <= len(datasets) <= len(SENTENCES)
    mean_loss = torch.stack(losses).mean()
    assert record["history"][0]["train_loss"] == pytest.approx(mean_loss.item(), rel=0.01)
    mean_loss.backward()
    assert taken
    # A run in fp32 without SMART has TF32 on a GPU, which keeps three digits.
    share = 0.01 if device == "cuda" else 1e-4
    for name, gradient in taken.items():
        expected = model.get_parameter(name).grad
        assert (gradient - expected).norm() <= share * expected.norm() + 1e-6, name


# ---- memory ----


def test_a_device_without_memory_left_is_one_sentence(device, small_encoder, monkeypatch):
    """On the processor, where the system ends a run, the error of a GPU is raised by the test."""

    def fill_memory(spec, *args, **kwargs):
        if device == "cuda":
            torch.empty(2**48, dtype=torch.uint8, device=device)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(train, "train", fill_memory)
    spec = make_spec(small_encoder)
    words = f"^{spec.run} takes more memory than the GPU has left; lower batch_size or max_length"
    with pytest.raises(UserError, match=words):
        study._train_one(spec, False, False)
