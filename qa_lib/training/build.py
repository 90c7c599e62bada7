"""A run's model before training: encoder, head and layer by its seed; or a mixture of what its parents say."""

from functools import partial

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import set_seed

from qa_lib.data import selection
from qa_lib.models import encoders, gated_mixture, heads
from qa_lib.models.exbert import ExBERT
from qa_lib.settings.params import UserError
from qa_lib.settings.spec import Spec
from qa_lib.store import runs
from qa_lib.training import evaluate, frozen


def build_model(spec: Spec):
    """(model, tokenizer) of a run before training, with the weights that a parent left."""
    set_seed(spec.seed)
    if spec.gate:
        return build_mixture(spec)
    encoder, tokenizer = encoders.load_encoder(spec.encoder, spec.blocks)
    most = encoders.count_positions(encoder)
    if spec.max_length > most:
        raise UserError(
            f"max_length: the encoder reads {most} tokens, and windows of {spec.max_length} are asked for; lower it"
        )
    if -(-spec.max_length // 8) * 8 > most:  # features.Collate
        raise UserError(
            f"max_length: the encoder reads {most} tokens, and windows of "
            f"{spec.max_length} are padded to a multiple of 8; lower it to "
            f"{most // 8 * 8}"
        )
    model = (
        ExBERT(encoder, spec.head_dropout, spec.layer, spec.dense)
        if spec.layer
        else heads.SpanModel(encoder, spec.head_dropout)
    )
    for parent in spec.parents:  # goes on from the parent's weights; what the parent lacks stays new, what the child lacks goes
        found = model.load_state_dict(load_weights(parent), strict=False)
        if lacks := [
            k for k in found.missing_keys if not k.startswith("block.") and ".experts." not in k
        ]:
            raise UserError(
                f"{spec.run} cannot go on from {parent.run}, which has no {lacks[0]}; ask for no more blocks"
            )
    if spec.reinit:
        encoders.reinitialise(encoder, spec.reinit, spec.seed, spec.reinit_from)
    return model, tokenizer


def load_trained_model(spec: Spec) -> heads.SpanModel:
    """The model that a run left behind."""
    model, _ = build_model(spec.model_copy(update={"parents": []}))
    model.load_state_dict(load_weights(spec))
    return model.to(device_of(spec))


def load_weights(spec: Spec) -> dict[str, torch.Tensor]:
    """The weights that a run left behind. Raises UserError where they were not kept."""
    if not runs.has_weights(spec):
        raise UserError(
            f"the weights of {spec.run}, from which the run goes on, were not kept; train it first: --run {spec.run}"
        )
    return load_file(runs.run_folder(spec) / "model.safetensors")


def device_of(spec: Spec) -> str:
    return "cuda" if spec.threads == "cuda" else "cpu"


def build_mixture(spec: Spec):
    """(mixture, tokenizer) of the parents, which are its frozen experts."""
    encoder, tokenizer = encoders.load_encoder(spec.encoder)
    p, experts = spec.gate, spec.parents
    dim = len(spec.domains) if p.input == "dataset" else encoder.config.hidden_size

    def plain() -> heads.SpanModel:
        return heads.SpanModel(encoder).to(device_of(spec))

    def prepare(windows, rows: list[dict], best: int = 0) -> gated_mixture.Frozen:
        said = [
            frozen.read_outputs(
                e.hash, windows, tokenizer, partial(load_trained_model, e), spec.precision
            )
            for e in experts
        ]
        names = [rows[i]["domain"] for i in windows["row"]]
        if p.input == "dataset":
            x = np.array([[name == d for d in spec.domains] for name in names], np.float32)
        elif p.input == "experts":
            x = np.mean([o.mean for o in said], axis=0, dtype=np.float32)
        else:
            x = getattr(
                frozen.read_outputs(spec.weights, windows, tokenizer, plain, spec.precision),
                p.input,
            )
        return gated_mixture.Frozen(
            windows, [o.start for o in said], [o.end for o in said], x, fixed(names, best)
        )

    def fixed(names: list[str], best: int) -> np.ndarray:
        """The weights of a rule, (W, E)."""
        if p.rule == "own":
            return np.array([[name in e.domains for e in experts] for name in names], np.float32)
        if p.rule == "best":
            return np.tile(np.eye(len(experts), dtype=np.float32)[best], (len(names), 1))
        return np.full((len(names), len(experts)), 1 / len(experts), np.float32)

    if p.rule == "best":  # the one with the highest EM on the validation rows of all
        alone = [
            gated_mixture.Mixture(None, p.mixed, partial(prepare, best=k))
            for k in range(len(experts))
        ]
        validation = selection.draw_mixture(spec)[1]
        ems = [evaluate.score_rows(m, tokenizer, spec, validation)[1]["exact_match"] for m in alone]
        return alone[int(np.argmax(ems))], tokenizer
    gate = gated_mixture.MLP(dim, len(experts), p) if p.rule == "learned" else None
    # few examples must move it: from equal weights, not from random ones
    if p.input == "dataset" and gate:
        torch.nn.init.zeros_(gate[0].weight)
        torch.nn.init.zeros_(gate[0].bias)
    return gated_mixture.Mixture(gate, p.mixed, prepare), tokenizer


def count_parameters(model: torch.nn.Module, spec: Spec) -> tuple[int, int]:
    """Parameters of a run's model, and those that a token meets; of a mixture also its experts' and, where its gate sees states of
    the encoder as it was, that one's, which all do."""
    own, beside = sum(p.numel() for p in model.parameters()), []
    if spec.gate:
        beside = [build_model(e.model_copy(update={"parents": []}))[0] for e in spec.parents]
        beside += [encoders.load_encoder(spec.encoder)[0]] * (
            spec.gate.rule == "learned" and spec.gate.input in ("mean", "cls")
        )
    others = sum(p.numel() for m in beside for p in m.parameters())
    return own + others, (model.active_parameters() if spec.layer else own) + others
