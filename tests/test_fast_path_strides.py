"""Small calls over several axes, or of arrays in another order than C, take the fast path: the same bits and checks."""

from itertools import product

import numpy as np
import pytest

import anynorm
from tests.backends import ALL, as_dtype, needs_llvmlite
from tests.fast_path import forced, takes_fast_path
from tests.test_fast_path_thresholds import record, tasks  # noqa: F401 - a fixture

pytestmark = needs_llvmlite
every_dtype = pytest.mark.parametrize("dtype", ALL)
SHAPE = (5, 7, 18)
AXES = [-1, 1, (1, 2), (0, 2), (0, -2), [0, 1, 2], (2, 0)]
ORDERS = {
    "C": np.empty,
    "Fortran": lambda shape, dtype: np.empty(shape, dtype, order="F"),
    "swapped": lambda shape, dtype: np.empty((shape[1], shape[0], shape[2]), dtype).transpose(1, 0, 2),
    "every second": lambda shape, dtype: np.empty((*shape[:2], 2 * shape[2]), dtype)[..., ::2],
    "reversed": lambda shape, dtype: np.empty(shape, dtype)[:, ::-1, ::-1],
    "padded": lambda shape, dtype: np.empty((shape[0], shape[1] + 1, shape[2] + 3), dtype)[:, 1:, 1:-2],
}


def laid_out(order, dtype, seed=0):
    values = as_dtype(np.random.default_rng(seed).standard_normal(SHAPE), dtype)
    held = ORDERS[order](SHAPE, values.dtype)
    held[...] = values
    return held


def features(axis):
    axes = sorted(one % 3 for one in (axis if isinstance(axis, (tuple, list)) else [axis]))
    return [SHAPE[one] for one in axes]


@pytest.mark.parametrize(
    ("order", "dtype"), [*product(ORDERS, ["float32"]), *product(["padded"], ["bfloat16", "float64"])]
)
@pytest.mark.parametrize("axis", AXES, ids=str)
def test_kernels_are_handed_the_same(axis, order, dtype, record):  # noqa: F811
    """And results have the bits and the order that the slow path gives them."""
    x, residual = laid_out(order, dtype), laid_out("C" if order == "reversed" else order, dtype, seed=1)
    weight = as_dtype(np.random.default_rng(2).standard_normal(features(axis)), dtype)
    out, total = laid_out("swapped", dtype), laid_out("reversed", dtype)
    calls = [
        (anynorm.layer_norm, (x, weight, weight), {}),
        (anynorm.rms_norm, (x, weight), {"weight_offset": 1.0, "out": out}),
        (anynorm.scale_norm, (x, 3.0), {}),
        (anynorm.add_rms_norm, (x, residual, weight), {}),
        (anynorm.add_layer_norm, (x, residual, None, weight), {"out": (out, total)}),
    ]
    for function, arguments, options in calls:
        options |= {"axis": axis, "eps": 0.25}
        expected = forced(function, *arguments, **options)
        expected = [one.copy() for one in (expected if isinstance(expected, tuple) else (expected,))]
        assert takes_fast_path(function, *arguments, **options)
        found, like = function(*arguments, **options), forced(function, *arguments, **options)
        for one, other, made in zip(
            *(one if isinstance(one, tuple) else (one,) for one in (found, like)), expected, strict=True
        ):
            assert one.tobytes() == made.tobytes()
            assert one.strides == other.strides
        with tasks(record) as (short, long):
            assert takes_fast_path(function, *arguments, **options)
            forced(function, *arguments, **options)
        if "out" not in options:  # a new result may lie in another place, and its sum
            short, long = ([one | {"y": 0, "total": 0} for one in tasks] for tasks in (short, long))
        assert short == long
        assert len(long) == 1


@every_dtype
def test_in_place(dtype):
    x = laid_out("every second", dtype)
    expected = forced(anynorm.layer_norm, x, axis=(0, 1)).tobytes()
    anynorm.layer_norm(laid_out("every second", dtype), axis=(0, 1), out=laid_out("every second", dtype))
    held = laid_out("every second", dtype)
    assert takes_fast_path(anynorm.layer_norm, x, axis=(0, 1), out=x)
    assert anynorm.layer_norm(held, axis=(0, 1), out=held) is held
    assert held.tobytes() == expected


def test_rows_that_a_kernel_leaves_in_place():
    def made():
        x = laid_out("padded", "float32")
        x[:, [1, 4]] *= np.float32(3e37)
        return x

    expected = forced(anynorm.rms_norm, made(), axis=(0, 2)).tobytes()
    anynorm.rms_norm(laid_out("padded", "float32"), axis=(0, 2), out=laid_out("padded", "float32"))
    held = made()
    assert anynorm.rms_norm(held, axis=(0, 2), out=held).tobytes() == expected


def test_views_of_the_same_memory_in_another_order_are_refused():
    """They begin in the same place and have x's shape, but elements lie elsewhere."""
    memory = np.ones((6, 6), np.float32)
    apart, transposed = np.ones((6, 6), np.float32), np.ones((6, 6), np.float32).T
    for _ in range(2):
        anynorm.layer_norm(apart, out=transposed)
    assert takes_fast_path(anynorm.layer_norm, apart, out=transposed)
    for _ in range(2):
        with pytest.raises(ValueError, match="overlap"):
            anynorm.layer_norm(memory, out=memory.T)
    assert (memory == 1).all()


