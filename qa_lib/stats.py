r"""Intervals, tests and verdicts: a report's claims (qa_lib/claims.py), tested on what the ledger holds.

    verdicts(claims, ledger, examples, …)   a row for each claim: difference, interval, p, verdict, runs
    curves(histories)                       ledger rows of losses and of the epoch with the lowest

Seeds s = 1 … n are paired: $d_s$ is the contrast of the runs with seed s, in the direction that the claim says. Two things make
its mean uncertain, and both are in its interval: other seeds ($s^2/n$) and other test questions ($v$).
"""
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd
from scipy import stats as distributions
from statsmodels.stats.multitest import multipletests

from qa_lib.claims import Claim, Contrast, claims
from qa_lib.params import UserError

ALPHA, ENOUGH, MOST = 0.05, 3, 1000   # level; seeds below which nothing is reproduced; seeds that nobody will run
PER_EXAMPLE = ("em", "f1", "tokens")  # metrics that runs.examples holds for every test row
QUICK = "generated text shows that the study works; no number of it is a result"
SMALLER = "reproduced in direction, smaller"


def curves(histories: pd.DataFrame) -> pd.DataFrame:
    """Ledger rows (set `validation`) from runs.histories: lowest validation_loss and its best_epoch, validation_loss_<epoch>,
    and of the last epoch train_loss and loss_gap (validation less training)."""
    rows, no_labels = [], ["epoch", "step", "train_loss", "validation_loss", "validation_em", "validation_f1"]
    for (name, _), run in histories.groupby(["run", "variant"], sort=False):
        run = run.sort_values("epoch")
        if run["validation_loss"].isna().any():
            raise UserError(f"{name}: the validation loss of an epoch is not a number; train it again")
        best, last = run.loc[run["validation_loss"].idxmin()], run.iloc[-1]
        found = {f"validation_loss_{e:g}": x for e, x in zip(run["epoch"], run["validation_loss"], strict=True)}
        found |= {"validation_loss": best["validation_loss"], "best_epoch": best["epoch"], "train_loss": last["train_loss"],
                  "loss_gap": last["validation_loss"] - last["train_loss"]}
        labels = last.drop(no_labels, errors="ignore").to_dict() | {"set": "validation", "n": last.get("validation_rows", 0)}
        rows += [labels | {"metric": k, "value": float(x)} for k, x in found.items()]
    return pd.DataFrame(rows)


# ---- other test questions ----

def bootstrap(sums: np.ndarray, counts: np.ndarray, weights: np.ndarray, clusters_first: bool) -> np.ndarray:
    r"""Scores (B, R) of R runs when whole clusters are drawn again (Davison and Hinkley 1997, 3.8).

    sums (K, R), counts (K,): score and rows of each cluster; weights (B, K): how often each cluster is drawn.
    $y_{br} = \sum_k w_{bk} S_{kr} / \sum_k w_{bk} m_k$, or, means of clusters first, $\frac1K \sum_k w_{bk} S_{kr}/m_k$
    """
    if clusters_first:
        return weights @ (sums / counts[:, None]) / len(counts)      # (B, K) (K, R) → (B, R)
    return weights @ sums / (weights @ counts)[:, None]


def resample(ledger: pd.DataFrame, examples: pd.DataFrame, times: int = 1000, seed: int = 0) -> dict[tuple, np.ndarray]:
    """(run, set, metric) → its score in each resample, (B,). A set's resamples are the same for all runs: pairs stay pairs.

    Whether rows or clusters are averaged is what gives the recorded score; UserError where neither does.
    """
    rng, found = np.random.default_rng(seed), {}
    for name, recorded in ledger[ledger["metric"].isin(PER_EXAMPLE)].groupby("set"):
        rows = examples[(examples["set"] == name) & examples["run"].isin(recorded["run"])]
        count = rows.groupby(["cluster", "run"], observed=True).size().unstack(fill_value=0)
        if lacks := sorted(set(recorded["run"]) - set(count)):
            raise UserError(f"{lacks[0]} has a score on {name} but no examples of it; train it again")
        count = count / count.sum()   # shares: a run that the plan lists under two labels is here twice
        if (odd := (count.sub(count.iloc[:, 0], axis=0).abs() > 1e-9).any()).any():
            raise UserError(f"{odd.idxmax()} was tested on other rows of {name} than {count.columns[0]}; test both on one set")
        K, m, total = len(count), count.iloc[:, 0].to_numpy(), rows.groupby("run", observed=True).size()
        weights = rng.multinomial(K, np.full(K, 1 / K), size=times).astype(float)   # (B, K)
        for metric, values in recorded.groupby("metric"):
            if (bad := rows[metric].isna()).any():
                raise UserError(f"{rows['run'][bad].iloc[0]}: {metric} of an example of {name} is not a number; train it again")
            S = rows.astype({metric: float}).groupby(["cluster", "run"], observed=True)[metric].sum().unstack() / total   # (K, R)
            value = values.drop_duplicates("run").set_index("run")["value"][S.columns].to_numpy()
            for clusters_first in (False, True):
                off = np.abs(bootstrap(S.to_numpy(), m, np.ones((1, K)), clusters_first)[0] - value)   # (R,)
                if off.max() < 0.01:
                    break
            else:
                raise UserError(f"{S.columns[off.argmax()]}: ledger and examples disagree about {metric} on {name}")
            found |= zip([(run, name, metric) for run in S], bootstrap(S.to_numpy(), m, weights, clusters_first).T, strict=True)
    for x in ledger[ledger["metric"] == "best_epoch"].drop_duplicates("run").itertuples():
        found[x.run, x.set, x.metric] = x.value + rng.uniform(-0.5, 0.5, times)   # the lowest loss lies within that epoch
    return found


