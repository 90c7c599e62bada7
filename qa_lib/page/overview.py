"""All reports on one page: claims, results and costs; and the README's table of verdicts.

    python -m qa_lib overview --profile quick
        figures/index-quick.html, from each report's page and claims.csv at that profile
    python -m qa_lib overview --readme
        the verdicts on real data, between the README's markers

A report that has not been run at the profile is listed as such.
"""

import math
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pandas as pd

from qa_lib.evidence import claims, verify
from qa_lib.page import findings, render, report
from qa_lib.settings import params
from qa_lib.settings.params import ROOT, UserError
from qa_lib.store import runs

TITLES = {
    "moe": "Sesame Street Ensemble",
    "exbert": "Bring in the ExBERT",
    "road": "ROaD-ELECTRA",
    "smart": "Walk Less and Only Down Smooth Valleys",
}
VERDICTS = ["reproduced", claims.SMALLER, "not reproduced", "inconclusive", "not tested"]
# Columns of numbers in claims.csv, for each comparison.
COMPARISONS = ("", "tuned_", "control_", "fair_")
EFFECTS = [prefix + name for prefix, name in product(COMPARISONS, ("ours", "low", "high"))]
MARKS = ("<!-- verdicts -->\n", "<!-- /verdicts -->\n")


@dataclass(frozen=True)
class Page:
    """The parameters of the overview, as report.py reads them."""

    profile: str
    report: str = "overview"
    size: str = ""
    seeds: tuple[int, ...] = ()

    @property
    def beside(self) -> str:
        """The folder of the overview's tables, seen from figures/."""
        return f"overview/{self.profile}/"


def choose_page(names: dict) -> Page:
    """Return the page that a notebook's names ask for.

    Raises UserError for a profile that does not exist.
    """
    if names["profile"] not in params.PROFILES:
        raise UserError(
            f"profile: '{names['profile']}' is not one; known: {', '.join(params.PROFILES)}"
        )
    return Page(names["profile"])


def collect_verdicts(profile: str) -> pd.DataFrame:
    """Return a row for each claim of each report.

    Columns: report, claim, says, where, printed, unit, primary, confound; ours, low, high (95 %),
    n (seeds), verdict, kind (of verdict), rows (trained on), run. Where the report was not run at
    the profile, its effects are NaN, n is 0, the verdict is "not tested", and run is ().
    """
    parts = []
    for slug in TITLES:
        file = runs.FIGURES / slug / profile / "claims.csv"
        part = list_claims(slug)
        if file.exists():
            part = add_results(part, slug, profile, file)
        else:
            part = part.assign(
                **dict.fromkeys(EFFECTS, math.nan),
                n=0,
                verdict="not tested: not run at this profile",
                part="",
                rows="",
                run="",
            )
        parts.append(part.assign(report=slug))
    frame = pd.concat(parts, ignore_index=True)
    verdict = frame["verdict"].str.replace("not tested at this profile", "not tested")
    return frame.assign(
        kind=pd.Categorical(verdict.str.split(":").str[0], VERDICTS),
        run=[tuple(ids.split()) for ids in frame["run"]],
    )


def list_claims(slug: str) -> pd.DataFrame:
    """Return a row for each claim of a report, as its file of claims states it."""
    rows = []
    for claim in claims.read_claims(slug):
        row = {
            "claim": claim.id,
            "where": claim.where,
            "says": claim.says,
            "unit": claim.unit,
            "primary": claim.primary,
            "printed": verify.format_claimed_value(claim),
            "printed_unit": verify.printed_unit(claim),
            "judged": claim.kind,
            "confound": claim.confound,
        }
        rows.append(row)
    return pd.DataFrame(rows)


