"""Time anynorm's CUDA kernels against their rivals on the GPU at hand.

    python -m benchmarks.gpu -o gpu.json

A result is checked before it is timed. Arrays are rotated so that together they exceed the last cache several times;
times are medians by device events, rivals take turns, and each is given as GB/s and as a part of the bandwidth of a
copy of as many bytes from device to device, measured in the same run. After a rival's name stands how many times as
long as anynorm it takes. A small call is timed on the host: until it returns, and until its result is there.
"""

import argparse
import importlib.util
import subprocess
import sys
from importlib import metadata
from typing import Any

from benchmarks.output import add_output

from .work import Work, buffers, everything, once, quick

PACKAGES = (
    *("numpy", "torch", "triton", "liger-kernel", "quack-kernels", "cupy-cuda12x", "cupy-cuda13x"),
    *("cuda-bindings", "nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12"),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_output(parser, "written anew after each case")
    parser.add_argument("--quick", action="store_true", help="one case of each kind: about a minute")
    parser.add_argument("--only", default="", metavar="SUBSTRING", help="cases with this in their name")
    parser.add_argument("--list", action="store_true", help="print the names of the cases and stop")
    arguments = parser.parse_args()
    chosen = [work for work in once(quick() if arguments.quick else everything()) if arguments.only in str(work)]
    if not chosen:
        sys.exit(f"no case has {arguments.only!r} in its name; names are like {next(quick())}")
    if arguments.list:
        print("\n".join(map(str, chosen)))
        return
    reason = why_not()
    if reason is not None:
        sys.exit(f"the GPU benchmark cannot run: {reason}")
    from anynorm._bench import runner

    from .measure import copies, run

    document = describe()
    for work in chosen:
        count = buffers(work, document["cache"])
        results = run(work, count, copies(document, work.case.nbytes))
        print(line(work, results), flush=True)
        document["cases"].append(work.case._asdict() | {"what": work.what, "buffers": count, "results": results})
        if arguments.output:
            runner.write(document, arguments.output)


def why_not() -> str | None:
    """What is missing for it."""
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed, which holds the arrays and is a rival"
    import torch

    if not torch.cuda.is_available():
        return "torch sees no NVIDIA GPU"
    from anynorm._forced import forced
    from anynorm._kernels import cuda

    if forced() is not None:
        return "a kernel is forced, so that no call is repeated as it is for users; unset ANYNORM_KERNEL"
    return cuda.missing()


def describe() -> dict[str, Any]:
    """The card, what drives it, and the machine around it."""
    import torch

    from anynorm._bench import machine

    properties = torch.cuda.get_device_properties(0)
    found = {
        "card": properties.name,
        "driver": driver(),
        "cuda": torch.version.cuda,
        "multiprocessors": properties.multi_processor_count,
        "cache": properties.L2_cache_size,
        "versions": {name: version for name in PACKAGES if (version := version_of(name))},
        "machine": machine.describe(),
        "copy GB/s": {},
        "cases": [],
    }
    print(f"{found['card']}, driver {found['driver']}, CUDA {found['cuda']}, torch {torch.__version__}", flush=True)
    return found


def driver() -> str | None:
    """The version of the driver, as nvidia-smi has it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.split("\n")[0].strip()


def version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def line(work: Work, results: dict[str, Any]) -> str:
    """One case: anynorm's time and bandwidth, then how many times as long each rival takes."""
    first = next(iter(results))
    ours, said = results[first], []
    for name, found in results.items():
        if "ms" not in found:
            said.append(" ".join(f"{name} {found.get('wrong') or found['failed']}".split())[:60])
        elif "GB/s" in found and name == first:
            said.append(f"{found['ms'] * 1e3:.1f} us {found['GB/s']:.0f} GB/s {found['of copy']:.0%}")
        elif "GB/s" in found:
            ratio = f"{found['ms'] / ours['ms']:.2f}x" if "ms" in ours else f"{found['of copy']:.0%}"
            said.append(f"{name} {ratio}")
        else:
            said.append(f"{name} {found['ms'] * 1e3:.1f}/{found['synchronized ms'] * 1e3:.1f} us")
    return f"{work}: {', '.join(said)}"


if __name__ == "__main__":
    main()
