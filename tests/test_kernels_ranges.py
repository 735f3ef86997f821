"""Which rows and weights kernels in float32 leave alone: at each bound the last that is held, the first that is not."""

import math

import numpy as np
import pytest

from anynorm._kernels.cpu.language.dtypes import CODES, RULES
from tests.backends import needs_llvmlite
from tests.kernel_rows import DTYPES

pytestmark = needs_llvmlite

WEIGHTS = -1  # what a kernel returns where it cannot hold the weights


def reached(rule, x, dtype, weight=None, scale=1.0):
    """How far a kernel comes with one row and an eps of 0."""
    from anynorm._kernels.cpu.compiler.entries import kernel
    from anynorm._kernels.cpu.kernels.task import Task, Variant

    x, code = np.asarray([x], DTYPES[dtype]), CODES[dtype]
    y = np.empty_like(x)
    task = Task(
        features=x.size, rows=1, scale=scale, x=x.ctypes.data, y=y.ctypes.data,
        weight=0 if weight is None else weight.ctypes.data,
        weight_code=code if weight is None else CODES[weight.dtype.name],
    )  # fmt: skip
    return kernel("rows", Variant(RULES[rule], code, False)).run(task, 0, 1)


def beside(bound, dtype, towards):
    """The number next to a bound."""
    return float(np.nextafter(DTYPES[dtype](bound), DTYPES[dtype](towards)))


# The squares of a row of one element are its square, and the factor is its reciprocal.
@pytest.mark.parametrize(
    ("dtype", "bound", "towards"),
    [
        ("float32", 2.0**60, 1.0),  # the factor
        ("float32", 2.0**-60, 1.0),
        ("bfloat16", 2.0**50, 1.0),  # the squares
        ("bfloat16", 2.0**-40, 1.0),
    ],
)
def test_rows_are_held_up_to_a_magnitude(dtype, bound, towards):
    assert reached("rms_norm", [bound], dtype) == 0
    assert reached("rms_norm", [beside(bound, dtype, towards)], dtype) == 1


@pytest.mark.parametrize("bound", [2.0**60, 2.0**-60])
def test_factors_of_16_bits_are_held_up_to_a_magnitude(bound):
    assert reached("scale_norm", [1.0], "bfloat16", scale=bound) == 0
    assert reached("scale_norm", [1.0], "bfloat16", scale=math.nextafter(bound, 1.0)) == 1


def test_means_of_float32_are_held_up_to_so_many_deviations():
    mean = 2.0**20
    assert reached("layer_norm", [mean + 1.0, mean - 1.0], "float32") == 0
    assert reached("layer_norm", [mean, mean - 2.0], "float32") == 1


@pytest.mark.parametrize("places", [{0}, {32}, {0, 32}])  # whole steps of eight, and the rest
@pytest.mark.parametrize("widened", [False, True])  # weights that are widened, and such as are read where they lie
def test_weights_are_held_within_a_magnitude(places, widened):
    most, dtype = 2.0**60, "float32"
    outside = most, beside(1 / most, dtype, 0.0), -most, math.inf, math.nan
    inside = beside(most, dtype, 1.0), 1 / most, -1 / most, 0.0, -0.0
    for values, expected in ((outside, WEIGHTS), (inside, 1)):
        for value in values:
            weight = np.ones(33, "float64" if widened else dtype)
            weight[list(places)] = value
            assert reached("rms_norm", np.ones(33), dtype, weight) == expected


def test_a_weight_of_a_wider_dtype_is_looked_at_as_float32():
    held = math.nextafter(2.0**60, 1.0)  # which float32 rounds up
    weight = np.full(33, held)
    assert reached("rms_norm", np.ones(33), "float32", weight) == WEIGHTS
    assert reached("rms_norm", np.ones(33), "float32", np.full(33, beside(2.0**60, "float32", 1.0), "float64")) == 1


def test_any_weight_of_a_centred_row_is_held_that_is_of_its_dtype():
    x = np.arange(33) - 16.0
    assert reached("layer_norm", x, "float32", np.full(33, 2.0**60, "float32")) == 1
    assert reached("layer_norm", x, "float32", np.full(33, 2.0**60, "float64")) == WEIGHTS
