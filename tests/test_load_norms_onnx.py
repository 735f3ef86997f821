"""load_norms: the norms in the graphs of .onnx files."""

import numpy as np
import pytest

import anynorm
from tests.checkpoints import BFLOAT16, numbers, same_bits, tensors

onnx = pytest.importorskip("onnx", reason="needs onnx, which writes the files")
helper, numpy_helper = onnx.helper, onnx.numpy_helper

LAYER, RMS = anynorm.LayerNorm, anynorm.RMSNorm


def write_onnx(path, nodes, arrays, **options):
    """Write a graph of these nodes, its weights as bytes."""
    initializers = [numpy_helper.from_array(one, name) for name, one in arrays.items()]
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ("rows", 8))
    graph = helper.make_graph(nodes, "model", [value], [value], initializers)
    onnx.save(helper.make_model(graph), path, **options)


def node(operator, inputs, output="y", **options):
    return helper.make_node(operator, inputs, [output], **options)


@pytest.mark.parametrize("dtype", [BFLOAT16, "float16", "float32", "float64"], ids=str)
def test_operators(dtype, tmp_path):
    names = [
        "a.norm.weight",
        "a.norm.bias",
        "b.norm.weight",
        "onnx::Mul_7",
        "d.weight",
        "d.bias",
        "e.weight",
        "f.weight",
    ]
    arrays = tensors(dict.fromkeys(names, (8,)) | {"w": (8, 8)}, dtype)
    nodes = [
        node("LayerNormalization", ["x", "a.norm.weight", "a.norm.bias"], epsilon=1e-12),
        node("LayerNormalization", ["x", "b.norm.weight"], "b"),
        node("RMSNormalization", ["x", "onnx::Mul_7"], name="/c/RMSNormalization", epsilon=1e-6, axis=-1),
        node("SkipLayerNormalization", ["x", "x", "d.weight", "d.bias", "w"], domain="com.microsoft", epsilon=1e-5),
        node("SkipSimplifiedLayerNormalization", ["x", "x", "e.weight"], domain="com.microsoft", epsilon=1e-5),
        node("SimplifiedLayerNormalization", ["x", "f.weight"], axis=-1, epsilon=0.5),
        node("LayerNormalization", ["x", "w"], domain="example.org", name="another"),
        node("MatMul", ["x", "w"]),
    ]
    write_onnx(tmp_path / "x.onnx", nodes, arrays)
    norms = anynorm.load_norms(tmp_path / "x.onnx")
    expected = {
        "a.norm": (LAYER, 1e-12, "a.norm.weight", "a.norm.bias"),
        "b.norm": (LAYER, 1e-5, "b.norm.weight", None),
        "/c/RMSNormalization": (RMS, 1e-6, "onnx::Mul_7", None),
        "d": (LAYER, 1e-5, "d.weight", "d.bias"),
        "e": (RMS, 1e-5, "e.weight", None),
        "f": (RMS, 0.5, "f.weight", None),
    }
    assert (sorted(norms), norms.skipped) == (sorted(expected), {})
    for name, (kind, eps, weight, bias) in expected.items():
        norm = norms[name]
        # The file has epsilon as float32; that of a default is no number of the file.
        assert (type(norm), np.float32(norm.eps)) == (kind, np.float32(eps))
        assert norm.convention == anynorm.CONVENTIONS["onnx"]
        assert same_bits(norm.weight, arrays[weight])
        assert norm.bias is None if bias is None else same_bits(norm.bias, arrays[bias])


@pytest.mark.parametrize("kind", ["FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE"])
def test_weights_as_lists_of_numbers(kind, tmp_path):
    held = [0.0, -1.5, 2.0**-14, 1.0, 100.0, -0.0, 3.0]
    dtype = {"FLOAT": np.float32, "FLOAT16": np.float16, "BFLOAT16": BFLOAT16, "DOUBLE": np.float64}[kind]
    weight = helper.make_tensor("n.weight", getattr(onnx.TensorProto, kind), [7], held)
    assert not weight.raw_data
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, (2, 7))
    nodes = [node("LayerNormalization", ["x", "n.weight"])]
    onnx.save(helper.make_model(helper.make_graph(nodes, "model", [value], [value], [weight])), tmp_path / "x.onnx")
    assert same_bits(anynorm.load_norms(tmp_path)["n"].weight, np.array(held).astype(dtype))


def test_several_axes(tmp_path):
    arrays = tensors({"n.weight": (4, 8), "n.bias": (4, 8)}, "float32")
    write_onnx(tmp_path / "x.onnx", [node("LayerNormalization", ["x", "n.weight", "n.bias"], axis=-2)], arrays)
    norm = anynorm.load_norms(tmp_path)["n"]
    assert norm.shape == norm.weight_shape == (4, 8)
    assert same_bits(norm.weight, arrays["n.weight"])