# ---- paired differences ----

@dataclass(frozen=True)
class Part:
    """One contrast of single cells or of means of cells."""
    label: str
    d: np.ndarray                 # (n,), over the seeds that all its sides have
    dropped: tuple[int, ...]      # seeds that some side lacks
    v: float                      # variance of the mean of d over test questions
    rounding: float               # the same for a metric without questions: it shrinks with n
    runs: tuple[str, ...]
    key: tuple                    # parts with the same key share a variance


def statistic(c: Contrast, y: list[np.ndarray]) -> np.ndarray:
    r"""The contrast of its sides, in the claim's direction; y: one array a side, all of one shape.

    $\pm(g(y_1, y_2) - g(y_3, y_4) - \text{target})$ with $g(a, b) = a - b$, or, relative, $100 (a/b - 1)$
    """
    def g(a, b=0.0):
        return 100 * (a / b - 1) if c.scale == "relative" else a - b

    return (1 if c.direction == "higher" else -1) * (g(*y[:2]) - (g(*y[2:]) if len(y) > 2 else 0) - c.target)


def cell(ledger: pd.DataFrame, want: dict) -> dict[int, tuple]:
    """Seed → (run, set, metric) of a cell; KeyError where it is empty, UserError where several runs of a seed fit."""
    rows = ledger
    for column, value in want.items():
        x = rows[column] if column in rows else pd.Series(np.nan, rows.index)
        close = isinstance(value, float) and np.isclose(pd.to_numeric(x, errors="coerce").to_numpy(float), value, rtol=1e-6, atol=0)
        rows = rows[x.isna() if value is None else close if isinstance(value, float) else x == value]
    shown = ", ".join(f"{k} {v}" for k, v in want.items() if k not in ("set", "metric"))
    if rows.empty:
        raise KeyError(f"no run of {shown} with {want['metric']} on {want['set']}")
    rows = rows.drop_duplicates(["run", "seed"])
    if rows["seed"].duplicated().any():
        differ = [c for c in rows if c not in ("run", "seed", "value") and rows[c].astype(str).nunique() > 1]
        raise UserError(f"several runs of one seed fit {shown}: the contrast must say which {' or '.join(differ) or 'run'}")
    return {s: (r, want["set"], want["metric"]) for s, r in zip(rows["seed"], rows["run"], strict=True)}


def part(c: Contrast, label: str, sides: list[dict], ledger: pd.DataFrame, draws: dict[tuple, np.ndarray], times: int) -> Part:
    """Paired differences of one part, and their variance over test questions."""
    cells = [[cell(ledger, dict(zip(side, values, strict=True)))
              for values in product(*(v if isinstance(v, list) else [v] for v in side.values()))] for side in sides]
    every = [set(x) for side in cells for x in side]
    seeds = sorted(set.intersection(*every))
    if not seeds:
        raise KeyError("no seed that all sides have")
    keys = [[[x[s] for s in seeds] for x in side] for side in cells]   # side → (cells, n) of (run, set, metric)
    used = [sorted({k for x in side for k in x}) for side in keys]
    if len(used) > 1 and used[0] == used[1]:
        raise UserError(f"{used[0][0][0]} is compared with itself: name the column in which the sides differ")
    names = {k[0] for side in used for k in side}
    value = {(x.run, x.set, x.metric): x.value for x in ledger[ledger["run"].isin(names)].itertuples()}
    mean = [np.array([[value[k] for k in x] for x in side]).mean(0) for side in keys]                # (cells, n) → (n,)
    drawn = [np.array([[draws.get(k, np.full(times, value[k])) for k in x] for x in side]).mean(0) for side in keys]   # (n, B)
    with np.errstate(divide="ignore", invalid="ignore"):
        d, v = statistic(c, mean), statistic(c, drawn).mean(0).var(ddof=1)
    if not (np.isfinite(d).all() and np.isfinite(v)):
        raise UserError(f"a difference of {sorted(names)[0]} is not a number: percent of nothing?")
    asked = any(k[2] in PER_EXAMPLE for side in used for k in side)
    key = (c.scale, *((len(x), *sorted({k[1:] for k in u})) for x, u in zip(cells, used, strict=True)))
    return Part(label, d, tuple(sorted(set.union(*every) - set(seeds))), float(v * asked), float(v * (not asked)),
                tuple(sorted(names)), key)


