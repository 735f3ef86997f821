"""The command line: anynorm normalize | info."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anynorm
from anynorm._files import (
    Job,
    Place,
    UnfinishedError,
    describe,
    map_npy,
    nbytes_of,
    normalize,
    normalize_where_it_is,
    path_of_journal,
)
from anynorm._info import print_info
from anynorm._terminal import progress, terminable

_DEFAULT_EPS = {"layer": 1e-5, "rms": 1e-6, "scale": 1e-5}

_DESCRIPTION = """
Normalize a file of any size into another of the same format, or in place, a few blocks at a time, so that memory stays
flat. The suffix tells the format: .npy, .safetensors, .zarr or .parquet; - is standard input or output, as .npy.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parsed = _parser().parse_args(arguments)
    parsed.said = shlex.join(["anynorm", *(sys.argv[1:] if arguments is None else arguments)])
    try:
        with terminable():
            status: int = parsed.run(parsed)
            return status
    except KeyboardInterrupt:
        written = "" if getattr(parsed, "target", None) == "-" else "; nothing was written"
        return _fail(f"interrupted{written}", 130)
    except MemoryError:
        return _fail("out of memory; nothing was written", 1)
    except UnfinishedError as error:
        return _fail(str(error), error.status)
    except OSError as error:
        where = f"{error.filename}: " if error.filename and error.strerror else ""
        return _fail(f"{where}{error.strerror or error}", 1)
    except (RuntimeError, TypeError, ValueError) as error:
        return _fail(str(error), 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="anynorm", description=anynorm.__doc__)
    parser.add_argument("--version", action="version", version=f"anynorm {anynorm.__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")

    info = commands.add_parser("info", help="versions, backends, kernels, and what to install for more")
    info.set_defaults(run=_info)

    command = commands.add_parser("normalize", help="normalize a file", description=_DESCRIPTION)
    command.set_defaults(run=_normalize)
    command.add_argument("source", metavar="IN", type=_place)
    command.add_argument("target", metavar="OUT", type=_place, nargs="?", help="left out with --in-place or --moments")
    command.add_argument("--norm", choices=sorted(_DEFAULT_EPS), help="which norm")
    command.add_argument("--weight", metavar="W.npy", type=Path, help="for layer and rms: a factor for each feature")
    command.add_argument("--bias", metavar="B.npy", type=Path, help="for layer and rms: added to each feature")
    command.add_argument("--scale", metavar="NUMBER", type=float, help="for scale: the length of a row (default 1)")
    command.add_argument(
        "--axis", metavar="AXES", type=_axes, default=(-1,), help="normalized axes: -1 (default), 0, or --axis=-2,-1"
    )
    command.add_argument("--eps", metavar="NUMBER", type=float, help="default 1e-5; for rms 1e-6")
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
        "--on-nan",
        choices=("keep", "fail"),
        default="keep",
        help="rows with NaN or Inf: NaN throughout (default), or fail",
    )
    command.add_argument("--in-place", action="store_true", help="normalize IN itself; if killed, run it again")
    command.add_argument("--moments", action="store_true", help="print the statistics of IN and write nothing")
    command.add_argument("--force", action="store_true", help="overwrite OUT")
    return parser


def _normalize(parsed: argparse.Namespace) -> int:
    if parsed.moments:
        return _describe(parsed)
    if parsed.norm is None:
        raise ValueError(f"--norm is missing; it is one of {', '.join(sorted(_DEFAULT_EPS))}")
    if parsed.in_place:
        if parsed.target is not None or parsed.source == "-":
            raise ValueError("--in-place takes one file and writes no other; leave OUT away")
    elif parsed.target is None:
        raise ValueError("OUT is missing; name a file to write, or pass --in-place")
    job, target = _job(parsed), parsed.target
    with _progress(parsed) as advance:
        if parsed.in_place or target is None:
            nans = normalize_where_it_is(parsed.source, job, said=parsed.said, advance=advance)
        else:
            nans = normalize(parsed.source, target, job, overwrite=parsed.force, advance=advance)
    if nans is None:
        journal = path_of_journal(parsed.source.resolve())
        _tell(f"{parsed.source} is as this command has left it; remove {journal} to normalize it once more")
    elif nans.count:
        _tell(nans.report())
    return 0


def _job(parsed: argparse.Namespace) -> Job:
    weight = None if parsed.weight is None else map_npy(parsed.weight)
    bias = None if parsed.bias is None else map_npy(parsed.bias)
    if parsed.norm == "scale":
        if weight is not None or bias is not None:
            raise ValueError("--norm scale takes --scale, not --weight or --bias")
        weight = parsed.scale
    elif parsed.scale is not None:
        raise ValueError(f"--norm {parsed.norm} takes --weight and --bias, not --scale")
    eps = _DEFAULT_EPS[parsed.norm] if parsed.eps is None else parsed.eps
    names, fails_on_nan = tuple(parsed.names), parsed.on_nan == "fail"
    return Job(f"{parsed.norm}_norm", weight, bias, parsed.axis, eps, parsed.dtype, names, fails_on_nan)


def _describe(parsed: argparse.Namespace) -> int:
    if parsed.target is not None:
        raise ValueError("--moments writes no file; leave OUT away")
    job = Job("layer_norm", None, None, parsed.axis, 0.0, names=tuple(parsed.names))
    with _progress(parsed) as advance:
        found = list(describe(parsed.source, job, advance))
    for one in found:
        print(*one.lines(), sep="\n")
    return 0


def _info(parsed: argparse.Namespace) -> int:
    print_info()
    return 0


def _progress(parsed: argparse.Namespace) -> Any:
    source: Place = parsed.source
    return progress("-" if source == "-" else source.name, nbytes_of(source))


def _place(text: str) -> Place:
    return "-" if text == "-" else Path(text)


def _axes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not an axis or a list of axes such as -2,-1") from None


def _tell(message: str) -> None:
    print(f"anynorm: {' '.join(message.split())}", file=sys.stderr)


def _fail(message: str, status: int) -> int:
    _tell(message)
    return status


if __name__ == "__main__":
    sys.exit(main())
