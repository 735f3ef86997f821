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
from tests.checkpoints import tensors, write_gguf, write_safetensors
from tests.test_files_untrusted import Bomb

EPS = {"llama.attention.layer_norm_rms_epsilon": 1e-5}
HUGE = 2**60


def refused(path, says=""):
    """Refuse a file in little memory, by its name; the message."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=re.escape(str(path))) as error:
            anynorm.load_norms(path)
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()
    assert says in str(error.value)
    return str(error.value)


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


@pytest.mark.parametrize("name", ["x.keras", "x.weights.h5"])
def test_files_of_keras(name, tmp_path):
    (tmp_path / name).write_bytes(b"PK")
    assert "load_state_dict" in refused(tmp_path / name)


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


# --- Headers that lie


def safetensors_of(header, data=b"\0" * 32, length=None):
    text = json.dumps(header).encode() if isinstance(header, dict) else header
    return struct.pack("<Q", len(text) if length is None else length) + text + data


ONE = {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]}


@pytest.mark.parametrize(
    "written",
    [
        b"",
        b"\0" * 7,
        safetensors_of({"norm.weight": ONE}, length=HUGE),
        safetensors_of({"norm.weight": ONE}, data=b"\0" * 31),
        safetensors_of({"norm.weight": ONE}, data=b"\0" * 33),
        safetensors_of({"norm.weight": ONE | {"shape": [HUGE, HUGE]}}),
        safetensors_of({"norm.weight": ONE | {"shape": [HUGE], "data_offsets": [0, 4 * HUGE]}}),
        safetensors_of({"norm.weight": ONE | {"shape": [-8]}}),
        safetensors_of({"norm.weight": ONE | {"dtype": "F64"}}),
        safetensors_of({"norm.weight": ONE | {"dtype": "Q4"}}),
        safetensors_of({"norm.weight": ONE, "b.norm.weight": ONE}),
        safetensors_of({"norm.weight": ONE | {"data_offsets": [32, 0]}}),
        safetensors_of(b"{" * 1000),
        safetensors_of(b'{"norm.weight":'),
    ],
)
def test_a_safetensors_header_that_lies(written, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    path = tmp_path / "x.safetensors"
    path.write_bytes(written)
    refused(path)


def gguf_of(values=b"", described=b"", *, keys=0, count=0, version=3, data=b""):
    head = b"GGUF" + struct.pack("<IQQ", version, count, keys) + values + described
    return head + b"\0" * (-len(head) % 32) + data


def text(written):
    return struct.pack("<Q", len(written)) + written


def value(key, kind, written):
    return text(key) + struct.pack("<I", kind) + written


def tensor(name=b"output_norm.weight", shape=(8,), kind=0, offset=0):
    lengths = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + lengths + struct.pack("<IQ", kind, offset)


ARCHITECTURE = value(b"general.architecture", 8, text(b"llama"))
EPSILON = value(b"llama.attention.layer_norm_rms_epsilon", 6, struct.pack("<f", 1e-5))
KNOWN = {"values": ARCHITECTURE + EPSILON, "keys": 2}


def test_a_gguf_written_by_hand_is_read(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf_of(**KNOWN, described=tensor(), count=1, data=np.arange(8, dtype="<f4").tobytes()))
    assert anynorm.load_norms(path)["output_norm"].weight.tolist() == [*range(8)]


@pytest.mark.parametrize(
    ("written", "says"),
    [
        (b"", "is not a GGUF file"),
        (b"GGUF", "is damaged"),
        (b"GGML" + b"\0" * 100, "is not a GGUF file"),
        (gguf_of(version=1), "of version 1"),
        (gguf_of(version=0x03000000), "of the other byte order"),
        (gguf_of(keys=HUGE), "values should follow"),
        (gguf_of(count=HUGE), "tensors should follow"),
        (gguf_of(struct.pack("<Q", HUGE), keys=1, data=b"\0" * 99), "a name of"),
        (gguf_of(value(b"general.architecture", 8, struct.pack("<Q", HUGE)), keys=1), "a name of"),
        (gguf_of(value(b"a", 8, struct.pack("<Q", HUGE)), keys=1), "bytes should follow"),
        (gguf_of(value(b"a", 9, struct.pack("<IQ", 0, HUGE)), keys=1), "bytes should follow"),
        (gguf_of(value(b"a", 9, struct.pack("<IQ", 0, 3_000_000)), keys=1, data=b"\0" * 99), "bytes should follow"),
        (gguf_of(value(b"a", 9, struct.pack("<IQ", 8, HUGE)), keys=1), "items should follow"),
        (gguf_of(value(b"a", 9, struct.pack("<IQ", 9, 1) * 5000), keys=1), "lists in lists"),
        (gguf_of(value(b"a", 99, b""), keys=1), "unknown type 99"),
        (gguf_of(value(b"\xff", 0, b"\0"), keys=1), "not UTF-8"),
        (gguf_of(ARCHITECTURE * 2, keys=2), "it has general.architecture twice"),
        (gguf_of(value(b"general.alignment", 4, struct.pack("<I", 24)), keys=1), "aligned to 24"),
        (gguf_of(value(b"general.alignment", 4, struct.pack("<I", 0)), keys=1), "aligned to 0"),
        (gguf_of(**KNOWN, described=tensor(shape=(1,) * 5), count=1), "has 5 axes"),
        (gguf_of(**KNOWN, described=tensor(shape=(HUGE,)), count=1, data=b"\0" * 32), "beyond its end"),
        (gguf_of(**KNOWN, described=tensor(shape=(2**32, 2**32)), count=1, data=b"\0" * 32), "beyond its end"),
        (gguf_of(**KNOWN, described=tensor(offset=HUGE), count=1, data=b"\0" * 32), "beyond its end"),
        (gguf_of(**KNOWN, described=tensor(), count=1, data=b"\0" * 31), "beyond its end"),
        (gguf_of(**KNOWN, described=tensor(offset=4), count=1, data=b"\0" * 64), "beyond its end"),
        (gguf_of(**KNOWN, described=tensor() + tensor(b"a"), count=2, data=b"\0" * 32), "in another tensor"),
        (gguf_of(**KNOWN, described=tensor(b"a", kind=8) + tensor(), count=2, data=b"\0" * 32), "in another tensor"),
        (gguf_of(**KNOWN, described=tensor() + tensor(offset=32), count=2, data=b"\0" * 64), "weight twice"),
        (gguf_of(**KNOWN), "no tensor that is named"),
        (gguf_of(ARCHITECTURE + value(b"llama.attention.layer_norm_rms_epsilon", 6, struct.pack("<f", np.nan)),
            keys=2, described=tensor(), count=1, data=b"\0" * 32), "the eps of output_norm is nan"),
        (gguf_of(ARCHITECTURE + value(b"llama.attention.layer_norm_rms_epsilon", 4, b"\0" * 4),
            keys=2, described=tensor(), count=1, data=b"\0" * 32), "pass eps="),
    ],
)  # fmt: skip
def test_a_gguf_header_that_lies(written, says, tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(written)
    refused(path, says)


def varint(number):
    written = b""
    while number >= 0x80:
        written, number = written + bytes([number & 0x7F | 0x80]), number >> 7
    return written + bytes([number])


def field(number, held):
    """A field of protobuf: an integer, or bytes."""
    if isinstance(held, int):
        return varint(number << 3) + varint(held)
    return varint(number << 3 | 2) + varint(len(held)) + held


def model(*fields):
    return field(7, b"".join(fields))


NORM = field(1, field(1, b"x") + field(1, b"n.weight") + field(2, b"y") + field(4, b"RMSNormalization"))
FLOATS, NAME = field(1, 8) + field(2, 1), field(8, b"n.weight")
WEIGHT = field(5, FLOATS + NAME + field(9, b"\0" * 32))


def nested(depth):
    """A graph in a graph in a graph, in attributes of nodes."""
    graph = b""
    for _ in range(depth):
        graph = field(1, field(5, field(1, b"body") + field(6, graph)))
    return graph


def test_a_graph_written_by_hand_is_read(tmp_path):
    path = tmp_path / "x.onnx"
    for packed in (field(1, 8), field(1, varint(8))):
        weight = field(5, packed + field(2, 1) + NAME + field(9, np.arange(8, dtype="<f4").tobytes()))
        path.write_bytes(model(NORM, weight))
        assert anynorm.load_norms(path)["n"].weight.tolist() == [*range(8)]


@pytest.mark.parametrize(
    "written",
    [
        b"",
        b"\0" * 10,
        b"\xff" * 20,
        varint(7 << 3 | 2) + varint(HUGE),
        varint(7 << 3 | 3),
        model(NORM, WEIGHT) * 2,
        model(NORM, WEIGHT)[:-1],
        model(NORM, varint(5 << 3 | 2) + varint(HUGE)),
        model(NORM, varint(5 << 3 | 2) + varint(200) + b"\0" * 20) + b"\0" * 300,
        model(NORM, field(5, FLOATS + NAME)),
        model(NORM, field(5, FLOATS + NAME + field(9, b"\0" * 31))),
        model(NORM, field(5, FLOATS + NAME + field(9, b"\0" * 16) * 2)),
        model(NORM, field(5, field(1, HUGE) * 9 + field(2, 1) + NAME + field(9, b"\0" * 32))),
        model(NORM, field(5, field(1, 2**64 - 8) + field(2, 1) + NAME + field(9, b"\0" * 32))),
        model(NORM, field(5, field(1, b"\x08" * 2000) + field(2, 1) + NAME + field(9, b"\0" * 32))),
        model(NORM, field(5, field(1, 8) + field(2, b"\x01") + NAME + field(9, b"\0" * 32))),
        model(NORM, field(5, field(1, 8) + field(2, 10) + NAME + field(5, b"\x01" * 7))),
        model(NORM, field(5, field(1, 8) + field(2, 10) + NAME + field(5, b"\x01" * 7 + b"\x81"))),
        model(NORM, field(5, field(1, 8) + field(2, 10) + NAME + field(5, b"\x01" * 7 + b"\xff\xff\xff\x01"))),
        model(NORM, field(5, field(1, 8) + field(2, 10) + NAME + field(5, b"\x01" * 7 + b"\xff\xff\x07"))),
        model(NORM, field(5, FLOATS + field(8, 3) + field(9, b"\0" * 32))),
        model(NORM, field(5, FLOATS + field(8, b"\xff") + field(9, b"\0" * 32))),
        model(NORM, field(5, 3)),
        model(field(1, 3), WEIGHT),
        model(field(1, field(4, b"x" * 70_000)), WEIGHT),
        model(NORM, WEIGHT, nested(9)),
        model(field(1, field(1, b"x") + field(1, b"n.weight") + field(4, b"LayerNormalization")
            + field(5, field(1, b"epsilon") + field(3, 1))), WEIGHT),
        model(field(1, field(1, b"x") + field(1, b"n.weight") + field(4, b"LayerNormalization")
            + field(5, field(1, b"epsilon") + varint(2 << 3 | 5) + struct.pack("<f", -1.0))), WEIGHT),
    ],
)  # fmt: skip
def test_a_graph_that_lies(written, tmp_path):
    path = tmp_path / "x.onnx"
    path.write_bytes(written)
    refused(path)


def test_graphs_in_graphs(tmp_path):
    path = tmp_path / "x.onnx"
    path.write_bytes(model(NORM, WEIGHT, nested(8)))
    assert list(anynorm.load_norms(path)) == ["n"]
    path.write_bytes(model(NORM, WEIGHT, nested(5000)))
    refused(path, "graphs in graphs in graphs")


def external(**told):
    entries = [field(13, field(1, key.encode()) + field(2, held.encode())) for key, held in told.items()]
    return model(NORM, field(5, FLOATS + NAME + field(14, 1) + b"".join(entries)))


@pytest.mark.parametrize(
    "told",
    [{"offset": "1"}, {"offset": "-1"}, {"offset": str(HUGE)}, {"offset": "9" * 5000}, {"length": "31"},
     {"length": "x"}, {"length": str(HUGE)}, {"offset": "²"}],
)  # fmt: skip
def test_weights_outside_that_are_not_there(told, tmp_path):
    (tmp_path / "data").write_bytes(b"\0" * 32)
    path = tmp_path / "x.onnx"
    path.write_bytes(external(location="data"))
    assert anynorm.load_norms(path)["n"].weight.tolist() == [0.0] * 8
    path.write_bytes(external(location="data", **told))
    refused(path)


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
