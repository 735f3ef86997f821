"""The precision that anynorm promises, and the comparison that holds it to that."""

import mpmath
import numpy as np

from tests import reference
from tests.reference import Exact

# Largest error in units of the last place. Never loosened for a single test.
BOUNDS = {"float16": 0.51, "bfloat16": 0.51, "float32": 2.0, "float64": 4.0}
# Where float32 is computed in float32: in JAX, with float64 or without, and in libraries that have no float64.
NARROW_BOUNDS = BOUNDS | {"float32": 4.0}

# Derivatives of first and second order, of float64, and of float32 where that is computed in float32: in units at the
# sum of the magnitudes of the terms (reference.py), where a rounding is of half a unit at most. The factor has 3 of its
# own and half of those of a mean of squares: 2, and as many as 5 for its n additions, in blocks. A term of first order
# has the factor three times, one mean and 6 other roundings, 31 in all. One of second order has 54, with the factor
# five times, and those do not all go one way. The largest of 10 million random elements, in rows of 5, 33 and 200, were
# 11.2 units off in both orders, beside an outlier.
DERIVATIVE_BOUND = 16.0
# What is smaller than a normal number may be 0 in each of the four terms of second order.
FLUSHED_TERMS = 4

# Gradients through the definition. Where it has a wider dtype, a unit is taken at the element or at the root mean
# square of its row's gradient, whichever is larger; terms that cancel to less than 2**-20 leave one of their own scale.
GRADIENT_BOUNDS = {"float16": 0.51, "bfloat16": 0.51, "float32": 0.51, "float64": DERIVATIVE_BOUND}
NARROW_GRADIENT_BOUNDS = GRADIENT_BOUNDS | {"float32": DERIVATIVE_BOUND}
# Through the kernels, a unit of float32 is taken at the norm of the row's gradient, or at that of the terms of a sum;
# as for y, x_hat counts as 1 at least in those of layer_norm, of float64 too. Sums of 16 bits are formed of
# float32, and may have its error before they are rounded.
KERNEL_GRADIENT_BOUNDS = {"float16": 0.51, "bfloat16": 0.51, "float32": 4.0, "float64": 16.0}
# Through the CUDA kernels, which form all but float64 in a wider dtype.
CUDA_GRADIENT_BOUNDS = GRADIENT_BOUNDS | {"float64": KERNEL_GRADIENT_BOUNDS["float64"]}
CANCELLED = {"float16": 2.0**-20, "bfloat16": 2.0**-20, "float32": 2.0**-20, "float64": 1.0}

# Largest error seen in this run: (backend, dtype, norm) -> ulp. Printed when the tests are over.
seen: dict[tuple[str, str, str], float] = {}


def is_narrow(backend: str) -> bool:
    """Whether a backend, by its name, computes float32 in float32, and 16 bits as well."""
    return backend.startswith("jax") or "no-float64" in backend


def bounds_of(backend: str) -> dict[str, float]:
    """The bounds of results on a backend."""
    return NARROW_BOUNDS if is_narrow(backend) else BOUNDS


def gradient_bounds_of(backend: str, by_kernel: bool = False) -> dict[str, float]:
    """The bounds of gradients on a backend, by what it runs."""
    if by_kernel:
        return KERNEL_GRADIENT_BOUNDS
    if "cuda" in backend:
        return CUDA_GRADIENT_BOUNDS
    return NARROW_GRADIENT_BOUNDS if is_narrow(backend) else GRADIENT_BOUNDS


def assert_exact(
    got, expected, *, backend: str, dtype: str, norm: str, flushes: bool = False, bounds: dict[str, float] | None = None
) -> None:
    """Assert that rows of results are within a bound of their exact values, by default the backend's, each element."""
    bounds = bounds_of(backend) if bounds is None else bounds
    got = np.asarray(got)
    assert got.dtype == dtype, f"{backend} gave {got.dtype} for {dtype}"
    assert got.shape == (len(expected), len(expected[0])), f"{backend} gave shape {got.shape}"
    worst, where = 0.0, None
    for row, exact_row in enumerate(expected):
        for column, exact in enumerate(exact_row):
            value = float(got[row, column])
            if flushes and value == 0.0 and abs(exact.value) < smallest_normal(dtype):
                continue
            error = reference.error_in_ulp(value, exact, dtype)
            if error > worst:
                worst, where = error, (row, column)
    key = (backend, dtype, norm)
    seen[key] = max(seen.get(key, 0.0), worst)
    if worst > bounds[dtype]:
        exact = expected[where[0]][where[1]]
        raise AssertionError(
            f"{norm} of {dtype} on {backend}: {worst:.3f} ulp at {where}, "
            f"got {float(got[where])!r}, exactly {float(exact.value)!r}"
        )


