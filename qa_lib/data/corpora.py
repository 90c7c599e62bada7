"""The embedded corpora: generated question answering data; no network is needed.

`draw_questions` returns question rows in eight registers, and `reword_question` a question in other
words. A passage states facts about a main entity and about rivals of the same kind.
tests/test_corpora.py states, without any model, how hard the questions are. sentences.py draws its
sentence tasks from the same world.

Names, facts and sentences are invented; corpora.yaml holds the words and templates. No number made
with them is a result. They show that a study works. Every passage has facts of its own, and it is a
function of register, seed and its number alone. Row n is therefore the same however many rows are
asked for, and a split by title shares no text. Titles repeat after some thousand passages of a
register.
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
LONG = 0.03  # share of long passages, where a register has them
LONG_WORDS = 400  # words of a long passage at least
MANY = 1_000_003  # a prime: steps through the names so that neighbours do not look alike


def _split_alternatives(node):
    """Return a part of corpora.yaml with every text `a | b | c` as a list."""
    if isinstance(node, dict):
        return {key: _split_alternatives(value) for key, value in node.items()}
    if isinstance(node, str):
        return ["" if part == "''" else part for part in re.split(r"\s+\|\s+", node.strip())]
    return node


@cache
def load_words() -> dict:
    """Return corpora.yaml with every `a | b | c` as a list and every part of a name split."""
    text = Path(__file__).with_name("corpora.yaml").read_text(encoding="utf-8")
    book = _split_alternatives(yaml.safe_load(text))
    for kind, parts in book["names"].items():
        split_parts = []
        for part in parts:
            split_parts.append(["" if item == "''" else item for item in part.split()])
        book["names"][kind] = split_parts
    for name in ("women", "stop"):
        book[name] = set(book[name][0].split())
    book["relations"] = {}
    for kind, spec in book["kinds"].items():
        book["relations"][kind] = [key for key in spec if key not in ("name", "noun", "short")]
    return book


@cache
def load_rewordings() -> dict:
    """Return rewordings.yaml with every `a | b | c` as a list."""
    text = Path(__file__).with_name("rewordings.yaml").read_text(encoding="utf-8")
    return _split_alternatives(yaml.safe_load(text))


def make_name(kind: str, number: int) -> str:
    """Return the number-th name of a kind; the number counts its parts in mixed radix."""
    parts = load_words()["names"][kind]
    number = number * MANY % math.prod(map(len, parts))
    name = ""
    for part in parts:
        number, k = divmod(number, len(part))
        name += part[k]
    return name.replace("_", " ")


def fill_template(text: str, rng: random.Random) -> str:
    """Fill {type} and [low-high] in a template; braces that are no type stay."""
    book = load_words()

    def word(match):
        kind = match[1].lower() if match[1] == "PLACE" else match[1]
        if kind in book["names"]:
            name = make_name(kind, rng.randrange(MANY))
            return name if kind == match[1] else name.upper()
        if kind in book["words"]:
            return fill_template(rng.choice(book["words"][kind]), rng)
        return match[0]

    def number(match):
        low, high, comma = match.groups()
        if "." in low:
            tenths = rng.randint(int(float(low) * 10), int(float(high) * 10))
            return f"{tenths / 10:.1f}"
        return f"{rng.randint(int(low), int(high)):{comma}}"

    text = re.sub(r"\{(\w+)\}", word, text)
    text = re.sub(r"\[([\d.]+)-([\d.]+)(,?)\]", number, text)
    return re.sub(r"\b([Aa]) (?=[aeiouAEIO])(?!one)", r"\1n ", text)


def capitalise(text: str) -> str:
    """Return a sentence with a capital at its start, also behind a quotation mark."""
    return re.sub(r'^("?)([a-z])', lambda match: match[1] + match[2].upper(), text)


def make_entity(kind: str, name: str, relations: list, rng: random.Random, used: set[str]) -> dict:
    """Return an entity with its facts: {kind, name, facts: {relation: value}}.

    used: the names and values of the passage; it grows. No value contains another of them or is
    contained in one, so that a question has one answer.
    """
    facts = {}
    for relation in relations:
        value_type = load_words()["kinds"][kind][relation]["of"][0]
        for _ in range(40):
            value = fill_template(f"{{{value_type}}}", rng)
            if not any(value in other or other in value for other in used):
                used.add(value)
                facts[relation] = value
                break
    return {"kind": kind, "name": name, "facts": facts}


def state_fact(spec: dict, relation: str, value: str, rng: random.Random) -> str:
    """Return a verb phrase that states a fact."""
    return rng.choice(spec[relation]["say"]).replace("{v}", value)


def write_sentence(
    style: dict, entity: dict, relations: list, rng: random.Random, full=True
) -> str:
    """Return a sentence with one or two facts of an entity.

    full: call the entity by its whole name; without it often by its kind or a pronoun.
    """
    spec = load_words()["kinds"][entity["kind"]]
    facts = entity["facts"]
    name = entity["name"]
    first = relations[0]
    one = len(relations) == 1
    # Some relations have whole sentences of their own, which need no template of the register.
    whole = one and "full" in spec[first] and rng.random() < 0.4
    if whole:
        form = rng.choice(spec[first]["full"])
    else:
        form = fill_template(rng.choice(style["one" if one else "two"]), rng)
    noun = "the " + spec["noun"][0]
    pronoun = "it"
    if spec["name"][0] == "person":
        noun = name.split()[0 if "short" in spec else 1]
        pronoun = "she" if name.split()[0] in load_words()["women"] else "he"
    if not full and rng.random() < 0.7:
        by_pronoun = not whole and "{who}" not in form and rng.random() < 0.6
        name = pronoun if by_pronoun else noun
    words = {
        "S": capitalise(name),
        "s": name,
        "ref": pronoun,
        "who": "which" if pronoun == "it" else "who",
        "v": facts[first],
    }
    if not whole:
        for slot, relation in zip("ab", relations, strict=False):
            words[slot] = state_fact(spec, relation, facts[relation], rng)
    form = re.sub(r"\{(\w+)\}", lambda match: words[match[1]], form)
    return form if "single" in style else capitalise(form)


def _statements(style: dict, entities: list[dict], rng: random.Random) -> list[tuple]:
    """Return sentences or catalogue lines: [(text, [(entity, relation), …]), …].

    The facts stand in any order.
    """
    groups = []
    for entity in entities:
        relations = rng.sample(list(entity["facts"]), len(entity["facts"]))
        while relations:
            take = len(relations)
            if "list" not in style:
                take = min(take, rng.choice((1, 2, 2)))
            groups.append((entity, [relations.pop() for _ in range(take)]))
    rng.shuffle(groups)
    if rng.random() < 0.5:  # half of the passages keep the sentences about an entity together
        order = [entity["name"] for entity, _ in groups]
        groups.sort(key=lambda group: order.index(group[0]["name"]))
    statements = []
    last = None
    for entity, relations in groups:
        if "list" in style:
            spec = load_words()["kinds"][entity["kind"]]
            facts = entity["facts"]
            items = [state_fact(spec, relation, facts[relation], rng) for relation in relations]
            text = f"{entity['name']} - " + " | ".join(items)
        else:
            text = write_sentence(style, entity, relations, rng, entity is not last)
        statements.append((text, [(entity, relation) for relation in relations]))
        last = entity
    return statements


def _speakers(entities: list[dict], rng: random.Random) -> list[str]:
    """Return the names of two speakers; neither occurs in an entity's name or facts."""
    words = []
    for entity in entities:
        words += [entity["name"], *entity["facts"].values()]
    taken = " ".join(words)
    return rng.sample([name for name in load_words()["names"]["first"][0] if name not in taken], 2)


