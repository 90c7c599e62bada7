"""Figures that every report's page has: the forest of comparisons, steps, trials, and sweeps.

Each function returns a figure for a look (looks.py). What a mark is stands beside it as text, so
that no figure needs a legend.
"""

import textwrap
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from qa_lib.evidence import verify
from qa_lib.page.looks import Look
from qa_lib.reports import plans

# Setting → how it is called, and its mark.
SETTINGS = {
    "printed": ("printed", "o"),
    "equal": ("ours, equal tuning", "D"),
    "report": ("ours, report's settings", "o"),
}
LINE = 0.205  # inches that a line of text takes
INDENT = "\u00a0" * 3  # SVG drops blanks at the beginning of a text
# On a wide page: inches for the names at the left, and for the numbers at the right.
NAMES = 2.85
VALUES = 1.35
# Columns of trials as an axis names them.
NAMES_OF = {"rate": "learning rate"}
HEAT = LinearSegmentedColormap.from_list("heat", ["#edf3f9", "#5f9bd1", "#0b4a80"])


@dataclass
class Board:
    """Axes with a name and a number beside each line, from the top down.

    On a wide page the name stands at the left and the number at the right of the axes. On a phone
    both stand above the mark.
    """

    axes: plt.Axes
    look: Look
    y: float = 0.0  # the bottom of the last line, in inches below the top

    def add_heading(self, text: str, weight: str = "bold"):
        """Write a heading over the whole width."""
        characters = 38 if self.look.is_narrow else 80
        for line in textwrap.wrap(text, characters):
            self.write_left(line, self.y - 0.5 * LINE, weight=weight)
            self.y -= LINE
        self.y -= 0.05

    def add_line(
        self, name: str, number: str, is_quiet: bool = False, has_mark: bool = True
    ) -> float:
        """Write the name and the number of a line; return where its mark belongs."""
        colour = self.look.colours["soft" if is_quiet else "text"]
        if self.look.is_narrow:
            for line in textwrap.wrap(name, 42 - len(number), subsequent_indent=INDENT):
                self.write_left(line, self.y - 0.6 * LINE, color=colour)
                self.y -= LINE
            self.write_right(number, self.y + 0.4 * LINE, color=colour)
            mark = self.y - 0.3 * LINE
            self.y -= 0.8 * LINE if has_mark else 0.05
            return mark
        indent = INDENT if name.startswith(INDENT) else ""
        lines = textwrap.wrap(name, 38, subsequent_indent=indent)
        height = LINE * len(lines)
        mark = self.y - height / 2
        for at, line in enumerate(lines):
            self.write_left(line, self.y - (at + 0.5) * LINE, color=colour)
        self.write_right(number, mark, color=colour)
        self.y -= height + 0.03
        return mark

    def write_left(self, text: str, y: float, **style):
        """Write a text at the left edge of the figure."""
        edge = self.axes.get_yaxis_transform()  # x of the axes, y of the data
        x = 0 if self.look.is_narrow else -NAMES * 72 + 4
        place = {"textcoords": "offset points", "xytext": (x, 0), "va": "center"}
        self.write(text, (0, y), xycoords=edge, **place, **style)

    def write_right(self, text: str, y: float, **style):
        """Write a text at the right edge of the figure."""
        edge = self.axes.get_yaxis_transform()
        x = 0 if self.look.is_narrow else VALUES * 72 - 4
        place = {"textcoords": "offset points", "xytext": (x, 0), "va": "center", "ha": "right"}
        self.write(text, (1, y), xycoords=edge, **place, **style)

    def write(self, text: str, at: tuple[float, float], **style):
        """Write a text on the colour of the ground, so that no line runs through it."""
        ground = {"facecolor": self.look.colours["page"], "edgecolor": "none", "pad": 2}
        self.axes.annotate(text, at, annotation_clip=False, bbox=ground, **style)

    def finish(self, label: str) -> Figure:
        """Fit the axes and the figure to what was written, and return the figure."""
        fig = self.axes.figure
        words = textwrap.wrap(label, 40 if self.look.is_narrow else 80)
        foot = 0.62 + LINE * (len(words) - 1)  # inches below the axes
        height = foot - self.y
        fig.set_size_inches(self.look.width, height)
        left, right = (0.06, 0.06) if self.look.is_narrow else (NAMES, VALUES)
        fig.subplots_adjust(
            left=left / self.look.width,
            right=1 - right / self.look.width,
            bottom=foot / height,
            top=1,
        )
        self.axes.use_sticky_edges = False  # else a bar begins on the frame
        self.axes.margins(x=0.06)
        self.axes.axvline(0, color=self.look.colours["text"], lw=1, zorder=1)
        self.axes.set(ylim=(self.y, 0), yticks=[], xlabel="\n".join(words))
        self.axes.spines["left"].set_visible(False)
        self.axes.grid(axis="y", visible=False)
        self.axes.grid(axis="x")
        self.axes.locator_params(axis="x", nbins=6, steps=[1, 2, 5, 10])
        return fig


