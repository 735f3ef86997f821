"""LayerNorm, RMSNorm and ScaleNorm: parameters of any library, and their place in a pytree."""

import copy
import math
import pickle

import array_api_strict
import dask.array
import ml_dtypes
import numpy as np
import pytest

import anynorm
from tests import reference
from tests.backends import TORCH, as_dtype, thorough_but
from tests.processes import fresh
from tests.tolerances import assert_exact

RNG = np.random.default_rng(0)
X = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)


def namespaces():
    import jax.numpy
    import torch

    return [np, torch, jax.numpy, array_api_strict]


@pytest.mark.parametrize("xp", namespaces(), ids=lambda xp: xp.__name__)
def test_parameters_are_made_where_asked(xp):
    norm = anynorm.LayerNorm(4, xp=xp)
    x = xp.asarray(X.copy())
    assert type(norm.weight) is type(x)
    assert norm.weight.dtype == norm.bias.dtype == xp.float32
    assert tuple(norm.weight.shape) == tuple(norm.bias.shape) == (4,)
    assert np.asarray(norm.weight).tolist() == [1, 1, 1, 1]
    assert np.asarray(norm.bias).tolist() == [0, 0, 0, 0]
    assert (np.asarray(norm(x)) == np.asarray(anynorm.layer_norm(x))).all()
    assert (np.asarray(anynorm.RMSNorm(4, xp=xp)(x)) == np.asarray(anynorm.rms_norm(x, norm.weight))).all()
    scale = anynorm.ScaleNorm(4, xp=xp)
    assert tuple(scale.scale.shape) == ()
    assert float(scale.scale) == 2.0
    assert (np.asarray(scale(x)) == np.asarray(anynorm.scale_norm(x, 2.0))).all()


def test_dtype_and_device():
    import torch

    assert anynorm.RMSNorm(4, xp=torch, dtype=torch.bfloat16, device="cpu").weight.dtype == torch.bfloat16
    assert anynorm.RMSNorm(4, dtype="float64").weight.dtype == np.float64
    assert anynorm.RMSNorm(4, dtype=ml_dtypes.bfloat16)(as_dtype(X, "bfloat16")).dtype == ml_dtypes.bfloat16
    elsewhere = array_api_strict.Device("device1")
    assert anynorm.LayerNorm(4, xp=array_api_strict, device=elsewhere).bias.device == elsewhere


def with_weight(weight):
    norm = anynorm.RMSNorm(4)
    norm.weight = weight
    return norm


def test_several_axes_and_options():
    norm = anynorm.LayerNorm((3, 4), eps=0.5, bias=False)
    assert norm.bias is None
    np.testing.assert_array_equal(norm(X), anynorm.layer_norm(X, axis=(0, 1), eps=0.5))
    gemma = anynorm.RMSNorm(4, weight_offset=1.0)
    assert (gemma.weight == 0).all()
    np.testing.assert_array_equal(gemma(X), anynorm.rms_norm(X))
    gemma.weight += np.float32(0.5)
    np.testing.assert_array_equal(gemma(X), anynorm.rms_norm(X, gemma.weight, weight_offset=1.0))
    out = np.empty_like(X)
    assert norm(X, out=out) is out
    assert anynorm.RMSNorm(4, bias=True).bias.shape == (4,)


