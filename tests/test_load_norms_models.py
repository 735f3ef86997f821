"""load_norms beside transformers: small models of each architecture that it knows, as transformers saves them."""

import re
import warnings

import numpy as np
import pytest

import anynorm
from anynorm._checkpoints.families import FAMILIES

pytestmark = pytest.mark.thorough
transformers = pytest.importorskip("transformers", reason="needs transformers, which has the models")
torch = pytest.importorskip("torch")

# What makes a model small, of the names that some configuration has.
_64 = "hidden_size d_model n_embd word_embed_proj_dim embedding_size dim"
_96 = "intermediate_size ffn_dim d_ff hidden_dim encoder_ffn_dim decoder_ffn_dim"
_4 = "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads num_experts"
_2 = "num_hidden_layers n_layer n_layers num_layers num_key_value_heads num_experts_per_tok moe_k"
_1 = "encoder_layers decoder_layers n_group topk_group n_shared_experts num_sparse_encoder_layers first_k_dense_replace"
SMALL = {
    **dict.fromkeys(_64.split(), 64), **dict.fromkeys(_96.split(), 96), **dict.fromkeys(_4.split(), 4),
    **dict.fromkeys(_2.split(), 2), **dict.fromkeys(_1.split(), 1),
    "num_local_experts": 4, "moe_num_experts": 4, "n_routed_experts": 8, "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32, "head_dim": 16, "d_kv": 16, "rotary_dim": 8, "q_lora_rank": 32,
    "kv_lora_rank": 16, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 16, "vocab_size": 99,
    "max_position_embeddings": 64, "image_size": 32, "patch_size": 8, "num_mel_bins": 16, "max_source_positions": 32,
    "max_target_positions": 32, "attention_types": [[["global"], 2]], "qk_layernorm": True, "use_qk_norm": True,
    "layer_types": ["conv", "full_attention"], "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 1,
}  # fmt: skip


def small_model(name):
    """A model of an architecture with weights of which no two are equal, in bfloat16; its default eps."""
    kind = transformers.CONFIG_MAPPING[name]
    whole = kind()
    there = whole.to_dict()
    values = {key: value for key, value in SMALL.items() if key in there}
    if name != "lfm2":
        values["layer_types"] = (there.get("layer_types") or ())[:2] or None
    config = kind(**{key: value for key, value in values.items() if key in there})
    key = FAMILIES[name].key
    default = None if key is None else getattr(whole, key)
    if key is not None:
        setattr(config, key, 3e-4)
    model = (transformers.SiglipTextModel if name == "siglip_text_model" else transformers.AutoModel.from_config)(
        config
    )
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    return model.to(torch.bfloat16), default


def norms_of(model):
    """The modules that are norms with a weight, by the weight."""
    found = {}
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if re.search("Norm", type(module).__name__) and weight is not None:
            found[weight.detach().view(torch.uint8).numpy().tobytes()] = module
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_every_norm_of_a_model(name, tmp_path):
    with warnings.catch_warnings(action="ignore"):
        model, default = small_model(name)
        model.save_pretrained(tmp_path)
    expected = norms_of(model)
    assert default is None or default == pytest.approx(FAMILIES[name].eps, rel=1e-12)
    norms = anynorm.load_norms(tmp_path, xp=torch)
    assert norms.skipped == {}
    assert len(norms) == len(expected) > 2
    for norm in norms.values():
        module = expected[norm.weight.view(torch.uint8).numpy().tobytes()]
        assert norm.eps == getattr(module, "eps", getattr(module, "variance_epsilon", None))
        x = torch.from_numpy(np.random.default_rng(0).standard_normal((50, *norm.weight_shape))).to(torch.bfloat16)
        with torch.no_grad():
            y = module(x)
        # All but a few elements have the same bits: their conventions are those of the model. Where the order in which
        # the squares are summed changes the root, an element may be rounded to the neighbour.
        assert (norm(x) == y).float().mean() > 0.98
