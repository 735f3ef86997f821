"""What `anynorm normalize` says of what it has done, or would do."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import numpy

import anynorm
from anynorm._choose import KERNELS
from anynorm._cli.places import Pairs
from anynorm._cli.terminal import output, print_json, say, tell
from anynorm._cli.words import counted, of_nbytes, of_seconds, of_shape
from anynorm._files import Outcome, Place
from anynorm._files.rows import RowCounts

_MOST_NAMED = 3  # arrays in a message
_MOST_NUMBERS = 1 << 20  # of a row that is made to find out which kernel would run


@dataclass(frozen=True)
class Result:
    """What has become of a file, or would."""

    source: Place
    target: Place
    outcome: Outcome

    def to_dict(self) -> dict[str, Any]:
        """What is printed for programs."""
        return {"source": str(self.source), "target": str(self.target), **self.outcome.to_dict()}


def tell_results(parsed: argparse.Namespace, found: Pairs, results: list[Result], seconds: float) -> None:
    """Say on standard error what was written, and print it where programs want that."""
    if parsed.json:
        print_json({**_for_programs(found, results), "seconds": seconds})
    if parsed.quiet:
        return
    counts = RowCounts()
    for one in results:
        counts.add(one.outcome.counts)
    rows = counts.phrases()
    took = f" in {of_seconds(seconds)}"
    if found.folder is None:
        (one,) = results
        tell(", ".join([f"wrote {_described(one)}{took}", *rows, *_left(one)]))
        return
    done = f"{counted(len(found.done), 'file')} in {found.folder} newer than the source"
    if not results:
        tell(f"nothing to do: {done}; --force writes them again")
        return
    nbytes = of_nbytes(sum(one.outcome.nbytes for one in results))
    line = ", ".join([f"wrote {counted(len(results), 'file')} to {found.folder}: {nbytes}{took}", *rows])
    tell(f"{line}; left {done}, --force writes them again" if found.done else line)


def tell_kernel(parsed: argparse.Namespace, results: list[Result], waited: float) -> None:
    """Say which kernel ran, for how many seconds the run waited for it, and what to install for a faster one."""
    arrays = [array for one in results for array in one.outcome.arrays]
    names = list(dict.fromkeys(_kernel_for(parsed, array.shape, array.dtype) for array in arrays))
    said = [f"{' and '.join(names)}, for NumPy arrays"]
    if waited >= 0.01:
        said.append(f"{of_seconds(waited)} of the time to compile or load it")
    if "definition" in names:
        said += filter(None, [kernel.missing() for kernel in KERNELS if kernel.name == "cpu"])
    tell(f"  kernel      {'; '.join(said)}")


def _for_programs(found: Pairs, results: list[Result]) -> dict[str, Any]:
    return {"files": [one.to_dict() for one in results], "done": [str(path) for path in found.done]}


def _described(one: Result) -> str:
    """A file and what is in it: unit.npy: 2,000,000 x 384 float32, 3.1 GB."""
    arrays = one.outcome.arrays
    if len(arrays) > _MOST_NAMED:
        inside = counted(len(arrays), "array")
    else:
        named = len(arrays) > 1
        inside = ", ".join(
            f"{each.name + ' ' if named else ''}{of_shape(each.shape)} {each.dtype}" for each in arrays
        )  # fmt: skip
    where = "to standard output" if one.target == "-" else str(one.target)
    return f"{where}: {inside}, {of_nbytes(one.outcome.nbytes)}"


def _left(one: Result) -> list[str]:
    left = one.outcome.left
    if not left:
        return []
    return [f"without {', '.join(left) if len(left) <= _MOST_NAMED else f'{len(left)} others'}"]


def show_plan(parsed: argparse.Namespace, found: Pairs, plan: list[Result]) -> None:
    """Say what would be written, and through which kernel."""
    kernels = [[_kernel_for(parsed, each.shape, each.dtype) for each in one.outcome.arrays] for one in plan]
    if parsed.json:
        whole = _for_programs(found, plan)
        for file, names in zip(whole["files"], kernels, strict=True):
            for array, name in zip(file["arrays"], names, strict=True):
                array["kernel"] = name
        print_json({**whole, "dry_run": True})
        return
    for one, names in zip(plan, kernels, strict=True):
        kernel = " and ".join(dict.fromkeys(names))
        say(", ".join([f"would write {_described(one)}", f"through the kernel {kernel}", *_left(one)]), output())
    for path in found.done:
        say(f"would leave {path}, which is newer than its source", output())


def _kernel_for(parsed: argparse.Namespace, shape: tuple[int, ...], dtype: str) -> str:
    """Which kernel would run, asked of one row."""
    axes = [axis % len(shape) for axis in parsed.axis]
    lengths = tuple(length if axis in axes else min(length, 1) for axis, length in enumerate(shape))
    if numpy.prod(lengths) > _MOST_NUMBERS:
        lengths = tuple(min(length, 1) for length in lengths)
    if dtype == "bfloat16":
        import ml_dtypes

        row = numpy.empty(lengths, ml_dtypes.bfloat16)
    else:
        row = numpy.empty(lengths, dtype)
    return anynorm.explain(row, norm=f"{parsed.norm}_norm", axis=tuple(parsed.axis)).kernel
