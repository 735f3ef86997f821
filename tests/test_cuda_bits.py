"""The CUDA kernels, emulated on the CPU: the bits of a row depend on that row and the parameters alone."""

import numpy as np
import pytest

from anynorm._kernels.cuda import launch
from tests import emulated
from tests.backends import ALL, as_dtype

pytestmark = emulated.needs_compiler
# Of one thread, of a part of a warp, of several slots a thread, of a block.
FEATURES = (1, 5, 64, 300, 1200)
every_dtype = pytest.mark.parametrize("dtype", ALL)
every_length = pytest.mark.parametrize("features", FEATURES)


def inputs(features, dtype, rows=3):
    rng = np.random.default_rng(features)
    x = as_dtype(rng.standard_normal((rows, features)) * 10.0 ** rng.integers(-3, 3, (rows, 1)) + 1, dtype)
    return x, as_dtype(rng.standard_normal(features), dtype), as_dtype(rng.standard_normal(features), "float32")


def shifted(array, elements):
    """The same numbers, so many elements behind a multiple of 64 bytes."""
    memory = np.zeros(array.nbytes + 64 + elements * array.itemsize, np.uint8)
    start = -memory.ctypes.data % 64 + elements * array.itemsize
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


@every_dtype
@every_length
@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
def test_layouts(norm, features, dtype):
    x, weight, bias = inputs(features, dtype)
    x = shifted(x, 0)
    y = emulated.normalize(norm, x, weight, bias)
    bits = y.tobytes()
    for elements in (1, 3):
        assert emulated.normalize(norm, shifted(x, elements), weight, bias).tobytes() == bits
        assert emulated.normalize(norm, x, weight, bias, out=shifted(x, elements)).tobytes() == bits
    apart = np.repeat(x, 2, axis=1)[:, ::2]
    assert emulated.normalize(norm, apart, weight, bias, out=np.empty_like(x)).tobytes() == bits
    assert emulated.normalize(norm, np.flip(x)[::-1, ::-1], weight, bias, out=np.empty_like(x)).tobytes() == bits
    assert np.array_equal(emulated.normalize(norm, x[1:2], weight, bias), y[1:2])
    # The axis before the last, as that of channels; more rows than a block has neighbours, and one.
    many = np.concatenate([x] * 6)
    columns = np.ascontiguousarray(np.stack([many, many[::-1]]).swapaxes(1, 2))
    got = emulated.normalize(norm, columns, weight, bias, axis=1)
    assert got[0].T.tobytes() == bits * 6
    assert got[1, :, ::-1].T.tobytes() == bits * 6


def side_by_side(rows, images=2):
    """Rows in images, along the axis before the last."""
    return shifted(np.ascontiguousarray(np.stack(np.split(rows, images)).swapaxes(1, 2)), 0)


def extreme(features, dtype):
    """Rows and weights of 16 bits of which some go through float32 and others do not; a residual with each row."""
    rng = np.random.default_rng(features)
    x = rng.standard_normal((48, features)) + 1
    if dtype != "float16":
        x[6::8] *= 2.0**-130
    weight = rng.standard_normal(features) * np.where(np.arange(features) % 40 == 9, 1000, 1)
    return [shifted(as_dtype(one, dtype), 0) for one in (x, rng.standard_normal(x.shape), weight)]


