"""The norms at a path: a file of one of the formats, an index of several, or a folder that holds such."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from anynorm._checkpoints import keras
from anynorm._checkpoints.facts import Facts, Found
from anynorm._checkpoints.families import facts_of_config, facts_of_gguf
from anynorm._checkpoints.gguf import Header, read_header
from anynorm._checkpoints.names import nameless_among, norms_among
from anynorm._checkpoints.onnx import read_graph
from anynorm._checkpoints.stored import Tensor, inside, source
from anynorm._files.contents import listed
from anynorm._files.formats.safetensors import open_safetensors

_INDEX = ".safetensors.index.json"
_SUFFIXES = (".safetensors", ".gguf", ".onnx", *keras.SUFFIXES)
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz")
_LEGACY = (".h5", ".hdf5")
_LARGEST_CONFIG, _LARGEST_INDEX = 1 << 20, 64 << 20  # bytes; the index of the largest models has 10 MB


def find_norms(path: Path) -> Found:
    """Find the norms at a path by what is written there, without reading their elements."""
    if path.is_dir():
        path = _file_of(path)
    suffix = path.suffix.lower()
    if path.name.endswith(_INDEX):
        return _in_shards(path)
    if suffix == ".safetensors":
        tensors = _tensors_of(path)
        return _named(tensors, path, _facts_beside(path), nameless_among(tensors))
    if suffix == ".gguf":
        return _in_gguf(path)
    if suffix == ".onnx":
        return read_graph(path)
    if suffix in _PICKLED:
        do = "save the model as .safetensors, as model.save_pretrained does, and load that"
        raise ValueError(f"{path} may hold pickled objects, which run code when they are loaded: {do}")
    if path.name.lower().endswith(keras.SUFFIXES):
        return keras.read_keras(path)
    if suffix in _LEGACY:
        raise ValueError(f"{path} is HDF5 of another kind than .weights.h5: load it with keras, and save it as .keras")
    if not path.exists():
        raise FileNotFoundError(f"{path} is neither a folder nor a file; of a model on a hub, download the files first")
    raise ValueError(f"{path} must be a folder or a file of {', '.join(_SUFFIXES)} or {_INDEX}")


def _file_of(folder: Path) -> Path:
    """The only file in a folder that may be meant; an index before the files that it is of."""
    names = sorted(one.name for one in folder.iterdir() if one.is_file())
    for suffix in (_INDEX, *_SUFFIXES):
        fitting = [name for name in names if name.lower().endswith(suffix)]
        if len(fitting) == 1:
            return folder / fitting[0]
        if fitting:
            raise ValueError(f"{folder} holds {listed(fitting)}; name the one to load")
    pickled = [name for name in names if name.lower().endswith(_PICKLED)]
    if pickled:
        return folder / pickled[0]  # which is refused with what to do
    raise ValueError(f"{folder} must hold a file of {', '.join(_SUFFIXES)}; it holds {listed(names)}")


def _in_shards(index: Path) -> Found:
    """The norms of several files, of which those are opened that hold one."""
    places = _json(index, _LARGEST_INDEX).get("weight_map")
    if not isinstance(places, Mapping) or not all(isinstance(name, str) for name in places.values()):
        raise ValueError(f"{index} is damaged: its weight_map must tell a file for each tensor")
    named = norms_among(places, index)
    wanted = [name for pair in named.norms.values() for name in pair if name]
    shards = {name: _tensors_of(inside(index.parent, name, index)) for name in {places[one]: None for one in wanted}}
    for name in wanted:
        if name not in shards[places[name]]:
            raise ValueError(f"{index} is damaged: {places[name]} does not hold {name[:200]}")
    skipped = {**named.skipped, **nameless_among({name: one for held in shards.values() for name, one in held.items()})}
    return _named({name: shards[places[name]][name] for name in wanted}, index, _facts_beside(index), skipped)


def _tensors_of(path: Path) -> dict[str, Tensor]:
    """What is in a .safetensors file."""
    with source(path) as file:
        size = file.size
    with open(path, "rb") as opened:
        arrays = open_safetensors(opened, path).arrays
    if any(one.start + one.nbytes > size for one in arrays):
        raise ValueError(f"{path} was changed or replaced while it was read")
    return {one.name: Tensor(one.name, one.shape, str(one.dtype), path, one.start, one.nbytes) for one in arrays}


def _in_gguf(path: Path) -> Found:
    """The norms of a file, or of all the parts that it is one of; what they are, the first part says."""
    tensors: dict[str, Tensor] = {}
    facts = None
    for header in _headers(path):
        facts = facts or facts_of_gguf(header.values)
        for name, tensor in header.tensors.items():
            if name in tensors:
                raise ValueError(f"{path} is damaged: two of its parts have {name}")
            tensors[name] = tensor
    return _named(tensors, path, lambda norm: facts or Facts())


def _headers(path: Path) -> Iterator[Header]:
    header = read_header(path)
    count = header.values.get("split.count", 0)
    if type(count) is not int or count < 2:
        yield header
        return
    numbers = re.search(r"-(\d{5})-of-(\d{5})\.gguf$", path.name)
    if numbers is None or int(numbers[2]) != count:
        raise ValueError(f"{path} is one of {count} parts, and must be called so: name-00001-of-{count:05}.gguf")
    for i in range(1, count + 1):
        part = inside(path.parent, f"{path.name[: numbers.start()]}-{i:05}-of-{count:05}.gguf", path)
        yield read_header(part)


def _named(
    tensors: Mapping[str, Tensor], path: Path, facts: Callable[[str], Facts], skipped: Mapping[str, str] | None = None
) -> Found:
    """Those of the tensors that are parameters of norms, put together."""
    named = norms_among(tensors, path)
    norms = {}
    for norm, (weight, bias) in named.norms.items():
        norms[norm] = tensors[weight], tensors[bias] if bias else None, facts(norm)
    return Found(norms, {**(skipped or {}), **named.skipped})


def _facts_beside(path: Path) -> Callable[[str], Facts]:
    """What the config.json in the folder of a file says of a norm with some name."""
    place = path.parent / "config.json"
    if not place.exists():
        return lambda norm: Facts(why=f"there is no config.json in {path.parent}")
    config = _json(place, _LARGEST_CONFIG)

    def facts(norm: str) -> Facts:
        try:
            return facts_of_config(config, norm)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None

    return facts


def _json(path: Path, largest: int) -> dict[str, Any]:
    with source(path) as file:
        if file.size > largest:
            raise ValueError(f"{path} has {file.size} bytes, too many for what it is")
        data = file.take(file.size)
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: it must hold an object")
    return found
