"""The benchmark beside scikit-learn: every rival is there, and right."""

import pytest

from anynorm._bench import inputs
from anynorm._bench.cases import Case
from benchmarks.sklearn_normalizer import RIVALS, contests


@pytest.mark.parametrize("name", [name for name in RIVALS if name != "copy"])
def test_every_rival_is_right(name):
    case = Case("scale_norm", "float32", (20, 384))
    given = inputs.make_inputs(case, "numpy")
    result = RIVALS[name].make(case, 1, *given)()
    assert callable(result) == ("dense" not in name)  # of a sparse matrix, what makes it dense
    assert inputs.largest_error(case, *given, result() if callable(result) else result) <= inputs.TOLERANCE["float32"]


def test_every_contest_has_its_rivals():
    named = {name for contest in contests() for name in (contest.baseline, *contest.rivals)}
    assert named == set(RIVALS)
