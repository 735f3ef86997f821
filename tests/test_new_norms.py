"""The norms of benchmarks/models/new_norms.py: their derivatives, and a model that is trained in NumPy and in torch."""

import sys

import numpy as np
import pytest
import torch

import anynorm
from benchmarks.models import new_norms
from tests.backends import needs_llvmlite, thorough_but

# Float64, with sums of some hundred terms.
CLOSE = {"rtol": 1e-11, "atol": 1e-13}


def arrays(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for shape in shapes]


def plain_partial(x, weight):
    first = x[..., : x.shape[-1] // new_norms.PART]
    return x / (first.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def plain_groups(x, weight, bias):
    return torch.nn.functional.group_norm(x, new_norms.GROUPS, weight, bias)


def plain_standardized(matrix):
    return (matrix - matrix.mean(0)) / (matrix.var(0, correction=0) + 1e-5).sqrt()


NORMS = {
    "partial": (new_norms.partial_rms_norm, new_norms.partial_rms_norm_vjp, plain_partial, ((7, 3, 20), (20,))),
    "groups": (new_norms.group_norm, new_norms.group_norm_vjp, plain_groups, ((5, 16), (16,), (16,))),
    "groups of images": (new_norms.group_norm, new_norms.group_norm_vjp, plain_groups, ((5, 16, 3, 4), (16,), (16,))),
    "standardized": (new_norms.standardized, new_norms.standardized_vjp, plain_standardized, ((30, 7),)),
}


@pytest.mark.parametrize("name", NORMS)
def test_each_is_the_formula_and_so_are_its_gradients(name):
    norm, vjp, plain, shapes = NORMS[name]
    given = arrays(*shapes)
    tensors = [torch.tensor(one, requires_grad=True) for one in given]
    expected = plain(*tensors)
    dy = arrays(expected.shape, seed=1)[0]
    gradients = torch.autograd.grad(expected, tensors, torch.tensor(dy))
    y, pullback = vjp(*given)
    of_torch = norm(*tensors)
    for got in (y, norm(*given), of_torch.detach()):
        np.testing.assert_allclose(got, expected.detach(), **CLOSE)
    for found in (pullback(dy), torch.autograd.grad(of_torch, tensors, torch.tensor(dy))):
        for got, one in zip(found, gradients, strict=True):
            np.testing.assert_allclose(got, one, **CLOSE)


@pytest.mark.parametrize("dtype", thorough_but(np.float32, of=(np.float64, np.float32)))
def test_numpy_and_torch_train_alike(dtype):
    parameters = new_norms.start(0, dtype)
    tensors = new_norms.as_tensors(parameters)
    losses, others = (list(train(held, 12, 0)) for train, held in (
        (new_norms.train, parameters), (new_norms.train_in_torch, tensors)
    ))  # fmt: skip
    assert losses[-1] < 0.8 * losses[0]
    tolerance = 1e-11 if dtype is np.float64 else 1e-5
    np.testing.assert_allclose(losses, others, rtol=tolerance)
    for name, value in parameters.items():
        assert value.dtype == dtype
        distance = np.linalg.norm(value - tensors[name].detach().numpy())
        assert distance <= tolerance * np.linalg.norm(value), name


def test_gradients_of_the_model_are_its_slopes():
    parameters, (x, wanted) = new_norms.start(1), new_norms.batch(1)
    _, gradients = new_norms.loss_and_gradients(parameters, x, wanted)
    assert gradients.keys() == parameters.keys()
    for name, gradient in gradients.items():
        direction = gradient / np.linalg.norm(gradient) + 0.1 * arrays(gradient.shape)[0] / gradient.size**0.5
        # Rounding of the losses costs 2**-53 / step, and what is beyond the slope step**2.
        ahead, behind = (
            new_norms.loss_and_gradients(parameters | {name: parameters[name] + move * direction}, x, wanted)[0]
            for move in (1e-5, -1e-5)
        )
        slope = np.sum(gradient * direction)
        assert abs((ahead - behind) / 2e-5 - slope) <= 1e-6 * slope, name


@needs_llvmlite
def test_in_torch_all_of_it_runs_through_the_kernels():
    tensors = new_norms.as_tensors(new_norms.start(0, np.float32))
    x, wanted = map(torch.from_numpy, new_norms.batch(0, np.float32))
    with anynorm.use_kernel("cpu"):
        new_norms.loss_in_torch(tensors, x, wanted).backward()
    assert all(one.grad.isfinite().all() for one in tensors.values())


def test_the_command_prints_both_losses(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["new_norms", "--steps", "2"])
    new_norms.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0::2] for line in lines] == [["step", "NumPy", "torch"]] * 2
