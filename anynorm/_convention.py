"""Conventions: where a norm puts eps, what it rounds on the way, and how models and libraries do it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Literal

from anynorm._definition.norms import LAYER_NORM, RMS_NORM, SCALE_NORM, Rule
from anynorm._numbers import check_number
from anynorm._wording import describe, sentence

EpsPlace = Literal["inside", "outside", "floor"]
Rounding = Literal["once", "normalized", "each"]

_CHOICES = {
    "eps_place": ("inside", "outside", "floor"),
    "rounding": ("once", "normalized", "each"),
    "statistics": ("wide", "x"),
    "offset": ("wide", "weight"),
}


class DefaultEps(float):
    """The eps of a signature: a number like any other, but a convention may have another in its place."""

    __slots__ = ()


LAYER_NORM_EPS, RMS_NORM_EPS, SCALE_NORM_EPS = DefaultEps(1e-5), DefaultEps(1e-6), DefaultEps(1e-12)


_DEFAULTS: dict[str, Any] = {
    "name": "", "eps": None, "rms_eps": None, "eps_place": "inside", "rounding": "once", "statistics": "wide",
    "weight_offset": 0.0, "offset": "wide", "portion": 1.0,
}  # fmt: skip


class Convention:  # no dataclass: the module of these takes longer to import than most of anynorm
    """How a norm is computed where implementations differ; each norm takes one as ``convention=``.

    A convention cannot be changed; `replace` makes another one. All parameters are given by name.

    Parameters
    ----------
    name : str
        What it is called; it changes nothing.
    eps : float, optional
        The eps of a call that passes none; left out, the function's own. scale_norm takes it only with
        ``eps_place="floor"``, for elsewhere it is no length.
    rms_eps : float, optional
        The same for rms_norm, where that has another.
    eps_place : "inside", "outside" or "floor"
        With the mean square m (for layer_norm the variance) of n elements, x is divided by ``sqrt(m + eps)``, by
        ``sqrt(m) + eps``, or by ``max(length, eps) / sqrt(n)``, where length is ``sqrt(n * m)``. scale_norm divides by
        ``max(length, eps)``, with "outside" by ``length + eps``. Where "floor" is said, layer_norm has its own eps
        inside, and wide statistics: libraries that divide by a length have an ordinary LayerNorm beside that.
    rounding : "once", "normalized" or "each"
        What is rounded to x's dtype: the result alone; what is multiplied by the weight too; that, and each product and
        sum after it. With "floor" and "each", rows are unit vectors first, rounded as well, and then multiplied by
        sqrt(n).
    statistics : "wide" or "x"
        With "x" the square root in the divisor is rounded to x's dtype too.
    weight_offset : float
        Added to the weight, as the argument of that name, which must be left out then.
    offset : "wide" or "weight"
        With "weight" the sum of the two is rounded to the weight's dtype.
    portion : float
        The part of the features whose statistics are used: the first ``int(n * portion)`` of them (pRMSNorm).

    Raises
    ------
    TypeError, ValueError
        If a value is none of these.

    Examples
    --------
    >>> import anynorm
    >>> anynorm.Convention(eps=1e-8, eps_place="outside")
    Convention(eps=1e-08, eps_place='outside')
    >>> anynorm.CONVENTIONS["gemma"].replace(eps=1e-5)
    Convention(name='gemma', eps=1e-05, weight_offset=1.0)
    """

    __slots__ = (*_DEFAULTS, "_values")
    _values: tuple[Any, ...]
    name: str
    eps: float | None
    rms_eps: float | None
    eps_place: EpsPlace
    rounding: Rounding
    statistics: Literal["wide", "x"]
    weight_offset: float
    offset: Literal["wide", "weight"]
    portion: float

    def __init__(
        self,
        *,
        name: str = "",
        eps: float | None = None,
        rms_eps: float | None = None,
        eps_place: EpsPlace = "inside",
        rounding: Rounding = "once",
        statistics: Literal["wide", "x"] = "wide",
        weight_offset: float = 0.0,
        offset: Literal["wide", "weight"] = "wide",
        portion: float = 1.0,
    ) -> None:
        if not isinstance(name, str):
            raise TypeError(sentence("name", "be a str", describe(name), "pass what to call the convention"))
        eps, rms_eps = (
            None if value is None else check_number(argument, value, least=0.0)
            for argument, value in (("eps", eps), ("rms_eps", rms_eps))
        )
        for argument, choice in zip(_CHOICES, (eps_place, rounding, statistics, offset), strict=True):
            if not isinstance(choice, str) or choice not in _CHOICES[argument]:
                must = f"be one of {', '.join(map(repr, _CHOICES[argument]))}"
                wrong = ValueError if isinstance(choice, str) else TypeError
                raise wrong(sentence(argument, must, describe(choice), "pass one of these"))
        weight_offset, portion = check_number("weight_offset", weight_offset), check_number("portion", portion)
        if not 0.0 < portion <= 1.0:
            raise ValueError(sentence("portion", "be above 0 and at most 1", str(portion), "pass 1.0 for all features"))
        values = name, eps, rms_eps, eps_place, rounding, statistics, weight_offset, offset, portion
        object.__setattr__(self, "_values", values)
        for field, held_value in zip(_DEFAULTS, values, strict=True):
            object.__setattr__(self, field, held_value)

    def replace(self, **changes: Any) -> Convention:
        """Return this convention with other values."""
        return Convention(**(self._asdict() | changes))

    def _asdict(self) -> dict[str, Any]:
        return dict(zip(_DEFAULTS, self._values, strict=True))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("a Convention cannot be changed; its method replace makes another one")

    def __delattr__(self, name: str) -> None:
        self.__setattr__(name, None)

    def __eq__(self, other: object) -> bool:
        return self._values == other._values if isinstance(other, Convention) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._values)

    def __reduce__(self) -> tuple[Any, ...]:
        return decoded, (repr(self),)

    def __repr__(self) -> str:
        given = [f"{name}={value!r}" for name, value in self._asdict().items() if value != _DEFAULTS[name]]
        return f"Convention({', '.join(given)})"


def _named(name: str, **values: Any) -> Convention:
    return Convention(name=name, **values)


_BY_NAME = {
    convention.name: convention
    for convention in (
        _named("torch"),
        _named("llama", eps=1e-6, rounding="normalized"),
        _named("gemma", eps=1e-6, weight_offset=1.0),
        _named("gemma3", eps=1e-6, weight_offset=1.0),
        _named("qwen3", eps=1e-6, rounding="normalized"),
        _named("olmo2", eps=1e-6),
        _named("t5", eps=1e-6, rounding="normalized"),
        _named("cohere", eps=1e-5),
        _named("nemotron", eps=1e-5, weight_offset=1.0, offset="weight"),
        _named("onnx", eps=1e-5, rounding="each"),
        _named("flax", eps=1e-6),
        _named("keras", eps=1e-3, rms_eps=1e-6),
        _named("transformer_engine", eps=1e-5),
        _named("rmsnorm_paper", eps=1e-8, eps_place="outside"),
        _named("scalenorm_paper", eps=1e-5, eps_place="floor"),
        _named("x_transformers", eps=1e-12, eps_place="floor", rounding="each", statistics="x"),
    )
}
CONVENTIONS: Mapping[str, Convention] = MappingProxyType(_BY_NAME)


# What a norm, by its name, and a convention, or the name of one, make together: the rule, or None where it depends on
# the arguments or statistics are those of a portion; the eps where none is passed; the offset of the weight.
together: dict[str, dict[Any, tuple[Rule | None, float, float]]] = {"layer_norm": {}, "rms_norm": {}, "scale_norm": {}}
_MOST_TOGETHER = 1000
_EPS = {"layer_norm": LAYER_NORM_EPS, "rms_norm": RMS_NORM_EPS, "scale_norm": SCALE_NORM_EPS}
# Equal rules are one object, by which the kernels' fast path knows them; there are no more than some hundred.
_rules: dict[Rule, Rule] = {rule: rule for rule in (LAYER_NORM, RMS_NORM, SCALE_NORM)}


def resolved(
    rule: Rule, convention: Any, eps: Any, weight_offset: Any, has_weight: bool
) -> tuple[Rule, Any, Any, float]:
    """The rule, eps, offset and portion of a norm by a convention, which is one or the name of one."""
    given = _meant(rule, convention)
    if type(eps) is DefaultEps:
        eps = _eps_of(rule, given)
    if given.weight_offset and has_weight and rule.averaged:
        weight_offset = _offset_of(given, weight_offset)
    has_offset = not (type(weight_offset) is float and weight_offset == 0.0)
    return _rule_of(rule, given, has_offset), eps, weight_offset, given.portion


def find_together(rule: Rule, convention: Any) -> tuple[Rule | None, float, float]:
    """What `together` has then, unless it is full."""
    given = _meant(rule, convention)
    offset = given.weight_offset if rule.averaged else 0.0
    depends = given.portion != 1.0 or (given.offset == "weight" and not offset)
    found = None if depends else _rule_of(rule, given, offset != 0.0), _eps_of(rule, given), offset
    if len(together[rule.name]) < _MOST_TOGETHER:
        together[rule.name][convention] = found
    return found


def _meant(rule: Rule, convention: Any) -> Convention:
    """What a convention says of a norm."""
    given = check_convention(convention)
    if rule.centred and given.eps_place == "floor":  # what is said of lengths is not meant for it
        return given.replace(eps=None, eps_place="inside", statistics="wide")
    return given


@lru_cache(_MOST_TOGETHER)
def _rule_of(rule: Rule, given: Convention, has_offset: bool) -> Rule:
    place = given.eps_place if rule.averaged or given.eps_place == "outside" else "floor"
    offset = given.offset if has_offset else "wide"
    by = rule._replace(eps_place=place, rounding=given.rounding, statistics=given.statistics, offset=offset)
    return _rules.setdefault(by, by)


def _eps_of(rule: Rule, given: Convention) -> float:
    eps = given.eps if rule.averaged or given.eps_place == "floor" else None
    if rule.averaged and not rule.centred and given.rms_eps is not None:
        eps = given.rms_eps
    return float(_EPS[rule.name]) if eps is None else eps


def held(rule: Rule, convention: Any, eps: Any, weight_offset: Any) -> tuple[Convention | None, Any, Any]:
    """What a norm that holds its parameters keeps: the convention, eps and offset."""
    if convention is None:
        return None, eps, weight_offset
    given = check_convention(convention)
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


def written(convention: Convention) -> str:
    """A convention in the repr of a norm: by its name, if it is the one of that name."""
    return repr(convention.name if _BY_NAME.get(convention.name) == convention else convention)


def encoded(convention: Convention | str | None) -> str:
    """A convention as a string, for what takes no other objects: graphs of torch."""
    if convention is None:
        return ""
    return convention if isinstance(convention, str) else str(written(convention)).strip("'")


def decoded(text: str) -> Convention | None:
    """The convention of such a string."""
    if not text.startswith("Convention("):
        return check_convention(text) if text else None
    import ast  # for what is rarely done

    call: Any = ast.parse(text, mode="eval").body
    return Convention(**{one.arg: ast.literal_eval(one.value) for one in call.keywords})


def check_convention(convention: Any) -> Convention:
    """A convention, or that of a name."""
    if isinstance(convention, Convention):
        return convention
    found = _BY_NAME.get(convention) if isinstance(convention, str) else None
    if found is None:
        must = f"be a Convention or one of the names {', '.join(_BY_NAME)}"
        wrong = ValueError if isinstance(convention, str) else TypeError
        raise wrong(sentence("convention", must, describe(convention), "pass one of these names"))
    return found


def _offset_of(convention: Convention, weight_offset: Any) -> float:
    if check_number("weight_offset", weight_offset):
        must = f"be left out, for the convention has one of {convention.weight_offset}"
        do = "pass a convention without an offset, such as convention.replace(weight_offset=0.0)"
        raise ValueError(sentence("weight_offset", must, str(weight_offset), do))
    return convention.weight_offset


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
