"""Small pullbacks of NumPy arrays take the fast path from the second on: the bits of the slow one."""

import gc
import threading
import weakref

import numpy as np
import pytest

import anynorm
from anynorm._kernels.cpu.fast_path import kept
from tests.backends import ALL, as_dtype, needs_llvmlite
from tests.fast_path import checks, forced
from tests.tolerances import KERNEL_GRADIENT_BOUNDS, assert_exact, gradient_of_rows

pytestmark = needs_llvmlite
NORMS = ("layer_norm", "rms_norm", "scale_norm")
every_norm = pytest.mark.parametrize("norm", NORMS)
# Shapes and axes: rows one after the other, one that is short, rows side by side, and scattered ones.
SHAPES = [
    ((6, 20), -1),
    ((3,), 0),
    ((40, 3), 1),
    ((20, 6), 0),
    ((20, 60), -2),
    ((4, 5, 6), (0, 2)),
    ((4, 5, 6), [2, 1]),
]


def numbers(shape, dtype="float32", seed=0):
    return as_dtype(np.random.default_rng(seed).standard_normal(shape), dtype)


def derived(norm, x, *parameters, dy, **options):
    """The result and its gradients."""
    y, pullback = getattr(anynorm, f"{norm}_vjp")(x, *parameters, **options)
    return y, *pullback(dy)


def takes_fast_path(*given, **options):
    """Whether neither the call nor its pullback is checked; calls like it were made before."""
    with checks() as seen:
        derived(*given, **options)
    return not seen


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert (type(one), one.dtype, one.shape, one.strides) == (
                np.ndarray,
                other.dtype,
                other.shape,
                other.strides,
            )
            assert one.tobytes() == other.tobytes()


def parameters_of(norm, shape, axis, dtype):
    """What goes with an x: kinds of weights and biases, or scales."""
    if norm == "scale_norm":
        return [(), (0.7,), (np.asarray(-1.5, dtype=numbers(1, dtype).dtype),), (np.asarray(2.0),)]
    axes = [axis] if isinstance(axis, int) else axis
    row = [shape[one] for one in sorted(one % len(shape) for one in axes)]
    weight, bias, wide = numbers(row, dtype, 2), numbers(row, dtype, 3), numbers(row, "float64", 4)
    return [(), (weight,), (weight, bias), (None, bias), (wide, bias)]


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=str)
@every_norm
def test_the_bits_of_the_slow_path(norm, shape, axis, dtype):
    x, dy = numbers(shape, dtype), numbers(shape, dtype, 1)
    options = {"axis": axis, "eps": 0.25}
    for parameters in parameters_of(norm, shape, axis, dtype):
        for held, of in ((x, dy), (np.asfortranarray(x), dy), (x, dy[::-1]), (np.repeat(x, 2, axis=0)[::2], dy)):
            given = norm, held, *parameters
            expected = forced(derived, *given, dy=of, **options)
            derived(*given, dy=of, **options)
            assert takes_fast_path(*given, dy=of, **options)
            first = derived(*given, dy=of, **options)
            assert_same(first, expected)
            derived(norm, held * held, *parameters, dy=of, **options)  # which writes to no earlier result
            assert_same(first, expected)


@pytest.mark.parametrize("dtype", ALL)
def test_results_are_those_of_exact_arithmetic(dtype):
    x, dy, weight = (numbers(shape, dtype, seed) for seed, shape in enumerate(((5, 20), (5, 20), (20,))))
    for _ in range(3):
        _, dx, dweight, _ = derived("layer_norm", x, weight, dy=dy)
    assert takes_fast_path("layer_norm", x, weight, dy=dy)
    exact = gradient_of_rows("layer_norm", x, dy, dtype, by_kernel=True, weight=weight)
    for got, expected, of in zip((dx, dweight), exact, ("dx", "dw"), strict=False):
        said = {"backend": "numpy", "dtype": dtype, "norm": f"layer_norm {of}", "bounds": KERNEL_GRADIENT_BOUNDS}
        assert_exact(got.reshape(-1, 20), expected, **said)


