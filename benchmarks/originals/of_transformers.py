"""The norms of the models in Hugging Face's transformers; no weights of theirs are needed."""

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.originals import Original
from benchmarks.originals.of_torch import by_torch, module_with

KINDS = {
    "llama": "LlamaRMSNorm",
    "gemma": "GemmaRMSNorm",
    "gemma3": "Gemma3RMSNorm",
    "qwen3": "Qwen3RMSNorm",
    "olmo2": "Olmo2RMSNorm",
    "t5": "T5LayerNorm",
    "cohere": "CohereLayerNorm",
    "nemotron": "NemotronLayerNorm1P",
}


def _computed_by(model: str, kind: str) -> Callable[..., np.ndarray]:
    @by_torch
    def run(x: Any, weight: Any, bias: Any, eps: float) -> Any:
        module = getattr(importlib.import_module(f"transformers.models.{model}.modeling_{model}"), kind)
        return module_with(module(x.shape[-1], eps=eps), weight=weight, bias=bias)(x)

    return run


def _original(model: str, kind: str) -> Original:
    centred = model in ("cohere", "nemotron")
    return Original(
        f"transformers {kind}",
        "transformers",
        "layer_norm" if centred else "rms_norm",
        model,
        _computed_by(model, kind),
        has_bias=model == "nemotron",
        weight_at=0.0 if model in ("gemma", "gemma3", "nemotron") else 1.0,
    )


ORIGINALS = tuple(_original(model, kind) for model, kind in KINDS.items())
