"""What `anynorm normalize` does."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from anynorm._cli.moments import load_moments
from anynorm._cli.options import DEFAULT_EPS, NO_MOMENTS, NORMS
from anynorm._cli.places import Pairs, pairs, place
from anynorm._cli.results import Result, show_plan, tell_kernel, tell_results
from anynorm._cli.show import arrays_of, lines_of
from anynorm._cli.terminal import output, progress, stopped, tell
from anynorm._cli.words import counted
from anynorm._files import Job, Place, load_npy, nbytes_of, normalize, normalize_in_place, planned, suffix_of
from anynorm._kernels.cpu.compiler.entries import seconds_to_begin


def run(parsed: argparse.Namespace) -> int:
    """Normalize what is named."""
    found = _pairs(parsed)
    job = _job(parsed)
    if parsed.json and not parsed.dry_run:
        if any(target == "-" for _, target in found.todo):
            raise ValueError("--json prints to standard output, where OUT is; leave one of them out")
        output()
    if parsed.show:
        _require_files_to_show(parsed, found)
    if parsed.dry_run:
        show_plan(parsed, found, _plan(parsed, found, job))
        return 0
    if found.folder is not None or parsed.show:
        _plan(parsed, found, job)  # so that nothing is written where one of many cannot be, or read where OUT is there
    for source, _ in found.todo if parsed.show else ():
        _show(source, parsed, tuple(parsed.names), tuple(parsed.columns))
    started, waited = time.perf_counter(), seconds_to_begin()
    with _folder(found):
        results = _normalize(parsed, found, job)
    tell_results(parsed, found, results, time.perf_counter() - started)
    if parsed.show and results:
        tell_kernel(parsed, results, seconds_to_begin() - waited)
    for source, target in found.todo if parsed.show else ():
        same = target is None or suffix_of(target) == suffix_of(source)  # if not, OUT holds the normalized arrays alone
        names, columns = (tuple(parsed.names), tuple(parsed.columns)) if same else ((), ())
        _show(source if target is None else target, parsed, names, columns)
    return 0


def _require_files_to_show(parsed: argparse.Namespace, found: Pairs) -> None:
    for option in ("json", "quiet", "dry_run"):
        if getattr(parsed, option):
            raise ValueError(f"--show is for people who wait for the result; leave --{option.replace('_', '-')} out")
    if any("-" in pair for pair in found.todo):
        raise ValueError("--show reads IN and OUT once more, and - can be read once; name files, or leave --show out")


def _show(place: Place, parsed: argparse.Namespace, names: tuple[str, ...], columns: tuple[str, ...]) -> None:
    for one in arrays_of(place, parsed, names, columns):
        for line in lines_of(place, one):
            tell(line)


def _pairs(parsed: argparse.Namespace) -> Pairs:
    """What is read and written; ValueError where the command does not say."""
    sources, target = list(parsed.paths), parsed.out
    if parsed.moments == NO_MOMENTS:
        file = sources[0] if sources else "FILE"
        raise ValueError(f"--moments takes a file of statistics to apply; anynorm show {file} shows those of a file")
    if parsed.norm is None:
        raise ValueError(f"--norm is missing; it is one of {', '.join(NORMS)}, l2")
    if parsed.in_place:
        if len(sources) > 1 or target is not None or sources == ["-"]:
            raise ValueError("--in-place takes one file and writes no other; leave OUT out")
        if parsed.force:
            raise ValueError("--force is for OUT; leave it out with --in-place")
        if parsed.to is not None:
            raise ValueError("--to is for files that go into a folder; leave it out with --in-place")
    elif target is None and len(sources) > 1:
        target = sources.pop()
    if not sources:
        raise ValueError("IN is missing; name a file to read")
    if parsed.in_place:
        return Pairs(((place(sources[0]), None),))
    if target is None:
        raise ValueError("OUT is missing; name a file to write, or pass --in-place")
    return pairs(sources, target, parsed.to, parsed.force)


def _job(parsed: argparse.Namespace) -> Job:
    if parsed.norm == "scale":
        if parsed.weight is not None or parsed.bias is not None:
            raise ValueError("--norm scale takes --scale, not --weight or --bias")
        weight, bias = parsed.scale, None
    else:
        if parsed.scale is not None:
            raise ValueError(f"--norm {parsed.norm} takes --weight and --bias, not --scale")
        weight, bias = (None if path is None else load_npy(path) for path in (parsed.weight, parsed.bias))
    names = tuple(parsed.names)
    return Job(
        f"{parsed.norm}_norm",
        weight,
        bias,
        parsed.axis,
        DEFAULT_EPS[parsed.norm] if parsed.eps is None else parsed.eps,
        parsed.dtype,
        names,
        parsed.on_nan == "fail",
        None if parsed.moments is None else load_moments(parsed.moments, names),
        tuple(parsed.columns),
    )


@contextmanager
def _folder(found: Pairs) -> Iterator[None]:
    """Make the folder that several files go into, and remove it again if it stays empty."""
    folder = found.folder
    if folder is None or folder.is_dir():
        yield
        return
    folder.mkdir()
    try:
        yield
    finally:
        if not any(folder.iterdir()):
            folder.rmdir()


def _plan(parsed: argparse.Namespace, found: Pairs, job: Job) -> list[Result]:
    """What would be written; ValueError and the like for what is known to fail before anything is read."""
    plan, folder = [], found.folder
    new = folder is not None and not folder.is_dir()
    if folder is not None and not folder.parent.is_dir():
        raise FileNotFoundError(f"{folder.parent} is not a directory; make it first")
    for source, target in found.todo:
        with _naming(found, source):
            outcome = planned(source, target, job, overwrite=parsed.force, new_folder=new)
        plan.append(Result(source, target or source, outcome))
    return plan


def _normalize(parsed: argparse.Namespace, found: Pairs, job: Job) -> list[Result]:
    """Normalize one file after the other; an error that ends this says how many are done."""
    results: list[Result] = []
    if not found.todo:
        return results
    one = found.todo[0][0] if len(found.todo) == 1 else None
    what = counted(len(found.todo), "file") if one is None else "-" if one == "-" else one.name

    def total() -> int | None:
        sizes = [nbytes_of(source, job.names) for source, _ in found.todo]
        return None if None in sizes else sum(size or 0 for size in sizes)

    try:
        with progress(what, total, parsed.quiet) as advance:
            for source, target in found.todo:
                with _naming(found, source):
                    if target is None:
                        outcome = normalize_in_place(Path(source), job, advance=advance)
                    else:
                        outcome = normalize(source, target, job, overwrite=parsed.force, advance=advance)
                results.append(Result(source, target or source, outcome))
    except BaseException as error:
        if found.folder is not None:
            so_far = f"{len(results)} of {counted(len(found.todo), 'file')} written"
            error.add_note(f"{so_far}, run it again for the rest" if results else "nothing was written")
        elif (stopped() or isinstance(error, (KeyboardInterrupt, MemoryError))) and found.todo[0][1] != "-":
            error.add_note("nothing was written")
        raise
    return results


@contextmanager
def _naming(found: Pairs, source: Place) -> Iterator[None]:
    """Add the file to the message of an error that names only what is in it, where there are several."""
    try:
        yield
    except Exception as error:
        if found.folder is not None and str(source) not in f"{error}{getattr(error, 'filename', '')}":
            error.add_note(f"in {source}")
        raise
