"""Derivatives of torch tensors: of first and second order, forward and backward, batched, and through modules."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

import anynorm
import anynorm.torch as norms
from tests import backends
from tests.backends import needs_llvmlite

NORMS = ("layer_norm", "rms_norm", "scale_norm")
every_norm = pytest.mark.parametrize("norm", NORMS)
# Torch compiles derivatives of its own by what it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
EPS = 1e-3


def wide(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain(norm, x, weight=None, bias=None, *, axis=-1, eps=EPS, weight_offset=0.0):
    """The formula, in torch's own operations, for parameters that broadcast."""
    if norm == "scale_norm":
        y = x / torch.linalg.vector_norm(x, dim=axis, keepdim=True).clamp_min(eps)
    else:
        x = x - x.mean(axis, keepdim=True) if norm == "layer_norm" else x
        y = x / ((x * x).mean(axis, keepdim=True) + eps).sqrt()
    y = y if weight is None else y * (weight + weight_offset)
    return y if bias is None else y + bias


def parameters_of(norm, seed=1):
    return (wide(seed=seed),) if norm == "scale_norm" else (wide(5, seed=seed), wide(5, seed=seed + 1))


def eager(norm):
    return lambda x, *parameters: getattr(norms, norm)(x, *parameters, eps=EPS)


def formula(norm):
    return lambda x, *parameters: plain(norm, x, *parameters)


def assert_close(got, expected):
    # Both are float64 throughout, with sums of a dozen terms that lie below 2**6.
    for one, other in zip(*((v if isinstance(v, tuple) else (v,)) for v in (got, expected)), strict=True):
        torch.testing.assert_close(one, other, rtol=2.0**-42, atol=2.0**-42)


def variants(norm):
    """Inputs and a function of them for each set of options."""
    function = getattr(norms, norm)
    x, cube = wide(2, 5), wide(2, 3, 2)
    if norm == "scale_norm":
        yield (x,), lambda x: function(x, eps=EPS)
        yield (x, wide()), lambda x, scale: function(x, scale, eps=EPS)
        yield (x,), lambda x: function(x, 1.5, axis=0)
        yield (x,), lambda x: function(x, eps=100.0)  # eps is the divisor
        yield (cube, wide()), lambda x, scale: function(x, scale, axis=(0, 2))
        return
    weight, bias = parameters_of(norm)
    yield (x,), lambda x: function(x, eps=EPS)
    yield (x, weight, bias), lambda *given: function(*given, eps=EPS, weight_offset=1.0)
    yield (x, bias), lambda x, bias: function(x, None, bias)
    yield (x, wide(2, seed=3), wide(2, seed=4)), lambda *given: function(*given, axis=0)
    yield (cube, wide(2, 2), wide(2, 2, seed=3)), lambda *given: function(*given, axis=(0, 2))
    add = getattr(norms, f"add_{norm}")
    yield (x, wide(2, 5, seed=5), weight, bias), lambda *given: add(*given, weight_offset=0.5)


def operators(norm):
    """The same of the operator, and of its derivative as a function of its own."""
    forward = getattr(torch.ops.anynorm, norm)
    backward = getattr(torch.ops.anynorm, f"{norm}_backward")
    x, dy = wide(2, 5), wide(2, 5, seed=6)
    weight, bias = (wide(), None) if norm == "scale_norm" else parameters_of(norm)
    offset = 0.0 if norm == "scale_norm" else 0.5
    given = (x, weight) if bias is None else (x, weight, bias)

    def with_bias(given):
        return given if bias is not None else (*given, None)

    yield given, lambda *given: forward(*with_bias(given), [-1], EPS, offset)
    yield (x,), lambda x: forward(x, None, None, [0, 1], EPS, 0.0)
    yield (dy, *given), lambda dy, *given: backward(dy, *with_bias(given), [-1], EPS, offset)[: len(given)]


@pytest.mark.filterwarnings("ignore:Please use `torch.vmap`:FutureWarning")  # gradcheck of older versions
@every_norm
@pytest.mark.parametrize("of", [variants, operators])
def test_numeric_differences(norm, of):
    for given, function in of(norm):
        given = tuple(one.clone().requires_grad_() for one in given)
        # By one random direction, unless all is to be run.
        how = {"fast_mode": backends.turn is not None}
        assert torch.autograd.gradcheck(function, given, check_batched_grad=of is variants, **how)
        assert torch.autograd.gradgradcheck(function, given, **how)


@pytest.mark.parametrize(
    "module",
    [
        norms.LayerNorm((2, 3), weight_offset=1.0),
        norms.LayerNorm(3, bias=False),
        norms.RMSNorm(3, bias=True),
        norms.RMSNorm((2, 3), elementwise_affine=False),
        norms.ScaleNorm(3),
    ],
    ids=str,
)
def test_numeric_differences_of_modules(module):
    module, x = module.double(), wide(2, 2, 3).requires_grad_()
    held = {name: torch.rand_like(parameter).requires_grad_() for name, parameter in module.named_parameters()}

    def function(x, *parameters):
        return functional_call(module, dict(zip(held, parameters, strict=True)), (x,))

    how = {"fast_mode": backends.turn is not None}
    assert torch.autograd.gradcheck(function, (x, *held.values()), **how)
    assert torch.autograd.gradgradcheck(function, (x, *held.values()), **how)


def loss_of(function):
    return lambda *given: function(*given).pow(3).sum()


