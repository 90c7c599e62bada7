"""The Hugging Face hub: revisions pinned in params/pins.yaml, errors where it is out of reach."""

import difflib
import os
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from qa_lib.settings.files import write
from qa_lib.settings.params import ROOT, UserError, read_yaml
from qa_lib.settings.spec import digest_file

PINS = ROOT / "params" / "pins.yaml"


def describe_offline(kind: str, repo: str, error: Exception, cure: str | None = None) -> UserError:
    """Return an error about a hub repository that cannot be had, with the cures that apply.

    kind: "dataset" or "model", which is an encoder; repo: may also be a folder's name, mistyped.
    cure: of a hub that is out of reach; None stands for those that a study has.
    """
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    unknown = isinstance(error, RepositoryNotFoundError)
    if unknown:
        why = "it has no public repository of that name"
    elif isinstance(error, RevisionNotFoundError):
        return UserError(
            f"{kind} {repo}: the hub has no such branch, or no longer the revision that "
            "params/pins.yaml names; remove its line there to take the newest, or mend the branch"
        )
    elif isinstance(error, OSError) and "onsistency check" in str(error):
        return UserError(
            f"{kind} {repo}: a file came from the hub cut short; give the same command again, "
            "which fetches what is missing"
        )
    elif cure:
        why = type(error.__cause__ or error).__name__
        return UserError(f"{kind} {repo} cannot be had from the hub ({why}); {cure}")
    else:
        why = type(error.__cause__ or error).__name__
    if kind == "model":
        near = suggest_folder(repo)
        if near:
            cure = f"did you mean {near}?"
        else:
            cure = "name an encoder's folder or minilm, which need no network (PARAMS=encoder=…)"
        if not near and not unknown:
            cure += ", or give the same command once with network, which keeps the files"
        return UserError(
            f"encoder {repo}: there is no such folder, seen from {Path.cwd().name}/, "
            f"and it cannot be had from the hub ({why}); {cure}"
        )
    if unknown:
        cure = "mend its name in params/datasets.yaml"
    else:
        cure = "give the same command once with network and --fetch, or run make data PROFILE=paper"
    return UserError(
        f"dataset {repo} cannot be had from the hub ({why}); {cure}, or use "
        "PROFILE=quick with its own encoder (needs no data) or "
        "PROFILE=real DATA=folder"
    )


def suggest_folder(name: str) -> str:
    """Return the encoder that a mistyped name may mean, or "" where no name is like it.

    Compared are minilm and the folders with a config.json that lie as deep as the named one.
    """
    path = Path(os.path.expanduser(name))
    parent = next(p for p in path.parents if os.path.isdir(p))
    rest = path.relative_to(parent)
    known = {"minilm": "minilm"} if len(path.parts) == 1 else {}
    if len(rest.parts) <= 2:  # deeper would be a search of the whole disk
        pattern = "/".join("*" for _ in rest.parts)
        for config in parent.glob(f"{pattern}/config.json"):
            known[str(config.parent.relative_to(parent))] = str(config.parent)
    near = difflib.get_close_matches(str(rest), known, 1)
    return known[near[0]] if near else ""


def limit_waiting():
    """Let requests to the hub end that are not answered in HF_HUB_DOWNLOAD_TIMEOUT seconds.

    By default some of them wait without end.
    """
    from huggingface_hub import get_session

    hooks = get_session().event_hooks["request"]
    if limit_request not in hooks:
        hooks.append(limit_request)


def limit_request(request: Any):
    """Give a request of the hub's client the time limits that it lacks."""
    from huggingface_hub import constants

    limits = request.extensions.setdefault("timeout", {})
    for step in ("connect", "read", "write", "pool"):
        if limits.get(step) is None:
            limits[step] = constants.HF_HUB_DOWNLOAD_TIMEOUT


def resolve_revision(repo: str, kind: str = "dataset", cure: str | None = None) -> str:
    """Return the pinned commit of a hub repository.

    repo: its id, or "id@branch" for another branch than the main one. At first use the commit is
    resolved, printed and written to params/pins.yaml. kind, cure: as of describe_offline.
    """
    pins = {}
    if PINS.exists():
        pins, _ = read_yaml(PINS)
    if repo in pins:
        if not isinstance(pins[repo], str):
            raise UserError(
                f"params/pins.yaml has no commit for {repo}; remove its line there, and the next "
                "start with network writes it anew"
            )
        return pins[repo]
    from huggingface_hub import HfApi

    limit_waiting()
    name, _, branch = repo.partition("@")
    try:
        info = HfApi().repo_info(name, repo_type=kind, revision=branch or None)
    except Exception as e:  # the library raises many kinds; the user needs one sentence
        raise describe_offline(kind, repo, e, cure) from None
    pins[repo] = info.sha
    comment = "# Commits of hub repositories, written by `make pin` or at first use.\n"
    write(PINS, comment + yaml.safe_dump(pins))
    print(f"pinned {repo} at {pins[repo]} in params/pins.yaml", flush=True)
    return pins[repo]


def fetch_files(repo: str, kind: str, patterns: list[str]) -> Path:
    """Fetch the files of a hub repository at its pinned revision, and return their folder.

    They are kept, and read without network afterwards. kind: as of describe_offline; patterns: of
    the names of the files. Raises UserError where they cannot be had.
    """
    from huggingface_hub import snapshot_download

    commit = resolve_revision(repo, kind)
    limit_waiting()
    try:
        folder = snapshot_download(
            repo.partition("@")[0], repo_type=kind, revision=commit, allow_patterns=patterns
        )
    except Exception as e:  # the library raises many kinds; the user needs one sentence
        raise describe_offline(kind, repo, e) from None
    return Path(folder)


# Cached: data files are large. A kernel may outlive an edit of one (selection.forget_data).
digest_data_file = cache(digest_file)
