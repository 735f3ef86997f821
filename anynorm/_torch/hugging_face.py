"""The norms of Hugging Face's transformers: which convention each class goes by, and how one becomes a norm of anynorm.

A class is known by its name and by the module that defines it; transformers is not imported. Each model there has a
copy of its own, so the names are many and the formulas few: `python -m benchmarks.originals.classes` computes with the
norms of the version that is installed, and tells which names the table lacks.
"""

from __future__ import annotations

import re
from typing import Any

import torch

from anynorm._convention import CONVENTIONS, encoded
from anynorm._numbers import check_number

Module = torch.nn.Module

_DEFINED_IN = re.compile(r"transformers\.models\.(\w+)\.modeling_\w+")
_CLASSES = {
    "llama": """
        AXK1RMSNorm AXK2RMSNorm Aimv2RMSNorm Apertus1p5TextRMSNorm ApertusRMSNorm ArceeRMSNorm AriaTextRMSNorm
        BailingHybridRMSNorm BambaRMSNorm BitNetRMSNorm BltRMSNorm ChameleonRMSNorm ClvpRMSNorm
        Cohere2MoeRMSNorm Cosmos3EdgeTextRMSNorm CsmRMSNorm CwmRMSNorm DeepseekOcr2TextRMSNorm
        DeepseekOcr2VisionRMSNorm DeepseekV2RMSNorm DeepseekV32RMSNorm DeepseekV3RMSNorm Deimv2RMSNorm
        DiaRMSNorm DiffLlamaRMSNorm DogeRMSNorm Dots1RMSNorm Dots3NoteRMSNorm Emu3RMSNorm Ernie4_5RMSNorm
        Ernie4_5_MoeRMSNorm Ernie4_5_VLMoeRMSNorm EuroBertRMSNorm EvollaRMSNorm Exaone4RMSNorm Exaone4_5_RMSNorm
        ExaoneMoeRMSNorm FalconH1RMSNorm FalconMambaRMSNorm Glm4MoeLiteRMSNorm Glm4MoeRMSNorm Glm4RMSNorm
        Glm4vMoeRMSNorm Glm4vMoeTextRMSNorm Glm4vRMSNorm Glm5NextRMSNorm Glm5NextTextRMSNorm GlmImageRMSNorm
        GlmMoeDsaRMSNorm GlmOcrRMSNorm GlmRMSNorm Granite4VisionTextRMSNorm GraniteDoclingTextRMSNorm
        GraniteMoeHybridRMSNorm GraniteMoeRMSNorm GraniteMoeSWARMSNorm GraniteMoeSharedRMSNorm GraniteRMSNorm
        GraniteSWARMSNorm HYV3RMSNorm HYV4RMSNorm HYV4VLRMSNorm HiggsAudioV2RMSNorm HunYuanDenseV1RMSNorm
        HunYuanMoEV1RMSNorm HunYuanVLRMSNorm HyperCLOVAXRMSNorm Idefics2RMSNorm Idefics3RMSNorm InklingRMSNorm
        InternVLVisionRMSNorm JambaRMSNorm JetMoeRMSNorm KimiLinearRMSNorm Kolibri1RMSNorm LagunaRMSNorm
        Lfm2MoeRMSNorm Lfm2RMSNorm Lfm3RMSNorm Lfm3VlVisionRMSNorm LightOnOcrRMSNorm Llama4TextRMSNorm
        LlamaRMSNorm LongcatFlashRMSNorm Mamba2RMSNorm MambaRMSNorm MellumRMSNorm MiMoV2FlashRMSNorm
        MiniCPM3RMSNorm MiniMaxM2RMSNorm MiniMaxRMSNorm Ministral3RMSNorm MinistralRMSNorm Mistral3RMSNorm
        Mistral4RMSNorm MistralLarge4RMSNorm MistralRMSNorm MixtralRMSNorm MllamaTextRMSNorm Molmo2RMSNorm
        MuseGlimmerAssistantRMSNorm NeuCodecRMSNorm OlmoeRMSNorm Ovis2RMSNorm PaddleOCRRMSNorm
        PeAudioEncoderRMSNorm PeAudioVideoEncoderRMSNorm PeVideoEncoderRMSNorm Phi3RMSNorm Phi4MultimodalRMSNorm
        PixtralRMSNorm QianfanOCRVisionRMSNorm Qwen2MoeRMSNorm Qwen2RMSNorm Qwen2VLRMSNorm Qwen2_5OmniRMSNorm
        Qwen2_5_VLRMSNorm Qwen3MoeRMSNorm Qwen3OmniMoeCode2WavRMSNorm Qwen3OmniMoeRMSNorm
        Qwen3OmniMoeTextRMSNorm Qwen3OmniMoeThinkerTextRMSNorm Qwen3RMSNorm Qwen3VLMoeTextRMSNorm
        Qwen3VLTextRMSNorm Sapiens2RMSNorm SeedOssRMSNorm SmolLM3RMSNorm SolarOpenRMSNorm TimesFm2_5RMSNorm
        TimesFmRMSNorm UltraVBertRMSNorm UltrabertRMSNorm UnlimitedOcrTextRMSNorm
        VibeVoiceAcousticTokenizerRMSNorm VibeVoiceAsrRMSNorm VibeVoiceRMSNorm VoxtralRealtimeRMSNorm
        Xcodec2RMSNorm YoutuRMSNorm Zamba2RMSNorm ZambaRMSNorm ZayaRMSNorm
    """,
    "gemma": """
        Gemma2RMSNorm Gemma3RMSNorm GemmaRMSNorm MiniMaxM3VLRMSNorm MuseGlimmerTextCenteredRMSNorm
        Qwen3NextRMSNorm Qwen3_5MoeRMSNorm Qwen3_5RMSNorm RecurrentGemmaRMSNorm Step3p7RMSNorm T5Gemma2RMSNorm
        T5GemmaRMSNorm VaultGemmaRMSNorm
    """,
    "olmo2": """
        AfmoeRMSNorm BeamRMSNorm DeepseekV4RMSNorm DiffusionGemmaRMSNorm EmbeddingGemma2RMSNorm FlexOlmoRMSNorm
        FlintRMSNorm Gemma3nRMSNorm Gemma4RMSNorm Gemma4UnifiedRMSNorm GptOssRMSNorm HeliumRMSNorm
        Inkling2LoopRMSNorm Inkling2RMSNorm KyutaiSpeechToTextRMSNorm LaraMiniRMSNorm MoshiRMSNorm
        MuseGlimmerRMSNorm MuseSparkRMSNorm NemotronHRMSNorm NemotronH_Omni_RMSNorm NeoMMERMSNorm Olmo2RMSNorm
        Olmo3RMSNorm OlmoHybridRMSNorm OpenAIPrivacyFilterRMSNorm
    """,
    "t5": """
        IdeficsRMSNorm Kosmos2_5LayerNorm LongT5LayerNorm MT5LayerNorm Pix2StructLayerNorm Pop2PianoLayerNorm
        SwitchTransformersLayerNorm T5LayerNorm UMT5LayerNorm UdopLayerNorm
    """,
    "cohere": """
        Cohere2LayerNorm Cohere2MoeLayerNorm CohereCompassLayerNorm CohereLayerNorm
    """,
    "nemotron": """
        NemotronLayerNorm1P
    """,
}
CONVENTION_OF = {name: convention for convention, names in _CLASSES.items() for name in names.split()}
_CENTRED = ("cohere", "nemotron")


