"""The commands and their options."""

from __future__ import annotations

import argparse
import inspect
import re
from pathlib import Path
from typing import Any

import anynorm
from anynorm._cli.parser import Command, Paragraphs, Parser, axes, joined, nearest, number, one_of, positive, shape

NORMS = ("layer", "rms", "scale")
DEFAULT_EPS = {name: inspect.signature(getattr(anynorm, f"{name}_norm")).parameters["eps"].default for name in NORMS}
SHELLS = ("bash", "zsh", "fish", "tcsh")
COMMANDS = {
    "normalize": "normalize a file, or a folder of them",
    "show": "what is in a file: shapes, lengths of rows, mean, NaN",
    "bench": "time the three norms on this machine, beside what else is installed",
    "warm": "compile the CPU kernels beforehand, for an image or a first call that is quick",
    "info": "versions, backends, kernels, and what to install for more",
    "completion": "completion of commands, options and files for a shell",
}
# Others' names of the three norms, and other ways to write ours.
_SPELLED = {f"{name}{tail}": name for name in NORMS for tail in ("", "norm", "_norm", "-norm")}
_SPELLED |= {"LayerNorm": "layer", "RMSNorm": "rms", "ScaleNorm": "scale", "l2": "scale", "L2": "scale"}
_DTYPES = ("float16", "bfloat16", "float32", "float64")
_FORMATS = (".npy", ".safetensors", ".zarr", ".parquet")

_NORMALIZE = """
Normalize files of any size, a few blocks at a time, so that memory stays flat. Suffixes tell the formats: .npy,
.safetensors, .zarr or .parquet; - is standard input or output, as .npy. OUT may have another format than IN, and then
holds the normalized arrays alone. OUT appears whole or not at all.

Several files, or a folder of them, go into a folder, each under its own name. Of a folder, the files directly in it
that have one of these formats are taken. A result that is there already and newer than its source is left as it is, so
that the same command goes on where it was stopped; --force does it again.
"""
_SHOW = """
Show the arrays in a file: shapes and dtypes, the lengths of rows (least, median, largest), mean and deviation, whether
rows are unit vectors already, rows of zeros, NaN and Inf. All arrays, or those that --tensor names.
"""
_BENCH = """
Time the three norms on the CPU of this machine, beside the plain NumPy expression and whichever of torch, JAX, ONNX
Runtime and scikit-learn are installed, each in a process of its own. Each result is checked before it is timed. This
takes less than two minutes; keep the machine idle meanwhile. The columns:

  time                median over rounds in which all take turns
  GB/s                read and written, x and y once each
  of copy             time of numpy.copyto by this time; 100%: as fast as a copy
  of streaming copy   the same of a copy past the caches, on all threads
  memory              at most held beyond arguments and result, of large arrays
  ulp                 largest error of a few rows, in units of the last place, against exact arithmetic
  / anynorm           time by that of anynorm called on the same library; above 1: anynorm is faster

The last table compares the three norms, in the largest shape: time and / copy are those of a call with out=, the latter
by a copy into the same buffer; below 1: faster than the copy.
"""
_BENCH_EXAMPLES = """anynorm bench --quick
  anynorm bench --norm layer --dtype float16 --library torch
  anynorm bench --shape 100000x384 --threads 1 --plot times.svg
  anynorm bench --json old.json, and later: anynorm bench --compare old.json"""
# Others' names of the libraries that are timed.
_LIBRARIES = {name: name for name in ("numpy", "torch", "jax", "onnxruntime", "scikit-learn")}
_LIBRARIES |= {"NumPy": "numpy", "pytorch": "torch", "JAX": "jax", "onnx": "onnxruntime", "sklearn": "scikit-learn"}
_WARM = """
Compile the CPU kernels for the processor of this machine, so that no first call has to wait for the compiler. They go
into the cache folder or, with --to, into one that other users may read: built into an image by root, it serves anybody
there who has ANYNORM_CACHE_DIR set to it, from a file system that can only be read. What is there already is left, so
that the same command goes on where it was stopped.
"""
_WARM_EXAMPLES = """anynorm warm
  anynorm warm --dtype float32 --dtype float16 --to /opt/anynorm"""
_COMPLETION = """
Print a script with which a shell completes commands, options and files. It needs the package shtab.
"""
NO_MOMENTS = Path()
_MOMENTS = "anynorm show train.npy --axis 0 --json > train.json"


