"""A character-level transformer, trained from one seed with anynorm's norms and with torch's own.

    python -m benchmarks.models.characters --steps 300 -o benchmarks/results/characters.json \\
        --picture benchmarks/results/characters.png

The models take each step together, on the same batch. Training enlarges any difference, so that a third one is
trained: torch's again, with a single weight moved by one unit in the last place. Beside that the difference between
anynorm and torch is to be seen. The whole takes one or two minutes; the picture needs matplotlib.
"""

import argparse
import importlib.util
import json
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional

import anynorm
import anynorm.torch
from anynorm._bench.machine import describe
from benchmarks.models import text as texts
from benchmarks.output import add_output, file_to_write

OURS, THEIRS, NUDGED = "anynorm", "torch", "torch, one weight moved by an ulp"
# eps is written out because torch.nn.RMSNorm's own is another one.
NORMS = {
    "layer": {OURS: partial(anynorm.torch.LayerNorm, eps=1e-5), THEIRS: partial(nn.LayerNorm, eps=1e-5)},
    "rms": {OURS: partial(anynorm.torch.RMSNorm, eps=1e-6), THEIRS: partial(nn.RMSNorm, eps=1e-6)},
}
LEARNING_RATE = 3e-3
HELD_OUT_WINDOWS = 256


class Shape(NamedTuple):
    """The size of a model and of its batches."""

    width: int = 128
    layers: int = 2
    heads: int = 4
    context: int = 64
    batch: int = 16


class Block(nn.Module):
    """Causal attention and a hidden layer, each behind a norm and beside a way past it."""

    def __init__(self, shape: Shape, norm: Callable[[int], nn.Module]):
        super().__init__()
        width, self.heads = shape.width, shape.heads
        self.norm_of_attention, self.norm_of_hidden = norm(width), norm(width)
        # One matrix for query, key and value. A bias of keys alone would have no gradient but rounding, since softmax
        # takes no notice of it.
        self.attended, self.mixed = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.hidden, self.narrowed = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.attended(self.norm_of_attention(x)).chunk(3, dim=-1)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.mixed(mixed.transpose(1, 2).flatten(-2))
        return x + self.narrowed(functional.gelu(self.hidden(self.norm_of_hidden(x))))


class Characters(nn.Module):
    """Ids of characters to scores of the next one at each place."""

    def __init__(self, vocabulary: int, shape: Shape, norm: Callable[[int], nn.Module]):
        super().__init__()
        self.characters = nn.Embedding(vocabulary, shape.width)
        self.places = nn.Embedding(shape.context, shape.width)
        self.blocks = nn.Sequential(*(Block(shape, norm) for _ in range(shape.layers)))
        self.last_norm = norm(shape.width)
        self.scores = nn.Linear(shape.width, vocabulary)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.characters(ids) + self.places.weight[: ids.shape[-1]]
        return self.scores(self.last_norm(self.blocks(x)))


def build(norm: str, vocabulary: int, shape: Shape, seed: int) -> dict[str, Characters]:
    """Models that begin with the same parameters, and one that does not by the least there is."""
    models = {}
    for name in (OURS, THEIRS, NUDGED):
        torch.manual_seed(seed)
        models[name] = Characters(vocabulary, shape, NORMS[norm][OURS if name == OURS else THEIRS])
    with torch.no_grad():
        weight = models[NUDGED].blocks[0].attended.weight
        weight[0, 0] = torch.nextafter(weight[0, 0], weight.new_tensor(math.inf))
    return models


def batches(ids: np.ndarray, shape: Shape, steps: int, seed: int) -> Iterator[torch.Tensor]:
    """Pieces of the text, longer than the context by the character to be predicted at its end."""
    random = np.random.default_rng(seed)
    for _ in range(steps):
        starts = random.integers(0, len(ids) - shape.context, size=shape.batch)
        yield torch.from_numpy(texts.windows(ids, starts, shape.context + 1))


