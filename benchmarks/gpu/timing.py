"""Times of calls on a GPU, by device events, and on the host; calls take turns."""

import math
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

ROUNDS = 15
WARM_UP = 3
SAMPLE_SECONDS = 1e-3  # that the calls between two events take together, at least about
MOST_CALLS = 32  # between two events: the driver's queue must hold them all
HOST_ROUNDS, HOST_CALLS = 15, 200
CYCLES_PER_SECOND = 2e9  # at least what a card of today has


class Pace(NamedTuple):
    """How a call is sampled."""

    calls: int  # between two events
    delay: float  # seconds for which the device is kept busy, so that the host is ahead of it


def pace(host_seconds: float, seconds: float) -> Pace:
    """From the time until a call returns and the time until its result is there."""
    calls = min(MOST_CALLS, max(1, math.ceil(SAMPLE_SECONDS / seconds)))
    return Pace(calls, 2e-4 + 2 * calls * host_seconds)


def summary(milliseconds: list[float], nbytes: int, copy_bandwidth: float) -> dict[str, float]:
    """Median time, the bandwidth that it amounts to, and that as a part of a copy's."""
    median = statistics.median(milliseconds)
    bandwidth = nbytes / median / 1e6
    return {"ms": median, "GB/s": bandwidth, "of copy": bandwidth / copy_bandwidth}


def rotating(call: Callable[..., Any], *sets: list[Any]) -> Callable[[], Any]:
    """A call that takes the next arrays each time; results are kept for one turn, so that they rotate too."""
    count, turn = len(sets[0]), 0
    kept: list[Any] = [None] * count

    def next_call() -> Any:
        nonlocal turn
        k, turn = turn % count, turn + 1
        kept[k] = call(*(arrays[k] for arrays in sets))
        return kept[k]

    return next_call


def on_device(calls: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Milliseconds on the device, without what a call costs on the host.

    The device is kept busy until the calls between two events are queued. A sample where the host was not ahead is
    taken once more with a longer delay; if it is behind again, as in calls that wait for the device, the time counts.
    """
    paces = {name: _measured_pace(call) for name, call in calls.items()}
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            found, ahead = _between_events(call, paces[name])
            if not ahead:
                paces[name] = paces[name]._replace(delay=min(0.1, 4 * paces[name].delay))
                found, _ = _between_events(call, paces[name])
            taken[name].append(found)
    return taken


def _measured_pace(call: Callable[[], Any]) -> Pace:
    import torch

    for _ in range(WARM_UP):
        call()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(WARM_UP):
        call()
    returned = time.perf_counter()
    torch.cuda.synchronize()
    return pace((returned - start) / WARM_UP, (time.perf_counter() - start) / WARM_UP)


def _between_events(call: Callable[[], Any], pace: Pace) -> tuple[float, bool]:
    """Milliseconds of a call, and whether all were queued before the first of them ran."""
    import torch

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(int(pace.delay * CYCLES_PER_SECOND))
    start.record()
    for _ in range(pace.calls):
        call()
    end.record()
    ahead = not start.query()
    end.synchronize()
    return start.elapsed_time(end) / pace.calls, ahead


def on_host(calls: dict[str, Callable[[], Any]], synchronized: bool) -> dict[str, list[float]]:
    """Milliseconds until a call returns, or until its result is there."""
    import torch

    taken: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(HOST_ROUNDS + 1):  # the first warms up
        for name, call in calls.items():
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(HOST_CALLS):
                call()
                if synchronized:
                    torch.cuda.synchronize()
            if turn:
                taken[name].append((time.perf_counter() - start) / HOST_CALLS * 1e3)
    return taken


def copy_bandwidth(nbytes: int, cache_nbytes: int, rotated: int) -> dict[str, float]:
    """GB/s of copies from device to device, read and written: by the driver, and by a kernel of torch's."""
    import torch

    count = max(2, math.ceil(rotated * cache_nbytes / (2 * nbytes)))
    xs, ys = ([torch.ones(nbytes // 4, device="cuda") for _ in range(count)] for _ in range(2))
    calls = {
        "copy_": rotating(lambda x, y: y.copy_(x), xs, ys),  # cudaMemcpyAsync
        "neg": rotating(lambda x, y: torch.neg(x, out=y), xs, ys),
    }
    return {name: 2 * nbytes / statistics.median(taken) / 1e6 for name, taken in on_device(calls).items()}
