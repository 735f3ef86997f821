"""What `anynorm bench` times: which contests, of which libraries, and for how long."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from anynorm._bench.cases import Case, Contest
from anynorm._bench.memory import resident
from anynorm._bench.rivals import RIVALS, Rival
from anynorm._bench.runner import Rounds

LIBRARIES = {
    "numpy": ("NumPy expression",),
    "torch": ("anynorm on torch", "torch"),
    "jax": ("anynorm on JAX", "JAX"),
    "onnxruntime": ("ONNX Runtime",),
    "scikit-learn": ("scikit-learn",),
}
OURS, OUT, COPIES = "anynorm", "anynorm out=", ("copy", "streaming copy")
# The call of anynorm that does the same work as a rival: of the same library, into a buffer that is there or not.
COUNTERPARTS = {
    "NumPy expression": OURS, "torch": "anynorm on torch", "JAX": "anynorm on JAX", "ONNX Runtime": OUT,
    "scikit-learn": OURS,
}  # fmt: skip
NAMED = {"NumPy expression": "NumPy"}  # whose name among all rivals is another

SIZES = ((64, 768), (1024, 768), (4096, 1024), (16384, 1024))
QUICK_SIZES = ((512, 768), (4096, 1024))
SECONDS, QUICK_SECONDS = 80.0, 20.0  # of an idle machine; a busy one takes longer for the least rounds
_TIMED = 0.5  # of the time of a contest; the rest goes to the start of processes, inputs and checks
LEAST_ROUNDS, MOST_ROUNDS = 3, 25


def rivals() -> dict[str, Rival]:
    """Those of this command, whose memory is looked at too."""
    names = [OURS, OUT, *COPIES, *(name for names in LIBRARIES.values() for name in names)]
    return {name: RIVALS[NAMED.get(name, name)]._replace(temporaries=resident) for name in names}


def contests(
    norms: Sequence[str], dtypes: Sequence[str], shapes: Sequence[tuple[int, int]], libraries: Sequence[str]
) -> list[Contest]:
    """A contest for each norm, dtype and shape, the smallest arrays first."""
    found = []
    for dtype in dtypes:
        for shape in sorted(shapes, key=math.prod):
            for norm in norms:
                names = [name for library in libraries for name in LIBRARIES[library]]
                names = [OUT, *COPIES, *(name for name in names if not left_out(name, norm, dtype))]
                found.append(Contest("bench", Case(norm, dtype, shape), OURS, tuple(names)))
    return found


def left_out(name: str, norm: str, dtype: str) -> str | None:
    """Why a rival does not take part in a contest, or None."""
    if name == "scikit-learn" and norm != "scale_norm":
        return "which has no such norm"
    if name == "ONNX Runtime" and norm == "scale_norm":
        return "which has no operator for scale_norm"
    if name in ("scikit-learn", "ONNX Runtime", "NumPy expression") and dtype == "bfloat16":
        return "which takes no bfloat16"
    if name == "scikit-learn" and dtype == "float16":
        return "which computes float16 as float64"
    if name in LIBRARIES["jax"] and dtype == "float64":
        return "which has no float64 unless that is switched on for the whole process"
    return None


def reasons(norms: Sequence[str], dtypes: Sequence[str], libraries: Sequence[str]) -> dict[str, str]:
    """Map what is left out of each contest that could be to the reason, for people."""
    found = {}
    for name in (name for library in libraries for name in LIBRARIES[library]):
        why = [left_out(name, norm, dtype) for norm in norms for dtype in dtypes]
        if why and all(why):
            found[name] = str(why[0])
    return found


@dataclass
class Budget:
    """Seconds that all contests share; a contest gets its part of those that are left."""

    seconds: float
    start: float

    def rounds(self, left: int) -> Rounds:
        """How long the next contest may be timed, of so many that are left with it."""
        remaining = self.start + self.seconds - time.perf_counter()
        return Rounds(LEAST_ROUNDS, MOST_ROUNDS, max(0.0, remaining / left * _TIMED))