@pytest.mark.parametrize("xp", [*namespaces(), dask.array], ids=lambda xp: xp.__name__)
@pytest.mark.parametrize(("kind", "norm"), [("LayerNorm", "layer_norm"), ("RMSNorm", "rms_norm")])
def test_a_weight_for_each_head(xp, kind, norm):
    made = getattr(anynorm, kind)(8, bias=True, weight_offset=1.0, weight_shape=(4, 8), xp=xp)
    assert (made.shape, made.weight_shape) == ((8,), (4, 8))
    weight, bias = RNG.standard_normal((2, 4, 8)).astype(np.float32)
    made.load_state_dict({"weight": weight, "bias": bias})
    for shape in ((4, 8), (2, 4, 8), (2, 3, 4, 8)):
        x = RNG.standard_normal(shape).astype(np.float32)
        y = made(xp.asarray(x))
        rows = x.reshape(-1, 8)
        each = [np.broadcast_to(one, shape).reshape(-1, 8) for one in (weight, bias)]
        given = zip(rows, *each, strict=True)
        expected = [getattr(reference, norm)(row, w.astype(float) + 1.0, b, eps=made.eps) for row, w, b in given]
        assert_exact(np.asarray(y).reshape(-1, 8), expected, backend="jax", dtype="float32", norm=norm)
    for again in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert again == made
        assert hash(again) == hash(made)
    assert made != getattr(anynorm, kind)(8, bias=True, weight_offset=1.0, xp=xp)
    assert "weight_shape=(4, 8)" in repr(made)
    for given in ((8,), (4, 7), (3, 8), ()):
        with pytest.raises(ValueError, match=r"x must have shape \(\.\.\., 4, 8\)"):
            made(xp.asarray(np.zeros(given, np.float32)))


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: anynorm.LayerNorm(0), ValueError, "shape must be 1 or more"),
        (lambda: anynorm.LayerNorm(()), TypeError, "an int or a tuple of ints"),
        (lambda: anynorm.LayerNorm(4.0), TypeError, "an int or a tuple of ints"),
        (lambda: anynorm.RMSNorm(4, eps=-1), ValueError, "eps must be finite and not negative"),
        (lambda: anynorm.RMSNorm(4, dtype=np.int32), TypeError, "real floating dtype"),
        (
            lambda: anynorm.LayerNorm(4, weight_shape=(4, 3)),
            ValueError,
            "weight_shape must end with the lengths of the",
        ),
        (lambda: anynorm.RMSNorm((3, 4), weight_shape=4), ValueError, "weight_shape must end with the lengths of"),
        (lambda: anynorm.RMSNorm(4, weight_shape=(0, 4)), ValueError, "weight_shape must be 1 or more"),
        (lambda: anynorm.RMSNorm(4, weight_shape="4"), TypeError, "weight_shape must be an int or a tuple of ints"),
        (lambda: anynorm.LayerNorm(4, weight_shape=(2, 4))([1.0]), TypeError, "x must be an array"),
        (lambda: anynorm.ScaleNorm((3, 4)), TypeError, "dim must be an int"),
        (lambda: anynorm.LayerNorm(4, xp=math), TypeError, "array namespace"),
        (lambda: anynorm.LayerNorm(4, xp="torch"), TypeError, "got the str 'torch'; pass the module itself"),
        (lambda: anynorm.LayerNorm(5)(X), ValueError, "(5,)"),
        (lambda: anynorm.LayerNorm((2, 4))(X), ValueError, "(2, 4)"),
        (
            lambda: anynorm.ScaleNorm(5)(X),
            ValueError,
            "x must have shape (..., 5) for ScaleNorm(5, eps=1e-12",
        ),
        (lambda: anynorm.ScaleNorm(5)([1.0]), TypeError, "must be an array"),
        (
            lambda: anynorm.LayerNorm(4)(TORCH.make(X)),
            TypeError,
            "x must be a NumPy array, as the parameters of LayerNorm(4, eps=1e-05, bias=True, dtype=float32) are, "
            "got a float32 torch tensor of shape (3, 4); convert x, or make the norm with xp=torch",
        ),
        (
            lambda: anynorm.ScaleNorm(4, xp=array_api_strict)(X),
            TypeError,
            "x must be an array_api_strict array, as the parameters",
        ),
        (lambda: anynorm.RMSNorm(4)(X, out=[1.0]), TypeError, "out must be a NumPy array like x"),
        (lambda: with_weight([1.0])(X), TypeError, "weight must be a NumPy array like x, got the list [1.0]"),
    ],
)
def test_what_does_not_fit(make, error, words):
    with pytest.raises(error) as caught:
        make()
    assert words in str(caught.value)


def test_repr_and_equality():
    assert repr(anynorm.LayerNorm((3, 4), eps=0.1)) == "LayerNorm((3, 4), eps=0.1, bias=True, dtype=float32)"
    gemma = "RMSNorm(4, eps=1e-06, bias=False, weight_offset=1.0, dtype=float32)"
    assert repr(anynorm.RMSNorm(4, weight_offset=1.0)) == gemma
    assert repr(anynorm.ScaleNorm(4)) == "ScaleNorm(4, eps=1e-12, dtype=float32)"
    norm = anynorm.LayerNorm(4)
    trained = anynorm.LayerNorm(4)
    trained.weight = trained.weight * 2
    assert norm == trained
    assert hash(norm) == hash(trained)
    for other in (
        anynorm.LayerNorm(5),
        anynorm.LayerNorm(4, eps=1e-6),
        anynorm.LayerNorm(4, bias=False),
        anynorm.RMSNorm(4),
    ):
        assert norm != other
    assert anynorm.ScaleNorm(4) == anynorm.ScaleNorm(4) != anynorm.ScaleNorm(4, dtype="float64")


