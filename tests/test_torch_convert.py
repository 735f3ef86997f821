"""convert and revert: norms of a model that change their class in place, and all else that stays as it was."""

import copy
import pickle
import threading

import pytest
import torch

import anynorm.torch as norms
from tests import reference
from tests.backends import TORCH
from tests.tolerances import assert_exact

OURS = {torch.nn.LayerNorm: norms.LayerNorm, torch.nn.RMSNorm: norms.RMSNorm}
# Of results below 4 in float32, what torch and anynorm may have rounded differently.
CLOSE = {"rtol": 2.0**-20, "atol": 2.0**-20}


def filled(model, seed=0):
    """The same with parameters that are not all one number."""
    made = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = (0.5 * torch.randn(parameter.shape, generator=made)).to(parameter.dtype)
    return model


def rows(*shape, dtype=torch.float32):
    return torch.randn(shape or (4, 8), generator=torch.Generator().manual_seed(1)).to(dtype)


def small_model():
    return filled(
        torch.nn.Sequential(
            torch.nn.Linear(8, 8), torch.nn.LayerNorm(8), torch.nn.Tanh(), torch.nn.RMSNorm(8, eps=1e-3),
            torch.nn.LayerNorm(8, bias=False), torch.nn.Linear(8, 8),
        )
    )  # fmt: skip


def kinds(model):
    return [type(module) for module in model.modules() if isinstance(module, tuple(OURS))]


def test_there_and_back():
    model, x = small_model(), rows()
    before, state, parameters = model(x), copy.deepcopy(model.state_dict()), list(model.parameters())
    attributes = [dict(vars(module)) for module in model.modules()]
    assert norms.convert(model).skipped == ()
    assert kinds(model) == [norms.LayerNorm, norms.RMSNorm, norms.LayerNorm]
    torch.testing.assert_close(model(x), before, **CLOSE)
    assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))
    assert list(model.state_dict()) == list(state)
    assert all(map(torch.equal, model.state_dict().values(), state.values()))
    model.load_state_dict(state)
    assert norms.convert(model) == ((), ())  # there is nothing left to do
    report = norms.revert(model)
    assert [one.names for one in report.swapped] == [("1",), ("3",), ("4",)]
    assert kinds(model) == [torch.nn.LayerNorm, torch.nn.RMSNorm, torch.nn.LayerNorm]
    assert [vars(module) for module in model.modules()] == attributes
    assert torch.equal(model(x), before)
    assert norms.revert(model) == ((), ())


@pytest.mark.parametrize("kind", OURS)
def test_one_that_is_swapped_is_as_one_that_is_made(kind):
    swapped = kind(8)
    norms.convert(swapped)
    made = OURS[kind](8)
    assert type(swapped) is type(made)
    assert repr(swapped) == repr(made)
    assert {name: type(value) for name, value in vars(swapped).items()} == {
        name: type(value) for name, value in vars(made).items()
    }
    assert list(swapped._parameters) == list(made._parameters)
    swapped.weight_offset = 1.0
    swapped.reset_parameters()
    assert not swapped.weight.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", OURS)
def test_results_are_exact(kind, dtype):
    model, x = filled(kind(8, dtype=dtype)), rows(dtype=dtype) * 2.0**-11
    norms.convert(model)
    held = [TORCH.read(parameter) for parameter in model.parameters()]
    if kind is torch.nn.LayerNorm:
        norm, eps = "layer_norm", 1e-5
    else:
        norm, eps = "rms_norm", torch.finfo(torch.float32 if dtype == torch.bfloat16 else dtype).eps
    exact = [getattr(reference, norm)(row, *held, eps=eps) for row in TORCH.read(x)]
    for _ in range(6):  # the slow path and the short one
        y = model(x)
    assert_exact(TORCH.read(y), exact, backend="torch, converted", dtype=str(dtype)[6:], norm=norm)


@pytest.mark.parametrize("kind", OURS)
def test_results_are_contiguous_as_those_of_torch(kind):
    """Models go on with `view`, which refuses the strides that x may have."""
    model, permuted = kind(8), rows(2, 8, 3).transpose(1, 2)
    norms.convert(model)
    for x in (permuted, permuted.clone().requires_grad_(), rows(1, 8).expand(3, 8), rows(4, 16)[:, ::2]):
        y, expected = model(x), kind(8)(x)
        assert y.stride() == expected.stride()
        torch.testing.assert_close(y.view(-1), expected.view(-1), **CLOSE)
    torch.compiler.reset()  # whatever ran before may have used up how often a function is compiled anew
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.equal(compiled(permuted).view(-1), model(permuted).view(-1))