def smallest_normal(dtype: str) -> float:
    digits, smallest, _ = reference.FORMATS[dtype]
    return 2.0 ** (smallest + digits - 1)


def seen_table() -> list[str]:
    """The largest errors seen, a line for each backend and dtype."""
    norms = [norm + of for of in ("", " dx", " dw") for norm in ("layer_norm", "rms_norm", "scale_norm")]
    lines = [f"{'backend':26}{'dtype':10}" + "".join(f"{norm:>15}" for norm in norms)]
    for backend, dtype in sorted({key[:2] for key in seen}):
        errors = [seen.get((backend, dtype, norm)) for norm in norms]
        cells = "".join(f"{'' if e is None else format(e, '.3f'):>15}" for e in errors)
        lines.append(f"{backend:26}{dtype:10}{cells}")
    return lines


def gradient_of_rows(norm, x, dy, dtype, by_kernel=False, narrow=False, **options):
    """Exact dx of rows, and the exact gradient of the weight, as `assert_exact` compares with them."""
    found = [reference.gradient(norm, *both, **options) for both in zip(x, dy, strict=True)]
    if not by_kernel and (narrow or dtype == "float64"):
        dx = [as_it_is(row, dtype) for row, _ in found]
    else:
        at_norm, dx = by_kernel and dtype == "float32", []
        for row, _ in found:
            size = mpmath.sqrt(sum(exact.value**2 for exact in row) / (1 if at_norm else len(row)))
            dx.append([Exact(e.value, max(abs(e.value), size, e.magnitude * CANCELLED[dtype])) for e in row])
    return dx, gradient_of_weight(norm, [shares for _, shares in found], dy, dtype, by_kernel, narrow)


def gradient_of_weight(norm, shares, dy, dtype, by_kernel=False, narrow=False):
    """The exact gradient of the weight, likewise, from what each row adds to it."""
    columns = list(zip(*shares, strict=True))
    if norm == "scale_norm":
        columns = [sum(columns, start=())]
    least = [[0] * len(terms) for terms in columns] if norm != "layer_norm" else np.abs(dy.astype(float)).T.tolist()
    pairs = zip(columns, least, strict=True)
    return [[_gradient_of_weight(*both, dtype, by_kernel, narrow) for both in pairs]]


def _gradient_of_weight(terms, floors, dtype, by_kernel, narrow):
    if any(map(mpmath.isnan, terms)):
        return Exact(mpmath.nan, mpmath.nan)
    value, sizes = sum(terms), [mpmath.mpf(max(abs(t), floor)) for t, floor in zip(terms, floors, strict=True)]
    if not by_kernel and (narrow or dtype == "float64"):
        return as_it_is([Exact(value, sum(sizes))], dtype)[0]
    size, magnitude = mpmath.sqrt(sum(s**2 for s in sizes)), max(abs(value), sum(map(abs, terms)) * CANCELLED[dtype])
    if by_kernel and dtype in ("float16", "bfloat16"):
        return Exact(value, magnitude, KERNEL_GRADIENT_BOUNDS["float32"] * reference.ulp(size, "float32"))
    # Where x_hat is 0, or next to it, centring leaves an error of float64 beside 1.
    return (
        Exact(value, max(magnitude, size)) if by_kernel else Exact(value, magnitude, sum(sizes) * mpmath.mpf(2) ** -50)
    )


def as_it_is(row, dtype, flushed_terms=0):
    """Exact derivatives where they are computed in their dtype; 16 bits have the error of float32 before they round."""
    if dtype in ("float32", "float64"):
        return [Exact(e.value, e.magnitude, flushed_terms * smallest_normal(dtype)) for e in row]
    return [Exact(e.value, abs(e.value), DERIVATIVE_BOUND * reference.ulp(e.magnitude, "float32")) for e in row]


def gradient_of_bias(dy):
    """Exact sums of dy over rows, likewise."""
    columns = [[mpmath.mpf(float(v)) if np.isfinite(v) else mpmath.nan for v in column] for column in dy.T]
    return [[Exact(sum(column), max(map(abs, [sum(column), *column]))) for column in columns]]


def assert_sums_exact(got, expected, **said) -> None:
    """`assert_exact` of the gradient of a parameter, which is not finite where a term is NaN or Inf."""
    got = np.array(got).reshape(1, -1)
    holds_nan = np.asarray([[bool(mpmath.isnan(exact.value)) for exact in expected[0]]])
    assert not np.isfinite(got[holds_nan].astype(np.float64)).any()
    got[holds_nan] = np.nan
    assert_exact(got, expected, **said)
