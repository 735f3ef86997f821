"""The state of LayerNorm, RMSNorm and ScaleNorm: parameters by name, of whichever library and by whose names."""

import array_api_strict
import ml_dtypes
import numpy as np
import pytest

import anynorm
from tests.backends import CPU_BACKENDS, TORCH, as_dtype, needs_gpu


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


def test_values_move_between_two_devices_of_jax():
    import jax

    here, there = jax.devices("cpu")[:2]
    norm = anynorm.RMSNorm(2, xp=jax.numpy, device=there)
    norm.load_state_dict({"weight": jax.numpy.asarray([1.5, 2.5], dtype="bfloat16", device=here)})
    assert norm.weight.devices() == {there}
    assert (norm.weight.dtype, norm.weight.tolist()) == ("float32", [1.5, 2.5])


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


# Between two libraries values go by way of NumPy, so most pairs wait for `--thorough`.
PAIRS = [
    pytest.param(source, to, marks=() if source is to or "numpy" in (source.name, to.name) else pytest.mark.thorough)
    for source in CPU_BACKENDS
    for to in CPU_BACKENDS
]


@pytest.mark.parametrize(("source", "to"), PAIRS, ids=str)
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
        ({"weight": np.ones(4), "bias": np.ones(4), "delta": np.ones(4)}, ValueError, "got one with unknown delta"),
        ({"weight": np.ones(4), "bias": np.ones(4), 0: np.ones(4)}, ValueError, "got one with unknown 0"),
        ({}, ValueError, "got one without bias, weight; pass exactly these names, or strict=False"),
        (
            {"weight": np.zeros(4), "bias": np.zeros(4), "gamma": np.zeros(4)},
            ValueError,
            "state must hold weight once, under whatever name, got weight and gamma",
        ),
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


def ten(*shape):
    return np.full(shape, 10.0)


@pytest.mark.parametrize(
    ("norm", "state"),
    [
        (anynorm.LayerNorm(4), {"gamma": ten(4), "beta": ten(4)}),  # Keras
        (anynorm.LayerNorm(4), {"scale": ten(4), "bias": ten(4)}),  # Flax
        (anynorm.LayerNorm(4), {"scale": ten(4), "offset": ten(4)}),  # Haiku
        (anynorm.RMSNorm(4), {"gamma": ten(4)}),
        (anynorm.RMSNorm(4), {"scale": ten(4)}),
        (anynorm.RMSNorm(4), {"g": ten(4)}),  # x-transformers
        (anynorm.ScaleNorm(4), {"g": ten(1)}),
        (anynorm.ScaleNorm(4), {"gamma": ten()}),
        (anynorm.ScaleNorm(4), {"weight": ten(1)}),
    ],
    ids=str,
)
def test_the_names_that_others_use(norm, state):
    assert norm.load_state_dict(state) == ([], [])
    for value in norm.state_dict().values():
        assert (np.asarray(value) == 10).all()
    scaled = anynorm.ScaleNorm(4)
    scaled.load_state_dict({"g": np.ones(1)})
    assert scaled.scale.shape == ()
    with pytest.raises(ValueError, match=r"scale must have shape \(\), got \(2,\)"):
        scaled.load_state_dict({"g": np.ones(2)})
    with pytest.raises(ValueError, match=r"weight must have shape \(1,\), got \(\)"):
        anynorm.RMSNorm(1).load_state_dict({"weight": np.ones(())})


def test_the_state_of_a_flax_module():
    from flax import nnx

    theirs = nnx.LayerNorm(4, bias_init=nnx.initializers.normal(), rngs=nnx.Rngs(0))
    ours = anynorm.LayerNorm(4)
    ours.load_state_dict(nnx.state(theirs))
    np.testing.assert_array_equal(ours.bias, theirs.bias[...])


def test_a_norm_within_the_state_of_a_model():
    import torch

    model = torch.nn.TransformerEncoderLayer(4, 2)
    with torch.no_grad():
        model.norm1.weight.fill_(3), model.norm2.bias.fill_(5)
    norm = anynorm.LayerNorm(4)
    assert norm.load_state_dict(model.state_dict(), prefix="norm1.") == ([], [])
    assert (norm.weight.tolist(), norm.bias.tolist()) == ([3] * 4, [0] * 4)
    norm.load_state_dict(model.state_dict(), prefix="norm2.")
    assert (norm.weight.tolist(), norm.bias.tolist()) == ([1] * 4, [5] * 4)
    for prefix, do in (("norm1", "pass prefix=, such as 'norm1.'"), ("", "with unknown linear1.bias")):
        with pytest.raises(ValueError, match=r"^state must hold") as caught:
            norm.load_state_dict(model.state_dict(), prefix=prefix)
        assert do in str(caught.value)
    with pytest.raises(ValueError, match=r"got one without b/ln.bias, b/ln.weight; pass prefix='a/ln/'"):
        norm.load_state_dict({"a/ln/gamma": ten(4), "a/ln/beta": ten(4)}, prefix="b/ln.")
    with pytest.raises(TypeError, match="prefix must be a str, got None"):
        norm.load_state_dict({}, prefix=None)


@pytest.mark.parametrize(
    ("count", "listed"), [(4, "n0, n1, n2, n3; pass"), (300, "n0, n1, n10, n100, ... (300 names);")]
)
def test_a_message_lists_few_of_the_names_of_a_model(count, listed):
    state = {f"n{i}": ten(4) for i in range(count)}
    with pytest.raises(ValueError, match=r"^state must hold") as caught:
        anynorm.RMSNorm(4).load_state_dict(state | {"weight": ten(4)})
    assert f"got one with unknown {listed}" in str(caught.value)


def test_what_is_not_strict_says_what_was_left():
    state = {"enc.gamma": ten(4), "enc.delta": ten(4), "other.beta": ten(4), 3: ten(4)}
    norm = anynorm.LayerNorm(4)
    left = norm.load_state_dict(state, strict=False, prefix="enc.")
    assert (left.missing_keys, left.unexpected_keys) == (["enc.bias"], ["enc.delta"])
    assert (norm.weight.tolist(), norm.bias.tolist()) == ([10] * 4, [0] * 4)
    left = norm.load_state_dict({"beta": ten(4), 3: ten(4)}, strict=False)
    assert left == (["weight"], ["3"])
    assert repr(left) == "IncompatibleKeys(missing_keys=['weight'], unexpected_keys=['3'])"
    assert repr(norm.load_state_dict(norm.state_dict())) == "<All keys matched successfully>"  # as torch writes it
    for wrong in ({"weight": ten(5)}, {"weight": ten(4), "gamma": ten(4)}):  # is refused all the same
        with pytest.raises(ValueError, match="weight"):
            norm.load_state_dict(wrong | {"bias": -ten(4)}, strict=False)
    assert (norm.weight.tolist(), norm.bias.tolist()) == ([10] * 4, [10] * 4)
