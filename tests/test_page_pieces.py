"""The shared pieces of a report's page, on planted ledgers and on planted records."""

import re
import subprocess
import sys
from dataclasses import replace
from functools import cache
from io import BytesIO

import bs4
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_stats import join_planted, make_record, planned, plant_scores  # noqa: F401

from qa_lib.__main__ import run_verb
from qa_lib.evidence import claims, compare, stats, verify
from qa_lib.evidence.verdicts import Verdict
from qa_lib.page import charts, grids, looks, pieces, report, verdict_groups, written
from qa_lib.reports import exbert, plans
from qa_lib.reports.comparisons import Comparison, Step
from qa_lib.settings import params
from qa_lib.settings.params import ROOT, UserError
from qa_lib.store import runs

EIGHT = Comparison("squad-plus-8", "ExBERT (final)", "V-DB", "SQuAD", ("dense-compute",))
STEPS = (
    Step("five times the rate", "v-db", "v-db-fast"),
    Step("fewer blocks", "v-db-fast", "plain-tuned"),
    Step("the sparse layer", "plain-tuned", "exbert-tuned"),
)
MODELS = {"v-db": 0.0, "plain-tuned": 3.0, "exbert-tuned": 3.5, "dense-compute": 3.5}


def plant_arm(arm: str, gains: dict[str, float], seeds=5):
    """Return a ledger and examples of one arm at 80:20, where models gain so much over 50 EM."""
    at_80 = {(variant, 0.8): gain for variant, gain in gains.items()}
    ledger, examples = plant_scores(at_80, seeds=seeds, seed_sd=0.2, clusters=100, size="small")
    frames = []
    for frame in (ledger, examples):
        frames.append(frame.assign(run=frame["run"] + f"-{arm}", arm=arm))
    return frames


@cache
def read_few_claims() -> list[claims.Claim]:
    """Return some of ExBERT's claims: those that the planted runs bear on, and two others."""
    few = ("squad-plus-8", "light-weight", "mixed-gain", "headline", "sparse-overfits-less")
    return [claim for claim in claims.read_claims("exbert", (0.8,)) if claim.id in few]


@pytest.fixture
def plant(monkeypatch, tmp_path):
    """Return a function that plants the scores of arms, and the parameters of their page."""
    monkeypatch.setattr(runs, "FIGURES", tmp_path / "figures")
    monkeypatch.setattr(plans, "plan", lambda P: [])
    monkeypatch.setattr(runs, "collect_histories", lambda specs: pd.DataFrame())
    monkeypatch.setattr(stats, "collect_curve_rows", lambda histories: pd.DataFrame())

    listed = read_few_claims()
    monkeypatch.setattr(claims, "read_claims", lambda slug, ratios=(): listed)

    def plant(**arms):
        verify._tables.clear()
        verify._scores.clear()
        verify._samples.clear()
        compare._pairs.clear()
        planted = [plant_arm(arm, gains) for arm, gains in arms.items()]
        ledger, examples = join_planted(*planted)
        monkeypatch.setattr(runs, "collect_ledger", lambda specs: ledger)
        monkeypatch.setattr(runs, "collect_examples", lambda specs: examples)
        return plans.load_params("exbert", "real", {"ratios": [0.8]}, "small")

    yield plant
    verify._tables.clear()
    verify._scores.clear()
    verify._samples.clear()
    compare._pairs.clear()


@pytest.fixture
def recorded(planned, monkeypatch, tmp_path):  # noqa: F811
    """Return parameters of a small study with both arms, all of whose runs have a record."""
    monkeypatch.setattr(runs, "FIGURES", tmp_path / "figures")
    changes = {"seeds": [0, 1, 2], "side_seeds": [0], "ratios": [0.8], "control_ratios": [0.8]}
    changes |= {"centre": 0.8, "experiments": ["headline"], "arms": ["printed", "tuned"]}
    P, missing = planned("real", "small", **changes, trial_epochs=[1])
    # first the trials, then the runs that they choose
    while missing:
        for spec in missing:
            record, examples = make_record(spec, rows=4)
            runs.save(spec, record | {"parameters": 22_600_000}, examples)
        missing = [spec for spec in plans.plan(P) if runs.find_record(spec) is None]
    return P


# ---- comparisons ----


def test_a_comparison_has_what_is_printed_both_arms_and_its_controls(plant):
    P = plant(printed=MODELS, tuned=MODELS | {"v-db": 5.0})
    rows = compare.collect_comparisons(P, (EIGHT,)).set_index(["setting", "control"])
    assert rows["value"]["printed", ""] == 8
    assert rows["value"]["report", ""] == pytest.approx(3.5, abs=0.5)
    assert rows["value"]["equal", ""] == pytest.approx(-1.5, abs=0.5)
    # the claim's own control, and the one that the report's file adds
    assert rows["value"]["report", "plain-tuned"] == pytest.approx(0.5, abs=0.5)
    assert rows["value"]["report", "dense-compute"] == pytest.approx(0.0, abs=0.5)
    made = rows.drop(index=("printed", ""))
    assert (made["low"] < made["value"]).all()
    assert (made["value"] < made["high"]).all()
    assert (made["n"] == 5).all()


def test_a_comparison_has_the_interval_of_the_claims_table(plant):
    P = plant(printed=MODELS)
    rows = compare.collect_comparisons(P, (EIGHT,)).set_index(["setting", "control"])
    table = verify.claims_table(P)
    for comparison, control in (("claim", ""), ("control", "plain-tuned")):
        row = verify.select(table, comparison=comparison).loc["squad-plus-8"]
        shown = rows.loc[("report", control)]
        ends = ["low", "high", "own_low", "own_high"]
        assert list(shown[["value", *ends]]) == list(row[["ours", *ends]])


def test_an_arm_that_was_not_run_has_no_number(plant):
    rows = compare.collect_comparisons(plant(printed=MODELS), (EIGHT,))
    equal = rows[rows["setting"] == "equal"]
    assert list(equal["n"]) == [0]
    assert equal["value"].isna().all()


