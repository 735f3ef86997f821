"""Numbers for people to read."""

from __future__ import annotations

from collections.abc import Sequence


def of_shape(shape: Sequence[int]) -> str:
    """A shape: 2,000,000 x 384."""
    return " x ".join(f"{length:,}" for length in shape) or "a single"


def of_nbytes(nbytes: float) -> str:
    """A size: 3.1 GB."""
    if nbytes < 1000:
        return counted(int(nbytes), "byte")
    for unit in ("kB", "MB", "GB", "TB", "PB", "EB"):
        nbytes /= 1000
        if nbytes < 999.5 or unit == "EB":
            break
    return f"{nbytes:.1f} {unit}" if nbytes < 99.95 else f"{nbytes:,.0f} {unit}"


def of_seconds(seconds: float) -> str:
    """A time: 2.4 s."""
    if seconds < 0.995:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {left} s"


def of_number(value: float) -> str:
    """A number in a few digits."""
    return f"{value:.4g}"


def counted(number: int, what: str) -> str:
    """A number of things: 1 row, 2,000 rows."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
