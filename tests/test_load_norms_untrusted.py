"""load_norms: a damaged file, or one that was made to do harm, is refused; nothing in it is run, or read at length."""

import json
import pickle
import re
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import anynorm
from tests.backends import thorough_but
from tests.checkpoints import NORM, WEIGHT, field, model, refused, tensors, varint, write_gguf, write_safetensors
from tests.test_files_untrusted import Bomb

EPS = {"llama.attention.layer_norm_rms_epsilon": 1e-5}
HUGE = 2**60


# --- Formats that are not read


@pytest.mark.parametrize("name", ["pytorch_model.bin", "x.pt", "x.pth", "x.CKPT", "x.pkl"])
def test_pickles_are_not_loaded(name, folder):
    Path(name).write_bytes(pickle.dumps(Bomb()))
    assert "may hold pickled objects" in refused(folder / name)
    with pytest.raises(ValueError, match="may hold pickled objects"):
        anynorm.load_norms(folder)
    for other in ("x.safetensors", "x.gguf", "x.onnx", "x.safetensors.index.json"):
        Path(other).write_bytes(pickle.dumps(Bomb()))
        refused(folder / other)
    assert not Path("exploded").exists()


def test_other_files(tmp_path):
    for name in ("x.txt", "x"):
        (tmp_path / name).write_bytes(b"")
        assert "must be a folder or a file of .safetensors, .gguf, .onnx" in refused(tmp_path / name)
    (tmp_path / "x.gguf").mkdir()
    with pytest.raises(ValueError, match=r"x\.gguf must hold a file of"):
        anynorm.load_norms(tmp_path / "x.gguf")


# --- What is beside a file


@pytest.mark.parametrize("config", ["", "{", "[]", "3", "[" * 100_000,
    '{"model_type": "llama", "rms_norm_eps": "small"}',
    '{"model_type": "llama", "rms_norm_eps": NaN}', '{"model_type": "llama", "rms_norm_eps": -1}',
    '{"model_type": "llama", "rms_norm_eps": 1e999}', '{"model_type": "llama", "rms_norm_eps": true}',
    '{"model_type": "llama", "rms_norm_eps": 1' + 400 * "0" + "}", '{"model_type": "llama", "rms_norm_eps": null}',
    '{"model_type": "llama", "rms_norm_eps": 1' + 9999 * "0" + "}", '"\udc80"'])  # fmt: skip
def test_a_damaged_config(config, tmp_path):
    write_safetensors(tmp_path / "x.safetensors", tensors({"norm.weight": (8,)}, "float32"))
    (tmp_path / "config.json").write_bytes(config.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"config\.json") as error:
        anynorm.load_norms(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("name", "most"), [("config.json", 1 << 20), ("model.safetensors.index.json", 64 << 20)], ids=["config", "index"]
)
def test_json_of_a_size_that_it_never_has(name, most, tmp_path):
    write_safetensors(tmp_path / "x.safetensors", tensors({"norm.weight": (8,)}, "float32"), {"model_type": "llama"})
    written = json.dumps({"model_type": "llama", "weight_map": {"norm.weight": "x.safetensors"}})
    path = tmp_path / name
    path.write_text(written + " " * (most - len(written)))
    loaded = tmp_path / ("x.safetensors" if name == "config.json" else name)
    assert list(anynorm.load_norms(loaded)) == ["norm"]
    with path.open("a") as file:
        file.write(" ")
    with pytest.raises(ValueError, match=re.escape(f"{path} has {most + 1} bytes, too many for what it is")):
        anynorm.load_norms(loaded)


def test_a_part_of_a_config_that_is_none(tmp_path):
    arrays = tensors({"text_model.norm.weight": (8,)}, "float32")
    write_safetensors(tmp_path / "x.safetensors", arrays, {"text_config": 3})
    with pytest.raises(ValueError, match=r"config\.json: text_config must be an object"):
        anynorm.load_norms(tmp_path)


@pytest.mark.parametrize("place", ["../secret.safetensors", "a/../../secret.safetensors", "/etc/passwd", "", ".",
    "C:secret.safetensors", "..\\secret.safetensors", "\\\\host\\secret.safetensors", "no.safetensors", "x\0y", "x\ny",
    "x" * 10_000])  # fmt: skip
@pytest.mark.parametrize("kind", ["index", "onnx"])
def test_files_out_of_the_folder(kind, place, tmp_path):
    inner = tmp_path / "model"
    inner.mkdir()
    write_safetensors(
        tmp_path / "secret.safetensors", tensors({"norm.weight": (8,)}, "float32"), {"model_type": "llama"}
    )
    if kind == "index":
        path = inner / "model.safetensors.index.json"
        path.write_text(json.dumps({"weight_map": {"norm.weight": place}}))
    else:
        onnx = pytest.importorskip("onnx")
        path = inner / "x.onnx"
        weight = onnx.helper.make_tensor("norm.weight", 1, [8], np.ones(8, np.float32))
        weight.ClearField("float_data")
        weight.data_location = 1
        weight.external_data.add(key="location", value=place)
        norm = onnx.helper.make_node("RMSNormalization", ["x", "norm.weight"], ["y"])
        graph = onnx.helper.make_graph([norm], "model", [], [], [weight])
        path.write_bytes(onnx.helper.make_model(graph).SerializeToString())
    assert "names the file" in refused(path)
    assert len(refused(path)) < 600


