"""Calls of the norms, and of moments, that run the CPU kernels; with `kernel_calls_derivative`, every line of them."""

from unittest import mock

import numpy as np

import anynorm
from tests.kernel_rows import DTYPES, LARGEST, OTHER, SMALLEST, extreme_rows, far_rows, numbers, placed

FEATURES = (1, 2, 3, 7, 31, 32, 33, 127, 1060)
# Columns are not of float16: each dtype takes seconds to compile, and bfloat16 goes through the same lines.
ROWS_ONLY = ("float16",)
NORMS = {"layer": anynorm.layer_norm, "rms": anynorm.rms_norm}
ADDS = {"layer": anynorm.add_layer_norm, "rms": anynorm.add_rms_norm}


def rows(dtype):
    """One row after the other, by each rule and with each kind of parameters."""
    for n in FEATURES:
        few, some = numbers((2, n), dtype, n), numbers((5, n), dtype, n + 1)
        weight, bias = numbers(n, dtype, n + 2), numbers(n, dtype, n + 3)
        other = numbers(n, OTHER[dtype], n + 4)
        for rule, norm in NORMS.items():
            yield f"{rule} {n} plain", norm(few)
            yield f"{rule} {n} bias, as it is", norm(few, None, bias)
            yield f"{rule} {n} weight and bias", norm(some, weight, bias)
            yield f"{rule} {n} weight of another dtype, and an offset", norm(some, other, weight_offset=1.0, eps=0.0)
        yield f"far {n}", anynorm.layer_norm(far_rows(n, dtype), weight, bias)
        yield f"scale {n}", anynorm.scale_norm(some, 3.0)
        yield f"scale {n} plain", anynorm.scale_norm(few)


def overlapping(x, weight, bias):
    """Outs that begin within x, and that hold the weight, are refused; nothing is written."""
    memory = np.concatenate([x.ravel(), x[0]])
    inside, begun = memory[: x.size].reshape(x.shape), memory[x.shape[1] :].reshape(x.shape)
    first = memory[: x.shape[1]]
    for data, factors, terms, out in (
        (inside, weight, bias, begun), (x, first, bias, inside), (x, weight, first, inside)
    ):  # fmt: skip
        try:
            anynorm.layer_norm(data, factors, terms, eps=0.25, out=out)
        except ValueError:
            continue
        raise AssertionError("an out that overlaps was taken")
    return memory


