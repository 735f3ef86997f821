"""In torch's profiler a call is named after its norm and what ran it; with no profiler on nothing is done for that."""

import sys

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.profiler import ProfilerActivity, profile

import anynorm
import anynorm.torch as norms
from anynorm import _profiled

MADE = {"layer_norm": norms.LayerNorm(8), "rms_norm": norms.RMSNorm(8, bias=True), "scale_norm": norms.ScaleNorm(8)}


def rows(seed=0):
    return torch.randn(4, 8, generator=torch.Generator().manual_seed(seed))


def names(function):
    """What anynorm is seen to do, with the shapes of the inputs, and the function's result."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
        result = function()
    return {event.name: event.input_shapes for event in profiled.events() if "anynorm" in event.name}, result


@pytest.mark.parametrize("name", MADE)
def test_modules_forward_and_backward(name):
    """In their first call and in those like one before, with the bits of a call that is not profiled."""
    module, x, dy = MADE[name], rows().requires_grad_(), rows(1)
    held = (x, *module.parameters())

    def run():
        y = module(x)
        return (y, *torch.autograd.grad(y, held, dy))

    for i in range(8):
        seen, found = names(run)
        assert list(seen) == [f"anynorm::{name} (cpu)", f"anynorm::{name}_backward (cpu)"]
        assert all(shapes[0] == [4, 8] for shapes in seen.values())
        assert seen[f"anynorm::{name} (cpu)"][1] == list(held[1].shape)
        if i % 2:  # so that calls like it are known before the next
            assert all(map(torch.equal, found, run()))
    with torch.no_grad():
        for _ in range(8):
            assert list(names(lambda: module(x))[0]) == [f"anynorm::{name} (cpu)"]
            module(x)


@pytest.mark.parametrize("where", [anynorm, norms])
def test_functions(where):
    x, residual = rows(), rows(1)
    for name in ("layer_norm", "rms_norm", "scale_norm"):
        for _ in range(7):
            assert list(names(lambda name=name: getattr(where, name)(x))[0]) == [f"anynorm::{name} (cpu)"]
    with anynorm.use_kernel("definition"):
        assert list(names(lambda: where.layer_norm(x))[0]) == ["anynorm::layer_norm (definition)"]
    for name in ("add_layer_norm", "add_rms_norm"):
        assert list(names(lambda name=name: getattr(where, name)(x, residual))[0]) == [f"anynorm::{name} (cpu)"]


def test_what_stands_beside_the_norms():
    x = rows()
    pulled = names(lambda: anynorm.rms_norm_vjp(x, x[0])[1](x))[0]
    assert list(pulled) == ["anynorm::rms_norm (cpu)", "anynorm::rms_norm_backward (cpu)"]
    assert list(names(lambda: anynorm.moments(x))[0]) == ["anynorm::moments (cpu)"]
    assert list(names(lambda: norms.layer_norm(x.to("meta")))[0]) == ["anynorm::layer_norm (torch)"]
    leaf = rows().requires_grad_()
    twice = names(lambda: torch.autograd.grad(norms.layer_norm(leaf).sum(), leaf, create_graph=True))[0]
    assert list(twice) == ["anynorm::layer_norm (cpu)", "anynorm::layer_norm_backward (definition)"]


def test_moments_and_norms_that_are_given_some():
    x = rows().requires_grad_()
    seen, _ = names(lambda: anynorm.rms_norm(x, moments=anynorm.moments(x[:, :4])).sum().backward())
    both = ["anynorm::moments", "anynorm::rms_norm", "anynorm::rms_norm_backward", "anynorm::moments_backward"]
    assert list(seen) == [f"{name} (cpu)" for name in both]


@pytest.mark.parametrize("norm", [anynorm.layer_norm, norms.layer_norm])
def test_what_is_compiled_is_not_compiled_anew(norm):
    torch.compiler.reset()
    counter, x = CompileCounter(), rows()
    compiled = torch.compile(lambda x: norm(x) * 2, fullgraph=True, backend=counter)
    expected = compiled(x)
    seen, y = names(lambda: compiled(x))
    assert counter.frame_count == 1
    assert torch.equal(y, expected)
    if norm is norms.layer_norm:  # the operator, and within it what ran it
        assert list(seen) == ["anynorm::layer_norm", "anynorm::layer_norm (cpu)"]


def test_torch_func_and_dispatch_modes_see_no_more_than_without():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            met.append(str(function))
            return function(*args, **(kwargs or {}))

    x, both = rows(), []
    for is_profiled in (False, True):
        met = []

        def run():
            with Count():
                return norms.rms_norm(x)

        both.append((names(run)[1] if is_profiled else run(), met))
    assert torch.equal(both[0][0], both[1][0])
    assert both[0][1] == both[1][1]
    seen, y = names(lambda: torch.func.vmap(norms.rms_norm)(x))
    assert list(seen) == ["anynorm::rms_norm (definition)"]
    assert torch.equal(y, torch.func.vmap(norms.rms_norm)(x))


def test_nothing_is_done_with_no_profiler_on():
    """Of small calls over one axis not even a question is asked that would be a call."""
    x, called = rows(), []
    for _ in range(8):
        norms.layer_norm(x)

    def note(frame, event, argument):
        if event == "call" and frame.f_code.co_filename == _profiled.__file__:
            called.append(frame.f_code.co_name)

    for axis, expected in ((-1, []), ((-1,), []), ((0, 1), ["is_profiled"])):
        called.clear()
        sys.setprofile(note)
        try:
            norms.layer_norm(x, axis=axis)
        finally:
            sys.setprofile(None)
        assert called == expected
