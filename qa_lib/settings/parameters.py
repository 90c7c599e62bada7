"""The parameters that all reports share, those of a dataset, and those of a model's parts.

Strict: what is unknown or of another type is refused (qa_lib/settings/params.py says where it was
written). A report's own parameters stand in its file in qa_lib/reports.
"""

import os
import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

# What lies beyond these bounds is a slip of the pen: it would end in a traceback or without memory.
Rows = Annotated[int, Field(gt=0, le=10**9)]
Blocks = Annotated[int, Field(gt=0, le=1000)]
Experts = Annotated[int, Field(gt=0, le=1000)]
Layers = Annotated[int, Field(gt=0, le=100)]  # of a gate
Threads = Annotated[int, Field(gt=0, le=512)]  # OpenMP crashes at too many
Batch = Annotated[int, Field(gt=0, le=10_000)]
Rate = Annotated[float, Field(gt=0, le=10)]
Epochs = Annotated[float, Field(gt=0, le=1000)]
WholeEpochs = Annotated[int, Field(gt=0, le=1000)]
Factor = Annotated[float, Field(gt=0, le=1000)]  # multiples and weights
Penalty = Annotated[float, Field(ge=0, le=1000)]  # coefficients of a loss or of a decay
Share = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # NumPy's
Seeds = Annotated[list[Seed], Field(min_length=1)]

# Profiles that have one size; real and own have both.
ONLY_SIZE = {"quick": "small", "paper": "full"}

# Words to which run records, the ledger, claims and tables give a meaning of their own. A dataset
# of such a name would be counted twice, scored as another set, or stand in the place of a column.
TAKEN_NAMES = frozenset(
    """
    training validation first second start set metric value n run runs hash report variant profile
    size arm ratio seed seeds source rows validation_rows order bad_rows encoder blocks dense reinit
    reinit_from augment starter head_dropout max_length stride batch_size learning_rate epochs
    schedule checkpoint looks watched warmup weight_decay clip precision threads device
    place experts width top_n threshold capacity_train capacity_eval eval_routing route_padding
    density balance router_z norm feed_forward expert_dropout dropout_at layer_dropout
    rule input layers hidden mixed model mixture rate dropout layer windows malformed incomplete
    seconds training_seconds tokens_per_second peak_memory_mb parameters active_parameters
    epoch step train_loss validation_loss validation_em validation_f1 loss_gap best_epoch
    adversarial_loss
    soft_loss soft_target_entropy teachers_disagree largest_weight states_loss
    id cluster part em f1 em_starter f1_starter em_rows f1_rows loss contains overflowed clusters
    tokens end dataset expert weight share bin of pairs case
    accuracy pearson score ece truncated label task
    em_answerable f1_answerable em_impossible f1_impossible em_no_answer f1_no_answer em_best
    f1_best em_best_threshold f1_best_threshold unanswered null_threshold null_margin
    """.split()
)
# What names tell by their beginning or end: a spread, a gate's weight, an option of a nested
# parameter, a score on other rows than a test set's, an expert, a trial.
TAKEN_PATTERN = re.compile(
    r".*_sd|gate_\d+|(heads|smart|multitask|imbalance|layer_decay|distillation)_.*"
    r"|(validation|dev)_.*|(reinit|cluster)-.*|.*-trial"
)


# What PyTorch's containers of parts call their own, some of it since transformers was imported: a
# head of such a name cannot be put there.
CONTAINER_NAMES = frozenset(
    """
    T_destination add_module apply bfloat16 buffers call_super_init children clear compile cpu cuda
    double dump_patches eval extra_repr float forward get_buffer get_extra_state get_parameter
    get_submodule half ipu items keys load_state_dict modules mtia named_buffers named_children
    named_modules named_parameters parameters pop register_backward_hook register_buffer
    register_forward_hook register_forward_pre_hook register_full_backward_hook
    register_full_backward_pre_hook register_load_state_dict_post_hook
    register_load_state_dict_pre_hook register_module register_parameter
    register_state_dict_post_hook register_state_dict_pre_hook requires_grad_ set_extra_state
    set_submodule share_memory smart_apply state_dict to to_empty train training type update values
    xpu zero_grad
    """.split()
)


