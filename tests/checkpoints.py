"""Small files of models, as others write them, for the tests of load_norms."""

import json
import re
import tracemalloc

import ml_dtypes
import numpy as np
import pytest

import anynorm

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
NO_NORMS = {
    "model.embed_tokens.weight": (9, 8),
    "model.layers.0.self_attn.q_proj.weight": (8, 8),
    "model.layers.0.self_attn.q_proj.bias": (8,),
    "classifier.normal_head.out.weight": (8,),
}


def decoder(*names, prefix="model.layers.{}.", last="model.norm"):
    """The names of the norms of two layers and of the last one."""
    return [prefix.format(layer) + name for layer in (0, 1) for name in names] + [last]


def numbers(shape, dtype, seed):
    """Random weights; no two seeds give the same."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def tensors(shapes, dtype):
    """An array for each name."""
    return {name: numbers(shape, dtype, seed) for seed, (name, shape) in enumerate(shapes.items())}


def write_safetensors(path, arrays, config=None):
    """Write a .safetensors file, with config.json beside it."""
    import safetensors.numpy

    safetensors.numpy.save_file(arrays, path)
    if config is not None:
        (path.parent / "config.json").write_text(json.dumps(config))


def write_gguf(path, architecture, arrays, numbers_by_key, types=None):
    """Write a .gguf file with a vocabulary in it."""
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    for key, number in numbers_by_key.items():
        writer.add_float32(key, number)
    writer.add_token_list(["a", "bc", "déf"] * 5)
    writer.add_token_scores([0.5] * 15)
    writer.add_token_types([1] * 15)
    for name, array in arrays.items():
        raw = (types or {}).get(name)
        writer.add_tensor(name, array.view(np.uint8) if raw is not None else array, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def same_bits(array, expected):
    """Whether an array of any library holds these numbers in this dtype, by its bytes."""
    found = np.asarray(array)
    return found.dtype == expected.dtype and found.shape == expected.shape and found.tobytes() == expected.tobytes()


def require_norm(norm, kind, eps, offset, convention, weight, bias=None):
    assert type(norm) is kind
    assert (norm.eps, norm.weight_offset, norm.convention) == (eps, offset, anynorm.CONVENTIONS[convention])
    assert same_bits(norm.weight, weight)
    assert norm.bias is None if bias is None else same_bits(norm.bias, bias)


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


# --- Files written byte by byte


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
