"""The command line: anynorm normalize | info."""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import anynorm
from anynorm._files import Job, Place, describe, load_npy, nbytes_of, normalize, normalize_in_place
from anynorm._info import print_info
from anynorm._terminal import flush_or_silence, printable, progress, say, silence_output, terminable

_NORMS: dict[str, Callable[..., Any]] = {
    "layer": anynorm.layer_norm, "rms": anynorm.rms_norm, "scale": anynorm.scale_norm
}  # fmt: skip
_DEFAULT_EPS = {name: inspect.signature(norm).parameters["eps"].default for name, norm in _NORMS.items()}

_DESCRIPTION = """
Normalize a file of any size into another of the same format, or in place, a few blocks at a time, so that memory stays
flat. The suffix tells the format: .npy, .safetensors, .zarr or .parquet; - is standard input or output, as .npy.
"""
# What --moments has no use for, by the name of its value.
_NOT_WITH_MOMENTS = ("norm", "weight", "bias", "scale", "axis", "eps", "dtype", "on_nan", "in_place", "force")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage, which takes eight; arguments stand in it as they were given."""
        self.exit(2, f"{self.prog}: {printable(message)}; {self.prog} --help shows what there is\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parsed = _parser().parse_args(arguments)
    try:
        with terminable():
            status: int = parsed.run(parsed)
            if sys.stdout is not None:
                sys.stdout.flush()
            return status
    except KeyboardInterrupt:
        written = "" if getattr(parsed, "target", None) == "-" else "; nothing was written"
        return _fail(f"interrupted{written}", 130)
    except BrokenPipeError:  # whoever read the output has enough of it
        silence_output()
        return 141  # as for a command that SIGPIPE ends
    except MemoryError:
        return _fail("out of memory; nothing was written", 1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename and error.strerror else ""
        return _fail(f"{where}{error.strerror or error}", 1)
    except (RuntimeError, TypeError, ValueError) as error:
        return _fail(str(error), 1)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="anynorm", description=anynorm.__doc__)
    parser.add_argument("--version", action="version", version=f"anynorm {anynorm.__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")

    info = commands.add_parser("info", help="versions, backends, kernels, and what to install for more")
    info.set_defaults(run=_info)

    command = commands.add_parser("normalize", help="normalize a file", description=_DESCRIPTION)
    command.set_defaults(run=_normalize)
    command.add_argument("source", metavar="IN", type=_place, help="the file to read; ./-x.npy for one named -x.npy")
    command.add_argument("target", metavar="OUT", type=_place, nargs="?", help="left out with --in-place or --moments")
    command.add_argument("--norm", choices=sorted(_NORMS), help="which norm")
    command.add_argument("--weight", metavar="W.npy", type=Path, help="for layer and rms: a factor for each feature")
    command.add_argument("--bias", metavar="B.npy", type=Path, help="for layer and rms: added to each feature")
    command.add_argument("--scale", metavar="NUMBER", type=_number, help="for scale: the length of a row (default 1)")
    command.add_argument("--axis", metavar="AXES", type=_axes, help="normalized axes: -1 (default), 0, or --axis=-2,-1")
    eps = ", ".join(f"{name} {default}" for name, default in _DEFAULT_EPS.items())
    command.add_argument("--eps", metavar="NUMBER", type=_number, help=f"default: {eps}")
    command.add_argument(
        "--dtype",
        choices=("float16", "bfloat16", "float32", "float64"),
        help="of the result (default: that of the file); bfloat16 in .safetensors alone",
    )
    command.add_argument(
        "--tensor",
        "--column",
        metavar="NAME",
        dest="names",
        action="append",
        default=[],
        help="which of several tensors (may be repeated) or columns of the file; the others are copied",
    )
    command.add_argument(
        "--on-nan", choices=("keep", "fail"), help="rows with NaN or Inf: NaN throughout (default), or fail"
    )
    command.add_argument("--in-place", action="store_true", help="put the result in the place of IN")
    command.add_argument("--moments", action="store_true", help="print the statistics of IN and write nothing")
    command.add_argument("--force", action="store_true", help="overwrite OUT")
    return parser


def _normalize(parsed: argparse.Namespace) -> int:
    if parsed.moments:
        return _describe(parsed)
    if parsed.norm is None:
        raise ValueError(f"--norm is missing; it is one of {', '.join(sorted(_NORMS))}")
    if parsed.in_place:
        if parsed.target is not None or parsed.source == "-":
            raise ValueError("--in-place takes one file and writes no other; leave OUT away")
        if parsed.force:
            raise ValueError("--force is for OUT; leave it away with --in-place")
    elif parsed.target is None:
        raise ValueError("OUT is missing; name a file to write, or pass --in-place")
    job = _job(parsed)
    with _progress(parsed) as advance:
        if parsed.target is None:
            outcome = normalize_in_place(parsed.source, job, advance=advance)
        else:
            outcome = normalize(parsed.source, parsed.target, job, overwrite=parsed.force, advance=advance)
    for line in outcome.counts.lines():
        _tell(line)
    return 0


def _job(parsed: argparse.Namespace) -> Job:
    if parsed.norm == "scale":
        if parsed.weight is not None or parsed.bias is not None:
            raise ValueError("--norm scale takes --scale, not --weight or --bias")
        weight, bias = parsed.scale, None
    else:
        if parsed.scale is not None:
            raise ValueError(f"--norm {parsed.norm} takes --weight and --bias, not --scale")
        weight, bias = (None if path is None else load_npy(path) for path in (parsed.weight, parsed.bias))
    eps = _DEFAULT_EPS[parsed.norm] if parsed.eps is None else parsed.eps
    axis, names, fails_on_nan = parsed.axis or (-1,), tuple(parsed.names), parsed.on_nan == "fail"
    return Job(f"{parsed.norm}_norm", weight, bias, axis, eps, parsed.dtype, names, fails_on_nan)


def _describe(parsed: argparse.Namespace) -> int:
    if parsed.target is not None:
        raise ValueError("--moments writes no file; leave OUT away")
    given = [name for name in _NOT_WITH_MOMENTS if getattr(parsed, name) not in (None, False)]
    if given:
        option = f"--{given[0].replace('_', '-')}"
        raise ValueError(f"--moments prints the statistics of all elements and takes no {option}; leave that away")
    if sys.stdout is None:
        raise ValueError("standard output is closed")
    with _progress(parsed) as advance:
        found = describe(parsed.source, Job("layer_norm", None, None, (-1,), 0.0, names=tuple(parsed.names)), advance)
    for one in found:
        for line in one.lines():
            say(line, sys.stdout)
    return 0


def _info(parsed: argparse.Namespace) -> int:
    print_info()
    return 0


def _progress(parsed: argparse.Namespace) -> Any:
    source: Place = parsed.source
    return progress("-" if source == "-" else source.name, nbytes_of(source))


def _place(text: str) -> Place:
    return "-" if text == "-" else Path(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def _axes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not an axis or a list of axes such as -2,-1") from None


def _tell(message: str) -> None:
    with suppress(OSError):  # nobody hears it, and the file is as good as without
        say(f"anynorm: {message}", sys.stderr)


def _fail(message: str, status: int) -> int:
    _tell(message)
    flush_or_silence()
    return status


if __name__ == "__main__":
    sys.exit(main())
