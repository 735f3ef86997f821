"""Small calls take the fast path: the same bits, and arguments that are checked as strictly."""

import gc
import weakref

import numpy as np
import pytest

import anynorm
from tests.backends import ALL, NUMPY, TORCH, as_dtype, needs_llvmlite
from tests.fast_path import takes_fast_path

pytestmark = needs_llvmlite
NORMS = ("layer_norm", "rms_norm", "scale_norm")
every_dtype = pytest.mark.parametrize("dtype", ALL)
every_norm = pytest.mark.parametrize("norm", NORMS)


SHAPES = ((3, 33), (33,), (33,))  # of x, weight and bias


def case(norm, dtype, shape=(6, 33)):
    rng = np.random.default_rng(0)
    x, weight, bias = (as_dtype(rng.standard_normal(s), dtype) for s in (shape, shape[-1], shape[-1]))
    return (x, 0.7) if norm == "scale_norm" else (x, weight, bias)


def forced(norm, *arguments, kernel="cpu", **options):
    """The slow path, which is always taken where a kernel is forced."""
    with anynorm.use_kernel(kernel):
        return getattr(anynorm, norm)(*arguments, **options)


def assert_twice(norm, *arguments, **options):
    function, expected = getattr(anynorm, norm), forced(norm, *arguments, **options)
    for _ in range(3):
        assert function(*arguments, **options).tobytes() == expected.tobytes()


@every_dtype
@every_norm
def test_the_fast_path_gives_the_bits_of_the_first_call(norm, dtype):
    arguments = case(norm, dtype)
    assert_twice(norm, *arguments)
    assert takes_fast_path(getattr(anynorm, norm), *arguments)
    for _ in range(3):  # other arrays, batches and shapes of the same kind
        for shape in ((1, 33), (33,), (2, 3, 33), (200, 33), (0, 33), (2, 0, 33)):
            x = as_dtype(np.random.default_rng(1).standard_normal(shape) * 1e4, dtype)
            got = getattr(anynorm, norm)(x, *arguments[1:])
            assert got.tobytes() == forced(norm, x, *arguments[1:], kernel="cpu" if x.size else "definition").tobytes()
            assert (got.shape, got.dtype) == (x.shape, x.dtype)


@every_dtype
@every_norm
def test_the_fast_path_with_extreme_rows(norm, dtype):
    arguments = case(norm, dtype)
    getattr(anynorm, norm)(*arguments)
    largest = {"float16": 6e4, "bfloat16": 3e38, "float32": 3e38, "float64": 1e308}[dtype]
    x = arguments[0].astype(np.float64)
    for place in (0, 3, 5):
        extreme = x.copy()
        extreme[place] *= largest / 8
        extreme[(place + 1) % 6] /= largest
        extreme[(place + 2) % 6, 3] = np.inf
        assert_twice(norm, as_dtype(extreme, dtype), *arguments[1:])
    if norm != "scale_norm":
        weight = as_dtype(np.full(33, largest), dtype)
        assert_twice(norm, *arguments[:1], weight, *arguments[2:])


@every_dtype
@pytest.mark.parametrize("other", ALL)
def test_each_kind_of_parameters_is_its_own(other, dtype):
    x, weight, bias = case("layer_norm", dtype)
    alike = [weight, bias, as_dtype(weight, other), as_dtype(bias, other), None]
    for w in alike:
        for b in alike:
            for offset in (0.0, 1.0, -0.0) if w is not None else (0.0,):
                assert_twice("layer_norm", x, w, b, weight_offset=offset)
                assert_twice("rms_norm", x, w, b, weight_offset=offset, eps=1e-5)
    for eps in (0.0, -0.0, 1e-5, 1e-300, 1.0, 1, np.float64(1.0), np.float32(1.0)):
        assert_twice("layer_norm", x, eps=eps)


def test_scales_of_either_zero_differ():
    x = np.ones((2, 3), np.float32)
    for scale in (0.0, -0.0, 0.0, 1.0, -1.0, -0.0):
        got = anynorm.scale_norm(x, scale)
        assert (np.signbit(got) == np.signbit(scale)).all()


def test_a_scale_in_an_array_is_read_anew():
    x, scale = np.ones((2, 4), np.float32), np.asarray(1.0, np.float32)
    for value in (1.0, 2.0, -3.0):
        scale[...] = value
        assert (anynorm.scale_norm(x, scale) == value / 2).all()


def test_parameters_are_read_anew():
    x, weight, bias = case("layer_norm", "float32")
    anynorm.layer_norm(x, weight, bias)
    weight *= 2
    bias += 1
    assert_twice("layer_norm", x, weight, bias)