def add_results(listed: pd.DataFrame, slug: str, profile: str, file: Path) -> pd.DataFrame:
    """Return the claims of a report with their results, and with the rows they were trained on.

    file: claims.csv, which lies beside results.csv. Raises UserError where the two disagree.
    """
    texts = dict.fromkeys(("where", "printed", "part", "verdict", "run"), str)
    results = pd.read_csv(
        file, keep_default_na=False, na_values=dict.fromkeys(EFFECTS, ""), dtype=texts
    )
    ledger = pd.read_csv(file.with_name("results.csv"), usecols=["run", "rows"])
    training_rows = ledger.drop_duplicates().set_index("run")["rows"]
    rows = []
    for ids in results["run"].str.split():
        if not set(ids) <= set(training_rows.index):
            raise UserError(
                f"claims.csv and results.csv of {slug} are of different runs; "
                f"make report-{slug} PROFILE={profile} draws both from the records"
            )
        sizes = sorted({training_rows[run].min() for run in ids})
        rows.append(" to ".join(f"{size:,}" for size in sizes))
    results = results.assign(rows=rows).drop(columns=["primary", "confound"])
    return listed[["claim", "primary", "confound"]].merge(results, on="claim")


def verdicts_for_page(rows: pd.DataFrame, whole: bool = False) -> pd.DataFrame:
    """Return claims as a page shows them.

    rows: of collect_verdicts; whole: add the reason of a verdict and what is known against it.
    """
    primary = rows["primary"].map({True: "; primary", False: ""})
    frame = pd.DataFrame(
        {
            "report": rows["report"],
            "says": rows["says"] + " (" + rows["where"] + primary + ")",
            "printed": [verify.format_printed(row) for row in rows.itertuples()],
            "ours": [verify.format_effect(row) for row in rows.itertuples()],
            "training rows": rows["rows"].replace("", "–"),
            "n seeds": rows["n"].map(lambda n: f"{n}" if n else "–"),
            "verdict": rows["kind"].astype(str),
        }
    )
    if whole:
        frame["verdict"] = rows["verdict"]
        frame["to bear in mind"] = rows["confound"].replace("", "–")
    frame["run"] = rows["run"]
    return frame


def page_links(profile: str) -> dict[str, str]:
    """Return the address of each report's page that exists, seen from figures/."""
    links = {}
    for slug in TITLES:
        address = f"{slug}/{profile}/report.html"
        if (runs.FIGURES / address).exists():
            links[slug] = address
    return links


def list_pages(profile: str) -> report.Html:
    """Return the list of reports, each with its page or with what makes one."""
    links = page_links(profile)
    items = []
    for slug, title in TITLES.items():
        if slug in links:
            items.append(f'<a href="{links[slug]}">{title}</a> ({slug})')
        elif slug in params.REPORTS:
            command = f"make reproduce-{slug} PROFILE={profile}"
            items.append(f"{title} ({slug}): no page at this profile yet; {command} makes it")
        else:
            items.append(f"{title} ({slug}): not built yet; its claims are listed")
    return report.Html("<ul>" + "".join(f"<li>{item}</li>" for item in items) + "</ul>")


def count_by_report(frame: pd.DataFrame) -> pd.DataFrame:
    """Return how many claims of each report got which verdict."""
    count = frame.groupby(["report", "kind"], observed=False).size().unstack()
    count = count.loc[[slug for slug in TITLES if slug in count.index]]
    evidence = []
    for slug in count.index:
        ids: dict[str, None] = {}
        for claim_runs in frame.loc[frame["report"] == slug, "run"]:
            ids |= dict.fromkeys(claim_runs)
        evidence.append(tuple(ids))
    total = count.sum(axis=1).to_numpy()
    return count.reset_index().assign(claims=total, run=evidence)


def collect_costs(profile: str) -> pd.DataFrame:
    """Return runs, hours of work and devices of each report that was run at the profile."""
    rows = []
    for slug in params.REPORTS:
        records = [r for r in runs.read_all(slug) if r["spec"]["profile"] == profile]
        if not records:
            continue
        row = {
            "report": slug,
            "runs recorded": len(records),
            "hours of work": sum(record["seconds"] for record in records) / 3600,
            "devices": ", ".join(sorted({r["environment"]["device"] for r in records})),
            "run": tuple(record["run"] for record in records),
        }
        rows.append(row)
    return pd.DataFrame(rows)


# ---- the README ----


