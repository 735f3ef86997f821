"""The fast path keeps plans for so many ways in which arrays lie; where there are more, all are dropped."""

import gc
import threading

import numpy as np
import pytest

import anynorm
from anynorm._definition.norms import RMS_NORM
from anynorm._kernels.cpu.fast_path import kept, plans
from tests.backends import needs_llvmlite
from tests.fast_path import forced, takes_fast_path

pytestmark = needs_llvmlite


@pytest.fixture(autouse=True)
def _empty():
    kept.table.clear()


def numbers(shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_calls_beyond_as_many_plans_as_there_may_be_are_fast_too(monkeypatch):
    monkeypatch.setattr(kept, "MOST_KEPT", 2)
    held = [numbers((features, 5)) for features in (2, 3, 4)]
    for x, count in zip(held, (1, 2, 1), strict=True):
        anynorm.rms_norm(x, axis=0)
        assert len(kept.table) == count
        assert takes_fast_path(anynorm.rms_norm, x, axis=0)
    assert not takes_fast_path(anynorm.rms_norm, held[0], axis=0)
    assert takes_fast_path(anynorm.rms_norm, held[0], axis=0)


def test_the_last_of_many_layouts_is_fast():
    for columns in range(1, 2501):
        x = numbers((2, columns))
        expected = anynorm.rms_norm(x, axis=0)
        if columns in (1, 1000, 1001, 2500):
            assert takes_fast_path(anynorm.rms_norm, x, axis=0)
            assert anynorm.rms_norm(x, axis=0).tobytes() == expected.tobytes()
    assert len(kept.table) <= kept.MOST_KEPT


def test_as_many_axes_as_a_plan_has():
    for ndim, is_short in ((8, True), (9, False)):
        x = numbers((3,) + (1,) * (ndim - 2) + (2,))
        anynorm.rms_norm(x, axis=0)
        assert takes_fast_path(anynorm.rms_norm, x, axis=0) == is_short


def test_a_call_goes_on_by_a_plan_that_was_dropped():
    from anynorm._kernels.cpu.fast_path import functions

    x = numbers((6, 40))
    expected = anynorm.rms_norm(x, axis=0)
    plan = plans.find("numpy", RMS_NORM, x, None, (0,), None)
    kept.table.clear()
    gc.collect()
    others = [plans.Plan(features=7, layout=1, kernel=1) for _ in range(100)]  # where its memory would be, were it free
    found = functions.program_of("numpy")(RMS_NORM, x, None, None, None, None, None, 1e-6, 0.0, plan.address, 0)
    assert found.tobytes() == expected.tobytes()
    assert len(others) == 100


def test_threads_that_drop_the_plans_of_each_other(monkeypatch):
    monkeypatch.setattr(kept, "MOST_KEPT", 2)
    held = [numbers((9, columns)) for columns in range(20, 28)]
    moments = [anynorm.moments(x, axis=0) for x in held]
    expected = [forced(anynorm.rms_norm, x, axis=0).tobytes() for x in held]
    both = zip(held, moments, strict=True)
    by_moments = [forced(anynorm.layer_norm, x, axis=0, moments=one).tobytes() for x, one in both]
    wrong, begin = [], threading.Barrier(4)

    def call(first):
        begin.wait()
        for turn in range(300):
            place = (first + turn) % len(held)
            x = held[place]
            if anynorm.rms_norm(x, axis=0).tobytes() != expected[place]:
                wrong.append(place)
            if anynorm.layer_norm(x, axis=0, moments=moments[place]).tobytes() != by_moments[place]:
                wrong.append(place)

    threads = [threading.Thread(target=call, args=(2 * first,)) for first in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert not wrong
    assert len(kept.table) <= 2 + len(threads)  # threads that add one at once may each see room for one