def parse(arguments: list[str]) -> argparse.Namespace | None:
    """Find out what is asked for; None: nothing, and the help is printed. Errors end the process, as with argparse."""
    parser = parser_of_all()
    if not arguments:
        parser.print_help()
        return None
    first = next((one for one in arguments if not one.startswith("-")), None)
    command = next((one for one in arguments if one in COMMANDS), None)
    if command and arguments[0].startswith("-") and arguments[0] not in ("-h", "--help", "-V", "--version"):
        parser.error(f"{arguments[0]} stands before the command; write anynorm {command}, then its options")
    if first is not None and first not in COMMANDS:
        near = nearest(first, COMMANDS) or f"; there are {', '.join(COMMANDS)}"
        parser.error(f"there is no command {first!r}{near}")
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    parsed = parser.parse_args(joined(arguments[:cut]))
    for one in getattr(parsed, "paths", []):
        if re.fullmatch(r"-[\d,.-]+", one):
            parser.error(f"{one} is no file here; several axes are one word, as in --axis -1,-2, and a file is ./{one}")
    if cut < len(arguments):  # after it are files, whatever their names begin with
        parsed.paths = [*getattr(parsed, "paths", []), *arguments[cut + 1 :]]
    return parsed


def parser_of_all(files: Any = None) -> Parser:
    """The parser of the command line; ``files``: how names of files are completed."""
    what = anynorm.__doc__.partition("\n")[0]
    parser = Parser(prog="anynorm", description=what, epilog="anynorm COMMAND --help shows its options.")
    parser.add_argument("-V", "--version", action="version", version=f"anynorm {anynorm.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command", parser_class=Command)

    def command(name: str, description: str, example: str, usage: str) -> Command:
        title = "examples" if "\n" in example else "example"
        made: Command = commands.add_parser(
            name,
            help=COMMANDS[name],
            description=description,
            epilog=f"{title}:\n  {example}",
            usage=f"anynorm {name} {usage}".rstrip(),
            formatter_class=Paragraphs,
        )
        made.files = files
        return made

    usage = "IN OUT --norm NORM [OPTION ...]\n       anynorm normalize IN ... FOLDER --norm NORM [OPTION ...]"
    _add_normalize(command("normalize", _NORMALIZE, "anynorm normalize embeddings.npy unit.npy --norm l2", usage))
    _add_show(command("show", _SHOW, "anynorm show embeddings.npy", "FILE ... [OPTION ...]"))
    _add_bench(command("bench", _BENCH, _BENCH_EXAMPLES, "[OPTION ...]"))
    _add_warm(command("warm", _WARM, _WARM_EXAMPLES, "[OPTION ...]"))
    command("info", "Show what is installed, which kernels run, and what to install for more.", "anynorm info", "")
    completion = command("completion", _COMPLETION, 'eval "$(anynorm completion bash)"', "SHELL")
    completion.add_argument(
        "shell", metavar="SHELL", type=one_of(_same(SHELLS)), choices=SHELLS, help=f"which one: {', '.join(SHELLS)}"
    )
    return parser


def _same(names: tuple[str, ...]) -> dict[str, str]:
    return {name: name for name in names}


def _add_normalize(command: Command) -> None:
    add = command.add_argument
    command.add_files(
        "paths",
        metavar="IN ... OUT",
        nargs="*",
        help="files to read, or a folder, and where to write; ./-x.npy for -x.npy",
    )
    command.add_files("-o", "--out", metavar="OUT", help="where to write; all other files are then read")
    add(
        "--norm", metavar="NORM", type=one_of(_SPELLED), choices=NORMS,
        help="which norm: layer, rms or scale; also layernorm, rmsnorm, scalenorm, and l2 for scale (unit vectors)",
    )  # fmt: skip
    command.add_files("--weight", metavar="W.npy", type=Path, help="for layer and rms: a factor for each feature")
    command.add_files("--bias", metavar="B.npy", type=Path, help="for layer and rms: added to each feature")
    add("--scale", metavar="NUMBER", type=number, help="for scale: the length of a row (default: 1)")
    add("--axis", metavar="AXES", type=axes, default=(-1,), help="normalized axes: -1 (default), 0, or -2,-1")
    eps = ", ".join(f"{name} {default}" for name, default in DEFAULT_EPS.items())
    add("--eps", metavar="NUMBER", type=number, help=f"added to the variance, or the least length (default: {eps})")
    command.add_files(
        "--moments", metavar="FILE.json", nargs="?", type=Path, const=NO_MOMENTS,
        help=f"apply these statistics in place of the data's own, as written by: {_MOMENTS}",
    )  # fmt: skip
    add(
        "--dtype", metavar="DTYPE", type=one_of(_same(_DTYPES)), choices=_DTYPES,
        help=f"of the result: {', '.join(_DTYPES)} (default: that of the file); bfloat16 in .safetensors alone",
    )  # fmt: skip
    _add_names(command, "to normalize; the others are copied")
    add(
        "--to", metavar="SUFFIX", type=one_of({name: one for one in _FORMATS for name in (one, one[1:])}),
        choices=_FORMATS, help="format of the files in a folder (default: that of each source)",
    )  # fmt: skip
    add(
        "--on-nan", metavar="WHAT", type=one_of(_same(("keep", "fail"))), choices=("keep", "fail"),
        default="keep", help="rows with NaN or Inf: keep, which makes them NaN throughout (default), or fail",
    )  # fmt: skip
    add("--in-place", action="store_true", help="put the result in the place of IN; takes no OUT")
    add("-f", "--force", action="store_true", help="overwrite OUT; in a folder, normalize again what is there already")
    add(
        "-n",
        "--dry-run",
        action="store_true",
        help="check what can be checked, say what would be written, write nothing",
    )
    add("--show", action="store_true", help="show what IN is like and what OUT is like, as anynorm show does")
    _add_common(command)


