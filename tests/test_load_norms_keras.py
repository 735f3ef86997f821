"""load_norms: the norms in .keras and .weights.h5 files, written here as Keras writes them, and by Keras itself."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest

import anynorm
from tests.checkpoints import BFLOAT16, numbers, refused, require_norm, same_bits

h5py = pytest.importorskip("h5py", reason="needs h5py, which reads and writes the files")

from tests.keras_files import in_hdf5, layer, norm, pair, write_keras  # noqa: E402  needs h5py

LAYER, RMS = anynorm.LayerNorm, anynorm.RMSNorm


@pytest.mark.parametrize("dtype", [BFLOAT16, "float16", "float32", "float64"], ids=str)
def test_layers_of_a_model(dtype, tmp_path):
    inner = {"module": "keras", "class_name": "Sequential", "config": {"name": "inner", "layers": [norm(name="deep")]}}
    timed = layer("TimeDistributed", "timed", layer=norm("RMSNormalization", "of_each", epsilon=1e-4))
    layers = [
        layer("InputLayer", "input"), norm(name="first"), layer("Dense", "dense"), norm(name="second", center=False),
        norm("RMSNormalization", "third", axis=2, epsilon=1e-6), inner, timed, norm(name="both", axis=[1, 2]),
    ]  # fmt: skip
    variables = {
        "layers/layer_normalization": pair(dtype),
        "layers/layer_normalization_1": pair(dtype, 2)[:1],
        "layers/rms_normalization": pair(dtype, 4)[:1],
        "layers/sequential/layers/layer_normalization": pair(dtype, 6),
        "layers/time_distributed/layer": pair(dtype, 8)[:1],
        "layers/layer_normalization_2": pair(dtype, 10, (5, 8)),
        "layers/dense": [numbers((8, 8), dtype, 12), numbers(8, dtype, 13)],
    }
    given = dict(zip(variables, ("first", "second", "third", "deep", "of_each", "both"), strict=False))
    for names in ({}, given):  # which older versions of Keras do not write
        write_keras(tmp_path / "x.keras", layers, variables, names)
        norms = anynorm.load_norms(tmp_path)
        assert (sorted(norms), norms.skipped) == (sorted(given.values()), {})
        for path, name in given.items():
            kind = RMS if name in ("third", "of_each") else LAYER
            eps = {"third": 1e-6, "of_each": 1e-4}.get(name, 1e-3)
            require_norm(norms[name], kind, eps, 0.0, "keras", *variables[path])
    assert norms["both"].shape == (5, 8)


def test_what_cannot_be_loaded(tmp_path):
    skipped = {
        "rms_scaling=True": norm(name="0", rms_scaling=True),
        "no weight (scale=False)": norm(name="1", scale=False),
        "2 variables, and by config.json 1": norm(name="2", center=False),
        "normalizes axis [1], not the last": norm(name="3", axis=1),
        "normalizes axis [-2], not the last": norm(name="4", axis=-2),
        "a LayerNormalization of mine": {**norm(name="5"), "module": "mine"},
        "no config.json says what it is; pass kind= and eps=": {**norm(name="6"), "config": None},
        "normalizes axis [1, 2], not the last": norm(name="8", axis=[1, 2]),  # with a weight of one axis
        "normalizes axis [2], not the last": {**norm(name="7", axis=2), "build_config": None},
    }
    layers = [norm(name="good"), *skipped.values(), layer("GroupNormalization", "g"), layer("Dense", "d")]
    paths = ["layers/layer_normalization", *(f"layers/layer_normalization_{i + 1}" for i in range(len(skipped)))]
    variables = {path: pair() for path in [*paths, "layers/group_normalization", "layers/dense"]}
    write_keras(tmp_path / "x.keras", layers, variables)
    norms = anynorm.load_norms(tmp_path)
    assert list(norms) == ["good"]
    assert norms.skipped.pop("g") == "a GroupNormalization"
    names = [paths[7] if one["config"] is None else one["config"]["name"] for one in skipped.values()]
    assert norms.skipped.keys() == set(names)
    for name, why in zip(names, skipped, strict=True):
        assert why in norms.skipped[name]


@pytest.mark.parametrize("epsilon", [None, "1", -1.0, 10**400, float("nan"), float("inf"), True])
def test_an_eps_that_is_none(epsilon, tmp_path):
    write_keras(tmp_path / "x.keras", [norm(epsilon=epsilon)], {"layers/layer_normalization": pair()})
    refused(tmp_path / "x.keras", "is damaged: epsilon or axis of layers/layer_normalization is no number")


def test_a_name_that_is_not_that_of_config_json(tmp_path):
    path = "layers/layer_normalization"
    write_keras(tmp_path / "x.keras", [norm(name="one")], {path: pair()}, {path: "another_norm"})
    with pytest.raises(ValueError, match=r"another_norm: no config\.json says what it is; pass kind= and eps="):
        anynorm.load_norms(tmp_path)


def test_weights_alone(tmp_path):
    variables = {
        "layers/layer_normalization": pair(),
        "layers/block/norm1": pair(seed=2),
        "layers/rms_normalization": pair(seed=4)[:1],
        "layers/batch_normalization": [*pair(), *pair()],
        "layers/layer_normalization_1": pair()[:1],
        "layers/normalization": [*pair(), *pair()[:1]],
        "layers/dense": pair(),
    }
    (tmp_path / "x.weights.h5").write_bytes(in_hdf5(variables, {"layers/layer_normalization": "named"}))
    with pytest.raises(ValueError, match=r"no config\.json says what it is; pass kind= and eps="):
        anynorm.load_norms(tmp_path)
    norms = anynorm.load_norms(tmp_path, kind="layer_norm", eps=1e-5)
    require_norm(norms["named"], LAYER, 1e-5, 0.0, "keras", *variables["layers/layer_normalization"])
    require_norm(norms["layers/block/norm1"], LAYER, 1e-5, 0.0, "keras", *variables["layers/block/norm1"])
    single = "it has a single variable, and nothing tells whether that is a weight or a bias"
    assert norms.skipped == {
        "layers/batch_normalization": "named as a batch norm",
        "layers/layer_normalization_1": single,
        "layers/normalization": "it has 3 variables, and a norm one or two",
    }
    assert len(norms) == 3
    norm = anynorm.load_norms(tmp_path, kind="rms_norm", eps=1e-5)["layers/rms_normalization"]
    assert same_bits(norm.weight, variables["layers/rms_normalization"][0])


@pytest.mark.thorough
@pytest.mark.skipif(importlib.util.find_spec("keras") is None, reason="needs keras, of the extra `models`")
def test_as_keras_saves_a_model(tmp_path):
    code = """
