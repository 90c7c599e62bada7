"""Where rows come from: files in a folder, hub datasets at pinned revisions; both in the one schema.

Schema of a row: id, title, context, question, answers {text[], answer_start[]}, is_impossible, domain.
Apart from data.py, which decides what the rows are used for: reading knows formats, splitting knows science.
"""
import difflib
import gzip
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pandas as pd
import yaml

from qa_lib import runs
from qa_lib.params import ROOT, UserError
from qa_lib.spec import digest

PINS = ROOT / "params" / "pins.yaml"
FORMATS = "JSON Lines (.jsonl, .jsonl.gz), Parquet (.parquet) or nested SQuAD JSON (.json)"


def unread(path: Path) -> Iterator[dict | str]:
    """What a file holds, row after row; of JSON Lines the lines themselves. Raises UserError where it is of no known format."""
    if not path.name.endswith((".jsonl", ".jsonl.gz", ".json", ".parquet")):
        raise UserError(f"{path}: its name has none of the known endings; a file is {FORMATS}")
    try:
        if path.suffix == ".parquet":
            yield from json.loads(pd.read_parquet(path).to_json(orient="records"))
        elif path.suffix == ".json":
            for article in json.loads(path.read_text(encoding="utf-8"))["data"]:
                for p in article["paragraphs"]:
                    for q in p["qas"]:
                        answers = {k: [x[k] for x in q["answers"]] for k in ("text", "answer_start")}
                        yield {"title": article.get("title", ""), "context": p["context"], **q, "answers": answers}
        else:
            with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
                yield from lines
    except (OSError, EOFError, ValueError, KeyError, TypeError, zlib.error) as e:
        reason = f"no field {e}" if isinstance(e, KeyError) else " ".join(str(e).split())
        hint = "; one row a line is a .jsonl" if path.suffix == ".json" else ""
        raise UserError(f"{path} cannot be read ({reason}){hint}; a file is {FORMATS}") from None


def flaw(row) -> str:
    """What is wrong with the form of a row, in a few words; empty where nothing is."""
    if not isinstance(row, dict):
        return "not an object {…}"
    if missing := [k for k in ("context", "question", "answers") if k not in row]:
        return f"no field '{missing[0]}' among {', '.join(map(str, row)) or 'none'}"
    if wrong := [k for k in ("context", "question") if not isinstance(row[k], str) or not row[k].strip()]:
        return f"field '{wrong[0]}' holds no text"
    answers = row["answers"] if isinstance(row["answers"], dict) else {}
    text, start = answers.get("text"), answers.get("answer_start")
    whole = isinstance(text, list) and isinstance(start, list) and len(text) == len(start)
    if not whole or not all(isinstance(t, str) and t for t in text) or not all(isinstance(s, int) and s >= 0 for s in start):
        return "field 'answers' is not {\"text\": [texts], \"answer_start\": [as many whole numbers]}"
    return "is_impossible, and yet it has answers" if row.get("is_impossible") and text else ""


def read(path: Path, name: str, bad_rows: str, counts: Counter) -> list[dict]:
    """The rows of a file in the schema. Raises UserError with file, line and reason for a bad row, or counts
    it where `bad_rows` is "skip"."""
    def bad(line: int, reason: str, kind: str):
        if bad_rows == "stop":
            raise UserError(f"{path}, {word} {line}: {reason}; mend the row, or leave such rows out with PARAMS=bad_rows=skip")
        counts[kind] += 1

    if not path.exists():
        raise UserError(f"{path} does not exist; DATA= names the folder that holds it, DATA.md where to get it")
    rows, misplaced, word = [], [], "row" if path.suffix in (".json", ".parquet") else "line"
    for line, row in enumerate(unread(path), 1):
        if isinstance(row, str):
            if not row.strip():                          # an editor's empty last line is no row
                continue
            try:
                row = json.loads(row.strip())
            except json.JSONDecodeError as e:
                bad(line, f"not JSON ({e.msg} at column {e.colno})", "malformed")
                continue
        if reason := flaw(row):
            bad(line, reason, "incomplete")
            continue
        answers = row["answers"]
        given = row.get("id")
        row = {**row, "id": f"{name}-{line}" if given is None else str(given), "title": str(row.get("title") or ""),
               "domain": name, "is_impossible": bool(row.get("is_impossible")) or not answers["text"]}
        if off := [x for x in zip(answers["text"], answers["answer_start"], strict=True) if not row["context"].startswith(*x)]:
            at, (text, start) = row["context"].find(off[0][0]), off[0]
            place = f"stands at {at}, not at {start}" if at >= 0 else "is nowhere in the context"
            misplaced.append((row["id"], f"'{text[:40]}' {place}"))
        else:
            rows.append(row)
    if misplaced and bad_rows == "stop":
        raise UserError(f"{path}: {len(misplaced)} rows have an answer that does not stand at its answer_start, first "
                        f"{', '.join(x for x, _ in misplaced[:3])} (of the first, {misplaced[0][1]}); mend them, or leave them "
                        "out with PARAMS=bad_rows=skip")
    counts["misplaced answers"] += len(misplaced)
    return rows


