"""What a study fetches from the hub, and the disk that this takes.

Sizes stand under `downloads` in params/datasets.yaml; DATA.md says where they come from.
"""

import shutil
from itertools import chain
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name

from qa_lib.data import selection
from qa_lib.data.hub_tables import parse_place
from qa_lib.settings import params
from qa_lib.settings.encoder_files import find_folder
from qa_lib.settings.parameters import Study
from qa_lib.settings.params import ROOT, UserError


def list_repositories(P: Study) -> dict[str, str]:
    """Return the hub repositories that a study reads: id, with its branch → "dataset" or "model".

    P: the parameters of the study.
    """
    repositories = {}
    if P.source == "hub":
        names = list(chain.from_iterable(P.named_datasets().values()))
        while names:
            d = selection.find_dataset(names.pop(), "hub", None)
            names += d.pool
            for place in d.list_sources():
                repositories[parse_place(place).repo] = "dataset"
    for encoder in P.named_encoders():
        if find_folder(encoder) is None:
            repositories[encoder] = "model"
    return repositories


def is_fetched(repository: str, kind: str) -> bool:
    """Return whether files of a hub repository lie in the cache, and none was left half fetched.

    kind: "dataset" or "model".
    """
    name = repository.partition("@")[0]
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type=kind)
    is_broken_off = any((folder / "blobs").glob("*.incomplete"))
    return (folder / "snapshots").is_dir() and not is_broken_off


def announce_downloads(P: Study):
    """Print how much a study has still to fetch from the hub; nothing where it has all.

    P: the parameters of the study. Raises UserError where the disk of the cache is too small.
    """
    values, _ = params.read_yaml(ROOT / "params" / "datasets.yaml")
    sizes = values["downloads"]
    missing = [name for name, kind in list_repositories(P).items() if not is_fetched(name, kind)]
    if not missing:
        return
    unknown = [name for name in missing if sizes.get(name) is None]
    megabytes = sum(sizes[name] for name in missing if name not in unknown)
    folder = Path(constants.HF_HUB_CACHE)
    line = f"first fetches about {megabytes / 1000:.1f} GB from the hub into {folder}"
    if unknown:
        line += f"; not counted, since their size is not known: {', '.join(unknown)}"
    print(line, flush=True)
    existing = next(place for place in (folder, *folder.parents) if place.is_dir())
    free = shutil.disk_usage(existing).free / 1e6
    if free < megabytes:
        raise UserError(
            f"the disk of {folder} has {free / 1000:.1f} GB free and what is fetched from the hub "
            f"takes about {megabytes / 1000:.1f}; make room, or set HF_HOME to a folder on a "
            "larger disk"
        )
