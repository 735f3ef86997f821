"""Tensors take the short way where they are like earlier ones in each respect; only the time tells."""

import gc
import weakref

import numpy as np
import pytest
import torch

import anynorm
from anynorm import _norms
from anynorm._kernels.cpu.fast_path import arrays as repeat
from anynorm._kernels.cpu.fast_path import tensors as repeat_torch
from anynorm._torch.state import Guards
from tests.backends import needs_llvmlite
from tests.processes import in_threads

pytestmark = needs_llvmlite
# Of the versions that the guards have been tried with; by others a call is looked at anew each time.
HAS_GUARDS = torch.__version__.startswith("2.13.")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture(autouse=True)
def nothing_remembered():
    repeat.forget()


def tensors(shape=(2, 33), dtype=torch.float32, seed=0):
    made = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=made).to(dtype) for s in (shape, shape[-1], shape[-1])]


def long_way(*arguments, norm="layer_norm", **options):
    with anynorm.use_kernel("cpu"):
        return getattr(anynorm, norm)(*arguments, **options)


def prime(*arguments, norm="layer_norm", **options):
    for _ in range(4):
        y = getattr(anynorm, norm)(*arguments, **options)
    assert (norm in repeat_torch._latest) == HAS_GUARDS
    return y


def goes_short(monkeypatch, *arguments, norm="layer_norm", **options):
    """Whether a call is made without being looked at anew."""
    looked = []
    with monkeypatch.context() as patched:
        patched.setattr(_norms, "check", lambda *given, **named: looked.append(1) or check(*given, **named))
        patched.setattr(repeat_torch, "_ask", lambda *given: looked.append(1) and None)
        getattr(anynorm, norm)(*arguments, **options)
    return not looked


check = _norms.check


def test_the_installed_torch_has_guards():
    assert (Guards.of(torch) is not None) == HAS_GUARDS


@every_dtype
@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
def test_guarded_calls_have_the_bits_of_the_long_way(norm, dtype, monkeypatch):
    x, weight, bias = tensors(dtype=dtype)
    for parameters in ((weight, bias), (weight,), (None, bias), (), (torch.nn.Parameter(weight), bias)):
        with torch.no_grad():
            prime(x, *parameters, norm=norm)
            for scale in (1.0, 1e-3, 0.0):
                assert goes_short(monkeypatch, x * scale, *parameters, norm=norm) == HAS_GUARDS
                y, expected = (way(x * scale, *parameters) for way in (getattr(anynorm, norm), long_way_of(norm)))
                assert torch.equal(y, expected)
                assert (y.dtype, y.shape, y.stride()) == (x.dtype, x.shape, x.stride())
    prime(x, 0.7, norm="scale_norm")
    assert torch.equal(anynorm.scale_norm(-x, 0.7), long_way(-x, 0.7, norm="scale_norm"))
    assert torch.equal(anynorm.scale_norm(x, 0.5), long_way(x, 0.5, norm="scale_norm"))


def long_way_of(norm):
    return lambda *arguments: long_way(*arguments, norm=norm)


def test_kinds_that_alternate_all_go_short(monkeypatch):
    kinds = [tensors((n, features)) for n in (1, 2) for features in (8, 33)]
    for _ in range(4):
        for kind in kinds:
            anynorm.layer_norm(*kind)
    for kind in kinds * 2:
        assert goes_short(monkeypatch, *kind) == HAS_GUARDS
        assert torch.equal(anynorm.layer_norm(*kind), long_way(*kind))


@every_dtype
def test_rows_that_a_kernel_cannot_hold(dtype):
    x, weight, bias = tensors(dtype=dtype)
    prime(x, weight, bias)
    largest = torch.finfo(dtype).max
    for scale in (largest / 8, 1 / largest, float("inf")):
        extreme = x.clone()
        extreme[1] *= scale
        got, expected = anynorm.layer_norm(extreme, weight, bias), long_way(extreme, weight, bias)
        assert torch.equal(got.nan_to_num(), expected.nan_to_num())
    weight[3] = largest
    assert torch.equal(anynorm.layer_norm(x, weight, bias), long_way(x, weight, bias))


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
    prime(*arguments)
    WAYS[way](place, OTHERS[other])(arguments)
    with anynorm.use_kernel("definition"):
        expected = anynorm.layer_norm(*[t.resolve_neg().contiguous() for t in arguments])
    for _ in range(4):
        y = anynorm.layer_norm(*arguments)
        assert y.dtype == arguments[0].dtype
        torch.testing.assert_close(y, expected)


