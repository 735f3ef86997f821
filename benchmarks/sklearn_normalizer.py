"""Time anynorm.sklearn.Normalizer beside scikit-learn's, each in a process of its own.

    python -m benchmarks.sklearn_normalizer --threads all -o normalizer.json

100000 x 384 numbers, as embeddings are, and the same with one in twenty left as CSR and CSC. A ratio is the median over
rounds of scikit-learn's time by anynorm's. Of dense float32 it is to be 3 or more; the last lines say whether it is. A
result is checked against the formula in float64 before it is timed.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from anynorm._bench.cases import Case, Contest
from anynorm._bench.rivals import Rival, numpy_copy
from benchmarks.cpu import Rounds, compete, parse

LEAST_RATIO = 3.0
SHAPE, QUICK_SHAPE = (100_000, 384), (1000, 384)
FORMS = ("dense", "csr_array", "csc_array")
METHODS = ("transform", "fit_transform")
LARGEST_LEFT_OUT = 1.645  # of 20 numbers of a normal distribution, 19 are smaller


def normalizer(case: Case, threads: int, x: Any, *_: Any, ours: bool, method: str, form: str) -> Callable[[], Any]:
    if ours:
        from anynorm.sklearn import Normalizer
    else:
        from sklearn.preprocessing import Normalizer
    run = getattr(Normalizer().fit(x), method)
    if form == "dense":
        return lambda: run(x)
    from scipy import sparse

    x[x < LARGEST_LEFT_OUT] = 0  # in x itself, with which the result is compared
    matrix = getattr(sparse, form)(x)
    return lambda: run(matrix).toarray  # called where the result is checked, and not where it is timed


def named(who: str, method: str, form: str) -> str:
    return f"{who} {method} {form}"


RIVALS = {"copy": Rival(numpy_copy, copies=True)} | {
    named(who, method, form): Rival(
        partial(normalizer, ours=who == "anynorm", method=method, form=form), packages=("sklearn",)
    )
    for who in ("anynorm", "scikit-learn")
    for form in FORMS
    for method in (METHODS if form == "dense" else METHODS[:1])
}


def contests(quick: bool = False) -> list[Contest]:
    """Every contest; anynorm is the baseline."""
    found = []
    for form in FORMS:
        for dtype in ("float32", "float64"):
            for method in METHODS if form == "dense" else METHODS[:1]:
                case = Case("scale_norm", dtype, QUICK_SHAPE if quick else SHAPE)
                theirs = named("scikit-learn", method, form)
                beside = ("copy",) if form == "dense" else ()
                found.append(Contest(f"{method} {form}", case, named("anynorm", method, form), (theirs, *beside)))
    return found


def main() -> None:
    arguments = parse(__doc__)
    rounds = Rounds(3, 7, 0.5) if arguments.quick else Rounds(7, 25, arguments.seconds)
    document = compete(contests(arguments.quick), RIVALS, arguments, rounds)
    print()
    for record in document["contests"]:
        name, case = record["contest"], record["case"]
        ratio = record["results"].get(f"scikit-learn {name}", {}).get("ratio")
        if name.endswith("dense") and case["dtype"] == "float32" and ratio is not None:
            met = "as promised" if ratio >= LEAST_RATIO else f"less than the {LEAST_RATIO:g} that is promised"
            print(f"{name}: {ratio:.2f} times faster than scikit-learn's, {met}")


if __name__ == "__main__":
    main()
