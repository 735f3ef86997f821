"""The training loops of benchmarks/models in small: anynorm's gradients in a model, not only one norm at a time."""

import json
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import anynorm.torch
from benchmarks.models import characters, mlp
from benchmarks.models import text as texts
from tests.processes import script

ROOT = Path(characters.__file__).parents[2]
SMALL = characters.Shape(width=64, batch=8)

# A gradient has gone through some twenty steps, each of which rounds to 24 bits, with errors of either sign. sqrt(20)
# such errors are 2.7e-7, and about that far are both models from the same one in float64: anynorm's 2.7e-7, torch's
# 4.7e-7. Allowed are 32 of them, 1.9e-6. An eps of 1e-6 for 1e-5 or the other way round makes 5.6e-6, and is found.
ROUNDING = 32 * 2.0**-24


@pytest.fixture(scope="module")
def text():
    return texts.load()


@pytest.fixture(autouse=True)
def one_thread():
    """Torch's sums in one order, so that a failure can be repeated."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=characters.NORMS)
def norm(request):
    return request.param


def models_and_batches(norm, text, steps):
    models = characters.build(norm, len(text.vocabulary), SMALL, seed=0)
    return models, characters.batches(text.training, SMALL, steps, seed=0)


def test_models_begin_alike_and_differ_in_their_norms(norm, text):
    models, _ = models_and_batches(norm, text, 0)
    ours, theirs, nudged = models.values()
    kinds = [
        {type(module) for module in model.modules() if "Norm" in type(module).__name__} for model in models.values()
    ]
    name = {"layer": "LayerNorm", "rms": "RMSNorm"}[norm]
    assert kinds == [{getattr(anynorm.torch, name)}, {getattr(torch.nn, name)}, {getattr(torch.nn, name)}]
    started = [dict(model.named_parameters()) for model in (ours, theirs, nudged)]
    assert started[0].keys() == started[1].keys()
    assert all(torch.equal(parameter, started[1][name]) for name, parameter in started[0].items())
    assert sum((started[2][name] != parameter).sum() for name, parameter in started[1].items()) == 1


def test_every_gradient_agrees_with_torch(norm, text):
    models, batches = models_and_batches(norm, text, 1)
    batch = next(batches)
    for model in models.values():
        characters.loss_of(model, batch).backward()
    theirs = dict(models[characters.THEIRS].named_parameters())
    for name, parameter in models[characters.OURS].named_parameters():
        distance = (parameter.grad - theirs[name].grad).norm()
        size = theirs[name].grad.norm()
        assert size > 0, name
        assert distance <= ROUNDING * size, name


@pytest.mark.thorough
def test_losses_agree_with_torch(norm, text):
    # Ten steps add nothing to that: the losses are one ulp apart, and so are those of torch with a weight moved by one.
    losses = list(characters.train(*models_and_batches(norm, text, 10)))
    assert losses[-1][characters.THEIRS] < losses[0][characters.THEIRS] - 1
    for step in losses:
        assert step[characters.OURS] == pytest.approx(step[characters.THEIRS], rel=ROUNDING)


@pytest.mark.thorough
def test_training_again_gives_the_same_bits(norm, text):
    once, again = (list(characters.train(*models_and_batches(norm, text, 3))) for _ in range(2))
    assert once == again


@pytest.fixture
def settings_put_back():
    """What the command sets for the whole process, as it was."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(deterministic)
    anynorm.set_threads(None)


@pytest.mark.usefixtures("settings_put_back")
def test_the_command_writes_its_curves(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["characters", "--steps", "2", "-o", str(tmp_path / "curves.json")])
    characters.main()
    document = json.loads((tmp_path / "curves.json").read_text())
    assert {name: len(losses) for name, losses in document["losses"].items()} == {
        characters.OURS: 2, characters.THEIRS: 2, characters.NUDGED: 2
    }  # fmt: skip
    assert f"{document['losses'][characters.OURS][-1]:.4f}" in capsys.readouterr().out


def test_a_picture_without_matplotlib_is_refused_before_the_training(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["characters", "--picture", "curves.png"])
    monkeypatch.setattr(characters.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        characters.main()
    assert "pip install matplotlib" in capsys.readouterr().err


def test_the_numpy_model_needs_no_torch():
    code = "import sys, benchmarks.models.mlp; print(*({'torch', 'matplotlib'} & set(sys.modules)))"
    assert script(code, path=ROOT) == []


@pytest.mark.thorough
@pytest.mark.parametrize("norm", mlp.NORMS)
def test_the_numpy_model_learns(norm, text):
    parameters = mlp.start(norm, len(text.vocabulary), seed=0)
    losses = list(mlp.train(parameters, norm, text.training, 30, seed=0))
    fifths = np.reshape(losses, (5, 6)).mean(axis=1)
    assert all(later < earlier for earlier, later in pairwise(fifths))
    assert fifths[-1] < texts.unigram_entropy(text)  # which takes more than counting characters
    assert {value.dtype for value in parameters.values()} == {np.dtype(np.float32)}


def anywhere(norm, text, dtype):
    """Parameters away from the start, where weights of 1 and biases of 0 would hide that they are left out; a batch."""
    random = np.random.default_rng(1)
    begun = mlp.start(norm, len(text.vocabulary), seed=0, dtype=np.float64)
    parameters = {name: p + 0.1 * random.standard_normal(p.shape) for name, p in begun.items()}
    starts = random.integers(0, len(text.training) - mlp.CONTEXT, size=16)
    pieces = mlp.split(texts.windows(text.training, starts, mlp.CONTEXT + 1))
    return {name: np.asarray(p, dtype=dtype) for name, p in parameters.items()}, *pieces


@pytest.mark.parametrize("norm", mlp.NORMS)
def test_gradients_of_the_numpy_model_are_its_slopes(norm, text):
    parameters, seen, wanted = anywhere(norm, text, np.float64)
    random = np.random.default_rng(2)
    _, gradients = mlp.loss_and_gradients(parameters, norm, seen, wanted)
    assert gradients.keys() == parameters.keys()
    for name, gradient in gradients.items():
        # Mostly along the gradient, lest the slope be small beside it, and partly not, lest an error across it be
        # missed. In halves the two would cancel where there is one element, and nothing would be tested.
        size, across = np.linalg.norm(gradient), random.standard_normal(gradient.shape)
        direction = gradient / size + 0.5 * across / np.linalg.norm(across)
        slope = np.sum(gradient * direction)
        assert slope > 0.4 * size > 0, name
        # Rounding of the losses costs 2**-53 / step, and what is beyond the slope step**2: 1e-11 and 1e-10 here.
        step = 1e-5
        ahead, behind = (
            mlp.loss_and_gradients(parameters | {name: parameters[name] + move * direction}, norm, seen, wanted)[0]
            for move in (step, -step)
        )
        assert abs((ahead - behind) / (2 * step) - slope) <= 1e-6 * slope, name


@pytest.mark.parametrize("norm", mlp.NORMS)
def test_gradients_of_float32_are_those_of_float64(norm, text):
    # Which another part of anynorm computes.
    narrow, wide = (
        mlp.loss_and_gradients(*(parameters, norm, *pieces))[1]
        for parameters, *pieces in (anywhere(norm, text, dtype) for dtype in (np.float32, np.float64))
    )
    for name, gradient in narrow.items():
        assert gradient.dtype == np.float32
        assert np.linalg.norm(gradient - wide[name]) <= ROUNDING * np.linalg.norm(wide[name]), name
