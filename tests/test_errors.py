"""Rules about arguments, and the words for a breach; that every argument has such words is in test_messages.py."""

import math
from fractions import Fraction
from types import SimpleNamespace

import array_api_strict
import numpy as np
import pytest

import anynorm
from anynorm import _wording
from anynorm._libraries import REAL_DTYPES
from tests.backends import CPU_BACKENDS, as_dtype

X = np.ones((2, 3, 4), np.float32)
WEIGHT = np.ones(4, np.float32)


def refuses(error, words, call, *args, **kwargs):
    with pytest.raises(error) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    for word in words if isinstance(words, tuple) else (words,):
        assert word in message, message
    assert "\n" not in message


class FakeFrame:
    """Stands in for a data frame; only the name of its module counts."""


def frame_of(module):
    return type("DataFrame", (FakeFrame,), {"__module__": f"{module}.core"})()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([1.0, 2.0], ("x must be an array, got the list [1.0, 2.0]; pass numpy.asarray(x, dtype=numpy.float32)",)),
        ((1.0,), "numpy.asarray"),
        (3.0, "numpy.asarray"),
        (np.float32(3), "numpy.asarray"),
        (None, ("got None", "pass an array of NumPy, CuPy")),
        ("text", "got the str 'text'"),
        (np.ma.masked_array([1.0, 2.0], [True, False]), ("MaskedArray", "x.filled(value)")),
        (np.ones(2).view(np.recarray), ("recarray", "numpy.asarray(x)")),
        (frame_of("pandas"), ("a pandas DataFrame", "x.to_numpy()")),
        (frame_of("polars"), "x.to_numpy()"),
        (frame_of("pyarrow"), "x.to_numpy()"),
        (frame_of("xarray"), ("an xarray DataFrame", "pass x.data")),
        (frame_of("scipy"), "x.toarray()"),
    ],
)
def test_what_is_no_array(value, words):
    for norm in (anynorm.layer_norm, anynorm.rms_norm, anynorm.scale_norm, anynorm.moments, anynorm.explain):
        refuses(TypeError, words, norm, value)


@pytest.mark.parametrize(
    ("dtype", "words"),
    [
        (bool, ("a bool NumPy array of shape (3,)", "x.astype(numpy.float32)")),
        (np.int8, ("an int8 NumPy array", "x.astype(numpy.float32)")),
        (np.complex64, "x.real or abs(x)"),
        ([("a", "f4"), ("b", "f4")], "structured_to_unstructured(x)"),
        ("V2", "x.view(ml_dtypes.bfloat16)"),
    ],
)
def test_dtypes_that_are_not_real_floats(dtype, words):
    must = "x must have one of the real floating dtypes float16, bfloat16, float32 and float64"
    refuses(TypeError, must, anynorm.rms_norm, np.zeros(3, dtype))
    refuses(TypeError, words, anynorm.rms_norm, np.zeros(3, dtype))


def test_dtypes_of_other_libraries_that_are_not_real_floats():
    import torch

    integers = array_api_strict.ones(3, dtype=array_api_strict.int32)
    refuses(TypeError, ("an int32 torch tensor", "x.to(torch.float32)"), anynorm.rms_norm, torch.ones(3).int())
    refuses(TypeError, "x converted to float32", anynorm.rms_norm, integers)
    assert _wording._REAL_DTYPES.replace(" and ", ", ").split(", ") == list(REAL_DTYPES)


def test_long_double_is_refused():
    if np.dtype(np.longdouble) == np.float64:
        pytest.skip("long double is float64 here")
    refuses(TypeError, "x.astype(numpy.float64)", anynorm.rms_norm, np.ones(3, np.longdouble))


@pytest.mark.parametrize(
    ("axis", "error", "words"),
    [
        (3, ValueError, ("axis must lie in [-3, 3) for x of shape (2, 3, 4)", "got the int 3")),
        (-4, ValueError, "got the int -4"),
        ((0, 3), ValueError, ("axis must lie in [-3, 3)", "got the tuple (0, 3)")),
        ((), ValueError, "at least one axis"),
        ((1, 1), ValueError, "each axis once"),
        ((1, -2), ValueError, "each axis once"),
        (1.0, TypeError, "axis must be an int or a tuple of ints, got the float 1.0"),
        ("1", TypeError, "an int or a tuple of ints"),
        (None, TypeError, "an int or a tuple of ints"),
        ((0, None), TypeError, "an int or a tuple of ints"),
        (True, TypeError, "an int or a tuple of ints, got True"),
        ((0, False), TypeError, "an int or a tuple of ints"),
    ],
)
def test_axes_that_do_not_fit(axis, error, words):
    refuses(error, words, anynorm.layer_norm, X, axis=axis)
    refuses(error, words, anynorm.moments, X, axis=axis)


