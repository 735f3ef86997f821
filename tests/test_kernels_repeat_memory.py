"""The short way reads from memory what NumPy arrays are, and writes to no memory that it should not write to."""

import gc
import weakref

import numpy as np
import pytest

import anynorm
from tests.backends import needs_llvmlite
from tests.test_kernels_repeat import assert_twice, case, nothing_remembered  # noqa: F401  # a fixture

pytestmark = needs_llvmlite


def test_neighbours_in_memory_do_not_overlap(monkeypatch):
    from anynorm import _norms

    for dtype in ("float16", "float32"):
        memory = np.random.default_rng(0).standard_normal(33 * 6).astype(dtype)
        x, weight, out, bias = memory[:66].reshape(2, 33), memory[66:99], memory[99:165].reshape(2, 33), memory[165:]
        expected = anynorm.layer_norm(x, weight, bias)
        with monkeypatch.context() as patched:
            patched.setattr(_norms, "check", None)  # not asked
            assert anynorm.layer_norm(x, weight, bias, out=out) is out
            assert anynorm.layer_norm(out, weight, bias, out=out) is out
        assert anynorm.layer_norm(x, weight, bias, out=out).tobytes() == expected.tobytes()


@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
def test_outs_are_checked_as_strictly(norm):
    x, weight, bias = case(norm, "float32")
    function, out = getattr(anynorm, norm), np.empty_like(x)
    assert function(x, weight, bias, out=out) is function(x, weight, bias, out=out) is out
    frozen = out.copy()
    frozen.flags.writeable = False
    memory = np.zeros(7 * 33, np.float32)
    memory[:198] = x.ravel()
    wrong = [
        (ValueError, x, weight, frozen),
        (ValueError, x, weight, out[1:]),
        (ValueError, x, weight, out[None]),
        (ValueError, x, weight, out.T),
        (ValueError, x, weight, out.astype(np.float64)),
        (TypeError, x, weight, out.tolist()),
        (ValueError, memory[:198].reshape(6, 33), weight, memory[33:].reshape(6, 33)),
        (ValueError, x, memory[33:66], memory[:198].reshape(6, 33)),
    ]
    for error, of, factors, to in wrong:
        with pytest.raises(error):
            function(of, factors, bias, out=to)
    assert not frozen.flags.writeable
    assert (frozen == out).all()
    assert (memory[:198] == x.ravel()).all()


def test_an_array_that_is_not_what_it_was():
    x, weight, bias = case("layer_norm", "float32")
    assert_twice("layer_norm", x, weight, bias)
    weight.shape = (3, 11)
    with pytest.raises(ValueError, match="weight"):
        anynorm.layer_norm(x, weight, bias)
    weight.shape = (33,)
    bias.resize(32, refcheck=False)
    with pytest.raises(ValueError, match="bias"):
        anynorm.layer_norm(x, weight, bias)
    bias.resize(33, refcheck=False)
    for shape in ((2, 3, 33), (6, 1, 33), (198 // 33, 33)):
        x.shape = shape
        assert_twice("layer_norm", x, weight, bias)
    noted = x.view(np.dtype(np.float32, metadata={"unit": "m"}))
    assert anynorm.layer_norm(noted, weight, bias).tobytes() == anynorm.layer_norm(x, weight, bias).tobytes()
    x.dtype = np.int32
    with pytest.raises(TypeError):
        anynorm.layer_norm(x, weight, bias)


def test_where_arrays_keep_what_is_read_from_memory():
    from anynorm._kernels.cpu.launch import memory

    assert memory.KNOWS_FIELDS
    for array in (np.zeros(()), np.zeros((2, 0)), np.zeros((3, 4), ">f4").T, np.broadcast_to(np.ones(3), (2, 3))):
        assert memory._has_known_fields(array)


def unusual(array, kind, folder):
    if kind == "memory-mapped":
        mapped = np.memmap(folder / f"{array.ndim}.bin", array.dtype, "w+", shape=array.shape)
        mapped[...] = array
        return mapped
    options = {"metadata": {"unit": "m"}} if kind == "metadata" else {"copy": True}
    return array.view(np.dtype(array.dtype, **options))


@pytest.mark.parametrize("place", [0, 1, 2], ids=["x", "weight", "bias"])
@pytest.mark.parametrize("kind", ["memory-mapped", "metadata", "a copy of the dtype"])
def test_unusual_arrays_are_forgotten_and_slow_nothing_down(kind, place, monkeypatch, tmp_path):
    from anynorm import _norms

    usual = case("layer_norm", "float32")
    given = list(usual)
    given[place] = unusual(given[place], kind, tmp_path)
    expected = anynorm.layer_norm(*given)
    assert anynorm.layer_norm(*given).tobytes() == expected.tobytes()
    held = [weakref.ref(one) for one in given]
    del given
    gc.collect()
    assert held[place]() is None
    assert anynorm.layer_norm(*usual).tobytes() == expected.tobytes()
    monkeypatch.setattr(_norms, "check", None)  # not asked from now on
    assert anynorm.layer_norm(*usual).tobytes() == expected.tobytes()
