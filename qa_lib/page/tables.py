"""Frames of a page, made from run records.

Each frame has a column `run` with the run, or a tuple of the runs, that a row comes from, so that
every number has its evidence.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import rel_entr

from qa_lib.reports import plans
from qa_lib.reports.trials import selected_evaluation, validation_score
from qa_lib.settings import params
from qa_lib.settings.params import name_dataset
from qa_lib.settings.spec import Spec
from qa_lib.store import runs

COSTS = (
    "seconds",
    "training_seconds",
    "tokens_per_second",
    "peak_memory_mb",
    "parameters",
    "active_parameters",
)


def add_display_names(frame: pd.DataFrame) -> pd.DataFrame:
    """Add the names that a reader knows to a frame of runs.

    `model` ("V-DB") and `mixture` ("60:40") are categories in the order of the pages. `rate` and
    `dropout` are text, where the frame has a learning rate and a place of dropout.
    """
    names = []
    for report, variant in zip(frame["report"], frame["variant"], strict=True):
        names.append(plans.display_name(report, variant))
    known = []
    for report in frame["report"].unique():
        known += [name for name in plans.display_names(report) if name in set(names)]
    ratios = sorted(frame["ratio"].dropna().unique())
    mixtures = {ratio: plans.name_mixture(ratio) for ratio in ratios}
    named = frame.assign(
        model=pd.Categorical(names, known, ordered=True),
        mixture=pd.Categorical(frame["ratio"].map(mixtures), mixtures.values(), ordered=True),
    )
    if "learning_rate" in frame and len(frame):
        rates = {}
        for rate in sorted(frame["learning_rate"].unique()):
            rates[rate] = np.format_float_scientific(rate, trim="-", exp_digits=1)
        named["rate"] = pd.Categorical(frame["learning_rate"].map(rates), list(rates.values()))
    if "dropout_at" in frame:
        share = frame["layer_dropout"].map(" {:g}".format)
        named["dropout"] = frame["dropout_at"] + share.where(frame["dropout_at"] != "none", "")
    return named


def average_over_seeds(ledger: pd.DataFrame, by: list[str], metrics=("em", "f1")) -> pd.DataFrame:
    """Return the mean and standard deviation over seeds, a row for each group of `by`.

    Columns: those of `by`, each metric and its `_sd`, n (test rows), seeds, run.
    """
    rows = []
    for key, group in ledger.groupby(by, sort=True, observed=True):
        values = group.groupby("metric")["value"].agg(["mean", "std"])
        row = dict(zip(by, key, strict=True))
        for metric in metrics:
            row[metric] = values.loc[metric, "mean"]
            row[f"{metric}_sd"] = values.loc[metric, "std"]
        row["n"] = group["n"].iloc[0]
        row["seeds"] = group["seed"].nunique()
        row["run"] = tuple(group["run"].unique())
        rows.append(row)
    return pd.DataFrame(rows)


def collect_costs(specs: list[Spec]) -> pd.DataFrame:
    """Return a row for each run: labels, rows of each domain, counts of its data, size and cost."""
    rows = []
    for spec, record in runs.require_records(specs):
        rows.append(
            runs.label_columns(spec, record)
            | dict(zip(spec.domains, spec.rows, strict=True))
            | record["data"]
            | {name: record[name] for name in COSTS}
        )
    return add_display_names(pd.DataFrame(rows))


def describe_datasets(P, specs: list[Spec]) -> pd.DataFrame:
    """Return a row for each test set.

    Columns: rows trained and tested on, rows longer than a window, what the encoder had seen of it.
    """
    records = [record for _, record in runs.require_records(specs)]
    unknown = "no: generated" if P.source == "embedded" else "not stated"
    rows = []
    for name in specs[0].tests:
        dataset = params.read_datasets(P.source, P.data)[name]
        scores = records[0]["metrics"][name]
        row = {"dataset": name_dataset(P, name)}
        if P.source == "own":
            files = ["/".join(Path(file).parts[-2:]) for file in dataset.train + dataset.test]
            row["files"] = runs.readable_name(", ".join(files))
        if P.source == "hub":
            row["on the hub"] = ", ".join(dataset.train + dataset.test + dataset.pool)
            row["in place of"] = dataset.instead_of or "–"
        row |= {
            "training rows, at most": most_training_rows(specs, name),
            "test rows": scores["n"],
            "different texts": f"{scores['clusters']:,} {dataset.cluster}s",
            "longer than a window": scores.get("overflowed", scores.get("truncated")),
            "seen by the encoder": dataset.seen_by.get(P.encoder, unknown),
            "run": tuple(record["run"] for record in records),
        }
        rows.append(row)
    return pd.DataFrame(rows)


def most_training_rows(specs: list[Spec], dataset: str) -> int:
    """Return the largest number of rows of a dataset that one of the runs is trained on."""
    counts = [0]
    for spec in specs:
        rows = dict(zip(spec.domains, spec.rows, strict=True))
        counts.append(rows.get(dataset, 0))
    return max(counts)


def collect_routing(specs: list[Spec]) -> pd.DataFrame:
    """Return the share of tokens routed to each expert: a row for each run, test set and expert.

    The shares of a run and a test set sum to 1.
    """
    rows = []
    for spec, record in runs.require_records(specs):
        labels = runs.label_columns(spec, record)
        for name in spec.tests:
            load = record["load"][name]
            for expert, count in enumerate(load, 1):
                share = count / sum(load)
                rows.append(labels | {"set": name, "expert": expert, "share": share})
    return add_display_names(pd.DataFrame(rows))


def collect_router_steps(specs: list[Spec]) -> pd.DataFrame:
    """Return what the router did in training: a row for each run and logged step.

    Columns: both auxiliary losses, the share of dropped assignments, and the largest load of an
    expert in multiples of an even share.
    """
    rows = []
    for spec, record in runs.require_records(specs):
        labels = runs.label_columns(spec, record)
        for step in record["load"]["training"]:
            row = {name: step[name] for name in ("step", "balance_loss", "z_loss", "dropped")}
            row["largest load"] = max(step["load"]) * len(step["load"])
            rows.append(labels | row)
    return add_display_names(pd.DataFrame(rows))


def contrasting_answers(examples: pd.DataFrame, ours: str, theirs: str) -> pd.DataFrame:
    """Return answers of two runs to the same questions, chosen by a fixed rule.

    Of each test set, in the order of ids: the first two questions that only `ours` answers
    exactly, the first two that only `theirs` does, and the first that neither does.
    """
    our_answers = examples[examples["run"] == ours].set_index(["set", "id"])
    their_answers = examples[examples["run"] == theirs].set_index(["set", "id"])
    both = our_answers.add_suffix("_ours").join(their_answers.add_suffix("_theirs"))
    both = both.sort_index().reset_index()
    we_are_right = both["em_ours"].gt(0)
    they_are_right = both["em_theirs"].gt(0)
    parts = []
    for case, rows, count in (
        ("only ours", we_are_right & ~they_are_right, 2),
        ("only theirs", they_are_right & ~we_are_right, 2),
        ("neither", ~we_are_right & ~they_are_right, 1),
    ):
        parts.append(both[rows].groupby("set", sort=False).head(count).assign(case=case))
    chosen = pd.concat(parts)
    return chosen.assign(run=[(ours, theirs)] * len(chosen)).sort_values(["set", "id"])


def answers_table(P, ours: Spec, theirs: Spec, load_test_sets) -> pd.DataFrame:
    """Return answers of two runs, chosen by `contrasting_answers` (ExBERT's Table 1).

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
        sets = [name_dataset(P, name) for name in answers["set"]]
        right = {"only ours": names["ours"], "only theirs": names["theirs"], "neither": "neither"}
        columns = {"set": sets, "id": answers["id"], "right": answers["case"].map(right)}
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


def trials_table(specs: list[Spec]) -> pd.DataFrame:
    """Return a row for each trial of a model: rate, epochs, and the evaluation that it kept.

    The rate and epochs of a mixture are those of its experts. The evaluation is a row of
    runs.collect_histories. `chosen_by` is the score that chooses among the model's trials, and
    `setting` what its trials differ in beside the rate, in words.
    """
    rows = []
    for spec, record in runs.require_records(specs):
        trained = spec.experts[0] if spec.gate else spec
        setting = {"learning_rate": trained.learning_rate, "epochs": trained.epochs}
        labels = runs.label_columns(spec, record) | {"setting": name_setting(spec)}
        score, _ = validation_score(spec, record)
        kept = selected_evaluation(spec, record)
        rows.append(labels | setting | kept | {"chosen_by": score})
    weight = ["smart_adversarial"] if any(spec.smart for spec in specs) else []
    frame = add_display_names(pd.DataFrame(rows)).sort_values(["model", "rate", "epochs", *weight])
    settings = frame["setting"].unique()
    return frame.assign(setting=pd.Categorical(frame["setting"], settings, ordered=True))


def name_setting(spec: Spec) -> str:
    """Return what trials of a model differ in beside the rate.

    It is λ with SMART, rate and decay of a pre-training where there is one, and else the epochs.
    """
    if spec.smart:
        return f"λ = {spec.smart.adversarial:g}"
    if spec.start and spec.start.multitask:
        decay = spec.start.layer_decay.rate if spec.start.layer_decay else 1
        rate = np.format_float_scientific(spec.start.learning_rate, trim="-", exp_digits=1)
        return f"{rate} γ {decay:g}"
    trained = spec.experts[0] if spec.gate else spec
    return f"{trained.epochs:g} epochs"


def collect_parts(specs: list[Spec]) -> pd.DataFrame:
    """Return the examples of runs with `part`: the dataset of a pool's question, none of others."""
    examples = runs.collect_examples(specs)
    if "part" not in examples:  # no test set is a pool
        examples["part"] = None
    return examples


def scores_by_part(specs: list[Spec]) -> pd.DataFrame:
    """Return the EM of each run on the datasets that its pooled test sets are made of.

    A row for each run, test set and dataset (`part`); none where no test set is a pool.
    """
    examples = collect_parts(specs)
    pooled = examples[examples["part"].notna()]
    groups = pooled.groupby(["run", "variant", "seed", "set", "part"], as_index=False)
    scores = groups["em"].agg(["mean", "size"]).rename(columns={"mean": "value", "size": "n"})
    if scores.empty:
        return scores
    return add_display_names(scores.assign(report=specs[0].report, metric="em", ratio=np.nan))


# ---- the gate of a mixture ----


def name_weights(examples: pd.DataFrame, domains: list[str]) -> pd.DataFrame:
    """Rename the columns of a gate's weights from gate_1, gate_2, … to the experts' domains."""
    return examples.rename(columns={f"gate_{k}": name for k, name in enumerate(domains, 1)})


def calibration_bins(P, mixture: Spec) -> pd.DataFrame:
    """Return, in ten bins of a gate's weight, how often the expert was the right one.

    A pair is a test question and an expert; its weight is what the gate gives the expert on it. The
    expert is right, in domain, where the question is of its own dataset, and on the first pooled
    test set where it answers exactly. Columns: of (which of the two), bin (0 to 9), weight (mean),
    share (of pairs whose expert is right, 0 to 1), pairs (their number), run.
    """
    weights = name_weights(runs.collect_examples([mixture]), P.domains)
    weights = weights.melt(["run", "set", "id"], P.domains, "expert", "weight")
    key = ["set", "id", "expert"]
    pairs = weights.merge(runs.collect_expert_examples(mixture)[[*key, "em"]], on=key)
    inside = pairs[pairs["set"].isin(P.domains)]
    inside = inside.assign(of="in domain, its own dataset", share=inside["set"] == inside["expert"])
    pool = P.pools[0]
    outside = pairs[pairs["set"] == pool]
    outside = outside.assign(of=f"{name_dataset(P, pool)}, right answer", share=outside["em"].gt(0))
    both = pd.concat([inside, outside])
    both["bin"] = np.minimum((both["weight"] * 10).astype(int), 9)
    return both.groupby(["of", "bin"], as_index=False).agg(
        weight=("weight", "mean"),
        share=("share", "mean"),
        pairs=("share", "size"),
        run=("run", "first"),
    )


def calibration_error(bins: pd.DataFrame) -> float:
    r"""Expected calibration error of `calibration_bins` (Guo et al. 2017, eq. 5).

    $$\sum_b \frac{n_b}{N} |share_b - weight_b|$$
    """
    return float(np.average((bins["share"] - bins["weight"]).abs(), weights=bins["pairs"]))


def equal_weights_error(bins: pd.DataFrame, experts: int) -> float:
    """Return the calibration error that equal weights of so many experts would have here."""
    share = np.average(bins["share"], weights=bins["pairs"])
    return float(abs(share - 1 / experts))


def overruled_answers(P, mixture: Spec) -> tuple[pd.DataFrame, dict]:
    """Return Table 3 and counts of questions, both about the first of the parameter `pools`.

    The table has, of each of its datasets in the order of ids, the first two questions on
    which the mixture is wrong, the expert with the largest weight is wrong, and another expert is
    right. The counts say how often the gate trusts the only expert that is right.
    """
    examples = collect_parts([mixture])
    examples["part"] = examples["part"].fillna(examples["set"])
    examples = examples[examples["set"] == P.pools[0]].set_index("id").sort_index()
    experts = runs.collect_expert_examples(mixture)
    experts = experts[experts["set"] == P.pools[0]]
    em = experts.pivot(index="id", columns="expert", values="em")
    right = em.loc[examples.index, P.domains].gt(0)  # (questions, experts)
    weights = name_weights(examples, P.domains)[P.domains]
    trusted_expert = weights.to_numpy().argmax(1)
    trusted_is_right = right.to_numpy()[np.arange(len(examples)), trusted_expert]
    mixture_is_right = examples["em"].gt(0)
    overruled = ~trusted_is_right & right.any(axis=1) & examples["em"].eq(0)
    chosen = examples[overruled].groupby("part", sort=False).head(2).sort_values("part").index
    datasets = [name_dataset(P, part) for part in examples.loc[chosen, "part"]]
    table = pd.DataFrame({"dataset": datasets, "id": chosen})
    for domain in P.domains:
        verdict = right.loc[chosen, domain].map({True: ", right", False: ", wrong"})
        # Without a chosen question neither column would be text.
        weight = weights.loc[chosen, domain].map("{:.2f}".format).astype(str)
        table[name_dataset(P, domain)] = (weight + verdict.astype(str)).to_numpy()
    evidence = tuple(dict.fromkeys([*examples["run"], *experts["run"]]))
    table["run"] = [evidence] * len(chosen)
    one_is_right = right.sum(axis=1) == 1
    trusted = one_is_right & trusted_is_right
    counts = {
        "questions": len(examples),
        "one expert right": one_is_right.sum(),
        "trusted": trusted.sum(),
        "by chance": one_is_right.sum() / len(P.domains),
        "trusted, mixture right": (trusted & mixture_is_right).sum(),
        "not trusted, mixture wrong": (one_is_right & overruled).sum(),
    }
    return table, {name: float(count) for name, count in counts.items()}


def mutual_information(share: pd.DataFrame) -> float:
    r"""Mutual information, in bits, between a token's domain and the expert it is routed to.

    Every domain has equal weight. share: `collect_routing` of one run.

    $$I(D; E) = \sum_{d,e} p(d)\,p(e \mid d)\,\log_2 \frac{p(e \mid d)}{p(e)}$$
    """
    p = share.pivot(index="set", columns="expert", values="share").to_numpy()  # p(e | d), (D, E)
    return float(rel_entr(p, p.mean(0)).sum() / len(p) / np.log(2))