def loss_of(model: Characters, batch: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy in nats."""
    return functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


def train(models: dict[str, Characters], given: Iterator[torch.Tensor]) -> Iterator[dict[str, float]]:
    """Take a step with each model for each batch, and tell the losses before it."""
    optimizers = {name: torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE) for name, model in models.items()}
    for batch in given:
        losses = {}
        for name, model in models.items():
            optimizers[name].zero_grad()
            loss = loss_of(model, batch)
            loss.backward()
            optimizers[name].step()
            losses[name] = loss.item()
        yield losses


def held_out_loss(model: Characters, ids: np.ndarray, shape: Shape) -> float:
    starts = np.linspace(0, len(ids) - shape.context - 1, HELD_OUT_WINDOWS).astype(np.int64)
    with torch.no_grad():
        return loss_of(model, torch.from_numpy(texts.windows(ids, starts, shape.context + 1))).item()


def largest_difference(losses: dict[str, list[float]], name: str) -> float:
    return max(abs(one - other) for one, other in zip(losses[name], losses[THEIRS], strict=True))


def run(norm: str, steps: int, seed: int, threads: int) -> dict[str, Any]:
    """Train the models, print their losses, and return what there is to say about them."""
    torch.set_num_threads(threads)  # of torch's sums, the order and so the bits depend on it
    torch.use_deterministic_algorithms(True)
    anynorm.set_threads(threads)
    text, shape = texts.load(), Shape()
    models = build(norm, len(text.vocabulary), shape, seed)
    losses: dict[str, list[float]] = {name: [] for name in models}
    print(f"{'step':>6}{OURS:>12}{THEIRS:>12}{'difference':>14}{'that of an ulp':>18}")
    for step, found in enumerate(train(models, batches(text.training, shape, steps, seed))):
        for name, loss in found.items():
            losses[name].append(loss)
        if step % max(1, steps // 20) == 0 or step == steps - 1:
            ours, ulp = (found[name] - found[THEIRS] for name in (OURS, NUDGED))
            print(f"{step:6}{found[OURS]:12.4f}{found[THEIRS]:12.4f}{ours:14.1e}{ulp:18.1e}", flush=True)
    return {
        "machine": describe(),
        "arguments": {"norm": norm, "steps": steps, "seed": seed, "threads": threads},
        "model": shape._asdict() | {"parameters": sum(p.numel() for p in models[OURS].parameters())},
        "text": texts.describe(text),
        "largest_differences": {name: largest_difference(losses, name) for name in (OURS, NUDGED)},
        "held_out": {name: held_out_loss(model, text.held_out, shape) for name, model in models.items()},
        "losses": losses,
    }


def print_summary(document: dict[str, Any]) -> None:
    print(f"\n{'':36}{'last loss':>12}{'held out':>12}{'largest difference':>22}")
    for name, losses in document["losses"].items():
        difference = document["largest_differences"].get(name)
        written = "" if difference is None else f"{difference:22.1e}"
        print(f"{name:36}{losses[-1]:12.4f}{document['held_out'][name]:12.4f}{written}")
    print(f"{'unigram entropy':36}{document['text']['unigram_entropy']:12.4f}")


def draw(document: dict[str, Any], path: Path) -> None:
    """Draw the losses, and below them how far they are from torch's."""
    from matplotlib.figure import Figure

    losses = {name: np.asarray(values) for name, values in document["losses"].items()}
    figure = Figure(figsize=(8, 6.5), layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=(3, 2))
    above.plot(losses[OURS], linewidth=3, alpha=0.5, label=OURS)
    above.plot(losses[THEIRS], linewidth=1, linestyle="--", color="black", label=THEIRS)
    above.axhline(document["text"]["unigram_entropy"], color="grey", linestyle=":", label="unigram entropy")
    above.set(
        ylabel="loss in nats", title=f"{document['arguments']['norm']} norm, {document['model']['layers']} layers"
    )
    above.legend()
    for name, marker in ((OURS, "o"), (NUDGED, "x")):
        difference = np.abs(losses[name] - losses[THEIRS])
        # Losses that are equal to the last bit have no place on a logarithmic axis.
        below.plot(np.where(difference > 0, difference, np.nan), marker, markersize=3, label=name)
    below.set(xlabel="step", ylabel="distance from torch's loss", yscale="log")
    below.legend(loc="upper left")
    figure.savefig(path, dpi=120)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--norm", choices=NORMS, default="layer")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="of torch and of anynorm each (default 1)")
    add_output(parser, "a JSON file to write")
    parser.add_argument("--picture", type=file_to_write, help="a picture to draw, by matplotlib")
    arguments = parser.parse_args()
    if min(arguments.steps, arguments.threads) < 1:
        parser.error("--steps and --threads must be 1 or more")
    # Said now, and not when the training is over.
    if arguments.picture and importlib.util.find_spec("matplotlib") is None:
        parser.error("--picture needs matplotlib: pip install matplotlib")
    return arguments


def main() -> None:
    arguments = parse()
    document = run(arguments.norm, arguments.steps, arguments.seed, arguments.threads)
    print_summary(document)
    if arguments.output:
        arguments.output.write_text(json.dumps(document, indent=1) + "\n")
    if arguments.picture:
        draw(document, arguments.picture)


if __name__ == "__main__":
    main()
