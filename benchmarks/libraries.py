"""anynorm through its definition and the plain expression, in each library: how each is set up, and what is timed.

What JAX compiles is timed as it runs, or, by the rivals that are called "compiling", as it is traced and compiled.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import anynorm
from anynorm._bench.cases import Case
from anynorm._bench.inputs import make_gradient, make_matrices
from anynorm._bench.memory import traced
from anynorm._bench.rivals import Array, Call, Rival, anynorm_call, expression, jax_expression, numpy_expression

PARAMETERS = {"layer_norm": ("weight", "bias"), "rms_norm": ("weight",), "scale_norm": ()}
Function = Callable[..., Any]


def ours(case: Case) -> Function:
    return partial(getattr(anynorm, case.norm), axis=case.axis, eps=case.eps)


def arguments_of(case: Case, x: Array, weight: Array, bias: Array) -> dict[str, Array]:
    """Map the names of the arguments that the norm has to their values."""
    given = {"x": x, "weight": weight, "bias": bias}
    return {name: given[name] for name in ("x", *PARAMETERS[case.norm])}


def torch_eager(case: Case, threads: int, *given: Array, definition: bool) -> Call:
    import torch

    torch.set_num_threads(threads)
    norm, arguments = ours(case) if definition else expression(case, torch), arguments_of(case, *given).values()
    return lambda: norm(*arguments)


def strict(case: Case, threads: int, *given: Array, definition: bool) -> Call:
    import array_api_strict as xp

    norm, arguments = ours(case) if definition else expression(case, xp), arguments_of(case, *given).values()
    arguments = [xp.asarray(array) for array in arguments]
    return lambda: norm(*arguments)


def dask_computed(case: Case, threads: int, *given: Array, definition: bool) -> Call:
    """Built and computed, rows whole in four blocks."""
    import dask.array as xp

    norm, (x, *parameters) = ours(case) if definition else expression(case, xp), arguments_of(case, *given).values()
    x = xp.from_array(x, chunks=(-(-x.shape[0] // 4), -1))
    parameters = [xp.from_array(array) for array in parameters]
    how = {"scheduler": "synchronous"} if threads == 1 else {"scheduler": "threads", "num_workers": threads}
    return lambda: norm(x, *parameters).compute(**how)


def onnx_traced(case: Case, threads: int, *given: Array, definition: bool) -> Call:
    """Traced by ndonnx, run by ONNX Runtime."""
    import ndonnx as xp
    import onnxruntime

    norm, values = ours(case) if definition else expression(case, xp), arguments_of(case, *given)
    traced = {
        name: xp.argument(shape=array.shape, dtype=getattr(xp, str(array.dtype))) for name, array in values.items()
    }
    model = xp.build(traced, {"y": norm(*traced.values())})
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, values)[0]


class JaxCall:
    """A function and its arguments; called, it waits for the result."""

    def __init__(self, function: Function, arguments: list[Any]):
        self.function, self.arguments = function, arguments

    def __call__(self) -> Any:
        import jax

        return jax.block_until_ready(self.function(*self.arguments))

    def compiled(self) -> Any:
        import jax

        return jax.jit(self.function).lower(*self.arguments).compile()


def jax_call(case: Case, threads: int, *given: Array, definition: bool, how: str = "jit") -> Call:
    """``how`` is "jit", "eager", or "compile", which compiles in each call and returns the compiled call."""
    import jax

    norm = ours(case) if definition else plain_jax(case)
    arguments = [jax.numpy.asarray(array) for array in arguments_of(case, *given).values()]
    if case.of != "y":
        dy = jax.numpy.asarray(make_gradient(case, "numpy"))
        norm, arguments = (gradient if case.of == "dx" else model_gradient)(case, norm, arguments, dy)
    call = JaxCall(norm if how == "eager" else jax.jit(norm), arguments)
    if how != "compile":
        return call

    def compile_anew() -> Call:
        jax.clear_caches()
        return JaxCall(JaxCall(norm, arguments).compiled(), arguments)

    return compile_anew


def plain_jax(case: Case) -> Function:
    """Return the plain expression; of bfloat16 in float32.

    That is usual and no slower. The gradient of an expression in bfloat16 alone is off by up to 4 per cent.
    """
    norm = jax_expression(case)
    if case.dtype == "bfloat16":
        return lambda *given: norm(*(array.astype("float32") for array in given)).astype("bfloat16")
    return norm


def gradient(case: Case, norm: Function, arguments: list[Array], dy: Array) -> tuple[Function, list[Any]]:
    """The gradients of sum(y * dy) by x and each parameter."""
    import jax

    def loss(dy: Array, *arguments: Array) -> Array:
        return jax.numpy.sum(norm(*arguments) * dy)

    return jax.grad(loss, argnums=tuple(range(1, 1 + len(arguments)))), [dy, *arguments]


def model_gradient(case: Case, norm: Function, arguments: list[Array], dy: Array) -> tuple[Function, list[Any]]:
    """The gradients of x and each parameter, of layers that add the product of their norm and a matrix."""
    import jax

    def loss(x: Array, layers: list[Any], dy: Array) -> Array:
        for matrix, *parameters in layers:
            x = x + norm(x, *parameters) @ matrix
        return jax.numpy.sum(x * dy)

    x, *parameters = arguments
    layers = [(jax.numpy.asarray(matrix), *parameters) for matrix in make_matrices(case)]
    return jax.grad(loss, argnums=(0, 1)), [x, layers, dy]


def jax_temporaries(call: Any) -> int:
    return call.compiled().memory_analysis().temp_size_in_bytes


FORCED = {"ANYNORM_KERNEL": "definition"}
COMPILING = {"JAX_ENABLE_COMPILATION_CACHE": "false"}
X64 = {"JAX_ENABLE_X64": "1"}
# Under jit the result alone is allocated. Whether glibc gives its memory back depends on what the process freed before:
# the plain expression of 4096 x 1024 float32 takes 1.3 ms, or 5 to 19 with page faults. Here the memory is kept.
KEPT = dict.fromkeys(("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"), str(1 << 33))


def _rivals() -> dict[str, Rival]:
    found = {
        "plain NumPy": Rival(numpy_expression, temporaries=traced),
        "definition NumPy": Rival(anynorm_call, temporaries=traced, environment=FORCED),
    }
    eager = {
        "torch": (torch_eager, "torch", ("torch",)),
        "Dask": (dask_computed, "numpy", ("dask",)),
        "array-api-strict": (strict, "numpy", ("array_api_strict",)),
        "ONNX Runtime": (onnx_traced, "numpy", ("ndonnx", "onnxruntime")),
    }
    for name, (make, library, packages) in eager.items():
        for who in ("plain", "definition"):
            environment = FORCED if who == "definition" else {}
            made = partial(make, definition=who == "definition")
            found[f"{who} {name}"] = Rival(made, library, packages, environment)
    for name, wide in {"JAX": KEPT, "JAX x64": KEPT | X64}.items():
        for who in ("plain", "definition"):
            made, jax = partial(jax_call, definition=who == "definition"), ("jax",)
            found[f"{who} {name}"] = Rival(made, "numpy", jax, wide, temporaries=jax_temporaries)
            found[f"{who} {name}, compiling"] = Rival(partial(made, how="compile"), "numpy", jax, wide | COMPILING)
        found[f"definition {name}, eager"] = Rival(partial(made, how="eager"), "numpy", jax, wide)
    return found


RIVALS = _rivals()
