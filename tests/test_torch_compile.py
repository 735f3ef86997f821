"""The operators that torch.compile and torch.export keep in a graph: as torch wants them, with eager's bits."""

import itertools

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import grad, jacfwd, jvp, vmap

import anynorm
import anynorm.torch as norms
from tests.backends import thorough_but

NORMS = ("layer_norm", "rms_norm", "scale_norm")
# The compiler uses what torch has deprecated, and its export a spelling of its own trees.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`isinstance:FutureWarning"),
]


@pytest.fixture(autouse=True)
def nothing_compiled():
    torch.compiler.reset()


def rows(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape or (4, 8), generator=torch.Generator().manual_seed(seed)).to(dtype)


def compiled(function, backend="aot_eager", **options):
    return torch.compile(function, fullgraph=True, backend=backend, **options)


def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(8, 8), norms.LayerNorm(8), torch.nn.ReLU(), norms.RMSNorm(8, bias=True), norms.ScaleNorm(8)
    )


# x, weight, bias, axes; scale_norm has a number for a weight.
ARGUMENTS = {
    "all": (rows(), rows(8), rows(8), [-1]),
    "x alone": (rows(), None, None, [-1]),
    "no weight": (rows(), None, rows(8), [1]),
    "several axes": (rows(2, 3, 4), rows(2, 4), None, [0, 2]),
    "bfloat16": (rows(dtype=torch.bfloat16), rows(8), rows(8, dtype=torch.bfloat16), [-1]),
    "transposed": (rows(8, 4).t(), rows(8), rows(8), [-1]),
    "every other": (rows(4, 16)[:, ::2], rows(8), rows(8), [-1]),
    "no rows": (rows(0, 8), rows(8), rows(8), [-1]),
}


OPERATORS = [
    pytest.param(norm, name, marks=[] if norm == "layer_norm" or name == "no rows" else pytest.mark.thorough)
    for norm, name in itertools.product(NORMS, ARGUMENTS)
]


@pytest.mark.parametrize(("norm", "arguments"), OPERATORS)
def test_operators_are_as_torch_wants_them(norm, arguments):
    *tensors, axes = ARGUMENTS[arguments]
    offset = 0.5 if norm != "scale_norm" and tensors[1] is not None else 0.0
    if norm == "scale_norm":
        tensors[1:] = None if tensors[1] is None else torch.tensor(1.5, dtype=tensors[1].dtype), None
    # A view that wants a gradient must not be a leaf, or it would be copied, and no view any more.
    tensors = [None if one is None else one.detach().requires_grad_() for one in tensors]
    dy = torch.ones_like(tensors[0]).requires_grad_()
    options = (axes, 1e-5, offset)
    for operator, given in ((norm, tensors), (f"{norm}_backward", [dy, *tensors])):
        report = torch.library.opcheck(getattr(torch.ops.anynorm, operator), (*given, *options))
        assert set(report.values()) == {"SUCCESS"}


FUNCTIONS = {
    "layer_norm": lambda x, w, b: norms.layer_norm(x, w, b, weight_offset=1.0),
    "layer_norm, no parameters": lambda x, w, b: norms.layer_norm(x, eps=0),
    "layer_norm, axes": lambda x, w, b: norms.layer_norm(x.reshape(2, 2, 8), None, w.reshape(2, 4)[:, :2], axis=(0, 1)),
    "rms_norm, first axis": lambda x, w, b: norms.rms_norm(x.t(), w, axis=0),
    "rms_norm, bfloat16": lambda x, w, b: norms.rms_norm(x.bfloat16(), w, b),
    "scale_norm": lambda x, w, b: norms.scale_norm(x, w[0]),
    "scale_norm, number": lambda x, w, b: norms.scale_norm(x, 1.5) + w * b,
    "add_layer_norm": lambda x, w, b: torch.stack(norms.add_layer_norm(x, x.flip(0), w, b)),
    "add_rms_norm": lambda x, w, b: torch.stack(norms.add_rms_norm(x, x.flip(0), w)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_have_the_bits_of_eager(name):
    given = [one.requires_grad_() for one in (rows(), rows(8, seed=1), rows(8, seed=2))]
    function = FUNCTIONS[name]
    y, expected = compiled(function)(*given), function(*given)
    assert torch.equal(y, expected)
    assert y.stride() == expected.stride()
    dy = rows(*y.shape, seed=3, dtype=y.dtype)
    found = [torch.autograd.grad(one, given, dy, allow_unused=True) for one in (y, expected)]
    for got, wanted in zip(*found, strict=True):
        # Of what has no part in it there is none. Eager mode rounds the sum of two gradients by total but once; those
        # here are below 4.
        assert (got is None) == (wanted is None)
        if got is not None:
            torch.testing.assert_close(got, wanted, rtol=0, atol=2.0**-20 if name.startswith("add") else 0)


def test_a_model_in_each_mode():
    built, x = model(), rows()
    function = compiled(built)
    parameters = list(built.parameters())
    y = function(x)
    assert torch.equal(y, built(x))
    got, expected = (torch.autograd.grad(one(x).square().sum(), parameters) for one in (function, built))
    assert all(map(torch.equal, got, expected))
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found = function(x)
            assert torch.equal(found, y)
            assert not found.requires_grad
    built.eval()
    assert torch.equal(function(x), y)


@pytest.mark.thorough  # test_tracing.py has a norm alone
def test_inductor():
    built, x = model(), rows()
    function = compiled(built, "inductor")
    got, expected = (torch.autograd.grad(one(x).square().sum(), list(built.parameters())) for one in (function, built))
    # What the compiler makes of the Linear may add up in another order; gradients here lie below 1.
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2.0**-20)
    torch.testing.assert_close(function(x), built(x), rtol=0, atol=2.0**-20)


def test_one_graph_for_every_batch():
    counter, built = CompileCounter(), model()
    function = compiled(built, counter, dynamic=True)
    for count in (2, 3, 5, 9, 64):
        assert torch.equal(function(rows(count, 8)), built(rows(count, 8)))
    assert counter.frame_count == 1


def operators_in(graph):
    return [str(node.target) for node in graph.nodes if "anynorm" in str(node.target)]


def test_the_graph_holds_the_operators():
    graphs = []

    def keep(module, given):
        graphs.append(module.graph)
        return module

    compiled(model(), keep)(rows())
    written = [f"anynorm.{norm}" for norm in NORMS]
    assert operators_in(graphs[0]) == written
    exported = torch.export.export(model(), (rows(),), dynamic_shapes=({0: torch.export.Dim("count", min=2)},))
    assert operators_in(exported.graph) == [f"{name}.default" for name in written]
    assert operators_in(exported.run_decompositions().graph) == [f"{name}.default" for name in written]
    for count in (2, 7):
        assert torch.equal(exported.module()(rows(count, 8)), model()(rows(count, 8)))


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match="weight must have the shape of the normalized axes"):
        compiled(lambda x, w: norms.layer_norm(x, w))(rows(), rows(7))
    with pytest.raises(Exception, match=r"ValueError|Observed exception"):  # as the version words it
        compiled(norms.LayerNorm(7))(rows())


