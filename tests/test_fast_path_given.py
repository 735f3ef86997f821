"""Small calls with given moments take the fast path: what moments become is kept with them, and never stale."""

import copy
import pickle

import numpy as np
import pytest

import anynorm
from tests.backends import ALL, as_dtype, needs_llvmlite
from tests.fast_path import forced, takes_fast_path
from tests.test_fast_path_thresholds import record, tasks  # noqa: F401 - a fixture

pytestmark = needs_llvmlite
NORMS = ("layer_norm", "rms_norm", "scale_norm")
KINDS = [((6, 20), -1), ((6, 20), 0), ((4, 5, 6), (0, 2)), ((20,), 0)]


def numbers(shape, dtype="float32", seed=0):
    return as_dtype(np.random.default_rng(seed).standard_normal(shape), dtype)


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("shape", "axis"), KINDS, ids=str)
def test_the_bits_of_the_slow_path(shape, axis, norm, dtype):
    x, other, function = numbers(shape, dtype), numbers(shape, dtype, 1), getattr(anynorm, norm)
    several = axis if isinstance(axis, tuple) else (axis,)
    weight = numbers([shape[one] for one in several], dtype, 2)
    parameters = (3.0,) if norm == "scale_norm" else (weight, weight)
    for strides in (x, np.asfortranarray(x), np.repeat(x, 2, axis=0)[::2]):
        options = {"axis": axis, "eps": 0.25, "moments": anynorm.moments(other, axis=axis)}
        expected = forced(function, strides, *parameters, **options | {"moments": anynorm.moments(other, axis=axis)})
        for _ in range(2):
            assert function(strides, *parameters, **options).tobytes() == expected.tobytes()
        assert takes_fast_path(function, strides, *parameters, **options)
        assert function(strides, *parameters, **options).strides == expected.strides


def test_kernels_are_handed_the_same(record):  # noqa: F811
    from anynorm._kernels.cpu.kernels.task import Task
    from anynorm._kernels.cpu.launch import given

    x, weight = numbers((6, 20)), numbers(6)
    moments = anynorm.moments(x, axis=0)
    call = {"axis": 0, "moments": moments}
    for _ in range(2):
        anynorm.layer_norm(x, weight, weight, **call)
    handed = []
    launch = lambda kernel, task, *rest: handed.append(Task.from_buffer_copy(task))  # noqa: E731
    with pytest.MonkeyPatch.context() as patched, tasks(record) as (short, _):
        patched.setattr(given, "launch", launch)
        assert takes_fast_path(anynorm.layer_norm, x, weight, weight, **call)
        forced(anynorm.layer_norm, x, weight, weight, **call)
    for name, _ in Task._fields_:
        # A new result, a layout that may be an equal one, and kernels to go on with once they were needed.
        if name not in ("y", "layout", "float64_kernel"):
            assert short[0][name] == getattr(handed[0], name)


def test_what_is_kept_is_of_one_rule_eps_scale_and_dtype():
    x, wide = numbers((6, 20)), numbers((6, 20), "float64")
    moments, of_wide = anynorm.moments(x, axis=0), anynorm.moments(wide, axis=0)
    calls = [(norm, (), eps) for norm in NORMS for eps in (1e-5, 0.5, 0.0)]
    calls += [("scale_norm", (scale,), 0.5) for scale in (2.0, 0.0, -0.0, 1.0)]
    for _ in range(3):
        for norm, parameters, eps in calls:
            for held, one in ((x, moments), (wide, of_wide), (x, of_wide)):
                fresh = anynorm.moments(wide if one is of_wide else x, axis=0)
                options = {"axis": 0, "eps": eps}
                expected = forced(getattr(anynorm, norm), held, *parameters, **options, moments=fresh)
                found = getattr(anynorm, norm)(held, *parameters, **options, moments=one)
                assert found.tobytes() == expected.tobytes()


# What hands out their arrays, as to `jax.tree`, or moments that share them.
SHARING = {
    "flatten": lambda moments: moments.flatten(), "rows": lambda moments: moments[...].flatten(),
    "to": lambda moments: moments.to(dtype="float32").flatten(),
}  # fmt: skip


@pytest.mark.parametrize("change", [*SHARING, "statistics"])
def test_moments_whose_arrays_were_changed(change):
    """What was kept is forgotten where others may hold their arrays."""
    x = numbers((6, 20))
    moments = anynorm.moments(x, axis=0)
    for _ in range(2):
        before = anynorm.layer_norm(x, axis=0, moments=moments)
    assert takes_fast_path(anynorm.layer_norm, x, axis=0, moments=moments)
    if change in SHARING:
        SHARING[change](moments)[0][0][...] += 1.0
        found = anynorm.layer_norm(x, axis=0, moments=moments)
        assert np.abs(found - before).min() > 0.1
        assert not takes_fast_path(anynorm.layer_norm, x, axis=0, moments=moments)
    else:  # what it shows is its own
        moments.mean[...] = moments.variance[...] = moments.std[...] = 7.0
        assert anynorm.layer_norm(x, axis=0, moments=moments).tobytes() == before.tobytes()


