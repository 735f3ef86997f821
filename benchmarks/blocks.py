"""How many elements of a NumPy array the definition should take at a time.

    python -m benchmarks.blocks

Times layer_norm of 4096 x 1024 numbers for several sizes of block, beside the plain NumPy expression; medians of
interleaved rounds.
"""

import statistics
import time

import numpy as np

import anynorm
from anynorm._bench.cases import Case
from anynorm._bench.rivals import numpy_expression
from anynorm._kernels import definition

SIZES = [1 << power for power in (13, 14, 15, 16, 17, 18, 20, 24)]
ROUNDS = 7


def main() -> None:
    for dtype in ("float16", "float32", "float64"):
        x = np.random.default_rng(0).standard_normal((4096, 1024)).astype(dtype)
        weight, bias = np.random.default_rng(1).standard_normal((2, 1024)).astype(dtype)
        plain = numpy_expression(Case("layer_norm", dtype, x.shape), 1, x, weight, bias)
        taken: dict[str, list[float]] = {}
        for _ in range(ROUNDS):
            for size in [0, *SIZES]:
                definition._BLOCK_ELEMENTS = size
                start = time.perf_counter()
                anynorm.layer_norm(x, weight, bias) if size else plain()
                taken.setdefault(f"blocks of {size}" if size else "plain NumPy", []).append(time.perf_counter() - start)
        for name, values in taken.items():
            print(f"{dtype:9}{name:20}{statistics.median(values) * 1e3:8.1f} ms")


if __name__ == "__main__":
    main()
