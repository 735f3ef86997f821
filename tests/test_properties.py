"""What must hold for every norm on every library, besides being precise."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import anynorm
from anynorm._libraries import library_of
from tests import reference
from tests.backends import ALL, BACKENDS, KERNELS, NUMPY, as_dtype
from tests.strategies import cases, examples, rows
from tests.tolerances import BOUNDS, bounds_of

NORMS = {"layer_norm": anynorm.layer_norm, "rms_norm": anynorm.rms_norm, "scale_norm": anynorm.scale_norm}
every_norm = pytest.mark.parametrize("norm", NORMS)
every_kernel = pytest.mark.parametrize("kernel", KERNELS)
every_backend = pytest.mark.parametrize("backend", BACKENDS)


def run(norm, kernel, x, **options):
    with anynorm.use_kernel(kernel):
        return NORMS[norm](x, **options)


def bits(array):
    return np.ascontiguousarray(array).view(np.uint8).tobytes()


def spread_rows(rng, shape):
    return rng.standard_normal(shape) * 10.0 ** rng.uniform(-3, 3, (shape[0], 1)) + rng.standard_normal((shape[0], 1))


@every_backend
@every_norm
def test_in_equals_out(norm, backend):
    for dtype in backend.dtypes:
        with backend.context():
            x = backend.make(as_dtype(np.ones((2, 3, 4)), dtype))
            y = NORMS[norm](x)
            assert type(y) is type(x)
            assert tuple(y.shape) == (2, 3, 4)
            assert y.dtype == x.dtype
            assert library_of(y) is library_of(x)
            if hasattr(x, "device"):
                assert y.device == x.device


@every_backend
@every_norm
def test_nothing_passed_is_written(norm, backend):
    x = as_dtype(np.random.default_rng(0).standard_normal((4, 7)), "float32")
    weight = as_dtype(np.random.default_rng(1).standard_normal(7), "float32")
    with backend.context():
        held, held_weight = backend.make(x), backend.make(weight)
        if norm == "scale_norm":
            NORMS[norm](held)
        else:
            NORMS[norm](held, held_weight, held_weight, weight_offset=1.0)
        assert bits(backend.read(held)) == bits(x)
        assert bits(backend.read(held_weight)) == bits(weight)


@every_backend
@given(seed=st.integers(0, 2**32 - 1), features=st.sampled_from([2, 33, 64]))
@examples(10)
def test_layer_norm_gives_mean_0_and_variance_1(backend, seed, features):
    x = as_dtype(spread_rows(np.random.default_rng(seed), (3, features)), "float32")
    with backend.context():
        y = backend.read(anynorm.layer_norm(backend.make(x), eps=0.0)).astype(np.float64)
    # Each result carries up to the bound's share of an ulp at the largest of a row, sqrt(features).
    slack = bounds_of(backend.name)["float32"] * 2.0**-23 * np.sqrt(features)
    assert np.abs(y.mean(axis=1)).max() <= slack
    assert np.abs((y**2).mean(axis=1) - 1).max() <= 4 * slack


@every_backend
@given(seed=st.integers(0, 2**32 - 1), features=st.sampled_from([2, 33, 64]))
@examples(10)
def test_rms_norm_and_scale_norm_give_length_1(backend, seed, features):
    x = as_dtype(spread_rows(np.random.default_rng(seed), (3, features)), "float32")
    with backend.context():
        squares = backend.read(anynorm.rms_norm(backend.make(x), eps=0.0)).astype(np.float64) ** 2
        lengths = (backend.read(anynorm.scale_norm(backend.make(x), 2.0, eps=0.0)).astype(np.float64) ** 2).sum(axis=1)
    slack = 2 * bounds_of(backend.name)["float32"] * 2.0**-23
    assert np.abs(squares.mean(axis=1) - 1).max() <= slack
    assert np.abs(lengths / 4 - 1).max() <= slack


@every_kernel
@every_norm
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(data=st.data(), power=st.integers(-20, 20))
@examples(40)
def test_scaling_a_row_scales_eps_by_the_square(norm, kernel, dtype, data, power):
    # By a power of two nothing rounds differently, so the bits are the same: norm(c x, c^2 eps) = norm(x, eps).
    x = as_dtype(spread_rows(np.random.default_rng(data.draw(st.integers(0, 2**32 - 1))), (2, 33)), dtype)
    eps = data.draw(st.sampled_from([0.0, 1e-5, 1.0]))
    scaled_eps = eps * 2.0 ** (power if norm == "scale_norm" else 2 * power)
    y = run(norm, kernel, x, eps=eps)
    scaled = run(norm, kernel, np.ldexp(x, power), eps=scaled_eps)
    assert bits(y) == bits(scaled)


@every_kernel
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(data=st.data())
@examples(40)
def test_shifting_a_row_changes_nothing_in_layer_norm(kernel, dtype, data):
    # Small integers and a power of two add without rounding, so exact shift invariance is owed up to the bound.
    seed, power = data.draw(st.integers(0, 2**32 - 1)), data.draw(st.integers(0, 18))
    x = np.random.default_rng(seed).integers(-16, 17, (2, 33)).astype(dtype)
    exact = [reference.layer_norm(row) for row in x]
    shifted = run("layer_norm", kernel, x + np.asarray(2.0**power, dtype))
    for row, expected in zip(shifted, exact, strict=True):
        assert max(reference.error_in_ulp(v, e, dtype) for v, e in zip(row, expected, strict=True)) <= BOUNDS[dtype]


@every_kernel
@every_norm
@pytest.mark.parametrize("dtype", ALL)
@given(data=st.data())
@examples(40)
def test_bits_of_a_row_depend_on_the_row_alone(norm, kernel, dtype, data):
    row = data.draw(rows(dtype, features=(1, 5, 64, 768)))[0][:1]
    alone = run(norm, kernel, row)
    batch = np.repeat(as_dtype(np.random.default_rng(0).standard_normal((1, row.shape[1])), dtype), 300, axis=0)
    for place in (0, 1, 171, 299):
        batch[place] = row[0]
        assert bits(run(norm, kernel, batch)[place]) == bits(alone[0])
    in_place = batch.copy()
    run(norm, kernel, in_place, out=in_place)
    assert bits(in_place[299]) == bits(alone[0])
    assert bits(run(norm, kernel, batch.reshape(3, 100, -1))[2, 99]) == bits(alone[0])


@every_backend
@every_norm
def test_rows_never_touch_each_other(norm, backend):
    x = as_dtype(np.random.default_rng(2).standard_normal((5, 7)), "float32")
    spoiled = x.copy()
    spoiled[1, 3], spoiled[3, 0], spoiled[4] = np.nan, np.inf, 1e38
    with backend.context():
        clean = backend.read(NORMS[norm](backend.make(x)))
        mixed = backend.read(NORMS[norm](backend.make(spoiled)))
    assert bits(clean[[0, 2]]) == bits(mixed[[0, 2]])
    assert np.isnan(mixed[[1, 3]]).all()


@given(case=cases("float32"))
@examples(30)
def test_the_definition_on_numpy_and_torch_agrees_to_a_rounding(case):
    # Sums run in another order, so float64 statistics may differ in their last bit, and float32 results by one ulp.
    # Through the kernel they are the same bits, see test_kernels_layout.py.
    import torch

    arguments = [None if a is None else a for a in (case.x, case.weight, case.bias)]
    with anynorm.use_kernel("definition"):
        ours = anynorm.layer_norm(*arguments, eps=case.eps)
        theirs = anynorm.layer_norm(*(None if a is None else torch.from_numpy(a) for a in arguments), eps=case.eps)
    np.testing.assert_array_max_ulp(ours, theirs.numpy(), maxulp=1)


def test_strided_read_only_and_mapped_arrays(tmp_path):
    base = np.random.default_rng(4).standard_normal((12, 40)).astype(np.float32)
    np.save(tmp_path / "x.npy", base)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    frozen = base.copy()
    frozen.flags.writeable = False
    for view in (base[::-1], base[:, ::-1], base[::2, ::3], base.T, base[3:4], np.asfortranarray(base), mapped, frozen):
        y = anynorm.layer_norm(view)
        assert type(y) is np.ndarray
        expected = anynorm.layer_norm(np.array(view, order="C"))
        np.testing.assert_array_max_ulp(y, expected, maxulp=1)


@pytest.mark.parametrize("dtype", [">f4", ">f8", ">f2"])
def test_other_byte_orders_keep_their_dtype(dtype):
    x = np.random.default_rng(4).standard_normal((3, 40)).astype(dtype)
    y = anynorm.rms_norm(x, np.ones(40, ">f4"))
    assert y.dtype == np.dtype(dtype)
    native = run("rms_norm", "definition", x.astype(x.dtype.newbyteorder("=")))
    assert bits(y.astype(y.dtype.newbyteorder("="))) == bits(native)
    for count in (3, 4000):
        y, total = anynorm.add_layer_norm(*[np.ones((count, 40), dtype)] * 2)
        assert y.dtype == total.dtype == np.dtype(dtype)


@every_kernel
@every_norm
def test_large_arrays_in_blocks_give_the_bits_of_single_rows(norm, kernel):
    x = np.random.default_rng(7).standard_normal((700, 1000)).astype(np.float32)
    y = run(norm, kernel, x)
    for row in (0, 130, 131, 262, 699):
        assert bits(y[row]) == bits(run(norm, kernel, x[row]))
    assert NUMPY.read(y).flags.c_contiguous
