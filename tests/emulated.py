"""The CUDA kernels on the CPU: compiled by g++ with what little of CUDA they need, called with NumPy arrays."""

import contextlib
import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from anynorm._check import check, check_gradient
from anynorm._definition.norms import LAYER_NORM, RMS_NORM, SCALE_NORM
from anynorm._kernels.cuda import device, repeat, run, vjp
from anynorm._kernels.cuda import task as tasks
from anynorm._kernels.cuda.device import Device
from anynorm._libraries import library_of
from anynorm._libraries.numpy_arrays import NumPy
from tests import compiled

COMPILER = shutil.which("g++")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs g++, which compiles the emulated kernels")
SOURCES = Path(tasks.__file__).parent
FLAGS = (
    "-std=c++20",
    "-O1",
    "-ffp-contract=off",
    "-fPIC",
    "-shared",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unknown-pragmas",
)
HELD = (0, 1, 2, 4, 8)


class _Choice(ctypes.Structure):
    names = ("rule", "weight", "bias", "offset", "aligned", "added", "threads", "neighbours")
    names += ("in_shared", "full", "cluster", "abreast")
    _fields_ = tuple((name, ctypes.c_int) for name in names)


class _Launch(ctypes.Structure):
    _fields_ = (
        ("step", ctypes.c_int),
        ("held", ctypes.c_int),
        ("grid", ctypes.c_uint * 2),
        ("block", ctypes.c_uint * 2),
        ("reversed", ctypes.c_bool),
    )


@functools.cache
def library() -> ctypes.CDLL:
    """The emulator, compiled by whichever process of the session needs it first."""
    path = Path(os.environ[compiled.FOLDER]) / "emulated.so"
    here = Path(__file__).parent / "cuda_emulator"
    extra = os.environ.get("ANYNORM_EMULATOR_FLAGS", "").split()
    command = [COMPILER, *FLAGS, *extra, f"-I{SOURCES}", f"-DHELD_SLOTS={','.join(map(str, HELD))}"]
    with compiled.locked("emulator"):
        if not path.exists():
            subprocess.run([*command, here / "emulated.cpp", "-o", path], check=True, capture_output=True, text=True)
    found = ctypes.CDLL(path)
    found.emulate.restype = ctypes.c_bool
    return found


class OnGPU(NumPy):
    """NumPy arrays as if they lay on a GPU."""

    @staticmethod
    def ordinal(array):
        return 0

    @staticmethod
    def current(array):
        return contextlib.nullcontext()

    @staticmethod
    def stream(array):
        return 0

    @staticmethod
    def float64s(array, count):
        return np.full(count, np.nan)


@contextlib.contextmanager
def emulation(
    paired=False, backwards=False, held=None, clusters=True, architecture="sm_90", shared=227 << 10, chosen=None
):
    """Within it what the kernels are started with goes to the emulator: `kernel` gives the choice, `launch` runs it.

    The choices are also put into the list ``chosen``.
    """

    def launch(choice, grid, block, task, stream):
        if held is not None and choice.abreast == 1:
            choice = choice._replace(held=held, full=False, in_shared=False)
        how = _Launch(tasks.STEPS.index(choice.step), choice.held)
        how.grid[:], how.block[:], how.reversed = grid, (block, 1), backwards
        given = _Choice(*(getattr(choice, name) for name in _Choice.names))
        code = tasks.CODES[choice.dtype]
        found = library().emulate(code, choice.paired, *map(ctypes.byref, (how, task, given)))
        assert found, f"no kernel that holds {how.held} slots has been compiled"

    def kernel(choice, block, ordinal):
        if chosen is not None:
            chosen.append(choice)
        return choice

    def starter(choice, grid, block):
        def start(argument, stream):
            task = tasks.Task.from_address(ctypes.c_void_p.from_address(argument).value)
            launch(choice, grid, block, task, stream)

        return start

    def remember(call, *given):
        if call.library.name != "numpy":
            repeat.remember(call, *given)

    replaced = {"kernel": kernel, "launch": launch}
    with contextlib.ExitStack() as stack:
        stack.callback(repeat.forget)
        stack.enter_context(mock.patch.object(library_of(np.zeros(1)), "memory", OnGPU))
        stack.enter_context(mock.patch.multiple(run, starter=starter, remember=remember))
        stack.enter_context(mock.patch.object(device, "unfit", return_value=None))
        # Fewer than there are rows, so that they take one after the other.
        stack.enter_context(mock.patch.object(run, "clusters_at_once", return_value=2))
        for module in (run, vjp):
            stack.enter_context(
                mock.patch.object(module, "device", return_value=Device(architecture, paired, clusters, shared))
            )
            for name, value in replaced.items():
                stack.enter_context(mock.patch.object(module, name, value))
        yield


RULES = {rule.name: rule for rule in (LAYER_NORM, RMS_NORM, SCALE_NORM)}


def normalize(
    norm, x, weight=None, bias=None, *, axis=-1, eps=1e-5, offset=0.0, residual=None, out=None, **how
):  # fmt: skip
    """Return y, or (y, total); for scale_norm the weight is the scale."""
    call = check(RULES[norm], x, weight, bias, axis, eps, weight_offset=offset, residual=residual, out=out)
    with emulation(**how):
        return run.run(call)


def differentiate(norm, x, dy, weight=None, bias=None, *, axis=-1, eps=1e-5, offset=0.0, dtotal=None, **how):
    """Return dx, dweight and dbias."""
    call = check(RULES[norm], x, weight, bias, axis, eps, weight_offset=offset)
    with emulation(**how):
        return vjp.vjp(check_gradient(call, dy, dtotal))


def run_program(source: str) -> subprocess.CompletedProcess:
    """Compile a program with the emulator alone, and run it."""
    with tempfile.TemporaryDirectory(prefix="anynorm-emulator-") as folder:
        program = Path(folder) / "program"
        flags = ("-std=c++20", f"-I{Path(__file__).parent / 'cuda_emulator'}", "-x", "c++", "-", "-o", program)
        subprocess.run([COMPILER, *flags], input=source, check=True, capture_output=True, text=True)
        return subprocess.run([program], capture_output=True, text=True, check=False)
