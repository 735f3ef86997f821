"""Calls like one before, on CUDA tensors, by CPU tensors in their place: what torch is asked, and what comes of it."""

import contextlib
from unittest import mock

import numpy as np
import pytest
import torch

import anynorm
from anynorm._check import check
from anynorm._definition.norms import LAYER_NORM
from anynorm._kernels import fast_paths
from anynorm._kernels.cuda import repeat, run
from anynorm._libraries import library_of
from anynorm._libraries.torch_tensors import Torch
from tests.emulated import emulation, needs_compiler

X, OTHER = (np.random.default_rng(seed).standard_normal((4, 8)).astype("float32") for seed in range(2))
WEIGHT = np.linspace(-1, 1, 8, dtype="float32")


class OnCPU(Torch):
    """CPU tensors, whose device has the number -1, as if it were the current one of CUDA's."""

    @staticmethod
    def current_ordinal():
        return lambda: -1

    @staticmethod
    def current(tensor):
        return contextlib.nullcontext()

    @staticmethod
    def current_stream():
        return lambda ordinal: 0

    @staticmethod
    def stream(tensor):
        return 0


@pytest.fixture
def ask():
    """What torch is asked before a call is repeated."""
    found = repeat._by_torch(OnCPU).ask
    return lambda x, weight=None, bias=None, out=None: found("layer_norm", x, weight, bias, 1e-5, 0.0, out)


def test_tensors_have_keys(ask):
    x, weight = torch.zeros(8, 8), torch.zeros(8)
    key, *places = ask(x, weight, None, x)
    assert places == [x.data_ptr(), weight.data_ptr(), 0, x.data_ptr()]
    assert ask(torch.ones(8, 8), weight, None, x)[0] == key
    halves = weight.half(), weight.bfloat16()
    others = [ask(x), ask(x.T), ask(x[:4]), ask(x.double()), *[ask(x, None, None, out) for out in (x, x.T, x.int())]]
    others += [given for one in (weight, *halves) for given in (ask(x, one), ask(x, None, one))]
    assert len({key, *(other[0] for other in others)}) == 1 + len(others) == 14


def test_what_torch_follows_goes_the_full_way(ask):
    x, weight = torch.zeros(4, 8), torch.zeros(8)
    wanted = torch.nn.Parameter(weight.clone())
    assert ask(x, wanted) is None
    assert ask(wanted[None]) is None
    with torch.no_grad():
        assert ask(x, wanted)[0] == ask(x, weight)[0]
        assert ask(x, weight, None, torch.nn.Parameter(x.clone())) is None
    for odd in (torch._neg_view(weight), weight.to("meta"), torch._efficientzerotensor(8), weight.to_sparse(), 1):
        assert ask(x, odd) is None
        assert ask(x, None, odd) is None
    assert ask(torch.nested.nested_tensor([weight, weight], layout=torch.jagged)) is None
    assert torch.func.vmap(lambda row: torch.tensor(ask(x) is None))(x).all()
    with torch.autograd.forward_ad.dual_level():
        assert ask(x) is None
    with torch.utils._python_dispatch.TorchDispatchMode():
        assert ask(x) is None
    with torch.profiler.profile():
        assert ask(x) is None
    assert ask(x) is not None


def again(*given):
    return repeat._by_library["torch"].run(given)


@needs_compiler
def test_tensors_are_normalized_as_before(monkeypatch):
    with emulation(), mock.patch.dict(repeat._by_library, clear=True), torch.no_grad():
        monkeypatch.setattr(library_of(torch.zeros(1)), "memory", OnCPU)
        x, other, weight = map(torch.from_numpy, (X, OTHER, WEIGHT))
        for out in (None, torch.zeros(4, 8)):
            first = run.run(check(LAYER_NORM, x, weight, None, -1, 1e-5, out=out)).clone()
            given = weight, None, -1, 1e-5, 0.0, out, None
            version = None if out is None else out._version
            assert not torch.equal(again(LAYER_NORM, other, None, *given), first)
            y = again(LAYER_NORM, x, None, *given)
            assert torch.equal(y, first)
            assert out is None or (y is out and out._version == version + 2)
            assert again(LAYER_NORM, x, None, weight, None, -1, 0.5, 0.0, out, None) is None
            assert again(LAYER_NORM, x, x, *given) is None
            assert again(LAYER_NORM, x, None, weight, None, 0, 1e-5, 0.0, out, None) is None
        assert set(repeat._fast_paths) == {torch.Tensor}
        repeat.forget()


def test_the_stream_of_torch(monkeypatch):
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda ordinal: 70 + ordinal, raising=False)
    assert Torch.current_stream()(3) == 73
    monkeypatch.delattr(torch._C, "_cuda_getCurrentRawStream")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda ordinal: mock.Mock(cuda_stream=80 + ordinal))
    assert Torch.current_stream()(3) == 83


def test_tensors_on_the_cpu_are_no_matter_of_cuda(ask):
    x = torch.randn(4, 8)
    expected = anynorm.layer_norm(x)
    fast_path = repeat._by_torch(OnCPU).run
    fast_paths.add(torch.Tensor, fast_path)
    try:
        assert torch.equal(anynorm.layer_norm(x), expected)
        assert fast_path((LAYER_NORM, x, None, None, None, -1, 1e-5, 0.0, None, None)) is None
        traced = torch.compile(anynorm.layer_norm, fullgraph=True, backend="eager")(x)
    finally:
        fast_paths.remove(torch.Tensor, fast_path)
    torch.testing.assert_close(traced, expected)