def test_a_claim_that_says_lower_is_shown_as_behind(plant, monkeypatch):
    P = plant(printed=MODELS)
    claim = compare.find_claim(P, "squad-plus-8")
    sides = {"ours": claim.contrast.against, "against": claim.contrast.ours, "direction": "lower"}
    turned = claim.model_copy(update={"contrast": claim.contrast.model_copy(update=sides)})
    monkeypatch.setattr(claims, "read_claims", lambda *_: [turned])
    verify._tables.clear()
    verify._scores.clear()
    verify._samples.clear()
    rows = compare.collect_comparisons(P, (Comparison("squad-plus-8", "V-DB", "ExBERT"),))
    rows = rows.set_index(["setting", "control"])
    assert rows["value"]["printed", ""] == -8
    row = rows.loc[("report", "")]
    assert row["value"] == pytest.approx(-3.5, abs=0.5)
    assert row["low"] < row["value"] < row["high"]
    assert row["own_low"] < row["value"] < row["own_high"]


def test_a_comparison_says_which_part_it_shows_and_whether_it_tests_the_claim(plant, monkeypatch):
    P = plant(printed=MODELS)
    claim = compare.find_claim(P, "squad-plus-8")
    both = claim.contrast.ours | {"variant": ["exbert-tuned", "plain-tuned"]}
    contrast = claim.contrast.model_copy(update={"ours": both, "each": ["variant"]})
    changes = {"contrast": contrast, "profiles": ["paper"], "untestable": {"real": "seen before"}}
    monkeypatch.setattr(claims, "read_claims", lambda *_: [claim.model_copy(update=changes)])
    rows = compare.collect_comparisons(P, (EIGHT,))
    ours = rows[(rows["setting"] == "report") & (rows["control"] == "")].iloc[0]
    # 3.5 and 3.0 were planted: the smaller gain is the less certain
    assert ours["part"] == "(a) without ST-MoE block"
    assert ours["value"] == pytest.approx(3.0, abs=0.5)
    name = charts.name_value(ours)
    assert name == "ours, report's settings, for (a) without ST-MoE block; no test: seen before"
    others = rows.drop(index=ours.name)
    assert (others["part"] == "").all()
    assert (others["untested"] == "").all()
    picture = bs4.BeautifulSoup(pieces.figure_comparisons(P, (EIGHT,)), "html.parser").find("img")
    assert f"ExBERT (final) against V-DB (SQuAD), {name}: " in picture["alt"]


def test_a_text_alternative_says_which_interval_is_of_one_seed():
    value = {"ours": "A", "against": "B", "on": "", "setting": "report", "control": "", "part": ""}
    value |= {"untested": "", "value": 1.0, "low": -1.0, "high": 3.0, "unit": "EM"}
    made = pd.DataFrame([value | {"n": 3}, value | {"n": 1, "on": "dev"}])
    assert charts.describe_values(made) == (
        "A against B, ours, report's settings: 1.0 [−1.0, 3.0] EM; "
        "A against B (dev), ours, report's settings, one\N{NO-BREAK SPACE}seed: 1.0 [−1.0, 3.0] EM"
    )


@pytest.mark.parametrize(
    "seeds, has_bars, text",
    [
        ({"a": 1, "b": 1}, True, "One seed."),
        ({"a": 3, "b": 3}, False, "Means over 3 seeds."),
        ({"a": 1, "b": 3}, True, "Means over 1 to 3 seeds, bars from the lowest to the highest."),
    ],
)
def test_a_caption_says_over_how_many_seeds_points_are_means(seeds, has_bars, text):
    rows = [{"variant": name, "seed": seed} for name in seeds for seed in range(seeds[name])]
    assert pieces.describe_means(pd.DataFrame(rows), has_bars) == text


def test_a_comparison_of_no_claim_is_one_sentence(plant):
    P = plant(printed=MODELS)
    with pytest.raises(UserError, match="^there is no claim squad-plus-9 in params/claims/exbert"):
        compare.collect_comparisons(P, (Comparison("squad-plus-9", "a", "b"),))
    with pytest.raises(UserError, match="light-weight has no contrast"):
        compare.collect_comparisons(P, (Comparison("light-weight", "a", "b"),))


# ---- steps ----


def test_steps_that_were_not_run_apart_are_known_together(plant):
    P = plant(printed=MODELS)
    rows = compare.collect_steps(P, "squad-plus-8", STEPS, "printed")
    assert list(rows["known"]) == [False, False, True, True]
    together, _, layer, whole = rows["value"]
    assert together == rows["value"][1] == pytest.approx(3, abs=0.5)
    assert list(rows["start"]) == [0, 0, together, 0]
    # the same seeds are behind all, so the steps add up
    assert together + layer == pytest.approx(whole)


def test_a_step_to_a_model_without_runs_is_said(plant):
    gains = {name: gain for name, gain in MODELS.items() if name != "exbert-tuned"}
    P = plant(printed=gains)
    rows = compare.collect_steps(P, "squad-plus-8", STEPS, "printed")
    assert list(rows["n"] > 0) == [True, True, False, False]
    fig = charts.draw_steps("exbert", rows, "EM", looks.NARROW)
    assert read_texts(fig).count("not run") == 2


def test_the_caption_explains_hatching_where_a_step_is_hatched(plant, monkeypatch):
    monkeypatch.setattr(looks, "save_drawing", lambda P, name, draw, caption, *rest: caption)
    apart = plant(printed=MODELS)
    assert "Hatched" in pieces.figure_steps(apart, "squad-plus-8", STEPS)
    of_layer = (
        Step("the sparse layer", "v-db", "exbert-tuned"),
        Step("all blocks", "exbert-tuned", "exbert-all-blocks"),
    )
    caption = pieces.figure_steps(apart, "squad-plus-8", of_layer)
    assert "Lines: 95 % intervals" in caption
    assert "Hatched" not in caption


