"""The modules of anynorm.torch: what they hold, what they give, and what they take from torch.nn's and give back."""

import copy
import pickle

import numpy as np
import pytest
import torch

import anynorm
import anynorm.torch as norms
from tests import reference
from tests.backends import ALL, TORCH, as_dtype
from tests.tolerances import assert_exact

MADE = {
    "LayerNorm": lambda **options: norms.LayerNorm(8, **options),
    "RMSNorm": lambda **options: norms.RMSNorm(8, **options),
    "ScaleNorm": lambda **options: norms.ScaleNorm(8, **options),
}
every_module = pytest.mark.parametrize("name", MADE)


def filled(module, seed=0):
    """The same with parameters that are not all one number."""
    made = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=made).to(parameter.dtype)
    return module


def rows(dtype=torch.float32, shape=(3, 8), seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_state_of_layer_norms_goes_both_ways(affine, bias):
    options = {"elementwise_affine": affine, "bias": bias}
    ours, theirs = filled(norms.LayerNorm((2, 4), **options)), filled(torch.nn.LayerNorm((2, 4), **options), seed=5)
    names = ["weight", "bias"][: affine + (affine and bias)]
    assert list(ours.state_dict()) == list(theirs.state_dict()) == names
    assert [name for name, _ in ours.named_parameters()] == names
    x = rows(shape=(3, 2, 4))
    for source, target in ((theirs, ours), (ours, theirs)):
        filled(source, seed=7)
        target.load_state_dict(source.state_dict(), strict=True)
        for name in names:
            assert torch.equal(getattr(ours, name), getattr(theirs, name))
        # Theirs is float32 throughout: a few units of the largest factor, which is below 4.
        torch.testing.assert_close(ours(x), theirs(x), rtol=2.0**-20, atol=2.0**-20)


@pytest.mark.parametrize("affine", [False, True])
def test_state_of_rms_norms_goes_both_ways(affine):
    ours, theirs = norms.RMSNorm(8, elementwise_affine=affine), torch.nn.RMSNorm(8, elementwise_affine=affine)
    names = ["weight"] if affine else []
    assert list(ours.state_dict()) == list(theirs.state_dict()) == names
    assert ours.eps is theirs.eps is None
    for source, target in ((theirs, ours), (ours, theirs)):
        filled(source, seed=7)
        target.load_state_dict(source.state_dict(), strict=True)
        torch.testing.assert_close(ours(rows()), theirs(rows()), rtol=2.0**-20, atol=2.0**-20)
    biased = norms.RMSNorm(8, elementwise_affine=affine, bias=True)
    assert list(biased.state_dict()) == [*names, "bias"]
    with pytest.raises(RuntimeError, match=r"Unexpected key.*bias"):
        theirs.load_state_dict(biased.state_dict(), strict=True)
    with pytest.raises(RuntimeError, match=r"Missing key.*bias"):
        biased.load_state_dict(theirs.state_dict(), strict=True)


@every_module
@pytest.mark.parametrize("again", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_are_the_same_and_apart(name, again):
    options = {} if name == "ScaleNorm" else {"weight_offset": 1.0, "bias": True}
    module = filled(MADE[name](eps=1e-3, **options))
    expected = module(rows())
    other = again(module)
    assert type(other) is type(module)
    assert repr(other) == repr(module)
    assert torch.equal(other(rows()), expected)
    filled(other, seed=3)
    assert not torch.equal(other(rows()), expected)
    assert torch.equal(module(rows()), expected)


def test_they_are_modules_of_torch():
    assert isinstance(norms.LayerNorm(8), torch.nn.LayerNorm)
    assert isinstance(norms.RMSNorm(8), torch.nn.RMSNorm)
    assert isinstance(norms.ScaleNorm(8), torch.nn.Module)


def test_what_they_print():
    written = {
        repr(torch.nn.LayerNorm(8)): norms.LayerNorm(8),
        repr(torch.nn.LayerNorm((2, 4), 0.1, False)): norms.LayerNorm((2, 4), 0.1, False),
        repr(torch.nn.LayerNorm(8))[:-1] + ", weight_offset=1.0)": norms.LayerNorm(8, weight_offset=1.0),
        repr(torch.nn.RMSNorm(8)): norms.RMSNorm(8),
        "RMSNorm((8,), eps=1e-06, elementwise_affine=True, bias=True, weight_offset=0.5)": norms.RMSNorm(
            8, 1e-6, bias=True, weight_offset=0.5
        ),
        "ScaleNorm(8, eps=1e-12)": norms.ScaleNorm(8),
    }
    assert [repr(module) for module in written.values()] == list(written)


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("kind", [norms.LayerNorm, norms.RMSNorm])
def test_they_start_as_plain_norms(kind, offset):
    module = kind(8, bias=True, weight_offset=offset)
    for _ in range(2):
        assert torch.equal(module.weight, torch.full((8,), 1.0 - offset))
        assert torch.equal(module.bias, torch.zeros(8))
        # Each is within 2 units of the exact result, which are taken at the element or at 1.
        plain = kind(8, elementwise_affine=False)(rows())
        torch.testing.assert_close(module(rows()), plain, rtol=2.0**-21, atol=2.0**-21)
        filled(module)
        module.reset_parameters()
    without = kind(8, elementwise_affine=False, weight_offset=offset)
    without.reset_parameters()
    assert without.weight is None
    assert without(rows()).shape == (3, 8)


def test_scales_start_at_the_root_of_the_dimension():
    module = norms.ScaleNorm(9)
    assert (module.scale.shape, module.scale.item()) == ((), 3.0)
    filled(module)
    module.reset_parameters()
    assert module.scale.item() == 3.0


@every_module
def test_dtypes_and_devices_of_parameters(name):
    options = {} if name == "ScaleNorm" else {"bias": True, "weight_offset": 1.0}
    half = MADE[name](dtype=torch.bfloat16, **options)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    for dtype in (torch.float32, torch.bfloat16):  # the result has x's, whatever the parameters have
        assert half(rows(dtype)).dtype == dtype
    assert {parameter.dtype for parameter in half.double().parameters()} == {torch.float64}
    meta = MADE[name](device="meta", **options)
    assert {parameter.device.type for parameter in meta.parameters()} == {"meta"}
    y = meta(rows().to("meta"))
    assert (y.shape, y.dtype, y.device.type) == ((3, 8), torch.float32, "meta")
    meta.to_empty(device="cpu").reset_parameters()
    assert torch.equal(meta(rows()), MADE[name](**options)(rows()))


@pytest.mark.parametrize("dtype", ALL)
@every_module
def test_forward_is_exact_and_has_the_bits_of_the_functions(name, dtype):
    kind = getattr(torch, dtype)
    options = {} if name == "ScaleNorm" else {"bias": True, "weight_offset": 0.5}
    if name == "RMSNorm":
        options["eps"] = 1e-6
    module, x = filled(MADE[name](dtype=kind, **options)), rows(kind)
    held = [TORCH.read(parameter) for parameter in module.parameters()]
    if name == "ScaleNorm":
        y, norm = anynorm.scale_norm(x, module.scale), "scale_norm"
        exact = [reference.scale_norm(row, float(held[0])) for row in TORCH.read(x)]
    else:
        norm = "layer_norm" if name == "LayerNorm" else "rms_norm"
        y = getattr(anynorm, norm)(x, module.weight, module.bias, weight_offset=0.5)
        exact = [getattr(reference, norm)(row, *held, module.eps, 0.5) for row in TORCH.read(x)]
    for _ in range(4):  # the slow path and the short one
        got = module(x)
        assert torch.equal(got, y)
        assert got.requires_grad
    assert_exact(TORCH.read(got), exact, backend="torch", dtype=dtype, norm=norm)
    with torch.no_grad():
        assert torch.equal(module(x), y)
    same = anynorm.layer_norm(as_dtype(TORCH.read(x), dtype))
    np.testing.assert_array_equal(TORCH.read(norms.layer_norm(x)), same)


def test_functions_have_the_bits_of_anynorm():
    x, residual = rows(shape=(3, 2, 4)), rows(shape=(3, 2, 4), seed=2)
    weight, bias = rows(shape=(2,), seed=3), rows(shape=(2,), seed=4)
    for norm in ("layer_norm", "rms_norm"):
        for given in ((weight, bias), (weight,), (None, bias), ()):
            options = {"axis": 1, "eps": 1e-3, "weight_offset": 0.5 if given and given[0] is not None else 0.0}
            y = getattr(anynorm, norm)(x, *given, **options)
            assert torch.equal(getattr(norms, norm)(x, *given, **options), y)
            both = getattr(anynorm, f"add_{norm}")(x, residual, *given, **options)
            for one, other in zip(getattr(norms, f"add_{norm}")(x, residual, *given, **options), both, strict=True):
                assert torch.equal(one, other)
    for scale in (None, 1.5, torch.tensor(1.5)):
        got = norms.scale_norm(x, scale, axis=(0, 2), eps=1e-3)
        assert torch.equal(got, anynorm.scale_norm(x, scale, axis=(0, 2), eps=1e-3))


@every_module
def test_inputs_that_do_not_fit(name):
    module = MADE[name]()
    for shape in ((3, 7), (8, 3), ()):
        with pytest.raises(ValueError, match=r"last axes of the input must have the lengths \(8,\), got shape"):
            module(torch.ones(shape))
    with pytest.raises(TypeError, match="real floating dtype"):
        module(torch.ones(3, 8, dtype=torch.int64))
    with pytest.raises(ValueError, match="must be on x's device"):
        module(torch.ones(3, 8, device="meta"))
    for value in (np.ones((3, 8), np.float32), [1.0] * 8, None, "text"):
        with pytest.raises(
            TypeError, match=r"x must be a torch tensor, got .*; pass (torch.asarray\(x|a torch tensor)"
        ):
            module(value)


def test_several_axes_that_do_not_fit():
    module = norms.LayerNorm((2, 4))
    assert module(torch.ones(3, 2, 4)).shape == (3, 2, 4)
    for shape in ((3, 4, 2), (8,), (4,)):
        with pytest.raises(ValueError, match=r"lengths \(2, 4\), got shape"):
            module(torch.ones(shape))


@every_module
def test_arguments_that_are_none(name):
    for error, eps in ((TypeError, None), (TypeError, "1e-5"), (ValueError, -1e-5), (ValueError, float("inf"))):
        if eps is None and name == "RMSNorm":  # as of torch's
            continue
        with pytest.raises(error, match="eps must be"):
            MADE[name](eps=eps)
    if name != "ScaleNorm":
        with pytest.raises(TypeError, match="weight_offset must be a number"):
            MADE[name](weight_offset=None)


def test_dimensions_of_numpy():
    assert repr(norms.ScaleNorm(np.int64(4))) == repr(norms.ScaleNorm(4))
    assert type(norms.ScaleNorm(np.int64(4)).dim) is int


@pytest.mark.parametrize(("error", "dim"), [(ValueError, 0), (ValueError, -1), (TypeError, 2.0), (TypeError, True)])
def test_dimensions_that_are_none(error, dim):
    with pytest.raises(error, match="dim must be"):
        norms.ScaleNorm(dim)


@pytest.mark.parametrize("x", [torch.ones(2, 3), torch.ones(2, 3, device="meta")], ids=["cpu", "meta"])
def test_functions_say_the_same_on_every_device(x):
    wrong = [
        (TypeError, "x must have one of the real floating dtypes", lambda: norms.layer_norm(x.long())),
        (ValueError, "axis must lie in", lambda: norms.rms_norm(x, axis=2)),
        (ValueError, "axis must name each axis once", lambda: norms.layer_norm(x, axis=(1, -1))),
        (ValueError, "at least one axis", lambda: norms.layer_norm(x[0, 0])),
        (ValueError, "eps must be", lambda: norms.rms_norm(x, eps=-1.0)),
        (TypeError, "eps must be", lambda: norms.rms_norm(x, eps=None)),
        (ValueError, "weight must have the shape", lambda: norms.layer_norm(x, x[0, :1])),
        (ValueError, "pass weight too", lambda: norms.layer_norm(x, weight_offset=1.0)),
        (ValueError, "scale must be a number or a 0-d", lambda: norms.scale_norm(x, x[0])),
    ]
    for error, message, call in wrong:
        with pytest.raises(error, match=message):
            call()
    with pytest.raises(TypeError, match="x must be an array, got the list"):
        norms.layer_norm([1.0, 2.0])


@pytest.mark.parametrize(
    "make",
    [
        lambda: anynorm.torch.LayerNorm(64),
        lambda: anynorm.torch.LayerNorm(64, weight_offset=1.0),
        lambda: anynorm.torch.RMSNorm(64, bias=True),
    ],
)
def test_an_encoder_layer_of_torch_calls_them(make):
    """Without gradients it may read the parameters of its norms, and apply them as those of torch's LayerNorm."""
    layer = torch.nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True).eval()
    layer.norm1, layer.norm2 = make(), make()
    x = torch.randn(2, 5, 64)
    expected = layer(x)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["LayerNorm", "RMSNorm"])
