r"""Figures and tables of distillation, which only the page of ROaD-ELECTRA has.

taught.table_soft_pretraining(P)   soft targets in the pre-training (T5)
taught.table_distillation(P)       students of several teachers, and the teachers together (T6)
taught.figure_wrong_weights(P)     scores by the weight of a teacher that is wrong
taught.table_targets(P)            how soft the targets are, and how often teachers disagree
taught.table_final(P)              the final model beside ensembles (T7)
taught.list_base_tables(P)         ROaD-Base: teachers, what is distilled, draws
"""

import numpy as np
import pandas as pd

from qa_lib.page import pieces, report
from qa_lib.page.figures_road import SECOND, TARGET, name_columns, name_target_columns
from qa_lib.reports import plans
from qa_lib.store import runs

# ---- what is printed (T5, T6, T7 and the later post) ----

# EM and F1 on the target, and of T5 and T7 on the other domain too.
TABLE_5 = {
    "baseline": (87.9, 90.5, 43.4, 55.6),
    "mtl": (88.3, 90.9, 43.7, 56.8),
    "mtl-kd": (88.5, 91.0, 46.1, 57.9),
}
# With the two decimals of the post.
TABLE_6 = {
    "mtl": (88.34, 90.87),
    "mtl-ensemble": (88.92, 91.41),
    "kd": (88.84, 91.38),
    "annealed-kd": (88.1, 91.0),
    "weighted-kd": (89.0, 91.5),
}
TABLE_7 = {
    "baseline": (87.9, 90.5, 42.7, 58.0),
    "ensemble": (88.7, 91.1),
    "weighted-kd": (89.0, 91.5, 45.4, 60.4),
}
BASE_TEACHERS = {
    "base-student": (82.0, 85.0),
    "base-from-base-1": (83.2, 86.1),
    "base-from-base-3": (83.6, 86.4),
    "base-from-electra-1": (83.5, 86.3),
    "base-from-electra-3": (83.4, 86.2),
    "base-none": (84.6, 87.3),
    "base-from-road-3": (84.1, 87.1),
    "base-from-distilled": (84.0, 87.0),
}
BASE_HIDDEN = {
    "base-none": (84.6, 87.3),
    "base-hidden": (84.4, 87.0),
    "base-both": (84.5, 87.1),
    "base-last-hidden": (84.6, 87.3),
}
BASE_PASSES = {
    "base-none": (84.6, 87.3),
    "base-1": (84.5, 87.2),
    "base-2": (84.9, 87.5),
    "base-4": (85.1, 87.6),
    "base-8": (84.7, 87.4),
}

# ---- models of a part of the page ----

STUDENTS = (
    "mtl",
    "mtl-ensemble",
    "kd",
    "annealed-kd",
    "weighted-kd",
    "shuffled-kd",
    "smoothed-labels",
    "kd-one",
    "born-again",
)
FINAL = ("baseline", "mtl", "mtl-ensemble", "ensemble", "weighted-kd")
SIZES = ("mtl", "kd-from-smaller", "mtl-small", "kd-from-larger", "kd-small")


def name_scores(printed: dict[str, tuple]) -> dict[str, dict[str, float]]:
    """Return printed scores by model and heading. printed: EM and F1, the target's first."""
    headings = (*TARGET, *SECOND)
    return {
        variant: dict(zip(headings, values, strict=False)) for variant, values in printed.items()
    }


# ---- T5, T6 and T7 ----


def table_soft_pretraining(P) -> report.Html:
    """Return T5: soft targets of one teacher for each dataset, in the pre-training."""
    if "soft-pretraining" not in P.experiments:
        return report.note_absent("soft-pretraining")
    caption = (
        "Table 5: soft targets of one teacher for each dataset in the pre-training, scores in "
        "percent. Table 4 prints another NewsQA baseline than Table 5 does."
    )
    variants, printed = list(TABLE_5), name_scores(TABLE_5)
    return pieces.table_grid(P, "table5", caption, variants, name_columns(P), printed)


def table_distillation(P) -> report.Html:
    """Return T6: students of several teachers, the teachers together, and the controls."""
    if "distillation" not in P.experiments:
        return report.note_absent("distillation")
    number = len(P.teacher_seeds)
    teachers = "one teacher, its" if number == 1 else f"{number} teachers together, their"
    caption = f"Table 6: {teachers} students, and controls: scores in percent."
    variants, columns = list(STUDENTS), name_target_columns(P)
    return pieces.table_grid(P, "table6", caption, variants, columns, name_scores(TABLE_6))


def table_final(P) -> report.Html:
    """Return T7: the final model beside the plain one and beside ensembles."""
    if not {"distillation", "ensemble"} & set(P.experiments):
        return report.note_absent("ensemble")
    caption = (
        "Table 7: the final model beside ensembles, which read a question as often as they have "
        "members: scores in percent."
    )
    variants, printed = list(FINAL), name_scores(TABLE_7)
    return pieces.table_grid(P, "table7", caption, variants, name_columns(P), printed)


