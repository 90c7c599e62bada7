"""A run's model before training: encoder, head and layer, or a mixture of frozen experts."""

import hashlib
from functools import partial
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import set_seed

from qa_lib.data import selection
from qa_lib.losses.distillation import DistillationLoss
from qa_lib.losses.extra import ExtraLoss
from qa_lib.losses.smart import SmartLoss
from qa_lib.models import encoders, gated_mixture, heads, recomputed_blocks
from qa_lib.models.exbert import BalanceLoss, ExBERT, ZLoss
from qa_lib.models.shared_encoder import SharedEncoder, make_head
from qa_lib.settings.parameters import Dataset
from qa_lib.settings.params import UserError
from qa_lib.settings.spec import Spec
from qa_lib.store import code_hashes, runs
from qa_lib.tasks import have_same_answers, span
from qa_lib.training import evaluate, frozen


def build_model(spec: Spec):
    """Return (model, tokenizer) of a run before training.

    New weights are drawn with the run's seed. A run with a start has its weights.
    """
    check_tasks(spec)
    check_losses(spec)
    set_seed(spec.seed)
    if spec.gate:
        return build_mixture(spec)
    encoder, tokenizer = encoders.load_encoder(spec.encoder, spec.blocks)
    check_length(spec, encoders.count_positions(encoder))
    if spec.heads:
        model = build_shared_encoder(spec, encoder)
    elif spec.layer:
        model = ExBERT(encoder, spec.head_dropout, spec.layer, spec.dense)
    else:
        model = heads.SpanModel(encoder, spec.head_dropout)
    if spec.start:
        copy_weights(spec, model, spec.start)
    if spec.reinit:
        encoders.reinitialise(encoder, spec.reinit, spec.seed, spec.reinit_from)
    return model, tokenizer


def check_tasks(spec: Spec):
    """Raise UserError where the model has no head for a dataset, or a batch rows of two tasks."""
    tasks = {}
    for dataset in [*spec.domains, *spec.tests]:
        tasks[dataset] = selection.find_task(spec, dataset).NAME
        if tasks[dataset] != span.NAME and not spec.heads:
            raise UserError(
                f"{dataset} is a dataset of the task {tasks[dataset]}, and {spec.report} answers "
                "questions by spans; take a dataset of the task span"
            )
    if len({tasks[dataset] for dataset in spec.domains}) > 1 and not spec.multitask:
        raise UserError(
            f"{', '.join(spec.domains)} are of several tasks, which need batches of one dataset "
            "each: option multitask"
        )
    if spec.heads:
        check_heads(spec)


def check_heads(spec: Spec):
    """Raise UserError where a head does not fit a dataset that it answers, or its rows."""
    first_of: dict[str, str] = {}  # head → the first dataset that it answers
    for dataset in dict.fromkeys([*spec.domains, *spec.tests]):
        d = selection.find_dataset(dataset, spec.source, spec.folder)
        name = choose_head(spec, dataset, d)
        if d.task == "score" and spec.heads.pairs == "joined":
            raise UserError(
                f"pairs: {dataset} is a dataset of scores, whose heads compare two texts that are "
                "read apart; write pairs: apart, or leave the dataset out"
            )
        first = first_of.setdefault(name, dataset)
        other = selection.find_dataset(first, spec.source, spec.folder)
        if not have_same_answers(d, other):
            raise UserError(
                f"{first} and {dataset} share the head {name} and have different answers (task, "
                "classes in their order, or range); write the same for both, or give one of them "
                "another head: in its definition"
            )


def check_losses(spec: Spec):
    """Raise UserError where an extra loss cannot read the outputs of a head."""
    if spec.smart and spec.heads and spec.heads.span == "joint":
        raise UserError(
            "span: SMART compares the outputs of two passes, and those of a joint head depend on "
            "the start that is given; write span: independent, or leave smart out"
        )
    if spec.distillation:
        check_distillation(spec)


