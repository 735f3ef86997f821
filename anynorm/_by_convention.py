"""What a norm and a convention make together: the rule, eps and offset of a call."""

from __future__ import annotations

from typing import Any

from anynorm._convention import (
    LAYER_NORM_EPS,
    RMS_NORM_EPS,
    SCALE_NORM_EPS,
    Convention,
    DefaultEps,
    check_convention,
)
from anynorm._definition.norms import LAYER_NORM, RMS_NORM, SCALE_NORM, Rule
from anynorm._numbers import check_number
from anynorm._wording import describe, sentence

# The rule, the eps, the offset of the weight, and the portion of the features whose statistics are used.
_Resolved = tuple[Rule, float, float, float]
# What a norm, by its name, and a convention, or the name of one, make together where no eps and no offset are passed:
# of a norm without a weight, and of one with it; and the rule where an offset is passed.
_together: dict[str, dict[Any, tuple[_Resolved, _Resolved, Rule]]] = {
    "layer_norm": {},
    "rms_norm": {},
    "scale_norm": {},
}
_MOST_TOGETHER = 1000
_EPS = {"layer_norm": LAYER_NORM_EPS, "rms_norm": RMS_NORM_EPS, "scale_norm": SCALE_NORM_EPS}
# Equal rules are one object, by which the kernels' fast path knows them; there are no more than some hundred.
_rules: dict[Rule, Rule] = {rule: rule for rule in (LAYER_NORM, RMS_NORM, SCALE_NORM)}


def resolved(
    rule: Rule, convention: Any, eps: Any, weight_offset: Any, has_weight: bool
) -> tuple[Rule, Any, Any, float]:
    """The rule, eps, offset and portion of a norm by a convention, which is one or the name of one."""
    try:
        without, weighted, shifted = _together[rule.name][convention]
    except (KeyError, TypeError):  # not met before, or not hashable, as no convention is
        without, weighted, shifted = _find_together(rule, convention)
    usual = weighted if has_weight else without
    has_offset = not (type(weight_offset) is float and weight_offset == 0.0)
    if type(eps) is DefaultEps and not has_offset:
        return usual
    by, own_eps, own_offset, portion = usual
    if type(eps) is DefaultEps:
        eps = own_eps
    if own_offset:
        _require_no_offset(weight_offset, own_offset)
        return by, eps, own_offset, portion
    return shifted if has_offset else by, eps, weight_offset, portion


def _find_together(rule: Rule, convention: Any) -> tuple[_Resolved, _Resolved, Rule]:
    """The same for a convention that was not met before; it is kept, unless there are very many of them."""
    given = _meant(rule, convention)
    own, offset = _eps_of(rule, given), given.weight_offset if rule.averaged else 0.0
    eps = float(_EPS[rule.name]) if own is None else own
    plain, shifted = _rule_of(rule, given, False), _rule_of(rule, given, True)
    weighted = shifted if offset else plain, eps, offset, given.portion
    found = (plain, eps, 0.0, given.portion), weighted, shifted
    if len(_together[rule.name]) < _MOST_TOGETHER:
        _together[rule.name][convention] = found
    return found


def _meant(rule: Rule, convention: Any) -> Convention:
    """What a convention says of a norm."""
    given = check_convention(convention)
    if rule.centred and given.eps_place == "floor":  # what is said of lengths is not meant for it
        return given.replace(eps=None, eps_place="inside", statistics="wide")
    return given


def _rule_of(rule: Rule, given: Convention, has_offset: bool) -> Rule:
    place = given.eps_place if rule.averaged or given.eps_place == "outside" else "floor"
    offset = given.offset if has_offset else "wide"
    by = rule._replace(eps_place=place, rounding=given.rounding, statistics=given.statistics, offset=offset)
    return _rules.setdefault(by, by)


def _eps_of(rule: Rule, given: Convention) -> float | None:
    """That of a convention for a norm; None where it leaves that to the function."""
    if rule.averaged and not rule.centred and given.rms_eps is not None:
        return given.rms_eps
    return given.eps if rule.averaged or given.eps_place == "floor" else None


def held(rule: Rule, convention: Any, eps: Any, weight_offset: Any) -> tuple[Convention | None, Any, Any]:
    """What a norm that holds its parameters keeps: the convention, eps and offset."""
    if convention is None:
        return None, eps, weight_offset
    given = check_convention(convention)
    if type(eps) is DefaultEps and _eps_of(rule, _meant(rule, given)) is None:
        eps = float(eps)  # its own default, which may be another one than that of the function
    _, eps, weight_offset, _ = resolved(rule, given, eps, weight_offset, has_weight=rule.averaged)
    return given, eps, weight_offset


def without_offset(convention: Convention | None) -> Convention | None:
    """The convention of a norm that has the offset as an attribute."""
    if convention is None or not convention.weight_offset:
        return convention
    found = _without_offset.get(convention)
    if found is None:
        found = convention.replace(weight_offset=0.0)
        if len(_without_offset) < _MOST_TOGETHER:
            _without_offset[convention] = found
    return found


_without_offset: dict[Convention, Convention] = {}


def _require_no_offset(weight_offset: Any, own: float) -> None:
    """Raise ValueError where an offset is passed beside that of the convention."""
    if check_number("weight_offset", weight_offset):
        must = f"be left out, for the convention has one of {own}"
        do = "pass a convention without an offset, such as convention.replace(weight_offset=0.0)"
        raise ValueError(sentence("weight_offset", must, str(weight_offset), do))


def require_no_moments(moments: Any) -> None:
    """Raise ValueError where statistics are given, and others are to be taken."""
    if moments is not None:
        must, do = "be left out where a convention takes statistics of a portion", "leave one of them out"
        raise ValueError(sentence("moments", must, describe(moments), do))


def leading(x: Any, axes: tuple[int, ...], portion: float) -> Any:
    """The leading portion of the features, of which the statistics are taken."""
    if len(axes) > 1:
        do = "pass one axis, or a convention with portion=1.0"
        raise ValueError(sentence("axis", "be one axis where a portion of it is used", describe(axes), do))
    features = x.shape[axes[0]]
    kept = int(features * portion)
    if not kept:
        must, do = f"be at least one of {features} features", "pass a larger one, or longer rows"
        raise ValueError(sentence("portion", must, str(portion), do))
    return x[(*(slice(None),) * axes[0], slice(0, kept))]