def test_others_are_not_what_was_kept():
    x = numbers((6, 20))
    moments = anynorm.moments(x, axis=0)
    for _ in range(2):
        expected = anynorm.layer_norm(x, axis=0, moments=moments)
    for other in (copy.copy(moments), copy.deepcopy(moments), pickle.loads(pickle.dumps(moments))):
        for _ in range(2):
            assert anynorm.layer_norm(x, axis=0, moments=other).tobytes() == expected.tobytes()
    merged = moments + anynorm.moments(x + 1, axis=0)
    assert np.abs(anynorm.layer_norm(x, axis=0, moments=merged) - expected).max() > 0.1
    part = moments[..., 3:9]
    assert np.array_equal(anynorm.layer_norm(x[:, 3:9], axis=0, moments=part), expected[:, 3:9])


def test_arguments_are_checked_as_strictly():
    x = numbers((6, 20))
    moments = anynorm.moments(x, axis=0)
    for _ in range(2):
        anynorm.layer_norm(x, axis=0, moments=moments)
    assert takes_fast_path(anynorm.layer_norm, x, axis=0, moments=moments)
    wrong = [
        (ValueError, x, {"axis": 1}),
        (ValueError, x[:, 1:], {"axis": 0}),
        (ValueError, x[None], {"axis": 0}),
        (ValueError, x, {"axis": 0, "eps": -1.0}),
        (TypeError, x, {"axis": 0, "eps": True}),
        (TypeError, x.astype(int), {"axis": 0}),
        (ValueError, x, {"axis": 0, "weight_offset": 1.0}),
        (ValueError, x, {"axis": 0, "weight": np.ones(20, np.float32)}),
        (ValueError, x, {"axis": 0, "out": x[1:]}),
    ]
    for error, held, options in wrong:
        for _ in range(2):
            with pytest.raises(error):
                anynorm.layer_norm(held, moments=moments, **options)
    for other in (1.0, (), x):
        with pytest.raises(TypeError, match="moments must"):
            anynorm.layer_norm(x, axis=0, moments=other)


def test_in_place_takes_the_slow_path():
    x = numbers((6, 20))
    moments = anynorm.moments(x, axis=0)
    for _ in range(2):
        expected = anynorm.layer_norm(x, axis=0, moments=moments)
    assert not takes_fast_path(anynorm.layer_norm, x.copy(), axis=0, moments=moments, out=np.empty_like(x))
    assert anynorm.layer_norm(x, axis=0, moments=moments, out=x).tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_that_the_kernel_leaves(dtype):
    """And weights, which only the definition can apply: of float64 those of an extreme size."""
    x, largest = numbers((6, 20), dtype), {"float32": 3e38, "float64": 1e308}[dtype]
    ordinary, extreme = anynorm.moments(x, axis=1), x.copy()
    extreme[2] *= largest / 8
    mixed, weight = anynorm.moments(extreme, axis=1), np.full(20, largest, dtype)
    for moments, parameters in ((mixed, ()), (ordinary, (weight,)), (ordinary, ())):
        for held in (x, extreme):
            with np.errstate(all="ignore"):
                expected = forced(anynorm.layer_norm, held, *parameters, moments=moments)
                for _ in range(3):
                    found = anynorm.layer_norm(held, *parameters, moments=moments)
                    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("norm", NORMS)
def test_rows_with_units_are_kept_too(norm):
    """Float64 of extreme magnitude among other rows, a row after the other and side by side."""
    sizes = np.asarray([[1e200], [1.0], [1e-300], [2.0], [0.0], [1e120]])
    for axis, x in ((-1, numbers((6, 20), "float64") * sizes), (0, (numbers((6, 20), "float64") * sizes).T.copy())):
        moments, function = anynorm.moments(x, axis=axis), getattr(anynorm, norm)
        expected = forced(function, x, axis=axis, moments=anynorm.moments(x, axis=axis))
        for _ in range(2):
            assert function(x, axis=axis, moments=moments).tobytes() == expected.tobytes()
        assert takes_fast_path(function, x, axis=axis, moments=moments)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("norm", NORMS)
def test_pullbacks_keep_it_too(norm, dtype, monkeypatch):
    """Of one rule, eps and scale; with copies, as what is returned is the caller's."""
    from anynorm._kernels.cpu.launch import given

    x, dy, finish, finished = numbers((6, 20), dtype), numbers((6, 20), dtype, 1), given.finish, []
    function = getattr(anynorm, f"{norm}_vjp")
    parameters = (3.0,) if norm == "scale_norm" else (numbers(6, dtype, 2),)
    monkeypatch.setattr(given, "finish", lambda *given: finished.append(given) or finish(*given))

    def back(moments, eps):
        dx, dweight, *_, dmoments = function(x, *parameters, axis=0, eps=eps, moments=moments)[1](dy)
        return [one for one in (dx, dweight, dmoments.mean, dmoments.variance) if one is not None], dmoments

    moments = anynorm.moments(x, axis=0)
    for eps, is_kept in ((0.25, False), (1e-5, False), (0.25, True), (0.25, True), (1e-5, True)):
        expected, _ = back(anynorm.moments(x, axis=0), eps)
        assert {len(given) for given in finished} == {1, 2}  # the norm and its derivative
        finished.clear()
        found, dmoments = back(moments, eps)
        assert [one.tobytes() for one in found] == [one.tobytes() for one in expected]
        for one in dmoments.flatten()[0]:
            if one is not None:
                one[...] = 7.0
        assert bool(finished) != is_kept
        finished.clear()
    moments.flatten()  # others may hold its arrays from now on, and change them
    back(moments, 0.25)
    assert len(finished) == 2