@every_norm
def test_from_which_call_on(norm):
    """The first call leaves its kernel, the first pullback a task; a pullback may be called many times."""
    kept.table.clear()
    x = numbers((6, 21))
    getattr(anynorm, norm)(x)
    with checks() as seen:
        pullback = getattr(anynorm, f"{norm}_vjp")(x)[1]
        assert seen == []
        pullback(x)
        assert len(seen) == 2  # of the call, and of dy
        pullback(x)
        assert len(seen) == 2
    with anynorm.use_kernel("cpu"):
        pullback = getattr(anynorm, f"{norm}_vjp")(x)[1]
    with checks() as seen:
        pullback(x)
    assert seen == []


def test_parameters_and_numbers_are_read_anew():
    x, dy, weight = numbers((6, 20)), numbers((6, 20), seed=1), numbers(20)
    for factor in (1.0, -2.0, 0.5):
        weight *= np.float32(factor)
        for options in ({"eps": 1.0}, {"eps": 0.0}, {"weight_offset": 1.0}, {"weight_offset": 2.0}):
            expected = forced(derived, "layer_norm", x, weight, dy=dy, **options)
            for _ in range(3):
                assert_same(derived("layer_norm", x, weight, dy=dy, **options), expected)
    scale = np.asarray(1.0, np.float32)
    for value in (1.0, 3.0, -0.0):
        scale[...] = value
        for given in (scale, value):
            expected = forced(derived, "scale_norm", x, given, dy=dy)
            for _ in range(3):
                found = derived("scale_norm", x, given, dy=dy)
                assert_same(found, expected)
                assert (np.signbit(found[1]) == np.signbit(expected[1])).all()


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("axis", [0, 1])
def test_rows_of_any_magnitude(axis, dtype):
    """Among ordinary ones, also where the call that is remembered was of ordinary ones alone."""
    largest = {"float16": 6e4, "bfloat16": 3e38, "float32": 3e38, "float64": 1e308}[dtype]
    x, dy = np.random.default_rng(0).standard_normal((2, 20, 20))
    mixed = x.copy()
    mixed[3], mixed[:, 7], mixed[5, 5] = mixed[3] * (largest / 8), mixed[:, 7] / largest, np.nan
    dy = as_dtype(dy, dtype)
    for held in (as_dtype(one, dtype) for one in (x, mixed, x)):
        expected = forced(derived, "layer_norm", held, dy=dy, axis=axis)
        for _ in range(2):
            assert_same(derived("layer_norm", held, dy=dy, axis=axis), expected)
    assert takes_fast_path("layer_norm", as_dtype(mixed, dtype), dy=dy, axis=axis)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("rows", [127, 128])
def test_those_that_threads_share(rows, threads):
    """512 KB and more, which the program does not run."""
    x, dy, weight = numbers((rows, 1024)), numbers((rows, 1024), seed=1), numbers(1024)
    expected = forced(derived, "layer_norm", x, weight, dy=dy)
    anynorm.set_threads(threads)
    try:
        for _ in range(2):
            assert_same(derived("layer_norm", x, weight, dy=dy), expected)
        with anynorm.use_kernel("cpu"):
            _, pullback = anynorm.layer_norm_vjp(x, weight)
        with checks() as seen:
            assert_same(pullback(dy), expected[1:3] + (None,))
        assert seen == []
        for wrong in (np.ma.masked_array(dy), dy.view(np.recarray)):
            with pytest.raises(TypeError, match="dy must"):
                pullback(wrong)
    finally:
        anynorm.set_threads(None)


@every_norm
def test_arguments_are_checked_as_strictly(norm):
    x, dy = numbers((6, 20)), numbers((6, 20), seed=1)
    for _ in range(2):
        derived(norm, x, dy=dy)
    pullback = getattr(anynorm, f"{norm}_vjp")(x)[1]
    wrong = [
        (ValueError, dy[1:]), (ValueError, dy[None]), (ValueError, dy[:, :-1]), (ValueError, dy.astype(np.float64)),
        (TypeError, dy.astype(int)), (TypeError, dy.tolist()), (TypeError, None), (TypeError, 1.0),
        (TypeError, np.ma.masked_array(dy)), (TypeError, dy.view(np.recarray)),
    ]  # fmt: skip
    for error, one in wrong:
        with pytest.raises(error, match="dy must"):
            pullback(one)
    for error, options in ((ValueError, {"eps": -1.0}), (TypeError, {"eps": True}), (ValueError, {"axis": 2})):
        with pytest.raises(error):
            derived(norm, x, dy=dy, **options)
    if norm != "scale_norm":
        for error, weight in ((ValueError, numbers(19)), (TypeError, numbers(20).tolist()), (TypeError, 1.0)):
            with pytest.raises(error, match="weight must"):
                derived(norm, x, weight, dy=dy)


