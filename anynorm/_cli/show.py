"""What `anynorm show` does."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from typing import Any

from anynorm._cli.places import expanded
from anynorm._cli.terminal import output, print_json, progress, say
from anynorm._cli.words import counted, of_nbytes, of_number, of_shape
from anynorm._files import Place, Shown, nbytes_of, show


def run(parsed: argparse.Namespace) -> int:
    """Show what is named."""
    if not parsed.paths:
        raise ValueError("FILE is missing; name a file to show")
    output()
    found: list[dict[str, Any]] = []
    for place in expanded(parsed.paths):
        empty = True
        for one in arrays_of(place, parsed, tuple(parsed.names), tuple(parsed.columns)):
            empty = False
            if parsed.json:
                found.append({"file": str(place), **one.to_dict()})
                continue
            for line in lines_of(place, one):
                say(line, output())
            output().flush()  # raises if its reader has closed the pipe
        if empty and not parsed.json:
            say(f"{place}: no arrays", output())
    if parsed.json:
        print_json({"arrays": found})
    return 0


def arrays_of(
    place: Place, parsed: argparse.Namespace, names: tuple[str, ...], columns: tuple[str, ...]
) -> Iterator[Shown]:
    """Give the arrays of a file one after the other as they are read, under a progress bar."""
    what = "-" if place == "-" else place.name
    with progress(what, partial(nbytes_of, place, names), parsed.quiet, printing=not parsed.json) as advance:
        yield from show(place, names, parsed.axis, advance, columns=columns)


def lines_of(place: Place, shown: Shown) -> list[str]:
    """What people read of an array: a line of what it is, then one for each thing there is to say."""
    name = " ".join(filter(None, ["standard input" if place == "-" else str(place), shown.name]))
    head = f"{name}: {of_shape(shown.shape)} {shown.dtype}"
    head += "" if shown.nbytes is None else f", {of_nbytes(shown.nbytes)}"
    if shown.rows is None:
        why = shown.why or ""
        for known in (f"{shown.name} of {place} ", f"{shown.name} ", f"{place} "):
            why = why.removeprefix(known)
        return [f"{head}; {why}" if why else head]
    lines = [head, f"  rows        {_rows(shown)}"]
    if shown.least is not None and shown.median is not None and shown.largest is not None:
        about = "about " if shown.median_error else ""
        least, median, largest = map(of_number, (shown.least, shown.median, shown.largest))
        lines.append(f"  lengths     {least} least, {about}{median} median, {largest} largest")
        lines.append(f"  unit        {_unit(shown)}")
    if shown.mean is not None and shown.deviation is not None:
        lines.append(f"  numbers     {of_number(shown.mean)} mean, {of_number(shown.deviation)} deviation")
    if shown.zero_rows:
        lines.append(f"  zeros       {counted(shown.zero_rows, 'row')}")
    if shown.not_finite_rows:
        lines.append(
            f"  NaN or Inf  {counted(shown.not_finite_rows, 'row')}, {counted(shown.not_finite or 0, 'number')}"
        )
    return lines


def _rows(shown: Shown) -> str:
    lengths = [length for axis, length in enumerate(shown.shape) if axis in shown.axis]
    along = "the last axis" if shown.axis == (len(shown.shape) - 1,) else f"axis {','.join(map(str, shown.axis))}"
    return f"{shown.rows:,} of {of_shape(lengths)} numbers, along {along}"


def _unit(shown: Shown) -> str:
    """Whether rows are unit vectors already."""
    if shown.unit:
        return "yes, all rows but those of zeros" if shown.zero_rows else "yes, all rows"
    return f"no, {shown.unit_rows or 0:,} of {counted(shown.rows or 0, 'row')}"
