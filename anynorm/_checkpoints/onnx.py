"""The norms in the graph of an .onnx file.

The wire format of protobuf is read here, field by field: the packages onnx and protobuf read a file with all weights
in it into memory.
"""

from __future__ import annotations

import math
import struct
from collections import ChainMap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from anynorm._checkpoints.facts import LAYER, RMS, Facts, Found
from anynorm._checkpoints.names import is_parameter, split
from anynorm._checkpoints.stored import Source, Tensor, inside, source

Span = tuple[int, int]  # the first byte of a message and the one after it

_DTYPES = {1: ("float32", 4), 10: ("float16", 2), 11: ("float64", 8), 16: ("bfloat16", 2)}
# The place of the weight among the inputs of an operator, that of the bias, and the default of epsilon.
_OPERATORS = {
    "LayerNormalization": (LAYER, 1, 2, 1e-5),
    "RMSNormalization": (RMS, 1, None, 1e-5),
    "SimplifiedLayerNormalization": (RMS, 1, None, 1e-5),
    "SkipLayerNormalization": (LAYER, 2, 3, 1e-12),
    "SkipSimplifiedLayerNormalization": (RMS, 2, None, 1e-12),
}
_DOMAINS = ("", "ai.onnx", "com.microsoft")
_DEEPEST_GRAPH = 8


class Node(NamedTuple):
    """An operator in a graph."""

    operator: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]  # numbers; spans of tensors and graphs


def read_graph(path: Path) -> Found:
    """Find the norms in the graph of a file; ValueError where it is damaged."""
    with source(path) as file:
        graphs = [value for number, value in _fields(file, (0, file.size)) if number == 7 and isinstance(value, tuple)]
        if len(graphs) != 1:
            raise ValueError(f"{path} is not an ONNX model: it holds {len(graphs)} graphs, and must hold one")
        found = Found({}, {})
        _read(file, graphs[0], ChainMap(), found, 0)
    if not found.norms and not found.skipped:
        do = "export it for opset 17, of RMSNorm for 23, so that norms are not made of other operators"
        raise ValueError(f"{path} has no operator of {', '.join(_OPERATORS)}: {do}")
    return found


def _read(file: Source, graph: Span, outer: ChainMap[str, Span], found: Found, depth: int) -> None:
    """Add the norms of a graph, and of the graphs in it, to those found."""
    if depth > _DEEPEST_GRAPH:
        raise file.damaged("it has graphs in graphs in graphs")
    nodes, tensors = [], outer.new_child()
    for number, value in _fields(file, graph):
        if number == 1:
            nodes.append(_node(file, _span(file, value)))
        elif number == 5:
            tensors[_name_of(file, _span(file, value))] = _span(file, value)
    for node in nodes:
        if node.operator == "Constant" and isinstance(node.attributes.get("value"), tuple) and node.outputs:
            tensors[node.outputs[0]] = node.attributes["value"]
    for node in nodes:
        if node.operator in _OPERATORS and node.domain in _DOMAINS:
            _add(file, node, tensors, found)
        for value in node.attributes.values():
            if isinstance(value, _Graph):
                _read(file, value.span, tensors, found, depth + 1)


def _add(file: Source, node: Node, tensors: Mapping[str, Span], found: Found) -> None:
    """Add a norm to those found, or say why it is none that can be loaded."""
    kind, at, bias_at, eps = _OPERATORS[node.operator]
    weight, bias = (node.inputs[i] if i is not None and i < len(node.inputs) else "" for i in (at, bias_at))
    # A weight of transformers has the name of the module; the exporter calls one onnx::Mul_123 where it was changed.
    name = split(weight)[0] if is_parameter(weight) and split(weight)[0] else node.name or "".join(node.outputs[:1])
    missing = [one for one in (weight, bias) if one and one not in tensors]
    if not weight or missing:
        what = f"{missing[0]} is computed in the graph" if missing else "it has no weight"
        found.skipped[name] = f"{node.operator}: {what}"
        return
    held = [_tensor(file, tensors[one], one) if one else None for one in (weight, bias)]
    axis, eps = node.attributes.get("axis", -1), node.attributes.get("epsilon", eps)
    if type(eps) is not float or type(axis) is not int or held[0] is None:
        raise file.damaged(f"{name} has an attribute of another type")
    # Of an axis that is counted from the first one the operator does not say how many are normalized; along an axis of
    # length 1 the weight is the same for each feature, of which there may be any number.
    if axis >= 0 or len(held[0].shape) < -axis or 1 in held[0].shape[axis:]:
        why = f"axis={axis} and a weight of shape {held[0].shape} do not tell how many features are normalized"
        found.skipped[name] = f"{node.operator}: {why}"
        return
    norm = held[0], held[1], Facts(kind, "onnx", eps, normalized=-axis)
    if found.norms.setdefault(name, norm) != norm:  # the branches of an If have the same norms
        found.norms[f"{name} ({''.join(node.outputs[:1])})"] = norm


class _Graph(NamedTuple):
    span: Span


