"""The source -> machine code for one device and one kind of call, by NVRTC; kept in memory and on disk."""

from __future__ import annotations

import functools
import hashlib
from importlib import resources
from typing import Any

from anynorm._kernels import object_files
from anynorm._kernels.cuda.launch_derivative import STREAM_THREADS
from anynorm._kernels.cuda.task import NORMALIZE, STEPS, STREAM, STREAM_AND_ADD, Choice

_MAIN = "kernel.cu"
_ELEMENTS = {"float16": "Half", "bfloat16": "Bfloat16", "float32": "float", "float64": "double"}
# Of a multiprocessor, with 64 registers each: while some blocks load, others store. Twice the slots take twice the
# registers.
_THREADS = 1024
# Products and sums are fused where the source says so and nowhere else: pairs of numbers depend on it.
_OPTIONS = ("--std=c++17", "--fmad=false", "-default-device")
_OLDEST_CUDA = 12
_FOR_12 = "nvidia-cuda-nvrtc-cu12 'cuda-bindings<13'"


@functools.cache
def source() -> dict[str, str]:
    """The files of the source by name."""
    files = resources.files(__package__).iterdir()
    return {file.name: file.read_text() for file in files if file.name.endswith((".cu", ".cuh"))}


def options(choice: Choice, block: int, architecture: str) -> tuple[str, ...]:
    """What NVRTC is asked for; ``architecture`` is a card's, such as sm_90, or compute_90 for PTX."""
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
        "ABREAST": choice.abreast,
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
    if choice.abreast > 1:
        elements = choice.held * choice.abreast**2  # of a thread
        threads = 512 if choice.added or elements > 64 else 640 if elements > 32 else 768
        return max(1, threads // block)
    return max(1, (_THREADS if choice.held <= 4 and choice.aligned else _THREADS // 2) // block)


def build(given: tuple[str, ...]) -> tuple[bytes, str]:
    """Compile with these options; return the machine code, or PTX, and what the compiler had to say."""
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
        kind = "PTX" if "compute_" in given[0] else "CUBIN"
        code = bytearray(_checked(nvrtc, getattr(nvrtc, f"nvrtcGet{kind}Size")(program)))
        _checked(nvrtc, getattr(nvrtc, f"nvrtcGet{kind}")(program, code))
        return bytes(code), said
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def compiled(choice: Choice, block: int, architecture: str) -> bytes:
    """Machine code for a card, from disk where it has been compiled before."""
    given = options(choice, block, target(architecture))
    name = _digest(given)
    code = object_files.read(name)
    if code is None:
        code, _ = build(given)
        object_files.write(name, code)
    return code


def target(architecture: str) -> str:
    """What NVRTC compiles for: a card or, where it does not know one so new, PTX, which the driver translates."""
    number, known = int(architecture.removeprefix("sm_")), _architectures()
    if number in known:
        return architecture
    return f"compute_{max(one for one in known if one < number)}"


@functools.cache
def lacking(architecture: str, driver: int) -> str | None:
    """What keeps kernels from being compiled for a card and a driver, and what to install; None: nothing."""
    try:
        (major, minor), known = _version(), _architectures()
    except (ImportError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        return f"NVRTC cannot be used ({reason}); pip install nvidia-cuda-nvrtc, or for CUDA 12 {_FOR_12}"
    if driver < 1000 * _OLDEST_CUDA:
        return f"the driver is of CUDA {driver // 1000}; install one of CUDA {_OLDEST_CUDA} or newer"
    if major < _OLDEST_CUDA:
        wrong = "is too old"
    elif major > driver // 1000:
        wrong = f"is too new for the driver, which is of CUDA {driver // 1000}"
    elif int(architecture.removeprefix("sm_")) < min(known):
        wrong = f"compiles for sm_{min(known)} and newer, and this GPU is {architecture}"
    else:
        return None
    return f"NVRTC {major}.{minor} {wrong}; pip install {_FOR_12}"


def _digest(given: tuple[str, ...]) -> str:
    """Of all that the machine code depends on."""
    return hashlib.sha256(repr((_version(), given, sorted(source().items()))).encode()).hexdigest()[:32]


def _version() -> tuple[int, int]:
    from cuda.bindings import nvrtc

    major, minor = _checked(nvrtc, nvrtc.nvrtcVersion())
    return int(major), int(minor)


@functools.cache
def _architectures() -> tuple[int, ...]:
    """The cards that NVRTC knows, by the number of their architecture."""
    from cuda.bindings import nvrtc

    return tuple(map(int, _checked(nvrtc, nvrtc.nvrtcGetSupportedArchs())))


def _checked(nvrtc: Any, returned: tuple[Any, ...]) -> Any:
    """What a function of NVRTC returns beside its status."""
    status, *values = returned
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise RuntimeError(f"NVRTC failed: {status.name}")
    return values[0] if len(values) == 1 else tuple(values) if values else None