def _write(style: dict, entities: list[dict], rng: random.Random, opens: bool) -> tuple:
    """Write one passage: (text, [(start, end, facts), …]) with what each sentence states.

    opens: the passage begins with an opening of the register.
    """
    statements = _statements(style, entities, rng)
    opening = fill_template(rng.choice(style.get("open", [""])), rng) if opens else ""
    close = fill_template(rng.choice(style.get("close", [""])), rng)
    gap = " "
    if "list" in style:
        gap = "\n"
    elif "single" in style:
        gap = "; "
    if "speakers" in style:
        gap = "\n"
        who = _speakers(entities, rng)
        opening = opening.replace("{A}", who[0]).replace("{B}", who[1])
        statements = [
            (f"{who[i % 2]}: {text}", facts) for i, (text, facts) in enumerate(statements)
        ]
    text = ""
    spans = []
    for sentence, facts in [(opening, []), *statements, (close, [])]:
        if sentence:
            text += gap if text else ""
            spans.append((len(text), len(text) + len(sentence), facts))
            text += sentence
    if "single" in style:
        text += "."
    return text, spans


def _group(kind: str, number: int, rng: random.Random, used: set[str]) -> list[dict]:
    """Return the main entity of a kind and its rivals. No two of their names share a word.

    number: number of the main entity's name in the first group of a passage, where `used` is empty.
    In further groups that name is drawn too.
    """
    relations = rng.sample(load_words()["relations"][kind], FACTS)
    rivals = rng.choice(RIVALS)
    name_type = load_words()["kinds"][kind]["name"][0]
    names = []
    while len(names) <= rivals:
        name = make_name(name_type, rng.randrange(MANY) if used else number)
        shares_word = set(name.split()) & set(" ".join(names).split())
        if name not in used and not shares_word:
            names.append(name)
            used.add(name)
    group = [make_entity(kind, names[0], relations, rng, used)]
    for name in names[1:]:
        shared = rng.sample(relations, rng.choice(SHARED))
        group.append(make_entity(kind, name, shared, rng, used))
    return group


