"""The bits of a row depend on that row and the parameters alone: not on where it lies, nor on how it is worked on."""

import itertools
import math

import numpy as np
import pytest

import anynorm
from tests.backends import ALL, TORCH, as_dtype, needs_llvmlite, thorough_but

pytestmark = [needs_llvmlite, pytest.mark.usefixtures("cpu_kernels")]
NORMS = ("layer_norm", "rms_norm", "scale_norm")
FEATURES = (1, 7, 33, 257, 1030)
ROWS = 40

every_dtype = pytest.mark.parametrize("dtype", ALL)
every_norm = pytest.mark.parametrize("norm", NORMS)
every_length = pytest.mark.parametrize("features", FEATURES)


def rows_of(dtype, features, rows=ROWS):
    """Ordinary rows and among them such as need another dtype, or the definition, on the way."""
    rng = np.random.default_rng(features)
    x = rng.standard_normal((rows, features)) * 4 + rng.standard_normal((rows, 1))
    extreme = {"float16": 6e4, "bfloat16": 3e38, "float32": 3e38, "float64": 1e308}[dtype]
    x[3 % rows] = rng.uniform(-1, 1, features) * extreme
    x[17 % rows] = rng.standard_normal(features) / extreme
    x[18 % rows, features // 2] = np.nan
    x[19 % rows] = 0
    return as_dtype(x, dtype)


def parameters_of(norm, dtype, shape):
    rng = np.random.default_rng(1)
    weight, bias = (as_dtype(rng.standard_normal(shape), dtype) for _ in range(2))
    weight[(0,) * weight.ndim] = bias[(0,) * bias.ndim] = -0.0  # so that a sign may be lost there
    return (0.7,) if norm == "scale_norm" else (weight, bias)


def normalize(norm, x, *parameters, **options):
    return getattr(anynorm, norm)(x, *parameters, eps=1e-5, **options)


def assert_bits(got, expected):
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    assert got.tobytes() == expected.tobytes()  # in the order of indices, whatever that of memory


# What lies as it does not in a new array; each holds the same numbers.
VIEWS = {
    "fortran": np.asfortranarray,
    "every second element": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    "every third row": lambda x: np.repeat(x, 3, axis=0)[::3],
    "backwards": lambda x: x[..., ::-1].copy()[..., ::-1],
    "upside down": lambda x: x[::-1].copy()[::-1],
    "both": lambda x: x[::-1, ..., ::-1].copy()[::-1, ..., ::-1],
    "with a gap": lambda x: np.concatenate([x, x[..., :1]], axis=-1)[..., : x.shape[-1]],
    "fortran, with a gap": lambda x: np.asfortranarray(np.concatenate([x, x[:1]]))[: len(x)],
    "at odd addresses": lambda x: odd(x, 1),
    "rows at odd distances": lambda x: in_records(x),
    "transposed, at odd addresses": lambda x: odd(np.ascontiguousarray(x.T), 3).T,
}


def odd(x, offset):
    """A copy whose address is no multiple of anything."""
    memory = np.zeros(x.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64 + offset
    copy = np.frombuffer(memory.data, x.dtype, x.size, offset=start).reshape(x.shape)
    copy[...] = x
    return copy


def in_records(x):
    """Rows with a byte between them."""
    records = np.zeros(len(x), [("flag", np.int8), ("row", x.dtype, x.shape[1:])])
    records["row"] = x
    return records["row"]


@every_dtype
@every_norm
@every_length
def test_the_batch_does_not_matter(features, norm, dtype):
    x = rows_of(dtype, features)
    parameters = parameters_of(norm, dtype, features)
    whole = normalize(norm, x, *parameters)
    for count in (1, 2, 3, 4, 5, 31, 32, 33):
        for first in (0, 1, ROWS - count):
            assert_bits(normalize(norm, x[first : first + count], *parameters), whole[first : first + count])
    for i in (0, 3, 17, 19, ROWS - 1):
        assert_bits(normalize(norm, x[i], *parameters), whole[i])
    assert_bits(normalize(norm, x.reshape(4, 5, 2, -1), *parameters), whole.reshape(4, 5, 2, -1))


@every_dtype
@every_norm
@every_length
@pytest.mark.parametrize("view", VIEWS)
def test_strides_do_not_matter(view, features, norm, dtype):
    x = rows_of(dtype, features)
    parameters = parameters_of(norm, dtype, features)
    expected = normalize(norm, x, *parameters)
    seen = VIEWS[view](x)
    assert_bits(seen, x)
    assert_bits(normalize(norm, seen, *parameters), expected)
    out = VIEWS[view](np.zeros_like(x))
    assert normalize(norm, x, *parameters, out=out) is out
    assert_bits(out, expected)
    assert normalize(norm, seen, *parameters, out=seen) is seen
    assert_bits(seen, expected)


@every_dtype
@every_norm
def test_a_row_that_is_repeated_by_a_stride_of_0(norm, dtype):
    x = rows_of(dtype, 33)
    parameters = parameters_of(norm, dtype, 33)
    for row in (0, 3, 17):
        expected = normalize(norm, x[row], *parameters)
        repeated = normalize(norm, np.broadcast_to(x[row], (50, 33)), *parameters)
        assert_bits(repeated, np.broadcast_to(expected, (50, 33)))
    constant = np.broadcast_to(x[:, :1], (ROWS, 33))
    assert_bits(normalize(norm, constant, *parameters), normalize(norm, constant.copy(), *parameters))


@every_dtype
@every_norm
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(3, 40, 5), (33, 4, 20), (2, 7, 3, 33), (1, 33, 1, 20)], ids=str)
def test_any_axes_give_the_bits_of_the_last_one(shape, order, norm, dtype):
    x = rows_of(dtype, math.prod(shape[1:]), shape[0]).reshape(shape)
    given = np.asarray(x, order=order)
    axes = [axes for count in (1, 2, 3) for axes in itertools.combinations(range(len(shape)), count)]
    for axis in axes:
        lengths = tuple(shape[a] for a in axis)
        features = math.prod(lengths)
        parameters = parameters_of(norm, dtype, lengths)
        flat = (p if norm == "scale_norm" else p.reshape(features) for p in parameters)
        moved = np.moveaxis(x, axis, range(-len(axis), 0))
        expected = normalize(norm, np.ascontiguousarray(moved).reshape(-1, features), *flat)
        got = normalize(norm, given, *parameters, axis=axis)
        got = np.moveaxis(got, axis, range(-len(axis), 0))
        assert_bits(np.ascontiguousarray(got).reshape(-1, features), expected)


