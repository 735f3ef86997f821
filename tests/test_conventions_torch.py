"""Conventions in anynorm.torch: functions, modules, graphs."""

import copy
import pickle

import pytest
import torch

import anynorm
import anynorm.torch as norms
from anynorm import CONVENTIONS, Convention

NORMS = {"layer_norm": norms.LayerNorm, "rms_norm": norms.RMSNorm, "scale_norm": norms.ScaleNorm}
MINE = Convention(eps=1e-3, eps_place="outside", rounding="each", portion=0.5)
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`isinstance:FutureWarning"),
]


def rows(seed=0):
    return torch.randn(4, 8, generator=torch.Generator().manual_seed(seed)).bfloat16()


def by_function(norm, module, x, convention):
    return getattr(anynorm, norm)(x, *module.parameters(), convention=convention)


@pytest.mark.parametrize("convention", ["llama", "gemma", "nemotron", "x_transformers", MINE], ids=str)
@pytest.mark.parametrize("norm", NORMS)
def test_modules(norm, convention):
    x = rows().requires_grad_()
    module = NORMS[norm](8, convention=convention, dtype=torch.bfloat16)
    y = module(x)
    assert torch.equal(y, by_function(norm, module, x, convention))
    assert module.convention == (MINE if convention is MINE else CONVENTIONS[convention])
    assert f"convention={convention!r}" in repr(module)
    assert module.state_dict().keys() == NORMS[norm](8).state_dict().keys()
    for same in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module), torch.fx.symbolic_trace(module)):
        assert torch.equal(same(x), y)
    y.float().square().sum().backward()
    assert all(one.grad is not None for one in (x, *module.parameters()))
    with pytest.raises(torch.jit.Error, match="TorchScript has no norms by a convention"):
        torch.jit.script(module)(rows())


def test_modules_take_over_eps_and_offset():
    assert norms.RMSNorm(8, convention="gemma").weight_offset == 1.0
    assert norms.RMSNorm(8, convention="gemma").eps == 1e-6
    assert norms.RMSNorm(8, convention="llama", eps=1e-5).eps == 1e-5
    assert norms.RMSNorm(8, convention="torch").eps is None
    assert norms.LayerNorm(8, convention="keras").eps == 1e-3
    assert norms.LayerNorm(8, convention="keras", eps=1e-5).eps == 1e-5
    assert norms.LayerNorm(8).convention is None


@pytest.mark.parametrize("convention", ["llama", "gemma", "onnx", "x_transformers", MINE], ids=str)
@pytest.mark.parametrize("norm", NORMS)
def test_in_a_graph_they_are_what_they_are_in_eager_mode(norm, convention):
    torch.compiler.reset()
    module = NORMS[norm](8, convention=convention, dtype=torch.bfloat16)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    found = []
    for call in (module, compiled):
        x = rows().requires_grad_()
        module.zero_grad()
        y = call(x)
        y.backward(rows(1))
        found.append((y, x.grad, *(one.grad for one in module.parameters())))
    for eager, graph in zip(*found, strict=True):
        # Of a portion autograd adds two gradients that are each rounded, of which one may be as large as any.
        room = 2.0**-7 * graph.abs().max().item() if convention == MINE else 2.0**-20
        assert torch.allclose(eager.float(), graph.float(), rtol=2.0**-7, atol=room)
    assert torch.equal(found[0][0], found[1][0])


@pytest.mark.thorough  # it compiles C++
def test_a_compiler_leaves_no_rounding_out():
    """That of torch takes a conversion to 16 bits and back for nothing."""
    torch.compiler.reset()
    x, weight = rows(), rows(1)[0]

    def function(x, weight):
        return anynorm.rms_norm(x, weight, convention="llama")

    compiled = torch.compile(function, fullgraph=True)(x, weight)
    assert torch.equal(compiled, function(x, weight))
    assert not torch.equal(compiled, anynorm.rms_norm(x, weight))


@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
def test_of_a_sum(norm):
    add, x, residual, weight = getattr(norms, f"add_{norm}"), rows(), rows(1), rows(2)[0]
    y, total = add(x, residual, weight, convention="llama")
    assert torch.equal(total, x + residual)
    assert torch.equal(y, getattr(anynorm, norm)(total, weight, convention="llama"))


def test_the_operators_are_as_torch_wants_them():
    x, weight, bias = rows().float(), rows(1)[0].float(), rows(2)[0].float()
    report = torch.library.opcheck(
        torch.ops.anynorm.layer_norm_by, (x.requires_grad_(), weight, bias, [-1], 1e-5, 0.0, "llama")
    )
    assert set(report.values()) == {"SUCCESS"}
