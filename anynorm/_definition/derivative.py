"""The derivative of the three norms, from the shift and the factor of each row."""

from __future__ import annotations

import math
from typing import Any

from anynorm._definition.norms import Precision, Rule, Step, deviations
from anynorm._definition.scaling import LEAST_ENERGY, exceeds, product, units_of
from anynorm._definition.sums import at_most, mean, total

Array = Any

# Where eps is no more than this, the factor of a flat row is not formed anew: in float32 1 / sqrt(eps) would be out of
# range. Without units (0 digits) there is no need.
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
    x_hat = deviations(x, step)
    if rule.centred:  # once more, for the mean of a large row is rounded by more than small deviations are
        x_hat = x_hat - mean(xp, x_hat, axes)
    x_hat = x_hat * step.factor
    g, weight, powers = in_range(xp, dy, weight, axes, precision)
    if weight is not None:
        g = g * weight
    if rule.centred:  # before it is multiplied by x_hat, whose own mean is only nearly 0
        g = g - mean(xp, g, axes)
    dx = input_gradient(xp, x_hat, g, over(xp, g * x_hat, axes), powers, step, rule, eps, precision)
    return dx, dy * x_hat


def input_gradient(
    xp: Any,
    x_hat: Array,
    g: Array,
    along: Array,
    powers: list[Array],
    step: Step,
    rule: Rule,
    eps: float,
    precision: Precision,
) -> Array:
    """The gradient dx = factor * (g - x_hat * along), where g is centred and ``along`` is mean(g * x_hat).

    Both lack the powers of two that `in_range` has taken out; they are multiplied in last.
    """
    factor, unit = step.factor, step.unit
    # Finite itself, it is so for whole rows: NaN or Inf in dy makes NaN of all of dx.
    along = along + 0.0 * along
    if not rule.averaged and eps:
        # Where eps divides a row, its length has no part in the result.
        ratio = precision.constant(step.least_divisor / step.root)
        along = along * (1.0 - exceeds(xp, ratio, 1.0, precision.digits))
    elif rule.averaged and unit is not None and eps > _LEAST_EPS[precision.digits]:
        # A flat row has the factor 1 / sqrt(eps), which may be out of range in the unit of a large row.
        least = LEAST_ENERGY[precision.digits]
        is_flat = (1.0 - at_most(xp, step.size, least) / least) * (1.0 - at_most(xp, unit, 1.0))
        factor, unit = factor * (1.0 - is_flat) + is_flat / math.sqrt(eps), unit * (1.0 - is_flat) + is_flat
    powers = powers if unit is None else [unit, *powers]
    return product(xp, g - x_hat * along, [factor, *powers])


def in_range(
    xp: Any, dy: Array, weight: Array | float | None, axes: tuple[int, ...], precision: Precision
) -> tuple[Array, Array | float | None, list[Array]]:
    """Return dy and weight times powers of two, so that no product leaves the range, and the factors that undo it."""
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
