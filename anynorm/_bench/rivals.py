"""The rivals: how each is set up for a case, and the call that is timed.

A rival imports its library when it is set up, in a process of its own whose environment holds the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import anynorm
from anynorm._bench.cases import Case
from anynorm._bench.inputs import make_gradient

Array = Any
Call = Callable[[], Array]


class Rival(NamedTuple):
    """How a rival is set up: make(case, threads, x, weight, bias) -> the timed call, which returns the result."""

    make: Callable[[Case, int, Array, Array, Array], Call]
    library: str = "numpy"  # of the inputs
    packages: tuple[str, ...] = ()  # that must be installed, beyond what anynorm requires
    environment: Mapping[str, str] = {}
    copies: bool = False  # the result is x itself
    temporaries: Callable[[Call], int | None] | None = None  # bytes held at most beyond arguments and result


def anynorm_call(case: Case, threads: int, x: Array, weight: Array, bias: Array, into: bool = False) -> Call:
    keywords = {"axis": case.axis, "eps": case.eps} | ({"out": np.empty_like(x)} if into else {})
    norm = getattr(anynorm, case.norm)
    if case.norm == "layer_norm":
        return lambda: norm(x, weight, bias, **keywords)
    if case.norm == "rms_norm":
        return lambda: norm(x, weight, **keywords)
    return lambda: norm(x, **keywords)


def numpy_expression(case: Case, threads: int, x: Array, weight: Array, bias: Array) -> Call:
    eps = case.eps
    if case.norm == "layer_norm":
        return lambda: (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * weight + bias
    if case.norm == "rms_norm":
        return lambda: x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight
    return lambda: x / np.linalg.norm(x, axis=-1, keepdims=True)


def expression(case: Case, xp: Any, over_root: Callable[[Array, Array], Array] | None = None) -> Callable[..., Array]:
    """The formula as anyone would write it, of x and those parameters that the norm has, in any library.

    ``over_root(a, b)`` is ``a / sqrt(b)`` where the library has other words for it.
    """
    divide = over_root or (lambda a, b: a / xp.sqrt(b))

    def norm(x: Array, weight: Array = None, bias: Array = None) -> Array:
        if case.norm == "scale_norm":
            return divide(x, xp.sum(x * x, axis=-1, keepdims=True))
        if case.norm == "rms_norm":
            return divide(x, xp.mean(x * x, axis=-1, keepdims=True) + case.eps) * weight
        centred = x - xp.mean(x, axis=-1, keepdims=True)
        return divide(centred, xp.mean(centred * centred, axis=-1, keepdims=True) + case.eps) * weight + bias

    return norm


def numpy_copy(case: Case, threads: int, x: Array, weight: Array, bias: Array) -> Call:
    out = np.empty_like(x)

    def copy() -> Array:
        np.copyto(out, x)
        return out

    return copy


def streaming_copy(case: Case, threads: int, x: Array, weight: Array, bias: Array) -> Call:
    """Copy past the caches, as the kernels store large results: what is overwritten is not read before."""
    from anynorm._bench.streaming import copier

    out = aligned_like(x)
    copy = copier(out, x, threads)

    def run() -> Array:
        copy()
        return out

    return run


def aligned_like(x: Array) -> Array:
    """An array that begins with a cache line."""
    room = np.empty(x.nbytes + 64, np.uint8)
    first = -room.ctypes.data % 64
    return room[first : first + x.nbytes].view(x.dtype).reshape(x.shape)


def torch_copy(case: Case, threads: int, x: Array, weight: Array, bias: Array) -> Call:
    """Copy between NumPy's buffers as torch does: on all threads, where NumPy has one."""
    import torch

    torch.set_num_threads(threads)
    out = torch.from_numpy(np.empty_like(x))
    source = torch.from_numpy(x)
    return lambda: out.copy_(source)


def torch_eager(case: Case, threads: int, x: Array, weight: Array, bias: Array, contiguous: bool = False) -> Call:
    import torch
    from torch.nn import functional

    torch.set_num_threads(threads)
    shape, eps = (case.features,), case.eps
    if case.axis != -1:
        if contiguous:
            return lambda: functional.layer_norm(x.movedim(1, -1), shape, weight, bias, eps).movedim(-1, 1).contiguous()
        return lambda: functional.layer_norm(x.movedim(1, -1), shape, weight, bias, eps).movedim(-1, 1)
    if case.norm == "layer_norm":
        return lambda: functional.layer_norm(x, shape, weight, bias, eps)
    if case.norm == "rms_norm":
        return lambda: functional.rms_norm(x, shape, weight, eps)
    return lambda: functional.normalize(x, dim=-1, eps=eps)


def anynorm_on_torch(case: Case, threads: int, x: Array, weight: Array, bias: Array) -> Call:
    import torch

    torch.set_num_threads(threads)
    return anynorm_call(case, threads, x, weight, bias)


