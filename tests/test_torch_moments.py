"""Gradients of torch by way of moments: right, through the kernels, of any order, and under what follows a function."""

import numpy as np
import pytest
import torch
from torch.func import grad, jacrev, jvp, vmap

import anynorm
from tests import derivatives, reference
from tests.backends import ALL, KERNELS, TORCH, as_dtype, needs_llvmlite
from tests.tolerances import GRADIENT_BOUNDS, assert_exact

# Torch compiles derivatives of its own by what it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
NORMS = ("layer_norm", "rms_norm", "scale_norm")
every_norm = pytest.mark.parametrize("norm", NORMS)


def wide(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def parameters_of(norm):
    return [wide(seed=1)] if norm == "scale_norm" else [wide(6, seed=1), wide(6, seed=2)]


def partial(norm, x, *parameters):
    """A norm by the statistics of the first half of each row."""
    return getattr(anynorm, norm)(x, *parameters, moments=anynorm.moments(x[..., :3]))


def plain(norm, x, weight, bias=None):
    first = x[..., :3]
    if norm == "scale_norm":
        return weight * x / first.square().sum(-1, keepdim=True).sqrt()
    if norm == "rms_norm":
        return x / (first.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight + bias
    mean, variance = first.mean(-1, keepdim=True), first.var(-1, keepdim=True, correction=0)
    return (x - mean) / (variance + 1e-5).sqrt() * weight + bias


def assert_close(got, expected):
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kernel", KERNELS)
@every_norm
def test_gradients_of_first_and_second_order(norm, kernel):
    given = [one.requires_grad_() for one in (wide(4, 6), *parameters_of(norm))]
    with anynorm.use_kernel(kernel):
        y = partial(norm, *given)
        assert (type(y.grad_fn).__name__ == "_GivenBackward") == (kernel == "cpu")
        assert_close([y], [plain(norm, *given)])
        dy = wide(4, 6, seed=9)
        first = torch.autograd.grad(y, given, dy)
        assert_close(first, torch.autograd.grad(plain(norm, *given), given, dy))
        found = []
        for function in (partial, plain):
            once = torch.autograd.grad(function(norm, *given), given, dy, create_graph=True)
            found.append(torch.autograd.grad(sum(one.square().sum() for one in once), given, allow_unused=True))
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@needs_llvmlite
@pytest.mark.parametrize("dtype", ALL)
@every_norm
def test_rows_of_all_kinds_through_the_kernels(norm, dtype):
    """The bits are those of the NumPy pullback; of the sixth call too."""
    x, weight, dy, _ = derivatives.given(norm, dtype)
    held = TORCH.make(x).requires_grad_()
    parameter = float(weight) if norm == "scale_norm" else TORCH.make(weight).requires_grad_()
    wanted = [held] if norm == "scale_norm" else [held, parameter]
    with anynorm.use_kernel("cpu"):
        for _ in range(6):
            y = getattr(anynorm, norm)(held, parameter, moments=anynorm.moments(held.detach()))
            dx, *dweight = torch.autograd.grad(y, wanted, TORCH.make(dy))
    given = [anynorm.moments(x), x, dy]
    parameters = (float(weight),) if norm == "scale_norm" else (weight,)
    expected = getattr(anynorm, f"{norm}_vjp")(given[1], *parameters, moments=given[0])[1](given[2])
    for got, one in zip((dx, *dweight), expected[:2], strict=False):
        assert TORCH.read(got).tobytes() == one.tobytes()


@needs_llvmlite
def test_all_of_it_together_is_the_derivative_of_float32_rows():
    rng = np.random.default_rng(0)
    x, dy = (as_dtype(rng.standard_normal((6, 33)) * 3 + 7, "float32") for _ in range(2))
    exact = [reference.gradient("layer_norm", *rows)[0] for rows in zip(x, dy, strict=True)]
    held = TORCH.make(x).requires_grad_()
    with anynorm.use_kernel("cpu"):
        anynorm.layer_norm(held, moments=anynorm.moments(held)).backward(TORCH.make(dy))
    # Two gradients, each rounded, and their sum.
    bounds = {"float32": GRADIENT_BOUNDS["float32"] + 1.0}
    assert_exact(TORCH.read(held.grad), exact, backend="torch", dtype="float32", norm="layer_norm dx", bounds=bounds)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_moments_alone(kernel):
    x = wide(4, 6).requires_grad_()
    with anynorm.use_kernel(kernel):
        for function, expected in (
            (lambda found: found.mean, lambda x: x.mean(1, keepdim=True)),
            (lambda found: found.variance, lambda x: x.var(1, keepdim=True, correction=0)),
            (lambda found: found.mean_square, lambda x: x.square().mean(1, keepdim=True)),
            (
                lambda found: found.merge(found).variance * found.mean,
                lambda x: x.var(1, keepdim=True, correction=0) * x.mean(1, keepdim=True),
            ),
        ):
            got, plain = function(anynorm.moments(x)), expected(x)
            assert_close([got], [plain])
            for one in (wide(4, 1, seed=3), torch.ones(1, 1).double().expand(4, 1)):
                assert_close(
                    torch.autograd.grad(got, x, one, retain_graph=True),
                    torch.autograd.grad(plain, x, one, retain_graph=True),
                )
        pieces = anynorm.moments(x[:, :2]).merge(anynorm.moments(x[:, 2:]))
        assert_close(
            torch.autograd.grad(anynorm.layer_norm(x, moments=pieces), x, wide(4, 6, seed=3)),
            torch.autograd.grad(anynorm.layer_norm(x), x, wide(4, 6, seed=3)),
        )


@every_norm
def test_what_wants_a_gradient_gets_one(norm):
    dy = wide(4, 6, seed=9)
    values = wide(4, 6), *parameters_of(norm)
    every = [one.clone().requires_grad_() for one in (values[0], *values)]

    def run(other, x, *parameters):
        return getattr(anynorm, norm)(x, *parameters, moments=anynorm.moments(other[..., :3]))

    expected = torch.autograd.grad(run(*every), every, dy)
    for wanted in range(1, 2 ** len(every)):
        held = [one.detach().clone().requires_grad_(bool(wanted >> i & 1)) for i, one in enumerate(every)]
        run(*held).backward(dy)
        for one, exact in zip(held, expected, strict=True):
            assert (one.grad is not None) == one.requires_grad
            if one.requires_grad:
                torch.testing.assert_close(one.grad, exact, rtol=2.0**-50, atol=0)
    with torch.no_grad():
        assert run(*every).grad_fn is None


@every_norm
def test_transforms(norm):
    x, *parameters = wide(4, 6), *parameters_of(norm)

    def loss(function):
        return lambda x: function(norm, x, *parameters).pow(3).sum()

    assert_close([grad(loss(partial))(x)], [grad(loss(plain))(x)])
    assert_close([jacrev(loss(partial))(x)], [jacrev(loss(plain))(x)])
    assert_close([vmap(grad(loss(partial)))(x)], [vmap(grad(loss(plain)))(x)])
    assert_close(*(jvp(loss(function), (x,), (wide(4, 6, seed=5),)) for function in (partial, plain)))
    found = []
    for function in (partial, plain):
        held = x.clone().requires_grad_()
        y = function(norm, held, *parameters)
        found.append(torch.autograd.grad(y, held, wide(3, 4, 6, seed=7), is_grads_batched=True))
    assert_close(*found)


@every_norm
def test_pullbacks_are_followed(norm):
    """That of a norm and that of moments are differentiated themselves where x wants a gradient."""
    found = []
    for way in ("pullbacks", "autograd"):
        x, parameters = wide(4, 6).requires_grad_(), parameters_of(norm)
        dy = wide(4, 6, seed=9)
        if way == "pullbacks":
            moments, vjp_moments = anynorm.moments_vjp(x)
            dx, *_, gradient = getattr(anynorm, f"{norm}_vjp")(x, *parameters, moments=moments)[1](dy)
            dx = dx + vjp_moments(gradient)
        else:
            (dx,) = torch.autograd.grad(getattr(anynorm, norm)(x, *parameters), x, dy, create_graph=True)
        found.append([dx, *torch.autograd.grad(dx.pow(3).sum(), x)])
    assert_close(*found)


def test_a_compiled_function_has_the_same_gradients():
    x = wide(4, 6).requires_grad_()
    weight, bias = parameters_of("layer_norm")
    compiled = torch.compile(lambda x: partial("layer_norm", x, weight, bias), fullgraph=True, backend="aot_eager")
    got, expected = (
        torch.autograd.grad(function(x), x, wide(4, 6, seed=9))
        for function in (compiled, lambda x: partial("layer_norm", x, weight, bias))
    )
    assert_close(got, expected)


@needs_llvmlite
def test_what_is_written_in_place_has_no_gradient_through_the_kernel():
    x, out = wide(4, 6).requires_grad_(), wide(4, 6).requires_grad_() * 1
    with (
        anynorm.use_kernel("cpu"),
        pytest.raises(RuntimeError, match="a gradient is wanted of what is written in place"),
    ):
        anynorm.layer_norm(x, moments=anynorm.moments(x), out=out)
    negated = torch._neg_view(wide(4, 6))
    found = anynorm.moments(wide(4, 6))
    with anynorm.use_kernel("cpu"), pytest.raises(RuntimeError, match="a negated view"):
        anynorm.layer_norm(negated, moments=found)
