"""The text that the small models learn: Python's own help topics, which every CPython brings along."""

import hashlib
from typing import NamedTuple

import numpy as np

HELD_OUT_SHARE = 0.1


class Text(NamedTuple):
    """A text as numbers: each character's place in the vocabulary."""

    vocabulary: str
    training: np.ndarray
    held_out: np.ndarray  # the last tenth, in which no model is trained
    sha256: str  # the topics change with the version of Python, and with them every loss


def load() -> Text:
    """Read the topics of `pydoc`, one after the other in the order of their names."""
    from pydoc_data.topics import topics

    written = "\n".join(topics[name] for name in sorted(topics))
    vocabulary = "".join(sorted(set(written)))
    number = {character: place for place, character in enumerate(vocabulary)}
    ids = np.asarray([number[character] for character in written], dtype=np.int64)
    cut = round(len(ids) * (1 - HELD_OUT_SHARE))
    return Text(vocabulary, ids[:cut], ids[cut:], hashlib.sha256(written.encode()).hexdigest())


def unigram_entropy(text: Text) -> float:
    """The least loss in nats of a model of the training text that sees no context."""
    counts = np.bincount(text.training)
    share = counts[counts > 0] / len(text.training)
    return float(-(share * np.log(share)).sum())


def windows(ids: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    """The pieces of that length which begin at the starts, of shape (starts, length)."""
    return ids[starts[:, None] + np.arange(length)]


def describe(text: Text) -> dict[str, str | int | float]:
    """What a result says about the text."""
    return {
        "source": "pydoc_data.topics",
        "sha256": text.sha256,
        "characters": len(text.training) + len(text.held_out),
        "vocabulary": len(text.vocabulary),
        "unigram_entropy": unigram_entropy(text),
    }
