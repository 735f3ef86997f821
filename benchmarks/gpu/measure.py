"""Check and time one piece of work."""

import statistics
from typing import Any

from .calls import calls, small_calls
from .check import expected, wrong
from .timing import copy_bandwidth, on_device, on_host, rotating, summary
from .work import ROTATED, Work


def copies(document: dict[str, Any], nbytes: int) -> float:
    """GB/s of the fastest copy of so many bytes; all of them are kept in the document."""
    found = document["copy GB/s"]
    if str(nbytes) not in found:
        found[str(nbytes)] = copy_bandwidth(nbytes, document["cache"], ROTATED)
        each = ", ".join(f"{name} {bandwidth:.0f}" for name, bandwidth in found[str(nbytes)].items())
        print(f"copy of {nbytes >> 20} MiB, GB/s: {each}", flush=True)
    return max(found[str(nbytes)].values())


def run(work: Work, count: int, bandwidth: float) -> dict[str, Any]:
    """Results by name of who did it: times, or what was wrong."""
    import torch
    import torch._functorch.config as functorch

    functorch.donated_buffer = False  # or compiled derivatives cannot be taken twice
    torch.manual_seed(0)
    case, dtype = work.case, getattr(torch, work.case.dtype)
    weight, bias = ((1 - k + 0.1 * torch.randn(case.features, device="cuda")).to(dtype) for k in range(2))
    if work.what in ("gradients", "step"):
        weight.requires_grad_(), bias.requires_grad_()
    xs = [torch.randn(case.shape, device="cuda").to(dtype) for _ in range(count)]
    others = xs
    if work.what not in ("y", "call"):
        others = [torch.randn(case.shape, device="cuda").to(dtype) for _ in range(count)]
    found = small_calls(work, weight, bias) if work.what == "call" else calls(work, weight, bias)
    results, timed = _checked(work, found, xs, others, weight, bias)
    if work.what == "call":
        returned, there = (on_host(timed, synchronized) for synchronized in (False, True))
        for name in timed:
            each = statistics.median(returned[name]), statistics.median(there[name])
            results[name] = dict(zip(("ms", "synchronized ms"), each, strict=True))
    else:
        for name, taken in on_device(timed).items():
            results[name] = summary(taken, work.nbytes, bandwidth)
    return {name: results[name] for name in found}


def _checked(
    work: Work, found: dict[str, Any], xs: list[Any], others: list[Any], weight: Any, bias: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What failed, and the rest as calls that rotate.

    anynorm's kernel is forced while its result is checked, so that no other one is timed. It is not while it is timed:
    a forced kernel goes the full way in each call, and nobody forces one.
    """
    import torch

    import anynorm

    wanted = expected(work, xs[0], others[0], weight, bias)
    failed, timed = {}, {}
    for name, call in found.items():
        poison = [torch.full_like(xs[0], float("nan")) for _ in wanted]
        del poison  # fresh results lie where NaN was, and what is not written is found
        try:
            with anynorm.use_kernel("cuda" if name.startswith("anynorm") else None):
                said = wrong(work, call(xs[0], others[0]), wanted)
        except Exception as failure:  # of a rival, for whatever reason: the others go on
            failed[name] = {"failed": f"{type(failure).__name__}: {failure}"}
            continue
        if said is not None:
            failed[name] = {"wrong": said}
        else:
            timed[name] = rotating(call, xs, others)
    return failed, timed
