"""How exact moments are after a million merges, beside exact arithmetic; and what a merge takes.

    python -m benchmarks.merges --pieces 1000000

Rows of float32 and of float64 come in pieces of three numbers, with means of up to a million standard deviations, and
are merged one by one from left to right, in a tree, and in a random order. The error is that of layer_norm with the
merged moments, in units of the last place where |x_hat| is 1; the table of precision allows 2 for float32 and 4 for
float64. "float32 alone" is what JAX computes without x64, here with NumPy's arrays.
"""

import argparse
import functools
import math
import time
from fractions import Fraction

import numpy as np

from anynorm._definition.norms import LAYER_NORM, Precision, reduce
from anynorm._moments import PARTS, Moments, arrays_of, of_arrays
from tests import reference

LENGTH = 3
WAYS = {
    "float32": ("float32", Precision(np.float64)),
    "float32 alone": ("float32", Precision(np.float32, 24)),
    "float64": ("float64", Precision(np.float64, 53)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pieces", type=int, default=1_000_000, help="how many (default a million)")
    count = parser.parse_args().pieces
    print(f"{count} pieces\n{'':18}{'mean/sigma':>11}{'order':>16}{'error, ulp':>12}{'us a merge':>12}")
    for name, (dtype, precision) in WAYS.items():
        for mean in (0.0, 1e6):
            x = made(dtype, mean, count)
            exact = reference.mean_and_variance(x.ravel())
            pieces = pieces_of(x, precision)
            for order in (from_left, in_a_tree, at_random):
                start = time.perf_counter()
                merged = order(pieces)
                seconds = time.perf_counter() - start
                assert merged.count == x.size
                ulp = error(merged, *exact, dtype)
                micro = seconds / count * 1e6
                print(f"{name:18}{mean:11.0e}{order.__name__:>16}{ulp:12.2g}{micro:12.1f}", flush=True)


def made(dtype: str, mean: float, count: int) -> np.ndarray:
    return (np.random.default_rng(0).standard_normal((count, LENGTH)) + mean).astype(dtype)


def pieces_of(x: np.ndarray, precision: Precision) -> list[Moments]:
    """The moments of each line of x, formed at once and taken apart."""
    with np.errstate(all="ignore"):
        whole = reduce(np, x.astype(precision.dtype), (1,), LAYER_NORM, precision)
    arrays = arrays_of(Moments(whole, np))
    return [of_arrays(LENGTH, [None if one is None else one[i : i + 1] for one in arrays], np) for i in range(len(x))]


def from_left(pieces: list[Moments]) -> Moments:
    return functools.reduce(Moments.merge, pieces)


def in_a_tree(pieces: list[Moments]) -> Moments:
    while len(pieces) > 1:
        pieces = [functools.reduce(Moments.merge, pieces[i : i + 4]) for i in range(0, len(pieces), 4)]
    return pieces[0]


def at_random(pieces: list[Moments]) -> Moments:
    return from_left([pieces[i] for i in np.random.default_rng(1).permutation(len(pieces))])


def error(merged: Moments, mean: Fraction, variance: Fraction, dtype: str) -> float:
    """Of x_hat, where that is 1: what mean and deviation are off by, in units of the last place of the dtype."""
    parts = {name: Fraction(0 if part is None else float(part.item())) for name, part in named(merged).items()}
    unit = parts["unit"] or Fraction(1)
    found = (parts["mean"] + parts["mean_low"] + parts["mean_rest"]) / unit
    spread = (parts["squares"] + parts["squares_low"]) / unit**2 / np.asarray(merged.count).item()
    of_mean = float(abs(found - mean)) / math.sqrt(variance)
    of_factor = abs(float(variance / spread - 1)) / 2
    return (of_mean + of_factor) * 2.0 ** {"float32": 23, "float64": 52}[dtype]


def named(moments: Moments) -> dict[str, np.ndarray | None]:
    return dict(zip(PARTS, arrays_of(moments), strict=True))


if __name__ == "__main__":
    main()
