"""Small tensors on the CPU take the fast path, if they are plain; only the time tells."""

import ctypes
import gc
import weakref

import numpy as np
import pytest
import torch

import anynorm
import anynorm.torch
from tests import fast_path
from tests.backends import needs_llvmlite
from tests.processes import in_threads

pytestmark = needs_llvmlite
# DLPack's exchange interface, by which the program looks at tensors; without it all take the slow path.
HAS_EXCHANGE = hasattr(torch.Tensor, "__dlpack_c_exchange_api__")
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def tensors(shape=(2, 33), dtype=torch.float32, seed=0):
    made = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=made).to(dtype) for s in (shape, shape[-1], shape[-1])]


def slow_path(*arguments, norm="layer_norm", **options):
    with anynorm.use_kernel("cpu"):
        return getattr(anynorm, norm)(*arguments, **options)


def takes_fast_path(*arguments, norm="layer_norm", **options):
    """Whether a call is made without being checked; the one before it was like it."""
    function = getattr(anynorm, norm)
    function(*arguments, **options)
    return fast_path.takes_fast_path(function, *arguments, **options)


@every_dtype
@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
def test_small_calls_have_the_bits_of_the_slow_path(norm, dtype):
    x, weight, bias = tensors(dtype=dtype)
    for parameters in ((weight, bias), (weight,), (None, bias), (), (torch.nn.Parameter(weight), bias)):
        with torch.no_grad():
            for scale in (1.0, 1e-3, 0.0):
                assert takes_fast_path(x * scale, *parameters, norm=norm) == HAS_EXCHANGE
                y, expected = (way(x * scale, *parameters) for way in (getattr(anynorm, norm), slow_path_of(norm)))
                assert torch.equal(y, expected)
                assert (y.dtype, y.shape, y.stride()) == (x.dtype, x.shape, x.stride())
    assert takes_fast_path(x, 0.7, norm="scale_norm") == HAS_EXCHANGE
    assert torch.equal(anynorm.scale_norm(-x, 0.7), slow_path(-x, 0.7, norm="scale_norm"))
    assert torch.equal(anynorm.scale_norm(x, 0.5), slow_path(x, 0.5, norm="scale_norm"))


def slow_path_of(norm):
    return lambda *arguments: slow_path(*arguments, norm=norm)


def test_kinds_that_alternate_all_go_short():
    kinds = [tensors((n, features)) for n in (1, 2) for features in (8, 33)]
    for _ in range(4):
        for kind in kinds:
            anynorm.layer_norm(*kind)
    for kind in kinds * 2:
        assert takes_fast_path(*kind) == HAS_EXCHANGE
        assert torch.equal(anynorm.layer_norm(*kind), slow_path(*kind))


@every_dtype
def test_rows_that_a_kernel_cannot_hold(dtype):
    x, weight, bias = tensors(dtype=dtype)
    anynorm.layer_norm(x, weight, bias)
    largest = torch.finfo(dtype).max
    for scale in (largest / 8, 1 / largest, float("inf")):
        extreme = x.clone()
        extreme[1] *= scale
        got, expected = anynorm.layer_norm(extreme, weight, bias), slow_path(extreme, weight, bias)
        assert torch.equal(got.nan_to_num(), expected.nan_to_num())
    weight[3] = largest
    assert torch.equal(anynorm.layer_norm(x, weight, bias), slow_path(x, weight, bias))


def replaced(place, by):
    def change(arguments):
        arguments[place] = by(arguments[place])

    return change


def with_data(place, by):
    def change(arguments):
        arguments[place].data = by(arguments[place].data)

    return change


