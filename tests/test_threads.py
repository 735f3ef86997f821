"""Helpers are started and told to end by any thread, and by the handlers of signals, and nobody waits for good."""

import threading

import pytest

import anynorm
from anynorm import _threads


class Started:
    """What stands for helpers."""

    def __init__(self, count):
        self.count = count
        self.ended = 0

    def shutdown(self, wait):
        assert wait is False
        self.ended += 1


@pytest.fixture(autouse=True)
def _apart():
    anynorm.set_threads(3)
    yield
    anynorm.set_threads(None)


def test_helpers_are_kept_until_others_are_asked_for():
    first = _threads.helpers(Started, 2)
    assert _threads.helpers(Started, 2) is first
    second = _threads.helpers(Started, 1)
    assert (second.count, first.ended, second.ended) == (1, 1, 0)
    anynorm.set_threads(3)
    assert (first.ended, second.ended) == (1, 1)


def test_set_threads_does_not_wait_for_helpers_that_another_thread_starts():
    begun, goes_on, found = threading.Event(), threading.Event(), []

    def start(count):
        begun.set()
        goes_on.wait(60)
        return Started(count)

    starter = threading.Thread(target=lambda: found.append(_threads.helpers(start, 2)))
    starter.start()
    assert begun.wait(60)
    assert _threads.helpers(start, 2) is None  # nor does a call
    setter = threading.Thread(target=anynorm.set_threads, args=(1,))
    setter.start()
    setter.join(60)
    try:
        assert not setter.is_alive()
    finally:
        goes_on.set()
        starter.join(60)
    assert found[0].ended == 1  # they are not as many as were asked for meanwhile
    assert _threads._helpers is None


def test_a_handler_of_a_signal_while_helpers_are_started():
    def start(count):
        # What a handler may do.
        assert _threads.helpers(start, count) is None
        anynorm.set_threads(2)
        return Started(count)

    assert _threads.helpers(start, 2).ended == 1
    again = _threads.helpers(Started, 1)
    assert again.ended == 0
    assert _threads.helpers(Started, 1) is again


def test_a_start_that_fails_is_followed_by_another():
    def fail(count):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _threads.helpers(fail, 2)
    assert _threads.helpers(Started, 2).count == 2
