"""Arrays of libraries that are not listed: what each says of itself counts, and not its type or a name."""

import array_api_strict
import numpy as np
import pytest

import anynorm
from tests.ducks import namespace_of


class Duck:
    """An array of whichever namespace it is told."""

    def __init__(self, values, namespace):
        self.values, self.namespace = values, namespace
        self.dtype, self.shape, self.ndim = values.dtype, values.shape, values.ndim

    def __array_namespace__(self, api_version=None):
        return self.namespace


def library_of(array):
    from anynorm._libraries import library_of

    return library_of(array)


@pytest.mark.parametrize("names", [("one", "other"), ("same", "same"), ("numpy", "torch")])
def test_each_array_is_asked_for_its_namespace(names):
    namespaces = [namespace_of(array_api_strict, name) for name in names]
    ducks = [Duck(np.ones((2, 3)), namespace) for namespace in namespaces]
    for duck in (*ducks, *ducks):
        assert library_of(duck).namespace is duck.namespace
    libraries = [library_of(duck) for duck in ducks]
    assert libraries[0] is not libraries[1]
    assert library_of(Duck(np.zeros(2), namespaces[0])) is libraries[0]
    x, weight = ducks[0], Duck(np.ones(3), namespaces[1])
    with pytest.raises(TypeError, match=r"weight must be an? .* array like x"):
        anynorm.layer_norm(x, weight)


def test_a_listed_library_is_known_by_type():
    for x in (np.ones(3), array_api_strict.ones(3)):
        assert library_of(x) is library_of(x)
        assert library_of(x).namespace is (np if isinstance(x, np.ndarray) else array_api_strict)
