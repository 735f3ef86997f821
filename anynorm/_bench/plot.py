"""A picture of a benchmark: time against size, the copies as the floor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from anynorm._bench.plan import COPIES, LIBRARIES, OURS, OUT
from anynorm._bench.report import nbytes

# Colours of Okabe and Ito, which most who are colour-blind tell apart.
_OURS, _FLOOR = "#0072B2", "#999999"
_THEIRS = ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_DASHES = {OURS: "-", OUT: "--", "anynorm on torch": "-.", "anynorm on JAX": ":", "copy": "-", "streaming copy": ":"}


def draw(document: dict[str, Any], path: Path) -> None:
    """Write the picture; a panel for each norm and dtype."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullLocator

    panels: dict[tuple[str, str], list[Any]] = {}
    for record in document["contests"]:
        panels.setdefault((record["case"]["norm"], record["case"]["dtype"]), []).append(record)
    figure = Figure(figsize=(4.6 * len(panels), 4.6), layout="constrained")
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, ((norm, dtype), records) in zip(all_axes, panels.items(), strict=True):
        for name, points in series(records).items():
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3.5, label=name, **_style(name))
        axes.set(xscale="log", yscale="log", title=f"{norm} {dtype}", xlabel="size of the array, MB")
        sizes = sorted({nbytes(record["case"]) / 1e6 for record in records})
        axes.set_xticks(sizes, [f"{size:.3g}" for size in sizes])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
        axes.grid(alpha=0.25)
    all_axes[0].set_ylabel("time of a call, ms")
    handles = {name: line for axes in all_axes for line, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=min(5, 2 * len(panels)), frameon=False
    )
    figure.savefig(path, dpi=150)


def series(records: list[Any]) -> dict[str, list[tuple[float, float]]]:
    """The points of each call, (MB, ms), by size."""
    found: dict[str, list[tuple[float, float]]] = {}
    for record in sorted(records, key=lambda record: nbytes(record["case"])):
        for name, result in record["results"].items():
            if "quartiles" in result:
                point = nbytes(record["case"]) / 1e6, result["quartiles"][1] * 1e3
                found.setdefault(name, []).append(point)
    return found


def _style(name: str) -> dict[str, Any]:
    if name in COPIES:
        return {"color": _FLOOR, "linestyle": _DASHES[name], "linewidth": 2.5, "zorder": 1}
    if name in _DASHES:
        return {"color": _OURS, "linestyle": _DASHES[name], "linewidth": 1.8}
    theirs = [rival for names in LIBRARIES.values() for rival in names if rival not in _DASHES]
    return {"color": _THEIRS[theirs.index(name) % len(_THEIRS)], "linewidth": 1.4}
