"""Draw the pictures of the documentation, for light and dark pages, from what is in benchmarks/results/.

    python -m benchmarks.pictures

What they show comes from three commands: benchmarks/sizes.py (time and memory), benchmarks/errors.py, and
benchmarks/gpu/. Each picture names in its metadata the results that it was drawn from, and the Matplotlib that drew it:
with the same two it has the same bytes.
"""

import argparse
import hashlib
import json
import math
import platform
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from anynorm._bench import inputs, plot, report
from anynorm._bench.plan import COPIES, OURS, OUT
from anynorm._bench.plot import DARK, LIGHT, Theme
from benchmarks.errors import NORMS, SIZES
from benchmarks.gpu.table import work_of
from benchmarks.gpu.work import FEATURES, NBYTES, rows_of

Record = dict[str, Any]
FOLDER = Path(__file__).parent.parent
RESULTS, PICTURES = FOLDER / "benchmarks" / "results", FOLDER / "docs" / "pictures"
TIMES, ERRORS, GPU = "sizes-1-thread.json", "errors.json", "gpu-h100.json"
OTHER_LIBRARIES = ("anynorm on torch", "anynorm on JAX")  # shown where errors are, not beside times of NumPy's arrays
PROMISED_ULP, PROMISED_IN_JAX_ULP = 2, 4
LEAST_ULP, MOST_ULP = 0.15, 1e8  # that are shown
NOTE_POINTS = 10
NOTE_INCHES = 0.22  # below the panels
WIDTH_INCHES = 7.2
SIGNS = {"infinite": "inf", "unchanged": "= x"}
SHORT = {OUT: "anynorm", "NumPy expression": "NumPy"}
ON_GPU = {OURS: OURS, "torch": "torch", "Liger": "Liger-Kernel", "quack": "quack", "compiled": "torch.compile"}
PACKAGES = {"torch": "torch", "liger-kernel": "Liger-Kernel", "quack-kernels": "quack"}
PARAMETERS = {"layer_norm": lambda features: 2 * features, "rms_norm": lambda features: features,
              "scale_norm": lambda features: 1}  # fmt: skip


class Picture(NamedTuple):
    """Which results are drawn, and by what: draw(document, theme) -> figure."""

    results: str
    draw: Callable[[Record, Theme], Any]


def time_against_size(document: Record, theme: Theme, norm: str) -> Any:
    """Time per number of each call, the copies as the floor."""
    records = [record for record in document["contests"] if record["case"]["norm"] == norm]
    lines = {name: points for name, points in plot.series(records).items() if name not in OTHER_LIBRARIES}
    (axes,) = plot.figure_of(1, below=NOTE_INCHES)
    axes.set_title(f"{norm}, float32, rows of {records[0]['case']['shape'][-1]}", loc="left")
    plot.times(axes, lines, theme)
    return noted(axes.figure, measured_on(document))


def error_against_mean(document: Record, theme: Theme) -> Any:
    """Largest error of layer_norm in each library, by the mean in standard deviations."""
    records = [record for record in document["cases"] if record["case"]["mean"]]
    lines: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        for name, result in record["results"].items():
            if result.get("ulp") is not None:
                lines.setdefault(name, []).append((record["case"]["mean"], result["ulp"]))
    (axes,) = plot.figure_of(1)
    axes.set_title("layer_norm, float32", loc="left")
    axes.set_ylim(LEAST_ULP, MOST_ULP)
    plot.draw_lines(axes, lines, theme)
    axes.axhspan(inputs.half_of_the_digits("float32"), MOST_ULP, color=theme.wrong, alpha=0.13, linewidth=0)
    axes.text(1, MOST_ULP / 2, "half of the digits are wrong, or more", va="top")
    axes.axhspan(LEAST_ULP, PROMISED_ULP, color=theme.ours, alpha=0.13, linewidth=0)
    axes.text(1, LEAST_ULP * 1.3, f"promised: {PROMISED_ULP}, in JAX {PROMISED_IN_JAX_ULP}")
    axes.axvline(1e4, color=theme.ink, linewidth=1, linestyle=(0, (1, 2)))
    axes.set(xlabel="mean / standard deviation", ylabel="largest error, ulp",
             xticks=[10.0**power for power in range(7)], yticks=[10.0**power for power in range(0, 9, 2)])  # fmt: skip
    axes.minorticks_off()
    return axes.figure