def cannot_name_part(name: str) -> bool:
    """Return whether no part of a model can have this name, as heads have those of datasets."""
    return not name or "." in name or name.startswith("_") or name in CONTAINER_NAMES


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Dataset(Strict):
    """One dataset: its sources, its splits, and the unit its examples repeat in.

    Validation is carved from training by whole units. Without a test source the test split is
    carved too: `train_rows` rows of whole units train, `validation_share` of the other units
    validate, and the rest is the test set.
    """

    display_name: str | None = None  # as its authors write it; None: its id here
    task: Literal["span", "classes", "score"] = "span"  # what a row is (qa_lib/tasks)
    # Register or kind of sentences | files under DATA | hub "repo:split" or "repo:part:split", of
    # another branch than the main one "repo@branch:…" (data/hub_tables.py).
    train: list[str] = []
    test: list[str] = []
    pool: list[str] = []  # test rows are those of these datasets together; nothing trains
    # This dataset is a second test set of `part_of`; its rows are reported under that name.
    part_of: str | None = None
    scored: Literal["test", "validation"] = "test"  # the held-out part that is the test set
    # Test sentences with typing mistakes, or with neighbouring words swapped; or generated
    # questions in other words (data/alter.py).
    altered: Literal["typos", "swaps", "reworded"] | None = None
    apart_from: list[str] = []  # no training row shares a context, or a text, with a row of these
    apart_within: bool = False  # nor does one stand within a context, or a text, of theirs
    rows: Rows | None = None  # embedded only: how many are generated
    only: dict[str, str] = {}  # hub only: rows in which each of these fields has this value
    # Hub only: word of a question → the field whose text stands in its place.
    placeholder: dict[str, str] = {}
    # Training and validation rows in which this field has this value are left out; where the
    # validation rows are scored, these too.
    leave_out: dict[str, str] = {}
    # Of the tasks classes and score. A label is the name of a class, or its number from 0.
    classes: list[str] | None = Field(None, min_length=2)
    # Of the task score: the lowest and the highest score.
    range: list[float] | None = Field(None, min_length=2, max_length=2)
    text: str = "text"  # the field that holds a row's text, or the first text of a pair
    text_pair: str | None = None  # the field that holds the second text of a pair
    label: str = "label"  # the field that holds a row's class or score
    unlabelled: int | None = None  # hub only: the label of rows that have none; they are left out
    # The head that a model has for it where the datasets of a task share one (Heads.one_for).
    head: str | None = None
    # What a split never divides. Title: rows without one are one unit together, so of such rows
    # write context. Text: rows that share a text are of one unit, and so are rows that others
    # connect.
    unit: Literal["title", "question", "context", "text"] = "title"
    train_rows: Rows | None = None
    validation_share: Share = 0.5
    validation_rows: int | None = Field(None, ge=0, le=10**9)
    test_rows: Rows | None = None  # a fixed sample of whole contexts, or of whole texts; None: all
    cluster: Literal["title", "question", "context", "text"] = "context"
    average: Literal["rows", "clusters"] = "rows"  # EM: mean over rows, or within clusters first
    split_seed: int = 0
    seen_by: dict[str, str] = {}  # encoder -> what its card says it saw of this dataset
    instead_of: str | None = None  # what the report has, where this stands in its place

    @model_validator(mode="before")
    @classmethod
    def _set_unit_of_sentences(cls, values):
        """A sentence has no title and no context: its unit and its cluster are its text."""
        if isinstance(values, dict) and values.get("task", "span") != "span":
            return {"unit": "text", "cluster": "text"} | values
        return values

    @model_validator(mode="after")
    def _check_train_rows(self):
        if not (self.test or self.pool) and self.train_rows is None:
            raise ValueError(
                "train_rows: a dataset without a test source needs them; write how many rows "
                "train, or name its test files in test"
            )
        return self

    @model_validator(mode="after")
    def _check_split(self):
        """Refuse fields that a split passes over: it reads others where there are test sources."""
        if self.test:
            idle, kind, instead = ("train_rows", "validation_share"), "with", "validation_rows"
        else:
            idle, kind, instead = ("validation_rows",), "without", "validation_share"
        for field in idle:
            if field in self.model_fields_set and getattr(self, field) is not None:
                raise ValueError(
                    f"{field}: a dataset {kind} test sources has none; leave it out, and write "
                    f"{instead} for its validation rows"
                )
        return self

    @model_validator(mode="after")
    def _check_head(self):
        if self.head is not None and cannot_name_part(self.head):
            raise ValueError(
                f"head: '{self.head}' cannot name a head, since a model cannot have a part of that "
                "name; give it another one, without dots"
            )
        return self

    @model_validator(mode="after")
    def _check_task(self):
        for field in ("unit", "cluster"):
            if (getattr(self, field) == "text") != (self.task != "span"):
                raise ValueError(
                    f"{field}: {getattr(self, field)} is nothing that rows of the task "
                    f"{self.task} have; leave it out"
                )
        if self.task == "span":
            sentences_alone = ["classes", "range", "text", "text_pair", "label", "unlabelled"]
            if self.altered != "reworded":
                sentences_alone.append("altered")
            for field in sentences_alone:
                if field in self.model_fields_set:
                    raise ValueError(
                        f"{field}: a dataset of the task span has none; name its task, classes or "
                        "score, or leave it out"
                    )
        return self

    @model_validator(mode="after")
    def _check_reworded(self):
        if self.altered == "reworded" and (self.task != "span" or self.rows is None):
            raise ValueError(
                "altered: only generated questions are reworded; of sentences write typos or swaps"
            )
        return self

    @model_validator(mode="after")
    def _check_labels(self):
        if self.task == "classes" and self.classes is None:
            raise ValueError(
                "task: classes needs the names of its classes; write classes: [negative, positive]"
            )
        if self.task == "score" and self.range is None:
            raise ValueError(
                "task: score needs the lowest and the highest score; write range: [0, 5]"
            )
        if self.task == "score" and self.text_pair is None:
            raise ValueError(
                "task: score is of two texts; write text_pair: and the field that holds the second"
            )
        if self.task == "score" and self.classes is not None:
            raise ValueError("classes: a dataset of the task score has none; leave them out")
        if self.task == "classes" and self.range is not None:
            raise ValueError("range: a dataset of the task classes has none; leave it out")
        if self.classes and len(set(self.classes)) < len(self.classes):
            raise ValueError("classes: a name stands there twice; write each once")
        if self.range and self.range[0] >= self.range[1]:
            raise ValueError(f"range: {self.range} does not rise; write the lowest score first")
        if self.task == "score" and self.average == "clusters":
            raise ValueError("average: a correlation is over rows; leave it out")
        return self

    def list_sources(self) -> list[str]:
        """Return every source that is read: of training rows, test rows, and rows apart."""
        return self.train + self.test + self.apart_from


