"""The parameters there are: of a dataset, of every report, of each report and its parts. Strict: what is unknown or of another
type is refused (qa_lib/settings/params.py says where it was written).
"""

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

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
WholeEpochs = Annotated[int, Field(gt=0, le=1000)]
Factor = Annotated[float, Field(gt=0, le=1000)]  # multiples and weights
Penalty = Annotated[float, Field(ge=0, le=1000)]  # coefficients of a loss or of a decay
Share = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # NumPy's
Seeds = Annotated[list[Seed], Field(min_length=1)]

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
    id cluster part em f1 em_starter f1_starter em_rows f1_rows loss contains overflowed clusters
    tokens end dataset expert weight share bin of pairs case
    """.split()
)
# What names tell by their beginning or end: a spread, a gate's weight, an expert, a trial.
TAKEN_PATTERN = re.compile(r".*_sd|gate_\d+|(reinit|cluster)-.*|.*-trial")


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Dataset(Strict):
    """One dataset: sources, splits, and the unit its examples repeat in.

    Validation is carved from training by whole `unit`s; without a test source the test split is carved
    too: `train_rows` rows of whole units train, `validation_share` of the other units validate, the rest test.
    """

    train: list[str] = []  # register | files under DATA | hub "repo:split"
    test: list[str] = []
    pool: list[str] = []  # test rows are those of these datasets together; nothing trains
    part_of: str | None = None  # the dataset whose other test set this is: its rows carry that name
    scored: Literal["test", "validation"] = "test"  # the held-out part that is the test set
    apart_from: list[str] = []  # no training row shares a context with a row of these
    rows: int | None = None  # embedded only: how many are generated
    leave_out: dict[str, str] = {}  # training rows in which this field has this value are left out
    unit: Literal["title", "question", "context"] = "title"
    train_rows: int | None = None
    validation_share: float = 0.5
    validation_rows: int | None = None
    test_rows: int | None = None  # a fixed sample of whole contexts; None: all
    cluster: Literal["title", "question", "context"] = "context"
    average: Literal["rows", "clusters"] = "rows"  # EM: mean over rows, or within clusters first
    split_seed: int = 0
    seen_by: dict[str, str] = {}  # encoder -> what its card says it saw of this dataset

    @model_validator(mode="after")
    def _splits(self):
        if not (self.test or self.pool) and self.train_rows is None:
            raise ValueError("a dataset without a test source needs train_rows")
        return self


class Study(Strict):
    """Parameters every report has; the fields a notebook's parameters cell lists."""

    report: str
    profile: Literal["quick", "real", "paper", "own"]
    size: Literal["small", "full"]
    source: Literal["embedded", "folder", "hub", "own"]
    data: str | None = (
        None  # the folder that `source: folder` reads; of `own` the file that defines its datasets
    )
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
    bad_rows: Literal["stop", "skip"]
    start: str | None = (
        None  # dataset of a run that all others go on from, so that short ones learn at all (quick)
    )
    start_rows: Rows = 1  # its examples
    start_rate: Rate = 1e-4  # its learning rate
    start_threads: Threads = 1  # it trains alone: more than `threads` where there are more cores

    @model_validator(mode="after")
    def _lengths(self):
        if "own" in (self.profile, self.source) and not (self.profile == self.source and self.data):
            raise ValueError(
                "profile: own goes with source own and the file that `make own` writes; start it with make own NAME=…"
            )
        if self.source == "embedded" and self.profile != "quick":
            raise ValueError(
                f"profile: generated text (source embedded) is profile quick; make … PROFILE={self.profile} has other "
                "parameters"
            )
        if self.stride >= self.max_length // 2:
            raise ValueError(
                f"stride: {self.stride} must be below half of max_length {self.max_length}"
            )
        return self

    @model_validator(mode="after")
    def _names(self):
        for field in ("domains", "few_shot", "pools", "start"):
            names = getattr(self, field, None) or []
            for name in [names] if isinstance(names, str) else names:
                if name in TAKEN_NAMES or TAKEN_PATTERN.fullmatch(name):
                    raise ValueError(
                        f"{field}: '{name}' cannot name a dataset, since run records "
                        "and tables use that word for something else; give it another "
                        "name"
                    )
        return self

    @model_validator(mode="after")
    def _once(self):
        for name, value in self:
            if (
                isinstance(value, list)
                and name != "full_rows"
                and (twice := [x for x in value if value.count(x) > 1])
            ):
                raise ValueError(f"{name}: {twice[0]} stands there twice")
        return self


