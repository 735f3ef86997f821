"""A character model trained in NumPy alone: every derivative by hand, those of the norms by anynorm.

    OPENBLAS_NUM_THREADS=1 python -m benchmarks.models.mlp --steps 2000

Eight characters, as numbers looked up in a table, go through two hidden layers to scores of the ninth. One model has
layer_norm after each hidden layer, one rms_norm, one scale_norm, one nothing. Each takes about 20 seconds. The products
are so small that a second thread of BLAS makes them slower, on a machine with other work several times.
"""

import argparse
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np

import anynorm
from benchmarks.models import text as texts

CONTEXT = 8
CHANNELS = 24  # numbers of the table for each character
WIDTH = 256
BATCH = 256
LAYERS = 2
LEARNING_RATE = 1e-3
HELD_OUT_WINDOWS = 10_000

# Each norm, its parameters, and what a model without any does.
NORMS: dict[str, tuple[Callable[..., Any] | None, tuple[str, ...]]] = {
    "layer_norm": (anynorm.layer_norm_vjp, ("weight", "bias")),
    "rms_norm": (anynorm.rms_norm_vjp, ("weight",)),
    "scale_norm": (anynorm.scale_norm_vjp, ("scale",)),
    "none": (None, ()),
}
Arrays = dict[str, np.ndarray]
Pullback = Callable[[np.ndarray], Any]


def start(norm: str, vocabulary: int, seed: int, dtype: Any = np.float32) -> Arrays:
    """Parameters of a model, of which all but those of the norm depend on the seed alone."""
    random = np.random.default_rng(seed)
    parameters = {"table": random.standard_normal((vocabulary, CHANNELS))}
    sizes = [CONTEXT * CHANNELS] + [WIDTH] * LAYERS + [vocabulary]
    for layer, (entering, leaving) in enumerate(pairwise(sizes)):
        parameters[f"{layer}.matrix"] = random.standard_normal((entering, leaving)) / np.sqrt(entering)
        parameters[f"{layer}.shift"] = np.zeros(leaving)
    at_first = {"weight": np.ones(WIDTH), "bias": np.zeros(WIDTH), "scale": np.asarray(WIDTH**0.5)}
    for layer in range(LAYERS):
        parameters |= {f"{layer}.{name}": at_first[name] for name in NORMS[norm][1]}
    return {name: value.astype(dtype) for name, value in parameters.items()}


def loss_and_gradients(parameters: Arrays, norm: str, ids: np.ndarray, wanted: np.ndarray) -> tuple[float, Arrays]:
    """Mean cross entropy in nats, and its gradient of each parameter."""
    done: list[tuple[Pullback, list[str]]] = []  # what turns a gradient back through each step, and its parameters

    def step(vjp: Callable[..., tuple[np.ndarray, Pullback]], *arguments: np.ndarray, names: list[str]) -> np.ndarray:
        y, pullback = vjp(*arguments, *(parameters[name] for name in names))
        done.append((pullback, names))
        return y

    vjp_of_norm, names_of_norm = NORMS[norm]
    x = step(look_up_vjp, ids, names=["table"])
    for layer in range(LAYERS):
        x = step(linear_vjp, x, names=[f"{layer}.matrix", f"{layer}.shift"])
        if vjp_of_norm is not None:
            x = step(vjp_of_norm, x, names=[f"{layer}.{name}" for name in names_of_norm])
        x = step(tanh_vjp, x, names=[])
    scores = step(linear_vjp, x, names=[f"{LAYERS}.matrix", f"{LAYERS}.shift"])
    loss, dy = cross_entropy_and_gradient(scores, wanted)
    gradients = {}
    for pullback, names in reversed(done):
        dy, *found = pullback(dy)
        gradients |= zip(names, found, strict=False)  # a norm has None for parameters that it was not given
    return loss, gradients


def look_up_vjp(ids: np.ndarray, table: np.ndarray) -> tuple[np.ndarray, Pullback]:
    """The rows of a table, one after the other for each window; ids have no gradient."""

    def pullback(dy: np.ndarray) -> tuple[None, np.ndarray]:
        dtable = np.zeros_like(table)
        np.add.at(dtable, ids.ravel(), dy.reshape(-1, table.shape[1]))
        return None, dtable

    return table[ids].reshape(len(ids), -1), pullback


