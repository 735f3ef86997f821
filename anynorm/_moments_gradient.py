"""The gradient of a loss by moments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from anynorm._arrays import check_array
from anynorm._definition.scaling import product
from anynorm._libraries import library_of
from anynorm._moments import quietly
from anynorm._pytrees import pytree
from anynorm._tasks import each_block
from anynorm._wording import describe, sentence

Array = Any


class MomentsGradient:
    """Gradients of a loss by the mean of each row, with the variance held, and by the population variance, likewise.

    The pullback of a norm that was given moments returns one, the pullback of `anynorm.moments_vjp` takes one. That is
    linear, so where several norms use the same moments, add up what it makes of the gradient of each.

    It goes through jax.jit. The leaves of the pytree are factors of the two gradients, and not to be computed with.

    Parameters
    ----------
    mean, variance : arrays of the shape of the moments, optional
        Of the library of the moments, and of any real floating dtype; left out they are 0.

    Examples
    --------
    >>> import numpy, anynorm
    >>> _, pullback = anynorm.moments_vjp(numpy.asarray([1.0, 3.0]))
    >>> pullback(anynorm.MomentsGradient(mean=numpy.ones(1)))
    array([0.5, 0.5])
    """

    __slots__ = ("_about_zero", "_factor", "_mean", "_unit", "_variance")

    def __init__(self, mean: Array | None = None, variance: Array | None = None) -> None:
        # A gradient by the variance may be out of range where what becomes of it is not: it grows with the factor of a
        # row squared. So a norm leaves both as numbers that are to be multiplied by factor * unit, once and twice.
        self._mean, self._variance = mean, variance
        self._factor: Array | None = None
        self._unit: Array | None = None
        self._about_zero = False

    @property
    def mean(self) -> Array | None:
        """The gradient by the mean of each row; normalized axes are kept with length 1."""
        return self._multiplied(self._mean, 1)

    @property
    def variance(self) -> Array | None:
        """The gradient by the variance of each row."""
        return self._multiplied(self._variance, 2)

    def _multiplied(self, values: Array | None, times: int) -> Array | None:
        factors = [one for one in (self._factor, self._unit) if one is not None] * times
        if values is None or not factors:
            return values
        if check_array("the gradient", values).block is not None:
            return each_block(
                _multiplied, "moments-gradient", values, *factors, chunks=values.chunks, meta=values._meta
            )
        return _multiplied(values, *factors)

    def flatten(self) -> tuple[tuple[Array | None, ...], bool]:
        """Take apart into arrays and what is known without them, as a JAX pytree is."""
        return (self._mean, self._variance, self._factor, self._unit), self._about_zero

    @classmethod
    def unflatten(cls, known: bool, arrays: tuple[Any, ...]) -> MomentsGradient:
        """Put together again what `flatten` took apart."""
        return in_factors(*arrays, about_zero=known)

    def __repr__(self) -> str:
        return f"MomentsGradient(mean={self.mean!r}, variance={self.variance!r})"


def _multiplied(values: Array, *factors: Array) -> Array:
    xp = library_of(values).namespace
    with quietly(xp, values):
        return product(xp, values, list(factors))


def in_factors(
    mean: Array | None, variance: Array | None, factor: Array | None, unit: Array | None, *, about_zero: bool
) -> MomentsGradient:
    """The gradient of which ``mean`` lacks factor * unit, and ``variance`` the square of that; None: 1.

    ``about_zero`` says that it is one by the mean square alone: the gradient by the variance is the same, and that by
    the mean 2 * mean times as much. What it makes of an element then does not depend on how far that is from the mean.
    """
    gradient = MomentsGradient(mean, variance)
    gradient._factor, gradient._unit, gradient._about_zero = factor, unit, about_zero
    return gradient


def mapped(function: Callable[[Array], Array], gradient: MomentsGradient) -> MomentsGradient:
    """The gradient with a function called on each of its arrays."""
    arrays, known = gradient.flatten()
    return MomentsGradient.unflatten(known, tuple(None if one is None else function(one) for one in arrays))


def is_about_zero(gradient: MomentsGradient) -> bool:
    """Whether it is one by the mean square alone."""
    return gradient._about_zero


def parts_of(gradient: MomentsGradient) -> tuple[Array | None, Array | None, Array | None, Array | None]:
    """Mean, variance, factor and unit, as `in_factors` takes them."""
    return gradient._mean, gradient._variance, gradient._factor, gradient._unit


def require_gradient(gradient: Any) -> None:
    """Raise unless it is a MomentsGradient."""
    if not isinstance(gradient, MomentsGradient):
        must, do = "be a MomentsGradient", "pass anynorm.MomentsGradient(mean=..., variance=...)"
        raise TypeError(sentence("the gradient", must, describe(gradient), do))


pytree(MomentsGradient, ("mean", "variance", "factor", "unit"), MomentsGradient.flatten, MomentsGradient.unflatten)
