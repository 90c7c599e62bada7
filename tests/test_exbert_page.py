"""What only the page of ExBERT draws, from planted frames and records."""

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from qa_lib.page import figures_exbert as own
from qa_lib.page import grids, looks, pieces, tables
from qa_lib.reports import comparisons, exbert, plans
from qa_lib.settings import params
from qa_lib.store import runs

P = plans.load_params("exbert", "quick")


def plant_share(counts: dict[str, dict[str, list[int]]]) -> pd.DataFrame:
    """Return a frame of routing: counts are run → test set → picks of each expert."""
    rows = []
    for run, of_sets in counts.items():
        for name, of_experts in of_sets.items():
            for expert, count in enumerate(of_experts, 1):
                share = count / sum(of_experts)
                rows.append({"run": run, "set": name, "expert": expert, "share": share})
    return pd.DataFrame(rows)


def plant_steps(dropped: dict[str, list[float]]) -> pd.DataFrame:
    """Return what routers did in training: run → share of dropped picks at each step."""
    rows = []
    for run, values in dropped.items():
        for step, value in enumerate(values, 1):
            rows.append({"run": run, "step": step, "dropped": value})
    return pd.DataFrame(rows)


def test_steps_lead_from_the_plain_model_to_the_final_one_in_both_arms():
    for steps in (exbert.STEPS, exbert.EQUAL_STEPS):
        comparisons.check_chain(steps)
        assert (steps[0].before, steps[-1].after) == ("v-db", "exbert-tuned")
    assert set(own.PARTS) <= set(exbert.MODELS)
    assert set(own.COMPARED) <= set(exbert.MODELS)
    assert set(exbert.LONGER) <= set(exbert.MODELS)


def test_a_column_is_a_test_set_at_a_mixture_in_the_report_s_order():
    columns = own.name_columns(P, "f1")
    assert len(columns) == len(P.domains) * len(P.ratios)
    place = columns[f"{P.domains[0]}, 60:40"]
    assert place == (P.domains[0], "f1", {"ratio": 0.6, "order": "trainer"})
    # values that are printed of mixtures that were not run stand nowhere
    assert own.keep_columns(own.MIXTURES, columns) == {}
    squad = {"SQuAD, 40:60": ("squad", "em")}
    assert own.keep_columns(own.MIXTURES, squad) == {"exbert-tuned": {"SQuAD, 40:60": 50}}


def test_on_real_data_a_column_bears_the_name_that_the_dataset_s_authors_gave_it():
    real = plans.load_params("exbert", "real")
    columns = own.name_columns(real)
    assert columns["SQuAD, 40:60"][0] == "squad"
    assert columns["BioASQ, 80:20"][0] == "bioasq"


def test_what_is_printed_stands_under_headings_of_the_report_s_domains():
    """A printed value whose heading no table can have would be left out without a word."""
    paper = plans.load_params("exbert", "paper", {"ratios": [0.2, 0.4, 0.6, 0.8, 1.0]})
    headings = set(own.name_columns(paper))
    for values in own.MIXTURES.values():
        assert set(values) <= headings
    first, second = (params.name_dataset(paper, domain) for domain in paper.domains)
    pairs = {f"{trained} → {tested}" for trained in (first, second) for tested in (first, second)}
    for values in own.SINGLE.values():
        assert set(values) <= pairs


def test_columns_may_be_told_apart_by_further_columns_of_the_ledger():
    ledger = pd.DataFrame(
        {"set": "a", "metric": "em", "ratio": [0.2, 0.8, 0.2], "value": [1.0, 2.0, 3.0]}
    )
    columns = {
        "80:20": ("a", "em", {"ratio": 0.8}),
        "20:80": ("a", "em", {"ratio": 0.2}),
        "F1": ("a", "f1"),
    }
    rows = pieces.collect_columns(ledger, columns)
    assert list(zip(rows["column"], rows["value"], strict=True)) == [
        ("80:20", 2.0),
        ("20:80", 1.0),
        ("20:80", 3.0),
    ]
    every = pieces.collect_columns(ledger, {"all": ("a", "em")})
    assert list(every["value"]) == [1.0, 2.0, 3.0]


def test_experts_of_a_run_are_ranked_by_their_share_of_the_first_domain():
    share = plant_share(
        {"r": {"a": [1, 3, 2], "b": [4, 1, 1]}, "s": {"a": [5, 4, 0], "b": [1, 1, 1]}}
    )
    ranked = own.rank_experts(share, "a")
    of_run = ranked[ranked["run"] == "r"].set_index(["set", "rank"])["share"]
    assert list(of_run["a"].sort_index()) == [3 / 6, 2 / 6, 1 / 6]
    assert list(of_run["b"].sort_index()) == [1 / 6, 1 / 6, 4 / 6]
    # each run has its own order
    of_run = ranked[ranked["run"] == "s"].set_index(["set", "expert"])["rank"]
    assert list(of_run["b"]) == [1, 2, 3]


