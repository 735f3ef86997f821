"""Time anynorm's CUDA kernels against their rivals on the GPU at hand.

    python -m benchmarks.gpu -o gpu.json

A result is checked before it is timed. Buffers are rotated so that together they exceed the last cache several times;
times are medians of CUDA events, rivals take turns, and each is given as GB/s and as a part of the bandwidth of a copy
from device to device, measured in the same run.
"""

import argparse
import importlib.util
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from anynorm._bench.cases import EPS
from anynorm._bench.cases import NBYTES as ITEMSIZES
from anynorm._bench.inputs import TOLERANCE

FEATURES = (1024, 4096, 8192, 16384, 65536)
NBYTES = 256 << 20  # of x in the large cases
DTYPES = ("float32", "bfloat16")
ROTATED = 8  # times the last cache that all buffers of a case take at least
WARM_UP, SAMPLES = 10, 50


class Case(NamedTuple):
    norm: str
    dtype: str
    rows: int
    features: int
    backward: bool = False

    @property
    def nbytes(self) -> int:
        """What has to be moved at least: x and y, or x, dy and dx."""
        return (3 if self.backward else 2) * self.rows * self.features * ITEMSIZES[self.dtype]

    def __str__(self) -> str:
        return f"{self.norm} {self.dtype} {self.rows}x{self.features}{' backward' if self.backward else ''}"


def cases() -> Iterator[Case]:
    """Large arrays of each length of rows, and a small one."""
    for dtype in DTYPES:
        for norm in ("layer_norm", "rms_norm", "scale_norm"):
            for features in FEATURES:
                rows = NBYTES // (features * ITEMSIZES[dtype])
                yield Case(norm, dtype, rows, features)
                if norm != "scale_norm":
                    yield Case(norm, dtype, rows, features, backward=True)
            yield Case(norm, dtype, 64, 1024)


def buffers(case: Case, cache_nbytes: int) -> int:
    """How many sets of arrays to rotate through, so that none is found in the cache."""
    return max(2, math.ceil(ROTATED * cache_nbytes / case.nbytes))


def summary(milliseconds: list[float], nbytes: int, copy_bandwidth: float) -> dict[str, float]:
    """Median time, the bandwidth that it amounts to, and that as a part of a copy's."""
    median = statistics.median(milliseconds)
    bandwidth = nbytes / median / 1e6
    return {"ms": median, "GB/s": bandwidth, "of copy": bandwidth / copy_bandwidth}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, metavar="FILE.json", help="written anew after each case")
    parser.add_argument("--only", default="", metavar="SUBSTRING", help="cases with this in their name")
    arguments = parser.parse_args()
    reason = why_not()
    if reason is not None:
        sys.exit(f"the GPU benchmark cannot run: {reason}")
    chosen = [case for case in cases() if arguments.only in str(case)]
    if not chosen:
        sys.exit(f"no case has {arguments.only!r} in its name; names are like {next(cases())}")
    document = describe()
    for case in chosen:
        document["cases"].append(run(case, document["copy GB/s"], document["cache"]))
        if arguments.output:
            arguments.output.write_text(json.dumps(document, indent=1))


def why_not() -> str | None:
    """What is missing for it."""
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed, which holds the arrays and is a rival"
    import torch

    if not torch.cuda.is_available():
        return "torch sees no NVIDIA GPU"
    from anynorm._kernels import cuda

    return cuda.missing()


def describe() -> dict[str, Any]:
    import torch

    properties = torch.cuda.get_device_properties(0)
    cache = properties.L2_cache_size
    x, y = (torch.empty(NBYTES, dtype=torch.uint8, device="cuda") for _ in range(2))
    bandwidth = 2 * NBYTES / statistics.median(sample([lambda: y.copy_(x)])[0]) / 1e6
    print(f"{properties.name}: a copy moves {bandwidth:.0f} GB/s")
    return {"card": properties.name, "torch": torch.__version__, "cache": cache, "copy GB/s": bandwidth, "cases": []}


def run(case: Case, copy_bandwidth: float, cache_nbytes: int) -> dict[str, Any]:
    """Check and time one case."""
    import torch

    torch.manual_seed(0)
    dtype, count = getattr(torch, case.dtype), buffers(case, cache_nbytes)
    xs, dys = ([torch.randn(case.rows, case.features, device="cuda").to(dtype) for _ in range(count)] for _ in range(2))
    weight = torch.ones(case.features, device="cuda", dtype=dtype)
    bias = torch.zeros(case.features, device="cuda", dtype=dtype)
    results: dict[str, Any] = {}
    timed: dict[str, Callable[[], Any]] = {}
    for name, call in rivals(case, weight, bias).items():
        try:
            error = largest_error(case, xs[0], dys[0], weight, call(xs[0], dys[0]))
        except Exception as failure:  # of a rival, for whatever reason: the others go on
            results[name] = {"failed": f"{type(failure).__name__}: {failure}"}
            continue
        if not error <= TOLERANCE[case.dtype]:
            results[name] = {"wrong": error}
            continue
        timed[name] = rotating(call, xs, dys)
    for name, taken in zip(timed, sample(list(timed.values())), strict=True):
        results[name] = summary(taken, case.nbytes, copy_bandwidth)
        print(f"{case}: {name} {results[name]['GB/s']:.0f} GB/s, {results[name]['of copy']:.0%} of a copy", flush=True)
    return {"case": case._asdict(), "results": results}


def rotating(call: Callable[..., Any], xs: list[Any], dys: list[Any]) -> Callable[[], Any]:
    """A call that takes the next buffers each time."""
    turn = iter(range(sys.maxsize))
    return lambda: call(xs[(k := next(turn)) % len(xs)], dys[k % len(dys)])