class Study(Strict):
    """Parameters that every report has; a notebook's parameters cell lists them too.

    The methods are what a study and a page ask of a report's parameters. A report with other fields
    answers them anew.
    """

    report: str
    profile: Literal["quick", "real", "paper", "own"]
    size: Literal["small", "full"]
    source: Literal["embedded", "folder", "hub", "own"]
    # The folder that `source: folder` reads; of `own` the file that defines its datasets.
    data: str | None = None
    encoder: str  # minilm | a folder | a hub id
    domains: list[str] = Field(min_length=1)
    seeds: Seeds
    train_rows: Rows
    validation_rows: Rows
    order: Literal["trainer", "sequential", "shuffled"]
    blocks: Blocks | None = None  # encoder blocks kept; None: all
    max_length: int = Field(ge=32, le=10**6)
    stride: int = Field(ge=0)
    batch_size: Batch
    learning_rate: Rate
    epochs: Epochs
    warmup: Share  # share of the steps
    weight_decay: Penalty
    clip: float = Field(gt=0, le=1e30)
    precision: Literal["fp32", "bf16"]
    threads: Threads  # on CPU; a GPU counts as "cuda"
    bad_rows: Literal["stop", "skip", "move"]
    # Runs whose record other code made; None: trained again at quick, kept at other profiles.
    stale: Literal["train", "keep"] | None = None
    # Dataset of a run that all others go on from, so that short ones learn at all (quick).
    start: str | None = None
    start_rows: Rows = 1  # its examples
    start_rate: Rate = 1e-4  # its learning rate
    start_threads: Threads = 1  # it trains alone: more than `threads` where there are more cores

    @field_validator("data")
    @classmethod
    def _find_home(cls, data: str | None) -> str | None:
        """Look up a ~ at its beginning, wherever it was written."""
        return os.path.expanduser(data) if data else data

    @model_validator(mode="after")
    def _check_size(self):
        only = ONLY_SIZE.get(self.profile, self.size)
        if self.size != only:
            raise ValueError(
                f"size: profile {self.profile} has one size, {only}, not {self.size}; leave SIZE= "
                "away, or say PROFILE=real, which has both"
            )
        return self

    @model_validator(mode="after")
    def _check_data(self):
        if self.data and self.source not in ("folder", "own"):
            text = "generated text" if self.source == "embedded" else "datasets of a hub"
            raise ValueError(
                f"data: profile {self.profile} has {text} and reads no folder; leave DATA= away, "
                "or say PROFILE=real"
            )
        return self

    @model_validator(mode="after")
    def _check_source(self):
        if "own" in (self.profile, self.source) and not (self.profile == self.source and self.data):
            raise ValueError(
                "profile: own goes with source own and the file that `make own` writes; start it "
                "with make own NAME=…"
            )
        if self.source == "embedded" and self.profile != "quick":
            raise ValueError(
                "profile: generated text (source embedded) is profile quick; make … "
                f"PROFILE={self.profile} has other "
                "parameters"
            )
        return self

    @model_validator(mode="after")
    def _check_warmup(self):
        if getattr(self, "schedule", None) == "constant" and self.warmup > 0:
            raise ValueError(
                f"warmup: {self.warmup:g} goes with schedule: linear, as a constant rate has none; "
                "write warmup: 0 with schedule: constant"
            )
        return self

    @model_validator(mode="after")
    def _check_stride(self):
        if self.stride >= self.max_length // 2:
            raise ValueError(
                f"stride: {self.stride} must be below half of max_length {self.max_length}; write "
                "stride too, a third of max_length or less"
            )
        return self

    @model_validator(mode="after")
    def _check_names(self):
        for field, names in self.named_datasets().items():
            for name in names:
                if name in TAKEN_NAMES or TAKEN_PATTERN.fullmatch(name):
                    raise ValueError(
                        f"{field}: '{name}' cannot name a dataset, since run records and tables "
                        "use that word for something else; give it another name"
                    )
                if cannot_name_part(name):
                    raise ValueError(
                        f"{field}: '{name}' cannot name a dataset, since a model cannot have a "
                        "part of that name; give it another one, without dots"
                    )
        return self

    @model_validator(mode="after")
    def _check_repeats(self):
        for name, values in self:
            if not isinstance(values, list) or name == "full_rows":
                continue
            for value in values:
                if values.count(value) > 1:
                    raise ValueError(f"{name}: {value} stands there twice")
        return self

    def named_datasets(self) -> dict[str, list[str]]:
        """Return parameter → the datasets that it names."""
        return {"domains": self.domains, "start": [self.start] if self.start else []}

    def named_encoders(self) -> list[str]:
        """Return the encoders that the runs go on from."""
        return [self.encoder]

    @property
    def mixtures(self) -> tuple[float, ...]:
        """The ratios that a claim over mixtures means; none where a report mixes nothing."""
        return ()

    @property
    def not_measured(self) -> dict[str, str]:
        """Metrics that claims are about and that no record has → why."""
        return {}

    @property
    def stand_ins(self) -> dict[str, str]:
        """Generated dataset → the dataset in whose place it stands, as the claims call that."""
        return {}

    def describe_training(self) -> str:
        """Return the training rows and the seeds, as a page's head says them."""
        return f"{self.train_rows:,} training examples of each dataset; {self.describe_seeds()}"

    def describe_seeds(self) -> str:
        """Return the number of seeds in words."""
        return "one seed, so no spread" if len(self.seeds) == 1 else f"{len(self.seeds)} seeds"


