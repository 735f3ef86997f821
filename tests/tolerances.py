"""The precision that anynorm promises, and the comparison that holds it to that."""

import numpy as np

from tests import reference

# Largest error in units of the last place. Never loosened for a single test.
BOUNDS = {"float16": 0.51, "bfloat16": 0.51, "float32": 2.0, "float64": 4.0}

# Largest error seen in this run: (backend, dtype, norm) -> ulp. Printed when the tests are over.
seen: dict[tuple[str, str, str], float] = {}


def assert_exact(got, expected, *, backend: str, dtype: str, norm: str, flushes: bool = False) -> None:
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
    if worst > BOUNDS[dtype]:
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
    norms = ("layer_norm", "rms_norm", "scale_norm")
    lines = [f"{'backend':26}{'dtype':10}" + "".join(f"{norm:>12}" for norm in norms)]
    for backend, dtype in sorted({key[:2] for key in seen}):
        errors = [seen.get((backend, dtype, norm)) for norm in norms]
        cells = "".join(f"{'' if e is None else format(e, '.3f'):>12}" for e in errors)
        lines.append(f"{backend:26}{dtype:10}{cells}")
    return lines