def linear_vjp(x: np.ndarray, matrix: np.ndarray, shift: np.ndarray) -> tuple[np.ndarray, Pullback]:
    return x @ matrix + shift, lambda dy: (dy @ matrix.T, x.T @ dy, dy.sum(axis=0))


def tanh_vjp(x: np.ndarray) -> tuple[np.ndarray, Pullback]:
    """Smooth everywhere, so that finite differences can tell whether the gradients are right."""
    y = np.tanh(x)
    return y, lambda dy: (dy * (1 - y * y),)


def cross_entropy_and_gradient(scores: np.ndarray, wanted: np.ndarray) -> tuple[float, np.ndarray]:
    rows = np.arange(len(wanted))
    scores = scores - scores.max(axis=1, keepdims=True)
    log_share = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    gradient = np.exp(log_share)
    gradient[rows, wanted] -= 1
    return -float(log_share[rows, wanted].mean()), gradient / len(wanted)


class Adam:
    """Kingma and Ba (2015), with their constants."""

    def __init__(self, parameters: Arrays):
        self.parameters, self.steps = parameters, 0
        self.mean, self.square = ({name: np.zeros_like(p) for name, p in parameters.items()} for _ in range(2))

    def step(self, gradients: Arrays) -> None:
        """Change the parameters in place."""
        self.steps += 1
        for name, gradient in gradients.items():
            mean, square = self.mean[name], self.square[name]
            mean[...] = 0.9 * mean + 0.1 * gradient
            square[...] = 0.999 * square + 0.001 * gradient**2
            root = np.sqrt(square / (1 - 0.999**self.steps)) + 1e-8
            self.parameters[name][...] -= LEARNING_RATE * (mean / (1 - 0.9**self.steps)) / root


def split(pieces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What a model sees of pieces of text, and what it is to predict."""
    return pieces[:, :CONTEXT], pieces[:, CONTEXT]


def train(parameters: Arrays, norm: str, ids: np.ndarray, steps: int, seed: int) -> Iterator[float]:
    """Change the parameters step by step, and tell the loss before each."""
    random, optimizer = np.random.default_rng(seed), Adam(parameters)
    for _ in range(steps):
        pieces = texts.windows(ids, random.integers(0, len(ids) - CONTEXT, size=BATCH), CONTEXT + 1)
        loss, gradients = loss_and_gradients(parameters, norm, *split(pieces))
        optimizer.step(gradients)
        yield loss


def held_out_loss(parameters: Arrays, norm: str, ids: np.ndarray) -> float:
    starts = np.linspace(0, len(ids) - CONTEXT - 1, HELD_OUT_WINDOWS).astype(np.int64)
    return loss_and_gradients(parameters, norm, *split(texts.windows(ids, starts, CONTEXT + 1)))[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.steps < 1:
        parser.error("--steps must be 1 or more")
    text = texts.load()
    losses, held_out = {}, {}
    for norm in NORMS:
        parameters = start(norm, len(text.vocabulary), arguments.seed)
        losses[norm] = list(train(parameters, norm, text.training, arguments.steps, arguments.seed))
        held_out[norm] = held_out_loss(parameters, norm, text.held_out)
        print(f"{norm}: held out {held_out[norm]:.3f}", flush=True)
    print_losses(losses, held_out)
    print(
        f"\nunigram entropy of the text, which no model without context falls below: {texts.unigram_entropy(text):.3f}"
    )


def print_losses(losses: dict[str, list[float]], held_out: dict[str, float]) -> None:
    """Print means over each tenth of the steps, since the loss of a single batch says little."""
    print(f"\n{'steps':<12}" + "".join(f"{norm:>12}" for norm in losses))
    steps = len(losses["none"])
    for first in range(0, steps, max(1, steps // 10)):
        last = min(first + max(1, steps // 10), steps)
        means = "".join(f"{np.mean(values[first:last]):12.3f}" for values in losses.values())
        print(f"{f'{first}-{last - 1}':<12}{means}")
    print(f"{'held out':<12}" + "".join(f"{loss:12.3f}" for loss in held_out.values()))


if __name__ == "__main__":
    main()
