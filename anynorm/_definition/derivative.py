"""The derivative of the three norms, from the shift and the factor of each row."""

from __future__ import annotations

import math
from typing import Any

from anynorm._definition.norms import Precision, Rule, Step, deviations
from anynorm._definition.scaling import LEAST_ENERGY, exceeds, product, units_of
from anynorm._definition.sums import at_most, mean, total

Array = Any

# In float32 the reciprocal root of a smaller eps is out of range.
_LEAST_EPS = {0: math.inf, 24: 2.0**-200, 53: 0.0}


def derive(
    xp: Any,
    x: Array,
    dy: Array,
    step: Step,
    weight: Array | float | None,
    axes: tuple[int, ...],
    rule: Rule,
    eps: float,
    precision: Precision,
) -> tuple[Array, Array]:
    """The gradient dx, and dy * x_hat, whose sum over all rows is the gradient of the weight.

    With x_hat = (x - shift) * factor and g = dy * weight::

        dx = factor * (g - mean(g) - x_hat * mean(g * x_hat))

    where mean(g) belongs to centring. For scale_norm the last mean is a sum, and 0 where eps is the divisor.
    """
    over = mean if rule.averaged else total
    x_hat = deviations(x if step.unit is None else x * step.unit, step)
    if rule.centred:
        x_hat = x_hat - mean(xp, x_hat, axes)  # a mean of a million deviations is rounded by more than they are
    x_hat = x_hat * step.factor
    g, weight, powers = in_range(xp, dy, weight, axes, precision)
    if weight is not None:
        g = g * weight
    if rule.centred:
        g = g - mean(xp, g, axes)  # before it is multiplied by x_hat, whose own mean is not 0 to the last bit
    dx = of_terms(xp, x_hat, g, over(xp, g * x_hat, axes), powers, step, rule, eps, precision)
    return dx, dy * x_hat


def of_terms(
    xp: Any,
    x_hat: Array,
    g: Array,
    across: Array,
    powers: list[Array],
    step: Step,
    rule: Rule,
    eps: float,
    precision: Precision,
) -> Array:
    """The gradient dx of centred g and x_hat; ``across`` is the mean of their product, and g lacks powers of two."""
    factor, unit = step.factor, step.unit
    # Of finite numbers it is finite, whatever the row: NaN or Inf in dy makes NaN of all of it.
    across = across + 0.0 * across
    if not rule.averaged and eps:
        ratio = precision.constant(step.length / step.root)
        across = across * (1.0 - exceeds(xp, ratio, 1.0, precision.digits))
    elif rule.averaged and unit is not None and eps > _LEAST_EPS[precision.digits]:
        # In the unit of a large row without deviations 1 / sqrt(eps) may be out of range.
        least = LEAST_ENERGY[precision.digits]
        is_flat = (1.0 - at_most(xp, step.size, least) / least) * (1.0 - at_most(xp, unit, 1.0))
        factor, unit = factor * (1.0 - is_flat) + is_flat / math.sqrt(eps), unit * (1.0 - is_flat) + is_flat
    powers = powers if unit is None else [unit, *powers]
    return product(xp, g - x_hat * across, [factor, *powers])


def in_range(
    xp: Any, dy: Array, weight: Array | float | None, axes: tuple[int, ...], precision: Precision
) -> tuple[Array, Array | float | None, list[Array]]:
    """Both times powers of two with which no product of theirs leaves the range, and what undoes that."""
    digits = precision.digits
    if not digits:
        return dy, weight, []
    unit = units_of(xp, dy, axes, digits)
    g, powers = dy * unit, [1.0 / unit]
    if weight is not None:
        given: Array = xp.full_like(unit, weight) if isinstance(weight, float) else weight
        unit = units_of(xp, given, tuple(range(len(given.shape))), digits)
        weight, powers = given * unit, [*powers, 1.0 / unit]
    return g, weight, powers
