"""Which way a call takes."""

from contextlib import contextmanager
from unittest import mock

import numpy as np

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


@contextmanager
def shared_from(nbytes):
    """Arrays of so many bytes are shared among threads, also by what the fast path knows.

    That is written down with the first call that it may serve, and would stay there: later tests would be slow.
    """
    from anynorm._kernels.cpu.fast_path import functions
    from anynorm._kernels.cpu.threads import crew

    anynorm.rms_norm(np.ones(4, np.float32))
    record = functions.record()
    before = record.least_shared_nbytes
    record.least_shared_nbytes = nbytes
    try:
        with mock.patch.object(crew, "LEAST_SHARED_NBYTES", nbytes):
            yield
    finally:
        record.least_shared_nbytes = before


def takes_fast_path(function, *arguments, **options):
    """Whether a call is made without being checked."""
    with checks() as seen:
        function(*arguments, **options)
    return not seen
