"""What training does with the norms: graphs that are kept, hooks, checkpoints, and tensors of any layout."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import anynorm
import anynorm.torch as norms
from tests.backends import ALL, TORCH, needs_llvmlite
from tests.tolerances import KERNEL_GRADIENT_BOUNDS, assert_exact, gradient_of_rows

NORMS = ("layer_norm", "rms_norm", "scale_norm")
every_norm = pytest.mark.parametrize("norm", NORMS)
EPS = 1e-3


def wide(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def given_to(norm, *shape, seed=0):
    """x, weight and bias, or x and a scale, all of which want a gradient."""
    shape = shape or (3, 5)
    parameters = [wide(seed=seed + 1)] if norm == "scale_norm" else [wide(shape[-1], seed=seed + i) for i in (1, 2)]
    return [one.requires_grad_() for one in (wide(*shape, seed=seed), *parameters)]


def run(norm, *given, **options):
    return getattr(norms, norm)(*given, **{"eps": EPS} | options)


def gradients(norm, given, dy, kernel=None, **options):
    if kernel is None:
        return torch.autograd.grad(run(norm, *given, **options), given, dy)
    with anynorm.use_kernel(kernel):
        return torch.autograd.grad(run(norm, *given, **options), given, dy)


def assert_close(got, expected):
    # Both are float64 throughout, with sums of a few dozen terms that lie below 2**6.
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=2.0**-42, atol=2.0**-42)


@pytest.mark.parametrize("dtype", ALL)
@every_norm
def test_calls_made_again_are_differentiated_exactly(norm, dtype):
    def rows(tensor):
        return TORCH.read(tensor).reshape(-1, 33)

    for shape in ((2, 33), (33,), (2, 1, 33), (1, 2, 1, 33)):  # of as many features, along axes that differ
        for seed in range(4):
            x, weight, dy = (
                wide(*s, seed=seed + i).to(getattr(torch, dtype)) for i, s in enumerate((shape, (33,), shape))
            )
            held = [one.requires_grad_() for one in ((x,) if norm == "scale_norm" else (x, weight))]
            parameter, named = (1.5, "scale") if norm == "scale_norm" else (weight, "weight")
            found = torch.autograd.grad(run(norm, x, parameter), held, dy)
            options = {named: 1.5 if norm == "scale_norm" else TORCH.read(weight), "eps": EPS}
            exact = gradient_of_rows(norm, rows(x), rows(dy), dtype, by_kernel=True, **options)
            for got, expected, of in zip(found, exact, ("dx", "dw"), strict=False):
                said = {"backend": "torch", "dtype": dtype, "norm": f"{norm} {of}", "bounds": KERNEL_GRADIENT_BOUNDS}
                assert_exact(rows(got), expected, **said)


LAYOUTS = {
    "plain": lambda t: t.clone(),
    "transposed": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "every other": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "repeated": lambda t: t[:1, :1].expand(t.shape),
    "one number": lambda t: t.flatten()[0].expand(t.shape),
    "negated": lambda t: torch._neg_view(-t),
}


@pytest.mark.parametrize("axis", [-1, 1, (0, 2)])
@pytest.mark.parametrize("of_dy", LAYOUTS)
@every_norm
def test_layouts(norm, of_dy, axis):
    lengths = [(4, 3, 6)[one] for one in (axis if isinstance(axis, tuple) else (axis,))]
    x, *parameters = given_to(norm, 4, 3, 6)
    if norm != "scale_norm":
        parameters = [wide(*lengths, seed=i).requires_grad_() for i in (1, 2)]
    dy = LAYOUTS[of_dy](wide(4, 3, 6, seed=9))
    for of_x in LAYOUTS.values():
        held = of_x(x.detach()).requires_grad_()
        got = gradients(norm, (held, *parameters), dy, axis=axis)
        assert got[0].shape == x.shape
        plain = held.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
        assert_close(got, gradients(norm, (plain, *parameters), dy.clone(), "definition", axis=axis))


@every_norm
def test_sums_have_gradients_of_one_number(norm):
    given = given_to(norm)
    run(norm, *given).sum().backward()
    assert_close([one.grad for one in given], gradients(norm, given, torch.ones(3, 5).double(), "definition"))


@every_norm
def test_gradients_are_found_of_what_wants_one(norm):
    given, dy = given_to(norm), wide(3, 5, seed=9)
    expected = gradients(norm, given, dy)
    for wanted in range(1, 2 ** len(given)):
        held = [one.detach().requires_grad_(bool(wanted >> i & 1)) for i, one in enumerate(given)]
        for _ in range(3):
            y = run(norm, *held)
            y.backward(dy)
        for one, exact in zip(held, expected, strict=True):
            assert (one.grad is not None) == one.requires_grad
            if one.requires_grad:  # added up
                torch.testing.assert_close(one.grad, 3 * exact, rtol=2.0**-50, atol=0)
    with torch.no_grad():
        assert run(norm, *given).grad_fn is None
    assert run(norm, *[one.detach() for one in given]).grad_fn is None


@every_norm
def test_a_graph_is_kept_or_freed(norm):
    given, dy = given_to(norm), wide(3, 5, seed=9)
    y = run(norm, *given)
    first, second = (torch.autograd.grad(y, given, dy, retain_graph=True) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)
    torch.autograd.grad(y, given, dy)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(y, given, dy)


@every_norm
@pytest.mark.parametrize("place", [0, 1])
def test_what_is_needed_must_not_be_written(norm, place):
    given = [one * 1 for one in given_to(norm)]
    y = run(norm, *given)
    given[place].data.mul_(1)  # behind its back
    y.sum().backward(retain_graph=True)
    with torch.no_grad():
        given[place].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@every_norm
def test_results_and_biases_may_be_written(norm):
    given, dy = given_to(norm), wide(3, 5, seed=9)
    expected = gradients(norm, given, dy)
    y = run(norm, *given)
    if norm != "scale_norm":
        with torch.no_grad():
            given[2].add_(1)
    y.mul_(2).relu_()
    got = torch.autograd.grad(y, given, dy)
    assert [one.shape for one in got] == [one.shape for one in expected]
    assert_close(torch.autograd.grad(run(norm, *given) * 2, given, dy), [2 * one for one in expected])


@pytest.mark.parametrize("norm", NORMS[:2])
def test_sums_with_a_residual(norm):
    x, weight, bias = given_to(norm)
    residual, dy, dtotal = wide(3, 5, seed=4).requires_grad_(), wide(3, 5, seed=5), wide(3, 5, seed=6)
    given = (x, residual, weight, bias)
    for used in (slice(0, 2), slice(0, 1), slice(1, 2)):  # of y and total
        found = []
        for together in (False, True):
            if together:
                results = getattr(norms, f"add_{norm}")(*given, eps=EPS)
            else:
                total = x + residual
                results = run(norm, total, weight, bias), total
            found.append(
                torch.autograd.grad(results[used], given, (dy, dtotal)[used], allow_unused=True, materialize_grads=True)
            )
        assert_close(*found)


@every_norm
def test_checkpoints_and_saved_tensors(norm):
    given, dy = given_to(norm), wide(3, 5, seed=9)
    expected = gradients(norm, given, dy)
    got = torch.autograd.grad(checkpoint(lambda *held: run(norm, *held), *given, use_reentrant=False), given, dy)
    assert all(map(torch.equal, got, expected))
    packed = []

    def pack(tensor):
        packed.append(tensor.data_ptr())
        return tensor.tolist()

    def unpack(values):
        return torch.tensor(values, dtype=torch.float64)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        y = run(norm, *given)
    # x and the weight: no statistics, no result, no copy.
    assert packed == [one.data_ptr() for one in given[:2]]
    assert_close(torch.autograd.grad(y, given, dy), expected)


@every_norm
def test_hooks(norm):
    given, seen = given_to(norm), []
    expected = gradients(norm, given, torch.ones(3, 5).double())
    for one in given:
        one.register_hook(lambda gradient: seen.append(gradient) or gradient * 2)
    y = run(norm, *given)
    y.register_hook(lambda gradient: gradient * 3)
    y.sum().backward()
    assert len(seen) == len(given)
    assert_close([one.grad for one in given], [6 * one for one in expected])


class Subclass(torch.Tensor):
    """Changes nothing, but might."""


@every_norm
def test_subclasses_go_to_the_definition(norm):
    given, dy = given_to(norm), wide(3, 5, seed=9)
    expected = gradients(norm, given, dy, "definition")
    x = given[0].detach().as_subclass(Subclass).requires_grad_()
    assert type(run(norm, x, *given[1:])) is Subclass
    got = gradients(norm, (x, *given[1:]), dy)
    assert_close([one.as_subclass(torch.Tensor) for one in got], expected)
    # A gradient may be of one, too, where all else is plain.
    got = gradients(norm, given, dy.as_subclass(Subclass))
    assert_close([one.as_subclass(torch.Tensor) for one in got], expected)


@needs_llvmlite
@every_norm
def test_a_forced_kernel_is_asked_for_the_derivative(norm):
    given, dy = given_to(norm), wide(3, 5, seed=9)
    y = run(norm, *given)
    with anynorm.use_kernel("cpu"):
        expected = torch.autograd.grad(y, given, dy, retain_graph=True)
        with pytest.raises(RuntimeError, match="plain tensors, got Subclass"):
            torch.autograd.grad(y, given, dy.as_subclass(Subclass), retain_graph=True)
    with anynorm.use_kernel("definition"):
        assert_close(torch.autograd.grad(y, given, dy), expected)
