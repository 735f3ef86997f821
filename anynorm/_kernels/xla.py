"""JAX arrays: the definition as one program compiled by XLA, in eager calls too; the derivative is stated.

Automatic differentiation of the steps would form powers of the factor, which leave the range of float32 for rows that
are well within it. Stated instead, for a tangent t of x, the factor f and t_hat = t * f (minus its mean, if centred)::

    d x_hat = t_hat - x_hat * mean(x_hat * t_hat)
    d f = -f * mean(x_hat * t_hat)

JAX makes derivatives of any order, forward and backward, from these two. For scale_norm the mean is a sum, and 0 where
eps is the divisor. With eps outside of the root it is multiplied by 1 + eps / root.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from anynorm._check import Call, Gradient
from anynorm._definition.norms import Precision, Rule, Step, apply, finish, reduce
from anynorm._definition.scaling import exceeds
from anynorm._definition.sums import count_along, mean, of_rows, total
from anynorm._kernels import by_moments, definition, definition_vjp
from anynorm._moments import Moments, arrays_of, of_arrays
from anynorm._moments_gradient import MomentsGradient, in_factors, parts_of
from anynorm._pytrees import register

Array = Any

# With an eps of scale_norm above this, x / eps may underflow where scale * x / eps does not.
_LARGE_LENGTH = 2.0**60


class _Fixed(NamedTuple):
    """What is known when the program is compiled."""

    rule: Rule
    axes: tuple[int, ...]
    eps: float
    precision: Precision


class _Normalized(NamedTuple):
    """Rows, and what has to be known of them to differentiate."""

    x_hat: Array
    factor: Array
    unit: Array
    share: Array  # by which that mean is multiplied: 0 where eps alone divides a row, else 1, or 1 + eps / root
    parts: tuple[Array, Array, Array]  # whose product is unit * factor; a weight is multiplied by the second


def refuses(call: Call) -> str | None:
    """Why a call is not for XLA; None: it is."""
    name = call.library.name
    return None if name == "jax" else f"it takes JAX arrays, and x is an array of {name}"


def refuses_vjp(gradient: Gradient) -> str | None:
    """The same of the derivative."""
    return refuses(gradient.call)


def run(call: Call) -> Any:
    """Return y, or (y, total) where the call has a residual."""
    if call.moments is None:
        return _compiled(_run, call)
    # Outside of the program, for it would be another one for each count that moments ever have.
    rules = dict.fromkeys((call.rule, call.rule.formula))
    precision = call.precision._replace(stated=False)
    steps = [tuple(definition.step_of_given(call._replace(rule=one), call.moments, precision)) for one in rules]
    return _compiled(_run_given, call, steps)


def vjp(gradient: Gradient) -> tuple[Any, ...]:
    """Return dx, dweight and dbias; a parameter that is not there has no gradient. Given moments have one too."""
    if gradient.call.moments is not None:
        return _vjp_by_moments(gradient)
    dx, dweight, dbias = _compiled(definition_vjp.vjp_whole, *gradient[:3])
    if isinstance(gradient.call.weight, float):  # which the program has as an array
        dweight = dweight.astype(gradient.call.x.dtype)
    return dx, dweight, dbias


def _vjp_by_moments(gradient: Gradient) -> tuple[Array, Array | None, Array | None, MomentsGradient]:
    call: Any = gradient.call
    # As above, and the count is an argument.
    count = call.library.namespace.asarray(call.moments.count, dtype=call.precision.dtype)
    more = tuple(by_moments.step_of(call)), arrays_of(call.moments), count
    dx, dweight, dbias, *parts = _compiled(_vjp_given, call, gradient.dy, *more)
    if isinstance(call.weight, float):
        dweight = dweight.astype(call.x.dtype)
    return dx, dweight, dbias, in_factors(*parts, about_zero=not call.rule.centred)


def run_moments(call: Call) -> Moments:
    """Return the moments of the call's array."""
    register()  # Flax may have been imported since the last ones
    count = None if call.skip_nan else count_along(call.x, call.axes)
    return Moments.unflatten((count, call.library.namespace), _compiled(_moments, call))


def vjp_moments(call: Call, moments: Moments, gradient: MomentsGradient) -> Array:
    """Return dx, where the moments are those of the call's array."""
    return _compiled(_vjp_moments, call, arrays_of(moments), gradient)


def _run(call: Call) -> Any:
    return definition.run_whole(call, _steps)


def _run_given(call: Call, steps: list[tuple[Any, ...]]) -> Any:
    """The same with step 2 done: by the call's rule, and by its formula where that is another."""

    def by(call: Call, x: Array, moments: Moments | None, weight: Any, bias: Any, precision: Precision) -> Array:
        def by_formula() -> Array:
            return apply(call.library.namespace, x, Step(*steps[-1]), weight, bias, precision)

        def step_by(rule: Rule, precision: Precision) -> Step:
            return Step(*steps[0])

        return definition.with_roundings(call, by_formula, step_by, x, weight, bias, precision)

    return definition.run_whole(call, by)


def _vjp_given(call: Call, dy: Array, step: tuple[Any, ...], arrays: tuple[Any, ...], count: Any) -> tuple[Any, ...]:
    found = by_moments.vjp_whole(Gradient(call, dy, None), Step(*step))
    call = call._replace(moments=of_arrays(count, arrays, call.library.namespace))
    return *found[:3], *parts_of(by_moments.by_moments(call, Step(*step), found.of_g, found.along))


