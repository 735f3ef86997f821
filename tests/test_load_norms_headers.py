"""load_norms: headers that lie are refused, before anything is read that they ask for."""

import json
import struct

import numpy as np
import pytest

import anynorm
from tests.checkpoints import FLOATS, NAME, NORM, WEIGHT, field, model, refused, varint

HUGE = 2**60


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