def test_a_weight_for_each_head(name):
    options = {"weight_offset": 1.0, "bias": True, "weight_shape": (3, 8)}
    module = MADE[name](eps=1e-3, **options)
    assert (module.normalized_shape, module.weight.shape, module.bias.shape) == ((8,), (3, 8), (3, 8))
    assert (module.weight == 0.0).all()
    assert (module.bias == 0.0).all()
    assert "weight_offset=1.0, weight_shape=(3, 8)" in repr(module)
    filled(module)
    x, dy = (rows(shape=(5, 2, 3, 8), seed=seed) for seed in (1, 2))
    wide = [one.detach().double().requires_grad_() for one in (x, module.weight, module.bias)]
    function = torch.nn.functional.layer_norm if name == "LayerNorm" else torch.nn.functional.rms_norm
    expected = function(wide[0], (8,), eps=1e-3) * (1.0 + wide[1]) + wide[2]
    expected.backward(dy.double())
    for one in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        given = x.clone().requires_grad_()
        y = one(given)
        torch.testing.assert_close(y.double(), expected, rtol=2.0**-21, atol=2.0**-21)
        y.backward(dy)
        held = [given.grad, one.weight.grad, one.bias.grad]
        for got, theirs in zip(held, wide, strict=True):
            torch.testing.assert_close(got.double(), theirs.grad, rtol=2.0**-18, atol=2.0**-18)
    with torch.no_grad():
        y = module(x)
        nested = torch.nested.as_nested_tensor([x[:2], x[2:]], layout=torch.jagged)
        assert torch.equal(module(nested).values(), y)
        assert torch.equal(torch.compile(module, fullgraph=True, backend="eager")(x), y)
        assert torch.equal(module(x[0, 0]), y[0, 0])
        for wrong in (x[..., :2, :], x[..., 0], x[0, 0, 0]):
            with pytest.raises(ValueError, match=r"last axes of the input must have the lengths \(3, 8\)"):
                module(wrong)
    with pytest.raises(ValueError, match="weight_shape must end with the lengths of the normalized axes"):
        MADE[name](weight_shape=(8, 3))
    assert MADE[name](weight_shape=8).weight.shape == (8,)
    module.reset_parameters()
    assert (module.weight == 0.0).all()
    assert MADE[name](elementwise_affine=False, weight_shape=(3, 8)).weight is None
