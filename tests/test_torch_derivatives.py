"""Derivatives of torch tensors of first and second order against exact ones, of all kinds of rows side by side."""

import numpy as np
import pytest
import torch
from torch.func import grad, jvp, vmap

import anynorm
from tests.backends import KERNELS, TORCH, thorough_but
from tests.derivatives import EPS, NORMS, check, exact_matrices, exactly, given, matrices

# Torch compiles derivatives of its own by what it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


def derivatives(norm, eps, x, weight, dy, tangent):
    """What reference.py states exactly, by each way that torch has to it."""

    def call(x, weight=weight):
        return getattr(anynorm, norm)(x, weight, eps=eps)

    def loss(x, weight=weight, dy=dy):
        return (call(x, weight) * dy).sum()

    held = [one.clone().requires_grad_() for one in (x, weight)]
    first = torch.autograd.grad(call(*held), held, dy, create_graph=True)
    stated = getattr(anynorm, f"{norm}_vjp")(x, weight, eps=eps)[1](dy)
    return {
        "gradient": {
            "autograd": first[0],
            "stated": stated[0],
            "grad": grad(loss)(x),
            "vmap": vmap(grad(loss), (0, None, 0))(x, weight, dy),
        },
        "weight": {"autograd": first[1], "stated": stated[1]},
        "jvp": {"jvp": jvp(call, (x,), (tangent,))[1]},
        "second": {
            "autograd": torch.autograd.grad(first[0], held[0], tangent)[0],
            "jvp of grad": jvp(grad(loss), (x,), (tangent,))[1],
            "grad of grad": grad(lambda x: (grad(loss)(x) * tangent).sum())(x),
        },
    }


def is_far_below(x):
    """Which rows are not of zeros, but around 1e-200."""
    size = np.abs(x.astype(np.float64)).max(1)
    return (size > 0.0) & (size < 1e-100)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", thorough_but("float32", "float64", of=TORCH.dtypes))
@pytest.mark.parametrize("eps", thorough_but("default", of=["default", 1.0, 0.0]))
@pytest.mark.parametrize("norm", NORMS)
def test_every_derivative_of_all_kinds_of_rows(norm, eps, dtype, kernel):
    values, eps = given(norm, dtype), EPS[norm] if eps == "default" else eps
    if eps == 0.0:  # torch multiplies the derivative of such a row's factor by its unit before it does so by x
        values = (*(one[~is_far_below(values[0])] if one.ndim == 2 else one for one in values),)
    tensors = [TORCH.make(one) for one in values]
    with anynorm.use_kernel(None if kernel == "cpu" else kernel):
        found = derivatives(norm, eps, *tensors), matrices(torch.func, norm, eps, *tensors[:3])
    exact = exactly(norm, eps, *values), exact_matrices(norm, eps, *values[:3])
    for got, expected in zip(found, exact, strict=True):
        got = {kind: {name: TORCH.read(one) for name, one in named.items()} for kind, named in got.items()}
        check(got, expected, f"torch, {kernel}", norm, dtype)
