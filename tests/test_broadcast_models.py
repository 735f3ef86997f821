"""The norms of models that have a weight for each head or each sample, beside what the models' own code computes."""

import importlib.util

import ml_dtypes
import numpy as np
import pytest

import anynorm
from tests.backends import BACKENDS

RNG = np.random.default_rng(5)
BATCH, TIME, HEADS, DIM = 2, 7, 4, 16


def numbers(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def qwen3_query_norm(queries, weight, eps=1e-6):
    """Qwen3RMSNorm over head_dim, one weight for all heads."""
    hidden = queries.astype(np.float64)
    variance = (hidden**2).mean(-1, keepdims=True)
    return weight * (hidden / np.sqrt(variance + eps))


def cohere_query_norm(queries, weight, eps=1e-5):
    """CohereLayerNorm with hidden_size=(heads, head_dim): no bias, a weight for each head."""
    hidden = queries.astype(np.float64)
    mean = hidden.mean(-1, keepdims=True)
    variance = ((hidden - mean) ** 2).mean(-1, keepdims=True)
    return weight * ((hidden - mean) / np.sqrt(variance + eps))


def dit_block_input(x, shift, scale, eps=1e-6):
    """DiT: modulate(LayerNorm(elementwise_affine=False)(x), shift, scale), of shape (N, T, D) and (N, D)."""
    hidden = x.astype(np.float64)
    mean = hidden.mean(-1, keepdims=True)
    normalized = (hidden - mean) / np.sqrt(((hidden - mean) ** 2).mean(-1, keepdims=True) + eps)
    return normalized * (1 + scale[:, None]) + shift[:, None]


def made():
    """Of each model: arguments of the function here, of anynorm's, its options, and the expected result."""
    queries = numbers(BATCH, TIME, HEADS, DIM)
    for_all, by_head = numbers(DIM), numbers(HEADS, DIM)
    x, shift, scale = numbers(BATCH, TIME, DIM), numbers(BATCH, DIM), numbers(BATCH, DIM)
    modulated = {"eps": 1e-6, "weight_offset": 1.0}
    return {
        "Qwen 3": ("rms_norm", (queries, for_all), {"eps": 1e-6}, qwen3_query_norm(queries, for_all)),
        "Qwen 3, of as many axes": (
            "rms_norm", (queries, for_all.reshape(1, 1, 1, DIM)), {"eps": 1e-6}, qwen3_query_norm(queries, for_all)
        ),
        "Cohere": (
            "layer_norm", (queries, by_head.reshape(1, 1, HEADS, DIM)), {}, cohere_query_norm(queries, by_head)
        ),
        "Cohere, heads first": (
            "layer_norm", (queries.swapaxes(1, 2), by_head.reshape(1, HEADS, 1, DIM)), {},
            cohere_query_norm(queries, by_head).swapaxes(1, 2),
        ),
        "DiT": ("layer_norm", (x, scale[:, None], shift[:, None]), modulated, dit_block_input(x, shift, scale)),
    }  # fmt: skip


MODELS = made()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("model", MODELS)
def test_as_the_model_computes_it(model, backend):
    norm, given, options, expected = MODELS[model]
    with backend.context():
        y = backend.read(getattr(anynorm, norm)(*map(backend.make, given), **options))
    np.testing.assert_allclose(y, expected, rtol=0, atol=4 * np.spacing(np.float32(np.abs(expected).max())))


def test_cohere_by_objects_modules_and_convert():
    """With a weight for each head, all three have the bits of the function, and with the model's few that differ."""
    torch = pytest.importorskip("torch")
    import anynorm.torch

    for kind in cohere_modules(torch):
        for dtype in (torch.bfloat16, torch.float16):
            theirs = kind((HEADS, DIM), eps=1e-5).to(dtype)
            torch.nn.init.normal_(theirs.weight, 1.0, 0.3, generator=torch.Generator().manual_seed(1))
            x = torch.from_numpy(numbers(64, TIME, HEADS, DIM)).to(dtype)
            with torch.no_grad():
                expected = theirs(x)
                weight = theirs.weight.detach()
                y = anynorm.layer_norm(x, weight[None, None], convention="cohere")
                assert (y == expected).double().mean() > 0.999  # see the table in docs/conventions.md
                norm = anynorm.LayerNorm(DIM, weight_shape=(HEADS, DIM), bias=False, convention="cohere", xp=torch)
                norm.weight = weight
                assert torch.equal(norm(x), y)
                module = anynorm.torch.LayerNorm(
                    DIM, bias=False, weight_shape=(HEADS, DIM), convention="cohere", dtype=dtype
                )
                module.load_state_dict(theirs.state_dict())
                assert torch.equal(module(x), y)
                anynorm.torch.convert(theirs)
                assert torch.equal(theirs(x), y)


@pytest.mark.parametrize("convention", [None, "cohere", "llama", "onnx"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_each_head_has_the_bits_of_a_norm_of_its_own(dtype, convention):
    dtype = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    x, weight = (numbers(*shape, HEADS, DIM).astype(dtype) for shape in ((BATCH, TIME), ()))
    norm = anynorm.LayerNorm(DIM, weight_shape=(HEADS, DIM), bias=False, convention=convention, dtype=dtype)
    norm.weight = weight
    y = norm(x)
    for head in range(HEADS):
        expected = anynorm.layer_norm(x[:, :, head].copy(), weight[head], convention=convention, eps=norm.eps)
        assert y[:, :, head].tobytes() == expected.tobytes()


def cohere_modules(torch):
    """CohereLayerNorm as transformers has it, written anew, and that of transformers where it is installed."""

    class CohereLayerNorm(torch.nn.Module):
        __module__ = "transformers.models.cohere.modeling_cohere"

        def __init__(self, hidden_size, eps):
            super().__init__()
            self.weight, self.variance_epsilon = torch.nn.Parameter(torch.ones(hidden_size)), eps

        def forward(self, x):
            wide = x.to(torch.float32)
            mean = wide.mean(-1, keepdim=True)
            variance = (wide - mean).pow(2).mean(-1, keepdim=True)
            wide = (wide - mean) * torch.rsqrt(variance + self.variance_epsilon)
            return (self.weight.to(torch.float32) * wide).to(x.dtype)

    yield CohereLayerNorm
    if importlib.util.find_spec("transformers") is not None:
        from transformers.models.cohere import modeling_cohere

        yield modeling_cohere.CohereLayerNorm


def test_training_of_a_modulated_norm_by_autograd():
    """Gradients of scale and shift go on to what has made them, as in torch's own operations."""
    torch = pytest.importorskip("torch")
    shapes = (3, 5, DIM), (3, DIM), (3, DIM), (3, 5, DIM)
    x, scale, shift, dy = (torch.from_numpy(numbers(*shape)) for shape in shapes)
    found = []
    for wide in (False, True):
        given = [(one.double() if wide else one).clone().requires_grad_() for one in (x, scale, shift)]
        if wide:
            normalized = torch.nn.functional.layer_norm(given[0], (DIM,), eps=1e-6)
            y = normalized * (1 + given[1].unsqueeze(1)) + given[2].unsqueeze(1)
        else:
            y = anynorm.layer_norm(given[0], *(one.unsqueeze(1) for one in given[1:]), eps=1e-6, weight_offset=1.0)
        y.backward(dy.to(y.dtype))
        found.append([one.grad.double().numpy() for one in given])
    for got, expected in zip(*found, strict=True):
        assert got.shape == expected.shape
        np.testing.assert_allclose(got, expected, rtol=0, atol=8 * np.spacing(np.float32(np.abs(expected).max())))
