"""The embedded corpora: generated question answering data, no network needed.

`qa` gives question rows in eight registers: facts about a main entity among rivals of its kind. How hard they are is stated,
without any model, in tests/test_corpora.py. `sentences.py` draws its sentence tasks from the same world.

Names, facts and sentences are invented (words and templates: `corpora.yaml`); no number made with
them is a result, they show that a study works. Every passage has facts of its own and is a function
of register, seed and its number alone: row n is the same however many rows are asked for, and a
split by title shares no text (titles repeat after some thousand passages of a register).
"""

import math
import random
import re
from functools import cache, lru_cache
from pathlib import Path

import yaml

from qa_lib.settings.params import UserError

VERSION = "1"  # part of every run's identity: bump it when a generated row changes
REGISTERS = (
    "encyclopaedia",
    "biomedicine",
    "news",
    "search",
    "plots",
    "exams",
    "relations",
    "dialogue",
)
FACTS = 5  # facts about the main entity of a passage
RIVALS = (2, 2, 2, 3)  # entities of the same kind beside it
SHARED = (1, 2, 2)  # facts of each rival, of relations that the main entity has too
DESCRIBED = 0.35  # share of questions that name their entity by another of its facts
LONG = 0.03  # share of passages with 400 words and more, where a register has them
MANY = 1_000_003  # a prime: steps through the names so that neighbours do not look alike


@cache
def _load():
    """corpora.yaml with every `a | b | c` as a list and every name part split."""

    def split(node):
        if isinstance(node, dict):
            return {key: split(value) for key, value in node.items()}
        if isinstance(node, str):
            return ["" if part == "''" else part for part in re.split(r"\s+\|\s+", node.strip())]
        return node

    text = Path(__file__).with_name("corpora.yaml").read_text(encoding="utf-8")
    book = split(yaml.safe_load(text))
    book["names"] = {
        kind: [[x.replace("''", "") for x in part.split()] for part in parts]
        for kind, parts in book["names"].items()
    }
    book["women"], book["stop"] = set(book["women"][0].split()), set(book["stop"][0].split())
    book["relations"] = {
        kind: [key for key in spec if key not in ("name", "noun", "short")]
        for kind, spec in book["kinds"].items()
    }
    return book


def _name(kind, number):
    """The number-th name of a kind: mixed radix over its parts."""
    parts, out = _load()["names"][kind], ""
    number = number * MANY % math.prod(map(len, parts))
    for part in parts:
        number, k = divmod(number, len(part))
        out += part[k]
    return out.replace("_", " ")


def _expand(text, rng):
    """Fill {type} and [low-high] in a template; braces that are no type stay."""
    book = _load()

    def word(match):
        kind = match[1].lower() if match[1] == "PLACE" else match[1]
        if kind in book["names"]:
            name = _name(kind, rng.randrange(MANY))
            return name if kind == match[1] else name.upper()
        return _expand(rng.choice(book["words"][kind]), rng) if kind in book["words"] else match[0]

    def number(match):
        low, high, comma = match.groups()
        if "." in low:
            return f"{rng.randint(int(float(low) * 10), int(float(high) * 10)) / 10:.1f}"
        return f"{rng.randint(int(low), int(high)):{comma}}"

    text = re.sub(r"\{(\w+)\}", word, text)
    text = re.sub(r"\[([\d.]+)-([\d.]+)(,?)\]", number, text)
    return re.sub(r"\b([Aa]) (?=[aeiouAEIO])(?!one)", r"\1n ", text)


def _upper(text):
    """The sentence with a capital at its start, also behind a quotation mark."""
    return re.sub(r'^("?)([a-z])', lambda m: m[1] + m[2].upper(), text)


def _entity(kind, name, relations, rng, used):
    """An entity and its facts; no value occurs twice in a passage: a question has one answer."""
    facts = {}
    for relation in relations:
        for _ in range(40):
            value = _expand(f"{{{_load()['kinds'][kind][relation]['of'][0]}}}", rng)
            if not any(value in other or other in value for other in used):
                used.add(value)
                facts[relation] = value
                break
    return {"kind": kind, "name": name, "facts": facts}


