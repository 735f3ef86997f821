"""Names of torch that are not public may go: calls are right without each of them."""

from types import SimpleNamespace

import pytest
import torch
from torch.autograd import forward_ad

import anynorm
import anynorm.torch
from anynorm import _profiled
from anynorm._kernels import autograd, fast_paths
from anynorm._kernels.cpu.fast_path import functions
from anynorm._kernels.cpu.fast_path.tensors import fast_path_of_tensors
from anynorm._kernels.cpu.launch.norm import run_from
from anynorm._torch import state as torch_state
from tests.processes import script
from tests.tolerances import BOUNDS

MADE = torch.Generator().manual_seed(0)
GIVEN = [torch.randn(shape, generator=MADE) for shape in ((4, 33), (33,), (33,))]
NAMES = {
    "transforms": (torch._C, "_are_functorch_transforms_active"),
    "modes": (torch._C, "_len_torch_dispatch_stack"),
    "levels": (forward_ad, "_current_level"),
}


def assert_right(norm):
    """Hold a layer_norm and its gradients against torch's in float64."""
    exact = [one.double().requires_grad_() for one in GIVEN]
    wide = torch.nn.functional.layer_norm(exact[0], (33,), *exact[1:])
    given = [one.clone().requires_grad_() for one in GIVEN]
    for y in (norm(*GIVEN), norm(*given)):
        assert (y.double() - wide).abs().max() <= BOUNDS["float32"] * 2.0**-21  # of results below 8
    found = torch.autograd.grad(y.square().sum(), given)
    for one, expected in zip(found, torch.autograd.grad(wide.square().sum(), exact), strict=True):
        torch.testing.assert_close(one.double(), expected, rtol=2.0**-16, atol=2.0**-16)


@pytest.mark.parametrize("name", NAMES)
def test_calls_are_right_without_a_question(name, monkeypatch):
    monkeypatch.setattr(fast_paths, "_by_type", {})  # as in a process that has just begun
    monkeypatch.delattr(*NAMES[name])
    assert torch_state.is_followed(torch)
    fast_paths.add(torch.Tensor, fast_path_of_tensors(torch, lambda *given: 1 / 0, run_from))  # not even tried
    for _ in range(6):
        assert_right(anynorm.layer_norm)
        assert_right(anynorm.torch.layer_norm)
    with anynorm.use_kernel("cpu"), pytest.raises(RuntimeError, match="torch follows each operation"):
        anynorm.layer_norm(GIVEN[0])


def test_tracing_can_be_asked_in_public(monkeypatch):
    monkeypatch.delattr(torch._C, "_is_tracing")
    assert torch_state.tracing_question(torch) is torch.jit.is_tracing


def test_questions_that_are_gone_are_answered_with_yes():
    bare = SimpleNamespace(_C=SimpleNamespace())
    assert torch_state.transforms_question(bare)()
    assert torch_state.modes_question(bare)()
    assert torch_state.below_autograd(bare) is None
    bare.autograd, bare.jit = SimpleNamespace(forward_ad=SimpleNamespace()), SimpleNamespace(is_tracing=bool)
    assert torch_state.followed_question(bare)()
    assert not torch_state.followed_question(torch)()


def test_operators_without_the_block_below_autograd():
    """torch itself has no other way; so it is only kept from ours, which ask when they are imported."""
    code = """
import torch
below = torch._C._AutoDispatchBelowAutograd
del torch._C._AutoDispatchBelowAutograd
import anynorm.torch
torch._C._AutoDispatchBelowAutograd = below
from tests.test_torch_private import assert_right
for _ in range(2):
    assert_right(lambda *given: torch.ops.anynorm.layer_norm(*given, [-1], 1e-5, 0.0))
print(torch.ops.anynorm.layer_norm.default._name)
"""
    assert script(code) == ["anynorm::layer_norm"]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # what torch itself makes duals with
def test_tangents_are_found_without_the_level():
    """By asking the tensors."""
    bare = SimpleNamespace(autograd=SimpleNamespace(forward_ad=SimpleNamespace(unpack_dual=forward_ad.unpack_dual)))
    x = torch.ones(3)
    assert not torch_state.has_tangent(bare, [x])
    assert not torch_state.has_tangent(torch, [x])
    with forward_ad.dual_level():
        assert not torch_state.has_tangent(bare, [x])
        assert torch_state.has_tangent(bare, [x, forward_ad.make_dual(x, x)])
        assert torch_state.has_tangent(torch, [x])


def test_names_in_the_profiler(monkeypatch):
    """Without what torch uses itself they are ranges that a user annotates, without the question there are none."""
    with monkeypatch.context() as without:
        without.delattr(torch._C._profiler, "_RecordFunctionFast")
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiled:
            for _ in range(6):
                assert_right(anynorm.layer_norm)
        seen = [event.name for event in profiled.events() if event.name == "anynorm::layer_norm (cpu)"]
        assert len(seen) == 12
    monkeypatch.delattr(torch.autograd.profiler, "_is_profiler_enabled")
    assert not _profiled.is_profiled()
    monkeypatch.setattr(autograd, "_profiler", _profiled.profiler_of(torch))
    monkeypatch.setattr(fast_paths, "_by_type", {})  # as in a process that has just begun
    fast_paths.add(torch.Tensor, fast_path_of_tensors(torch, functions.program_of("torch"), run_from))
    assert_right(anynorm.layer_norm)
    expected = anynorm.layer_norm(*GIVEN)
    for _ in range(6):
        assert torch.equal(anynorm.layer_norm(*GIVEN), expected)
