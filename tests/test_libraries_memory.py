"""What is asked about the memory of arrays: the same answers from NumPy, torch and CuPy, and none from others."""

import ctypes
import warnings

import array_api_strict
import ml_dtypes
import numpy as np
import pytest
import torch

import anynorm
from anynorm._kernels.cpu.launch import machine
from anynorm._libraries import Memory, library_of, numpy_arrays
from anynorm._libraries.cupy_arrays import CuPy
from anynorm._libraries.numpy_arrays import NumPy
from anynorm._libraries.torch_tensors import Torch
from tests import strict_cupy

FROZEN = np.arange(6.0).reshape(2, 3)
FROZEN.flags.writeable = False
ARRAYS = {
    "0-d": np.zeros(()),
    "empty": np.zeros((2, 0)),
    "contiguous": np.zeros((2, 3), np.float32),
    "float16": np.zeros(3, np.float16),
    "bfloat16": np.zeros(3, ml_dtypes.bfloat16),
    "another byte order": np.zeros(3, ">f4"),
    "read-only": FROZEN,
    "every other": np.zeros((4, 6))[1::2, ::2],
    "backwards": np.zeros((4, 6))[::-1, ::-2],
    "transposed": np.zeros((4, 6)).T,
    "repeated": np.broadcast_to(np.zeros(3), (2, 3)),
    "unaligned": np.frombuffer(bytes(13), np.float32, 3, offset=1),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_addresses_of_numpy(kind, monkeypatch):
    array = ARRAYS[kind]
    assert NumPy.address(array) == array.ctypes.data
    monkeypatch.delattr(ctypes, "pythonapi")
    assert numpy_arrays._find_address()(array) == array.ctypes.data


def test_no_warning_where_numpy_warns_of_writing():
    x, row = np.broadcast_arrays(np.ones((2, 3)), np.zeros(3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert NumPy.address(x) == x.__array_interface__["data"][0]
        assert NumPy.address(row) == row.__array_interface__["data"][0]
        assert (anynorm.rms_norm(x, eps=0.0) == 1).all()


def same_array(library):
    """The function that turns a float32 array of NumPy's into one of a library, laid out alike."""
    if library is Torch:
        return torch.from_numpy
    return (lambda array: array) if library is NumPy else (lambda array: strict_cupy.ndarray(None, host=array))


@pytest.mark.parametrize("memory", [NumPy, Torch, CuPy])
@pytest.mark.parametrize(
    "view",
    [
        lambda a: a,
        lambda a: a[1:],
        lambda a: a[:, 1::2],
        lambda a: a.transpose(2, 0, 1),
        lambda a: a[:, :1],
        lambda a: a[:0],
        lambda a: np.broadcast_to(a[:, :1], a.shape),
    ],
    ids=["whole", "from the second on", "every other", "transposed", "an axis of one", "empty", "repeated"],
)
@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_where_elements_lie(memory, view):
    host = view(np.arange(24, dtype=np.float32).reshape(2, 4, 3))
    array = same_array(memory)(host)
    with strict_cupy.installed():
        assert memory.is_contiguous(array) == host.flags.c_contiguous
        made, copy = memory.empty_like(array), memory.contiguous(array)
        assert made.shape == copy.shape == host.shape
        assert memory.is_contiguous(made) or not memory.is_contiguous(array)
        assert memory.is_contiguous(copy)
        assert (copy is array) == memory.is_contiguous(array)
        if not host.size:
            return
        assert memory.address(array) == host.ctypes.data
        assert memory.strides(array) == host.strides
        extent = memory.extent(array)
        assert (extent.shape, extent.strides, extent.itemsize) == (host.shape, host.strides, 4)
        assert extent.ctypes.data == host.ctypes.data
        assert memory.address(made) != memory.address(array)
        assert np.array_equal(np.asarray(copy.get() if memory is CuPy else copy), host)


def test_strides_of_new_tensors():
    whole = torch.zeros(2, 3, 4)
    for tensor in (whole, whole[:, ::2], whole.transpose(0, 2), whole[:, :1].expand(2, 3, 4)):
        assert Torch.strides_of_new(tensor) == Torch.strides(Torch.empty_like(tensor))


def test_where_arrays_may_lie():
    of = {memory: (memory.on_cpu, memory.on_cuda) for memory in (NumPy, Torch, CuPy, Memory)}
    assert of == {NumPy: (True, False), Torch: (True, True), CuPy: (False, True), Memory: (False, False)}


def test_a_library_that_shows_no_memory():
    x = array_api_strict.ones((2, 3))
    memory = library_of(x).memory
    assert memory is Memory
    assert memory.extent(x) is None
    assert not memory.is_contiguous(x)
    assert not memory.are_apart(x, array_api_strict.ones((2, 3)))
    for missing in (memory.address, memory.strides, memory.contiguous, memory.empty_like, memory.ordinal):
        with pytest.raises(NotImplementedError):
            missing(x)
    refused = anynorm.explain(x).refused
    assert all("an array of array_api_strict" in refused[kernel] for kernel in ("cpu", "cuda"))


@pytest.mark.parametrize(
    ("memory", "nbytes", "is_asked"), [(Torch, 4 << 20, True), (Torch, (4 << 20) - 4, False), (NumPy, 4 << 20, False)]
)
def test_huge_pages_for_large_results(memory, nbytes, is_asked, monkeypatch):
    asked = []
    monkeypatch.setattr(machine, "_ask_for_huge_pages", lambda *of: asked.append(of))
    array = same_array(memory)(np.zeros(nbytes // 4, np.float32))
    made = machine.empty_like(memory, array)
    assert asked == ([(memory.address(made), nbytes)] if is_asked else [])


@pytest.mark.parametrize(
    ("address", "nbytes", "pages"),
    [
        (0, 2 << 20, (0, 2 << 20)),
        (1, 2 << 20, None),
        (1, (4 << 20) - 1, (2 << 20, 2 << 20)),
        ((2 << 20) + 1, (6 << 20) - 2, (4 << 20, 2 << 20)),
    ],
)
def test_whole_pages_are_asked_for(address, nbytes, pages, monkeypatch):
    asked = []
    monkeypatch.setattr(machine, "_madvise", lambda: lambda *of: asked.append(tuple(one.value or 0 for one in of)))
    machine._ask_for_huge_pages(address, nbytes)
    assert asked == ([] if pages is None else [(*pages, 14)])
