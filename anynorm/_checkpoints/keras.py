"""The norms in the files of Keras: .keras, which is a zip of config.json and an HDF5 file, and .weights.h5, that alone.

The package h5py is asked only where things lie. Elements are read from their place in the file, so no plugin of HDF5
runs, and no other file is opened, whatever the file says.
"""

from __future__ import annotations

import json
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import RawIOBase
from pathlib import Path
from typing import IO, Any, NamedTuple

from anynorm._checkpoints.facts import LAYER, RMS, Facts, Found, is_eps
from anynorm._checkpoints.names import why_no_norm
from anynorm._checkpoints.stored import Tensor, source

SUFFIXES = (".keras", ".weights.h5")
_WEIGHTS, _CONFIG = "model.weights.h5", "config.json"
_KINDS = {"LayerNormalization": LAYER, "RMSNormalization": RMS}
_LARGEST_CONFIG = 64 << 20  # bytes
_DEEPEST, _MOST_GROUPS = 64, 1_000_000


class Layer(NamedTuple):
    """What config.json says of a layer."""

    kind: str  # the class
    module: str
    config: Mapping[str, Any]
    axes: int | None  # of the layer's input


class Variables(NamedTuple):
    """The variables of a layer, in the order in which it has made them."""

    path: str
    name: str  # the layer's; '' where the file lacks it, as those of older versions of Keras
    held: tuple[Tensor, ...]


def read_keras(path: Path) -> Found:
    """Find the norms in a file of Keras; ValueError where it is damaged."""
    with source(path) as file:
        size = file.size
    begin, model = 0, None
    if path.suffix.lower() == ".keras":
        begin, size, model = _in_archive(path)
    with open(path, "rb") as opened:
        layers = [(one, _layer_at(one, model)) for one in _variables(opened, path, begin, size)]
    names = [one.name or one.path if layer is None else layer.config["name"] for one, layer in layers]
    counts = Counter(names)
    norms: dict[str, tuple[Tensor, Tensor | None, Facts]] = {}
    skipped: dict[str, str] = {}
    for name, (one, layer) in zip(names, layers, strict=True):
        found = _unknown(one) if layer is None else _norm(one, layer)
        name = name if counts[name] == 1 else one.path
        if isinstance(found, str):
            skipped[name] = found
        elif found is not None:
            norms[name] = found
    return Found(norms, skipped)


def _norm(one: Variables, layer: Layer) -> tuple[Tensor, Tensor | None, Facts] | str | None:
    """The norm that a layer is, or why it cannot be loaded; None: it is none."""
    if layer.kind not in _KINDS:
        return f"a {layer.kind}" if "Norm" in layer.kind else None
    if layer.module not in ("keras.layers", "keras.src.layers"):
        return f"a {layer.kind} of {layer.module}, not of keras"
    config = layer.config
    if config.get("rms_scaling"):
        return "rms_scaling=True divides by the standard deviation, as none of the norms here does"
    has_weight = layer.kind == "RMSNormalization" or config.get("scale", True)
    has_bias = layer.kind == "LayerNormalization" and config.get("center", True)
    if not has_weight:
        return "it has no weight (scale=False)"
    if len(one.held) != 1 + bool(has_bias):
        return f"it has {len(one.held)} variables, and by config.json {1 + bool(has_bias)}"
    eps, axes = config.get("epsilon"), config.get("axis")
    axes = axes if isinstance(axes, list) else [axes]
    if not is_eps(eps) or not all(type(axis) is int for axis in axes):
        raise ValueError(f"{one.held[0].path} is damaged: epsilon or axis of {one.path} is no number")
    from_last = [axis - layer.axes if axis >= 0 and layer.axes is not None else axis for axis in axes]
    if sorted(from_last) != list(range(-len(one.held[0].shape), 0)):
        return f"it normalizes axis {axes}, not the last ones"
    bias = one.held[1] if has_bias else None
    return one.held[0], bias, Facts(_KINDS[layer.kind], "keras", float(eps), normalized=len(axes))


def _unknown(one: Variables) -> tuple[Tensor, Tensor | None, Facts] | str | None:
    """Of a layer that config.json does not have: what its name tells, or that of the attribute that holds it."""
    names = one.name, one.path.rpartition("/")[2]
    reasons = [why_no_norm(name) for name in names if why_no_norm(name) is not None]
    if not reasons:
        return None
    if any(reasons) or len(one.held) not in (1, 2):
        return next(filter(None, reasons), f"it has {len(one.held)} variables, and a norm one or two")
    if len(one.held) == 1 and not any("rms" in name for name in names):
        return "it has a single variable, and nothing tells whether that is a weight or a bias"
    bias = one.held[1] if len(one.held) == 2 else None
    return one.held[0], bias, Facts(convention="keras", why="no config.json says what it is")


# --- The archive


def _in_archive(path: Path) -> tuple[int, int, Any]:
    """Where the HDF5 file begins in a .keras file, its size, and what config.json says."""
    try:
        with zipfile.ZipFile(path) as archive:
            weights, config = (archive.getinfo(name) for name in (_WEIGHTS, _CONFIG))
            if config.file_size > _LARGEST_CONFIG:
                raise ValueError(f"{path} is damaged: its {_CONFIG} has {config.file_size} bytes")
            with archive.open(config) as file:
                text = file.read(_LARGEST_CONFIG)
        told = json.loads(text)
    except KeyError as error:
        raise ValueError(f"{path} is damaged: {error.args[0]}") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged: {_CONFIG}: {error}") from None
    if (
        weights.compress_type != zipfile.ZIP_STORED
        or weights.flag_bits & 1
        or weights.compress_size != weights.file_size
    ):
        raise ValueError(f"{path} holds {_WEIGHTS} compressed, as Keras does not write it: save the model again")
    with source(path) as file:
        file.seek(weights.header_offset)
        if file.take(4) != b"PK\3\4":
            raise file.damaged("its zip does not tell where its members are")
        file.skip(22)
        file.skip(sum(file.integer(2) for _ in range(2)))
        begin = file.at
        file.skip(weights.file_size)
    return begin, weights.file_size, told


