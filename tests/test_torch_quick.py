"""Derivatives of plain tensors for torch's autograd, planned once: with the bits of all others."""

import sys
import weakref
from pathlib import Path

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

import anynorm
import anynorm.torch
from anynorm._check import Gradient, check
from anynorm._choose import choose_vjp
from anynorm._definition.norms import LAYER_NORM, RMS_NORM, SCALE_NORM
from anynorm._kernels import autograd
from anynorm._kernels.cpu.threads import crew
from tests.backends import TORCH, needs_llvmlite
from tests.test_fast_path_torch import HAS_EXCHANGE
from tests.test_torch_autograd import Subclass
from tests.tolerances import KERNEL_GRADIENT_BOUNDS, assert_exact, gradient_of_rows

pytestmark = needs_llvmlite
RULES = {"layer_norm": LAYER_NORM, "rms_norm": RMS_NORM}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}


def tensor(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def quickly(rule, x, weight, bias, dy, axes=None, parameters=True, eps=1e-3, offset=0.0):
    from anynorm._kernels.cpu.launch.quick_vjp import quick_vjp

    return quick_vjp((None, rule, axes or (x.ndim - 1,), eps, offset), x, weight, bias, dy, parameters)


def by_any_way(rule, x, weight, bias, dy, axes=None, parameters=True, eps=1e-3, offset=0.0):
    from anynorm._kernels.cpu.launch.vjp import vjp

    call = check(rule, x, weight, bias, axes or -1, eps, weight_offset=offset)
    return vjp(Gradient(call, dy, None, parameters))


def assert_same(found, expected):
    assert len(found) == len(expected) == 3
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert one.dtype == other.dtype
            assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@every_rule
def test_the_bits_are_those_of_every_way(rule, dtype):
    # Up to 64 rows are a block, and more than 16 blocks are none.
    for shape in ((33,), (1, 7), (64, 33), (65, 33), (2, 512, 33), (1025, 33), (15, 5)):
        x, dy = tensor(*shape, dtype=dtype), tensor(*shape, dtype=dtype, seed=1)
        same = [tensor(shape[-1], dtype=dtype, seed=seed) for seed in (2, 3)]
        wider = [tensor(shape[-1], dtype=torch.float64, seed=seed) for seed in (2, 3)]
        for weight, bias in ((None, None), same, wider, (wider[0], same[1]), (same[0], None), (None, same[1])):
            for options in ({}, {"parameters": False}, {} if weight is None else {"offset": 1.0}, {"eps": 0.0}):
                given = rule, x, weight, bias, dy
                for _ in range(2):
                    assert_same(quickly(*given, **options), by_any_way(*given, **options))


@every_rule
def test_several_axes_at_the_end_are_one(rule):
    x, dy, *parameters = (tensor(*shape, seed=seed) for seed, shape in enumerate(2 * ((4, 3, 5),) + 2 * ((3, 5),)))
    given = rule, x, *parameters, dy, (1, 2)
    assert_same(quickly(*given), by_any_way(*given))
    assert quickly(rule, x, None, None, dy, (0, 2)) is None
    assert quickly(rule, x, None, None, dy, (1,)) is None
    weight, bias = (one.T.contiguous().T for one in parameters)
    assert quickly(rule, x, weight, parameters[1], dy, (1, 2)) is None
    assert quickly(rule, x, parameters[0], bias, dy, (1, 2)) is None


@pytest.fixture(params=[1, 2], ids=lambda threads: f"{threads} threads")
def threads(request):
    anynorm.set_threads(request.param)
    yield request.param
    anynorm.set_threads(None)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_larger_tensors_are_shared_among_threads(dtype, threads, monkeypatch):
    shared, share = [], crew._share
    monkeypatch.setattr(crew, "_share", lambda *given: (shared.append(given[2]), share(*given)))
    features = 1024 // dtype.itemsize
    x, dy = (tensor(crew.LEAST_SHARED_NBYTES // 1024, features, dtype=dtype, seed=seed) for seed in (0, 1))
    weight, bias = (tensor(features, dtype=dtype, seed=seed) for seed in (2, 3))
    for first, portions in ((1, []), (0, [8])):
        given = LAYER_NORM, x[first:], weight, bias, dy[first:]
        found = quickly(*given)
        assert shared == (portions if threads > 1 else [])
        assert_same(found, by_any_way(*given))
        shared.clear()


@every_rule
def test_the_largest_are_made_in_huge_pages_and_stored_past_the_caches(rule, monkeypatch):
    from anynorm._kernels.cpu.launch import machine, quick_vjp, tasks

    advised, tasks_run = [], []
    monkeypatch.setattr(machine, "_ask_for_huge_pages", lambda address, nbytes: advised.append(nbytes))
    monkeypatch.setattr(quick_vjp, "_plans", {})
    run = quick_vjp.run_portions
    monkeypatch.setattr(quick_vjp, "run_portions", lambda *given: (tasks_run.append(given[1]), run(*given)))
    x, dy, weight, bias = (tensor(*shape, seed=i) for i, shape in enumerate(2 * ((1024, 1024),) + 2 * ((1024,),)))
    for most, streaming in ((4 * x.nbytes, 1), (4 * x.nbytes + 1, 0)):
        monkeypatch.setattr(tasks, "last_cache_nbytes", lambda most=most: most)
        quick_vjp._plans.clear()
        for rows, nbytes in ((1024, [x.nbytes]), (1023, [])):
            given = rule, x[:rows], weight, bias, dy[:rows]
            found = quickly(*given)
            assert advised == nbytes
            assert_same(found, by_any_way(*given))
            assert tasks_run.pop().streaming == (streaming and rows == 1024)
            advised.clear()


def freed(tensor):
    tensor.untyped_storage().resize_(0)
    return tensor


def wrapped(tensor):
    """What torch.func.vmap hands on, which has no address."""
    seen = []
    torch.func.vmap(lambda one: seen.append(one) or one)(tensor[None])
    return seen[0]


REFUSED = {
    "no rows": lambda x, w, b, dy: (x[:0], w, b, dy[:0]),
    "x by columns": lambda x, w, b, dy: (x.T.contiguous().T, w, b, dy),
    "dy by columns": lambda x, w, b, dy: (x, w, b, dy.T.contiguous().T),
    "dy repeated": lambda x, w, b, dy: (x, w, b, dy[:1].expand(x.shape)),
    "dy negated": lambda x, w, b, dy: (x, w, b, torch._neg_view(dy)),
    "dy of a subclass": lambda x, w, b, dy: (x, w, b, dy.as_subclass(Subclass)),
    "dy sparse": lambda x, w, b, dy: (x, w, b, dy.to_sparse()),
    "dy zeros": lambda x, w, b, dy: (x, w, b, torch._efficientzerotensor(dy.shape)),
    "every other weight": lambda x, w, b, dy: (x, w.repeat(2)[::2], b, dy),
    "a longer weight": lambda x, w, b, dy: (x, w.repeat(2), b, dy),
    "a weight elsewhere": lambda x, w, b, dy: (x, w.to("meta"), b, dy),
    "a shorter bias": lambda x, w, b, dy: (x, w, b[:5], dy),
    "a bias elsewhere": lambda x, w, b, dy: (x, w, b.to("meta"), dy),
    "x longer than dy": lambda x, w, b, dy: (x.repeat(2, 1), w, b, dy),
    "x elsewhere": lambda x, w, b, dy: (x.to("meta"), w, b, dy),
    "x of another dtype": lambda x, w, b, dy: (x.double(), w, b, dy),
    "every other bias": lambda x, w, b, dy: (x, w, b.repeat(2)[::2], dy),
    "x freed": lambda x, w, b, dy: (freed(x.clone()), w, b, dy),
    "dy freed": lambda x, w, b, dy: (x, w, b, freed(dy.clone())),
    "dy within a transform": lambda x, w, b, dy: (x, w, b, wrapped(dy)),
    "the weight freed": lambda x, w, b, dy: (x, freed(w.clone()), b, dy),
}


@pytest.mark.parametrize("reason", REFUSED)
@every_rule
def test_what_is_not_plain_goes_another_way(rule, reason):
    given = [tensor(*shape, seed=seed) for seed, shape in enumerate(((4, 6), (6,), (6,), (4, 6)))]
    assert quickly(rule, *given) is not None
    assert quickly(rule, *REFUSED[reason](*given)) is None


@pytest.mark.parametrize("parameters", [True, False])
@pytest.mark.parametrize("row", [0, 63, 64, 199])
@every_rule
def test_rows_of_any_magnitude_have_the_same_bits(rule, row, parameters):
    x, dy = tensor(200, 17, dtype=torch.float64), tensor(200, 17, dtype=torch.float64, seed=1)
    x[row] *= 2.0**600
    for of_parameters in (tensor(17, seed=2), tensor(17, seed=3)), (None, None):
        given = rule, x, *of_parameters, dy
        assert_same(quickly(*given, parameters=parameters), by_any_way(*given, parameters=parameters))


def test_lengths_go_another_way():
    x = tensor(4, 6)
    assert quickly(SCALE_NORM, x, None, None, x) is None


@pytest.mark.parametrize(("rows", "features", "taken"), [(15, 15, True), (16, 15, False), (16, 16, True)])
def test_short_rows_go_side_by_side_another_way(rows, features, taken):
    found = quickly(LAYER_NORM, tensor(rows, features), None, None, tensor(rows, features, seed=1))
    assert (found is not None) == taken


@pytest.mark.parametrize("features", [15, 16, 17, 31, 32, 33, 47, 48, 49, 64, 65])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_of_once_and_twice_the_lanes(dtype, features):
    """16 of float32 at a time and 8 of float64, or twice as many; each column is summed by itself."""
    shapes = (9, features), (9, features), (features,)
    x, dy, weight = (tensor(*shape, dtype=DTYPES[dtype], seed=seed) for seed, shape in enumerate(shapes))
    found = quickly(LAYER_NORM, x, weight, weight, dy)
    exact = gradient_of_rows(
        "layer_norm", TORCH.read(x), TORCH.read(dy), dtype, by_kernel=True, weight=TORCH.read(weight), eps=1e-3
    )
    for got, expected, of in zip(found, exact, ("dx", "dw"), strict=False):
        said = {"backend": "torch", "dtype": dtype, "norm": f"layer_norm {of}", "bounds": KERNEL_GRADIENT_BOUNDS}
        assert_exact(TORCH.read(got).reshape(-1, features), expected, **said)


def test_scratch_begins_a_cache_line_and_is_kept(monkeypatch):
    from anynorm._kernels.cpu.launch import vjp

    monkeypatch.setattr(vjp, "_spare", [])
    for length in (1, vjp._LEAST_SCRATCH, vjp._LEAST_SCRATCH + 1, 2 * vjp._LEAST_SCRATCH):
        scratch, address = vjp.take_scratch(length)
        assert address % 64 == 0
        assert scratch.ctypes.data <= address <= scratch.ctypes.data + scratch.nbytes - 8 * length
        vjp.give_back_scratch(scratch, address)
        again, _ = vjp.take_scratch(length)
        assert again is scratch
        vjp.give_back_scratch(scratch, address)
        longer, _ = vjp.take_scratch(max(length, vjp._LEAST_SCRATCH) + 1)
        assert longer is not scratch


def test_no_more_is_remembered_than_there_is_room_for(monkeypatch):
    from anynorm._kernels.cpu.launch import quick_vjp

    monkeypatch.setattr(quick_vjp, "_MOST_PLANS", 3)
    monkeypatch.setattr(quick_vjp, "_plans", {})
    for features in (*range(1, 9), 1, 2):
        given = LAYER_NORM, tensor(2, features), None, None, tensor(2, features, seed=1)
        assert_same(quickly(*given), by_any_way(*given))
        assert 1 <= len(quick_vjp._plans) <= 3


def recorded():
    """A norm by the kernels of the CPU as `follow` has it, and the names of the ways that its derivatives take."""
    from anynorm._kernels.cpu.launch.autograd import _kernels

    ways, kernels = [], _kernels(choose_vjp)

    def record(name, function):
        def way(*given):
            result = function(*given)
            ways.append(name if result is not None else f"not {name}")
            return result

        return way

    kernels = kernels._replace(
        vjp=record("vjp", kernels.vjp),
        quick_vjp=record("quick", kernels.quick_vjp),
        choose_vjp=record("table", kernels.choose_vjp),
    )

    def norm(x, weight, bias):
        with torch.no_grad():
            y = anynorm.layer_norm(x, weight, bias, eps=1e-3)
        return autograd.follow(kernels, LAYER_NORM, x, None, weight, bias, -1, 1e-3, 0.0, y)

    return norm, ways


class Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **kwargs or {})


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # what torch itself makes duals with
def test_it_is_taken_where_torch_only_goes_back():
    norm, ways = recorded()
    given = [one.requires_grad_() for one in (tensor(2, 33), tensor(33, seed=1), tensor(33, seed=2))]
    dy, y = tensor(2, 33, seed=3), norm(*given)

    def back(dy=dy, **options):
        ways.clear()
        return torch.autograd.grad(y, given, dy, retain_graph=True, **options)

    expected = by_any_way(LAYER_NORM, *given, dy)
    assert_same(back(), expected)
    assert ways == ["quick"]
    assert_same(back(dy[:1].expand(2, 33)), by_any_way(LAYER_NORM, *given, dy[:1].expand(2, 33)))
    assert ways == ["not quick", "vjp"]
    back(create_graph=True)
    assert ways == []
    for one, other in zip(back(dy[None], is_grads_batched=True), expected, strict=True):
        # Both are within 2 units of what is exact, which is below 8.
        torch.testing.assert_close(one[0], other, rtol=0, atol=4 * 2.0**-21)
    assert ways == ["not quick"]
    with anynorm.use_kernel("definition"):
        back()
        assert ways == ["table"]
    with Mode():
        back()
        assert ways == ["table"]
    with forward_ad.dual_level():
        back()
        assert ways == ["table"]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
        assert_same(back(), expected)
        assert ways == ["table"]  # which sees to the name
    assert_same(back(), expected)
    assert ways == ["quick"]


@pytest.mark.skipif(not HAS_EXCHANGE, reason="torch has no DLPack exchange interface, so calls take the slow path")
@pytest.mark.parametrize("norm", ["LayerNorm", "RMSNorm"])
def test_a_call_passes_few_functions(norm):
    """Each takes a tenth of a microsecond, of some 28 for one row of 768, forward and backward."""
    module, x, dy = getattr(anynorm.torch, norm)(768), tensor(1, 768).requires_grad_(), tensor(1, 768)
    for _ in range(3):
        module(x).backward(dy)
    passed, package = [], str(Path(anynorm.__file__).parent)

    def profile(frame, event, argument):
        if event == "call" and frame.f_code.co_filename.startswith(package):
            passed.append(frame.f_code.co_name)

    sys.setprofile(profile)
    try:
        module(x).backward(dy)
    finally:
        sys.setprofile(None)
    assert len(passed) <= 18, passed


def test_no_more_lives_on_than_the_derivative_needs():
    x, residual, weight = tensor(4, 6), tensor(4, 6, seed=1), tensor(6, seed=2).requires_grad_()
    y, total = anynorm.torch.add_rms_norm(x, residual, weight)
    held = [weakref.ref(one) for one in (x, residual, total)]
    del x, residual, total
    assert [one() is None for one in held] == [True, True, True]  # the sum lives on as torch's own tensor
    assert y.grad_fn.saved_tensors[0].shape == (4, 6)
    assert torch.equal(y.grad_fn.saved_tensors[1], weight)
