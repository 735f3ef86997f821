"""What the compiled kernels leave to the definition, with the reason, and with results that are right all the same."""

import contextlib

import numpy as np
import pytest
import torch

import anynorm
from tests import reference
from tests.backends import needs_llvmlite
from tests.tolerances import KERNEL_GRADIENT_BOUNDS, assert_exact, gradient_of_rows

pytestmark = needs_llvmlite
NORMS = ("layer_norm", "rms_norm", "scale_norm")
every_norm = pytest.mark.parametrize("norm", NORMS)

ROWS = np.random.default_rng(0).standard_normal((4, 33)).astype(np.float32) + 2
WEIGHT = np.random.default_rng(1).standard_normal(33).astype(np.float32)


def tensors(dtype=torch.float32):
    return torch.from_numpy(ROWS.copy()).to(dtype), torch.from_numpy(WEIGHT.copy()).to(dtype)


def call(norm, x, weight):
    return anynorm.scale_norm(x, 1.5) if norm == "scale_norm" else getattr(anynorm, norm)(x, weight, eps=1e-5)


def assert_right(norm, y):
    if norm == "scale_norm":
        expected = [reference.scale_norm(row, 1.5) for row in ROWS]
    else:
        expected = [getattr(reference, norm)(row, WEIGHT, None, 1e-5) for row in ROWS]
    got = y if isinstance(y, np.ndarray) else y.detach().numpy()
    assert_exact(got, expected, backend="refused", dtype="float32", norm=norm)


def assert_exact_gradient(norm, dx, dy):
    """The gradient of x of `call`, of whatever has dy as its gradient by y."""
    options = {"scale": 1.5} if norm == "scale_norm" else {"weight": WEIGHT}
    expected, _ = gradient_of_rows(norm, ROWS, dy.detach().numpy(), "float32", by_kernel=True, eps=1e-5, **options)
    said = {"backend": "refused", "dtype": "float32", "norm": f"{norm} dx", "bounds": KERNEL_GRADIENT_BOUNDS}
    assert_exact(dx.numpy(), expected, **said)


def assert_refused(reason, *arguments, **options):
    """Another runs the call; the kernel gives the reason, and raises where it is forced."""
    explained = anynorm.explain(*arguments, **options)
    assert explained.kernel != "cpu"
    assert reason in explained.refused["cpu"]
    weight = arguments[1:] if options.get("norm") != "scale_norm" else arguments[1:2]
    options.pop("residual", None)
    function = getattr(anynorm, options.pop("norm", "layer_norm"))
    with anynorm.use_kernel("cpu"), pytest.raises(RuntimeError, match="cpu was asked for and refuses this call"):
        function(arguments[0], *weight, **options)


def call_definition(norm, x, weight):
    with anynorm.use_kernel("definition"):
        return call(norm, x, weight)


def reasons_while(norm, x, weight, reasons):
    """Run a norm, and note why the kernel does not."""
    if norm == "scale_norm":
        reasons.append(anynorm.explain(x, 1.5, norm=norm).refused.get("cpu", "runs"))
    else:
        reasons.append(anynorm.explain(x, weight, norm=norm).refused.get("cpu", "runs"))
    return call(norm, x, weight)


@every_norm
def test_gradients_are_followed_but_not_into_what_is_written(norm):
    x, weight = tensors()
    x.requires_grad_()
    reasons, dy = [], torch.from_numpy(ROWS[::-1].copy())
    y = reasons_while(norm, x, weight, reasons)
    assert reasons == ["runs"]
    assert y.grad_fn is not None
    assert_right(norm, y)
    assert_exact_gradient(norm, *torch.autograd.grad(y, x, dy), dy)
    assert_refused("a gradient is wanted of what is written in place", x, out=torch.empty_like(x))
    if norm != "scale_norm":
        x, weight = tensors()
        y = reasons_while(norm, x, weight.requires_grad_(), reasons)
        assert reasons[-1] == "runs"
        (got,) = torch.autograd.grad(y.sum(), weight)
        (expected,) = torch.autograd.grad(call_definition(norm, x, weight).sum(), weight)
        # The kernel adds up four rows in float32: 4 units at the norm of the terms, which are as large as 2 to 4.
        torch.testing.assert_close(got, expected, rtol=2.0**-21, atol=2.0**-20)
    wide = [t.requires_grad_() for t in tensors(torch.float64)]
    assert torch.autograd.gradcheck(lambda x, weight: call(norm, x[:2, :5], weight[:5]), wide)


@every_norm
def test_no_gradient_is_wanted_under_no_grad(norm):
    x, weight = tensors()
    x.requires_grad_()
    for context in (torch.no_grad(), torch.inference_mode()):
        reasons = []
        with context:
            y = reasons_while(norm, x, torch.nn.Parameter(weight), reasons)
        assert reasons == ["runs"]
        assert type(y) is torch.Tensor
        assert not y.requires_grad
        with torch.no_grad():
            assert_right(norm, y)
    detached = reasons_while(norm, x.detach(), weight, reasons)
    assert reasons[-1] == "runs"
    assert torch.equal(detached, y)