def seed_variance(parts: list[Part]) -> dict[int, tuple[float, int, float]]:
    r"""id(part) → ($s^2$, ν, p of Levene's test): the variance of $d_s$ over seeds, pooled over contrasts c of the same kind.

    $s^2 = \sum_c \sum_s (d_{cs} - \bar d_c)^2 / \nu$, $\nu = \sum_c (n_c - 1)$

    Contrasts of the same runs count once. Each has a variance of its own where Levene's test (from medians: Brown and
    Forsythe 1974; contrasts of at least three seeds) gives p < .01.
    """
    kinds, found = {}, {}
    for x in parts:
        kinds.setdefault(x.key, {}).setdefault(x.runs, []).append(x)
    for same in kinds.values():
        d = [xs[0].d for xs in same.values()]
        tested, level = [x for x in d if len(x) >= ENOUGH], 1.0
        if len(tested) > 1 and any(np.ptp(x) > 0 for x in tested):
            level = float(distributions.levene(*tested, center="median").pvalue)
        for xs in same.values():
            pool = [xs[0].d] if level < 0.01 else d
            nu = sum(len(x) - 1 for x in pool)
            s2 = sum(((x - x.mean()) ** 2).sum() for x in pool) / nu if nu else np.nan
            found |= {id(x): (float(s2), nu, level) for x in xs}
    return found


# ---- interval, test, verdict; numbers or arrays ----

def interval(d, s2, nu, v, n, level: float = 1 - ALPHA) -> tuple[np.ndarray, np.ndarray]:
    r"""Ends of the interval of a mean difference: $\bar d \pm t_\nu \sqrt{s^2/n + v}$"""
    half = distributions.t.ppf((1 + level) / 2, nu) * np.sqrt(s2 / n + v)
    return d - half, d + half


def p_value(claim: Claim, d, s2, nu, v, n) -> np.ndarray:
    r"""p of no effect in the claim's direction: two-sided, and 1 in the other direction; for equivalence the larger of the
    one-sided p of $d \le -m$ and of $d \ge m$ (Schuirmann 1987), which is ≤ .05 where the 90 % interval lies in ±m."""
    se = np.maximum(np.sqrt(s2 / n + v), 1e-12)     # 0: every seed and question says the same
    if claim.kind == "equivalence":
        return distributions.t.sf((claim.margin - np.abs(d)) / se, nu)
    return np.where(d > 0, 2 * distributions.t.sf(np.abs(d) / se, nu), 1.0)


