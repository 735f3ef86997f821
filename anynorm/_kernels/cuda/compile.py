"""The source -> machine code for one device and one kind of call, by NVRTC; kept in memory and on disk."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

from anynorm._kernels.cuda.launch_derivative import STREAM_THREADS
from anynorm._kernels.cuda.task import NORMALIZE, STEPS, STREAM, STREAM_AND_ADD, Choice

_MAIN = "kernel.cu"
_ELEMENTS = {"float16": "Half", "bfloat16": "Bfloat16", "float32": "float", "float64": "double"}
# Of a multiprocessor, with 64 registers each: while some blocks load, others store. Twice the slots take twice the registers.
_THREADS = 1024
# Products and sums are fused where the source says so and nowhere else: pairs of numbers depend on it.
_OPTIONS = ("--std=c++17", "--fmad=false", "-default-device")


@functools.cache
def source() -> dict[str, str]:
    """The files of the source by name."""
    files = resources.files(__package__).iterdir()
    return {file.name: file.read_text() for file in files if file.name.endswith((".cu", ".cuh"))}


def options(choice: Choice, block: int, architecture: str) -> tuple[str, ...]:
    """What NVRTC is asked for; ``architecture`` is one such as sm_90."""
    mode = "Paired<double>" if choice.dtype == "float64" else "Paired<float>" if choice.paired else "Plain"
    defined = {
        "STEP": STEPS.index(choice.step),
        "ELEMENT": _ELEMENTS[choice.dtype],
        "MODE": mode,
        "HELD_SLOTS": choice.held,
        "RULE": choice.rule,
        "WEIGHT": choice.weight,
        "BIAS": choice.bias,
        "OFFSET": int(choice.offset),
        "ALIGNED": int(choice.aligned),
        "IS_ADDED": int(choice.added),
        "THREADS": choice.threads,
        "NEIGHBOURS": choice.neighbours,
        "SLOTS_IN_SHARED": int(choice.in_shared),
        "IS_FULL": int(choice.full),
        "CLUSTER": choice.cluster,
        "BLOCK": block,
        "LEAST_BLOCKS": blocks_at_once(choice, block),
    }
    return (f"--gpu-architecture={architecture}", *_OPTIONS, *(f"-D{name}={value}" for name, value in defined.items()))


def blocks_at_once(choice: Choice, block: int) -> int:
    """How many blocks a multiprocessor is to have room for; the more, the fewer registers each thread has."""
    if choice.step in (STREAM, STREAM_AND_ADD):
        return max(1, STREAM_THREADS // block // (1 if choice.aligned else 2))
    if choice.dtype == "float64" or choice.paired or choice.step != NORMALIZE or not choice.held:
        return 1
    if choice.least:
        return choice.least
    return max(1, (_THREADS if choice.held <= 4 and choice.aligned else _THREADS // 2) // block)


def build(given: tuple[str, ...]) -> tuple[bytes, str]:
    """Compile with these options; return the machine code and what the compiler had to say."""
    from cuda.bindings import nvrtc

    files = source()
    headers = [name for name in files if name != _MAIN]
    program = _checked(
        nvrtc,
        nvrtc.nvrtcCreateProgram(
            files[_MAIN].encode(), _MAIN.encode(), len(headers),
            [files[name].encode() for name in headers], [name.encode() for name in headers],
        ),
    )  # fmt: skip
    try:
        (status,) = nvrtc.nvrtcCompileProgram(program, len(given), [option.encode() for option in given])
        log = bytearray(_checked(nvrtc, nvrtc.nvrtcGetProgramLogSize(program)))
        _checked(nvrtc, nvrtc.nvrtcGetProgramLog(program, log))
        said = log.decode().rstrip("\0 \n")
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise RuntimeError(f"NVRTC could not compile the CUDA kernels ({status.name}): {said}")
        code = bytearray(_checked(nvrtc, nvrtc.nvrtcGetCUBINSize(program)))
        _checked(nvrtc, nvrtc.nvrtcGetCUBIN(program, code))
        return bytes(code), said
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def compiled(choice: Choice, block: int, architecture: str) -> bytes:
    """Machine code, from disk where it has been compiled before."""
    given = options(choice, block, architecture)
    path = _folder() / f"{_digest(given)}.cubin"
    with contextlib.suppress(OSError):
        return path.read_bytes()
    code, _ = build(given)
    _keep(path, code)
    return code


def _digest(given: tuple[str, ...]) -> str:
    """Of all that the machine code depends on."""
    from cuda.bindings import nvrtc

    version = _checked(nvrtc, nvrtc.nvrtcVersion())
    return hashlib.sha256(repr((version, given, sorted(source().items()))).encode()).hexdigest()[:32]


def _folder() -> Path:
    """Where machine code is kept."""
    given = os.environ.get("ANYNORM_CACHE_DIR")
    if given:
        return Path(given)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "anynorm"


def _keep(path: Path, code: bytes) -> None:
    """Write a file that appears whole or not at all; nothing is kept where nothing can be written."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(code)
            Path(name).replace(path)
        except OSError:
            Path(name).unlink(missing_ok=True)


def _checked(nvrtc: Any, returned: tuple[Any, ...]) -> Any:
    """What a function of NVRTC returns beside its status."""
    status, *values = returned
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise RuntimeError(f"NVRTC failed: {status.name}")
    return values[0] if len(values) == 1 else tuple(values) if values else None
