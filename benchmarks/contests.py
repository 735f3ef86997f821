"""What the CPU benchmark compares: norms, dtypes, shapes, and who is timed against whom."""

from collections.abc import Iterator

from anynorm._bench.cases import Case, Contest

ROWS = (1, 64, 512, 4096, 16384)
FEATURES = (64, 768, 1024, 4096, 8192)
GRID = (
    *((rows, features) for rows in ROWS for features in FEATURES),
    *((512, features) for features in (127, 1000, 5000)),
)
CHANNELS_FIRST = ((32, 256, 56, 56), (8, 64, 128, 128))
QUICK_GRID = ((1, 768), (512, 1000), (4096, 1024))
QUICK_CHANNELS_FIRST = ((8, 64, 128, 128),)


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