def check_distillation(spec: Spec):
    """Raise UserError where a run's outputs are none that soft targets are of."""
    if spec.heads is None:
        raise UserError(
            "distillation: soft targets are for a model with heads by dataset; name heads, or "
            "leave distillation out"
        )
    for dataset in spec.domains:
        d = selection.find_dataset(dataset, spec.source, spec.folder)
        if d.task == "score":
            raise UserError(
                f"{dataset} is a dataset of scores, and soft targets are of spans and of classes; "
                "leave it or distillation out"
            )
        if d.task == "span" and spec.heads.span == "joint":
            raise UserError(
                "span: the ends of a joint head depend on the start that is given, so they are no "
                "soft targets; write span: independent, or leave distillation out"
            )
        if d.task == "classes" and d.text_pair is not None and spec.heads.pairs == "apart":
            raise UserError(
                f"pairs: {dataset} has one logit where its pairs are read apart, and soft targets "
                "are of several; write pairs: joined, or leave distillation out"
            )


def build_shared_encoder(spec: Spec, encoder: nn.Module) -> SharedEncoder:
    """Return an encoder with heads for all datasets that the run trains on or is scored on.

    Such runs have the largest batches, so on a CPU the encoder recomputes blocks where they ask for
    it. With SMART it does not: SMART switches dropout off between a pass and its gradients, and a
    block that is recomputed then would be another.

    The draws of a head depend on nothing but the seed and its name, so that a run has the same
    weights and the same dropout whatever it is scored on.
    """
    if spec.threads != "cuda" and not spec.smart:
        recomputed_blocks.bound_activations(encoder)
    model_heads = {}
    head_of = {}
    for dataset in dict.fromkeys([*spec.domains, *spec.tests]):
        d = selection.find_dataset(dataset, spec.source, spec.folder)
        name = head_of[dataset] = choose_head(spec, dataset, d)
        if name not in model_heads:
            with evaluate.seed_draws(f"{spec.seed}/{name}"):
                model_heads[name] = build_head(spec, name, d, encoder.config.hidden_size)
    fixed = spec.multitask.fixed_divisor if spec.multitask else []
    with evaluate.seed_draws(f"{spec.seed}/pooler"):
        return SharedEncoder(
            encoder,
            model_heads,
            pooling=spec.heads.pooling,
            frozen=spec.heads.frozen,
            relational="own" if spec.heads.relational == "own" else "shared",
            divisors=dict.fromkeys(fixed, spec.batch_size),
            dropout=spec.head_dropout,
            head_of=head_of,
        )


def choose_head(spec: Spec, dataset: str, d: Dataset) -> str:
    """Return the name of the head that answers a dataset.

    A test set of another dataset is answered by the trained head of its task, where the run has
    one: its own would be untrained.
    """
    if dataset not in spec.domains and d.head is not None:
        for trained in spec.domains:
            of_trained = selection.find_dataset(trained, spec.source, spec.folder)
            if of_trained.head == d.head:
                return name_head(spec, trained, of_trained)
    return name_head(spec, dataset, d)


def name_head(spec: Spec, dataset: str, d: Dataset) -> str:
    """Return the name of the head that a run has for a dataset.

    Raises UserError where datasets share heads and this one names none.
    """
    if spec.heads.one_for == "dataset":
        return d.part_of or dataset
    if d.head is None:
        raise UserError(
            f"{dataset} names no head, and {spec.report} has one head for the datasets of a task; "
            "write head: with the task's name in its definition"
        )
    return d.head


def build_head(spec: Spec, name: str, d: Dataset, dim: int) -> nn.Module:
    """Return the head of a dataset, by its task and its classes.

    Raises UserError where there is no head for such rows.
    """
    is_relational = spec.heads.relational != "none"
    if d.task == "score":
        low, high = d.range
        kind = "relational_score" if is_relational else spec.heads.score
        return make_head(kind, dim, spec.head_dropout, low=low, high=high)
    if d.task == "span":
        kind = "joint_span" if spec.heads.span == "joint" else "span"
        return make_head(kind, dim, spec.head_dropout)
    if d.task == "classes" and (d.text_pair is None or spec.heads.pairs == "joined"):
        return make_head("classes", dim, spec.head_dropout, classes=len(d.classes))
    if d.task == "classes" and len(d.classes) == 2:
        return make_head("relational_pair" if is_relational else "pair", dim, spec.head_dropout)
    raise UserError(
        f"{name}: {spec.report} has no head for its rows (task {d.task}); it takes spans, "
        "classes of one text or of joined pairs, two classes of pairs, and scores of pairs"
    )


