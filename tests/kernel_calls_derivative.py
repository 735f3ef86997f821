"""Calls of derivatives that run the CPU kernels."""

import itertools
from unittest import mock

import numpy as np

import anynorm
from tests.kernel_calls_forward import NORMS
from tests.kernel_rows import LARGEST, OTHER, extreme_rows, numbers, placed

VJPS = {"layer": anynorm.layer_norm_vjp, "rms": anynorm.rms_norm_vjp}


def streamed_pullback(pullback, dy, at):
    """The same of a derivative."""
    from anynorm._kernels.cpu.launch import groups_vjp, tasks, vjp

    def new(memory, array):
        return placed(array.shape, array.dtype.name, at)

    with (
        mock.patch.object(tasks, "last_cache_nbytes", return_value=1),
        mock.patch.object(vjp, "empty_like", side_effect=new),
        mock.patch.object(groups_vjp, "empty_like", side_effect=new),
    ):
        return pullback(dy)


def pullbacks(dtype):
    """Derivatives, of rows in several blocks too, and of such as float64 does not hold."""
    for n in (1, 7, 33, 1060):
        shape = ({7: 66, 1060: 3}.get(n, 18), n)
        x, dy, weight, bias = (numbers(size, dtype, n + i) for i, size in enumerate((shape, shape, n, n)))
        other = numbers(n, OTHER[dtype], n + 4)
        for rule, vjp in VJPS.items():
            yield f"{rule} {n} plain", vjp(x)[1](dy)[:1]
            yield f"{rule} {n} weight", vjp(x, weight)[1](dy)[:2]
            yield f"{rule} {n} weight and bias", vjp(x, other, bias, weight_offset=1.0)[1](dy)
        yield f"scale {n}", anynorm.scale_norm_vjp(x, 3.0)[1](dy)
        yield f"sum {n}", anynorm.add_layer_norm_vjp(x, dy, weight)[1](dy, x)[:3]
    x, dy = numbers((3, 33, 2), dtype, 1), numbers((2, 33, 3), dtype, 2).T
    yield "scattered", anynorm.layer_norm_vjp(x, numbers(33, dtype, 3), axis=1)[1](dy)[:2]
    yield "scattered sum", anynorm.add_rms_norm_vjp(x, x, axis=(0, 1))[1](dy, dy)[:2]
    x, dy, weight = numbers((9, 96), dtype, 1), numbers((9, 96), dtype, 2), numbers(96, dtype, 3)
    for rule, at in itertools.product(VJPS, (0, 1)):
        yield f"{rule} streamed to {at}", streamed_pullback(VJPS[rule](x, weight)[1], dy, at)[:2]
    x = extreme_rows(33, dtype)
    for rule, vjp in VJPS.items():
        yield f"extreme {rule}", vjp(x, numbers(33, dtype, 1), eps=0.0)[1](numbers((8, 33), dtype, 2))[:2]
        bias = numbers(33, dtype, 3)
        yield f"extreme gradients {rule}", vjp(numbers((8, 33), dtype, 1), bias, bias)[1](extreme_rows(33, dtype))
    yield "extreme scale", anynorm.scale_norm_vjp(x, 3.0)[1](numbers((8, 33), dtype, 2))


def pullbacks_side_by_side(dtype):
    """Derivatives of rows side by side, among them such as leave float32, or float64."""
    for n, neighbours in ((1, 33), (7, 300), (33, 40), (1060, 37)):
        x, dy = numbers((n, neighbours), dtype, n), numbers((n, neighbours), dtype, n + 1)
        weight, bias = numbers(n, OTHER[dtype], 2), numbers(n, dtype, 3)
        yield f"layer {n}", anynorm.layer_norm_vjp(x, weight, bias, axis=0)[1](dy)
        yield f"rms {n}", anynorm.rms_norm_vjp(x, axis=0)[1](dy)[:1]
        yield f"scale {n}", anynorm.scale_norm_vjp(x, 3.0, axis=0)[1](dy)
        yield f"sum {n}", anynorm.add_layer_norm_vjp(x, dy, weight, axis=0)[1](dy, x)[:3]
    x, dy = numbers((2, 7, 5, 7), dtype, 1), numbers((2, 7, 5, 7), dtype, 2)
    yield "channels first", anynorm.layer_norm_vjp(x, numbers(7, dtype, 3), axis=1)[1](dy)[:2]
    for n in (1, 3, 33):  # packed into tiles, of rows that fill lanes and of fewer
        x, dy = numbers((n, 70), dtype, n), numbers((35, n), dtype, n + 1).T
        yield f"packed {n}", anynorm.layer_norm_vjp(x[:, ::2], numbers(n, dtype, 2), axis=0)[1](dy)[:2]
    x, dy = (one(33, dtype).repeat(5, 0).T.copy() for one in (extreme_rows, lambda n, _: numbers((8, n), dtype, 2)))
    for rule, vjp in VJPS.items():
        yield f"extreme {rule}", vjp(x, numbers(33, dtype, 1), eps=0.0, axis=0)[1](dy)[:2]
        yield f"extreme gradients {rule}", vjp(dy, axis=0)[1](x)[:1]
        yield f"along {rule}", vjp(dy, numbers(33, dtype, 1), axis=0)[1](vjp(dy, axis=0)[0])[:2]


