"""What argparse lacks: errors of one line, a description of several paragraphs, and -1,-2 as the value of an option."""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from anynorm._cli.terminal import printable

# What begins like a negative number, or a list of them, is one: no option of ours begins with a digit.
_NUMBERS = re.compile(r"-(\.?\d.*|inf|nan)", re.IGNORECASE)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Arguments stand in the message as they were given."""
        self.exit(2, f"{self.prog}: {printable(message)}; {self.prog} --help shows what there is\n")


class Paragraphs(argparse.HelpFormatter):
    """Paragraphs are as wide as the terminal; indented lines, which are examples and tables, remain lines."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        filled = []
        for paragraph in text.strip().split("\n\n"):
            lines = paragraph.splitlines() if "\n " in f"\n{paragraph}" else [paragraph]
            for line in lines:
                column = re.match(r" +\S+(?: \S+)*  +", line)  # the first of a table, beside which the second is filled
                if column or line is paragraph:
                    line = textwrap.fill(line, width, subsequent_indent=" " * len(column[0] if column else ""))
                filled.append(indent + line)
            filled.append("")
        return "\n".join(filled[:-1])


class Command(Parser):
    """A parser of one command, whose files may stand before, between and after its options."""

    files: Any = None  # how a shell completes names of files
    _in_turn = False

    def add_files(self, *names: str, **options: Any) -> None:
        """Add an argument that is a file."""
        argument: Any = self.add_argument(*names, **options)
        if self.files is not None:
            argument.complete = self.files

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuse unknown arguments here, where the nearest known option can be named."""
        if self._in_turn:  # parse_known_intermixed_args asks in Python 3.11
            return super().parse_known_args(args, namespace)
        self._in_turn = True
        try:
            found, unknown = self.parse_known_intermixed_args(args, namespace)
        finally:
            self._in_turn = False
        for one in unknown:
            if one.startswith("-"):
                options = re.findall(r"(?<![\w-])--?[a-z][a-z-]*", self.format_help())
                self.error(f"there is no option {one.partition('=')[0]}{nearest(one.partition('=')[0], options)}")
        if unknown:
            self.error(f"{unknown[0]!r} is one too many")
        return found, unknown


def joined(arguments: Sequence[str]) -> list[str]:
    """Arguments with each list of numbers that begins with - joined to the option before, as in --axis=-1,-2.

    argparse would take it for an option.
    """
    found: list[str] = []
    for one in arguments:
        if found and re.fullmatch("--[a-z-]+", found[-1]) and _NUMBERS.fullmatch(one):
            found[-1] += f"={one}"
        else:
            found.append(one)
    return found


def nearest(word: str, words: Iterable[str]) -> str:
    """What to add to a message about a word that is none of these."""
    import difflib  # for a message alone

    bare = {one.lstrip("-"): one for one in sorted(set(words))}  # dashes do not make words alike
    found = difflib.get_close_matches(word.lstrip("-"), bare, 1, 0.65)
    return f"; did you mean {bare[found[0]]}?" if found else ""


def one_of(names: dict[str, str]) -> Callable[[str], str]:
    """A type for argparse: one of some names, each with what it stands for."""

    def find(text: str) -> str:
        if text in names:
            return names[text]
        wanted = ", ".join(dict.fromkeys(names.values()))
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {wanted}{nearest(text, names)}")

    return find


def number(text: str) -> float:
    """A type for argparse."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def positive(text: str) -> int:
    """A type for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 1 or more")
    return int(text)


def shape(text: str) -> tuple[int, int]:
    """A type for argparse."""
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not ROWSxFEATURES such as 4096x1024")
    return int(found[1]), int(found[2])


def axes(text: str) -> tuple[int, ...]:
    """A type for argparse."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not an axis or a list of axes such as -2,-1") from None