def test_arrays_without_axes():
    refuses(ValueError, ("at least one axis", "x.reshape(1)"), anynorm.scale_norm, np.array(1.0))


@pytest.mark.parametrize("eps", [-1e-9, math.nan, math.inf, -math.inf])
def test_eps_that_is_negative_or_not_finite(eps):
    refuses(ValueError, ("eps must be finite and not negative", str(eps)), anynorm.layer_norm, X, eps=eps)


def test_numbers_past_the_largest_float():
    for eps in (10**400, Fraction(10**400, 3)):
        refuses(ValueError, "eps must be finite and not negative, got inf", anynorm.layer_norm, X, eps=eps)
    refuses(ValueError, "scale must be finite, got -inf", anynorm.scale_norm, X, -(10**400))
    refuses(ValueError, "dim must be finite, got inf", anynorm.ScaleNorm, 10**400)


def test_eps_that_is_no_number():
    refuses(TypeError, "eps must be a number, got None; pass a float", anynorm.rms_norm, X, eps=None)
    got = "got a float64 NumPy array of shape (1,); pass float(eps)"
    refuses(TypeError, got, anynorm.rms_norm, X, eps=np.ones(1))


@pytest.mark.parametrize("eps", [0, 1, np.float32(0.5), np.int64(2)])
def test_eps_may_be_any_real_number(eps):
    assert (anynorm.rms_norm(X, eps=eps) == anynorm.rms_norm(X, eps=float(eps))).all()


@pytest.mark.parametrize("argument", ["weight", "bias"])
def test_parameters_that_do_not_fit(argument):
    expected = (f"{argument} must have the shape of the normalized axes, (4,)", "(2, 3, 4)", "axis 2", "got (3,)")
    refuses(ValueError, expected, anynorm.layer_norm, X, **{argument: np.ones(3, np.float32)})
    refuses(ValueError, ("(2, 4)", "got (4, 2)"), anynorm.rms_norm, X, **{argument: np.ones((4, 2))}, axis=(0, 2))
    words = f"got (); pass {argument}.reshape(1, 1, 1), or one of that shape"
    refuses(ValueError, words, anynorm.rms_norm, X, **{argument: np.array(1.0)})
    words = f"got (2, 4); pass {argument}.reshape(2, 1, 4), if it has a row for each sample, or one of that shape"
    refuses(ValueError, words, anynorm.rms_norm, X, **{argument: np.ones((2, 4))})
    words = "or 3 axes and broadcast to x, got (2, 1, 3)", "pass"
    refuses(ValueError, words, anynorm.layer_norm, X, **{argument: np.ones((2, 1, 3))})
    words = f"got (3, 4); pass {argument}.reshape(1, *{argument}.shape), or one of that shape"
    refuses(ValueError, words, anynorm.layer_norm, X, **{argument: np.ones((3, 4))})
    refuses(TypeError, f"{argument} must be a NumPy array like x", anynorm.layer_norm, X, **{argument: [1.0] * 4})
    words = f"{argument} must be a NumPy array like x", f"pass numpy.asarray({argument}, dtype=x.dtype)"
    refuses(TypeError, words, anynorm.layer_norm, X, **{argument: 1.0})
    for number in (2, 2.0, np.float32(2)):
        words = f"pass numpy.asarray({argument}, dtype=x.dtype).reshape((1,) * x.ndim)"
        refuses(TypeError, words, anynorm.layer_norm, X, **{argument: number})


def test_two_devices():
    xp = array_api_strict
    x = xp.ones((2, 4), dtype=xp.float32)
    elsewhere = xp.ones((4,), dtype=xp.float32, device=xp.Device("device1"))
    words = ("weight must be on x's device, ", "got one on ", "device1", "move it to x.device, or x to weight.device")
    refuses(ValueError, words, anynorm.rms_norm, x, elsewhere)


@pytest.mark.parametrize(
    ("scale", "error", "words"),
    [
        (np.ones(1, np.float32), ValueError, ("0-d NumPy array like x, got shape (1,)", "scale.reshape(())")),
        ("2", TypeError, "scale must be a number or a 0-d NumPy array like x, got the str"),
        (True, TypeError, "scale must be"),
        (math.inf, ValueError, "scale must be finite, got inf"),
        (np.array(2), TypeError, "scale must have one of the real floating dtypes"),
    ],
)
def test_scales_that_do_not_fit(scale, error, words):
    refuses(error, words, anynorm.scale_norm, X, scale)


