"""Where rows come from: files in a folder, hub datasets at pinned revisions; both in the one schema.

Schema of a row: id, title, context, question, answers {text[], answer_start[]}, is_impossible, domain.
Apart from data.py, which decides what the rows are used for: reading knows formats, splitting knows science.
"""
import gzip
import hashlib
import json
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pandas as pd
import yaml

from qa_lib.params import ROOT, UserError

PINS = ROOT / "params" / "pins.yaml"


def read(path: Path, name: str, bad_rows: str, counts: Counter) -> list[dict]:
    """The rows of a file in the schema. Raises UserError with file, line and reason for a bad row, or counts
    it where `bad_rows` is "skip"."""
    def bad(line: int, reason: str, kind: str):
        if bad_rows == "stop":
            raise UserError(f"{path}, line {line}: {reason}; mend the row, or leave such rows out with bad_rows=skip")
        counts[kind] += 1

    if not path.exists():
        raise UserError(f"{path} does not exist; DATA= names the folder that holds it, DATA.md where to get it")
    if path.suffix == ".parquet":
        raw = enumerate(json.loads(pd.read_parquet(path).to_json(orient="records")), 1)
    elif path.suffix == ".json":
        articles = json.loads(path.read_text())["data"]
        raw = enumerate(({"title": a.get("title", ""), "context": p["context"], **q,
                          "answers": {"text": [x["text"] for x in q["answers"]],
                                      "answer_start": [x["answer_start"] for x in q["answers"]]}}
                         for a in articles for p in a["paragraphs"] for q in p["qas"]), 1)
    else:
        raw = enumerate(gzip.open(path, "rt") if path.suffix == ".gz" else path.open(), 1)
    rows, misplaced = [], []
    for line, row in raw:
        if isinstance(row, str):
            try:
                row = json.loads(row)
            except json.JSONDecodeError as e:
                bad(line, f"not JSON ({e.msg} at column {e.colno})", "malformed")
                continue
        missing = [k for k in ("context", "question", "answers") if k not in row]
        if missing:
            bad(line, f"no field '{missing[0]}'", "incomplete")
            continue
        answers = row["answers"]
        row = {"id": str(row.get("id", f"{name}-{line}")), "title": row.get("title") or "", "domain": name,
               "is_impossible": bool(row.get("is_impossible", False)), **row}
        if any(row["context"][s:s + len(t)] != t for t, s in zip(answers["text"], answers["answer_start"], strict=True)):
            misplaced.append(row["id"])
        else:
            rows.append(row)
    if misplaced and bad_rows == "stop":
        raise UserError(f"{path}: {len(misplaced)} rows have an answer that does not stand at its answer_start, first "
                        f"{', '.join(misplaced[:3])}; mend them, or leave them out with bad_rows=skip")
    counts["misplaced answers"] += len(misplaced)
    return rows


def read_hub(source: str, name: str, counts: Counter) -> list[dict]:
    """Rows of a hub dataset "repo:split" at its pinned revision. Raises UserError where the hub is out of reach."""
    import datasets as hub  # heavy, and needed by profile paper alone

    repo, split = source.split(":")
    try:
        table = hub.load_dataset(repo, split=split, revision=revision(repo))
    except Exception as e:  # the library raises many kinds; the user needs one sentence
        raise offline(f"dataset {repo}", e) from None
    rows = []
    for i, row in enumerate(table):
        if "text" in row:  # "<answer> … <context> …": the answer's offsets are every place it stands at
            answer, context = row.pop("text").removeprefix("<answer>").split("<context>")
            answer, row["context"] = answer.strip(), context.strip()
            starts = [m.start() for m in re.finditer(re.escape(answer), row["context"], re.I)] if answer else []
            row["answers"] = {"text": [row["context"][s:s + len(answer)] for s in starts], "answer_start": starts}
        if not row["answers"]["text"]:
            counts["answer not in the context"] += 1
            continue
        rows.append({"id": f"{split}-{i}", "title": "", "domain": name, "is_impossible": False, **row})
    return rows


def offline(what: str, error: Exception) -> UserError:
    return UserError(f"{what} cannot be had from the hub ({type(error).__name__}); go online once with `make data`, or use "
                     f"PROFILE=quick (needs no data) or PROFILE=real DATA=folder (reads files)")


def revision(repo: str, kind: str = "dataset") -> str:
    """The pinned commit of a hub repository; resolved, announced and written at first use."""
    pins = yaml.safe_load(PINS.read_text()) or {} if PINS.exists() else {}
    if repo not in pins:
        from huggingface_hub import HfApi
        try:
            pins[repo] = HfApi().repo_info(repo, repo_type=kind).sha
        except Exception as e:
            raise offline(f"{kind} {repo} has no pinned revision and", e) from None
        PINS.write_text("# Commits of hub repositories, written by `make pin` or at first use.\n" + yaml.safe_dump(pins))
        print(f"pinned {repo} at {pins[repo]} in params/pins.yaml", flush=True)
    return pins[repo]


@cache
def known_files() -> dict[str, tuple[int, str]]:
    """DATA.md's table: path below DATA → rows, sha256."""
    found = re.findall(r"^\| `([^`]+)` \| ([\d,]+) \| `([0-9a-f]{64})` \|", (ROOT / "DATA.md").read_text(), re.M)
    return {path: (int(rows.replace(",", "")), sha) for path, rows, sha in found}


@cache
def sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


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
