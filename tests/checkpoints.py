"""Small files of models, as others write them, for the tests of load_norms."""

import json

import ml_dtypes
import numpy as np

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


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
