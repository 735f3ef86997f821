"""Nested tensors of both layouts, as the modules of torch.nn take them: each row normalized, gradients and all."""

import copy

import pytest
import torch

import anynorm.torch as norms
from tests import reference
from tests.backends import TORCH
from tests.tolerances import assert_exact

pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested")
LAYOUTS = {"strided": torch.strided, "jagged": torch.jagged}
MADE = {
    "layer_norm": lambda: norms.LayerNorm(8, weight_offset=1.0),
    "rms_norm": lambda: norms.RMSNorm(8, eps=1e-6, bias=True),
    "scale_norm": lambda: norms.ScaleNorm(8),
}
every_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
every_norm = pytest.mark.parametrize("norm", MADE)


def parts(requires_grad=False, dtype=torch.float32):
    made = torch.Generator().manual_seed(0)
    found = [torch.randn(shape, generator=made).to(dtype) for shape in ((3, 8), (1, 8), (0, 8), (5, 8))]
    return [one.requires_grad_(requires_grad) for one in found]


def filled(norm):
    module = MADE[norm]()
    for place, parameter in enumerate(module.parameters()):
        parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(place))
    return module


@every_layout
@every_norm
def test_rows_are_normalized_exactly(norm, layout):
    module, x = filled(norm), parts()
    held = [parameter.detach().numpy() for parameter in module.parameters()]
    given = (*held, module.eps, 1.0) if norm == "layer_norm" else (*held, module.eps)
    for _ in range(6):  # the fast path of what is inside, too
        y = module(torch.nested.nested_tensor(x, layout=layout))
    assert (y.is_nested, y.layout, y.dtype) == (True, layout, torch.float32)
    for got, row in zip(y.unbind(), x, strict=True):
        assert got.shape == row.shape
        if len(row):
            expected = [getattr(reference, norm)(one, *given) for one in row.numpy()]
            assert_exact(TORCH.read(got), expected, backend="torch, nested", dtype="float32", norm=norm)


@every_layout
@every_norm
def test_gradients_are_those_of_the_parts(norm, layout):
    module = filled(norm)
    whole, apart, other = parts(True), parts(True), copy.deepcopy(module)
    dy = parts()
    y = module(torch.nested.as_nested_tensor(whole, layout=layout))
    sum((a * b).sum() for a, b in zip(y.unbind(), dy, strict=True)).backward()
    sum((other(a) * b).sum() for a, b in zip(apart, dy, strict=True)).backward()
    for a, b in zip(whole, apart, strict=True):
        assert torch.equal(a.grad, b.grad)
    for a, b in zip(module.parameters(), other.parameters(), strict=True):
        # Sums of nine terms below 2**4, in another order.
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=9 * 2.0**-19)


@every_layout
def test_residuals_may_be_added(layout):
    x = torch.nested.nested_tensor(parts(), layout=layout)
    assert (norms.RMSNorm(8)(x) + x).is_nested


def test_ragged_axes_elsewhere():
    """One that is not the second, is narrowed, or would be normalized."""
    x = torch.nested.nested_tensor([torch.randn(n, 3, 8) for n in (2, 5)], layout=torch.jagged)
    norm = norms.LayerNorm((3, 8))
    assert norm(x).shape == x.shape
    turned = x.transpose(1, 2)
    y = norms.LayerNorm(8)(turned)
    assert y.shape == turned.shape
    assert torch.equal(y.transpose(1, 2).values(), norms.LayerNorm(8)(x.values()))
    with pytest.raises(ValueError, match="the last axes of the input must have the lengths"):
        norm(turned)
    lengths = torch.tensor([3, 4]), torch.tensor([2, 5])
    narrowed = torch.nested.narrow(torch.randn(2, 10, 8), 1, *lengths, layout=torch.jagged)
    y = norms.LayerNorm(8)(narrowed)
    for got, part in zip(y.unbind(), narrowed.unbind(), strict=True):
        assert torch.equal(got, norms.LayerNorm(8)(part))


@every_layout
def test_lengths_that_do_not_fit(layout):
    x = torch.nested.nested_tensor([torch.randn(2, 7), torch.randn(3, 7)], layout=layout)
    for norm in (norms.LayerNorm(8), norms.RMSNorm((7, 7)), norms.ScaleNorm(8)):
        with pytest.raises(ValueError, match="the last axes of the input must have the lengths"):
            norm(x)


def test_in_a_graph():
    x = torch.nested.nested_tensor(parts(), layout=torch.jagged)
    norm = filled("layer_norm")
    compiled = torch.compile(norm, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x).values(), norm(x).values())