@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
def test_arguments_are_checked_as_strictly(norm):
    x, weight, bias = case(norm, "float16")
    function = getattr(anynorm, norm)
    for _ in range(2):
        function(x, weight, bias, eps=1.0, weight_offset=1.0)
        function(x, weight, eps=1.0, weight_offset=1.0)
        function(x, eps=1.0)
    assert takes_fast_path(function, x, weight, bias, eps=1.0, weight_offset=1.0)
    wrong = [
        (TypeError, (x, weight, bias), {"eps": True}),
        (TypeError, (x, weight, bias), {"eps": "1.0"}),
        (TypeError, (x, weight, bias), {"eps": np.asarray(1.0)}),
        (ValueError, (x, weight, bias), {"eps": -1.0}),
        (ValueError, (x, weight, bias), {"eps": float("nan")}),
        (TypeError, (x, weight, bias), {"eps": 1.0, "weight_offset": True}),
        (TypeError, (x, weight, bias), {"eps": 1.0, "weight_offset": [1.0]}),
        (ValueError, (x, weight, bias), {"eps": 1.0, "weight_offset": float("inf")}),
        (ValueError, (x,), {"eps": 1.0, "weight_offset": 1.0}),
        (ValueError, (x, weight[:-1], bias), {"eps": 1.0}),
        (ValueError, (x, weight[None, None], bias), {"eps": 1.0}),
        (ValueError, (x, weight, bias[1:]), {"eps": 1.0}),
        (ValueError, (x, np.ones((), np.float32)), {"eps": 1.0}),
        (ValueError, (x[:, :-1], weight, bias), {"eps": 1.0}),
        (ValueError, (x[0, 0, ...], None), {"eps": 1.0}),
        (TypeError, (x, weight.tolist(), bias), {"eps": 1.0}),
        (TypeError, (x, 1.0), {"eps": 1.0}),
        (TypeError, (x, weight, 1.0), {"eps": 1.0}),
        (TypeError, (x, weight.astype(np.int32), bias), {"eps": 1.0}),
        (TypeError, (x.astype(np.int32), weight, bias), {"eps": 1.0}),
        (TypeError, (x.astype(np.complex64), weight, bias), {"eps": 1.0}),
        (TypeError, (np.ma.masked_array(x), weight, bias), {"eps": 1.0}),
        (TypeError, (x, np.ma.masked_array(weight), bias), {"eps": 1.0}),
        (TypeError, (x.view(np.recarray), weight, bias), {"eps": 1.0}),
        (TypeError, (x, weight.view(np.recarray), bias), {"eps": 1.0}),
        (TypeError, (x.tolist(), weight, bias), {"eps": 1.0}),
        (TypeError, (x, weight, bias), {"eps": 1.0, "axis": 1.0}),
        (ValueError, (x, weight, bias), {"eps": 1.0, "axis": 2}),
    ]
    for error, arguments, options in wrong:
        with pytest.raises(error):
            function(*arguments, **options)
    for error, scale in ((TypeError, True), (TypeError, "1"), (ValueError, float("nan")), (ValueError, np.ones(1))):
        anynorm.scale_norm(x, 1.0)
        with pytest.raises(error):
            anynorm.scale_norm(x, scale)


@every_norm
def test_what_lies_otherwise_takes_the_slow_path(norm):
    arguments = case(norm, "float32")
    x = arguments[0]
    getattr(anynorm, norm)(*arguments)
    frozen = x.copy()
    frozen.flags.writeable = False
    for held in (np.asfortranarray(x), x[::-1], x[:, ::-1], np.repeat(x, 2, axis=1)[:, ::2], frozen):
        assert_twice(norm, held, *arguments[1:])
    swapped = getattr(anynorm, norm)(x.astype(">f4"), *arguments[1:])
    assert swapped.dtype == np.dtype(">f4")
    if norm != "scale_norm":
        for w, b in ((np.repeat(arguments[1], 2)[::2], arguments[2]), (arguments[1], arguments[2][::-1])):
            assert_twice(norm, x, w, b)
        big = getattr(anynorm, norm)(x, arguments[1].astype(">f4"), arguments[2])
        # Through the definition, which rounds once: 2 units of what lies between 4 and 8, as the largest do.
        np.testing.assert_allclose(big, getattr(anynorm, norm)(*arguments), rtol=0, atol=2**-20)


def test_a_forced_kernel_is_honoured(monkeypatch):
    from anynorm import _choose, _forced

    x = np.random.default_rng(0).standard_normal((4, 40)).astype(np.float32)
    anynorm.layer_norm(x)
    ran = []
    kernels = [k._replace(run=lambda call, k=k: ran.append(k.name) or k.run(call)) for k in _choose.KERNELS]
    monkeypatch.setattr(_choose, "KERNELS", tuple(kernels))
    with anynorm.use_kernel("definition"):
        anynorm.layer_norm(x)
    assert ran == ["definition"]
    anynorm.layer_norm(x)
    assert ran == ["definition"]  # the fast path again, which asks nobody
    monkeypatch.setattr(_forced, "_forced_everywhere", "definition")
    anynorm.layer_norm(x)
    assert ran == ["definition", "definition"]