def read_hub(source: str, name: str, counts: Counter) -> list[dict]:
    """Rows of a hub dataset "repo:split" at its pinned revision. Raises UserError where the hub is out of reach."""
    import datasets as hub  # heavy, and needed by profile paper alone

    repo, split = source.split(":")
    commit = revision(repo)
    try:
        table = hub.load_dataset(repo, split=split, revision=commit)
    except Exception as e:  # the library raises many kinds; the user needs one sentence
        raise offline("dataset", repo, e) from None
    rows = []
    for i, row in enumerate(table):
        if "text" in row:  # "<answer> … <context> …": the answer's offsets are every place it stands at
            answer, _, context = row.pop("text").removeprefix("<answer>").partition("<context>")
            answer, row["context"] = answer.strip(), context.strip()
            starts = [m.start() for m in re.finditer(re.escape(answer), row["context"], re.I)] if answer else []
            row["answers"] = {"text": [row["context"][s:s + len(answer)] for s in starts], "answer_start": starts}
        if not row["answers"]["text"]:
            counts["answer not in the context"] += 1
            continue
        rows.append({"id": f"{split}-{i}", "title": "", "domain": name, "is_impossible": False, **row})
    return rows


def offline(kind: str, repo: str, error: Exception) -> UserError:
    """One sentence about a hub repository that cannot be had, with the cures that apply.

    kind: "dataset" or "model", which is an encoder; repo may be the name of a folder, mistyped.
    """
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    unknown = isinstance(error, (RepositoryNotFoundError, DatasetNotFoundError))
    if unknown:
        why = "it has no public repository of that name"
    elif isinstance(error, RevisionNotFoundError):
        return UserError(f"{kind} {repo}: the hub no longer has the revision that params/pins.yaml "
                         "names; remove its line there to take the newest")
    else:
        why = type(error).__name__
    if kind == "model":
        near = suggest_folder(repo)
        if near:
            cure = f"did you mean {near}?"
        else:
            cure = "name an encoder's folder or minilm, which need no network (PARAMS=encoder=…)"
        if not near and not unknown:
            cure += ", or give the same command once with network, which keeps the files"
        return UserError(f"encoder {repo}: there is no such folder, seen from {Path.cwd().name}/, "
                         f"and it cannot be had from the hub ({why}); {cure}")
    if unknown:
        cure = "mend its name in params/datasets.yaml"
    else:
        cure = "run make data with network once, with the same PROFILE and PARAMS"
    return UserError(f"dataset {repo} cannot be had from the hub ({why}); {cure}, or use "
                     "PROFILE=quick with its own encoder (needs no data) or "
                     "PROFILE=real DATA=folder")


def suggest_folder(name: str) -> str:
    """The encoder that a mistyped name may mean; empty where none is like it.

    Known are minilm and the folders with a config.json that lie as deep as the named one.
    """
    path = Path(os.path.expanduser(name))
    parent = next(p for p in path.parents if p.is_dir())
    rest = path.relative_to(parent)
    known = {"minilm": "minilm"} if len(path.parts) == 1 else {}
    if len(rest.parts) <= 2:        # deeper would be a search of the whole disk
        pattern = "/".join("*" for _ in rest.parts)
        for config in parent.glob(f"{pattern}/config.json"):
            known[str(config.parent.relative_to(parent))] = str(config.parent)
    near = difflib.get_close_matches(str(rest), known, 1)
    return known[near[0]] if near else ""


def revision(repo: str, kind: str = "dataset") -> str:
    """The pinned commit of a hub repository; resolved, announced and written at first use."""
    pins = yaml.safe_load(PINS.read_text()) or {} if PINS.exists() else {}
    if repo not in pins:
        from huggingface_hub import HfApi
        try:
            pins[repo] = HfApi().repo_info(repo, repo_type=kind).sha
        except Exception as e:
            raise offline(kind, repo, e) from None
        runs.write(PINS, "# Commits of hub repositories, written by `make pin` or at first use.\n" + yaml.safe_dump(pins))
        print(f"pinned {repo} at {pins[repo]} in params/pins.yaml", flush=True)
    return pins[repo]


@cache
def known_files() -> dict[str, tuple[int, str]]:
    """DATA.md's table: path below DATA → rows, sha256."""
    found = re.findall(r"^\| `([^`]+)` \| ([\d,]+) \| `([0-9a-f]{64})` \|", (ROOT / "DATA.md").read_text(), re.M)
    return {path: (int(rows.replace(",", "")), sha) for path, rows, sha in found}


sha256 = cache(digest)     # data are large, and stay as they are while a process lives


def check(folder: str) -> int:
    """Compare every file of a folder with DATA.md; returns the exit code."""
    if not any((Path(folder) / f).exists() for f in known_files()):
        raise UserError(f"{folder} holds none of the files that DATA.md lists; DATA= names the folder above qa/ and nlu/")
    wrong = 0
    for file, (rows, sha) in known_files().items():
        path = Path(folder) / file
        if not path.exists():
            state = "absent"
        elif sha256(path) != sha:
            state, wrong = "DIFFERS from DATA.md", wrong + 1
        else:
            with gzip.open(path) as f:
                lines = sum(1 for _ in f)
            state = "ok" if lines == rows else f"{lines} rows, DATA.md says {rows}"
            wrong += lines != rows
        print(f"{file:45} {state}")
    return 1 if wrong else 0
