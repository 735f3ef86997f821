"""Conventions as values, as an argument, and in the norms that hold their parameters."""

import copy
import inspect
import pickle
import re

import numpy as np
import pytest

import anynorm
from anynorm import CONVENTIONS, Convention
from anynorm._models import CONVENTION_OF_CLASS, NORMS_OF_MODELS, convention_of_model

X = np.linspace(-2.0, 3.0, 24, dtype=np.float16).reshape(3, 8)
WEIGHT, BIAS = np.linspace(0.5, 1.5, 8, dtype=np.float16), np.linspace(-1.0, 1.0, 8, dtype=np.float16)
MINE = Convention(eps=1e-3, eps_place="outside", rounding="each", portion=0.5)
KINDS = {"layer_norm": "LayerNorm", "rms_norm": "RMSNorm", "scale_norm": "ScaleNorm"}


@pytest.mark.parametrize("convention", [*CONVENTIONS.values(), MINE], ids=lambda one: one.name or "mine")
def test_a_convention_is_a_value(convention):
    assert convention == convention.replace() == copy.deepcopy(convention) == pickle.loads(pickle.dumps(convention))
    assert hash(convention) == hash(convention.replace())
    assert eval(repr(convention), {"Convention": Convention}) == convention
    assert convention != convention.replace(portion=0.25) != "a string"
    with pytest.raises(AttributeError, match="replace makes another"):
        convention.eps = 1.0


def test_the_names_are_fixed():
    assert all(convention.name == name for name, convention in CONVENTIONS.items())
    with pytest.raises(TypeError):
        CONVENTIONS["mine"] = MINE


@pytest.mark.parametrize(
    ("wrong", "kind", "message"),
    [
        ({"name": 3}, TypeError, "name must be a str"),
        ({"eps": -1.0}, ValueError, "eps must be finite and not negative"),
        ({"rms_eps": "1"}, TypeError, "rms_eps must be a number"),
        ({"eps_place": "under"}, ValueError, "eps_place must be one of 'inside', 'outside', 'floor'"),
        ({"rounding": None}, TypeError, "rounding must be one of 'once', 'normalized', 'each'"),
        ({"statistics": "float32"}, ValueError, "statistics must be one of 'wide', 'x'"),
        ({"offset": 1.0}, TypeError, "offset must be one of 'wide', 'weight'"),
        ({"weight_offset": np.inf}, ValueError, "weight_offset must be finite"),
        ({"portion": 0.0}, ValueError, "portion must be above 0 and at most 1"),
        ({"portion": 1.5}, ValueError, "portion must be above 0 and at most 1"),
    ],
)
def test_wrong_values(wrong, kind, message):
    with pytest.raises(kind, match=message):
        Convention(**wrong)


def test_wrong_arguments():
    for call in (anynorm.rms_norm, anynorm.rms_norm_vjp, anynorm.explain):
        with pytest.raises(
            ValueError, match=r"convention must be a Convention or one of the names torch, llama, .*'lama'"
        ):
            call(X, WEIGHT, convention="lama")
        with pytest.raises(TypeError, match="convention must be a Convention or one of the names"):
            call(X, WEIGHT, convention=["llama"])
        with pytest.raises(ValueError, match=r"weight_offset must be left out, for the convention has one of 1\.0"):
            call(X, WEIGHT, weight_offset=1.0, convention="gemma")
        with pytest.raises(ValueError, match="moments must be left out where a convention takes statistics"):
            call(X, WEIGHT, convention=MINE, moments=anynorm.moments(X))
        with pytest.raises(ValueError, match="axis must be one axis where a portion of it is used"):
            call(X, convention=MINE, axis=(0, 1))
        with pytest.raises(ValueError, match="portion must be at least one of 8 features"):
            call(X, WEIGHT, convention=MINE.replace(portion=0.1))
    with pytest.raises(ValueError, match="convention must be"):
        anynorm.add_rms_norm(X, X, convention="lama")
    with pytest.raises(ValueError, match="convention must be"):
        anynorm.RMSNorm(8, convention="lama")


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("lama", "pass 'llama'"),
        ("Nemotron", "pass 'nemotron', by which the norms of this model go"),
        ("mistral", "pass 'llama', by which the norms of this model go"),
        ("Mistral-7B", "pass 'llama', by which"),
        ("qwen2.5", "pass 'llama', by which"),
        ("qwen3_5", "pass 'gemma', by which"),
        ("gemma3_text", "pass 'gemma3', by which"),
        ("bert", "pass 'torch', by which"),
        ("diamond", "pass one of these names"),  # begins as the name of a model, dia
        ("cohere2_moe", "pass 'cohere'"),  # which has norms of two kinds
        ("", "pass one of these names"),
    ],
)
def test_the_name_of_a_model_in_place_of_a_convention(name, instead):
    with pytest.raises(ValueError, match=f"{instead}$" if "this model" in instead or "one of" in instead else instead):
        anynorm.RMSNorm(8, convention=name)


