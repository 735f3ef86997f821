"""LayerNorm, RMSNorm and ScaleNorm: parameters of any library, their state, and their place in a pytree."""

import copy
import math
import pickle

import array_api_strict
import ml_dtypes
import numpy as np
import pytest

import anynorm
from tests.backends import CPU_BACKENDS, TORCH, as_dtype, needs_gpu, thorough_but
from tests.test_imports import fresh

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


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: anynorm.LayerNorm(0), ValueError, "shape must be 1 or more"),
        (lambda: anynorm.LayerNorm(()), TypeError, "an int or a tuple of ints"),
        (lambda: anynorm.LayerNorm(4.0), TypeError, "an int or a tuple of ints"),
        (lambda: anynorm.RMSNorm(4, eps=-1), ValueError, "eps must be finite and not negative"),
        (lambda: anynorm.RMSNorm(4, dtype=np.int32), TypeError, "real floating dtype"),
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
    ],
)
def test_what_does_not_fit(make, error, words):
    with pytest.raises(error) as caught:
        make()
    assert words in str(caught.value)


def test_state_goes_to_torch_and_back():
    import torch

    theirs = torch.nn.LayerNorm(4)
    with torch.no_grad():
        theirs.weight.copy_(torch.arange(4.0))
        theirs.bias.fill_(3)
    ours = anynorm.LayerNorm(4)
    ours.load_state_dict(theirs.state_dict())
    assert ours.weight.tolist() == [0, 1, 2, 3]
    assert ours.bias.tolist() == [3, 3, 3, 3]
    theirs.load_state_dict({name: torch.from_numpy(value) for name, value in ours.state_dict().items()})
    rms = anynorm.RMSNorm(4, xp=torch, dtype=torch.bfloat16)
    rms.load_state_dict(torch.nn.RMSNorm(4).state_dict())
    assert rms.weight.dtype == torch.bfloat16
    halves = anynorm.RMSNorm(4)
    halves.load_state_dict({"weight": TORCH.make(as_dtype([0.5, 1.5, 2.5, 3.5], "bfloat16"))})
    assert halves.weight.tolist() == [0.5, 1.5, 2.5, 3.5]
    assert list(anynorm.ScaleNorm(4).state_dict()) == ["scale"]


def test_a_loaded_state_is_a_copy():
    weight = np.arange(4, dtype=np.float32)
    norm = anynorm.RMSNorm(4)
    norm.load_state_dict({"weight": weight})
    weight[:] = 9
    assert norm.weight.tolist() == [0, 1, 2, 3]


def loaded(norm, **values):
    before = norm.state_dict()
    norm.load_state_dict(values)
    for name, value in norm.state_dict().items():
        assert value is not values[name]
        assert type(value) is type(before[name])
        assert (value.dtype, tuple(value.shape)) == (before[name].dtype, tuple(values[name].shape))
        if hasattr(value, "device"):
            assert value.device == before[name].device
    return norm


def test_values_move_to_the_device_of_the_parameters():
    import torch

    xp = array_api_strict
    here, there = xp.Device("CPU_DEVICE"), xp.Device("device1")
    weight = xp.asarray([1.5, 2.5], device=there)
    assert np.asarray(loaded(anynorm.RMSNorm(2, xp=xp), weight=weight).weight).tolist() == [1.5, 2.5]
    loaded(anynorm.RMSNorm(2, xp=xp, device=there), weight=xp.asarray([1.5, 2.5], device=here))
    loaded(anynorm.RMSNorm(2, xp=torch, device="meta"), weight=torch.ones(2))


TWO_DEVICES = """
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
import jax, anynorm
norm = anynorm.RMSNorm(2, xp=jax.numpy, device=jax.devices()[1])
norm.load_state_dict({"weight": jax.numpy.asarray([1.5, 2.5], dtype="bfloat16", device=jax.devices()[0])})
print(norm.weight.devices() == {jax.devices()[1]}, norm.weight.dtype, *norm.weight.tolist())
"""


def test_values_move_between_two_devices_of_jax():
    assert fresh(TWO_DEVICES) == ["True", "float32", "1.5", "2.5"]


