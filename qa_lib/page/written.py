"""Findings in Markdown: params/findings/<slug>.md, with numbers filled in by name.

    ---
    runs: 1f0c6a52d9e84b37
    ---

    ## why

    <!-- holds: claims.headline.report.low > 0 and claims.headline.equal.high < 0 -->
    At the report's settings ExBERT is {{ claims.headline.report }} EM ahead of V-DB.

`runs` is the hash of the runs that the sentences were written of; `python -m qa_lib findings
REPORT` prints that of the present ones. A page of other runs shows none of the sentences. A
section begins with `## name`, and its paragraphs are parted by blank lines. The condition above a
paragraph says when it is true.

Names, in braces and in conditions:

    claims.ID.printed, .unit          of a claim, `_` for each `-` of its id: what is printed
    claims.ID.report, .equal          ours at the report's settings, and with equal tuning; as text
                                      with its 95 % interval. In the direction of the claim:
        .ours .low .high .n           numbers, and seeds
        .own_low .own_high            the interval that its own seeds alone would give, none pooled
        .verdict .meaning             "not reproduced", "less than half"
        .ahead                        the same, as how far `ours` is above `against`
        .control .starter             the same against the control, and by the starter code's rule
    mean(VARIANT, SET, METRIC, ARM)   the mean of a score over seeds; METRIC "em", ARM "report";
                                      further columns of the ledger by name, as ratio=0.8
    control(CLAIM, VARIANT, ARM)      a claim's model against a control, as the forest figure has it
    gap(CLAIM, OURS, AGAINST, ARM)    how far a variant is ahead of another, by a claim's contrast
    differing(VARIANT, OTHER, SET, ARM)
                                      the share of a set's questions that two variants answer by
                                      other spans
    without_seed(CLAIM, SEED, ARM)    ours in a claim on the other seeds, as the verdicts judge it
    setting(VARIANT, FIELD, ARM)      a field of a model's runs, as learning_rate
    params.NAME                       a parameter of the page
    values.NAME                       what the report's file collects (`collect_values`)

In params/findings/overview.md, which says what was learnt across the reports, a report's slug
stands before each name: `moe.claims.moe_dev.report`.

Numbers have one decimal; `| digits(2)` and `| percent` write others.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from jinja2 import Environment, StrictUndefined, TemplateError

from qa_lib.evidence import claims, compare, stats, verify
from qa_lib.reports import plans
from qa_lib.settings.params import ROOT, UserError, shorten_path, suggest
from qa_lib.settings.spec import Spec
from qa_lib.store import runs

FOLDER = ROOT / "params" / "findings"
ARMS = {setting: arm for arm, setting in compare.SETTINGS.items()}  # as readers name them → the arm
CONDITION = re.compile(r"<!-- holds: (.*) -->")
# The section of the answer box, and the most words that it may have.
ANSWER = "answer"
MOST_WORDS = 70


# ---- the file ----


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of a section: its lines with their numbers, and the condition above it."""

    lines: list[tuple[int, str]]
    condition: str = ""

    @property
    def line(self) -> int:
        """The number of its first line."""
        return self.lines[0][0]


@dataclass(frozen=True)
class Findings:
    """A report's findings: the hash of their runs, and name → paragraphs of each section."""

    file: Path
    runs: str
    sections: dict[str, list[Paragraph]] = field(default_factory=dict)

    def place(self, line: int) -> str:
        """Return the place of a line, as an error names it."""
        return f"{shorten_path(self.file)}, line {line}"


def read_findings(slug: str) -> Findings | None:
    """Return the findings of a report; None where none are written.

    Raises UserError where the head names no runs, or where text stands outside of a section.
    """
    file = FOLDER / f"{slug}.md"
    if not file.exists():
        return None
    text = file.read_text(encoding="utf-8")
    head = re.match(r"---\n(.*?)\n---\n", text, re.S)
    fields = yaml.safe_load(head[1]) if head else None
    if not isinstance(fields, dict) or set(fields) != {"runs"}:
        raise UserError(
            f"{Findings(file, '').place(1)}: the file begins with ---, a line `runs: HASH`, and ---"
        )
    found = Findings(file, str(fields["runs"]))
    paragraphs = None
    for block in split_blocks(text, text[: head.end()].count("\n")):
        number, first = block[0]
        if first.startswith("## "):
            paragraphs = found.sections.setdefault(first.removeprefix("## ").strip(), [])
            block = block[1:]
        if not block:
            continue
        if paragraphs is None:
            raise UserError(f"{found.place(number)}: text belongs below a heading `## name`")
        condition = CONDITION.fullmatch(block[0][1].strip())
        if condition and len(block) == 1:
            raise UserError(f"{found.place(number)}: no paragraph stands below this condition")
        paragraphs.append(Paragraph(block[1:], condition[1]) if condition else Paragraph(block))
    return found