def _sentence(style, entity, relations, rng, full=True):
    """One sentence with one or two facts of an entity; `full`: call it by its whole name."""
    spec, facts, name = _load()["kinds"][entity["kind"]], entity["facts"], entity["name"]
    whole = len(relations) == 1 and "full" in spec[relations[0]] and rng.random() < 0.4
    form = (
        rng.choice(spec[relations[0]]["full"])
        if whole
        else _expand(rng.choice(style["one" if len(relations) == 1 else "two"]), rng)
    )
    noun, she = "the " + spec["noun"][0], "it"
    if spec["name"][0] == "person":
        noun = name.split()[0 if "short" in spec else 1]
        she = "she" if name.split()[0] in _load()["women"] else "he"
    if not full and rng.random() < 0.7:
        pronoun = not whole and "{who}" not in form and rng.random() < 0.6
        name = she if pronoun else noun
    words = {
        "S": _upper(name),
        "s": name,
        "ref": she,
        "who": "which" if she == "it" else "who",
        "v": facts[relations[0]],
    }
    if not whole:
        words |= {
            slot: rng.choice(spec[r]["say"]).replace("{v}", facts[r])
            for slot, r in zip("ab", relations, strict=False)
        }
    form = re.sub(r"\{(\w+)\}", lambda match: words[match[1]], form)
    return form if "single" in style else _upper(form)


def _statements(style, entities, rng):
    """Sentences or catalogue lines [(text, [(entity, relation), ...]), ...], facts in any order."""
    groups, said, last = [], [], None
    for entity in entities:
        names = rng.sample(list(entity["facts"]), len(entity["facts"]))
        while names:
            take = len(names) if "list" in style else min(len(names), rng.choice((1, 2, 2)))
            groups.append((entity, [names.pop() for _ in range(take)]))
    rng.shuffle(groups)
    if rng.random() < 0.5:  # half of the passages keep the sentences about an entity together
        order = [entity["name"] for entity, _ in groups]
        groups.sort(key=lambda group: order.index(group[0]["name"]))
    for entity, names in groups:
        if "list" in style:
            spec, facts = _load()["kinds"][entity["kind"]], entity["facts"]
            items = [rng.choice(spec[n]["say"]).replace("{v}", facts[n]) for n in names]
            text = f"{entity['name']} - " + " | ".join(items)
        else:
            text = _sentence(style, entity, names, rng, entity is not last)
        said.append((text, [(entity, name) for name in names]))
        last = entity
    return said


def _write(style, entities, rng, opens):
    """The text of one passage and what each sentence states: (text, [(start, end, facts), ...])."""
    said, gap = _statements(style, entities, rng), " "
    opening = _expand(rng.choice(style.get("open", [""])), rng) if opens else ""
    close = _expand(rng.choice(style.get("close", [""])), rng)
    if "list" in style or "single" in style:
        gap = "\n" if "list" in style else "; "
    if "speakers" in style:
        busy, gap = " ".join(w for e in entities for w in (e["name"], *e["facts"].values())), "\n"
        who = rng.sample([n for n in _load()["names"]["first"][0] if n not in busy], 2)
        opening = opening.replace("{A}", who[0]).replace("{B}", who[1])
        said = [(f"{who[i % 2]}: {text}", facts) for i, (text, facts) in enumerate(said)]
    text, spans = "", []
    for sentence, facts in [(opening, []), *said, (close, [])]:
        if sentence:
            text += gap if text else ""
            spans.append((len(text), len(text) + len(sentence), facts))
            text += sentence
    return text + ("." if "single" in style else ""), spans


