"""`repeat` for torch tensors on the CPU.

To ask three tensors one by one whether they are like earlier ones takes most of the time in which torch normalizes a
row of 768. For the graphs of torch.compile, torch has guards that check all of it at once: `TensorGuards` holds what of
each tensor was true when it was made (type, dtype, device, shape, strides, whether it is negated, and whether it
requires a gradient) and what of the thread was (inference mode, torch.func, tracing). No tensor lives on because of
one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from anynorm._check import Call
from anynorm._kernels.cpu.fast_path.recipe import DONE, Recipe
from anynorm._libraries.torch_tensors import LOW_ADDRESS, lacks_memory
from anynorm._profiled import is_profiled, name_of, named, profiler_of
from anynorm._torch.state import Guards, is_followed, modes_question

Array = Any
Attempt = Callable[..., Array | None]

_MOST_RECIPES = 1000
_recipes: dict[tuple[Any, ...], Recipe] = {}
_attempts: dict[tuple[Any, ...], Attempt | None] = {}
_latest: dict[str, Attempt] = {}

# torch, once a recipe is kept; its parts by themselves, as looking them up takes its time.
_torch: Any = None
_Tensor: Any = None
_forward_ad: Any = None
_guards: Guards | None = None


# From a call without arrays and what runs it, makes a function that torch's autograd can differentiate.
_follow: Callable[[Call, Attempt], Callable[..., Array]] | None = None


def _is_compiling() -> bool:
    return False


def _count_modes() -> int:
    return 0


def repeat(rule: str, x: Array, weight: Any, bias: Array | None, eps: float, offset: float) -> Array | None:
    """Normalize x as a call of the same kind was; None where there was none."""
    # First, for no other question can be asked while a graph is being traced. The next two guards do not ask, and
    # `is_followed` has found both to exist before anything was remembered.
    if _torch is None or _is_compiling() or _forward_ad._current_level >= 0 or _count_modes():
        return None
    # Asked of a nested tensor, guards would end the process.
    if getattr(x, "is_nested", None) is not False:
        return None
    if getattr(weight, "is_nested", False) is not False or getattr(bias, "is_nested", False) is not False:
        return None
    attempt = _latest.get(rule)
    if attempt is not None:
        y = attempt(x, weight, bias, eps, offset)
        if y is not None:
            return y
    if type(x) is not _Tensor:
        return None
    key = (rule, x.shape, x.dtype, eps, offset, type(weight), type(bias))
    attempt = _attempts.get(key)
    if attempt is not None:
        y = attempt(x, weight, bias, eps, offset)
        if y is not None:
            _latest[rule] = attempt
            return y
    return _ask(key, x, weight, bias)


def _ask(key: tuple[Any, ...], x: Array, weight: Any, bias: Array | None) -> Array | None:
    """Ask the tensors one by one; and where a key is seen again, have them guarded from then on."""
    rule, shape, dtype, eps, offset, _, _ = key
    if is_followed(_torch) or not _is_plain(x):
        return None
    features = shape[-1] if shape else 0
    w, b = weight, None
    if weight is not None and type(weight) is not float:
        if not _is_plain(weight) or weight.shape != (features,):
            return None
        w = weight.dtype
    if bias is not None:
        if not _is_plain(bias) or bias.shape != (features,):
            return None
        b = bias.dtype
    recipe = _recipes.get((rule, dtype, features, eps, offset, w, b))
    size = x.numel()
    if recipe is None or not 0 < size <= recipe.most_elements or any(map(_lacks_memory, (x, weight, bias))):
        return None
    if _guards is not None:
        if len(_attempts) >= _MOST_RECIPES:
            _attempts.clear()
        is_seen_again = key in _attempts
        _attempts[key] = _attempt(_guards, recipe, eps, offset, x, weight, bias) if is_seen_again else None
    if is_profiled():  # the long way sees to the name
        return None
    if _torch.is_grad_enabled() and (x.requires_grad or _wants_gradient(weight) or _wants_gradient(bias)):
        if _follow is None:
            return None
        return _follow(_call_of(recipe, x), partial(_run, recipe))(x, weight, bias)
    return _run(recipe, x, weight, bias)


def _call_of(recipe: Recipe, x: Array) -> Call:
    """The call that a recipe is of, whose x had as many features, and maybe fewer or more axes."""
    call: Call = recipe.call._replace(axes=(x.ndim - 1,))
    return call


def _run(recipe: Recipe, x: Array, weight: Any, bias: Array | None) -> Array | None:
    size, y = x.numel(), _torch.empty_like(x)
    of_weight = 0 if weight is None or type(weight) is float else weight.data_ptr()
    of_bias = 0 if bias is None else bias.data_ptr()
    done = recipe.again(recipe.address, size, x.data_ptr(), y.data_ptr(), of_weight, of_bias)
    if done < -1:
        return y if done == DONE else None
    recipe.resume(x, y, weight, bias, done)
    return y


def _attempt(
    guards: Guards,
    recipe: Recipe,
    same_eps: float,
    same_offset: float,
    x: Array,
    weight: Any,
    bias: Array | None,
) -> Attempt:
    """A function that makes a call, if it is like this one in all but the numbers."""
    weighted, biased = weight is not None and type(weight) is not float, bias is not None
    given = (x, *((weight,) if weighted else ()), *((bias,) if biased else ()))
    are_alike, make = guards.guard(given), guards.make
    shape, strides, dtype = tuple(x.shape), tuple(x.stride()), x.dtype
    size = x.numel()
    same_weight, of_weight = None if weighted else weight, type(weight)
    again, address, call = recipe.again, recipe.address, _call_of(recipe, x)
    followed: Callable[..., Array] | None = None
    # Guards look at what the tensors want, and not at whether it is granted.
    wanted, is_grad_enabled = any(tensor.requires_grad for tensor in given), _torch.is_grad_enabled
    profiler, name = profiler_of(_torch), name_of(call, "cpu")

    def attempt(x: Array, weight: Any, bias: Array | None, eps: float, offset: float) -> Array | None:
        if eps != same_eps or offset != same_offset:
            return None
        if weighted:
            alike = are_alike(x, weight, bias) if biased else bias is None and are_alike(x, weight)
        elif type(weight) is not of_weight or weight != same_weight:
            return None
        else:
            alike = are_alike(x, bias) if biased else bias is None and are_alike(x)
        if not alike:
            return None
        is_low = (
            x.data_ptr() < LOW_ADDRESS
            or (weighted and weight.data_ptr() < LOW_ADDRESS)
            or (biased and bias.data_ptr() < LOW_ADDRESS)  # type: ignore[union-attr]
        )
        if is_low and any(map(_lacks_memory, (x, weight, bias))):
            return None
        begin: Callable[..., Array | None] = run
        if wanted and is_grad_enabled():
            nonlocal followed
            if followed is None:
                if _follow is None:
                    return None
                followed = _follow(call, run)
            begin = followed
        if profiler._is_profiler_enabled:
            return named(name, (x, weight, bias), begin, x, weight, bias)
        return begin(x, weight, bias)

    def run(x: Array, weight: Any, bias: Array | None) -> Array | None:
        y = make(shape, strides, dtype)
        done = again(
            address, size, x.data_ptr(), y.data_ptr(),
            weight.data_ptr() if weighted else 0, bias.data_ptr() if biased else 0,  # type: ignore[union-attr]
        )  # fmt: skip
        if done < -1:
            return y if done == DONE else None
        recipe.resume(x, y, weight, bias, done)  # and with that, attempt holds what the address is of
        return y

    return attempt


def _wants_gradient(parameter: Any) -> bool:
    return parameter is not None and type(parameter) is not float and bool(parameter.requires_grad)


def _lacks_memory(one: Any) -> bool:
    return one is not None and type(one) is not float and lacks_memory(one)


def _is_plain(tensor: Array) -> bool:
    """Whether the memory of a tensor holds its numbers, one after the other."""
    kind = type(tensor)
    plain = kind is _Tensor or kind is _torch.nn.Parameter
    plain = plain and tensor.layout is _torch.strided  # without which no other question may be asked
    return plain and tensor.is_contiguous() and tensor.is_cpu and not tensor.is_neg()


def remember(call: Call, make: Callable[[], Recipe]) -> None:
    """Keep what calls like this one will need, made where it is not kept yet."""
    global _torch, _Tensor, _forward_ad, _guards, _is_compiling, _count_modes
    if _torch is None:
        import torch

        _Tensor, _forward_ad, _guards = torch.Tensor, torch.autograd.forward_ad, Guards.of(torch)
        _is_compiling, _count_modes = torch.compiler.is_compiling, modes_question(torch)
        _torch = torch
    weight: Any = call.weight
    w = weight if weight is None or type(weight) is float else weight.dtype
    b = None if call.bias is None else call.bias.dtype
    key = (call.rule.name, call.x.dtype, call.x.shape[-1], call.eps, call.weight_offset, w, b)
    if key not in _recipes:
        if len(_recipes) >= _MOST_RECIPES:
            forget()
        _recipes[key] = make()


def follow_by(make: Callable[[Call, Attempt], Callable[..., Array]]) -> None:
    """Tell what makes a function that can be differentiated, which lies above; before, such calls go the long way."""
    global _follow
    _follow = make


def forget() -> None:
    """Let all calls take the long way once more."""
    _latest.clear()
    _attempts.clear()
    _recipes.clear()
