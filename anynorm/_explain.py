"""Which kernel a call would run, and why."""

from __future__ import annotations

from numbers import Real
from typing import NamedTuple

from anynorm._by_convention import leading, require_no_moments, resolved
from anynorm._check import check
from anynorm._choose import KERNELS, choose
from anynorm._convention import LAYER_NORM_EPS, Convention
from anynorm._definition.norms import LAYER_NORM, RMS_NORM, SCALE_NORM
from anynorm._described import described
from anynorm._moments import Moments
from anynorm._types import Array, Axis, Number
from anynorm._wording import describe, sentence

_RULES = {rule.name: rule for rule in (LAYER_NORM, RMS_NORM, SCALE_NORM)}


@described
class Explanation(NamedTuple):
    """Which kernel a call would run, and why each other one refuses it; printed, a line for each.

    Attributes
    ----------
    kernel : str
        The name of the kernel.
    refused : dict of str to str
        The names of kernels that do not run the call, each with the reason.
    """

    kernel: str
    refused: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{self.kernel} runs this call"]
        lines += [f"{name} does not: {reason}" for name, reason in self.refused.items()]
        return "\n".join(lines)


def explain(
    x: Array,
    weight: Array | Number | None = None,
    bias: Array | None = None,
    *,
    norm: str = "layer_norm",
    axis: Axis = -1,
    eps: float = LAYER_NORM_EPS,
    weight_offset: float = 0.0,
    convention: Convention | str | None = None,
    moments: Moments | None = None,
    residual: Array | None = None,
    out: Array | tuple[Array, Array] | None = None,
) -> Explanation:
    """Say which kernel a call would run and why each other one refuses it; nothing is computed.

    Parameters
    ----------
    x, weight, bias, axis, eps, weight_offset, convention, moments, out
        The arguments of the call; for scale_norm, ``weight`` is the scale.
    norm : str
        "layer_norm", "rms_norm" or "scale_norm".
    residual : array of x's shape, optional
        Given, the call is add_layer_norm or add_rms_norm.

    Returns
    -------
    Explanation
        With ``kernel`` and ``refused``, a dict from kernel to reason; printed, a line for each.

    Raises
    ------
    TypeError, ValueError
        As the call itself raises, and if there is no such norm.

    Examples
    --------
    >>> import numpy, anynorm
    >>> anynorm.explain(numpy.ones((2, 3), ">f4")).kernel  # in a byte order that no other kernel reads
    'definition'
    """
    if not isinstance(norm, str) or norm not in _RULES:
        wrong = ValueError if isinstance(norm, str) else TypeError
        raise wrong(sentence("norm", f"be one of {', '.join(_RULES)}", describe(norm), "pass one of these names"))
    rule = _RULES[norm]
    offset = None if isinstance(weight_offset, Real) and not weight_offset else weight_offset
    for argument, value in (("bias", bias), ("weight_offset", offset), ("residual", residual)):
        if value is not None and not rule.averaged:
            raise TypeError(sentence(argument, "be left out for scale_norm", describe(value), "pass another norm"))
    if moments is not None and residual is not None:
        do = "leave one of them out"
        raise TypeError(sentence("moments", "be left out where there is a residual", describe(moments), do))
    portion = 1.0
    if convention is not None:
        rule, eps, weight_offset, portion = resolved(rule, convention, eps, weight_offset, weight is not None)
    call = check(
        rule, x, weight, bias, axis, eps,
        weight_offset=weight_offset, moments=moments, residual=residual, out=out,
    )  # fmt: skip
    if portion != 1.0:
        require_no_moments(moments)
        leading(x, call.axes, portion)
    refused = {}
    for kernel in KERNELS:
        reason = kernel.refuses(call) or kernel.missing()  # no package helps a call that it would not take
        if reason is not None:
            refused[kernel.name] = reason
    return Explanation(choose(call).name, refused)