@pytest.mark.gpu
@needs_gpu
def test_values_move_to_and_from_a_gpu():
    import torch

    loaded(anynorm.RMSNorm(2, xp=torch, device="cuda"), weight=torch.ones(2))
    loaded(anynorm.RMSNorm(2, xp=torch), weight=torch.ones(2, device="cuda"))
    assert loaded(anynorm.RMSNorm(2), weight=torch.ones(2, device="cuda") / 4).weight.tolist() == [0.25, 0.25]


def test_values_leave_their_graph_behind():
    import torch

    theirs = torch.nn.RMSNorm(2)
    for weight in (theirs.weight, theirs.weight * 2, torch.ones(2, requires_grad=True)):
        assert not loaded(anynorm.RMSNorm(2, xp=torch), weight=weight).weight.requires_grad


@pytest.mark.parametrize("to", CPU_BACKENDS, ids=str)
@pytest.mark.parametrize("source", CPU_BACKENDS, ids=str)
def test_values_of_every_library_and_dtype(source, to):
    if source.name.startswith("strict-") and not to.name.startswith("strict"):
        pytest.skip("array-api-strict lets nobody read what is on its other devices")
    values = [0.5, 1.5, -2.0]
    for dtype_there in source.dtypes:
        with source.context():
            weight = source.make(as_dtype(values, dtype_there))
        for dtype in to.dtypes:
            with to.context():
                norm = anynorm.RMSNorm(3)
                norm.weight = to.make(as_dtype(np.zeros(3), dtype))
                assert to.read(loaded(norm, weight=weight).weight).tolist() == values


def test_a_scale_that_arithmetic_made_a_number():
    for dtype in ("float32", ml_dtypes.bfloat16):
        norm, twin = anynorm.ScaleNorm(4, dtype=dtype), anynorm.ScaleNorm(4, dtype=dtype)
        norm.scale = norm.scale * 2
        assert isinstance(norm.scale, np.generic)
        twin.load_state_dict(norm.state_dict())
        assert (type(twin.scale), float(twin.scale)) == (np.ndarray, 4.0)
        norm.load_state_dict(anynorm.ScaleNorm(4, dtype=dtype).state_dict())
        assert (norm.scale.dtype, float(norm.scale)) == (np.dtype(dtype), 2.0)
    norm.scale = 3
    norm.load_state_dict(twin.state_dict())
    assert norm.scale == 4.0


@pytest.mark.parametrize(
    ("state", "error", "words"),
    [
        ({"weight": np.ones(4)}, ValueError, "got one without bias"),
        ({"weight": np.ones(4), "bias": np.ones(4), "gamma": np.ones(4)}, ValueError, "got one with unknown gamma"),
        ({}, ValueError, "got one without bias, weight"),
        ({"weight": np.zeros(4), "bias": np.ones(5)}, ValueError, "bias must have shape (4,), got (5,)"),
        ({"weight": np.zeros(4), "bias": [1, 2, 3, 4]}, TypeError, "bias must be an array, got the list"),
        ({"weight": np.zeros(4), "bias": np.ones(4) * 1j}, TypeError, "real floating dtype"),
        ({"weight": np.zeros(4), "bias": np.asarray(["1"] * 4)}, TypeError, "real floating dtype"),
        (
            {"weight": np.zeros(4), "bias": np.ma.masked_array(np.ones(4), [0, 0, 0, 1])},
            TypeError,
            "bias must be an array, got a numpy MaskedArray",
        ),
        (None, TypeError, "state must be a mapping from name to array, got None"),
    ],
)
def test_a_wrong_state_changes_nothing(state, error, words):
    norm = anynorm.LayerNorm(4)
    with pytest.raises(error) as caught:
        norm.load_state_dict(state)
    assert words in str(caught.value)
    assert norm.weight.tolist() == [1, 1, 1, 1]
    assert norm.bias.tolist() == [0, 0, 0, 0]


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
        assert len(jax.tree.leaves(norm)) == len(norm.state_dict())


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
