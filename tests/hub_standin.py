"""A stand-in for the Hugging Face hub on loopback: repositories of the ids that the study names.

It answers what `huggingface_hub` asks to resolve a revision, to list its files and to fetch them.
Datasets have the columns, parts and splits of their ids; models have the form of theirs, narrow and
with random weights. All texts are made here.
"""

import hashlib
import io
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import datasets
import torch
from datasets import ClassLabel, Features, List, Sequence, Value
from safetensors.torch import save as save_tensors
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModelForMaskedLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

KINDS = {"datasets": "dataset", "models": "model"}
WORDS = """mill river stone bridge miller flour wheel water market town road cart horse bread oven
baker field wheat harvest barn farmer spring summer autumn winter rain snow wind""".split()
PARQUET = "refs/convert/parquet"


class Hub:
    """The server, and what it has: (kind, id) → branch or commit → file name → content."""

    def __init__(self):
        self.repos: dict[tuple[str, str], dict[str, dict[str, bytes]]] = {}
        self.branches: dict[tuple[str, str], dict[str, str]] = {}
        self.cut: set[str] = set()  # files of which half is sent
        self.silent: set[str] = set()  # repositories for which nothing is answered
        self.asked: list[str] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self.make_handler())
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self):
        """Stop answering."""
        self.server.shutdown()
        self.server.server_close()

    def add(self, kind: str, repo: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Add a commit to a branch of a repository, and return it."""
        content = [(name, hashlib.sha256(files[name]).hexdigest()) for name in sorted(files)]
        commit = hashlib.sha1(json.dumps([kind, repo, content]).encode()).hexdigest()
        self.repos.setdefault((kind, repo), {})[commit] = files
        self.branches.setdefault((kind, repo), {})[branch] = commit
        return commit

    def find_commit(self, kind: str, repo: str, revision: str) -> tuple[str, str]:
        """Return (commit, "") of a branch or commit, or ("", error of the hub)."""
        if (kind, repo) not in self.repos:
            return "", "RepoNotFound"
        commit = self.branches[kind, repo].get(revision, revision)
        return (commit, "") if commit in self.repos[kind, repo] else ("", "RevisionNotFound")

    def make_handler(self) -> type:
        """Return the class that answers requests."""
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_HEAD(self):
                self.answer()

            def do_GET(self):
                self.answer()

            def answer(self):
                path = unquote(self.path.partition("?")[0])
                hub.asked.append(path)
                listed = re.fullmatch(r"/api/(models|datasets)/(.+?)(/(revision|tree)/(.+))?", path)
                fetched = re.fullmatch(r"/(datasets/)?(.+?)/resolve/([^/]+)/(.+)", path)
                if listed:
                    kind, repo, _, what, revision = listed.groups()
                    self.send_listing(KINDS[kind], repo, what, revision or "main")
                elif fetched:
                    kind = "dataset" if fetched[1] else "model"
                    self.send_file(kind, *fetched.groups()[1:])
                else:
                    self.send_content(404, b"", {"X-Error-Code": "RepoNotFound"})

            def send_listing(self, kind: str, repo: str, what: str | None, revision: str):
                if repo in hub.silent:
                    time.sleep(3)
                    self.close_connection = True
                    return
                commit, error = hub.find_commit(kind, repo, revision)
                if error:
                    self.send_content(404, b"{}", {"X-Error-Code": error})
                    return
                files = hub.repos[kind, repo][commit]
                if what == "tree":
                    entries = []
                    for name, content in files.items():
                        entry = {"type": "file", "path": name, "size": len(content)}
                        entries.append(entry | {"oid": hashlib.sha1(content).hexdigest()})
                    self.send_json(entries)
                else:
                    siblings = [{"rfilename": name} for name in files]
                    self.send_json({"id": repo, "sha": commit, "siblings": siblings})

            def send_file(self, kind: str, repo: str, revision: str, name: str):
                commit, error = hub.find_commit(kind, repo, revision)
                if not error and name not in hub.repos[kind, repo][commit]:
                    error = "EntryNotFound"
                if error:
                    self.send_content(404, b"", {"X-Error-Code": error})
                    return
                content = hub.repos[kind, repo][commit][name]
                headers = {
                    "X-Repo-Commit": commit,
                    "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
                }
                if f"{repo}/{name}" in hub.cut and self.command == "GET":
                    content = content[: len(content) // 2]
                self.send_content(200, content, headers)

            def send_json(self, value):
                self.send_content(200, json.dumps(value).encode(), {})

            def send_content(self, status: int, content: bytes, headers: dict[str, str]):
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content)

        return Handler


# ---- datasets ----


def write_parquet(rows: list[dict], features: Features) -> bytes:
    """Return rows as the content of a Parquet file, with the features that the hub's have."""
    file = io.BytesIO()
    datasets.Dataset.from_list(rows, features=features).to_parquet(file)
    return file.getvalue()


def write_readme(parts: dict[str, list[str]], folders: bool = True) -> bytes:
    """Return a README that names parts with their splits, whose files lie in folders of the name.

    folders: else the files of the one part lie in data/.
    """
    lines = ["---", "configs:"]
    for part, splits in parts.items():
        lines += [f"- config_name: {part}", "  data_files:"]
        for split in splits:
            lines += [f"  - split: {split}", f"    path: {part if folders else 'data'}/{split}-*"]
    return "\n".join([*lines, "---", ""]).encode()


def make_repo(
    parts: dict[str, dict[str, list[dict]]], features: dict[str, Features], folders: bool = True
) -> dict[str, bytes]:
    """Return the files of a repository in Parquet. parts: part → split → rows."""
    splits = {part: list(of_part) for part, of_part in parts.items()}
    files = {"README.md": write_readme(splits, folders)}
    for part, of_part in parts.items():
        for split, rows in of_part.items():
            name = f"{part if folders else 'data'}/{split}-00000-of-00001.parquet"
            files[name] = write_parquet(rows, features[part])
    return files


def say(number: int, words: int = 8) -> str:
    """Return a sentence of some words that no other number has."""
    picked = [WORDS[(number * 7 + i * (1 + number % 5)) % len(WORDS)] for i in range(words)]
    return f"The {' '.join(picked)} of year {number}."


TEXT = Value("string")
SPANS = Sequence({"text": TEXT, "answer_start": Value("int32")})
SQUAD = Features({"id": TEXT, "title": TEXT, "context": TEXT, "question": TEXT, "answers": SPANS})
RANGES = Sequence({"start": Value("int32"), "end": Value("int32")})
MRQA = Features(
    {
        "subset": TEXT,
        "context": TEXT,
        "context_tokens": Sequence({"tokens": TEXT, "offsets": Value("int32")}),
        "qid": TEXT,
        "question": TEXT,
        "question_tokens": Sequence({"tokens": TEXT, "offsets": Value("int32")}),
        "detected_answers": Sequence({"text": TEXT, "char_spans": RANGES, "token_spans": RANGES}),
        "answers": List(TEXT),
    }
)
QUAC = Features(
    {
        "dialogue_id": TEXT,
        "wikipedia_page_title": TEXT,
        "background": TEXT,
        "section_title": TEXT,
        "context": TEXT,
        "turn_ids": List(TEXT),
        "questions": List(TEXT),
        "followups": List(ClassLabel(names=["y", "n", "m"])),
        "yesnos": List(ClassLabel(names=["y", "n", "x"])),
        "answers": Sequence({"texts": List(TEXT), "answer_starts": List(Value("int32"))}),
        "orig_answers": {"texts": List(TEXT), "answer_starts": List(Value("int32"))},
    }
)
ZRE = Features(
    {"relation": TEXT, "question": TEXT, "subject": TEXT, "context": TEXT, "answers": List(TEXT)}
)


def name_classes(*names: str) -> ClassLabel:
    return ClassLabel(names=list(names))


NLI = {
    "premise": TEXT,
    "hypothesis": TEXT,
    "label": name_classes("entailment", "neutral", "contradiction"),
}
PARTS_OF_GLUE = {
    "mnli": Features(NLI | {"idx": Value("int32")}),
    "qqp": Features(
        {
            "question1": TEXT,
            "question2": TEXT,
            "label": name_classes("not_duplicate", "duplicate"),
            "idx": Value("int32"),
        }
    ),
    "stsb": Features(
        {"sentence1": TEXT, "sentence2": TEXT, "label": Value("float32"), "idx": Value("int32")}
    ),
}


def make_questions(first: int, count: int, answerable: bool = True) -> list[dict]:
    """Return rows of SQuAD, five to a title. Of SQuAD 2.0 every third has no answer."""
    rows = []
    for number in range(first, first + count):
        context = say(number)
        answers = {"text": [str(number)], "answer_start": [context.index(str(number))]}
        if not answerable and number % 3 == 0:
            answers = {"text": [], "answer_start": []}
        rows.append(
            {
                "id": f"id{number}",
                "title": f"Title {number // 5}",
                "context": context,
                "question": f"In which year was the {WORDS[number % len(WORDS)]} of {number}?",
                "answers": answers,
            }
        )
    return rows


def make_mrqa(subset: str, first: int, count: int) -> list[dict]:
    """Return rows of a subset of MRQA 2019. A span ends with its last character."""
    rows = []
    for row in make_questions(first, count):
        text = row["answers"]["text"][0]
        start = row["answers"]["answer_start"][0]
        spans = {"start": [start], "end": [start + len(text) - 1]}
        rows.append(
            {
                "subset": subset,
                "context": row["context"],
                "context_tokens": {"tokens": ["The"], "offsets": [0]},
                "qid": f"{subset}-{row['id']}",
                "question": row["question"],
                "question_tokens": {"tokens": ["In"], "offsets": [0]},
                "detected_answers": {"text": [text], "char_spans": [spans], "token_spans": [spans]},
                "answers": [text],
            }
        )
    return rows


def make_dialogues(first: int, count: int) -> list[dict]:
    """Return dialogues of QuAC, of two turns each, the second without an answer."""
    rows = []
    for number in range(first, first + count):
        context = f"{say(number)} CANNOTANSWER"
        turns = []
        for text in (str(number), "CANNOTANSWER"):
            turns.append({"texts": [text], "answer_starts": [context.index(text)]})
        rows.append(
            {
                "dialogue_id": f"d{number}",
                "wikipedia_page_title": f"Title {number}",
                "background": "",
                "section_title": "",
                "context": context,
                "turn_ids": [f"d{number}_q#0", f"d{number}_q#1"],
                "questions": [f"In which year, of {number}?", "Are there other aspects?"],
                "followups": [0, 2],
                "yesnos": [2, 0],
                "answers": turns,
                "orig_answers": {"texts": [str(number), "CANNOTANSWER"], "answer_starts": [0, 0]},
            }
        )
    return rows


def make_relations(first: int, count: int) -> list[dict]:
    """Return rows of QA-ZRE, whose questions name their subject XXX. Every other has no answer."""
    rows = []
    for number in range(first, first + count):
        rows.append(
            {
                "relation": "inception",
                "question": "In which year was XXX built?",
                "subject": f"the {WORDS[number % len(WORDS)]}",
                "context": say(number),
                "answers": [str(number)] if number % 2 else [],
            }
        )
    return rows


def make_pairs(names: tuple[str, str], first: int, count: int, classes: int, **more) -> list[dict]:
    """Return rows of two texts and a class. more: further fields."""
    rows = []
    for number in range(first, first + count):
        texts = {names[0]: say(number), names[1]: say(number + 10**7)}
        rows.append(texts | {"label": number % classes, **more})
    return rows


def make_datasets(rows: int, few: int = 700) -> dict[tuple[str, str], dict[str, bytes]]:
    """Return (id, branch) → files of every dataset that the study names on the hub.

    rows: of each training split; few: of each other split, and of the few-shot sets.
    """
    repos = {}

    def split_rows(make, *args, **kwargs) -> dict[str, list[dict]]:
        return {
            "train": make(*args, first=10**6, count=rows, **kwargs),
            "validation": make(*args, first=3 * 10**6, count=few, **kwargs),
        }

    squad = split_rows(make_questions)
    repos["rajpurkar/squad", "main"] = make_repo({"plain_text": squad}, {"plain_text": SQUAD})
    squad2 = split_rows(make_questions, answerable=False)
    repos["rajpurkar/squad_v2", "main"] = make_repo({"squad_v2": squad2}, {"squad_v2": SQUAD})
    mrqa = {"train": [], "validation": [], "test": []}
    for subset in ("NewsQA", "NaturalQuestionsShort", "TriviaQA-web", "HotpotQA"):
        of_subset = split_rows(make_mrqa, subset)
        for split, of_split in of_subset.items():
            mrqa[split] += of_split
    for place, subset in enumerate(("DuoRC.ParaphraseRC", "RACE", "RelationExtraction")):
        mrqa["test"] += make_mrqa(subset, first=(5 + place) * 10**6, count=few)
    repos["mrqa-workshop/mrqa", "main"] = make_repo({"plain_text": mrqa}, {"plain_text": MRQA})
    quac = split_rows(make_dialogues)
    files = {f"plain_text/{s}/0000.parquet": write_parquet(r, QUAC) for s, r in quac.items()}
    repos["allenai/quac", PARQUET] = files
    repos["allenai/quac", "main"] = {"quac.py": b"raise SystemExit", "README.md": b""}
    zre = split_rows(make_relations)
    zre["test"] = zre.pop("validation")
    repos["community-datasets/qa_zre", "main"] = make_repo(
        {"default": zre}, {"default": ZRE}, folders=False
    )
    bioasq = []
    for number in range(rows):
        text = f"<answer> {number} <context> {say(number)}"
        bioasq.append({"question": f"In which year, of {number}?", "text": text})
    names = Features({"question": TEXT, "text": TEXT})
    half = {"train": bioasq[: rows // 2], "validation": bioasq[rows // 2 :]}
    repos["kroshan/BioASQ", "main"] = make_repo({"default": half}, {"default": names}, False)
    mnli = split_rows(make_pairs, ("premise", "hypothesis"), classes=3, idx=0)
    mnli["validation_matched"] = mnli.pop("validation")
    glue = {
        "mnli": mnli,
        "qqp": split_rows(make_pairs, ("question1", "question2"), classes=2, idx=0),
        "stsb": split_rows(make_pairs, ("sentence1", "sentence2"), classes=6, idx=0),
    }
    repos["nyu-mll/glue", "main"] = make_repo(glue, PARTS_OF_GLUE)
    snli = split_rows(make_pairs, ("premise", "hypothesis"), classes=3)
    snli["test"] = snli.pop("validation")
    snli["train"][0]["label"] = -1
    repos["stanfordnlp/snli", "main"] = make_repo(
        {"plain_text": snli}, {"plain_text": Features(NLI)}
    )
    reviews = {}
    for split, first, count in (("train", 10**6, rows), ("validation", 2 * 10**6, few)):
        reviews[split] = [
            {"text": say(n), "label": n % 5, "label_text": "x"} for n in range(first, first + count)
        ]
    reviews["test"] = reviews["validation"]
    stars = [{name: row[name] for name in ("text", "label")} for row in reviews["train"]]
    amazon = {"train": stars, "test": stars[:few]}
    features = Features({"text": TEXT, "label": Value("int64")})
    repos["mteb/AmazonReviewsClassification", "main"] = make_repo(
        {"de": amazon, "en": amazon}, {"de": features, "en": features}
    )
    sst = {}
    for split, name in (("train", "train"), ("validation", "dev"), ("test", "test")):
        lines = [json.dumps(row) for row in reviews[split]]
        sst[f"{name}.jsonl"] = "\n".join(lines).encode()
    repos["SetFit/sst5", "main"] = sst
    imdb = {}
    for split, name in (("train", "train"), ("validation", "dev"), ("test", "test")):
        lines = ["Sentiment\tText"]
        for number, row in enumerate(reviews[split]):
            lines.append(f"{('Negative', 'Positive')[number % 2]}\t{row['text']}")
        imdb[f"{name}.tsv"] = "\n".join(lines).encode()
    repos["tasksource/counterfactually-augmented-imdb", "main"] = imdb
    return repos


# ---- models ----


def train_tokenizer(kind: str, texts: list[str]) -> Tokenizer:
    """Return a small tokenizer. kind: "wordpiece", as of BERT, or "unigram", as of ALBERT."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    if kind == "unigram":
        special[:2] = ["<pad>", "<unk>"]
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.Lowercase()
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False
        )
    else:
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(
            vocab_size=300, special_tokens=special, show_progress=False
        )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return tokenizer


def make_model(architecture: str, layers: int, folder: Path) -> dict[str, bytes]:
    """Return the files of a narrow model, as old as those of its id.

    The weights have the prefix of a model with a head, and BERT's norms their first names. The
    tokenizer's configuration says nothing of its class.
    """
    kind = "unigram" if architecture == "albert" else "wordpiece"
    tokenizer = train_tokenizer(kind, [say(number) for number in range(500)])
    sizes = {
        "vocab_size": tokenizer.get_vocab_size(),
        "pad_token_id": 0,
        "max_position_embeddings": 512,
    }
    if architecture == "distilbert":
        sizes |= {"dim": 16, "n_layers": layers, "n_heads": 2, "hidden_dim": 32}
    else:
        sizes |= {
            "hidden_size": 16,
            "embedding_size": 8,
            "num_hidden_layers": layers,
            "num_attention_heads": 2,
            "intermediate_size": 32,
        }
    config = CONFIG_MAPPING[architecture](**sizes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForMaskedLM.from_config(config)
    weights = {}
    for name, value in model.state_dict().items():
        if architecture == "bert":
            name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
            name = name.replace("LayerNorm.bias", "LayerNorm.beta")
        weights[name] = value.clone().contiguous()
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    return {
        "config.json": (folder / "config.json").read_bytes(),
        "model.safetensors": save_tensors(weights, {"format": "pt"}),
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": b'{"do_lower_case": true, "model_max_length": 512}',
    }


# Id and branch → architecture and blocks of the encoders that the reports name.
ENCODERS = {
    ("distilbert-base-uncased", "main"): ("distilbert", 6),
    ("bert-base-uncased", "main"): ("bert", 2),
    ("bert-large-uncased", "main"): ("bert", 3),
    ("google/electra-large-discriminator", "refs/pr/2"): ("electra", 2),
    ("google/electra-base-discriminator", "main"): ("electra", 2),
    ("albert-large-v2", "main"): ("albert", 3),
}


def fill_hub(hub: Hub, rows: int, few: int, folder: Path):
    """Add every dataset and every encoder that the study names. folder: an empty one."""
    for (repo, branch), files in make_datasets(rows, few).items():
        hub.add("dataset", repo, files, branch)
    for (repo, branch), (architecture, layers) in ENCODERS.items():
        hub.add("model", repo, make_model(architecture, layers, folder), branch)
