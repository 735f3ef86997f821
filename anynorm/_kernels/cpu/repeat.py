"""Calls like one before: what check and choose found out then still holds, and only the addresses are new.

For one row of 768 numbers that leaves 2 microseconds of the 7 that a call takes otherwise. It covers what is called in
a tight loop: NumPy arrays and CPU tensors in C order that the caches hold, over the last axis.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy

from anynorm._check import Call
from anynorm._definition import Rule
from anynorm._kernels.cpu.memory import BEHIND_HEAD as _BEHIND_HEAD
from anynorm._kernels.cpu.memory import HOLDS_ADDRESS_BEHIND_HEAD
from anynorm._kernels.cpu.tags import OVERLAP
from anynorm._kernels.cpu.torch_state import is_followed

Array = Any
Key = tuple[Any, ...]

# Larger arrays may be stored past the caches, or on huge pages, and what is saved here is nothing to them.
MOST_NBYTES = 4 << 20
_MOST_RECIPES = 1000
_ndarray = numpy.ndarray
_empty = numpy.empty


class Recipe(NamedTuple):
    """The unchanging arguments of a kernel, and what to do where it stops before the last row."""

    kernel: Callable[..., int]
    most_elements: int
    most_alone: int  # elements that one thread is to deal with
    rule: int
    scale: float
    weight_code: int
    bias_code: int
    direct: bool
    resume: Callable[..., None]
    share: Callable[..., int]  # takes the place of the kernel for larger arrays, and is passed them too


_recipes: dict[Key, Recipe] = {}
_torch: Any = None  # once a recipe for tensors is kept


def repeat(
    rule: Rule, x: Array, weight: Any, bias: Array | None, eps: float, offset: float, out: Array | None
) -> Array | None:
    """Normalize x as a call of the same kind was; None where there was none."""
    if type(eps) is not float or type(offset) is not float:
        return None
    if type(x) is not _ndarray:
        return None if _torch is None or out is not None else _repeat_torch(rule, x, weight, bias, eps, offset)
    shape, dtype = x.shape, x.dtype
    row = shape[-1:]
    w, weight_address = weight, 0
    if type(weight) is _ndarray:
        if weight.shape != row or not weight.flags.c_contiguous:
            return None
        w, weight_address = weight.dtype, id(weight) + _BEHIND_HEAD
    elif weight is not None and type(weight) is not float:
        return None
    b, bias_address = None, 0
    if bias is not None:
        if type(bias) is not _ndarray or bias.shape != row or not bias.flags.c_contiguous:
            return None
        b, bias_address = bias.dtype, id(bias) + _BEHIND_HEAD
    try:
        recipe = _recipes.get((rule.name, dtype, row, eps, offset, w, b))
    except TypeError:  # something that cannot be a key
        return None
    size = x.size
    if recipe is None or size > recipe.most_elements or not x.flags.c_contiguous:
        return None
    kernel, _, most_alone, code, scale, weight_code, bias_code, direct, resume, share = recipe
    if out is None:
        y = _empty(shape, dtype)
    elif _may_be_written(out, x):
        y = out
    else:
        return None
    if size > most_alone:
        kernel = partial(share, x, y, weight, bias)
    rows = size // row[0]
    done = kernel(
        0, rows, code, eps, scale, row[0], id(x) + _BEHIND_HEAD, None, id(y) + _BEHIND_HEAD, None, None,
        weight_address, weight_code, bias_address, bias_code, offset, direct, False, 0, 0, True,
    )  # fmt: skip
    if done != rows:
        if done == OVERLAP:
            return None
        resume(x, y, weight, bias, done, rows)
    return y


def _may_be_written(out: Array, x: Array) -> bool:
    """Whether a glance tells that an out is in order; if it does not, the rules of check decide."""
    if type(out) is not _ndarray or out.dtype != x.dtype or out.shape != x.shape:
        return False
    flags = out.flags
    return bool(flags.c_contiguous and flags.writeable)


def _repeat_torch(rule: Rule, x: Array, weight: Any, bias: Array | None, eps: float, offset: float) -> Array | None:
    """`repeat` for torch tensors on the CPU."""
    if type(x) is not _torch.Tensor or _torch.compiler.is_compiling() or is_followed(_torch) or not _is_plain(x):
        return None
    shape, dtype = x.shape, x.dtype
    features = shape[-1] if shape else 0
    w, weight_address, b, bias_address = weight, 0, None, 0
    if weight is not None and type(weight) is not float:
        if not _is_plain(weight) or weight.shape != (features,):
            return None
        w, weight_address = weight.dtype, weight.data_ptr()
    if bias is not None:
        if not _is_plain(bias) or bias.shape != (features,):
            return None
        b, bias_address = bias.dtype, bias.data_ptr()
    recipe = _recipes.get((rule.name, dtype, features, eps, offset, w, b))
    size = x.numel()
    if recipe is None or size > recipe.most_elements:
        return None
    if _torch.is_grad_enabled() and (x.requires_grad or _wants_gradient(weight) or _wants_gradient(bias)):
        return None
    kernel, _, most_alone, code, scale, weight_code, bias_code, direct, resume, share = recipe
    y = _torch.empty_like(x)  # a third of the time of empty
    if size > most_alone:
        kernel = partial(share, x, y, weight, bias)
    rows = size // features
    done = kernel(
        0, rows, code, eps, scale, features, x.data_ptr(), None, y.data_ptr(), None, None,
        weight_address, weight_code, bias_address, bias_code, offset, direct, False, 0, 0, False,
    )  # fmt: skip
    if done != rows:
        resume(x, y, weight, bias, done, rows)
    return y


def _wants_gradient(parameter: Any) -> bool:
    return parameter is not None and type(parameter) is not float and bool(parameter.requires_grad)


def _is_plain(tensor: Array) -> bool:
    """Whether the memory of a tensor holds its numbers, one after the other."""
    kind = type(tensor)
    plain = kind is _torch.Tensor or kind is _torch.nn.Parameter
    return plain and tensor.is_contiguous() and tensor.is_cpu and not tensor.is_neg()


def remember(call: Call, recipe: Recipe) -> None:
    """Keep what calls like this one will need."""
    global _torch
    weight: Any = call.weight
    bias = call.bias
    features = call.x.shape[-1]
    if type(weight) is float and not weight:
        return  # as keys, scales of 0.0 and -0.0 are the same
    if call.library.name == "torch":
        import torch

        _torch = torch
        row: Any = features
    elif HOLDS_ADDRESS_BEHIND_HEAD:
        row = (features,)
    else:
        return
    if len(_recipes) >= _MOST_RECIPES:
        _recipes.clear()
    w = weight if weight is None or type(weight) is float else weight.dtype
    b = None if bias is None else bias.dtype
    _recipes[call.rule.name, call.x.dtype, row, call.eps, call.weight_offset, w, b] = recipe
