"""Conventions against the originals: what they computed when it was written down, and as they are installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.originals import DTYPES, EPS, Inputs, originals
from benchmarks.originals.compare import by_anynorm, compare

ROOT = Path(__file__).parents[1]
RECORDED = np.load(ROOT / "tests" / "data" / "originals.npz")
ORIGINALS = {original.name: original for original in originals()}
# In 16 bits results are bit-equal but where the original's float32 lies on the other side of the middle between two
# numbers: then x_hat, or the result, is the other one of them, and times a weight of up to 2 that is 2 units. In
# float32 the originals' own errors show, that of onnx, which forms the variance as mean(x**2) - mean(x)**2, above all.
LEAST_EQUAL, MOST_ULP = 0.99, 2.0
MOST_ULP_OF_FLOAT32 = {"onnx LayerNormalization": 64.0, "keras LayerNormalization": 32.0}
USUAL_ULP_OF_FLOAT32 = 12.0


def close(name, dtype, compared):
    if dtype == "float32":
        return compared.ulp <= MOST_ULP_OF_FLOAT32.get(name.partition(",")[0], USUAL_ULP_OF_FLOAT32)
    return compared.equal >= LEAST_EQUAL and compared.ulp <= MOST_ULP


def recorded(name, dtype):
    def read(part):
        bits = RECORDED.get(f"{name}/{dtype}/{part}")
        return None if bits is None else bits.view(DTYPES[dtype])

    original = ORIGINALS[name]
    weight = read("weight")
    inputs = Inputs(
        read("x"),
        weight.reshape(()) if original.norm == "scale_norm" else weight,
        read("bias"),
        EPS[original.norm] if original.eps is None else original.eps,
    )
    return original, inputs, read("y")


@pytest.mark.parametrize(("name", "dtype"), [(one.name, dtype) for one in ORIGINALS.values() for dtype in one.dtypes])
def test_what_was_written_down(name, dtype):
    original, inputs, theirs = recorded(name, dtype)
    ours = by_anynorm(original, inputs)
    assert ours.dtype == DTYPES[dtype]
    assert close(name, dtype, compare(original, inputs, theirs, ours))


def test_one_convention_is_not_another():
    """So that the comparison can fail: with the roundings of others fewer results are equal."""
    for name, other in (
        ("transformers LlamaRMSNorm", None),
        ("transformers Olmo2RMSNorm", "llama"),
        ("onnx LayerNormalization", "llama"),
        ("transformers NemotronLayerNorm1P", "gemma"),
        ("x_transformers.RMSNorm", "llama"),
    ):
        original, inputs, theirs = recorded(name, "bfloat16")
        ours = by_anynorm(original._replace(convention=other), inputs)
        assert compare(original, inputs, theirs, ours).equal < LEAST_EQUAL, name


@pytest.mark.thorough
def test_as_installed():
    pytest.importorskip("transformers", reason="the originals are those of the extra `models`")
    pytest.importorskip("x_transformers")
    pytest.importorskip("keras")
    command = [sys.executable, "-m", "benchmarks.originals", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row["name"] for row in rows} == set(ORIGINALS)
    for row in rows:
        for dtype, found in row["dtypes"].items():
            compared = type("Found", (), found)
            assert close(row["name"], dtype, compared), (row["name"], dtype, found)


@pytest.mark.thorough
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_keras_with_another_backend(backend):
    pytest.importorskip("keras")
    command = [sys.executable, "-m", "benchmarks.originals", "--json", "--only", "keras"]
    environment = os.environ | {"KERAS_BACKEND": backend}
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 2
    for row in rows:
        for dtype, found in row["dtypes"].items():
            assert close(row["name"], dtype, type("Found", (), found)), (row["name"], dtype, found)