def _node(file: Source, span: Span) -> Node:
    texts: dict[int, list[str]] = {1: [], 2: [], 3: [], 4: [], 7: []}
    attributes: dict[str, Any] = {}
    for number, value in _fields(file, span):
        if number in texts:
            texts[number].append(_text(file, value))
        elif number == 5:
            key, held = _attribute(file, _span(file, value))
            attributes[key] = held
    (name, operator, domain) = ("".join(texts[number][-1:]) for number in (3, 4, 7))
    return Node(operator, domain, name, tuple(texts[1]), tuple(texts[2]), attributes)


def _attribute(file: Source, span: Span) -> tuple[str, Any]:
    name, held = "", None
    for number, value in _fields(file, span):
        if number == 1:
            name = _text(file, value)
        elif number == 2 and isinstance(value, bytes) and len(value) == 4:
            (held,) = struct.unpack("<f", value)
        elif number == 3 and isinstance(value, int):
            held = value - (value >> 63 << 64)
        elif number == 5:
            held = _span(file, value)
        elif number == 6:
            held = _Graph(_span(file, value))
    return name, held


def _name_of(file: Source, tensor: Span) -> str:
    return "".join([_text(file, value) for number, value in _fields(file, tensor) if number == 8][-1:])


def _tensor(file: Source, span: Span, name: str) -> Tensor:
    """Where the elements of a tensor lie, in this file or in one beside it."""
    shape: list[int] = []
    places: dict[int, Span] = {}
    external: dict[str, str] = {}
    kind = location = 0
    for number, value in _fields(file, span):
        if number == 1:
            shape += [value] if isinstance(value, int) else _integers(file, _span(file, value))
        elif number in (2, 14):
            if not isinstance(value, int):
                raise file.damaged(f"{name} has a field of another type")
            kind, location = (value, location) if number == 2 else (kind, value)
        elif number in (4, 5, 9, 10):
            if number in places:
                raise file.damaged(f"{name} has its elements in pieces")
            places[number] = _span(file, value)
        elif number == 13:
            external.update([_entry(file, _span(file, value))])
    dtype, itemsize = _DTYPES.get(kind, (f"ONNX type {kind}", 0))
    nbytes = math.prod(shape) * itemsize
    if location == 1:
        return _external(file, Tensor(name, tuple(shape), dtype, file.path, 0, nbytes), external)
    # Bytes, or a list of numbers: one of 16 bits is kept among those of 32.
    number = 9 if 9 in places else {"float32": 4, "float64": 10}.get(dtype, 5)
    start, end = places.get(number, (0, 0))
    varints = number == 5 and itemsize == 2
    if itemsize and not varints and end - start != nbytes:
        raise file.damaged(f"{name} of shape {tuple(shape)} and {dtype} has {end - start} bytes, not {nbytes}")
    return Tensor(name, tuple(shape), dtype, file.path, start, end - start, varints)


def _external(file: Source, tensor: Tensor, told: dict[str, str]) -> Tensor:
    path = inside(file.path.parent, told.get("location", ""), file.path)
    start, length = told.get("offset", "0"), told.get("length", str(tensor.nbytes))
    size = path.stat().st_size
    if not (start.isdecimal() and length.isdecimal() and max(len(start), len(length)) < 20):
        raise file.damaged(f"{tensor.name} lies at no number of bytes")
    if int(length) != tensor.nbytes or int(start) + tensor.nbytes > size:
        what = f"{tensor.nbytes} bytes of {tensor.name} should follow byte {start} of {path.name}"
        raise file.damaged(f"{what}, which has {size}, and it says {length}")
    return Tensor(tensor.name, tensor.shape, tensor.dtype, path, int(start), tensor.nbytes)


def _entry(file: Source, span: Span) -> tuple[str, str]:
    texts = {number: _text(file, value) for number, value in _fields(file, span)}
    return texts.get(1, ""), texts.get(2, "")


def _integers(file: Source, span: Span) -> list[int]:
    if span[1] - span[0] > 1000:
        raise file.damaged("it has a tensor of more than a hundred axes")
    file.seek(span[0])
    found = []
    while file.at < span[1]:
        found.append(_varint(file))
    return found


def _text(file: Source, value: int | bytes | Span) -> str:
    start, end = _span(file, value)
    file.seek(start)
    return file.text(end - start)


def _span(file: Source, value: int | bytes | Span) -> Span:
    if not isinstance(value, tuple):
        raise file.damaged("it has a field of another type")
    return value


def _fields(file: Source, span: Span) -> Iterator[tuple[int, int | bytes | Span]]:
    """The fields of a message: number and value, of one that has a length where it lies."""
    at, end = span
    while at < end:
        file.seek(at)
        key = _varint(file)
        number, kind = key >> 3, key & 7
        value: int | bytes | Span
        if kind == 0:
            value = _varint(file)
        elif kind in (1, 5):
            value = file.take(8 if kind == 1 else 4)
        elif kind == 2:
            length = _varint(file)
            value = file.at, file.at + length
            file.skip(length)
        else:
            raise file.damaged("it is not protobuf, or cut off")
        at = file.at
        if at > end or number == 0:
            raise file.damaged("it is not protobuf, or cut off")
        yield number, value


def _varint(file: Source) -> int:
    """A number of seven bits in each byte, the low ones first."""
    number = 0
    for shift in range(0, 70, 7):
        byte = file.take(1)[0]
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number
    raise file.damaged("it is not protobuf, or cut off")
