"""Small tensors in another order than C, and calls over several axes of them, take the fast path."""

import pytest
import torch

import anynorm
import anynorm.torch
from tests import fast_path
from tests.backends import needs_llvmlite
from tests.test_fast_path_torch import HAS_EXCHANGE, every_dtype, slow_path, takes_fast_path

pytestmark = needs_llvmlite
LIE = {
    "swapped": lambda t: t.transpose(0, 2).contiguous().transpose(0, 2),
    "every second": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "repeated": lambda t: t[:, :1].expand(t.shape),
}


@every_dtype
@pytest.mark.parametrize("axis", [-1, (0, 1), (-1, -2), (0, 2)], ids=str)
@pytest.mark.parametrize("lie", LIE)
def test_strides_and_several_axes(lie, axis, dtype):
    """With the bits, the strides and the gradients of the slow path; no shape tells one axis from another."""
    x = LIE[lie](torch.randn((6, 6, 6), generator=torch.Generator().manual_seed(0)).to(dtype))
    shape = (6,) if axis == -1 else (6, 6)
    weight, bias = (torch.arange(6.0 ** len(shape)).view(shape).to(dtype) / 36 for _ in range(2))
    expected = slow_path(x, weight, bias, axis=axis)
    assert takes_fast_path(x, weight, bias, axis=axis) == HAS_EXCHANGE
    y = anynorm.layer_norm(x, weight, bias, axis=axis)
    assert torch.equal(y, expected)
    assert y.stride() == expected.stride()
    held = [one.detach().requires_grad_() for one in (x, weight, bias)]
    dy = torch.arange(216.0).view(6, 6, 6).to(dtype)
    found = []
    for way in (slow_path, anynorm.layer_norm):
        with fast_path.checks() as seen:
            y = way(*held, axis=axis)
        assert bool(seen) == (way is slow_path or not HAS_EXCHANGE)
        found.append(torch.autograd.grad(y, held, dy))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_modules_of_tensors_in_another_order():
    """Return them in C order, as torch's do, whether functions have taken such tensors before or not."""
    x = LIE["swapped"](torch.randn(6, 6, 6))
    for norm, function in (
        (anynorm.torch.LayerNorm(6), anynorm.layer_norm),
        (anynorm.torch.RMSNorm(6), anynorm.rms_norm),
    ):
        for _ in range(2):
            assert norm(x).is_contiguous()
            assert not function(x, norm.weight).is_contiguous()
