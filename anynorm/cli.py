"""The command line: anynorm normalize | show | bench | warm | info | completion."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from anynorm._cli.terminal import flush_or_silence, silence_output, stopped, tell, terminable
from anynorm._threads import set_threads

_MOST_SAID = 1000  # of a message: what is wrong with a file may quote all that is in it


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    with terminable():
        try:
            status = _run(sys.argv[1:] if arguments is None else list(arguments))
            if sys.stdout is not None:
                sys.stdout.flush()
            return status
        except BrokenPipeError:  # the reader of the output has closed the pipe
            silence_output()
            return 141  # as for a command that SIGPIPE ends
        except (KeyboardInterrupt, MemoryError, OSError, RuntimeError, TypeError, ValueError) as error:
            status, message = _said_of(error)
            message = message if len(message) <= _MOST_SAID else f"{message[:_MOST_SAID]} ..."
            tell("; ".join([f"anynorm: {message}", *getattr(error, "__notes__", [])]))
            if status != 130:  # the reader of the output may block for long
                flush_or_silence()
            return status


def _run(arguments: list[str]) -> int:
    from anynorm._cli.options import parse  # here, where Ctrl-C is waited for

    parsed = parse(arguments)
    if parsed is None:
        return 2
    threads = getattr(parsed, "threads", None)
    if threads is None:
        return _run_command(parsed)
    set_threads(threads)
    try:
        return _run_command(parsed)
    finally:
        set_threads(None)


def _run_command(parsed: argparse.Namespace) -> int:
    if parsed.command == "normalize":
        from anynorm._cli.normalize import run
    elif parsed.command == "show":
        from anynorm._cli.show import run
    elif parsed.command == "bench":
        from anynorm._cli.bench import run
    elif parsed.command == "warm":
        from anynorm._cli.warm import run
    elif parsed.command == "info":
        from anynorm._cli.info import run
    else:
        from anynorm._cli.completion import run
    return run(parsed)


def _said_of(error: BaseException) -> tuple[int, str]:
    """The exit status and the message for what has ended a command."""
    if stopped() or isinstance(error, KeyboardInterrupt):  # a library may have made another error of it
        return 130, "interrupted"
    if isinstance(error, MemoryError):
        return 1, "out of memory"
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename and error.strerror else ""
        return 1, f"{where}{error.strerror or error}"
    return 1, str(error)
