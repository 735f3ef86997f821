"""What the helpers of a crew run: LLVM's language, for no Python can wait and wake without the interpreter.

`left` is how many pieces of a task no thread has taken. A thread that takes one off it, in one atomic step, may touch
the task until it counts that piece off `undone`, and at no other time; the caller leaves when `undone` is 0. So a
helper that comes late, or never, finds `left` at 0 and touches nothing but the crew's own memory, and nobody waits for
it. That memory is freed by the last of those that are `present`: the helpers, and the Crew in Python.
"""

from __future__ import annotations

import time

from anynorm._kernels.cpu.threads.memory import PLACES

BUSY_NOW, COMPLETE, INCOMPLETE = 0, 1, 2  # what `run` returns

# {at[word]}: where a word of the crew's memory is; {load[word]}: what it is.
_TEXT = """
@name = private constant [15 x i8] c"anynorm helper\\00"

define internal i64 @now(ptr %crew) {{
  %time = alloca [2 x i64]
  %nanoseconds_at = getelementptr i64, ptr %time, i64 1
  {load[clock_gettime]}
  call i32 %clock_gettime(i32 {clock}, ptr %time)
  %seconds = load i64, ptr %time
  %nanoseconds = load i64, ptr %nanoseconds_at
  %scaled = mul i64 %seconds, 1000000000
  %now = add i64 %scaled, %nanoseconds
  ret i64 %now
}}

; Wake so many helpers, or have them look once more before they sleep.
define internal void @wake(ptr %crew, i64 %helpers) {{
begin:
  {at[wake]}
  {load[sem_post]}
  br label %look
look:
  %woken = phi i64 [ 0, %begin ], [ %more, %post ]
  %enough = icmp sge i64 %woken, %helpers
  br i1 %enough, label %end, label %post
post:
  call i32 %sem_post(ptr %wake_at)
  %more = add i64 %woken, 1
  br label %look
end:
  ret void
}}

; Take one piece after the other until none is left. A piece that returns another number than its last unit has
; stopped early.
define internal void @take_pieces(ptr %crew) {{
begin:
  {at[left]}
  {at[undone]}
  {at[asleep]}
  {at[done]}
  {load[sem_post]}
  br label %look
look:
  %seen = load atomic i64, ptr %left_at seq_cst, align 8
  %nothing = icmp sle i64 %seen, 0
  br i1 %nothing, label %end, label %take
take:
  %fewer = sub i64 %seen, 1
  %swap = cmpxchg ptr %left_at, i64 %seen, i64 %fewer seq_cst seq_cst
  %taken = extractvalue {{ i64, i1 }} %swap, 1
  br i1 %taken, label %do, label %look
do:
  {load[kernel]}
  {load[task]}
  {load[units]}
  {load[pieces]}
  {load[reached]}
  %piece = sub i64 %pieces, %seen
  %next = add i64 %piece, 1
  %before = mul i64 %units, %piece
  %first = udiv i64 %before, %pieces
  %until = mul i64 %units, %next
  %last = udiv i64 %until, %pieces
  %stopped = call i64 %kernel(ptr %task, i64 %first, i64 %last)
  %stopped_at = getelementptr i64, ptr %reached, i64 %next
  store i64 %stopped, ptr %stopped_at
  %all = icmp eq i64 %stopped, %last
  br i1 %all, label %count, label %note
note:
  store atomic i64 1, ptr %reached monotonic, align 8
  br label %count
count:
  %were = atomicrmw sub ptr %undone_at, i64 1 seq_cst
  %was_last = icmp eq i64 %were, 1
  br i1 %was_last, label %tell, label %look
tell:
  ; Either the caller, about to sleep, sees that all is done, or it is seen here to sleep. By now it may be in its next
  ; task, and is woken for nothing, which it is prepared for.
  %sleeps = load atomic i64, ptr %asleep_at seq_cst, align 8
  %is_asleep = icmp ne i64 %sleeps, 0
  br i1 %is_asleep, label %wake, label %look
wake:
  call i32 %sem_post(ptr %done_at)
  br label %look
end:
  ret void
}}

; Leave the memory of the crew, which the last one frees.
define internal void @leave(ptr %crew) {{
begin:
  {at[present]}
  {load[free]}
  %were = atomicrmw sub ptr %present_at, i64 1 seq_cst
  %was_last = icmp eq i64 %were, 1
  br i1 %was_last, label %last, label %end
last:
  call void %free(ptr %crew)
  br label %end
end:
  ret void
}}

; What a helper does from its beginning to its end.
define internal ptr @help(ptr %crew) {{
begin:
  {at[retired]}
  {at[wake]}
  {load[spin]}
  %spins = icmp ne i64 %spin, 0
  {load[sem_wait]}
  {load[sem_trywait]}
  {load[sched_yield]}
  br label %look
look:
  call void @take_pieces(ptr %crew)
  %is_over = load atomic i64, ptr %retired_at seq_cst, align 8
  %over = icmp ne i64 %is_over, 0
  br i1 %over, label %end, label %rest
rest:
  br i1 %spins, label %start_spinning, label %sleep
start_spinning:
  %start = call i64 @now(ptr %crew)
  br label %spinning
spinning:
  %missed = call i32 %sem_trywait(ptr %wake_at)
  %called = icmp eq i32 %missed, 0
  br i1 %called, label %look, label %yield
yield:
  call i32 %sched_yield()
  %now = call i64 @now(ptr %crew)
  %elapsed = sub i64 %now, %start
  %goes_on = icmp ult i64 %elapsed, %spin
  br i1 %goes_on, label %spinning, label %sleep
sleep:
  call i32 %sem_wait(ptr %wake_at)
  br label %look
end:
  call void @leave(ptr %crew)
  ret ptr null
}}

; Start so many helpers; return how many could be started.
define internal i64 @hire(ptr %crew, ptr %attributes, i64 %helpers) {{
begin:
  %thread_at = alloca i64
  {at[present]}
  {load[pthread_create]}
  {load[pthread_setname_np]}
  {load[pthread_detach]}
  br label %look
look:
  %started = phi i64 [ 0, %begin ], [ %more, %next ]
  %enough = icmp sge i64 %started, %helpers
  br i1 %enough, label %end, label %start
start:
  %were = atomicrmw add ptr %present_at, i64 1 seq_cst
  %error = call i32 %pthread_create(ptr %thread_at, ptr %attributes, ptr @help, ptr %crew)
  %failed = icmp ne i32 %error, 0
  br i1 %failed, label %fewer, label %next
next:
  %thread = load i64, ptr %thread_at
  call i32 %pthread_setname_np(i64 %thread, ptr @name)
  call i32 %pthread_detach(i64 %thread)
  %more = add i64 %started, 1
  br label %look
fewer:
  call void @leave(ptr %crew)
  br label %end
end:
  ret i64 %started
}}

; Run a kernel on all units of a task, in pieces, with so many of the helpers.
define internal i64 @run(ptr %crew, ptr %kernel, ptr %task, i64 %units, i64 %pieces, ptr %reached, i64 %helpers) {{
begin:
  {at[busy]}
  {at[left]}
  {at[undone]}
  {at[asleep]}
  {at[kernel]}
  {at[task]}
  {at[units]}
  {at[pieces]}
  {at[reached]}
  {at[done]}
  {load[spin]}
  {load[sem_wait]}
  {load[sched_yield]}
  %swap = cmpxchg ptr %busy_at, i64 0, i64 1 seq_cst seq_cst
  %mine = extractvalue {{ i64, i1 }} %swap, 1
  br i1 %mine, label %publish, label %refused
refused:
  ret i64 {BUSY_NOW}
publish:
  store ptr %kernel, ptr %kernel_at
  store ptr %task, ptr %task_at
  store i64 %units, ptr %units_at
  store i64 %pieces, ptr %pieces_at
  store ptr %reached, ptr %reached_at
  store atomic i64 0, ptr %asleep_at seq_cst, align 8
  store atomic i64 %pieces, ptr %undone_at seq_cst, align 8
  store atomic i64 %pieces, ptr %left_at seq_cst, align 8
  br label %take_part
take_part:
  call void @wake(ptr %crew, i64 %helpers)
  call void @take_pieces(ptr %crew)
  %start = call i64 @now(ptr %crew)
  br label %spinning
spinning:
  %missing = load atomic i64, ptr %undone_at seq_cst, align 8
  %complete = icmp eq i64 %missing, 0
  br i1 %complete, label %leave, label %ask_the_time
ask_the_time:
  %now = call i64 @now(ptr %crew)
  %elapsed = sub i64 %now, %start
  %goes_on = icmp ult i64 %elapsed, %spin
  br i1 %goes_on, label %yield, label %lie_down
yield:
  call i32 %sched_yield()
  br label %spinning
lie_down:
  store atomic i64 1, ptr %asleep_at seq_cst, align 8
  br label %ask
ask:
  %still_missing = load atomic i64, ptr %undone_at seq_cst, align 8
  %is_complete = icmp eq i64 %still_missing, 0
  br i1 %is_complete, label %leave, label %sleep
sleep:
  call i32 %sem_wait(ptr %done_at)
  br label %ask
leave:
  %stopped = load atomic i64, ptr %reached monotonic, align 8
  store atomic i64 0, ptr %busy_at seq_cst, align 8
  %result = add i64 %stopped, {COMPLETE}
  ret i64 %result
}}

; Let each helper end when it has nothing to do.
define internal void @retire(ptr %crew) {{
  {at[retired]}
  {at[present]}
  store atomic i64 1, ptr %retired_at seq_cst, align 8
  %present = load atomic i64, ptr %present_at seq_cst, align 8
  call void @wake(ptr %crew, i64 %present)
  ret void
}}

; Where the functions that Python calls are.
define void @crew(ptr %functions) {{
  %run_at = getelementptr ptr, ptr %functions, i64 1
  %retire_at = getelementptr ptr, ptr %functions, i64 2
  %leave_at = getelementptr ptr, ptr %functions, i64 3
  store ptr @hire, ptr %functions
  store ptr @run, ptr %run_at
  store ptr @retire, ptr %retire_at
  store ptr @leave, ptr %leave_at
  ret void
}}
"""


def text() -> str:
    """The program, as LLVM reads it. Its function `crew` says where those are that Python calls."""
    at = {name: f"%{name}_at = getelementptr i8, ptr %crew, i64 {place}" for name, place in PLACES.items()}
    types = {name: "i64" if name in ("units", "pieces", "spin") else "ptr" for name in PLACES}
    load = {name: f"{line}\n  %{name} = load {types[name]}, ptr %{name}_at" for name, line in at.items()}
    return _TEXT.format(at=at, load=load, clock=time.CLOCK_MONOTONIC, BUSY_NOW=BUSY_NOW, COMPLETE=COMPLETE)
