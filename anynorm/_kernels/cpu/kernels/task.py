"""What a kernel is handed: one structure in memory, and what is fixed when it is compiled."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

from anynorm._kernels.cpu.language.dtypes import (
    BY_CODE,
    EACH,
    FLOAT32,
    FLOAT64,
    FLOOR,
    FOR_ALL,
    INSIDE,
    ONCE,
    OUTSIDE,
    PLACES,
    ROUNDINGS,
    RULES,
    SCALE,
    Dtype,
)

_WORD, _REAL = ctypes.c_int64, ctypes.c_double


class Task(ctypes.Structure):
    """Addresses and numbers of one call, each of 8 bytes; an address is 0 where there is nothing."""

    _fields_ = (
        ("features", _WORD),
        ("rows", _WORD),
        ("eps", _REAL),
        ("scale", _REAL),  # of scale_norm
        ("weight_offset", _REAL),
        ("x", _WORD),
        ("residual", _WORD),  # of the derivative dy
        ("y", _WORD),  # of the derivative dx
        ("total", _WORD),  # where x + residual goes; of the derivative dtotal
        ("layout", _WORD),  # of these arrays, see layout.py
        ("weight", _WORD),
        ("weight_code", _WORD),  # of its dtype
        ("bias", _WORD),
        ("bias_code", _WORD),
        # Of rows that take turns with some weights and biases, see turns.py:
        ("turns", _WORD),
        ("repeat", _WORD),  # rows, one after the other, of one turn
        ("weight_step", _WORD),  # elements from turn to turn, 0 where all have one
        ("bias_step", _WORD),
        ("direct", _WORD),  # whether they are read where the caller has them; of float32 and narrower x in x's dtype
        ("wide_weight", _WORD),  # in float64
        ("wide_bias", _WORD),
        ("streaming", _WORD),  # past the caches
        ("block", _WORD),  # columns taken at a time
        ("head", _WORD),  # columns that the first block has more
        ("packed", _WORD),  # whether blocks are copied into tiles: 0, 1, or where there is memory for one
        ("float64_kernel", _WORD),  # the same kernel in float64, for what float32 cannot hold; 0: it stops there
        ("narrow", _WORD),  # of rows side by side, what float32 has made of those that it holds, see columns.py
        ("dweight", _WORD),
        ("dweight_code", _WORD),
        ("dbias", _WORD),
        ("dbias_code", _WORD),
        ("portion", _WORD),  # rows, or blocks of them, whose shares of those are added up in one go
        ("work", _WORD),  # scratch of a derivative, see derivative/rows.py and turns.py
        # Float64 numbers of each row: what moments are made of, what rows are applied with, or the gradients of its
        # weight and bias, where each is a number.
        ("numbers", _WORD),
        ("given", _WORD),  # a GivenTask, of which rows side by side form these; they are at 0 then
    )


# What moments are made of, as a kernel reads them: float64 numbers of each row.
GIVEN = "count", "mean", "mean_low", "squares", "squares_low", "unit"  # the last two of float64 alone


class GivenTask(ctypes.Structure):
    """The same for `finish_rows`, which reads given moments and writes float64 numbers of each row."""

    _fields_ = (
        ("rows", _WORD),
        ("eps", _REAL),
        ("length", _REAL),  # eps as a length, to which that of a row is compared
        ("scale", _REAL),
        ("most", _REAL),  # the largest unit in which eps is in range
        *((name, _WORD) for name in GIVEN),  # the address of each, and how many bytes lie from row to row
        *((f"{name}_step", _WORD) for name in GIVEN),
        ("one_count", _REAL),  # where all rows have one
        ("nothing", _REAL),  # 0, for what moments lack
        ("numbers", _WORD),  # see given.py
        ("of_gradient", _WORD),  # of a derivative, see finish.py
    )


def needs_float64(rule: Any, code: Any, weight_code: Any, bias_code: Any, weight_offset: Any) -> Any:
    """Whether rows of float32 are computed in float64, as their parameters hold what float32 does not.

    Pairs of float32 are formed of factors alone. It is asked in Python, and while the fast path is compiled. The offset
    is 0 where the sum with it is rounded to the weight's dtype.
    """
    are_wider = (weight_code == FLOAT64.code) | (bias_code == FLOAT64.code) | (weight_offset != 0.0)
    return (code == FLOAT32.code) & (rule != SCALE) & are_wider


def are_few_rounds(rounds: Any) -> Any:
    """Whether rows that take turns do so seldom enough that those of one turn are differentiated in one go.

    It is asked in Python, and in the kernel.
    """
    return rounds <= 8


class Variant(NamedTuple):
    """What is fixed when a kernel is compiled."""

    rule: int
    code: int  # of the dtype of x
    in_float64: bool  # or it computes in float32
    has_residual: bool = False  # a residual and a total; to the derivative a dtotal
    has_layout: bool = False
    has_numbers: bool = False  # the derivative: moments are given
    parameters: int = FOR_ALL  # which weight and bias a row has, see turns.py
    # What a convention says:
    place: int = INSIDE  # where eps stands, see `eps_place`
    rounding: int = ONCE
    rounds_root: bool = False  # what x is divided by
    rounds_weight: bool = False  # weight + weight_offset

    @classmethod
    def of(cls, rule: Any, code: int, in_float64: bool, **options: bool) -> Variant:
        """The variant for a rule of the definition."""
        one = cls(RULES[rule.name], code, in_float64, **options)
        if rule.is_plain:
            return one
        is_wide = code == FLOAT64.code  # there is nothing to round to
        return one._replace(
            place=PLACES[rule.eps_place],
            rounding=ONCE if is_wide else ROUNDINGS[rule.rounding],
            rounds_root=rule.statistics == "x" and not is_wide,
            rounds_weight=rule.offset == "weight",
        )

    @property
    def eps_place(self) -> int:
        """Where eps stands; for scale_norm that is the floor, unless it is outside."""
        return FLOOR if self.rule == SCALE and self.place != OUTSIDE else self.place

    @property
    def makes_unit_vectors(self) -> bool:
        """Whether rows are made and rounded with length 1, and then multiplied by the root of their features."""
        return self.rule != SCALE and self.place == FLOOR and self.rounding == EACH

    @property
    def dtypes(self) -> tuple[Dtype, Dtype]:
        """That of x, and that of what is computed."""
        return BY_CODE[self.code], FLOAT64 if self.in_float64 else FLOAT32
