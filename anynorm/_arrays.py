"""One array among the arguments -> its library: the type and dtype that it must have, and memory of its own."""

from __future__ import annotations

from typing import Any

from anynorm._libraries import REAL_DTYPES, Library, UnfitError, dtype_name, library_of, library_of_blocks
from anynorm._overlap import require_memory
from anynorm._wording import describe, not_a_real_dtype, not_an_array, sentence

Array = Any

# By type and then by dtype: torch.compile cannot trace pairs as keys where some are of NumPy.
_accepted: dict[type, dict[Any, Library]] = {}


def check_array(argument: str, value: Array, of_x: Library | None = None) -> Library:
    """Check type and dtype of an array; return its library. That of x decides what an error says to pass."""
    try:
        library = _accepted.get(type(value), {}).get(getattr(value, "dtype", None))
    except Exception:  # what claims to be a dtype may raise anything
        library = None
    if library is None:
        library = _check_new_kind(argument, value, of_x)
    if library.dense is not None:
        _check_dense(argument, value, library)
    return library


def check_same_place(argument: str, value: Array, x: Array, library: Library) -> None:
    """Same library and same device as x."""
    if check_array(argument, value, library) is not library:
        raise TypeError(not_an_array(argument, value, library.name))
    if library.devices and value.device != x.device:
        must, got = f"be on x's device, {x.device}", f"one on {value.device}"
        raise ValueError(sentence(argument, must, got, f"move it to x.device, or x to {argument}.device"))


def _check_dense(argument: str, tensor: Array, library: Library) -> None:
    """Check that a torch tensor holds its numbers one by one in memory of its own."""
    must = "be a dense tensor"
    if tensor.is_nested:
        do = f"pass the tensors of {argument}.unbind() one by one, or use the modules of anynorm.torch"
        raise TypeError(sentence(argument, must, "a nested one", do))
    if tensor.layout != library.dense:
        raise TypeError(sentence(argument, must, f"layout {tensor.layout}", f"pass {argument}.to_dense()"))
    require_memory(argument, tensor)


def _check_new_kind(argument: str, value: Array, of_x: Library | None) -> Library:
    """The same for a type and dtype that were not met before."""
    try:
        library = library_of(value)
        dtype, shape = value.dtype, tuple(value.shape)
        name = dtype_name(dtype)
        hash(dtype)
    except ImportError:
        raise
    except UnfitError as unfit:
        if of_x is not None:  # of whose library it is not
            raise TypeError(not_an_array(argument, value, of_x.name)) from None
        raise TypeError(sentence(argument, unfit.must, describe(value), unfit.do)) from None
    except Exception:  # no array, or what it says of itself cannot be read
        dtype = shape = None
    if shape is None or isinstance(dtype, str):
        raise TypeError(not_an_array(argument, value, None if of_x is None else of_x.name))
    if name not in REAL_DTYPES:
        raise TypeError(not_a_real_dtype(argument, value))
    if library.is_known_by_type:
        _accepted.setdefault(type(value), {})[dtype] = library
    return library


def check_blocks(x: Array) -> Library:
    """The library of the arrays that a lazy one is made of."""
    try:
        return library_of_blocks(x)
    except TypeError:
        raise TypeError(not_an_array("the blocks of x", x._meta)) from None
