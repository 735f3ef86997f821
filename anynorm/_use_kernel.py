"""Forcing a kernel, as callers do it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

from anynorm._choose import kernel_named
from anynorm._forced import force, forced_here
from anynorm._wording import describe, sentence

_Function = TypeVar("_Function", bound=Callable[..., Any])
# Functions that pause: what they have set would stay set for the code that runs meanwhile.
_STOPPING = (inspect.isgeneratorfunction, inspect.iscoroutinefunction, inspect.isasyncgenfunction)


class use_kernel:  # noqa: N801  # called as a function is, with or without `with`, as torch.set_grad_enabled
    """Force one kernel from now on, or within a ``with`` block: a call that it refuses raises an error.

    It takes effect when it is called. As a context manager it ends with the block, as a decorator it holds while the
    function runs; called alone it holds until the next call, in the thread (or the asyncio task) that called it. The
    environment variable ``ANYNORM_KERNEL`` does the same for a whole process. On a GPU torch runs `backward` in a
    thread of its own, where what was forced when the norm was called holds.

    Parameters
    ----------
    name : str or None
        As `explain` and ``anynorm info`` print it; None to force none here.

    Raises
    ------
    ValueError
        If there is no kernel of that name.
    TypeError
        If the name is not a str, or what is decorated is not a plain function.
    RuntimeError
        Raised by the norms, with the reason, if the kernel refuses a call.

    Examples
    --------
    >>> import numpy, anynorm
    >>> with anynorm.use_kernel("definition"):
    ...     anynorm.rms_norm(numpy.asarray([3.0, 3.0]), eps=0.0)
    array([1., 1.])
    >>> _ = anynorm.use_kernel("definition")
    >>> anynorm.explain(numpy.ones(3)).kernel
    'definition'
    >>> _ = anynorm.use_kernel(None)
    """

    def __init__(self, name: str | None) -> None:
        self._name = None if name is None else kernel_named(name).name
        self._before = forced_here()
        force(self._name)

    def __enter__(self) -> None:
        force(self._name)  # again, where it has been left before

    def __exit__(self, *exception: object) -> None:
        force(self._before)

    def __call__(self, function: _Function) -> _Function:
        """Decorate a function."""
        self.__exit__()
        if not callable(function) or any(stops(function) for stops in _STOPPING):
            must, do = "be a plain function", "put the with block inside it"
            got = "a coroutine or a generator" if callable(function) else describe(function)
            raise TypeError(sentence("the decorated function", must, got, do))

        @functools.wraps(function)
        def run(*given: Any, **options: Any) -> Any:
            with use_kernel(self._name):
                return function(*given, **options)

        return cast(_Function, run)
