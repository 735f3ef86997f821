"""Completion of commands, options and files by a shell."""

from __future__ import annotations

import argparse
import sys

from anynorm._cli.options import parser_of_all
from anynorm._cli.terminal import installed


def run(parsed: argparse.Namespace) -> int:
    """Print the script for a shell."""
    if not installed("shtab"):
        raise ValueError("completion needs a package that is not installed: pip install shtab")
    import shtab

    if parsed.shell not in shtab.SUPPORTED_SHELLS:
        raise ValueError(f"shtab {shtab.__version__} has no {parsed.shell}: pip install --upgrade shtab")
    if sys.stdout is None:
        raise ValueError("standard output is closed")
    print(shtab.complete(parser_of_all(files=shtab.FILE), parsed.shell))
    return 0
