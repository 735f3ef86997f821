"""The pictures: each comes from the results beside it, in light and dark, and shows what they say."""

import hashlib
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from anynorm._bench import inputs, plan, plot
from anynorm._bench.cases import EPS
from benchmarks import errors, pictures, sizes

FOLDER = Path(__file__).parent.parent
PAGES = [page for page in (FOLDER / "docs").rglob("*.md") if "_build" not in page.parts]
LARGEST_NBYTES = 60_000


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    pytest.importorskip("matplotlib", reason="needs matplotlib, which draws the pictures")
    folder = tmp_path_factory.mktemp("pictures")
    pictures.draw(pictures=folder)
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_no_picture_is_older_than_its_results():
    for name, picture in pictures.PICTURES_BY_NAME.items():
        digest = hashlib.sha256((pictures.RESULTS / picture.results).read_bytes()).hexdigest()
        for theme in ("light", "dark"):
            content = (pictures.PICTURES / f"{name}-{theme}.svg").read_text()
            assert f"{picture.results}, SHA-256 {digest}" in content
            assert len(content) < LARGEST_NBYTES


def test_a_rerun_gives_the_same_bytes(drawn, tmp_path):
    import matplotlib

    with matplotlib.rc_context({"xtick.major.size": 9, "legend.fontsize": 20, "svg.fonttype": "none"}):  # of a user
        pictures.draw(pictures=tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == drawn
    committed = {path.name: path.read_text() for path in pictures.PICTURES.iterdir()}
    assert set(committed) == set(drawn)
    if all(pictures.maker() in content for content in committed.values()):
        assert committed == drawn


def test_each_picture_of_a_page_is_there_and_said_in_words():
    named = []
    for page in PAGES:
        named += re.findall(r"^```\{picture\} (\S+)\n:alt: .{40,}\n```$", page.read_text(), re.MULTILINE)
        assert page.read_text().count("{picture}") == page.read_text().count("\n:alt: ")
    assert sorted(named) == sorted(pictures.PICTURES_BY_NAME)
    for path in re.findall(r"docs/pictures/[\w-]+\.svg", (FOLDER / "README.md").read_text()):
        assert (FOLDER / path).exists()


def words(content):
    """What is written in a picture; letters are shapes, and each text stands beside them as a comment."""
    return re.findall(r"<!-- (.*) -->", content)


@pytest.mark.parametrize("norm", EPS)
def test_time_against_size_has_each_rival_and_both_copies(drawn, norm):
    shown = words(drawn[f"time-{norm}-light.svg"])
    rivals = {name for names in plan.LIBRARIES.values() for name in names if not name.startswith("anynorm")}
    there = {name for name in rivals if plan.left_out(name, norm, "float32") is None}
    assert {plan.OURS, plan.OUT, *plan.COPIES} | there <= set(shown)
    assert not (rivals - there) & set(shown)
    document = json.loads((pictures.RESULTS / pictures.TIMES).read_text())
    assert pictures.measured_on(document) in shown
    assert document["machine"]["processor"] in pictures.measured_on(document)


def test_errors_of_each_library_are_shown(drawn):
    for name in ("error-mean-dark.svg", "error-range-dark.svg"):
        norms = ("layer_norm",) if "mean" in name else EPS
        assert {call for norm in norms for call in errors.names(norm)} <= set(words(drawn[name]))


def test_three_norms_have_their_parameters(drawn):
    assert {"1536", "768", "1", *EPS} <= set(words(drawn["three-norms-light.svg"]))


@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
def test_bandwidth_on_a_gpu_has_each_rival(drawn, norm):
    shown = words(drawn[f"gpu-{norm}-light.svg"])
    assert {f"{norm}, float32", f"{norm}, bfloat16"} <= set(shown)
    for name in ("copy", *pictures.ON_GPU.values()):
        assert shown.count(name) == 2  # once in each panel
    document = json.loads((pictures.RESULTS / pictures.GPU).read_text())
    assert set(pictures.measured_on_gpu(document).split("\n")) <= set(shown)
    versions = [document["versions"][name] for name in ("torch", "liger-kernel", "quack-kernels")]
    for word in (document["card"], document["driver"], document["cuda"], *versions):
        assert word in pictures.measured_on_gpu(document)


def test_parts_of_a_copy_are_those_of_rows_of_64_mib():
    def record(shape, part, dtype="float32", what="y", axis=-1):
        results = {
            "anynorm": {"of copy": part}, "compiled": {"of copy": part / 2}, "quack": {"failed": "MemoryError"},
            "CuPy expression": {"of copy": 0.125},
        }  # fmt: skip
        given = {"norm": "layer_norm", "dtype": dtype, "shape": shape, "axis": axis, "what": what}
        return given | {"results": results}

    document = {
        "cases": [
            record([256, 65536], 0.75),
            record([4096, 4096], 0.5),
            record([4096, 4096], 0.25, what="dx"),
            record([16384, 4096], 0.25),  # 256 MiB
            record([8192, 4096], 0.25, dtype="bfloat16"),
            record([32, 512, 1024], 0.25, axis=1),
        ]
    }
    found = pictures.parts_of_copy(document, "layer_norm", "float32")
    assert found == {"anynorm": [(4096, 50), (65536, 75)], "torch.compile": [(4096, 25), (65536, 37.5)]}
    assert pictures.parts_of_copy(document, "rms_norm", "float32") == {}


def test_a_cell_says_what_became_of_numbers():
    half = inputs.half_of_the_digits("float32")
    assert pictures.fate(None)[1] is None
    assert pictures.fate({"ulp": 0.52}) == ("0.5 ulp", True)
    assert pictures.fate({"ulp": math.nextafter(half, 0)}) == ("4e+03 ulp", True)
    assert pictures.fate({"ulp": half}) == ("4e+03 ulp", False)
    assert pictures.fate({"ulp": None, "became": "NaN"}) == ("NaN", False)
    assert pictures.fate({"ulp": 1e7, "became": "unchanged"}) == ("= x", False)
    assert pictures.fate({"failed": "MemoryError"}) == ("failed", False)


def test_memory_within_the_noise_is_no_number():
    assert [pictures.said(length, 1.0) for length in (math.nextafter(1.0, 0), 1.0)] == ["< 1", "1"]
    assert [pictures.said(length, 0.0) for length in (0.26, 9.94, 12.3)] == ["0.3", "9.9", "12"]


def test_labels_are_moved_apart_and_no_further():
    assert plot.spread([0.1, 0.3, 0.5], 0.2) == pytest.approx([0.1, 0.3, 0.5])
    assert plot.spread([0.5, 0.5, 0.9], 0.1) == pytest.approx([0.45, 0.55, 0.9])
    assert plot.spread([0.2, 0.5, 0.5, 0.5], 0.2) == pytest.approx([0.125, 0.325, 0.525, 0.725])


@pytest.mark.parametrize(("largest", "ticks"), [(19.9, [0.2, 0.5, 1, 2, 5, 10]), (20.1, [1, 10])])
def test_sizes_within_two_powers_of_ten_have_marks(largest, ticks):
    pytest.importorskip("matplotlib", reason="needs matplotlib, which draws the pictures")
    with plot.styled(plot.LIGHT):
        (axes,) = plot.figure_of(1)
        axes.margins(0)
        plot.times(axes, {"copy": [(0.2, 0.2), (largest, largest)]}, plot.LIGHT)
    low, high = axes.get_xlim()
    assert [tick for tick in axes.get_xticks() if low <= tick <= high] == pytest.approx(ticks)


def luminance(colour):
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
        for part in (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    ]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def test_a_shortened_picture_has_each_letter_where_it_was():
    written = """<g id="text_1">
     <!-- DejaVuSans-1 is 2 -->
     <path id="DejaVuSans-2f" d="M 628 4666
L 1259 0
"/>
     <use xlink:href="#DejaVuSans-2f"/>
     <use xlink:href="#DejaVuSans-2f" transform="translate(63.625 0)"/>
     <use xlink:href="#DejaVuSans-2f" transform="translate(63.625 0.7)"/>
     <use xlink:href="#DejaVuSans-2f" transform="translate(128.2 0) scale(0.7)"/>
     <use xlink:href="#m1" x="45" y="165"/>
    </g>"""
    wanted = """<g id="text_1">
<!-- DejaVuSans-1 is 2 -->
<path id="L2f" d="M 628 4666
L 1259 0
"/>
<use xlink:href="#L2f"/>
<use xlink:href="#L2f" x="63.625"/>
<use xlink:href="#L2f" transform="translate(63.625 0.7)"/>
<use xlink:href="#L2f" transform="translate(128.2 0) scale(0.7)"/>
<use xlink:href="#m1" x="45" y="165"/>
</g>"""
    assert plot.shortened(written) == wanted


@pytest.mark.parametrize("theme", [plot.LIGHT, plot.DARK], ids=lambda theme: theme.name)
def test_text_in_each_colour_can_be_read(theme):
    paper = luminance(theme.paper)
    for colour in (theme.ink, theme.floor, theme.ours, theme.wrong, *theme.theirs.values()):
        brighter, darker = sorted((luminance(colour), paper), reverse=True)
        assert (brighter + 0.05) / (darker + 0.05) >= 4.5  # WCAG 2.2, level AA


def test_every_size_is_timed():
    document = json.loads((pictures.RESULTS / pictures.TIMES).read_text())
    contests = [(contest.case.norm, list(contest.case.shape)) for contest in sizes.contests()]
    assert [(record["case"]["norm"], record["case"]["shape"]) for record in document["contests"]] == contests
    assert document["arguments"]["threads_used"] == 1
