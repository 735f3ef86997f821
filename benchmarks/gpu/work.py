"""What is timed on a GPU: norms of large arrays, their derivatives, and a small call on the host."""

import math
from collections.abc import Iterator
from typing import NamedTuple

from anynorm._bench.cases import NBYTES as ITEMSIZES
from anynorm._bench.cases import Case

FEATURES = (1024, 2048, 4096, 8192, 16384, 32768, 65536)
NBYTES = 64 << 20  # of x: the smallest that is called large, and so the hardest
LARGE = 256 << 20
ROTATED = 8  # times the last cache that the arrays of one piece of work take at least

# How many arrays of x's size have to be moved at least.
ARRAYS_MOVED = {
    "y": 2,  # x, y
    "dx": 3,  # x, dy, dx
    "gradients": 3,  # x, dy, dx; those of the parameters are small
    "step": 5,  # y and then the gradients
    "add": 4,  # x, residual, total, y
    "call": 2,
}


class Work(NamedTuple):
    """One norm of one array, and what of it is formed.

    That is "y", "dx" alone, the "gradients" by x, weight and bias, a whole "step" forward and backward, or the norm
    of a sum with a residual ("add"). A "call" is timed on the host, all others on the device.
    """

    case: Case
    what: str = "y"
    compiled: bool = False  # whether torch.compile, which takes seconds for it, is a rival

    @property
    def nbytes(self) -> int:
        """What has to be moved at least."""
        return ARRAYS_MOVED[self.what] * self.case.nbytes

    def __str__(self) -> str:
        return f"{self.case}{'' if self.what == 'y' else f' {self.what}'}"


def rows_of(norm: str, dtype: str, features: int, what: str = "y", nbytes: int = NBYTES) -> Work:
    """Rows along the last axis that take so many bytes."""
    shape = (nbytes // (features * ITEMSIZES[dtype]), features)
    compiled = features == 4096 or (features in (1024, 65536) and what == "y" and nbytes == NBYTES)
    return Work(Case(norm, dtype, shape), what, compiled)


def channels_first(dtype: str) -> Iterator[Work]:
    """(N, C, H, W) and (N, C, L), normalized along C."""
    for shape in ((32, 256, 56, 56), (32, 512, 1024)):
        yield Work(Case("layer_norm", dtype, shape, axis=1), compiled=True)


def everything() -> Iterator[Work]:
    """The full selection, the most wanted first."""
    yield from quick()
    for dtype in ("float32", "bfloat16"):
        for norm in ("layer_norm", "rms_norm"):
            for features in FEATURES:
                yield rows_of(norm, dtype, features)
            for features in (1024, 8192, 65536):
                yield rows_of(norm, dtype, features, nbytes=LARGE)
            for what in ("dx", "gradients"):
                for features in (1024, 4096, 16384):
                    yield rows_of(norm, dtype, features, what)
            yield rows_of(norm, dtype, 4096, "step")
        for features in (1024, 4096, 65536):
            yield rows_of("scale_norm", dtype, features)
        yield rows_of("rms_norm", dtype, 4096, "add")
        yield from channels_first(dtype)
    for norm in ("layer_norm", "rms_norm"):
        yield rows_of(norm, "float16", 4096)


def quick() -> Iterator[Work]:
    """One of each kind, and every length of rows once in float32 and once in bfloat16."""
    yield Work(Case("layer_norm", "float32", (64, 1024)), "call")
    for norm, dtype in (("layer_norm", "float32"), ("rms_norm", "bfloat16")):
        for features in FEATURES:
            yield rows_of(norm, dtype, features)._replace(compiled=features == 4096)
    for norm, dtype in (("layer_norm", "float32"), ("rms_norm", "bfloat16")):
        for what in ("dx", "gradients", "step"):
            yield rows_of(norm, dtype, 4096, what)
    yield rows_of("rms_norm", "bfloat16", 4096, "add")
    yield rows_of("scale_norm", "float32", 4096)
    yield next(channels_first("float32"))


def once(works: Iterator[Work]) -> list[Work]:
    """Without what comes again."""
    return list({str(work): work for work in works}.values())


def buffers(work: Work, cache_nbytes: int) -> int:
    """How many sets of arrays to rotate through, so that none is found in the cache, where that is what is timed."""
    return 2 if work.what == "call" else max(2, math.ceil(ROTATED * cache_nbytes / work.nbytes))
