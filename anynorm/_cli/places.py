"""Which files a command reads, and which it writes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from anynorm._files import SUFFIXES, Place


@dataclass(frozen=True)
class Pairs:
    """What is to be read, and where each is to be written."""

    todo: tuple[tuple[Place, Place | None], ...]  # None: in place
    done: tuple[Path, ...] = ()  # targets that are newer than their sources
    folder: Path | None = None  # where several files go


def place(text: str) -> Place:
    """A file, or - for standard input or output."""
    return "-" if text == "-" else Path(text)


def expanded(texts: Sequence[str]) -> list[Place]:
    """Files, and those in folders, which need not be of one format; ValueError for a folder without any."""
    found: list[Place] = []
    for text in texts:
        if not _is_folder(text):
            found.append(place(text))
            continue
        inside = [one for one in sorted(Path(text).iterdir()) if one.suffix.lower() in SUFFIXES]
        inside = [one for one in inside if not one.name.startswith(".")]
        if not inside:
            raise ValueError(f"{Path(text)} holds no file of a format that is read here: {', '.join(SUFFIXES)}")
        found += inside
    return found


def pairs(sources: Sequence[str], target: str, to: str | None, overwrite: bool) -> Pairs:
    """Where each source is to be written; ValueError where two would be written to one file."""
    if len(sources) == 1 and not _is_folder(sources[0]) and not _is_folder(target):
        if to is not None:
            raise ValueError("--to is for files that go into a folder; the suffix of OUT tells its format")
        return Pairs(((place(sources[0]), place(target)),))
    folder = Path(target)
    if target == "-" or folder.suffix.lower() in SUFFIXES or folder.is_file():
        raise ValueError(f"several files go into a folder, and OUT is {target}; name a folder")
    targets: dict[Path, Path] = {}
    for source in expanded(sources):
        if source == "-":
            raise ValueError("standard input has no name to be written under; name a file for OUT")
        one = folder / (source.name if to is None else source.with_suffix(to).name)
        if one in targets:
            raise ValueError(f"{targets[one]} and {source} would both be written to {one}; name two folders")
        if one.exists() and source.exists() and os.path.samefile(source, one):
            raise ValueError(f"{one} is one of the files that are read; name another folder")
        targets[one] = source
    done = {one: None for one, source in targets.items() if not overwrite and _is_done(source, one)}
    return Pairs(tuple((source, one) for one, source in targets.items() if one not in done), tuple(done), folder)


def _is_folder(text: str) -> bool:
    """Whether a path is that of a folder of files; a .zarr folder is one file here."""
    path = Path(text)
    return path.suffix.lower() not in SUFFIXES and (text.endswith(("/", os.sep)) or path.is_dir())


def _is_done(source: Path, target: Path) -> bool:
    """Whether a target is there and newer than its source; FileExistsError where it is older."""
    if not target.exists() or target.is_dir() != (target.suffix.lower() == ".zarr"):  # normalize will report it
        return False
    if _changed(target) < _changed(source):
        raise FileExistsError(f"{target} is older than {source}; remove it, or pass --force to write everything again")
    return True


def _changed(path: Path) -> int:
    """When a file, or the last of those in a folder, was written, in nanoseconds."""
    files = [one for one in path.rglob("*") if one.is_file()] if path.is_dir() else []
    return max(one.stat().st_mtime_ns for one in files or [path])
