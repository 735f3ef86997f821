"""The sum of x and a residual, whose dtypes may differ: which dtype it has, and where it may be written."""

from __future__ import annotations

from typing import Any

from anynorm._arrays import check_same_place
from anynorm._definition.norms import Precision
from anynorm._lengths import require_blocks_alike, shapes_agree
from anynorm._libraries import Library, dtype_name
from anynorm._wording import module_of, sentence

Array = Any
_SIXTEEN_BITS = ("float16", "bfloat16")


def dtype_of_total(x: Array, residual: Array, library: Library) -> Any:
    """The wider dtype of the two; float32 for float16 and bfloat16, of which neither holds the other."""
    if x.dtype == residual.dtype:
        return x.dtype
    of_x, of_residual = dtype_name(x.dtype), dtype_name(residual.dtype)
    if of_x == of_residual:  # in the byte order of another machine
        return x.dtype
    if of_x in _SIXTEEN_BITS:
        return library.namespace.float32 if of_residual in _SIXTEEN_BITS else residual.dtype
    return residual.dtype if of_residual == "float64" else x.dtype


def is_mixed(x: Array, residual: Array | None) -> bool:
    """Whether there is a residual, and it has another dtype than x."""
    return residual is not None and dtype_name(x.dtype) != dtype_name(residual.dtype)


def precision_of_total(x: Array, residual: Array, library: Library) -> Precision:
    """What the statistics of the sum are computed in; 16 bits have that of float32."""
    is_wider = dtype_name(residual.dtype) == "float64"
    return library.precision(residual if is_wider and is_mixed(x, residual) else x)


def check_residual(residual: Array, x: Array, library: Library) -> None:
    """A residual: of x's library, device and shape, and of any real floating dtype."""
    check_same_place("residual", residual, x, library)
    if not shapes_agree(tuple(residual.shape), tuple(x.shape)):
        do = "reshape or broadcast it before the call"
        got = f"{tuple(residual.shape)} of {residual.dtype}"
        raise ValueError(sentence("residual", f"have x's shape, {tuple(x.shape)}", got, do))
    if library.block is not None:
        require_blocks_alike("residual", residual, x)


def check_twin(argument: str, value: Array, x: Array, library: Library, dtype: Any = None, whose: str = "x's") -> None:
    """An array like x: library, device, shape and dtype, or another ``dtype``, of which an error says whose it is."""
    check_same_place(argument, value, x, library)
    wanted = x.dtype if dtype is None else dtype
    if value.dtype != wanted or not shapes_agree(tuple(value.shape), tuple(x.shape)):
        must, module = f"have {whose} shape and dtype, {tuple(x.shape)} of {wanted}", module_of(library.name)
        do = f"pass {argument} of {whose} dtype" if value.dtype != wanted else "reshape or broadcast it before the call"
        if argument.startswith("out"):
            do = f"pass {module}.empty_like(x{'' if wanted == x.dtype else f', dtype={module}.{dtype_name(wanted)}'})"
        raise ValueError(sentence(argument, must, f"{tuple(value.shape)} of {value.dtype}", do))
    if library.block is not None:
        require_blocks_alike(argument, value, x)
