"""load_norms: .keras and .weights.h5 files that are damaged, hostile, or want something."""

import contextlib
import io
import json
import sys
import zipfile

import numpy as np
import pytest

import anynorm
from tests.checkpoints import numbers, refused

h5py = pytest.importorskip("h5py", reason="needs h5py, which reads and writes the files")

from tests.keras_files import in_hdf5, norm, pair, write_keras  # noqa: E402  needs h5py

LAYER, RMS = anynorm.LayerNorm, anynorm.RMSNorm


def one_norm(change):
    """A model of one norm whose HDF5 file has been changed."""

    def write(path):
        file = io.BytesIO(in_hdf5({"layers/layer_normalization": pair()}))
        with h5py.File(file, "r+") as root:
            change(root)
        with zipfile.ZipFile(path, "w") as archive:
            model = {"class_name": "Functional", "config": {"layers": [norm()]}}
            archive.writestr("config.json", json.dumps(model))
            archive.writestr("model.weights.h5", file.getvalue())

    return write


VARS = "layers/layer_normalization/vars"


def replaced(root, **options):
    del root[f"{VARS}/0"]
    root[VARS].create_dataset("0", **options)


def virtual(root):
    layout = h5py.VirtualLayout((8,), "float32")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (8,))
    del root[f"{VARS}/0"]
    root[VARS].create_virtual_dataset("0", layout)


@pytest.mark.parametrize(
    "change",
    [
        lambda root: root[VARS].__setitem__("2", h5py.ExternalLink("/etc/passwd", "x")),
        lambda root: root.__setitem__("other", h5py.ExternalLink("other.h5", "/")),
        lambda root: root.__setitem__("soft", h5py.SoftLink("/layers")),
    ],
)
def test_links_are_not_followed(change, tmp_path):
    one_norm(change)(tmp_path / "x.keras")
    refused(tmp_path / "x.keras", "which may lead elsewhere and is not followed")


@pytest.mark.parametrize(
    "options",
    [
        {"shape": (8,), "dtype": "float32", "external": [("/etc/passwd", 0, 32)]},
        {"data": numbers(8, "float32", 0), "chunks": (4,), "compression": "gzip"},
        {"shape": (1 << 40,), "dtype": "float32", "chunks": (1 << 20,), "fillvalue": 1.0},  # 4 TB in a file of 4 KB
        {"shape": (1 << 40,), "dtype": "float32"},
        {"data": numbers(8, ">f4", 0)},
        {"data": h5py.Empty("float32")},
        {"data": "text"},
        {"data": np.zeros(8, np.int32)},
        None,
    ],
)
def test_elements_that_do_not_lie_in_one_piece(options, tmp_path):
    one_norm(virtual if options is None else lambda root: replaced(root, **options))(tmp_path / "x.keras")
    refused(tmp_path / "x.keras")


def test_groups_that_hold_themselves_are_read_once(tmp_path):
    def change(root):
        root["layers"]["again"] = root["layers"]
        root["layers"]["norm_again"] = root["layers/layer_normalization"]

    one_norm(change)(tmp_path / "x.keras")
    assert len(anynorm.load_norms(tmp_path)) == 1


@pytest.mark.parametrize("byte", [b"\xff", b"\xed\xb2\x80"], ids=["of no text", "of half a pair"])
def test_a_name_that_is_no_text(byte, tmp_path):
    path = tmp_path / "x.weights.h5"
    whole = in_hdf5({"layers/layer_normalization": pair()})
    assert b"layer_normalization" in whole
    path.write_bytes(whole.replace(b"layer_normalization", byte + b"layer_normalization"[len(byte) :]))
    refused(path, "is damaged")


def test_groups_in_groups(tmp_path):
    one_norm(lambda root: root.create_group("a/" * 70))(tmp_path / "x.keras")
    refused(tmp_path / "x.keras", "groups in groups in groups")


def test_archives(tmp_path):
    path = tmp_path / "x.keras"
    write_keras(path, [norm()], {"layers/layer_normalization": pair()}, compression=zipfile.ZIP_DEFLATED)
    refused(path, "compressed, as Keras does not write it")
    for members, says in (
        ({}, "no item named 'model.weights.h5'"),
        ({"model.weights.h5": b""}, "no item named 'config.json'"),
        ({"model.weights.h5": b"no", "config.json": b"{}"}, "is damaged"),
        ({"model.weights.h5": b"", "config.json": b"{"}, "config.json"),
        ({"model.weights.h5": b"", "config.json": b"[" * 100_000}, "is damaged"),
        ({"model.weights.h5": b"", "config.json": b"\xff\xfe\xfa"}, "is damaged"),
        ({"model.weights.h5": b"", "config.json": bytes(65 << 20)}, "its config.json has 68157440 bytes"),
    ):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in members.items():
                archive.writestr(name, data, None if name == "config.json" else zipfile.ZIP_STORED)
        refused(path, says)
    path.write_bytes(b"PK")
    refused(path, "is damaged")
    (tmp_path / "x.weights.h5").write_bytes(b"PK")
    refused(tmp_path / "x.weights.h5", "is damaged")
    (tmp_path / "x.h5").write_bytes(b"PK")
    refused(tmp_path / "x.h5", "save it as .keras")


@pytest.mark.parametrize("name", ["x.keras", "x.weights.h5"])
def test_each_byte_of_a_file(name, tmp_path):
    """Damage in any byte gives the norms, or a ValueError."""
    path = tmp_path / name
    write_keras(path, [norm()], {"layers/layer_normalization": pair()})
    whole = path.read_bytes() if name == "x.keras" else in_hdf5({"layers/layer_normalization": pair()})
    random = np.random.default_rng(0)
    for at in random.permutation(len(whole))[:300]:
        changed = bytearray(whole)
        changed[at] = random.integers(256)
        path.write_bytes(changed)
        with contextlib.suppress(ValueError):
            anynorm.load_norms(path, kind="layer_norm", eps=1e-3)
    for end in random.integers(len(whole), size=30):
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match="damaged"):
            anynorm.load_norms(path, kind="layer_norm", eps=1e-3)


def test_without_h5py(tmp_path, monkeypatch):
    write_keras(tmp_path / "x.keras", [norm()], {"layers/layer_normalization": pair()})
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"x\.keras needs h5py to be read: pip install h5py"):
        anynorm.load_norms(tmp_path)
