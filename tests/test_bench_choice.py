"""`anynorm bench` ends with what each norm holds, computes and takes."""

import anynorm
from anynorm._bench.choice import NORMS, choices


def contest(norm, shape, seconds, dtype="float32"):
    timed = {"seconds": [seconds] * 3, "quartiles": [seconds] * 3}
    results = {
        "anynorm": timed | {"temporaries": 4096},
        "anynorm out=": timed,
        "copy": {"seconds": [2.0] * 3, "quartiles": [2.0] * 3},
    }
    return {"contest": "bench", "case": {"norm": norm, "dtype": dtype, "shape": list(shape)}, "results": results}


def test_the_largest_shape_of_each_dtype():
    records = [contest(norm, shape, time) for shape, time in (((4, 8), 1.0), ((64, 16), 4.0)) for norm in NORMS]
    records += [contest(norm, (4, 8), 1.0, "float16") for norm in ("rms_norm", "layer_norm")]
    (title, found), (narrow, of_narrow) = choices({"contests": records})
    assert title == "which norm: float32 64 x 16"
    assert narrow == "which norm: float16 4 x 8"
    assert [one.norm for one in found] == ["layer_norm", "rms_norm", "scale_norm"]
    assert [one.norm for one in of_narrow] == ["layer_norm", "rms_norm"]
    assert [one.parameters for one in found] == [32, 16, 1]
    assert [(one.seconds, one.of_copy, one.memory) for one in found] == [(4.0, 2.0, 4096)] * 3


def test_one_norm_alone_is_no_choice():
    assert not list(choices({"contests": [contest("rms_norm", (4, 8), 1.0)]}))


def test_what_was_not_timed_is_left_open():
    records = [contest(norm, (4, 8), 1.0) for norm in NORMS]
    records[0]["results"] = {"anynorm": {"failed": "by itself"}, "anynorm out=": {"wrong": "3"}}
    ((_, (first, second, _)),) = choices({"contests": records})
    assert (first.seconds, first.of_copy, first.memory) == (None, None, None)
    assert second.seconds == 1.0


def test_parameters_are_those_of_the_objects():
    objects = {
        "layer_norm": anynorm.LayerNorm(24),
        "rms_norm": anynorm.RMSNorm(24),
        "scale_norm": anynorm.ScaleNorm(24),
    }
    for norm, one in objects.items():
        held = sum(array.size for array in one.state_dict().values())
        assert held == NORMS[norm].parameters(24)
