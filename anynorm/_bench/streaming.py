"""A copy that streams, compiled by LLVM: stores that go past the caches."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

from llvmlite import binding

LINE = 64  # bytes; targets begin with one
SHARED_NBYTES = 512 << 10  # smaller arrays are copied by one thread, as anynorm's kernels do
_PROGRAM = f"""
define void @stream(ptr %target, ptr %source, i64 %nbytes) {{
begin:
  br label %look
look:
  %at = phi i64 [ 0, %begin ], [ %next, %copy ]
  %goes_on = icmp ult i64 %at, %nbytes
  br i1 %goes_on, label %copy, label %end
copy:
  %of = getelementptr i8, ptr %source, i64 %at
  %to = getelementptr i8, ptr %target, i64 %at
  %line = load <{LINE // 4} x i32>, ptr %of, align 1
  store <{LINE // 4} x i32> %line, ptr %to, align {LINE}, !nontemporal !0
  %next = add i64 %at, {LINE}
  br label %look
end:
  fence seq_cst
  ret void
}}
!0 = !{{i32 1}}
"""


@cache
def _compiled() -> tuple[Callable[[int, int, int], None], Any]:
    """The program, which runs without the GIL, and what holds its code."""
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    machine = binding.Target.from_default_triple().create_target_machine(
        cpu=binding.get_host_cpu_name(), features=binding.get_host_cpu_features().flatten(), opt=2
    )
    engine = binding.create_mcjit_compiler(binding.parse_assembly(_PROGRAM), machine)
    engine.finalize_object()
    kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
    return kind(engine.get_function_address("stream")), engine


def copier(out: Any, x: Any, threads: int) -> Callable[[], None]:
    """A call that copies x to an array that begins with a cache line, on so many threads."""
    threads = threads if x.nbytes >= SHARED_NBYTES else 1
    lines = x.nbytes // LINE
    share = -(-lines // threads) or 1
    pieces = [(first * LINE, min(share, lines - first) * LINE) for first in range(0, lines, share)]
    target, source = out.ctypes.data, x.ctypes.data
    flat, of = out.reshape(-1).view("uint8"), x.reshape(-1).view("uint8")
    pool = ThreadPoolExecutor(threads)
    stream, _ = _compiled()

    def piece(which: tuple[int, int]) -> None:
        first, nbytes = which
        stream(target + first, source + first, nbytes)

    def copy() -> None:
        flat[lines * LINE :] = of[lines * LINE :]
        if threads == 1:
            for which in pieces:
                piece(which)
        else:
            list(pool.map(piece, pieces))

    return copy
