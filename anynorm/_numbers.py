"""Numbers among the arguments, of any library, as Python's own; or a message that says what to do."""

from __future__ import annotations

import math
import operator
from numbers import Real
from typing import Any

from anynorm._wording import describe, is_traced, must_be_static, sentence


def as_index(argument: str, value: Any, must: str = "an int") -> int:
    """An integer as Python's own; no bool, which is 0 or 1 to Python and never meant as that."""
    try:
        if isinstance(value, bool) or "bool" in str(getattr(value, "dtype", "")):
            raise TypeError
        return operator.index(value)
    except Exception:  # reading its attributes may raise anything
        do = must_be_static(argument) if is_traced(value) else f"pass {must}"
        raise TypeError(sentence(argument, f"be {must}", describe(value), do)) from None


def check_length(argument: str, value: Any, must: str = "an int", least: int = 1) -> int:
    """A length or a count as Python's own int."""
    length = as_index(argument, value, must)
    if length < least:
        raise ValueError(sentence(argument, f"be {least} or more", describe(value), f"pass at least {least}"))
    return length


def check_lengths(argument: str, value: Any, least: int = 1) -> tuple[int, ...]:
    """A length or several, as a tuple."""
    must = "an int or a tuple of ints"
    lengths = [as_index(argument, one, must) for one in (value if isinstance(value, (tuple, list)) else (value,))]
    if not lengths:
        raise TypeError(sentence(argument, f"be {must}", "an empty one", "name at least one length"))
    return tuple([check_length(argument, length, must, least) for length in lengths])


def check_number(argument: str, value: Any, least: float = -math.inf) -> float:
    """A real number as a float, finite and not below the least."""
    try:
        if not isinstance(value, Real) or isinstance(value, bool):
            raise TypeError
        number = float(value)
    except OverflowError:  # an int or a fraction past the largest float
        number = math.inf if value > 0 else -math.inf
    except Exception:
        do = f"pass float({argument})" if hasattr(type(value), "shape") else "pass a float"
        if is_traced(value):
            do = must_be_static(argument)
        elif hasattr(type(value), "__torch_function__"):
            do += ", from outside of what torch.compile traces"
        raise TypeError(sentence(argument, "be a number", describe(value), do)) from None
    if not (-math.inf < number < math.inf and number >= least):  # math.isfinite is nothing that torch.compile traces
        must = "finite" if least == -math.inf else "finite and not negative"
        do = "pass a finite number" if least == -math.inf else "pass 0 or more"
        raise ValueError(sentence(argument, f"be {must}", str(number), do))
    return number
