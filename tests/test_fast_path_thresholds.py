"""On each side of each threshold the fast path does what the slow path does."""

import ctypes
import itertools
from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytest

import anynorm
from tests.backends import ALL, as_dtype, needs_llvmlite
from tests.fast_path import takes_fast_path
from tests.processes import script

pytestmark = needs_llvmlite
every_dtype = pytest.mark.parametrize("dtype", ALL)


@pytest.fixture
def record():
    from anynorm._kernels.cpu.fast_path import functions

    return functions.record()


@contextmanager
def every_kernel(record, address):
    """Call what lies at an address in place of each kernel."""
    from anynorm._kernels.cpu.fast_path import kept

    before, held = list(record.kernels), [one.structure for key, one in kept.table.items() if key[0] == "plan"]
    of_plans = [(plan.kernel, plan.kernel_in_float64) for plan in held]
    for plan, kernels in zip(held, of_plans, strict=True):
        plan.kernel, plan.kernel_in_float64 = (address if kernel else 0 for kernel in kernels)
    record.kernels = type(record.kernels)(*[address if kernel else 0 for kernel in before])
    try:
        yield
    finally:
        record.kernels = type(record.kernels)(*before)
        for plan, kernels in zip(held, of_plans, strict=True):
            plan.kernel, plan.kernel_in_float64 = kernels


@contextmanager
def tasks(record):
    """What kernels are handed, by the fast path and by the slow path."""
    from anynorm._kernels.cpu.kernels.task import Task
    from anynorm._kernels.cpu.launch import norm

    short, long = [], []

    @ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
    def kernel(task, first, last):
        short.append(fields(Task.from_address(task)))
        return last

    launch = lambda kernel, task, *rest: long.append(fields(task))  # noqa: E731
    # What is offered meanwhile would take the place of this kernel.
    others = {"launch": launch, "offer": lambda *arguments: None}
    with every_kernel(record, ctypes.cast(kernel, ctypes.c_void_p).value), mock.patch.multiple(norm, **others):
        yield short, long


def fields(task):
    """Those of a task; of a layout what it says, for equal ones may lie in two places.

    Without the kernel that goes on with what this one cannot hold, which the slow path knows of once it was needed.
    """
    found = {name: getattr(task, name) for name, _ in task._fields_ if name != "float64_kernel"}
    return found | {"layout": table(task.layout)}


def table(address):
    """The numbers of a layout: a word, and twice a number of axes with a length and four strides for each."""
    words, end = [0] if not address else (ctypes.c_int64 * 1000).from_address(address), 1
    for _ in range(2 if address else 0):
        end += 1 + 5 * words[end]
    return list(words[:end])


def numbers(shape, dtype):
    return as_dtype(np.random.default_rng(0).standard_normal(shape), dtype)


def calls(dtype, rows, features):
    """Of each kind of parameters, with results to write to."""
    x, residual, y, total = (numbers((rows, features), dtype) for _ in range(4))
    kinds = [None, *(numbers(features, kind) for kind in ALL)]
    for weight, bias in itertools.product(kinds, kinds):
        for offset in (0.0, 1.0) if weight is not None else (0.0,):
            options = {"eps": 0.25, "weight_offset": offset}
            yield anynorm.layer_norm, (x, weight, bias), options | {"out": y}
            yield anynorm.add_rms_norm, (x, residual, weight, bias), options | {"out": (y, total)}
    for scale in (None, 0.0, -0.0, 2.0, *(as_dtype(np.asarray(0.3), kind) for kind in ALL)):
        yield anynorm.scale_norm, (x, scale), {"eps": 0.25, "out": y}


@every_dtype
def test_kernels_are_handed_the_same(dtype, record):
    """A cache line is 16 numbers of float32."""
    anynorm.rms_norm(numbers(8, "bfloat16"))
    for function, arguments, options in calls(dtype, 2, 8):
        with anynorm.use_kernel("cpu"):  # tensors may have brought the fast path here, and the slow path adds to it
            function(*arguments, **options)
    with tasks(record) as (short, long):
        for shape in itertools.product((3, 4), (7, 16, 1025)):
            for function, arguments, options in calls(dtype, *shape):
                assert takes_fast_path(function, *arguments, **options)
                with anynorm.use_kernel("cpu"):
                    function(*arguments, **options)
                assert short.pop() == long.pop()
        assert short == long == []


@pytest.fixture
def threads():
    yield anynorm.set_threads
    anynorm.set_threads(None)