@lru_cache(maxsize=8192)
def _passage(register: str, seed: int, number: int) -> dict:
    """Return passage `number` of a register: kind, text, title, entities and questions."""
    rng = random.Random(f"{VERSION}/{register}/{seed}/{number}")
    style = load_words()["registers"][register]
    kind = rng.choice(style["kinds"])
    long = "single" not in style and rng.random() < LONG
    # The number gives the title too: those of a register repeat only when its names are used up.
    title_number = number + seed * 7919 + REGISTERS.index(register) * 1000
    text = ""
    spans = []
    entities = []
    used: set[str] = set()
    while not text or (long and len(text.split()) < LONG_WORDS):
        group = _group(kind, title_number, rng, used)
        paragraph, statements = _write(style, group, rng, opens=not text)
        text = f"{text}\n{paragraph}" if text else paragraph
        shift = len(text) - len(paragraph)
        spans += [(start + shift, end + shift, facts) for start, end, facts in statements]
        entities += group
    return {
        "kind": kind,
        "text": text,
        "title": capitalise(entities[0]["name"]),
        "entities": entities,
        "questions": _questions(style, kind, text, spans, entities, rng),
    }


def _answers(text: str, value: str, start: int, kind: str, rng: random.Random) -> list[tuple]:
    """Return the accepted spans, [(start, text), …].

    First the value in the sentence that states it, which begins at `start`; then the value
    elsewhere; last, for half of the values that have one, a shorter form.
    """
    pattern = rf"(?<!\w){re.escape(value)}(?!\w)"
    places = [match.start() for match in re.finditer(pattern, text)]
    first = next(place for place in places if place >= start)
    spans = [(first, value)]
    spans += [(place, value) for place in places if place != first]
    if kind == "person":
        short = value.split()[-1]
    else:
        short = re.sub(r"^an? |(?<=\d) (mg|hours|g|km|euros|pounds)$", "", value)
    if short != value and rng.random() < 0.5:
        spans.append((first + value.rindex(short), short))
    return spans


def _wrong_values(entities: list[dict], entity: dict, relation: str) -> list[str]:
    """Return the values that a relation has for other entities."""
    others = [other for other in entities if other is not entity]
    return [other["facts"][relation] for other in others if relation in other["facts"]]