@pytest.mark.filterwarnings("ignore:Setting the:DeprecationWarning")  # NumPy 2.5
def test_arrays_that_are_not_what_they_were():
    x, dy, weight = numbers((6, 20)), numbers((6, 20), seed=1), numbers(20)
    derived("layer_norm", x, weight, dy=dy)
    _, pullback = anynorm.layer_norm_vjp(x, weight)
    weight.shape = (4, 5)
    with pytest.raises(ValueError, match="weight must"):
        pullback(dy)
    weight.shape = (20,)
    x.shape = (20, 6)
    with pytest.raises(ValueError, match="must"):
        pullback(dy)


def test_what_is_unlike_takes_the_slow_path():
    x, dy, weight = numbers((6, 20)), numbers((6, 20), seed=1), numbers(20)
    derived("layer_norm", x, weight, dy=dy)
    assert takes_fast_path("layer_norm", x, weight, dy=dy)
    for other in (numbers((7, 20)), np.asfortranarray(x), x.astype(np.float64), x[None]):
        assert not takes_fast_path("layer_norm", other, weight, dy=np.asfortranarray(other))
    for other in (np.repeat(weight, 2)[::2], weight.astype(np.float16), weight.astype(">f4")):
        expected = forced(derived, "layer_norm", x, np.asarray(other, other.dtype.newbyteorder("=")).copy(), dy=dy)
        for _ in range(2):  # a copy of such a weight is read, whose address is that of one call
            np.testing.assert_allclose(derived("layer_norm", x, other, dy=dy)[1], expected[1], rtol=1e-5, atol=1e-6)
    assert not takes_fast_path("layer_norm", x, np.repeat(weight, 2)[::2], dy=dy)
    assert not takes_fast_path("scale_norm", x, 2, dy=dy)
    with anynorm.use_kernel("definition"):
        assert not takes_fast_path("layer_norm", x, weight, dy=dy)


def test_maps_of_files(tmp_path):
    given = [numbers((6, 20)), numbers((6, 20), seed=1), numbers(20)]
    expected = forced(derived, "layer_norm", given[0], given[2], given[2], dy=given[1])
    for place in (1, 2):
        np.save(tmp_path / "array.npy", given[place])
        held = given.copy()
        held[place] = np.load(tmp_path / "array.npy", mmap_mode="r")
        for _ in range(3):
            assert_same(derived("layer_norm", held[0], held[2], held[2], dy=held[1]), expected)


def test_no_more_is_kept_than_there_is_room_for(monkeypatch):
    kept.table.clear()
    monkeypatch.setattr(kept, "MOST_KEPT", 2)
    for features, count in ((20, 1), (21, 2), (22, 1)):
        x = numbers((3, features))
        derived("rms_norm", x, dy=x)
        assert len(kept.table) == count
        assert takes_fast_path("rms_norm", x, dy=x)


def test_no_array_lives_on():
    x, weight = numbers((6, 20)), numbers(20)
    for _ in range(2):
        found = derived("layer_norm", x, weight, dy=x)
    held = [weakref.ref(one) for one in (x, weight, *found[:3])]
    del x, weight, found
    gc.collect()
    assert [one() for one in held] == [None] * 5


def test_threads_that_drop_what_others_go_by(monkeypatch):
    monkeypatch.setattr(kept, "MOST_KEPT", 2)
    held = [numbers((9, features)) for features in range(20, 26)]
    expected, wrong = [forced(derived, "layer_norm", x, x[0], dy=x) for x in held], []

    def work(first):
        for turn in range(200):
            place = (first + turn) % len(held)
            found = derived("layer_norm", held[place], held[place][0], dy=held[place])
            wrong.extend(i for i in range(3) if found[i].tobytes() != expected[place][i].tobytes())

    workers = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for one in workers:
        one.start()
    for one in workers:
        one.join()
    assert not wrong