@pytest.mark.parametrize("step", [1, -1])
def test_an_out_that_shares_an_element_is_refused(step):
    """Of a hundred elements, every second of memory, from the first to the last; and in the other order."""
    memory = np.ones(400, np.float32)

    def view(first):
        return memory[first : first + 199 : 2][::step].reshape(10, 10)

    anynorm.rms_norm(view(0), axis=0, out=view(200))
    for first, is_short in ((198, None), (199, True), (1, False)):
        for x, out in ((view(0), view(first)), (view(first), view(0))):
            if is_short is None:
                with pytest.raises(ValueError, match="overlap"):
                    anynorm.rms_norm(x, axis=0, out=out)
                continue
            expected = forced(anynorm.rms_norm, x, axis=0)
            # Of two that share nothing although one lies within the other only the slow path knows it.
            assert takes_fast_path(anynorm.rms_norm, x, axis=0, out=out) == is_short
            assert (out == expected).all()


def test_a_result_that_repeats_its_memory_is_refused():
    x, held = np.ones((4, 6), np.float32), np.zeros((8, 6), np.float32)
    windows = np.lib.stride_tricks.as_strided(held, (4, 6), (4, 4))
    for _ in range(2):
        anynorm.rms_norm(x, out=held[::2])
        with pytest.raises(ValueError, match="memory for each element"):
            anynorm.rms_norm(x, out=windows)
    assert takes_fast_path(anynorm.rms_norm, x, out=held[::2])


def test_repeated_rows_are_read():
    x = np.broadcast_to(np.arange(12.0, dtype=np.float32).reshape(4, 1, 3), (4, 5, 3))
    expected = forced(anynorm.layer_norm, x, axis=(0, 1))
    anynorm.layer_norm(x, axis=(0, 1))
    assert takes_fast_path(anynorm.layer_norm, x, axis=(0, 1))
    assert anynorm.layer_norm(x, axis=(0, 1)).tobytes() == expected.tobytes()


def test_parameters_are_checked_as_strictly():
    x = laid_out("Fortran", "float32")
    weight = np.ones((7, 18), np.float32)
    for _ in range(2):
        anynorm.layer_norm(x, weight, weight, axis=(1, 2))
    assert takes_fast_path(anynorm.layer_norm, x, weight, weight, axis=(1, 2))
    for wrong in (weight.T, weight[1:], weight.ravel(), weight[None, None], np.ones((18, 7), np.float32)):
        for parameters in ((wrong, weight), (weight, wrong)):
            with pytest.raises(ValueError, match="shape of the normalized axes"):
                anynorm.layer_norm(x, *parameters, axis=(1, 2))
    scattered = np.repeat(weight, 2, axis=1)[:, ::2]
    assert not takes_fast_path(anynorm.layer_norm, x, scattered, axis=(1, 2))
    expected = anynorm.layer_norm(x, weight, axis=(1, 2))
    assert anynorm.layer_norm(x, scattered, axis=(1, 2)).tobytes() == expected.tobytes()


@pytest.mark.parametrize("axis", [(1, 1), (0, -3), (0, 3), (-4, 0), (True, 2), (0, 1.0), (), (0, None)], ids=str)
def test_what_are_no_axes(axis):
    x = laid_out("Fortran", "float32")
    for several in ((0,), (0, 1), (0, 2), (1, 2)):
        anynorm.layer_norm(x, axis=several)
    with pytest.raises((TypeError, ValueError), match="axis must"):
        anynorm.layer_norm(x, axis=axis)


def test_the_program_takes_only_what_lies_as_the_plan_says():
    """Another thread may change an array between the look for a plan and the program."""
    from anynorm._definition.norms import RMS_NORM
    from anynorm._kernels.cpu.fast_path import functions, plans

    lie = ("padded", "swapped", "reversed", "every second")
    x, residual, y, total = (laid_out(order, "float32") for order in lie)
    anynorm.add_rms_norm(x, residual, axis=(0, 2), out=(y, total))
    plan = plans.find("numpy", RMS_NORM, x, residual, (0, 2), (y, total))
    normalize = functions.program_of("numpy")

    def run(*arrays, plan=plan):
        return normalize(RMS_NORM, *arrays, None, None, 1e-6, 0.0, plan.address, 0)

    assert run(x, residual, y, total) is not None
    for place, order in product(range(4), ORDERS):
        if order != lie[place]:
            arrays = [x, residual, y, total]
            arrays[place] = laid_out(order, "float32")
            assert run(*arrays) is None
    assert run(x[:4], residual[:4], y[:4], total[:4]) is None
    assert run(*(one.astype(np.float64) for one in (x, residual, y, total))) is None


def test_lengths_of_one_lie_anyhow():
    """NumPy says of an axis of length 1 that its stride is any, and torch as well."""
    import torch

    for make in (np.asarray, torch.asarray):
        held = make(np.random.default_rng(0).standard_normal((6, 1, 8)).astype(np.float32))
        x = held[:, :, ::2]
        expected = forced(anynorm.layer_norm, x, axis=(0, 1))
        for _ in range(2):
            assert (anynorm.layer_norm(x, axis=(0, 1)) == expected).all()