def _vjp_moments(call: Call, arrays: tuple[Any, ...], gradient: MomentsGradient) -> Array:
    moments = of_arrays(count_along(call.x, call.axes), arrays, call.library.namespace)
    return by_moments.vjp_moments(call, moments, gradient)


def _moments(call: Call) -> tuple[Array | None, ...]:
    return definition.run_moments(call).flatten()[0]


def _compiled(function: Callable[..., Any], call: Call, *more: Any) -> Any:
    """Return function(call, *more), compiled once for each kind of call; what is no array is fixed in the program.

    A scale that is a number is an argument too, for the program of each number would be kept for good.
    """
    fixed = call._replace(x=None, weight=None, bias=None, residual=None, moments=None)
    return _jitted()(function, fixed, (call.x, call.weight, call.bias, call.residual), more)


@functools.cache
def _jitted() -> Callable[..., Any]:
    import jax

    def on_arrays(function: Any, fixed: Call, arrays: Any, more: Any) -> Any:
        x, weight, bias, residual = arrays
        return function(fixed._replace(x=x, weight=weight, bias=bias, residual=residual), *more)

    return jax.jit(on_arrays, static_argnums=(0, 1))


def _steps(
    call: Call, x: Array, moments: Moments | None, weight: Array | float | None, bias: Array | None,
    precision: Precision,
) -> Array:  # fmt: skip
    """The three steps with the stated derivative; a very large eps is differentiated by JAX."""
    if not precision.digits or (call.eps > _LARGE_LENGTH and call.rule.eps_place != "inside"):
        return definition.steps(call, x, None, weight, bias, precision._replace(stated=False))

    def by_formula() -> Array:
        fixed = _Fixed(call.rule.formula, call.axes, call.eps, precision)
        found = _differentiable_rows()(fixed, x)
        if weight is None or call.rule.centred:
            y = found.x_hat if weight is None else found.x_hat * weight
        else:
            y = _differentiable_product()(x, found, weight)
        return y if bias is None else y + bias

    def step_by(rule: Rule, precision: Precision) -> Step:
        xp = call.library.namespace
        return finish(xp, reduce(xp, x, call.axes, rule, precision, call.eps), rule, call.eps, precision)

    return definition.with_roundings(call, by_formula, step_by, x, weight, bias, precision)


@functools.cache
def _differentiable_rows() -> Callable[..., _Normalized]:
    """From rows to `_Normalized`, with its derivative; made on first use of JAX."""
    import jax
    import jax.numpy as xp

    @functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
    def normalized(fixed: _Fixed, x: Array) -> _Normalized:
        rule, axes, eps, precision = fixed
        found = reduce(xp, x, axes, rule, precision, eps)

        def finished(squares: Array, unit: Array, size: Array) -> tuple[Array, ...]:
            step = finish(xp, found._replace(squares=squares, unit=unit, size=size), rule, eps, precision)
            share = xp.ones_like(step.factor)
            if eps and rule.eps_place == "outside":
                share = share + step.least_divisor / step.root
            elif eps and rule.eps_place == "floor":
                share = share - exceeds(xp, step.least_divisor / step.root, 1.0, precision.digits)
            # An element may be nothing beside its row, and a weight bring it back; unit * factor may be out of range.
            late = xp.minimum(xp.sqrt(unit), 1.0)  # in this order, or XLA makes a comparison of it
            parts = xp.maximum(unit, 1.0), step.factor * late, late
            return step.factor, share, *parts

        unit: Any = found.unit
        factor, share, *parts = of_rows(xp, finished, found.squares, unit, found.size)
        if rule.centred:
            x_hat = (x * unit - found.mean - found.mean_low) * factor
        else:
            x_hat = x * parts[0] * parts[1] * parts[2]
        return _Normalized(x_hat, factor, unit, share, tuple(parts))

    @normalized.defjvp
    def tangent_of(fixed: _Fixed, given: Any, tangents: Any) -> Any:
        found = normalized(fixed, *given)
        x_hat, factor, unit, share, _ = found
        t_hat = tangents[0] * unit * factor
        t_hat = t_hat - mean(xp, t_hat, fixed.axes) if fixed.rule.centred else t_hat
        across = (mean if fixed.rule.averaged else total)(xp, x_hat * t_hat, fixed.axes) * share
        zero = xp.zeros_like(unit)
        of_share = (1.0 - share) * share * across if fixed.rule.eps_place == "outside" else zero
        return found, _Normalized(t_hat - x_hat * across, -factor * across, zero, of_share, (zero, zero, zero))

    return normalized


@functools.cache
def _differentiable_product() -> Callable[[Array, _Normalized, Array], Array]:
    """From x and what it became to x_hat * weight, with its derivative; made on first use of JAX."""
    import jax

    @jax.custom_jvp
    def times(x: Array, found: _Normalized, weight: Array) -> Array:
        first, early, late = found.parts
        return x * first * (early * weight) * late

    @times.defjvp
    def tangent_of_product(given: Any, tangents: Any) -> Any:
        (_, found, weight), (_, of_found, of_weight) = given, tangents
        return times(*given), of_found.x_hat * weight + found.x_hat * of_weight

    return times