WAYS = {"another": replaced, "the same with other data": with_data}
OTHERS = {
    "negated": torch._neg_view,
    "a view from within": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
    "of other strides": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "repeated": lambda t: t[..., :1].expand(t.shape),
    "float16": torch.Tensor.half,
    "float64": torch.Tensor.double,
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_what_becomes_of_a_tensor_is_seen(place, way, other):
    arguments = [t.clone() for t in tensors()]
    anynorm.layer_norm(*arguments)
    WAYS[way](place, OTHERS[other])(arguments)
    with anynorm.use_kernel("definition"):
        expected = anynorm.layer_norm(*[t.resolve_neg().contiguous() for t in arguments])
    for _ in range(4):
        y = anynorm.layer_norm(*arguments)
        assert y.dtype == arguments[0].dtype
        torch.testing.assert_close(y, expected)


def test_tensors_that_do_not_fit_are_refused_all_the_same():
    x, weight, bias = tensors()
    anynorm.layer_norm(x, weight, bias)
    wrong = [
        (ValueError, (x, weight[:-1], bias)),
        (ValueError, (x, weight[None, None], bias)),
        (ValueError, (x, weight, bias[1:])),
        (ValueError, (x[:, 1:], weight, bias)),
        (ValueError, (x[0, 0], weight, bias)),
        (ValueError, (x, weight.to("meta"), bias)),
        (TypeError, (x, weight.int(), bias)),
        (TypeError, (x, weight.to_sparse(), bias)),
        (TypeError, (x, weight.numpy(), bias)),
        (TypeError, (x, 1.0, bias)),
        (TypeError, (x, weight, 1.0)),
        (TypeError, (x.tolist(), weight, bias)),
    ]
    for error, arguments in wrong:
        with pytest.raises(error):
            anynorm.layer_norm(*arguments)
    for options in ({"eps": True}, {"eps": torch.tensor(1e-5)}, {"weight_offset": [0.0]}):
        with pytest.raises(TypeError):
            anynorm.layer_norm(x, weight, bias, **options)
    weight.resize_(5)
    with pytest.raises(ValueError, match="weight"):
        anynorm.layer_norm(x, weight, bias)


def test_other_values_and_parameters_left_out():
    x, weight, bias = tensors()
    anynorm.layer_norm(x, weight, bias)
    calls = [(x,), (x, weight), (x, None, bias), (x, weight, weight), (x[:0], weight, bias), (x[0], weight, bias)]
    for arguments in calls:
        for _ in range(4):
            with anynorm.use_kernel("cpu" if arguments[0].numel() else "definition"):
                expected = anynorm.layer_norm(*arguments)
            assert torch.equal(anynorm.layer_norm(*arguments), expected)
    for options in ({"eps": 1.0}, {"eps": 0.0}, {"weight_offset": 1.0}):
        assert torch.equal(anynorm.layer_norm(x, weight, bias, **options), slow_path(x, weight, bias, **options))


@pytest.mark.parametrize(("before", "then"), [({}, {"eps": 1.0}), ({"eps": 1.0}, {}), ({}, {"weight_offset": 1.0})])
def test_another_eps_or_offset_than_that_of_the_call_before(before, then):
    x, weight, bias = tensors()
    anynorm.layer_norm(x, weight, bias, **before)
    for options in (then, before, then, then, before):
        assert torch.equal(anynorm.layer_norm(x, weight, bias, **options), slow_path(x, weight, bias, **options))


def test_results_are_tensors_like_any_other():
    x, weight, bias = tensors()
    y = anynorm.layer_norm(x, weight, bias)
    assert (type(y), y.is_leaf, y._version, y.storage_offset()) == (torch.Tensor, True, 0, 0)
    assert y.resize_(4, 33).shape == (4, 33)
    assert anynorm.layer_norm(x, weight, bias).data_ptr() not in (t.data_ptr() for t in (x, weight, bias))


class Subclass(torch.Tensor):
    """Changes nothing, but might."""


@pytest.mark.parametrize("place", [0, 1, 2])
def test_subclasses(place):
    arguments = tensors()
    anynorm.layer_norm(*arguments)
    arguments[place] = arguments[place].as_subclass(Subclass)
    assert not takes_fast_path(*arguments)
    assert type(anynorm.layer_norm(*arguments)) is Subclass


def test_no_tensor_lives_on():
    arguments = tensors()
    held = [weakref.ref(t) for t in (*arguments, anynorm.layer_norm(*arguments))]
    del arguments
    gc.collect()
    assert [one() for one in held] == [None] * 4


def test_many_threads_and_kinds():
    kinds = [tensors((n, 33), dtype) for n in (1, 2, 400) for dtype in DTYPES]
    expected = [slow_path(*kind) for kind in kinds]
    wrong = []

    def work(seed):
        order = np.random.default_rng(seed)
        for i in order.integers(len(kinds), size=500):
            with torch.inference_mode(bool(seed % 2)):
                if not torch.equal(anynorm.layer_norm(*kinds[i]), expected[i]):
                    wrong.append(i)

    in_threads(work, range(4))
    assert wrong == []


@every_dtype
def test_sums_have_the_bits_of_the_slow_path(dtype):
    x, weight, bias = tensors(dtype=dtype)
    residual = tensors(dtype=dtype, seed=1)[0]
    for norm in ("add_layer_norm", "add_rms_norm"):
        for parameters in ((weight, bias), (weight,), ()):
            assert takes_fast_path(x, residual, *parameters, norm=norm) == HAS_EXCHANGE
            expected = slow_path(x, residual, *parameters, norm=norm)
            for one, other in zip(getattr(anynorm, norm)(x, residual, *parameters), expected, strict=True):
                assert torch.equal(one, other)
        assert not takes_fast_path(x, torch._neg_view(residual), norm=norm)


def test_scales_in_tensors():
    x = tensors()[0]
    for dtype in DTYPES:
        for scale in (0.3, -0.0, 2.0):
            held = torch.tensor(scale, dtype=dtype)
            assert takes_fast_path(x, held, norm="scale_norm") == HAS_EXCHANGE
            assert torch.equal(anynorm.scale_norm(x, held), slow_path(x, held, norm="scale_norm"))
        held = torch.tensor(2.0, dtype=dtype, requires_grad=True)
        y = anynorm.scale_norm(x, held)
        (gradient,) = torch.autograd.grad(y.sum(), held)
        torch.testing.assert_close(gradient, (y.sum() / 2).to(dtype).reshape(()))


@pytest.mark.parametrize("kind", [anynorm.torch.LayerNorm, anynorm.torch.RMSNorm, anynorm.torch.ScaleNorm])
def test_modules_take_it(kind):
    norm, x = kind(33), tensors()[0]
    for is_granted in (True, False):
        with torch.set_grad_enabled(is_granted):
            expected = norm(x)
            with fast_path.checks() as seen:
                y = norm(x)
            assert bool(seen) != HAS_EXCHANGE
            assert torch.equal(y, expected)
            assert y.requires_grad == is_granted
            with pytest.raises(ValueError, match="33"):
                norm(x[:, 1:])


def test_modules_whose_weight_was_replaced():
    """By one of another length, x has to fit both."""
    for norm in (anynorm.torch.LayerNorm(33), anynorm.torch.RMSNorm(33)):
        norm.weight = torch.nn.Parameter(torch.ones(32))
        for features in (32, 33):
            with pytest.raises(ValueError, match="33"):
                norm(torch.ones(2, features))


@pytest.mark.parametrize("other", ["no attribute", "no capsule", "another version", "no function"])
def test_without_the_exchange_interface(other, monkeypatch):
    """Then tensors take the slow path."""
    from anynorm._kernels.cpu.fast_path import functions

    if other == "no attribute":
        monkeypatch.delattr(torch.Tensor, "__dlpack_c_exchange_api__", raising=False)
    elif other == "no capsule":
        monkeypatch.setattr(torch.Tensor, "__dlpack_c_exchange_api__", 3, raising=False)
    else:
        exchange = functions._Exchange(2, 0, None, None, None, None, 1, None)
        if other == "no function":
            exchange.major, exchange.look_at_tensor = 1, 0
        monkeypatch.setattr(functions, "_pointer_in", lambda capsule, name: ctypes.addressof(exchange))
        monkeypatch.setattr(torch.Tensor, "__dlpack_c_exchange_api__", "a capsule", raising=False)
    before = functions.record().look_at_tensor
    assert not functions.write_torch(torch)
    assert functions.record().look_at_tensor == before


def test_a_profiler_sees_a_name():
    arguments = tensors()
    anynorm.layer_norm(*arguments)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiled:
        anynorm.layer_norm(*arguments)
    assert "anynorm::layer_norm (cpu)" in [event.name for event in profiled.events()]