def test_a_weight_for_each_head(tmp_path):
    arrays = tensors({"n.weight": (4, 8)}, "float32")
    write_onnx(tmp_path / "x.onnx", [node("LayerNormalization", ["x", "n.weight"])], arrays)
    norm = anynorm.load_norms(tmp_path)["n"]
    assert (norm.shape, norm.weight_shape) == ((8,), (4, 8))
    x = numbers((3, 4, 8), "float32", 1)
    centred = x - x.mean(-1, keepdims=True, dtype=np.float64)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * arrays["n.weight"]
    np.testing.assert_allclose(norm(x), expected, rtol=1e-5, atol=1e-5)


def test_a_constant_and_the_branches_of_an_if(tmp_path):
    arrays = tensors({"n.weight": (8,), "c": (8,)}, "float32")
    value = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, (2, 8))
    norms = [node("LayerNormalization", ["x", "n.weight"]), node("LayerNormalization", ["x", "n.weight"])]
    other = node("RMSNormalization", ["x", "n.weight"], "z")
    branches = [helper.make_graph([*one], "branch", [], [value]) for one in (norms[:1], [norms[1], other])]
    nodes = [
        node("Constant", [], "c", value=numpy_helper.from_array(arrays["c"])),
        node("RMSNormalization", ["x", "c"], name="by constant"),
        node("If", ["x"], then_branch=branches[0], else_branch=branches[1]),
    ]
    write_onnx(tmp_path / "x.onnx", nodes, {"n.weight": arrays["n.weight"]})
    found = anynorm.load_norms(tmp_path)
    assert {name: type(norm) for name, norm in found.items()} == {"by constant": RMS, "n": LAYER, "n (z)": RMS}
    assert same_bits(found["by constant"].weight, arrays["c"])
    assert same_bits(found["n (z)"].weight, arrays["n.weight"])


def test_what_cannot_be_loaded(tmp_path):
    arrays = tensors({"a.weight": (8,), "b.weight": (8,), "d.weight": (8,), "g.weight": (1,)}, "float32")
    arrays["e.weight"] = np.ones(8, np.int32)
    nodes = [
        node("LayerNormalization", ["x", "a.weight"], epsilon=1e-5),
        node("LayerNormalization", ["x", "b.weight"], axis=1),
        node("Relu", ["a.weight"], "relu"),
        node("RMSNormalization", ["x", "relu"], name="c"),
        node("RMSNormalization", ["x", "d.weight"], axis=-2),
        node("LayerNormalization", ["x", "g.weight"]),
        node("RMSNormalization", ["x", "e.weight"]),
        node("SkipLayerNormalization", ["x", "x"], name="f", domain="com.microsoft"),
    ]
    write_onnx(tmp_path / "x.onnx", nodes, arrays)
    norms = anynorm.load_norms(tmp_path)
    assert list(norms) == ["a"]
    assert norms.skipped == {
        "b": "LayerNormalization: axis=1 and a weight of shape (8,) do not tell how many features are normalized",
        "c": "RMSNormalization: relu is computed in the graph",
        "d": "RMSNormalization: axis=-2 and a weight of shape (8,) do not tell how many features are normalized",
        "e": "e.weight has elements of ONNX type 6, not of float16, bfloat16, float32, float64",
        "f": "SkipLayerNormalization: it has no weight",
        "g": "LayerNormalization: axis=-1 and a weight of shape (1,) do not tell how many features are normalized",
    }


def test_weights_in_a_file_beside_it(tmp_path):
    arrays = tensors({"a.weight": (8,), "b.weight": (8,), "b.bias": (8,)}, "float32")
    nodes = [
        node("LayerNormalization", ["x", "a.weight"]),
        node("LayerNormalization", ["x", "b.weight", "b.bias"], "b"),
    ]
    outside = {"save_as_external_data": True, "size_threshold": 0, "location": "weights.data"}
    write_onnx(tmp_path / "x.onnx", nodes, arrays, **outside)
    assert (tmp_path / "weights.data").stat().st_size >= 96
    norms = anynorm.load_norms(tmp_path)
    assert same_bits(norms["a"].weight, arrays["a.weight"])
    assert same_bits(norms["b"].weight, arrays["b.weight"])
    assert same_bits(norms["b"].bias, arrays["b.bias"])
    (tmp_path / "weights.data").write_bytes(b"0" * 95)
    with pytest.raises(ValueError, match=r"x.onnx is damaged: 32 bytes of .* which has 95"):
        anynorm.load_norms(tmp_path)
    (tmp_path / "weights.data").unlink()
    with pytest.raises(ValueError, match=r"names the file 'weights.data', which is not there"):
        anynorm.load_norms(tmp_path)


def test_a_graph_without_norms(tmp_path):
    write_onnx(tmp_path / "x.onnx", [node("Relu", ["x"])], {})
    with pytest.raises(ValueError, match=r"has no operator of LayerNormalization, .*: export it for opset 17"):
        anynorm.load_norms(tmp_path)