def pullbacks_by_moments(dtype):
    """Derivatives of norms that are given moments, and of moments; of rows that float64 does not hold too."""

    def found(x, dy, vjp, *parameters, axis=-1, **options):
        given, vjp_moments = anynorm.moments_vjp(x, axis=axis)
        *by, gradient = vjp(x, *parameters, axis=axis, moments=given, **options)[1](dy)
        held = [one for one in by if one is not None]
        return *held, gradient.mean, gradient.variance, vjp_moments(gradient)

    x, dy, weight = (numbers(size, dtype, 33 + i) for i, size in enumerate(((3, 33), (3, 33), 33)))
    yield "layer", found(x, dy, anynorm.layer_norm_vjp, weight, weight)
    yield "rms", found(x, dy, anynorm.rms_norm_vjp, weight)
    yield "scale", found(x, dy, anynorm.scale_norm_vjp, 3.0)
    x, dy = numbers((3, 33, 2), dtype, 1), numbers((2, 33, 3), dtype, 2).T
    yield "scattered", found(x, dy, anynorm.layer_norm_vjp, numbers(33, dtype, 3), axis=1)
    yield "extreme", found(extreme_rows(33, dtype), numbers((8, 33), dtype, 2), anynorm.layer_norm_vjp, eps=0.0)


def pullbacks_by_moments_side_by_side(dtype):
    """The same of rows side by side, and of short ones."""
    for n, shape in ((33, (33, 41)), (3, (3, 41))):
        x, dy, weight = numbers(shape, dtype, 1), numbers(shape, dtype, 2), numbers(n, dtype, 3)
        given = anynorm.moments(x, axis=0)
        dx, dweight, _, by = anynorm.layer_norm_vjp(x, weight, axis=0, moments=given)[1](dy)
        yield f"{n}", (dx, dweight, by.mean, by.variance)
        zeros = x * 0
        given = anynorm.moments(zeros, axis=0)
        dx, dweight, _, by = anynorm.rms_norm_vjp(zeros, weight, axis=0, eps=0.25, moments=given)[1](dy)
        yield f"zeros {n}", (dx, dweight, by.mean, by.variance)


def extreme_pullbacks_side_by_side(dtype):
    """Rows of extreme magnitude side by side, of sums, by a scale, and by given moments."""
    x, dy = extreme_rows(33, dtype).repeat(2, 0).T.copy(), numbers((33, 16), dtype, 2)
    yield "scale", anynorm.scale_norm_vjp(x, 3.0, axis=0)[1](dy)
    yield "sum", anynorm.add_rms_norm_vjp(x, np.zeros_like(x), numbers(33, dtype, 3), axis=0)[1](dy, dy)[:3]
    given = anynorm.moments(x, axis=0)
    for name, vjp, parameters in (
        ("layer", anynorm.layer_norm_vjp, (numbers(33, dtype, 3),)), ("scale", anynorm.scale_norm_vjp, (3.0,)),
    ):  # fmt: skip
        dx, dweight, *_, by = vjp(x, *parameters, axis=0, eps=0.0, moments=given)[1](dy)
        yield f"{name} by moments", (dx, dweight, by.mean, by.variance)


def broadcast(dtype):
    """Weights that differ from row to row: in turns, and by groups."""
    for name, shape, of_weight, of_bias in (
        ("heads", (17, 2, 33), (1, 2, 33), (1, 2, 33)),
        ("one bias", (34, 2, 33), (1, 2, 33), (33,)),
        ("samples and heads", (2, 3, 2, 33), (2, 1, 2, 33), (2, 1, 1, 33)),
        ("short", (2, 3, 3), (2, 1, 3), None),
        ("samples", (2, 3, 33), (2, 1, 33), (2, 1, 33)),
        ("rows", (3, 33), (3, 33), (3, 33)),
        ("numbers", (5, 33), (5, 1), (1, 1)),
    ):
        x, dy, weight, bias = (
            None if one is None else numbers(one, dtype, i) for i, one in enumerate((shape, shape, of_weight, of_bias))
        )
        for rule, norm in NORMS.items():
            yield f"{rule} {name}", norm(x, weight, bias)
            yield f"{rule} {name}, offset", norm(x, weight, bias, weight_offset=1.0)
            gradients = VJPS[rule](x, weight, bias)[1](dy)
            yield f"{rule} {name}, gradients", tuple(one for one in gradients if one is not None)
    weight = numbers((1, 2, 33), dtype, 1)
    x = np.repeat(extreme_rows(33, dtype)[:, None], 2, axis=1)
    dy, other = numbers(x.shape, dtype, 3), numbers((1, 2, 33), OTHER[dtype], 4)
    yield "extreme", anynorm.layer_norm(np.concatenate([x] * 3), weight)
    yield "extreme gradients", anynorm.layer_norm_vjp(x, other, weight, weight_offset=1.0)[1](dy)
    for at in (0, 1):
        yield f"gradients streamed to {at}", streamed_pullback(anynorm.rms_norm_vjp(dy, weight)[1], dy, at)[:2]
    yield "extreme gradients of a bias", anynorm.rms_norm_vjp(x, None, weight)[1](dy)[::2]
    yield "extreme gradients of rows", anynorm.rms_norm_vjp(x, dy, dy)[1](dy)
    yield "extreme gradients of numbers", anynorm.layer_norm_vjp(x, dy[..., :1], weight[..., :1])[1](dy)
    weight[0, 1, 7] = LARGEST[dtype]
    yield "extreme weight", anynorm.rms_norm(numbers((17, 2, 33), dtype, 2), weight)