def test_a_comparison_that_was_not_run_is_named_by_its_score(plant, monkeypatch):
    monkeypatch.setattr(looks, "save_drawing", lambda P, name, draw, caption, *rest: caption)
    P = plant(printed=MODELS)
    other = Comparison("headline", EIGHT.ours, EIGHT.against, "EM, mean")
    rows = compare.collect_comparisons(P, (EIGHT, other))
    is_other = rows["comparison"] == rows["comparison"].unique()[1]
    rows.loc[is_other, "n"] = 0
    monkeypatch.setattr(compare, "collect_comparisons", lambda *_: rows)
    caption = pieces.figure_comparisons(P, (EIGHT, other))
    assert caption.endswith("Not run: ExBERT (final) against V-DB (EM, mean).")


def test_what_was_not_run_is_the_arm_or_else_the_part(plant):
    P = plant(printed=MODELS).model_copy(update={"experiments": ["headline"], "arms": ["tuned"]})
    notes = {
        ("printed", "headline"): "the report's settings",
        ("tuned", "headline"): "headline with equal tuning",
        ("tuned", "steps"): "steps",  # as the page's list calls it
        ("tuned", None): "models with equal tuning",
    }
    for (arm, part), note in notes.items():
        assert pieces.note_not_run(P, arm, part) == report.note_absent(note)


def test_steps_form_a_chain():
    with pytest.raises(ValueError, match="step “the sparse layer” begins with plain-tuned, but"):
        compare.check_chain((STEPS[0], STEPS[2]))


# ---- figures ----


def read_texts(fig) -> list[str]:
    """Return all texts of a figure, without blanks at their ends."""
    return [text.get_text().strip() for text in fig.findobj(lambda a: hasattr(a, "get_text"))]


LOOKS = [looks.WIDE, looks.NARROW, looks.Look(7.2, is_dark=True), looks.Look(3.5, is_dark=True)]


def test_every_text_of_a_forest_lies_within_it(plant):
    rows = compare.collect_comparisons(plant(printed=MODELS, tuned=MODELS), (EIGHT,))
    for look in LOOKS:
        fig = charts.draw_forest("exbert", rows, look)
        fig.canvas.draw()
        for text in fig.axes[0].texts:
            box = text.get_window_extent()
            assert box.x0 >= -1, text.get_text()
            assert box.x1 <= fig.bbox.x1 + 1, text.get_text()
            assert text.get_fontsize() >= 10
        assert {"printed", "ours, equal tuning", "ours, report's settings"} <= set(read_texts(fig))


def test_an_arm_that_was_not_run_is_said_and_not_drawn(plant):
    rows = compare.collect_comparisons(plant(printed=MODELS), (EIGHT,))
    fig = charts.draw_forest("exbert", rows, looks.WIDE)
    assert read_texts(fig).count("not run") == 1
    diamonds = [line for line in fig.axes[0].lines if line.get_marker() == "D"]
    assert diamonds == []


def test_a_forest_says_which_comparisons_have_one_seed(plant):
    rows = compare.collect_comparisons(plant(printed=MODELS), (EIGHT,))
    ours = "ours, report's settings"
    assert ours in read_texts(charts.draw_forest("exbert", rows, looks.WIDE))
    fig = charts.draw_forest("exbert", rows.assign(n=rows["n"].clip(upper=1)), looks.WIDE)
    assert f"{ours}, one\N{NO-BREAK SPACE}seed" in read_texts(fig)
    assert ours not in read_texts(fig)


def test_a_model_has_its_colour_on_light_and_a_lighter_one_on_dark():
    colour = plans.colours("exbert")["V-DB"]
    assert looks.WIDE.model_colour("exbert", "v-db") == colour
    assert looks.Look(7.2, is_dark=True).model_colour("exbert", "v-db") != colour


def test_an_axis_of_epochs_names_whole_ones_alone():
    rows = pd.DataFrame({"epoch": [1.0, 2, 3, 4], "value": [1.6, 1.5, 1.4, 1.4]})
    rows = rows.assign(column="training loss", variant="v-db", seed=0)
    for by, values in (("epoch", rows["epoch"]), ("share", rows["epoch"] / 4)):
        swept = rows.assign(**{by: values})
        fig = charts.draw_sweep("exbert", swept, by, by, swept[:0], looks.WIDE)
        low, high = fig.axes[0].get_xlim()
        ticks = [tick for tick in fig.axes[0].get_xticks() if low <= tick <= high]
        assert len(ticks) > 2
        assert all(tick % 1 == 0 for tick in ticks) == (by == "epoch")


def test_a_figure_has_a_drawing_for_each_screen_and_the_same_bytes_again(plant):
    P = plant(printed=MODELS)
    html = pieces.figure_comparisons(P, (EIGHT,))
    picture = bs4.BeautifulSoup(html, "html.parser").picture
    media = [source["media"] for source in picture.find_all("source")]
    assert len(media) == 3
    # paper has the wide one in the light
    assert all(words.startswith("screen and") for words in media)
    assert picture.img["alt"].startswith("A row for each comparison: ExBERT (final) against V-DB")
    assert len(html) < 250_000
    folder = runs.page_folder(P)
    first = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert {"fig_comparisons.png", "fig_comparisons.svg"} <= set(first)
    assert pieces.figure_comparisons(P, (EIGHT,)) == html
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == first


def test_the_first_figure_says_what_a_control_is_and_what_is_scored(plant):
    html = pieces.figure_comparisons(plant(printed=MODELS), (EIGHT,))
    caption = bs4.BeautifulSoup(html, "html.parser").figcaption.text
    assert "V-DB: the plain encoder; ExBERT (final): fewer blocks, and experts; " in caption
    assert "(b) dense, equal compute: one layer as wide as a token's experts. Bars" in caption
    assert "EM: exact answers, in percent." in caption
    without = pd.DataFrame({"ours": ["x"], "against": ["y"], "control": ["plain-tuned"]})
    assert pieces.explain_names("exbert", without) == ""


@pytest.mark.parametrize("slug", params.list_reports())
def test_notes_are_on_models_that_the_report_has(slug):
    module = plans.find_report(slug)
    assert set(module.NOTES) <= set(module.MODELS)


