"""A picture of a benchmark: time against size, the copies as the floor."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from anynorm._bench.plan import COPIES, OUT
from anynorm._bench.report import nbytes

FONT_POINTS = 13  # 17 pixels at full size, and more than 8 at half of it
PANEL_INCHES = (4.35, 3.5)
LEFT, RIGHT, BOTTOM, TOP = 0.9, 1.95, 0.68, 0.4  # inches beside a panel: axis, labels of lines, axis, title
_LABEL_POINTS = 1.25 * FONT_POINTS  # from one label to the next


class Theme(NamedTuple):
    """Colours on light or dark paper: those of Okabe and Ito, made darker or lighter until text in them can be read."""

    name: str
    paper: str
    ink: str
    grid: str
    floor: str
    ours: str
    wrong: str
    theirs: Mapping[str, str]


LIGHT = Theme("light", "#ffffff", "#24292f", "#d8dce0", "#6b7278", "#0068a8", "#b84a00",
              {"NumPy expression": "#8a6500", "torch": "#b84a00", "JAX": "#00755a", "ONNX Runtime": "#a8407c",
               "scikit-learn": "#a8407c", "torch.compile": "#8a6500", "Liger-Kernel": "#00755a",
               "quack": "#a8407c"})  # fmt: skip
DARK = Theme("dark", "#14181e", "#d5dbe1", "#39414a", "#9aa4ae", "#56b4e9", "#f08a4b",
             {"NumPy expression": "#e6b422", "torch": "#f08a4b", "JAX": "#3cc8a0", "ONNX Runtime": "#e394c4",
              "scikit-learn": "#e394c4", "torch.compile": "#e6b422", "Liger-Kernel": "#3cc8a0",
              "quack": "#e394c4"})  # fmt: skip
# torch.compile is timed at few sizes, and nothing is known between them.
_DASHES = {OUT: "--", "anynorm on torch": "-.", "anynorm on JAX": ":", "streaming copy": ":", "torch.compile": "none"}
_MARKERS = {"NumPy expression": "s", "torch": "^", "JAX": "D", "ONNX Runtime": "v", "scikit-learn": "P",
            "torch.compile": "s", "Liger-Kernel": "D", "quack": "v"}  # fmt: skip


def draw(document: dict[str, Any], path: Path, theme: Theme = LIGHT) -> None:
    """Write the picture; a panel for each norm and dtype."""
    panels: dict[tuple[str, str], list[Any]] = {}
    for record in document["contests"]:
        panels.setdefault((record["case"]["norm"], record["case"]["dtype"]), []).append(record)
    with styled(theme):
        all_axes = figure_of(len(panels))
        for axes, ((norm, dtype), records) in zip(all_axes, panels.items(), strict=True):
            axes.set_title(f"{norm}, {dtype}", loc="left")
            times(axes, series(records), theme)
        save(all_axes[0].figure, path)


def figure_of(count: int, panel: tuple[float, float] = PANEL_INCHES, below: float = 0.0) -> Any:
    """The axes of a new figure of so many panels beside one another, with inches left free below them."""
    step, bottom = LEFT + panel[0] + RIGHT, BOTTOM + below
    places = [(place * step + LEFT, bottom, *panel) for place in range(count)]
    return axes_at((count * step, bottom + panel[1] + TOP), places)


def axes_at(inches: tuple[float, float], places: Iterable[tuple[float, float, float, float]]) -> Any:
    """The axes of a new figure at places given in inches: left, bottom, width, height."""
    from matplotlib.figure import Figure

    figure, (width, height) = Figure(figsize=inches), inches
    return [figure.add_axes((x / width, y / height, w / width, h / height)) for x, y, w, h in places]


def times(axes: Any, lines: Mapping[str, Sequence[tuple[float, float]]], theme: Theme) -> None:
    """Draw the time of each call against the size, per number: so large calls are as high as small ones."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    draw_lines(axes, lines, theme)
    lowest, highest = axes.get_ylim()
    floors = [dict(lines[copy]) for copy in COPIES if copy in lines]
    if floors:
        sizes = sorted(set.intersection(*map(set, floors)))
        axes.fill_between(sizes, lowest, [min(floor[size] for floor in floors) for size in sizes],
                          color=theme.floor, alpha=0.18, linewidth=0)  # fmt: skip
    axes.set(ylim=(lowest, highest), xlabel="size of the array, MB", ylabel="time per number, ns")
    for axis in (axes.xaxis, axes.yaxis):
        low, high = axis.get_view_interval()
        axis.set_major_locator(LogLocator(subs=(1,) if high / low >= 100 else (1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
        axis.set_minor_locator(NullLocator())


def draw_lines(
    axes: Any, lines: Mapping[str, Sequence[tuple[float, float]]], theme: Theme, yscale: str = "log"
) -> None:
    """Draw lines, as a rule on axes of powers of ten, each with its name at its right end."""
    for name, points in lines.items():
        axes.plot(*zip(*points, strict=True), **look(name, theme))
    axes.set(xscale="log", yscale=yscale)
    axes.grid()
    label_ends(axes, {name: points[-1] for name, points in lines.items()}, theme)


def look(name: str, theme: Theme) -> dict[str, Any]:
    """How the line of a call is drawn; it differs from others in more than its colour."""
    found = {"color": colour(name, theme), "linestyle": _DASHES.get(name, "-")}
    if name in COPIES:
        return found | {"linewidth": 2.2, "marker": ".", "zorder": 2.1}
    if name in _MARKERS:
        return found | {"linewidth": 1.3, "marker": _MARKERS[name], "markersize": 5}
    return found | {"linewidth": 2.0, "marker": "o", "markersize": 5, "zorder": 2.2}


def colour(name: str, theme: Theme) -> str:
    """The colour of a call."""
    return theme.floor if name in COPIES else theme.theirs.get(name, theme.ours)


def label_ends(axes: Any, ends: Mapping[str, tuple[float, float]], theme: Theme) -> None:
    """Write the names of lines beside their ends, as far apart as letters are high, and lead from one to the other."""
    to_axes = axes.transData + axes.transAxes.inverted()
    heights = {name: to_axes.transform(end)[1] for name, end in ends.items()}
    names = sorted(heights, key=lambda name: float(heights[name]))
    axes_points = axes.get_position().height * axes.figure.get_figheight() * 72
    places = spread([float(heights[name]) for name in names], _LABEL_POINTS / axes_points)
    for name, place in zip(names, places, strict=True):
        axes.annotate(
            name, ends[name], xytext=(1.05, place), textcoords="axes fraction", color=colour(name, theme), va="center",
            arrowprops={"arrowstyle": "-", "color": colour(name, theme), "linewidth": 0.6, "relpos": (0, 0.5),
                        "shrinkA": 1, "shrinkB": 4},
        )  # fmt: skip


def spread(places: Iterable[float], least: float) -> list[float]:
    """Ascending places moved as little as they must be to lie so far apart."""
    groups: list[list[float]] = []  # of those that touch: how many, and the mean of where the first would begin
    for number, place in enumerate(places):
        groups.append([1, place - number * least])
        while len(groups) > 1 and groups[-2][1] > groups[-1][1]:
            (above_count, above), (count, start) = groups.pop(), groups.pop()
            groups.append([count + above_count, (count * start + above_count * above) / (count + above_count)])
    starts = [start for count, start in groups for _ in range(int(count))]
    return [start + number * least for number, start in enumerate(starts)]


@contextmanager
def styled(theme: Theme) -> Iterator[None]:
    """Give figures the theme's colours; a file depends on what is drawn alone, not on the user's settings."""
    from matplotlib import rc_context, rcdefaults, rcParams

    ink = ("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")
    settings: Any = (
        dict.fromkeys(ink, theme.ink)
        | dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), theme.paper)
        | {"axes.edgecolor": theme.ink, "axes.linewidth": 0.8, "grid.color": theme.grid, "grid.linewidth": 0.6}
        | {"axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True}
        | {"font.size": FONT_POINTS, "axes.titlesize": FONT_POINTS}
        | {"font.family": ["DejaVu Sans"], "svg.hashsalt": "anynorm", "svg.fonttype": "path"}
    )
    with rc_context():
        rcdefaults()
        rcParams.update(settings)
        yield


def save(figure: Any, path: Path, **metadata: str) -> None:
    """Write a figure, without the date."""
    given = metadata | ({"Date": None} if path.suffix == ".svg" else {})
    figure.savefig(path, dpi=150, metadata=given)
    if path.suffix == ".svg":
        path.write_text(shortened(path.read_text(encoding="utf-8")), encoding="utf-8")


def shortened(svg: str) -> str:
    """The same picture in fewer bytes: no indents, short names of letters, each moved by x, not by a transform."""
    svg = re.sub(r"^ +", "", svg, flags=re.MULTILINE)
    svg = re.sub(r'(?<=[#"])DejaVuSans-(?=\w+")', "L", svg)
    return re.sub(r'(<use xlink:href="#L\w+") transform="translate\(([\d.]+) 0\)"/>', r'\1 x="\2"/>', svg)


def series(records: list[Any]) -> dict[str, list[tuple[float, float]]]:
    """The points of each call, (MB, ns per number), by size."""
    found: dict[str, list[tuple[float, float]]] = {}
    for record in sorted(records, key=lambda record: nbytes(record["case"])):
        for name, result in record["results"].items():
            if "quartiles" in result:
                seconds, numbers = result["quartiles"][1], math.prod(record["case"]["shape"])
                found.setdefault(name, []).append((nbytes(record["case"]) / 1e6, seconds / numbers * 1e9))
    return found
