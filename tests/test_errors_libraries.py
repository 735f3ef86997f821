"""Arguments of two libraries: the words for them, and that what they say to pass is taken."""

import importlib

import numpy as np
import pytest

import anynorm
from tests.test_errors import WEIGHT, X, frame_of, refuses


def test_two_libraries():
    import torch

    x, weight = torch.ones(2, 3, 4), torch.ones(4)
    must = (
        "weight must be a NumPy array like x, got a float32 torch tensor of shape (4,); pass weight.numpy(force=True)"
    )
    refuses(TypeError, must, anynorm.layer_norm, X, weight)
    refuses(TypeError, "pass torch.asarray(weight)", anynorm.layer_norm, x, WEIGHT)
    refuses(TypeError, "pass torch.asarray(weight, dtype=x.dtype)", anynorm.layer_norm, x, [1.0, 1.0])
    refuses(TypeError, "pass torch.asarray(weight.to_numpy())", anynorm.layer_norm, x, frame_of("pandas"))
    refuses(TypeError, "pass torch.empty_like(x)", anynorm.layer_norm, x, out=X)


def arrays_of_four():
    import ml_dtypes
    import sparse
    import torch
    from dask import array as dask_array

    ones = np.ones(4, np.float32)
    return {
        "numpy": [ones, ones[::-1], ones.astype(">f4"), ones.astype(ml_dtypes.bfloat16)],
        "torch": [torch.ones(4), torch.nn.Parameter(torch.ones(4)), torch.ones(4, dtype=torch.bfloat16)],
        "sparse": [sparse.COO.from_numpy(ones)],
        "dask": [dask_array.ones(4, dtype=np.float32)],
    }


@pytest.mark.parametrize("library", ["numpy", "torch", "jax", "dask"])
def test_what_to_pass_for_an_array_of_another_library_works(library):
    """Word for word, also where one library does not read the arrays of the other as they are."""
    xp = {"jax": "jax.numpy", "dask": "dask.array"}.get(library, library)
    x = importlib.import_module(xp).asarray(np.ones((2, 4), np.float32))
    for weight in [one for other, ones in arrays_of_four().items() if other != library for one in ones]:
        if library in ("jax", "dask") and isinstance(weight, np.ndarray):
            continue  # which is taken as it is
        with pytest.raises(TypeError, match="weight must be a") as caught:
            anynorm.rms_norm(x, weight)
        do = str(caught.value).rpartition("; pass ")[2]
        names = {name: importlib.import_module(name.partition(".")[0]) for name in ("numpy", "torch", "jax", "dask")}
        y = anynorm.rms_norm(x, eval(do, names | {"weight": weight}))
        assert np.allclose(np.asarray(y), 1.0)