TRANSFORMS = {
    "grad": lambda f: grad(lambda x: f(x).pow(3).sum()),
    "vmap": vmap,
    "jvp": lambda f: lambda x: jvp(f, (x,), (x.flip(0),))[1],
    "jacfwd": jacfwd,
}


@pytest.mark.parametrize("transform", thorough_but("vmap", "jvp", of=TRANSFORMS))
def test_transforms_within_what_is_compiled(transform):
    # An operator of torch.library has no forward-mode derivative, and torch takes it for 0 then.
    function = TRANSFORMS[transform](lambda x: norms.layer_norm(x, eps=1e-3))
    x = rows(dtype=torch.float64)
    torch.testing.assert_close(compiled(function)(x), function(x), rtol=2.0**-44, atol=2.0**-44)


def test_dual_numbers_do_not_pass_for_plain_ones():
    function = compiled(lambda x: norms.rms_norm(x))
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="no forward-mode derivative"):
        function(forward_ad.make_dual(rows(), rows()))


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning")  # of torch's own RMSNorm
@pytest.mark.parametrize("kind", ["LayerNorm", "RMSNorm"])
def test_autocast(kind):
    linear, ours = torch.nn.Linear(8, 8), getattr(norms, kind)(8)
    x, both = rows().requires_grad_(), torch.nn.Sequential(linear, ours)
    with torch.autocast("cpu", torch.bfloat16):
        results = [both(x), compiled(both)(x), torch.nn.LayerNorm(8)(linear(x))]
        assert torch.equal(ours(linear(x)), results[0])
    assert {y.dtype for y in results} == {torch.bfloat16}
    assert torch.equal(results[1], results[0])
    results[0].float().square().sum().backward()
    assert {p.grad.dtype for p in (x, linear.weight, linear.bias, *ours.parameters())} == {torch.float32}
    assert x.grad.isfinite().all()
    assert ours.weight.grad.abs().min() > 0


def test_tensors_without_numbers():
    with FakeTensorMode():
        built = model()
        y = built(torch.empty(3, 8))
        y.sum().backward()
        assert (y.shape, built[1].weight.grad.shape, built[4].scale.grad.shape) == ((3, 8), (8,), ())
    built = model().to("meta")
    assert built(rows().to("meta")).device.type == "meta"
    assert compiled(built)(rows().to("meta")).shape == (4, 8)


def test_an_out_in_a_graph():
    x, residual, held = rows(), rows(seed=1), (torch.empty(4, 8), torch.empty(8, 4).t())

    def in_place(x, residual):
        total = x * 1.0
        return anynorm.add_rms_norm(total, residual, out=(torch.empty_like(x), total))

    for function in (in_place, lambda x, residual: anynorm.add_layer_norm(x, residual, out=held)):
        expected = [one.clone() for one in function(x, residual)]
        got = compiled(function)(x, residual)
        for mine, theirs in zip(got, expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=2.0**-21, atol=2.0**-21)
    assert torch.equal(held[0], got[0])
    assert torch.equal(held[1], got[1])
