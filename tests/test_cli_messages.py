"""What the command line says: of files and options, in one line, and nothing that a terminal would obey."""

import contextlib
import io
import json
import os
import sys
from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from safetensors.numpy import save_file

from anynorm import cli
from anynorm._cli import terminal
from tests.files import assert_one_line, assert_same_bits, contents, normalize, save_x

pytestmark = pytest.mark.usefixtures("folder")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder of files, none of which a test changes."""
    path = tmp_path_factory.mktemp("files")
    with contextlib.chdir(path):
        save_files()
    return path


def save_files():
    x = save_x((9, 6))
    np.save("w.npy", x[0])
    np.save("short.npy", x[0, :5])
    np.save("square.npy", x[:6])
    np.save("whole.npy", np.arange(6))
    np.save("one.npy", np.float32(1))
    np.save("flag.npy", x > 3)
    np.save("text.npy", np.asarray(["a", "b"]))
    np.save("when.npy", np.asarray([1], "M8[s]"))
    np.save("fields.npy", np.zeros(3, "f4,f4"))
    np.save("many_fields.npy", np.zeros(3, [(f"field{i}", "f4") for i in range(300)]))
    np.save("complex.npy", x.astype(complex))
    np.save("longer.npy", x.astype("longdouble"))
    np.save("integers.npy", x.astype(int))
    np.save("raw.npy", np.zeros(3, "V3"))
    save_file({"e": x, "ids": np.arange(3)}, "x.safetensors")
    save_file({"e": np.zeros(3, ml_dtypes.float8_e5m2)}, "eight.safetensors")
    zarr.create_array("x.zarr", data=np.arange(9))
    zarr.create_array("f.zarr", data=x)
    pq.write_table(pa.table({"e": list(x), "id": range(9)}), "x.parquet")
    Path("data").write_bytes(b"")
    Path("no.parquet").write_bytes(b"")
    Path("no.safetensors").write_bytes(b"")
    Path("empty.json").write_text("{}")
    Path("none.json").write_text('{"arrays": [{"name": "", "moments": null}]}')
    Path("list.json").write_text('{"arrays": [{"name": ["a"], "moments": {"x": 1}}]}')
    shards = [{"file": f"{name}.npy", "name": "", "moments": {"x": 1}} for name in "ab"]
    Path("shards.json").write_text(json.dumps({"arrays": shards}))
    Path("two.json").write_text('{"arrays": [{"name": "a", "moments": {"x": 1}}, {"name": "b", "moments": {"x": 1}}]}')


LAYER = [
    ("x.npy y.npy --axis 2", "--axis 2 does not fit x.npy of shape (9, 6): it must be -2 to 1"),
    ("x.npy y.npy --axis=-3", "--axis -3 does not fit"),
    ("x.npy y.npy --axis=1,-1", "--axis 1,-1 names an axis of x.npy twice"),
    ("x.npy y.npy --eps nan", "--eps must be finite and not negative, not nan"),
    ("x.npy y.npy --eps inf", "--eps must be finite and not negative, not inf"),
    ("x.npy y.npy --eps=-0.5", "--eps must be finite and not negative, not -0.5"),
    ("x.npy y.npy --scale nan --norm scale", "--scale must be finite, not nan"),
    ("x.npy y.npy --scale=-inf --norm scale", "--scale must be finite, not -inf"),
    ("x.npy y.npy --weight nothere.npy --norm scale", "--norm scale takes --scale, not --weight"),
    (
        "x.npy y.npy --weight short.npy",
        "the file of --weight must have the shape of the normalized axes of x.npy, (6,)",
    ),
    ("x.npy y.npy --bias short.npy", "the file of --bias must have the shape of the normalized axes of x.npy, (6,)"),
    ("x.npy y.npy --bias square.npy", "(6,); it has (6, 6)"),
    ("x.npy y.npy --bias one.npy", "(6,); it has ()"),
    ("x.npy y.npy --weight whole.npy", "the file of --weight holds int64; normalize takes float16"),
    ("x.npy y.npy --weight x.zarr", "x.zarr is a directory; name a file"),
    ("x.npy y.npy --weight x.parquet", "x.parquet is not a readable .npy file: it holds another format"),
    ("x.npy y.npy --weight nothere.npy", "nothere.npy: No such file or directory"),
    ("one.npy y.npy", "one.npy holds a single number, which has no axis to normalize over"),
    ("flag.npy y.npy", "flag.npy holds bool; normalize takes float16, bfloat16, float32, float64: convert it first"),
    ("text.npy y.npy", "text.npy holds <U1;"),
    ("when.npy y.npy", "when.npy holds datetime64[s];"),
    ("fields.npy y.npy", "fields.npy holds"),
    ("many_fields.npy y.npy", "many_fields.npy holds"),
    ("complex.npy y.npy", "complex.npy holds complex128;"),
    ("longer.npy y.npy", "longer.npy holds"),
    ("raw.npy y.npy", "raw.npy holds |V3;"),
    ("x.safetensors y.safetensors --tensor ids", "ids holds I64; normalize takes"),
    ("eight.safetensors y.safetensors", "e holds F8_E5M2; normalize takes"),
    ("no.safetensors y.safetensors", "no.safetensors is not a readable .safetensors file"),
    ("x.zarr y.zarr", "x.zarr holds int64; normalize takes"),
    ("f.zarr y.zarr --weight short.npy", "the file of --weight must have the shape"),
    ("x.parquet y.parquet --weight short.npy", "the file of --weight must have the shape"),
    ("no.parquet y.parquet", "no.parquet cannot be read"),
    ("x.npy --in-place --force", "--force is for OUT"),
    ("x.npy x.npy", "x.npy is x.npy itself; pass --in-place, without OUT"),
    ("data y.npy", "data has no suffix that tells its format; it must be one of .npy, .safetensors, .zarr, .parquet"),
    ("x.npy y.csv", "y.csv has the suffix .csv; it must be one of .npy, .safetensors"),
    ("integers.npy --in-place", "integers.npy holds int64"),
    ("nothere.npy y.npy", "nothere.npy: No such file or directory"),
    ("nothere.npy --in-place", "nothere.npy: No such file or directory"),
    ("nothere.zarr y.zarr", "nothere.zarr: No such file or directory"),
    ("nothere.parquet y.parquet", "nothere.parquet: No such file or directory"),
]
OTHERS = [
    ("show x.safetensors --tensor idz", "; did you mean ids?"),
    ("show nothere.npy", "nothere.npy: No such file"),
    ("show", "FILE is missing"),
    ("show data", "data has no suffix that tells its format"),
    ("normalize x.npy --moments", "anynorm show x.npy shows those of a file"),
    ("normalize x.npy --moments --norm layer", "anynorm show x.npy shows those of a file"),
    ("normalize x.npy y.npy --norm layer --moments nothere.json", "nothere.json: No such file"),
    ("normalize x.npy y.npy --norm layer --moments x.npy", "x.npy is not a readable .json file; write it with anynorm"),
    ("normalize x.npy y.npy --norm layer --moments empty.json", "empty.json holds no statistics that can be read"),
    ("normalize x.npy y.npy --norm layer --moments none.json", "none.json holds no statistics along the first axis"),
    ("normalize x.npy y.npy --norm layer --moments two.json", "two.json holds statistics of a, b; name one of them"),
    ("normalize x.npy y.npy --norm layer --moments list.json", "list.json holds no statistics that can be read"),
    ("normalize x.npy y.npy --norm layer --moments shards.json", "statistics of several files, a.npy, b.npy; write"),
    ("normalize y.npy --norm layer", "OUT is missing"),
    ("normalize --norm layer", "IN is missing"),
    ("normalize x.npy y.npy", "--norm is missing; it is one of layer, rms, scale"),
    ("normalize x.npy - --norm layer --json", "--json prints to standard output, where OUT is"),
    ("normalize x.npy y.npy --norm layer --to .npy", "--to is for files that go into a folder"),
    ("normalize x.npy --in-place --norm layer --to .npy", "--to is for files that go into a folder"),
    ("normalize x.npy --in-place --norm layer -o y.npy", "leave OUT out"),
]
ALL = [(f"normalize --norm layer {arguments}", message) for arguments, message in LAYER] + OTHERS


@pytest.mark.parametrize(("arguments", "message"), ALL)
def test_messages_speak_of_files_and_options(monkeypatch, capsys, files, arguments, message):
    monkeypatch.chdir(files)
    before = contents(files)
    assert cli.main(arguments.split()) == 1
    out, error = capsys.readouterr()
    assert_one_line(error, message)
    assert len(error) < 700
    assert out == ""
    assert contents(files) == before


EVIL = "\x1b[31mred\r\n\x07\x9b\u202e"
ESCAPED = r"\x1b[31mred\r\n\x07\x9b\u202e"


def all_that_is_said(capfd):
    out, error = capfd.readouterr()
    for character in out.replace("\n", "") + error.removesuffix("\n").replace("\nanynorm:", ""):
        assert character.isprintable()
    return out, error


@pytest.mark.skipif(os.name != "posix", reason="names of files as POSIX takes them")
def test_names_of_files_are_escaped(capfd, folder):
    x = save_x()
    x[3] = 0
    x[4, 4] = np.nan
    evil = f"{EVIL}.npy"
    np.save(evil, x)
    for arguments in (
        f"no {evil}|y.npy", f"{evil}|{EVIL}|--force", f"x.npy|{evil}", f"x.npy|y.npy|--weight|no {evil}",
        f"{evil}|{evil}",
    ):  # fmt: skip
        assert cli.main(["normalize", *arguments.split("|"), "--norm", "layer"]) == 1
        _, error = all_that_is_said(capfd)
        assert ESCAPED in error
    assert cli.main(["normalize", evil, "y.npy", "--norm", "scale"]) == 0
    _, error = all_that_is_said(capfd)
    assert error.count(f"of {ESCAPED}.npy)") == 2
    assert cli.main(["show", evil]) == 0
    out, _ = all_that_is_said(capfd)
    assert f"{ESCAPED}.npy: 9 x 6 float32" in out


def test_arguments_are_escaped(capfd):
    for arguments in (
        ["normalize", "x.npy", "y.npy", f"--{EVIL}"],
        ["normalize", "--axis", EVIL],
        [EVIL],
        ["info", EVIL],
    ):
        with pytest.raises(SystemExit, match="2"):
            cli.main(arguments)
        _, error = capfd.readouterr()
        assert error.endswith("--help shows what there is\n")
        assert error[:-1].isprintable()  # one line
        assert r"\x1b" in error


def test_names_in_files_are_escaped(capfd):
    x = save_x()
    x[4, 4] = np.nan
    save_file({EVIL: x, "ids": np.arange(3)}, "x.safetensors")
    pq.write_table(pa.table({EVIL: list(x), "id": range(9)}), "x.parquet")
    for suffix in (".safetensors", ".parquet"):
        source, target = f"x{suffix}", f"y{suffix}"
        assert cli.main(["normalize", source, target, "--norm", "layer", "--tensor", "f"]) == 1
        _, error = all_that_is_said(capfd)
        assert ESCAPED in error
        assert cli.main(["normalize", source, target, "--norm", "layer", "--tensor", EVIL]) == 0
        assert all_that_is_said(capfd)[1].endswith(f"(row 4 of {ESCAPED})\n")
        assert cli.main(["show", source, "--tensor", EVIL]) == 0
        assert all_that_is_said(capfd)[0].startswith(f"{source} {ESCAPED}: 9 x 6 float32")


@pytest.mark.parametrize("what", [EVIL, "[red]x[/].npy"])
def test_the_bar_shows_a_name_as_it_is(monkeypatch, what):
    rich = pytest.importorskip("rich.console", reason="the bar is rich's")
    monkeypatch.setattr("sys.stderr", shown := io.StringIO())
    monkeypatch.setattr(shown, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(rich, "Console", partial(rich.Console, force_terminal=True, width=200, color_system=None))
    with terminal.progress(what, lambda: 1):
        pass
    assert (ESCAPED if what == EVIL else what) in shown.getvalue()


def test_a_terminal_that_has_few_letters(monkeypatch, capfd):
    x = save_x()
    save_file({"größe": x}, "x.safetensors")
    with open("out.txt", "w", encoding="ascii") as file:
        monkeypatch.setattr(sys, "stdout", file)
        assert cli.main(["show", "x.safetensors"]) == 0
    assert Path("out.txt").read_text().startswith(r"x.safetensors gr\xf6\xdfe: 9 x 6 float32")


@pytest.mark.skipif(os.name != "posix", reason="names of files as POSIX takes them")
def test_a_name_that_is_no_text(capfd):
    save_x()
    name = os.fsdecode(b"\xff.npy")
    os.rename("x.npy", name)
    assert cli.main(["show", name]) == 0
    assert capfd.readouterr().out.startswith(r"\udcff.npy: 9 x 6 float32")


def test_a_file_whose_name_looks_like_an_option():
    x = save_x()
    np.save("-w.npy", x[0])
    os.rename("x.npy", "-x.npy")
    assert cli.main(["normalize", "--norm", "layer", "--weight=-w.npy", "--", "-x.npy", "-y.npy"]) == 0
    os.rename("-x.npy", "x.npy")
    assert normalize("--weight=-w.npy") == 0
    assert_same_bits(np.load("-y.npy"), np.load("y.npy"))
