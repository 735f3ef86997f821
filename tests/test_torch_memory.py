"""Tensors that have no memory, or none of their own: refused with a sentence or computed, and never read at 0."""

import pytest
import torch

import anynorm
import anynorm.torch
from tests import reference
from tests.backends import needs_llvmlite
from tests.tolerances import assert_exact

NAMES = ("x", "weight", "bias")


def given(requires_grad=False, dtype=torch.float32):
    """x, weight and bias, each a view that begins within its storage, as FSDP's parameters are."""
    made = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(shape, generator=made) for shape in ((5, 33), (2, 33), (2, 33)))
    return [one.to(dtype).requires_grad_(requires_grad) for one in (x[1:], weight[1], bias[1])]


def free(tensor):
    tensor.untyped_storage().resize_(0)
    return tensor


def refused(name):
    return pytest.raises(ValueError, match=f"^{name} has no memory any more: its storage was freed")


every_argument = pytest.mark.parametrize("place", range(3), ids=NAMES)


@every_argument
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("calls", [0, 1, 6], ids=["first call", "second call", "guarded call"])
def test_a_freed_storage_is_named(calls, requires_grad, place):
    for _ in range(calls):
        anynorm.layer_norm(*given(requires_grad))
    arguments = given(requires_grad)
    free(arguments[place].detach())
    for _ in range(2):
        with refused(NAMES[place]):
            anynorm.layer_norm(*arguments)


def test_a_storage_that_is_freed_between_calls_and_filled_again():
    arguments = given()
    expected = anynorm.layer_norm(*arguments)
    weight = arguments[1].clone()
    nbytes = arguments[1].untyped_storage().nbytes()
    for _ in range(6):
        anynorm.layer_norm(*arguments)
        free(arguments[1])
        with refused("weight"):
            anynorm.layer_norm(*arguments)
        arguments[1].untyped_storage().resize_(nbytes)
        arguments[1].copy_(weight)
        assert torch.equal(anynorm.layer_norm(*arguments), expected)


def test_in_every_other_place():
    x = given()[0]
    freed = free(given()[0])
    for call in (anynorm.moments, anynorm.scale_norm, anynorm.layer_norm_vjp, anynorm.torch.rms_norm):
        with refused("x"):
            call(freed)
    with refused("scale"):
        anynorm.scale_norm(x, free(torch.ones(3)[1]))
    with refused("residual"):
        anynorm.add_layer_norm(x, freed)
    with refused("out"):
        anynorm.layer_norm(x, out=freed)
    assert anynorm.layer_norm(free(torch.zeros(3, 0)).reshape(0, 3)).shape == (0, 3)  # which has nothing to read


@pytest.mark.parametrize("calls", [1, 6])
@pytest.mark.parametrize("place", [0, 1], ids=NAMES[:2])
def test_what_autograd_has_saved(place, calls):
    for _ in range(calls):
        arguments = given(requires_grad=True)
        y = anynorm.layer_norm(*arguments)
    free(arguments[place].detach())
    with refused(NAMES[place]):
        y.sum().backward()


CHANGED = {
    "another shape": lambda one: one.detach().reshape(1, -1).repeat(9, 1),
    "fewer": lambda one: one.detach()[..., :2].clone(),
    "elsewhere": lambda one: one.detach().to("meta"),
}
CALLS = {
    "layer_norm": anynorm.layer_norm,
    "many axes": lambda x, weight, bias: anynorm.layer_norm(x[None], weight, bias),
    "a sum": lambda x, weight, bias: anynorm.add_layer_norm(x, x, weight, bias)[0],
    "moments given": lambda x, weight, bias: anynorm.layer_norm(x, weight, bias, moments=anynorm.moments(x.detach())),
}


@needs_llvmlite
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("change", CHANGED.values(), ids=CHANGED)
def test_what_a_hook_makes_of_what_was_saved(change, call):
    for place in (0, 1):
        arguments = given(requires_grad=True)
        is_wanted = lambda one, ndim=arguments[place].ndim: (one.ndim > 1) == (ndim > 1) and one.shape[-1] > 1  # noqa: E731
        unpack = lambda one, is_wanted=is_wanted: change(one) if is_wanted(one) else one  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(lambda one: one, unpack):
            y = call(*arguments)
        with pytest.raises(RuntimeError, match=f"^{NAMES[place]} must be as it was in the call, of shape"):
            y.sum().backward()


