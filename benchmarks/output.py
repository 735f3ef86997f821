"""The option for the JSON file that a benchmark writes, refused before minutes have gone by."""

import argparse
from pathlib import Path


def add_output(parser: argparse.ArgumentParser, said: str) -> None:
    """Let a command take `-o FILE.json`."""
    parser.add_argument("-o", "--output", type=file_to_write, metavar="FILE.json", help=said)


def file_to_write(given: str) -> Path:
    """The path of a file that can be there, as an argument's type."""
    path = Path(given)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a folder")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.parent}")
    return path