def test_a_saved_drawing_has_exactly_the_colours_of_its_models(plant):
    P = plant(printed=MODELS)
    pieces.figure_comparisons(P, (EIGHT,))
    png = (runs.page_folder(P) / "fig_comparisons.png").read_bytes()
    picture = Image.open(BytesIO(png)).convert("RGB")
    colours = {"#{:02x}{:02x}{:02x}".format(*colour) for _, colour in picture.getcolors()}
    named = plans.colours("exbert")
    assert {named["ExBERT (final)"], named["(a) without ST-MoE block"], "#ffffff"} <= colours


def test_a_part_that_was_not_run_is_a_note(plant):
    P = plant(printed=MODELS).model_copy(update={"arms": ["printed"]})
    assert pieces.figure_steps(P, "squad-plus-8", STEPS, "tuned").startswith(report.ABSENT)
    assert pieces.figure_trials(P).startswith(report.ABSENT)
    assert pieces.table_models(P, ["v-db"], {}).startswith(report.ABSENT)
    columns = {"SQuAD": ("squad", "em")}
    grid = pieces.table_grid(P, "table_x", "Scores.", ["v-db"], columns, {})
    assert grid.startswith(report.ABSENT)
    listed = pieces.list_parts_not_run(P)
    assert listed.startswith("<details")
    assert "<li>ratios: V-DB over the mixtures (Table 3, Fig. 3).</li>" in listed
    assert "<li>equal tuning: The same trials" in listed


# ---- grids ----


def make_cells(models: list[str], columns=("SQuAD", "BioASQ")) -> pd.DataFrame:
    """Return cells of a grid: model i has 10 i EM, ± 1 over two seeds, on every set."""
    rows = []
    for i, model in enumerate(models):
        for column in columns:
            for seed, value in ((0, 10.0 * i - 1), (1, 10.0 * i + 1)):
                row = {"model": model, "column": column, "seed": seed, "value": value}
                rows.append(row | {"run": f"{model}-s{seed}"})
    return grids.average_cells(pd.DataFrame(rows), models)


def test_printed_rows_stand_above_ours_and_the_best_of_ours_is_bold():
    printed = {"b": {"SQuAD": 51.2}}
    shown, classes = grids.lay_out_grid(make_cells(["a", "b"]), printed)
    assert list(shown.index) == ["b, printed", "a", "b"]
    assert list(shown.loc["b, printed"]) == ["51.2", "–"]
    assert shown["SQuAD"]["b"] == "10.0 ± 1.4"
    assert classes["SQuAD"]["b"] == "number best"
    assert "best" not in classes["SQuAD"]["a"] + classes["SQuAD"]["b, printed"]
    _, lower = grids.lay_out_grid(make_cells(["a", "b"]), printed, lower=("SQuAD",))
    assert lower["SQuAD"]["a"] == "number best"
    assert lower["BioASQ"]["b"] == "number best"


def test_printed_values_stand_beside_ours_where_the_rows_would_be_too_many():
    models = list("abcdef")
    printed = {model: {"SQuAD": 50.0} for model in models}
    shown, classes = grids.lay_out_grid(make_cells(models), printed)
    assert list(shown.index) == models
    assert list(shown.columns)[:2] == [("SQuAD", "printed"), ("SQuAD", "ours")]
    assert shown["SQuAD", "printed"]["a"] == "50"
    assert classes["SQuAD", "ours"]["f"] == "number best"


def test_a_benchmark_stands_above_what_is_printed():
    benchmark = ("handout", {"a": {"SQuAD": 50.0}})
    shown, classes = grids.lay_out_grid(make_cells(["a"]), {"a": {"SQuAD": 51.2}}, (), benchmark)
    assert list(shown.index) == ["a, handout", "a, printed", "a"]
    assert list(shown["SQuAD"]) == ["50", "51.2", "0.0 ± 1.4"]
    assert set(classes.loc["a, handout"]) == {"number printed"}


def test_a_grid_of_many_rows_has_printed_values_beside_ours():
    shown, _ = grids.lay_out_grid(make_cells(list("abcdefghijk")), {"a": {"SQuAD": 51.2}})
    assert len(shown) == 11
    assert shown["SQuAD", "printed"]["a"] == "51.2"


def test_bold_is_the_best_as_shown_and_over_the_seeds_that_all_models_have():
    def make_rows(values_of: dict[str, list[float]]) -> list[dict]:
        rows = []
        for model, values in values_of.items():
            for seed, value in enumerate(values):
                row = {"model": model, "column": "x", "seed": seed, "value": value}
                rows.append(row | {"run": f"{model}-s{seed}"})
        return rows

    rows = make_rows({"a": [10.0], "b": [20.0, 0.0], "c": [15.0, 17.0]})
    cells = grids.average_cells(pd.DataFrame(rows), ["a", "b", "c"])
    assert cells["value"].tolist() == [10.0, 10.0, 16.0]
    assert cells["value_shared"].tolist() == [10.0, 20.0, 15.0]
    _, classes = grids.lay_out_grid(cells, {})
    # "b" is best over the shared seed, "c" over its own two
    assert classes["x"].tolist() == ["number", "number", "number"]
    cells = grids.average_cells(
        pd.DataFrame(make_rows({"a": [10.0], "b": [20.0, 14.0], "c": [15.0, 17.0]})),
        ["a", "b", "c"],
    )
    _, classes = grids.lay_out_grid(cells, {})
    assert classes["x"].tolist() == ["number", "number best", "number"]
    assert grids.describe_bold(cells).endswith("the best, over shared seeds too.")
    # where they have no seed in common nothing is bold
    apart = pd.DataFrame(rows).assign(seed=range(len(rows)))
    cells = grids.average_cells(apart, ["a", "b", "c"])
    _, classes = grids.lay_out_grid(cells, {})
    assert set(classes["x"]) == {"number"}
    assert grids.describe_bold(cells) == ""


def test_a_cell_has_one_value_of_a_seed():
    rows = pd.DataFrame({"model": "a", "column": "x", "seed": 0, "value": [1.0, 2.0], "run": "r"})
    with pytest.raises(ValueError, match="several values of one seed under x"):
        grids.average_cells(rows, ["a"])


