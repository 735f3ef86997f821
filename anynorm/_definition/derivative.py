"""The derivative of the three norms, from the shift and the factor of each row."""

from __future__ import annotations

import math
from typing import Any

from anynorm._definition.norms import Precision, Rule, Statistics, Step, deviations
from anynorm._definition.scaling import LEAST_ENERGY, exceeds, product, reaches, scaled, units_of
from anynorm._definition.sums import at_most, mean, total

Array = Any

# Where the root of eps is no more than this, the factor of a flat row is not formed anew: in float32 its reciprocal
# would be out of range. Without units (0 digits) there is no need.
_LEAST_LENGTH = {0: math.inf, 24: 2.0**-100, 53: 0.0}


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

    where mean(g) belongs to centring. For scale_norm the last mean is a sum. It is 0 where eps is the divisor, and with
    eps outside of the root it is multiplied by 1 + eps / root.
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
    along = _of_long_rows(xp, _nan_unless_finite(along), step, rule, eps, precision)
    return product(xp, g - x_hat * along, [*factors_of(xp, step, rule, eps, precision), *powers])


def derive_given(
    xp: Any,
    x: Array,
    dy: Array,
    step: Step,
    weight: Array | float | None,
    axes: tuple[int, ...],
    rule: Rule,
    eps: float,
    precision: Precision,
) -> tuple[Array, Array, Array, Array]:
    """The gradient dx where the step is of given statistics, dy * x_hat, and for each row the sums of g and g * x_hat.

    With x_hat = (x - shift) * factor and g = dy * weight, dx is g * factor.
    """
    if step.unit is None or step.shift is not None:
        x_hat = deviations(x, step) * step.factor
    else:  # a row may be far from the statistics that it is given
        x_hat = product(xp, x, [step.unit, step.factor])
    g, weight_in_range, powers = in_range(xp, dy, weight, axes, precision)
    if weight_in_range is not None:
        g = g * weight_in_range
    near, power = x_hat, []
    if precision.digits:  # of a row that is far from its statistics, g * x_hat might leave the range
        unit = units_of(xp, x_hat, axes, precision.digits)
        near, power = scaled(x_hat, unit), [1.0 / unit]
    of_g, along = (_nan_unless_finite(total(xp, one, axes)) for one in (g, g * near))
    sums = product(xp, of_g, powers), product(xp, along, [*powers, *power])
    factors = factors_of(xp, step, rule, eps, precision)
    if weight is not None:
        factors.append(xp.full_like(step.factor, weight) if isinstance(weight, float) else weight)
    # Not of g, whose small elements may have vanished beside NaN or Inf, and here each element is for itself.
    is_plain = not precision.digits and step.unit is None
    dx = _plain_product(dy, factors) if is_plain else product(xp, dy, factors)
    return dx, dy * x_hat, *sums


def by_statistics(
    xp: Any,
    step: Step,
    mean: Array | None,
    sums: tuple[Array, Array],
    count: Any,
    rule: Rule,
    eps: float,
    precision: Precision,
) -> tuple[Array, Array, Array, Array | None]:
    """The gradients of the mean and the variance of each row, as (mean, variance, factor, unit) of `in_factors`.

    With f the factor, and the sums of g and of g * x_hat over a row::

        layer_norm    -f * sum(g)                   -f**2 / 2 * sum(g * x_hat)
        rms_norm      2 * mean * (by the variance)  -f**2 / 2 * sum(g * x_hat)
        scale_norm    2 * mean * (by the variance)  -f**2 / 2 * count * sum(g * x_hat), and 0 where eps is the divisor

    ``mean`` is that in the step's unit, for norms that do not centre.
    """
    of_g, along = sums
    along = _of_long_rows(xp, along, step, rule, eps, precision)
    factor, *unit = factors_of(xp, step, rule, eps, precision)
    if rule.centred:
        by_mean, by_variance = -of_g, -0.5 * along
    else:
        by_variance = -0.5 * along * (1 if rule.averaged else count)
        by_mean = by_variance * 0.0 if mean is None else by_variance * 2.0 * (mean * step.factor)
    return by_mean, by_variance, factor, unit[0] if unit else None


def derive_moments(
    xp: Any,
    x: Array,
    found: Statistics,
    precision: Precision,
    mean: Array | None,
    variance: Array,
    factor: Array | None,
    unit: Array | None,
) -> Array:
    """The gradient dx of a loss by way of the statistics of x itself, from (mean, variance, factor, unit) by those.

    With n elements in a row, dx = (mean + 2 * variance * (x - mean(x))) / n. Where ``mean`` is None, ``variance`` is
    the gradient of the mean square, and dx = 2 * variance * x / n.
    """
    count, factors = max(found.elements, 1), [one for one in (factor, unit) if one is not None]
    by_deviation = [variance * (2.0 / count), *factors, *factors]
    if found.unit is not None:
        by_deviation.append(1.0 / found.unit)
    shift, low = (None, None) if mean is None else (found.mean, found.mean_low)
    d = deviations(x, Step(shift, low, found.squares, found.unit, found.squares, found.squares, 0.0))
    d = product(xp, d, by_deviation) if precision.digits else _plain_product(d, by_deviation)
    if mean is None:  # a row that holds NaN or Inf is to be NaN; in deviations it is
        return d + 0.0 * found.squares
    return d + product(xp, mean / count, factors)


def _nan_unless_finite(sums: Array) -> Array:
    """Sums over rows that are NaN where a term is NaN or Inf."""
    return sums + 0.0 * sums


def _plain_product(values: Array, factors: list[Array]) -> Array:
    """The product of numbers that stay in range, those of rows first."""
    both, *others = factors
    for factor in others:
        both = both * factor
    return values * both


def _of_long_rows(xp: Any, along: Array, step: Step, rule: Rule, eps: float, precision: Precision) -> Array:
    """A number of each row, times the derivative of what it is divided by, relative to that with eps inside the root.

    0 where eps is the least length and divides a row: the length has no part in the result.
    """
    if rule.eps_place == "inside" or not eps:
        return along
    if rule.eps_place == "outside":
        return along * (1.0 + step.least_divisor / step.root)
    ratio = precision.constant(step.least_divisor / step.root)
    return along * (1.0 - exceeds(xp, ratio, 1.0, precision.digits))


def factors_of(xp: Any, step: Step, rule: Rule, eps: float, precision: Precision) -> list[Array]:
    """What a row is multiplied by: the factor, and where there are units the unit."""
    factor, unit = step.factor, step.unit
    if unit is None:
        return [factor]
    length = math.sqrt(eps) if rule.eps_place == "inside" else eps
    if rule.averaged and length > _LEAST_LENGTH[precision.digits]:
        # A flat row has the factor 1 / sqrt(eps), which may be out of range in the unit of a large row.
        is_flat = (1.0 - reaches(xp, step.size, LEAST_ENERGY[precision.digits])) * (1.0 - at_most(xp, unit, 1.0))
        factor = factor * (1.0 - is_flat) + is_flat * (step.spread / length)
        unit = unit * (1.0 - is_flat) + is_flat
    return [factor, unit]


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