class Layer(Strict):
    """The sparse ST-MoE block between encoder and head (qa_lib/reports/exbert.py). Defaults: the report's, or st-moe-pytorch's."""

    place: Literal["after", "feed_forward"] = (
        "after"  # after the encoder, or in place of its last block's feed-forward layer
    )
    experts: Experts = 16
    # of an expert, in multiples of 8/3 of the encoder's width
    width: float = Field(1.0, ge=0.05, le=100)
    top_n: Experts = 2  # experts a token is sent to
    threshold: Annotated[float, Field(gt=0, le=1e30)] = (
        0.2  # weight below which a further expert is drawn, or left out
    )
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
    def _top(self):
        if self.top_n > self.experts:
            raise ValueError(
                f"top_n: {self.top_n} is more than the {self.experts} experts there are"
            )
        return self


class Gate(Strict):
    """How a mixture weighs its frozen experts (qa_lib/reports/moe.py)."""

    rule: Literal["learned", "uniform", "best", "own", "others", "oracle"] = "learned"
    input: Literal["mean", "cls", "experts", "dataset"] = (
        "mean"  # what a learned gate sees of a window
    )
    layers: Layers = 3  # linear layers, ReLU between them
    hidden: int = Field(768, ge=1, le=10**5)
    mixed: Literal["logits", "probabilities"] = "logits"


class Exbert(Layer, Study):
    """Bring in the ExBERT: mixtures of two domains, a sparse layer, and what could explain its gain."""

    report: Literal["exbert"]
    domains: list[str] = Field(min_length=2, max_length=2)
    experiments: list[
        Literal[
            "headline",
            "ratios",
            "untuned",
            "order",
            "single",
            "dense",
            "blocks",
            "experts",
            "rates",
            "dropout",
            "balance",
        ]
    ] = Field(min_length=1)  # parts of the study that are run
    arms: list[Literal["printed", "tuned"]] = Field(min_length=1)
    ratios: list[float] = Field(min_length=1)  # share of the first domain in the training mixture
    control_ratios: list[float]  # those of the controls and of the order
    # the mixture of sweeps and trials, of `ratios` the one with all seeds
    centre: float = Field(ge=0, le=1)
    side_seeds: Seeds  # of all runs but V-DB, tuned ExBERT and (a) at the centre
    dense_seeds: Seeds | None = None  # of controls (b), the dearest; None: side_seeds
    orders: list[Literal["sequential", "shuffled"]]  # beside the trainer's
    full_rows: list[Rows] = Field(min_length=2, max_length=2)  # training rows of each domain alone
    sizes: list[Rows]  # training rows of the first domain alone
    tuned_blocks: Blocks  # ExBERT as the report tunes it
    tuned_rate: Rate
    tuned_epochs: Epochs
    tuned_dropout: Literal["none", "before", "after", "both"]
    curve_epochs: Epochs
    sweep_blocks: list[Blocks]
    sweep_experts: list[Experts]
    sweep_rates: list[Factor]  # multiples of the plain rate
    sweep_dropout: list[Literal["none", "before", "after", "both"]]
    sweep_dropout_rates: list[Share]
    sweep_balance: list[Penalty]
    trial_rates: list[Rate] = Field(min_length=1)  # arm tuned: the same trials for every model
    trial_epochs: list[Epochs] = Field(min_length=1)

    @model_validator(mode="after")
    def _ratios(self):
        for name in ("ratios", "control_ratios"):
            if bad := [r for r in getattr(self, name) if not 0 <= r <= 1]:
                raise ValueError(f"{name}: {bad[0]} is not a share between 0 and 1")
        return self

    @model_validator(mode="after")
    def _sweep(self):
        if few := [e for e in self.sweep_experts if e < self.top_n]:
            raise ValueError(f"sweep_experts: {few[0]} is fewer than top_n {self.top_n}")
        return self