@needs_llvmlite
@every_argument
def test_other_data_between_a_call_and_its_derivative(place):
    for call in (anynorm.layer_norm, CALLS["moments given"]):
        arguments = given(requires_grad=True)
        y = call(*arguments)
        arguments[place].data = torch.zeros(7)
        with pytest.raises(RuntimeError, match=rf"^{NAMES[place]} must be as it was in the call, .* shape \(7,\)"):
            y.sum().backward()
        arguments = given(requires_grad=True)
        y = call(*arguments)
        arguments[place].data = torch.zeros_like(arguments[place], dtype=torch.float64)
        if place:  # read and written as what it is
            y.sum().backward()
            assert arguments[place].grad.shape == (33,)
            continue
        with pytest.raises(
            RuntimeError, match=r"^x must be as it was in the call, .* torch.float32 on cpu, got a float64"
        ):
            y.sum().backward()


def test_what_a_pullback_holds():
    for place, name in enumerate((*NAMES[:2], "dy")):
        x, weight, _ = given()
        dy = torch.ones_like(x)
        pullback = anynorm.layer_norm_vjp(x, weight)[1]
        free((x, weight, dy)[place])
        with refused(name):
            pullback(dy)


@pytest.mark.parametrize("place", [1, 2], ids=NAMES[1:])
def test_a_pullback_that_holds_other_data_than_the_call_had(place):
    for other in (torch.zeros(2), torch.zeros(99), torch.zeros(3, 11)):
        arguments = given()
        pullback = anynorm.layer_norm_vjp(*arguments)[1]
        arguments[place].data = other
        with pytest.raises(ValueError, match=f"^{NAMES[place]} must have the shape of the normalized axes"):
            pullback(torch.ones(4, 33))


@needs_llvmlite
def test_zeros_that_have_no_memory_are_zeros():
    zeros = torch._efficientzerotensor((4, 33))
    x, weight, bias = given()
    for _ in range(6):
        anynorm.layer_norm(x, weight, bias)
    for _ in range(6):
        for rows in (zeros, zeros[1:]):  # a view of it has an address, which is none
            assert torch.equal(anynorm.layer_norm(rows, weight, bias), bias.expand(rows.shape))
        y = anynorm.layer_norm(x, zeros[0], bias)
        assert torch.equal(y.detach(), bias.expand(x.shape))
    expected = [reference.layer_norm(row, weight.numpy()) for row in x.numpy()]
    y = anynorm.layer_norm(x, weight, torch._efficientzerotensor((33,)))
    assert_exact(y.detach().numpy(), expected, backend="torch, zeros", dtype="float32", norm="layer_norm")
    assert not anynorm.layer_norm_vjp(x, weight)[1](zeros)[0].any()
    wanted = x.clone().requires_grad_()
    assert not torch.autograd.grad(anynorm.layer_norm(wanted), wanted, zeros)[0].any()
    with anynorm.use_kernel("cpu"), pytest.raises(RuntimeError, match="a tensor has no memory"):
        anynorm.layer_norm(zeros)
    with pytest.raises(RuntimeError, match="ZeroTensors are immutable"):
        anynorm.layer_norm(x, out=zeros)


OTHERS = {
    "csr": (lambda t: t[None].to_sparse_csr(), "must be a dense tensor, got layout torch.sparse_csr"),
    "mkldnn": (torch.Tensor.to_mkldnn, "must be a dense tensor, got layout torch._mkldnn"),
    "nested": (lambda t: torch.nested.nested_tensor([t]), "must be a dense tensor, got a nested one"),
    "jagged": (
        lambda t: torch.nested.nested_tensor([t], layout=torch.jagged),
        "must be a dense tensor, got a nested one; pass the tensors of {}.unbind\\(\\) one by one",
    ),
    "quantized": (
        lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
        "must have one of the real floating dtypes .*; pass {}.dequantize\\(\\)",
    ),
}


@every_argument
@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.filterwarnings("ignore:Sparse CSR|The PyTorch API of nested|.*quantiz")
def test_tensors_whose_numbers_lie_elsewhere(other, place):
    make, message = OTHERS[other]
    for calls in (0, 6):
        for _ in range(calls):
            anynorm.layer_norm(*given())
        arguments = given()
        tensor = arguments[place]
        arguments[place] = make(tensor[0] if other == "csr" and tensor.ndim == 2 else tensor)
        with pytest.raises(TypeError, match=message.format(NAMES[place])):
            anynorm.layer_norm(*arguments)


def test_out_within_transforms():
    """Wrappers have no address that could be compared."""
    x = given()[0]
    expected = [reference.layer_norm(row) for row in x.numpy()]

    def in_place(x):
        return anynorm.layer_norm(x, out=x.clone())

    for transformed in (torch.func.vmap(in_place), torch.func.functionalize(in_place)):
        assert_exact(transformed(x).numpy(), expected, backend="torch.func", dtype="float32", norm="layer_norm")
