"""All reports on one page: what they claim, what was found, at what cost; and the README's table of verdicts.

    python -m qa_lib overview --profile quick     figures/index-quick.html, from each report's page and claims.csv at that profile
    python -m qa_lib overview --readme            the verdicts on real data, between the README's markers

A report that has not been run at the profile is listed as such.
"""

import math
from dataclasses import dataclass
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
# columns of numbers
EFFECTS = [
    f"{which}{k}" for which in ("", "tuned_", "control_", "fair_") for k in ("ours", "low", "high")
]
MARKS = "<!-- verdicts -->\n", "<!-- /verdicts -->\n"


@dataclass(frozen=True)
class Page:
    """What report.py asks of a page's parameters."""

    profile: str
    report: str = "overview"
    size: str = ""
    seeds: tuple[int, ...] = ()

    @property
    def beside(self) -> str:
        """Where its tables lie, from figures/."""
        return f"overview/{self.profile}/"


def choose_page(names: dict) -> Page:
    """The page of a notebook's names. Raises UserError for a profile that does not exist."""
    if names["profile"] not in params.PROFILES:
        raise UserError(
            f"profile: '{names['profile']}' is not one; known: {', '.join(params.PROFILES)}"
        )
    return Page(names["profile"])


def collect_verdicts(profile: str) -> pd.DataFrame:
    """Every claim of every report: report, claim, says, where, printed, unit, primary, confound; ours, low, high (95 %), n,
    verdict, rows (trained on), run where the report was run at the profile, else NaN, 0, "not tested", "" and ()."""
    parts = []
    for slug in TITLES:
        listed = pd.DataFrame(
            [
                {
                    "claim": c.id,
                    "where": c.where,
                    "says": c.says,
                    "unit": c.unit,
                    "primary": c.primary,
                    "printed": verify.format_claimed_value(c),
                    "printed_unit": verify.printed_unit(c),
                    "judged": c.kind,
                    "confound": c.confound,
                }
                for c in claims.read_claims(slug)
            ]
        )
        found = runs.FIGURES / slug / profile / "claims.csv"
        empty = dict.fromkeys(EFFECTS, math.nan) | {
            "n": 0,
            "verdict": "not tested: not run at this profile",
            "part": "",
            "rows": "",
            "run": "",
        }
        if found.exists():
            own = pd.read_csv(
                found,
                keep_default_na=False,
                na_values=dict.fromkeys(EFFECTS, ""),
                dtype=dict.fromkeys(("where", "printed", "part", "verdict", "run"), str),
            )
            rows = (
                pd.read_csv(found.with_name("results.csv"), usecols=["run", "rows"])
                .drop_duplicates()
                .set_index("run")["rows"]
            )
            if not {r for ids in own["run"] for r in ids.split()} <= set(rows.index):
                raise UserError(
                    f"claims.csv and results.csv of {slug} are of different runs; make report-{slug} PROFILE={profile} "
                    "draws both from the records"
                )
            listed = listed[["claim", "primary", "confound"]].merge(
                own.drop(columns=["primary", "confound"]), on="claim"
            )
            listed["rows"] = [
                " to ".join(f"{n:,}" for n in sorted({rows[r].min() for r in ids.split()}))
                for ids in listed["run"]
            ]
        parts.append(listed.assign(**{} if found.exists() else empty, report=slug))
    frame = pd.concat(parts, ignore_index=True)
    kind = (
        frame["verdict"]
        .str.replace("not tested at this profile", "not tested")
        .str.split(":")
        .str[0]
    )
    return frame.assign(
        kind=pd.Categorical(kind, VERDICTS), run=[tuple(r.split()) for r in frame["run"]]
    )


def verdicts_for_page(rows: pd.DataFrame, whole: bool = False) -> pd.DataFrame:
    """Rows of the board as a page shows them; whole: with the reason of a verdict, and what is known against the evidence."""
    more = (
        {"verdict": rows["verdict"], "to bear in mind": rows["confound"].replace("", "–")}
        if whole
        else {}
    )
    primary = rows["primary"].map({True: "; primary", False: ""})
    return pd.DataFrame(
        {
            "report": rows["report"],
            "says": rows["says"] + " (" + rows["where"] + primary + ")",
            "printed": [verify.format_printed(r) for r in rows.itertuples()],
            "ours": [verify.format_effect(r) for r in rows.itertuples()],
            "training rows": rows["rows"].replace("", "–"),
            "n seeds": rows["n"].map(lambda n: f"{n}" if n else "–"),
            "verdict": rows["kind"].astype(str),
            **more,
            "run": rows["run"],
        }
    )


def page_links(profile: str) -> dict[str, str]:
    """The address of each report's page, where it has one, as index.html names it."""
    return {
        slug: f"{slug}/{profile}/report.html"
        for slug in TITLES
        if (runs.FIGURES / slug / profile / "report.html").exists()
    }