def test_what_several_threads_would_share_takes_the_slow_path(record, threads, monkeypatch):
    from anynorm._kernels.cpu.launch.machine import LEAST_HUGE_NBYTES, last_cache_nbytes
    from anynorm._kernels.cpu.threads.crew import LEAST_SHARED_NBYTES

    anynorm.rms_norm(np.ones(4, np.float32))
    most = min(LEAST_HUGE_NBYTES, last_cache_nbytes() // 4)
    for nbytes, by_one, by_two in (
        (LEAST_SHARED_NBYTES - 256, True, True),
        (LEAST_SHARED_NBYTES, True, False),
        (most - 256, True, False),
        (most, False, False),
    ):
        x = np.random.default_rng(0).standard_normal((nbytes // 256, 64)).astype(np.float32)
        found = []
        for count, is_short in ((1, by_one), (2, by_two)):
            threads(count)
            assert takes_fast_path(anynorm.rms_norm, x) == is_short
            found.append(anynorm.rms_norm(x).tobytes())
        assert found[0] == found[1] == b"".join(anynorm.rms_norm(row).tobytes() for row in x)
    threads(None)
    monkeypatch.setenv("ANYNORM_THREADS", "several")
    for _ in range(3):
        assert takes_fast_path(anynorm.rms_norm, x[:1])
        with pytest.raises(ValueError, match="several"):
            anynorm.rms_norm(x)


def test_the_most_bytes(record, monkeypatch):
    from anynorm._kernels.cpu.fast_path import offers

    x = np.ones((3, 11), np.float32)
    anynorm.rms_norm(x)
    for most, is_short in ((x.nbytes, True), (x.nbytes - 1, False)):
        monkeypatch.setattr(record, "most_nbytes", most)
        assert takes_fast_path(anynorm.rms_norm, x) == is_short
    # What would be stored past a last cache of 400 bytes has 100 or more.
    monkeypatch.setattr(offers, "_offered", set())
    monkeypatch.setattr(offers, "last_cache_nbytes", lambda: 400)
    with anynorm.use_kernel("cpu"):
        anynorm.rms_norm(x[:1])
    assert record.most_nbytes == 99


def test_python_is_let_go_of_for_much_work_alone(record):
    """A function that says whether the lock is held stands for the kernel: 1 is that all of the one row is done."""
    anynorm.rms_norm(np.ones(4, np.float32))
    with every_kernel(record, ctypes.cast(ctypes.pythonapi.PyGILState_Check, ctypes.c_void_p).value):
        for size, is_held in ((8192, True), (8193, False)):
            assert takes_fast_path(anynorm.rms_norm, np.ones((1, size), np.float32)) == is_held


@pytest.mark.parametrize("axis", [-1, 1, (-1,), (1,), [-1], np.int64(-1), np.int8(1), (np.intp(1),)], ids=repr)
def test_every_spelling_of_the_last_axis(axis):
    x, weight = numbers((3, 33), "float32"), numbers(33, "float32")
    expected, _ = anynorm.layer_norm(x, weight), anynorm.add_layer_norm(x, x, weight)
    assert takes_fast_path(anynorm.layer_norm, x, weight, axis=axis)
    assert takes_fast_path(anynorm.add_layer_norm, x, x, weight, axis=axis)
    assert anynorm.layer_norm(x, weight, axis=axis).tobytes() == expected.tobytes()


OTHERS = [
    ((7, 3), 0),
    ((2, 33, 5), 1),
    ((2, 33, 5), -2),
    ((3, 4, 40), (1,)),
    ((9, 300), np.int64(0)),
    ((5, 1, 9), 0),
    ((768, 1), 0),
]


@every_dtype
@pytest.mark.parametrize(("shape", "axis"), OTHERS, ids=str)
def test_another_axis(shape, axis, dtype, record):
    """Rows whose elements are scattered, and rows side by side."""
    x, residual = numbers(shape, dtype), numbers(shape, dtype) * as_dtype(0.5, dtype)
    features = shape[axis[0] if isinstance(axis, tuple) else axis]
    weight, y, total = numbers(features, dtype), np.empty_like(x), np.empty_like(x)
    calls = [
        (anynorm.layer_norm, (x, weight, weight), {"out": y}),
        (anynorm.rms_norm, (x, weight), {"out": y, "weight_offset": 1.0}),
        (anynorm.scale_norm, (x, 3.0), {"out": y}),
        (anynorm.add_rms_norm, (x, residual, None, weight), {"out": (y, total)}),
    ]
    for function, arguments, options in calls:
        options |= {"axis": axis, "eps": 0.25}
        with anynorm.use_kernel("cpu"):
            function(*arguments, **options)
            expected = y.tobytes() + total.tobytes()
        y[...] = 0
        assert takes_fast_path(function, *arguments, **options)
        assert y.tobytes() + total.tobytes() == expected
        with tasks(record) as (short, long):
            assert takes_fast_path(function, *arguments, **options)
            with anynorm.use_kernel("cpu"):
                function(*arguments, **options)
        assert short == long
        assert len(long) == 1


@every_dtype
def test_another_axis_in_place_with_rows_that_a_kernel_leaves(dtype):
    largest = {"float16": 6e4, "bfloat16": 3e38, "float32": 3e38, "float64": 1e308}[dtype]
    for shape in ((33, 9), (33, 300)):
        x = np.random.default_rng(0).standard_normal(shape)
        x[:, [2, 5]] *= largest / 8
        x = as_dtype(x, dtype)
        with anynorm.use_kernel("cpu"):
            expected = anynorm.layer_norm(x, axis=0)
        anynorm.layer_norm(np.ones_like(x), axis=0)
        held = x.copy()
        assert anynorm.layer_norm(held, axis=0, out=held) is held
        assert held.tobytes() == anynorm.layer_norm(x, axis=0).tobytes() == expected.tobytes()


def test_a_plan_is_for_one_shape_order_and_dtype():
    x, weight = numbers((6, 40), "float32"), numbers(6, "float32")
    anynorm.layer_norm(x, weight, axis=0)
    assert takes_fast_path(anynorm.layer_norm, x, weight, axis=0)
    unlike = [x[:, :39].copy(), x[:, ::2], np.asfortranarray(x), x.astype(np.float64), x[None], np.tile(x, (1, 2))]
    for other in unlike:
        axis = other.ndim - 2
        assert not takes_fast_path(anynorm.layer_norm, other, weight, axis=axis)
        with anynorm.use_kernel("cpu"):
            expected = anynorm.layer_norm(other, weight, axis=axis)
        for _ in range(2):
            assert anynorm.layer_norm(other, weight, axis=axis).tobytes() == expected.tobytes()
    with pytest.raises(ValueError, match="weight"):
        anynorm.layer_norm(x, weight[1:], axis=0)


@pytest.mark.parametrize("others", [(0, 1), (0, 2)])
def test_calls_over_several_axes_change_no_plan(others):
    x = numbers((4, 5, 6), "float32")
    with anynorm.use_kernel("cpu"):
        expected = anynorm.layer_norm(x, axis=0)
    for _ in range(2):
        assert anynorm.layer_norm(x, axis=0).tobytes() == expected.tobytes()
        anynorm.layer_norm(x, axis=others)


@pytest.mark.parametrize(
    "axis",
    [True, 1.0, "1", None, 2, -3, (), (1, 1), (1, -1), np.ones(2, int), np.bool(True), np.timedelta64(0, "s")],
    ids=repr,
)
def test_what_is_no_axis(axis):
    x = numbers((3, 33), "float32")
    anynorm.layer_norm(x)
    with pytest.raises((TypeError, ValueError), match="axis must"):
        anynorm.layer_norm(x, axis=axis)


def test_the_objects_take_it():
    for dtype in (np.float32, np.float64, np.float16):
        x = np.random.default_rng(0).standard_normal((3, 33)).astype(dtype)
        for norm in (
            anynorm.LayerNorm(33, dtype=dtype),
            anynorm.RMSNorm(33, dtype=dtype),
            anynorm.ScaleNorm(33, dtype=dtype),
        ):
            expected = norm(x)
            assert takes_fast_path(norm, x)
            assert norm(x).tobytes() == expected.tobytes()


def test_there_is_none_where_kernels_are_interpreted():
    code = """
import numpy, anynorm
from anynorm._kernels import fast_paths
for _ in range(3):
    anynorm.rms_norm(numpy.ones((2, 3), numpy.float32))
print(fast_paths._by_type)
"""
    assert script(code, ANYNORM_INTERPRET="1") == ["{}"]


def test_another_interpreter(monkeypatch):
    """One that lacks a function, or is none of CPython's, has no fast path."""
    from anynorm._kernels import fast_paths
    from anynorm._kernels.cpu.fast_path import functions, offers

    monkeypatch.setattr(offers, "_offered", set())
    monkeypatch.setattr(offers, "_served", set())
    monkeypatch.setattr(fast_paths, "_by_type", {})
    monkeypatch.setattr(functions, "FUNCTIONS", (*functions.FUNCTIONS, "PyNothing_OfThatName"))
    x = np.ones((2, 3), np.float32)
    for _ in range(2):
        assert (anynorm.rms_norm(x, eps=0.0) == 1).all()
    assert fast_paths._by_type == {}
    monkeypatch.setattr(functions, "FUNCTIONS", functions.FUNCTIONS[:-1])
    assert functions.is_served()
    monkeypatch.setattr(functions.sys.implementation, "name", "another")
    assert not functions.is_served()
