"""One small network in Flax NNX, Equinox and Flax Linen, each with an RMSNorm of anynorm; they learn the same.

Run it with ``python -m benchmarks.models.jax_modules``.
"""

import equinox
import flax.linen
import jax
import jax.numpy as jnp
import numpy
import optax
from flax import nnx

import anynorm.nnx

FEATURES, WIDTH = 8, 16
OPTIMIZER = optax.sgd(0.1)


class InNNX(nnx.Module):
    """The norm is a module with a Param, as flax.nnx.RMSNorm is."""

    def __init__(self, first, last):
        self.first, self.last = nnx.Param(first), nnx.Param(last)
        self.norm = anynorm.nnx.RMSNorm(WIDTH, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return nnx.relu(self.norm(x @ self.first)) @ self.last


class InEquinox(equinox.Module):
    """The norm is a pytree among others."""

    first: jax.Array
    norm: anynorm.RMSNorm
    last: jax.Array

    def __call__(self, x):
        return jax.nn.relu(self.norm(x @ self.first)) @ self.last


class InLinen(flax.linen.Module):
    """The norm, a pytree, is a parameter like any other."""

    start: tuple

    @flax.linen.compact
    def __call__(self, x):
        first, last = self.param("first", lambda _: self.start[0]), self.param("last", lambda _: self.start[1])
        norm = self.param("norm", lambda _: anynorm.RMSNorm(WIDTH, xp=jnp))
        return jax.nn.relu(norm(x @ first)) @ last


def loss_of(model, x, y):
    """The mean squared error of a model."""
    return ((model(x) - y) ** 2).mean()


def in_nnx(first, last, x, y, steps):
    """Train it in NNX; return the losses."""

    @nnx.jit
    def step(model, optimizer):
        loss, gradient = nnx.value_and_grad(loss_of)(model, x, y)
        optimizer.update(model, gradient)
        return loss

    model = InNNX(first, last)
    optimizer = nnx.Optimizer(model, OPTIMIZER, wrt=nnx.Param)
    return [float(step(model, optimizer)) for _ in range(steps)]


def in_equinox(first, last, x, y, steps):
    """The same in Equinox."""
    model = InEquinox(first, anynorm.RMSNorm(WIDTH, xp=jnp), last)
    return _trained(model, equinox.filter_value_and_grad(lambda model: loss_of(model, x, y)), steps)


def in_linen(first, last, x, y, steps):
    """The same in Linen."""
    module = InLinen((first, last))
    variables = module.init(jax.random.key(0), x)
    loss = jax.value_and_grad(lambda variables: loss_of(lambda x: module.apply(variables, x), x, y))
    return _trained(variables, loss, steps)


def _trained(tree, loss_and_gradient, steps):
    @jax.jit
    def step(tree, state):
        loss, gradient = loss_and_gradient(tree)
        updates, state = OPTIMIZER.update(gradient, state)
        return optax.apply_updates(tree, updates), state, loss

    state, losses = OPTIMIZER.init(tree), []
    for _ in range(steps):
        tree, state, loss = step(tree, state)
        losses.append(float(loss))
    return losses


def train(steps):
    """The losses of all three, which begin with the same parameters."""
    rng = numpy.random.default_rng(0)
    shapes = (FEATURES, WIDTH), (WIDTH, 1), (64, FEATURES)
    first, last, x = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes)
    return {
        run.__name__: run(first, last / WIDTH, x, jnp.sin(x[:, :1]), steps) for run in (in_nnx, in_equinox, in_linen)
    }


if __name__ == "__main__":
    for name, losses in train(30).items():
        print(f"{name:10} {losses[0]:.6f} -> {losses[-1]:.6f}")