def test_one_seed_has_no_spread():
    cells = make_cells(["a"])
    cells = cells.assign(value_sd=np.nan, seeds=1)
    shown, _ = grids.lay_out_grid(cells, {})
    assert shown["SQuAD"]["a"] == "0.0"
    assert grids.describe_seeds(cells) == "One seed: no spread."


def test_a_caption_says_how_many_seeds_means_are_over():
    for seeds, text in (
        ((2, 2), "over 2 seeds."),
        ((2, 6), "over 2 to 6 seeds."),
        ((1, 3), "over 3 seeds; without ±, one seed."),
        ((1, 2, 3), "over 2 to 3 seeds; without ±, one seed."),
    ):
        cells = pd.DataFrame({"seeds": seeds})
        assert grids.describe_seeds(cells) == f"Mean ± standard deviation {text}"


def test_a_grid_is_html_latex_and_markdown(recorded):
    cells = make_cells(["a <b>$x$", "b_1"])
    shown, classes = grids.lay_out_grid(cells, {"b_1": {"SQuAD": 51.2}})
    html = grids.save_frame(recorded, "table_x", shown, classes, "Scores & more.", cells)
    table = bs4.BeautifulSoup(html, "html.parser").table
    assert [th.text for th in table.thead.find_all("th")] == ["SQuAD", "BioASQ"]
    assert {th["scope"] for th in table.tbody.find_all("th")} == {"row"}
    assert table.thead.th["scope"] == "col"
    assert table.find("b") is None
    assert [td.text for td in table.find_all("td", class_="best")] == ["10.0 ± 1.4"] * 2
    assert "style" not in html
    folder = runs.page_folder(recorded)
    tex = (folder / "table_x.tex").read_text(encoding="utf-8")
    assert r"b\_1 & \bfseries 10.0 ± 1.4" in tex
    assert r"Scores \& more." in tex
    assert "% run b_1-s0" in tex
    text = (folder / "table_x.md").read_text(encoding="utf-8")
    assert "| **10.0 ± 1.4** |" in text
    assert text.startswith("**REAL small** Scores")
    assert "b_1,SQuAD,10,1.41421,2,10,b_1-s0 b_1-s1" in (folder / "table_x.csv").read_text()


def test_what_models_share_in_one_arm_names_the_arm():
    columns = {"model": ["a", "b"], "blocks": "6", "extra parts": "–", "weights, millions": "9"}
    for arm, batch in (("report's settings", "16"), ("equal tuning", "32")):
        columns |= {f"rate, {arm}": ["1e-4", "2e-4"], f"batch, {arm}": batch}
        columns |= {f"epochs, {arm}": "3", f"steps, {arm}": ["7", "8"], f"seeds, {arm}": ["3", "2"]}
    columns["epochs, equal tuning"] = ["3", "4"]
    *_, shared = grids.lay_out_models(pd.DataFrame(columns))
    assert shared == (
        "blocks 6; extra parts –; weights, millions 9; batch 16 (report's settings); "
        "epochs 3 (report's settings); batch 32 (equal tuning)"
    )
    # a model that an arm lacks shares nothing there
    more = {name: [*np.resize(cells, 2), "–"] for name, cells in columns.items()}
    more |= {"blocks": "6", "extra parts": "–", "weights, millions": "9"}
    for name in ("rate", "batch", "epochs", "steps", "seeds"):
        more[f"{name}, report's settings"] = ["16", "16", "16"]
    shown, _, shared = grids.lay_out_models(pd.DataFrame(more))
    assert "batch 16 (report's settings)" in shared
    assert "batch 32 (equal tuning)" in shared
    assert ("equal tuning", "batch") not in shown
    assert shown["equal tuning", "seeds"].to_list() == ["3", "2", "–"]
    # with one arm there is nothing to tell apart
    columns |= {"seeds, equal tuning": "–"}
    *_, shared = grids.lay_out_models(pd.DataFrame(columns))
    assert shared.endswith("weights, millions 9; batch 16; epochs 3")


def test_the_table_of_models_has_both_arms(recorded):
    parts = {"exbert-tuned": "sparse layer"}
    html = pieces.table_models(recorded, ["v-db", "exbert-tuned", "no-such-model"], parts)
    table = bs4.BeautifulSoup(html, "html.parser").table
    groups, names = table.thead.find_all("tr")
    # what is the same for both models stands in the caption, here all of equal tuning
    assert [th.text for th in groups.find_all("th", scope="colgroup")] == ["report's settings"]
    caption = bs4.BeautifulSoup(html, "html.parser").figcaption.text
    shared = "weights, millions 22.6; batch 16; seeds 3; rate 1e-4 (equal tuning)"
    assert f"Alike for all: {shared}" in caption
    assert [th["class"] for th in names.find_all("th", string="rate")] == [["number"]]
    rows = [[cell.text for cell in row.find_all(["th", "td"])] for row in table.tbody("tr")]
    assert rows == [
        ["V-DB", "6", "–", "2e-5", "3", "3"],
        ["ExBERT (final)", "4", "sparse layer", "1e-4", "2", "2"],
    ]
    alone = bs4.BeautifulSoup(pieces.table_models(recorded, ["v-db"], {}), "html.parser").table
    groups = alone.thead.find("tr")
    assert [th.text for th in groups.find_all("th", scope="colgroup")] == [
        "report's settings",
        "equal tuning",
    ]
    one_arm = recorded.model_copy(update={"arms": ["printed"]})
    assert "equal tuning" not in pieces.table_models(one_arm, ["v-db"], {})


def test_the_grid_of_a_report_is_drawn_from_its_runs(recorded):
    columns = {"SQuAD EM": ("squad", "em"), "SQuAD F1": ("squad", "f1")}
    printed = {"v-db": {"SQuAD EM": 41.0}}
    html = pieces.table_grid(
        recorded, "table_x", "At 80:20.", ["v-db", "exbert-tuned"], columns, printed, ratio=0.8
    )
    table = bs4.BeautifulSoup(html, "html.parser").table
    rows = [[cell.text for cell in row.find_all(["th", "td"])] for row in table.tbody("tr")]
    assert rows[0] == ["V-DB, printed", "41", "–"]
    assert [row[0] for row in rows[1:]] == ["V-DB", "ExBERT (final)"]
    ledger = runs.collect_ledger([s for s in plans.plan(recorded) if s.variant == "v-db"])
    at = ledger["set"].eq("squad") & ledger["metric"].eq("em") & ledger["ratio"].eq(0.8)
    mean = ledger[at & ledger["arm"].eq("printed")]["value"].mean()
    assert rows[1][1].startswith(f"{mean:.1f} ± ")


