"""Arrays that wrap another library's: they run through the definition, and come back as what they are."""

import numpy as np
import pytest

import anynorm
from tests.backends import as_dtype, needs_llvmlite
from tests.ducks import Duck
from tests.reference import layer_norm, rms_norm, scale_norm
from tests.tolerances import assert_exact

X = np.random.default_rng(0).standard_normal((2, 7)) + 3
WEIGHT, BIAS = np.linspace(-1, 2, 7), np.linspace(0.5, 1, 7)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_ducks_are_normalized(dtype):
    x, weight, bias = (as_dtype(values, dtype) for values in (X, WEIGHT, BIAS))

    def check(got, norm, rows):
        assert type(got) is Duck
        assert_exact(got.values, rows, backend="duck", dtype=dtype, norm=norm)

    of_layer = [layer_norm(row, weight, bias) for row in x]
    check(anynorm.layer_norm(Duck(x), Duck(weight), Duck(bias)), "layer_norm", of_layer)
    check(anynorm.rms_norm(Duck(x), Duck(weight)), "rms_norm", [rms_norm(row, weight, eps=1e-6) for row in x])
    check(anynorm.scale_norm(Duck(x), Duck(x[0, 0])), "scale_norm", [scale_norm(row, x[0, 0]) for row in x])
    y, total = anynorm.add_layer_norm(Duck(x), Duck(x), Duck(weight), Duck(bias))
    assert type(total) is Duck
    check(y, "layer_norm", [layer_norm(row, weight, bias) for row in x + x])
    y, pull = anynorm.layer_norm_vjp(Duck(x), Duck(weight), Duck(bias))
    check(y, "layer_norm", of_layer)
    assert [type(one) for one in pull(Duck(x))] == [Duck] * 3
    pieces = [anynorm.moments(Duck(part)) for part in (x[:, :3], x[:, 3:])]
    given = anynorm.layer_norm(Duck(x), Duck(weight), Duck(bias), moments=pieces[0].merge(pieces[1]))
    check(given, "layer_norm", of_layer)
    assert type(anynorm.moments(Duck(x[:, :0])).mean) is Duck
    assert anynorm.layer_norm(Duck(x[:0])).shape == (0, 7)


def test_ducks_and_their_library_are_two():
    x, duck = np.ones((2, 3)), Duck(np.ones((2, 3)))
    row = Duck(np.ones(3))
    is_numpy = r"must be a NumPy array like x, got a tests Duck; pass numpy\.asarray"
    for argument, call in {
        "weight": lambda: anynorm.layer_norm(x, row),
        "bias": lambda: anynorm.rms_norm(x, x[0], row),
        "scale": lambda: anynorm.scale_norm(x, Duck(np.ones(()))),
        "residual": lambda: anynorm.add_rms_norm(x, duck),
        "dy": lambda: anynorm.rms_norm_vjp(x)[1](duck),
    }.items():
        with pytest.raises(TypeError, match=f"{argument} {is_numpy}"):
            call()
    with pytest.raises(TypeError, match="weight must be a tests array like x, got a float64 NumPy array"):
        anynorm.layer_norm(duck, x[0])
    for one, other, name in ((x, duck, "numpy"), (duck, x, "tests")):
        with pytest.raises(TypeError, match=f"moments must come from arrays of x's library, {name}"):
            anynorm.layer_norm(one, moments=anynorm.moments(other))
    with pytest.raises(TypeError, match="out must be None, for it cannot be told which memory tests arrays share"):
        anynorm.layer_norm(duck, out=duck)
    with pytest.raises(TypeError, match="convert x, or pass it to the function of this norm with parameters"):
        anynorm.LayerNorm(3)(duck)
    assert anynorm.RMSNorm(3, bias=False)(x).shape == (2, 3)


@needs_llvmlite
def test_kernels_say_that_they_take_no_duck():
    found = anynorm.explain(Duck(np.ones((2, 3))))
    assert found.kernel == "definition"
    assert found.refused["cpu"].endswith("x is an array of tests")
    with anynorm.use_kernel("cpu"), pytest.raises(RuntimeError, match="x is an array of tests"):
        anynorm.layer_norm(Duck(np.ones((2, 3))))


def test_a_duck_of_a_module_that_is_named_as_a_library_is_no_array_of_it():
    for module in ("numpy.rec", "torch", "dask.array", "cupy"):
        kind = type("Duck", (Duck,), {"__module__": module})
        found = anynorm.explain(kind(np.ones((2, 3))))
        assert found.kernel == "definition"
        assert type(anynorm.rms_norm(kind(np.ones((2, 3))))) is kind


def bare(namespace):
    """An array that computes in a namespace, and has nothing but what every array has."""
    return type("Bare", (), {"shape": (3,), "dtype": np.dtype("f4"), "__array_namespace__": lambda self: namespace})()


def test_what_a_library_does_not_hand_over_to_is_refused():
    import jax.numpy
    import torch

    for namespace, words in (
        (np, "x must have __array_ufunc__ and __array_function__, by which the functions of numpy leave the work"),
        (torch, "x must be a torch tensor, for the functions of torch take no other, got a tests Bare"),
        (jax.numpy, "x must be a JAX array, for the functions of jax.numpy take no other, got a tests Bare"),
    ):
        with pytest.raises(TypeError, match=words):
            anynorm.layer_norm(bare(namespace))
        with pytest.raises(TypeError, match="weight must be a NumPy array like x"):
            anynorm.layer_norm(np.ones((2, 3)), bare(namespace))