def split_blocks(text: str, skip: int) -> list[list[tuple[int, str]]]:
    """Return the blocks of lines between blank lines, each line with its number."""
    blocks: list[list[tuple[int, str]]] = [[]]
    for number, line in enumerate(text.splitlines(), 1):
        if number <= skip:
            continue
        if line.strip():
            blocks[-1].append((number, line))
        elif blocks[-1]:
            blocks.append([])
    return [block for block in blocks if block]


# ---- what its names mean ----


class Names(dict):
    """Names and their values. An unknown one raises UnknownName with a sentence."""

    def __init__(self, what: str, values: dict):
        super().__init__(values)
        self.what = what

    def __missing__(self, name):
        raise UnknownName(f"{self.what} has no {name}{suggest(str(name), map(str, self))}")


class UnknownName(Exception):
    """A name that stands for nothing. Its argument is a sentence.

    It is no LookupError, which jinja would take for a name that is not there.
    """


# What a wrong name, a wrong argument or a division by 0 in findings raises.
FAULTS = (TemplateError, UnknownName, TypeError, LookupError, ArithmeticError)


@dataclass(frozen=True)
class Effect:
    """Ours in one arm, with its 95 % interval; as text "3.2 [2.0, 4.4]".

    own_low, own_high: the interval with the variance of its own seeds, none pooled.
    """

    ours: float
    low: float
    high: float
    own_low: float
    own_high: float
    n: int
    verdict: str
    meaning: str
    ahead: "Effect | None" = None
    control: "Effect | None" = None
    starter: "Effect | None" = None

    def __str__(self) -> str:
        text = verify.format_number(self.ours, 1) + verify.format_interval(self.low, self.high, 1)
        return text.replace("-", "−")


def read_effect(row: pd.Series, sign: int = 1) -> Effect:
    """Return the effect in a row of the claims table; sign −1 turns it around."""
    ends = verify.turn_ends(row, sign)
    rest = {"n": row["n"], "verdict": row["verdict"], "meaning": row["reason"]}
    return Effect(sign * row["ours"], **ends, **rest)


def read_difference(row: pd.Series) -> Effect:
    """Return the effect in a row of two compared models, on which there is no verdict."""
    numbers = [row[name] for name in [*compare.NUMBERS, "n"]]
    return Effect(*numbers, verdict="", meaning="")


def name_claims(P) -> Names:
    """Return claim → what is printed and ours in each arm that was run."""
    table = verify.claims_table(P)
    named = {}
    for claim in claims.read_claims(P.report, P.mixtures):
        rows = table[(table["claim"] == claim.id) & (table["n"] > 0)]
        values = {"printed": verify.format_claimed_value(claim), "unit": claim.unit}
        is_lower = claim.contrast is not None and claim.contrast.direction == "lower"
        for name, arm in ARMS.items():
            of_arm = rows[rows["arm"] == arm].set_index("comparison")
            if "claim" not in of_arm.index:
                continue
            more = {"ahead": read_effect(of_arm.loc["claim"], -1 if is_lower else 1)}
            for comparison in {"control", "starter"} & set(of_arm.index):
                more[comparison] = read_effect(of_arm.loc[comparison])
            effect = read_effect(of_arm.loc["claim"])
            values[name] = Effect(**vars(effect) | more)
        name = claim.id.replace("-", "_")
        named[name] = Names(f"claims.{name}, of these runs,", values)
    return Names(f"params/claims/{P.report}.yaml", named)