def start_board(look: Look) -> Board:
    """Return an empty board."""
    _, axes = plt.subplots(figsize=(look.width, 3))
    return Board(axes, look)


# ---- the forest ----


def draw_forest(report: str, rows: pd.DataFrame, look: Look) -> Figure:
    """Draw the central comparisons of a report, a block each, with 95 % intervals.

    What is printed is hollow. Ours has the colour of the model, a diamond with equal tuning and a
    disc at the report's settings. A small square is ours against a control, in that control's
    colour: what it leaves of the effect. rows: of compare.collect_comparisons.
    """
    board = start_board(look)
    for _, of_comparison in rows.groupby("comparison", sort=False):
        board.add_heading(name_comparison(of_comparison))
        for row in of_comparison.itertuples():
            draw_comparison(board, report, row)
        board.y -= 0.5 * LINE
    units = rows["unit"].unique()
    unit = units[0] if len(units) == 1 else "points"
    rule = ", by the report's scoring" if rows["by_starter"].any() else ""
    return board.finish(f"{unit} behind (−) or ahead (+){rule}")


def draw_reports(rows: pd.DataFrame, look: Look) -> Figure:
    """Draw the comparison that answers the question of each report, a block each.

    The marks are those of `draw_forest`. rows: as there, of one comparison a report, with a column
    `report`.
    """
    board = start_board(look)
    for report, of_report in rows.groupby("report", sort=False):
        board.add_heading(plans.find_report(report).TITLE)
        board.add_heading(name_comparison(of_report), weight="normal")
        for row in of_report.itertuples():
            draw_comparison(board, report, row)
        board.y -= 0.5 * LINE
    return board.finish("points behind (−) or ahead (+)")


def name_comparison(rows: pd.DataFrame) -> str:
    """Return which models a comparison is of and what is scored, from its rows."""
    first = rows.iloc[0]
    on = f" ({first['on']})" if first["on"] else ""
    return f"{first['ours']} against {first['against']}{on}"


def draw_comparison(board: Board, report: str, row):
    """Draw one value of a comparison, with its name and its number; one not run is said alone."""
    name = name_value(row)
    _, marker = SETTINGS[row.setting]
    look = board.look
    if row.setting == "printed":
        y = board.add_line(name, format_printed(row), is_quiet=True)
        ends = list(dict.fromkeys([row.low, row.high]))  # one of a number, two of a range
        style = {"color": look.colours["soft"], "mfc": look.colours["page"], "ms": 7, "lw": 1.4}
        board.axes.plot(ends, [y] * len(ends), f"{marker}-", zorder=4, **style)
        return
    if not row.n:
        board.add_line(name, "not run", is_quiet=True, has_mark=False)
        return
    variant = row.control or row.variant
    size, width = (6.5, 2.6) if not row.control else (4.5, 1.6)
    if row.control:
        name = f"{INDENT}against {plans.display_name(report, row.control)}"
        marker = "s"
    name += name_one_seed(row)
    colour = look.model_colour(report, variant)
    y = board.add_line(name, format_difference(row), is_quiet=bool(row.control))
    if not np.isnan(row.low):
        board.axes.plot([row.low, row.high], [y, y], color=colour, lw=width, zorder=3)
    edge = look.colours["page"]
    board.axes.plot(row.value, y, marker, color=colour, ms=size, mec=edge, mew=0.8, zorder=4)


def name_value(row) -> str:
    """Return how a value of a comparison came about, and of which part of the claim it is."""
    name, _ = SETTINGS[row.setting]
    if row.part:
        name += f", for {row.part}"
    if row.untested:
        name += f"; no test: {row.untested}"
    return name


def name_one_seed(row) -> str:
    """Return what a value's name ends with where its interval is of one seed."""
    is_told = np.isnan(row.low)  # without an interval the number says so
    return ", one\N{NO-BREAK SPACE}seed" if row.n == 1 and not is_told else ""


def describe_values(made: pd.DataFrame, has_unit: bool = True) -> str:
    """Return the values of comparisons, without those against controls, as a text alternative.

    made: the rows that were run, of compare.collect_comparisons.
    """
    texts = []
    for row in made[made["control"] == ""].itertuples():
        on = f" ({row.on})" if row.on else ""
        value = format_difference(row, row.unit if has_unit else "")
        texts.append(
            f"{row.ours} against {row.against}{on}, {name_value(row)}{name_one_seed(row)}: {value}"
        )
    return "; ".join(texts)