def rules(claim: Claim, d, s2, nu, v, n, factor: float = 1.0, parts: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """(holds, fails) of one part. Neither: inconclusive; both: the direction is as printed, the size is not.

    factor: Holm's, by which p is raised. A claim of several parts holds if each does (no adjustment: Berger 1982), and fails
    if one does at ALPHA / parts.
    """
    low, high = interval(d, s2, nu, v, n)
    least, most = interval(d, s2, nu, v, n, 1 - ALPHA / parts)
    holds = p_value(claim, d, s2, nu, v, n) * factor <= ALPHA
    if claim.kind == "equivalence":
        return holds, (least > claim.margin) | (most < -claim.margin)
    if claim.kind == "superiority":
        return holds, most < claim.effect / 2
    a, b = claim.range
    return holds & (low >= a / 2) & (high <= 2 * b), (most < a) | (least > b)


def verdict(claim: Claim, estimates: list[tuple], factor: float = 1.0) -> str:
    """The verdict on a claim from (d, s², ν, v, n) of each of its parts.

    What limits an inconclusive one: seeds, with the smallest n that would decide it if d, s² and v stayed as they are; the
    test questions, where no n would.
    """
    words, needs = [], []
    for d, s2, nu, v, n in estimates:
        holds, fails = rules(claim, d, s2, nu, v, n, factor, len(estimates)) if nu else (False, False)
        if holds and n >= ENOUGH:
            words.append(SMALLER if fails and (claim.kind == "superiority" or d < claim.range[0]) else "reproduced")
        elif fails and not holds:
            words.append("not reproduced")
        else:
            words.append("inconclusive")
            more = np.append(np.arange(max(n, ENOUGH), MOST + 1), 10**9)
            decided = np.any(rules(claim, d, s2, nu + more - n, v, more, factor, len(estimates)), 0) if nu else more == ENOUGH
            needs.append(more[decided.argmax()] if decided.any() else np.inf)
    if not needs or "not reproduced" in words:
        return next(w for w in ("not reproduced", SMALLER, "reproduced") if w in words)
    if (n := max(needs)) > MOST:
        return "inconclusive: test questions (no n suffices)" if np.isinf(n) else f"inconclusive: seeds (needs n>{MOST})"
    return f"inconclusive: seeds (needs n={n:.0f})"


def estimated(listed: list[Claim], ledger: pd.DataFrame, examples: pd.DataFrame, times: int) -> dict[str, tuple]:
    """Claim → (size, [(part, s², ν, Levene's p)], why there is none). Sizes are never pooled: the largest one in which every
    part has three seeds, else the one with most."""
    found = {c.id: (None, [], "no run could test it") for c in listed}
    for size in sorted(ledger["size"].unique()):                         # full, then small
        rows, parts = ledger[ledger["size"] == size], {}
        draws = resample(rows, examples, times)
        for c in listed:
            try:
                parts[c.id] = [part(c.contrast, *x, rows, draws, times) for x in (c.contrast.parts() if c.contrast else [])]
            except KeyError as e:
                found[c.id] = found[c.id] if found[c.id][1] else (size, [], e.args[0])
        spread = seed_variance([x for xs in parts.values() for x in xs])
        for name, xs in parts.items():
            before = min((len(x[0].d) for x in found[name][1]), default=0)
            if xs and before < min(ENOUGH, *(len(x.d) for x in xs)):
                found[name] = (size, [(x, *spread[id(x)]) for x in xs], "")
    return found


def verdicts(report: str | list[Claim], ledger: pd.DataFrame, examples: pd.DataFrame, profile: str, domains: list[str],
             arm: str | None = "printed", times: int = 1000) -> pd.DataFrame:
    """One row a claim: what it says, n, d, low, high (95 %), p, p_holm (primary claims), what they rest on, verdict, runs.

    report: its slug, or claims. ledger: runs.ledger, with `curves` below it. domains: the first and the second. arm: rows of
    another are left out. Of several parts, the one with the largest p is shown.
    """
    listed = claims(report) if isinstance(report, str) else report
    if arm and "arm" in ledger:
        ledger = ledger[ledger["arm"] == arm]
    place = dict(zip(domains, ("first", "second"), strict=False))
    ledger, examples = (x.assign(set=x["set"].map(lambda name: place.get(name, name))) for x in (ledger, examples))
    if not (finite := np.isfinite(ledger["value"].astype(float))).all():
        raise UserError("{run}: {metric} on {set} is not a number; train it again".format(**ledger[~finite].iloc[0]))
    table, found = [], estimated(listed, ledger, examples, times)
    for c in listed:
        size, parts, why = found[c.id]
        why = why if profile in c.profiles else c.untestable.get(profile, QUICK)
        estimates = [(x.d.mean(), s2 + len(x.d) * x.rounding, nu, x.v, len(x.d)) for x, s2, nu, _ in parts]
        p = [float(p_value(c, *e)) if e[2] else 1.0 for e in estimates]
        row = {**c.model_dump(include={"id", "where", "says", "kind", "primary", "printed", "unit"}), "size": size, "n": 0,
               "run": (), "estimates": estimates, "verdict": f"not tested at this profile: {why}" if why else None}
        if parts:
            worst = min(range(len(p)), key=lambda i: (-p[i], estimates[i][0]))
            (x, _, nu, levene), (d, s2, _, v, _) = parts[worst], estimates[worst]
            low, high = interval(*estimates[worst]) if nu else (np.nan, np.nan)
            row |= {"part": x.label, "parts": len(parts), "n": min(e[-1] for e in estimates), "d": d, "low": low, "high": high,
                    "p": p[worst] if nu else np.nan, "s2": s2, "nu": nu, "v": v, "levene": levene,
                    "dropped": tuple(sorted({s for y in parts for s in y[0].dropped})),
                    "run": tuple(sorted({r for y in parts for r in y[0].runs}))}
        table.append(row)
    if primary := [r for r in table if r["primary"] and not r["verdict"] and np.isfinite(r["p"])]:
        for r, p in zip(primary, multipletests([r["p"] for r in primary], method="holm")[1], strict=True):
            r["p_holm"] = p
    for c, r in zip(listed, table, strict=True):
        factor = r["p_holm"] / r["p"] if r.get("p_holm") and r["p"] else 1.0
        r["verdict"] = r["verdict"] or verdict(c, r["estimates"], factor)
    return pd.DataFrame(table).reindex(columns=[
        "id", "where", "says", "kind", "primary", "printed", "unit", "size", "part", "parts", "n", "dropped", "d", "low", "high",
        "p", "p_holm", "s2", "nu", "v", "levene", "verdict", "run"])