@lru_cache(maxsize=8192)
def _passage(register, seed, number):
    """Passage `number` of a register: kind, text, title, entities and questions."""
    rng = random.Random(f"{VERSION}/{register}/{seed}/{number}")
    style = _load()["registers"][register]
    kind, text, spans, entities, used = rng.choice(style["kinds"]), "", [], [], set()
    long, naming = "single" not in style and rng.random() < LONG, _load()["kinds"][kind]["name"][0]
    number += seed * 7919 + REGISTERS.index(register) * 1000
    while not text or long and len(text.split()) < 400:
        chosen, size, names = rng.sample(_load()["relations"][kind], FACTS), rng.choice(RIVALS), []
        while len(names) <= size:
            name = _name(naming, rng.randrange(MANY) if used else number)
            if name not in used and not set(name.split()) & set(" ".join(names).split()):
                names.append(name)
                used.add(name)
        group = [
            _entity(
                kind,
                n,
                chosen if n == names[0] else rng.sample(chosen, rng.choice(SHARED)),
                rng,
                used,
            )
            for n in names
        ]
        more, where = _write(style, group, rng, not text)
        shift = len(text) + 1 if text else 0
        text = f"{text}\n{more}" if text else more
        spans += [(start + shift, end + shift, facts) for start, end, facts in where]
        entities += group
    return {
        "kind": kind,
        "text": text,
        "title": _upper(entities[0]["name"]),
        "entities": entities,
        "questions": _questions(style, kind, text, spans, entities, rng),
    }


def _answers(text, value, start, kind, rng):
    """Accepted spans [(start, text), ...]: in the stating sentence, elsewhere, a shorter form."""
    found = [m.start() for m in re.finditer(rf"(?<!\w){re.escape(value)}(?!\w)", text)]
    first = next(at for at in found if at >= start)
    spans = [(at, value) for at in [first, *(at for at in found if at != first)]]
    short = re.sub(r"^an? |(?<=\d) (mg|hours|g|km|euros|pounds)$", "", value)
    short = value.split()[-1] if kind == "person" else short
    if short != value and rng.random() < 0.5:
        spans.append((first + value.rindex(short), short))
    return spans


def _questions(style, kind, text, spans, entities, rng):
    """Three to five questions [{question, answers, relation, sentence}]; impossible: no answers."""
    spec, out = _load()["kinds"][kind], {}
    stated = [(e, relation, span) for span in spans for e, relation in span[2]]
    for entity, relation, (start, end, _) in rng.sample(stated, rng.choice((3, 4, 4, 5))):
        name, facts, draw = entity["name"], entity["facts"], rng.random()
        form = rng.choice(spec[relation]["ask"])
        answers = _answers(text, facts[relation], start, spec[relation]["of"][0], rng)
        if "speakers" in style and draw < 0.15:
            absent = rng.choice([r for r in _load()["relations"][kind] if r not in facts])
            form, answers = rng.choice(spec[absent]["ask"]), []
        elif "speakers" in style and draw < 0.35:
            wrong = [
                e["facts"][relation] for e in entities if e is not entity and relation in e["facts"]
            ]
            word = "no" if wrong and rng.random() < 0.6 else "yes"
            value = rng.choice(wrong) if word == "no" else facts[relation]
            form = spec[relation]["check"][0].replace("{v}", value)
            answers = [(re.search(rf"\b{word}\b", text).start(), word)]  # in the first line
        others = [r for r in facts if r != relation]
        if others and rng.random() < DESCRIBED:
            other = rng.choice(others)
            that = rng.choice(spec[other]["that"]).replace("{v}", facts[other])
            name = f"the {spec['noun'][0]} {that}"
        question = form.replace("{s}", name)
        question = question.lower() if "list" in style else _upper(question)
        out.setdefault(
            question,
            {
                "question": question,
                "answers": answers,
                "relation": relation,
                "sentence": text[start:end],
            },
        )
    return list(out.values())


def qa(register, rows, seed=0):
    """Rows of one register: id, title, context, question, answers, is_impossible, domain.

    Deterministic; the first rows do not depend on `rows`. UserError: unknown register.
    """
    if register not in REGISTERS:
        raise UserError(
            f"There is no embedded corpus {register!r}; choose one of {', '.join(REGISTERS)}."
        )
    out, number = [], 0
    while len(out) < rows:
        passage = _passage(register, seed, number)
        out += [
            {
                "id": f"{register}-{seed}-{number}-{k}",
                "title": passage["title"],
                "context": passage["text"],
                "question": q["question"],
                "answers": {
                    "text": [text for _, text in q["answers"]],
                    "answer_start": [start for start, _ in q["answers"]],
                },
                "is_impossible": not q["answers"],
                "domain": register,
            }
            for k, q in enumerate(passage["questions"])
        ]
        number += 1
    return out[:rows]
