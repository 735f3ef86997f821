"""What the CPU benchmark compares: norms, dtypes, shapes, and who is timed against whom.

A contest is one case for one anynorm call and those rivals that do the same work: fresh results against fresh results,
results in a given buffer against results in a given buffer, torch tensors against torch tensors.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

ROWS = (1, 64, 512, 4096, 16384)
FEATURES = (64, 768, 1024, 4096, 8192)
GRID = (
    *((rows, features) for rows in ROWS for features in FEATURES),
    *((512, features) for features in (127, 1000, 5000)),
)
CHANNELS_FIRST = ((32, 256, 56, 56), (8, 64, 128, 128))
QUICK_GRID = ((1, 768), (512, 1000), (4096, 1024))
QUICK_CHANNELS_FIRST = ((8, 64, 128, 128),)

EPS = {"layer_norm": 1e-5, "rms_norm": 1e-6, "scale_norm": 1e-12}
NBYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
LAYERS = 12  # of the model whose gradient is taken


class Case(NamedTuple):
    """One norm of one array; weight, and for layer_norm bias, have the array's dtype.

    ``of`` is "y", "dx" for the norm and its derivative together, or "model" for those of twelve layers of it.
    """

    norm: str
    dtype: str
    shape: tuple[int, ...]
    axis: int = -1
    of: str = "y"

    @property
    def features(self) -> int:
        return self.shape[self.axis]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * NBYTES[self.dtype]

    @property
    def eps(self) -> float:
        return EPS[self.norm]

    def __str__(self) -> str:
        axis = "" if self.axis == -1 else f" axis={self.axis}"
        of = {"y": "", "dx": " forward and backward", "model": f" {LAYERS} layers forward and backward"}[self.of]
        return f"{self.norm} {self.dtype} {'x'.join(map(str, self.shape))}{axis}{of}"


class Contest(NamedTuple):
    """An anynorm call, the baseline, and the rivals timed beside it."""

    name: str
    case: Case
    baseline: str
    rivals: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.case} [{self.name}]"


def contests(quick: bool = False) -> Iterator[Contest]:
    """Every contest, the one-row calls first."""
    for norm in ("layer_norm", "rms_norm"):
        yield Contest("one row", Case(norm, "float32", (1, 768)), "anynorm", ("anynorm on torch", "torch"))
        for of in ("y", "dx"):
            yield Contest("module", Case(norm, "float32", (1, 768), of=of), "anynorm module", ("torch module",))
    for dtype in ("float32", "float16", "bfloat16"):
        for norm in ("layer_norm", "rms_norm", "scale_norm"):
            if norm == "scale_norm" and dtype != "float32":
                continue
            for shape in QUICK_GRID if quick else GRID:
                yield from _of_rows(Case(norm, dtype, shape))
    for norm in ("layer_norm", "rms_norm"):
        for shape in QUICK_GRID if quick else GRID:
            yield from _trained(Case(norm, "float32", shape, of="dx"))
            yield Contest("compiled", Case(norm, "float32", shape), "anynorm compiled", ("torch compiled",))
    for shape in QUICK_CHANNELS_FIRST if quick else CHANNELS_FIRST:
        yield from _channels_first(Case("layer_norm", "float32", shape, axis=1))


def _of_rows(case: Case) -> Iterator[Contest]:
    if case.dtype != "bfloat16":
        onnx = () if case.norm == "scale_norm" else ("ONNX Runtime",)
        yield Contest("out=", case, "anynorm out=", (*onnx, "copy", "copy by torch"))
    if case.dtype == "float32":
        other = "scikit-learn" if case.norm == "scale_norm" else "JAX"
        yield Contest("fresh", case, "anynorm", (other, "NumPy"))
    yield Contest("torch", case, "anynorm on torch", ("torch",))
    yield Contest("torch, huge pages", case, "anynorm on torch, huge pages", ("torch, huge pages",))


def _trained(case: Case) -> Iterator[Contest]:
    for pages in ("", ", huge pages"):
        yield Contest(
            "torch" + pages, case, "anynorm module" + pages, ("torch module" + pages, "torch compiled" + pages)
        )
    yield Contest("compiled", case, "anynorm compiled", ("torch compiled",))


def _channels_first(case: Case) -> Iterator[Contest]:
    yield Contest("out=", case, "anynorm out=", ("copy", "copy by torch"))
    yield Contest("torch", case, "anynorm on torch", ("torch", "torch contiguous"))
    rivals = ("torch, huge pages", "torch contiguous, huge pages")
    yield Contest("torch, huge pages", case, "anynorm on torch, huge pages", rivals)