@pytest.mark.parametrize("places", [None, [], 3, {"norm.weight": 3}, {"norm.weight": None}])
def test_a_damaged_index(places, tmp_path):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": places}))
    assert "its weight_map must tell a file for each tensor" in refused(path)


def test_an_index_that_does_not_fit(tmp_path):
    write_safetensors(tmp_path / "a.safetensors", tensors({"norm.weight": (8,)}, "float32"), {"model_type": "llama"})
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"norm.weight": "a.safetensors", "b.norm.weight": "a.safetensors"}}))
    assert "a.safetensors does not hold b.norm.weight" in refused(path)


def test_a_parameter_that_is_there_twice(tmp_path):
    arrays = tensors({"norm.weight": (8,), "norm.gamma": (8,)}, "float32")
    write_safetensors(tmp_path / "x.safetensors", arrays, {"model_type": "llama"})
    says = refused(tmp_path / "x.safetensors")
    assert "holds a parameter of norm twice" in says
    assert "norm.gamma" in says


# --- Damage anywhere


def write_some(suffix, path):
    """Write a small file of a format, with what is in it."""
    arrays = tensors({"blk.0.attn_norm.weight": (4,), "blk.0.ffn_norm.weight": (4,), "other.weight": (4, 3)}, "float32")
    if suffix == ".safetensors":
        write_safetensors(path, arrays, {"model_type": "llama"})
    elif suffix == ".gguf":
        pytest.importorskip("gguf")
        write_gguf(path, "llama", arrays, EPS)
    else:
        weights = [field(5, field(1, 4) + field(2, 1) + field(8, name.encode()) + field(9, one.tobytes()))
                   for name, one in arrays.items() if one.shape == (4,)]  # fmt: skip
        norms = [field(1, field(1, b"x") + field(1, name.encode()) + field(2, b"y") + field(4, b"RMSNormalization")
                 + field(5, field(1, b"epsilon") + varint(2 << 3 | 5) + struct.pack("<f", 1e-5)))
                 for name, one in arrays.items() if one.shape == (4,)]  # fmt: skip
        path.write_bytes(model(*norms, *weights))
    return {name.removesuffix(".weight"): one for name, one in arrays.items() if one.shape == (4,)}


def require_named(path, error):
    """That an error names the file; False."""
    assert str(path) in str(error)
    return False


def load_or_refuse(path, expected):
    """Load a damaged file, or refuse it by its name; whether it was loaded as it was."""
    try:
        norms = anynorm.load_norms(path)
    except ValueError as error:
        return require_named(path, error)
    # What was changed may be a name, a number of a weight or that of eps, of which nothing tells that it is damaged.
    assert all(norm.weight.nbytes <= path.stat().st_size and norm.eps >= 0 for norm in norms.values())
    return {name: norm.weight.tobytes() for name, norm in norms.items()} == {
        name: one.tobytes() for name, one in expected.items()
    }  # fmt: skip


@pytest.mark.parametrize("step", thorough_but(17, of=[1, 17]))
@pytest.mark.parametrize("suffix", [".safetensors", ".gguf", ".onnx"])
def test_damage_anywhere(suffix, step, tmp_path):
    path = tmp_path / f"x{suffix}"
    expected = write_some(suffix, path)
    assert load_or_refuse(path, expected)
    whole = path.read_bytes()
    chance = np.random.default_rng(0)
    loaded = []
    for at in range(0, len(whole), step):
        for new in (0x00, 0xFF, whole[at] ^ 0x01, int(chance.integers(256))):
            path.write_bytes(whole[:at] + bytes([new]) + whole[at + 1 :])
            loaded.append(load_or_refuse(path, expected) or new == whole[at])
    assert 0 < sum(loaded) < len(loaded)
    for length in range(0, len(whole), step):
        path.write_bytes(whole[:length])
        assert not load_or_refuse(path, expected) or suffix == ".gguf"  # whose end may be what fills it up
    for _ in range(800 // step):  # numbers of eight bytes, larger than anything
        at = int(chance.integers(len(whole) - 8))
        path.write_bytes(whole[:at] + struct.pack("<Q", HUGE + at) + whole[at + 8 :])
        load_or_refuse(path, expected)


@pytest.mark.parametrize("suffix", [".safetensors", ".gguf", ".onnx"])
def test_nothing_but_norms_is_read(suffix, tmp_path):
    path = tmp_path / f"x{suffix}"
    arrays = tensors({"blk.0.attn_norm.weight": (8,)}, "float32") | {"large": np.zeros((1000, 4000), np.float32)}
    if suffix == ".safetensors":
        write_safetensors(path, arrays, {"model_type": "llama"})
    elif suffix == ".gguf":
        pytest.importorskip("gguf")
        write_gguf(path, "llama", arrays, EPS)
    else:
        large = field(5, field(1, 4_000_000) + field(2, 1) + field(8, b"large") + field(9, arrays["large"].tobytes()))
        path.write_bytes(model(NORM, WEIGHT, large))
    assert path.stat().st_size > 16_000_000
    anynorm.load_norms(path)  # imports what it needs
    tracemalloc.start()
    try:
        assert len(anynorm.load_norms(path)) == 1
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