@every_norm
@pytest.mark.parametrize("neighbours", [1, 2, 3, 4, 5])
def test_of_few_neighbours_those_along_a_longer_axis_are_taken_side_by_side(neighbours, norm):
    from anynorm._check import check
    from anynorm._definition import norms
    from anynorm._kernels.cpu.launch.layout import lay_out

    rows = rows_of("float64", 3, 40 * neighbours).reshape(40, neighbours, 3)
    x = rows.transpose(2, 0, 1)[:, ::-1].copy()[:, ::-1]  # against the order of memory, so that no two axes are one
    layout = lay_out(check(norms.RMS_NORM, x, None, None, 0, 0.0), 8, None, np.empty_like(x), columns=True)
    assert layout.packed
    assert layout.units == (40 if neighbours >= 4 else neighbours)  # blocks, of 4 or 5 neighbours or of 40
    assert_bits(normalize(norm, x, axis=0).transpose(1, 2, 0), normalize(norm, rows))


# Each other dtype takes five seconds to compile, from the same lines.
@pytest.mark.parametrize("dtype", thorough_but("float32", of=ALL))
@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("view", VIEWS)
def test_a_residual_in_any_layout(view, norm, dtype):
    x, residual = rows_of(dtype, 33), np.flip(rows_of(dtype, 33)).copy()
    parameters = parameters_of(norm, dtype, 33)
    function = getattr(anynorm, f"add_{norm}")
    expected = function(x, residual, *parameters, eps=1e-5)
    outs = VIEWS[view](np.zeros_like(x)), VIEWS[view](np.zeros_like(x))
    for got in (
        function(VIEWS[view](x), residual, *parameters, eps=1e-5),
        function(x, VIEWS[view](residual), *parameters, eps=1e-5),
        function(VIEWS[view](x), VIEWS[view](residual), *parameters, eps=1e-5, out=outs),
    ):
        for one, exact in zip(got, expected, strict=True):
            assert_bits(one, exact)
    for order in (1, -1):  # y and the total in place of x and the residual, or the other way round
        held = VIEWS[view](x), VIEWS[view](residual)
        got = function(*held, *parameters, eps=1e-5, out=held[::order])
        assert got == held[::order] or all(map(np.shares_memory, got, held[::order]))
        for one, exact in zip(got, expected, strict=True):
            assert_bits(one, exact)


@every_dtype
@every_norm
@every_length
def test_numpy_and_torch_give_the_same_bits(features, norm, dtype):
    x = rows_of(dtype, features)
    parameters = parameters_of(norm, dtype, features)
    expected = normalize(norm, x, *parameters)
    tensor = TORCH.make(x)
    held = [p if norm == "scale_norm" else TORCH.make(p) for p in parameters]
    assert_bits(TORCH.read(normalize(norm, tensor, *held)), expected)
    columns = normalize(norm, tensor.T.contiguous(), *held, axis=0)
    assert_bits(np.ascontiguousarray(TORCH.read(columns).T), expected)
    scattered = tensor.repeat_interleave(2, dim=1)[:, ::2]
    assert_bits(TORCH.read(normalize(norm, scattered, *held)), expected)
    normalize(norm, scattered, *held, out=scattered)
    assert_bits(np.ascontiguousarray(TORCH.read(scattered)), expected)


def test_channels_last_tensors():
    import torch

    x = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 24, 5, 7)).astype(np.float32))
    weight, bias = torch.rand(2, 24, generator=torch.Generator().manual_seed(0))
    last = x.contiguous(memory_format=torch.channels_last)
    y = anynorm.layer_norm(last, weight, bias, axis=1)
    assert y.is_contiguous(memory_format=torch.channels_last)
    expected = anynorm.layer_norm(x.movedim(1, -1).contiguous(), weight, bias).movedim(-1, 1)
    assert torch.equal(y, expected)
    assert torch.equal(anynorm.layer_norm(x, weight, bias, axis=1), expected)


@every_dtype
@every_norm
def test_parameters_in_any_layout(norm, dtype):
    if norm == "scale_norm":
        x, scale = rows_of(dtype, 33), as_dtype(0.7, dtype)
        for place in (scale, np.broadcast_to(scale, (3,))[1:2].reshape(()), odd(scale.reshape(1), 3).reshape(())):
            assert_bits(normalize(norm, x, place), normalize(norm, x, float(scale)))
        return
    for features in (33, 1030):
        x = rows_of(dtype, features)
        weight, bias = parameters_of(norm, dtype, features)
        expected = normalize(norm, x, weight, bias)
        for view in ("every second element", "backwards", "at odd addresses"):
            for rows in (x, x[:2]):
                got = normalize(norm, rows, VIEWS[view](weight), VIEWS[view](bias))
                assert_bits(got, expected[: len(rows)])
        constant = np.broadcast_to(as_dtype(0.3, dtype), features)
        assert_bits(normalize(norm, x, constant), normalize(norm, x, constant.copy()))