def test_weight_offset():
    refuses(
        ValueError, "there is no weight to add it to, got 1.0; pass weight too", anynorm.rms_norm, X, weight_offset=1.0
    )
    refuses(ValueError, "weight_offset must be finite", anynorm.rms_norm, X, WEIGHT, weight_offset=math.nan)
    refuses(TypeError, "weight_offset must be a number", anynorm.rms_norm, X, WEIGHT, weight_offset="1")


def test_residuals_that_do_not_match():
    expected = ("residual must have x's shape", "(2, 3, 4)", "(4,) of float32")
    refuses(ValueError, expected, anynorm.add_layer_norm, X, WEIGHT)


def test_moments_that_do_not_fit():
    import torch

    refuses(
        TypeError, "moments must be what anynorm.moments returned, got the tuple", anynorm.rms_norm, X, moments=(1, 2)
    )
    of_rows = anynorm.moments(X)
    refuses(
        ValueError, ("moments must have shape (1, 3, 4)", "got (2, 3, 1)"), anynorm.rms_norm, X, axis=0, moments=of_rows
    )
    empty = anynorm.moments(X[:, :, :0])
    refuses(ValueError, "moments must be of one element or more", anynorm.rms_norm, X, moments=empty)
    elsewhere = anynorm.moments(torch.ones(2, 3, 4))
    message = "arrays of x's library, numpy", "call moments.to(numpy) first"
    refuses(TypeError, message, anynorm.rms_norm, X, moments=elsewhere)
    wide = X.astype(np.float64)
    message = "moments must come from data as wide as x, of float64", "call moments.to(dtype=x.dtype)"
    refuses(ValueError, message, anynorm.rms_norm, wide, moments=of_rows)
    assert anynorm.rms_norm(wide, moments=of_rows.to(dtype=wide.dtype)).dtype == np.float64


def test_torch_tensors_that_are_not_dense():
    import torch

    refuses(TypeError, ("dense tensor", "x.to_dense()"), anynorm.rms_norm, torch.eye(3).to_sparse())


def test_unknown_lengths():
    import dask.array as da
    import ndonnx

    x = da.ones((4, 4), dtype="float32", chunks=2)
    unknown = x[:, x[0] > 0]
    refuses(
        ValueError, ("a known length along the normalized axis 1", "compute_chunk_sizes"), anynorm.rms_norm, unknown
    )
    dynamic = ndonnx.argument(shape=("N", "M"), dtype=ndonnx.float32)
    refuses(ValueError, "a known length along the normalized axis 1", anynorm.rms_norm, dynamic)


def test_sparse_arrays_are_not_filled():
    import sparse

    x = sparse.COO(np.eye(3))
    refuses(TypeError, ("centring would make every zero", "x.todense()"), anynorm.layer_norm, x)
    refuses(TypeError, "a bias would make every zero", anynorm.rms_norm, x, bias=sparse.COO(np.ones(3)))


def test_explain_knows_three_norms():
    refuses(
        ValueError,
        ("norm must be one of layer_norm, rms_norm, scale_norm", "'batch_norm'"),
        anynorm.explain,
        X,
        norm="batch_norm",
    )


def test_libraries_that_are_not_written_to():
    for backend in CPU_BACKENDS:
        with backend.context():
            x = backend.make(as_dtype(np.ones((2, 4)), "float32"))
            if backend.writable or backend.name.startswith("numpy"):
                continue
            refuses(TypeError, ("cannot be written in place", "call it without out="), anynorm.rms_norm, x, out=x)


def test_an_object_with_a_namespace_but_no_dtype_is_refused():
    thing = SimpleNamespace(shape=(3,))
    refuses(TypeError, "x must be an array, got a types SimpleNamespace", anynorm.rms_norm, thing)


def test_numbers_beyond_float32_where_it_is_all_there_is():
    import jax.numpy as jnp

    x = jnp.ones((2, 4))
    refuses(ValueError, ("eps must be at most 1e76", "computed in float32"), anynorm.rms_norm, x, eps=1e77)
    refuses(ValueError, "eps must be at most 3.4e38", anynorm.scale_norm, x, eps=1e39)
    refuses(ValueError, "scale must be at most 3.4e38", anynorm.scale_norm, x, 1e39)
    refuses(ValueError, "weight_offset must be at most 3.4e38", anynorm.rms_norm, x, x[0], weight_offset=-1e39)
    assert float(anynorm.rms_norm(X, eps=1e300).max()) == 0.0
