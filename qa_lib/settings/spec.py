"""One training with one seed: everything that decides its numbers, and the hash it is looked up by."""

import hashlib
import json
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from qa_lib.settings.parameters import Gate, Layer, Strict


class Spec(Strict):
    """One training with one seed. Fields marked `label` do not change its numbers and are not hashed."""

    report: str
    variant: str  # label
    profile: str  # label
    size: str  # label
    arm: str = "printed"  # label: whose rate and epochs, the report's or those that trials found
    ratio: float | None = None  # label: share of the first domain
    seed: int
    source: str  # label
    folder: str | None = None  # label
    domains: list[str]  # label
    fingerprints: list[str]  # of the domains: their definition and their files
    rows: list[int]  # training rows of each domain
    places: list[int] | None = (
        None  # which permutation each domain's rows are the start of; None: 0, 1, …
    )
    validation_rows: int
    tests: list[str]  # label: a run may be scored on more sets later
    order: Literal["trainer", "sequential", "shuffled"] = "trainer"
    bad_rows: Literal["stop", "skip"] = "stop"
    encoder: str  # label
    weights: str  # the encoder's hash
    blocks: int | None = None
    layer: Layer | None = None  # between encoder and head
    dense: float | None = (
        None  # width of a dense layer in place of the experts, in multiples of an expert's
    )
    reinit: int = 0  # top blocks that start anew
    reinit_from: Literal["random", "lower"] = (
        "random"  # from random weights, or from those of lower blocks
    )
    augment: int = 0  # altered copies of each training row (qa_lib/data/augment.py)
    cluster: list[int] | None = (
        None  # [k, n]: of n clusters of questions the k-th trains (qa_lib/training/clusters.py)
    )
    gate: Gate | None = None  # a mixture of the parents, which stay as they are
    head_dropout: float = 0.1
    max_length: int
    stride: int
    batch_size: int
    learning_rate: float
    epochs: float
    schedule: Literal["linear", "constant"] = "linear"
    checkpoint: Literal["last", "best"] = (
        "last"  # best: by F1 on validation, looked at `looks` times an epoch
    )
    looks: int = 1
    watched: int = 0  # label: training rows whose EM is measured at each look
    starter: bool = (
        False  # label: scored by the starter code's rule too, which knows no answer of one token
    )
    warmup: float
    weight_decay: float
    clip: float
    precision: Literal["fp32", "bf16"]
    threads: int | Literal["cuda"]
    # Raised by a report's plan for the variants whose training changes in a way that no parameter shows. Always hashed.
    recipe: int = Field(1, ge=1)
    parents: list["Spec"] = []

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
            "encoder",
            "watched",
            "starter",
            "parents",
        }
    )

    @property
    def hash(self) -> str:
        """sha256 over what changes the numbers; fields at their default are left out, so that a new
        field orphans no record."""
        fields = self.model_dump(exclude=set(self.LABELS), exclude_defaults=True)
        fields |= {"recipe": self.recipe, "parents": [p.hash for p in self.parents]}
        return hashlib.sha256(canonical(fields).encode()).hexdigest()

    @property
    def run(self) -> str:
        """The run's name: variant, mixture, seed and eight digits of the hash."""
        mix = (
            ""
            if self.ratio is None
            else f"-{round(100 * self.ratio)}-{100 - round(100 * self.ratio)}"
        )
        return f"{self.variant}{mix}-s{self.seed}-{self.hash[:8]}"

    def on_gpu(self) -> "Spec":
        """The same training on a GPU, where the thread count plays no part."""
        return self.model_copy(
            update={"threads": "cuda", "parents": [p.on_gpu() for p in self.parents]}
        )

    def in_fp32(self) -> "Spec":
        """The same training without bf16, which a processor or GPU that has no instructions for it imitates, many times slower."""
        return self.model_copy(
            update={"precision": "fp32", "parents": [p.in_fp32() for p in self.parents]}
        )

    def machine_variants(self) -> list["Spec"]:
        """The same training as one machine or another does it."""
        return [self.on_gpu(), self, self.on_gpu().in_fp32(), self.in_fp32()]

    def for_this_machine(self) -> "Spec":
        """The same training as this machine does it."""
        import torch  # only training looks at the machine

        if torch.cuda.is_available():
            found, native = self.on_gpu(), torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            found, native = (
                self,
                torch.backends.mkldnn.is_available()
                and torch.ops.mkldnn._is_mkldnn_bf16_supported(),
            )
        return found if native else found.in_fp32()


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces; NaN is refused."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def digest_file(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
