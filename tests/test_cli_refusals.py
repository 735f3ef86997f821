"""What the command line refuses: one line, exit status 1, and everything on disk as it was."""

from pathlib import Path

import numpy as np
import pytest

from tests.files import assert_refused, save_x

pytestmark = pytest.mark.usefixtures("folder")


@pytest.fixture(params=[False, True], ids=["new", "forced"])
def force(request):
    """The option to overwrite y.npy, which then exists, or neither of them."""
    if request.param:
        Path("y.npy").write_bytes(b"precious")
    return ["--force"] if request.param else []


def save_bad_files():
    x = save_x()
    npy, shape = Path("x.npy").read_bytes(), b"(9, 6), }" + b" " * 20
    for name, content in {
        "text": b"1, 2, 3\n",
        "nothing": b"",
        "cut": npy[:-1],
        "unclosed": npy.replace(shape, b"(9, 6" + b" " * 24),
        "immense": npy.replace(shape, b"(9" + b"0" * 20 + b", 6), }"),
        "nested": npy.replace(b"'<f4'", b"('<f4',(2,))").replace(shape, b"(9, 3), }" + b" " * 13),
    }.items():
        Path(f"{name}.npy").write_bytes(content)
    with Path("many.npy").open("wb") as file:
        described = {"descr": "<f4", "fortran_order": False, "shape": (1,) * 65}
        np.lib.format.write_array_header_1_0(file, described)
        file.write(bytes(4))
    np.savez("archive.npz", x)
    np.save("objects.npy", np.asarray([{}, None]))
    np.save("integers.npy", x.astype(int))
    np.save("complex.npy", x.astype(complex))
    np.save("no_axes.npy", x[0, 0])
    np.save("large.npy", np.asarray([1, 1, 1, 1, 1, 1e6]))
    Path("longer.npy").write_bytes(npy + b"0")
    Path("negative.npy").write_bytes(npy.replace(b"(9, 6)", b"(-9,6)"))
    Path("header.npy").write_bytes(npy[:6] + b"\x02\x00" + b"\xf0\xff\xff\x7f" + npy[10:])
    Path("version.npy").write_bytes(npy[:6] + b"\x09\x00" + npy[8:])
    Path("folder.npy").mkdir()


UNREADABLE = [
    "text.npy",
    "nothing.npy",
    "cut.npy",
    "longer.npy",
    "negative.npy",
    "header.npy",
    "version.npy",
    "objects.npy",
    "unclosed.npy",
    "immense.npy",
    "nested.npy",
]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *[(f"{name} y.npy", f"{name} is not a readable .npy file") for name in UNREADABLE],
        ("integers.npy y.npy", "integers.npy holds int64"),
        ("complex.npy y.npy", "complex.npy holds complex128"),
        ("no_axes.npy y.npy", "holds a single number"),
        ("many.npy y.npy", "many.npy has 65 axes, more than arrays of NumPy may have"),
        ("none.npy y.npy", "none.npy: No such file"),
        ("folder.npy y.npy", "folder.npy is a directory"),
        ("archive.npz y.npy", ".parquet; put an array of it into an .npy file, as numpy.save writes"),
        ("x.npy y.npy --tensor a", "x.npy holds no a; it holds one array, which has no name"),
        ("x.npy y.npy --dtype bfloat16", ".npy files have no bfloat16"),
        ("x.npy", "OUT is missing"),
        ("x.npy y.npy --in-place", "leave OUT out"),
        ("- --in-place", "leave OUT out"),
        ("x.npy y.npy --moments", "anynorm show x.npy shows those of a file"),
        ("x.npy text.npy y.npy", "several files go into a folder, and OUT is y.npy"),
        ("x.npy x.npy out", "would both be written to out"),
        ("x.npy none/y.npy", "none is not a directory"),
        ("x.npy x.npy/y.npy", "x.npy is not a directory"),
        ("x.npy folder.npy", "folder.npy is a directory"),
        (
            "x.npy y.npy --weight x.npy",
            "the file of --weight must have the shape of the normalized axes of x.npy, (6,)",
        ),
        ("x.npy y.npy --weight none.npy", "none.npy: No such file"),
        ("x.npy y.npy --scale 2", "not --scale"),
        ("x.npy y.npy --norm scale --weight large.npy", "not --weight or --bias"),
        ("x.npy y.npy --eps -1", "--eps must be finite and not negative"),
        ("x.npy y.npy --axis 2", "--axis 2 does not fit"),
        ("x.npy - --show", "--show reads IN and OUT once more"),
        ("- y.npy --show", "--show reads IN and OUT once more"),
        ("x.npy y.npy --show -q", "leave --quiet out"),
        ("x.npy y.npy --show --json", "leave --json out"),
        ("x.npy y.npy --show --dry-run", "leave --dry-run out"),
        ("x.npy y.npy --weight large.npy --dtype float16", "does not fit in float16"),
    ],
)
def test_refuses(small_blocks, folder, capsys, force, arguments, message):
    save_bad_files()
    assert_refused(capsys, folder, message, "--norm", "layer", *arguments.split(), *force)
