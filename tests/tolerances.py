"""The precision that anynorm promises, and the comparison that holds it to that."""

import mpmath
import numpy as np

from tests import reference
from tests.reference import Exact

# Largest error in units of the last place. Never loosened for a single test.
BOUNDS = {"float16": 0.51, "bfloat16": 0.51, "float32": 2.0, "float64": 4.0}

# The same of gradients. Through the definition, a unit is taken at the element or at the root mean square of its row's
# gradient, whichever is larger; terms that cancel to less than 2**-20 leave an error of their own scale. float64 is
# measured at the terms.
GRADIENT_BOUNDS = {"float16": 0.51, "bfloat16": 0.51, "float32": 0.51, "float64": 0.51}
# Through the kernels, a unit of float32 is taken at the norm of the row's gradient, or at that of the terms of a sum;
# as for y, x_hat counts as 1 at least in those of layer_norm, of float64 too. Sums of 16 bits are formed of
# float32, and may have its error before they are rounded.
KERNEL_GRADIENT_BOUNDS = {"float16": 0.51, "bfloat16": 0.51, "float32": 4.0, "float64": 16.0}
# Through the CUDA kernels, which form all but float64 in a wider dtype.
CUDA_GRADIENT_BOUNDS = GRADIENT_BOUNDS | {"float64": KERNEL_GRADIENT_BOUNDS["float64"]}
CANCELLED = {"float16": 2.0**-20, "bfloat16": 2.0**-20, "float32": 2.0**-20, "float64": 1.0}

# Largest error seen in this run: (backend, dtype, norm) -> ulp. Printed when the tests are over.
seen: dict[tuple[str, str, str], float] = {}


def assert_exact(
    got, expected, *, backend: str, dtype: str, norm: str, flushes: bool = False, bounds: dict[str, float] = BOUNDS
) -> None:
    """Assert that rows of results are within the bound of their exact values, element by element."""
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


def gradient_of_rows(norm, x, dy, dtype, cancelled=CANCELLED, by_kernel=False, **options):
    """Exact dx of rows, and the exact gradient of the weight, as `assert_exact` compares with them."""
    at_norm, of_double = (by_kernel and dtype == one for one in ("float32", "float64"))
    found = [reference.gradient(norm, *both, **options) for both in zip(x, dy, strict=True)]
    dx = []
    for row, _ in found:
        size = mpmath.sqrt(sum(exact.value**2 for exact in row) / (1 if at_norm else len(row)))
        dx.append([Exact(e.value, max(abs(e.value), size, e.magnitude * cancelled[dtype])) for e in row])
    columns = list(zip(*(shares for _, shares in found), strict=True))
    if norm == "scale_norm":
        columns = [sum(columns, start=())]
    least = [[0] * len(terms) for terms in columns] if norm != "layer_norm" else np.abs(dy.astype(float)).T.tolist()
    dweight = []
    for terms, floors in zip(columns, least, strict=True):
        if any(map(mpmath.isnan, terms)):
            dweight.append(Exact(mpmath.nan, mpmath.nan))
            continue
        size = mpmath.sqrt(
            sum(mpmath.mpf(max(abs(term), floor)) ** 2 for term, floor in zip(terms, floors, strict=True))
        )
        magnitude = max(abs(sum(terms)), sum(map(abs, terms)) * cancelled[dtype])
        of_float32 = KERNEL_GRADIENT_BOUNDS["float32"] * reference.ulp(size, "float32")
        is_short = by_kernel and dtype in ("float16", "bfloat16")
        exact = Exact(sum(terms), max(magnitude, size if at_norm or of_double else 0), of_float32 if is_short else 0.0)
        dweight.append(exact)
    return dx, [dweight]


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