class RunNames:
    """What findings ask about the runs of a page: scores, settings, and comparisons of models."""

    def __init__(self, P, specs: list[Spec]):
        self.P = P
        self.specs = specs
        self.ledger = runs.collect_ledger(specs)

    def mean(
        self, variant: str, test_set: str, metric: str = "em", arm: str = "report", **which
    ) -> float:
        """Return the mean of a score over the seeds of a variant's runs."""
        wanted = {"variant": variant, "set": test_set, "metric": metric, "arm": ARMS.get(arm, arm)}
        wanted |= which
        rows = self.ledger[(self.ledger[[*wanted]] == pd.Series(wanted)).all(axis=1)]
        if rows.empty:
            raise UnknownName(f"no run of {variant} has {metric} on {test_set}, arm {arm}")
        return float(rows["value"].mean())

    def setting(self, variant: str, name: str, arm: str = "report"):
        """Return the one value that a field has in a variant's runs."""
        chosen = [s for s in self.specs if s.variant == variant and s.arm == ARMS.get(arm, arm)]
        values = {getattr(spec, name, None) for spec in chosen}
        if len(values) != 1:
            raise UnknownName(f"the runs of {variant}, arm {arm}, have no one {name}")
        return values.pop()

    def differing(self, variant: str, other: str, test_set: str, arm: str = "report") -> float:
        """Return the share of a set's questions on which two variants give another span.

        Runs of one seed and mixture are compared, at all that both have.
        """
        ours = self.find_spans(variant, test_set, arm)
        theirs = self.find_spans(other, test_set, arm)
        ours, theirs = ours.align(theirs, join="inner", axis=0)
        if ours.empty:
            raise UnknownName(f"{variant} and {other}, arm {arm}, have no seed in common")
        return float((ours != theirs).any(axis=1).mean())

    def find_spans(self, variant: str, test_set: str, arm: str) -> pd.DataFrame:
        """Return start and end of a variant's answers on a set, by seed, mixture and question."""
        is_meant = (self.ledger["variant"] == variant) & (self.ledger["arm"] == ARMS.get(arm, arm))
        _, examples = verify.collect_scores(self.specs)
        is_of_run = examples["run"].isin(self.ledger.loc[is_meant, "run"])
        spans = examples[is_of_run & (examples["variant"] == variant)]
        spans = spans[spans["set"] == test_set].fillna({"ratio": 0.0})  # of no mixture
        spans = spans.set_index(["seed", "ratio", "id"])[["start", "end"]]
        if spans.empty or spans.isna().any(axis=None):
            raise UnknownName(f"no run of {variant} has spans on {test_set}, arm {arm}")
        if not spans.index.is_unique:
            raise UnknownName(f"several runs of {variant} have one seed and mixture, arm {arm}")
        return spans

    @cached_property
    def central_comparisons(self) -> pd.DataFrame:
        """The rows of the forest figure."""
        return compare.collect_comparisons(self.P, plans.find_report(self.P.report).COMPARISONS)

    def control(self, claim: str, variant: str, arm: str = "report") -> Effect:
        """Return how far the model of a central comparison is ahead of a control."""
        comparisons = plans.find_report(self.P.report).COMPARISONS
        rows = self.central_comparisons
        places = [place for place, compared in enumerate(comparisons) if compared.claim == claim]
        is_setting = rows["setting"] == arm
        chosen = rows[is_setting & (rows["control"] == variant) & rows["comparison"].isin(places)]
        if chosen.empty:
            raise UnknownName(f"no central comparison {claim} has the control {variant}, arm {arm}")
        return read_difference(chosen.iloc[0])

    def gap(self, claim: str, ours: str, against: str, arm: str = "report") -> Effect:
        """Return how far a variant is ahead of another, on the sets and by the score of a claim."""
        by_starter = compare.is_by_starter(verify.claims_table(self.P), claim)
        pair = compare.Pair(claim, ours, against, by_starter)
        row = compare.measure_pairs(self.P, [pair], (ARMS.get(arm, arm),)).iloc[0]
        if not row["n"]:
            raise UnknownName(f"no runs of {ours} and {against} to compare, arm {arm}")
        return read_difference(row)

    def without_seed(self, claim: str, seed: int, arm: str = "report") -> Effect:
        """Return ours in a claim on all other seeds, judged as the verdicts are."""
        P = self.P
        listed = claims.read_claims(P.report, P.mixtures)
        ledger, examples = verify.collect_scores(self.specs)
        ledger = ledger[ledger["seed"] != seed]
        sample = stats.draw_sample(
            listed, ledger, examples, P.domains, ARMS.get(arm, arm), stand_ins=P.stand_ins
        )
        judged = stats.judge_sample(listed, sample, P.profile).set_index("id")
        if claim not in judged.index or not judged.loc[claim, "n"]:
            raise UnknownName(f"no runs of {claim} without seed {seed}, arm {arm}")
        row = judged.loc[claim]
        [of_claim] = [one for one in listed if one.id == claim]
        effect = verify.measure_effect(of_claim, row["d"], row["low"], row["high"])
        _, *own_ends = verify.measure_effect(of_claim, row["d"], row["own_low"], row["own_high"])
        return Effect(*effect, *own_ends, row["n"], verdict="", meaning="")