def batched_gradients(function, given):
    """By is_grads_batched, in which many gradients by y come as one tensor that has no memory."""
    held = [one.clone().requires_grad_() for one in given]
    return torch.autograd.grad(function(*held), held, wide(4, 3, 5, seed=7), is_grads_batched=True)


def dual(function, given):
    with forward_ad.dual_level():
        first = forward_ad.make_dual(given[0], wide(3, 5, seed=7))
        return tuple(part.clone() for part in forward_ad.unpack_dual(function(first, *given[1:])))


def dual_gradient(function, given):
    """Forward over reverse: the gradient by y has a tangent."""
    x = given[0].clone().requires_grad_()
    y = function(x, *given[1:])
    with forward_ad.dual_level():
        (dx,) = torch.autograd.grad(y, x, forward_ad.make_dual(wide(3, 5, seed=7), wide(3, 5, seed=8)))
        return tuple(part.clone() for part in forward_ad.unpack_dual(dx))


def mapped_gradient(function, given):
    x = given[0].clone().requires_grad_()
    y = function(x, *given[1:])
    pull = vmap(lambda dy: torch.autograd.grad(y, x, dy)[0])
    return pull(wide(4, 3, 5, seed=7))


TRANSFORMS = {
    "grad": lambda f, given: grad(loss_of(f), tuple(range(len(given))))(*given),
    "vmap": lambda f, given: vmap(lambda x: f(x, *given[1:]))(given[0]),
    "gradients of samples": lambda f, given: vmap(
        grad(loss_of(f), tuple(range(len(given)))), (0, *[None] * (len(given) - 1))
    )(*given),
    "jvp": lambda f, given: jvp(lambda x: f(x, *given[1:]), given[:1], (wide(3, 5, seed=7),)),
    "jvp of parameters": lambda f, given: jvp(f, given, tuple(one + 1 for one in given)),
    "jacrev": lambda f, given: jacrev(f)(*given),
    "jacfwd": lambda f, given: jacfwd(f)(*given),
    "hessian": lambda f, given: hessian(loss_of(f))(*given),
    "vectorized hessian": lambda f, given: torch.autograd.functional.hessian(
        lambda x: loss_of(f)(x, *given[1:]), given[0], vectorize=True
    ),
    "batched gradients": batched_gradients,
    "dual numbers": dual,
    "dual numbers of a gradient": dual_gradient,
    "mapped gradients": mapped_gradient,
}


@every_norm
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms(norm, transform):
    given = wide(3, 5), *parameters_of(norm)
    run = TRANSFORMS[transform]
    for _ in range(3):  # what calls before have left behind is not to be found
        eager(norm)(*given)
    assert_close(run(eager(norm), given), run(formula(norm), given))


@pytest.mark.parametrize("name", ["LayerNorm", "RMSNorm"])
def test_gradients_of_samples_through_a_model(name):
    model = torch.nn.Sequential(torch.nn.Linear(5, 5), getattr(norms, name)(5, eps=EPS), torch.nn.Linear(5, 2)).double()
    held = {key: parameter.detach() for key, parameter in model.named_parameters()}
    x, norm = wide(4, 5), "layer_norm" if name == "LayerNorm" else "rms_norm"

    def by_modules(held, x):
        return functional_call(model, held, (x[None],)).square().sum()

    def by_formula(held, x):
        x = torch.nn.functional.linear(x[None], held["0.weight"], held["0.bias"])
        x = plain(norm, x, held["1.weight"], held.get("1.bias"))
        return torch.nn.functional.linear(x, held["2.weight"], held["2.bias"]).square().sum()

    got, expected = (vmap(grad(loss), (None, 0))(held, x) for loss in (by_modules, by_formula))
    assert list(got) == list(expected)
    assert_close(tuple(got.values()), tuple(expected.values()))


@every_norm
def test_third_order(norm):
    for function in (eager(norm), lambda *given: operator_of(norm, *given)):
        found = []
        for one in (function, formula(norm)):
            x = wide(3, 5).requires_grad_()
            value = loss_of(one)(x, *parameters_of(norm))
            for _ in range(2):
                (value,) = torch.autograd.grad(value.square().sum(), x, create_graph=True)
            found += torch.autograd.grad((value * wide(3, 5, seed=2)).sum(), x)
            assert not found[-1].requires_grad  # nobody has asked for a graph of this one
        torch.testing.assert_close(found[0], found[1], rtol=2.0**-36, atol=2.0**-36 * found[1].abs().max().item())


def operator_of(norm, x, weight, bias=None):
    return getattr(torch.ops.anynorm, norm)(x, weight, bias, [-1], EPS, 0.0)


@every_norm
def test_operators_have_no_wrong_forward_derivative(norm):
    given = wide(3, 5), *parameters_of(norm)
    with pytest.raises(NotImplementedError, match=f"no forward-mode derivative; call anynorm.torch.{norm}"):
        jvp(lambda x: operator_of(norm, x, *given[1:]), given[:1], given[:1])


@needs_llvmlite
@every_norm
def test_a_forced_definition_is_followed(norm):
    given = wide(3, 5), *parameters_of(norm)
    found = []
    for kernel in ("definition", "cpu"):
        held = [one.clone().requires_grad_() for one in given]
        with anynorm.use_kernel(kernel):
            y = eager(norm)(*held)
            assert (type(y.grad_fn).__name__ == "_NormBackward") == (kernel == "cpu")
            found.append(torch.autograd.grad(y, held, wide(3, 5, seed=7)))
    assert_close(*found)
