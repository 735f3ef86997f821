"""What `help` says of the fields of a named tuple."""

from __future__ import annotations

import inspect
import re
from typing import Any, TypeVar

Kind = TypeVar("Kind", bound=type[Any])


def described(kind: Kind) -> Kind:
    """Give each field of a named tuple its lines under Attributes; Python's own say "Alias for field number 0"."""
    attributes = inspect.cleandoc(kind.__doc__ or "").partition("Attributes\n----------\n")[2]
    for names, of_type, text in re.findall(r"(?m)^(\w.*?) : (.*)((?:\n    .*)*)", attributes):
        for name in names.split(", "):
            getattr(kind, name).__doc__ = f"{of_type}\n{inspect.cleandoc(text)}"
    return kind
