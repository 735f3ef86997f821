"""load_norms: what a file does not say the caller does, and nothing is guessed."""

import numpy as np
import pytest

import anynorm
from tests.checkpoints import NO_NORMS, decoder, numbers, require_norm, tensors, write_safetensors

LAYER, RMS = anynorm.LayerNorm, anynorm.RMSNorm


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (None, "there is no config.json"),
        ({}, "the model_type 'None' of config.json is not known"),
        ({"model_type": "mystery", "rms_norm_eps": 1e-6}, "the model_type 'mystery' of config.json is not known"),
        ({"model_type": ["llama"]}, "of config.json is not known"),
        ({"model_type": "x", "text_config": {}}, "config.json is that of several models"),
    ],
)
def test_what_is_not_known_is_not_guessed(config, says, tmp_path):
    arrays = tensors({"model.norm.weight": (8,), "model.layers.0.norm1.weight": (8,)}, "float32")
    write_safetensors(tmp_path / "x.safetensors", arrays, config)
    with pytest.raises(ValueError, match=r"no norm of .* can be made") as error:
        anynorm.load_norms(tmp_path)
    assert says in str(error.value)
    assert "pass kind=, convention= and eps=" in str(error.value)
    with pytest.raises(ValueError, match=r"pass eps=$"):
        anynorm.load_norms(tmp_path, kind="rms_norm", convention="torch")
    with pytest.raises(ValueError, match=r"pass kind=$"):  # torch's are of both kinds
        anynorm.load_norms(tmp_path, eps=1e-6, convention="torch")
    for given in ({"kind": "rms_norm", "convention": "llama"}, {"convention": "llama"}):
        norms = anynorm.load_norms(tmp_path, eps=1e-3, **given)
        require_norm(norms["model.norm"], RMS, 1e-3, 0.0, "llama", arrays["model.norm.weight"])
        assert len(norms) == 2
    require_norm(
        anynorm.load_norms(tmp_path, kind="layer_norm", convention="nemotron", eps=0.0)["model.norm"],
        LAYER, 0.0, 1.0, "nemotron", arrays["model.norm.weight"],
    )  # fmt: skip


def test_the_caller_overrules_the_file(tmp_path):
    arrays = tensors({"model.norm.weight": (8,)}, "float32")
    write_safetensors(tmp_path / "x.safetensors", arrays, {"model_type": "gemma", "rms_norm_eps": 1e-6})
    norms = anynorm.load_norms(tmp_path, kind="layer_norm", convention="torch", eps=np.float32(0.5))
    require_norm(norms["model.norm"], LAYER, 0.5, 0.0, "torch", arrays["model.norm.weight"])


def test_what_is_named_as_a_norm_and_cannot_be_loaded(tmp_path):
    held = {
        "model.norm.weight": (8,),
        "conv.batch_norm.weight": (8,),
        "stem.norm.weight": (8,),
        "stem.norm.running_mean": (8,),
        "stem.norm.num_batches_tracked": (1,),
        "unet.group_norm.weight": (8,),
        "attn.q_norm.weight": (2, 4),
        "lost.norm.bias": (8,),
        "biased.norm.weight": (8,),
        "biased.norm.bias": (8,),
        "empty.norm.weight": (0,),
    }
    arrays = tensors(held, "float32") | {"whole.norm.weight": np.ones(8, np.int32)}
    write_safetensors(tmp_path / "x.safetensors", arrays, {"model_type": "llama", "rms_norm_eps": 1e-5})
    norms = anynorm.load_norms(tmp_path)
    assert list(norms) == ["model.norm"]
    whys = {
        "conv.batch_norm": "named as a batch norm",
        "stem.norm": "a BatchNorm, for it has",
        "unet.group_norm": "named as a group norm",
        "attn.q_norm": "as that of a norm for each head",
        "lost.norm": "a bias without a weight",
        "biased.norm": "it has a bias, which an RMSNorm of this model has not",
        "empty.norm": "has shape (0,)",
        "whole.norm": "has elements of I32",
    }
    assert sorted(norms.left) == sorted(whys)
    for name, why in whys.items():
        assert why in norms.left[name]
    given = anynorm.load_norms(tmp_path, kind="rms_norm")
    require_norm(
        given["biased.norm"], RMS, 1e-5, 0.0, "llama", arrays["biased.norm.weight"], arrays["biased.norm.bias"]
    )


def test_a_bias_that_does_not_fit_its_weight(tmp_path):
    arrays = tensors({"ln_f.weight": (8,), "ln_f.bias": (1,), "ln_1.weight": (8,)}, "float32")
    write_safetensors(tmp_path / "x.safetensors", arrays, {"model_type": "gpt2"})
    assert anynorm.load_norms(tmp_path).left == {"ln_f": "ln_f.bias has shape (1,), and the weight (8,)"}


def test_names_of_keras(tmp_path):
    arrays = tensors({f"encoder/layer_normalization_1/{name}:0": (8,) for name in ("gamma", "beta")}, "float32")
    arrays["encoder/batch_normalization/gamma:0"] = numbers(8, "float32", 5)
    write_safetensors(tmp_path / "x.safetensors", arrays)
    norms = anynorm.load_norms(tmp_path, kind="layer_norm", convention="keras", eps=1e-3)
    require_norm(norms["encoder/layer_normalization_1"], LAYER, 1e-3, 0.0, "keras", *[*arrays.values()][:2])
    assert norms.left == {"encoder/batch_normalization": "named as a batch norm"}


