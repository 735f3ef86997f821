"""Which norms models have, by the names that Hugging Face's transformers has for them; read from its version 5.24."""

from __future__ import annotations

import re

# The classes of norms there, by the convention that each goes by. Each model has a copy of its own, so the names are
# many and the formulas few: `python -m benchmarks.originals.classes` computes with the norms of the version that is
# installed, and tells which names the table lacks.
_CLASSES = {
    "llama": """
        AXK1RMSNorm AXK2RMSNorm Aimv2RMSNorm Apertus1p5TextRMSNorm ApertusRMSNorm ArceeRMSNorm AriaTextRMSNorm
        BailingHybridRMSNorm BambaRMSNorm BitNetRMSNorm BltRMSNorm ChameleonRMSNorm ClvpRMSNorm Cohere2MoeRMSNorm
        Cosmos3EdgeTextRMSNorm CsmRMSNorm CwmRMSNorm DeepseekOcr2TextRMSNorm DeepseekOcr2VisionRMSNorm
        DeepseekV2RMSNorm DeepseekV32RMSNorm DeepseekV3RMSNorm Deimv2RMSNorm DiaRMSNorm DiffLlamaRMSNorm DogeRMSNorm
        Dots1RMSNorm Dots3NoteRMSNorm Emu3RMSNorm Ernie4_5RMSNorm Ernie4_5_MoeRMSNorm Ernie4_5_VLMoeRMSNorm
        EuroBertRMSNorm EvollaRMSNorm Exaone4RMSNorm Exaone4_5_RMSNorm ExaoneMoeRMSNorm FalconH1RMSNorm
        FalconMambaRMSNorm Glm4MoeLiteRMSNorm Glm4MoeRMSNorm Glm4RMSNorm Glm4vMoeRMSNorm Glm4vMoeTextRMSNorm
        Glm4vRMSNorm Glm5NextRMSNorm Glm5NextTextRMSNorm GlmImageRMSNorm GlmMoeDsaRMSNorm GlmOcrRMSNorm GlmRMSNorm
        Granite4VisionTextRMSNorm GraniteDoclingTextRMSNorm GraniteMoeHybridRMSNorm GraniteMoeRMSNorm
        GraniteMoeSWARMSNorm GraniteMoeSharedRMSNorm GraniteRMSNorm GraniteSWARMSNorm HYV3RMSNorm HYV4RMSNorm
        HYV4VLRMSNorm HiggsAudioV2RMSNorm HunYuanDenseV1RMSNorm HunYuanMoEV1RMSNorm HunYuanVLRMSNorm
        HyperCLOVAXRMSNorm Idefics2RMSNorm Idefics3RMSNorm InklingRMSNorm InternVLVisionRMSNorm JambaRMSNorm
        JetMoeRMSNorm KimiLinearRMSNorm Kolibri1RMSNorm LagunaRMSNorm Lfm2MoeRMSNorm Lfm2RMSNorm Lfm3RMSNorm
        Lfm3VlVisionRMSNorm LightOnOcrRMSNorm Llama4TextRMSNorm LlamaRMSNorm LongcatFlashRMSNorm Mamba2RMSNorm
        MambaRMSNorm MellumRMSNorm MiMoV2FlashRMSNorm MiniCPM3RMSNorm MiniMaxM2RMSNorm MiniMaxRMSNorm
        Ministral3RMSNorm MinistralRMSNorm Mistral3RMSNorm Mistral4RMSNorm MistralLarge4RMSNorm MistralRMSNorm
        MixtralRMSNorm MllamaTextRMSNorm Molmo2RMSNorm MuseGlimmerAssistantRMSNorm NeuCodecRMSNorm OlmoeRMSNorm
        Ovis2RMSNorm PaddleOCRRMSNorm PeAudioEncoderRMSNorm PeAudioVideoEncoderRMSNorm PeVideoEncoderRMSNorm
        Phi3RMSNorm Phi4MultimodalRMSNorm PixtralRMSNorm QianfanOCRVisionRMSNorm Qwen2MoeRMSNorm Qwen2RMSNorm
        Qwen2VLRMSNorm Qwen2_5OmniRMSNorm Qwen2_5_VLRMSNorm Sapiens2RMSNorm SeedOssRMSNorm SmolLM3RMSNorm
        SolarOpenRMSNorm TimesFm2_5RMSNorm TimesFmRMSNorm UltraVBertRMSNorm UltrabertRMSNorm UnlimitedOcrTextRMSNorm
        VibeVoiceAcousticTokenizerRMSNorm VibeVoiceAsrRMSNorm VibeVoiceRMSNorm VoxtralRealtimeRMSNorm Xcodec2RMSNorm
        YoutuRMSNorm Zamba2RMSNorm ZambaRMSNorm ZayaRMSNorm
    """,
    "qwen3": """
        Qwen3MoeRMSNorm Qwen3OmniMoeCode2WavRMSNorm Qwen3OmniMoeRMSNorm Qwen3OmniMoeTextRMSNorm
        Qwen3OmniMoeThinkerTextRMSNorm Qwen3RMSNorm Qwen3VLMoeTextRMSNorm Qwen3VLTextRMSNorm
    """,
    "t5": """
        IdeficsRMSNorm Kosmos2_5LayerNorm LongT5LayerNorm MT5LayerNorm Pix2StructLayerNorm Pop2PianoLayerNorm
        SwitchTransformersLayerNorm T5LayerNorm UMT5LayerNorm UdopLayerNorm
    """,
    "olmo2": """
        AfmoeRMSNorm BeamRMSNorm DeepseekV4RMSNorm DiffusionGemmaRMSNorm EmbeddingGemma2RMSNorm FlexOlmoRMSNorm
        FlintRMSNorm Gemma3nRMSNorm Gemma4RMSNorm Gemma4UnifiedRMSNorm GptOssRMSNorm HeliumRMSNorm Inkling2LoopRMSNorm
        Inkling2RMSNorm KyutaiSpeechToTextRMSNorm LaraMiniRMSNorm MoshiRMSNorm MuseGlimmerRMSNorm MuseSparkRMSNorm
        NemotronHRMSNorm NemotronH_Omni_RMSNorm NeoMMERMSNorm Olmo2RMSNorm Olmo3RMSNorm OlmoHybridRMSNorm
        OpenAIPrivacyFilterRMSNorm
    """,
    "gemma": """
        Gemma2RMSNorm GemmaRMSNorm MiniMaxM3VLRMSNorm MuseGlimmerTextCenteredRMSNorm Qwen3NextRMSNorm
        Qwen3_5MoeRMSNorm Qwen3_5RMSNorm RecurrentGemmaRMSNorm Step3p7RMSNorm T5Gemma2RMSNorm T5GemmaRMSNorm
        VaultGemmaRMSNorm
    """,
    "gemma3": """
        Gemma3RMSNorm
    """,
    "cohere": """
        Cohere2LayerNorm Cohere2MoeLayerNorm CohereCompassLayerNorm CohereLayerNorm
    """,
    "nemotron": """
        NemotronLayerNorm1P
    """,
}
CONVENTION_OF_CLASS = {name: convention for convention, names in _CLASSES.items() for name in names.split()}

