"""`anynorm.torch.convert` of the norms of Hugging Face's models."""

import copy
import pickle

import pytest

torch = pytest.importorskip("torch")

import anynorm.torch as norms  # noqa: E402
from anynorm._models import CONVENTION_OF_CLASS  # noqa: E402


class LlamaRMSNorm(torch.nn.Module):
    """As transformers has it, written anew."""

    __module__ = "transformers.models.llama.modeling_llama"

    def __init__(self, size, eps=1e-6):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(size))
        self.variance_epsilon = eps

    def forward(self, x):
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * wide.to(x.dtype)


class NemotronLayerNorm1P(torch.nn.LayerNorm):
    __module__ = "transformers.models.nemotron.modeling_nemotron"

    def forward(self, x):
        return torch.nn.functional.layer_norm(x, self.normalized_shape, self.weight + 1.0, self.bias, self.eps)


def filled(kind, *arguments):
    torch.manual_seed(0)
    norm = kind(*arguments).to(torch.bfloat16)
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter, 0.5, 0.2)
    return norm


X = (torch.randn(16, 64, generator=torch.Generator().manual_seed(1)) * 3).to(torch.bfloat16)


def test_a_weight_for_each_head_there_and_back():
    norm = filled(LlamaRMSNorm, (4, 16))
    x = X.reshape(2, 8, 4, 16)
    before = norm(x)
    assert len(norms.convert(norm).swapped) == 1
    assert "weight_shape=(4, 16), convention='llama'" in repr(norm)
    assert torch.equal(norm(x), before)
    norm(x).sum().backward()
    assert norm.weight.grad.shape == (4, 16)
    with pytest.raises(ValueError, match=r"last axes of the input must have the lengths \(4, 16\)"):
        norm(X)
    norms.revert(norm)
    assert type(norm) is LlamaRMSNorm
    assert torch.equal(norm(x), before)


@pytest.mark.parametrize("kind", [LlamaRMSNorm, NemotronLayerNorm1P])
def test_there_and_back(kind):
    model = torch.nn.Sequential(filled(kind, 64))
    norm, before, held = model[0], model(X), dict(vars(model[0]))
    state, optimizer = set(model.state_dict()), torch.optim.SGD(model.parameters(), lr=0.1)
    report = norms.convert(model)
    assert [(one.kind, one.note) for one in report.swapped] == [
        (kind.__name__, f"by the convention {CONVENTION_OF_CLASS[kind.__name__]}")
    ]
    assert not report.skipped
    assert model[0] is norm
    assert set(model.state_dict()) == state
    assert torch.equal(model(X), before)
    plain = norms.LayerNorm(64) if kind is NemotronLayerNorm1P else norms.RMSNorm(64, eps=1e-6)
    plain.load_state_dict({name: value.float() for name, value in model[0].state_dict().items()})
    assert not torch.equal(plain.bfloat16()(X), before)  # the convention tells
    model(X).sum().backward()
    optimizer.step()
    changed = model(X)
    for one in (copy.deepcopy(model), torch.nn.Sequential(*copy.deepcopy(list(model)))):
        assert torch.equal(one(X), changed)
    back = norms.revert(model)
    assert [one.kind for one in back.swapped] == [type(plain).__name__]
    assert type(norm) is kind
    assert dict(vars(norm)).keys() == held.keys()
    assert torch.equal(model(X), changed)


def test_what_is_skipped():
    no_axes = LlamaRMSNorm(())
    no_eps = LlamaRMSNorm(8)
    del no_eps.variance_epsilon
    replaced = LlamaRMSNorm(8)
    replaced.forward = lambda x: x
    report = norms.convert(torch.nn.ModuleList([no_axes, no_eps, replaced]))
    assert not report.swapped
    of_axes, of_eps, of_forward = (one.note for one in report.skipped)
    assert "no axes" in of_axes
    assert "eps" in of_eps
    assert "forward" in of_forward


def test_a_class_of_that_name_elsewhere_is_not_known():
    stranger = type("LlamaRMSNorm", (LlamaRMSNorm,), {"__module__": "someone.else"})
    (skipped,) = norms.convert(stranger(8)).skipped
    assert "known" in skipped.note


def test_eps_may_have_either_name():
    norm = LlamaRMSNorm(8, eps=0.25)
    norm.eps = norm.variance_epsilon
    del norm.variance_epsilon
    norms.convert(norm)
    x = torch.full((1, 8), 0.5, dtype=torch.float64)
    torch.testing.assert_close(norm(x), x / 0.5**0.5)
    norms.revert(norm)
    assert norm.eps == 0.25


@pytest.mark.thorough
def test_each_class_that_is_known_computes_what_its_convention_does():
    pytest.importorskip("transformers", reason="it comes with the extra `models`")
    from benchmarks.originals.classes import defined, wrong

    assert not list(wrong())
    assert len(CONVENTION_OF_CLASS.keys() & defined()) > 100


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name", ["Llama", "Gemma", "Gemma3Text", "Qwen3", "Olmo2", "Cohere", "Nemotron", "Mistral", "Glm"]
)
def test_models(name):
    transformers = pytest.importorskip("transformers", reason="it comes with the extra `models`")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = getattr(transformers, f"{name}Config")(
        **sizes, num_key_value_heads=2, head_dim=8, vocab_size=64, pad_token_id=0
    )
    config.use_qk_norm = True  # of Cohere: with a weight for each head
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config).to(torch.bfloat16).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1 or parameter.shape in ((4, 8), (2, 8)):
            torch.nn.init.normal_(parameter, 0.5, 0.2)
    tokens = torch.randint(1, 64, (2, 9))
    with torch.no_grad():
        before = model(input_ids=tokens).last_hidden_state
        report = norms.convert(model)
        assert len(report.swapped) >= (7 if name == "Cohere" else 3)
        assert {one.note.removeprefix("by the convention ") for one in report.swapped} == {
            {"Gemma3Text": "gemma3", "Mistral": "llama", "Glm": "llama"}.get(name, name.lower())
        }
        assert not report.skipped
        after = model(input_ids=tokens).last_hidden_state
        # A sum in float32 beside the middle between two numbers may turn one of them, and what it goes into; other
        # roundings turn a third.
        assert (after == before).double().mean() > 0.95
        held = pickle.loads(pickle.dumps(model))
        assert torch.equal(held(input_ids=tokens).last_hidden_state, after)
        norms.revert(held)
        assert torch.equal(held(input_ids=tokens).last_hidden_state, before)
