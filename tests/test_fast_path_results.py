"""Small calls of tensors that are given results take the fast path, if no gradient is wanted and nothing overlaps."""

import pytest
import torch

import anynorm
from tests.backends import needs_llvmlite
from tests.fast_path import forced, takes_fast_path
from tests.test_fast_path_thresholds import every_kernel
from tests.test_fast_path_torch import HAS_EXCHANGE, OTHERS, Subclass, every_dtype, tensors

pytestmark = needs_llvmlite


def written(function, *arguments, out, **options):
    """The result in ``out``, which is what is returned, by the fast path; autograd is told of it."""
    outs = out if isinstance(out, tuple) else (out,)
    before = [one._version for one in outs]
    assert takes_fast_path(function, *arguments, out=out, **options) == HAS_EXCHANGE
    assert all(one._version > version for one, version in zip(outs, before, strict=True))
    result = function(*arguments, out=out, **options)
    assert all(a is b for a, b in zip(result if isinstance(out, tuple) else (result,), outs, strict=True))
    return outs


@every_dtype
@pytest.mark.parametrize("axis", [-1, 0])
def test_results_have_the_bits_of_the_slow_path(axis, dtype):
    x, residual = tensors((33, 33), dtype)[0], tensors((33, 33), dtype, seed=1)[0]
    _, *parameters = tensors((33, 33), dtype)
    for norm, given in (("layer_norm", parameters), ("rms_norm", parameters[:1]), ("scale_norm", [torch.tensor(2.0)])):
        function, options = getattr(anynorm, norm), {"axis": axis}
        expected, out = forced(function, x, *given, **options), torch.empty_like(x)
        function(x, *given, **options, out=out)
        assert torch.equal(written(function, x, *given, **options, out=out)[0], expected)
        if norm == "scale_norm":
            continue
        function, outs = getattr(anynorm, f"add_{norm}"), (torch.empty_like(x), torch.empty_like(x))
        both = forced(function, x, residual, *given, **options)
        function(x, residual, *given, **options, out=outs)
        for one, other in zip(written(function, x, residual, *given, **options, out=outs), both, strict=True):
            assert torch.equal(one, other)
        held = x.clone(), residual.clone()
        function(*held, *given, **options, out=held)
        for one, other in zip(held, both, strict=True):
            assert torch.equal(one, other)
        held = x.clone()
        assert getattr(anynorm, norm)(held, *given, **options, out=held) is held
        assert torch.equal(held, expected)


@pytest.mark.parametrize("granted", [True, False])
@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_gradients_that_are_wanted(place, granted):
    """Of an input within torch.no_grad() none is; a result may not require one there either."""
    arguments, out = tensors(), torch.zeros(2, 33)
    anynorm.layer_norm(*arguments, out=torch.empty_like(out))
    given = [*arguments, out]
    given[place].requires_grad_()
    expected = forced(anynorm.layer_norm, *tensors())
    with torch.set_grad_enabled(granted):
        if place == 3:
            with pytest.raises(ValueError, match="got a leaf that requires a gradient"):
                anynorm.layer_norm(*arguments, out=out)
            assert not out.any()
            return
        assert takes_fast_path(anynorm.layer_norm, *arguments, out=out) == (HAS_EXCHANGE and not granted)
        anynorm.layer_norm(*arguments, out=out)
    assert out.requires_grad == granted
    torch.testing.assert_close(out.detach(), expected)
    if granted:
        (gradient,) = torch.autograd.grad(out.square().sum(), given[place])
        assert gradient.shape == given[place].shape


def test_a_result_that_autograd_follows_already():
    x, weight, bias = tensors()
    anynorm.layer_norm(x, weight, bias, out=torch.empty_like(x))
    out = torch.ones(2, 33, requires_grad=True) * 1.0
    assert not takes_fast_path(anynorm.layer_norm, x, weight, bias, out=out)


@pytest.mark.parametrize("other", ["negated", "a subclass", "of other strides"])
@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_tensors_that_are_not_plain(place, other):
    given = [*tensors(), torch.zeros(2, 33)]
    *arguments, out = given
    anynorm.layer_norm(*arguments, out=out)
    change = OTHERS.get(other, lambda one: one.as_subclass(Subclass))
    given[place] = change(given[place])
    *arguments, out = given
    assert not takes_fast_path(anynorm.layer_norm, *arguments, out=out)
    plain = [one.as_subclass(torch.Tensor).resolve_neg().contiguous() for one in arguments]
    torch.testing.assert_close(out.as_subclass(torch.Tensor).resolve_neg(), forced(anynorm.layer_norm, *plain))


def test_errors_are_those_of_the_slow_path_and_nothing_is_written():
    memory = torch.arange(200.0)
    x, weight, out = memory[:66].view(2, 33), memory[66:99], torch.zeros(2, 33)
    anynorm.rms_norm(x, weight, out=out)
    before = memory.clone()
    wrong = [
        memory[1:67].view(2, 33), memory[40:106].view(2, 33), memory[98:164].view(2, 33), out[:1], out.double(), out.T,
        out.to("meta"), out.to_sparse(), out.tolist(), out.numpy(), torch.zeros(33).expand(2, 33), (out, out),
    ]  # fmt: skip
    for one in wrong:
        raised = []
        for function in (anynorm.rms_norm, lambda *given, **options: forced(anynorm.rms_norm, *given, **options)):
            with pytest.raises((TypeError, ValueError)) as error:
                function(x, weight, out=one)
            raised.append((error.type, str(error.value)))
        assert raised[0] == raised[1]
    for pair in (out, (out,), [out, out], (out, None), (None, out), (out, out), (weight, out)):
        with pytest.raises((TypeError, ValueError), match="out"):
            anynorm.add_rms_norm(x, x, weight, out=pair)
    assert torch.equal(memory, before)
    behind = memory[99:165].view(2, 33)
    assert torch.equal(written(anynorm.rms_norm, x, weight, out=behind)[0], forced(anynorm.rms_norm, x, weight))


def test_rows_in_place_that_a_kernel_cannot_hold(monkeypatch):
    """The first time, the slow path goes on from such a row."""
    from anynorm._kernels.cpu.fast_path import functions, offers
    from anynorm._kernels.cpu.launch import norm

    x, weight, bias = tensors((12, 33))
    x[[5, 7]] *= 1e30
    expected = forced(anynorm.layer_norm, x, weight, bias)
    monkeypatch.setattr(norm, "_fallbacks", {})
    monkeypatch.setattr(offers, "_offered", set())
    with every_kernel(functions.record(), 0):  # none is known
        anynorm.layer_norm(x[:1], weight, bias)
        for _ in range(3):
            held = x.clone()
            assert takes_fast_path(anynorm.layer_norm, held, weight, bias, out=held) == HAS_EXCHANGE
            assert torch.equal(held, expected)