def _layer_at(one: Variables, model: Any) -> Layer | None:
    """What config.json says of the layer that holds variables; None where that does not tell.

    Their path is made of the attributes by which layers hold each other. In a list they are called by their classes,
    with numbers where several are of one.
    """
    at, parts = model, one.path.split("/")
    while parts and isinstance(at, dict):
        config = at.get("config")
        at = config.get(parts.pop(0)) if isinstance(config, dict) else None
        if isinstance(at, list) and parts:
            at = dict(_called(at)).get(parts.pop(0))
    if not isinstance(at, dict) or not isinstance(at.get("config"), dict) or not isinstance(at.get("class_name"), str):
        return None
    built = at.get("build_config")
    shape = built.get("input_shape") if isinstance(built, dict) else None
    layer = Layer(
        at["class_name"], str(at.get("module")), at["config"], len(shape) if isinstance(shape, list) else None
    )
    name = layer.config.get("name")
    return layer if isinstance(name, str) and one.name in ("", name) else None


def _called(layers: list[Any]) -> Iterator[tuple[str, Any]]:
    counts: Counter[str] = Counter()
    for layer in layers:
        kind = str(layer.get("class_name")) if isinstance(layer, dict) else ""
        words = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", kind))
        name = re.sub("([a-z])([A-Z])", r"\1_\2", words).lower()
        yield f"{name}_{counts[name]}" if counts[name] else name, layer
        counts[name] += 1


# --- The HDF5 file


class _Part(RawIOBase):
    """A part of a file as a file."""

    def __init__(self, file: IO[bytes], begin: int, size: int) -> None:
        self._file, self._begin, self._size, self._at = file, begin, size, 0

    def readinto(self, into: Any) -> int:
        self._file.seek(self._begin + self._at)
        view = memoryview(into).cast("B")
        count = self._file.readinto(view[: max(0, self._size - self._at)])  # type: ignore[attr-defined]
        self._at += count
        return int(count)

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


@contextmanager
def _opened(file: IO[bytes], path: Path, begin: int, size: int) -> Iterator[Any]:
    import h5py

    try:
        with h5py.File(_Part(file, begin, size), "r") as root:
            yield root
    except (OSError, RuntimeError, KeyError, TypeError, UnicodeError) as error:  # as h5py says what HDF5 finds wrong
        raise ValueError(f"{path} is damaged: {error}") from None


def _variables(file: IO[bytes], path: Path, begin: int, size: int) -> Iterator[Variables]:
    """The variables of each layer: the datasets of the groups that are called vars."""
    try:
        import h5py
    except ImportError:
        raise ImportError(f"{path} needs h5py to be read: pip install h5py") from None
    with _opened(file, path, begin, size) as root:
        seen: set[int] = set()
        waiting = [("", root)]
        while waiting:
            at, group = waiting.pop()
            address = h5py.h5o.get_info(group.id).addr
            if address in seen:
                continue
            seen.add(address)
            if at.count("/") > _DEEPEST or len(seen) > _MOST_GROUPS:
                raise ValueError(f"{path} is damaged: it has too many groups, or groups in groups in groups")
            held, groups = {}, []
            for name in group:
                if isinstance(name, bytes) or not name.isprintable():  # as h5py has names that are no text
                    raise ValueError(f"{path} is damaged: the name {name!r} in it is no text")
                if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                    raise ValueError(f"{path} has a link at {at}/{name}, which may lead elsewhere and is not followed")
                one = group[name]
                if isinstance(one, h5py.Group):
                    groups.append((f"{at}/{name}" if at else name, one))
                elif isinstance(one, h5py.Dataset):
                    held[name] = one
            waiting += reversed(groups)
            if at.rpartition("/")[2] == "vars" and held:
                names = sorted(held, key=lambda name: (len(name), name))  # which are 0, 1, ..., 10
                tensors = tuple(_tensor(held[name], f"{at}/{name}", path, begin, size) for name in names)
                yield Variables(at.rpartition("/")[0], _attribute(group, "name"), tensors)


def _tensor(dataset: Any, name: str, path: Path, begin: int, size: int) -> Tensor:
    """Where the elements of a dataset lie; those that do not lie in one piece are of no dtype that is read."""
    dtype, shape = dataset.dtype, dataset.shape or ()
    is_brain = dtype.itemsize == 2 and _attribute(dataset, "dtype") == "bfloat16"
    named = "bfloat16" if is_brain else str(dtype)
    start, nbytes = dataset.id.get_offset(), dataset.id.get_storage_size()
    is_plain = start is not None and dataset.external is None and not dataset.is_virtual and dataset.chunks is None
    if not is_plain or nbytes != dataset.size * dtype.itemsize or dtype.byteorder == ">":
        return Tensor(name, shape, f"{named}, not in one piece or not little endian", path, 0, 0)
    if start + nbytes > size:
        raise ValueError(f"{path} is damaged: {name} lies beyond its end")
    return Tensor(name, shape, named, path, begin + start, nbytes)


def _attribute(of: Any, name: str) -> str:
    """An attribute that is a short text; '' where there is none."""
    if name not in of.attrs or of.attrs.get_id(name).shape != ():
        return ""
    value = of.attrs[name]
    return value if isinstance(value, str) else ""
