"""A rival with several threads lets them come to rest before the next one is timed."""

import pytest

from anynorm._bench import worker
from anynorm._bench.cases import Case
from anynorm._bench.rivals import RIVALS


class Clock:
    """Time passes while one sleeps; other threads are at work until a moment."""

    def __init__(self, busy_until):
        self.now, self.busy_until = 0.0, busy_until

    def perf_counter(self):
        return self.now

    def process_time(self):
        return min(self.now, self.busy_until)

    def sleep(self, seconds):
        self.now += seconds


@pytest.mark.parametrize(
    ("busy_until", "slept"), [(0.0, 0.01), (0.043, 0.06), (0.2, 0.21), (9.0, worker.LONGEST_REST_SECONDS)]
)
def test_it_ends_when_no_thread_is_at_work(monkeypatch, busy_until, slept):
    clock = Clock(busy_until)
    monkeypatch.setattr(worker, "time", clock)
    worker.rest()
    assert clock.now == pytest.approx(slept, abs=0.0101)
    assert clock.now > min(busy_until, 0.29)


@pytest.mark.parametrize(("threads", "rests"), [(1, 0), (2, 1)])
def test_one_thread_needs_none(monkeypatch, threads, rests):
    rested = []
    monkeypatch.setattr(worker, "rest", lambda: rested.append(1))
    monkeypatch.setattr(worker, "SAMPLE_SECONDS", 1e-5)
    monkeypatch.setattr(worker, "SHARED_SAMPLE_SECONDS", 1e-5)
    server = worker._Server("copy", RIVALS["copy"], threads)
    server.prepare(Case("rms_norm", "float32", (3, 8)))
    assert server.sample()[0] > 0
    assert len(rested) == rests