def format_printed(row) -> str:
    """Return a printed value or range with its sign, as the axis has it."""
    ends = [f"{end:g}".replace("-", "−") for end in dict.fromkeys([row.low, row.high])]
    return " to ".join(ends)


def format_difference(row, unit: str = "") -> str:
    """Return a value with its 95 % interval and unit; of one seed the value alone."""
    value = verify.format_number(row.value, 1).replace("-", "−")
    if np.isnan(row.low):
        return f"{value} {unit}".strip() + " (one seed)"
    interval = verify.format_interval(row.low, row.high, 1).replace("-", "−")
    return f"{value}{interval} {unit}".strip()


# ---- the steps ----


def draw_steps(report: str, rows: pd.DataFrame, unit: str, look: Look) -> Figure:
    """Draw the steps from the baseline to the report's model, with the 95 % interval of each.

    A step begins where the one before it ends. Steps that are known only together are hatched.
    rows: of compare.collect_steps.
    """
    board = start_board(look)
    board.y -= 0.06
    *steps, whole = list(rows.itertuples())
    ends = []
    for at, row in enumerate(steps):
        following = steps[at + 1] if at + 1 < len(steps) else None
        is_last_unknown = following is None or following.start != row.start or following.known
        y = draw_step(board, row, look.bar, is_last_unknown)
        if row.n and (row.known or is_last_unknown):
            ends.append((row.start + row.value, y))
        board.y -= 0.4 * LINE
    colour = look.model_colour(report, whole.after)
    y = draw_step(board, whole, colour, is_last_unknown=True)
    if whole.n:
        ends.append((whole.value, y))
    for (x, top), (_, bottom) in zip(ends, ends[1:], strict=False):
        board.axes.plot([x, x], [top, bottom], color=look.colours["soft"], lw=0.8, ls=":", zorder=1)
    name = plans.display_name(report, whole.before)
    return board.finish(f"{unit} behind (−) or ahead (+) of {name}")


def draw_step(board: Board, row, colour: str, is_last_unknown: bool) -> float:
    """Draw one step, with its name and its number; return the height of its bar."""
    if not row.n:
        return board.add_line(row.says, "not run", is_quiet=True, has_mark=False)
    number = format_difference(row)
    if not row.known:
        number = f"together {number}" if is_last_unknown else "not known alone"
    y = board.add_line(row.says, number)
    bar = {"left": row.start, "height": 0.6 * LINE, "zorder": 2}
    if row.known:
        board.axes.barh(y, row.value, color=colour, **bar)
    else:
        board.axes.barh(
            y,
            row.value,
            facecolor="none",
            edgecolor=board.look.colours["soft"],
            hatch="////",
            **bar,
        )
    if (row.known or is_last_unknown) and not np.isnan(row.low):
        ends = [row.start + row.low, row.start + row.high]
        board.axes.plot(ends, [y, y], color=board.look.colours["text"], lw=1.6, zorder=4)
    return y


# ---- the trials ----