def _add_show(command: Command) -> None:
    command.add_files("paths", metavar="FILE", nargs="*", help="files to read, or folders of them")
    command.add_argument(
        "--axis",
        metavar="AXES",
        type=axes,
        default=(-1,),
        help="axes along which rows lie: -1 (default), 0, or -2,-1",
    )
    _add_names(command, "to show")
    _add_common(command)


def _add_bench(command: Command) -> None:
    add = command.add_argument

    def add_several(name: str, metavar: str, names: dict[str, str], what: str) -> None:
        there = tuple(dict.fromkeys(names.values()))
        add(
            f"--{name}", metavar=metavar, type=one_of(names), choices=there, action="append", default=[],
            help=f"{what}: {', '.join(there)}; may be repeated",
            dest="libraries" if name == "library" else f"{name}s",
        )  # fmt: skip

    add("--quick", action="store_true", help="half a minute: two sizes, few rounds")
    add_several("norm", "NORM", _SPELLED, "which norms (default: all), as in --norm rms")
    add_several("dtype", "DTYPE", _same(_DTYPES), "which dtypes (default: float32), as in --dtype float16")
    add_several("library", "NAME", _LIBRARIES, "which libraries to compare with (default: all), as in --library torch")
    add(
        "--shape", metavar="ROWSxFEATURES", type=shape, dest="shapes", action="append", default=[],
        help="time arrays of this shape, as in --shape 100000x384; may be repeated",
    )  # fmt: skip
    _add_threads(command)
    command.add_files(
        "--json", metavar="FILE", type=Path, help="write all that was measured, machine and versions: --json new.json"
    )
    command.add_files(
        "--compare", metavar="FILE", type=Path, help="show ratios to a file that --json wrote: --compare old.json"
    )
    command.add_files(
        "--plot", metavar="FILE", type=Path, help="draw time against size, .svg or .png: --plot times.svg"
    )
    add("-q", "--quiet", action="store_true", help="print the tables alone")


def _add_warm(command: Command) -> None:
    add = command.add_argument
    add(
        "--dtype", metavar="DTYPE", type=one_of(_same(_DTYPES)), choices=_DTYPES, action="append", default=[],
        help=f"for arrays of which dtypes: {', '.join(_DTYPES)} (default: all); may be repeated", dest="dtypes",
    )  # fmt: skip
    command.add_files("--to", metavar="DIR", type=Path, help="the folder (default: the cache folder)")
    add("--threads", metavar="N", type=positive, help="how many to compile at once (default: as many as cores)")
    add("-q", "--quiet", action="store_true", help="say nothing but errors")


def _add_names(command: Command, what: str) -> None:
    command.add_argument(
        "--tensor", "--column", metavar="NAME", dest="names", action="append", default=[],
        help=f"which of several tensors or columns {what}; may be repeated",
    )  # fmt: skip
    command.add_argument(
        "--columns", metavar="PATTERN", action="append", default=[],
        help=".parquet: columns of one number each, such as 'f*', that together make up a row; may be repeated",
    )  # fmt: skip


def _add_threads(command: Command) -> None:
    command.add_argument("--threads", metavar="N", type=positive, help="threads to compute with (default: all cores)")


def _add_common(command: Command) -> None:
    _add_threads(command)
    command.add_argument("--json", action="store_true", help="print one JSON object to standard output, for programs")
    command.add_argument("-q", "--quiet", action="store_true", help="say nothing but errors")
