"""How the functions of the CPU kernels are compiled, and kept on disk."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llvmlite.binding import ffi
from numba import config, njit, typeof, types
from numba.core.caching import FunctionCache
from numba.core.compiler_lock import global_compiler_lock

from anynorm import _forks
from anynorm._kernels.cpu.language.interpreted_memory import as_compiled

# Other code of the process may compile too. LLVM's own lock has no public name: without it a fork may still come during
# the few calls that are made without Numba's lock.
_forks.wait_for(global_compiler_lock)
if getattr(ffi.lib, "_lock", None) is not None:
    _forks.wait_for(ffi.lib._lock)


def _fingerprint_of_sources() -> str:
    sources = sorted(Path(__file__).parents[1].rglob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()


class _Cache(FunctionCache):  # type: ignore[misc]  # Numba has no types
    """Numba's cache on disk, which would look at the file of the kernel alone, and not at those that it calls."""

    _sources: str | None = None

    def _index_key(self, signature: Any, codegen: Any) -> tuple[Any, ...]:
        if _Cache._sources is None:
            _Cache._sources = _fingerprint_of_sources()
        return (*super()._index_key(signature, codegen), _Cache._sources)

    def load_overload(self, *arguments: Any) -> Any:
        # A cache that cannot be read counts as empty.
        try:
            return super().load_overload(*arguments)
        except Exception:
            return None

    def save_overload(self, *arguments: Any) -> None:
        # Neither a full disk nor a folder that was made read-only meanwhile is a reason not to normalize.
        with contextlib.suppress(Exception):
            try:
                super().save_overload(*arguments)
            except OSError:
                raise
            except Exception:  # the index cannot be read, say because a process was killed; begin a new one
                self.flush()
                super().save_overload(*arguments)


def kernel(function: Callable[..., Any], nogil: bool = True) -> Callable[..., Any]:
    """Compile a function that Python calls, which runs without the GIL; kept on disk where there is a place to."""
    if config.DISABLE_JIT:
        return as_compiled(function)
    compiled: Callable[..., Any] = njit(error_model="numpy", nogil=nogil)(function)
    with contextlib.suppress(RuntimeError, OSError):  # nowhere to write: a read-only install, a zip, no home
        compiled._cache = _Cache(function)  # type: ignore[attr-defined]
    return compiled


def locked(function: Callable[..., Any]) -> Callable[..., Any]:
    """A `kernel` that begins and ends with the GIL."""
    return kernel(function, nogil=False)


def entry(compiled: Any, signature: tuple[Any, ...]) -> Callable[..., int]:
    """A kernel for arguments of such types, without the search for them in each call.

    The search takes 0.5 microseconds for 22 arguments, twice as long as the kernel does for 768 numbers.
    """
    if config.DISABLE_JIT:
        found: Callable[..., int] = compiled
        return found
    return compiled.compile(signature)  # type: ignore[no-any-return]


def native(compiled: Any, signature: tuple[Any, ...]) -> tuple[int, tuple[str, ...]] | None:
    """Where a kernel can be called that `entry` has returned, and the LLVM types of its arguments."""
    if config.DISABLE_JIT:
        return None
    found = compiled.overloads[signature]
    address = found.library.get_pointer_to_function(found.fndesc.llvm_cfunc_wrapper_name)
    kinds = [found.target_context.get_value_type(kind) for kind in found.signature.args]
    return address, tuple("ptr" if kind.is_pointer else str(kind) for kind in kinds)


def address(compiled: Any, signature: tuple[Any, ...]) -> int:
    """Where the machine code of an `entry` begins, which is never freed."""
    found = native(compiled, signature)
    return id(compiled) if found is None else found[0]


def signature_of_rows(tag: Any, wide: Any, has_residual: bool, has_layout: bool) -> tuple[Any, ...]:
    """The types of the arguments of a kernel that normalizes, for the dtypes of x and of what is computed in."""
    address, number = types.int64, types.float64
    residual, layout = (address if has else types.none for has in (has_residual, has_layout))
    return (
        typeof(tag), typeof(wide), types.int64, types.int64, types.int64, number, number, types.int64,
        address, residual, address, residual, layout,
        address, types.int64, address, types.int64, number, types.boolean, types.boolean, types.int64, types.int64,
    )  # fmt: skip


def signature_of_pull(tag: Any, wide: Any, has_dtotal: bool, has_layout: bool, has_numbers: bool) -> tuple[Any, ...]:
    """The same of the kernel for the derivative."""
    address, number = types.int64, types.float64
    dtotal, layout, numbers = (address if has else types.none for has in (has_dtotal, has_layout, has_numbers))
    return (
        typeof(tag), typeof(wide), types.int64, types.int64, types.int64, number, number, types.int64,
        address, address, address, dtotal, layout, types.int64, types.int64,
        address, types.int64, number, address, types.int64, address, types.int64, address, numbers,
    )  # fmt: skip


def signature_of_reduce(tag: Any, wide: Any, has_layout: bool) -> tuple[Any, ...]:
    """The same of the kernel for moments."""
    address, layout = types.int64, types.int64 if has_layout else types.none
    return (
        typeof(tag), typeof(wide), types.int64, types.int64, types.int64, types.float64, types.int64,
        address, layout, address,
    )  # fmt: skip


def signature_of_apply(tag: Any, wide: Any, has_layout: bool) -> tuple[Any, ...]:
    """The same of the kernel for given moments."""
    address, layout = types.int64, types.int64 if has_layout else types.none
    return (
        typeof(tag), typeof(wide), types.int64, types.int64, types.int64, types.float64, types.int64,
        address, address, layout, address, types.int64, address, types.int64, types.float64, types.boolean, address,
    )  # fmt: skip
