"""Normalizer of arrays of other libraries, with scikit-learn's array_api_dispatch."""

import array_api_strict
import numpy as np
import pytest
import sklearn
import torch

import anynorm
from anynorm.sklearn import Normalizer
from tests.test_sklearn import NORMS, X


@pytest.fixture
def dispatch():
    """Arrays of other libraries are taken; `tests/__init__.py` sets the variable that scikit-learn wants for this."""
    with sklearn.config_context(array_api_dispatch=True):
        yield


@pytest.mark.parametrize("norm", NORMS)
def test_arrays_of_other_libraries_come_out_as_they_went_in(dispatch, norm):
    strict = array_api_strict.asarray(X, device=array_api_strict.Device("device1"))
    for x in (torch.from_numpy(X), torch.from_numpy(X).bfloat16(), strict, X):
        y = Normalizer(norm).fit_transform(x)
        assert type(y) is type(x)
        assert (y.dtype, y.device) == (x.dtype, x.device)
        like = getattr(anynorm, NORMS[norm])(x)
        assert array_api_strict.all(y == like) if x is strict else (y == like).all()
    assert Normalizer(norm).transform(torch.tensor([[3, 4]])).dtype == torch.float64


def test_what_is_wrong_with_arrays_of_other_libraries(dispatch):
    x = torch.from_numpy(X.copy())
    x[1, 1] = float("nan")
    strict = array_api_strict.asarray(X, device=array_api_strict.Device("device1"))
    for fitted, wrong, said in (
        (Normalizer(), x, "Input X contains NaN"),
        (Normalizer().fit(x[2:]), X, r"same device as X of fit\(\), torch on cpu, got numpy on cpu"),
        (Normalizer().fit(X), strict, "numpy on cpu, got array_api_strict on"),
    ):
        with pytest.raises(ValueError, match=said):
            fitted.transform(wrong)
    with sklearn.config_context(array_api_dispatch=False):
        fitted = Normalizer().fit([[1.0, 2.0]])
    assert fitted.transform(np.ones((1, 2))).shape == (1, 2)


@pytest.mark.filterwarnings("ignore:torch.asarray:UserWarning")  # of scikit-learn, given a tensor with a gradient
def test_tensors_in_place_where_they_can_be_written(dispatch):
    expected = anynorm.scale_norm(torch.from_numpy(X))
    x, leaf = torch.from_numpy(X.copy()), torch.from_numpy(X).requires_grad_()
    assert Normalizer(copy=False).transform(x) is x
    assert torch.equal(x, expected)
    assert torch.equal(Normalizer(copy=False).transform(leaf), expected)
    one = torch.from_numpy(X[:1].copy())
    assert torch.equal(Normalizer(copy=False).transform(one.expand(3, 7)), expected[:1].expand(3, 7))
    assert torch.equal(one, torch.from_numpy(X[:1]))