@pytest.mark.parametrize("shape", [(), (1,)])
def test_scale_norms(shape, tmp_path):
    scale = numbers(shape, "float32", 3)
    write_safetensors(tmp_path / "x.safetensors", {"layers.0.norm.g": np.asarray(scale)}, {"hidden_size": 16})
    for given, dim in (({}, 16), ({"dim": np.int64(9)}, 9)):
        norm = anynorm.load_norms(tmp_path, kind="scale_norm", convention="scalenorm_paper", eps=1e-5, **given)
        norm = norm["layers.0.norm"]
        assert (type(norm), norm.dim, norm.eps) == (anynorm.ScaleNorm, dim, 1e-5)
        assert norm.convention == anynorm.CONVENTIONS["scalenorm_paper"]
        assert norm.scale == scale.reshape(())
    (tmp_path / "config.json").unlink()
    for convention in ("scalenorm_paper", anynorm.CONVENTIONS["scalenorm_paper"]):
        with pytest.raises(ValueError, match=r"pass dim=$"):
            anynorm.load_norms(tmp_path, convention=convention, eps=1e-5)


def test_printed(tmp_path):
    names = decoder("input_layernorm")
    arrays = tensors({f"{name}.weight": (8,) for name in [*names, "conv.0.batch_norm", "conv.1.batch_norm"]}, "float16")
    write_safetensors(tmp_path / "x.safetensors", arrays, {"model_type": "llama", "rms_norm_eps": 1e-5})
    assert repr(anynorm.load_norms(tmp_path)).splitlines() == [
        "3 norms, 2 left",
        "    2 x model.layers.*.input_layernorm  RMSNorm(8, eps=1e-05, bias=False, convention='llama', dtype=float16)",
        "    1 x model.norm  RMSNorm(8, eps=1e-05, bias=False, convention='llama', dtype=float16)",
        "  left   2 x conv.*.batch_norm  named as a batch norm",
    ]


def test_norms_that_were_left_are_printed_by_sort(tmp_path):
    heads = {f"model.layers.{layer}.self_attn.q_norm.weight": (4, 8) for layer in range(12)}
    arrays = tensors(heads | {"1.norm.weight": (8,)}, "float16")
    write_safetensors(tmp_path / "x.safetensors", arrays, {"model_type": "cohere"})
    _, made, left = repr(anynorm.load_norms(tmp_path)).splitlines()
    assert made.startswith("    1 x *.norm  LayerNorm(8, eps=1e-05, bias=False")
    name = "model.layers.*.self_attn.q_norm"
    assert left.startswith(f"  left  12 x {name}  {name}.weight has shape (4, 8), as that of a norm for each head")


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"path": 3}, TypeError, "path must be a str or a path, got the int 3"),
        ({"kind": "rms"}, ValueError, "kind must be one of layer_norm, rms_norm, scale_norm, got the str 'rms'"),
        ({"kind": anynorm.rms_norm}, TypeError, "kind must be one of"),
        ({"convention": "lama"}, ValueError, "convention must be a Convention or one of the names torch, llama"),
        ({"convention": 3}, TypeError, "convention must be a Convention or one of the names"),
        ({"eps": -1.0}, ValueError, "eps must be finite and not negative"),
        ({"eps": "1"}, TypeError, "eps must be a number"),
        ({"dim": 0}, ValueError, "dim must be 1 or more"),
        ({"xp": "torch"}, TypeError, "xp must be an array namespace"),
        ({"dtype": np.int32}, TypeError, "dtype must be a real floating dtype"),
    ],
)
def test_wrong_arguments(given, error, says, tmp_path):
    arrays = tensors({"model.norm.weight": (8,)}, "float32")
    write_safetensors(tmp_path / "x.safetensors", arrays, {"model_type": "llama"})
    with pytest.raises(error, match=says):
        anynorm.load_norms(**{"path": tmp_path, **given})


def test_nothing_there(tmp_path):
    for name in ("no.safetensors", "no.gguf", "no.onnx", "no.safetensors.index.json"):
        with pytest.raises(FileNotFoundError):
            anynorm.load_norms(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"Llama-3\.2-1B is neither .* download the files first"):
        anynorm.load_norms("meta-llama/Llama-3.2-1B")
    with pytest.raises(ValueError, match=r"must hold a file of \.safetensors, \.gguf, \.onnx"):
        anynorm.load_norms(tmp_path)
    write_safetensors(tmp_path / "x.safetensors", tensors(NO_NORMS, "float32"), {"model_type": "llama"})
    with pytest.raises(ValueError, match="holds no tensor that is named as the weight of a norm"):
        anynorm.load_norms(tmp_path)
    write_safetensors(tmp_path / "y.safetensors", tensors(NO_NORMS, "float32"))
    with pytest.raises(ValueError, match=r"holds x.safetensors, y.safetensors; name the one to load"):
        anynorm.load_norms(tmp_path)