def unlike(x, weight, bias):
    """What differs from the calls before goes the longer way."""
    yield "one row", anynorm.layer_norm(x[0], weight, bias, eps=0.25)
    yield "fewer features", anynorm.layer_norm(x[:, 1:].copy(), weight[1:], bias[1:], eps=0.25)
    yield "reversed", anynorm.layer_norm(x[::-1], weight, bias, eps=0.25)
    yield "reversed weight", anynorm.layer_norm(x, weight[::-1], bias, eps=0.25)
    yield "reversed bias", anynorm.layer_norm(x, weight, bias[::-1], eps=0.25)
    yield "reversed out", anynorm.layer_norm(x, weight, bias, eps=0.25, out=np.empty_like(x)[::-1])
    yield "many", anynorm.layer_norm(np.tile(x, (4000 // x.shape[1], 1)), weight, bias, eps=0.25)


def repeated(dtype):
    """The same call once more goes a shorter way."""
    for n in (3, 33):
        x, weight, bias = numbers((3, n), dtype, 1), numbers(n, dtype, 2), numbers(n, dtype, 3)
        for turn in ("first", "second"):
            yield f"{n} {turn}", anynorm.layer_norm(x, weight, bias, eps=0.25)
            yield f"{n} plain {turn}", anynorm.rms_norm(x, eps=0.25)
            out = np.empty_like(x)
            yield f"{n} out {turn}", anynorm.layer_norm(x, weight, bias, eps=0.25, out=out)
            yield f"{n} in place {turn}", anynorm.layer_norm(out, weight, bias, eps=0.25, out=out)
            yield f"{n} overlaps {turn}", overlapping(x, weight, bias)
        for name, y in unlike(x, weight, bias):
            yield f"{n} {name}", y
        # It stops at such rows, and at such weights before the first one; what is left goes the longer way.
        x, weight = extreme_rows(n, dtype), weight.copy()
        yield f"{n} extreme rows", anynorm.layer_norm(x, weight, bias, eps=0.25)
        yield f"{n} extreme rows, plain", anynorm.rms_norm(x, eps=0.25)
        weight[1] = LARGEST[dtype]
        yield f"{n} extreme weight", anynorm.layer_norm(x, weight, bias, eps=0.25)


def tensors(dtype):
    """Calls like one before, of tensors: once more, and guarded."""
    import torch

    for n in (3, 33):
        arrays = [numbers(shape, dtype, seed) for seed, shape in enumerate(((3, n), n, n), 1)]
        if dtype == "bfloat16":
            given = [torch.from_numpy(array.view(np.int16)).view(torch.bfloat16) for array in arrays]
        else:
            given = [torch.from_numpy(array) for array in arrays]
        for turn in ("first", "second", "third", "fourth"):
            yield f"{n} {turn}", anynorm.layer_norm(*given, eps=0.25).double().numpy()


def residuals(dtype):
    """The norm of a sum, laid out in each way."""
    for rule, add in ADDS.items():
        for n in FEATURES:
            x, residual, weight = numbers((3, n), dtype, n), numbers((3, n), dtype, n + 1), numbers(n, dtype, n + 2)
            yield f"{rule} {n}", add(x, residual, weight)
        yield f"{rule} scattered", add(numbers((9, 3), dtype, 1), numbers((9, 3), dtype, 2), axis=0)
        if dtype not in ROWS_ONLY:
            x, residual, bias = numbers((9, 37), dtype, 1), numbers((9, 37), dtype, 2), numbers(9, dtype, 3)
            yield f"{rule} columns", add(x, residual, None, bias, axis=0)


def scattered(dtype):
    """Rows whose elements do not lie one after the other."""
    for n in (2, 33, 1060):
        x, weight = numbers((3, n, 2), dtype, n), numbers(n, dtype, n + 1)
        yield f"layer {n}", anynorm.layer_norm(x, weight, axis=1)
        yield f"scale {n}", anynorm.scale_norm(x, axis=1)
        wide = numbers((3, 2 * n), dtype, n)
        yield f"each second of {n}", anynorm.rms_norm(wide[:, ::2], weight)
        yield f"reversed {n}", anynorm.layer_norm(wide[::-1, ::-1])
    x, weight = numbers((3, 4, 5, 6), dtype, 1), numbers((4, 6), dtype, 2)
    yield "two axes", anynorm.layer_norm(x, weight, axis=(1, 3))
    yield "two axes, in place", in_place(anynorm.rms_norm, x, weight, axis=(1, 3))
    wide = numbers((3, 2, 90), dtype, 1)  # parts of a row that lie one after the other
    yield "with gaps", anynorm.rms_norm(wide[..., :70], axis=(1, 2), out=np.zeros_like(wide)[..., :70])


def columns(dtype):
    """Rows side by side."""
    for n, neighbours in ((1, 32), (2, 33), (7, 300), (33, 40), (1060, 37)):
        x = numbers((n, neighbours), dtype, n)
        weight, bias, other = numbers(n, dtype, 1), numbers(n, dtype, 2), numbers(n, OTHER[dtype], 3)
        for rule, norm in NORMS.items():
            yield f"{rule} {n}", norm(x, axis=0)
            yield f"{rule} {n} weight and bias", norm(x, weight, bias, axis=0)
        yield f"{n} offset", anynorm.rms_norm(x, other, axis=0, weight_offset=1.0)
        yield f"scale {n}", anynorm.scale_norm(x, -2.0, axis=0)
    yield "channels first", anynorm.layer_norm(numbers((2, 7, 5, 7), dtype, 3), axis=1)
    yield "far from their first features", anynorm.layer_norm(far_rows(70, dtype).repeat(8, 0).T.copy(), axis=0)


def packed(dtype):
    """Rows side by side that are packed into tiles: short ones, and those whose neighbours lie apart."""
    for n in (1, 3, 7):
        x, other = numbers((37, n), dtype, n), numbers((37, n), dtype, n + 1)
        weight, found = numbers(n, OTHER[dtype], 3), anynorm.moments(x)
        yield f"{n}", anynorm.layer_norm(x, weight, weight, weight_offset=1.0)
        yield f"sum {n}", anynorm.add_rms_norm(x, other, weight)
        yield f"moments {n}", (found.mean, found.variance)
        yield f"given {n}", anynorm.layer_norm(x, weight, moments=found)
    for n in (40, 1060):
        x, weight = numbers((n, 38), dtype, n)[:, ::2], numbers(n, dtype, 1)
        yield f"each second of {n}", in_place(anynorm.layer_norm, x, weight, weight, axis=0)
    yield "two axes", anynorm.layer_norm(numbers((3, 5, 20), dtype, 1)[..., ::2], axis=(0, 1))
    yield "sum apart", anynorm.add_layer_norm(x, x, axis=0)
    x = numbers((33, 40), dtype, 1)
    for rule, norm in NORMS.items():
        yield f"moments of columns, {rule}", norm(x, axis=0, moments=anynorm.moments(x, axis=0))
    x = np.concatenate([numbers((33, 300), dtype, 1), extreme_rows(33, dtype).T], 1)
    yield "moments of columns, extreme", anynorm.layer_norm(x, axis=0, moments=anynorm.moments(x, axis=0))
    x = numbers((37, 3), dtype, 4) * np.asarray(LARGEST[dtype] / 8, DTYPES[dtype])
    yield "all extreme", anynorm.rms_norm(x)


def in_place(norm, x, *parameters, **options):
    x = x.copy()
    return norm(x, *parameters, out=x, **options)


def outs(dtype):
    """Results put where asked; past the caches too, from each place in a cache line."""
    for n in (3, 33, 127, 1060):
        x, weight = numbers((4, n), dtype, n), numbers(n, dtype, n + 1)
        for rule, norm in NORMS.items():
            yield f"{rule} {n} in place", in_place(norm, x, weight)
            for at in (0, 1):
                yield f"{rule} {n} streamed to {at}", streamed(norm, x, weight, at=at)
    for at in (0, 1):
        if dtype not in ROWS_ONLY:
            x = numbers((9, 128), dtype, at)
            yield f"columns streamed to {at}", streamed(anynorm.layer_norm, x, at=at, axis=0)


def streamed(norm, x, *parameters, at, **options):
    from anynorm._kernels.cpu.launch import tasks

    with mock.patch.object(tasks, "last_cache_nbytes", return_value=1):
        return norm(x, *parameters, out=placed(x.shape, x.dtype.name, at), **options)


def extremes(dtype):
    """Rows that a kernel cannot hold, or has to take notice of."""
    for n in (1, 3, 33, 1060):
        x = extreme_rows(n, dtype)
        for rule, norm in NORMS.items():
            yield f"{rule} {n}", norm(x)
            yield f"{rule} {n} eps 0", norm(x, eps=0.0)
            yield f"{rule} {n} scattered", norm(np.stack([x, x], -1), axis=1)
            if dtype not in ROWS_ONLY:
                yield f"{rule} {n} columns", norm(np.concatenate([x] * 4).T.copy(), axis=0, eps=0.0)
        yield f"scale {n} eps", anynorm.scale_norm(x)
        for scale in (1.0, 1e30, -1e300, 1e-300, 0.0):
            yield f"scale {n} {scale}", anynorm.scale_norm(x, scale, eps=0.0)


def extreme_weights(dtype):
    """Weights with which a product may leave the range, and some that only look so."""
    for weight in (LARGEST[dtype], SMALLEST[dtype], 0.0):
        weights = numbers(33, dtype, 1)
        weights[7] = weight
        yield f"{weight}", anynorm.rms_norm(numbers((5, 33), dtype, 2), weights)
        yield f"{weight} offset", anynorm.rms_norm(numbers((5, 33), dtype, 2), weights, weight_offset=1.0)
        yield f"{weight} scattered", anynorm.layer_norm(numbers((33, 3), dtype, 2), weights, axis=0)
        if dtype not in ROWS_ONLY:
            yield f"{weight} columns", anynorm.rms_norm(numbers((33, 40), dtype, 2), weights, axis=0)


def moments(dtype):
    """Moments, and rows normalized by given ones."""
    for n in (2, 33, 1060):
        x, weight, bias = numbers((3, n), dtype, n), numbers(n, OTHER[dtype], n + 1), numbers(n, dtype, n + 2)
        found = anynorm.moments(x)
        yield f"{n}", (found.mean, found.variance)
        yield f"layer {n}", anynorm.layer_norm(x, weight, bias, weight_offset=1.0, moments=found)
        yield f"rms {n}", anynorm.rms_norm(x, moments=found)
        yield f"scale {n}", anynorm.scale_norm(x, -2.0, moments=found)
        yield f"streamed {n}", streamed(anynorm.layer_norm, x, None, bias, at=1, moments=found)
        yield (
            f"scattered {n}",
            anynorm.layer_norm(x.T.copy(), weight, axis=0, moments=anynorm.moments(x.T.copy(), axis=0)),
        )
    x = extreme_rows(33, dtype)
    yield "extreme", anynorm.layer_norm(x, moments=anynorm.moments(x))
    yield "extreme norm", anynorm.scale_norm(x, 1e-300, moments=anynorm.moments(x))
    yield "extreme weight", anynorm.rms_norm(x, np.full(33, 1e300), moments=anynorm.moments(x))


def moments_formed(dtype):
    """What becomes of given moments is formed where rows side by side are applied."""
    from anynorm._kernels.cpu.launch import given

    extreme = np.concatenate([numbers((33, 300), dtype, 1), extreme_rows(33, dtype).T], 1)
    for name, x, axis in (
        ("columns", extreme, 0), ("short", numbers((37, 3), dtype, 2), -1),
        ("in another order", numbers((3, 9, 40), dtype, 3).transpose(2, 1, 0), 1),
    ):  # fmt: skip
        found = anynorm.moments(x, axis=axis)
        with mock.patch.object(given, "_MOST_KEPT_NBYTES", -1):
            yield f"layer {name}", anynorm.layer_norm(x, axis=axis, moments=found)
            yield f"rms {name}", anynorm.rms_norm(x, axis=axis, moments=found)
            yield f"scale {name}", anynorm.scale_norm(x, -2.0, axis=axis, moments=found)


ROUNDED = anynorm.Convention(rounding="normalized", eps_place="floor", statistics="x", eps=0.5)
OUTSIDE = anynorm.Convention(rounding="each", eps_place="outside", eps=0.25)


def conventions(dtype):
    """Rows by conventions, extreme ones among them."""
    x = np.concatenate([numbers((5, 33), dtype, 1), extreme_rows(33, dtype)])
    weight, bias, other = numbers(33, dtype, 2), numbers(33, dtype, 3), numbers(33, OTHER[dtype], 4)
    for name, more in {"own": {}, "given": {"moments": anynorm.moments(x)}}.items():
        yield f"bias alone {name}", anynorm.layer_norm(x, None, bias, convention="onnx", **more)
        yield f"nemotron {name}", anynorm.layer_norm(x, other, bias, convention="nemotron", **more)
        yield f"rounded {name}", anynorm.rms_norm(x, weight, bias, convention=ROUNDED, **more)
        yield f"outside {name}", anynorm.rms_norm(x, weight, bias, convention=OUTSIDE, **more)
        for scale in (3.0, 1e30):
            yield f"scale {scale} {name}", anynorm.scale_norm(x, scale, convention=OUTSIDE, **more)
    yield "lengths", anynorm.rms_norm(x, weight, convention="x_transformers")
    yield "nemotron, few rows", anynorm.layer_norm(x[:3], weight, bias, convention="nemotron")
    if dtype not in ROWS_ONLY:
        columns = np.repeat(x.T, 3, 1)
        yield "columns", anynorm.rms_norm(columns, weight, convention=OUTSIDE, axis=0)
        yield "columns, lengths", anynorm.rms_norm(columns, weight, convention="x_transformers", axis=0)
