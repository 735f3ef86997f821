"""What the helpers of a crew run: LLVM's language, for no compiled Python can wait and wake without the interpreter.

It is compiled in 20 milliseconds, where Numba would take some hundred for each function, so it is not kept on disk.

A job is a function that is called for one piece of the work after the other. ``left`` is how many pieces no thread has
taken. A thread that takes one off it, in one atomic step, may touch the job until it counts that piece off ``undone``,
and at no other time; the caller leaves when ``undone`` is 0. So a helper that comes late, or never, finds ``left`` at 0
and touches nothing but the crew's own memory, and nobody waits for it.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from llvmlite import binding as llvm

# A helper that has nothing to do looks for more for so long before it sleeps, and the caller for the last piece to be
# done. To wake a sleeper takes the caller 3 microseconds (EPYC 7003, a virtual machine); a call that follows at once
# comes after 20. Each look gives way to other threads: where no core is free, one of those may be the caller.
_SPIN_NANOSECONDS = 50_000
# Where things are in the memory of a crew; what different threads write is on cache lines of its own.
BUSY, LEFT, UNDONE, ASLEEP, RETIRED, JOB, RESULTS, WORK, DONE, NBYTES = 0, 64, 128, 136, 192, 256, 264, 320, 384, 448
BUSY_NOW, RAN, STOPPED = 0, 1, 2  # what `run` returns

_PROGRAM = """
define internal i64 @now() {{
  %time = alloca [2 x i64]
  %seconds_at = getelementptr i64, ptr %time, i64 0
  %nanoseconds_at = getelementptr i64, ptr %time, i64 1
  call i32 inttoptr (i64 {clock_gettime} to ptr)(i32 {clock}, ptr %time)
  %seconds = load i64, ptr %seconds_at
  %nanoseconds = load i64, ptr %nanoseconds_at
  %scaled = mul i64 %seconds, 1000000000
  %now = add i64 %scaled, %nanoseconds
  ret i64 %now
}}

; Take one piece after the other until none is left. A piece that returns another number than its last unit has
; stopped early.
define internal void @work(ptr %crew) {{
begin:
  %left = getelementptr i8, ptr %crew, i64 {LEFT}
  %undone = getelementptr i8, ptr %crew, i64 {UNDONE}
  %asleep = getelementptr i8, ptr %crew, i64 {ASLEEP}
  %job_at = getelementptr i8, ptr %crew, i64 {JOB}
  %results_at = getelementptr i8, ptr %crew, i64 {RESULTS}
  %done = getelementptr i8, ptr %crew, i64 {DONE}
  br label %look
look:
  %seen = load atomic i64, ptr %left seq_cst, align 8
  %nothing = icmp sle i64 %seen, 0
  br i1 %nothing, label %end, label %take
take:
  %fewer = sub i64 %seen, 1
  %swap = cmpxchg ptr %left, i64 %seen, i64 %fewer seq_cst seq_cst
  %taken = extractvalue {{ i64, i1 }} %swap, 1
  br i1 %taken, label %do, label %look
do:
  %job = load ptr, ptr %job_at
  %results = load ptr, ptr %results_at
  %task_at = getelementptr i64, ptr %job, i64 1
  %pieces_at = getelementptr i64, ptr %job, i64 2
  %units_at = getelementptr i64, ptr %job, i64 3
  %function = load ptr, ptr %job
  %task = load i64, ptr %task_at
  %pieces = load i64, ptr %pieces_at
  %units = load i64, ptr %units_at
  %piece = sub i64 %pieces, %seen
  %next = add i64 %piece, 1
  %before = mul i64 %units, %piece
  %first = udiv i64 %before, %pieces
  %until = mul i64 %units, %next
  %last = udiv i64 %until, %pieces
  %reached = call i64 %function(i64 %task, i64 %first, i64 %last)
  %result_at = getelementptr i64, ptr %results, i64 %next
  store i64 %reached, ptr %result_at
  %all = icmp eq i64 %reached, %last
  br i1 %all, label %count, label %note
note:
  store atomic i64 1, ptr %results monotonic, align 8
  br label %count
count:
  %were = atomicrmw sub ptr %undone, i64 1 seq_cst
  %was_last = icmp eq i64 %were, 1
  br i1 %was_last, label %tell, label %look
tell:
  ; Either the caller, about to sleep, sees that all is done, or it is seen here to sleep. By now it may be in its next
  ; job, and is woken for nothing, which it is prepared for.
  %sleeps = load atomic i64, ptr %asleep seq_cst, align 8
  %is_asleep = icmp ne i64 %sleeps, 0
  br i1 %is_asleep, label %wake, label %look
wake:
  call i32 inttoptr (i64 {sem_post} to ptr)(ptr %done)
  br label %look
end:
  ret void
}}

