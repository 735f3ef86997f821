"""LayerNormalization and RMSNormalization: as ONNX defines them, by its reference evaluator, and ONNX Runtime.

The evaluator's own code for the two computes in the dtype of x, whatever `stash_type` says; so the functions that
define them are evaluated, step after step.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from benchmarks.originals import Original

_OPERATORS = {"layer_norm": ("LayerNormalization", 17), "rms_norm": ("RMSNormalization", 23)}


def node_of(norm: str, given: Iterable[str], eps: float) -> Any:
    """A node that normalizes the last axis."""
    from onnx import helper

    return helper.make_node(_OPERATORS[norm][0], list(given), ["y"], axis=-1, epsilon=eps, stash_type=1)


def function_of(norm: str, given: dict[str, np.ndarray], eps: float) -> Any:
    """The operator as the standard defines it: a function of simpler ones, for arrays of these dtypes."""
    import onnx
    from onnx import helper

    operator, version = _OPERATORS[norm]
    schema = onnx.defs.get_schema(operator, version)
    types = [
        helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(one.dtype), one.shape) for one in given.values()
    ]
    node, types = node_of(norm, given, eps).SerializeToString(), [one.SerializeToString() for one in types]
    function = onnx.FunctionProto()
    latest = max(schema.context_dependent_function_opset_versions)
    function.ParseFromString(schema.get_context_dependent_function_with_opset_version(latest, node, types))
    return function


def model_of(norm: str, given: dict[str, np.ndarray], eps: float) -> Any:
    """A model of one node."""
    import onnx
    from onnx import helper

    operator, version = _OPERATORS[norm]
    element = helper.np_dtype_to_tensor_dtype(given["x"].dtype)
    inputs = [helper.make_tensor_value_info(name, element, one.shape) for name, one in given.items()]
    outputs = [helper.make_tensor_value_info("y", element, given["x"].shape)]
    graph = helper.make_graph([node_of(norm, given, eps)], operator, inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def _given(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> dict[str, np.ndarray]:
    return {"x": x, "weight": weight} if bias is None else {"x": x, "weight": weight, "bias": bias}


def by_standard(norm: str) -> Any:
    def run(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, eps: float) -> np.ndarray:
        from onnx.reference import ReferenceEvaluator

        given = _given(x, weight, bias)
        function = function_of(norm, given, eps)
        attributes = {"axis": -1, "epsilon": eps, "stash_type": 1}
        left_out = dict.fromkeys(function.input[len(given) :])
        named = dict(zip(function.input, given.values(), strict=False)) | left_out
        (y,) = ReferenceEvaluator(function).run(["Y"], named, attributes=attributes)
        return y

    return run


def by_runtime(norm: str) -> Any:
    def run(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, eps: float) -> np.ndarray:
        import onnxruntime

        given = _given(x, weight, bias)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        model = model_of(norm, given, eps).SerializeToString()
        (y,) = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run(None, given)
        return y

    return run


ORIGINALS = tuple(
    Original(f"onnx {_OPERATORS[norm][0]}", "onnx", norm, "onnx", by_standard(norm), norm == "layer_norm")
    for norm in _OPERATORS
) + tuple(
    Original(
        f"onnxruntime {_OPERATORS[norm][0]}",
        "onnxruntime",
        norm,
        None,
        by_runtime(norm),
        norm == "layer_norm",
        dtypes=("float16", "float32"),
    )
    for norm in _OPERATORS
)
