"""Frames of a page, from run records: one column `run` in each, so that every number has its evidence."""

from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import rel_entr

from qa_lib.evidence import stats
from qa_lib.reports import plans
from qa_lib.reports.trials import selected_evaluation
from qa_lib.settings import params
from qa_lib.settings.spec import Spec
from qa_lib.store import runs


def add_display_names(frame: pd.DataFrame) -> pd.DataFrame:
    """A frame of runs with names that a reader knows: `model` ("V-DB") and `mixture` ("60:40"), both in their order; `rate`
    and `dropout` as text."""
    ratios = sorted(frame["ratio"].dropna().unique())
    text = {r: f"{100 * r:.0f}:{100 - 100 * r:.0f}" for r in ratios}
    mixture = pd.Categorical(frame["ratio"].map(text), text.values(), ordered=True)
    names = []
    for report, variant in zip(frame["report"], frame["variant"], strict=True):
        names.append(plans.display_name(report, variant))
    every = [plans.display_names(report) for report in frame["report"].unique()]
    known = [name for of_report in every for name in of_report if name in set(names)]
    rates = sorted(frame["learning_rate"].unique()) if "learning_rate" in frame else []
    shown = [np.format_float_scientific(r, trim="-", exp_digits=1) for r in rates]
    text = (
        {
            "rate": pd.Categorical(
                frame["learning_rate"].map(dict(zip(rates, shown, strict=True))), shown
            )
        }
        if rates
        else {}
    )
    if "dropout_at" in frame:
        text["dropout"] = frame["dropout_at"] + frame["layer_dropout"].map(" {:g}".format).where(
            frame["dropout_at"] != "none", ""
        )
    return frame.assign(model=pd.Categorical(names, known, ordered=True), mixture=mixture, **text)


def average_over_seeds(ledger: pd.DataFrame, by: list[str], metrics=("em", "f1")) -> pd.DataFrame:
    """Mean and sd over seeds: a row for each group of `by`, with test rows n, seeds and runs."""
    rows = []
    for key, group in ledger.groupby(by, sort=True, observed=True):
        values = group.groupby("metric")["value"].agg(["mean", "std"])
        scores = {k: v for m in metrics for k, v in zip((m, f"{m}_sd"), values.loc[m], strict=True)}
        count = {"n": group["n"].iloc[0], "seeds": group["seed"].nunique()}
        rows.append(
            dict(zip(by, key, strict=True)) | scores | count | {"run": tuple(group["run"].unique())}
        )
    return pd.DataFrame(rows)


def select_values(ledger: pd.DataFrame, **which) -> pd.Series:
    """EM, or another metric, of the runs whose columns are as given, one value a seed."""
    which = {"metric": "em"} | which
    return ledger[(ledger[[*which]] == pd.Series(which)).all(axis=1)].set_index("seed")["value"]


def collect_costs(specs: list[Spec]) -> pd.DataFrame:
    """A row for each run: labels, rows of each domain, what its record says of data, size and cost."""
    costs = (
        "seconds",
        "training_seconds",
        "tokens_per_second",
        "peak_memory_mb",
        "parameters",
        "active_parameters",
    )
    return add_display_names(
        pd.DataFrame(
            [
                runs.label_columns(s, r)
                | dict(zip(s.domains, s.rows, strict=True))
                | r["data"]
                | {k: r[k] for k in costs}
                for s, r in runs.require_records(specs)
            ]
        )
    )


def describe_datasets(P, specs: list[Spec]) -> pd.DataFrame:
    """A row for each test set: rows trained and tested on, rows of several windows, what the encoder had seen of it."""
    found, rows = runs.require_records(specs), []
    unknown = "no: generated" if P.source == "embedded" else "not stated"
    for name in specs[0].tests:
        known, scores = params.read_datasets(P.source, P.data)[name], found[0][1]["metrics"][name]
        most = max(
            (n for s in specs for d, n in zip(s.domains, s.rows, strict=True) if d == name),
            default=0,
        )
        where = {}
        if P.source == "own":
            names = ["/".join(Path(file).parts[-2:]) for file in known.train + known.test]
            where["files"] = runs.readable_name(", ".join(names))
        rows.append(
            {
                "dataset": name,
                **where,
                "training rows, at most": most,
                "test rows": scores["n"],
                "different texts": f"{scores['clusters']:,} {known.cluster}s",
                "longer than a window": scores["overflowed"],
                "seen by the encoder": known.seen_by.get(P.encoder, unknown),
                "run": tuple(r["run"] for _, r in found),
            }
        )
    return pd.DataFrame(rows)


def collect_routing(specs: list[Spec]) -> pd.DataFrame:
    """Where the test sets' tokens went: a row for each run, set and expert, with its share of the set's routed picks."""
    return add_display_names(
        pd.DataFrame(
            [
                runs.label_columns(s, r)
                | {"set": name, "expert": i + 1, "share": n / sum(r["load"][name])}
                for s, r in runs.require_records(specs)
                for name in s.tests
                for i, n in enumerate(r["load"][name])
            ]
        )
    )