# ---- trials ----


def test_chosen_trials_are_ringed_and_edges_are_said(recorded):
    html = pieces.figure_trials(recorded)
    caption = bs4.BeautifulSoup(html, "html.parser").figcaption.text
    assert caption.startswith("The validation score of all trials at 80:20, one seed.")
    assert "Ringed: the setting that was chosen." in caption
    assert "epochs" not in caption  # only one number of them was tried
    chosen = bs4.BeautifulSoup(html, "html.parser").img["alt"]
    assert re.fullmatch(r"Chosen: V-DB: rate \d.*; ExBERT.*; \(a\) .*, epochs 1.0", chosen)


def test_an_edge_is_said():
    rates = pd.Categorical(["1e-4", "2e-4", "4e-4"] * 2, ["1e-4", "2e-4", "4e-4"], ordered=True)
    chosen = [False, True, False, False, False, True]
    rows = pd.DataFrame({"model": list("aaabbb"), "rate": rates, "epochs": 2.0, "chosen": chosen})
    told = pieces.describe_edges(rows, ("rate", "epochs"), "λ")
    assert told == "At the edge of what was tried: learning rate of b."
    assert pieces.describe_edges(rows[:3], ("rate", "epochs"), "λ") == ""


# ---- verdicts ----


def test_verdicts_are_grouped_by_the_models_that_are_compared(plant):
    P = plant(printed=MODELS, tuned=MODELS | {"v-db": 9.0})
    html = pieces.show_verdicts(P)
    page = bs4.BeautifulSoup(html, "html.parser")
    assert [heading.text for heading in page.find_all("h4")].count(
        "ExBERT (final) against V-DB"
    ) == 1
    group = page.find("h4", string="ExBERT (final) against V-DB").find_next("li")
    words = group.find_all("span", class_="verdict")
    assert [(word.text, word["class"][1]) for word in words] == [("not reproduced", "no")] * 2
    assert "not reproduced: less than half" in group.text
    assert "equal tuning −5" in group.text
    assert "not reproduced: opposite" in group.text
    assert re.search(r"against \(a\) without ST-MoE block: 0\.\d of the 3\.\d EM", group.text)
    assert "more of the same models" in html
    assert "What the report states as a result" in html
    assert "claims are not tested: why" in html
    assert (runs.page_folder(P) / "claims.csv").exists()


def test_groups_without_a_primary_claim_are_folded_together(plant, monkeypatch):
    """But for what the page's first figure leads with."""
    P = plant(printed=MODELS)
    table = verify.claims_table(P)
    of_group, *others = exbert.COMPARISONS
    assert of_group.claim == "headline"
    for primary, comparisons, opened in (
        ("squad-plus-8", others, True),
        ("", exbert.COMPARISONS, True),
        ("", [replace(of_group, claim="light-weight")], False),
    ):
        monkeypatch.setattr(exbert, "COMPARISONS", comparisons)
        table["primary"] = table["claim"] == primary
        page = bs4.BeautifulSoup(verdict_groups.show_groups(P, table), "html.parser")
        heading = page.find("h4", string="ExBERT (final) against V-DB")
        assert (heading.find_parent("details") is None) == opened
    folds = [summary.text for summary in page.find_all("summary")]
    assert any(
        re.fullmatch(r"What the report states .*: .*not reproduced.*", text) for text in folds
    )


def test_claims_that_equal_tuning_alone_tests_count_by_it(plant):
    P = plant(tuned=MODELS)
    table = verify.claims_table(P)
    counts = verify.count_verdicts(table)
    tested = (verify.select(table, "tuned")["verdict"] != Verdict.NOT_TESTED).sum()
    assert tested
    assert f" {tested} of them are tested with equal tuning alone. " in counts
    page = bs4.BeautifulSoup(verdict_groups.show_groups(P, table), "html.parser")
    folds = [summary.text for summary in page.find_all("summary")]
    named = [text for text in folds if re.search(r"reproduced|undecided", text)]
    assert named
    assert not any("not tested" in text for text in named)
    # a mark has its meaning, whichever arm it stands in
    is_tuned = (table["arm"] == "tuned") & (table["claim"] == "squad-plus-8")
    table.loc[is_tuned & (table["comparison"] == "claim"), "unpooled"] = str(Verdict.UNDECIDED)
    html = verdict_groups.show_groups(P, table)
    assert f"</span>{verdict_groups.MARK}" in html
    assert f"{verdict_groups.MARK}: another verdict" in html


def test_hopes_and_explanations_stand_apart(plant, monkeypatch):
    P = plant(printed=MODELS)
    table = verify.claims_table(P)
    table.loc[table["claim"] == "squad-plus-8", "stance"] = "hope"
    page = bs4.BeautifulSoup(verdict_groups.show_groups(P, table), "html.parser")
    hopes = page.find("strong", string="What it hopes")
    assert hopes.find_next("li").text.startswith(compare.find_claim(P, "squad-plus-8").says)


@pytest.mark.parametrize(
    ("slug", "claim", "sides"),
    [
        ("exbert", "headline", "ExBERT (final) against V-DB"),
        ("exbert", "steep-at-80-20", "V-DB, against itself"),
        (
            "exbert",
            "mixed-beyond-single",
            "ExBERT (final) against V-DB, at 20:80, 40:60, 80:20 more than at 0:100, 100:0",
        ),
        ("road", "generalises-more", "ROaD against Plain, on NewsQA more than on SQuAD"),
        ("moe", "experts-too-distinct", "Own expert against Expert, more than Baseline"),
        (
            "smart",
            "smart-small-data",
            "Round-robin + SMART against Round-robin, "
            "more than All paraphrases + SMART against All paraphrases",
        ),
    ],
)
def test_a_claim_stands_under_what_it_compares(slug, claim, sides):
    P = plans.load_params(slug, "real", size="small")
    assert verdict_groups.name_sides(P, compare.find_claim(P, claim)) == sides