def convention_of(kind: type) -> str | None:
    """The name of the convention that a class of transformers goes by; None for all others."""
    return CONVENTION_OF.get(kind.__name__) if _DEFINED_IN.fullmatch(kind.__module__) else None


def is_centred(kind: type) -> bool:
    """Whether such a class is a LayerNorm, not an RMSNorm."""
    return convention_of(kind) in _CENTRED


def why_unfit(module: Any) -> str | None:
    """Why such a norm would not compute the same as one of ours."""
    weight = module._parameters.get("weight")
    if weight is None:
        return "it has no weight"
    if weight.ndim != 1:
        return f"its weight has shape {tuple(weight.shape)}, of more axes than it normalizes"
    try:
        check_number("eps", _eps_of(module), least=0.0)
    except (AttributeError, TypeError, ValueError) as error:
        return str(error).partition(";")[0]
    return None


def dress(module: Any) -> None:
    """Give it what a norm of anynorm.torch has, all but the class."""
    kind = type(module)
    convention = CONVENTIONS[str(convention_of(kind))]
    given = {
        "eps": float(_eps_of(module)),
        "normalized_shape": tuple(module.weight.shape),
        "elementwise_affine": True,
        "weight_offset": convention.weight_offset,
        "_by": encoded(convention),
    }
    module.swapped_from = kind, {name: vars(module)[name] for name in given if name in vars(module)}
    vars(module).update(given)
    if "bias" not in module._parameters:
        module.register_parameter("bias", None)


def undress(module: Any) -> None:
    """Take it away again, and give back the class."""
    kind, before = module.swapped_from
    for name in ("swapped_from", "eps", "normalized_shape", "elementwise_affine", "weight_offset", "_by"):
        del vars(module)[name]
    vars(module).update(before)
    if not is_centred(kind):
        del module.bias
    module.__class__ = kind


def _eps_of(module: Any) -> Any:
    return module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps
