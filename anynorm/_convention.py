"""Conventions: where a norm puts eps, what it rounds on the way, and how models and libraries do it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

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


def check_convention(convention: Any) -> Convention:
    """A convention, or that of a name."""
    if isinstance(convention, Convention):
        return convention
    found = _BY_NAME.get(convention) if isinstance(convention, str) else None
    if found is None:
        must = f"be a Convention or one of the names {', '.join(_BY_NAME)}"
        wrong = ValueError if isinstance(convention, str) else TypeError
        raise wrong(sentence("convention", must, describe(convention), _instead_of(convention)))
    return found


def _instead_of(name: Any) -> str:
    """What to pass in place of a name that no convention has, such as that of a model."""
    if not isinstance(name, str):
        return "pass one of these names"
    import difflib  # for a message alone

    from anynorm._models import convention_of_model

    of_model = convention_of_model(name)
    if of_model is not None:
        return f"pass {of_model!r}, by which the norms of this model go"
    nearest = difflib.get_close_matches(name.lower(), _BY_NAME, n=1)
    return f"pass {nearest[0]!r}" if nearest else "pass one of these names"


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
