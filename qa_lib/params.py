"""Parameters: strict models, YAML files, the identity of a run.

* `Exbert`    one model per report: flat scalars and lists, the same names in YAML, notebook and command line
* `Dataset`   where a dataset's rows come from and how they are split (params/datasets.yaml)
* `Spec`      one training with one seed; `spec.hash` is what the run store looks it up by
* `UserError` one sentence for a user's mistake: what is wrong, where, what to do
"""
import argparse
import contextlib
import difflib
import hashlib
import json
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

ROOT = Path(__file__).resolve().parent.parent
PROFILES = ("quick", "real", "paper")

# Raised by hand when a report's training changes in a way its parameters do not show.
RECIPE = {"exbert": 1}


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


class Exbert(Study):
    """Bring in the ExBERT: mixtures of two domains."""
    report: Literal["exbert"]
    domains: list[str] = Field(min_length=2, max_length=2)
    ratios: list[float]                   # share of the first domain in the training mixture
    start: str | None = None              # dataset that a run shared by all others is trained on first; None: none is
    start_rows: int = Field(gt=0)         # its examples

    @model_validator(mode="after")
    def _ratios(self):
        if bad := [r for r in self.ratios if not 0 <= r <= 1]:
            raise ValueError(f"ratios: {bad[0]} is not a share between 0 and 1")
        return self


REPORTS: dict[str, type[Study]] = {"exbert": Exbert}


class Spec(Strict):
    """One training with one seed. Fields marked `label` do not change its numbers and are not hashed."""
    report: str
    variant: str                          # label
    profile: str                          # label
    size: str                             # label
    ratio: float | None = None            # label: share of the first domain
    model: Literal["span"] = "span"
    seed: int
    source: str                           # label
    folder: str | None = None             # label
    domains: list[str]                    # label
    fingerprints: list[str]               # of the domains: their definition and their files
    rows: list[int]                       # training rows of each domain
    validation_rows: int
    tests: list[str]                      # label: a run may be scored on more sets later
    order: Literal["trainer", "sequential", "shuffled"] = "trainer"
    bad_rows: Literal["stop", "skip"] = "stop"
    encoder: str                          # label
    weights: str                          # the encoder's hash
    blocks: int | None = None
    head_dropout: float = 0.1
    max_length: int
    stride: int
    batch_size: int
    learning_rate: float
    epochs: float
    warmup: float
    weight_decay: float
    clip: float
    precision: Literal["fp32", "bf16"]
    threads: int | Literal["cuda"]
    parents: list["Spec"] = []

    LABELS: ClassVar = frozenset({"variant", "profile", "size", "ratio", "source", "folder", "domains", "tests",
                        "encoder", "parents"})

    @property
    def hash(self) -> str:
        """sha256 over what changes the numbers; fields at their default are left out, so that a new
        field orphans no record."""
        fields = self.model_dump(exclude=set(self.LABELS), exclude_defaults=True)
        fields |= {"recipe": RECIPE[self.report], "parents": [p.hash for p in self.parents]}
        return hashlib.sha256(canonical(fields).encode()).hexdigest()

    @property
    def run(self) -> str:
        """The run's name: variant, mixture, seed and eight digits of the hash."""
        mix = "" if self.ratio is None else f"-{round(100 * self.ratio)}-{100 - round(100 * self.ratio)}"
        return f"{self.variant}{mix}-s{self.seed}-{self.hash[:8]}"

    def on_gpu(self) -> "Spec":
        """The same training on a GPU, where the thread count plays no part."""
        return self.model_copy(update={"threads": "cuda", "parents": [p.on_gpu() for p in self.parents]})


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces; NaN is refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


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
    given = {k: v for k, v in names.items() if not k.startswith("_") and k != "In"
             and (isinstance(v, plain) or isinstance(v, list) and v and all(isinstance(x, plain) for x in v))}
    return validate(REPORTS[slug], given, {k: "notebook parameter " for k in given})


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