_names: dict[tuple[str, ...], dict] = {}  # parameters, claims, records → the names of a page


def collect_names(P) -> dict:
    """Return all names that findings may use, with their values.

    A page asks for each of its sections. The names of the last page are kept.
    """
    specs = plans.plan(P)
    listed = claims.read_claims(P.report, P.mixtures)
    key = (P.model_dump_json(), repr(listed), *runs.list_checksums(specs))
    if key not in _names:
        _names.clear()
        _names[key] = make_names(P, specs)
    return _names[key]


def make_names(P, specs: list[Spec]) -> dict:
    """Return all names that findings may use, with their values, from the runs of a plan."""
    collect_values = getattr(plans.find_report(P.report), "collect_values", None)
    of_runs = RunNames(P, specs)
    return {
        "claims": name_claims(P),
        "control": of_runs.control,
        "differing": of_runs.differing,
        "gap": of_runs.gap,
        "mean": of_runs.mean,
        "setting": of_runs.setting,
        "without_seed": cache(of_runs.without_seed),
        "params": Names("params", P.model_dump()),
        "values": Names("values", collect_values(P) if collect_values else {}),
    }


# ---- filled in ----


def write_value(value) -> str:
    """Return a value as prose has it: 3.2, −0.4, 1,000, 3e-5."""
    if isinstance(value, float | np.floating):
        if 0 < value < 0.01:
            return np.format_float_scientific(value, precision=2, trim="-", exp_digits=1)
        return verify.format_number(float(value), 1).replace("-", "−")
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return f"{value:,}"
    return "" if value is None else str(value)


def write_digits(value: float, digits: int) -> str:
    """Return a number with so many decimals."""
    return verify.format_number(value, digits).replace("-", "−")


def write_percent(share: float) -> str:
    """Return a share as percent: 0.48 is 48 %."""
    return f"{100 * share:.0f} %"


def make_environment() -> Environment:
    """Return the language of the braces: unknown names are errors, numbers have one decimal."""
    environment = Environment(undefined=StrictUndefined, finalize=write_value, autoescape=False)
    environment.filters |= {"digits": write_digits, "percent": write_percent}
    return environment


def fill_paragraph(found: Findings, paragraph: Paragraph, names: dict) -> str:
    """Return a paragraph with its numbers. Raises UserError with file and line for a wrong name."""
    environment = make_environment()
    lines = []
    for number, line in paragraph.lines:
        try:
            lines.append(environment.from_string(line).render(names))
        except FAULTS as e:
            raise UserError(f"{found.place(number)}: {e}") from None
    return "\n".join(lines)


def is_borne_out(found: Findings, paragraph: Paragraph, names: dict) -> bool:
    """Return whether the records bear a paragraph out; without a condition they do."""
    if not paragraph.condition:
        return True
    try:
        holds = make_environment().compile_expression(paragraph.condition, undefined_to_none=False)
        return bool(holds(**names))
    except FAULTS as e:
        raise UserError(f"{found.place(paragraph.line - 1)}: {e}") from None


def fill_section(P, found: Findings, section: str) -> list[str]:
    """Return the paragraphs of a section that the records bear out, with their numbers.

    Raises UserError where there is no such section, and for a wrong name.
    """
    return fill_paragraphs(found, section, collect_names(P))


