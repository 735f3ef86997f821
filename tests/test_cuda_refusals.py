"""The kernel "cuda" says why it does not take a call."""

import numpy as np
import pytest
import torch

import anynorm
from anynorm._kernels import cuda
from tests import strict_cupy
from tests.emulated import normalize

X = np.ones((2, 4), np.float32)


def test_arrays_elsewhere_are_refused(monkeypatch):
    monkeypatch.setattr(cuda, "_MISSING", None)
    assert "an array of numpy" in anynorm.explain(X).refused["cuda"]
    assert "x is on cpu" in anynorm.explain(torch.ones(2, 4)).refused["cuda"]
    with anynorm.use_kernel("cuda"), pytest.raises(RuntimeError, match="cuda was asked for and refuses this call"):
        anynorm.layer_norm(X)
    _, pullback = anynorm.layer_norm_vjp(X)
    with anynorm.use_kernel("cuda"), pytest.raises(RuntimeError, match="an array of numpy"):
        pullback(X)


def test_what_is_missing_is_said(monkeypatch):
    monkeypatch.setattr(cuda, "_MISSING", cuda._ADVICE)
    with strict_cupy.installed() as cupy:
        assert anynorm.explain(cupy.asarray(X)).refused["cuda"] == cuda._ADVICE
    # No package helps an array that lies elsewhere.
    assert "an array of numpy" in anynorm.explain(X).refused["cuda"]
    with anynorm.use_kernel("cuda"), pytest.raises(RuntimeError, match="an array of numpy"):
        anynorm.layer_norm(X)


def test_layouts_that_are_no_rows_are_said_to_be_so():
    x = np.ones((2, 3, 4, 5), np.float32)
    with pytest.raises(RuntimeError, match="no single stride leads through the normalized axes; pass contiguous ones"):
        normalize("layer_norm", x, axis=(1, 3))