def sample(calls: list[Callable[[], Any]]) -> list[list[float]]:
    """Milliseconds of each call by CUDA events, the calls taking turns."""
    import torch

    for call in calls:
        for _ in range(WARM_UP):
            call()
    events = [[[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(SAMPLES)] for _ in calls]
    for turn in range(SAMPLES):
        for call, of_call in zip(calls, events, strict=True):
            of_call[turn][0].record()
            call()
            of_call[turn][1].record()
    torch.cuda.synchronize()
    return [[start.elapsed_time(end) for start, end in of_call] for of_call in events]


def rivals(case: Case, weight: Any, bias: Any) -> dict[str, Callable[[Any, Any], Any]]:
    """Calls of x and dy that return y, or dx."""
    import torch
    import torch.nn.functional as functional

    import anynorm

    shape = (case.features,)
    plain: dict[str, Callable[[Any], Any]] = {
        "layer_norm": lambda x: functional.layer_norm(x, shape, weight, bias),
        "rms_norm": lambda x: functional.rms_norm(x, shape, weight, 1e-6),
        "scale_norm": lambda x: functional.normalize(x, dim=-1),
    }
    ours: dict[str, Callable[[Any], Any]] = {
        "layer_norm": lambda x: anynorm.layer_norm(x, weight, bias),
        "rms_norm": lambda x: anynorm.rms_norm(x, weight),
        "scale_norm": anynorm.scale_norm,
    }
    if case.backward:
        return {"anynorm": _pullback(case, weight, bias), "torch": _by_autograd(plain[case.norm])}

    def forced(x: Any, dy: Any) -> Any:
        with anynorm.use_kernel("cuda"):
            return ours[case.norm](x)

    compiled = torch.compile(plain[case.norm])
    found = {
        "anynorm": forced,
        "torch": lambda x, dy: plain[case.norm](x),
        "torch compiled": lambda x, dy: compiled(x),
    }
    return found | _of_packages(case, weight, bias)


def _of_packages(case: Case, weight: Any, bias: Any) -> dict[str, Callable[[Any, Any], Any]]:
    """Rivals that may be missing."""
    found: dict[str, Callable[[Any, Any], Any]] = {}
    if importlib.util.find_spec("liger_kernel") is not None:
        from liger_kernel.transformers import functional as liger

        if case.norm == "layer_norm":
            found["Liger-Kernel"] = lambda x, dy: liger.liger_layer_norm(x, weight, bias, 1e-5)
        if case.norm == "rms_norm":
            found["Liger-Kernel"] = lambda x, dy: liger.liger_rms_norm(x, weight, 1e-6)
    if importlib.util.find_spec("quack") is not None and case.norm == "rms_norm":
        from quack import rmsnorm

        found["quack"] = lambda x, dy: rmsnorm(x, weight, eps=1e-6)
    if importlib.util.find_spec("cupy") is not None and case.dtype == "float32" and case.norm == "rms_norm":
        import cupy

        def expression(x: Any, dy: Any) -> Any:
            array, factor = cupy.from_dlpack(x), cupy.from_dlpack(weight)
            return array / cupy.sqrt(cupy.mean(array**2, axis=-1, keepdims=True) + 1e-6) * factor

        found["CuPy expression"] = expression
    return found


def _pullback(case: Case, weight: Any, bias: Any) -> Callable[[Any, Any], Any]:
    """The derivative by x alone; what the forward call keeps for it is no more than its arguments."""
    from anynorm._check import check, check_gradient
    from anynorm._definition.norms import LAYER_NORM, RMS_NORM
    from anynorm._kernels.cuda.pull import pull

    rule, eps = LAYER_NORM if case.norm == "layer_norm" else RMS_NORM, EPS[case.norm]
    parameter = bias if rule.centred else None

    def differentiate(x: Any, dy: Any) -> Any:
        gradient = check_gradient(check(rule, x, weight, parameter, -1, eps), dy)
        return pull(gradient._replace(parameters=False))[0]

    return differentiate


def _by_autograd(norm: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    """The derivative alone, of a graph that is kept for each buffer."""
    import torch

    kept: dict[int, tuple[Any, Any]] = {}

    def differentiate(x: Any, dy: Any) -> Any:
        if x.data_ptr() not in kept:
            followed = x.detach().requires_grad_()
            kept[x.data_ptr()] = followed, norm(followed)
        followed, y = kept[x.data_ptr()]
        return torch.autograd.grad(y, followed, dy, retain_graph=True)[0]

    return differentiate


def largest_error(case: Case, x: Any, dy: Any, weight: Any, got: Any) -> float:
    """Compare some rows with the formula in float64."""
    import torch

    if isinstance(got, torch.Tensor):
        got = got.detach()
    x, dy, got = (torch.as_tensor(one, device="cuda")[:64].double() for one in (x, dy, got))
    wide = x.requires_grad_(case.backward)
    if case.norm == "scale_norm":
        y = wide / torch.linalg.vector_norm(wide, dim=-1, keepdim=True).clamp(min=1e-12)
    else:
        centred = wide - wide.mean(-1, keepdim=True) if case.norm == "layer_norm" else wide
        y = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + EPS[case.norm]) * weight.double()
    expected = torch.autograd.grad(y, wide, dy)[0] if case.backward else y
    size = torch.maximum(expected.abs(), (expected**2).mean(-1, keepdim=True).sqrt())
    return float(((got - expected).abs() / size).max())


if __name__ == "__main__":
    main()
