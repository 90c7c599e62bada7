"""Parameters: strict models, YAML files, command lines.

* `Exbert`    one model per report: flat scalars and lists, the same names in YAML, notebook and command line
* `Dataset`   where a dataset's rows come from and how they are split (params/datasets.yaml)
* `UserError` one sentence for a user's mistake: what is wrong, where, what to do
"""
import argparse
import contextlib
import difflib
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

ROOT = Path(__file__).resolve().parent.parent
PROFILES = ("quick", "real", "paper")

class UserError(Exception):
    """A user's mistake, told in one sentence; command lines exit 2 with it, notebooks show it alone."""

    def _render_traceback_(self):  # IPython's hook: no traceback for a mistake in a parameter
        return [f"UserError: {self}"]


def main(run):
    """Exit with a command line's `run()`: one sentence and 2 on a user's mistake, 130 on Ctrl-C."""
    try:
        sys.exit(run())
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; nothing finished is lost, the same command goes on from here", file=sys.stderr, flush=True)
        os._exit(130)  # an orderly exit would wait for workers that are being ended


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Dataset(Strict):
    """One dataset: sources, splits, and the unit its examples repeat in.

    Validation is carved from training by whole `unit`s; without a test source the test split is carved
    too: `train_rows` rows of whole units train, `validation_share` of the other units validate, the rest test.
    """
    train: list[str]                      # register | files under DATA | hub "repo:split"
    test: list[str] = []
    rows: int | None = None               # embedded only: how many are generated
    leave_out: dict[str, str] = {}        # training rows in which this field has this value are left out
    unit: Literal["title", "question", "context"] = "title"
    train_rows: int | None = None
    validation_share: float = 0.5
    validation_rows: int | None = None
    test_rows: int | None = None          # a fixed sample of whole contexts; None: all
    cluster: Literal["title", "question", "context"] = "context"
    average: Literal["rows", "clusters"] = "rows"   # EM: mean over rows, or within clusters first
    split_seed: int = 0
    seen_by: dict[str, str] = {}          # encoder -> what its card says it saw of this dataset
    licence: str = ""

    @model_validator(mode="after")
    def _splits(self):
        if not self.test and self.train_rows is None:
            raise ValueError("a dataset without a test source needs train_rows")
        return self


class Study(Strict):
    """Parameters every report has; the fields a notebook's parameters cell lists."""
    report: str
    profile: Literal["quick", "real", "paper"]
    size: Literal["small", "full"]
    source: Literal["embedded", "folder", "hub"]
    data: str | None = None               # the folder that `source: folder` reads
    encoder: str                          # minilm | a folder | a hub id
    domains: list[str] = Field(min_length=1)
    seeds: list[int] = Field(min_length=1)
    train_rows: int = Field(gt=0)
    validation_rows: int = Field(gt=0)
    order: Literal["trainer", "sequential", "shuffled"]
    blocks: int | None = Field(None, gt=0)          # encoder blocks kept; None: all
    max_length: int = Field(ge=32)
    stride: int = Field(ge=0)
    batch_size: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    epochs: float = Field(gt=0)
    warmup: float = Field(ge=0, lt=1)               # share of the steps
    weight_decay: float = Field(ge=0)
    clip: float = Field(gt=0)
    precision: Literal["fp32", "bf16"]
    threads: int = Field(gt=0)                      # on CPU; a GPU counts as "cuda"
    bad_rows: Literal["stop", "skip"]

    @model_validator(mode="after")
    def _lengths(self):
        if self.stride >= self.max_length // 2:
            raise ValueError(f"stride: {self.stride} must be below half of max_length {self.max_length}")
        return self


