"""What tensors on other devices get, torch's own operators, held against anynorm's on the CPU."""

import pytest
import torch

import anynorm
from anynorm._definition.norms import LAYER_NORM, RMS_NORM, SCALE_NORM
from anynorm._torch import native

RULES = {rule.name: rule for rule in (LAYER_NORM, RMS_NORM, SCALE_NORM)}
every_norm = pytest.mark.parametrize("norm", RULES)
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
EPS = 1e-3


def rows(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def own(norm, x, *parameters, **options):
    return native.norm(RULES[norm], x, *parameters, **{"eps": EPS} | options)


def anynorms(norm, x, *parameters, **options):
    return getattr(anynorm, norm)(x, *parameters, **{"eps": EPS} | options)


def assert_close(got, expected):
    """Within what float32 leaves of sums of a dozen terms below 2**4, and two roundings to a narrow dtype."""
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    error = max(2.0**-20, 2 * torch.finfo(got.dtype).eps)
    torch.testing.assert_close(got, expected, rtol=error, atol=error)


@pytest.mark.parametrize("axis", [-1, 0, 1, (1, 2), (0, 2), (0, -1, 1)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@every_norm
def test_axes_and_dtypes(norm, dtype, axis):
    x = rows(4, 3, 5, dtype=dtype)
    axes = sorted(one % 3 for one in (axis if isinstance(axis, tuple) else (axis,)))
    shape = [x.shape[one] for one in axes]
    assert_close(own(norm, x, axis=axis), anynorms(norm, x, axis=axis))
    for of_parameters in DTYPES:
        if norm == "scale_norm":
            for scale in (1.5, torch.tensor(1.5, dtype=of_parameters)):
                assert_close(own(norm, x, scale, axis=axis), anynorms(norm, x, scale, axis=axis))
            continue
        weight, bias = (rows(*shape, seed=i, dtype=of_parameters) for i in (1, 2))
        for given, offset in (((weight, bias), 0.0), ((weight, bias), 1.0), ((weight,), 0.5), ((None, bias), 0.0)):
            options = {"axis": axis, "weight_offset": offset}
            assert_close(own(norm, x, *given, **options), anynorms(norm, x, *given, **options))


@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
def test_an_offset_is_added_in_a_wide_type(norm):
    x, weight = rows(4, 8, dtype=torch.bfloat16), torch.full((8,), 0.003, dtype=torch.bfloat16)
    got, expected = (run(norm, x, weight, weight_offset=1.0) for run in (own, anynorms))
    assert torch.equal(got, expected)
    assert not torch.equal(got, anynorms(norm, x))


@every_norm
def test_gradients(norm):
    x = rows(4, 5, dtype=torch.float64).requires_grad_()
    parameters = [torch.tensor(1.5)] if norm == "scale_norm" else [rows(5, seed=1), rows(5, seed=2)]
    given = [x, *[one.double().requires_grad_() for one in parameters]]
    found = [torch.autograd.grad(run(norm, *given), given, rows(4, 5, seed=3).double()) for run in (own, anynorms)]
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=2.0**-45, atol=2.0**-45)


@every_norm
def test_arguments_are_checked(norm):
    x = rows(2, 3, 4)
    with pytest.raises(ValueError, match="axis must lie in"):
        own(norm, x, axis=5)
    with pytest.raises(ValueError, match="eps must be"):
        own(norm, x, eps=-1.0)
    with pytest.raises(ValueError, match=r"must have the shape|must be a number or a 0-d"):
        own(norm, x, rows(1))


@pytest.mark.parametrize("rule", [LAYER_NORM, RMS_NORM, SCALE_NORM], ids=lambda rule: rule.name)
def test_rows_of_zeros_without_eps(rule):
    x = torch.zeros(2, 8)
    x[1] = torch.arange(8.0)
    y = native.norm(rule, x, eps=0.0)
    assert (y[0] == 0).all()
    assert torch.isfinite(y).all()