def test_places_that_share_a_norm():
    model = torch.nn.ModuleDict({"one": torch.nn.LayerNorm(8), "two": torch.nn.Sequential(torch.nn.RMSNorm(8))})
    model["again"] = model["one"]
    model["two"].append(model["one"])
    report = norms.convert(model)
    assert [one.names for one in report.swapped] == [("one", "two.1", "again"), ("two.0",)]
    assert model["one"] is model["again"] is model["two"][1]
    assert type(model["one"]) is norms.LayerNorm


def test_parameters_that_are_shared_or_frozen():
    model = torch.nn.Sequential(torch.nn.LayerNorm(8), torch.nn.LayerNorm(8))
    model[1].weight, model[0].bias.requires_grad = model[0].weight, False
    norms.convert(model)
    model(rows()).square().sum().backward()
    assert model[1].weight is model[0].weight
    assert model[0].bias.grad is None
    assert model[0].weight.grad.any()


def test_a_model_that_is_a_norm():
    model = torch.nn.LayerNorm(8)
    report = norms.convert(model)
    assert type(model) is norms.LayerNorm
    assert report.swapped == ((("",), "LayerNorm", ""),)
    assert repr(report) == "swapped 1, skipped 0\n  swapped  (the model)  LayerNorm"


def test_hooks_attributes_and_modes():
    model, seen = torch.nn.Sequential(torch.nn.RMSNorm(8)).double().eval(), []
    norm = model[0]
    norm.register_buffer("steps", torch.zeros(3))
    norm.note = "mine"

    def note(name):
        return lambda *given, **options: seen.append((name, len(given), sorted(options)))

    norm.register_forward_pre_hook(note("before"), with_kwargs=True)
    norm.register_forward_hook(note("after"), with_kwargs=True, always_call=True)
    norm.register_full_backward_pre_hook(note("before backward"))
    norm.register_full_backward_hook(note("backward"))
    norm.register_state_dict_pre_hook(note("before state"))
    norm.register_state_dict_post_hook(note("state"))
    norm.register_load_state_dict_pre_hook(note("before load"))
    norm.register_load_state_dict_post_hook(note("load"))
    norm.weight.register_hook(note("weight"))

    def run():
        seen.clear()
        model(rows(dtype=torch.float64).requires_grad_()).sum().backward()
        model.load_state_dict(model.state_dict())
        with pytest.raises((RuntimeError, ValueError)):
            model(torch.ones(3, dtype=torch.float64))
        return list(seen)

    expected = run()
    assert len(expected) == 11
    norms.convert(model)
    assert run() == expected
    assert norm.note == "mine"
    assert not norm.training
    assert (norm.steps.dtype, norm.weight.dtype) == (torch.float32, torch.float64)
    assert list(model.state_dict()) == ["0.weight", "0.steps"]


def test_an_optimizer_made_before_goes_on():
    """Beside a model that is not converted: the same losses, before and after, but for what was rounded."""
    losses = []
    for is_converted in (False, True):
        model, x = small_model(), rows()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        found = []
        for step in range(12):
            if step == 4 and is_converted:
                norms.convert(model)
            if step == 8 and is_converted:
                norms.revert(model)
            optimizer.zero_grad()
            loss = (model(x) - x).square().mean()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        assert found[-1] < 0.8 * found[0]
        losses.append(found)
    torch.testing.assert_close(*losses, rtol=2.0**-16, atol=0.0)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies(again):
    model = small_model()
    norms.convert(model)
    other = again(model)
    assert kinds(other) == kinds(model)
    assert torch.equal(other(rows()), model(rows()))
    assert norms.revert(other).skipped == ()


def test_a_model_that_threads_run_meanwhile():
    model, x, wrong = small_model(), rows(), []
    with torch.no_grad():
        expected = model(x)
    done = threading.Event()

    def work():
        with torch.no_grad():
            while not done.is_set():
                try:
                    torch.testing.assert_close(model(x), expected, **CLOSE)
                except Exception as error:  # which a thread would print and forget
                    wrong.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    norms.convert(model)
    for _ in range(20):
        model(x)
    done.set()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_class_changes_once_the_module_has_all_that_it_needs(monkeypatch):
    """So that a thread within the model never meets a module that lacks something."""
    model, held, set_attribute = torch.nn.RMSNorm(8), [], torch.nn.Module.__setattr__

    def note(module, name, value):
        if name == "__class__":
            held.append((module.weight_offset, module.bias))
        set_attribute(module, name, value)

    monkeypatch.setattr(torch.nn.Module, "__setattr__", note)
    norms.convert(model)
    assert held == [(0.0, None)]
    assert type(model) is norms.RMSNorm