@every_norm
def test_derivatives_of_derivatives_go_through_the_definition(norm):
    x, weight = tensors(torch.float64)
    x.requires_grad_()
    parameters = (1.5,) if norm == "scale_norm" else (weight,)
    with torch.no_grad():
        y, pullback = getattr(anynorm, f"{norm}_vjp")(x, *parameters, eps=1e-5)
        plain = pullback(y)
    with anynorm.use_kernel("cpu"):
        with pytest.raises(RuntimeError, match="a derivative of the derivative is wanted"):
            pullback(y)
        # That of autograd, too, is the definition's.
        (first,) = torch.autograd.grad(call(norm, x, weight).pow(3).sum(), x, create_graph=True)
        assert first.requires_grad
    followed = pullback(y)
    assert followed[0].requires_grad
    # Both are within 16 units of the exact gradient, of float64 at its terms; these are below 2**4 here.
    torch.testing.assert_close(followed[0].detach(), plain[0], rtol=0, atol=32 * 2.0**-49)


def test_gradients_of_residuals_and_scales():
    x, weight = tensors()
    held = x.clone().requires_grad_()
    assert anynorm.explain(x, weight, residual=held).kernel == "cpu"
    out = torch.empty_like(x), torch.empty_like(x)
    explained = anynorm.explain(x, weight, residual=held, out=out)
    assert "a gradient is wanted of what is written in place" in explained.refused["cpu"]
    for arguments in ((x, held), (held, x)):
        y, total = anynorm.add_rms_norm(*arguments, weight)
        assert y.requires_grad
        assert total.requires_grad
    scale = torch.tensor(1.5, requires_grad=True)
    assert anynorm.explain(x, scale, norm="scale_norm").kernel == "cpu"
    y = anynorm.scale_norm(x, scale)
    assert_right("scale_norm", y)
    assert y.requires_grad


def test_autograd_sees_that_a_tensor_was_written():
    x, _ = tensors()
    x.requires_grad_()
    held = x * 2
    loss = (held**2).sum()
    with torch.no_grad():
        assert anynorm.layer_norm(held, out=held) is held
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    y, total = torch.empty_like(held), torch.empty_like(held)
    with torch.no_grad():
        anynorm.add_rms_norm(held, held, out=(y, total))
    assert (y._version, total._version) == (1, 1)


class Subclass(torch.Tensor):
    """Changes nothing, but might."""


@every_norm
def test_tensor_subclasses(norm):
    x, weight = tensors()
    held = x.as_subclass(Subclass)
    y = call(norm, held, weight)
    assert type(y) is Subclass
    assert_right(norm, y.as_subclass(torch.Tensor))
    assert_refused("plain tensors, got Subclass", held)
    assert_refused("plain tensors, got Subclass", x, weight.as_subclass(Subclass))


@every_norm
def test_negated_views(norm):
    # The imaginary part of a conjugate shares memory with numbers of the other sign.
    x, weight = tensors()
    negated = torch.complex(x, -x).conj().imag
    assert negated.is_neg()
    assert torch.equal(negated, x)
    assert_right(norm, call(norm, negated, weight))
    assert_refused("negated view", negated)
    other = torch.complex(weight, -weight).conj().imag
    assert_refused("negated view", x, other)
    assert_refused("negated view", x, out=torch.complex(x, x).conj().imag)
    if norm != "scale_norm":
        assert_right(norm, call(norm, x, other))
    out = torch.zeros(4, 33, dtype=torch.complex64).conj().imag
    parameters = (1.5,) if norm == "scale_norm" else (weight,)
    getattr(anynorm, norm)(x, *parameters, eps=1e-5, out=out)
    assert_right(norm, out.resolve_neg())


@every_norm
@pytest.mark.parametrize("dtype", [">f4", "<f4"])
def test_other_byte_orders(norm, dtype):
    native = np.dtype(dtype).isnative
    x, weight = ROWS.astype(dtype), WEIGHT.astype(dtype)
    y = call(norm, x, weight)
    assert y.dtype == x.dtype
    assert_right(norm, y.astype(np.float32))
    assert_right(norm, call(norm, ROWS, weight))
    with contextlib.nullcontext() if not native else pytest.raises(AssertionError):
        assert_refused("in the byte order of another machine", x)
        assert_refused("in the byte order of another machine", ROWS, weight)


@every_norm
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_given_moments(norm, library):
    x, weight = (ROWS, WEIGHT) if library == "numpy" else tensors()
    given = anynorm.moments(x)
    parameters = (1.5,) if norm == "scale_norm" else (weight,)
    with anynorm.use_kernel("cpu"):
        assert_right(norm, getattr(anynorm, norm)(x, *parameters, eps=1e-5, moments=given))
    if library == "torch":
        x.requires_grad_()  # test_torch_moments.py has the gradients
        assert anynorm.explain(x, *parameters, norm=norm, moments=given).kernel == "cpu"


def test_empty_arrays_and_other_libraries():
    import jax.numpy as jnp

    assert_refused("x is empty", np.ones((0, 3)))
    assert_refused("x is empty", torch.ones(3, 0))
    assert_refused("x is an array of jax", jnp.ones((2, 3)))
    assert anynorm.layer_norm(np.ones((0, 3))).shape == (0, 3)


@pytest.mark.parametrize("scale", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("make", [np.asarray, torch.tensor])
def test_scales_that_are_not_finite(make, scale):
    x = make(ROWS)
    scale = make(np.float32(scale))
    assert_refused("the scale is not finite", x, scale, norm="scale_norm")
    y, expected = np.asarray(anynorm.scale_norm(x, scale)), np.float32(scale) * np.sign(ROWS)
    np.testing.assert_array_equal(y, expected)
