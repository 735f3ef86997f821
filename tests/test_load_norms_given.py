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
        ({}, "the model_type 'None' is not known"),
        ({"model_type": "mystery", "rms_norm_eps": 1e-6}, "the model_type 'mystery' is not known; pass"),
        ({"model_type": "mamba"}, "'mamba' is not known (transformers has a norm for it that goes by 'llama'); pass"),
        ({"model_type": ["llama"]}, "is not known"),
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
        "lost.norm": "a bias without a weight",
        "biased.norm": "it has a bias, which an RMSNorm of this model has not",
        "empty.norm": "has shape (0,)",
        "whole.norm": "has elements of I32",
    }
    assert sorted(norms.skipped) == sorted(whys)
    for name, why in whys.items():
        assert why in norms.skipped[name]
    given = anynorm.load_norms(tmp_path, kind="rms_norm")
    require_norm(
        given["biased.norm"], RMS, 1e-5, 0.0, "llama", arrays["biased.norm.weight"], arrays["biased.norm.bias"]
    )


def test_a_bias_that_does_not_fit_its_weight(tmp_path):
    arrays = tensors({"ln_f.weight": (8,), "ln_f.bias": (1,), "ln_1.weight": (8,)}, "float32")
    write_safetensors(tmp_path / "x.safetensors", arrays, {"model_type": "gpt2"})
    assert anynorm.load_norms(tmp_path).skipped == {"ln_f": "ln_f.bias has shape (1,), and the weight (8,)"}


def test_names_of_keras(tmp_path):
    arrays = tensors({f"encoder/layer_normalization_1/{name}:0": (8,) for name in ("gamma", "beta")}, "float32")
    arrays["encoder/batch_normalization/gamma:0"] = numbers(8, "float32", 5)
    write_safetensors(tmp_path / "x.safetensors", arrays)
    norms = anynorm.load_norms(tmp_path, kind="layer_norm", convention="keras", eps=1e-3)
    require_norm(norms["encoder/layer_normalization_1"], LAYER, 1e-3, 0.0, "keras", *[*arrays.values()][:2])
    assert norms.skipped == {"encoder/batch_normalization": "named as a batch norm"}


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
        "3 norms, 2 skipped",
        "    2 x model.layers.*.input_layernorm  RMSNorm(8, eps=1e-05, bias=False, convention='llama', dtype=float16)",
        "    1 x model.norm  RMSNorm(8, eps=1e-05, bias=False, convention='llama', dtype=float16)",
        "  skipped   2 x conv.*.batch_norm  named as a batch norm",
    ]


def test_norms_that_were_skipped_are_printed_by_sort(tmp_path):
    several = {f"model.layers.{layer}.self_attn.q_norm.weight": (4, 8) for layer in range(12)}
    arrays = tensors(several | {"1.norm.weight": (8,)}, "float16")
    write_safetensors(tmp_path / "x.safetensors", arrays, {"model_type": "gpt2"})
    _, made, skipped = repr(anynorm.load_norms(tmp_path)).splitlines()
    assert made.startswith("    1 x *.norm  LayerNorm(8, eps=1e-05, bias=False")
    name = "model.layers.*.self_attn.q_norm"
    why = f"{name}.weight has shape (4, 8), and which of these axes are normalized is not known"
    assert skipped.startswith(f"  skipped  12 x {name}  {why}")


@pytest.mark.parametrize(
    ("config", "given", "kind"),
    [
        ({"model_type": "cohere", "layer_norm_eps": 1e-3}, {}, LAYER),
        ({"model_type": "bert"}, {"kind": "rms_norm", "convention": "llama", "eps": 1e-3}, RMS),
        ({}, {"convention": "nemotron", "eps": 1e-3}, LAYER),
    ],
)
def test_a_weight_for_each_head(config, given, kind, tmp_path):
    arrays = tensors({"1.q_norm.weight": (2, 4), "1.q_norm.bias": (2, 4), "norm.weight": (8,)}, "float64")
    if config.get("model_type") == "cohere":
        del arrays["1.q_norm.bias"]
    write_safetensors(tmp_path / "x.safetensors", arrays, config)
    norms = anynorm.load_norms(tmp_path, **given)
    norm = norms["1.q_norm"]
    assert (type(norm), norm.shape, norm.weight_shape, norm.eps) == (kind, (4,), (2, 4), 1e-3)
    x = numbers((3, 2, 4), "float64", 9)
    centred = x - x.mean(-1, keepdims=True) if kind is LAYER else x
    weight = arrays["1.q_norm.weight"] + norm.weight_offset
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-3) * weight + arrays.get("1.q_norm.bias", 0)
    np.testing.assert_allclose(norm(x), expected, rtol=1e-12)
    for convention in ("torch", anynorm.Convention(eps=1e-3)):  # by which a LayerNorm may have both axes
        skipped = anynorm.load_norms(tmp_path, kind="layer_norm", convention=convention, eps=1e-3).skipped
        assert "which of these axes are normalized is not known" in skipped["1.q_norm"]


def test_weights_whose_names_tell_nothing(tmp_path):
    held = {
        "norm.weight": (8,),
        "layers.0.0.0.g": (8,),
        "net.1.weight": (8,),
        "net.1.bias": (8,),
        "2.weight": (8, 8),
        "2.bias": (8,),
        "features.1.weight": (8,),
        "features.1.running_mean": (8,),
        "act.weight": (8,),
        "a/0/gamma:0": (8,),
        "weight": (8,),
    }
    write_safetensors(tmp_path / "x.safetensors", tensors(held, "float32"), {"model_type": "llama"})
    norms = anynorm.load_norms(tmp_path)
    assert list(norms) == ["norm"]
    assert sorted(norms.skipped) == ["", "a/0", "features.1", "layers.0.0.0", "net.1"]
    assert norms.skipped.pop("features.1") == "a BatchNorm, for it has running_mean"
    assert all("its name does not tell what it is" in why for why in norms.skipped.values())
    (tmp_path / "x.safetensors").unlink()
    write_safetensors(tmp_path / "y.safetensors", tensors({"layers.0.0.0.g": (8,)}, "float32"))
    with pytest.raises(ValueError, match=r"can be made: layers\.0\.0\.0: its name does not tell"):
        anynorm.load_norms(tmp_path)


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"path": 3}, TypeError, "path must be a str or a path, got the int 3"),
        ({"kind": "rms"}, ValueError, "kind must be one of layer_norm, rms_norm, scale_norm, got the str 'rms'"),
        ({"kind": anynorm.rms_norm}, TypeError, "kind must be one of"),
        ({"convention": "lama"}, ValueError, "convention must be a Convention or one of the names torch, llama"),
        ({"convention": "mistral"}, ValueError, "pass 'llama', by which the norms of this model go"),
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
