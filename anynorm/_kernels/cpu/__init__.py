"""Fused kernels for NumPy arrays and CPU tensors, compiled by Numba: which calls they take.

Nothing here imports Numba, which takes half a second; the first call that a kernel takes does.
"""

from __future__ import annotations

import importlib.util
import math
import platform
from importlib.machinery import PathFinder
from typing import Any

from anynorm._check import Call, Gradient
from anynorm._forks import unforked
from anynorm._moments import arrays_of

_ADVICE = "Numba is not installed; pip install numba"


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


def _lacks_instructions() -> bool:
    """Whether this is an x86 processor of before 2013, without what the kernels are compiled to."""
    try:
        from numpy._core._multiarray_umath import __cpu_features__ as features  # type: ignore[import-not-found]
    except ImportError:
        return False
    return platform.machine().lower() in ("x86_64", "amd64", "i686") and not (
        features.get("F16C", True) and features.get("FMA3", True)
    )


_MISSING = None if is_installed("numba") else _ADVICE
if _MISSING is None and _lacks_instructions():
    _MISSING = "this processor has no instructions for float16 (F16C) or for fused multiplication and addition (FMA)"


def missing() -> str | None:
    """What to install before the kernels can run."""
    return _MISSING


def has_compiler() -> bool:
    """Import Numba; where it is installed but cannot be imported, as beside too new a NumPy, kernels are missing."""
    global _MISSING
    try:
        with unforked:
            import numba  # noqa: F401
    except (ImportError, OSError) as error:
        _MISSING = f"Numba cannot be imported ({error}); install releases of Numba and NumPy that go together"
    return _MISSING is None


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
    if not math.isfinite(scale_of(call)):
        return "the scale is not finite"
    return None


def refuses_to_pull(gradient: Gradient) -> str | None:
    """Why the kernels do not take the derivative of a call; None: they do."""
    call, dy, dtotal, _ = gradient
    if wants_gradient(call, dy, dtotal):
        return "a derivative of the derivative is wanted, which goes through the definition"
    # They read dy and dtotal like a residual and write dx like `out`, so the same is required of these.
    return refuses(call._replace(residual=dy, out=None if dtotal is None else (dtotal,)))


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

    given = (call.x, call.residual, call.weight, call.bias, *_arrays_of_moments(call), *others)
    return torch.is_grad_enabled() and any(getattr(one, "requires_grad", False) for one in given)


def refuses_arrays(call: Call, on_cuda: bool) -> str | None:
    """Why kernels for the CPU, or for CUDA, cannot have the arrays of a call; None: they can."""
    given = (call.x, call.residual, call.weight, call.bias, *_arrays_of_moments(call), *(call.out or ()))
    arrays = [one for one in given if one is not None and not isinstance(one, float)]
    reason = call.library.memory.refuses(arrays, on_cuda)
    if reason is None and call.out is not None and wants_gradient(call, *call.out):
        return "a gradient is wanted of what is written in place, which goes through the definition"
    return reason


def _arrays_of_moments(call: Call) -> tuple[Any, ...]:
    return () if call.moments is None else arrays_of(call.moments)