def module(case: Case, threads: int, x: Array, weight: Array, bias: Array, ours: bool, compiled: bool = False) -> Call:
    """A module with its parameters: applied, or trained, which is the call and the gradients of x and parameters."""
    import torch

    from anynorm import torch as anynorm_torch

    torch.set_num_threads(threads)
    torch._dynamo.reset()  # a graph of another shape would be replaced by one for any shape
    modules = anynorm_torch if ours else torch.nn
    norm = (modules.LayerNorm if case.norm == "layer_norm" else modules.RMSNorm)(case.features, eps=case.eps)
    state = {"weight": weight, "bias": bias}
    norm.load_state_dict({name: state[name] for name in norm.state_dict()})
    apply = torch.compile(norm) if compiled else norm
    if case.of == "y":

        def run() -> Array:
            with torch.no_grad():
                return apply(x)

        return run
    x = x.detach().requires_grad_()
    dy = make_gradient(case)
    followed = (x, *norm.parameters())
    return lambda: torch.autograd.grad(apply(x), followed, dy)[0]


def onnx_runtime(case: Case, threads: int, x: Array, weight: Array, bias: Array) -> Call:
    """One node, parameters as initializers, input and output bound to NumPy's buffers: nothing is copied."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    model = _onnx_model(case, [weight, bias] if case.norm == "layer_norm" else [weight])
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    out = np.empty_like(x)
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", onnxruntime.OrtValue.ortvalue_from_numpy(x))
    binding.bind_output("y", "cpu", 0, out.dtype, out.shape, out.ctypes.data)

    def run(x: Array = x) -> Array:  # x is bound by its address, so it must live as long as the call
        session.run_with_iobinding(binding)
        return out

    return run


def _onnx_model(case: Case, parameters: list[np.ndarray]) -> bytes:
    from onnx import helper, numpy_helper

    operator, opset = {"layer_norm": ("LayerNormalization", 17), "rms_norm": ("RMSNormalization", 23)}[case.norm]
    names = ["weight", "bias"][: len(parameters)]
    element = helper.np_dtype_to_tensor_dtype(np.dtype(case.dtype))
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", *names], ["y"], axis=-1, epsilon=case.eps)],
        case.norm,
        [helper.make_tensor_value_info("x", element, case.shape)],
        [helper.make_tensor_value_info("y", element, case.shape)],
        [numpy_helper.from_array(array, name) for array, name in zip(parameters, names, strict=True)],
    )
    # An IR version that ONNX Runtime of the last years reads; onnx writes its newest one by default.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    written: bytes = model.SerializeToString()
    return written


def jitted_jax(case: Case, threads: int, x: Array, weight: Array, bias: Array) -> Call:
    import jax

    norm = jax.jit(jax_expression(case))
    arguments = [jax.numpy.asarray(array) for array in (x, weight, bias)]
    return lambda: norm(*arguments).block_until_ready()


def jax_expression(case: Case) -> Callable[..., Array]:
    """`expression` in JAX, with its rsqrt."""
    import jax

    return expression(case, jax.numpy, lambda a, b: a * jax.lax.rsqrt(b))


def anynorm_on_jax(case: Case, threads: int, x: Array, weight: Array, bias: Array) -> Call:
    """Anynorm as it is called on JAX's arrays, eagerly."""
    import jax

    x, weight, bias = (jax.numpy.asarray(array) for array in (x, weight, bias))
    call = anynorm_call(case, threads, x, weight, bias)
    return lambda: call().block_until_ready()


def scikit_learn(case: Case, threads: int, x: Array, weight: Array, bias: Array) -> Call:
    from sklearn.preprocessing import normalize

    return lambda: normalize(x)


HUGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}  # torch asks for huge pages only then; NumPy always does
_on_torch = partial(Rival, library="torch", packages=("torch",))

RIVALS: dict[str, Rival] = {
    "anynorm": Rival(anynorm_call),
    "anynorm out=": Rival(partial(anynorm_call, into=True)),
    "anynorm on torch": _on_torch(anynorm_on_torch),
    "anynorm on torch, huge pages": _on_torch(anynorm_on_torch, environment=HUGE_PAGES),
    "copy": Rival(numpy_copy, copies=True),
    "streaming copy": Rival(streaming_copy, packages=("llvmlite",), copies=True),
    "copy by torch": Rival(torch_copy, packages=("torch",), copies=True),
    "NumPy": Rival(numpy_expression),
    "torch": _on_torch(torch_eager),
    "torch, huge pages": _on_torch(torch_eager, environment=HUGE_PAGES),
    "torch contiguous": _on_torch(partial(torch_eager, contiguous=True)),
    "torch contiguous, huge pages": _on_torch(partial(torch_eager, contiguous=True), environment=HUGE_PAGES),
    "anynorm module": _on_torch(partial(module, ours=True)),
    "anynorm module, huge pages": _on_torch(partial(module, ours=True), environment=HUGE_PAGES),
    "anynorm compiled": _on_torch(partial(module, ours=True, compiled=True)),
    "torch module": _on_torch(partial(module, ours=False)),
    "torch module, huge pages": _on_torch(partial(module, ours=False), environment=HUGE_PAGES),
    "torch compiled": _on_torch(partial(module, ours=False, compiled=True)),
    "torch compiled, huge pages": _on_torch(partial(module, ours=False, compiled=True), environment=HUGE_PAGES),
    "ONNX Runtime": Rival(onnx_runtime, packages=("onnx", "onnxruntime")),
    "anynorm on JAX": Rival(anynorm_on_jax, packages=("jax",)),
    "JAX": Rival(jitted_jax, packages=("jax",)),
    "scikit-learn": Rival(scikit_learn, packages=("sklearn",)),
}