class Moe(Study):
    """Sesame Street Ensemble: an expert for each dataset, a gate that mixes them, re-initialised blocks."""

    report: Literal["moe"]
    domains: list[str] = Field(min_length=2)  # in-domain datasets, one expert each
    few_shot: list[str] = Field(min_length=1)  # out-of-domain datasets with few training examples
    pools: list[str] = Field(min_length=1)  # test sets of several datasets together
    experiments: list[
        Literal[
            "mixture",
            "controls",
            "gates",
            "longer",
            "last",
            "reinit",
            "few-shot",
            "outside",
            "clusters",
        ]
    ] = Field(min_length=1)  # parts of the study that are run
    arms: list[Literal["printed", "tuned"]] = Field(min_length=1)
    curve_seeds: list[Seed] = []  # more seeds of what reinit compares, for training curves alone
    few_rows: Rows  # training examples of each few-shot dataset
    few_epochs: Epochs
    augment_copies: int = Field(gt=0, le=100)  # altered copies of each of them
    clusters: int = Field(ge=2, le=100)  # experts by clusters of questions
    schedule: Literal["linear", "constant"]
    checkpoint: Literal["last", "best"]  # best: by F1 on in-domain validation
    looks: int = Field(gt=0, le=1000)  # at validation, an epoch
    # training examples whose EM and F1 are measured at each look
    watched: int = Field(ge=0, le=10**9)
    longer: list[WholeEpochs] = Field(min_length=1)  # epochs of longer baselines
    reinit_blocks: Blocks  # of the experts that are re-initialised
    reinit_epochs: Epochs
    sweep_reinit: list[Blocks]  # blocks of re-initialised baselines
    gate_input: Literal["mean", "cls", "experts"]
    gate_layers: Layers
    gate_hidden: int = Field(gt=0, le=10**5)
    gate_rate: Rate
    gate_epochs: Epochs
    gate_batch: Batch
    sweep_layers: list[Layers]
    sweep_inputs: list[Literal["mean", "cls", "experts"]]
    trial_rates: list[Rate] = Field(min_length=1)  # arm tuned: the same trials for every model
    trial_epochs: list[Epochs] = Field(min_length=1)

    @model_validator(mode="after")
    def _look(self):
        """A curve and a best checkpoint need a look at validation before training ends."""
        for name in ("epochs", "reinit_epochs", "gate_epochs", "trial_epochs"):
            value = getattr(self, name)
            fewest = min(value) if isinstance(value, list) else value
            if self.looks > 1 and fewest < 1 / self.looks:
                raise ValueError(
                    f"{name}: {fewest} ends before the first of {self.looks} looks an "
                    f"epoch; write at least {1 / self.looks:.4g}, or looks=1"
                )
        return self

    @model_validator(mode="after")
    def _pools(self):
        for name in self.pools:
            if name in self.domains:
                raise ValueError(
                    f"pools: {name} is among domains already, so that its rows would "
                    "be counted twice; leave it away"
                )
        return self

    @model_validator(mode="after")
    def _apart(self):
        if both := set(self.curve_seeds) & set(self.seeds):
            raise ValueError(
                f"curve_seeds: {min(both)} is among seeds {self.seeds} already; leave it away"
            )
        if self.curve_seeds and "reinit" not in self.experiments:
            raise ValueError(
                "curve_seeds: they are of the part reinit, which experiments lacks; name it there"
            )
        return self


REPORTS: dict[str, type[Study]] = {"exbert": Exbert, "moe": Moe}
