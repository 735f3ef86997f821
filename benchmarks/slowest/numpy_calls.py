"""The calls of a case with NumPy arrays: anynorm's, and the plain expression."""

from collections.abc import Callable
from typing import Any

import numpy as np

import anynorm
from benchmarks.slowest.arrays import Arrays
from benchmarks.slowest.draw import Case

Call = Callable[[], Any]


def calls(case: Case, arrays: Arrays) -> tuple[Call, list[Call]]:
    """The call of anynorm, and the plain expression in each way that someone might write it."""
    written = Plain(case, arrays)
    plain = [getattr(written, case.what.replace(" ", "_"))]
    if case.dtype == "float16":
        plain.append(Plain(case, arrays, np.float32).through_float32)
    return ours(case, arrays), plain


def ours(case: Case, arrays: Arrays) -> Call:
    x, weight, bias, other = arrays
    keywords: dict[str, Any] = {"axis": case.axes, "eps": case.eps}
    if len(case.axes) == 1:
        keywords["axis"] = case.axes[0]
    parameters = (weight, bias) if case.bias else (weight,)
    if case.norm == "scale_norm":
        parameters = ()
    if case.what == "vjp":
        vjp = getattr(anynorm, f"{case.norm}_vjp")

        def with_pullback() -> Any:
            y, pullback = vjp(x, *parameters, **keywords)
            return y, *pullback(other)

        return with_pullback
    if case.what == "moments":

        def mean_and_variance() -> Any:
            found = anynorm.moments(x, axis=keywords["axis"])
            return found.mean, found.variance

        return mean_and_variance
    if case.what == "add":
        add = getattr(anynorm, f"add_{case.norm}")
        return lambda: add(x, other, *parameters, **keywords)
    if case.what == "given":
        keywords["moments"] = anynorm.moments(x, axis=keywords["axis"])
    if case.what in ("out", "in place"):
        keywords["out"] = other if case.what == "out" else x
    norm = getattr(anynorm, case.norm)
    return lambda: norm(x, *parameters, **keywords)


class Plain:
    """The plain expressions, in x's dtype; each method is one ``what``."""

    def __init__(self, case: Case, arrays: Arrays, wide: Any = None):
        self.case, self.arrays, self.wide = case, arrays, wide
        self.axes = case.axes if len(case.axes) > 1 else case.axes[0]
        self.free = tuple(axis for axis in range(len(case.shape)) if axis not in case.axes)
        along = [length if axis in case.axes else 1 for axis, length in enumerate(case.shape)]
        self.weight, self.bias = (
            None if one is None else self.widened(one).reshape(along) for one in (arrays.weight, arrays.bias)
        )
        self.x, self.other = arrays.x, arrays.other
        if case.what == "given":
            x = self.widened(self.x)
            self.of_rows = x.mean(self.axes, keepdims=True), x.var(self.axes, keepdims=True)

    def widened(self, array: np.ndarray) -> np.ndarray:
        return array if self.wide is None else array.astype(self.wide)

    def through_float32(self) -> Any:
        """Of float16, in float32 and back."""
        self.x, self.other = self.widened(self.arrays.x), self.widened(self.arrays.other)
        what = self.case.what
        found = getattr(self, {"out": "y", "in place": "y"}.get(what, what))()
        if what in ("out", "in place"):
            place = self.arrays.other if what == "out" else self.arrays.x
            place[...] = found
            return place
        if isinstance(found, tuple):
            return tuple(None if one is None else one.astype(np.float16) for one in found)
        return found.astype(np.float16)

    def y(self, out: Any = None) -> Any:
        centred, divisor = self.reduced(self.x)
        return self.applied(centred, divisor, out)

    def out(self) -> Any:
        return self.y(self.other)

    def in_place(self) -> Any:
        return self.y(self.x)

    def add(self) -> Any:
        total = self.x + self.other
        return self.applied(*self.reduced(total)), total

    def moments(self) -> Any:
        return self.x.mean(self.axes, keepdims=True), self.x.var(self.axes, keepdims=True)

    def given(self) -> Any:
        mean, variance = self.of_rows
        if self.case.norm == "layer_norm":
            return self.applied(self.x - mean, np.sqrt(variance + self.case.eps))
        mean_square = variance + mean * mean
        if self.case.norm == "rms_norm":
            return self.applied(self.x, np.sqrt(mean_square + self.case.eps))
        return self.applied(self.x, np.maximum(np.sqrt(self.case.features * mean_square), self.case.eps))

    def vjp(self) -> Any:
        case, dy = self.case, self.other
        centred, divisor = self.reduced(self.x)
        normalized = centred / divisor
        y, g = normalized, dy
        if self.weight is not None:
            y, g = y * self.weight, g * self.weight
        if self.bias is not None:
            y = y + self.bias
        if case.norm == "scale_norm":
            projected = (g * normalized).sum(self.axes, keepdims=True)
        else:
            projected = (g * normalized).mean(self.axes, keepdims=True)
        moved = g - g.mean(self.axes, keepdims=True) if case.norm == "layer_norm" else g
        dx = (moved - normalized * projected) / divisor
        dweight = None if self.weight is None else (dy * normalized).sum(self.free)
        dbias = None if self.bias is None else dy.sum(self.free)
        return (y, dx, None) if case.norm == "scale_norm" else (y, dx, dweight, dbias)

    def reduced(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What is divided, and what by."""
        axes, eps = self.axes, self.case.eps
        if self.case.norm == "layer_norm":
            x = x - x.mean(axes, keepdims=True)
        if self.case.norm == "scale_norm":
            return x, np.maximum(np.sqrt((x * x).sum(axes, keepdims=True)), eps)
        return x, np.sqrt((x * x).mean(axes, keepdims=True) + eps)

    def applied(self, centred: np.ndarray, divisor: np.ndarray, out: Any = None) -> np.ndarray:
        """The rest; the last step writes to ``out``."""
        if self.weight is None:
            return np.divide(centred, divisor, out=out)
        y = centred / divisor
        if self.bias is None:
            return np.multiply(y, self.weight, out=out)
        return np.add(y * self.weight, self.bias, out=out)