class Layer(Strict):
    """The sparse ST-MoE block between encoder and head (qa_lib/models/st_moe.py).

    Defaults are those of the report, or of st-moe-pytorch, but for eval_routing, route_padding and
    density: that package draws at evaluation, routes padding, and counts the picks it kept.
    """

    # After the encoder, or in place of its last block's feed-forward layer.
    place: Literal["after", "feed_forward"] = "after"
    experts: Experts = 16
    # Of an expert, in multiples of 8/3 of the encoder's width.
    width: float = Field(1.0, ge=0.05, le=100)
    top_n: Experts = 2  # experts a token is sent to
    # Weight below which a further expert is drawn, or left out.
    threshold: Annotated[float, Field(gt=0, le=1e30)] = 0.2
    capacity_train: Factor = 1.25  # tokens an expert takes, in multiples of an even share
    capacity_eval: Factor = 2.0
    eval_routing: Literal["threshold", "random"] = "threshold"
    route_padding: bool = False
    density: Literal["wanted", "kept"] = "wanted"
    balance: Penalty = 1e-2  # coefficient of the balance loss
    router_z: Penalty = 1e-3  # coefficient of the router z-loss
    norm: bool = True  # RMSNorm in front
    feed_forward: Literal["none", "before", "after", "both"] = "after"
    expert_dropout: Share = 0.0
    dropout_at: Literal["none", "before", "after", "both"] = "none"
    layer_dropout: Share = 0.1  # at the places of dropout_at

    @model_validator(mode="after")
    def _check_top_n(self):
        if self.top_n > self.experts:
            raise ValueError(
                f"top_n: {self.top_n} is more than the {self.experts} experts there are; lower it "
                "with them"
            )
        if self.top_n == 1 and self.experts > 1:
            raise ValueError(
                f"top_n: the weight of a single pick among {self.experts} experts is always 1, so "
                "that the router learns nothing from the task; write 2 or more"
            )
        return self


