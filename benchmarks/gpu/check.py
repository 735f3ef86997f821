"""Results of GPU calls against the formula in float64, its derivatives by torch's autograd."""

from typing import Any

from anynorm._bench.cases import Case
from anynorm._bench.inputs import TOLERANCE

from .work import Work

# Sums over all rows: some rivals add them up in float32, in parts that they round to the parameter's dtype.
OF_SUMS = 8


def formula(case: Case, x: Any, weight: Any, bias: Any) -> Any:
    """The norm as the formula stands."""
    import torch

    if case.norm == "scale_norm":
        return x / torch.linalg.vector_norm(x, dim=case.axis, keepdim=True).clamp(min=case.eps)
    along = tuple(-1 if axis == case.axis % x.ndim else 1 for axis in range(x.ndim))
    if case.norm == "layer_norm":
        x = x - x.mean(case.axis, keepdim=True)
    y = x / torch.sqrt((x**2).mean(case.axis, keepdim=True) + case.eps) * weight.reshape(along)
    return y + bias.reshape(along) if case.norm == "layer_norm" else y


def expected(work: Work, x: Any, other: Any, weight: Any, bias: Any) -> tuple[Any, ...]:
    """All that a call returns, in its order."""
    import torch

    case = work.case
    x, other, weight, bias = (None if one is None else one.detach().double() for one in (x, other, weight, bias))
    if work.what == "add":
        total = (x + other).to(getattr(torch, case.dtype)).double()
        return formula(case, total, weight, bias), total
    if work.what in ("y", "call"):
        return (formula(case, x, weight, bias),)
    by = [x] if work.what == "dx" else [x, weight, bias] if case.norm == "layer_norm" else [x, weight]
    by = [one.requires_grad_() for one in by]
    with torch.enable_grad():
        return torch.autograd.grad(formula(case, x, weight, bias), by, other)


def wrong(work: Work, got: Any, wanted: tuple[Any, ...]) -> str | None:
    """What is wrong with a result, relative to max(|y|, root mean square of y's row)."""
    import torch

    got = got if isinstance(got, tuple) else (got,)
    if len(got) != len(wanted):
        return f"{len(got)} results for {len(wanted)}"
    for place, (one, right) in enumerate(zip(got, wanted, strict=True)):
        found = torch.as_tensor(one, device=right.device).detach()
        if found.shape != right.shape:
            return f"shape {tuple(found.shape)} for {tuple(right.shape)}"
        axis = work.case.axis if right.ndim > 1 else -1
        size = torch.maximum(right.abs(), (right**2).mean(axis, keepdim=True).sqrt())
        error = float(((found.double() - right).abs() / size).max())
        bound = TOLERANCE[work.case.dtype] * (OF_SUMS if right.ndim == 1 else 1)
        if not error <= bound:  # NaN is not
            return f"result {place} is off by {error:.2g}, more than {bound:.2g}"
    return None
