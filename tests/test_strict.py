"""array-api-strict: arrays on devices that NumPy does not read from, and sums over long axes."""

import json

import array_api_strict as xp
import numpy as np
import pytest

import anynorm
from tests import reference
from tests.ducks import Duck
from tests.tolerances import BOUNDS, assert_exact

X = np.random.default_rng(0).standard_normal((3, 8)) + 1e3


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_moments_on_another_device_go_through_a_dict(dtype):
    place = xp.Device("device2")
    x = xp.asarray(X.astype(dtype), device=place)
    found = anynorm.moments(x[:, :5]).merge(anynorm.moments(x[:, 5:]))
    assert "device2" in repr(found)
    written = json.loads(json.dumps(found.to_dict()))
    on_host = anynorm.moments(X[:, :5].astype(dtype)).merge(anynorm.moments(X[:, 5:].astype(dtype)))
    assert np.allclose(anynorm.Moments.from_dict(written).mean, on_host.mean, rtol=1e-12)
    twin = anynorm.Moments.from_dict(written, xp=xp, device=place)
    assert twin.mean.device == place
    assert twin.to_dict() == written
    assert xp.all(anynorm.layer_norm(x, moments=twin) == anynorm.layer_norm(x, moments=found))
    with pytest.raises(ValueError, match=r"moments must be on x's device, .*device2.*, got those on .*CPU_DEVICE"):
        anynorm.layer_norm(x, moments=anynorm.Moments.from_dict(written, xp=xp))


def test_moments_without_a_float64_go_through_a_dict():
    place = xp.Device("no_float64")
    found = anynorm.moments(xp.asarray(X.astype(np.float32), device=place))
    twin = anynorm.Moments.from_dict(found.to_dict(), xp=xp, device=place)
    assert twin.to_dict() == found.to_dict()


def test_devices_that_are_not_there():
    import torch

    written = anynorm.moments(X).to_dict()
    for of, device in ((xp, "gpu"), (torch, "text"), (torch, object()), (np, "cuda")):
        with pytest.raises(ValueError, match=rf"device must be one that {of.__name__}.* has, got .*; leave it out"):
            anynorm.Moments.from_dict(written, xp=of, device=device)
    assert anynorm.Moments.from_dict(written, xp=torch, device="cpu").mean.device.type == "cpu"


def test_moments_without_values_are_told():
    import jax

    words = "moments must have values that the host can read, got those in a"
    with pytest.raises(TypeError, match=f"{words} traced JAX value"):
        jax.jit(lambda x: anynorm.moments(x).to_dict())(X.astype(np.float32))
    with pytest.raises(TypeError, match=f"{words} tests Duck"):
        anynorm.moments(Duck(X)).to_dict()


@pytest.mark.parametrize(("device", "dtype"), [("CPU_DEVICE", "float64"), ("no_float64", "float32")])
def test_long_rows_whose_longest_axis_is_not_the_last(device, dtype):
    x = (np.random.default_rng(1).standard_normal((8300, 2)) + 1e3).astype(dtype)
    made = xp.asarray(x, device=xp.Device(device))
    y = np.from_dlpack(anynorm.layer_norm(made, axis=(0, 1)), device="cpu")
    expected = reference.layer_norm(x.ravel())
    some = np.r_[0:8, 16000:16600:100]  # the comparison takes longer than all else
    assert_exact(
        y.reshape(1, -1)[:, some],
        [[expected[i] for i in some]],
        backend=f"strict {device}",
        dtype=dtype,
        norm="layer_norm",
    )
    found = anynorm.moments(made, axis=(0, 1))
    assert abs(float(found.mean[0, 0]) - x.mean(dtype=np.longdouble)) < BOUNDS[dtype] * np.spacing(x.dtype.type(1e3))
