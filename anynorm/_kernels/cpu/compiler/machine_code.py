"""LLVM's instructions -> machine code for this processor, kept on disk and loaded into the process."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
from llvmlite import binding as llvm

from anynorm._kernels import object_files
from anynorm._kernels.cpu.compiler.waiting import note_compiled

_FOLDER = Path(__file__).parents[1]


def load(name: str, write: Callable[[], Any]) -> int:
    """The address of a function of that name, whose module ``write`` makes where it is not on disk.

    The code is never freed, as a thread may be in it to the end of the process.
    """
    code = object_files.read(_file(name))
    if code is None:
        started = time.perf_counter()
        code = compile_module(str(write()))
        seconds = time.perf_counter() - started
        note_compiled(seconds, object_files.write(_file(name), code))
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    address = int(engine.get_function_address(name))
    engine.detach()
    return address


def compile_to(place: Path, name: str, write: Callable[[], Any]) -> str | None:
    """Compile it for others to load from a folder; return why it is not kept there, or None."""
    return object_files.write(_file(name), compile_module(str(write())), place)


def kept_nbytes(name: str, place: Path) -> int:
    """How large it is in a folder; 0: it is not there."""
    return len(object_files.read(_file(name), place) or b"")


def compile_module(text: str) -> bytes:
    """The object file of a module."""
    module, machine = llvm.parse_assembly(text), _machine()
    module.verify()
    # The kernels are written in vectors, and in the order in which sums are to be formed.
    tuning = llvm.create_pipeline_tuning_options(speed_level=2)
    tuning.loop_unrolling = tuning.loop_vectorization = tuning.slp_vectorization = False
    builder = llvm.create_pass_builder(machine, tuning)
    builder.getModulePassManager().run(module, builder)
    code: bytes = machine.emit_object(module)
    return code


def _machine() -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_triple(llvm.get_process_triple())
    return target.create_target_machine(llvm.get_host_cpu_name(), _features(), opt=2, jit=True)


@cache
def _features() -> str:
    """What the processor can do."""
    features: str = llvm.get_host_cpu_features().flatten()
    return features


def _file(name: str) -> str:
    return f"{name}-{_key()}"


@cache
def _key() -> str:
    """What machine code depends on, in a name for files."""
    of = [llvmlite.__version__, repr(llvm.llvm_version_info), llvm.get_process_triple(), llvm.get_host_cpu_name()]
    digest = hashlib.sha256("\n".join([*of, _features()]).encode())
    for source in _sources():
        digest.update(source)
    return digest.hexdigest()[:24]


def _sources() -> Iterator[bytes]:
    """The files of these kernels, in which theirs are among others, wherever the package was imported from."""
    if _FOLDER.is_dir():
        yield from (path.read_bytes() for path in sorted(_FOLDER.rglob("*.py")))
        return
    from importlib.resources import files  # not at the top: it takes milliseconds

    places = [files("anynorm._kernels.cpu")]
    for place in places:
        found = sorted(place.iterdir(), key=lambda one: one.name)
        places.extend(one for one in found if one.is_dir())
        yield from (one.read_bytes() for one in found if one.name.endswith(".py"))
