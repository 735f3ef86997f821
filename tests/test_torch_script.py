"""torch.jit.script and torch.fx take the modules as they take those of torch.nn."""

import io
import pickle

import pytest
import torch

import anynorm.torch as norms

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The TorchScript type system:UserWarning"),  # of graphs of torch.fx, any
]
MADE = {
    "layer": lambda: norms.LayerNorm(8),
    "layer of two axes, offset": lambda: norms.LayerNorm((5, 8), weight_offset=1.0),
    "layer without parameters": lambda: norms.LayerNorm(8, elementwise_affine=False),
    "rms": lambda: norms.RMSNorm(8),
    "rms with eps, bias, offset": lambda: norms.RMSNorm(8, 1e-3, bias=True, weight_offset=1.0),
    "layer with a weight for each of five": lambda: norms.LayerNorm(8, weight_shape=(5, 8)),
    "rms with the same and a bias": lambda: norms.RMSNorm(8, 1e-3, bias=True, weight_offset=1.0, weight_shape=(5, 8)),
    "scale": lambda: norms.ScaleNorm(8),
}
every_module = pytest.mark.parametrize("name", MADE)


def model(name):
    """Ours within one that holds other modules, and one of ours more."""
    made = torch.nn.Sequential(MADE[name](), torch.nn.Linear(8, 8), torch.nn.Sequential(norms.LayerNorm(8)))
    for seed, parameter in enumerate(made.parameters()):
        parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
    return made


X = torch.randn((3, 5, 8), generator=torch.Generator().manual_seed(9))


@every_module
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_scripted_modules_give_the_same(name, dtype):
    module, x = model(name)[0].to(dtype), X.to(dtype)
    scripted = torch.jit.script(module)
    # Each within 2 units of float32 at 2**4 at most, theirs a little more; and one rounding to bfloat16.
    error = 2.0**-17 if dtype == torch.float32 else 2.0**-7
    for given in (x, x / 64, torch.zeros_like(x)):
        torch.testing.assert_close(scripted(given), module(given), rtol=error, atol=error)
    wide = x.detach().clone().requires_grad_()
    scripted(wide).sum().backward()
    assert wide.grad.shape == x.shape
    with pytest.raises(Exception, match=r"normalized_shape|the last axis"):
        scripted(x[..., :7])


@every_module
def test_scripted_models_are_saved_and_loaded(name):
    whole = model(name)
    scripted, file = torch.jit.script(whole), io.BytesIO()
    torch.jit.save(scripted, file)
    file.seek(0)
    loaded = torch.jit.load(file)
    assert torch.equal(loaded(X), scripted(X))
    assert list(loaded.state_dict()) == list(whole.state_dict())
    torch.testing.assert_close(loaded(X), whole(X), rtol=2.0**-15, atol=2.0**-15)


@every_module
def test_graphs_of_fx_hold_a_node_for_each_norm(name):
    whole = model(name)
    graph = torch.fx.symbolic_trace(whole)
    names = [node.target.__name__ for node in graph.graph.nodes if node.op == "call_function"]
    assert names == [name.partition(" ")[0] + "_norm", "layer_norm"]
    for again in (graph, pickle.loads(pickle.dumps(graph))):
        assert torch.equal(again(X), whole(X))
    graph(X).sum().backward()
    assert all(parameter.grad is not None for parameter in whole[0].parameters())


@every_module
def test_graphs_of_one_module_are_pickled_and_scripted(name):
    module = model(name)[0]
    graph = torch.fx.symbolic_trace(module)
    assert torch.equal(pickle.loads(pickle.dumps(graph))(X), module(X))
    torch.testing.assert_close(torch.jit.script(graph)(X), module(X), rtol=2.0**-17, atol=2.0**-17)


def test_functions_are_nodes_too():
    def several(x, weight):
        y, total = norms.add_layer_norm(x, x, weight)
        z, _ = norms.add_rms_norm(total, x)
        return norms.layer_norm(y, weight) + norms.rms_norm(z, weight, eps=1e-3) + norms.scale_norm(x, 2.0)

    graph = torch.fx.symbolic_trace(several)
    weight = torch.linspace(0, 1, 8)
    assert torch.equal(graph(X, weight), several(X, weight))
    calls = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    for function in (
        norms.add_layer_norm,
        norms.add_rms_norm,
        norms.layer_norm,
        norms.rms_norm,
        norms.scale_norm,
    ):
        assert calls.count(function) == 1
