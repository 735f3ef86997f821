"""What each array library is like: how its arrays are known, what they are computed in, where their elements lie."""

from anynorm._libraries.library import (
    REAL_DTYPES,
    Library,
    UnfitError,
    dtype_name,
    library_named,
    library_of,
    library_of_blocks,
)
from anynorm._libraries.memory import Memory

__all__ = [
    "REAL_DTYPES",
    "Library",
    "Memory",
    "UnfitError",
    "dtype_name",
    "library_named",
    "library_of",
    "library_of_blocks",
]
