"""The benchmark of errors: what is said of a result, and of which inputs."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from anynorm._bench import inputs, plan
from anynorm._bench.cases import EPS, Case
from benchmarks import errors


def judged(case, by=1.0, add=0.0):
    """What is said of a result that is x times a number, and a number."""
    x, weight, bias = inputs.make_inputs(case, "numpy")
    y = x * np.float32(by) + np.float32(add) + (bias if case.norm == "layer_norm" else 0)
    return inputs.judged_rows(case, x, weight, bias, y)


@pytest.mark.parametrize(
    ("norm", "by", "add", "became"),
    [
        ("layer_norm", 0, 0, "0"),
        ("scale_norm", 0, 0, "0"),
        ("scale_norm", 1, 0, "unchanged"),
        ("rms_norm", 1, math.nan, "NaN"),
        ("rms_norm", 1, math.inf, "infinite"),
        ("rms_norm", 1e9, 0, None),
    ],
)
def test_there_is_a_word_for_what_a_row_became(norm, by, add, became):
    found = judged(Case(norm, "float32", (3, 40)), by, add)
    assert found.get("became") == became
    assert (found["ulp"] is None) == (not math.isfinite(add))


def test_a_word_is_said_where_half_of_the_digits_are_wrong():
    half = inputs.half_of_the_digits("float32")
    assert half == 2**12
    case = Case("scale_norm", "float32", (1, 1), has_eps=False)  # of which 1 is right
    for below, became in ((half - 1, None), (half, "unchanged")):
        x = np.float32([[1 + below * 2.0**-23]])
        assert inputs.judged_rows(case, x, [], [], x).get("became") == became


def test_inputs_have_the_mean_and_size_of_their_case():
    plain = inputs.make_inputs(Case("rms_norm", "float32", (9, 99)), "numpy")[0]
    x = inputs.make_inputs(Case("rms_norm", "float32", (9, 99), mean=1e4, size=1e20), "numpy")[0]
    np.testing.assert_allclose(x, 1e20 * (plain.astype(np.float64) + 1e4), rtol=1e-7)
    assert Case("rms_norm", "float32", (1, 1)).eps == EPS["rms_norm"]
    assert Case("rms_norm", "float32", (1, 1), has_eps=False).eps == 0


def test_errors_are_measured(monkeypatch):
    monkeypatch.setattr(plan, "LIBRARIES", {"numpy": ("NumPy expression",), "jax": ()})
    chosen = [Case("scale_norm", "float32", (3, 8), size=1e30, has_eps=False)]
    document = errors.begin(chosen)
    errors.measure(document, chosen)
    ((ours, theirs),) = [record["results"].values() for record in document["cases"]]
    assert ours["ulp"] <= 2
    assert theirs["became"] == "0"
    assert document["machine"]["processor"] is not None


def test_every_case_is_measured():
    document = json.loads((Path(errors.__file__).parent / "results" / "errors.json").read_text())
    assert [record["case"] for record in document["cases"]] == [
        case._asdict() | {"shape": list(case.shape)} for case in errors.cases()
    ]
    for record in document["cases"]:
        results = record["results"]
        assert list(results) == errors.names(record["case"]["norm"])
        assert results["anynorm"]["ulp"] <= 2
        assert results["anynorm on JAX"]["ulp"] <= 4
