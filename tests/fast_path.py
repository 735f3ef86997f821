"""Which way a call takes."""

from contextlib import contextmanager
from unittest import mock

import anynorm
from anynorm import _gradients, _norms, _residual


@contextmanager
def checks():
    """Count the calls that are checked, which those on the fast path are not."""
    seen = []

    def counted(check):
        return lambda *given, **options: seen.append(given) or check(*given, **options)

    with (
        mock.patch.object(_norms, "check", counted(_norms.check)),
        mock.patch.object(_residual, "check", counted(_residual.check)),
        mock.patch.object(_gradients, "check", counted(_gradients.check)),
        mock.patch.object(_gradients, "check_gradient", counted(_gradients.check_gradient)),
    ):
        yield seen


def forced(function, *arguments, **options):
    """By the slow path, which is always taken where a kernel is forced."""
    with anynorm.use_kernel("cpu"):
        return function(*arguments, **options)


def takes_fast_path(function, *arguments, **options):
    """Whether a call is made without being checked."""
    with checks() as seen:
        function(*arguments, **options)
    return not seen
