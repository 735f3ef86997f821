"""Arrays that wrap another library's and compute in its namespace, and namespaces that lack something."""

import types

import numpy as np


class Duck(np.lib.mixins.NDArrayOperatorsMixin):
    """A duck array of NumPy's: NEP 13 and 18, no flags, no strides, no address."""

    def __init__(self, values):
        self.values = values

    dtype = property(lambda self: self.values.dtype)
    shape = property(lambda self: self.values.shape)

    def __getitem__(self, index):
        return type(self)(self.values[index])

    def __array_namespace__(self, api_version=None):
        return np

    def __array_ufunc__(self, ufunc, method, *given, **options):
        return self._call(getattr(ufunc, method), given, options)

    def __array_function__(self, function, kinds, given, options):
        return self._call(function, given, options)

    def _call(self, function, given, options):
        """Call a function with what is held, and hold its result."""
        result = function(*map(self._opened, given), **{name: self._opened(one) for name, one in options.items()})
        return type(self)(result) if isinstance(result, (np.ndarray, np.generic)) else result

    def _opened(self, value):
        return value.values if isinstance(value, Duck) else value


def namespace_of(module, name, keep=None, **more):
    """A namespace that has some names of a module's, or all, as an object of its own."""
    found = {key: value for key, value in vars(module).items() if keep is None or key in keep}
    return types.SimpleNamespace(**found | {"__name__": name} | more)