import sys, numpy, keras
from keras import layers as L
x = keras.Input((5, 8))
h = L.LayerNormalization(name="first")(x)
h = L.LayerNormalization(epsilon=1e-6, center=False, name="second")(h)
h = L.BatchNormalization()(L.RMSNormalization(epsilon=1e-4, name="third")(h))
h = L.LayerNormalization(axis=(1, 2), name="both")(h)
h = keras.Sequential([keras.Input((5, 8)), L.LayerNormalization(name="deep"), L.Dense(8)])(h)
h = L.TimeDistributed(L.LayerNormalization(name="timed"))(h)
model = keras.Model(x, h)
names = "first", "second", "third", "both", "deep", "timed"
for i, weight in enumerate(model.weights):
    weight.assign(numpy.random.default_rng(i).random(weight.shape) + 0.5)
model.save(sys.argv[1])
found = {}
def walk(layer):
    for one in layer._layers:
        walk(one)
    if layer.name in names:
        shape = (3, 5, 8)
        x = numpy.random.default_rng(0).standard_normal(shape).astype("float32")
        found[layer.name] = numpy.asarray(layer(x))
walk(model)
numpy.savez(sys.argv[2], **found)
"""
    model, results = tmp_path / "x.keras", tmp_path / "found.npz"
    environment = os.environ | {"KERAS_BACKEND": "numpy"}
    subprocess.run([sys.executable, "-c", code, model, results], check=True, env=environment)
    expected = np.load(results)
    norms = anynorm.load_norms(model)
    assert sorted(norms) == sorted(expected) == sorted(("first", "second", "third", "both", "deep", "timed"))
    assert list(norms.skipped.values()) == ["a BatchNormalization"]
    x = np.random.default_rng(0).standard_normal((3, 5, 8)).astype("float32")
    for name, one in norms.items():
        np.testing.assert_allclose(one(x), expected[name], rtol=1e-5, atol=1e-5)