def _questions(
    style: dict, kind: str, text: str, spans: list[tuple], entities: list[dict], rng: random.Random
) -> list[dict]:
    """Return up to five questions: [{question, name, answers, relation, sentence}, …].

    name: as the question names its entity. A question that the passage leaves open has no answers.
    """
    spec = load_words()["kinds"][kind]
    stated = []
    for start, end, facts in spans:
        stated += [(entity, relation, start, end) for entity, relation in facts]
    questions = {}
    for entity, relation, start, end in rng.sample(stated, rng.choice((3, 4, 4, 5))):
        name = entity["name"]
        facts = entity["facts"]
        draw = rng.random()
        form = rng.choice(spec[relation]["ask"])
        answers = _answers(text, facts[relation], start, spec[relation]["of"][0], rng)
        if "speakers" in style and draw < 0.15:  # a question that the passage leaves open
            absent = rng.choice([r for r in load_words()["relations"][kind] if r not in facts])
            form = rng.choice(spec[absent]["ask"])
            answers = []
        elif "speakers" in style and draw < 0.35:  # a question to be answered with yes or no
            wrong = _wrong_values(entities, entity, relation)
            word = "no" if wrong and rng.random() < 0.6 else "yes"
            value = rng.choice(wrong) if word == "no" else facts[relation]
            form = spec[relation]["check"][0].replace("{v}", value)
            answers = [(re.search(rf"\b{word}\b", text).start(), word)]  # in the first line
        others = [other for other in facts if other != relation]
        if others and rng.random() < DESCRIBED:
            other = rng.choice(others)
            that = rng.choice(spec[other]["that"]).replace("{v}", facts[other])
            name = f"the {spec['noun'][0]} {that}"
        question = form.replace("{s}", name)
        question = question.lower() if "list" in style else capitalise(question)
        entry = {
            "question": question,
            "name": name,
            "answers": answers,
            "relation": relation,
            "sentence": text[start:end],
        }
        questions.setdefault(question, entry)
    return list(questions.values())


def draw_questions(register: str, rows: int, seed: int = 0) -> list[dict]:
    """Return rows of one register: id, title, context, question, answers, is_impossible, domain.

    The first rows do not depend on `rows`. Raises UserError for an unknown register.
    """
    if register not in REGISTERS:
        raise UserError(
            f"There is no embedded corpus {register!r}; choose one of {', '.join(REGISTERS)}."
        )
    made = []
    number = 0
    while len(made) < rows:
        passage = _passage(register, seed, number)
        for k, question in enumerate(passage["questions"]):
            answers = {
                "text": [text for _, text in question["answers"]],
                "answer_start": [start for start, _ in question["answers"]],
            }
            made.append(
                {
                    "id": f"{register}-{seed}-{number}-{k}",
                    "title": passage["title"],
                    "context": passage["text"],
                    "question": question["question"],
                    "answers": answers,
                    "is_impossible": not question["answers"],
                    "domain": register,
                }
            )
        number += 1
    return made[:rows]


def reword_question(identity: str) -> str:
    """Return the question of a row in words in which no question is generated.

    It asks for the same fact of the same entity, which it names as the row does. The same row
    always gets the same words. identity: the row's id. Raises UserError for a row that
    `draw_questions` does not return, or of a register whose questions have no other wording.
    """
    register, *numbers = identity.split("-")
    kinds = load_rewordings()
    registers = load_words()["registers"]
    worded = {name: set(registers[name]["kinds"]) <= set(kinds) for name in REGISTERS}
    if not worded.get(register) or len(numbers) != 3:
        known = ", ".join(name for name in REGISTERS if worded[name])
        raise UserError(
            f"row {identity} has no question that can be reworded; generated questions of these "
            f"registers can: {known}"
        )
    seed, number, k = map(int, numbers)
    passage = _passage(register, seed, number)
    question = passage["questions"][k]
    forms = kinds[passage["kind"]][question["relation"]]
    form = random.Random(f"reworded/{identity}").choice(forms)
    return capitalise(form.replace("{s}", question["name"]))
