"""Small tensors that require a gradient take the fast path too: results and gradients have the bits of the slow one."""

import pytest
import torch

import anynorm
from tests import fast_path
from tests.backends import needs_llvmlite
from tests.test_fast_path_torch import HAS_EXCHANGE, every_dtype, slow_path, tensors

pytestmark = needs_llvmlite


def gradients(way, *arguments, norm="layer_norm", **options):
    held = [one.clone().requires_grad_() for one in arguments]
    found = way(*held) if way is not None else getattr(anynorm, norm)(*held, **options)
    y, *total = found if isinstance(found, tuple) else (found,)
    loss = (y * torch.arange(33)).sum() + sum(one.square().sum() for one in total)
    return [y, *total, *torch.autograd.grad(loss, held)]


@every_dtype
@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm", "add_layer_norm", "add_rms_norm"])
def test_gradients_have_the_bits_of_the_slow_path(norm, dtype):
    x, weight, bias = tensors(dtype=dtype)
    given = [x, *([tensors(dtype=dtype, seed=1)[0]] if norm.startswith("add") else []), weight, bias]
    expected = gradients(lambda *held: slow_path(*held, norm=norm), *given)
    with fast_path.checks() as seen:
        found = gradients(None, *given, norm=norm)
    assert bool(seen) != HAS_EXCHANGE
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm", "scale_norm", "add_layer_norm", "add_rms_norm"])
def test_gradients_over_every_axis(norm, axis):
    """No parameters, and as many rows as features, so that no shape tells one axis from the other."""
    x, residual = (tensors((33, 33), seed=seed)[0] for seed in range(2))
    given = [x, residual] if norm.startswith("add") else [x]
    expected = gradients(lambda *held: slow_path(*held, norm=norm, axis=axis), *given)
    with fast_path.checks() as seen:
        found = gradients(lambda *held: getattr(anynorm, norm)(*held, axis=axis), *given)
    assert bool(seen) != HAS_EXCHANGE
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("shape", [(4, 5, 6), (4, 5, 5)])
@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm", "add_layer_norm", "add_rms_norm", "scale_norm"])
def test_gradients_over_another_axis(norm, shape):
    given = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    of_sum, of_scale = norm.startswith("add"), norm == "scale_norm"
    parameters = [torch.tensor(2.0)] if of_scale else [torch.arange(1.0, 6.0), torch.arange(5.0)]

    def found():
        arguments = [one.clone().requires_grad_() for one in (*given[: 1 + of_sum], *parameters)]
        results = getattr(anynorm, norm)(*arguments, axis=1)
        y, *total = results if of_sum else (results,)
        loss = (y * torch.arange(shape[2])).sum() + sum(one.square().sum() for one in total)
        return [y, *total, *torch.autograd.grad(loss, arguments)]

    with anynorm.use_kernel("cpu"):
        expected = found()
    found()  # calls like it are on the fast path from now on
    with fast_path.checks() as seen:
        results = found()
    assert bool(seen) != HAS_EXCHANGE
    for one, other in zip(results, expected, strict=True):
        assert torch.equal(one, other)