def readme_verdicts() -> str:
    """Return the verdicts on real data as Markdown.

    It has the result and the page of each report that was run, counts of verdicts, and the claims
    that were tested or are primary.
    """
    frames = []
    for profile in ("real", "paper"):
        frame = collect_verdicts(profile).assign(profile=profile)
        was_run = frame["report"][frame["run"].map(len) > 0]
        frames.append(frame[frame["report"].isin(was_run)])
    done = pd.concat(frames)
    lead = ""
    for (profile, slug), part in done.groupby(["profile", "report"], sort=False):
        lead += (
            f"- **{slug}**, profile {profile}, "
            f"[page](figures/{slug}/{profile}/report.html): "
            f"{findings.result(slug, part).removeprefix('Result: ')} "
            f"{verify.describe_pooling(part)}\n"
        )
    counts = ""
    for _, part in done.groupby("profile"):
        for row in count_by_report(part)[["report", "claims", *VERDICTS]].itertuples(index=False):
            counts += "| " + " | ".join(map(str, row)) + " |\n"
    text = (
        f"{lead}\n| report | claims | {' | '.join(VERDICTS)} |\n"
        f"|{'---|' * (len(VERDICTS) + 2)}\n{counts}\n"
        "Claims that were tested, and the primary ones. In brackets the 95 % interval, which one "
        "seed does not give, and of several sets or metrics the one with the largest p. Control: "
        "what is left, at the report's rates, beside the model that could refute the claim. What "
        "to bear in mind with each stands on its page.\n\n"
        "| report | says | printed | ours | verdict | equal trials | control | training rows "
        f"| seeds |\n|{'---|' * 9}\n{readme_claims(done)}\n"
    )
    not_run = ", ".join(f"`{slug}`" for slug in TITLES if slug not in set(done["report"]))
    if not_run:
        text += f"Not yet run on real data: {not_run}.\n"
    return text


def readme_claims(done: pd.DataFrame) -> str:
    """Return the rows of the README's table of claims: those that were tested or are primary.

    done: collect_verdicts of the reports that were run. Tested claims come first.
    """
    tested = VERDICTS[:4]
    told = done[done["primary"] | done["kind"].isin(tested)]
    told = told.sort_values("kind", key=lambda kind: kind == "not tested", kind="stable")
    others = zip(effects_beside(told, "tuned"), effects_beside(told, "control"), strict=True)
    lines = ""
    for row, (tuned, control) in zip(told.itertuples(), others, strict=True):
        lines += (
            f"| `{row.report}` {row.profile} | {row.says} | {verify.format_printed(row)} "
            f"| {verify.format_effect(row)} | {row.kind} | {tuned} | {control} "
            f"| {row.rows or '–'} | {row.n or '–'} |\n"
        )
    return lines


def effects_beside(told: pd.DataFrame, comparison: str) -> list[str]:
    """Return the effect of each claim in another comparison, and its verdict there.

    comparison: "tuned", which has equal trials for every model, or "control".
    """
    words = "|".join(sorted(VERDICTS, key=len, reverse=True))
    verdicts = told[comparison].astype(str).str.extract(f"({words})", expand=False).fillna("–")
    texts = []
    for verdict, row in zip(verdicts, told.itertuples(), strict=True):
        effect = verify.format_effect(row, which=f"{comparison}_")
        texts.append(verdict if effect == "–" else f"{effect}, {verdict}")
    return texts


def write_readme():
    """Write the verdicts on real data between the README's markers."""
    file = ROOT / "README.md"
    begin, end = MARKS
    before, rest = file.read_text(encoding="utf-8").split(begin)
    _, after = rest.split(end)
    runs.write(file, before + begin + readme_verdicts() + end + after)


def write_page(profile: str) -> Path:
    """Draw figures/index-<profile>.html and return its path."""
    runs.check_writable(runs.FIGURES, "QA_FIGURES")
    p = choose_page({"profile": profile})
    name = "00_overview.ipynb"
    nb = render.load_notebook_node(str(ROOT / "notebooks" / name))
    nb = render.execute(nb, name, {"profile": p.profile})
    page = runs.FIGURES / f"index-{p.profile}.html"
    runs.write(page, render.page(nb, p))
    return page