# Of one thread and of several, in registers and in shared memory, not all of them held, of several groups of threads.
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    ("features", "norm"), [(8, "rms_norm"), (304, "scale_norm"), (304, "rms_norm"), (1200, "layer_norm")]
)
def test_slots_across_rows(features, norm, dtype):
    x, residual, weight = extreme(features, dtype)
    given = {
        "weight": 3.7 if norm == "scale_norm" else weight,
        "bias": weight if norm == "layer_norm" else None,
        "eps": 0.0,
    }
    y, total = emulated.normalize(norm, x, residual=residual, **given)
    for backwards in (False, True):
        columns, more, chosen = side_by_side(x), side_by_side(residual), []
        how = {"axis": 1, "backwards": backwards, "chosen": chosen}
        alone = emulated.normalize(norm, columns, **given, **how)
        both = emulated.normalize(norm, columns, residual=more, out=(more, columns), **given, **how)
        assert [choice.abreast for choice in chosen] == [16 // x.itemsize] * 2
        expected = emulated.normalize(norm, x, **given), y, total
        for got, rows in zip((alone, *both), expected, strict=True):
            assert np.array_equal(got, side_by_side(rows))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_slots_across_rows_only_where_arrays_are_whole_slots(dtype):
    size = 16 // as_dtype(np.zeros(1), dtype).itemsize
    for rows, features, elements in ((size, size, 0), (size, size, 1), (size, size + 1, 0), (size + 1, size, 0)):
        x, chosen = as_dtype(np.random.default_rng(1).standard_normal((2 * rows, features)), dtype), []
        columns = shifted(side_by_side(x), elements)
        got = emulated.normalize("layer_norm", columns, axis=1, out=shifted(columns, 0), chosen=chosen)
        assert (chosen[0].abreast == size) == ((rows, features, elements) == (size, size, 0))
        assert np.array_equal(got, side_by_side(emulated.normalize("layer_norm", x)))
    for dtype, paired in (("float64", False), ("float32", True)):
        x = shifted(as_dtype(np.ones((8, 8)), dtype), 0)
        emulated.normalize("layer_norm", x, axis=0, paired=paired, chosen=chosen)
        assert chosen[-1].abreast == 1


@every_dtype
@every_length
def test_in_place_and_in_another_order(features, dtype):
    x, weight, bias = inputs(features, dtype)
    bits = emulated.normalize("layer_norm", x, weight, bias).tobytes()
    assert emulated.normalize("layer_norm", x, weight, bias, backwards=True).tobytes() == bits
    for held in (0, launch.settings(features, x.itemsize).held):
        for turned in (False, True):
            y = x.copy()
            emulated.normalize("layer_norm", y, weight, bias, out=y, held=held, backwards=turned)
            assert y.tobytes() == bits


@every_dtype
@every_length
@pytest.mark.parametrize("columns", [False, True])
def test_y_is_the_norm_of_the_total_as_rounded(columns, features, dtype):
    x, weight, bias = inputs(features, dtype)
    residual = as_dtype(x[::-1].astype(np.float64) * 300, dtype)
    exact = as_dtype(x.astype(np.float64) + residual.astype(np.float64), dtype)
    given = (x, residual)
    if columns:
        given = tuple(np.asfortranarray(one) for one in given)
    y, total = emulated.normalize("layer_norm", given[0], weight, bias, residual=given[1])
    assert total.tobytes() == exact.tobytes()
    assert y.tobytes() == emulated.normalize("layer_norm", exact, weight, bias).tobytes()
    # The sum in place of either.
    for held in (0, None):
        x, residual = (np.array(one) for one in given)
        emulated.normalize("layer_norm", x, weight, bias, residual=residual, out=(residual, x), held=held)
        assert x.tobytes() == exact.tobytes()
        assert residual.tobytes() == np.ascontiguousarray(y).tobytes()


@pytest.mark.parametrize("threads", [8, 32])
def test_the_emulator_ends_where_threads_part(threads):
    """A kernel in which half of a warp leaves before a shuffle does not go unseen."""
    source = f"""
    #include "emulator.hpp"
    int main() {{
        launch({{1, 1}}, {{{threads}, 1}}, 1, [] {{
            if (threadIdx.x >= {threads // 2}) __shfl_xor_sync(0xffffffffu, 1.0, 1);
        }});
    }}"""
    ended = emulated.run_program(source)
    assert ended.returncode != 0
    assert "threads of a warp have parted" in ended.stderr