class Gate(Strict):
    """How a mixture weighs its frozen experts (qa_lib/models/gated_mixture.py)."""

    rule: Literal["learned", "uniform", "best", "own", "others", "oracle"] = "learned"
    # What a learned gate sees of a window.
    input: Literal["mean", "cls", "experts", "dataset"] = "mean"
    layers: Layers = 3  # linear layers, ReLU between them
    hidden: int = Field(768, ge=1, le=10**5)
    mixed: Literal["logits", "probabilities"] = "logits"


class Heads(Strict):
    """The heads of an encoder that several datasets share (qa_lib/models/shared_encoder.py).

    Task and classes of a dataset say which it has.
    """

    # What a head reads of a text: the last state of [CLS], the same behind a dense layer with tanh,
    # or the mean of all states.
    pooling: Literal["cls", "pooler", "mean"] = "cls"
    frozen: bool = False  # the encoder is not trained
    # Each dataset has a head of its own, or all datasets that name one share it (Dataset.head).
    one_for: Literal["dataset", "task"] = "dataset"
    # The two texts of a pair are read each by itself, or as one sequence, as BERT reads them.
    pairs: Literal["apart", "joined"] = "apart"
    # Whether the heads of pairs read the rich relational layer: one for all, or one for each.
    relational: Literal["none", "shared", "own"] = "none"
    # Of a dataset of spans: start and end by themselves, or an end for each start and a classifier
    # for "no answer", as in ELECTRA.
    span: Literal["independent", "joint"] = "independent"
    # Of a dataset of scores without a relational layer.
    score: Literal["cosine", "distribution"] = "cosine"

    @model_validator(mode="after")
    def _check_relational(self):
        if self.pairs == "joined" and self.relational != "none":
            raise ValueError(
                "relational: the relational layer reads two texts apart, and pairs: joined makes "
                "one sequence of them; write pairs: apart, or relational: none"
            )
        return self