# Models, of which each has norms of one kind: that, their convention, the key of eps in config.json (None: eps stands
# in the code), what eps is where config.json does not have it, and their names. Those whose names do not tell their
# kinds of norms apart are not here.
_RMS, _LAYER = "rms_norm", "layer_norm"
_RMS_EPS, _LAYER_EPS, _EPSILON = "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon"
NORMS_OF_MODELS: tuple[tuple[str, str, str | None, float, str], ...] = (
    (
        _RMS,
        "llama",
        _RMS_EPS,
        1e-6,
        "llama mistral ministral qwen2 qwen2_moe smollm3 granite granitemoe seed_oss dots1",
    ),
    (_RMS, "llama", _RMS_EPS, 1e-5, "mixtral ministral3 phi3 glm4_moe exaone4 ernie4_5 ernie4_5_moe arcee olmoe"),
    (_RMS, "llama", _RMS_EPS, 1e-5, "hunyuan_v1_dense apertus eurobert"),
    (_RMS, "llama", _RMS_EPS, 1.5625e-7, "glm glm4"),
    (_RMS, "llama", "norm_eps", 1e-5, "lfm2"),
    (_RMS, "qwen3", _RMS_EPS, 1e-6, "qwen3 qwen3_moe"),
    (_RMS, "olmo2", _RMS_EPS, 1e-5, "olmo2 olmo3 gpt_oss"),
    (_RMS, "gemma", _RMS_EPS, 1e-6, "gemma gemma2 vaultgemma"),
    (_RMS, "gemma3", _RMS_EPS, 1e-6, "gemma3_text"),
    (_RMS, "t5", _EPSILON, 1e-6, "t5 mt5 umt5 longt5 switch_transformers"),
    (_LAYER, "cohere", _LAYER_EPS, 1e-5, "cohere cohere2"),
    (_LAYER, "nemotron", "norm_eps", 1e-5, "nemotron"),
    (_LAYER, "torch", _LAYER_EPS, 1e-12, "bert roberta xlm-roberta camembert electra albert mpnet esm vit deit"),
    (_LAYER, "torch", _LAYER_EPS, 1e-12, "nomic_bert"),
    (_LAYER, "torch", _LAYER_EPS, 1e-7, "deberta-v2"),
    (_LAYER, "torch", _LAYER_EPS, 1e-6, "dinov2 siglip_text_model siglip_vision_model"),
    (_LAYER, "torch", _LAYER_EPS, 1e-5, "gpt_neox phi stablelm persimmon clip_text_model clip_vision_model"),
    (_LAYER, "torch", _EPSILON, 1e-5, "gpt2 gpt_neo gptj gpt_bigcode bloom falcon mpt codegen"),
    (_LAYER, "torch", "norm_epsilon", 1e-5, "starcoder2"),
    (_LAYER, "torch", "norm_eps", 1e-5, "modernbert"),
    (_LAYER, "torch", _RMS_EPS, 1e-5, "phimoe"),
    (_LAYER, "torch", None, 1e-12, "distilbert"),
    (_LAYER, "torch", None, 1e-5, "opt whisper bart mbart marian pegasus xglm"),
)


def convention_of_model(name: str) -> str | None:
    """The name of the convention of a model's norms, by its name or what begins with that: Mistral-7B, qwen2.5."""
    plain = _plain(name)
    known: dict[str, set[str]] = {}
    for kind, convention in CONVENTION_OF_CLASS.items():
        known.setdefault(_plain(re.sub(r"(RMS|Layer)Norm\w*$", "", kind)), set()).add(convention)
    for _, convention, _, _, models in NORMS_OF_MODELS:
        known.update((_plain(model), {convention}) for model in models.split())
    fitting = [model for model in known if re.match(rf"{model}(\d|$)", plain)]
    found = known[max(fitting, key=len)] if fitting else ()
    return next(iter(found)) if len(found) == 1 else None  # more than one: its norms are of several kinds


def _plain(model: str) -> str:
    return re.sub(r"[\s._-]", "", model.lower()).removesuffix("text")