def test_tables_of_models_agree():
    """Each convention of a model is that of the class which has its name."""
    models = [(model, row[1]) for row in NORMS_OF_MODELS for model in row[4].split() if row[1] != "torch"]
    classes = {re.sub("(RMS|Layer)Norm.*|_", "", kind).lower(): kind for kind in CONVENTION_OF_CLASS}
    shared = [(model, convention) for model, convention in models if model.replace("_", "") in classes]
    assert len(shared) > 30
    for model, convention in shared:
        assert CONVENTION_OF_CLASS[classes[model.replace("_", "")]] == convention == convention_of_model(model)
    assert set(CONVENTION_OF_CLASS.values()) <= set(CONVENTIONS)


def test_eps_that_is_passed_goes_before_that_of_a_convention_even_if_it_is_the_default():
    x = X.astype(np.float64) / 64
    for eps in (1e-5, 0.5):
        assert np.array_equal(anynorm.layer_norm(x, eps=eps, convention="keras"), anynorm.layer_norm(x, eps=eps))
    assert np.array_equal(anynorm.layer_norm(x, convention="keras"), anynorm.layer_norm(x, eps=1e-3))
    assert np.array_equal(anynorm.rms_norm(x, convention="keras"), anynorm.rms_norm(x))
    assert str(inspect.signature(anynorm.layer_norm).parameters["eps"]) == "eps: 'float' = 1e-05"


def test_a_portion_along_any_axis_in_place_and_of_a_sum():
    convention = Convention(portion=0.5)
    expected = anynorm.rms_norm(X, WEIGHT, moments=anynorm.moments(X[:, :4]))
    assert not np.array_equal(expected, anynorm.rms_norm(X, WEIGHT))
    assert np.array_equal(anynorm.rms_norm(X, WEIGHT, convention=convention), expected)
    assert np.array_equal(anynorm.rms_norm(X.T.copy(), WEIGHT, axis=0, convention=convention).T, expected)
    x, residual = X / 2, X / 2
    y, total = anynorm.add_rms_norm(x, residual, WEIGHT, convention=convention, out=(x, residual))
    assert y is x
    assert total is residual
    assert np.array_equal(y, expected)
    assert np.array_equal(total, X)


@pytest.mark.parametrize("convention", ["llama", "gemma", "nemotron", "x_transformers", "keras", MINE], ids=str)
@pytest.mark.parametrize("norm", KINDS)
def test_objects(norm, convention):
    made = getattr(anynorm, KINDS[norm])(8, convention=convention, dtype=np.float16)
    parameters = list(made.state_dict().values())
    assert np.array_equal(made(X), getattr(anynorm, norm)(X, *parameters, convention=convention))
    found = made.convention
    assert found == (convention if convention is MINE else CONVENTIONS[convention])
    assert f"convention={convention!r}" in repr(made)
    plain = getattr(anynorm, KINDS[norm])(8, dtype=np.float16)
    assert made != plain
    assert made.state_dict().keys() == plain.state_dict().keys()
    for same in (pickle.loads(pickle.dumps(made)), copy.deepcopy(made)):
        assert same == made
        assert hash(same) == hash(made)
        assert np.array_equal(same(X), made(X))


def test_objects_take_over_eps_and_offset():
    norm = anynorm.RMSNorm(8, convention="gemma")
    assert (norm.eps, norm.weight_offset) == (1e-6, 1.0)
    assert (norm.weight == 0.0).all()
    assert anynorm.LayerNorm(8, convention="keras").eps == 1e-3
    assert anynorm.LayerNorm(8, convention="keras", eps=1e-5).eps == 1e-5
    assert anynorm.ScaleNorm(8, convention="scalenorm_paper").eps == 1e-5
    assert anynorm.ScaleNorm(8, convention="gemma").eps == 1e-12


def test_a_tree_of_jax_keeps_the_convention():
    jax = pytest.importorskip("jax")
    norm = anynorm.RMSNorm(8, convention=MINE, xp=jax.numpy)
    same = jax.tree.map(lambda one: one, norm)
    assert same == norm
    assert same.convention == MINE