def who_survives(document: Record, theme: Theme) -> Any:
    """What becomes of small and large numbers: a row for each library, two columns for each norm."""
    from matplotlib.patches import Rectangle

    found = {(record["case"]["norm"], record["case"]["size"]): record["results"] for record in document["cases"]}
    columns = [(norm, size) for norm in NORMS for size in SIZES]
    names = list(dict.fromkeys(name for column in columns for name in found[column]))
    names.sort(key=lambda name: not name.startswith(OURS))
    cell_inches, left, above = 0.4, 1.9, 0.75
    inches = WIDTH_INCHES, above + cell_inches * len(names) + 0.1
    (axes,) = plot.axes_at(inches, [(left, 0.1, WIDTH_INCHES - left - 0.1, cell_inches * len(names))])
    axes.set(xlim=(0, len(columns) + 0.3), ylim=(len(names), 0))
    axes.axis("off")
    axes.text(-0.1, -0.35, "numbers near", ha="right", va="center")
    for place, column in enumerate(columns):
        x = place + 0.15 * (place // len(SIZES))
        axes.text(x + 0.5, -0.35, f"$10^{{{round(math.log10(column[1]))}}}$", ha="center", va="center")
        if place % len(SIZES) == 0:
            axes.text(x + 1, -1.15, column[0], ha="center", va="center")
        for row, name in enumerate(names):
            words, survives = fate(found[column].get(name))
            hue = theme.grid if survives is None else theme.ours if survives else theme.wrong
            axes.add_patch(Rectangle((x + 0.03, row + 0.06), 0.94, 0.88, color=hue, alpha=0.28, linewidth=0))
            axes.text(x + 0.5, row + 0.53, words, ha="center", va="center", fontsize=12)
    for row, name in enumerate(names):
        axes.text(-0.1, row + 0.53, name, ha="right", va="center", color=plot.colour(name, theme))
    return axes.figure


def bandwidth_on_a_gpu(document: Record, theme: Theme, norm: str) -> Any:
    """Bandwidth of each call as part of a copy's, by features, in float32 and in bfloat16."""
    bottom, width, height = 1.05, 1.75, 2.6
    places = [(left, bottom, width, height) for left in (0.85, 4.1)]
    panels = plot.axes_at((WIDTH_INCHES, bottom + height + plot.TOP), places)
    for axes, dtype in zip(panels, ("float32", "bfloat16"), strict=True):
        lines = {COPIES[0]: [(float(features), 100.0) for features in (FEATURES[0], FEATURES[-1])]}
        axes.set_title(f"{norm}, {dtype}", loc="left")
        axes.set_ylim(0, 105)
        plot.draw_lines(axes, lines | parts_of_copy(document, norm, dtype), theme, yscale="linear")
        axes.set(xlabel="features", xticks=FEATURES[::3], yticks=range(0, 101, 25))
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.minorticks_off()
    panels[0].set_ylabel("bandwidth, % of a copy's")
    panels[1].tick_params(left=False, labelleft=False)
    return noted(panels[0].figure, measured_on_gpu(document))


def parts_of_copy(document: Record, norm: str, dtype: str) -> dict[str, list[tuple[float, float]]]:
    """The points of each call, (features, per cent of the bandwidth of a copy)."""
    results = {work_of(record): record["results"] for record in document["cases"]}
    lines: dict[str, list[tuple[float, float]]] = {}
    for features in FEATURES:
        found = results.get(rows_of(norm, dtype, features)._replace(compiled=False), {})
        for name, called in ON_GPU.items():
            if "of copy" in found.get(name, {}):
                lines.setdefault(called, []).append((features, 100 * found[name]["of copy"]))
    return lines


def fate(result: Record | None) -> tuple[str, bool | None]:
    """What a cell says of a result, and whether it is a norm of x; None where there is no such call."""
    if result is None:
        return "\N{EN DASH}", None
    if "became" in result or result.get("ulp") is None:
        word = result.get("became", "failed")
        return SIGNS.get(word, word), False
    ulp = result["ulp"]
    return f"{ulp:.1f} ulp" if ulp < 100 else f"{ulp:.0e} ulp", ulp < inputs.half_of_the_digits("float32")


def three_norms(document: Record, theme: Theme) -> Any:
    """Parameters, time and memory of the three norms, beside the NumPy expression."""
    largest = max(math.prod(record["case"]["shape"]) for record in document["contests"])
    records = [record for record in document["contests"] if math.prod(record["case"]["shape"]) == largest]
    results = {record["case"]["norm"]: record["results"] for record in records}
    rows, features = records[0]["case"]["shape"]
    times = {name: [results[norm][name]["quartiles"][1] * 1e3 for norm in NORMS] for name in SHORT}
    memory = {name: [results[norm][name]["temporaries"] / 1e6 for norm in NORMS] for name in SHORT}
    parameters = {OUT: [PARAMETERS[norm](features) for norm in NORMS]}
    floor = min(results[norm][copy]["quartiles"][1] * 1e3 for norm in NORMS for copy in COPIES)

    bottom, height = 0.75, 2.1
    places = [(left, bottom, width, height) for left, width in ((1.25, 1.6), (2.9, 2.1), (5.05, 2.1))]
    panels = plot.axes_at((WIDTH_INCHES, bottom + height + plot.TOP), places)
    bars(panels[0], "parameters", parameters, theme)
    bars(panels[1], "time, ms", times, theme)
    bars(panels[2], "memory, MB", memory, theme, report.MEMORY_NOISE_NBYTES / 1e6)
    panels[0].set_yticks(range(len(NORMS)), NORMS)
    panels[1].axvline(floor, color=theme.floor, linewidth=2, linestyle=":")
    panels[1].text(floor, len(NORMS) - 0.4, "a copy", color=theme.floor, va="top", ha="center")
    return noted(panels[0].figure, f"{rows} x {features} float32; {measured_on(document)}")


def bars(axes: Any, title: str, values: dict[str, list[float]], theme: Theme, noise: float = 0.0) -> None:
    """Draw a bar for each norm and call, with its length beside it, and beside the first whose it is."""
    thick = 0.8 / len(values)
    longest = max(max(lengths) for lengths in values.values())
    for place, (name, lengths) in enumerate(values.items()):
        ys = [row + (place - (len(values) - 1) / 2) * thick for row in range(len(NORMS))]
        axes.barh(ys, lengths, thick * 0.9, color=plot.colour(name, theme))
        for row, (y, length) in enumerate(zip(ys, lengths, strict=True)):
            whose = f" {SHORT[name]}" if row == 0 and len(values) > 1 else ""
            axes.text(
                length + 0.03 * longest, y, said(length, noise) + whose, va="center", color=plot.colour(name, theme)
            )
    axes.set_title(title, loc="left")
    axes.set(xlim=(0, longest * 2.1), ylim=(len(NORMS) - 0.5, -0.5), xticks=[], yticks=[])
    axes.spines[["bottom", "left"]].set_visible(False)
    axes.tick_params(length=0)


def said(length: float, noise: float) -> str:
    """A number in two or three digits; one within the noise is no number."""
    if length < noise:
        return f"< {noise:.0f}"
    return f"{length:.0f}" if length >= 10 or length == int(length) else f"{length:.1f}"


PICTURES_BY_NAME = {f"time-{norm}": Picture(TIMES, partial(time_against_size, norm=norm)) for norm in NORMS} | {
    "error-mean": Picture(ERRORS, error_against_mean),
    "error-range": Picture(ERRORS, who_survives),
    "three-norms": Picture(TIMES, three_norms),
    "gpu-layer_norm": Picture(GPU, partial(bandwidth_on_a_gpu, norm="layer_norm")),
    "gpu-rms_norm": Picture(GPU, partial(bandwidth_on_a_gpu, norm="rms_norm")),
}


def measured_on(document: Record) -> str:
    """One line on processor, threads and day."""
    machine, threads = document["machine"], document["arguments"]["threads_used"]
    caches = ", ".join(f"L{cache['level']} {size_of(cache['nbytes'])}" for cache in machine["caches"])
    counted = "one thread" if threads == 1 else f"{threads} threads"
    return f"{machine['processor']} ({caches}), {counted}, {machine['date'][:10]}"


def measured_on_gpu(document: Record) -> str:
    """Two lines on card, day, packages and arrays."""
    day = document["machine"]["date"][:10]
    versions = ", ".join(f"{called} {document['versions'][name]}" for name, called in PACKAGES.items())
    return (
        f"{document['card']}, driver {document['driver']}, CUDA {document['cuda']}, {day}\n"
        f"{versions}; arrays of {size_of(NBYTES)}"
    )


def size_of(nbytes: int) -> str:
    """A power of two of bytes, as caches have it."""
    return f"{nbytes >> 20} MiB" if nbytes >= 1 << 20 else f"{nbytes >> 10} KiB"


def noted(figure: Any, words: str) -> Any:
    """A figure with a line of small print."""
    figure.text(0.1 / figure.get_figwidth(), 0.1 / figure.get_figheight(), words, fontsize=NOTE_POINTS, alpha=0.8)
    return figure


def maker() -> str:
    """What drew the pictures; another version, or another processor, may draw a line a hair beside."""
    import matplotlib

    return f"Matplotlib {matplotlib.__version__}, {platform.machine()}"


def draw(results: Path = RESULTS, pictures: Path = PICTURES) -> None:
    """Draw each picture in light and dark."""
    pictures.mkdir(exist_ok=True)
    for name, picture in PICTURES_BY_NAME.items():
        content = (results / picture.results).read_bytes()
        source = f"{picture.results}, SHA-256 {hashlib.sha256(content).hexdigest()}"
        for theme in (LIGHT, DARK):
            with plot.styled(theme):
                figure = picture.draw(json.loads(content), theme)
                path = pictures / f"{name}-{theme.name}.svg"
                plot.save(figure, path, Creator=maker(), Source=source)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    draw()


if __name__ == "__main__":
    main()