; What a helper does from its beginning to its end.
define void @help(ptr %crew) {{
begin:
  %retired = getelementptr i8, ptr %crew, i64 {RETIRED}
  %work = getelementptr i8, ptr %crew, i64 {WORK}
  br label %look
look:
  call void @work(ptr %crew)
  %is_over = load atomic i64, ptr %retired seq_cst, align 8
  %over = icmp ne i64 %is_over, 0
  br i1 %over, label %end, label %rest
rest:
  %start = call i64 @now()
  br label %spin
spin:
  %missed = call i32 inttoptr (i64 {sem_trywait} to ptr)(ptr %work)
  %called = icmp eq i32 %missed, 0
  br i1 %called, label %look, label %yield
yield:
  call i32 inttoptr (i64 {sched_yield} to ptr)()
  %now = call i64 @now()
  %elapsed = sub i64 %now, %start
  %goes_on = icmp ult i64 %elapsed, {spin}
  br i1 %goes_on, label %spin, label %sleep
sleep:
  call i32 inttoptr (i64 {sem_wait} to ptr)(ptr %work)
  br label %look
end:
  ret void
}}

; Do a job, with so many of the helpers.
define i64 @run(ptr %crew, ptr %job, ptr %results, i64 %helpers) {{
begin:
  %busy = getelementptr i8, ptr %crew, i64 {BUSY}
  %left = getelementptr i8, ptr %crew, i64 {LEFT}
  %undone = getelementptr i8, ptr %crew, i64 {UNDONE}
  %asleep = getelementptr i8, ptr %crew, i64 {ASLEEP}
  %job_at = getelementptr i8, ptr %crew, i64 {JOB}
  %results_at = getelementptr i8, ptr %crew, i64 {RESULTS}
  %work = getelementptr i8, ptr %crew, i64 {WORK}
  %done = getelementptr i8, ptr %crew, i64 {DONE}
  %pieces_at = getelementptr i64, ptr %job, i64 2
  %pieces = load i64, ptr %pieces_at
  %swap = cmpxchg ptr %busy, i64 0, i64 1 seq_cst seq_cst
  %mine = extractvalue {{ i64, i1 }} %swap, 1
  br i1 %mine, label %publish, label %refused
refused:
  ret i64 {BUSY_NOW}
publish:
  store ptr %job, ptr %job_at
  store ptr %results, ptr %results_at
  store atomic i64 0, ptr %asleep seq_cst, align 8
  store atomic i64 %pieces, ptr %undone seq_cst, align 8
  store atomic i64 %pieces, ptr %left seq_cst, align 8
  br label %call
call:
  %woken = phi i64 [ 0, %publish ], [ %more, %wake ]
  %enough = icmp sge i64 %woken, %helpers
  br i1 %enough, label %take_part, label %wake
wake:
  call i32 inttoptr (i64 {sem_post} to ptr)(ptr %work)
  %more = add i64 %woken, 1
  br label %call
take_part:
  call void @work(ptr %crew)
  %start = call i64 @now()
  br label %spin
spin:
  %missing = load atomic i64, ptr %undone seq_cst, align 8
  %complete = icmp eq i64 %missing, 0
  br i1 %complete, label %leave, label %yield
yield:
  call i32 inttoptr (i64 {sched_yield} to ptr)()
  %now = call i64 @now()
  %elapsed = sub i64 %now, %start
  %goes_on = icmp ult i64 %elapsed, {spin}
  br i1 %goes_on, label %spin, label %lie_down
lie_down:
  store atomic i64 1, ptr %asleep seq_cst, align 8
  br label %ask
ask:
  %still_missing = load atomic i64, ptr %undone seq_cst, align 8
  %is_complete = icmp eq i64 %still_missing, 0
  br i1 %is_complete, label %leave, label %sleep
sleep:
  call i32 inttoptr (i64 {sem_wait} to ptr)(ptr %done)
  br label %ask
leave:
  %stopped = load atomic i64, ptr %results monotonic, align 8
  store atomic i64 0, ptr %busy seq_cst, align 8
  %result = add i64 %stopped, {RAN}
  ret i64 %result
}}
"""

_CALLED = ("sem_post", "sem_wait", "sem_trywait", "sched_yield", "clock_gettime")


class Program(NamedTuple):
    """Functions that are called with the address of the memory of a crew, and run without the GIL."""

    help: Callable[[Any], None]
    run: Callable[[Any, int, Any, int], int]
    sem_init: Callable[[Any, int, int], int]
    sem_post: Callable[[Any], int]


@cache
def program() -> Program | None:
    """The program of all crews; None where there are no POSIX semaphores without a name (macOS, Windows)."""
    try:
        library = ctypes.CDLL(None)
        addresses = {name: ctypes.cast(getattr(library, name), ctypes.c_void_p).value for name in _CALLED}
        begin = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint)(("sem_init", library))
        post = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(("sem_post", library))
        clock = time.CLOCK_MONOTONIC
    except (AttributeError, OSError, TypeError):
        return None
    if begin(ctypes.create_string_buffer(NBYTES), 0, 0) or sys.maxsize < 1 << 32:
        return None
    text = _PROGRAM.format(
        **addresses, **{name: value for name, value in globals().items() if name.isupper() and type(value) is int},
        clock=clock, spin=_SPIN_NANOSECONDS,
    )  # fmt: skip
    helping, running = _compiled(text, "help", "run")
    return Program(
        ctypes.CFUNCTYPE(None, ctypes.c_void_p)(helping),
        ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)(running),
        begin,
        post,
    )


def _compiled(text: str, *names: str) -> list[int]:
    """The addresses of functions; their code is never freed, as a thread may be in it to the end of the process."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=2
    )
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(text), machine)
    engine.finalize_object()
    addresses = [int(engine.get_function_address(name)) for name in names]
    engine.detach()
    return addresses
