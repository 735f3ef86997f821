"""Values that are wrong for an argument, by what they are: data for the tests of messages."""

import importlib
import types

import numpy as np


def of_module(module, name):
    """An object of a class that stands in for one of a library; only the names count."""
    return type(name, (), {"__module__": module})()


def raises(*_):
    raise RuntimeError("the inner error")


def hostile(**attributes):
    """An object whose attributes do what they like."""
    return type("Hostile", (), attributes)()


def generator():
    yield 1.0


FLOAT32 = np.dtype("float32")


def not_arrays():
    """What is an array of no library."""
    import scipy.sparse

    return {
        "list": [1.0, 1.0],
        "long list": [1.0] * 1_000_000,
        "list of arrays": [np.ones(3), np.ones(3)],
        "tuple": (1.0, 2.0),
        "str": "text",
        "str with a line": "a\n\x1b[31mb" * 100,
        "dict": {"a": 1.0},
        "generator": generator(),
        "range": range(3),
        "set": {1.0},
        "bytes": b"abc",
        "object": object(),
        "class": np.ndarray,
        "module": np,
        "function": np.ones,
        "masked array": np.ma.masked_array([1.0, 2.0], [True, False]),
        "matrix": np.ones((2, 2)).view(np.matrix),
        "recarray": np.ones(2).view(np.recarray),
        "pandas DataFrame": of_module("pandas.core.frame", "DataFrame"),
        "pandas Series": of_module("pandas.core.series", "Series"),
        "polars DataFrame": of_module("polars.dataframe", "DataFrame"),
        "pyarrow Array": of_module("pyarrow.lib", "DoubleArray"),
        "xarray DataArray": of_module("xarray.core", "DataArray"),
        "flax Param": of_module("flax.nnx.variablelib", "Param"),
        "scipy sparse": scipy.sparse.eye(3, format="csr"),
        "torch.fx Proxy": of_module("torch.fx.proxy", "Proxy"),
        "namespace": types.SimpleNamespace(shape=(3,)),
        "shape raises": hostile(
            shape=property(raises), dtype=FLOAT32, __array_namespace__=lambda self: __import__("array_api_strict")
        ),
        "dtype raises": hostile(shape=(3,), dtype=property(raises), __array_namespace__=lambda self: np),
        "dtype is a str": hostile(
            shape=(3,), dtype="float32", __array_namespace__=lambda self: __import__("array_api_strict")
        ),
        "dtype has no hash": hostile(shape=(3,), dtype=[], __array_namespace__=lambda self: np),
        "namespace raises": hostile(shape=(3,), dtype=FLOAT32, __array_namespace__=raises),
        "namespace is None": hostile(shape=(3,), dtype=FLOAT32, __array_namespace__=lambda self: None),
        "another's namespace": hostile(shape=(3,), dtype=FLOAT32, __array_namespace__=lambda self: np),
        "every attribute": hostile(__getattr__=lambda self, name: self, __call__=lambda self, *_: self),
    }


def numbers():
    """What is a number, or would be one by itself, where an array is wanted."""
    return {
        "float": 1.0,
        "int": 3,
        "complex": 1j,
        "bool": True,
        "NumPy scalar": np.float32(3),
        "NumPy bool": np.bool(True),
        "huge int": 10**5000,
    }


def wrong_dtypes(library):
    """Arrays of shape (3,) of dtypes that are not computed with."""
    if library != "numpy":
        xp = importlib.import_module(library)
        return {name: xp.zeros(3, dtype=getattr(xp, name)) for name in ("int32", "bool", "complex64", "uint8")}
    dtypes = {
        "int": "i8", "uint": "u1", "bool": "?", "complex": "c16", "object": "O", "text": "U3", "date": "M8[s]",
        "structured": [("a", "f4"), ("b", "f4")], "two bytes": "V2",
    }  # fmt: skip
    made = {name: np.zeros(3, dtype) for name, dtype in dtypes.items()}
    if np.dtype(np.longdouble) != np.float64:
        made["long double"] = np.zeros(3, np.longdouble)
    return made


def not_real():
    """What is no real number."""
    import torch

    return {
        "None": None,
        "str": "1e-5",
        "bool": True,
        "NumPy bool": np.bool(True),
        "complex": 1j,
        "list": [1.0],
        "array": np.ones(1),
        "several": np.ones(3),
        "0-d array": np.ones(()),
        "tensor": torch.ones(()),
        "object": object(),
        "hostile": hostile(__float__=raises, __getattr__=lambda self, name: self),
    }


def not_finite():
    """Numbers that are no finite ones."""
    return {"nan": float("nan"), "inf": float("inf"), "huge": 10**5000, "NumPy nan": np.float32("nan")}


def not_integers():
    """What is no integer, nor a tuple of those."""
    import torch

    return {
        "None": None,
        "float": 1.0,
        "NumPy float": np.float64(1),
        "str": "1",
        "long str": "1" * 1_000_000,
        "bool": True,
        "NumPy bool": np.bool(True),
        "tensor of a bool": torch.tensor(True),
        "tuple": (0, None),
        "list": [0, 1.5],
        "tuple of a bool": (0, False),
        "set": {0},
        "array": np.asarray([0, 1]),
        "generator": generator(),
        "object": object(),
        "hostile": hostile(__index__=raises),
    }