def test_tensors_that_do_not_fit_are_refused_all_the_same():
    x, weight, bias = tensors()
    prime(x, weight, bias)
    wrong = [
        (ValueError, (x, weight[:-1], bias)),
        (ValueError, (x, weight[None], bias)),
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
    prime(x, weight, bias)
    calls = [(x,), (x, weight), (x, None, bias), (x, weight, weight), (x[:0], weight, bias), (x[0], weight, bias)]
    for arguments in calls:
        for _ in range(4):
            with anynorm.use_kernel("cpu" if arguments[0].numel() else "definition"):
                expected = anynorm.layer_norm(*arguments)
            assert torch.equal(anynorm.layer_norm(*arguments), expected)
    for options in ({"eps": 1.0}, {"eps": 0.0}, {"weight_offset": 1.0}):
        assert torch.equal(anynorm.layer_norm(x, weight, bias, **options), long_way(x, weight, bias, **options))


@pytest.mark.parametrize(("before", "then"), [({}, {"eps": 1.0}), ({"eps": 1.0}, {}), ({}, {"weight_offset": 1.0})])
def test_another_eps_or_offset_than_that_of_the_call_before(before, then):
    x, weight, bias = tensors()
    prime(x, weight, bias, **before)
    for options in (then, before, then, then, before):
        assert torch.equal(anynorm.layer_norm(x, weight, bias, **options), long_way(x, weight, bias, **options))


def test_results_are_tensors_like_any_other():
    x, weight, bias = tensors()
    y = prime(x, weight, bias)
    assert (type(y), y.is_leaf, y._version, y.storage_offset()) == (torch.Tensor, True, 0, 0)
    assert y.resize_(4, 33).shape == (4, 33)
    assert anynorm.layer_norm(x, weight, bias).data_ptr() not in (t.data_ptr() for t in (x, weight, bias))


class Subclass(torch.Tensor):
    """Changes nothing, but might."""


@pytest.mark.parametrize("place", [0, 1, 2])
def test_subclasses(place, monkeypatch):
    arguments = tensors()
    prime(*arguments)
    arguments[place] = arguments[place].as_subclass(Subclass)
    assert not goes_short(monkeypatch, *arguments)
    assert type(anynorm.layer_norm(*arguments)) is Subclass


def test_no_tensor_lives_on():
    arguments = tensors()
    held = [weakref.ref(t) for t in (*arguments, prime(*arguments))]
    del arguments
    gc.collect()
    assert [one() for one in held] == [None] * 4


def test_numbers_of_a_recipe_outlive_it():
    x, weight, bias = tensors()
    expected = prime(x, weight, bias)
    repeat_torch._recipes.clear()
    gc.collect()
    filled = [np.full(16, -1) for _ in range(1000)]  # memory that was given back would be among this
    assert torch.equal(anynorm.layer_norm(x, weight, bias), expected)
    del filled


@pytest.mark.parametrize("missing", ["guards", "fit"])
def test_without_guards(missing, monkeypatch):
    if missing == "guards":
        monkeypatch.delattr(torch._C._dynamo.guards, "TensorGuards")
    else:  # they let everything pass

        class Careless:
            def __init__(self, *_, **__):
                self.check = lambda *_: True

        monkeypatch.setattr(torch._C._dynamo.guards, "TensorGuards", Careless)
    assert Guards.of(torch) is None
    monkeypatch.setattr(repeat_torch, "_guards", None)
    arguments = tensors()
    expected = long_way(*arguments)
    for _ in range(4):
        assert torch.equal(anynorm.layer_norm(*arguments), expected)
    assert not repeat_torch._attempts


def test_many_threads_and_kinds():
    kinds = [tensors((n, 33), dtype) for n in (1, 2, 400) for dtype in DTYPES]
    expected = [long_way(*kind) for kind in kinds]
    wrong = []

    def work(seed):
        order = np.random.default_rng(seed)
        for i in order.integers(len(kinds), size=500):
            with torch.inference_mode(bool(seed % 2)):
                if not torch.equal(anynorm.layer_norm(*kinds[i]), expected[i]):
                    wrong.append(i)

    in_threads(work, range(4))
    assert wrong == []
