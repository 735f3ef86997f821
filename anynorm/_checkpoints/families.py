"""What is known of the norms of a model by the name of its architecture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from anynorm._checkpoints.facts import LAYER, RMS, Facts, is_eps
from anynorm._models import NORMS_OF_MODELS, convention_of_model


@dataclass(frozen=True)
class Family:
    """Models whose norms are all of one kind."""

    kind: str
    convention: str
    key: str | None  # of eps in config.json; None: eps stands in the code
    eps: float  # where config.json does not have it
    apart: tuple[str, ...] = ()  # ends of the names of norms whose eps is that of the code

    def facts(self, config: Mapping[str, Any], norm: str) -> Facts:
        """What a configuration says of a norm."""
        eps = self.eps
        if self.key is not None and not norm.endswith(self.apart):
            eps = config.get(self.key, eps)
            if not is_eps(eps):
                raise ValueError(f"{self.key} must be a number of 0 or more, got {str(eps)[:100]!r}")
        return Facts(self.kind, self.convention, float(eps))


def _families() -> Iterator[tuple[str, Family]]:
    for kind, convention, key, eps, models in NORMS_OF_MODELS:
        for model in models.split():
            yield model, Family(kind, convention, key, eps)
    for model in ("deepseek_v2", "deepseek_v3"):
        yield model, Family(RMS, "llama", "rms_norm_eps", 1e-6, ("q_a_layernorm", "kv_a_layernorm"))


FAMILIES: Mapping[str, Family] = dict(_families())

# Where the parts of a model of several have their configuration, by a part of the names of their tensors.
_PARTS = {
    "text_config": ("text_model", "language_model"),
    "vision_config": ("vision_model", "vision_tower", "visual"),
    "audio_config": ("audio_tower", "audio_model"),
}

# The names of llama.cpp, where they are not those of transformers.
_IN_GGUF = {
    "command-r": "cohere",
    "deepseek2": "deepseek_v2",
    "ernie4_5-moe": "ernie4_5_moe",
    "gemma-embedding": "gemma3_text",
    "gemma3": "gemma3_text",
    "glm4moe": "glm4_moe",
    "gpt-oss": "gpt_oss",
    "gptneox": "gpt_neox",
    "hunyuan-dense": "hunyuan_v1_dense",
    "mistral3": "ministral3",
    "modern-bert": "modernbert",
    "nomic-bert": "nomic_bert",
    "phi2": "phi",
    "qwen2moe": "qwen2_moe",
    "qwen3moe": "qwen3_moe",
    "starcoder": "gpt_bigcode",
    "t5encoder": "t5",
}
_KEYS_IN_GGUF = {RMS: "{}.attention.layer_norm_rms_epsilon", LAYER: "{}.attention.layer_norm_epsilon"}


def facts_of_config(config: Mapping[str, Any], norm: str) -> Facts:
    """What a config.json of Hugging Face says of a norm with this name."""
    parts = norm.split(".")
    key = next((key for key, names in _PARTS.items() if key in config and set(names) & set(parts)), None)
    if key is None and "text_config" in config:
        return Facts(why="config.json is that of several models, and the name does not tell which has it")
    if key is not None:
        config = config[key]
        if not isinstance(config, Mapping):
            raise ValueError(f"{key} must be an object")
    model = config.get("model_type")
    family = FAMILIES.get(model) if isinstance(model, str) else None
    if family is None:
        return Facts(dim=_dim(config), why=_unknown("model_type", model))
    return replace(family.facts(config, norm), dim=_dim(config))


def _unknown(what: str, model: Any) -> str:
    """That nothing is known of a model, or but the convention of a norm that transformers has for it."""
    name = str(model)[:100]
    convention = convention_of_model(name)
    known = "" if convention is None else f" (transformers has a norm for it that goes by {convention!r})"
    return f"the {what} {name!r} is not known{known}"


def _dim(config: Mapping[str, Any]) -> int | None:
    dims = [config[key] for key in ("hidden_size", "d_model", "n_embd", "dim") if key in config]
    return dims[0] if dims and type(dims[0]) is int and dims[0] > 0 else None


def facts_of_gguf(values: Mapping[str, Any]) -> Facts:
    """What the keys of a GGUF file say of its norms.

    Where a model adds 1 to its weights, llama.cpp's converter has done so: its norms multiply by the weight alone. They
    normalize a single axis, also where the weight has one for the heads.
    """
    architecture = values.get("general.architecture")
    family = FAMILIES.get(_IN_GGUF.get(architecture, architecture)) if isinstance(architecture, str) else None
    epsilons = {kind: values.get(key.format(architecture)) for kind, key in _KEYS_IN_GGUF.items()}
    told = [kind for kind, eps in epsilons.items() if type(eps) is float]
    kind = family.kind if family else told[0] if len(told) == 1 else None
    why = "" if family else _unknown("architecture", architecture)
    if family and kind not in told:
        why = f"the file lacks {_KEYS_IN_GGUF[family.kind].format(architecture)}"
    eps = epsilons[kind] if kind in told else None
    return Facts(kind, family and family.convention, eps, None, why, weight_is_factor=True, normalized=1)
