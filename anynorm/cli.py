"""The command line: anynorm normalize | info."""

from __future__ import annotations

import argparse
import importlib.util
import platform
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

import anynorm
from anynorm._choose import KERNELS
from anynorm._files import Job, normalize_npy, open_npy

_DEFAULT_EPS = {"layer": 1e-5, "rms": 1e-6, "scale": 1e-5}

# Module, the distribution that holds it, and how to get it.
_BACKENDS = (
    ("numpy", ("numpy",), ""),
    ("numba", ("numba",), "pip install 'anynorm[cpu]' (fused kernels on the CPU)"),
    ("torch", ("torch",), "pip install torch"),
    ("cupy", ("cupy-cuda12x", "cupy-cuda13x", "cupy"), "pip install 'anynorm[cuda12]' or 'anynorm[cuda13]'"),
    ("jax", ("jax",), "pip install 'anynorm[jax]'"),
    ("dask", ("dask",), "pip install 'anynorm[dask]'"),
    ("sparse", ("sparse",), "pip install sparse"),
    ("ndonnx", ("ndonnx",), "pip install ndonnx"),
    ("ml_dtypes", ("ml_dtypes",), "pip install ml_dtypes (bfloat16 in NumPy)"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parsed = _parser().parse_args(arguments)
    try:
        with _terminable():
            status: int = parsed.run(parsed)
            return status
    except KeyboardInterrupt:
        return _fail("interrupted; nothing was written", 130)
    except MemoryError:
        return _fail("out of memory; nothing was written", 1)
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

    normalize = commands.add_parser(
        "normalize",
        help="normalize an .npy file into another",
        description="Normalize an .npy file of any shape and size into another, in blocks, so that memory stays flat.",
    )
    normalize.set_defaults(run=_normalize)
    normalize.add_argument("source", metavar="IN.npy", type=Path)
    normalize.add_argument("target", metavar="OUT.npy", type=Path)
    normalize.add_argument("--norm", choices=sorted(_DEFAULT_EPS), required=True, help="which norm")
    normalize.add_argument("--weight", metavar="W.npy", type=Path, help="for layer and rms: a factor for each feature")
    normalize.add_argument("--bias", metavar="B.npy", type=Path, help="for layer and rms: added to each feature")
    normalize.add_argument("--scale", metavar="NUMBER", type=float, help="for scale: the length of a row (default 1)")
    normalize.add_argument(
        "--axis", metavar="AXES", type=_axes, default=(-1,), help="normalized axes: -1 (default), 0, or --axis=-2,-1"
    )
    normalize.add_argument("--eps", metavar="NUMBER", type=float, help="default 1e-5; for rms 1e-6")
    normalize.add_argument(
        "--dtype", choices=("float16", "float32", "float64"), help="of the result (default: that of the file)"
    )
    normalize.add_argument("--force", action="store_true", help="overwrite OUT.npy")
    return parser


def _normalize(parsed: argparse.Namespace) -> int:
    weight = None if parsed.weight is None else open_npy(parsed.weight)
    bias = None if parsed.bias is None else open_npy(parsed.bias)
    if parsed.norm == "scale":
        if weight is not None or bias is not None:
            raise ValueError("--norm scale takes --scale, not --weight or --bias")
        weight = parsed.scale
    elif parsed.scale is not None:
        raise ValueError(f"--norm {parsed.norm} takes --weight and --bias, not --scale")
    eps = _DEFAULT_EPS[parsed.norm] if parsed.eps is None else parsed.eps
    job = Job(f"{parsed.norm}_norm", weight, bias, parsed.axis, eps, parsed.dtype)
    with _progress(parsed.source) as advance:
        normalize_npy(parsed.source, parsed.target, job, overwrite=parsed.force, advance=advance)
    return 0


def _info(parsed: argparse.Namespace) -> int:
    print(
        f"anynorm {anynorm.__version__}, Python {platform.python_version()}, {platform.machine()} {platform.system()}"
    )
    print("\nbackends")
    for module, distributions, advice in _BACKENDS:
        version = _version(module, distributions)
        print(f"  {module:12}{version or f'not installed; {advice}'}")
    print("\nkernels, in order of preference")
    for kernel in KERNELS:
        missing = kernel.missing()
        print(f"  {kernel.name:12}{kernel.description}; {'active' if missing is None else missing}")
    if _version("tqdm", ("tqdm",)) is None:
        print("\nno progress bar: pip install 'anynorm[cli]'")
    return 0


def _version(module: str, distributions: tuple[str, ...]) -> str | None:
    """The installed version, found without importing anything."""
    if importlib.util.find_spec(module) is None:
        return None
    for distribution in distributions:
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return "of unknown version"


def _axes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not an axis or a list of axes such as -2,-1") from None


@contextmanager
def _progress(source: Path) -> Iterator[Callable[[int], Any]]:
    """A progress bar on a terminal, where tqdm is installed."""
    if importlib.util.find_spec("tqdm") is None:
        yield lambda nbytes: None
        return
    from tqdm import tqdm

    total = source.stat().st_size
    with tqdm(total=total, unit="B", unit_scale=True, desc=source.name, disable=None, leave=False) as bar:
        yield bar.update


@contextmanager
def _terminable() -> Iterator[None]:
    """Clean up on SIGTERM and SIGHUP as on Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():  # the only one that may set signal handlers
        yield
        return

    def interrupt(*_: Any) -> NoReturn:
        raise KeyboardInterrupt

    # SIGHUP, where there is one, comes when the terminal closes; nohup has it ignored.
    stopping = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in stopping}
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _fail(message: str, status: int) -> int:
    print(f"anynorm: {' '.join(message.split())}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