def test_a_verdict_that_hangs_on_pooling_is_marked(plant):
    P = plant(printed=MODELS)
    table = verify.claims_table(P)
    assert verdict_groups.MARK not in verdict_groups.show_groups(P, table)
    table.loc[table["claim"] == "squad-plus-8", "unpooled"] = str(Verdict.UNDECIDED)
    html = verdict_groups.show_groups(P, table)
    assert f"not reproduced</span>{verdict_groups.MARK}" in html
    assert f"{verdict_groups.MARK}: another verdict" in html


# ---- findings in Markdown ----

ANSWER = """## answer

<!-- holds: claims.squad_plus_8.report.low > 0 and claims.squad_plus_8.equal.high < 0 -->
The gain is the learning rate's.

- **{{ claims.squad_plus_8.equal }} EM** with equal tuning
- **{{ claims.squad_plus_8.report }} EM** (printed {{ claims.squad_plus_8.printed }})
- **{{ claims.squad_plus_8.report.control }} EM** against the model without the layer

Not shown: whether experts are needed.
"""
WHY = """
## why

<!-- holds: claims.squad_plus_8.report.ours > 0 -->
V-DB has {{ mean("v-db", "squad") }} EM of {{ params.train_rows }} rows.

It has no condition.
"""


@pytest.fixture
def write(plant, monkeypatch, tmp_path):
    """Return a function that writes findings, and the parameters of a page of planted runs."""
    monkeypatch.setattr(written, "FOLDER", tmp_path)
    monkeypatch.setattr(written, "hash_runs", lambda P: "abc")
    P = plant(printed=MODELS, tuned=MODELS | {"v-db": 9.0})

    def write(text: str, head: str = "runs: abc"):
        (tmp_path / "exbert.md").write_text(f"---\n{head}\n---\n\n{text}", encoding="utf-8")
        return P

    return write


def test_the_answer_has_its_finding_three_numbers_and_a_limit(write):
    P = write(ANSWER)
    box = bs4.BeautifulSoup(pieces.show_answer(P, (EIGHT,)), "html.parser").section
    assert box["aria-label"] == "Answer"
    assert box.p.text == "The gain is the learning rate's."
    numbers = [item.strong.text for item in box.find_all("li")]
    assert len(numbers) == 3
    assert re.fullmatch(r"−5\.\d \[−\d\.\d, −\d\.\d\] EM", numbers[0])
    assert box.find_all("li")[1].text.endswith("(printed 8)")
    assert box.find_all("p")[-1].text == "Not shown: whether experts are needed."


@pytest.mark.parametrize(
    "change, says",
    [
        (("needed.", "needed " * 60), "the answer has 9. words; the most is 70"),
        (("- **{{ claims.squad_plus_8.equal }} EM** with equal tuning\n", ""), "here are 2$"),
        (("\nNot shown: whether experts are needed.\n", ""), "three paragraphs: .* here are 2$"),
    ],
)
def test_an_answer_of_another_form_is_refused_with_its_place(write, change, says):
    P = write(ANSWER.replace(*change))
    with pytest.raises(UserError, match=r"exbert.md, line 8: .*" + says):
        pieces.show_answer(P, (EIGHT,))


@pytest.mark.parametrize(
    "wrong, says",
    [
        ("{{ claims.squad_plus_9 }}", "has no squad_plus_9; did you mean squad_plus_8"),
        ("{{ claims.mixed_gain.equal }}", None),
        ("{{ claims.light_weight.report }}", "claims.light_weight, of these runs, has no report"),
        ("{{ mean('v-db', 'squat') }}", "no run of v-db has em on squat, arm report"),
        ("{{ params.train_row }}", "params has no train_row; did you mean train_rows"),
        ("{{ values.dropped }}", "values has no dropped"),
        ("{{ mean('v-db', 'squad', rato=1) }}", "'rato'"),
        ("{{ params.train_rows / 0 }}", "division by zero"),
        ("{{ nothing }}", "'nothing' is undefined"),
        ("{{ claims.squad_plus_8.report.lower }}", "has no attribute 'lower'"),
        ("{{ claims.squad_plus_8", "expected token 'end of print statement'"),
    ],
)
def test_an_unknown_name_is_one_sentence_with_file_and_line(write, wrong, says):
    P = write(f"## why\n\nOne line\nand {wrong} here.\n")
    if says is None:  # planted runs bear on it
        assert "[" in pieces.show_findings(P, "why")
        return
    with pytest.raises(UserError) as error:
        pieces.show_findings(P, "why")
    assert re.search(r"exbert.md, line 8: ", str(error.value))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_wrong_name_in_a_condition_has_its_line(write):
    P = write("## why\n\n<!-- holds: claims.squad_plus_8.repot.low > 0 -->\nYes.\n")
    with pytest.raises(UserError, match="line 7: .* has no repot; did you mean report"):
        pieces.show_findings(P, "why")


def test_a_section_is_filled_in_by_name(write):
    P = write(ANSWER + WHY)
    text = pieces.show_findings(P, "why")
    assert re.fullmatch(
        r"V-DB has (49|50|51)\.\d EM of 1,000 rows\.\n\nIt has no condition\.", text
    )
    with pytest.raises(UserError, match="there is no section how; there are answer, why"):
        pieces.show_findings(P, "how")


def test_a_condition_can_ask_what_the_own_seeds_of_a_difference_say(write):
    """Planted models differ by the same at every seed, one way and the other."""
    for ours, against, condition in (
        ("exbert-tuned", "v-db", "own_low > 0"),
        ("v-db", "exbert-tuned", "own_high < 0"),
        ("dense-compute", "v-db", "own_low > 0"),  # of no claim: measured for this sentence
    ):
        asked = f"gap('squad-plus-8', '{ours}', '{against}')"
        text = f"## why\n\n<!-- holds: {asked}.{condition} -->\nIt is ahead by {{{{ {asked} }}}}.\n"
        P = write(text)
        assert written.list_untrue(P, written.read_findings("exbert")) == []
        P = write(text.replace(condition, "own_low > 20"))
        assert len(written.list_untrue(P, written.read_findings("exbert"))) == 1


