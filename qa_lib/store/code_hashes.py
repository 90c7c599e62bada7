"""Hashes of the code that makes a run, by which a record tells whether other code made it.

A run's numbers come from some modules of the library: those of its rows and batches, its task, its
model, and its training. A record keeps a hash of each. Which modules these are depends on the run's
specification: the sparse layer counts for runs that have one, and for the runs that go on from
them.

A hash is over a module's syntax tree, so layout and comments play no part, and neither do
docstrings and the texts of messages. Two versions of Python may write one tree in two ways, so
hashes are compared within one version alone. The words of generated text count as a module does,
by their bytes.
"""

import ast
import hashlib
import platform
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from qa_lib.settings.params import UserError
from qa_lib.settings.spec import Spec, canonical

LIBRARY = Path(__file__).parent.parent

# The modules of every run.
EVERY_RUN = (
    "data/alter.py",
    "data/batches.py",
    "data/features.py",
    "data/selection.py",
    "losses/extra.py",
    "models/attention.py",
    "models/encoders.py",
    "models/heads.py",
    "tasks/characters.py",
    "tasks/local_metric.py",
    "tasks/metrics.py",
    "tasks/no_answer.py",
    "tasks/sentence.py",
    "tasks/sentence_score.py",
    "tasks/span.py",
    "tasks/span_score.py",
    "training/build.py",
    "training/evaluate.py",
    "training/frozen.py",  # scores the runs that others go on from
    "training/multitask.py",
    "training/train.py",
)
# Those of runs in which a field of Spec is set.
WITH_FIELD = {
    "layer": ("models/exbert.py", "models/st_moe.py"),
    "gate": ("models/gated_mixture.py",),
    "heads": ("models/recomputed_blocks.py", "models/shared_encoder.py"),
    "smart": ("losses/smart.py",),
    "distillation": ("losses/distillation.py",),
    "augment": ("data/augment.py",),
    "cluster": ("training/clusters.py",),
    "layer_decay": ("training/layer_rates.py",),
    "probes": ("training/gradients.py",),
    "teachers": ("training/teachers.py",),
}
# Where rows come from: generated text, or files and hubs.
GENERATED = (
    "data/corpora.py",
    "data/corpora.yaml",
    "data/rewordings.yaml",
    "data/sentences.py",
)
READ = ("data/hub_tables.py", "data/sources.py")

# Calls whose texts are messages; so are all texts in a `raise`.
MESSAGES = {"print", "progress", "warn", "UserError"}


def read_sources() -> dict[str, bytes]:
    """Return the source of every module that may count, by its path in the library."""
    names = {*EVERY_RUN, *GENERATED, *READ}
    for of_field in WITH_FIELD.values():
        names.update(of_field)
    return {name: (LIBRARY / name).read_bytes() for name in sorted(names)}


# As this process started: a file that is edited later is not the code that runs here.
SOURCES = read_sources()


# ---- the hash of a module ----


class TextEmptier(ast.NodeTransformer):
    """Puts an empty text in the place of every text."""

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        """Empty a text. Other constants stay."""
        return ast.Constant("") if isinstance(node.value, str) else node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        """Empty a text that holds values, with the values."""
        return ast.Constant("")


class TextRemover(ast.NodeTransformer):
    """Removes docstrings, and the texts of messages, from a syntax tree."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        """Remove a text that stands alone, as a docstring does."""
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            return None
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """Remove the texts in a call that tells the user something."""
        name = getattr(node.func, "id", None) or getattr(node.func, "attr", None)
        if name in MESSAGES:
            node.args = [TextEmptier().visit(argument) for argument in node.args]
        return self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        """Remove the texts of an error; its type stays."""
        return self.generic_visit(TextEmptier().visit(node))


def hash_source(source: bytes) -> str:
    """Return sixteen digits of the sha256 of a module's syntax tree, without texts for people."""
    try:
        tree = TextRemover().visit(ast.parse(source))
    except SyntaxError:  # a file that is being edited
        return hashlib.sha256(source).hexdigest()[:16]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16]


def hash_file(name: str, source: bytes) -> str:
    """Return the hash of a module, or sixteen digits of the sha256 of a file that is no Python."""
    if name.endswith(".py"):
        return hash_source(source)
    return hashlib.sha256(source).hexdigest()[:16]


@cache
def hash_module(name: str) -> str:
    """Return the hash of a module as this process runs it. name: its path in the library."""
    return hash_file(name, SOURCES[name])


def hash_together(names: Iterable[str]) -> str:
    """Return one hash of several modules."""
    hashes = {name: hash_module(name) for name in names}
    return hashlib.sha256(canonical(hashes).encode()).hexdigest()[:16]


# ---- the code of a run ----


def list_modules(spec: Spec) -> set[str]:
    """Return the modules from which a run's numbers come, without those of its parents."""
    modules = {*EVERY_RUN, *(GENERATED if spec.source == "embedded" else READ)}
    for field, of_field in WITH_FIELD.items():
        if getattr(spec, field):
            modules.update(of_field)
    return modules


def python_version() -> str:
    """Return the version of Python within which hashes are compared."""
    major, minor, _ = platform.python_version_tuple()
    return f"{major}.{minor}"


def describe_code(spec: Spec) -> dict:
    """Return the code by which this process trains a run: Python's version, and module → hash."""
    hashes = {name: hash_module(name) for name in sorted(list_modules(spec))}
    return {"python": python_version(), "modules": hashes}


def join_codes(code: dict | None, other: dict | None) -> dict | None:
    """Return the code of a run that two codes made together.

    other: that of a parent, or of the run's first part. A module that differs has both hashes, so
    that it fits neither code. None, for a code that is not known, makes the result None.
    """
    if code is None or other is None or code["python"] != other["python"]:
        return None
    modules = dict(code["modules"])
    for name, digest in other["modules"].items():
        hashes = {*digest.split("+"), *modules.get(name, digest).split("+")}
        modules[name] = "+".join(sorted(hashes))
    return {"python": code["python"], "modules": modules}


def list_differences(spec: Spec, code: dict | None) -> list[str] | None:
    """Return the modules in which the code that made a run's record differs from this process's.

    code: field `code` of the record, which has the modules of the run's parents too. The result is
    None where the two cannot be compared: the record does not know its code, or another version of
    Python hashed it.
    """
    if code is None or code["python"] != python_version():
        return None
    differing = []
    for name in sorted(list_modules(spec) | set(code["modules"])):
        here = hash_module(name) if name in SOURCES else None
        if code["modules"].get(name) != here:
            differing.append(name)
    return differing


def check_kernel():
    """Raise UserError where a module was edited after a notebook's kernel had loaded it."""
    for name, source in SOURCES.items():
        file = LIBRARY / name
        now = file.read_bytes() if file.exists() else b""
        if now != source and hash_file(name, now) != hash_module(name):
            raise UserError(
                f"qa_lib/{name} was edited after this kernel started, and the kernel runs it as it "
                "was; restart the kernel, then run all cells"
            )
