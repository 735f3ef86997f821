"""Fused kernels for NumPy arrays and CPU tensors, compiled by LLVM: which calls they take.

Nothing here imports llvmlite; the first call that a kernel takes does.
"""

from __future__ import annotations

import importlib.util
import math
import platform
from functools import cache
from importlib.machinery import PathFinder
from typing import Any

from anynorm._check import Call, Gradient
from anynorm._forks import unforked
from anynorm._kernels.cpu.language.dtypes import INTERPRETED
from anynorm._moments import arrays_of
from anynorm._parameters import is_same_for_rows
from anynorm._totals import is_mixed

_ADVICE = "llvmlite is not installed; pip install llvmlite"
_ELSEWHERE = "its derivatives are those of eps where the norm has it, and the convention of this call has it elsewhere"


def is_installed(module: str) -> bool:
    """Whether a module could be imported, found without importing it or the package that it is in."""
    package = module.rpartition(".")[0]
    try:
        if not package:
            return importlib.util.find_spec(module) is not None
        # By itself find_spec would import the package, which may be a script of the user's: cuda.py, say.
        found = importlib.util.find_spec(package)
        places = None if found is None else found.submodule_search_locations
        return places is not None and PathFinder.find_spec(module, places) is not None
    except (ImportError, ValueError):
        return False


_MISSING = None if INTERPRETED or is_installed("llvmlite") else _ADVICE
_LEAST_LLVM = (20,)  # that of llvmlite 0.45; before, pointers had types
_NEEDED_X86 = ("f16c", "fma")  # as processors have them since 2013


def missing() -> str | None:
    """What to install before the kernels can run."""
    return _MISSING


def has_compiler() -> bool:
    """Import llvmlite; where it cannot be imported, or compile for this processor, kernels are missing."""
    global _MISSING
    if _MISSING is None and not INTERPRETED:
        _MISSING = _lacking()
    return _MISSING is None


@cache
def _lacking() -> str | None:
    with unforked:
        try:
            from llvmlite import __version__, binding

            if binding.llvm_version_info < _LEAST_LLVM:
                return f"llvmlite {__version__} is too old; pip install 'llvmlite>=0.45'"
            features = binding.get_host_cpu_features()
        except Exception as error:  # of a damaged one, or one for another Python, it may be any
            return f"llvmlite cannot be imported ({error}); install another release of it"
    if platform.machine().lower() in ("x86_64", "amd64") and not all(features.get(name) for name in _NEEDED_X86):
        return "this processor has no instructions for float16 (F16C) or for fused multiplication and addition (FMA)"
    return None


def refuses(call: Call) -> str | None:
    """Why the kernels do not take a call; None: they do."""
    if not call.library.memory.on_cpu:
        return f"it takes NumPy arrays and torch tensors on the CPU, and x is an array of {call.library.name}"
    reason = refuses_arrays(call, on_cuda=False)
    if reason is not None:
        return reason
    if 0 in call.x.shape:
        return "x is empty"
    if call.skip_nan:
        return "it does not leave NaN out of moments"
    reason = refuses_residual(call) if wants_gradient(call) else None
    if reason is None and call.moments is not None:
        reason = refuses_parameters(call) or _refuses_unit_vectors(call)
    if reason is not None:
        return reason
    if not math.isfinite(scale_of(call)):
        return "the scale is not finite"
    return None


def _refuses_unit_vectors(call: Call) -> str | None:
    """Rows of given moments may be pieces of longer ones, by whose length unit vectors are multiplied."""
    rule = call.rule
    makes_them = rule.averaged and rule.eps_place == "floor" and rule.rounding == "each"
    return "it rounds unit vectors, and the moments may be of longer rows" if makes_them else None


def refuses_vjp(gradient: Gradient) -> str | None:
    """Why the kernels do not take the derivative of a call; None: they do."""
    call, dy, dtotal, _ = gradient
    if wants_gradient(call, dy, dtotal):
        return "a derivative of the derivative is wanted, which goes through the definition"
    if not call.rule.formula.is_plain:
        return _ELSEWHERE
    # They read dy and dtotal like a residual and write dx like `out`, so the same is required of these.
    return refuses(call._replace(residual=dy, out=None if dtotal is None else (dtotal,)))


def refuses_parameters(call: Call) -> str | None:
    """Why kernels that have one weight and one bias for all rows do not take those of a call; None: they do."""
    for name, one in (("weight", call.weight), ("bias", call.bias)):
        if call.rule.averaged and not is_same_for_rows(one, tuple(call.x.shape), call.axes):
            return f"the {name} is not the same for all rows, or not given for each feature"
    return None


def has_groups(call: Call) -> bool:
    """Whether a call is one of groups of rows, each with a weight and a bias of its own (launch/groups.py)."""
    return refuses_parameters(call) is not None


def refuses_residual(call: Call) -> str | None:
    """Why kernels that have one dtype for all that is like x do not take a residual; None: they do."""
    return "the residual has another dtype than x" if is_mixed(call.x, call.residual) else None


def scale_of(call: Call) -> float:
    """The scale of scale_norm as a number; 1 where there is none."""
    scale: Any = call.weight
    if call.rule.averaged or scale is None:
        return 1.0
    return scale if type(scale) is float else float(scale.item())


def wants_gradient(call: Call, *others: Any) -> bool:
    """Whether torch must be able to differentiate a call."""
    if call.library.name != "torch":
        return False
    import torch

    of_moments = () if call.moments is None else arrays_of(call.moments)
    given = (call.x, call.residual, call.weight, call.bias, *of_moments, *others)
    return torch.is_grad_enabled() and any(getattr(one, "requires_grad", False) for one in given)


def refuses_arrays(call: Call, on_cuda: bool) -> str | None:
    """Why kernels for the CPU, or for CUDA, cannot have the arrays of a call; None: they can."""
    given: list[Any] = [call.x, call.residual, call.weight, call.bias]
    if call.moments is not None:
        given += arrays_of(call.moments)
    if call.out is not None:
        given += call.out
    arrays = [one for one in given if one is not None and type(one) is not float]
    reason = call.library.memory.refuses(arrays, on_cuda)
    if reason is None and call.out is not None and wants_gradient(call, *call.out):
        return "a gradient is wanted of what is written in place, which goes through the definition"
    return reason