class Layer(Strict):
    """The sparse ST-MoE block between encoder and head (qa_lib/exbert.py). Defaults: the report's, or st-moe-pytorch's."""
    place: Literal["after", "feed_forward"] = "after"   # after the encoder, or in place of its last block's feed-forward layer
    experts: int = Field(16, ge=1)
    width: float = Field(1.0, gt=0)                     # of an expert, in multiples of 8/3 of the encoder's width
    top_n: int = Field(2, ge=1)                         # experts a token is sent to
    threshold: float = Field(0.2, gt=0)                 # weight below which a further expert is drawn, or left out
    capacity_train: float = Field(1.25, gt=0)           # tokens an expert takes, in multiples of an even share
    capacity_eval: float = Field(2.0, gt=0)
    eval_routing: Literal["threshold", "random"] = "threshold"
    route_padding: bool = False
    density: Literal["wanted", "kept"] = "wanted"
    balance: float = Field(1e-2, ge=0)                  # coefficient of the balance loss
    router_z: float = Field(1e-3, ge=0)                 # coefficient of the router z-loss
    norm: bool = True                                   # RMSNorm in front
    feed_forward: Literal["none", "before", "after", "both"] = "after"
    expert_dropout: float = Field(0.0, ge=0, lt=1)
    dropout_at: Literal["none", "before", "after", "both"] = "none"
    layer_dropout: float = Field(0.1, ge=0, lt=1)       # at the places of dropout_at

    @model_validator(mode="after")
    def _top(self):
        if self.top_n > self.experts:
            raise ValueError(f"top_n: {self.top_n} is more than the {self.experts} experts there are")
        return self


class Exbert(Layer, Study):
    """Bring in the ExBERT: mixtures of two domains, a sparse layer, and what could explain its gain."""
    report: Literal["exbert"]
    domains: list[str] = Field(min_length=2, max_length=2)
    experiments: list[str] = Field(min_length=1)        # parts of the study that are run: names in exbert.EXPERIMENTS
    arms: list[Literal["printed", "tuned"]] = Field(min_length=1)
    ratios: list[float] = Field(min_length=1)           # share of the first domain in the training mixture
    control_ratios: list[float]                         # those of the controls and of the order
    centre: float = Field(ge=0, le=1)                   # the mixture of sweeps and trials, of `ratios` the one with all seeds
    side_seeds: list[int] = Field(min_length=1)         # of all runs but V-DB, tuned ExBERT and (a) at the centre
    orders: list[Literal["sequential", "shuffled"]]     # beside the trainer's
    start: str | None = None              # dataset that a run shared by all others is trained on first; None: none is
    start_rows: int = Field(gt=0)         # its examples
    start_rate: float = Field(gt=0)       # its learning rate
    start_threads: int = Field(1, gt=0)   # it trains alone: more than `threads` where there are more cores
    full_rows: list[int]                  # training rows of each domain alone
    sizes: list[int]                      # training rows of the first domain alone
    tuned_blocks: int = Field(gt=0)       # ExBERT as the report tunes it
    tuned_rate: float = Field(gt=0)
    tuned_epochs: float = Field(gt=0)
    tuned_dropout: Literal["none", "before", "after", "both"]
    curve_epochs: float = Field(gt=0)
    sweep_blocks: list[int]
    sweep_experts: list[int]
    sweep_rates: list[float]              # multiples of the plain rate
    sweep_dropout: list[Literal["none", "before", "after", "both"]]
    sweep_dropout_rates: list[float]
    sweep_balance: list[float]
    trial_rates: list[float]              # arm tuned: the same trials for every model
    trial_epochs: list[float]

    @model_validator(mode="after")
    def _ratios(self):
        for name in ("ratios", "control_ratios"):
            if bad := [r for r in getattr(self, name) if not 0 <= r <= 1]:
                raise ValueError(f"{name}: {bad[0]} is not a share between 0 and 1")
        return self


REPORTS: dict[str, type[Study]] = {"exbert": Exbert}


def read_yaml(path: Path) -> tuple[dict, dict[str, int]]:
    """A YAML mapping and the line of each of its top-level keys."""
    shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    try:
        text = path.read_text()
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        value = yaml.safe_load(text) or {}
    except FileNotFoundError:
        raise UserError(f"{shown} does not exist: this report has no such profile yet") from None
    except yaml.YAMLError as e:
        raise UserError(f"{shown} is not valid YAML: {' '.join(str(e).split())}") from None
    return value, {k.value: k.start_mark.line + 1 for k, _ in (node.value if node else [])}