def fill_paragraphs(found: Findings, section: str, names: dict) -> list[str]:
    """Return the paragraphs of a section that hold, with their numbers, from names and values.

    Raises UserError where there is no such section, and for a wrong name.
    """
    if section not in found.sections:
        known = ", ".join(found.sections)
        raise UserError(f"{found.place(1)}: there is no section {section}; there are {known}")
    texts = []
    for paragraph in found.sections[section]:
        if is_borne_out(found, paragraph, names):
            texts.append(fill_paragraph(found, paragraph, names))
    return texts


def list_untrue(P, found: Findings) -> list[str]:
    """Return a line for each paragraph that the records do not bear out.

    Every number of the file is filled in, so that a wrong name ends here too.
    """
    return list_untrue_paragraphs(found, collect_names(P))


def list_untrue_paragraphs(found: Findings, names: dict) -> list[str]:
    """Return a line for each paragraph that does not hold, from names and values."""
    untrue = []
    for section, paragraphs in found.sections.items():
        for paragraph in paragraphs:
            fill_paragraph(found, paragraph, names)
            if not is_borne_out(found, paragraph, names):
                place = found.place(paragraph.line)
                untrue.append(f"{place}, section {section}: {paragraph.condition} does not hold")
    if found.sections.get(ANSWER):
        split_answer(found, [fill_paragraph(found, x, names) for x in found.sections[ANSWER]])
    return untrue


# ---- the runs that it is written of ----


def hash_runs(P) -> str:
    """Return a hash over the hashes of all runs of a page, in 16 hexadecimal digits.

    Raises UserError where a run has no record.
    """
    return join_hashes({record["hash"] for _, record in runs.require_records(plans.plan(P))})


def join_hashes(hashes: Iterable[str]) -> str:
    """Return one hash of several, whatever their order, in 16 hexadecimal digits."""
    return hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest()[:16]


def is_written_of(P, found: Findings | None) -> bool:
    """Return whether there are findings, and of the runs of this page."""
    return found is not None and found.runs == hash_runs(P)


def describe_state(P) -> list[str]:
    """Return the hash of a page's runs, and what is to be said of the findings about them."""
    lines = [f"runs: {hash_runs(P)}"]
    found = read_findings(P.report)
    if found is None:
        return [*lines, f"no findings are written: params/findings/{P.report}.md"]
    if not is_written_of(P, found):
        lines.append(f"the findings are of other runs ({found.runs}): the page shows none of them")
    return lines + list_untrue(P, found)


# ---- the answer ----


@dataclass(frozen=True)
class Answer:
    """The answer of a page: a finding, three numbers (value, what it is), what it does not show."""

    finding: str
    numbers: list[tuple[str, str]]
    limit: str


def fill_answer(P, found: Findings) -> Answer | None:
    """Return the answer of a page; None where the records do not bear a paragraph of it out.

    Raises UserError where the findings have no answer or one of another form, and for a wrong name.
    """
    names = collect_names(P)
    texts = fill_paragraphs(found, ANSWER, names)
    if not all(is_borne_out(found, paragraph, names) for paragraph in found.sections[ANSWER]):
        return None
    return split_answer(found, texts)


def split_answer(found: Findings, texts: list[str]) -> Answer:
    """Return the answer from the paragraphs of its section.

    These are one sentence or two; a list of three items, each `- **number** what it is`; and what
    is not shown. Raises UserError for other paragraphs, and for more than 70 words.
    """
    place = found.place(found.sections[ANSWER][0].line)
    if len(texts) != 3:
        raise UserError(
            f"{place}: the answer has three paragraphs: the finding, a list of three numbers, and "
            f"what it does not show; here are {len(texts)}"
        )
    finding, items, limit = texts
    numbers = re.findall(r"^- \*\*(.+?)\*\*,? (.+(?:\n  .+)*)", items, re.M)
    if len(numbers) != 3:
        raise UserError(
            f"{place}: the answer has three numbers, each as `- **number** what it is`; here are "
            f"{len(numbers)}"
        )
    words = count_words(" ".join(texts))
    if words > MOST_WORDS:
        raise UserError(f"{place}: the answer has {words} words; the most is {MOST_WORDS}")
    return Answer(finding, numbers, limit)


def count_words(text: str) -> int:
    """Return the number of words that a reader sees; a mark alone is none."""
    return len([word for word in text.split() if re.search(r"\w", word)])
