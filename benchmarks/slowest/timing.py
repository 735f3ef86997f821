"""One case timed: anynorm's call and the plain expression take turns in one process."""

import gc
import math
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks.slowest import numpy_calls, torch_calls
from benchmarks.slowest.arrays import arrays_of
from benchmarks.slowest.draw import Case

Call = Callable[[], Any]

BLOCK_SECONDS = 0.0003  # a round holds as many calls of each as take this long
LEAST_ROUNDS, MOST_ROUNDS = 5, 60
PATIENCE = 10  # times the seconds that a case lasts; slower ones have two rounds, whatever the least is
# How far results may be from those of the plain expression, which rounds more than once, of the largest among them.
# Of numbers that are not ordinary it may well be wrong, and of short rows dx may be 0 but for rounding: there it is
# only seen that no number is lost.
SHORT = 16
TOLERANCE = {"float16": 0.03, "bfloat16": 0.1, "float32": 1e-3, "float64": 1e-9}


class Found(NamedTuple):
    """A case, and the seconds of a call."""

    number: int
    case: Case
    ours: float
    plain: float
    ratio: float  # median over rounds of anynorm's time by that of the plain expression
    problem: str = ""  # why it was not timed


def look_at(number: int, case: Case, seconds: float, tensors: bool = False) -> Found:
    """Time a case, for so long but for the least rounds."""
    arrays = arrays_of(case)
    with np.errstate(all="ignore"):
        ours, plain = (torch_calls if tensors else numpy_calls).calls(case, arrays)
        before = arrays.x.copy()
        expected = copied(plain[-1]())
        arrays.x[...] = before
        problem = difference(case, ours(), expected)
        if problem:
            return Found(number, case, math.nan, math.nan, math.nan, problem)
        del expected, before
        return Found(number, case, *timed(ours, min(plain, key=once) if len(plain) > 1 else plain[0], seconds))


def timed(ours: Call, plain: Call, seconds: float) -> tuple[float, float, float]:
    """Medians of both, and of their ratio."""
    calls = [(ours, repeats(ours)), (plain, repeats(plain))]
    samples: list[list[float]] = [[], []]
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        for done in range(MOST_ROUNDS):
            taken = time.perf_counter() - start
            if (done >= LEAST_ROUNDS and taken > seconds) or (done >= 2 and taken > PATIENCE * seconds):
                break
            for which in (0, 1) if done % 2 else (1, 0):
                samples[which].append(block(*calls[which]))
    finally:
        gc.enable()
    ratios = [a / b for a, b in zip(*samples, strict=True)]
    return statistics.median(samples[0]), statistics.median(samples[1]), statistics.median(ratios)


def repeats(call: Call) -> int:
    """How many calls make a block."""
    taken = block(call, 1)
    if taken > BLOCK_SECONDS:
        return 1
    return max(1, round(BLOCK_SECONDS / min(block(call, 1) for _ in range(3))))


def once(call: Call) -> float:
    """The time of one call, but not of the first few."""
    return min(block(call, repeats(call)) for _ in range(3))


def block(call: Call, times: int) -> float:
    """Seconds of a call, the mean of so many."""
    start = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - start) / times


def difference(case: Case, found: Any, expected: Any) -> str:
    """In which way results differ too much; empty where they do not."""
    is_close = case.size == 1.0 and (case.features >= SHORT or case.what not in ("vjp", "dx"))
    pairs = zip(*(one if isinstance(one, tuple) else (one,) for one in (found, expected)), strict=True)
    for place, pair in enumerate(pairs):
        if pair[0] is None and pair[1] is None:
            continue
        ours, plain = (wide(one) for one in pair)
        if ours.shape != plain.shape:
            return f"result {place} has shape {ours.shape}, not {plain.shape}"
        seen = np.isfinite(plain)
        if not np.isfinite(ours[seen]).all():
            return f"result {place} is not finite"
        if is_close and seen.any():
            error = np.abs(ours[seen] - plain[seen]).max() / max(np.abs(plain[seen]).max(), 1e-3)
            if error > TOLERANCE[case.dtype]:
                return f"result {place} is off by {error:.2g}"
    return ""


def copied(found: Any) -> Any:
    """Results that no other call writes to."""
    if isinstance(found, tuple):
        return tuple(map(copied, found))
    return None if found is None else wide(found).copy()


def wide(array: Any) -> np.ndarray:
    """Numbers of NumPy or torch in float64."""
    return array.detach().double().numpy() if hasattr(array, "detach") else np.asarray(array, np.float64)