def collect_router_steps(specs: list[Spec]) -> pd.DataFrame:
    """What the router did in training: a row for each run and logging step, with both losses, the share of dropped picks and
    the largest expert's load in multiples of an even share."""
    return add_display_names(
        pd.DataFrame(
            [
                runs.label_columns(s, r)
                | {k: step[k] for k in ("step", "balance_loss", "z_loss", "dropped")}
                | {"largest load": max(step["load"]) * len(step["load"])}
                for s, r in runs.require_records(specs)
                for step in r["load"]["training"]
            ]
        )
    )


def contrasting_answers(examples: pd.DataFrame, ours: str, theirs: str) -> pd.DataFrame:
    """Answers of two runs to the same question, chosen by rule: of each test set, ids in order, the first two that only `ours`
    answers exactly, the first two that only `theirs` does, the first that neither does."""
    pair = [examples[examples["run"] == run].set_index(["set", "id"]) for run in (ours, theirs)]
    both = (
        pair[0].add_suffix("_ours").join(pair[1].add_suffix("_theirs")).sort_index().reset_index()
    )
    case = both["em_ours"].gt(0).astype(int) - both["em_theirs"].gt(0)
    kinds = {
        "only ours": (case == 1, 2),
        "only theirs": (case == -1, 2),
        "neither": ((case == 0) & both["em_ours"].eq(0), 1),
    }
    parts = [
        both[rows].groupby("set", sort=False).head(n).assign(case=name)
        for name, (rows, n) in kinds.items()
    ]
    return (
        pd.concat(parts)
        .assign(run=[(ours, theirs)] * sum(map(len, parts)))
        .sort_values(["set", "id"])
    )


def answers_table(P, ours: Spec, theirs: Spec, load_test_sets) -> pd.DataFrame:
    """Return the answers of two runs that `contrasting_answers` chooses (Table 1 of ExBERT's report).

    As text beside question and gold answer where the text is ours or the reader's own; else as
    character spans, since real text is not published. load_test_sets: data.selection's.
    """
    names = {
        side: plans.display_name(P.report, spec.variant)
        for side, spec in (("theirs", theirs), ("ours", ours))
    }
    pair = [ours, theirs]
    run_names = [record["run"] for _, record in runs.require_records(pair)]
    answers = contrasting_answers(runs.collect_examples(pair), *run_names)
    if P.source not in ("embedded", "own"):
        right = {"only ours": names["ours"], "only theirs": names["theirs"], "neither": "neither"}
        columns = {"set": answers["set"], "id": answers["id"], "right": answers["case"].map(right)}
        for side, name in names.items():
            start, end = answers[f"start_{side}"], answers[f"end_{side}"]
            columns[name] = start.astype(str) + "–" + end.astype(str)
        return pd.DataFrame(columns | {"run": answers["run"]})
    rows = {}
    for name, (_, every) in load_test_sets(theirs).items():
        rows |= {(name, row["id"]): row for row in every}
    # Test sets may have been made smaller since.
    keys = zip(answers["set"], answers["id"], strict=True)
    answers = answers[[key in rows for key in keys]]
    own = [rows[key] for key in zip(answers["set"], answers["id"], strict=True)]
    columns = {
        "set": answers["set"],
        "question": [row["question"] for row in own],
        "gold": [(row["answers"]["text"] or ["(no answer)"])[0] for row in own],
    }
    for side, name in names.items():
        ends = zip(own, answers[f"start_{side}"], answers[f"end_{side}"], strict=True)
        columns[name] = [row["context"][start:end] for row, start, end in ends]
    return pd.DataFrame(columns | {"run": answers["run"]})


def lowest_validation_loss(specs: list[Spec]) -> pd.DataFrame:
    """A row for each setting of the sweeps: epoch of the lowest validation loss, that loss, training loss of the last epoch."""
    frame = add_display_names(stats.curves(runs.collect_histories(specs)))
    frame = frame.fillna({"dropout": "none"}).assign(
        layer=frame["experts"].map("{:.0f} experts".format).replace("nan experts", "none"),
        balance=frame["balance"].map("{:g}".format).replace("nan", "–"),
    )
    return average_over_seeds(
        frame,
        ["model", "blocks", "layer", "rate", "dropout", "balance"],
        ("best_epoch", "validation_loss", "train_loss"),
    )


def trials_table(specs: list[Spec]) -> pd.DataFrame:
    """A row for each trial of a model: rate and epochs, of a mixture its experts', and the look (runs.collect_histories) that it kept."""
    rows = [
        runs.label_columns(s, r) | {"learning_rate": e.learning_rate, "epochs": e.epochs, **h}
        for s, r in runs.require_records(specs)
        for e in [s.parents[0] if s.gate else s]
        for h in [selected_evaluation(s, r)]
    ]
    return add_display_names(pd.DataFrame(rows)).sort_values(["model", "rate", "epochs"])


def scores_by_part(specs: list[Spec]) -> pd.DataFrame:
    """EM of each run on the datasets that its pooled test sets are made of: a row for each run, set and dataset."""
    rows = runs.collect_examples(specs)
    em = (
        rows[rows["part"].notna()]
        .groupby(["run", "variant", "seed", "set", "part"], as_index=False)["em"]
        .agg(["mean", "size"])
    )
    return add_display_names(
        em.rename(columns={"mean": "value", "size": "n"}).assign(
            report=specs[0].report, metric="em", ratio=np.nan
        )
    )


