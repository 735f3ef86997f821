"""Reading, computing and writing at the same time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

Item = TypeVar("Item")
_Read = tuple[Item, Any, Future[Any]]

_PATIENCE_SECONDS = 2  # how long a write may take after Ctrl-C


def pipelined(
    items: Iterable[Item],
    read: Callable[[Item, Any], Any],
    compute: Callable[[Item, Any], Any],
    write: Callable[[Item, Any], Any],
    buffers: list[Any],
    *,
    endless: bool = False,
) -> None:
    """For each item in turn ``write(item, compute(item, read(item, buffer)))``, each step in a thread of its own.

    A buffer belongs to its item until that is written, so that no more items are in memory than there are buffers, and
    pages are not asked of the system and zeroed again for each. What a step raises, is raised here. ``endless``: a read
    may take for ever, as that of a stream, and is not waited for after Ctrl-C; others are, for libraries complain of
    those that are cut off.
    """
    free = list(buffers)
    reads: deque[_Read[Item]] = deque()
    writes: deque[tuple[Any, Future[Any]]] = deque()
    reader = ThreadPoolExecutor(1, thread_name_prefix="anynorm-read")
    writer = ThreadPoolExecutor(1, thread_name_prefix="anynorm-write")
    write, interrupted = _until_one_fails(write), False
    try:
        for item, buffer, x in _read_ahead(iter(items), read, free, reads, reader):
            writes.append((buffer, writer.submit(write, item, compute(item, x))))
            while writes and (writes[0][1].done() or len(writes) > 2 or not (free or reads)):
                buffer, future = writes[0]
                future.result()
                writes.popleft()
                free.append(buffer)
        for _, future in writes:
            future.result()
    except KeyboardInterrupt:
        interrupted = True
        raise
    finally:
        # A stream may say nothing, or take nothing, for long. What is written to a file is done in less.
        reader.shutdown(wait=not (interrupted and endless), cancel_futures=True)
        writer.shutdown(wait=not interrupted, cancel_futures=True)
        wait([future for _, future in writes if not future.done()], _PATIENCE_SECONDS)


def _read_ahead(
    items: Iterator[Item],
    read: Callable[[Item, Any], Any],
    free: list[Any],
    reads: deque[_Read[Item]],
    reader: ThreadPoolExecutor,
) -> Iterator[tuple[Item, Any, Any]]:
    """Each item with its buffer and what was read, while up to two more are being read into buffers that are free."""

    def begin() -> None:
        while free and len(reads) < 2:
            for item in items:
                buffer = free.pop()
                reads.append((item, buffer, reader.submit(read, item, buffer)))
                break
            else:
                return

    begin()
    while reads:
        item, buffer, future = reads.popleft()
        x = future.result()
        begin()
        yield item, buffer, x
        begin()


def _until_one_fails(write: Callable[[Item, Any], Any]) -> Callable[[Item, Any], None]:
    """Write nothing after a write that failed: on standard output a later block would stand in its place."""
    failed = False

    def write_next(item: Item, result: Any) -> None:
        nonlocal failed
        if failed:
            return
        try:
            write(item, result)
        except BaseException:
            failed = True
            raise

    return write_next