def test_the_caption_says_how_many_picks_find_no_place():
    steps = plant_steps({"r": [0.4, 0.5], "s": [0.5, 0.6]})
    assert own.describe_dropped(P, steps).startswith("Of a run's picks it is 45 to 55 %;")
    assert own.describe_dropped(P, steps[steps["run"] == "r"]).startswith(
        "Of a run's picks it is 45 %;"
    )
    wide = P.model_copy(update={"capacity_train": 1.25, "top_n": 2})
    assert own.find_least_dropped(wide) == 0.375
    assert own.find_least_dropped(P.model_copy(update={"capacity_train": 3.0})) == 0.0


def test_the_caption_says_what_an_expert_tells_about_the_domain():
    rows = {"arm": ["tuned", "tuned", "printed"], "ratio": P.centre, "bits": [0.014, 0.032, 0.9]}
    told = own.describe_information(P, pd.DataFrame(rows), "tuned")
    assert told.startswith("At 60:40 it is 0.01 to 0.03 bits;")


@pytest.mark.parametrize("look", [looks.WIDE, looks.NARROW])
def test_the_routing_has_a_line_for_each_seed_and_a_row_for_each_mixture(look):
    both = P.model_copy(update={"arms": ["printed", "tuned"]})
    steps = plant_steps({"r": [0.4, 0.5], "s": [0.5, 0.6]})
    one = {P.domains[0]: [3, 2, 1, 1], P.domains[1]: [1, 2, 3, 1]}
    share = own.rank_experts(plant_share({"r": one, "s": one}), P.domains[0])
    rows = []
    for ratio in (0.0, 0.6):
        for arm in both.arms:
            rows.append({"arm": arm, "ratio": ratio, "bits": 0.1, "run": "r"})
    fig = own.draw_routing(both, steps, share, pd.DataFrame(rows), look)
    dropped, experts, bits = fig.axes
    assert len(dropped.lines) == 3  # two runs, and the least there can be
    assert [label.get_text() for label in bits.get_yticklabels()] == ["0:100", "60:40"]
    assert len(bits.lines) == 4
    assert {text.get_text() for text in experts.texts} == set(P.domains)
    plt.close(fig)


def test_the_table_of_longer_trials_says_what_each_model_chose(monkeypatch):
    changes = {"experiments": ["headline", "longer-trials"], "arms": ["tuned"], "data": "data"}
    real = plans.load_params("exbert", "real", changes | {"longer_epochs": 4}, "small")
    chosen = {"v-db": (1e-4, 4.0, 30.0), "exbert-tuned": (2.5e-4, 3.0, 20.0)}
    rows = []
    for model, (rate, epochs, value) in chosen.items():
        for seed in (0, 1):
            labels = {"variant": f"{model}-longer", "seed": seed, "run": f"{model}-s{seed}"}
            labels |= {"learning_rate": rate, "epochs": epochs, "set": "squad", "metric": "em"}
            rows.append(labels | {"value": value + seed})
    monkeypatch.setattr(plans, "plan", lambda P: [])
    monkeypatch.setattr(runs, "collect_ledger", lambda specs: pd.DataFrame(rows))
    monkeypatch.setattr(grids, "save_frame", lambda P, name, *rest: (name, *rest))
    name, shown, _, caption, _ = own.table_longer_trials(real)
    assert name == "table_longer_trials"
    assert dict(shown["SQuAD, EM"]) == {
        "V-DB, 0.0001, 4 epochs": "30.5 ± 0.7",
        "ExBERT (final), 0.00025, 3 epochs": "20.5 ± 0.7",
    }
    assert caption.startswith("With equal tuning over 2, 3 and 4 epochs, at 80:20, and what each")
    absent = own.table_longer_trials(real.model_copy(update={"experiments": ["headline"]}))
    assert "longer-trials" in absent


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, ["dropout 0.1", "RMSNorm, router", "ST-MoE, 4 experts", "feed-forward", "span head"]),
        ({"feed_forward": "none"}, ["dropout 0.1", "RMSNorm, router", "ST-MoE, 4 experts"]),
        ({"place": "feed_forward"}, ["dropout 0.1", "router", "ST-MoE, 4 experts", "span head"]),
    ],
)
def test_the_model_is_drawn_with_the_parts_that_it_has(monkeypatch, changes, names):
    monkeypatch.setattr(own, "find_runs", lambda *_: [None])
    monkeypatch.setattr(runs, "require_records", lambda specs: [(None, {"run": "r"})])
    drawn = []
    monkeypatch.setattr(own, "draw_boxes", lambda boxes, new, look: drawn.extend((boxes, new)))
    monkeypatch.setattr(looks, "save_drawing", lambda P, name, draw, *rest: draw(looks.WIDE))
    own.figure_model(P.model_copy(update=changes))
    boxes, new = drawn
    assert [name for name, _ in boxes][1:][: len(names)] == names
    assert boxes[new][0].startswith("ST-MoE")
    assert boxes[-1][0] == "span head"


