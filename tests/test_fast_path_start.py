"""The program of the fast path is compiled for the second call, so that the first one ever waits for one kernel."""

import threading

import pytest

from anynorm._kernels import fast_paths
from anynorm._kernels.cpu.fast_path import offers
from tests.backends import ALL, needs_llvmlite
from tests.processes import in_threads, script
from tests.test_fast_path_torch import HAS_EXCHANGE

pytestmark = needs_llvmlite

CODE = """
import os
import numpy, anynorm
def show():
    print(*["on-disk", *sorted(one.split("-")[0] for one in os.listdir(os.environ["ANYNORM_CACHE_DIR"]))], sep=",")
dtype = os.environ["DTYPE"]
if dtype == "bfloat16":
    import ml_dtypes
x = numpy.linspace(-3, 5, 24 * 40).reshape(24, 40).astype(dtype)
if "OF_TORCH" in os.environ:
    import torch
    x = torch.from_numpy(x)
    if "BACK" in os.environ:
        x.requires_grad_()
for _ in range(3):
    show()
    y = anynorm.layer_norm(x, x[0])
    if "BACK" in os.environ:
        y.sum().backward()
show()
"""


def files(tmp_path, dtype, **environment):
    """The names of what is on disk before the first call of a process, and after each of three."""
    place = tmp_path / "kernels"
    place.mkdir(mode=0o700)
    lines = script(CODE, DTYPE=dtype, ANYNORM_CACHE_DIR=str(place), ANYNORM_KERNEL="", **environment)
    return [line.split(",")[1:] for line in lines]


@pytest.mark.parametrize("dtype", ALL)
def test_the_first_call_compiles_its_kernel_alone(dtype, tmp_path):
    before, first, second, third = files(tmp_path, dtype)
    assert before == []
    assert len(first) == 1
    assert first[0].startswith("float64_" if dtype == "float64" else "rows_")
    assert second == third == ["fast_path_array", *first]


def test_threads_that_make_the_second_call_at_once():
    """The fast path is made once."""

    class Kind:
        pass

    made, begin, found = [], threading.Barrier(4), []

    def make():
        made.append(lambda given: given)
        return made[-1]

    offers._add(Kind, make)
    (first,) = fast_paths._by_type[Kind]

    def call(number):
        begin.wait()
        found.append(first(number))

    in_threads(call, range(4))
    assert sorted(found) == [0, 1, 2, 3]
    assert fast_paths._by_type.pop(Kind) == tuple(made)
    assert len(made) == 1


@pytest.mark.skipif(not HAS_EXCHANGE, reason="torch has no DLPack exchange interface, so tensors take the slow path")
def test_nor_does_that_of_a_tensor_compile_more(tmp_path):
    _, first, second, _ = files(tmp_path, "float32", OF_TORCH="1")
    assert len(first) == 1
    assert second == ["fast_path_tensor", *first]


def test_nor_does_the_first_derivative(tmp_path):
    _, first, _, _ = files(tmp_path, "float32", OF_TORCH="1", BACK="1")
    assert [one.split("_")[0] for one in first] == ["derivative", "rows"]
