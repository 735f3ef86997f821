"""Norms that anynorm does not have, in a few lines each, trained in plain NumPy and in torch.

    python -m benchmarks.models.new_norms

pRMSNorm takes its statistics of a part of each row, GroupNorm of groups of channels, and weight standardization is a
norm of a matrix's rows. In torch a function is enough, as autograd follows anynorm. In NumPy it is written together
with its derivative, of those that anynorm returns.
"""

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import anynorm
from benchmarks.models.mlp import Arrays, Pullback, linear_vjp, tanh_vjp

PART = 4  # one of so many features is looked at by pRMSNorm
GROUPS = 8
ENTERING, WIDTH, LEAVING = 20, 64, 3
ROWS = 256
LEARNING_RATE = 0.1


def partial_rms_norm(x: Any, weight: Any) -> Any:
    """Rows divided by the root mean square of their first features (Zhang and Sennrich 2019)."""
    return anynorm.rms_norm(x, weight, moments=anynorm.moments(x[..., : x.shape[-1] // PART]))


def partial_rms_norm_vjp(x: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, Pullback]:
    first = slice(x.shape[-1] // PART)
    found, vjp_moments = anynorm.moments_vjp(x[..., first])
    y, pull_norm = anynorm.rms_norm_vjp(x, weight, moments=found)

    def pullback(dy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        dx, dweight, _, dmoments = pull_norm(dy)
        dx[..., first] += vjp_moments(dmoments)
        return dx, dweight

    return y, pullback


def group_norm(x: Any, weight: Any, bias: Any) -> Any:
    """Groups of channels, each with mean 0 and variance 1 (Wu and He 2018); x is (samples, channels, ...)."""
    y = anynorm.layer_norm(x.reshape(len(x), GROUPS, -1)).reshape(x.shape)
    channels = (-1, *[1] * (x.ndim - 2))
    return y * weight.reshape(channels) + bias.reshape(channels)


def group_norm_vjp(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, Pullback]:
    channels, others = (-1, *[1] * (x.ndim - 2)), (0, *range(2, x.ndim))
    grouped = x.reshape(len(x), GROUPS, -1)
    x_hat, pull_norm = anynorm.layer_norm_vjp(grouped)
    x_hat = x_hat.reshape(x.shape)

    def pullback(dy: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        dx, _, _ = pull_norm((dy * weight.reshape(channels)).reshape(grouped.shape))
        return dx.reshape(x.shape), (dy * x_hat).sum(axis=others), dy.sum(axis=others)

    return x_hat * weight.reshape(channels) + bias.reshape(channels), pullback


def standardized(matrix: Any) -> Any:
    """A matrix whose columns, the weights of one unit each, have mean 0 and variance 1 (Qiao et al. 2019)."""
    return anynorm.layer_norm(matrix, axis=0)


def standardized_vjp(matrix: np.ndarray) -> tuple[np.ndarray, Pullback]:
    y, pull_norm = anynorm.layer_norm_vjp(matrix, axis=0)
    return y, lambda dy: pull_norm(dy)[:1]


def start(seed: int, dtype: Any = np.float64) -> Arrays:
    """Parameters of a model that has all three, away from weights of 1 and biases of 0."""
    random = np.random.default_rng(seed)
    shapes = {
        "0.matrix": (ENTERING, WIDTH), "0.shift": (WIDTH,), "group.weight": (WIDTH,), "group.bias": (WIDTH,),
        "1.matrix": (WIDTH, WIDTH), "1.shift": (WIDTH,), "partial.weight": (WIDTH,),
        "2.matrix": (WIDTH, LEAVING), "2.shift": (LEAVING,),
    }  # fmt: skip
    parameters = {name: random.standard_normal(shape) / shape[0] ** 0.5 for name, shape in shapes.items()}
    return {name: (value + ("weight" in name)).astype(dtype) for name, value in parameters.items()}


def batch(seed: int, dtype: Any = np.float64) -> tuple[np.ndarray, np.ndarray]:
    """Rows, and what is to be predicted of them."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((ROWS, ENTERING))
    return x.astype(dtype), np.sin(x @ random.standard_normal((ENTERING, LEAVING))).astype(dtype)


def loss_and_gradients(parameters: Arrays, x: np.ndarray, wanted: np.ndarray) -> tuple[float, Arrays]:
    """Mean square error, and its gradient of each parameter, in NumPy."""
    done: list[tuple[Pullback, list[str]]] = []  # what turns a gradient back through each step, and its parameters

    def step(vjp: Callable[..., tuple[np.ndarray, Pullback]], x: np.ndarray, *names: str) -> np.ndarray:
        y, pullback = vjp(x, *(parameters[name] for name in names))
        done.append((pullback, list(names)))
        return y

    x = step(standard_linear_vjp, x, "0.matrix", "0.shift")
    x = step(tanh_vjp, step(group_norm_vjp, x, "group.weight", "group.bias"))
    x = step(standard_linear_vjp, x, "1.matrix", "1.shift")
    x = step(tanh_vjp, step(partial_rms_norm_vjp, x, "partial.weight"))
    error = step(linear_vjp, x, "2.matrix", "2.shift") - wanted
    dy, gradients = 2 * error / error.size, {}
    for pullback, names in reversed(done):
        dy, *found = pullback(dy)
        gradients |= zip(names, found, strict=True)
    return float((error * error).mean()), gradients


def standard_linear_vjp(x: np.ndarray, matrix: np.ndarray, shift: np.ndarray) -> tuple[np.ndarray, Pullback]:
    """A linear layer whose weights are standardized."""
    hat, pull_matrix = standardized_vjp(matrix)
    y, pull_linear = linear_vjp(x, hat, shift)

    def pullback(dy: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        dx, dhat, dshift = pull_linear(dy)
        return dx, *pull_matrix(dhat), dshift

    return y, pullback


def loss_in_torch(parameters: dict[str, Any], x: Any, wanted: Any) -> Any:
    """The same mean square error of tensors, which autograd follows."""
    x = x @ standardized(parameters["0.matrix"]) + parameters["0.shift"]
    x = group_norm(x, parameters["group.weight"], parameters["group.bias"]).tanh()
    x = x @ standardized(parameters["1.matrix"]) + parameters["1.shift"]
    x = partial_rms_norm(x, parameters["partial.weight"]).tanh()
    error = x @ parameters["2.matrix"] + parameters["2.shift"] - wanted
    return (error * error).mean()


def train(parameters: Arrays, steps: int, seed: int) -> Iterator[float]:
    """Change the parameters step by step, in NumPy, and tell the loss before each."""
    x, wanted = batch(seed, parameters["0.matrix"].dtype)
    for _ in range(steps):
        loss, gradients = loss_and_gradients(parameters, x, wanted)
        for name, gradient in gradients.items():
            parameters[name] -= LEARNING_RATE * gradient
        yield loss


def train_in_torch(parameters: dict[str, Any], steps: int, seed: int) -> Iterator[float]:
    """The same of tensors that require gradients."""
    import torch

    x, wanted = map(torch.from_numpy, batch(seed, parameters["0.matrix"].detach().numpy().dtype))
    optimizer = torch.optim.SGD(list(parameters.values()), LEARNING_RATE)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_in_torch(parameters, x, wanted)
        loss.backward()
        optimizer.step()
        yield float(loss.detach())


def as_tensors(parameters: Arrays) -> dict[str, Any]:
    import torch

    return {name: torch.tensor(value, requires_grad=True) for name, value in parameters.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    parameters = start(arguments.seed, np.float32)
    tensors = as_tensors(parameters)
    both = zip(
        train(parameters, arguments.steps, arguments.seed),
        train_in_torch(tensors, arguments.steps, arguments.seed),
        strict=True,
    )
    for step, (in_numpy, in_torch) in enumerate(both):
        if step % 20 == 0 or step == arguments.steps - 1:
            print(f"step {step:4}   NumPy {in_numpy:.6f}   torch {in_torch:.6f}")


if __name__ == "__main__":
    main()