@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_out_that_overlaps_is_refused_in_later_calls_too(place):
    arguments = [np.random.default_rng(i).standard_normal(shape).astype(np.float32) for i, shape in enumerate(SHAPES)]
    for _ in range(3):
        anynorm.layer_norm(*arguments, out=np.empty_like(arguments[0]))
    assert takes_fast_path(anynorm.layer_norm, *arguments, out=np.empty_like(arguments[0]))
    memory = np.ones(200, np.float32)
    size = arguments[place].size
    for first, out_first in ((0, size - 1), (98, 0)):  # they share one element
        arguments[place] = memory[first : first + size].reshape(SHAPES[place])
        for _ in range(2):
            with pytest.raises(ValueError, match="overlap"):
                anynorm.layer_norm(*arguments, out=memory[out_first : out_first + 99].reshape(SHAPES[0]))
            assert (memory == 1).all()


def test_nothing_lives_on_because_it_was_remembered():
    class Owner(np.ndarray):
        pass

    owners = [np.ones(33, np.float32).view(Owner) for _ in range(3)]
    dead = [weakref.ref(owner) for owner in owners]
    arrays = [np.asarray(owner) for owner in owners]  # each holds its owner
    assert all(type(array) is np.ndarray for array in arrays)
    for _ in range(2):
        anynorm.layer_norm(arrays[0][None], arrays[1], arrays[2])
    del owners, arrays
    gc.collect()
    assert [reference() for reference in dead] == [None] * 3


def test_what_cannot_be_a_key_is_told_as_before():
    x = np.ones((2, 3), np.float32)
    for value in ([1.0], {}, memoryview(np.ones(3))):  # of which some raise TypeError, and some ValueError
        for _ in range(2):
            anynorm.layer_norm(x)
            with pytest.raises(TypeError, match="bias must be a NumPy array like x, got"):
                anynorm.layer_norm(x, bias=value)


@pytest.mark.parametrize("backend", [NUMPY, TORCH], ids=str)
def test_no_array_lives_on(backend):
    x, weight = (backend.make(np.ones(shape, np.float32)) for shape in ((2, 11), (11,)))
    dead = [weakref.ref(x), weakref.ref(weight)]
    y = anynorm.layer_norm(x, weight)
    dead.append(weakref.ref(y))
    del x, weight, y
    gc.collect()
    assert [one() for one in dead] == [None] * 3


@pytest.mark.parametrize("axis", [-1, 0])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_that_float32_cannot_hold_take_it_once_such_a_row_was_met(dtype, axis):
    x, residual = as_dtype(np.random.default_rng(0).standard_normal((2, 40, 40)), dtype)
    rows = x.T if axis == 0 else x
    for row in (0, 17, 39):
        rows[row] *= as_dtype(1e30, dtype)
    for norm, given in (("layer_norm", (x,)), ("rms_norm", (x,)), ("add_layer_norm", (x, residual))):
        function = getattr(anynorm, norm)
        function(*given, axis=axis)
        expected = forced(norm, *given, axis=axis)
        assert takes_fast_path(function, *given, axis=axis)
        for one, other in zip(function(*given, axis=axis), expected, strict=True):
            assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("place", range(5), ids=["x", "residual", "weight", "bias", "total"])
def test_maps_of_files_take_it(place, tmp_path):
    """All but x, whose type is asked first. A new result is an ndarray in any case."""
    given = [*np.random.default_rng(0).standard_normal((2, 3, 33)), *np.random.default_rng(1).standard_normal((2, 33))]
    given.append(np.empty_like(given[0]))
    expected = anynorm.add_layer_norm(*given[:4])
    np.save(tmp_path / "array.npy", given[place])
    given[place] = mapped = np.load(tmp_path / "array.npy", mmap_mode="r+")
    for out in (None, (np.empty_like(expected[0]), given[4])):
        found = anynorm.add_layer_norm(*given[:4], out=out)
        assert takes_fast_path(anynorm.add_layer_norm, *given[:4], out=out) == (place != 0)
        for one, other in zip(found, expected, strict=True):
            assert one.tobytes() == other.tobytes()
            assert type(one) is np.ndarray or one is mapped
    np.save(tmp_path / "frozen.npy", expected[0])
    with pytest.raises(ValueError, match="read-only"):
        anynorm.layer_norm(expected[0], out=np.load(tmp_path / "frozen.npy", mmap_mode="r"))