def test_how_much_is_kept(monkeypatch):
    from anynorm._kernels.cpu.language.dtypes import FINISHED
    from anynorm._kernels.cpu.launch import given
    from anynorm._moments import finished_of

    x = numbers((20, 5))
    nbytes = 5 * FINISHED * 8
    for most, is_short in ((nbytes, True), (nbytes - 1, False)):
        monkeypatch.setattr(given, "_MOST_KEPT_NBYTES", most)
        moments = anynorm.moments(x, axis=0)
        anynorm.layer_norm(x, axis=0, moments=moments)
        assert takes_fast_path(anynorm.layer_norm, x, axis=0, moments=moments) == is_short
    for most, count in ((2 * nbytes, 2), (2 * nbytes - 1, 1)):
        monkeypatch.setattr(given, "_MOST_KEPT_NBYTES", most)
        moments = anynorm.moments(x, axis=0)
        for eps in (0.0, 1.0):
            anynorm.layer_norm(x, axis=0, eps=eps, moments=moments)
            assert takes_fast_path(anynorm.layer_norm, x, axis=0, eps=eps, moments=moments)
        assert len(finished_of(moments)) == count
    monkeypatch.undo()
    moments = anynorm.moments(x, axis=0)
    for place in range(given._MOST_KEPT + 2):
        expected = forced(anynorm.layer_norm, x, axis=0, eps=float(place), moments=anynorm.moments(x, axis=0))
        for _ in range(2):
            found = anynorm.layer_norm(x, axis=0, eps=float(place), moments=moments)
            assert found.tobytes() == expected.tobytes()
        assert takes_fast_path(anynorm.layer_norm, x, axis=0, eps=float(place), moments=moments)
        assert len(finished_of(moments)) == place % given._MOST_KEPT + 1


def test_moments_that_were_made_are_kept_for_arrays_of_each_width():
    """And not where each row has a count, whose array may be the caller's."""
    mean, variance, counts = np.float64([[0.5, -2.0]]), np.float64([[4.0, 0.25]]), np.asarray([[3, 4]])
    for count, is_short in ((3, True), (counts, False)):
        moments = anynorm.Moments.from_mean_variance(mean, variance, count=count)
        for x in (numbers((9, 2)), numbers((9, 2), "float64")):
            fresh = anynorm.Moments.from_mean_variance(mean, variance, count=count)
            expected = forced(anynorm.layer_norm, x, axis=0, moments=fresh)
            assert anynorm.layer_norm(x, axis=0, moments=moments).tobytes() == expected.tobytes()
            assert takes_fast_path(anynorm.layer_norm, x, axis=0, moments=moments) == is_short
            mean[...], variance[...] = mean + 1.0, variance + 1.0
            assert anynorm.layer_norm(x, axis=0, moments=moments).tobytes() == expected.tobytes()
            mean[...], variance[...] = mean - 1.0, variance - 1.0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_moments_that_were_merged_are_kept_where_their_arrays_are_new(dtype):
    x = numbers((6, 20), dtype)
    a, b, nothing = (anynorm.moments(one, axis=0) for one in (x, x + 1, x[:0]))
    for merged, is_short in ((a + b, True), (a + nothing, False), (nothing + a, False)):
        for _ in range(2):
            before = anynorm.layer_norm(x, axis=0, moments=merged)
        assert takes_fast_path(anynorm.layer_norm, x, axis=0, moments=merged) == is_short
        a.flatten()[0][0][...] += 1.0
        is_same = anynorm.layer_norm(x, axis=0, moments=merged).tobytes() == before.tobytes()
        assert is_same == is_short
        a.flatten()[0][0][...] -= 1.0


def test_a_call_with_moments_may_be_the_first_of_a_process():
    from tests.processes import script

    code = """
import numpy, anynorm
x = numpy.random.default_rng(0).standard_normal((6, 20)).astype("float32")
m = anynorm.moments(x, axis=0)
y = [anynorm.layer_norm(x, axis=0, moments=m).tobytes() for _ in range(3)]
z = [anynorm.layer_norm(x, axis=0).tobytes() for _ in range(3)]
x[:, 3] = 3e37
held = [x.copy() for _ in range(3)]
for one in held:
    anynorm.rms_norm(one, axis=0, out=one)
print(len(set(y)), len(set(z)), len({one.tobytes() for one in held}))
"""
    assert script(code) == ["1"] * 3