def mean_weights(P, specs: list[Spec]) -> pd.DataFrame:
    """What mixtures trust: the mean weight of each expert, a row for each run, dataset and expert."""
    rows = runs.collect_examples(specs)
    rows = rows.assign(dataset=rows["part"].fillna(rows["set"]))
    rows = rows.rename(columns={f"gate_{k + 1}": d for k, d in enumerate(P.domains)})
    mean = rows.groupby(["run", "variant", "seed", "dataset"], as_index=False)[P.domains].mean()
    return add_display_names(
        mean.melt(["run", "variant", "seed", "dataset"], P.domains, "expert", "weight").assign(
            report=P.report, ratio=np.nan
        )
    )


def calibration_bins(P, mixture: Spec) -> pd.DataFrame:
    """Is a gate's weight a probability? Pairs of question and expert in ten bins of equal width of the weight: their mean weight
    and the share of pairs in which the question is of the expert's own dataset, or out of domain the share it answers exactly."""
    rows = runs.collect_examples([mixture]).rename(
        columns={f"gate_{k + 1}": d for k, d in enumerate(P.domains)}
    )
    pairs = rows.melt(["run", "set", "id"], P.domains, "expert", "weight").merge(
        runs.collect_expert_examples(mixture)[["set", "id", "expert", "em"]],
        on=["set", "id", "expert"],
    )
    inside = pairs["set"].isin(P.domains)
    own = pairs[inside].assign(
        of="in domain, its own dataset", share=pairs["set"] == pairs["expert"]
    )
    far = pairs[pairs["set"] == P.pools[0]].assign(
        of=f"{P.pools[0]}, right answer", share=pairs["em"].gt(0)
    )
    both = pd.concat([own, far]).assign(bin=lambda d: np.minimum((d["weight"] * 10).astype(int), 9))
    return both.groupby(["of", "bin"], as_index=False).agg(
        weight=("weight", "mean"),
        share=("share", "mean"),
        pairs=("share", "size"),
        run=("run", "first"),
    )


def calibration_error(bins: pd.DataFrame) -> float:
    r"""Expected calibration error of `calibration`'s bins (Guo et al. 2017, eq. 5): $\sum_b \frac{n_b}{N} |share_b - weight_b|$."""
    return float(np.average((bins["share"] - bins["weight"]).abs(), weights=bins["pairs"]))


def overruled_answers(P, mixture: Spec) -> tuple[pd.DataFrame, str]:
    """Table 3 by rule: of each dataset of the first pool, ids in order, the first two questions on which the mixture is wrong, the
    expert with the largest weight is wrong and another is right; and a sentence that counts how often the gate finds the one
    expert that is right."""
    experts, rows = (
        x[x["set"] == P.pools[0]]
        for x in (runs.collect_expert_examples(mixture), runs.collect_examples([mixture]))
    )
    rows = rows.set_index("id").sort_index()
    right = (
        experts.pivot(index="id", columns="expert", values="em").loc[rows.index, P.domains].gt(0)
    )
    gate = rows[[f"gate_{k + 1}" for k in range(len(P.domains))]].set_axis(P.domains, axis=1)
    trusted = pd.Series(
        right.to_numpy()[np.arange(len(rows)), gate.to_numpy().argmax(1)], rows.index
    )
    lost, one = ~trusted & right.any(axis=1) & rows["em"].eq(0), right.sum(axis=1) == 1
    shown = rows[lost].groupby("part", sort=False).head(2).sort_values("part").index
    cells = {
        d: gate.loc[shown, d].map("{:.2f}".format)
        + right.loc[shown, d].map({True: ", right", False: ", wrong"})
        for d in P.domains
    }
    runs_ = tuple(dict.fromkeys([*rows["run"], *experts["run"]]))
    text = (
        f"Of {len(rows)} questions {one.sum()} are answered right by one expert alone; the gate trusts that one most on "
        f"{(one & trusted).sum()} of them, by chance it would be {one.sum() / len(P.domains):.0f}. The mixture is right on "
        f"{(one & trusted & rows['em'].gt(0)).sum()} of those, and wrong on {(one & lost).sum()} of the others."
    )
    return pd.DataFrame(
        {"dataset": rows.loc[shown, "part"], "id": shown, **cells, "run": [runs_] * len(shown)}
    ), text


def mutual_information(share: pd.DataFrame) -> float:
    r"""Bits that the expert a pick went to tells about its domain, the domains counted alike; share: tables.collect_routing of one run.

    $$I(D; E) = \sum_{d,e} p(d)\,p(e \mid d)\,\log_2 \frac{p(e \mid d)}{p(e)}$$
    """
    p = share.pivot(
        index="set", columns="expert", values="share"
    ).to_numpy()  # (domains, E), p(e | d)
    return float(rel_entr(p, p.mean(0)).sum() / len(p) / np.log(2))
