"""The benchmark of weights that broadcast: each case runs, and what it times is what it says."""

import pytest

from benchmarks import broadcast


@pytest.mark.parametrize("case", broadcast.CASES, ids=lambda case: case.name)
def test_weights_broadcast_and_have_many_rows_where_a_bound_is_promised(case):
    assert len(case.weight) == len(case.shape)
    assert all(own in (1, length) for own, length in zip(case.weight, case.shape, strict=True))
    free = [i for i in range(len(case.shape)) if i - len(case.shape) not in case.axes and i not in case.axes]
    rows = weights = 1
    for axis in free:
        rows, weights = rows * case.shape[axis], weights * case.weight[axis]
    assert (rows >= 16 * weights) or case.bound is None


def test_a_case_is_measured():
    small = broadcast.Case("small", (20, 2, 16), (1, 2, 16))
    found = list(broadcast.measured(small, "float32", 0.0))
    assert [what for what, *_ in found] == ["norm", "derivative"]
    assert all(us > 0 and ratio > 0 for _, us, ratio, _ in found)


def test_medians_take_turns():
    seen = []
    broadcast.medians([lambda: seen.append("a"), lambda: seen.append("b")], 0.0)
    assert seen == ["a", "b"] * 5
