"""One training with one seed: the settings that decide its numbers, and their hash.

A run's record is looked up by this hash.
"""

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from qa_lib.settings.parameters import (
    Distillation,
    Gate,
    Heads,
    Imbalance,
    Layer,
    LayerDecay,
    Multitask,
    Smart,
    Strict,
)


class Spec(Strict):
    """The specification of one training with one seed.

    Fields marked `label` do not change the training's numbers and are not hashed.
    """

    report: str
    variant: str  # label
    profile: str  # label
    size: str  # label
    # Label: whose learning rate and epochs, the report's (printed) or those of trials (tuned).
    arm: str = "printed"
    ratio: float | None = None  # label: share of the first domain
    seed: int
    source: str  # label
    folder: str | None = None  # label
    domains: list[str]  # label
    fingerprints: list[str]  # of each domain's definition and files
    rows: list[int]  # training rows of each domain
    # Beside the seed, the number that each domain's rows are shuffled by. None: 0, 1, …
    places: list[int] | None = None
    validation_rows: int
    tests: list[str]  # label, since a run may be scored on more test sets later
    # Label: test set → its definition and files, where these are at hand.
    test_fingerprints: dict[str, str] = {}
    # Label: no training row may share a text with a test row of these datasets. A row that does
    # ends the run (qa_lib/data/selection.py), so that the field changes no numbers.
    held_out: list[str] = []
    order: Literal["trainer", "sequential", "shuffled"] = "trainer"
    bad_rows: Literal["stop", "skip", "move"] = "stop"
    encoder: str  # label
    weights: str  # the encoder's hash
    blocks: int | None = None
    layer: Layer | None = None  # between encoder and head
    # Width of a dense layer in place of the experts, in multiples of an expert's width.
    dense: float | None = None
    reinit: int = 0  # top blocks that are re-initialised
    # Re-initialised with random weights, or with the weights of lower blocks.
    reinit_from: Literal["random", "lower"] = "random"
    augment: int = 0  # altered copies of each training row (qa_lib/data/augment.py)
    # [k, n]: train on the k-th of n clusters of questions (qa_lib/training/clusters.py).
    cluster: list[int] | None = None
    imbalance: Imbalance | None = None  # None: classes as they come
    gate: Gate | None = None  # a mixture of `experts`, which stay frozen
    heads: Heads | None = None  # heads by dataset, or by their tasks. None: one span head
    smart: Smart | None = None  # what SMART adds to the loss
    distillation: Distillation | None = None  # how the run learns from its `teachers`
    # Batches of one dataset each, in turn. None: all datasets are one.
    multitask: Multitask | None = None
    layer_decay: LayerDecay | None = None  # None: one learning rate for all layers
    head_dropout: float = 0.1
    max_length: int
    stride: int
    batch_size: int
    learning_rate: float
    epochs: float
    schedule: Literal["linear", "constant"] = "linear"
    # Best: the checkpoint with the highest score on validation rows, which the task names (F1 of
    # spans).
    checkpoint: Literal["last", "best"] = "last"
    looks: int = 1  # evaluations on validation rows in an epoch
    # Label: the score on validation rows that chooses among trials. None: the task's.
    trial_score: str | None = None
    watched: int = 0  # label: training rows that each of these evaluations scores too
    # Label: how often the gradients of the run's datasets are compared while it trains
    # (qa_lib/training/gradients.py).
    probes: int = Field(0, ge=0)
    # Label: also scored by the starter code's rule, which cannot answer with a single token.
    starter: bool = False
    # Label: whether a record that other code made is trained again or kept. None: trained again at
    # profile quick, kept at the others.
    stale: Literal["train", "keep"] | None = None
    warmup: float
    weight_decay: float
    clip: float
    precision: Literal["fp32", "bf16"]
    threads: int | Literal["cuda"]
    # A report's plan raises it for variants whose training changes in a way that no other field
    # shows. It is always hashed.
    recipe: int = Field(1, ge=1)
    # Other runs that this one needs, by their role:
    start: "Spec | None" = None  # its weights are those that the training goes on from
    experts: list["Spec"] = []  # models that a gate mixes
    teachers: list["Spec"] = []  # models whose outputs the run learns from

    ROLES: ClassVar = ("start", "experts", "teachers")
    LABELS: ClassVar = frozenset(
        {
            "variant",
            "profile",
            "size",
            "arm",
            "ratio",
            "source",
            "folder",
            "domains",
            "tests",
            "test_fingerprints",
            "held_out",
            "encoder",
            "trial_score",
            "watched",
            "probes",
            "starter",
            "stale",
            *ROLES,
        }
    )

    @model_validator(mode="before")
    @classmethod
    def _read_parents(cls, values: Any) -> Any:
        """Take `parents`, which records have, for the experts of a mixture or for the start."""
        if not isinstance(values, dict) or "parents" not in values:
            return values
        values = dict(values)
        parents = values.pop("parents")
        if values.get("gate"):
            values["experts"] = parents
        elif len(parents) > 1:
            raise ValueError("parents: a run without a gate goes on from one run")
        elif parents:
            values["start"] = parents[0]
        return values

    @model_validator(mode="after")
    def _check_roles(self):
        if self.experts and not self.gate:
            raise ValueError("experts: these are what a gate mixes, and there is no gate")
        if self.experts and self.start:
            raise ValueError("start: a mixture trains its gate alone, which goes on from no run")
        return self

    @model_validator(mode="after")
    def _check_layer(self):
        if self.dense is not None and not self.layer:
            raise ValueError(
                "dense: it is the width of what stands in place of the layer's experts, and there "
                "is no layer; name a layer, or leave dense out"
            )
        if self.layer and self.heads:
            raise ValueError(
                "layer: it stands in a model of one span head, and the run has heads by dataset; "
                "leave layer or heads out"
            )
        if self.layer and self.smart:
            raise ValueError(
                "layer: SMART takes gradients through the model twice, and the activation of the "
                "layer's experts allows it once; leave layer or smart out"
            )
        return self

    @model_validator(mode="after")
    def _check_smart(self):
        if self.smart and self.multitask and self.multitask.schedule == "draws":
            raise ValueError(
                "smart: with the schedule draws an update has several batches, and SMART would "
                "draw the same noise for each; write schedule: rrobin or rrobin-full, or leave "
                "smart out"
            )
        return self

    @model_validator(mode="after")
    def _check_distillation(self):
        if self.distillation and not self.teachers:
            raise ValueError(
                "distillation: the run has no teachers to learn from; name them, or leave "
                "distillation out"
            )
        return self

    @model_validator(mode="after")
    def _check_watched(self):
        if self.watched and not self.validation_rows:
            raise ValueError(
                "watched: training rows are scored where validation rows are, and there are none; "
                "raise validation_rows, or leave watched out"
            )
        return self

    @model_validator(mode="after")
    def _check_fixed_divisor(self):
        divided = self.multitask.fixed_divisor if self.multitask else []
        for dataset in divided:
            if dataset not in self.domains:
                raise ValueError(
                    f"fixed_divisor: {dataset} is no dataset that the run trains on; name some of "
                    f"{', '.join(self.domains)}, or leave it out"
                )
        if divided and (self.heads is None or self.heads.span == "joint"):
            raise ValueError(
                "fixed_divisor: it divides the losses of a batch's rows, which plain heads alone "
                "have; name heads with span: independent, or leave fixed_divisor out"
            )
        return self

    @model_validator(mode="after")
    def _check_probes(self):
        if self.probes and not self.multitask:
            raise ValueError(
                "probes: these compare the gradients of datasets that are trained in turn, and "
                "there is no multitask; leave probes out"
            )
        if self.probes and self.heads and self.heads.frozen:
            raise ValueError("probes: a frozen encoder has no gradients to compare; leave them out")
        return self

    @property
    def parents(self) -> list["Spec"]:
        """The runs that this one needs, in whatever role."""
        start = [self.start] if self.start else []
        return start + self.experts + self.teachers

    @property
    def parent_hashes(self) -> dict[str, list[str]]:
        """The hashes of parents as hash and record have them.

        `parents` is the start or the experts, as in the first records. `teachers` is there where a
        run has some.
        """
        start = [self.start] if self.start else []
        hashes = {"parents": [parent.hash for parent in start + self.experts]}
        if self.teachers:
            hashes["teachers"] = [teacher.hash for teacher in self.teachers]
        return hashes

    @cached_property
    def hash(self) -> str:
        """The sha256 of the fields that change the training's numbers, and of the parents' hashes.

        Fields at their default are left out, so that old records keep their hash when a field is
        added. It is computed once, since a page looks up every run some hundred times.
        """
        fields = self.model_dump(exclude=set(self.LABELS), exclude_defaults=True)
        fields["recipe"] = self.recipe
        fields |= self.parent_hashes
        return hashlib.sha256(canonical(fields).encode()).hexdigest()

    @property
    def run(self) -> str:
        """The run's name: variant, mixture, seed and the first eight digits of the hash."""
        mixture = ""
        if self.ratio is not None:
            percent = round(100 * self.ratio)
            mixture = f"-{percent}-{100 - percent}"
        return f"{self.variant}{mixture}-s{self.seed}-{self.hash[:8]}"

    @property
    def trains_stale(self) -> bool:
        """Whether a record that other code made is trained again."""
        if self.stale is None:
            return self.profile == "quick"
        return self.stale == "train"

    def model_copy(self, *, update: dict | None = None, deep: bool = False) -> "Spec":
        """Return the run with other values of fields. Only other labels leave its hash as it is."""
        copied = super().model_copy(update=update, deep=deep)
        if not set(update or {}) <= self.LABELS - set(self.ROLES):
            copied.__dict__.pop("hash", None)
        return copied

    def change_with_parents(self, **fields) -> "Spec":
        """Return the run with other values of fields, in its parents too."""
        start = self.start and self.start.change_with_parents(**fields)
        experts = [expert.change_with_parents(**fields) for expert in self.experts]
        teachers = [teacher.change_with_parents(**fields) for teacher in self.teachers]
        roles = {"start": start, "experts": experts, "teachers": teachers}
        return self.model_copy(update=fields | roles)

    def without_parents(self) -> "Spec":
        """Return the run as if it needed no other."""
        return self.model_copy(update={"start": None, "experts": [], "teachers": []})

    def on_gpu(self) -> "Spec":
        """Return the same training on a GPU, where the number of threads plays no part."""
        return self.change_with_parents(threads="cuda")

    def in_fp32(self) -> "Spec":
        """Return the same training without bf16.

        A processor or GPU that lacks bf16 instructions can only emulate them, many times slower.
        """
        return self.change_with_parents(precision="fp32")

    def machine_variants(self) -> list["Spec"]:
        """Return the same training for each kind of machine: with or without a GPU, and bf16."""
        variants = [self] if self.threads == "cuda" else [self.on_gpu(), self]
        if self.is_in_bf16():
            variants += [variant.in_fp32() for variant in variants]
        return variants

    def is_in_bf16(self) -> bool:
        """Return whether the run, or one that it needs, is trained in bf16."""
        return self.precision == "bf16" or any(parent.is_in_bf16() for parent in self.parents)

    def for_this_machine(self) -> "Spec":
        """Return the same training for the machine that this process runs on."""
        import torch  # here, because importing it is slow and only training needs it

        spec = self.on_gpu() if torch.cuda.is_available() else self
        return spec if has_bf16() else spec.in_fp32()


def has_bf16() -> bool:
    """Return whether the GPU, or else the processor, has instructions for bf16."""
    import torch  # as above

    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    onednn = torch.backends.mkldnn.is_available()
    return onednn and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def canonical(value: Any) -> str:
    """Return a value as JSON with sorted keys and no spaces. Raises ValueError for NaN."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def digest_file(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