# ---- does it matter who is right? ----


def figure_wrong_weights(P) -> report.Html:
    """Return scores by the weight of a teacher that is wrong; at 1 all weigh alike."""
    if "wrong-weights" not in P.experiments:
        return report.note_absent("wrong-weights")
    columns = {name: at for name, at in name_columns(P).items() if name.endswith("EM")}
    caption = (
        "EM by W, the weight of a wrong teacher: the lower, the more those that are right say."
    )
    return pieces.figure_sweep(
        P,
        "fig_wrong_weights",
        caption,
        ("weighted-kd-sweep",),
        "distillation_wrong_weight",
        "W of a wrong teacher",
        columns,
        baseline="kd",
    )


def table_targets(P) -> report.Html:
    """Return how soft the targets were, how often teachers disagreed, and calibration."""
    own = [s for s in plans.plan(P) if s.variant in STUDENTS and s.arm == "printed"]
    own = [spec for spec in own if spec.domains[0] == P.domains[0]]
    if not any(spec.teachers for spec in own):
        return report.note_absent("distillation")
    ledger = runs.collect_ledger(own)
    rows = []
    for variant, of_model in ledger.groupby("variant", sort=False):
        of_training = of_model[of_model["set"] == "training"].groupby("metric")["value"].mean()
        of_target = of_model[(of_model["set"] == P.domains[0]) & (of_model["metric"] == "ece")]
        disagree = 100 * of_training.get("teachers_disagree", np.nan)
        row = {
            "model": plans.display_name(P.report, variant),
            "entropy of targets, nats": write(of_training.get("soft_target_entropy", np.nan), 2),
            "windows on which teachers differ, %": write(disagree, 1),
            "largest weight": write(of_training.get("largest_weight", np.nan), 3),
            "calibration error, target, %": write(of_target["value"].mean(), 1),
        }
        rows.append(row | {"run": tuple(of_model["run"].unique())})
    caption = (
        "How soft the targets are in training, as a mean over start and end; on how many windows "
        "some teachers are right and others wrong, which is all that weights can change; and how "
        "far the answers' probabilities are from how often they are right. "
        + pieces.describe_means(ledger)
    )
    return report.save_table(P, "table_targets", pd.DataFrame(rows), caption)


def write(value: float, digits: int) -> str:
    """Return a number with so many digits behind the point, or "–" where there is none."""
    return "–" if np.isnan(value) else f"{value:.{digits}f}"


# ---- sizes of teachers, and ROaD-Base ----


def table_sizes(P) -> report.Html:
    """Return scores of students whose teachers have more blocks, or fewer."""
    if "teacher-sizes" not in P.experiments or "printed" not in P.arms:
        return report.note_absent("teacher-sizes")
    frames = []
    for blocks in P.sweep_blocks:
        # No score tells how many blocks a student's teacher has: the plan of one number does.
        changes = {"experiments": ["teacher-sizes"], "sweep_blocks": [blocks]}
        of_number = plans.plan(P.model_copy(update=changes | {"arms": ["printed"]}))
        specs = [spec for spec in of_number if spec.variant in SIZES]
        ledger = runs.collect_ledger(specs)
        names = ledger["variant"].map(lambda variant: plans.display_name(P.report, variant))
        if len(P.sweep_blocks) > 1:
            names = names.where(ledger["variant"] == SIZES[0], f"{blocks} blocks: " + names)
        frames.append(ledger.assign(model=names))
    # the model of all blocks is behind students of every number
    rows = pd.concat(frames).drop_duplicates(["run", "model", "set", "metric"])
    rows = pieces.collect_columns(rows, name_columns(P))
    numbers = ", ".join(map(str, P.sweep_blocks))
    caption = f"Teachers with more and with fewer blocks than their student: all, and {numbers}."
    return pieces.save_grid(P, "table_sizes", caption, rows, "teacher-sizes")


def list_base_tables(P) -> list[report.Html]:
    """Return the tables of ROaD-Base: its teachers, what is distilled, and draws an update."""
    parts = (
        ("base", "table_base", BASE_TEACHERS, "Teachers of a student without pre-training."),
        ("base-hidden", "table_base_hidden", BASE_HIDDEN, "What the student learns of a teacher."),
        ("base-passes", "table_base_passes", BASE_PASSES, "Draws an update in pre-training."),
    )
    shown = []
    for part, name, printed, words in parts:
        if part not in P.experiments:
            shown.append(report.note_absent(part))
            continue
        caption = f"ROaD-Base. {words} Scores on the target in percent."
        variants, columns = list(printed), name_target_columns(P)
        scores = name_scores(printed)
        shown.append(pieces.table_grid(P, name, caption, variants, columns, scores))
    return shown
