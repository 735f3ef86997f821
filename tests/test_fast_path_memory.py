"""The fast path writes to no memory that it should not write to, and lets go of what it was lent."""

import gc
import os
import subprocess
import sys
import weakref

import numpy as np
import pytest

import anynorm
from anynorm._definition.norms import RMS_NORM
from tests.backends import ALL, as_dtype, needs_llvmlite
from tests.fast_path import takes_fast_path
from tests.processes import in_threads
from tests.test_fast_path import assert_twice, case

pytestmark = needs_llvmlite


def program():
    """The builtin function."""
    from anynorm._kernels.cpu.fast_path import functions

    return functions.program_of("numpy")


OUTLIVING = """
import sys
import numpy, anynorm
for _ in range(3):
    anynorm.layer_norm(numpy.ones((3, 40), "float32"))
from anynorm._kernels.cpu.fast_path import functions
sys.kept = functions.program_of("numpy")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc overwrites what is freed, if told to")
def test_functions_may_outlive_their_module():
    for byte in ("170", "2"):  # in what is overwritten, flags of a function that are not set
        environment = os.environ | {"PYTHONMALLOC": "malloc", "MALLOC_PERTURB_": byte}
        assert subprocess.run([sys.executable, "-c", OUTLIVING], env=environment, check=False).returncode == 0


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
    for pair in ((out, None), (None, out), (out,), [out, None]):
        with pytest.raises((TypeError, ValueError), match="out"):
            getattr(anynorm, f"add_{norm}")(x, x, weight, bias, out=pair)
    assert not frozen.flags.writeable
    assert (frozen == out).all()
    assert (memory[:198] == x.ravel()).all()


@pytest.mark.filterwarnings("ignore:Setting the:DeprecationWarning")  # NumPy 2.5
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


def references(*objects):
    return [sys.getrefcount(one) for one in objects]


ARGUMENTS = ("x", "residual", "y", "total", "weight", "bias")


def given(dtype="float32"):
    """What the program is given, where all is well."""
    rng = np.random.default_rng(0)
    shapes = [(6, 33)] * 4 + [(33,)] * 2
    arrays = dict(zip(ARGUMENTS, (as_dtype(rng.standard_normal(s), dtype) for s in shapes), strict=True))
    return {"rule": RMS_NORM} | arrays | {"eps": float("1e-5"), "offset": float("0.0"), "plan": 0, "numbers": 0}


UNFIT = {
    "x": [
        np.ones((6, 32), np.float32),
        np.ones(33),
        3,
        None,
        np.ones((0, 33), np.float32),
        np.ones((33, 6), np.float32).T,
    ],
    "weight": [
        np.ones(32, np.float32),
        np.ones((1, 33), np.float32),
        1.0,
        np.ones(33, np.int32),
        np.ones(66, np.float32)[::2],
    ],
    "y": [np.ones((6, 33), np.int16), np.ones((3, 33), np.float32), b"123", np.broadcast_to(np.float32(1), (6, 33))],
    "eps": [1, -1.0, float("nan"), float("inf"), None],
    "offset": [1, float("nan"), float("inf"), "0"],
}
UNFIT |= {"bias": UNFIT["weight"], "residual": UNFIT["y"], "total": UNFIT["y"]}


@pytest.mark.parametrize("dtype", ALL)
def test_nothing_is_held_whatever_becomes_of_a_call(dtype):
    """An array that is still lent out has one reference more."""
    normalize = program()
    arguments = given(dtype)
    anynorm.add_rms_norm(*(arguments[name] for name in ("x", "residual", "weight", "bias")), eps=1e-5)
    without, arrays = arguments | {"y": None, "total": None}, [arguments[name] for name in ARGUMENTS]
    before = references(*arrays)
    for _ in range(2):
        y, total = normalize(*arguments.values())
        assert (y is arguments["y"], total is arguments["total"]) == (True, True)
        made = normalize(*without.values())
        fresh = np.empty(1), np.empty(1)
        assert references(*made) == references(*fresh)
        for name, others in UNFIT.items():
            for other in others:
                counts, changed = references(other), arguments | {name: other}
                done = normalize(*changed.values())
                del changed
                assert done is None
                assert references(other) == counts
        del y, total, made
    assert references(*arrays) == before


def test_unfit_results_are_not_written():
    normalize, arguments = program(), given()
    anynorm.add_rms_norm(*(arguments[name] for name in ("x", "residual", "weight", "bias")), eps=1e-5)
    before = {name: arguments[name].copy() for name in ARGUMENTS}
    for name, others in UNFIT.items():
        for other in others:
            assert normalize(*(arguments | {name: other}).values()) is None
    overlapping = {"y": arguments["total"]}, {"y": arguments["weight"]}, {"total": arguments["y"]}
    for changes in overlapping:
        assert normalize(*(arguments | changes).values()) is None
    for name, one in before.items():
        assert one.tobytes() == arguments[name].tobytes()


@pytest.mark.parametrize("result", ["y", "total"])
@pytest.mark.parametrize("other", ["x", "residual", "y", "total", "weight", "bias"])
def test_results_that_share_one_element(result, other):
    """With an array of their size they may share all, but for each other; with none a part."""
    if result == other:
        return
    normalize, arguments = program(), given()
    anynorm.add_rms_norm(*(arguments[name] for name in ("x", "residual", "weight", "bias")), eps=1e-5)
    size = arguments[other].size
    memory = np.ones(2 * 198, np.float32)
    for first, begin, fits in ((0, size - 1, False), (0, size, True), (197, 0, False), (198, 0, True), (0, 0, None)):
        if fits is None:
            fits = other in ("x", "residual")
        held = memory[first : first + size].reshape(arguments[other].shape)
        out = memory[begin : begin + 198].reshape(6, 33)
        done = normalize(*(arguments | {other: held, result: out}).values())
        assert (done is not None) == fits


@pytest.mark.parametrize("made", [1, 2])
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_no_room_for_a_result(error, made, monkeypatch):
    """What making a result raises is raised, such as an interruption; and nothing is held."""

    def make(x):
        results.append(np.empty_like(x))
        if len(results) == made:
            raise error
        return results[-1]

    arguments = given() | {"y": None, "total": None}
    normalize, results = program(), []
    anynorm.add_rms_norm(*(arguments[name] for name in ("x", "residual", "weight", "bias")), eps=1e-5)
    before = references(*(one for one in arguments.values() if one is not None))
    from anynorm._kernels.cpu.fast_path import functions

    monkeypatch.setattr(functions.record(), "empty_like_array", id(make))
    for _ in range(2):
        with pytest.raises(error):
            normalize(*arguments.values())
        assert len(results) == made
        results.clear()
    assert references(*(one for one in arguments.values() if one is not None)) == before


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
def test_in_place_a_row_that_the_kernel_leaves_is_gone_on_from(norm, dtype):
    """A row of such magnitude, and then ordinary ones."""
    largest = {"float16": 6e4, "bfloat16": 3e38, "float32": 3e38, "float64": 1e308}[dtype]
    x = np.random.default_rng(0).standard_normal((9, 33))
    x[[2, 3, 7]] *= largest / 8
    x = as_dtype(x, dtype)
    function = getattr(anynorm, norm)
    function(x[:1])
    with anynorm.use_kernel("cpu"):
        expected, sums = function(x), getattr(anynorm, f"add_{norm}")(x, x)
    for out in (x.copy(), np.empty_like(x)):
        given = out if out[0, 0] == x[0, 0] else x
        assert function(given, out=out) is out
        assert out.tobytes() == expected.tobytes()
    for residual in (x, x.copy()):
        held = x.copy()
        y, total = getattr(anynorm, f"add_{norm}")(held, residual, out=(np.empty_like(x), held))
        assert (y.tobytes(), total.tobytes()) == (sums[0].tobytes(), sums[1].tobytes())


@pytest.mark.filterwarnings("ignore:os.fork")  # JAX, which other tests of a process may have started, warns of it
def test_after_a_fork():
    x = given()["x"]
    expected = anynorm.rms_norm(x)
    child = os.fork()
    if not child:
        os._exit(not (takes_fast_path(anynorm.rms_norm, x) and anynorm.rms_norm(x).tobytes() == expected.tobytes()))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_in_many_threads():
    """Each array is lent out by several threads at once; the larger ones without Python's lock."""
    kinds = [given(dtype) | {"y": None, "total": None} for dtype in ("float32", "float16", "float64")]
    kinds += [one | {name: np.tile(one[name], (99, 1)) for name in ("x", "residual")} for one in kinds]
    calls = [[one[name] for name in ("x", "residual", "weight", "bias")] for one in kinds]
    expected = [anynorm.add_rms_norm(*call, eps=1e-5)[0].tobytes() for call in calls]
    wrong = []

    def work(seed):
        for i in np.random.default_rng(seed).integers(len(calls), size=300):
            if anynorm.add_rms_norm(*calls[i], eps=1e-5)[0].tobytes() != expected[i]:
                wrong.append(i)

    in_threads(work, range(4))
    assert wrong == []