def draw_trials(
    rows: pd.DataFrame, by: tuple[str, str], score: str, look: Look, setting: str
) -> Figure:
    """Draw the validation score of every trial as a heat map, a panel for each model.

    The setting that was chosen is ringed. All panels have one scale. rows: model, the two columns
    of `by` (down and across, in their order), score (in percent) and chosen.
    setting: how an axis calls the column `setting`.
    """
    down, across = by
    names = NAMES_OF | {"setting": setting}
    models = list(rows["model"].unique())
    values = rows.groupby("model", observed=True)[across].nunique().max()
    rates = rows.groupby("model", observed=True)[down].agg(frozenset)
    is_alike = rates.nunique() == 1  # five panels side by side share the names of their rows
    most = (5 if is_alike else 4) if values <= 2 else 3
    columns = min(len(models), 2 if look.is_narrow else most)
    lines = -(-len(models) // columns)
    height = lines * (0.3 * rows[down].nunique() + 1.1) + 0.35
    size = (look.width, height)
    fig, panels = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    width = 14 if look.is_narrow else 80 // columns - 4
    scale = {"vmin": rows[score].min(), "vmax": rows[score].max()}
    for axes, model in zip(panels.flat, models, strict=False):
        draw_panel(axes, rows[rows["model"] == model], by, score, scale, look)
        title = "\n".join(textwrap.wrap(str(model), width, break_on_hyphens=False))
        axes.set_title(title, fontsize=10)
    for axes in panels.flat[len(models) :]:
        axes.axis("off")
    for axes in panels[:, 0]:
        axes.set_ylabel(names.get(down, down))
    if columns > 4:
        for axes in panels[:, 1:].flat:
            axes.set_yticklabels([])
    for axes in panels.flat[max(len(models) - columns, 0) : len(models)]:
        axes.set_xlabel(names.get(across, across))
    fig.text(0.01, 0.0, " ")  # room for the tag
    fig.get_layout_engine().set(rect=(0, 0.2 / height, 1, 1 - 0.2 / height))
    return fig


def draw_panel(axes, rows: pd.DataFrame, by: tuple[str, str], score: str, scale: dict, look: Look):
    """Draw the trials of one model; a cell that was not tried is empty."""
    down, across = by
    grid = rows.pivot_table(index=down, columns=across, values=score, observed=True)
    axes.pcolormesh(grid.to_numpy(), cmap=HEAT, edgecolors=look.colours["page"], lw=2, **scale)
    names_down, names_across = list(grid.index), list(grid.columns)
    for row in rows.to_dict("records"):
        x, y = names_across.index(row[across]), names_down.index(row[down])
        share = (row[score] - scale["vmin"]) / max(scale["vmax"] - scale["vmin"], 1e-9)
        colour = "white" if share > 0.65 else "#1c1e21"
        weight = "bold" if row["chosen"] else "normal"
        text = f"{row[score]:.1f}"
        axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", color=colour, weight=weight)
        if row["chosen"]:
            ring = {"facecolor": "none", "edgecolor": "#e8590c", "lw": 2.4, "zorder": 5}
            axes.add_patch(plt.Rectangle((x + 0.06, y + 0.06), 0.88, 0.88, **ring))
    ticks = []
    for x in names_across:
        ticks.append(format_tick(x).replace(" epochs", "\nepochs").replace(" γ ", "\nγ "))
    axes.set_xticks(np.arange(len(names_across)) + 0.5, ticks)
    axes.set_yticks(np.arange(len(names_down)) + 0.5, [format_tick(y) for y in names_down])
    axes.tick_params(length=0)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def format_tick(value) -> str:
    """Return a setting as one would write it: 2, not 2.0; 3e-5, not 3e-05."""
    return f"{value:g}".replace("e-0", "e-") if isinstance(value, float) else str(value)


# ---- sweeps ----


def draw_sweep(
    report: str, rows: pd.DataFrame, by: str, label: str, baseline: pd.DataFrame, look: Look
) -> Figure:
    """Draw scores over the values of one setting: a panel for each set, a line for each model.

    Points are means over seeds, bars reach from the lowest seed to the highest. Models are named
    above, in their colours. rows: column (a set, in its order), variant, value, seed, and `by`.
    baseline: rows of a model without the setting; the mean of each set is a dashed line.
    """
    sets = list(rows["column"].unique())
    names = {}
    for variant in rows["variant"].unique():
        names[plans.display_name(report, variant)] = look.model_colour(report, variant)
    top = LINE * len(names) + 0.1
    shape = (len(sets), 1) if look.is_narrow else (1, len(sets))
    height = top + (1.9 * len(sets) if look.is_narrow else 2.1)
    size = (look.width, height)
    fig, panels = plt.subplots(*shape, figsize=size, squeeze=False, layout="constrained")
    fig.get_layout_engine().set(rect=(0, 0.2 / height, 1, 1 - (top + 0.2) / height))
    smallest = rows[by][rows[by] > 0].min()
    is_wide_range = rows[by].min() >= 0 and rows[by].max() > 20 * smallest
    for axes, name in zip(panels.flat, sets, strict=True):
        of_set = rows[rows["column"] == name]
        for variant, of_model in of_set.groupby("variant", sort=False):
            at = of_model.groupby(by)["value"].agg(["mean", "min", "max"])
            style = {"color": look.model_colour(report, variant), "lw": 1.6}
            axes.plot(at.index, at["mean"], "o-", ms=5, **style)
            axes.vlines(at.index, at["min"], at["max"], **style)
        for variant, of_model in baseline[baseline["column"] == name].groupby("variant"):
            colour = look.model_colour(report, variant)
            axes.axhline(of_model["value"].mean(), color=colour, lw=1.2, ls="--")
        axes.set_title(name, fontsize=10)
        if is_wide_range:
            if rows[by].min() > 0:
                axes.set_xscale("log")
            else:  # 0 has a place of its own
                axes.set_xscale("symlog", linthresh=smallest)
            axes.minorticks_off()
        elif (rows[by] % 1 == 0).all():  # epochs, or blocks: between two of them is none
            steps = [1, 2, 2.5, 5, 10]  # as Matplotlib has by default
            axes.xaxis.set_major_locator(MaxNLocator("auto", steps=steps, integer=True))
    for axes in panels.flat if not look.is_narrow else panels.flat[-1:]:
        axes.set_xlabel(label)
    for at, (name, colour) in enumerate(names.items()):
        y = 1 - (LINE * at + 0.12) / height
        fig.text(0.01, y, name, color=colour, va="center", weight="bold")
    return fig
