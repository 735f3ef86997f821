"""Derivatives of plain tensors for torch's autograd, from the second on: with the bits of all others."""

import pytest
import torch

import anynorm
from anynorm._check import Gradient, check
from anynorm._definition.norms import LAYER_NORM, RMS_NORM, SCALE_NORM
from anynorm._kernels.cpu.fast_path import kept
from anynorm._kernels.cpu.threads import crew
from tests.backends import TORCH, needs_llvmlite
from tests.test_fast_path_torch import HAS_EXCHANGE
from tests.test_torch_autograd import Subclass
from tests.tolerances import KERNEL_GRADIENT_BOUNDS, assert_exact, gradient_of_rows

pytestmark = [
    needs_llvmlite,
    pytest.mark.skipif(not HAS_EXCHANGE, reason="torch has no DLPack exchange interface, so all go another way"),
]
RULES = {"layer_norm": LAYER_NORM, "rms_norm": RMS_NORM}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}


def tensor(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def quickly(rule, x, weight, bias, dy, axes=None, parameters=True, eps=1e-3, offset=0.0):
    from anynorm._kernels.cpu.launch.autograd import quick_vjp

    return quick_vjp(rule, x, weight, bias, axes or (x.ndim - 1,), eps, offset, dy, parameters)


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


def assert_quick(*given, **options):
    """From the second such derivative on it is taken, and has the bits of every way."""
    expected = by_any_way(*given, **options)
    for _ in range(2):
        assert_same(quickly(*given, **options), expected)


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
                assert_quick(rule, x, weight, bias, dy, **options)


@every_rule
def test_axes_and_strides(rule):
    x, dy, *parameters = (tensor(*shape, seed=seed) for seed, shape in enumerate(2 * ((4, 3, 5),) + 2 * ((3, 5),)))
    for axes in ((1, 2), (0, 2), (1,), (0,)):
        for held in (x, x.transpose(0, 2).contiguous().transpose(0, 2)):
            assert_quick(rule, held, None, None, dy, axes)
    assert_quick(rule, x, *parameters, dy, (1, 2))
    # A copy of such a parameter is read, or a gradient in another order returned, so all go another way.
    weight, bias = (one.T.contiguous().T for one in parameters)
    for given in ((weight, parameters[1]), (parameters[0], bias)):
        by_any_way(rule, x, *given, dy, (1, 2))
        assert quickly(rule, x, *given, dy, (1, 2)) is None


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
        expected = by_any_way(*given)
        shared.clear()
        assert_same(quickly(*given), expected)
        assert shared == (portions if threads > 1 else [])


@every_rule
def test_the_largest_are_made_in_huge_pages_and_stored_past_the_caches(rule, monkeypatch):
    from anynorm._kernels.cpu.fast_path import derivative
    from anynorm._kernels.cpu.launch import machine, tasks

    advised, tasks_run = [], []
    monkeypatch.setattr(machine, "_ask_for_huge_pages", lambda address, nbytes: advised.append(nbytes))
    run = derivative.run_portions
    monkeypatch.setattr(derivative, "run_portions", lambda *given: (tasks_run.append(given[1]), run(*given)))
    x, dy, weight, bias = (tensor(*shape, seed=i) for i, shape in enumerate(2 * ((1024, 1024),) + 2 * ((1024,),)))
    for most, streaming in ((4 * x.nbytes, 1), (4 * x.nbytes + 1, 0)):
        monkeypatch.setattr(tasks, "last_cache_nbytes", lambda most=most: most)
        kept.table.clear()
        for rows, nbytes in ((1024, [x.nbytes]), (1023, [])):
            given = rule, x[:rows], weight, bias, dy[:rows]
            expected = by_any_way(*given)
            advised.clear()
            assert_same(quickly(*given), expected)
            assert advised == nbytes
            assert tasks_run.pop().streaming == (streaming and rows == 1024)


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
    assert_quick(rule, *given)
    assert quickly(rule, *REFUSED[reason](*given)) is None


@pytest.mark.parametrize("parameters", [True, False])
@pytest.mark.parametrize("row", [0, 63, 64, 199])
@every_rule
def test_rows_of_any_magnitude_have_the_same_bits(rule, row, parameters):
    x, dy = tensor(200, 17, dtype=torch.float64), tensor(200, 17, dtype=torch.float64, seed=1)
    x[row] *= 2.0**600
    for of_parameters in (tensor(17, seed=2), tensor(17, seed=3)), (None, None):
        assert_quick(rule, x, *of_parameters, dy, parameters=parameters)


def test_lengths_go_another_way():
    x = tensor(4, 6)
    by_any_way(SCALE_NORM, x, None, None, x)
    assert quickly(SCALE_NORM, x, None, None, x) is None


@pytest.mark.parametrize(("rows", "features"), [(15, 15), (16, 15), (16, 16)])
def test_short_rows_side_by_side(rows, features):
    assert_quick(LAYER_NORM, tensor(rows, features), None, None, tensor(rows, features, seed=1))


@pytest.mark.parametrize("features", [15, 16, 17, 31, 32, 33, 47, 48, 49, 64, 65])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_of_once_and_twice_the_lanes(dtype, features):
    """16 of float32 at a time and 8 of float64, or twice as many; each column is summed by itself."""
    shapes = (9, features), (9, features), (features,)
    x, dy, weight = (tensor(*shape, dtype=DTYPES[dtype], seed=seed) for seed, shape in enumerate(shapes))
    by_any_way(LAYER_NORM, x, weight, weight, dy)
    found = quickly(LAYER_NORM, x, weight, weight, dy)
    exact = gradient_of_rows(
        "layer_norm", TORCH.read(x), TORCH.read(dy), dtype, by_kernel=True, weight=TORCH.read(weight), eps=1e-3
    )
    for got, expected, of in zip(found, exact, ("dx", "dw"), strict=False):
        said = {"backend": "torch", "dtype": dtype, "norm": f"layer_norm {of}", "bounds": KERNEL_GRADIENT_BOUNDS}
        assert_exact(TORCH.read(got).reshape(-1, features), expected, **said)


def test_scratch_begins_a_cache_line_and_is_kept(monkeypatch):
    from anynorm._kernels.cpu.launch import machine

    monkeypatch.setattr(machine, "_spare", [])
    for length in (1, machine._LEAST_SCRATCH, machine._LEAST_SCRATCH + 1, 2 * machine._LEAST_SCRATCH):
        scratch, address = machine.take_scratch(length)
        assert address % 64 == 0
        assert scratch.ctypes.data <= address <= scratch.ctypes.data + scratch.nbytes - 8 * length
        machine.give_back_scratch(scratch, address)
        again, _ = machine.take_scratch(length)
        assert again is scratch
        machine.give_back_scratch(scratch, address)
        longer, _ = machine.take_scratch(max(length, machine._LEAST_SCRATCH) + 1)
        assert longer is not scratch


def test_no_more_is_remembered_than_there_is_room_for(monkeypatch):
    kept.table.clear()
    monkeypatch.setattr(kept, "MOST_KEPT", 3)
    for features in (*range(1, 9), 1, 2):
        assert_quick(LAYER_NORM, tensor(2, features), None, None, tensor(2, features, seed=1))
        assert 1 <= len(kept.table) <= 3