class Multitask(Strict):
    """Training on batches of one dataset each, an optimizer step a batch (qa_lib/data/batches.py).

    A round has a batch of each dataset, in the order of `domains`; with draws it is an update, of
    `passes` batches.
    """

    # rrobin: batches of `batch_size` rows, and in every epoch the same rows of each dataset.
    # rrobin-full: all rows, in batches by the size of the dataset, at most `batch_size`.
    # draws: datasets are drawn at random, `passes` of them for an update, which averages gradients.
    schedule: Literal["rrobin", "rrobin-full", "draws"] = "rrobin"
    # Of an epoch. None: as many as the smallest dataset fills at rrobin, and as many as use up the
    # largest one at rrobin-full.
    rounds: Rows | None = None
    # With draws: batches of an update, each of `batch_size` / `passes` rows of one dataset.
    passes: int = Field(1, ge=1, le=64)
    sampling: Literal["uniform", "proportional", "annealed"] = "uniform"  # with draws
    # Datasets whose loss is the sum over a batch's rows by `batch_size` (the report's code, where a
    # batch may have fewer rows) in place of the mean over its rows.
    fixed_divisor: list[str] = []
    # The rows on which checkpoints are judged, by the mean of the datasets' scores. Dev: the test
    # rows, as in the report.
    judged_on: Literal["validation", "dev"] = "validation"

    @model_validator(mode="after")
    def _check_schedule(self):
        if self.schedule == "draws" and self.rounds is None:
            raise ValueError("rounds: the schedule draws needs the updates of an epoch; name them")
        if self.schedule != "draws" and (self.passes, self.sampling) != (1, "uniform"):
            raise ValueError(
                "passes: several batches an update, and a law of sampling, are of the schedule "
                "draws; leave them out, or write schedule: draws"
            )
        if self.schedule == "draws" and self.fixed_divisor:
            raise ValueError(
                "fixed_divisor: with the schedule draws a batch has no batch_size rows to divide "
                "by; leave it out, or write schedule: rrobin or rrobin-full"
            )
        return self


class LayerDecay(Strict):
    """Learning rates that fall from the heads to the embeddings (training/layer_rates.py)."""

    rate: float = Field(0.75, gt=0, le=1)  # γ, from one layer to the one below
    top: Literal[1, 2] = 2  # power of γ that the top block has: 2 in ELECTRA's code


class Imbalance(Strict):
    """Training rows whose classes have unequal numbers (qa_lib/data/selection.py)."""

    ratio: float = Field(10.0, ge=1, le=1000)  # rows of the first class for one of the last