def list_pages(profile: str) -> report.Html:
    """The reports and where their pages are, or what makes them."""
    known, items = page_links(profile), []
    for slug, title in TITLES.items():
        make = (
            f"no page at this profile yet; make reproduce-{slug} PROFILE={profile} makes it"
            if slug in params.REPORTS
            else "not built yet; its claims are listed"
        )
        items.append(
            f'<a href="{known[slug]}">{title}</a> ({slug})'
            if slug in known
            else f"{title} ({slug}): {make}"
        )
    return report.Html("<ul>" + "".join(f"<li>{item}</li>" for item in items) + "</ul>")


def count_by_report(frame: pd.DataFrame) -> pd.DataFrame:
    """How many claims of each report got which verdict."""
    count = frame.groupby(["report", "kind"], observed=False).size().unstack()
    count = count.loc[[s for s in TITLES if s in count.index]]
    behind = frame.groupby("report")["run"].agg(
        lambda ids: tuple(dict.fromkeys(x for r in ids for x in r))
    )
    return count.reset_index().assign(
        claims=count.sum(axis=1).to_numpy(), run=behind.loc[count.index].to_numpy()
    )


def collect_costs(profile: str) -> pd.DataFrame:
    """Runs, hours of work and devices of the reports that were run at the profile."""
    rows = []
    for slug in params.REPORTS:
        own = [r for r in runs.read_all(slug) if r["spec"]["profile"] == profile]
        rows += [
            {
                "report": slug,
                "runs recorded": len(own),
                "hours of work": sum(r["seconds"] for r in own) / 3600,
                "devices": ", ".join(sorted({r["environment"]["device"] for r in own})),
                "run": tuple(r["run"] for r in own),
            }
        ] * bool(own)
    return pd.DataFrame(rows)


def readme_verdicts() -> str:
    """The verdicts on real data, as Markdown: of each report that was run its result and its page, counts, and the tested and the
    primary claims."""
    frames = [collect_verdicts(profile).assign(profile=profile) for profile in ("real", "paper")]
    done = pd.concat([f[f["report"].isin(f["report"][f["run"].map(len) > 0])] for f in frames])
    rest = ", ".join(f"`{s}`" for s in TITLES if s not in set(done["report"]))
    lead = "".join(
        f"- **{slug}**, profile {profile}, [page](figures/{slug}/{profile}/report.html): "
        f"{findings.result(slug, part).removeprefix('Result: ')} {verify.describe_pooling(part)}\n"
        for (profile, slug), part in done.groupby(["profile", "report"], sort=False)
    )
    count = "".join(
        "| " + " | ".join(map(str, row)) + " |\n"
        for _, part in done.groupby("profile")
        for row in count_by_report(part)[["report", "claims", *VERDICTS]].itertuples(index=False)
    )
    told = done[done["primary"] | done["kind"].isin(VERDICTS[:4])]
    # else in the reports' order
    told = told.sort_values("kind", key=lambda kind: kind == "not tested", kind="stable")
    words = "|".join(sorted(VERDICTS, key=len, reverse=True))

    def other(which: str) -> list[str]:
        """The effect in the other arm, or beside the control, and its verdict."""
        kinds = told[which].astype(str).str.extract(f"({words})", expand=False).fillna("–")
        return [
            kind
            if (ours := verify.format_effect(r, which=f"{which}_")) == "–"
            else f"{ours}, {kind}"
            for kind, r in zip(kinds, told.itertuples(), strict=True)
        ]

    lines = "".join(
        f"| `{r.report}` {r.profile} | {r.says} | {verify.format_printed(r)} | {verify.format_effect(r)} | {r.kind} | {tuned} | "
        f"{control} | {r.rows or '–'} | {r.n or '–'} |\n"
        for r, tuned, control in zip(
            told.itertuples(), other("tuned"), other("control"), strict=True
        )
    )
    return (
        f"{lead}\n| report | claims | {' | '.join(VERDICTS)} |\n|{'---|' * (len(VERDICTS) + 2)}\n{count}\n"
        "Claims that were tested, and the primary ones. In brackets the 95 % interval, which one seed does not give, and of "
        "several sets or metrics the one with the largest p. Control: what is left, at the report's rates, beside the model "
        "that could refute the claim. What to bear in mind with each stands on its page.\n\n"
        "| report | says | printed | ours | verdict | equal trials | control | training rows | seeds |\n"
        f"|{'---|' * 9}\n{lines}\n" + f"Not yet run on real data: {rest}.\n" * bool(rest)
    )


def write_readme():
    """Write the verdicts on real data between the README's markers."""
    file = ROOT / "README.md"
    before, rest = file.read_text(encoding="utf-8").split(MARKS[0])
    runs.write(file, before + MARKS[0] + readme_verdicts() + MARKS[1] + rest.split(MARKS[1])[1])


def write_page(profile: str) -> Path:
    """Draw figures/index-<profile>.html, from each report's page and claims.csv at that profile."""
    runs.check_writable(runs.FIGURES, "QA_FIGURES")
    p = choose_page({"profile": profile})
    name = "00_overview.ipynb"
    nb = render.load_notebook_node(str(ROOT / "notebooks" / name))
    nb = render.execute(nb, name, {"profile": p.profile})
    page = runs.FIGURES / f"index-{p.profile}.html"
    runs.write(page, render.page(nb, p))
    return page
