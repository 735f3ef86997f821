"""Inputs that are hard for a norm, as hypothesis strategies over NumPy arrays."""

from dataclasses import dataclass

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from tests import reference
from tests.backends import as_dtype
from tests.tolerances import smallest_normal

# A few sizes only: each new shape costs a compiling library a second.
FEATURES = (1, 2, 3, 7, 33, 64)
# Two of the kind that is drawn, and beside them one of zeros and one whose squares are far below a usual eps.
DRAWN_ROWS, ROWS = 2, 4


def examples(percent: int) -> settings:
    """So many per cent of the examples of the profile in use: of 50 by default, of 200 with `--thorough`."""
    return settings(max_examples=percent * settings().max_examples // 100)


@dataclass(frozen=True)
class Case:
    x: np.ndarray  # (ROWS, features)
    weight: np.ndarray | None
    bias: np.ndarray | None
    eps: float
    weight_offset: float
    scale: float | None
    kind: str


def _largest(dtype):
    return float(reference.FORMATS[dtype][2])


def _normal(rng, shape, dtype):
    return rng.standard_normal(shape)


def _offset(rng, shape, dtype):
    """A mean of up to a million standard deviations."""
    return rng.standard_normal(shape) + 10.0 ** rng.uniform(0, 6, (shape[0], 1)) * rng.choice([-1, 1])


def _outlier(rng, shape, dtype):
    """One feature 1e4 times the rest, the first included."""
    x = rng.standard_normal(shape)
    x[:, rng.integers(shape[1]) if rng.random() < 0.5 else 0] *= 1e4
    return x


def _huge(rng, shape, dtype):
    return rng.uniform(-1, 1, shape) * _largest(dtype)


def _tiny(rng, shape, dtype):
    """Around the smallest normal number, subnormals included."""
    return rng.standard_normal(shape) * smallest_normal(dtype) * 10.0 ** rng.uniform(-2, 2)


def _spread(rng, shape, dtype):
    """Every magnitude of the dtype in one row."""
    low, high = np.log2(smallest_normal(dtype)), np.log2(_largest(dtype))
    return rng.choice([-1, 1], shape) * 2.0 ** rng.uniform(low - 3, high, shape)


def _nearly_constant(rng, shape, dtype):
    """A few units in the last place around one value."""
    spacing = 2.0 ** (1 - reference.FORMATS[dtype][0])
    return rng.standard_normal((shape[0], 1)) * (1 + rng.integers(-2, 3, shape) * spacing)


def _some_magnitude(rng, shape, dtype):
    """One magnitude for the row, anywhere in the range of the dtype."""
    low, high = np.log2(smallest_normal(dtype)), np.log2(_largest(dtype))
    return rng.standard_normal(shape) * 2.0 ** rng.uniform(low, high - 3)


KINDS = {
    kind.__name__[1:]: kind
    for kind in (_normal, _offset, _outlier, _huge, _tiny, _spread, _nearly_constant, _some_magnitude)
}


# Powers of ten, each range as often as the other; float16 has no more than this.
FAR_BELOW_ONE = {
    "float16": ((-7, -5),),
    "bfloat16": ((-30, -10),),
    "float32": ((-30, -10),),
    "float64": ((-30, -10), (-300, -30)),
}


def far_below_one(rng, features, dtype):
    """A row far below 1: its squares vanish beside eps, or in the dtype, and 1 over them overflows."""
    ranges = FAR_BELOW_ONE[dtype]
    return rng.standard_normal(features) * 10.0 ** rng.uniform(*ranges[rng.integers(len(ranges))])


@st.composite
def rows(draw, dtype, features=FEATURES):
    """Finite rows of one of the kinds above, or of any floats that hypothesis thinks of; then zeros, and a tiny row."""
    shape = (DRAWN_ROWS, draw(st.sampled_from(features)))
    kind = draw(st.sampled_from([*KINDS, "any"]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if kind == "any":
        width = {"float16": 16, "bfloat16": 32, "float32": 32, "float64": 64}[dtype]
        values = draw(
            npst.arrays(f"float{width}", shape, elements=st.floats(width=width, allow_infinity=False, allow_nan=False))
        )
    else:
        values = KINDS[kind](rng, shape, dtype)
    largest = _largest(dtype)
    values = np.clip(values.astype(np.float64), -largest, largest)
    return as_dtype(np.stack([*values, np.zeros(shape[1]), far_below_one(rng, shape[1], dtype)]), dtype), kind


@st.composite
def cases(draw, dtype, features=FEATURES):
    """Rows with parameters, eps and whatever else a norm takes."""
    x, kind = draw(rows(dtype, features))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    weight, bias = (as_dtype(rng.standard_normal(x.shape[1]), dtype) if draw(st.booleans()) else None for _ in range(2))
    return Case(
        x,
        weight,
        bias,
        eps=draw(st.sampled_from([1e-5, 0.0, 1e-12, 1.0, 1e-300])),
        weight_offset=draw(st.sampled_from([0.0, 1.0, 0.1])) if weight is not None else 0.0,
        scale=draw(st.sampled_from([None, 1.0, -0.7, float(np.sqrt(768))])),
        kind=kind,
    )


def _row(rng, features):
    """A row of float64: ordinary, of any magnitude, constant, zeros, with one element of any size, with NaN or Inf."""
    row, size = rng.standard_normal(features), 10.0 ** rng.uniform(-300, 300)
    kind = rng.integers(6)
    if kind == 1:
        row *= size
    elif kind == 2:
        row[:] = row[0] * size
    elif kind == 3:
        row[:] = 0
    elif kind == 4:
        row[rng.integers(features)] *= size
    elif kind == 5:
        row[rng.integers(features)] = rng.choice([np.nan, np.inf, -np.inf])
    return row


@st.composite
def rows_of_any_magnitude(draw):
    """Rows of float64 of which each is of another magnitude, and gradients by what becomes of them."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    features = draw(st.sampled_from((1, 2, 7, 33)))
    x = np.stack([_row(rng, features) for _ in range(4)])
    # Gradients go with dy / x, and are to be normal numbers.
    largest = np.where(np.isfinite(x), np.abs(x), 0.0).max(1)
    power = np.log10(np.where(largest == 0.0, 1.0, largest))
    sizes = np.where(rng.random(4) < 0.5, power, np.clip(power + rng.uniform(-280, 280, 4), -290, 290))
    return x, rng.standard_normal(x.shape) * 10.0 ** sizes[:, None]