def test_a_pick_without_a_place_is_drawn_as_one():
    top = np.array([[0, 1], [0, 2], [0, 3]])
    wanted = np.array([[True, True], [True, False], [True, True]])
    fits = np.array([[True, True], [True, False], [False, True]])
    fig = own.draw_places(("a", "b", "c"), top, wanted, fits, 2, looks.WIDE)
    crosses = [line for line in fig.axes[0].lines if line.get_marker() == "x"]
    assert len(crosses) == 1
    assert len(fig.axes[0].lines) == 5 + 1
    html = own.show_routing(("a", "b", "c"), top, wanted, fits, 2)
    assert "4 picks have a place, 1 none." in html
    plt.close(fig)


def test_a_panel_of_losses_is_a_value_of_the_sweep():
    rows = []
    for rate in (3e-4, 2e-5):
        for epoch in (1.0, 2.0):
            row = {"run": "r", "variant": "exbert-curve", "report": "exbert", "ratio": 0.6}
            row |= {"seed": 0, "learning_rate": rate, "epoch": epoch}
            rows.append(row | {"train_loss": 3 - epoch, "validation_loss": 2 - epoch / 10})
    rows = tables.add_display_names(pd.DataFrame(rows))
    fig = own.draw_losses(rows, "rate", looks.WIDE)
    assert [axes.get_title(loc="left") for axes in fig.axes] == ["rate: 2e-5", "rate: 3e-4"]
    plt.close(fig)


def test_findings_may_name_how_many_picks_were_dropped(monkeypatch):
    params = P.model_copy(update={"experiments": ["headline"], "start": None})
    planned = plans.plan(params)

    def find_record(spec):
        dropped = 0.4 + spec.seed / 10
        # means over 9 steps and over 1
        logged = [{"step": 9, "dropped": dropped}, {"step": 10, "dropped": dropped + 0.1}]
        return {"load": {"training": logged}}

    monkeypatch.setattr(runs, "find_record", find_record)
    values = exbert.collect_values(params)
    assert {spec.seed for spec in planned if spec.variant == "exbert-tuned"} == {0, 1}
    assert values == pytest.approx({"dropped_least": 0.41, "dropped_most": 0.51})


def test_trials_that_halving_left_out_are_a_dash(monkeypatch):
    tried = pd.DataFrame(
        {
            "model": pd.Categorical(["V-DB"] * 3, ["V-DB", "ExBERT"]),
            "rate": ["1e-4", "3e-4", "1e-4"],
            "epochs": [2.0, 2.0, 3.0],
            "validation_loss": [1.5, 1.25, 1.0],
            "run": ["a", "b", "c"],
        }
    )
    trial = SimpleNamespace(variant="v-db-trial")
    monkeypatch.setattr(plans, "plan", lambda P: [trial])
    monkeypatch.setattr(tables, "trials_table", lambda specs: pd.concat([tried, second]))
    monkeypatch.setattr(grids, "save_frame", lambda P, name, shown, *rest: shown)
    second = tried[:2].assign(model=pd.Categorical(["ExBERT"] * 2, ["V-DB", "ExBERT"]))
    shown = own.table_trials(P)
    assert dict(shown.loc["V-DB"]) == {
        "1e-4, 2 epochs": "1.50",
        "3e-4, 2 epochs": "1.25",
        "1e-4, 3 epochs": "1.00",
    }
    assert shown.loc["ExBERT", "1e-4, 3 epochs"] == "–"


def test_a_lower_rate_is_told_apart_in_the_sweep_of_dropout(monkeypatch):
    changes = {"experiments": ["dropout"], "sweep_dropout_rates": [0.3], "tuned_dropout": "both"}
    P = plans.load_params("exbert", "quick", changes)
    rows = []
    for spec in own.find_sweep(P, "dropout"):
        fields = {"report": "exbert", "variant": spec.variant, "seed": spec.seed, "ratio": None}
        fields |= {"learning_rate": spec.learning_rate, "dropout_at": spec.layer.dropout_at}
        rows.append(fields | {"layer_dropout": spec.layer.layer_dropout, "run": spec.run})
    monkeypatch.setattr(runs, "collect_histories", lambda specs: pd.DataFrame(rows))
    monkeypatch.setattr(own, "save_losses", lambda P, name, rows, by, caption: (rows, caption))
    drawn, caption = own.figure_losses(P, "dropout")
    assert {"both 0.3", "both 0.3, slow"} <= set(drawn["dropout"])
    assert drawn.groupby("dropout")["learning_rate"].nunique().max() == 1
    assert caption.endswith(f"Slow: learning rate 7.5e-05; the others have {P.tuned_rate:g}.")


def test_a_sweep_has_its_own_runs_alone():
    changes = {"experiments": ["rates", "dropout", "balance"], "tuned_dropout": "none"}
    P = plans.load_params("exbert", "quick", changes)
    rates = own.find_sweep(P, "rates")
    points = [(spec.learning_rate, spec.seed) for spec in rates]
    assert len(points) == len(set(points)) == len(P.sweep_rates) * len(P.side_seeds)
    balances = own.find_sweep(P, "balance")
    points = [(spec.layer.balance, spec.seed) for spec in balances]
    assert len(points) == len(set(points)) == len(P.sweep_balance) * len(P.side_seeds)
    assert own.find_sweep(P, "blocks") == []