class Smart(Strict):
    """The two terms that SMART adds to the loss, and its noise controls (qa_lib/losses/smart.py).

    Defaults are those of the report's final version.
    """

    adversarial: Penalty = 5.0  # λ, weight of the adversarial term
    # Paper: gradient ascent, projected to the ball. Unit norm: as public codes have it, where ε is
    # no radius. R3F: noise, no ascent; projected. Gaussian: the loss itself, on noisy embeddings.
    variant: Literal["paper", "unit_norm", "r3f", "gaussian"] = "paper"
    radius: float = Field(1e-5, ge=0, le=1)  # ε of the ball
    norm: Literal["inf", "2"] = "inf"  # in which the ball and the ascent are measured
    # What has a ball of its own. None: an example in the paper, a token in public codes.
    per: Literal["token", "example"] | None = None
    steps: int = Field(1, ge=1, le=100)  # k of the ascent
    step_size: float = Field(1e-3, gt=0, le=1000)  # η of the ascent
    start_sd: float = Field(1e-5, ge=0, le=1)  # σ of the Gaussian that the ascent starts from
    draws: int = Field(1, ge=1, le=100)  # of noise, in R3F and Gaussian
    dropout: Literal["off", "on"] = "off"  # in the passes of the adversarial term
    # Stopped: the clean side is a target without gradient, and the Bregman term reads the training
    # pass.
    clean_side: Literal["gradient", "stopped"] = "gradient"
    # Softmax: as in the report's code, 0 for one logit and taken across the batch for scores.
    divergence: Literal["task", "softmax"] = "task"
    reduction: Literal["mean", "sum"] = "mean"  # over a batch; public codes have the sum
    bregman: Penalty = 1.0  # μ, weight of the Bregman term
    beta: float = Field(0.995, ge=0, lt=1)  # β, what an update keeps of the averaged weights
    # Paper: 0.99 in the first tenth of the updates, then 0.999; `beta` is not read.
    beta_schedule: Literal["constant", "paper"] = "constant"

    @property
    def has_ascent(self) -> bool:
        """Whether the perturbation is found by gradient ascent."""
        return self.variant in ("paper", "unit_norm")

    @property
    def unit(self) -> Literal["token", "example"]:
        """What has a ball of its own."""
        return self.per or ("token" if self.variant == "unit_norm" else "example")


class Distillation(Strict):
    """What a run learns from its teachers, beside its labels (qa_lib/losses/distillation.py)."""

    temperature: float = Field(4.0, gt=0, le=1000)  # T of both softmaxes; the post's is above 3
    # α, weight of the labels' own loss; the teachers have 1 − α. With annealing it is not read.
    hard: float = Field(0.5, ge=0, le=1)
    square: bool = False  # the teachers' part is multiplied by T²
    # Of several teachers: the mean of their logits, the mean weighted by who is right (the report's
    # Algorithm 2), or its weights given to teachers at random (the control).
    teachers: Literal["mean", "weighted", "shuffled"] = "mean"
    wrong_weight: float = Field(0.75, ge=0, le=1)  # W of a teacher that is wrong
    # Start and end of a span: a teacher is right in both together, or in each by itself.
    correct: Literal["joint", "separate"] = "joint"
    # Where all teachers are wrong: their plain mean, or W times it.
    all_wrong: Literal["mean", "scaled"] = "mean"
    # The labels' weight rises linearly from 0 to 1 over the updates, in place of α.
    annealing: bool = False
    hidden: Literal["none", "last", "all"] = "none"  # blocks whose states are learned too
    # What is learned of a row beside states: the soft target of its teachers; its label, smoothed
    # to the entropy of that target, without the teachers' ranking (the control); or nothing.
    targets: Literal["teachers", "smoothed", "none"] = "teachers"
    by_dataset: bool = False  # a dataset has those teachers alone that were trained on it

    @model_validator(mode="after")
    def _check_targets(self):
        if self.targets == "none" and self.hidden == "none":
            raise ValueError(
                "targets: without soft targets and without hidden states there is nothing to "
                "learn; write hidden: last, or all"
            )
        return self