@pytest.mark.parametrize("dtype", thorough_but(ml_dtypes.bfloat16, of=["float16", ml_dtypes.bfloat16, "float64"]))
def test_numpy_parameters_go_with_an_x_of_jax(dtype):
    import jax
    import jax.numpy as jnp

    x, rng = jnp.asarray(X), np.random.default_rng(1)
    for make in (anynorm.LayerNorm, anynorm.ScaleNorm):
        norm, theirs = make(4, dtype=dtype), make(4, xp=jnp)
        norm.load_state_dict({name: rng.standard_normal(v.shape) for name, v in norm.state_dict().items()})
        theirs.load_state_dict(norm.state_dict())
        expected = theirs(x)
        assert type(norm(x)) is type(x)
        np.testing.assert_array_equal(norm(x), expected)
        with pytest.raises(TypeError, match="out must be None"):
            norm(x, out=x)

        def loss(norm, x):
            y = norm(x)
            return (y * y).sum(), y

        of_x, y = jax.jit(jax.grad(lambda x, norm=norm: loss(norm, x), has_aux=True))(x)  # closes over the parameters
        (of_norm, of_x_too), _ = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(norm, x)
        np.testing.assert_array_equal(y, expected)
        np.testing.assert_allclose(of_x, of_x_too, rtol=2.0**-20, atol=2.0**-20)
        for name, value in of_norm.state_dict().items():
            assert value.dtype == (np.float32 if dtype == "float64" else dtype)  # JAX narrows float64
            assert value.shape == getattr(norm, name).shape


def test_copies_and_pickles():
    for norm in (anynorm.LayerNorm(4), anynorm.RMSNorm(4), anynorm.ScaleNorm(4)):
        for twin in (copy.deepcopy(norm), pickle.loads(pickle.dumps(norm))):
            assert twin == norm
            np.testing.assert_array_equal(twin(X), norm(X))


def test_norms_are_pytrees():
    import jax
    import jax.numpy as jnp

    x = jnp.asarray(X)
    for norm in (anynorm.LayerNorm(4, xp=jnp), anynorm.RMSNorm(4, xp=jnp), anynorm.ScaleNorm(4, xp=jnp)):
        gradient = jax.jit(jax.grad(lambda norm: (norm(x) ** 3).sum()))(norm)
        assert type(gradient) is type(norm)
        for name, value in gradient.state_dict().items():
            assert value.shape == getattr(norm, name).shape
            assert np.isfinite(value).all()
        stepped = jax.tree.map(lambda p, g: p - 0.1 * g, norm, gradient)
        assert stepped == norm


def test_leaves_have_the_names_of_parameters_and_of_statistics():
    import jax
    import jax.numpy as jnp

    things = [
        anynorm.LayerNorm(4, xp=jnp), anynorm.LayerNorm(4, bias=False), anynorm.RMSNorm(4), anynorm.ScaleNorm(4),
        anynorm.moments(jnp.asarray(X)),
    ]  # fmt: skip
    paths = jax.tree_util.tree_flatten_with_path(things)[0]
    assert [jax.tree_util.keystr(path) for path, _ in paths] == [
        "[0].weight", "[0].bias", "[1].weight", "[2].weight", "[3].scale",
        "[4].mean", "[4].mean_low", "[4].squares", "[4].unit",
    ]  # fmt: skip
    for leaf, value in zip(jax.tree.leaves(things), [value for _, value in paths], strict=True):
        assert leaf is value
    assert jax.tree.map(lambda leaf: leaf, things)[1].bias is None


PICKLED = """
import pickle, sys
thing = pickle.loads({pickled!r})
import jax
print(type(jax.jit(lambda thing: thing)(thing)).__name__)
"""
MADE_BEFORE_ANY_ARRAY = """
import jax, anynorm
norm = anynorm.{name}(3)
print(type(jax.tree.map(jax.numpy.asarray, norm)).__name__)
"""


@pytest.mark.parametrize("name", thorough_but("Moments", of=["LayerNorm", "RMSNorm", "ScaleNorm", "Moments"]))
def test_norms_are_pytrees_in_a_process_that_has_seen_no_array_of_jax(name):
    import jax.numpy as jnp

    thing = anynorm.moments(jnp.asarray(X)) if name == "Moments" else getattr(anynorm, name)(3, xp=jnp)
    assert fresh(PICKLED.format(pickled=pickle.dumps(thing))) == [name]
    if name != "Moments":
        assert fresh(MADE_BEFORE_ANY_ARRAY.format(name=name)) == [name]


@pytest.mark.parametrize("dtype", ["float16", np.float16, np.dtype("float16")])
def test_a_dtype_of_numpy_is_none_of_torch(dtype):
    import torch

    with pytest.raises(TypeError, match=r"a dtype of torch, got NumPy's float16; pass torch\.float16 or leave it"):
        anynorm.RMSNorm(4, xp=torch, dtype=dtype)