def test_a_sentence_that_does_not_hold_is_found(write):
    P = write(ANSWER + WHY.replace("ours > 0", "ours > 20"))
    assert "V-DB has" not in pieces.show_findings(P, "why")
    [line] = written.list_untrue(P, written.read_findings("exbert"))
    assert "exbert.md, line 19, section why: claims.squad_plus_8.report.ours > 20" in line
    assert written.list_untrue(write(ANSWER + WHY), written.read_findings("exbert")) == []


def test_a_page_of_other_runs_shows_numbers_and_one_line(write):
    P = write(ANSWER + WHY, "runs: abd")
    box = bs4.BeautifulSoup(pieces.show_answer(P, (EIGHT,)), "html.parser").section
    assert box.p.text == pieces.UNWRITTEN
    assert [item.strong.text for item in box.find_all("li")][0] == "8 EM"
    assert len(box.find_all("li")) == 3
    assert pieces.show_findings(P, "why") == ""
    (written.FOLDER / "exbert.md").unlink()
    assert pieces.UNWRITTEN in pieces.show_answer(P, (EIGHT,))


FALSE = "<!-- holds: 1 > 2 -->"


@pytest.mark.parametrize(
    "change",
    [
        ("<!-- holds: claims.squad_plus_8.report.low > 0", "<!-- holds: 1 > 2"),
        ("- **{{ claims.squad_plus_8.equal", FALSE + "\n- **{{ claims.squad_plus_8.equal"),
        ("Not shown", FALSE + "\nNot shown"),
    ],
)
def test_an_answer_that_does_not_hold_gives_way_to_numbers_and_one_line(write, change):
    """The records of the same runs may be made anew, with other scores."""
    P = write(ANSWER.replace(*change))
    box = bs4.BeautifulSoup(pieces.show_answer(P, (EIGHT,)), "html.parser").section
    assert box["aria-label"] == "Numbers"
    assert box.p.text == pieces.UNTRUE
    assert [item.strong.text for item in box.find_all("li")][0] == "8 EM"
    assert len(box.find_all("p")) == 1


@pytest.mark.parametrize(
    "text, head, says",
    [
        ("## why\n\nYes.", "run: abc", "line 1: the file begins with ---, a line `runs: HASH`"),
        ("Yes.", "runs: abc", "line 5: text belongs below a heading"),
        ("## why\n\n<!-- holds: 1 -->\n\nYes.", "runs: abc", "line 7: no paragraph stands below"),
    ],
)
def test_a_file_of_another_form_is_refused_with_its_place(write, text, head, says):
    write(text, head)
    with pytest.raises(UserError, match=f"exbert.md, {says}"):
        written.read_findings("exbert")


def test_numbers_are_written_as_prose_has_them():
    assert written.write_value(-3.14) == "−3.1"
    assert written.write_value(1000) == "1,000"
    assert written.write_value(2e-5) == "2e-5"
    assert written.write_value("a-b") == "a-b"
    assert written.write_percent(0.482) == "48 %"
    assert written.write_digits(0.3142, 2) == "0.31"


def test_the_hash_is_over_the_runs(recorded):
    whole = written.hash_runs(recorded)
    assert re.fullmatch("[0-9a-f]{16}", whole)
    assert written.hash_runs(recorded) == whole
    fewer = recorded.model_copy(update={"arms": ["printed"]})
    assert written.hash_runs(fewer) != whole


def test_the_command_line_prints_the_hash(recorded, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(written, "FOLDER", tmp_path)
    monkeypatch.setattr(plans, "parameters_to_render", lambda args: recorded)
    assert run_verb(["findings", "exbert", "--profile", "real"]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == f"runs: {written.hash_runs(recorded)}"
    assert rest == ["no findings are written: params/findings/exbert.md"]


def test_committed_findings_stand_on_the_committed_records(monkeypatch):
    """Every sentence of params/findings is true of the records that are committed."""
    monkeypatch.setattr(runs, "RECORDS", ROOT / "records")
    runs.read_committed.cache_clear()
    runs._read_committed_examples.cache_clear()
    for file in sorted((ROOT / "params" / "findings").glob("*.md")):
        if file.stem == "overview":  # tests/test_overview.py looks at these
            continue
        found = written.read_findings(file.stem)
        if found.runs == "none":
            assert not any(found.sections.values()), f"{file.name}: a finding without runs"
            continue
        P = plans.load_params(file.stem, "real", size="small")
        assert written.is_written_of(P, found), f"{file.name}: python -m qa_lib findings"
        assert written.list_untrue(P, found) == []


# ---- folds, and what the pieces cost to import ----


def test_a_fold_holds_markdown_and_html():
    html = pieces.fold("A <title>", "Some *words*.", report.Html("<p>a</p>"))
    page = bs4.BeautifulSoup(html, "html.parser")
    assert page.summary.text == "A <title>"
    assert page.em.text == "words"
    assert len(page.find_all("p")) == 2


def test_notes_that_are_alike_stand_once():
    note = report.note_absent("a")
    html = pieces.stack(note, note, report.Html("<p>d</p>"), report.note_absent("b"))
    assert html == f"{note}<p>d</p>{report.note_absent('b')}"


def test_parts_of_a_fold_that_were_not_run_are_named_once():
    absent = [report.note_absent("a"), report.note_absent("b, c")]
    assert pieces.fold("All", *absent) == report.note_absent("a, b, c")
    html = pieces.fold("Some", absent[0], report.Html("<p>d</p>"), absent[1])
    assert report.ABSENT not in html
    assert "<p>d</p><p>Not run here: a, b, c.</p>" in html


def test_findings_need_no_notebook():
    code = (
        "import sys\n"
        "from qa_lib.page import written\n"
        "sys.exit(str({'torch', 'papermill', 'nbconvert'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.strip() == "set()", done.stderr