def check_length(spec: Spec, positions: int):
    """Raise UserError where the run's windows are longer than the encoder's `positions`."""
    if spec.max_length > positions:
        raise UserError(
            f"max_length: the encoder reads {positions} tokens, and windows of "
            f"{spec.max_length} are asked for; lower it"
        )
    padded = -(-spec.max_length // 8) * 8  # span.Collate pads to a multiple of 8
    if padded > positions:
        raise UserError(
            f"max_length: the encoder reads {positions} tokens, and windows of "
            f"{spec.max_length} are padded to a multiple of 8; lower it to {positions // 8 * 8}"
        )


def copy_weights(spec: Spec, model: nn.Module, start: Spec):
    """Copy the weights of the start into the model of `spec`.

    What only the model has stays as drawn: the experts' layer, and a head that the start lacks or
    has for another number of classes. What only the start has is dropped. Raises UserError where
    the start lacks weights of the encoder.
    """
    wanted = model.state_dict()
    weights = {}
    for key, tensor in load_weights(start).items():
        is_other_head = not key.startswith("encoder.") and key in wanted
        if is_other_head and tensor.shape != wanted[key].shape:
            continue
        weights[key] = tensor
    keys = model.load_state_dict(weights, strict=False)
    for key in keys.missing_keys:
        if key.startswith("encoder.") and ".experts." not in key:
            raise UserError(
                f"{spec.run} cannot go on from {start.run}, which has no {key}; "
                "ask for no more blocks"
            )


def load_trained_model(spec: Spec) -> nn.Module:
    """Return the model of a trained run, on the run's device.

    Its heads are those of the datasets that `spec` names. The file may have others, of test sets
    that are no part of the run's identity.
    """
    model, _ = build_model(spec.without_parents())
    heads_of_spec = model.state_dict()
    weights = {}
    for name, tensor in load_weights(spec).items():
        if name in heads_of_spec or not name.startswith(("heads.", "relations.")):
            weights[name] = tensor
    model.load_state_dict(weights)
    return model.to(device_of(spec))


def load_weights(spec: Spec) -> dict[str, torch.Tensor]:
    """Return the weights of a trained run. Raises UserError where they were not kept."""
    if not runs.has_weights(spec):
        raise UserError(
            f"the weights of {spec.run}, which another run needs, were not kept; "
            f"train it first: --run {spec.run}"
        )
    return load_file(runs.run_folder(spec) / "model.safetensors")


def device_of(spec: Spec) -> str:
    """Return "cuda" or "cpu", the device that a run is trained on."""
    return "cuda" if spec.threads == "cuda" else "cpu"


# ---- what is added to the loss ----


def make_losses(spec: Spec, model: nn.Module, steps: int) -> list[ExtraLoss]:
    """Return what a run adds to its task's loss, in the order in which it is added.

    model: before its first step; steps: all optimizer steps of the training.
    """
    losses: list[ExtraLoss] = []
    if spec.layer and spec.dense is None:
        losses += [BalanceLoss(spec.layer.balance), ZLoss(spec.layer.router_z)]
    if spec.distillation:
        losses.append(DistillationLoss(spec.distillation, model, spec.seed, steps))
    if spec.smart:
        losses.append(SmartLoss(spec.smart, model, spec.seed, steps, spec.precision))
    return losses


def add_losses(
    losses: list[ExtraLoss], model: nn.Module, batch: dict, outputs: Any, loss: Tensor, step: int
) -> Tensor:
    """Return the loss of a batch with the terms of all extra losses.

    outputs: of the model on the batch; loss: the task's; step: optimizer steps done before.
    """
    for extra in losses:
        loss = loss + extra.loss(model, batch, outputs, step)
    return loss


# ---- mixtures ----


def build_mixture(spec: Spec):
    """Return (mixture, tokenizer) of a run whose parents are its frozen experts."""
    encoder, tokenizer = encoders.load_encoder(spec.encoder, spec.blocks)
    prepare = partial(prepare_windows, spec, encoder, tokenizer)
    if spec.gate.rule == "best":
        return choose_best_expert(spec, tokenizer, prepare), tokenizer
    if spec.gate.rule != "learned":
        return gated_mixture.Mixture(None, spec.gate.mixed, prepare), tokenizer
    from_dataset = spec.gate.input == "dataset"
    dim = len(spec.domains) if from_dataset else encoder.config.hidden_size
    gate = gated_mixture.MLP(dim, len(spec.experts), spec.gate)
    if from_dataset:
        # Few examples have to move this gate, so it starts from equal weights.
        torch.nn.init.zeros_(gate[0].weight)
        torch.nn.init.zeros_(gate[0].bias)
    return gated_mixture.Mixture(gate, spec.gate.mixed, prepare), tokenizer


def choose_best_expert(spec: Spec, tokenizer, prepare) -> gated_mixture.Mixture:
    """Return the mixture that trusts one expert alone.

    It is the expert with the highest EM on the validation rows of all datasets.
    """
    candidates = []
    for expert in range(len(spec.experts)):
        prepare_for_expert = partial(prepare, best=expert)
        candidates.append(gated_mixture.Mixture(None, spec.gate.mixed, prepare_for_expert))
    _, validation, _ = selection.draw_mixture(spec)
    exact_matches = []
    for candidate in candidates:
        scores = evaluate.score_run_rows(candidate, tokenizer, spec, validation)
        exact_matches.append(scores["em"])
    return candidates[int(np.argmax(exact_matches))]


def prepare_windows(
    spec: Spec, encoder, tokenizer, windows, rows: list[dict], best: int = 0
) -> gated_mixture.Frozen:
    """Return windows with all that a mixture reads of them.

    windows: features.load_windows of `rows`; best: index of the expert that rule `best` trusts.
    """
    outputs = []
    for expert in spec.experts:
        load = partial(load_trained_model, expert)
        modules = code_hashes.list_modules(expert)
        outputs.append(
            frozen.read_outputs(expert.hash, windows, tokenizer, load, spec.precision, modules)
        )
    domains = [rows[i]["domain"] for i in windows["row"]]
    return gated_mixture.Frozen(
        windows,
        [output.start for output in outputs],
        [output.end for output in outputs],
        gate_inputs(spec, encoder, tokenizer, windows, domains, outputs),
        rule_weights(spec, domains, best),
    )


def gate_inputs(
    spec: Spec, encoder, tokenizer, windows, domains: list[str], outputs: list[frozen.Outputs]
) -> np.ndarray:
    """Inputs of the gate, (W, D). A rule reads none.

    domains: the dataset of each window; outputs: those of each expert.
    """
    if spec.gate.rule != "learned":
        return np.zeros((len(windows), 0), np.float32)
    kind = spec.gate.input
    if kind == "dataset":
        one_hot = [[domain == known for known in spec.domains] for domain in domains]
        return np.array(one_hot, np.float32)
    if kind == "experts":
        return np.mean([output.mean for output in outputs], axis=0, dtype=np.float32)

    def make_plain_model() -> heads.SpanModel:
        return heads.SpanModel(encoder).to(device_of(spec))

    key = spec.weights
    if spec.blocks is not None:  # other outputs than those of all blocks
        key = hashlib.sha256(f"{spec.weights}/{spec.blocks}".encode()).hexdigest()
    plain = frozen.read_outputs(key, windows, tokenizer, make_plain_model, spec.precision)
    return getattr(plain, kind)


def rule_weights(spec: Spec, domains: list[str], best: int) -> np.ndarray:
    """Weights of each expert by a fixed rule, (W, E); equal ones where the gate is learned."""
    experts = spec.experts
    if spec.gate.rule == "own":
        own = [[domain in expert.domains for expert in experts] for domain in domains]
        return np.array(own, np.float32)
    if spec.gate.rule == "best":
        return np.tile(np.eye(len(experts), dtype=np.float32)[best], (len(domains), 1))
    return np.full((len(domains), len(experts)), 1 / len(experts), np.float32)


# ---- size ----


def count_parameters(model: torch.nn.Module, spec: Spec) -> tuple[int, int]:
    """Count the parameters of a run's model.

    Returns (all, active). Active leaves out the experts that a token is not routed to. A mixture
    counts its experts and, where its gate reads the plain encoder, that encoder too.
    """
    own = sum(p.numel() for p in model.parameters())
    active = model.active_parameters() if spec.layer else own
    if not spec.gate:
        return own, active
    others = []
    for expert in spec.experts:
        expert_model, _ = build_model(expert.without_parents())
        others.append(expert_model)
    if spec.gate.rule == "learned" and spec.gate.input in ("mean", "cls"):
        plain_encoder, _ = encoders.load_encoder(spec.encoder, spec.blocks)
        others.append(plain_encoder)
    in_others = 0
    for other in others:
        in_others += sum(p.numel() for p in other.parameters())
    return own + in_others, active + in_others