def validate(model: type[Strict], values: dict, where: dict[str, str]) -> Any:
    """`model(**values)`, or a UserError that names the first wrong value and where it was written."""
    try:
        return model(**values)
    except ValidationError as e:
        error = e.errors()[0]
    key = str(error["loc"][0]) if error["loc"] else ""
    place = where.get(key, "")
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, model.model_fields, 1)
        hint = f"did you mean {near[0]}?" if near else "known: " + ", ".join(model.model_fields)
        raise UserError(f"{place}{key} is not a parameter; {hint}")
    if error["type"] == "missing":
        raise UserError(f"{place}{key} is missing; give it a value")
    text = error["input"]
    if isinstance(text, str) and error["type"] in ("float_type", "int_type"):
        with contextlib.suppress(ValueError):
            point = repr(float(text)) if "." in repr(float(text)) else repr(float(text)).replace("e", ".0e")
            raise UserError(f"{place}{key}: '{text}' is read as text, not as a number; write {point} (YAML wants a point)")
    message = error["msg"].removeprefix("Value error, ")
    if not key:  # a rule over several fields: its sentence begins with the one to change
        raise UserError(f"{where.get(message.split(':')[0], '')}{message}")
    raise UserError(f"{place}{key}: {text!r}: {message[0].lower() + message[1:]}")


def load(slug: str, profile: str | None = None, overrides: dict | None = None, size: str | None = None,
         where: str = "-p ") -> Any:
    """The validated parameters of a report.

    params/<slug>.yaml holds the report's own settings (profile paper), params/<profile>/<slug>.yaml what the
    profile changes; its mapping `small` holds what `size: small` changes on top.
    """
    if slug not in REPORTS:
        raise UserError(f"'{slug}' is not a report of this study; known: {', '.join(REPORTS)}")
    profile = profile or default_profile()
    if profile not in PROFILES:
        raise UserError(f"PROFILE={profile} is not a profile; known: {', '.join(PROFILES)}")
    values, places, folders = {}, {}, [""] if profile == "paper" else ["", profile]
    for file in [ROOT / "params" / folder / f"{slug}.yaml" for folder in folders]:
        new, lines = read_yaml(file)
        small = new.pop("small", {})
        wanted = (overrides or {}).get("size") or size or new.get("size") or values.get("size")
        for layer in [new, small if wanted == "small" else {}]:
            values |= layer
            line = lines.get("small") if layer is small else None
            places |= {k: f"{file.relative_to(ROOT)}, line {line or lines[k]}: " for k in layer}
    given = {"profile": profile} | ({"size": size} if size else {}) | (overrides or {})
    return validate(REPORTS[slug], values | given, places | {k: where for k in given})


def from_names(slug: str, names: dict[str, Any]) -> Any:
    """Parameters from a notebook's names: every public scalar, or list of them, must be a parameter.

    Papermill only warns about a parameter it does not know; this refuses it.
    """
    plain = (str, int, float, type(None))
    model = REPORTS[slug]
    given = {k: v for k, v in names.items() if not k.startswith("_") and k != "In" and (isinstance(v, plain) or isinstance(v, list)
             and (v or k in model.model_fields) and all(isinstance(x, plain) for x in v))}
    return validate(model, given, {k: "notebook parameter " for k in given})


def default_profile() -> str:
    import torch  # only where nothing was said does the choice look at the machine
    return "paper" if torch.cuda.is_available() else "quick"


@cache
def datasets(source: str) -> dict[str, Dataset]:
    """The datasets of a source, from params/datasets.yaml."""
    values, lines = read_yaml(ROOT / "params" / "datasets.yaml")
    place = f"params/datasets.yaml, line {lines[source]}: {source}: "
    return {name: validate(Dataset, fields, {k: f"{place}{name}: " for k in fields})
            for name, fields in values[source].items()}


def add_arguments(parser: argparse.ArgumentParser):
    """The choices every command line takes."""
    parser.add_argument("report", help=", ".join(REPORTS))
    parser.add_argument("--profile", help="quick | real | paper")
    parser.add_argument("--size", help="small | full (profile real)")
    parser.add_argument("--data", help="folder of real datasets")
    parser.add_argument("-p", action="append", default=[], metavar="KEY=VALUE", help="one parameter")


def from_args(args: argparse.Namespace, size: str | None = None) -> Any:
    """The parameters that a parsed command line asks for; `size` is used where it names none."""
    if bad := [item for item in args.p if "=" not in item]:
        raise UserError(f"-p {bad[0]}: write -p key=value")
    given = {key: yaml.safe_load(text) for key, _, text in (item.partition("=") for item in args.p)}
    if args.data:
        given["data"] = str(Path(args.data).resolve())
    real = (profile := args.profile or default_profile()) == "real"
    return load(args.report, profile, given, (args.size or size) if real else None)
